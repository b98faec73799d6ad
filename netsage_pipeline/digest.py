"""HMAC-SHA256 with a fixed key, the way ids of flows and documents are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


def keyed_digest(key: bytes) -> Callable[[str], str]:
    """A function text → HMAC-SHA256 under this key, as 64 hex digits.

    The padded keys are hashed once, here: copying the two states costs less than half of hmac.new, and every flow needs two digests.
    """
    padded = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner, outer = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded)), hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def digest(text: str) -> str:
        first, second = inner.copy(), outer.copy()
        first.update(text.encode())
        second.update(first.digest())
        return second.hexdigest()

    return digest
