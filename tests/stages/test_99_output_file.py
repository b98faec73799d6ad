"""99 output file: batches as lines, arrays, and what cannot be written."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import load_stage

output_file = load_stage("99_output_file")


def written(path: Path, *batches: list[dict[str, Any]], **settings: Any) -> tuple[bytes, list[Any]]:
    """The file after these batches, and what was refused."""
    sink = output_file.sink(output_file.Config(path=str(path), **settings))
    for number, batch in enumerate(batches):
        sink.write(number, batch)
    stored = sink.stored()
    assert [each.batch for each in stored] == list(range(len(batches)))
    assert sink.stored() == []
    refused = [refusal for each in stored for refusal in each.refusals]
    assert sum(each.flows for each in stored) == sum(map(len, batches)) - len(refused)
    sink.close()
    return path.read_bytes(), refused


@pytest.mark.parametrize(
    ("batches", "settings", "expected"),
    [
        pytest.param([[{"a": 1}, {"a": 2}], [{"a": 3}]], {}, b'{"a":1}\n{"a":2}\n{"a":3}\n', id="one flow a line"),
        pytest.param([[], [{"a": 1}], []], {}, b'{"a":1}\n', id="an empty batch writes nothing"),
        pytest.param(
            [[{"a": number} for number in range(5)]],
            {"flows_per_message": 2},
            b'[{"a":0},{"a":1}]\n[{"a":2},{"a":3}]\n[{"a":4}]\n',
            id="arrays",
        ),
        pytest.param([[{"a": 1}], [{"a": 2}]], {"flows_per_message": 100}, b'[{"a":1}]\n[{"a":2}]\n', id="an array a batch at least"),
        pytest.param([[{"ü": "✓"}]], {}, '{"ü":"✓"}\n'.encode(), id="UTF-8"),
        pytest.param([], {}, b"", id="no batch leaves an empty file"),
    ],
)
def test_lines(tmp_path: Path, batches: list[list[dict[str, Any]]], settings: dict[str, Any], expected: bytes) -> None:
    assert written(tmp_path / "out.ndjson", *batches, **settings) == (expected, [])


@pytest.mark.parametrize("settings", [{}, {"flows_per_message": 10}])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param({"a": 1 << 65}, "integer beyond 64 bits", id="an integer"),
        pytest.param({"a": "\ud800"}, "lone surrogate in a text", id="a lone surrogate"),
        pytest.param({"a": {1, 2}}, "not JSON", id="a value that is no JSON"),
    ],
)
def test_a_flow_that_cannot_be_written_is_refused_its_neighbours_are_written(
    tmp_path: Path, settings: dict[str, int], bad: dict[str, Any], reason: str
) -> None:
    content, refused = written(tmp_path / "out.ndjson", [{"a": 1}, bad, {"a": 2}], **settings)
    assert refused == [(bad, reason)]
    assert content == (b'[{"a":1},{"a":2}]\n' if settings else b'{"a":1}\n{"a":2}\n')


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old\n" * 100)
    assert written(tmp_path / "out", [{"a": 1}])[0] == b'{"a":1}\n'


def test_a_batch_is_in_the_file_once_closed(tmp_path: Path) -> None:
    assert written(tmp_path / "out", [{"a": "x" * 100_000}] * 3)[0].count(b"\n") == 3


def test_a_dash_is_standard_output_which_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", output)
    sink = output_file.sink(output_file.Config())
    sink.write(0, [{"a": 1}])
    sink.close()
    assert not output.closed
    output.buffer.seek(0)
    assert output.buffer.read() == b'{"a":1}\n'


@pytest.mark.parametrize("path", ["no/such/directory/out", "."])
def test_a_file_that_cannot_be_opened_is_an_oserror(path: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        output_file.sink(output_file.Config(path=str(tmp_path / path)))


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="/dev/full: absent")
def test_a_full_disk_is_an_oserror() -> None:
    sink = output_file.sink(output_file.Config(path="/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        sink.write(0, [{"a": "x" * 100_000}])
    sink.close()
    sink = output_file.sink(output_file.Config(path="/dev/full"))
    sink.write(0, [{"a": 1}])
    with pytest.raises(OSError, match="No space left"):
        sink.close()


@pytest.mark.parametrize("number", [0, -1])
def test_flows_per_message_is_at_least_one(number: int) -> None:
    with pytest.raises(ValueError, match="flows_per_message"):
        output_file.Config(flows_per_message=number)
