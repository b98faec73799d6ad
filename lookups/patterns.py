"""Ordered tables of regular expressions: a JSON object of pattern → value, the first pattern found in a text counts."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path


class Patterns:
    """`get(text)` gives the value of the first pattern found anywhere in the text, or None."""

    def __init__(self, patterns: dict[str, str]) -> None:
        compiled = []
        errors = []
        for pattern, value in patterns.items():
            try:
                compiled.append((re.compile(pattern), value))
            except re.error as error:
                errors.append(f"pattern '{pattern}' is no regular expression: {error}")
            if not isinstance(value, str):
                errors.append(f"pattern '{pattern}': its value is not a text")
        if errors:
            raise ValueError("\n".join(errors))

        @lru_cache(maxsize=10_000)
        def get(text: str) -> str | None:
            return next((value for pattern, value in compiled if pattern.search(text)), None)

        self.get = get
        self._patterns = patterns

    def __len__(self) -> int:
        return len(self._patterns)


def open_table(path: Path) -> Patterns:
    """ValueError names each thing that is wrong."""
    try:
        patterns = json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(patterns, dict):
        raise ValueError('is not a JSON object of "pattern": "name"')
    return Patterns(patterns)
