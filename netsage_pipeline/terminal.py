"""How commands speak: lines to standard error, answers to standard output, wrong settings as a line each, and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from netsage_pipeline import config

NOTHING_READ = 1
WRONG_SETTINGS = 2
INTERRUPTED = 130


def tell(line: str) -> None:
    click.echo(line, err=True)


def say(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise  # click leaves quietly
    except OSError as error:
        tell(f"standard output: cannot be written: {error.strerror}: make room and run it again")
        leave_standard_output()
        sys.exit(NOTHING_READ)


@contextlib.contextmanager
def refusing_settings() -> Iterator[None]:
    """Wrong settings end the program with a line for each error."""
    try:
        yield
    except config.SettingsError as error:
        for line in error.errors:
            tell(line)
        sys.exit(WRONG_SETTINGS)


def leave_standard_output() -> None:
    """Python would try to write what is left in the buffer once more at exit, and print a traceback."""
    with contextlib.suppress(OSError, AttributeError):  # It may be closed, and then is None.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
