"""ledger: what a worker holds and owes, and what to do with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from netsage_pipeline.commands.run import reporting_ledger, the, working
from netsage_pipeline.config import Input
from netsage_pipeline.flow import HELD_AT
from netsage_pipeline.options import conf_option, stages_of, stages_option
from netsage_pipeline.signals import stopping
from netsage_pipeline.statedir import StateError, holder
from netsage_pipeline.terminal import INTERRUPTED, NOTHING_READ, refusing_settings, say, tell
from netsage_pipeline.times import unix
from netsage_pipeline.worker.ledger import KEY_BYTES, Ledger, State, recovered, salvage, segments, size
from netsage_pipeline.worker.run import Worker


@click.group("ledger")
def ledger_commands() -> None:
    """What the worker holds and owes, in the directory NETSAGE_STATE."""


def settings_of(conf: Path | None, directory: Path | None) -> Input:
    """The settings of the chain's input, which name the ledger's directory. Ends the program if there is no ledger in it."""
    settings: Input = the(stages_of(conf, directory), "source").config  # type: ignore[assignment]
    if not segments(settings.state):
        tell(f"{settings.state}: there is no ledger: NETSAGE_STATE names its directory, a worker makes it")
        sys.exit(NOTHING_READ)
    return settings


@ledger_commands.command()
@conf_option
@stages_option
def show(conf: Path | None, directory: Path | None) -> None:
    """Show held flows, outbox, keys, their ages and sizes, and the totals. The worker may be at work."""
    with refusing_settings(), reporting_ledger():
        ledger = settings_of(conf, directory).state
        pid = holder(ledger)
        state, cut_off = read_beside_a_worker(ledger)
    in_use = f"in use by process {pid}" if pid else "not in use"
    say(f"{ledger}, {size(ledger) / 1e6:,.1f} MB in {len(segments(ledger))} files, {in_use}")
    for line in lines_of(state):
        say(line)
    if cut_off and not pid:
        say(f"cut off     {cut_off:>12,}  bytes at the end, of a commit that was never acknowledged")


def read_beside_a_worker(directory: Path) -> tuple[State, int]:
    """What `recovered` gives. A worker may delete a file that is just to be read, because a checkpoint made it needless: once more then."""
    for _ in range(20):
        try:
            return recovered(directory, touch=False)
        except StateError:
            if not holder(directory):
                break
            time.sleep(0.05)
    return recovered(directory, touch=False)


def lines_of(state: State) -> Iterator[str]:
    """What a ledger holds."""
    held = (
        f", the oldest for {_age(state.arrival - min(each[HELD_AT] for each in state.held.values()))} of the stitching clock"
        if state.held
        else ""
    )
    yield f"held        {len(state.held):>12,}  flows, {sum(len(each[0]) for each in state.held.values()) / 1e6:,.1f} MB{held}"
    flows = [row for row in state.outbox.values() if isinstance(row, tuple)]
    ages = [time.time() - unix(row[6]) for row in flows if row[6]]
    oldest = f", the oldest for {_age(max(ages))}" if ages else ""
    yield f"owed        {len(flows):>12,}  flows, {sum(len(row[0]) for row in flows) / 1e6:,.1f} MB{oldest}"
    letters = [row for row in state.outbox.values() if isinstance(row, bytes)]
    yield f"            {len(letters):>12,}  dead letters, {sum(map(len, letters)) / 1e6:,.1f} MB"
    oldest = f", the oldest taken {_age(state.worked - min(state.slices))} of work ago" if state.slices else ""
    yield f"keys        {state.keys:>12,}  of messages, {state.keys * KEY_BYTES / 1e6:,.1f} MB of memory{oldest}"
    yield "since the ledger began"
    for (word, stage, reason), number in sorted(state.totals.items()):
        yield f"{word:<11} {number:>12,}  {f'{stage}: {reason}' if stage else reason}".rstrip()


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@ledger_commands.command()
@conf_option
@stages_option
def drain(conf: Path | None, directory: Path | None) -> None:
    """Finish all flows that are held and hand everything out, for a migration. Takes no messages."""
    with refusing_settings(), reporting_ledger(), stopping() as stop:
        settings_of(conf, directory)
        with working(conf, directory, restarts=False) as worker:
            assert isinstance(worker, Worker)
            worker.drain(stop)
            state = worker.state
    if state.held or state.outbox:
        tell(f"interrupted: {len(state.held):,} flows are held and {len(state.outbox):,} rows owed: run it again")
        sys.exit(INTERRUPTED)
    say("nothing is held and nothing owed any more")


@ledger_commands.command()
@conf_option
@stages_option
@click.option("--held", is_flag=True, help="The flows that are held")
@click.option("--outbox", is_flag=True, help="What is owed: finished flows and dead letters")
@click.option("--keys", is_flag=True, help="The keys of messages: those that come again are counted again")
@click.option("--yes", is_flag=True, help="Do not ask")
def purge(conf: Path | None, directory: Path | None, *, held: bool, outbox: bool, keys: bool, yes: bool) -> None:
    """Throw away a part of the ledger. What was in it is lost."""
    if not (held or outbox or keys):
        raise click.UsageError("name what to throw away: --held, --outbox, --keys")
    with refusing_settings(), reporting_ledger():
        settings = settings_of(conf, directory)
        ledger = Ledger(settings.state, settings.keys_limit_bytes)
        state = ledger.state
        parts = [
            words
            for wanted, words in (
                (held, f"{len(state.held):,} held flows"),
                (outbox, f"{len(state.outbox):,} rows that are owed"),
                (keys, f"{state.keys:,} keys"),
            )
            if wanted
        ]
        if not yes:
            click.confirm(f"{settings.state}: throw away {', '.join(parts)}?", abort=True, err=True)
        for wanted, part in ((held, state.held), (outbox, state.outbox), (keys, state.slices)):
            if wanted:
                part.clear()
        ledger.checkpoint()
        ledger.close()
    say(f"thrown away: {', '.join(parts)}")


@ledger_commands.command("salvage")
@conf_option
@stages_option
def salvage_damaged(conf: Path | None, directory: Path | None) -> None:
    """Make a sound ledger of what can be read of a damaged one, which is kept beside it."""
    with refusing_settings(), reporting_ledger():
        state, faults, aside = salvage(settings_of(conf, directory).state)
    for line in faults:
        say(line)
    if not faults:
        say("nothing was damaged")
    for line in lines_of(state):
        say(line)
    say(f"what was there before is in {aside}; messages that were in a damaged record may be counted again when they come again")
