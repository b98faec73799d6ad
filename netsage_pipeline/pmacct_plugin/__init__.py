"""What a plugin of pmacct writes, into Elasticsearch: settings, transformations, templates."""
