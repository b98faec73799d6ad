"""Reading dumps: formats, compression, order of capture time."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netsage_pipeline.reading import read
from netsage_pipeline.reading.read import Dump, DumpError, captured, find, messages
from tests.command import COMMAND, Outcome, lines, surroundings, written
from tests.flows import NOW, flow

zstd = zstandard.ZstdCompressor().compress


def bodies(path: Path) -> list[Any]:
    """The messages of a file, decoded."""
    return [json.loads(message.body) for message in messages(Dump(path, 0, 0), None, Counter())]


def names(paths: list[Path | str], told: list[str] | None = None) -> list[str]:
    return [Path(dump.name).name for dump in find([str(path) for path in paths], (told if told is not None else []).append)]


FLOWS = [{"number": number, "text": 'a\\n"}ü'} for number in range(5)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(lines(FLOWS), FLOWS, id="a flow a line"),
        pytest.param(lines(FLOWS)[:-1], FLOWS, id="no newline at the end"),
        pytest.param(lines(FLOWS).replace(b"\n", b"\r\n"), FLOWS, id="lines as in DOS"),
        pytest.param(b"\n\n" + lines(FLOWS).replace(b"\n", b"\n \n"), FLOWS, id="blank lines"),
        pytest.param(lines([FLOWS[:3], FLOWS[3], FLOWS[4:]]), [FLOWS[:3], FLOWS[3], FLOWS[4:]], id="arrays and flows"),
        pytest.param(json.dumps(FLOWS, indent=2).encode(), [FLOWS], id="an array over many lines"),
        pytest.param(json.dumps(FLOWS[0], indent=4).encode(), FLOWS[:1], id="a flow over many lines"),
        pytest.param(b"\n  \n" + json.dumps(FLOWS, indent="\t").encode() + b"\n\n", [FLOWS], id="blank lines around a document"),
        pytest.param(gzip.compress(lines(FLOWS)), FLOWS, id="gzip"),
        pytest.param(gzip.compress(lines(FLOWS[:2])) + gzip.compress(lines(FLOWS[2:])), FLOWS, id="gzip of two members"),
        pytest.param(gzip.compress(lines(FLOWS)) + bytes(512), FLOWS, id="gzip with zeros behind it, as from a tape"),
        pytest.param(gzip.compress(json.dumps(FLOWS, indent=2).encode()), [FLOWS], id="a document in gzip"),
        pytest.param(zstd(lines(FLOWS)), FLOWS, id="zstd"),
        pytest.param(zstd(lines(FLOWS[:2])) + zstd(lines(FLOWS[2:])), FLOWS, id="zstd of two frames"),
        pytest.param(zstd(lines(FLOWS)[:20]) + zstd(lines(FLOWS)[20:]), FLOWS, id="a frame that ends within a line"),
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\n \n", [], id="blank lines alone"),
        pytest.param(gzip.compress(b""), [], id="nothing in gzip"),
        pytest.param(zstd(b""), [], id="nothing in zstd"),
        pytest.param(b"{}", [{}], id="two bytes"),
    ],
)
def test_formats(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    (tmp_path / "dump").write_bytes(content)
    assert bodies(tmp_path / "dump") == expected


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20, 10_000_000])
def test_files_of_any_size_are_read_to_their_last_byte(tmp_path: Path, compress: Callable[[bytes], bytes], size: int) -> None:
    for content in (b'"' + b"a" * size + b'"', b'"' + random.Random(size).randbytes(size // 2).hex().encode() + b'"'):
        (tmp_path / "dump").write_bytes(compress(content) * 2)
        found = b"".join(message.body for message in messages(Dump(tmp_path / "dump", 0, 0), None, Counter()))
        assert found == content * 2


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_file_that_unpacks_to_much_is_taken_in_pieces(tmp_path: Path, compress: Callable[[bytes], bytes], times: int) -> None:
    (tmp_path / "dump").write_bytes(compress(bytes(50_000_000)) * times)
    with (tmp_path / "dump").open("rb") as file:
        sizes = [len(piece) for piece in read._decompressed(read._Counted(file))]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == 50_000_000 * times


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_it_is_told_how_many_bytes_of_the_file_were_read(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "dump"
    file.write_bytes(compress(lines(FLOWS * 100)))
    taken: list[int] = []
    list(messages(Dump(file, 0, 0), None, Counter(), taken.append))
    assert sum(taken) == file.stat().st_size


def test_a_message_knows_its_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path / "dump", b"", FLOWS[0], b"", b" ", FLOWS[1])
    assert [message[1:] for message in messages(Dump(file, 0, 0), None, Counter())] == [(str(file), "2"), (str(file), "5")]


def test_lines_behind_a_broken_first_one_keep_their_numbers(tmp_path: Path) -> None:
    file = written(tmp_path / "dump", b"", b'{"broken', b"", FLOWS[0], b"[1,", FLOWS[1])
    assert [message.position for message in messages(Dump(file, 0, 0), None, Counter())] == ["2", "4", "5", "6"]


def test_a_file_larger_than_a_document_may_be_is_read_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "DOCUMENT_BYTES", 100)
    file = written(tmp_path / "dump", b'{"broken', *FLOWS)
    found = list(messages(Dump(file, 0, 0), None, Counter()))
    assert [message.position for message in found] == ["1", "2", "3", "4", "5", "6"]
    assert [json.loads(message.body) for message in found[1:]] == FLOWS


def test_ndjson_whose_first_flow_holds_a_nan_is_read_line_by_line(tmp_path: Path) -> None:
    file = written(tmp_path / "dump", b'{"a": NaN}', FLOWS[0])
    assert [message.position for message in messages(Dump(file, 0, 0), None, Counter())] == ["1", "2"]


def test_standard_input_is_read_with_any_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (lines(FLOWS), gzip.compress(lines(FLOWS)), zstd(lines(FLOWS))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        (dump,) = find(["-"], print)
        found = list(messages(dump, None, Counter()))
        assert [json.loads(message.body) for message in found] == FLOWS
        assert {message.source for message in found} == {"standard input"}


def test_a_pipe_is_read_from_its_first_byte() -> None:
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(lines(FLOWS)))
    os.close(writing)
    (dump,) = find([f"/dev/fd/{reading}"], print)
    assert [json.loads(message.body) for message in messages(dump, None, Counter())] == FLOWS
    os.close(reading)


def test_a_file_that_goes_between_finding_and_reading_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match=r"^\S+/gone: cannot be read: No such file or directory$"):
        list(messages(Dump(tmp_path / "gone", 0, 0), None, Counter()))


# Order of capture time


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("nfcapd.202311142215", 1_700_000_100, id="a name of nfcapd's"),
        pytest.param("nfcapd.20231114221530", 1_700_000_130, id="with seconds"),
        pytest.param("flows-202311142215-chic.ndjson.gz", 1_700_000_100, id="within a name"),
        pytest.param("flows.ndjson", NOW - 100, id="no time in the name: the start of the first flow"),
        pytest.param("202399992215.ndjson", NOW - 100, id="no such month"),
        pytest.param("2023111422150.ndjson", NOW - 100, id="a longer number"),
    ],
)
def test_the_capture_time_is_that_of_the_name_or_of_the_first_flow(tmp_path: Path, name: str, expected: float) -> None:
    assert captured(written(tmp_path / name, [flow(), flow(start=1.0)])) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(lines([flow(start=(NOW - 100) * 1000)]), NOW - 100, id="milliseconds"),
        pytest.param(lines([flow(start=str(NOW - 100))]), NOW - 100, id="a number as a text"),
        pytest.param(lines([{"stage": "decode", "payload": flow()}]), NOW - 100, id="a dead letter"),
        pytest.param(gzip.compress(lines([flow()])), NOW - 100, id="gzip"),
        pytest.param(lines([{}]), float("inf"), id="no start"),
        pytest.param(lines([flow(start=None)]), float("inf"), id="null"),
        pytest.param(lines([[]]), float("inf"), id="an empty array"),
        pytest.param(b"garbage", float("inf"), id="garbage"),
        pytest.param(b"5", float("inf"), id="a number"),
        pytest.param(b"", float("inf"), id="an empty file"),
        pytest.param(b"\x1f\x8b\x08", float("inf"), id="a truncated file"),
    ],
)
def test_the_start_of_the_first_flow_where_there_is_one(tmp_path: Path, content: bytes, expected: float) -> None:
    (tmp_path / "dump").write_bytes(content)
    assert captured(tmp_path / "dump") == expected


def test_files_come_in_order_of_capture_time_across_directories_then_of_path(tmp_path: Path) -> None:
    written(tmp_path / "a" / "202311142230.ndjson", flow())
    written(tmp_path / "a" / "2023" / "11" / "202311142210.ndjson", flow())
    written(tmp_path / "b" / "202311142220.json", flow())
    written(tmp_path / "b" / "unnamed", flow(start=1_700_000_400 + 1))
    written(tmp_path / "b" / "unknown", {"no": "start"})
    written(tmp_path / "b" / "same", flow(start=1_700_000_400 + 1))
    found = ["202311142210.ndjson", "202311142220.json", "same", "unnamed", "202311142230.ndjson", "unknown"]
    assert names([tmp_path / "b", tmp_path / "a"]) == found
    assert names([tmp_path]) == found


def test_standard_input_comes_last(tmp_path: Path) -> None:
    assert names(["-", written(tmp_path / "a.ndjson", flow())]) == ["a.ndjson", "standard input"]


def test_a_directory_gives_the_files_that_begin_like_flows(tmp_path: Path) -> None:
    for name, content in {
        "a.json": b"  \n[{}]",
        "b.gz": gzip.compress(b"{}"),
        "c.zst": zstd(b"{}"),
        "d.log": b"{}",
        "notes.txt": b"hello",
        "notes.gz": gzip.compress(b"hello"),
        "empty": b"",
        ".hidden": b"{}",
        "nfcapd.current.123": b"{}",
        "nfcapd.current": b"\x0c\xa5\x02\x00" + bytes(100),
        "truncated.gz": b"\x1f\x8b\x08",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling").symlink_to("nowhere")
    told: list[str] = []
    assert sorted(names([tmp_path], told)) == ["a.json", "b.gz", "c.zst", "d.log", "truncated.gz"]
    assert told == [f"{tmp_path}: 2 of its 11 files hold no flows and are passed over, the first is {tmp_path}/notes.gz"]


def test_a_hidden_directory_is_passed_over_and_one_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    for name in (".snapshot/hourly", "open", "secret"):
        written(tmp_path / name / "a.ndjson", flow())
    (tmp_path / "secret").chmod(0)
    before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run([*before, COMMAND, "replay", tmp_path, "--to", "-"], env=surroundings(), capture_output=True, check=False)
    (tmp_path / "secret").chmod(0o700)
    outcome = Outcome(done.returncode, done.stdout, done.stderr.decode())
    assert outcome.summary["read"] == 1
    assert f"{tmp_path}/secret: cannot be read: Permission denied" in outcome.said


def test_a_directory_without_flows_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told: list[str] = []
    assert names([tmp_path / "empty", written(tmp_path / "a.ndjson", flow())], told) == ["a.ndjson"]
    assert told == [f"{tmp_path}/empty: holds no flows: no nfcapd file and no JSON, .gz or .zst among its 0 files"]
