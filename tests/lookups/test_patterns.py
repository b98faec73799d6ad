"""patterns: the first regular expression that is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline import stagefile
from netsage_pipeline.folders import shipped
from tests.conftest import CONFORMANCE

patterns = stagefile.load(shipped("lookups") / "patterns.py")


def opened(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / "sensor_groups.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return patterns.open_table(path)


@pytest.mark.parametrize(
    ("table", "text", "expected"),
    [
        pytest.param({"^a": "A", "b": "B"}, "abc", "A", id="the first in order"),
        pytest.param({"b": "B", "^a": "A"}, "abc", "B", id="the first in order, not the first place in the text"),
        pytest.param({"z": "Z", "c": "C"}, "abc", "C", id="the first that is found"),
        pytest.param({"b": "B"}, "abc", "B", id="anywhere in the text"),
        pytest.param({"^b": "B", "c$": "C"}, "abcd", None, id="none is found"),
        pytest.param({"(?i)ABC": "A"}, "abc", "A", id="flags in a pattern"),
        pytest.param({"b": "B"}, "ABC", None, id="case counts"),
        pytest.param({"a.c": "A"}, "abc", "A", id="patterns, not texts"),
        pytest.param({"": "all"}, "", "all", id="the empty pattern is found everywhere"),
        pytest.param({}, "abc", None, id="an empty table"),
    ],
)
def test_get(tmp_path: Path, table: dict[str, str], text: str, expected: str | None) -> None:
    opened_table = opened(tmp_path, table)
    assert [opened_table.get(text), opened_table.get(text)] == [expected, expected]


@pytest.mark.parametrize("name", ["sensor_groups.json", "sensor_types.json"])
def test_the_reference_s_tables_can_be_read(name: str) -> None:
    table = json.loads((CONFORMANCE / "lookups" / name).read_text("utf-8"))
    assert patterns.open_table(CONFORMANCE / "lookups" / name).get("no sensor has this name") in {None, *table.values()}


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param(
            {"(": "A", "b": 1, "[": "C"}, ["pattern '('", "pattern 'b': its value is not a text", "pattern '['"], id="all at once"
        ),
        pytest.param('{"a": "A",\n}', ["line 2: is not JSON"], id="not JSON"),
        pytest.param("", ["line 1: is not JSON"], id="an empty file"),
        pytest.param([["a", "A"]], ['is not a JSON object of "pattern": "name"'], id="a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"is not|is no") as error:
        opened(tmp_path, content)
    assert len(str(error.value).splitlines()) == len(lines)
    assert all(line in str(error.value) for line in lines)


def test_another_encoding_is_a_valueerror(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 7\)"):
        patterns.open_table(tmp_path / "x.json")
