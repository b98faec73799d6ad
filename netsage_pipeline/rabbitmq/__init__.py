"""RabbitMQ: where brokers are, the link, what is consumed and published."""
