"""Make the demo: lookup tables, capture files and the counts that must come out, always the same to the byte.

    pip install mmdb-writer==0.2.7 zstandard==0.25.0 orjson
    python demo/make.py [DIRECTORY]        # default: the directory of this file

Nothing here reads a clock. The compressed bytes depend on the version of zstandard; their contents do not.
"""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import orjson
import tables
import truth
import zstandard
from expected import Expected
from flows import FILE_S, NOW, START, Captures, Sensor, Traffic


def write_captures(captures: Captures, directory: Path) -> int:
    """One file for each sensor and five minutes, its rows in the order of export."""
    for (sensor, number), rows in captures.rows.items():
        begin = datetime.fromtimestamp(START + number * FILE_S, UTC)
        path = directory / sensor.directory / f"{sensor.prefix}.{begin:%Y%m%d%H%M}.ndjson.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        in_order = [row for _, row in sorted(rows, key=lambda row: row[0])]
        path.write_bytes(zstandard.ZstdCompressor(level=19).compress(b"".join(lines(sensor, in_order))))
    return len(captures.rows)


def lines(sensor: Sensor, rows: list[dict[str, object] | bytes]) -> list[bytes]:
    if sensor.flows_per_line > 1:
        groups = [rows[i : i + sensor.flows_per_line] for i in range(0, len(rows), sensor.flows_per_line)]
        return [orjson.dumps(group) + b"\n" for group in groups]
    return [(row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows]


def main(directory: Path) -> None:
    for name in ("tables", "captures"):
        shutil.rmtree(directory / name, ignore_errors=True)
    facts = truth.load()
    expected = Expected(facts)
    captures = Traffic(facts, expected).plan()
    tables.write(facts, directory / "tables")
    files = write_captures(captures, directory / "captures")
    text = json.dumps(expected.as_json(NOW, files), ensure_ascii=False, indent=1)
    (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else truth.HERE)
