"""lookups info: what each table is, how old, and how much is in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.command import run, run_real, tables_with
from tests.lookups.test_mmdb import NETWORKS, write

NAMES = [
    "GeoLite2-City.mmdb",
    "GeoLite2-ASN.mmdb",
    "CAIDA-org-lookup.csv",
    "scireg.mmdb",
    "communities.mmdb",
    "members",
    "sensor_groups.json",
    "sensor_types.json",
]


def info(out: bytes) -> dict[str, list[str]]:
    """Table → the words behind it."""
    return {line.split()[0]: line.split()[1:] for line in out.decode().splitlines()}


def test_each_table_has_a_line(tmp_path: Path) -> None:
    member = b'[members]\n"192.0.2.0/24" = "A"\n"198.51.100.0/24" = "B"\n'
    tables = tables_with(tmp_path, {"members/a.toml": member, "members/b.toml": member})
    ago = time.time() - 36 * 3_600
    os.utime(tables / "CAIDA-org-lookup.csv", (ago, ago))
    outcome = run_real("lookups", "info", lookups=tables)
    told = info(outcome.out)
    assert (outcome.code, outcome.err, list(told)) == (0, "", NAMES)
    assert told["GeoLite2-City.mmdb"][0] == "GeoLite2-City"
    assert told["GeoLite2-City.mmdb"][-4:] == ["40", "entries", "6,070", "bytes"]
    assert told["GeoLite2-City.mmdb"][1] == time.strftime("%Y-%m-%d", time.gmtime(1795206204))
    assert told["CAIDA-org-lookup.csv"][:4] == ["caida", time.strftime("%Y-%m-%d", time.gmtime(ago)), "1.5", "days"]
    assert told["members"][-4:] == ["4", "entries", str(2 * len(member)), "bytes"]
    assert told["communities.mmdb"] == ["no", "such", "table", "in", str(tables)]
    for file in (tables / "members").iterdir():
        file.unlink()
    os.utime(tables / "members", (ago, ago))
    without = info(run("lookups", "info", lookups=tables).out)["members"]
    assert (without[2], without[-4:]) == ("1.5", ["0", "entries", "0", "bytes"])


def test_tables_that_are_not_there_are_no_failure(tmp_path: Path) -> None:
    outcome = run("lookups", "info", lookups=tmp_path / "no")
    assert (outcome.code, outcome.err) == (0, "")
    assert set(map(tuple, info(outcome.out).values())) == {("no", "such", "table", "in", str(tmp_path / "no"))}


@pytest.mark.parametrize("built", [1, 2**63])
def test_a_date_that_cannot_be_is_no_traceback(tmp_path: Path, built: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdb_writer.time.time", lambda: built)
    write(tmp_path / "GeoLite2-ASN.mmdb", {"192.0.2.0/24": {"autonomous_system_number": 1}})
    monkeypatch.undo()
    told = info(run("lookups", "info", lookups=tmp_path).out)["GeoLite2-ASN.mmdb"]
    assert told[1] == ("9999-12-31" if built > 1 else "1970-01-01")


def test_what_is_broken_or_of_the_wrong_kind_is_a_line_and_the_others_are_shown(tmp_path: Path) -> None:
    tables = tables_with(
        tmp_path,
        {"GeoLite2-City.mmdb": b"x", "CAIDA-org-lookup.csv": b"1,A\nx,B\n9\n", "communities.mmdb": b"", "members/a.toml": b"x = 5"},
    )
    (tables / "sensor_types.json").unlink()
    (tables / "sensor_types.json").mkdir()
    write(tables / "GeoLite2-ASN.mmdb", NETWORKS)
    outcome = run("lookups", "info", lookups=tables)
    assert outcome.code == 1
    lines = [line.removeprefix(f"{tables}/") for line in outcome.err.splitlines()]
    assert [line.partition(":")[0] for line in lines] == [*NAMES[:3], "CAIDA-org-lookup.csv", *NAMES[4:6], NAMES[7]]
    assert lines[1] == (
        "GeoLite2-ASN.mmdb: is no ASN database (its type is GeoLite2-ASN; "
        "its first records have no autonomous_system_number): put one there"
    )
    assert list(info(outcome.out)) == ["scireg.mmdb", "sensor_groups.json"]
