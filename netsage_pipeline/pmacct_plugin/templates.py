"""The index template of a pmacct plugin: the operator's own, as it is for Elasticsearch of today or as it was for older ones, or ours."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

from elasticsearch import BadRequestError, Elasticsearch, NotFoundError

from netsage_pipeline.config import SettingsError
from netsage_pipeline.elastic.cluster import is_refusal, reason_of
from netsage_pipeline.elastic.templates import IGNORE_ABOVE, MANAGED_BY, PRIORITY
from netsage_pipeline.pmacct_plugin.settings import Plugin, json_of

#: Where no template is given: texts can be counted and filtered by.
_OURS: dict[str, Any] = {
    "mappings": {
        "date_detection": False,
        "dynamic_templates": [{"texts": {"match_mapping_type": "string", "mapping": {"type": "keyword", "ignore_above": IGNORE_ABOVE}}}],
        "properties": {"@timestamp": {"type": "date"}, **{name: {"type": "long"} for name in ("bytes", "packets", "flows")}},
    }
}

#: What can be said of the mapping of an index; another key is a type's name, from the time when an index had types.
_OF_A_MAPPING = {"properties", "dynamic_templates", "dynamic", "date_detection", "numeric_detection", "runtime", "dynamic_date_formats"}

#: Seconds for which a server that does not answer is asked again.
PATIENCE_S = 60.0
_PAUSE_S = 2.0


class NotInstalled(Exception):
    """The template cannot be installed; one line: why, what to do."""


def template_of(plugin: Plugin, file: Path) -> dict[str, Any]:
    """The body of PUT _index_template. SettingsError if the plugin's template cannot be read.

    A file holds that body (index_patterns, template or composed_of), or what creates an index (settings, mappings), as with
    pmacct-to-elasticsearch; for Elasticsearch before 7 with a type's name within `mappings`, and texts as strings that are not analyzed:
    both are put right.
    """
    given = _OURS if plugin.template is None else json_of(file.parent / plugin.template, "it holds an index template")
    if "index_patterns" in given and not given.keys().isdisjoint(("template", "composed_of")):
        index = datetime.now(UTC).strftime(plugin.index)
        if not any(fnmatchcase(index, str(pattern)) for pattern in _patterns(given)):
            raise SettingsError([f"{file.parent / str(plugin.template)}: index_patterns: none is for {index}, so it would have no effect"])
        return given
    made = {key: given[key] for key in ("settings", "mappings", "aliases") if key in given}
    if not made:
        raise SettingsError([f"{file.parent / str(plugin.template)}: is no index template: it has neither mappings nor settings"])
    if isinstance(made.get("mappings"), dict):
        made["mappings"] = _of_today(made["mappings"])
    return {
        "index_patterns": [plugin.pattern],
        "priority": PRIORITY + len(name_of(plugin)),  # The same for all patterns of that name.
        "_meta": {"managed_by": MANAGED_BY, "description": "Records of pmacct"},
        "template": made,
    }


def _of_today(mappings: dict[str, Any]) -> dict[str, Any]:
    """Without types, _all, and string."""
    types = [
        inner for name, inner in mappings.items() if name not in _OF_A_MAPPING and not name.startswith("_") and isinstance(inner, dict)
    ]
    one = mappings.get("_default_") or (types[0] if len(types) == 1 and len(mappings) == 1 else mappings)
    return {name: _without_strings(inner) for name, inner in one.items() if name != "_all"}


def _without_strings(mapping: Any) -> Any:
    if isinstance(mapping, list):
        return [_without_strings(each) for each in mapping]
    if not isinstance(mapping, dict):
        return mapping
    known = {name: _without_strings(inner) for name, inner in mapping.items()}
    if known.get("type") == "string":
        known["type"] = "text" if known.get("index") in (None, "analyzed") else "keyword"
    if known.get("index") in ("not_analyzed", "analyzed"):
        del known["index"]
    return known


def name_of(plugin: Plugin) -> str:
    """The name of the template: two plugins that share indices share it."""
    return f"pmacct-{re.sub(r'[-_.+]?[*]', '', plugin.pattern)}"


def install(client: Elasticsearch, plugin: Plugin, known_as: str, body: dict[str, Any]) -> str:
    """Installs the template, also over ours of another file or for other indices, but not over somebody else's; what was done, in words.

    known_as   the plugin's name

    Patterns that the installed one has stay: plugins that share its name may date their indices differently. NotInstalled, and whatever
    else the client raises.
    """
    done = "installed"
    made_by: dict[str, str] = {}  # plugin → digest of what it installed last
    name = name_of(plugin)
    patterns = _patterns(body)
    made_of = _digest({key: value for key, value in body.items() if key != "index_patterns"})
    try:
        found = client.indices.get_index_template(name=name)["index_templates"][0]["index_template"]
    except NotFoundError:
        pass
    else:
        meta = found.get("_meta", {})
        known, made_by = meta.get("made_of"), meta.get("made_by", {})
        missing = [pattern for pattern in patterns if pattern not in found["index_patterns"]]
        if known is None or (known == made_of and not missing):
            return ""
        patterns = [*found["index_patterns"], *missing]
        if known != made_of and made_by.get(known_as) == made_of:  # Its own did not change.
            others = " and ".join(other for other, made in made_by.items() if made == known)
            done = f"installed in place of that of {others}, for the same indices: name one template in the settings of all"
    try:
        meta = {**body.get("_meta", {}), "made_of": made_of, "made_by": {**made_by, known_as: made_of}}
        client.indices.put_index_template(name=name, body={**body, "index_patterns": patterns, "_meta": meta})
    except BadRequestError as error:
        where = plugin.template or "ours"
        raise NotInstalled(
            f"index template {name} ({where}): Elasticsearch does not take it: {reason_of(error)}: nothing is written"
        ) from None
    return done


def _patterns(body: dict[str, Any]) -> list[str]:
    given = body["index_patterns"]
    return given if isinstance(given, list) else [given]


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def install_patiently(client: Elasticsearch, plugin: Plugin, known_as: str, body: dict[str, Any], stop: Callable[[], bool]) -> str:
    """The same, asking again while the server does not answer. NotInstalled, also if it goes on like that or `stop` says so."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return install(client, plugin, known_as, body)
        except NotInstalled:
            raise
        except Exception as error:
            if is_refusal(error) or stop() or time.monotonic() > until:
                raise NotInstalled(f"Elasticsearch: {reason_of(error)}: nothing is written") from None
            time.sleep(_PAUSE_S)
