"""Reading dumps: files and directories → messages, in order of capture time.

A file may hold NDJSON (flows or arrays of flows, one a line), one JSON document (a flow or an array, over many lines), dead letters,
records of pmacct (JSON or CSV) or of Logstash's netflow module, saved output of netstat or ss, any of these compressed with gzip or zstd,
or be one of nfcapd's, which nfdump reads.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import structlog
import zstandard

from netsage_pipeline.deadletters import lenient
from netsage_pipeline.flow import Flow
from netsage_pipeline.folders import shown
from netsage_pipeline.jsonvalues import leniently
from netsage_pipeline.probe import netstat
from netsage_pipeline.reading import netflow_module, nfdump, pmacct
from netsage_pipeline.reading.foreign import flow_of
from netsage_pipeline.times import iso

log = structlog.get_logger(__name__)

#: How names begin that are left out of a directory: hidden ones, what nfcapd is writing, and what a disk has at its top for root alone.
PASSED_OVER = (".", "nfcapd.current", "lost+found")

_CHUNK = 1 << 20

#: Bytes of zstd from which no more than a chunk comes: its shortest block has four and gives 128 KiB. There is no other way to limit what
#: comes and still see whether the end is there.
_ZSTD = _CHUNK // (1 << 17) * 4

#: A JSON document over many lines is read whole; larger files are taken as NDJSON.
DOCUMENT_BYTES = 1 << 28

#: Rows of nfdump, or connections, in a message.
ROWS = 100

#: What reading a file that was cut off or damaged raises.
_DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)

#: Characters that the heading of a list of connections has at least.
_HEADING = 100

#: What every record of another program holds, and hardly any flow.
_FOREIGN = re.compile(rb'"(?:bytes|packets|event_type|netflow)"\s*:|"netflow\.')

_STAMP = re.compile(r"(?<!\d)(\d{12})(\d{2})?(?!\d)")


class Message(NamedTuple):
    """What one line of a file held: one flow or an array of flows, as JSON."""

    body: bytes
    source: str  #: the file
    position: str  #: line


class DumpError(Exception):
    """A file or directory cannot be read, or not to its end; one line: where, what, what to do. What was read before is valid."""


class Dump(NamedTuple):
    """A file to be read."""

    path: Path | None  #: None: standard input
    captured: float  #: unix seconds, inf if unknown
    bytes: int  #: of the file, compressed

    @property
    def name(self) -> str:
        return str(self.path) if self.path is not None else "standard input"


def find(paths: list[str], tell: Callable[[str], None]) -> list[Dump]:
    """The files below the paths, in order of capture time (of the name, else the first flow), then path. Tells what it passes over."""
    dumps = []
    for given in paths:
        if given == "-":
            dumps.append(Dump(None, float("inf"), 0))
            continue
        try:
            if given:
                dumps += _below(Path(given), tell)
            else:  # Path("") is the current directory.
                tell("'': no such file or directory: is a variable empty?")
        except OSError as error:
            tell(f"{given}: cannot be read: {error.strerror or error}")
    once: dict[Path | None, Dump] = {}
    for dump in dumps:
        kept = once.setdefault(dump.path and dump.path.resolve(), dump)
        if kept is not dump:
            tell(f"{dump.name}: is given twice: it is read once")
    return sorted(once.values(), key=lambda dump: (dump.captured, dump.name))


def _below(path: Path, tell: Callable[[str], None]) -> list[Dump]:
    if path.is_dir():
        files = _files(path, tell)
        found = [file for file in files if _holds_flows(file, tell)]
        passed_over = set(files).difference(found)
        if not found:
            tell(f"{path}: holds no flows: no nfcapd file and no JSON, .gz or .zst among its {len(files)} files")
        strange = [file for file in files if file in passed_over and not _is_known_to_be_empty(file)]
        if found and strange:
            tell(f"{path}: {len(strange)} of its {len(files)} files hold no flows and are passed over, the first is {strange[0]}")
        return [_dump(file) for file in found]
    if not path.exists():
        tell(f"{path}: no such file or directory")
        return []
    if not path.is_file():  # A pipe can be read only once, so nothing is looked at beforehand.
        return [Dump(path, float("inf"), 0)]
    return [] if nfdump.is_nfcapd(path) and nfdump.is_empty(path) else [_dump(path)]


def _files(directory: Path, tell: Callable[[str], None]) -> list[Path]:
    """All below a directory. A hidden one may hold copies of what is beside it, such as the .snapshot of a file server."""
    found: list[Path] = []
    for below, directories, names in os.walk(directory, onerror=lambda error: tell(f"{error.filename}: cannot be read: {error.strerror}")):
        directories[:] = [name for name in directories if not name.startswith(PASSED_OVER)]
        found += [Path(below, name) for name in names]
    return sorted(file for file in found if file.is_file())


def messages(dump: Dump, rows: nfdump.Rows | None, counts: Counter[str], advance: Callable[[int], object] = abs) -> Iterator[Message]:
    """The messages of a file. DumpError when it cannot be read to its end. Tells `advance` how many bytes of the file were taken in."""
    seen = _Seen(rows.sensor_id if rows else "", dump.captured if isfinite(dump.captured) else time.time(), counts)
    try:
        if dump.path is not None and dump.path.is_file() and nfdump.is_nfcapd(dump.path):
            yield from _of_nfcapd(dump.path, rows or nfdump.Rows(sensor_id=shown(dump.path.parent.name)), counts)
            advance(dump.bytes)
        elif dump.path is None:
            yield from _as_flows(_of_stream(sys.stdin.buffer, dump.name, advance, seen), rows or nfdump.Rows(sensor_id=""))
        else:
            with dump.path.open("rb") as file:
                yield from _as_flows(
                    _of_stream(file, dump.name, advance, seen), rows or nfdump.Rows(sensor_id=shown(dump.path.parent.name))
                )
    except OSError as error:
        raise DumpError(f"{dump.name}: cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise DumpError(f"{dump.name}: is truncated or damaged: {error}: fetch it again; the flows before were read") from None
    except nfdump.NfdumpError as error:
        raise DumpError(str(error)) from None


def _as_flows(found: Iterator[Message], rows: nfdump.Rows) -> Iterator[Message]:
    """The messages, with flows in place of records of other programs."""
    for message in found:
        if not _FOREIGN.search(message.body):
            yield message
            continue
        try:
            given = orjson.loads(message.body)
        except orjson.JSONDecodeError:
            yield message
            continue
        many = isinstance(given, list)
        flows = [each for each in (_as_flow(value, rows) for value in (given if many else [given])) if each is not None]
        if flows:
            yield message._replace(body=_json(flows if many else flows[0]))


def _as_flow(value: Any, rows: nfdump.Rows) -> Any:
    """A record of another program as a flow, None if it is a remark of that program; anything else as it is."""
    if not isinstance(value, dict):
        return value
    document: Flow = value["_source"] if isinstance(value.get("_source"), dict) and "_index" in value else value
    if pmacct.is_record(document):
        return None if pmacct.is_event(document) else flow_of(document, pmacct.NAMES, rows)
    fields = netflow_module.fields_of(document)
    return value if fields is None else flow_of(fields, netflow_module.NAMES, rows)


def _of_table(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[Message]:
    """The records of CSV as JSON; a line that is none as it is."""
    for number, fields, wrong, given in pmacct.records(lines):
        yield Message(_bare(given) if wrong else _json(fields), name, str(number))


def _dump(path: Path) -> Dump:
    return Dump(path, captured(path), path.stat().st_size)


def captured(path: Path) -> float:
    """When a file was captured, unix seconds: what its name says, else the start of its first flow, else inf.

    Connections that netstat or ss listed have no start: when the file was written."""
    stamp = stamped(path.name)
    if stamp is not None:
        return stamp
    with contextlib.suppress(OSError, *_DAMAGE):
        if netstat.is_saved(_first_line(path)):
            return path.stat().st_mtime
    with contextlib.suppress(DumpError):
        for message in islice(messages(Dump(path, 0, 0), None, Counter()), 100):
            start = _start(message.body)
            if start is not None:
                return start
    return float("inf")


def stamped(name: str) -> float | None:
    """The time in the name of a file, YYYYMMDDhhmm[ss] taken as UTC, unix seconds; None if there is none."""
    stamp = _STAMP.search(name)
    with contextlib.suppress(ValueError):
        if stamp:
            return float(calendar.timegm(time.strptime(stamp[1] + (stamp[2] or "00"), "%Y%m%d%H%M%S")))
    return None


def _start(body: bytes) -> float | None:
    """The start of the first flow of a message, unix seconds; None if it has none."""
    try:
        first: Any = orjson.loads(body)
        flow = first[0] if isinstance(first, list) else first
        start = float(flow.get("payload", flow)["start"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return start / 1000 if start > 9_999_999_999 else start


def _holds_flows(path: Path, tell: Callable[[str], None]) -> bool:
    if path.name.startswith(PASSED_OVER):
        return False
    try:
        if nfdump.is_nfcapd(path):
            return not nfdump.is_empty(path)
        with path.open("rb") as file:
            begin = b"".join(islice(_decompressed(_Counted(file)), 2)).lstrip()  # The first one may be what was looked at: 4 bytes.
        lines = (line for line in begin.splitlines() if not pmacct.is_marker(line))
        return begin[:1] in (b"{", b"[") or pmacct.is_table(next(lines, b"")) or netstat.is_saved(_first_line(path))
    except OSError as error:
        tell(f"{path}: cannot be read: {error.strerror or error}")
        return False
    except _DAMAGE:
        return True  # Reading it will say what is wrong.


def _first_line(path: Path) -> bytes:
    """What the first line that is not blank begins with."""
    first = b""
    with path.open("rb") as file:
        for chunk in _decompressed(_Counted(file)):
            first = (first + chunk).lstrip()
            if len(first) > _HEADING:
                break
    return first


def _is_known_to_be_empty(path: Path) -> bool:
    """Hidden files, the file that nfcapd writes at the moment, and files without a record: nobody expects flows of them."""
    if path.name.startswith(PASSED_OVER) or not path.stat().st_size:
        return True
    return nfdump.is_nfcapd(path) and nfdump.is_empty(path)


def _of_nfcapd(path: Path, rows: nfdump.Rows, counts: Counter[str]) -> Iterator[Message]:
    flows = nfdump.rows(path, rows, counts)
    try:
        number = 0
        while True:
            batch: list[dict[str, Any]] = []
            try:
                batch.extend(islice(flows, ROWS))
            finally:  # Rows before an error stay valid.
                if batch:
                    yield Message(orjson.dumps(batch), str(path), str(number))
            if not batch:
                return
            number += 1
    finally:
        flows.close()


class _Seen(NamedTuple):
    """What is known of connections that netstat or ss listed, beside what they say."""

    host: str  #: "" if unknown
    at: float  #: unix seconds
    counts: Counter[str]


def _of_netstat(lines: Iterator[tuple[int, bytes]], name: str, seen: _Seen) -> Iterator[Message]:
    def tell(number: int, why: str) -> None:
        seen.counts["unreadable"] += 1
        log.warning("a line was passed over", file=name, line=number, reason=why)

    given = {"@timestamp": iso(seen.at), **({"host": seen.host} if seen.host else {})}
    damage: Exception | None = None
    whole: list[tuple[int, bytes]] = []
    try:
        whole.extend(lines)
    except (OSError, *_DAMAGE) as error:  # Lines before it stay valid.
        damage = error
    for number, records in enumerate(netstat.saved(whole, tell)):
        for begin in range(0, len(records), ROWS):
            yield Message(orjson.dumps([given | record for record in records[begin : begin + ROWS]]), name, f"{number}.{begin // ROWS}")
    if damage is not None:
        raise damage


def _of_stream(file: BinaryIO, name: str, advance: Callable[[int], object], seen: _Seen) -> Iterator[Message]:
    chunks = _decompressed(_Counted(file, advance))
    lines = _lines(chunks)
    first = next(((number, line) for number, line in lines if line.strip() and not pmacct.is_marker(line)), None)
    if first is None:
        return
    number, line = first
    if netstat.is_saved(line):
        yield from _of_netstat(chain([first], lines), name, seen)
        return
    if pmacct.is_table(line):
        yield from _of_table(chain([first], lines), name)
        return
    if line.lstrip()[:1] in (b"{", b"[") and not _is_json(line):
        gathered, damage = _gathered(line, lines)
        document = b"".join(gathered)
        if damage is None and len(document) <= DOCUMENT_BYTES and _is_json(document):
            yield Message(_bare(document), name, str(number))
            return
        for offset, each in enumerate(gathered):
            if each.strip():
                yield Message(_bare(each), name, str(number + offset))
        if damage is not None:
            raise damage
    else:
        yield Message(_bare(line), name, str(number))
    for number, line in lines:
        if line.strip():
            yield Message(_bare(line), name, str(number))


def _bare(line: bytes) -> bytes:
    """A line without its end."""
    return line.removesuffix(b"\n")


def _gathered(first: bytes, lines: Iterator[tuple[int, bytes]]) -> tuple[list[bytes], Exception | None]:
    """The lines from the first on, up to a limit of bytes, and what ended them too early."""
    gathered = [first]
    size = len(first)
    try:
        for _, line in lines:
            gathered.append(line)
            size += len(line)
            if size > DOCUMENT_BYTES:
                break
    except (OSError, *_DAMAGE) as error:
        return gathered, error
    return gathered, None


def _json(value: Any) -> bytes:
    """JSON, be it such as orjson does not write (integers beyond 64 bits, deep nesting): that costs one flow, not the file."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return lenient(value)


def _is_json(text: bytes) -> bool:
    """Whether it is JSON, be it with a NaN or another thing that orjson refuses: that costs one flow, not the document."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            leniently(text)
        except (ValueError, RecursionError):
            return False
    return True


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends and their numbers, from 1."""
    number = 0
    rest: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest.append(first)
        if more:
            number += 1
            yield number, b"".join(rest) + b"\n"
            for line in more[:-1]:
                number += 1
                yield number, line + b"\n"
            rest = [more[-1]]
    if any(rest):
        yield number + 1, b"".join(rest)


class _Counted:
    """A file that tells how much of it was read, and whose first bytes can be looked at (standard input cannot be rewound)."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], object] = abs) -> None:
        self._file, self._advance = file, advance
        self._head = b""

    def head(self) -> bytes:
        self._head = self._file.read(4)
        return self._head

    def read(self, size: int = _CHUNK) -> bytes:
        if self._head:
            chunk, self._head = self._head, b""
        else:
            chunk = self._file.read1(size) if hasattr(self._file, "read1") else self._file.read(size)
        self._advance(len(chunk))
        return chunk


def _decompressed(file: _Counted) -> Iterator[bytes]:
    """The bytes of a file in chunks, decompressed if they begin like gzip's or zstd's."""
    head = file.head()
    if head[:2] == b"\x1f\x8b":
        yield from _gunzip(file)
    elif head == b"\x28\xb5\x2f\xfd":
        yield from _unzstd(file)
    else:
        while chunk := file.read():
            yield chunk


def _gunzip(file: _Counted) -> Iterator[bytes]:
    """Like gzip, several members one after the other and zeros behind them; what stands before a damage comes out."""
    member = zlib.decompressobj(wbits=31)
    while chunk := file.read():
        while chunk:
            if member.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                member = zlib.decompressobj(wbits=31)
            if plain := member.decompress(chunk, _CHUNK):
                yield plain
            chunk = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise EOFError("the end is missing")


def _unzstd(file: _Counted) -> Iterator[bytes]:
    """Several frames one after the other; what stands before a damage comes out."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    while chunk := file.read():
        for begin in range(0, len(chunk), _ZSTD):
            piece = chunk[begin : begin + _ZSTD]
            while piece:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                if plain := frame.decompress(piece):
                    yield plain
                piece = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise EOFError("the end is missing")
