"""The four sets of flows that the reference really processed: ours must come out equal, field by field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsage_pipeline.cli import main
from tests.conftest import CONFORMANCE

SETS = ["01-stages-tstat", "02-stages-netflow", "03-stitch", "04-interleaved"]


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conformance tables, with the member lists converted by our own command."""
    directory = tmp_path_factory.mktemp("tables")
    for table in (CONFORMANCE / "lookups").iterdir():
        if table.is_file():
            (directory / table.name).write_bytes(table.read_bytes())
    lists = sorted(str(path) for path in (CONFORMANCE / "lookups" / "reference").glob("*.rb"))
    result = CliRunner().invoke(main, ["lookups", "convert", *lists], env={"NETSAGE_LOOKUPS": str(directory)})
    assert result.exit_code == 0, result.output
    return directory


@pytest.mark.parametrize("name", SETS)
def test_flows_come_out_as_the_reference_printed_them(name: str, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETSAGE_LOOKUPS", str(tables))
    got = tmp_path / "got.ndjson"
    flows = CONFORMANCE / f"{name}.in.ndjson"
    result = CliRunner().invoke(main, ["replay", str(flows), "--now", "1700000000", "--clock", "arrival", "--to", str(got)])
    assert result.exit_code == 0, result.output
    judged = subprocess.run(
        [sys.executable, CONFORMANCE / "compare", CONFORMANCE / f"{name}.expected.ndjson", got], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stdout
