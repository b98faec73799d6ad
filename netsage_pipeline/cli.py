"""The command netsage-pipeline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from netsage_pipeline import __version__
from netsage_pipeline.commands.dead_letters import dead_letters
from netsage_pipeline.commands.demo import run_demo
from netsage_pipeline.commands.doctor import doctor
from netsage_pipeline.commands.dump import dump_records
from netsage_pipeline.commands.fields import show_fields
from netsage_pipeline.commands.health import health
from netsage_pipeline.commands.ledger import ledger_commands
from netsage_pipeline.commands.lookups import lookups
from netsage_pipeline.commands.pmacct import pmacct_records
from netsage_pipeline.commands.publish import publish_dumps
from netsage_pipeline.commands.replay import replay
from netsage_pipeline.commands.retain import retain
from netsage_pipeline.commands.run import run
from netsage_pipeline.commands.settings import check, show_config
from netsage_pipeline.commands.stages import stages

EPILOG = """\b
Examples:
  netsage-pipeline demo
  netsage-pipeline replay flows.ndjson.gz --to enriched.ndjson --dead-letters refused.ndjson
  netsage-pipeline replay /data/nfcapd/ --sensor campus-border --to - | jq .meta.src_organization
  zstdcat *.zst | netsage-pipeline replay - --now 1700000000
  netsage-pipeline replay refused.ndjson
  netsage-pipeline run
  netsage-pipeline publish /data/nfcapd/2026/11 --sensor campus-border --rate 50000
  netsage-pipeline dump --from 2026-11-01 --to 2026-12-01 --query 'meta.dst_asn:64500' --out november.ndjson
  netsage-pipeline retain --prefix om-ns-netsage --older-than 30d --dry-run
  netsage-pipeline doctor
  netsage-pipeline health --conf /etc/netsage/conf.d/sink --ready
  netsage-pipeline pmacct my_print --conf /etc/netsage/pmacct
  netsage-pipeline dead-letters list
  netsage-pipeline dead-letters replay --stage 50_asn
  netsage-pipeline ledger show
  netsage-pipeline check --conf /etc/netsage/conf.d
  netsage-pipeline stages --stages /etc/netsage/stages
  netsage-pipeline stages new 65_campus --end
  netsage-pipeline stages try 65_campus --stages my-stages --conf my-conf.d < flow.json
  netsage-pipeline config 40_aggregation
  netsage-pipeline fields --template --prefix om-ns-netsage
  netsage-pipeline lookups update --every 24
  netsage-pipeline lookups info
  netsage-pipeline lookups build scireg scireg.json
  netsage-pipeline lookups convert networkA-members-list.rb
  netsage-pipeline lookups show 198.51.100.7

Lookup tables are read from the directory NETSAGE_LOOKUPS. Exit status: 0 done (also when flows were refused), 1 nothing could be read or
written, 2 something is wrong with the settings, 130 interrupted.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def main() -> None:
    """Flow records in, stitched and enriched flows without personal addresses out."""
    if sys.stdin is None:  # Whoever started it closed it. It is empty then.
        sys.stdin = Path(os.devnull).open("r", encoding="utf-8")  # noqa: SIM115


for command in (
    run,
    health,
    doctor,
    publish_dumps,
    replay,
    dump_records,
    retain,
    pmacct_records,
    run_demo,
    check,
    stages,
    show_config,
    show_fields,
    lookups,
    dead_letters,
    ledger_commands,
):
    main.add_command(command)
