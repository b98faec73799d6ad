"""The importer of capture files."""
