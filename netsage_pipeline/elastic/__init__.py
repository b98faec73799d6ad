"""Elasticsearch: how it is reached, bulk writing, index templates, dumping, retention."""
