"""The index template: of which type Elasticsearch takes each field.

The template PREFIX is ours and holds the mapping alone. What a site wants to set (shards, replicas, an ILM policy, a codec) it writes
into the component template PREFIX@custom, which we name and never touch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elasticsearch import BadRequestError, Elasticsearch, NotFoundError

from netsage_pipeline.elastic.cluster import reason_of

#: To be raised when the type of a field or the form of the template changes. A field that is added needs no new version.
VERSION = 1

MANAGED_BY = "netsage-pipeline"

#: Of the template; one unit a character of the prefix is added, so that of a feed om-ns-netsage-x wins over om-ns-netsage for its indices.
PRIORITY = 200

#: Longer texts are stored but not indexed: Lucene refuses a document with a term over 32,766 bytes, and a character can have four.
IGNORE_ABOVE = 8191

_KEYWORD = {"type": "keyword", "ignore_above": IGNORE_ABOVE}

#: Type word → mapping. An object is mapped by the fields in it that are named.
MAPPED: dict[str, dict[str, Any]] = {
    "text": _KEYWORD,
    "texts": _KEYWORD,
    "ip": {"type": "ip"},
    "ip-masked": _KEYWORD,  # 192.0.2.x is no `ip`.
    "integer": {"type": "long"},
    "number": {"type": "double"},
    "boolean": {"type": "boolean"},
    "date": {"type": "date"},
    # A table's impossible latitude must not keep the flow out.
    "location": {"type": "geo_point", "ignore_malformed": True},
}


_MOVE = "move its settings into the component template {}@custom"


class TemplateError(Exception):
    """Our template cannot be in effect; the text is one line that says why and what to do."""


def template(prefix: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The body of PUT _index_template/PREFIX.

    fields   field → type word, as fields.known gives it; what lies in other fields is stored but not indexed
    """
    site = [f"{prefix}@custom"]
    return {
        "index_patterns": [f"{prefix}-*"],
        "priority": PRIORITY + len(prefix),
        "composed_of": site,
        "ignore_missing_component_templates": site,
        "version": VERSION,
        "_meta": {
            "managed_by": MANAGED_BY,
            "description": f"Flows. Settings of your own belong into the component template {prefix}@custom",
        },
        "template": {"mappings": {"dynamic": False, "properties": _properties(fields)}},
    }


def _properties(fields: Mapping[str, str]) -> dict[str, Any]:
    top: dict[str, Any] = {}
    for name, word in sorted(fields.items()):
        if word in MAPPED:
            *parents, last = name.split(".")
            properties = top
            for parent in parents:
                properties = properties.setdefault(parent, {}).setdefault("properties", {})
            properties[last] = dict(MAPPED[word])
    return top


def install(client: Elasticsearch, prefix: str, fields: Mapping[str, str], existing: Sequence[str] = ()) -> list[str]:
    """Installs our template where it is missing, older, or lacks fields. Gives lines for the log; none if nothing was to be done.

    Fields in it that we do not know, those of another worker's stages, stay. One that is newer is left alone.

    existing   names of indices that may exist already and are still written to, today's: they are given what they lack

    TemplateError if the template of this name is somebody else's, or if another one would win over it. Whatever the client raises goes
    through: it cannot be reached, or it refuses.
    """
    ours = template(prefix, fields)
    found = _found(client, prefix)
    if found is not None and not _is_ours(found):
        raise TemplateError(f"index template {prefix}: is somebody else's, so ours is not installed: {_MOVE.format(prefix)}, and delete it")
    version = 0 if found is None else int(found.get("version") or 0)
    if version > VERSION:
        return [f"index template {prefix}: is of a newer version ({version}) than ours ({VERSION}): left as it is"]
    losers = _beside(client, prefix, ours["priority"], existing[0] if existing else f"{prefix}-1970.01.01")
    mappings = ours["template"]["mappings"]
    if found is not None:
        theirs = found.get("template", {}).get("mappings", {}).get("properties", {})
        mappings["properties"] = _merged(theirs, mappings["properties"])
        if version == VERSION and mappings["properties"] == theirs:
            return []
    try:
        client.indices.put_index_template(name=prefix, body=ours)
    except BadRequestError as error:
        raise TemplateError(f"index template {prefix}: Elasticsearch does not take it: {reason_of(error)}") from None
    what = "installed" if found is None else f"version {version} replaced by {VERSION}" if version < VERSION else "fields added"
    overruled = [f"index template {name}: is for indices of ours too and not in effect there: {_MOVE.format(prefix)}" for name in losers]
    return [f"index template {prefix}: {what}", *overruled, *_extended(client, existing, mappings["properties"])]


def _found(client: Elasticsearch, prefix: str) -> dict[str, Any] | None:
    try:
        answer = client.indices.get_index_template(name=prefix)
    except NotFoundError:
        return None
    found: dict[str, Any] = answer["index_templates"][0]["index_template"]
    return found


def _is_ours(template: Mapping[str, Any]) -> bool:
    return bool(template.get("_meta", {}).get("managed_by") == MANAGED_BY)


def _beside(client: Elasticsearch, prefix: str, priority: int, index: str) -> list[str]:
    """Somebody's templates for an index of ours. TemplateError if one would win: that of the highest priority makes an index, alone."""
    parts = ("name", *(f"index_template.{part}" for part in ("index_patterns", "priority", "_meta.managed_by")))
    answer = client.indices.get_index_template(filter_path=[f"index_templates.{part}" for part in parts])
    others = {
        each["name"]: each["index_template"]
        for each in answer.get("index_templates", [])
        if each["name"] != prefix and any(_matches(pattern, index) for pattern in each["index_template"]["index_patterns"])
    }
    winners = [f"{name} (priority {other['priority']})" for name, other in others.items() if other.get("priority", 0) >= priority]
    if winners:
        raise TemplateError(
            f"index template {prefix}: would not be in effect, because {' and '.join(winners)} is for the same indices: "
            f"give that a priority below {priority}, or patterns that do not match {index}"
        )
    return [name for name, other in others.items() if not _is_ours(other)]


def _matches(pattern: str, index: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), index) is not None


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where they contradict each other, ours."""
    merged = {**theirs, **ours}
    for name in theirs.keys() & ours.keys():
        if "properties" in theirs[name] and "properties" in ours[name]:
            merged[name] = {"properties": _merged(theirs[name]["properties"], ours[name]["properties"])}
    return merged


def _extended(client: Elasticsearch, indices: Iterable[str], properties: dict[str, Any]) -> list[str]:
    lines = []
    for name in indices:
        try:
            client.indices.put_mapping(index=name, properties=properties)
        except NotFoundError:
            continue
        except BadRequestError as error:
            lines.append(f"index {name}: keeps the mapping that it has; the next one will have ours: {reason_of(error)}")
    return lines
