"""lookups: tables converted, and what they say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from netsage_pipeline import folders
from netsage_pipeline.addresses import parse
from netsage_pipeline.members import convert
from netsage_pipeline.show import said
from netsage_pipeline.terminal import NOTHING_READ, WRONG_SETTINGS, say, tell


@click.group()
def lookups() -> None:
    """Lookup tables."""


@lookups.command("convert")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def convert_lists(files: tuple[Path, ...]) -> None:
    """Convert the reference's *-members-list.rb files to NETSAGE_LOOKUPS/members/. They are read as text, never executed."""
    directory = folders.tables() / "members"
    written = 0
    for file in files:
        try:
            converted = convert(file)
            directory.mkdir(parents=True, exist_ok=True)
            for number, each in enumerate(converted, 1):
                for line in each.errors:
                    tell(line)
                if each.name:
                    target = directory / f"{_file_name(file, each.name, number if len(converted) > 1 else 0)}.toml"
                    target.write_text(each.text, "utf-8")
                    say(f"{target}: {each.members} members of {each.name}")
                    written += 1
        except OSError as error:
            tell(f"{error.filename or file}: cannot be read or written: {error.strerror}")
        except UnicodeDecodeError as error:
            tell(f"{file}: is not UTF-8 (byte {error.start}): save it as UTF-8")
    if not written:
        sys.exit(NOTHING_READ)


def _file_name(file: Path, name: str, number: int) -> str:
    """Lists are asked in order of file name, so the reference's order of files, and of lists in a file, is kept."""
    stem = file.name.removesuffix(".rb").removesuffix("-members-list")
    return re.sub(r"[^\w.-]", "_", f"{stem}-{number:02}-{name}") if number else stem


@lookups.command("show")
@click.argument("ip")
def show_address(ip: str) -> None:
    """Show what each lookup table says of an address."""
    if parse(ip) is None:
        tell(f"'{ip}' is not an IP address")
        sys.exit(WRONG_SETTINGS)
    for name, answer in said(ip, folders.tables()):
        say(f"{name:<22} {answer}")
