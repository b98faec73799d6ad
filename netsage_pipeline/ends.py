"""Runs of end stages: what they make of one end of a flow is remembered and merged into the flow.

An end begins with side, ip and asn, so that is the key of what is remembered. A popular address then costs one dictionary hit instead of
a lookup in every table. Behind an operator's flow stage that stands between end stages, ends begin with the flow as it is and are not
remembered.
"""

from __future__ import annotations

import marshal
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from netsage_pipeline.flow import SIDES, End, EndProcess, Flow
from netsage_pipeline.jsonvalues import copy

#: What an end holds when a run begins.
GIVEN = ("side", "ip", "asn")

#: Bytes in memory of what is kept for each end besides the text of its ip, and of a result besides its values; measured by
#: benchmarks/memory.py.
END_BYTES = 280
RESULT_BYTES = 900

#: Fields of an end that are not merged to meta.<side>_<field>.
_ELSEWHERE = frozenset(("scireg", "community", "private"))

Key = tuple[str, str, int | None]


class EndStage(NamedTuple):
    """An end stage, ready to run."""

    name: str
    process: EndProcess
    writes: frozenset[str]


class EndRefused(Exception):
    """An end stage raised; the flow holds what the stages before it gave both its ends."""

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(stage)
        self.stage = stage
        self.cause = cause


class Result(NamedTuple):
    """What a run made of an end, but for its ip, ready to be merged into any flow that has this end."""

    plain: dict[str, Any]  #: meta key → text, number or null
    flat: tuple[tuple[str, dict[str, Any]], ...]  #: meta key → object with nothing nested in it
    tags: list[str]
    notes: list[str]
    rest: End | None  #: field → what is nested more deeply, or does not lie at meta.<side>_<field>
    content: bytes  #: of the end it was made of; the same for equal ends


#: The ip that a run gave an end, and all the rest.
Remembered = tuple[Any, Result]


class Memory:
    """Results by key, bounded in bytes. Thrown out by generations: an end not met during a whole generation goes.

    Addresses of one network differ in their ip alone, so the rest of a result is kept once for all of them.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._generation_bytes = limit_bytes // 2
        self.young: dict[Key, Remembered] = {}
        self._old: dict[Key, Remembered] = {}
        self._shared: dict[bytes, Result] = {}
        self.bytes = 0

    def old(self, key: Key) -> Remembered | None:
        """What an older generation remembers of an end; the young one takes it over."""
        found = self._old.get(key)
        return None if found is None else self._put(key, *found)

    def remember(self, key: Key, end: End) -> Remembered:
        """Remembers what a run made of an end."""
        ip = end.pop("ip")
        try:
            content = marshal.dumps(end, 2)
        except ValueError:
            content = b""  # A stage wrote what is no JSON value: it is shared with no other end.
        return self._put(key, ip, self._shared.get(content) or _result(end, content))

    def _put(self, key: Key, ip: Any, result: Result) -> Remembered:
        if self.bytes > self._generation_bytes:
            self._old, self.young, self._shared, self.bytes = self.young, {}, {}, 0
        if result.content not in self._shared:
            self.bytes += RESULT_BYTES + 2 * len(result.content)
            if result.content:
                self._shared[result.content] = result
        remembered = self.young[key] = ip, result
        self.bytes += END_BYTES + sys.getsizeof(key[1])
        return remembered


class EndRun:
    """Consecutive end stages as one step of a chain.

    stages       in order
    written      fields that end stages in front of this run have written: they are taken from the flow, and what the stages of
                 this run remove of them is gone from it
    memory       None: nothing is remembered
    notes        counts what the stages note
    """

    def __init__(self, stages: list[EndStage], written: Iterable[str], memory: Memory | None, notes: Counter[str]) -> None:
        self.stages = stages
        self.memory = memory
        self.misses = 0
        self._notes = notes
        writes = frozenset().union(*(stage.writes for stage in stages))
        self._taken = sorted(set(written) - {*GIVEN, "tags", "notes", "private"})
        self._removable = [name for name in self._taken if name in writes]
        self._remembered = memory.young if memory else {}
        discarded = writes.difference(self._taken)
        self._discard = frozenset(key for side in SIDES for name in discarded for key in _meta_keys(side, name))
        self._discard_private = "private" in discarded and "private" not in written

    def __call__(self, flow: Flow) -> Flow:
        meta = flow["meta"]
        if not self._discard.isdisjoint(meta):
            for name in self._discard.intersection(meta):
                del meta[name]
        if self._discard_private and "PRIVATE" in flow:
            del flow["PRIVATE"]
        source = ("src", meta["src_ip"], meta.get("src_asn"))
        first = self._remembered.get(source) or self._recall(source, flow)
        destination = ("dst", meta["dst_ip"], meta.get("dst_asn"))
        second = self._remembered.get(destination) or self._recall(destination, flow)
        self._merge(flow, "src", "src_ip", first)
        self._merge(flow, "dst", "dst_ip", second)
        return flow

    def _merge(self, flow: Flow, side: str, name: str, remembered: Remembered) -> None:
        meta = flow["meta"]
        if self._removable:
            self._remove(meta, side, remembered[1])
        meta[name], (plain, flat, tags, notes, rest, _) = remembered
        meta.update(plain)
        for key, value in flat:
            meta[key] = value.copy()
        if tags:
            before = flow.get("tags") or []
            flow["tags"] = (before if isinstance(before, list) else [before]) + tags
        for note in notes:
            self._notes[note] += 1
        if rest is not None:
            _merge_rest(flow, side, rest)

    def _recall(self, key: Key, flow: Flow) -> Remembered:
        memory = self.memory
        found = memory.old(key) if memory else None
        if found is None:
            self.misses += 1
            end = self._begin(key[0], flow)
            try:
                for stage in self.stages:
                    stage.process(end)
            except Exception as error:
                self._refuse(flow)
                raise EndRefused(self.stages[0].name, error) from error
            found = memory.remember(key, end) if memory else (end.pop("ip"), _result(end, b""))
        if memory:
            self._remembered = memory.young
        return found

    def _begin(self, side: str, flow: Flow) -> End:
        meta = flow["meta"]
        end: End = {"side": side, "ip": meta[f"{side}_ip"], "asn": meta.get(f"{side}_asn")}
        for name in self._taken:
            holder, key = _place(meta, side, name)
            value = holder.get(key)
            if value is not None:
                end[name] = copy(value)
        return end

    def _remove(self, meta: dict[str, Any], side: str, result: Result) -> None:
        """Removes what the end took from the flow and a stage removed from the end. All else keeps its place, and a dead letter its id."""
        held = {*result.plain, *dict(result.flat), *(f"{side}_{name}" for name in result.rest or ())}
        for name in self._removable:
            holder, key = _place(meta, side, name)
            if f"{side}_{name}" not in held and holder.get(key) is not None:
                del holder[key]
                if not holder:
                    del meta["scireg" if name == "scireg" else side]

    def _refuse(self, flow: Flow) -> None:
        """Finds the first stage that raises for either end, merges what the stages before it gave, and raises EndRefused."""
        ends = [self._begin(side, flow) for side in SIDES]
        for stage in self.stages:
            before = [copy(end) for end in ends]
            try:
                for end in ends:
                    stage.process(end)
            except Exception as error:
                for side, end in zip(SIDES, before, strict=True):
                    self._merge(flow, side, f"{side}_ip", (end.pop("ip"), _result(end, b"")))
                raise EndRefused(stage.name, error) from error


def meta_name(name: str) -> str | None:
    """Where a field of an end lies in a flow, with {side} for src and dst; None for notes, which are counted, not written."""
    elsewhere = {"scireg": "meta.scireg.{side}", "community": "meta.{side}.community", "private": "PRIVATE", "tags": "tags", "notes": None}
    return elsewhere.get(name, f"meta.{{side}}_{name}")


def _meta_keys(side: str, name: str) -> list[str]:
    """The keys of meta below which a field of an end is written, which the input may not say."""
    where = meta_name(name) or ""
    return [where.format(side=side).split(".")[1]] if where.startswith("meta.") and name not in GIVEN else []


def _place(meta: dict[str, Any], side: str, name: str) -> tuple[dict[str, Any], str]:
    """Where a field of an end lies in meta: what holds it, and its key there."""
    if name == "scireg":
        return meta.get("scireg") or {}, side
    if name == "community":
        return meta.get(side) or {}, "community"
    return meta, f"{side}_{name}"


def _merge_rest(flow: Flow, side: str, rest: End) -> None:
    meta = flow["meta"]
    for name, value in rest.items():
        if name == "scireg":
            meta.setdefault("scireg", {})[side] = copy(value)
        elif name == "community":
            meta.setdefault(side, {})["community"] = copy(value)
        elif name == "private":
            flow.setdefault("PRIVATE", {}).update(copy(value))
        else:
            meta[f"{side}_{name}"] = copy(value)


def _result(end: End, content: bytes) -> Result:
    side = end["side"]
    plain: dict[str, Any] = {}
    flat = []
    rest: End = {}
    for name, value in end.items():
        if name in ("side", "tags", "notes") or (name == "asn" and value is None):
            continue
        if name in _ELSEWHERE or value.__class__ is list:
            rest[name] = value
        elif value.__class__ is not dict:
            plain[f"{side}_{name}"] = value
        elif {dict, list}.isdisjoint(map(type, value.values())):
            flat.append((f"{side}_{name}", value))
        else:
            rest[name] = value
    return Result(plain, tuple(flat), list(end.get("tags", ())), list(end.get("notes", ())), rest or None, content)
