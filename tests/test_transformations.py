"""Transformations of pmacct's records: conditions against a plain evaluator, and the examples that pmacct-to-elasticsearch published."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.pmacct_plugin.transformations import Transformation, filled, holds, transforming

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(st.integers(-3, 3), st.sampled_from(["", "x", "y", "1", "2.0", "-3"]), st.sampled_from([0.5, 1.0, True, False]))
COMPARISONS = st.one_of(
    st.builds(lambda name, value: {name: value}, NAMES, VALUES),
    st.builds(lambda name, value, op: {name: value, "__op__": op}, NAMES, VALUES, st.sampled_from(["=", "<", "<=", ">", ">=", "!="])),
    st.builds(lambda name, value, op: {name: value, "__op__": op}, NAMES, st.lists(VALUES), st.sampled_from(["in", "notin"])),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.lists(inner), st.builds(lambda word, rest: [word, *rest], st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=1))
    ),
    max_leaves=12,
)


def says(value: Any) -> float | None:
    """The number that a value says."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def same(one: Any, other: Any) -> bool:
    if type(one) is type(other) or {type(one), type(other)} == {int, float}:
        return bool(one == other)
    return says(one) is not None and says(one) == says(other)


def plain(conditions: Any, record: dict[str, Any]) -> bool:
    """The same, as one would write it down first."""
    if isinstance(conditions, list):
        word = conditions[0] if conditions and isinstance(conditions[0], str) else "AND"
        results = [plain(each, record) for each in conditions if not isinstance(each, str)]
        return True in results if word == "OR" else False not in results
    op = conditions.get("__op__", "=")
    ((name, wanted),) = [(name, value) for name, value in conditions.items() if name != "__op__"]
    if name not in record:
        return False
    value = record[name]
    if op in ("=", "!="):
        return same(value, wanted) is (op == "=")
    if op in ("in", "notin"):
        return (True in [same(value, each) for each in wanted]) is (op == "in")
    left, right = says(value), says(wanted)
    if left is None or right is None:
        if not (isinstance(value, str) and isinstance(wanted, str)):
            return False
        return {"<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted}[op]
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]


@given(CONDITIONS, st.dictionaries(NAMES, VALUES))
def test_conditions_hold_where_a_plain_evaluator_says_so(conditions: Any, record: dict[str, Any]) -> None:
    assert holds(conditions)(record) == plain(conditions, record)


PERSONS = [("Bob", 15), ("Bob", 16), ("Ken", 14), ("Tom", 14), ("Tom", 20), ("Lisa", 15), ("Lisa", 22)]


@pytest.mark.parametrize(
    ("conditions", "fulfilled"),
    [
        ([{"Name": "Bob"}, {"Age": 16, "__op__": ">="}], [("Bob", 16)]),
        (["OR", {"Name": "Bob"}, {"Name": "Tom"}], [("Bob", 15), ("Bob", 16), ("Tom", 14), ("Tom", 20)]),
        (
            ["OR", [{"Name": "Bob"}, {"Age": 16, "__op__": ">="}], {"Name": "Tom"}, [{"Name": "Lisa"}, {"Age": 20, "__op__": ">="}]],
            [("Bob", 16), ("Tom", 14), ("Tom", 20), ("Lisa", 22)],
        ),
    ],
)
def test_the_published_examples_of_conditions(conditions: Any, fulfilled: list[tuple[str, int]]) -> None:
    fulfils = holds(conditions)
    assert [(name, age) for name, age in PERSONS if fulfils({"Name": name, "Age": age})] == fulfilled


def transformed(transformations: list[dict[str, Any]], *records: dict[str, Any]) -> list[dict[str, Any]]:
    models = [Transformation.model_validate(each) for each in transformations]
    transform = transforming(models, lambda _, action: action.table or {})
    copies = [dict(record) for record in records]
    for copy in copies:
        transform(copy)
    return copies


def test_an_autonomous_system_gets_its_name_or_else_its_number() -> None:
    table = {"36040": "$as_src - YouTube", "20940": "$as_src - Akamai", "*": "$as_src"}
    actions = [{"type": "AddFieldLookup", "name": "as_src_name", "lookup_field": "as_src", "table": table}]
    found = transformed(
        [{"conditions": [{"as_src": "", "__op__": "!="}], "actions": actions}],
        {"as_src": 36040},
        {"as_src": "20940"},
        {"as_src": 32934},
        {},
    )
    assert [record.get("as_src_name") for record in found] == ["36040 - YouTube", "20940 - Akamai", "32934", None]


def test_a_temporary_field_is_added_looked_up_and_deleted() -> None:
    steps = [
        {
            "conditions": ["AND", {"peer_ip_src": "", "__op__": "!="}, {"iface_in": "", "__op__": "!="}],
            "actions": [{"type": "AddField", "name": "temporary1", "value": "$peer_ip_src-$iface_in"}],
        },
        {
            "conditions": [{"temporary1": "", "__op__": "!="}],
            "actions": [
                {
                    "type": "AddFieldLookup",
                    "name": "peer_name",
                    "lookup_field": "temporary1",
                    "table": {"10.0.0.1-1": "MyUpstream1", "192.168.0.1-10": "MyUpstream2"},
                },
                {"type": "DelField", "name": "temporary1"},
            ],
        },
    ]
    first, second, third = (
        {"peer_ip_src": "10.0.0.1", "iface_in": 1},
        {"peer_ip_src": "192.168.0.1", "iface_in": 10},
        {"peer_ip_src": "192.168.0.1", "iface_in": 11},
    )
    assert transformed(steps, first, second, third) == [
        {**first, "peer_name": "MyUpstream1"},
        {**second, "peer_name": "MyUpstream2"},
        third,
    ]


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("$as", "1"),
        ("$as_src", "2"),  # The longest name counts.
        ("$as_src_name", "2_name"),
        ("$dst and $", "$dst and $"),
        ("${as}", "${as}"),
        ("$flag $list", 'true ["x"]'),
        (7, 7),
    ],
)
def test_names_behind_a_dollar_sign_are_filled_in(value: Any, result: Any) -> None:
    assert filled(value, {"as": 1, "as_src": 2, "flag": True, "list": ["x"]}) == result


@pytest.mark.parametrize(
    ("conditions", "wrong"),
    [
        ("[]x", "'[]x' is neither a list of conditions nor a comparison"),
        (["XOR", {"a": 1}], "'XOR' stands first in a list of conditions: AND or OR may stand there"),
        (["OR"], "nothing follows 'OR': write a comparison"),
        ([{"a": 1, "__op__": "=="}], "operator '==' is none of = < <= > >= != in notin"),
        ([{"a": 1, "b": 2}], "a comparison names one field, this one 2: {'a': 1, 'b': 2}: write one for each"),
        ([{"__op__": "="}], "a comparison names one field, this one 0: {'__op__': '='}: write one for each"),
        ([{"a": 1, "__op__": "in"}], "a: in compares with a list"),
        ([["OR", {"a": [1]}]], "a: = compares with one value, not a list"),
    ],
)
def test_conditions_that_cannot_be_are_refused(conditions: Any, wrong: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - compared below.
        holds(json.loads(json.dumps(conditions)))
    assert str(refusal.value) == wrong
