"""city, asn, registry: an mmdb of the wrong content is no table, when it is opened and when it is exchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.tables.content import content
from netsage_pipeline.tables.tables import Tables, read
from tests.command import LOOKUPS, run, tables_with
from tests.lookups.test_mmdb import write

JSON = {"city": {"names": {"en": '{"org_name": "A"}'}}, "location": {"latitude": 1.0, "longitude": 2.0}}
RECORDS: dict[str, Any] = {
    "City": {"country": {"names": {"en": "Norway"}}, "location": {"latitude": 1.0, "longitude": 2.0}},
    "City by continent": {"continent": {"names": {"en": "Europe"}}, "location": {}},
    "Country": {"country": {"names": {"en": "Norway"}}, "continent": {"names": {"en": "Europe"}}},
    "ASN": {"autonomous_system_number": 217},
    "registry": JSON,
    "registry without place": {"city": JSON["city"]},
    "JSON that is no object": {"city": {"names": {"en": "[1]"}}, "location": {}},
    "a city": {"city": {"names": {"en": "Oslo"}}},
    "no map": "text",
    "a list": [1],
    "an empty map": {},
    "names of another shape": {"city": {"names": ["en"]}},
    "a number for a city": {"city": {"names": {"en": 5}}},
}
RIGHT = {"city": {"City", "City by continent"}, "asn": {"ASN"}, "registry": {"registry", "registry without place"}, "mmdb": set(RECORDS)}


@pytest.mark.parametrize("holding", RECORDS)
@pytest.mark.parametrize("kind", RIGHT)
def test_only_the_right_content_is_opened(tmp_path: Path, kind: str, holding: str) -> None:
    path = write(tmp_path / "x.mmdb", {"192.0.2.0/24": RECORDS[holding]}, "Says-Anything")
    if holding in RIGHT[kind]:
        assert read(kind, path).get("192.0.2.1") == RECORDS[holding]
    else:
        with pytest.raises(
            ValueError, match=r"^is no [A-Za-z ]+ \(its type is Says-Anything; its first records have no .*\): put one there$"
        ):
            read(kind, path)


@pytest.mark.parametrize("kind", ["city", "asn", "registry"])
def test_a_database_without_records_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="its first records have no"):
        read(kind, write(tmp_path / "x.mmdb", {}))


def test_one_right_record_among_the_first_is_enough(tmp_path: Path) -> None:
    networks = {f"10.{number // 256}.{number % 256}.0/24": RECORDS["a city"] for number in range(900)}
    assert read("city", write(tmp_path / "x.mmdb", {**networks, "11.0.0.0/8": RECORDS["City"]})).get("11.0.0.1")


def test_prefixes_are_counted_also_those_within_others(tmp_path: Path) -> None:
    networks = {"10.0.0.0/8": RECORDS["ASN"], "10.1.0.0/16": {"autonomous_system_number": 5}, "2001:db8::/32": RECORDS["ASN"]}
    found = content("mmdb", write(tmp_path / "x.mmdb", networks))
    assert found.entries == 2 + 8  # What is left of 10/8 are eight prefixes.
    assert (found.type, found.bytes) == ("GeoLite2-ASN", (tmp_path / "x.mmdb").stat().st_size)
    assert bool(read("mmdb", tmp_path / "x.mmdb"))


WRONG = {
    "GeoLite2-City.mmdb": ("GeoLite2-ASN.mmdb", "is no City database (its type is GeoLite2-ASN"),
    "GeoLite2-ASN.mmdb": ("GeoLite2-City.mmdb", "is no ASN database (its type is GeoLite2-City"),
    "scireg.mmdb": ("GeoLite2-City.mmdb", "is no science registry (its type is GeoLite2-City"),
}


@pytest.mark.parametrize("name", WRONG)
def test_at_start_it_is_one_line(tmp_path: Path, name: str) -> None:
    other, why = WRONG[name]
    tables = tables_with(tmp_path, {name: (LOOKUPS / other).read_bytes()})
    for command in (["check"], ["replay", "-"]):
        outcome = run(*command, stdin=b"{}", lookups=tables)
        assert outcome.code == 2
        [line] = outcome.err.splitlines()
        assert line.startswith(f"{tables}/{name}: {why}")


def test_a_registry_in_place_of_places_is_refused_although_both_say_that_they_are_cities(tmp_path: Path) -> None:
    tables = tables_with(tmp_path, {"GeoLite2-City.mmdb": (LOOKUPS / "scireg.mmdb").read_bytes()})
    assert (
        "is no City database (its type is GeoLite2-City; its first records have no country and location)"
        in run("check", lookups=tables).err
    )


KINDS = {"GeoLite2-City.mmdb": "city", "GeoLite2-ASN.mmdb": "asn", "scireg.mmdb": "registry"}


@pytest.mark.parametrize("name", WRONG)
def test_while_it_runs_the_old_one_stays(tmp_path: Path, name: str) -> None:
    directory = tables_with(tmp_path, {})
    tables = Tables(directory)
    old = tables(KINDS[name], Path(name))
    (directory / "new").write_bytes((LOOKUPS / WRONG[name][0]).read_bytes())
    (directory / "new").replace(directory / name)
    assert tables.changed() is None
    assert tables.changed() is None
    [line] = tables.refused
    assert line.startswith(f"{directory}/{name}: {WRONG[name][1]}")
    assert line.endswith(": the table read before stays in use")
    assert tables(KINDS[name], Path(name)) is old
