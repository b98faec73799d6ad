"""JSON values: numbers in them, copies, what strict JSON cannot write, and what is not strict JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import orjson

_BLANKS = re.compile(r"[ \t\n\r]*")


def number(value: Any) -> float | None:
    """The finite number in a number or a text; None if there is none. A boolean is none."""
    if value is None or value is True or value is False:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def writable(count: float) -> float | str:
    """A number, as text where JSON cannot be written of it: whole and beyond 64 bits, or not finite. A stage refuses that by name."""
    if isinstance(count, int):
        return count if -1 << 63 <= count < 1 << 64 else str(count)
    return count if math.isfinite(count) else str(count)


def copy(value: Any) -> Any:
    """A copy that shares nothing that can change."""
    if isinstance(value, dict):
        return {name: copy(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [copy(inner) for inner in value]
    return value


def leniently(body: bytes) -> Any:
    """Decodes JSON that need not be strict: NaN, lone surrogates, numbers of any size. ValueError or RecursionError if it is none.

    An integer of a hundred digits or more is given as one beyond 64 bits, because Python makes none of more than 4,300.
    """
    return _LENIENT.decode(_text(body))


def apart(body: bytes) -> Any:
    """As `leniently`, but what strict JSON does not know is given as its bytes, as it came: of an array each such element on its own."""
    text = _text(body)
    value = _LENIENT.decode(text)
    return [_strictly(each) for each in _elements(text)] if value and isinstance(value, list) else _strictly(text)


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < 100 else 1 << 64


_LENIENT = json.JSONDecoder(parse_int=_integer)


def _text(body: bytes) -> str:
    return body.decode(json.detect_encoding(body), "surrogatepass")


def _elements(text: str) -> Iterator[str]:
    """The texts of the elements of an array that has some."""
    at = text.index("[")
    while text[at] != "]":
        begin = _blank(text, at + 1)
        _, end = _LENIENT.raw_decode(text, begin)
        yield text[begin:end]
        at = _blank(text, end)


def _blank(text: str, at: int) -> int:
    """Where the blanks from here on end."""
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _strictly(text: str) -> Any:
    """The value, or the bytes where it is not strict JSON."""
    body = text.encode("utf-8", "surrogatepass")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body


def fault(value: Any) -> str:
    """Why a value cannot be written as strict JSON, in words; "" if it can."""
    try:
        orjson.dumps(value)  # First: it gives up on what holds itself.
    except TypeError as error:
        said = str(error).lower()
        if "surrogate" in said or "utf-8" in said:
            return "lone surrogate in a text"
        if "64-bit" in said:
            return "integer beyond 64 bits"
        return "nested too deeply" if "recursion" in said else "not JSON"
    return "NaN or infinity" if has_nan(value) else ""


def has_nan(value: Any) -> bool:
    """Whether a NaN or an infinity is anywhere in a value. Without recursion: flows may be nested as deeply as their sender likes."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
