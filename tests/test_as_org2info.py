"""CAIDA's as-org2info.txt becomes the CSV that stage 53 reads, as the reference's own script makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.tables.as_org2info import convert
from netsage_pipeline.tables.tables import read

FILE = """\
# name: AS Org
# program start time: 2021-04-01
# format:org_id|changed|org_name|country|source
UMN-ARIN|20210401|University of Minnesota|US|ARIN
@aut-1-RIPE||Universität "Größe", Süd|DE|RIPE
BACK-ARIN|20210401|one\\two|US|ARIN
NONE-ARIN|20210401||US|ARIN
# format:aut|changed|aut_name|org_id|opaque_id|source
4200000001|20210401|LAST|@aut-1-RIPE|x|RIPE
217|20210401|UMN-SYSTEM|UMN-ARIN|x|ARIN
57|20210401|UMN-REI|UMN-ARIN|x|ARIN
5|20210401|A|BACK-ARIN|x|ARIN
6|20210401|B|NONE-ARIN|x|ARIN
7|20210401|C|MISSING-ARIN|x|ARIN
"""

NAMES = {
    5: "one two",
    6: "Unknown",
    7: "Unknown",
    57: "University of Minnesota",
    217: "University of Minnesota",
    4200000001: 'Universität "Größe", Süd',
}


def converted(directory: Path, content: str) -> tuple[Any, list[str]]:
    (directory / "x.txt").write_text(content, "utf-8")
    errors = convert(directory / "x.txt", directory / "x.csv")
    return read("caida", directory / "x.csv"), errors


def test_every_number_has_the_name_of_its_organization(tmp_path: Path) -> None:
    assert converted(tmp_path, FILE) == (NAMES, [])


def test_columns_go_by_their_names_and_sections_by_their_heads(tmp_path: Path) -> None:
    head, organizations, numbers = FILE.split("# format:")
    assert converted(tmp_path, f"{head}# format:{numbers}# format:{organizations}") == (NAMES, [])
    older = "# format:aut|changed|aut_name|org_id|source\n1|x|A|ONE|ARIN\n# format:org_name|org_id\nOne|ONE\n"
    assert converted(tmp_path, older) == ({1: "One"}, [])


def test_what_is_no_row_is_left_out(tmp_path: Path) -> None:
    table, errors = converted(tmp_path, f"{FILE}\nAS8|x|A|UMN-ARIN\n9\n" + "nonsense\n" * 30)
    assert table == NAMES
    assert errors[:2] == [f"line {number}: is no row of CAIDA's as-org2info: left out" for number in (16, 17)]
    assert len(errors) == 20


def test_a_name_in_another_encoding_costs_its_letter(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(FILE.encode("latin-1"))
    assert convert(tmp_path / "x.txt", tmp_path / "x.csv") == []
    assert read("caida", tmp_path / "x.csv").get(4200000001) == 'Universit\ufffdt "Gr\ufffd\ufffde", S\ufffdd'


@pytest.mark.parametrize("content", ["", "# a remark\n", "# format:org_id|changed|org_name\nA|x|B\n", "1,A\n"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"^is no file of CAIDA's"):
        converted(tmp_path, content)
    assert not (tmp_path / "x.csv").exists()
