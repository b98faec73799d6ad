"""caida: rows of ASN and organization."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsage_pipeline import stagefile
from netsage_pipeline.folders import shipped

caida = stagefile.load(shipped("lookups") / "caida.py")


def opened(tmp_path: Path, content: str | bytes) -> dict[int, str]:
    path = tmp_path / "CAIDA-org-lookup.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table: dict[int, str] = caida.open_table(path)
    return table


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("217,University of Minnesota\n3356,Level 3\n", {217: "University of Minnesota", 3356: "Level 3"}, id="rows"),
        pytest.param("217,A\n217,B\n", {217: "B"}, id="the last of several rows counts"),
        pytest.param("217, A \n", {217: " A "}, id="names are taken as they stand, blanks included"),
        pytest.param('217,"A, Inc. ""B"""\n', {217: 'A, Inc. "B"'}, id="quotes"),
        pytest.param("217,\n1,0\n", {217: "", 1: "0"}, id="no name and 0 are left to the stage"),
        pytest.param('217,"A\r\nB"\n', {217: "A\r\nB"}, id="an end of line within a name"),
        pytest.param("asn,organization\n217,A\n", {217: "A"}, id="a heading"),
        pytest.param("\n217,A\r\n\r\n3356,B", {217: "A", 3356: "B"}, id="empty lines, and lines that end as on Windows"),
        pytest.param(b"\xef\xbb\xbf217,A\n", {217: "A"}, id="a byte order mark"),
        pytest.param("217,Universität ✓\n", {217: "Universität ✓"}, id="UTF-8"),
        pytest.param("217,A,more\n", {217: "A"}, id="further fields are left out"),
        pytest.param("", {}, id="an empty file"),
    ],
)
def test_rows(tmp_path: Path, content: str | bytes, expected: dict[int, str]) -> None:
    assert opened(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param("217,A\nAS3356,B\n\n,C\n", ["line 2: not 'asn,organization'", "line 4: not 'asn,organization'"], id="no whole number"),
        pytest.param("217,A\n3356\n", ["line 2: not 'asn,organization'"], id="one field"),
        pytest.param("217,A\n1," + "x" * 200_000 + "\n", ["line 2: not CSV: field larger than field limit"], id="a field without end"),
        pytest.param(b"217,A\n1,\xff\n", ["after line ", ": not UTF-8"], id="another encoding"),
    ],
)
def test_bad_rows_are_named_all_at_once(tmp_path: Path, content: str | bytes, lines: list[str]) -> None:
    with pytest.raises(ValueError, match="line") as error:
        opened(tmp_path, content)
    assert all(line in str(error.value) for line in lines)


def test_no_more_than_twenty_bad_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 21:") as error:
        opened(tmp_path, "x,x\n" * 100)
    assert len(str(error.value).splitlines()) == 20


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        caida.open_table(tmp_path / "none.csv")
