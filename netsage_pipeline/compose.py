"""Composing a chain: which stages a directory of settings names, what is wrong with them, and the steps that they make."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from netsage_pipeline import config as settings
from netsage_pipeline.ends import GIVEN, EndRun, EndStage, Memory
from netsage_pipeline.flow import FlowProcess, Lookups, Now, Stitching
from netsage_pipeline.folders import shipped
from netsage_pipeline.stagefile import StageFile, StageFileError, find

#: Bytes for remembered ends; what an end takes is measured by benchmarks/memory.py.
REMEMBERED_BYTES = 100_000_000

#: What 41_leftovers takes for written anew, so that no address stands in it → the stage that writes it, and what that means.
_RELIED_ON = {
    ("meta.src_asn",): "10_preliminaries, which makes numbers of what should be numbers",
    ("meta.id",): "20_add_id, which replaces meta.id, whatever the input says in it",
    ("stitched_flows", "@timestamp"): "40_aggregation, which replaces stitched_flows and @timestamp, whatever the input says in them",
}

#: A stage or a run of end stages, ready to be called: its name (of a run that of its first stage) and the callable.
Step = tuple[str, FlowProcess]


class Configured(NamedTuple):
    """A stage file with its settings."""

    file: StageFile
    settings_file: settings.SettingsFile
    config: settings.Settings

    @property
    def name(self) -> str:
        return self.file.name


def configured(conf: Path, directories: list[Path], unused: tuple[str, ...] = ()) -> list[Configured]:
    """The stages that the settings in `conf` name, in order, also those that are switched off. SettingsError has all that is wrong.

    unused   beginnings of names; of such a stage nobody wants to know what is wrong with it, it is just not there
    """
    if not conf.is_dir():
        ours = f"no such directory of settings; ours are in {shipped('conf.d')}"
        what = "is a file: name the directory it lies in" if conf.is_file() else ours
        raise settings.SettingsError([f"{conf}: {what}"])
    files = find(directories)
    stages: list[Configured] = []
    errors = [
        f"{path}: is not read: the name of a settings file ends in .toml"
        for path in sorted(conf.iterdir())
        if path.stem in files and path.suffix != ".toml"
    ]
    for path in sorted(conf.glob("*.toml")):
        stage, wrong = _configured(path, files, directories)
        if stage is not None:
            stages.append(stage)
        elif not path.name.startswith(unused):
            errors += wrong
    errors += _unwritten(stages, files)
    if not stages and not errors:
        errors.append(f"{conf}: names no stage: copy the settings files of the stages that shall run into it")
    if errors:
        raise settings.SettingsError(errors, stages)
    return stages


def _configured(path: Path, files: dict[str, StageFile], directories: list[Path]) -> tuple[Configured | None, list[str]]:
    """The stage of one settings file, or None and what is wrong."""
    file = files.get(path.stem)
    if file is None:
        where = " or ".join(str(each) for each in directories)
        return None, [f"{path}: no stage {path.stem}.py in {where}; --stages names a directory of your own"]
    read = settings.read(path)
    try:
        model = file.module.Config
    except StageFileError as error:
        return None, [str(error)]
    except AttributeError:
        return None, [f"{file.path}: has no Config: give it 'class Config(Settings)'"]
    if not file.factory:
        return None, [f"{file.path}: has no factory: give it 'def stage(config, lookups)' or 'def end(config, lookups)'"]
    config, wrong = settings.settings_of(model, read)
    return (None if config is None else Configured(file, read, config)), wrong


def _unwritten(stages: list[Configured], files: dict[str, StageFile]) -> list[str]:
    """End stages that read what no end stage before them writes, switched on or not: they would never see it."""
    errors = []
    for stage in stages:
        if stage.config.enabled and stage.file.is_end:
            before = [file for name, file in files.items() if name < stage.name and file.is_end]
            known = {*GIVEN, *(name for file in before for name in file.writes)}
            for name in stage.file.reads:
                if name not in known and name != "*":
                    errors.append(
                        f"{stage.file.path}: reads '{name}', which an end of a flow does not hold there: "
                        f"it begins with {', '.join(GIVEN)}, earlier end stages add {', '.join(sorted(known - {*GIVEN}))}; "
                        "what depends on other fields is a flow stage (def stage)"
                    )
    return errors


def sees_addresses(stages: list[Configured]) -> list[str]:
    """What keeps a chain from removing all full addresses, and what to do, a line each; empty if its output cannot see one."""
    running = [stage for stage in stages if stage.config.enabled and not stage.file.is_io]
    masks = {
        (stage.file.factory, name): stage.name
        for stage in running
        for name, meaning in stage.file.writes.items()
        if meaning.startswith("ip-masked")
    }
    ends, unknown = masks.get(("end", "ip")), masks.get(("stage", "*"))
    lines = []
    if ends is None:
        lines.append("70_deidentify, which masks src_ip and dst_ip, does not run: enable it")
    if unknown is None:
        lines.append("41_leftovers, which masks addresses in unknown fields, does not run: enable it")
    in_front = [stage.file for stage in running if stage.file.factory == "stage" and (unknown is None or stage.name < unknown)]
    written = {name for file in in_front for name in file.writes}
    lines += [f"{stage}, does not run: enable it" for names, stage in _RELIED_ON.items() if not written.issuperset(names)]
    if ends and unknown:
        for stage in running:
            if stage.file.factory == "stage" and unknown < stage.name < ends and _may_read_addresses(stage.file):
                lines.append(
                    f"{stage.name} reads full addresses between {unknown} and {ends}, so what it writes is not masked: "
                    f"give it a number below {unknown[:2]} or above {ends[:2]}, or make it an end stage"
                )
    return lines


def _may_read_addresses(file: StageFile) -> bool:
    return not file.section("Reads") or any(name in ("*", "meta", "meta.src_ip", "meta.dst_ip") for name in file.reads)


class Steps(NamedTuple):
    """The steps of a chain."""

    before: list[Step]  #: up to stitching; all, if nothing is held
    held_by: str  #: name of the stage that holds flows, "" if none does
    stitching: Stitching | None
    behind: list[Step]  #: behind stitching
    runs: list[EndRun]  #: those among them that are runs of end stages
    entries: dict[str, list[Step]]  #: stage → the steps from it on, up to stitching or to the end


def compose(
    stages: list[Configured],
    lookups: Lookups,
    now: Now,
    notes: Counter[str],
    *,
    remember: bool = True,
    kept: dict[str, Stitching] | None = None,
) -> Steps:
    """Calls the factories. SettingsError with all that fail.

    kept   stage → what to use instead of calling its factory: it holds flows
    """
    errors: list[str] = []
    steps = Steps([], "", None, [], [], {})
    line = steps.behind
    run: list[EndStage] = []
    written: set[str] = set()
    entries: dict[str, tuple[list[Step], int, list[EndStage], set[str]]] = {}
    for stage in stages:
        if not stage.config.enabled or stage.file.is_io:
            continue
        try:
            process: Any = kept[stage.name] if kept and stage.name in kept else stage.file.make(stage.config, lookups, now)
        except Exception as error:
            errors.append(f"{stage.file.path}: {stage.file.factory}() raised {type(error).__name__}: {error}")
            continue
        if not callable(process):
            errors.append(
                f"{stage.file.path}: {stage.file.factory}() returned {type(process).__name__}: return the function that takes a flow"
            )
            continue
        if stage.file.is_end:
            if not run:
                line.append((stage.name, process))  # Replaced when the run is complete.
            entries[stage.name] = (line, len(line) - 1, [*run], written | {name for each in run for name in each.writes})
            run.append(EndStage(stage.name, process, frozenset(stage.file.writes)))
            continue
        _close(run, line, steps.runs, written, notes, remember=remember)
        if hasattr(process, "drain"):
            steps = steps._replace(before=line, held_by=stage.name, stitching=process, behind=[])
            entries[stage.name] = (line, len(line), [], set())
            line = steps.behind
        else:
            entries[stage.name] = (line, len(line), [], set())
            line.append((stage.name, process))
    _close(run, line, steps.runs, written, notes, remember=remember)
    if errors:
        raise settings.SettingsError(errors)
    if steps.stitching is None:
        steps = steps._replace(before=line, behind=[])
    for name, (of, start, before, seen) in entries.items():
        rest = of[start:]
        if before:  # In the middle of a run: the stages from here on, on what the flow holds, without remembering.
            whole = rest[0][1]
            assert isinstance(whole, EndRun)
            rest[0] = (name, EndRun(whole.stages[len(before) :], seen, None, notes))
        steps.entries[name] = rest
    return steps


def _close(run: list[EndStage], line: list[Step], runs: list[EndRun], written: set[str], notes: Counter[str], *, remember: bool) -> None:
    """Makes one step of the end stages since the last flow stage. Only the first run of a chain is remembered."""
    if run:
        runs.append(EndRun(list(run), written, Memory(REMEMBERED_BYTES) if remember and not written else None, notes))
        line[-1] = (run[0].name, runs[-1])
        written.update(name for each in run for name in each.writes)
        run.clear()
