"""What a file of nfcapd holds, by its blocks: header and appendix change when nfcapd goes on with a file, its blocks stay.

An nfcapd that is started again within the interval of a file appends its blocks to those of the file. So a file is known by a digest
of its blocks, what it grew from by the digest of the blocks up to there, and nfdump can be given the new ones alone.

Layout 1 (nfdump 1.6): header and statistics, 276 bytes, with the number of blocks at 8; blocks to the end of the file.
Layout 2 (nfdump 1.7): header of 40 bytes, with the offset of the appendix at 24 and the number of blocks at 36; blocks; appendix.
A block begins with 12 bytes, the length of the rest of it at 4. Source: nfdump's nffile.h and nffileV2.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Iterable
from hashlib import blake2b
from typing import IO, BinaryIO, NamedTuple

#: Bytes that are read at once, between two moments at which something else may be done.
STEP = 4_000_000

#: Blocks of a file. nfcapd fills them with up to 2 MB, so more of them are none.
MOST_BLOCKS = 100_000

_HEADERS = {1: 276, 2: 40}
_BLOCK = 12


class DamagedFile(Exception):
    """A file is not as nfcapd leaves it; the text says what is wrong."""


class Blocks(NamedTuple):
    """Where the blocks of a file lie, bytes."""

    begin: int
    end: int
    first: int  #: the end of the first one; `begin` if there are none
    order: str  #: of bytes, as struct has it
    version: int  #: of the layout


def blocks_of(file: BinaryIO) -> Blocks:
    """The blocks of a file that nfcapd closed. DamagedFile."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    header = file.read(40)
    if len(header) < 40:
        raise DamagedFile("it is truncated")
    order = "<" if header.startswith(b"\x0c\xa5") else ">"
    (version,) = struct.unpack_from(f"{order}H", header, 2)
    begin = _HEADERS[version]
    (appendix,) = struct.unpack_from(f"{order}Q", header, 24)
    end = size if version == 1 else appendix or size
    if not begin <= end <= size:
        raise DamagedFile("it is truncated")
    first = begin if begin == end else _next(file, begin, order)
    if first > end:
        raise DamagedFile("its first block is truncated")
    return Blocks(begin, end, first, order, version)


def ends_of(file: BinaryIO, blocks: Blocks, begin: int, end: int) -> list[int]:
    """Where the blocks between `begin` and `end` end, the last one at `end`. DamagedFile if they do not fit."""
    ends: list[int] = []
    at = begin
    while at < end and len(ends) < MOST_BLOCKS:
        at = _next(file, at, blocks.order)
        ends.append(at)
    if at != end:
        raise DamagedFile("its blocks do not fit together")
    return ends


def digests(file: BinaryIO, begin: int, ends: Iterable[int]) -> Generator[None, None, dict[int, bytes]]:
    """The digests of the bytes from `begin` up to each end, 16 bytes; yields between two steps. DamagedFile if there are fewer bytes."""
    digest = blake2b(digest_size=16)
    found: dict[int, bytes] = {}
    at = begin
    file.seek(begin)
    for end in sorted(ends):
        while at < end:
            chunk = file.read(min(STEP, end - at))
            if not chunk:
                raise DamagedFile("it is truncated")
            digest.update(chunk)
            at += len(chunk)
            yield
        found[end] = digest.digest()
    return found


def copy_part(file: BinaryIO, blocks: Blocks, begin: int, end: int, to: IO[bytes]) -> Generator[None, None, bytes]:
    """Writes a file that holds the blocks from `begin` to `end` alone; yields between two steps, and gives the digest of all up to `end`.

    DamagedFile if no block ends there.
    """
    number = len(ends_of(file, blocks, begin, end))
    file.seek(0)
    header = bytearray(file.read(blocks.begin))
    if blocks.version == 1:
        struct.pack_into(f"{blocks.order}I", header, 8, number)
    else:
        struct.pack_into(f"{blocks.order}Q4xI", header, 24, blocks.begin + end - begin, number)
    to.write(header)
    digest = blake2b(digest_size=16)
    at = blocks.begin
    while at < end:
        stop = begin if at < begin else end
        chunk = file.read(min(STEP, stop - at))
        if not chunk:
            raise DamagedFile("it is truncated")
        digest.update(chunk)
        if at >= begin:
            to.write(chunk)
        at += len(chunk)
        yield
    file.seek(blocks.end)
    while chunk := file.read(STEP):
        to.write(chunk)
    to.flush()
    return digest.digest()


def _next(file: BinaryIO, at: int, order: str) -> int:
    """Where the block ends that begins there."""
    file.seek(at)
    header = file.read(_BLOCK)
    if len(header) < _BLOCK:
        raise DamagedFile("it is truncated")
    return int(at + _BLOCK + struct.unpack_from(f"{order}I", header, 4)[0])
