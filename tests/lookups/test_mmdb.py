"""mmdb: real files, written with mmdb_writer and compared with geoip2."""

from __future__ import annotations

import ipaddress
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import geoip2.database
import geoip2.errors
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from netsage_pipeline import stagefile
from netsage_pipeline.folders import shipped

mmdb = stagefile.load(shipped("lookups") / "mmdb.py")


def write(path: Path, networks: dict[str, Any], kind: str = "GeoLite2-ASN", ip_version: int = 6) -> Path:
    """A database of prefix → record."""
    writer = MMDBWriter(ip_version, kind, languages=["en"], description="test", ipv4_compatible=ip_version == 6)
    for prefix, record in networks.items():
        writer.insert_network(IPSet([prefix]), record)
    writer.to_db_file(str(path))
    return path


NETWORKS = {
    "192.0.2.0/24": {"name": "24"},
    "192.0.2.128/25": {"name": "25"},
    "192.0.2.129/32": {"name": "32"},
    "2001:db8::/32": {"name": "v6 32"},
    "2001:db8:1::/48": {"name": "v6 48"},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mmdb.open_table(write(tmp_path_factory.mktemp("mmdb") / "test.mmdb", NETWORKS))


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        pytest.param("192.0.2.1", "24", id="the prefix that holds an address"),
        pytest.param("192.0.2.255", "25", id="the longest prefix counts"),
        pytest.param("192.0.2.129", "32", id="a prefix of one address"),
        pytest.param("192.0.1.255", None, id="before all prefixes"),
        pytest.param("192.0.3.0", None, id="behind all prefixes"),
        pytest.param("2001:db8::1", "v6 32", id="an IPv6 address"),
        pytest.param("2001:DB8:0001::1", "v6 48", id="the longest IPv6 prefix, in another notation"),
        pytest.param("2001:db9::", None, id="behind all IPv6 prefixes"),
        pytest.param("::ffff:192.0.2.1", "24", id="a mapped address is looked up as IPv4"),
        pytest.param("::FFFF:C000:0281", "32", id="a mapped address in hexadecimal too"),
        pytest.param("::192.0.2.1", "24", id="an address in ::/96, where the file keeps IPv4"),
        pytest.param("no address", None, id="a text that is no address"),
        pytest.param("", None, id="an empty text"),
        pytest.param("192.0.2.1%eth0", None, id="an address with a zone"),
        pytest.param("192.0.2", None, id="three octets"),
        pytest.param("192.0.2.1/24", None, id="a prefix"),
        pytest.param("192.0.2.001", None, id="leading zeros"),
        pytest.param("192.0.2.1\x00", None, id="a zero byte"),
        pytest.param("\ud800", None, id="a lone surrogate"),
    ],
)
def test_get(table: Any, ip: str, expected: str | None) -> None:
    assert table.get(ip) == (None if expected is None else {"name": expected})


def test_a_file_of_ipv4_only_knows_no_ipv6_address(tmp_path: Path) -> None:
    v4 = mmdb.open_table(write(tmp_path / "v4.mmdb", {"192.0.2.0/24": {"name": "24"}}, ip_version=4))
    assert v4.get("192.0.2.1") == {"name": "24"}
    assert v4.get("::ffff:192.0.2.1") == {"name": "24"}
    assert v4.get("2001:db8::1") is None
    assert v4.get("::") is None


def random_networks(chance: random.Random) -> list[str]:
    """Prefixes of all lengths, many of them within others; the wider ones come first, as the writer wants them."""
    networks = [ipaddress.ip_network((chance.getrandbits(32), chance.randint(4, 32)), strict=False) for _ in range(150)]
    inner = [ipaddress.ip_network((int(each[0]) | chance.getrandbits(8), min(each.prefixlen + 4, 32)), strict=False) for each in networks]
    wide = [ipaddress.ip_network((0x2001 << 112 | chance.getrandbits(108), chance.randint(20, 128)), strict=False) for _ in range(150)]
    return [str(each) for each in sorted({*networks, *inner, *wide}, key=lambda each: each.prefixlen)]


def random_addresses(chance: random.Random, networks: list[str]) -> list[str]:
    """In the networks and at their edges, mapped, and anywhere."""
    found: list[str] = []
    for network in map(ipaddress.ip_network, networks):
        first, last = int(network[0]), int(network[-1])
        top = 2**network.max_prefixlen - 1
        make = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        for number in (first, last, first - 1, last + 1, chance.randint(first, last)):
            address = make(min(max(number, 0), top))
            found.append(str(address))
            if network.version == 4:
                found.append(f"::ffff:{address}")
                found.append(ipaddress.IPv6Address(0xFFFF << 32 | int(address)).exploded)
    found += [str(ipaddress.IPv4Address(chance.getrandbits(32))) for _ in range(300)]
    found += [str(ipaddress.IPv6Address(0x2001 << 112 | chance.getrandbits(112))) for _ in range(300)]
    return found


def plain(ip: str) -> str:
    """The address as geoip2 is asked for it: mapped ones as IPv4."""
    address = ipaddress.ip_address(ip)
    return str(getattr(address, "ipv4_mapped", None) or address)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_numbers_and_places_are_those_that_geoip2_finds(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    networks = random_networks(chance)
    asns = {each: {"autonomous_system_number": 1 + index, "autonomous_system_organization": each} for index, each in enumerate(networks)}
    cities = {
        each: {
            "continent": {"code": "EU", "names": {"en": "Europe"}},
            "country": {"iso_code": "NO", "names": {"en": f"Country {index}"}},
            "location": {"latitude": index / 7, "longitude": -index / 9},
        }
        for index, each in enumerate(networks)
    }
    numbers = write(tmp_path / "asn.mmdb", asns)
    places = write(tmp_path / "city.mmdb", cities, "GeoLite2-City")
    number_table, place_table = mmdb.open_table(numbers), mmdb.open_table(places)
    hits = misses = 0
    with geoip2.database.Reader(numbers) as by_number, geoip2.database.Reader(places) as by_place:
        for ip in random_addresses(chance, networks):
            number, place = number_table.get(ip), place_table.get(ip)
            try:
                known = by_number.asn(plain(ip))
            except geoip2.errors.AddressNotFoundError:
                misses += 1
                assert (number, place) == (None, None), ip
                continue
            hits += 1
            city = by_place.city(plain(ip))
            assert number["autonomous_system_number"] == known.autonomous_system_number, ip
            assert place["country"]["names"]["en"] == city.country.name, ip
            assert place["continent"]["names"]["en"] == city.continent.name, ip
            assert (place["location"]["latitude"], place["location"]["longitude"]) == (city.location.latitude, city.location.longitude), ip
    assert hits > 1_000
    assert misses > 100


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda whole: whole[: len(whole) // 2], id="truncated in the middle"),
        pytest.param(lambda whole: whole[:-10], id="truncated at the end"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"asn,organization\n", id="another kind of file"),
    ],
)
def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "test.mmdb", NETWORKS)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match="is no MaxMind DB file, or is truncated"):
        mmdb.open_table(path)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mmdb.open_table(tmp_path / "none.mmdb")


def test_a_directory_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        mmdb.open_table(tmp_path)


def test_a_file_that_is_truncated_in_place_after_opening_does_not_kill_the_process(tmp_path: Path) -> None:
    networks = {f"192.{second}.{third}.0/24": {"name": f"{second} {third}"} for second in range(8) for third in range(256)}
    path = write(tmp_path / "test.mmdb", networks)
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from netsage_pipeline import stagefile
        from netsage_pipeline.folders import shipped

        path = Path(sys.argv[1])
        table = stagefile.load(shipped("lookups") / "mmdb.py").open_table(path)
        os.truncate(path, 0)
        for second in range(8):
            for third in range(256):
                assert table.get(f"192.{second}.{third}.7") == {"name": f"{second} {third}"}
        print("alive")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, cwd=shipped("lookups").parent
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_no_copy_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "test.mmdb", NETWORKS)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert mmdb.open_table(path).get("192.0.2.1") == {"name": "24"}
    assert list((tmp_path / "tmp").iterdir()) == []
