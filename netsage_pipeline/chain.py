"""A chain at work: messages in, enriched flows out, and an account of every flow that is not among them.

A message goes through `take` (decoding, the stages up to stitching, which holds the flows), and what stitching finished goes through
`enrich` (the stages behind it). The worker commits between the two. A chain knows no file, queue or database.
"""

from __future__ import annotations

import marshal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from netsage_pipeline.compose import Configured, Step, compose
from netsage_pipeline.deadletters import DECODE, LETTER, body_of, envelope, is_envelope, lenient, looks_like_envelope
from netsage_pipeline.ends import EndRefused, EndRun
from netsage_pipeline.flow import Finished, Flow, Lookups, Now, Refused
from netsage_pipeline.jsonvalues import apart, fault, leniently

#: Tells where flow number n of a batch came from: source and position.
Origin = Callable[[int], tuple[str, str]]

#: One batch in so many is timed, stage by stage, and one tick. A prime, so that it falls on batches of every kind in whatever order.
SAMPLED = 101


class Chain:
    """The composed stages of a directory of settings.

    read, enriched     flows that came in, and that left stitching
    dropped, refused   counted by (stage, reason)
    notes              counted by what end stages noted
    dead               envelopes of dead letters that nobody has taken yet
    timed              stage, or first and last of a run of end stages → seconds that it took, and flows, in the batches that were timed
    """

    def __init__(self, stages: list[Configured], lookups: Lookups, now: Now, *, remember: bool = True) -> None:
        self.now = now
        self.read = self.enriched = 0
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[str] = Counter()
        self.dead: list[bytes] = []
        self.timed: dict[str, tuple[float, int]] = {}
        self._until_timed = SAMPLED
        self._ticks = 0
        self._settled: Counter[tuple[str, str, str]] = Counter()
        self._stages, self._remember = stages, remember
        self.steps = compose(stages, lookups, now, self.notes, remember=remember)
        self.stitching = self.steps.stitching

    def exchange(self, lookups: Lookups) -> None:
        """Makes all stages anew from other tables but for the one that holds flows; what is counted goes on. Between two batches only.

        SettingsError if a factory fails: the stages stay as they are.
        """
        kept = {} if self.stitching is None else {self.steps.held_by: self.stitching}
        steps = compose(self._stages, lookups, self.now, self.notes, remember=self._remember, kept=kept)
        for run, before in zip(steps.runs, self.steps.runs, strict=True):
            run.misses = before.misses
        self.steps = steps

    def let_in(self, body: bytes, source: str, position: str) -> list[Finished]:
        """Takes a message: flows, or a dead letter, whose flow enters at the stage that refused it."""
        if LETTER not in body:
            return self.take(body, source, position)
        letter = _value(body)
        if is_envelope(letter):
            return self.enter(letter)
        if looks_like_envelope(letter):
            self.refuse_message("not a dead letter", body, source, position)
            return []
        return self.take(body, source, position)

    def values_of(self, body: bytes) -> list[Any] | None:
        """The decoded flows of a message that is an array, those that are not strict JSON as their bytes; None if it is anything else."""
        values = _value(body)
        if values is body:
            try:
                values = apart(body)
            except (ValueError, RecursionError):
                return None
        return values if isinstance(values, list) else None

    def take_one(self, value: Any, source: str, position: str) -> list[Finished]:
        """Runs the stages up to stitching on one of `values_of` a message."""
        return self._take_value(self.steps.before, value, source, position)

    def take(self, body: bytes, source: str, position: str) -> list[Finished]:
        """Decodes a message and runs the stages up to stitching; gives the flows that its parts finished (by time: `tick`).

        What is no flow, and flows that a stage refuses, go to `dead`."""
        return self._take(self.steps.before, body, source, position)

    def _take(self, steps: list[Step], body: bytes, source: str, position: str) -> list[Finished]:
        try:
            decoded = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._take_partly(steps, body, source, position)
        if decoded.__class__ is not list:
            return self._hold(steps, [decoded], lambda: [orjson.loads(body)], lambda _: (source, position))
        return self._hold(steps, decoded, lambda: orjson.loads(body), lambda index: (source, f"{position}.{index}"))

    def _take_partly(self, steps: list[Step], body: bytes, source: str, position: str) -> list[Finished]:
        """A message that is not strict JSON: a NaN or a lone surrogate in one flow of an array must not cost its neighbours.

        The dead letter holds the bytes of that flow as they came."""
        try:
            values = apart(body)
        except (ValueError, RecursionError):
            self._refuse(DECODE, "not JSON", (source, position), body)
            return []
        finished: list[Finished] = []
        for index, value in enumerate(values if isinstance(values, list) else [values]):
            finished += self._take_value(steps, value, source, f"{position}.{index}" if isinstance(values, list) else position)
        return finished

    def _take_value(self, steps: list[Step], value: Any, source: str, position: str) -> list[Finished]:
        if not isinstance(value, bytes | list):
            return self._take(steps, lenient(value), source, position)
        self.read += 1
        reason = "not an object" if isinstance(value, list) else fault(leniently(value)) or "not JSON"
        self._refuse(DECODE, reason, (source, position), value)
        return []

    def _hold(self, steps: list[Step], flows: list[Any], again: Callable[[], list[Any]], origin: Origin) -> list[Finished]:
        """Runs the steps up to stitching and lets it hold the flows; gives those that it finished."""
        self.read += len(flows)
        timed = self._is_to_be_timed()
        flows, places = self._through(steps, flows, again, origin, timed=timed)
        hold = self.stitching or _not_held
        finished: list[Finished] = []
        began = time.perf_counter() if timed else 0.0
        for index, flow in enumerate(flows):
            try:
                done = hold(flow)
            except Exception as error:
                self._refuse(self.steps.held_by, reason_of(error), origin(places[index]), flow)
            else:
                if done is not None:
                    finished.append(done)
        if timed and self.steps.held_by:
            self.took(self.steps.held_by, time.perf_counter() - began, len(flows))
        return finished

    def _is_to_be_timed(self) -> bool:
        self._until_timed -= 1
        if self._until_timed:
            return False
        self._until_timed = SAMPLED
        return True

    def took(self, stage: str, seconds: float, flows: int) -> None:
        """Notes what so many flows of a batch that is timed took in a stage."""
        before, number = self.timed.get(stage, (0.0, 0))
        self.timed[stage] = before + seconds, number + flows

    def _timing(self, steps: list[Step], flows: int) -> Iterator[Step]:
        """The steps, timed from when one is taken until the next is asked for."""
        for name, process in steps:
            began = time.perf_counter()
            yield name, process
            whole = f"{name} to {process.stages[-1].name}" if isinstance(process, EndRun) and len(process.stages) > 1 else name
            self.took(whole, time.perf_counter() - began, flows)

    def enter(self, letter: dict[str, Any]) -> list[Finished]:
        """Takes a dead letter in: its flow enters at the stage that refused it."""
        stage, origin = letter["stage"], (str(letter["source"]), str(letter["position"]))
        body = body_of(letter["payload"])
        if stage == DECODE and not isinstance(letter["payload"], list):
            return self.let_in(body, *origin)  # A message that was blamed may itself be a dead letter.
        if stage == DECODE:  # An array within an array: no flow, and no message either.
            self.read += 1
            self._refuse(DECODE, "not an object", origin, letter["payload"])
            return []
        steps = self._from(stage)
        if steps is None:
            self.read += 1
            self._refuse(stage, "no such stage in this chain", origin, _value(body))
            return []
        if stage in self._names_before:
            return self._take(steps, body, *origin)
        self.read += 1
        value = _value(body)
        if not isinstance(value, dict):
            self._refuse(DECODE, "not JSON" if value is body else "not an object", origin, value)
            return []
        return [(body, 0, 0.0, 0.0, 0, 0, "", stage)]

    def _from(self, stage: str) -> list[Step] | None:
        """The steps from a stage on; none for an output. None if this chain has no such stage."""
        if not stage:
            return self.steps.behind
        return [] if stage.startswith("99_") else self.steps.entries.get(stage)

    @property
    def _names_before(self) -> set[str]:
        return {name for name, _ in self.steps.before} | {self.steps.held_by}

    def enrich(self, finished: list[Finished]) -> list[Flow]:
        """Runs the stages behind stitching. Flows that a stage refuses or drops are not in the answer."""
        self.enriched += len(finished)
        if any(each[7] for each in finished):
            return [flow for each in finished for flow in self._enrich_from(each[7], each)]
        return self._enrich(finished, self.steps.behind)

    def _enrich_from(self, stage: str, finished: Finished) -> list[Flow]:
        steps = self._from(stage)
        if steps is None:  # It was there when the dead letter came in.
            self.refuse_finished("no such stage in this chain", finished)
            return []
        return self._enrich([finished], steps)

    def _enrich(self, finished: list[Finished], steps: list[Step]) -> list[Flow]:
        def flows() -> list[Flow]:
            return [self._flow_of(each) for each in finished]

        def origin(index: int) -> tuple[str, str]:
            return self.steps.held_by, _id_of(self._flow_of(finished[index]))

        return self._through(steps, flows(), flows, origin, timed=self._is_to_be_timed())[0]

    def _flow_of(self, finished: Finished) -> Flow:
        """The flow, afresh at every call."""
        if self.stitching is None or finished[7]:
            flow: Flow = orjson.loads(finished[0])
            return flow
        return self.stitching.flow(finished)

    def _through(
        self, steps: list[Step], flows: list[Any], again: Callable[[], list[Any]], origin: Origin, *, timed: bool
    ) -> tuple[list[Flow], Sequence[int]]:
        """The flows that come through the steps, and which of those that went in they are.

        All flows go through one step after the other. If one is refused, all begin afresh (`again`) and go one by one: stages are pure.
        """
        noted = self.notes.copy()
        places: Sequence[int] = range(len(flows))
        dropped = []
        try:
            if not _FLOWS.issuperset(map(type, flows)):
                raise Refused("not an object")
            for name, process in self._timing(steps, len(flows)) if timed else steps:
                flows = [process(flow) for flow in flows]
                if not _FLOWS.issuperset(map(type, flows)):
                    dropped += [(name, _reason_of_drop(flow)) for flow in flows if flow.__class__ is not dict]
                    places = [place for place, flow in zip(places, flows, strict=True) if flow.__class__ is dict]
                    flows = [flow for flow in flows if flow.__class__ is dict]
        except (Exception, SystemExit):  # No stage may end the worker, which would print the text of the SystemExit.
            self._restore(noted)
            return self._one_by_one(steps, again(), origin)
        self.dropped.update(dropped)
        return flows, places

    def _one_by_one(self, steps: list[Step], flows: list[Any], origin: Origin) -> tuple[list[Flow], Sequence[int]]:
        through: list[Flow] = []
        places: list[int] = []
        for place, came in enumerate(flows):
            flow = came
            if flow.__class__ is not dict:
                self._refuse(DECODE, "not an object", origin(place), flow)
                continue
            untouched = marshal.dumps(flow)
            name = ""
            try:
                for name, process in steps:
                    flow = process(flow)
                    if flow.__class__ is not dict:
                        self.dropped[name, _reason_of_drop(flow)] += 1
                        break
                else:
                    through.append(flow)
                    places.append(place)
            except EndRefused as error:
                self._refuse(error.stage, reason_of(error.cause), origin(place), flow)
            except (Exception, SystemExit) as error:
                before = self._until(name, steps, marshal.loads(untouched))  # noqa: S302
                self._refuse(name, reason_of(error), origin(place), before)
        return through, places

    def _until(self, name: str, steps: list[Step], flow: Any) -> Any:
        """The flow as it stands before a stage. What end stages note was counted already."""
        noted = self.notes.copy()
        for step, process in steps:
            if step == name:
                break
            flow = process(flow)
        self._restore(noted)
        return flow

    def _restore(self, noted: Counter[str]) -> None:
        self.notes.clear()
        self.notes.update(noted)

    def tick(self) -> list[Finished]:
        """What stitching has finished by now, some thousands of flows at most."""
        if self.stitching is None:
            return []
        self._ticks += 1
        timed = self._ticks % SAMPLED == 0
        began = time.perf_counter() if timed else 0.0
        finished = self.stitching.expired()
        if timed:
            self.took(self.steps.held_by, time.perf_counter() - began, 0)  # These flows were counted when they came.
        return finished

    def drain(self, most: int | None = None) -> list[Finished]:
        """What stitching holds, or so many flows of it."""
        return self.stitching.drain(most) if self.stitching is not None else []

    def refuse(self, stage: str, reason: str, flow: Flow, source: str = "") -> None:
        """For outputs: this flow cannot be written, it goes to the dead letters.

        source   where it came from, if this chain holds no flows
        """
        self._refuse(stage, reason, (self.steps.held_by or source, _id_of(flow)), flow)

    def refuse_message(self, reason: str, payload: Any, source: str, position: str) -> None:
        """For inputs: this message, or this value in it, cannot be taken, it goes to the dead letters."""
        self._refuse(DECODE, reason, (source, position), payload)

    def refuse_finished(self, reason: str, finished: Finished) -> None:
        """This flow cannot be enriched, it goes to the dead letters as it left stitching."""
        flow = self._flow_of(finished)
        self._refuse(
            finished[7] or (self.steps.behind[0][0] if self.steps.behind else ""), reason, (self.steps.held_by, _id_of(flow)), flow
        )

    def _refuse(self, stage: str, reason: str, origin: tuple[str, str], payload: Any) -> None:
        self.refused[stage, reason] += 1
        self.dead.append(envelope(stage, reason, *origin, payload))

    def settle(self) -> Counter[tuple[str, str, str]]:
        """What was counted since the last call: (read, enriched, dropped, refused or noted; stage; reason or note) → number."""
        counts = Counter({("read", "", ""): self.read, ("enriched", "", ""): self.enriched})
        for word, counter in (("dropped", self.dropped), ("refused", self.refused)):
            counts.update({(word, stage, reason): number for (stage, reason), number in counter.items()})
        counts.update({("noted", "", note): number for note, number in self.notes.items()})
        before, self._settled = self._settled, counts
        return counts - before

    def hit_rate(self) -> float:
        """Share of the ends of enriched flows that were remembered."""
        runs = self.steps.runs
        return 1 - runs[0].misses / (2 * self.enriched) if runs and self.enriched else 0.0


_FLOWS = frozenset((dict,))


def _not_held(flow: Flow) -> Finished:
    """In the place of stitching where a chain has none."""
    return (orjson.dumps(flow), 0, 0.0, 0.0, 0, 0, "", "")


def _reason_of_drop(answer: Any) -> str:
    if answer.__class__ is not str:
        raise Refused(f"returned {type(answer).__name__}, which is neither the flow nor a reason to drop it")
    return str(answer)


def _value(body: bytes) -> Any:
    """The JSON value, or the bytes themselves where they are no JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body


def _id_of(flow: Any) -> str:
    meta = flow.get("meta") if isinstance(flow, dict) else None
    return str(meta.get("id", "")) if isinstance(meta, dict) else ""


def reason_of(error: BaseException) -> str:
    """Why a stage refused a flow. Of an exception that is no Refused only the type and the place: its text may hold an address."""
    if isinstance(error, Refused):
        return str(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})" if place is not None else ""
    return f"raised {type(error).__name__}{where}"
