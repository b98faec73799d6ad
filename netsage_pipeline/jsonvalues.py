"""JSON values: numbers in them, copies, and what strict JSON cannot write."""

from __future__ import annotations

import math
from typing import Any

import orjson


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
