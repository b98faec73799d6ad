"""Batches of flows on their way to an output, of which every flow is written on its own or with some others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from netsage_pipeline.flow import Flow, Refusal, Stored
from netsage_pipeline.jsonvalues import fault

T = TypeVar("T")


def encoded(flows: list[Flow], encode: Callable[[Flow], T]) -> tuple[list[T], list[Flow], list[Refusal]]:
    """What is made of the flows that can be written, those flows, and the others.

    encode   raises TypeError for what JSON cannot write, ValueError with the reason for what else cannot be written
    """
    made: list[T] = []
    able: list[Flow] = []
    refused: list[Refusal] = []
    for flow in flows:
        try:
            made.append(encode(flow))
        except TypeError:
            refused.append((flow, fault(flow)))
        except ValueError as error:
            refused.append((flow, str(error)))
        else:
            able.append(flow)
    return made, able, refused


class Batches:
    """What became of the flows of each batch. A batch is stored when each flow in it is stored or refused."""

    def __init__(self) -> None:
        self._owed: dict[int, int] = {}  # batch → flows of it that are not settled
        self._written: Counter[int] = Counter()
        self._refusals: dict[int, list[Refusal]] = {}
        self._stored: list[Stored] = []

    def open(self, batch: int, flows: int, refusals: list[Refusal]) -> None:
        """So many flows of a batch are to be settled; the refusals are those that were found before."""
        if flows:
            self._owed[batch], self._refusals[batch] = flows, refusals
        else:
            self._stored.append(Stored(batch, 0, refusals))

    def write_down(self, batch: int, flows: int) -> None:
        """So many of a batch are stored."""
        self._written[batch] += flows
        self._settle(batch, flows)

    def refuse(self, batch: int, refusal: Refusal) -> None:
        """One can never be written."""
        self._refusals[batch].append(refusal)
        self._settle(batch, 1)

    def _settle(self, batch: int, flows: int) -> None:
        self._owed[batch] -= flows
        if not self._owed[batch]:
            del self._owed[batch]
            self._stored.append(Stored(batch, self._written.pop(batch, 0), self._refusals.pop(batch)))

    @property
    def any_stored(self) -> bool:
        """Whether `stored` has something to give."""
        return bool(self._stored)

    def stored(self) -> list[Stored]:
        """The batches that are stored by now, each once."""
        stored, self._stored = self._stored, []
        return stored
