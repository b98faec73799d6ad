"""The settings of a pmacct plugin: DIR/PLUGIN.toml, or DIR/PLUGIN.conf, the JSON of pmacct-to-elasticsearch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field, field_validator

from netsage_pipeline import config
from netsage_pipeline.config import SettingsError, SettingsFile, or_none
from netsage_pipeline.elastic.cluster import Cluster
from netsage_pipeline.pmacct_plugin.transformations import AddFieldLookup, Transformation

#: strftime codes that make no name of an index, or differ from machine to machine.
_CODE = re.compile(r"%[-_0^#]?[A-Za-z]")


class Plugin(Cluster):
    """Where a plugin's records are, where they go, and what is changed in them."""

    index: str = Field(description="Name of the index, with strftime codes for a record's time in UTC: netflow-%Y-%m-%d")
    input_file: Path | None = Field(None, description="What the print plugin writes (print_output_file); not set: standard input")
    flush_size: int = Field(1_000, ge=0, description="Documents in a request at most; 0: as many as a request may hold bytes")
    template: Path | None = Field(None, description="File of the index template, JSON; beside this file unless it begins with /")
    dead_letters: Path | None = Field(
        None, description="File for what is refused; default: input_file.dead-letters.ndjson, or /var/lib/netsage/pmacct/PLUGIN.…"
    )
    transformations: list[Transformation] = Field([], description="What is changed where conditions hold, one after the other")

    @field_validator("index")
    @classmethod
    def _is_name(cls, index: str) -> str:
        name = datetime(2000, 1, 31, tzinfo=UTC).strftime(index)
        if not re.fullmatch(r"[a-z0-9][a-z0-9._+-]{0,200}", name):
            raise ValueError(
                f"makes {name!r}, which is no name of an index: lower-case letters, digits, '.', '_' and '-', as netflow-%Y-%m-%d"
            )
        if _CODE.match(index):
            raise ValueError("begins with a date, so its index template would be for all indices: begin with a word, as netflow-%Y-%m-%d")
        return index

    _may_be_empty = field_validator("input_file", "template", "dead_letters", mode="before")(or_none)

    @property
    def pattern(self) -> str:
        """The index pattern of all indices that it names."""
        return re.sub(r"\*+", "*", _CODE.sub("*", self.index))


def read(name: str, directory: Path) -> tuple[Plugin, SettingsFile, list[str]]:
    """A plugin's settings, the file that they are from, and remarks about it. SettingsError."""
    if not re.fullmatch(r"[\w.@+-]+", name):
        raise SettingsError([f"'{name}' is no name of a plugin: give the name in print[NAME] of pmacct's settings"])
    ours, theirs = directory / f"{name}.toml", directory / f"{name}.conf"
    if not ours.exists() and not theirs.exists():
        raise SettingsError(
            [f"{ours}: no such settings of a plugin, and no {theirs.name} either: write it, or name its directory with --conf"]
        )
    if not ours.exists():
        plugin, file, remarks = read_p2es(theirs)
        return plugin, file, [remark for key, remark in remarks.items() if key not in _WITHOUT_USE]
    file = config.read(ours)
    known, errors = config.settings_of(Plugin, file)
    if known is None:
        raise SettingsError(errors)
    return known, file, []


def read_p2es(path: Path) -> tuple[Plugin, SettingsFile, dict[str, str]]:
    """The same from a file of pmacct-to-elasticsearch. SettingsError."""
    file, remarks = p2es(path)
    plugin, errors = config.settings_of(Plugin, file)
    if plugin is None:
        raise SettingsError([_in_their_words(line) for line in errors])
    return plugin, file, remarks


def table(file: Path, place: str, action: AddFieldLookup) -> Mapping[str, Any]:
    """The lookup table of an action. SettingsError."""
    if (action.table is None) == (action.table_file is None):
        raise SettingsError([f"{file}: {place}: needs a table or a table_file, and not both"])
    if action.table_file is None:
        return action.table or {}
    path = file.parent / action.table_file
    found = json_of(path, 'give a table as JSON, {"value": "what is added"}')
    wrong = [key for key, value in found.items() if isinstance(value, dict | list) or value is None]
    if wrong:
        raise SettingsError([f"{path}: {wrong[0]}: is neither text nor number"])
    return found


#: A comma behind the last element, outside of texts.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])')


def json_of(path: Path, otherwise: str) -> dict[str, Any]:
    """The JSON object in a file; a comma may follow the last element. SettingsError."""
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(_TRAILING_COMMA.sub(lambda match: match[1] or " ", text))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8 (byte {error.start}): save it as UTF-8"]) from None
    except json.JSONDecodeError as error:
        raise SettingsError([f"{path}: is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: is nested too deeply"]) from None
    if not isinstance(found, dict):
        raise SettingsError([f"{path}: is no JSON object: {otherwise}"])
    return found


# The settings of pmacct-to-elasticsearch.

_OURS = {
    "ES_URL": "url",
    "ES_UserName": "user",
    "ES_Password": "password",
    "ES_IndexName": "index",
    "ES_FlushSize": "flush_size",
    "ES_IndexTemplateFileName": "template",
    "InputFile": "input_file",
    "Transformations": "transformations",
}

#: What stands for the name of the index in InputFile.
INDEX_MACRO = "$IndexName"

_IN_TRANSFORMATIONS = {"Conditions": "conditions", "Actions": "actions"}
_IN_ACTIONS = {
    "Type": "type",
    "Name": "name",
    "Value": "value",
    "LookupFieldName": "lookup_field",
    "LookupTable": "table",
    "LookupTableFile": "table_file",
}

_WITHOUT_USE = {
    "LogFile": "what is to be said goes to standard error: redirect it in the trigger script, 2>>/var/log/…",
    "ES_Type": "Elasticsearch has no types any more; an AddField can tell records apart that share an index",
    "ReaderThreads": "one is enough",
    "InputFormat": "JSON and CSV are told apart by what is in them",
    "ES_AuthType": "a user is enough",
    "CONF_DIR": "--conf names it",
}


def p2es(path: Path) -> tuple[SettingsFile, dict[str, str]]:
    """The settings in a file of pmacct-to-elasticsearch in our words, and remarks about those that are left out. SettingsError."""
    given = json_of(path, "it holds the settings of pmacct-to-elasticsearch")
    values: dict[str, Any] = {ours: given[theirs] for theirs, ours in _OURS.items() if given.get(theirs) not in (None, "")}
    remarks = {}
    for key in given:
        if key in _WITHOUT_USE:
            remarks[key] = f"{path}: {key}: has no use here: {_WITHOUT_USE[key]}"
        elif key not in _OURS and not key.lower().startswith(("comment", "_")):
            remarks[key] = f"{path}: {key}: is no setting of pmacct-to-elasticsearch: left out"
    auth = given.get("ES_AuthType") or "none"
    errors = _errors_of(auth, values, path)
    if auth == "none":
        values = {ours: value for ours, value in values.items() if ours not in ("user", "password")}
    if given.get("InputFile") == "-":
        del values["input_file"]
    if isinstance(values.get("input_file"), str):
        index = _of_now(str(values.get("index", "")))
        for macro, text in (("$PluginName", path.stem), (INDEX_MACRO, index), ("$Type", str(given.get("ES_Type", "")))):
            values["input_file"] = values["input_file"].replace(macro, text)
    if "template" not in values and (path.parent / _THEIR_TEMPLATE).exists():
        values["template"] = _THEIR_TEMPLATE
    if isinstance(values.get("transformations"), list):
        values["transformations"] = [_renamed(each, _IN_TRANSFORMATIONS) for each in values["transformations"]]
        for each in values["transformations"]:
            if isinstance(each, dict) and isinstance(each.get("actions"), list):
                each["actions"] = [_renamed(action, _IN_ACTIONS) for action in each["actions"]]
    return SettingsFile(path, values, {}, errors), remarks


def _of_now(index: str) -> str:
    """The name by the machine's clock and zone, as there, and not by a record's time."""
    try:
        return datetime.now().astimezone().strftime(index)
    except ValueError:  # What is wrong with it is said of the index.
        return index


def _errors_of(auth: Any, values: dict[str, Any], path: Path) -> list[str]:
    if auth not in ("none", "basic"):
        return [f"{path}: ES_AuthType: {auth} is nothing that Elasticsearch knows: write basic"]
    if auth == "basic" and not values.keys() & {"user", "password"}:
        return [f"{path}: ES_AuthType: basic needs ES_UserName and ES_Password"]
    return []


#: What pmacct-to-elasticsearch takes when its settings name no template.
_THEIR_TEMPLATE = "new-index-template.json"


def _renamed(given: Any, names: dict[str, str]) -> Any:
    return {names.get(key, key): value for key, value in given.items()} if isinstance(given, dict) else given


def _in_their_words(line: str) -> str:
    """An error line with the names of pmacct-to-elasticsearch's settings."""
    theirs = {ours: name for names in (_OURS, _IN_TRANSFORMATIONS, _IN_ACTIONS) for name, ours in names.items()}
    path, *rest = line.split(": ", 2)
    if rest:
        words = [word for word in rest[0].split(".") if word not in ("AddField", "AddFieldLookup", "DelField")]
        rest[0] = ".".join(theirs.get(word, word) for word in words)
    return ": ".join([path, *rest])


def as_toml(file: SettingsFile, remarks: Iterable[str]) -> str:
    """Settings as TOML, the remarks as comments."""
    head = [f"# Converted from {file.path.name}.", *(f"# {remark.removeprefix(f'{file.path}: ')}" for remark in remarks)]
    plain = [f"{key} = {_toml(value)}" for key, value in file.values.items() if key != "transformations"]
    return "\n".join([*head, "", *plain, *_tables(file.values.get("transformations", []))]) + "\n"


def _tables(transformations: list[dict[str, Any]]) -> Iterator[str]:
    for each in transformations:
        yield "\n[[transformations]]"
        yield f"conditions = {_toml(each.get('conditions', []))}"
        yield "actions = [\n" + "".join(f"    {_toml(action)},\n" for action in each["actions"]) + "]"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # A JSON text is a TOML text, with DEL as the one exception.
    return orjson.dumps(value).decode().replace("\x7f", "\\u007F")
