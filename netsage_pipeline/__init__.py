"""NetSage Pipeline: flow records in, stitched and enriched flows without personal addresses out."""

__version__ = "0.1.0"
