"""Settings: a directory of TOML files, one a stage, with ${VARIABLES}; all errors of all files at once.

A value may hold ${VARIABLE} or ${VARIABLE:-default}, as in compose files. A secret (SecretStr) called `key` can be given as
`key_file`, the path of a file that holds it; empty: it is not.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator


class Settings(BaseModel):
    """The base of every stage's Config: frozen, unknown keys are refused, every field has a default or is required."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Whether the stage runs")


def _not_empty(path: Any) -> Any:
    if isinstance(path, str) and not path.strip():
        raise ValueError("names no directory: write its path")
    return path


#: A directory. An empty text, as a variable that is not set leaves it, would be the one that the program was started in.
Directory = Annotated[Path, BeforeValidator(_not_empty)]


class Input(Settings):
    """The base of an input's Config."""

    state: Directory = Field(Path("/var/lib/netsage/state"), description="Directory of the ledger: what is held and owed")
    keys_limit_bytes: int = Field(
        200_000_000, ge=0, description="Memory for the keys of messages taken within 24 h of work; about 120 bytes a key"
    )
    max_message_bytes: int = Field(16_000_000, ge=1, description="A longer message becomes a dead letter as it came")
    metrics: str = Field("", description="host:port at which metrics for Prometheus are served; port 0: a free one; empty: nowhere")

    @field_validator("metrics")
    @classmethod
    def _is_address(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        if address and not (host and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 1 << 16):
            raise ValueError("is no address: write host:port, such as 127.0.0.1:9751")
        return address


class Output(Settings):
    """The base of an output's Config."""

    for_replays: ClassVar[bool] = True  #: whether a replay writes to it when its settings say so
    for_workers: ClassVar[bool] = True  #: whether what it says is stored is there after a restart

    allow_full_addresses: bool = Field(False, description="Let flows with full addresses out, for a chain without 70_deidentify")


def or_none(value: Any) -> Any:
    """What takes an empty setting, as a variable that is not set leaves it, for one that is not set."""
    return value or None


def with_user(password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """What checks a setting `password` behind a setting `user`."""
    if "user" in info.data and bool(info.data["user"]) != bool(password and password.get_secret_value()):
        raise ValueError("user and password belong together: set both, or none")
    return password


def urls_of(given: SecretStr, wrong_with: Callable[[str], str], example: str) -> list[str]:
    """The URLs of a setting, which are separated by commas. ValueError, which holds nothing of them.

    wrong_with   what is wrong with one; "" if nothing is
    """
    each = [one.strip() for one in given.get_secret_value().split(",")]
    for number, one in enumerate(each, 1):
        wrong = wrong_with(one)
        if wrong:
            where = f"URL {number} of {len(each)} " if len(each) > 1 else "it "
            raise ValueError(f"{where}{wrong}: write {example}")
    return each


class SettingsError(Exception):
    """One or more things are wrong with the settings; `errors` has a line for each, `usable` the stages with which nothing is wrong."""

    def __init__(self, errors: list[str], usable: Sequence[Any] = ()) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors
        self.usable = list(usable)


class SettingsFile(NamedTuple):
    """A settings file as it was read: `values` with variables replaced, `origins` says where a value came from."""

    path: Path
    values: dict[str, Any]
    origins: dict[str, str]
    errors: list[str]


S = TypeVar("S", bound=Settings)

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def read(path: Path, environment: Mapping[str, str] = os.environ) -> SettingsFile:
    """Reads one TOML file and replaces the variables in it."""
    file = SettingsFile(path, {}, {}, [])
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        file.errors.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        file.errors.append(f"{path}: is not UTF-8 (byte {error.start}): save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        file.errors.append(f"{path}: is not TOML: {error}")
    else:
        for key, value in values.items():
            file.values[key] = _replaced(value, key, file, environment)
    return file


def _replaced(value: Any, key: str, file: SettingsFile, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, f"{key}.{name}", file, environment) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, f"{key}.{index}", file, environment) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = environment.get(name) or default
        if found is None:
            file.errors.append(f"{file.path}: {key}: variable {name} is not set: set it, or write ${{{name}:-default}}")
            return ""
        file.origins[key] = name if environment.get(name) else f"default of {name}"
        return found

    return _VARIABLE.sub(replace, value)


def settings_of(model: type[S], file: SettingsFile) -> tuple[S | None, list[str]]:
    """The stage's Config from its file, or None and what is wrong with it."""
    errors = list(file.errors)
    if not (isinstance(model, type) and issubclass(model, Settings)):
        return None, [*errors, f"{file.path}: the Config of its stage is no Settings: write 'class Config(Settings)' there"]
    values = dict(file.values)
    for name in _secrets(model):
        path = values.pop(f"{name}_file", None)
        if path:
            try:
                values[name] = Path(path).read_text("utf-8").strip()
                file.origins[name] = str(path)
            except (OSError, UnicodeDecodeError, TypeError) as error:
                errors.append(f"{file.path}: {name}_file: {path} cannot be read: {getattr(error, 'strerror', error)}")
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        failed_variables = {line.split(": ")[1] for line in file.errors if ": variable " in line}
        errors += [line for key, line in _lines(error, model, file) if key not in failed_variables]
        return None, errors
    return (None if errors else config), errors


def _secrets(model: type[BaseModel]) -> list[str]:
    return [
        name for name, field in model.model_fields.items() if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
    ]


def _hides(model: type[BaseModel], name: str) -> bool:
    """Whether a setting is a secret or holds some."""
    return name in model.model_fields and "SecretStr" in repr(model.model_fields[name].annotation)


def _lines(error: ValidationError, model: type[BaseModel], file: SettingsFile) -> Iterator[tuple[str, str]]:
    known = [*model.model_fields, *(f"{name}_file" for name in _secrets(model))]
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        origin = file.origins.get(key)
        given = "that value" if _hides(model, str(item["loc"][0] if item["loc"] else "")) else repr(item["input"])
        if origin:
            given += f" (from {origin})"
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, known, 1)
            hint = f", did you mean '{close[0]}'?" if close else f", known are: {', '.join(known)}"
            what = f"unknown setting{hint if len(item['loc']) == 1 else ''}"  # Of what is in a table others are known.
        elif item["type"] == "missing":
            what = "is missing: " + (model.model_fields[key].description or "give a value" if key in model.model_fields else "give a value")
        elif item["type"] in _WRONG_TYPE:
            what = f"{given} is not {_WRONG_TYPE[item['type']]}{_unit(key) if 'int' in item['type'] or 'float' in item['type'] else ''}"
        elif item["type"] in ("too_short", "string_too_short"):
            what = f"{given} is too short: at least {item['ctx']['min_length']}"
        else:
            what = f"{given}: {item['msg'].removeprefix('Value error, ')}"
        yield key, f"{file.path}: {key}: {what}"


_WRONG_TYPE = {
    "int_parsing": "a number",
    "int_type": "a number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": 'a text: put it into "quotes"',
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "path_type": "a path",
}


def _unit(key: str) -> str:
    if key.endswith("_s"):
        return " of seconds"
    return " of bytes" if key.endswith("_bytes") else ""


def described(config: Settings, file: SettingsFile) -> Iterator[str]:
    """A line for each setting in effect: value, where it comes from, default and meaning."""
    for name, field in type(config).model_fields.items():
        origin = file.origins.get(name) or ("settings file" if name in file.values else "")
        default = "required" if field.is_required() else f"default {shown(field.get_default(call_default_factory=True))}"
        notes = [f"from {origin}" if origin else "", default if origin else "default", str(field.description)]
        yield f"{name} = {shown(getattr(config, name))}  # {'; '.join(filter(None, notes))}"


def shown(value: Any) -> str:
    """A setting as it is printed, the way TOML writes it; secrets as stars, unless they are empty."""
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else '""'
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return sorted(value) if isinstance(value, frozenset | set) else str(value)
