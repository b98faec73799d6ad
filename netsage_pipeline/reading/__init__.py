"""Files of flows in every format that can be read."""
