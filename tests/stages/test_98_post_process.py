"""98 post process: times and version of the pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline import __version__
from netsage_pipeline.flow import Flow, Now
from tests.conftest import load_stage
from tests.flows import NOW, flow, nothing

post_process = load_stage("98_post_process")


def run(given: Flow, seconds: float = NOW, **settings: Any) -> Flow:
    now = Now(0.0)
    process = post_process.stage(post_process.Config(**settings), nothing, now)
    now.set(seconds)
    made: Flow = process(given)
    return made


def test_exit_time_is_now() -> None:
    assert run(flow(), NOW + 0.1239)["@exit_time"] == "2023-11-14T22:13:20.123Z"


@pytest.mark.parametrize(
    ("ingested", "seconds", "expected"),
    [
        pytest.param("2023-11-14T22:13:20.000Z", NOW, 0.0, id="at once"),
        pytest.param("2023-11-14T22:13:19.250Z", NOW + 0.5, 1.25, id="milliseconds count on both sides"),
        pytest.param("2023-11-14T21:13:20.000Z", NOW, 3600.0, id="an hour"),
        pytest.param("2023-11-14T22:13:19.900Z", NOW + 0.2004, 0.3, id="rounded to milliseconds"),
    ],
)
def test_processing_time_is_exit_minus_ingest_in_seconds(ingested: str, seconds: float, expected: float) -> None:
    assert run(flow() | {"@ingest_time": ingested}, seconds)["@processing_time"] == expected


def test_without_an_ingest_time_there_is_no_processing_time() -> None:
    got = run(flow())
    assert "@processing_time" not in got
    assert got["@exit_time"] == "2023-11-14T22:13:20.000Z"


def test_versions() -> None:
    got = run(flow() | {"@version": "9"})
    assert (got["@pipeline_ver"], got["@version"]) == (__version__, "1")
    assert run(flow(), pipeline_version="site 7")["@pipeline_ver"] == "site 7"


def test_timestamp_is_left_as_stitching_wrote_it() -> None:
    assert run(flow() | {"@timestamp": "x"})["@timestamp"] == "x"
