"""The commands of netsage-pipeline, a file each."""
