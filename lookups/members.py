"""Member lists: a directory of TOML files, each with the ASNs it applies to and prefix → organization.

asns = [217, 11537]          # an empty list: all
[members]
"128.101.100.0/24" = "Member B"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from netsage_pipeline.addresses import Prefixes


class MemberList(NamedTuple):
    """One list: where it applies, and its prefixes."""

    name: str
    asns: frozenset[int]
    members: Prefixes


class Members:
    """`get(ip, asn)` asks the first list that has the ASN, and no other."""

    def __init__(self, lists: list[MemberList]) -> None:
        self.lists = lists

    def get(self, ip: str, asn: int) -> str | None:
        for each in self.lists:
            if not each.asns or asn in each.asns:
                member: str | None = each.members.get(ip)
                return member
        return None

    def __len__(self) -> int:
        """The number of prefixes in all lists."""
        return sum(len(each.members) for each in self.lists)


def open_table(path: Path) -> Members:
    """The lists in order of file name; of a file the one in it. ValueError names each thing that is wrong with any of them."""
    lists = []
    errors: list[str] = []
    for file in sorted(path.glob("*.toml")) if path.is_dir() else [path]:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            errors.append(f"{file.name}: is not TOML: {error}")
            continue
        lists.append(_member_list(file.stem, values, errors))
    if errors:
        raise ValueError("\n".join(errors))
    return Members(lists)


def _member_list(name: str, values: dict[str, Any], errors: list[str]) -> MemberList:
    for key in values.keys() - {"asns", "members"}:
        errors.append(f"{name}.toml: {key}: unknown, known are asns and members")
    asns = values.get("asns", [])
    if not isinstance(asns, list) or not all(type(asn) is int for asn in asns):
        errors.append(f"{name}.toml: asns: is not a list of numbers")
        asns = []
    members = Prefixes()
    table = values.get("members", {})
    if not isinstance(table, dict):
        errors.append(f'{name}.toml: members: is not a table of "prefix" = "organization"')
        table = {}
    for prefix, organization in table.items():
        try:
            members.add(prefix, organization)
        except ValueError:
            errors.append(f"{name}.toml: members: '{prefix}' is not a prefix such as 192.0.2.0/24 or 2001:db8::/32")
        if not isinstance(organization, str):
            errors.append(f"{name}.toml: members: '{prefix}': the organization is not a text")
    return MemberList(name, frozenset(asns), members)
