"""pmacct's records, JSON or CSV, as its print plugin and its client for the memory plugin write them, and what they are as flows.

CSV begins with a line of names in capitals; whatever separates them separates the values, and nothing is quoted. JSON and CSV call the
same things differently (ip_src, SRC_IP). Times are texts in local time, or in UTC with timestamps_utc, which nobody can tell apart; in
RFC 3339 with timestamps_rfc3339; unix seconds with timestamps_since_epoch. Source: pmacct 1.7.7 and its CONFIG-KEYS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.reading.foreign import Names

#: Which field of a flow is in which field of a record; the first one that it has counts.
NAMES = Names(
    src_ip=("ip_src", "src_ip", "net_src", "src_net"),
    dst_ip=("ip_dst", "dst_ip", "net_dst", "dst_net"),
    src_port=("port_src", "src_port"),
    dst_port=("port_dst", "dst_port"),
    src_asn=("as_src", "src_as"),
    dst_asn=("as_dst", "dst_as"),
    src_ifindex=("iface_in", "in_iface"),
    dst_ifindex=("iface_out", "out_iface"),
    protocol=("ip_proto", "protocol"),
    times=(("timestamp_start", "timestamp_end"), ("stamp_inserted", "stamp_updated"), ("timestamp_min", "timestamp_max")),
    octets=("bytes",),
    packets=("packets",),
    sensor=("label", "tag"),
)

#: Fields by which a record is dated; the first one that it has counts.
TIMES = ("timestamp_start", "stamp_inserted", "timestamp_end", "stamp_updated", "timestamp_arrival", "timestamp_min")

#: Columns of CSV that are numbers, by their names in small letters.
_NUMBERS = frozenset(
    {
        *("packets", "bytes", "flows", "tag", "tag2", "vlan", "in_vlan", "out_vlan", "cos", "tos", "sampling_rate"),
        *("src_as", "dst_as", "peer_src_as", "peer_dst_as", "src_port", "dst_port", "in_iface", "out_iface"),
        *("src_mask", "dst_mask", "pref", "med", "src_pref", "src_med", "mpls_label_top", "mpls_label_bottom", "mpls_stack_depth"),
    }
)

#: Columns one of which is in every first line of CSV, also in one without counters (event_csv), as pmacct writes its own: in capitals.
_PMACCTS = frozenset(name.upper() for name in (*_NUMBERS, *TIMES, *NAMES.src_ip, *NAMES.dst_ip, *NAMES.protocol, *NAMES.sensor))

#: What print_markers writes around CSV, and as events into JSON.
_MARKER = re.compile(rb"--(START|END) \(\d+\)--\s*")
_MARKERS = ("purge_init", "purge_close")

_COLUMN = re.compile(r"[A-Za-z_@][\w@]*")


class Columns(NamedTuple):
    """The columns of CSV."""

    names: list[str]  #: in small letters
    separator: str

    def record(self, line: bytes) -> dict[str, Any]:
        """ValueError, in words, if the line has not as many values."""
        values = line.decode("utf-8").rstrip("\r\n").split(self.separator)
        if len(values) != len(self.names):
            raise ValueError(f"has {len(values)} values, but the first line names {len(self.names)}")
        return {
            name: int(value) if name in _NUMBERS and value.isdecimal() else value for name, value in zip(self.names, values, strict=True)
        }


def columns(line: bytes) -> Columns | None:
    """The columns that a first line names; None if it is no such line: each once, and one of pmacct's own among them.

    Primitives of one's own (aggregate_primitives) stand there as one wrote them.
    """
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    separator = next((character for character in text if not (character.isalnum() or character in "_@")), "")
    names = text.split(separator) if separator else [text]
    if not separator or not all(map(_COLUMN.fullmatch, names)) or _PMACCTS.isdisjoint(names):
        return None
    small = [name.lower() for name in names]
    return Columns(small, separator) if len(set(small)) == len(small) else None


def is_table(line: bytes) -> bool:
    """Whether this is the first line of CSV with counters."""
    found = columns(line)
    return found is not None and not {b"BYTES", b"PACKETS"}.isdisjoint(line.rstrip().split(found.separator.encode()))


def is_marker(line: bytes) -> bool:
    """Whether print_markers wrote this line around CSV."""
    return _MARKER.fullmatch(line) is not None


def is_record(value: Any) -> bool:
    """Whether a JSON value is a record of pmacct, and no flow."""
    return isinstance(value, dict) and ("bytes" in value or "packets" in value or is_event(value)) and "values" not in value


def is_event(value: dict[str, Any]) -> bool:
    """Whether print_markers wrote it."""
    return value.get("event_type") in _MARKERS


class Record(NamedTuple):
    """A line of a file: a record, or what is wrong with it."""

    line: int  #: from 1
    fields: dict[str, Any]
    wrong: str  #: "" if nothing is
    given: bytes  #: the line


def records(lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    """The records of numbered lines, JSON or CSV, with their ends of line."""
    table: Columns | None = None
    first = b""
    is_json = False
    for line, given in lines:
        if not given.strip() or is_marker(given):
            continue
        fields: dict[str, Any] = {}
        wrong = ""
        try:
            if table is not None:
                if given.rstrip() == first:  # Files were put one behind the other.
                    continue
                if not given.endswith(b"\n"):  # Its last value may be the half of one.
                    raise ValueError("has no end of line: cut off?")
                fields = table.record(given)
            elif not is_json and (found := columns(given)) is not None:
                table, first = found, given.rstrip()
                continue
            else:
                fields, wrong = _object(given)
                is_json = is_json or not wrong
        except ValueError as error:
            wrong = str(error) if not isinstance(error, UnicodeDecodeError) else "not UTF-8"
        if not (fields and is_event(fields)):
            yield Record(line, fields, wrong, given)


def _object(given: bytes) -> tuple[dict[str, Any], str]:
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError:
        return {}, "neither JSON nor CSV" if given.lstrip()[:1] != b"{" else "not JSON: cut off?" if b"}" not in given[-3:] else "not JSON"
    return (value, "") if isinstance(value, dict) else ({}, "not an object")
