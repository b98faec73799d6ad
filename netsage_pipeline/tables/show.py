"""What each lookup table says of an address, for `netsage-pipeline lookups show`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geoip2.database
import geoip2.errors
import maxminddb
import orjson

from netsage_pipeline.flow import Table
from netsage_pipeline.tables.tables import Tables


def said(ip: str, directory: Path) -> Iterator[tuple[str, str]]:
    """File and what it says of the address, table by table. Reads MaxMind's files with geoip2, not with the chain's own reader."""
    asn = -1
    for name in ("GeoLite2-City.mmdb", "GeoLite2-ASN.mmdb", "scireg.mmdb", "communities.mmdb"):
        path = directory / name
        if not path.exists():
            yield name, f"no such table in {directory}"
            continue
        try:
            record = _record(path, ip)
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            yield name, f"cannot be read: {error}"
            continue
        if record and name == "GeoLite2-ASN.mmdb":
            asn = record.get("autonomous_system_number") or -1
        yield name, orjson.dumps(record, default=str).decode() if record else "not found"
    tables = Tables(directory)
    of = f"AS{asn}: " if asn >= 0 else ""
    yield "CAIDA-org-lookup.csv", _said(tables, "caida", "CAIDA-org-lookup.csv", lambda table: table.get(asn), of)
    yield "members/", _said(tables, "members", "members", lambda table: table.get(ip, asn), of)


def _said(tables: Tables, kind: str, name: str, ask: Any, prefix: str) -> str:
    table: Table = tables(kind, Path(name))
    if tables.missing and tables.missing[-1].name == name:
        return f"no such table in {tables.directory}"
    broken = [line for line in tables.broken if name in line]
    return broken[0] if broken else prefix + (ask(table) or "not found")


def _record(path: Path, ip: str) -> dict[str, Any] | None:
    with geoip2.database.Reader(path) as reader:
        kind = reader.metadata().database_type
        try:
            if "ASN" in kind:
                answer = reader.asn(ip)
                return {
                    "network": str(answer.network),
                    "autonomous_system_number": answer.autonomous_system_number,
                    "autonomous_system_organization": answer.autonomous_system_organization,
                }
            city = reader.city(ip)
        except TypeError:  # A type that geoip2 does not know: the record as it is.
            with maxminddb.open_database(path) as database:
                found = database.get(ip)
            return {"record": found} if found is not None else None
        except geoip2.errors.AddressNotFoundError:
            return None
    if city.city.name and city.city.name[:1] in "{[":
        return {"network": str(city.traits.network), "json": city.city.name}
    return {
        "network": str(city.traits.network),
        "continent": city.continent.name,
        "country": city.country.name,
        "city": city.city.name,
        "latitude": city.location.latitude,
        "longitude": city.location.longitude,
    }
