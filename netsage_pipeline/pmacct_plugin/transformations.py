"""Transformations of pmacct's records: fields added, looked up and deleted where conditions hold.

Conditions are a list, whose first element may be "AND" (the default) or "OR". Its other elements are such lists again, or comparisons:
{ field = value }, or { field = value, __op__ = "<" } with =, <, <=, >, >=, !=, in, notin. A field that a record does not have compares
with nothing, so that also != and notin are false.

A number and a text that says the same number are equal, because CSV holds texts. Two values that both say numbers are ordered as numbers,
two texts otherwise as texts; anything else has no order.

A value that is added may hold $name, which stands for that field of the record; the longest name that the record has counts.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from netsage_pipeline.jsonvalues import number

Record = dict[str, Any]

OPERATOR = "__op__"

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_OPERATORS = ("=", *_ORDERS, "!=", "in", "notin")

_MACRO = re.compile(r"\$([\w@.-]+)")


def holds(conditions: Any) -> Callable[[Mapping[str, Any]], bool]:
    """What says whether a record fulfils conditions. ValueError, in words for an operator."""
    if isinstance(conditions, dict):
        return _comparison(conditions)
    if not isinstance(conditions, list):
        raise ValueError(f"{conditions!r} is neither a list of conditions nor a comparison")
    joined = all
    if conditions and isinstance(conditions[0], str):
        word, *conditions = conditions
        if word not in ("AND", "OR"):
            raise ValueError(f"'{word}' stands first in a list of conditions: AND or OR may stand there")
        if not conditions:
            raise ValueError(f"nothing follows '{word}': write a comparison")
        joined = any if word == "OR" else all
    each = [holds(inner) for inner in conditions]
    return lambda record: joined(one(record) for one in each)


def _comparison(given: dict[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    op = given.get(OPERATOR, "=")
    fields = [(name, value) for name, value in given.items() if name != OPERATOR]
    if op not in _OPERATORS:
        raise ValueError(f"operator {op!r} is none of {' '.join(_OPERATORS)}")
    if len(fields) != 1:
        raise ValueError(f"a comparison names one field, this one {len(fields)}: {given!r}: write one for each")
    name, wanted = fields[0]
    if (op in ("in", "notin")) != isinstance(wanted, list):
        raise ValueError(f"{name}: {op} compares with {'a list' if op in ('in', 'notin') else 'one value, not a list'}")
    return lambda record: name in record and _compares(record[name], op, wanted)


def _compares(value: Any, op: str, wanted: Any) -> bool:
    if op in ("=", "!="):
        return _equal(value, wanted) == (op == "=")
    if op in ("in", "notin"):
        return any(_equal(value, each) for each in wanted) == (op == "in")
    numbers = number(value), number(wanted)
    if None not in numbers:
        return _ORDERS[op](*numbers)
    return isinstance(value, str) and isinstance(wanted, str) and _ORDERS[op](value, wanted)


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, str) == isinstance(wanted, str):
        return bool(value == wanted)
    numbers = number(value), number(wanted)
    return None not in numbers and numbers[0] == numbers[1]


def _are_conditions(conditions: list[Any]) -> list[Any]:
    holds(conditions)
    return conditions


def _is_plain(value: Any) -> Any:
    if not isinstance(value, str | bool | int | float):
        raise ValueError("is neither text nor number")
    return value


#: What a field can be set to. A union of types would give a line for each of them where it is something else.
Plain = Annotated[Any, AfterValidator(_is_plain)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AddField(Part):
    type: Literal["AddField"]
    name: str
    value: Plain


class AddFieldLookup(Part):
    """Adds what a table says of a field; what it says under "*" where it does not know the value."""

    type: Literal["AddFieldLookup"]
    name: str
    lookup_field: str
    table: dict[str, Plain] | None = None
    table_file: Path | None = None


class DelField(Part):
    type: Literal["DelField"]
    name: str


class Transformation(Part):
    conditions: Annotated[list[Any], AfterValidator(_are_conditions)] = Field([], description="None: for all records")
    actions: list[Annotated[AddField | AddFieldLookup | DelField, Field(discriminator="type")]]


def transforming(
    transformations: list[Transformation], table: Callable[[str, AddFieldLookup], Mapping[str, Any]]
) -> Callable[[Record], None]:
    """What changes a record in place, one transformation after the other.

    table   gives the table of an action, which it is told the place of in the settings
    """
    steps = []
    for number_of, each in enumerate(transformations):
        actions = []
        for place, action in enumerate(each.actions):
            known = table(f"transformations.{number_of}.actions.{place}", action) if isinstance(action, AddFieldLookup) else {}
            actions.append(_acting(action, known))
        steps.append((holds(each.conditions), actions))

    def transform(record: Record) -> None:
        for fulfils, actions in steps:
            if fulfils(record):
                for act in actions:
                    act(record)

    return transform


def _acting(action: AddField | AddFieldLookup | DelField, known: Mapping[str, Any]) -> Callable[[Record], None]:
    name = action.name

    def add(record: Record) -> None:
        record[name] = filled(action.value, record)  # type: ignore[union-attr]

    def look_up(record: Record) -> None:
        if action.lookup_field in record:  # type: ignore[union-attr]
            found = known.get(text_of(record[action.lookup_field]), known.get("*", ""))  # type: ignore[union-attr]
            if found != "":
                record[name] = filled(found, record)

    def delete(record: Record) -> None:
        record.pop(name, None)

    return {"AddField": add, "AddFieldLookup": look_up, "DelField": delete}[action.type]


def filled(value: Any, record: Mapping[str, Any]) -> Any:
    """The value, with fields of the record in place of $name. A name that the record does not have stays as it is."""
    if not isinstance(value, str) or "$" not in value:
        return value

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        while name and name not in record:
            name = name[:-1]
        return text_of(record[name]) + match[1][len(name) :] if name else match[0]

    return _MACRO.sub(replaced, value)


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
