"""demo: the shipped dump through all stages."""

from __future__ import annotations

from pathlib import Path

import click

from netsage_pipeline import demo, folders
from netsage_pipeline.commands.replay import open_private, opening, output_of, reporting_output, run_replay
from netsage_pipeline.flow import Now
from netsage_pipeline.options import opened, stages_of
from netsage_pipeline.read import find
from netsage_pipeline.replay import Replay
from netsage_pipeline.terminal import refusing_settings, say, tell


@click.command("demo")
@click.option("--to", "directory", default="demo-output", show_default=True, type=click.Path(path_type=Path), help="Directory to write to")
def run_demo(directory: Path) -> None:
    """Replay the shipped dump of five sensors through all stages, and show what was in it. Needs no broker, database or licence key."""
    shipped = folders.demo()
    with refusing_settings():
        stages = demo.all_on(stages_of(None, None))
        now = Now(demo.now(shipped))
        chain, _ = opened(stages, now, shipped / "tables")
    output, letters = directory / "flows.ndjson", directory / "dead-letters.ndjson"
    make, _ = output_of([], str(output), None)
    with reporting_output():
        opening(lambda: directory.mkdir(parents=True, exist_ok=True), str(directory), "--to")
        tally = demo.Tally(opening(make, str(output), "--to"))
        refused = opening(lambda: open_private(letters), str(letters), "--to")
        replay = Replay(chain, now, tally, str(output), refused, fixed_now=True)
        summary = run_replay(replay, find([str(shipped / "captures")], tell), lambda _: None)
    for line in [*summary.lines(), "", *tally.lines(), "", f"The enriched flows are in {output}, what was refused and why in {letters}."]:
        say(line)
