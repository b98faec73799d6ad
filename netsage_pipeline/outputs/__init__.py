"""Outputs besides RabbitMQ and Elasticsearch."""
