"""Converting the reference's member lists, Ruby files with two hashes, read as text and never executed.

@asn_list['networkA'] = [1234, 217]
@members['networkA'] = {
    "111.22.33.0/24" => "Member A",
}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from netsage_pipeline.addresses import Prefixes

_TEXT = r"""(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)')"""
_ASNS = re.compile(rf"@asn_list\s*\[\s*{_TEXT}\s*\]\s*=\s*\[([^\]]*)\]")
_MEMBERS = re.compile(rf"@members\s*\[\s*{_TEXT}\s*\]\s*=\s*\{{")
_PAIR = re.compile(rf"{_TEXT}\s*=>\s*{_TEXT}")
_COMMENT = re.compile(rf"({_TEXT})|#[^\n]*")
_ESCAPE = re.compile(r"\\(.)")


class Converted(NamedTuple):
    """A member list in our form, and what of the file was left out, a line each."""

    name: str
    text: str
    members: int
    errors: list[str]


def convert(path: Path) -> list[Converted]:
    """The lists in a file of the reference. Malformed prefixes are reported with their line, the rest is kept. May raise OSError."""
    text = _without_comments(path.read_text("utf-8"))
    asns = {match[1] or match[2]: match for match in _ASNS.finditer(text)}
    found = []
    for head in _MEMBERS.finditer(text):
        name = head[1] or head[2]
        end = _end_of_hash(text, head.end())
        errors: list[str] = []
        members: dict[str, str] = {}
        errors += _no_pairs(path, text, head.end(), end)
        for pair in _PAIR.finditer(text, head.end(), end):
            prefix, organization = _text(pair[1], pair[2]), _text(pair[3], pair[4])
            line = text.count("\n", 0, pair.start()) + 1
            try:
                Prefixes().add(prefix)
            except ValueError:
                errors.append(f"{path}:{line}: '{prefix}' is not a prefix such as 192.0.2.0/24: left out")
                continue
            if prefix in members:
                errors.append(f"{path}:{line}: '{prefix}' stands there twice: the first counts, as in the reference")
                continue
            members[prefix] = organization
        numbers = _numbers(path, text, name, asns.get(name), errors)
        found.append(Converted(name, _toml(path, numbers, members), len(members), errors))
    if not found:
        found.append(Converted("", "", 0, [f"{path}: holds no member list: none of its lines begins with @members['name'] = {{"]))
    return found


def list_name(file: str) -> str:
    """What the list in a file of this name is called."""
    return file.removesuffix(".toml").removesuffix(".rb").removesuffix("-members-list")


def _without_comments(text: str) -> str:
    return _COMMENT.sub(lambda match: match[1] or "", text)


def _end_of_hash(text: str, start: int) -> int:
    """Where the hash that begins there is closed; a brace within a text does not count."""
    for match in re.compile(rf"{_TEXT}|\}}").finditer(text, start):
        if match[0] == "}":
            return match.start()
    return len(text)


def _no_pairs(path: Path, text: str, start: int, end: int) -> Iterator[str]:
    """What stands between the pairs of a hash and is not understood, a line each."""
    ends = [(pair.start(), pair.end()) for pair in _PAIR.finditer(text, start, end)]
    for begin, stop in zip([start, *(after for _, after in ends)], [*(before for before, _ in ends), end], strict=True):
        for match in re.compile(r"[^\s,][^\n]*").finditer(text, begin, stop):
            line = text.count("\n", 0, match.start()) + 1
            yield f'{path}:{line}: \'{match[0].strip()}\' is not "prefix" => "organization": left out'


def _text(double: str | None, single: str | None) -> str:
    return _ESCAPE.sub(r"\1", double if double is not None else single or "")


def _numbers(path: Path, text: str, name: str, match: re.Match[str] | None, errors: list[str]) -> list[int]:
    numbers: list[int] = []
    errors_before = len(errors)
    if match is None:
        errors.append(f"{path}: no @asn_list['{name}'] = [...]: the list applies to every ASN")
        return numbers
    for part in match[3].split(","):
        number = part.strip().strip("\"'").removeprefix("AS")
        if number.isdigit():
            numbers.append(int(number))
        elif number:
            line = text.count("\n", 0, match.start()) + 1
            errors.append(f"{path}:{line}: '{number}' is not an autonomous system number: left out")
    if errors_before < len(errors) and not numbers:
        errors.append(f"{path}: no number is left in @asn_list['{name}']: the list applies to every ASN")
    return numbers


def _toml(path: Path, asns: list[int], members: dict[str, str]) -> str:
    # A JSON text is a TOML text, with DEL as the one exception.
    def quoted(text: str) -> str:
        return orjson.dumps(text).decode().replace("\x7f", "\\u007F")

    lines = [f"# Converted from {path.name}.", f"asns = {asns}", "", "[members]"]
    return "\n".join([*lines, *(f"{quoted(prefix)} = {quoted(name)}" for prefix, name in members.items())]) + "\n"
