"""The field table: what a flow holds, of which type, and who writes it. docs/fields.md, `fields` and the index template are made of it.

What stages write is named in their docstrings, of an operator's stage too; a Writes line begins with one of TYPES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netsage_pipeline.config import SettingsError
from netsage_pipeline.ends import meta_name
from netsage_pipeline.flow import SIDES
from netsage_pipeline.stagefile import StageFile, StageFileError

#: Type words, which may be joined by "or": "text or integer".
TYPES = ("text", "texts", "ip", "ip-masked", "integer", "number", "boolean", "date", "location", "object", "removed")

#: Field → type word and meaning, of a flow as an exporter's importer sends it.
EXPORTED: dict[str, str] = {
    "type": 'text, "flow"',
    "interval": "integer, seconds between two exports",
    "start": "number, unix seconds (milliseconds are accepted)",
    "end": "number, unix seconds (milliseconds are accepted)",
    "meta": "object, who",
    "meta.flow_type": "text, netflow, sflow or tstat",
    "meta.sensor_id": "text, name of the device that saw the flow",
    "meta.instance_id": "text or integer, which of the sensor's exporters",
    "meta.src_ip": "text, IPv4 or IPv6",
    "meta.dst_ip": "text, IPv4 or IPv6",
    "meta.src_port": "integer",
    "meta.dst_port": "integer",
    "meta.src_asn": "integer, autonomous system number as the exporter has it",
    "meta.dst_asn": "integer, autonomous system number as the exporter has it",
    "meta.src_ifindex": "integer, SNMP index of the interface",
    "meta.dst_ifindex": "integer, SNMP index of the interface",
    "meta.protocol": "text, in lower case: tcp, udp, icmp",
    "values": "object, how much",
    "values.duration": "number, seconds",
    "values.num_bits": "integer",
    "values.num_packets": "integer",
    "values.bits_per_second": "number",
    "values.packets_per_second": "number",
}

#: What tstat adds. No stage looks at it, so it is in no table of what may pass unseen.
TSTAT: dict[str, str] = {
    **{f"values.tcp_{name}": "integer" for name in ("cwin_max", "cwin_min", "initial_cwin", "max_seg_size", "min_seg_size", "mss")},
    **{f"values.tcp_{name}": "integer" for name in ("out_seq_pkts", "pkts_dup", "pkts_fc", "pkts_fs", "pkts_reor", "pkts_rto")},
    **{f"values.tcp_{name}": "integer" for name in ("pkts_unfs", "pkts_unk", "pkts_unrto", "rexmit_bytes", "rexmit_pkts")},
    **{f"values.tcp_rtt_{name}": "number, milliseconds" for name in ("avg", "max", "min", "std")},
    **{f"values.tcp_{name}": "integer" for name in ("sack_cnt", "win_max", "win_min", "window_scale")},
}

_REGISTRY: dict[str, str] = {
    "discipline": "text",
    "role": "text",
    "resource": "text",
    "resource_abbr": "text",
    "org_name": "text",
    "org_abbr": "text",
    "latitude": "number",
    "longitude": "number",
    "ip_block_id": "text",
    "addresses": "texts, masked",
    "addresses_str": "text, masked",
    "project_names": "texts",
    "project_abbrs": "texts",
    "projects": "object, a list of them",
    **{f"projects.project_{name}": "text" for name in ("name", "abbr", "description", "url", "email", "contact")},
}

#: Stage → what it writes inside of an object that its Writes lines name as a whole.
INSIDE: dict[str, dict[str, str]] = {
    "60_scireg": {f"meta.scireg.{{src,dst}}.{name}": meaning for name, meaning in _REGISTRY.items()},
    "70_deidentify": {"PRIVATE.{src,dst}_ip": "text"},
    "80_privatize_org": {
        "PRIVATE.{src,dst}_asn": "integer",
        "PRIVATE.{src,dst}_organization": "text",
        "PRIVATE.scireg_{src,dst}_org_name": "text",
        "PRIVATE.scireg_{src,dst}_resource": "text",
    },
}

#: What Elasticsearch is given beside the flow, or beside a record that is none.
STORED: dict[str, str] = {"document_id": "text, of meta.id, start, end, stitched_flows, bits and packets; the document's _id"}
STORED_OF_RECORD: dict[str, str] = {"document_id": "text, of all that the record holds; the document's _id"}


class Field(NamedTuple):
    """A field as a stage writes it."""

    name: str  #: of a flow; {src,dst} in it stands for both, * for anything
    by: str  #: the stage, or where it is from
    meaning: str  #: type word and meaning


def written(file: StageFile) -> Iterator[Field]:
    """What one stage writes into a flow. StageFileError if its file cannot be read."""
    for name, meaning in file.writes.items():
        where = meta_name(name) if file.is_end else name
        if where is not None:
            yield Field(where.replace("{side}", "{src,dst}"), file.name, meaning)
    for name, meaning in INSIDE.get(file.name, {}).items():
        yield Field(name, file.name, meaning)


def known(files: Iterable[StageFile], given: StageFile | None = None) -> dict[str, str]:
    """Field → type word of all that a flow may hold; where several stages write it, the last one's. SettingsError has all that is wrong.

    given   the input whose records these are, if they are no flows; else what inputs write is not among them
    """
    tables = (EXPORTED, TSTAT, STORED) if given is None else (STORED_OF_RECORD,)
    types = {name: type_of(meaning) for table in tables for name, meaning in table.items()}
    owners: dict[str, str] = {}
    errors = []
    for file in files:
        if file.factory == "source" and file is not given:
            continue
        try:
            fields = list(written(file))
        except StageFileError as error:
            errors.append(str(error))
            continue
        for field in fields:
            word = type_of(field.meaning)
            if not word:
                errors.append(f"{file.path}: Writes {field.name}: begins with no type word: write two blanks and one of {', '.join(TYPES)}")
            elif word != "removed" and "*" not in field.name:
                for name in {field.name.replace("{src,dst}", side) for side in SIDES}:
                    types[name], owners[name] = word, str(file.path)
    for name in types:
        for parent in _parents(name):
            if types.get(parent, "object") != "object":
                where = owners.get(name) or owners.get(parent)
                errors.append(f"{where}: Writes {name}: lies in {parent}, which is written as {types[parent]}: give one another name")
    if errors:
        raise SettingsError(errors)
    return types


def type_of(meaning: str) -> str:
    """The type word that stands for those with which a meaning begins, "" if there is none."""
    found = re.match(r"[\w-]+(?: or [\w-]+)*", meaning)
    words = set(found[0].split(" or ")) if found else set()
    if not words or not words <= {*TYPES} or (len(words) > 1 and words & {"location", "object", "removed"}):
        return ""
    if len(words) == 1:
        return words.pop()
    return "number" if words == {"integer", "number"} else "text"


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
