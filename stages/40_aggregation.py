"""40 aggregation: stitches the parts of a flow that spans several capture files, by 5-tuple and sensor (meta.id).

Reads   meta, values, start, end, meta.id, meta.flow_type, meta.sensor_id, values.num_bits, values.num_packets, @ingest_time
Writes  stitched_flows  integer, number of parts; 0 for tstat, whose flows are whole
        start, end  number, unix seconds, of all parts together
        values.num_bits, values.num_packets  integer, sums
        values.duration  number, seconds
        values.bits_per_second, values.packets_per_second  number
        @timestamp  date, when the flow left stitching
        tags, @*  removed, except those of tstat and @ingest_time
Source  nothing
Drops   nothing

A part is added to the flow held under its id when its start is at most inactivity_timeout_s after the start of the part before and at
most timeout_s after the start of the first part; with clock event also only when its end is at most inactivity_timeout_s after the newest
end held. Otherwise the held flow is finished and the part opens a new one.

With clock event the parts of an id alone decide; the newest end over all flows only tells what can be written out, lateness_s after nothing
more can come. With clock arrival a flow is finished when nothing came for it during inactivity_timeout_s of the arrival clock, or
timeout_s after it was first held. What is held when the input ends is finished then; a worker that stops keeps it.
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import Annotated, Any

import orjson
from pydantic import Field

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import HELD_AT, Changes, Finished, Flow, Lookups, Now, Refused
from netsage_pipeline.times import NewestEnd, milliseconds

_OF_A_PART = frozenset(("type", "interval", "start", "end", "meta", "values", "@ingest_time"))
_LONG = 1 << 63
_FASTEST = 9.2e18

# A held flow is a list, because it changes with every part and a million of them may be held.
# The ledger stores it as it is, and _SLOT anew when it is restored.
_FIRST, _PARTS, _START, _END, _BITS, _PACKETS, _FIRST_MS, _LAST_MS, _, _CAME_AT, _TIMEOUT, _SLOT = range(12)

#: Flows that are given out at once; the rest comes at the next call, so that a million that end in one second do not stop everything else.
AT_ONCE = 5_000


class Config(Settings):
    inactivity_timeout_s: float = Field(
        630, gt=0, allow_inf_nan=False, description="A flow ends when nothing came for it this long; more than two capture files"
    )
    inactivity_timeout_by_sensor_s: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {}, description="Other values for sensors with longer capture files"
    )
    timeout_s: float = Field(86_400, gt=0, allow_inf_nan=False, description="No flow gets longer than this")
    lateness_s: float = Field(
        3_600, ge=0, allow_inf_nan=False, description="How much later than the newest part may come, with clock event"
    )


class Stitching:
    """Holds flows. Pure: what it does depends on the parts it is given and on `now` alone."""

    def __init__(self, config: Config, now: Now) -> None:
        self._timeout, self._timeouts = config.inactivity_timeout_s, config.inactivity_timeout_by_sensor_s
        self._longest, self._lateness = config.timeout_s, config.lateness_s
        self._now = now
        self._event = now.clock == "event"
        self._held: dict[str, list[Any]] = {}
        self._wheel: dict[int, list[str]] = {}  # second → ids that may be finished by then
        self._seconds: list[int] = []  # heap of the wheel's seconds
        self._newest = NewestEnd()
        self._changed: dict[str, bool] | None = None  # id → whether it was opened since the last `changes`
        self.parts = self.flows = self.late = self.passed = 0

    @property
    def newest_end(self) -> float:
        """Unix seconds; -inf at first."""
        return self._newest.value

    @property
    def gone(self) -> float:
        return self._newest.gone

    def __call__(self, flow: Flow) -> Finished | None:
        meta, values = flow["meta"], flow["values"]
        end = flow["end"]
        if meta.get("flow_type") == "tstat":
            self._newest.see(end)
            self.passed += 1
            flow["stitched_flows"] = 0
            flow["@timestamp"] = flow["@ingest_time"]
            return (orjson.dumps(flow), 0, 0.0, 0.0, 0, 0, self._now.text, "")
        bits, packets = values.get("num_bits"), values.get("num_packets")
        if bits is None or packets is None:
            raise Refused(f"values.{'num_bits' if bits is None else 'num_packets'}: missing")
        start = flow["start"]
        start_ms = milliseconds(start)
        flow_id = meta["id"]
        held = self._held.get(flow_id)
        if held is not None and self._belongs(held, start_ms, end):
            if held[_BITS] + bits >= _LONG or held[_PACKETS] + packets >= _LONG:
                raise Refused("values: the sum of the parts is beyond 64 bits")
            held[_PARTS] += 1
            held[_BITS] += bits
            held[_PACKETS] += packets
            held[_START] = min(held[_START], start)
            held[_END] = max(held[_END], end)
            held[_LAST_MS] = start_ms
            held[_CAME_AT] = self._now.arrival
            if self._changed is not None:
                self._changed.setdefault(flow_id, False)
            self.parts += 1
            self._newest.see(end)
            return None
        if not flow.keys() <= _OF_A_PART:
            flow = {name: value for name, value in flow.items() if name == "@ingest_time" or not (name[:1] == "@" or name == "tags")}
        # Raises where a part cannot be held: until here nothing has changed. The copy takes a quarter of the memory, because orjson
        # leaves a text in the buffer that it grew in (docs/design.md, Stitching).
        first = bytes(memoryview(orjson.dumps(flow)))
        finished = None if held is None else self._finished(held)
        if self._event and end + self._lateness < self._newest.value:
            self.late += 1
        self._newest.see(end)
        self.parts += 1
        timeout = self._timeout
        if self._timeouts:
            timeout = self._timeouts.get(str(meta.get("sensor_id", "")), timeout)
        arrival = self._now.arrival
        held = [first, 1, start, end, bits, packets, start_ms, start_ms, arrival, arrival, timeout, 0]
        self._held[flow_id] = held
        if self._changed is not None:
            self._changed[flow_id] = True
        self._watch(flow_id, held, self._deadline(held))
        return finished

    def _belongs(self, held: list[Any], start_ms: int, end: float) -> bool:
        timeout = held[_TIMEOUT]
        if start_ms - held[_LAST_MS] > timeout * 1000 or start_ms - held[_FIRST_MS] > self._longest * 1000:
            return False
        if self._event and end > held[_END] + timeout:
            return False
        return self._deadline(held) >= self._clock()

    def _clock(self) -> float:
        return self._newest.value if self._event else self._now.arrival

    def _deadline(self, held: list[Any]) -> float:
        """The last value of the clock at which a part may still be added."""
        deadline: float = held[_END] + held[_TIMEOUT] + self._lateness
        return deadline if self._event else min(held[_CAME_AT] + held[_TIMEOUT], held[HELD_AT] + self._longest)

    def _watch(self, flow_id: str, held: list[Any], deadline: float) -> None:
        second = int(deadline) + 1
        held[_SLOT] = second
        ids = self._wheel.get(second)
        if ids is None:
            self._wheel[second] = [flow_id]
            heapq.heappush(self._seconds, second)
        else:
            ids.append(flow_id)

    def expired(self) -> list[Finished]:
        clock = self._clock()
        finished: list[Finished] = []
        while self._seconds and self._seconds[0] <= clock and len(finished) < AT_ONCE:
            second = heapq.heappop(self._seconds)
            ids = self._wheel.pop(second)
            for place, flow_id in enumerate(ids):
                if len(finished) == AT_ONCE:
                    self._wheel[second] = ids[place:]
                    heapq.heappush(self._seconds, second)
                    break
                held = self._held.get(flow_id)
                if held is None or held[_SLOT] != second:
                    continue  # Finished in the meantime, or held anew and watched elsewhere.
                deadline = self._deadline(held)
                if deadline < clock:
                    finished.append(self._end(flow_id, held))
                else:
                    self._watch(flow_id, held, deadline)
        return finished

    def drain(self, most: int | None = None) -> list[Finished]:
        return [self._end(flow_id, self._held[flow_id]) for flow_id in list(islice(self._held, most))]

    def _end(self, flow_id: str, held: list[Any]) -> Finished:
        del self._held[flow_id]
        if self._changed is not None:
            self._changed.setdefault(flow_id, False)
        return self._finished(held)

    def changes(self) -> Changes:
        changed, self._changed = self._changed or {}, {}
        changes = Changes({}, {}, [], [*self._newest.state, self.parts, self.flows, self.late, self.passed])
        for flow_id, opened in changed.items():
            held = self._held.get(flow_id)
            if held is None:
                changes.ended.append(flow_id)
            elif opened:
                changes.opened[flow_id] = held
            else:
                changes.grown[flow_id] = held[_PARTS:]
        return changes

    def restore(self, held: dict[str, list[Any]], state: list[Any]) -> None:
        self._held, self._changed = held, {}
        for flow_id, each in held.items():
            self._watch(flow_id, each, self._deadline(each))
        if state:
            *newest, self.parts, self.flows, self.late, self.passed = state
            self._newest.state = newest

    def _finished(self, held: list[Any]) -> Finished:
        self.flows += 1
        return (held[_FIRST], held[_PARTS], held[_START], held[_END], held[_BITS], held[_PACKETS], self._now.text, "")

    def flow(self, finished: Finished) -> Flow:
        first, parts, start, end, bits, packets, timestamp, _ = finished
        flow: Flow = orjson.loads(first)
        if parts:
            flow["stitched_flows"] = parts
            flow["@timestamp"] = timestamp
        if parts > 1:
            flow["start"], flow["end"] = start, end
            values = flow["values"]
            values["num_bits"], values["num_packets"] = bits, packets
            duration = end - start
            values["duration"] = round(duration, 3)
            values["bits_per_second"] = _rate(bits, duration)
            values["packets_per_second"] = _rate(packets, duration)
        return flow

    def counts(self) -> dict[str, int]:
        return {
            "parts": self.parts,
            "flows": self.flows,
            "passed": self.passed,
            "late": self.late,
            "not believed": self._newest.not_believed,
            "held": len(self._held),
        }


def stage(config: Config, _lookups: Lookups, now: Now) -> Stitching:
    return Stitching(config, now)


def _rate(total: int, duration: float) -> int:
    """Total a second, cut; 0 where there is no duration, and never beyond 64 bits."""
    return int(min(total / duration, _FASTEST)) if duration else 0
