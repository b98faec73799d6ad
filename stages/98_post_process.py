"""98 post process: when a flow left the pipeline, how long it was in it, and which pipeline it was.

Reads   @ingest_time
Writes  @exit_time  date
        @processing_time  number, seconds from @ingest_time to @exit_time; not without @ingest_time
        @pipeline_ver  text
        @version  text, "1"
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline import __version__
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups, Now
from netsage_pipeline.times import unix


class Config(Settings):
    pipeline_version: str = Field(__version__, description="What is written to @pipeline_ver")


def stage(config: Config, _lookups: Lookups, now: Now) -> FlowProcess:
    def process(flow: Flow) -> Flow:
        ingested = flow.get("@ingest_time")
        flow["@exit_time"] = now.text
        if ingested is not None:
            flow["@processing_time"] = round(now.seconds - unix(ingested), 3)
        flow["@pipeline_ver"] = config.pipeline_version
        flow["@version"] = "1"
        return flow

    return process
