"""Runs of end stages: what they make of one end of a flow is remembered and merged into the flow.

An end begins with side, ip and asn, so that is the key of what is remembered. A popular address then costs one dictionary hit instead of
a lookup in every table. Behind an operator's flow stage that stands between end stages, ends begin with the flow as it is and are not
remembered.
"""

from __future__ import annotations

import marshal
from collections import Counter
from collections.abc import Callable, Iterable
from sys import intern
from typing import Any, NamedTuple

from netsage_pipeline.flow import SIDES, End, EndProcess, Flow
from netsage_pipeline.jsonvalues import copy, size

#: What an end holds when a run begins.
GIVEN = ("side", "ip", "asn")

#: Bytes in memory of what is kept for each end, of a result, and of each nested value in it; measured by benchmarks/memory.py.
END_BYTES = 400
RESULT_BYTES = 1_200
NESTED_BYTES = 250

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
    nested: tuple[tuple[str, Callable[[Any], Any], Any], ...]  #: meta key, how to copy the value, the value
    tags: list[str]
    notes: list[str]
    rest: End | None  #: scireg, community and private, which do not lie at meta.<side>_<name>
    size: int  #: bytes, about


#: The ip that a run gave an end, and all the rest.
Remembered = tuple[Any, Result]


class Memory:
    """Results by key, bounded in bytes. Thrown out by generations: an end not met during a whole generation goes.

    Addresses of one network differ in their ip alone, so the rest of a result is kept once for all of them.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._generation_bytes = limit_bytes // 2
        self.clear()

    def clear(self) -> None:
        self.young: dict[Key, Remembered] = {}
        self._old: dict[Key, Remembered] = {}
        self._shared: dict[bytes, Result] = {}
        self.bytes = 0

    def old(self, key: Key) -> Remembered | None:
        found = self._old.get(key)
        if found is not None:
            self.put(key, found)
        return found

    def put(self, key: Key, remembered: Remembered) -> None:
        if self.bytes > self._generation_bytes:
            self._old, self.young, self._shared, self.bytes = self.young, {}, {}, 0
        self.young[key] = remembered
        self.bytes += END_BYTES

    def share(self, end: End) -> Result:
        """The result for an end without its ip; the one that is there already, if it is the same."""
        try:
            content = marshal.dumps(end, 2)
        except ValueError:
            return _result(end)
        result = self._shared.get(content)
        if result is None:
            result = self._shared[content] = _result(end)
            self.bytes += result.size
        return result


class EndRun:
    """Consecutive end stages as one step of a chain.

    stages       in order
    written      fields that end stages in front of this run have written: they are taken from the flow
    memory       None: nothing is remembered
    notes        counts what the stages note
    """

    def __init__(self, stages: list[EndStage], written: Iterable[str], memory: Memory | None, notes: Counter[str]) -> None:
        self.stages = stages
        self.memory = memory
        self.misses = 0
        self._notes = notes
        self._taken = frozenset(written) - {*GIVEN, "tags", "notes", "private"}
        self._remembered = memory.young if memory else {}
        discarded = frozenset().union(*(stage.writes for stage in stages)) - self._taken
        self._discard = frozenset(key for side in SIDES for name in discarded for key in _meta_keys(side, name))
        self._discard_private = "private" in discarded

    def __call__(self, flow: Flow) -> Flow:
        meta = flow["meta"]
        if not self._discard.isdisjoint(meta):
            for name in self._discard.intersection(meta):
                del meta[name]
        if self._discard_private and "PRIVATE" in flow:
            del flow["PRIVATE"]
        young = self._remembered
        source = ("src", meta["src_ip"], meta.get("src_asn"))
        first = young.get(source) or self._recall(source, flow)
        destination = ("dst", meta["dst_ip"], meta.get("dst_asn"))
        second = self._remembered.get(destination) or self._recall(destination, flow)
        self._merge(flow, (("src", "src_ip", first), ("dst", "dst_ip", second)))
        return flow

    def _merge(self, flow: Flow, ends: Iterable[tuple[str, str, Remembered]]) -> None:
        meta = flow["meta"]
        for side, name, (ip, (plain, nested, tags, notes, rest, _)) in ends:
            meta[name] = ip
            meta.update(plain)
            for key, copied, value in nested:
                meta[key] = copied(value)
            if tags:
                _add_tags(flow, tags)
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
            ip = end.pop("ip")
            found = (ip, memory.share(end) if memory else _result(end))
            if memory:
                memory.put(key, found)
        if memory:
            self._remembered = memory.young
        return found

    def forget(self) -> None:
        """Forgets all results; called when a lookup table has changed."""
        if self.memory:
            self.memory.clear()
            self._remembered = self.memory.young

    def _begin(self, side: str, flow: Flow) -> End:
        meta = flow["meta"]
        end: End = {"side": side, "ip": meta[f"{side}_ip"], "asn": meta.get(f"{side}_asn")}
        for name in self._taken:
            if name == "scireg":
                value = (meta.get("scireg") or {}).get(side)
            elif name == "community":
                value = (meta.get(side) or {}).get("community")
            else:
                value = meta.get(f"{side}_{name}")
            if value is not None:
                end[name] = copy(value)
        return end

    def _refuse(self, flow: Flow) -> None:
        """Finds the first stage that raises for either end, merges what the stages before it gave, and raises EndRefused."""
        ends = [self._begin(side, flow) for side in SIDES]
        for stage in self.stages:
            before = [copy(end) for end in ends]
            try:
                for end in ends:
                    stage.process(end)
            except Exception as error:
                self._merge(flow, [(end["side"], f"{end['side']}_ip", (end.pop("ip"), _result(end))) for end in before])
                raise EndRefused(stage.name, error) from error


def _meta_keys(side: str, name: str) -> list[str]:
    """The keys of meta below which a field of an end is written."""
    if name in ("ip", "asn", "tags", "notes", "private"):
        return []
    return [{"scireg": "scireg", "community": side}.get(name, f"{side}_{name}")]


def _add_tags(flow: Flow, added: list[str]) -> None:
    tags = flow.get("tags")
    if tags is None:
        flow["tags"] = added.copy()
    else:
        flow["tags"] = (tags if isinstance(tags, list) else [tags]) + added


def _merge_rest(flow: Flow, side: str, rest: End) -> None:
    meta = flow["meta"]
    if "scireg" in rest:
        meta.setdefault("scireg", {})[side] = copy(rest["scireg"])
    if "community" in rest:
        meta.setdefault(side, {})["community"] = copy(rest["community"])
    if "private" in rest:
        flow.setdefault("PRIVATE", {}).update(copy(rest["private"]))


def _result(end: End) -> Result:
    # Names of countries and organizations are in many results: intern keeps one copy of each.
    plain: dict[str, Any] = {}
    nested: list[tuple[str, Callable[[Any], Any], Any]] = []
    rest: End = {}
    side = end["side"]
    for name, value in end.items():
        if name in ("side", "tags", "notes"):
            continue
        if name in ("scireg", "community", "private"):
            rest[name] = value
        elif value.__class__ is str:
            plain[f"{side}_{name}"] = intern(value)
        elif value.__class__ is dict:
            flat = {dict, list}.isdisjoint(map(type, value.values()))
            nested.append((f"{side}_{name}", dict.copy if flat else copy, value))
        elif value.__class__ is list:
            nested.append((f"{side}_{name}", copy, value))
        elif value is not None or name != "asn":
            plain[f"{side}_{name}"] = value
    tags = list(end.get("tags", ()))
    notes = list(end.get("notes", ()))
    in_memory = RESULT_BYTES + NESTED_BYTES * len(nested) + (size(rest) if rest else 0)
    return Result(plain, tuple(nested), tags, notes, rest or None, in_memory)
