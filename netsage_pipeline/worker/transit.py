"""In the place of the ledger, for a chain that holds no flows: what is on its way through it, in memory.

A message is acknowledged when all that came of it is stored. Whatever is killed, it comes again and becomes the same documents under the
same ids. No keys of messages are kept: what is put on the queue once more is written once more, over what may have been deleted since.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from netsage_pipeline.config import SettingsError
from netsage_pipeline.statedir import locked
from netsage_pipeline.worker.ledger import Commit, State, segments


class Transit:
    """What a worker owes, as Ledger has it. StateError if the directory is in use, SettingsError if it is the ledger of another chain."""

    durable = False
    checkpointing = False
    keys_full = 0.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = locked(directory)
        if segments(directory):
            os.close(self._lock)
            raise SettingsError(
                [
                    f"{directory}: is the ledger of a chain that holds flows, but no stage of this chain does: enable 40_aggregation, "
                    "or give it a directory of its own (state)"
                ]
            )
        self.state = State()
        self.state.ledger = uuid.uuid4().hex
        self._kept: list[tuple[set[int], list[int]]] = []  # dead letters, and rows that are owed until those are stored

    def letter_id(self, _number: int, letter: bytes) -> str:
        """The message id of a dead letter: that in its envelope, because it may be refused again after a crash."""
        return letter[7:39].decode("ascii")

    def encode(self, commit: Commit) -> bytes:
        self.state.totals.update(commit.counts)
        self._commit = commit
        return b""

    def write(self, _encoded: bytes) -> None:
        commit, state = self._commit, self.state
        state.apply_own({"rows": commit.rows, "letters": commit.letters, "arrival": commit.arrival, "worked": commit.worked})
        kept: list[int] = []
        if commit.letters:  # They are only in memory: until they are stored, what they came of must not be acknowledged.
            kept = [number for number in commit.done if not isinstance(state.outbox.get(number), bytes)]
            self._kept.append((set(range(state.next - len(commit.letters), state.next)), kept))
        state.apply_own({"done": [*self._released(commit.done), *set(commit.done).difference(kept)]})

    def _released(self, done: list[int]) -> list[int]:
        """The rows whose last dead letter is among these."""
        for letters, _ in self._kept:
            letters.difference_update(done)
        released = [number for letters, rows in self._kept if not letters for number in rows]
        self._kept = [each for each in self._kept if each[0]]
        return released

    def close(self) -> None:
        os.close(self._lock)
