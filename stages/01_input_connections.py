"""01 input connections: this machine's TCP and UDP connections, as netstat -nte shows them, every so many seconds.

Reads   nothing
Writes  @timestamp  date, when it was seen
        host  text, name of this machine
        proto  text, tcp, tcp6, udp or udp6
        localip, foreignip  ip
        localport, foreignport  integer
        state  text, as netstat writes it
        user  text, number of the user whose socket it is
        inode  integer, of the socket; 0 when no process has it
        direction  text, server where this machine listens on the local port, else client
        process  text, name
        pid  integer
        path  text, of the program
        command  text, the command line, with command_line
        event  text, found, opened or closed, with records = "changes"
Source  /proc/net and /proc/PID (Linux)
Drops   nothing; what the output refuses goes to dead-letters.ndjson beside the state
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from netsage_pipeline.config import Input
from netsage_pipeline.probe.source import ConnectionsSource


class Config(Input):
    interval_s: float = Field(30, ge=0.1, description="Time between two snapshots, seconds")
    records: Literal["snapshots", "changes"] = Field(
        "snapshots", description="snapshots: each time all connections; changes: each once when it is opened, and once when it is closed"
    )
    command_line: bool = Field(False, description="Whether the command line of the process is given; it may hold secrets")


def source(config: Config) -> ConnectionsSource:
    return ConnectionsSource(config.state, config.interval_s, only_changes=config.records == "changes", command_line=config.command_line)
