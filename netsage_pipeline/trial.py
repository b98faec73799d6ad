"""One flow through a chain, and what each of its stages made of it.

What a stage changed is the difference between what comes out of the chain that ends with that stage and of the one that ends before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured
from netsage_pipeline.deadletters import envelope
from netsage_pipeline.flow import Flow, Lookups, Now


class Tried(NamedTuple):
    """What one stage made of a flow. Fields are dotted (meta.src_ip); a list is one value."""

    stage: str
    added: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]  #: field → before, after
    removed: dict[str, Any]
    noted: list[str]
    dropped: str  #: the reason, "" if it was not
    refused: str
    flow: Flow | None  #: as it left the stage; None if it did not


def tried(stages: list[Configured], flow: Flow, entry: str, lookups: Lookups, now: Now) -> Iterator[Tried]:
    """What the stages that are switched on make of a flow, one after the other, until one drops or refuses it. SettingsError.

    entry   the stage that it enters at, as a dead letter of that stage does; "" for the first one
    """
    running = [stage for stage in stages if stage.config.enabled and not stage.file.is_io]
    body = envelope(entry, "", "", "", flow) if entry else orjson.dumps(flow)
    before, noted = flow, Counter[str]()
    for number, stage in enumerate(running, 1):
        if stage.name < entry:
            continue
        chain = Chain(running[:number], lookups, now)
        through = chain.enrich(chain.let_in(body, "", "") + chain.drain())
        after = through[0] if through else None
        old, new = _flat(before), _flat(before if after is None else after)
        yield Tried(
            stage.name,
            added={name: value for name, value in new.items() if name not in old},
            changed={name: (old[name], value) for name, value in new.items() if name in old and not _equal(old[name], value)},
            removed={name: value for name, value in old.items() if name not in new},
            noted=sorted((chain.notes - noted).elements()),
            dropped=_reason(chain.dropped),
            refused=_reason(chain.refused),
            flow=after,
        )
        if after is None:
            return
        before, noted = after, chain.notes


def _reason(counter: Counter[tuple[str, str]]) -> str:
    return next((reason for _, reason in counter), "")


def _flat(flow: Flow) -> dict[str, Any]:
    """Dotted name → value. Without recursion: flows may be nested as deeply as their sender likes."""
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", flow)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{path}.{name}" if path else str(name), inner) for name, inner in reversed(value.items())]
        elif path:
            flat[path] = value
    return flat


def _equal(old: Any, new: Any) -> bool:
    """1 and 1.0 are not: one of them is no integer any more."""
    return type(old) is type(new) and old == new
