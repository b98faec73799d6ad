"""The lookup tables: opened, exchanged, fetched, built and shown."""
