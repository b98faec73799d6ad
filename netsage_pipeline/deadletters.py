"""Dead letters: what was refused, with the reason, in a form from which it can be replayed.

An envelope is one JSON object:

    id        text, 32 hex digits, of its own content: the same refusal has the same id
    stage     the stage that refused the flow; "decode" for what is no flow at all
    reason    words that hold no value of the flow
    source    the file or queue it came from; behind stitching "40_aggregation"
    position  line, or line.index within an array; behind stitching the meta.id
    payload   the flow as it stood before that stage, what earlier stages gave both its ends merged in;
              {"base64": ...} of the bytes as they came, where they are no strict JSON
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from netsage_pipeline.folders import shown
from netsage_pipeline.jsonvalues import has_nan
from netsage_pipeline.waits import Wait

#: The stage named in envelopes of what could not be read as flows.
DECODE = "decode"

#: What every envelope holds, whoever has written it anew, and hardly any flow.
LETTER = b'"payload"'

_KEYS = {"id", "stage", "reason", "source", "position", "payload"}


def append(path: Path, letters: Iterable[bytes]) -> None:
    """Adds letters to a file, a line each, durable, all of them or none. OSError, with the path.

    They may hold full addresses: the file is for its owner alone. A last line whose end was cut off, by a kill perhaps, stays a line alone.
    """
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
    try:
        size = os.fstat(file).st_size
        cut_off = size and os.pread(file, 1, size - 1) != b"\n"
        content = b"\n" * bool(cut_off) + b"".join(letter + b"\n" for letter in letters)
        try:
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        except OSError as error:
            error.filename = str(path)
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


class Letters:
    """A file of dead letters in the state directory of an input whose chain has no queue for them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: dict[int, bytes] = {}
        self._for_room = Wait("room on the disk for dead letters")

    def bury(self, number: int, letter: bytes) -> None:
        """Takes a letter in, under a number of the caller's."""
        self._waiting[number] = letter

    def buried(self) -> list[int]:
        """The numbers of those that are in the file since the last call; none, and it is said, while there is no room."""
        if not self._waiting:
            return []
        try:
            append(self._path, self._waiting.values())
        except OSError as error:
            self._for_room.goes_on(f"{self._path}: {error.strerror}")
            return []
        self._for_room.is_over()
        numbers = list(self._waiting)
        self._waiting.clear()
        return numbers


def envelope(stage: str, reason: str, source: str, position: str, payload: Any) -> bytes:
    """The envelope as JSON. The payload may be bytes, or any value, also such as strict JSON cannot write (NaN, lone surrogates)."""
    if isinstance(payload, bytes):
        body = _base64(payload)
    else:
        try:
            body = orjson.dumps(payload, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:
            body = _base64(lenient(payload))
        else:
            if has_nan(payload) or _looks_like_bytes(payload):  # Would come back as null, or as what its base64 says.
                body = _base64(lenient(payload))
    head = orjson.dumps({"stage": stage, "reason": reason, "source": shown(source), "position": position})[1:-1]
    identity = hashlib.blake2b(head + body, digest_size=16).hexdigest()
    return b'{"id":"%s",%s,"payload":%s}' % (identity.encode(), head, body)


def lenient(payload: Any) -> bytes:
    """JSON of what strict JSON cannot write, also of flows nested so deeply that Python would refuse."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 5_000)
    try:
        return json.dumps(payload, default=repr).encode()
    except (ValueError, TypeError):  # It holds itself, or has names that are no texts: a stage made it so.
        return json.dumps(repr(payload)).encode()
    finally:
        sys.setrecursionlimit(limit)


def _looks_like_bytes(payload: Any) -> bool:
    return isinstance(payload, dict) and payload.keys() == {"base64"}


def _base64(body: bytes) -> bytes:
    return b'{"base64":"%s"}' % base64.b64encode(body)


def looks_like_envelope(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == _KEYS


def is_envelope(value: Any) -> bool:
    return looks_like_envelope(value) and isinstance(value["stage"], str) and _has_body(value["payload"])


def _has_body(payload: Any) -> bool:
    try:
        body_of(payload)
    except (ValueError, TypeError):  # TypeError: nested more deeply than orjson writes.
        return False
    return True


def body_of(payload: Any) -> bytes:
    """The bytes of a payload: what was refused, as it came. ValueError if it is damaged."""
    if _looks_like_bytes(payload):
        if not isinstance(payload["base64"], str):
            raise ValueError("base64 is no text")
        return base64.b64decode(payload["base64"], validate=True)
    return orjson.dumps(payload)
