"""SIGTERM and SIGINT: a process that goes on for ever is told to stop, a job that has an end is interrupted with a line."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from netsage_pipeline.terminal import INTERRUPTED, tell


@contextlib.contextmanager
def stopping(interrupted: int = INTERRUPTED) -> Iterator[Callable[[], bool]]:
    """Gives what says whether SIGTERM or SIGINT came. Who has not asked yet is interrupted, and who asked by the second one.

    interrupted   exit status then
    """
    told = False

    def tell_to_stop(number: int, frame: Any) -> None:
        nonlocal told
        if told or not asked:
            signal.default_int_handler(number, frame)
        told = True

    asked = False

    def stop() -> bool:
        nonlocal asked
        asked = True
        return told

    before = {number: signal.signal(number, tell_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except KeyboardInterrupt:  # The ledger is whole at any time.
        sys.exit(interrupted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible(line: str) -> Iterator[None]:
    """SIGINT and SIGTERM end the program at once, with a line, whatever it is at."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        tell(f"interrupted: {line}")
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
