"""The connections of a machine: out of /proc, and out of saved output of netstat and ss."""
