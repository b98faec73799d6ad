"""01 input nfcapd: the importer, takes flows from capture files of nfcapd and sfcapd as they appear.

Reads   nothing
Writes  nothing
Source  nfcapd files, read by nfdump, aggregated by 5-tuple; a directory tree for each sensor
Drops   flows with fewer bytes than the sensor's min_bytes, after aggregation
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from netsage_pipeline.config import Directory, Input, SettingsError
from netsage_pipeline.importer.importing import Importer, Sensor
from netsage_pipeline.reading.nfdump import NfdumpError


class Config(Input):
    state: Directory = Field(Path("/var/lib/netsage/import"), description="Directory in which it is kept what was imported")
    sensors: list[Sensor] = Field(
        min_length=1,
        description="A table for each sensor: name; directory: the tree of its files; flow_type: netflow or sflow (netflow); "
        "instance (none); router: address of an exporter, what others sent is left out (none); min_bytes: flows with fewer are left out "
        "(10000000); min_file_age_s: seconds for which a file did not change before it is read (60); delete_after_days: imported files "
        "that are older are deleted (0: never)",
    )
    poll_s: float = Field(30, gt=0, le=3600, allow_inf_nan=False, description="Seconds between two looks through the directories")

    @field_validator("sensors")
    @classmethod
    def _have_names_of_their_own(cls, sensors: list[Sensor]) -> list[Sensor]:
        names = [sensor.name for sensor in sensors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several sensors are called {', '.join(twice)}: what was imported is known by sensor, give each its own name")
        return sensors


def source(config: Config) -> Importer:
    try:
        return Importer(config.sensors, config.state, config.poll_s)
    except NfdumpError as error:
        raise SettingsError([str(error)]) from None
