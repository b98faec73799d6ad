"""Outputs besides RabbitMQ and Elasticsearch, and what outputs share."""
