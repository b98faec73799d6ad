"""The directory of a process's state, which belongs to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path


class StateError(Exception):
    """The state cannot be used; one line: where, what, what to do."""


class NoRoom(Exception):
    """There is no room for what is to be written; the state is as before, and it can be tried again."""


def locked(directory: Path) -> int:
    """The lock of such a directory, which is made if there is none."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StateError(f"{directory}: cannot be used for its state: {error.strerror}: name another directory (state)") from None
    for _ in range(10):  # `holder` may have it for a moment.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(0.05)
    else:
        pid = os.pread(lock, 20, 0).decode().strip() or "unknown"
        os.close(lock)
        raise StateError(
            f"{directory}: is in use by process {pid}: it belongs to one process; give another one a directory of its own (state)"
        )
    with contextlib.suppress(OSError):  # No room: `holder` does without.
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def holder(directory: Path) -> str:
    """The process that has a directory in use; "" if none has."""
    try:
        lock = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(lock, 20, 0).decode().strip() or "unknown"
    finally:
        os.close(lock)
    return ""
