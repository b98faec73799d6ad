"""A chain: the stages that a directory of settings names, composed in order of file name.

A message goes through `take` (the stages up to stitching, which holds the flows), and what stitching finished goes through `enrich` (the
stages behind it). The worker commits between the two. A chain knows no file, queue or database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from netsage_pipeline import config as settings
from netsage_pipeline.deadletters import DECODE, body_of, envelope
from netsage_pipeline.ends import GIVEN, EndRefused, EndRun, EndStage, Memory
from netsage_pipeline.flow import Finished, Flow, Lookups, Now, Refused, Stitching
from netsage_pipeline.jsonvalues import fault
from netsage_pipeline.stagefile import StageFile, StageFileError, find

#: Bytes for remembered ends. 100,000 ends are about 100 MB; measured by benchmarks/memory.py.
REMEMBERED_BYTES = 100_000_000

Step = tuple[str, Callable[[Flow], Any]]


class Configured(NamedTuple):
    """A stage file with its settings."""

    file: StageFile
    settings_file: settings.SettingsFile
    config: settings.Settings

    @property
    def name(self) -> str:
        return self.file.name


def configured(conf: Path, directories: list[Path]) -> list[Configured]:
    """The stages that the settings in `conf` name, in order, also those that are switched off. SettingsError has all that is wrong."""
    if not conf.is_dir():
        raise settings.SettingsError([f"{conf}: no such directory of settings"])
    files = find(directories)
    stages = []
    errors = []
    for path in sorted(conf.glob("*.toml")):
        file = files.get(path.stem)
        if file is None:
            errors.append(f"{path}: no stage {path.stem}.py in {' or '.join(str(each) for each in directories)}")
            continue
        read = settings.read(path)
        try:
            model = file.module.Config
        except StageFileError as error:
            errors.append(str(error))
            continue
        except AttributeError:
            errors.append(f"{file.path}: has no Config: give it 'class Config(Settings)'")
            continue
        if not file.factory:
            errors.append(f"{file.path}: has no factory: give it 'def stage(config, lookups)' or 'def end(config, lookups)'")
            continue
        config, wrong = settings.settings_of(model, read)
        errors += wrong
        if config is not None:
            stages.append(Configured(file, read, config))
    errors += _unwritten(stages, files)
    if not stages and not errors:
        errors.append(f"{conf}: names no stage: copy the settings files of the stages that shall run into it")
    if errors:
        raise settings.SettingsError(errors)
    return stages


def _unwritten(stages: list[Configured], files: dict[str, StageFile]) -> list[str]:
    """End stages that read what no end stage before them writes, switched on or not: they would never see it."""
    errors = []
    for stage in stages:
        if stage.config.enabled and stage.file.is_end:
            before = [file for name, file in files.items() if name < stage.name and file.is_end]
            known = {*GIVEN, *(name for file in before for name in file.writes)}
            for name in stage.file.reads:
                if name not in known:
                    errors.append(
                        f"{stage.file.path}: reads '{name}', which an end of a flow does not hold there: "
                        f"it begins with {', '.join(GIVEN)}, earlier end stages add {', '.join(sorted(known - {*GIVEN}))}; "
                        "what depends on other fields is a flow stage (def stage)"
                    )
    return errors


def sees_addresses(stages: list[Configured]) -> list[str]:
    """What keeps a chain from removing all full addresses, a line each; empty if its output cannot see one."""
    masked = {
        name for stage in stages if stage.config.enabled for name, meaning in stage.file.writes.items() if meaning.startswith("ip-masked")
    }
    wanted = {"ip": "70_deidentify, which masks src_ip and dst_ip", "*": "41_leftovers, which masks addresses in unknown fields"}
    return [f"{what}, does not run" for name, what in wanted.items() if name not in masked]


class Chain:
    """The composed stages of a directory of settings.

    dropped, refused   counted by (stage, reason)
    notes              counted by what end stages noted
    dead               envelopes of dead letters that nobody has taken yet
    """

    def __init__(self, stages: list[Configured], lookups: Lookups, now: Now, *, remember: bool = True) -> None:
        self.now = now
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[str] = Counter()
        self.dead: list[bytes] = []
        self.read = self.enriched = 0
        self.stitching: Stitching | None = None
        self.runs: list[EndRun] = []
        self._first: list[Step] = []
        self._second: list[Step] = []
        self._entries: dict[str, list[Step]] = {}
        self._compose([stage for stage in stages if stage.config.enabled and not stage.file.is_io], lookups, remember)

    def _compose(self, stages: list[Configured], lookups: Lookups, remember: bool) -> None:
        run: list[EndStage] = []
        written: set[str] = set()
        steps: list[Step] = []
        starts: list[tuple[str, int, list[EndStage], set[str]]] = []  # stage, its step, what of its run comes before it, written before

        def close(more: set[str]) -> None:
            if run:
                memory = Memory(REMEMBERED_BYTES) if remember and not written else None
                self.runs.append(EndRun(list(run), written, memory, self.notes))
                steps.append((run[0].name, self.runs[-1]))
                run.clear()
                written.update(more)

        of_run: set[str] = set()
        for stage in stages:
            try:
                process = stage.file.make(stage.config, lookups, self.now)
            except Exception as error:
                raise settings.SettingsError([f"{stage.file.path}: its factory {reason_of(error)}: {error}"]) from error
            if stage.file.is_end:
                starts.append((stage.name, len(steps), [*run], written | of_run))
                run.append(EndStage(stage.name, process, frozenset(stage.file.writes)))
                of_run |= set(stage.file.writes)
                continue
            close(of_run)
            starts.append((stage.name, len(steps), [], set()))
            steps.append((stage.name, process))
            if hasattr(process, "drain"):
                self.stitching = process
                self._first, steps = steps, []
        close(of_run)
        self._second = steps
        self._first_names = {name for name, _ in self._first}
        for name, step, before, seen in starts:
            if name in self._first_names:
                self._entries[name] = self._first[step:]
                continue
            rest = steps[step:]
            if before:  # In the middle of a run: the stages from here on, without remembering.
                whole = rest[0][1]
                assert isinstance(whole, EndRun)
                rest = [(name, EndRun(whole.stages[len(before) :], seen, None, self.notes)), *rest[1:]]
            self._entries[name] = rest

    def take(self, body: bytes, source: str, position: str) -> list[Finished]:
        """Decodes a message and runs the stages up to stitching; gives the flows that were finished by it.

        What is no flow, and flows that a stage refuses, go to `dead`."""
        try:
            decoded = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._take_partly(body, source, position)
        return self._take(decoded, body, source, position)

    def _take(self, decoded: Any, body: bytes, source: str, position: str) -> list[Finished]:
        array = decoded.__class__ is list
        finished: list[Finished] = []
        first = self._first
        index = -1
        flows = decoded if array else (decoded,)
        self.read += len(flows)
        for flow in flows:
            index += 1
            result = flow
            if flow.__class__ is not dict:
                self._refuse(DECODE, "not an object", source, f"{position}.{index}" if array else position, flow)
                continue
            if not first:
                finished.append((orjson.dumps(flow), 0, 0.0, 0.0, 0, 0, "", ""))
                continue
            name = ""
            try:
                for name, process in first:  # noqa: B007
                    result = process(result)
                    if result.__class__ is not dict:
                        break
            except Exception as error:
                again = orjson.loads(body)
                before = self._until(name, first, again[index] if array else again)
                self._refuse(name, reason_of(error), source, f"{position}.{index}" if array else position, before)
                continue
            if result.__class__ is tuple:
                finished.append(result)
            elif result.__class__ is str:
                self.dropped[name, result] += 1
        if self.stitching is not None:
            finished += self.stitching.expired()
        return finished

    def _take_partly(self, body: bytes, source: str, position: str) -> list[Finished]:
        """A message that is not strict JSON: an array may hold a NaN or a lone surrogate in one flow, which must not cost its neighbours."""
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            self._refuse(DECODE, "not JSON", source, position, body)
            return []
        array = isinstance(values, list)
        finished: list[Finished] = []
        for index, value in enumerate(values if array else [values]):
            place = f"{position}.{index}" if array else position
            reason = fault(value)
            if reason:
                self.read += isinstance(value, dict)
                self._refuse(DECODE, reason, source, place, value)
            else:
                finished += self._take(value, orjson.dumps(value), source, place)
        return finished

    def enter(self, letter: dict[str, Any]) -> list[Finished]:
        """Takes a dead letter in: its flow enters at the stage that refused it."""
        stage, source, position = letter["stage"], str(letter["source"]), str(letter["position"])
        body = body_of(letter["payload"])
        if stage == DECODE:
            return self.take(body, source, position)
        if stage not in self._entries:
            self._refuse(stage, "no such stage in this chain", source, position, letter["payload"])
            return []
        if stage not in self._first_names:
            self.read += 1
            return [(body, 0, 0.0, 0.0, 0, 0, "", stage)]
        whole, self._first = self._first, self._entries[stage]
        try:
            return self.take(body, source, position)
        finally:
            self._first = whole

    def enrich(self, finished: Iterable[Finished]) -> list[Flow]:
        """Runs the stages behind stitching. Flows that a stage refuses or drops are not in the answer."""
        flows = []
        second = self._second
        flow_of = self.stitching.flow if self.stitching is not None else _flow
        for item in finished:
            self.enriched += 1
            steps = second if not item[7] else self._entries[item[7]]
            flow = _flow(item) if item[7] else flow_of(item)
            name = ""
            try:
                for name, process in steps:
                    flow = process(flow)
                    if flow.__class__ is not dict:
                        self.dropped[name, str(flow)] += 1
                        break
                else:
                    flows.append(flow)
            except EndRefused as error:
                self._refuse_behind(error.stage, error.cause, flow)
            except Exception as error:
                before = self._until(name, steps, _flow(item) if item[7] else flow_of(item))
                self._refuse_behind(name, error, before)
        return flows

    def tick(self) -> list[Finished]:
        """What stitching has finished by now."""
        return self.stitching.expired() if self.stitching is not None else []

    def drain(self) -> list[Finished]:
        """Everything that stitching holds."""
        return self.stitching.drain() if self.stitching is not None else []

    def refuse(self, stage: str, reason: str, flow: Flow) -> None:
        """For outputs: this flow cannot be written, it goes to the dead letters."""
        self._refuse_behind(stage, Refused(reason), flow)

    def refuse_message(self, reason: str, body: bytes, source: str, position: str) -> None:
        """For inputs: this message is no flow, it goes to the dead letters."""
        self._refuse(DECODE, reason, source, position, body)

    def hit_rate(self) -> float:
        """Share of the ends of enriched flows that were remembered."""
        return 1 - self.runs[0].misses / (2 * self.enriched) if self.runs and self.enriched else 0.0

    def _until(self, name: str, steps: list[Step], flow: Any) -> Any:
        """The flow as it stands before a stage."""
        for step, process in steps:
            if step == name:
                break
            flow = process(flow)
        return flow

    def _refuse_behind(self, stage: str, error: Exception, flow: Flow) -> None:
        held_by = next((name for name, process in self._first if process is self.stitching), "")
        self._refuse(stage, reason_of(error), held_by, str(flow.get("meta", {}).get("id", "")), flow)

    def _refuse(self, stage: str, reason: str, source: str, position: str, payload: Any) -> None:
        self.refused[stage, reason] += 1
        self.dead.append(envelope(stage, reason, source, position, payload))


def _flow(finished: Finished) -> Flow:
    flow: Flow = orjson.loads(finished[0])
    return flow


def reason_of(error: Exception) -> str:
    """Why a stage refused a flow. Of an exception that is no Refused only the type and the place: its text may hold an address."""
    if isinstance(error, Refused):
        return str(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})" if place is not None else ""
    return f"raised {type(error).__name__}{where}"
