"""Writes the dashboards in grafana/dashboards and the page docs/dashboards.md.

    python grafana/generate.py [DIRECTORY]

tests/test_dashboards.py fails when they are not what this writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, elasticsearch, geomap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as dashboards
from grafana_foundation_sdk.models import elasticsearch as aggregations
from grafana_foundation_sdk.models import geomap as maps

ROOT = Path(__file__).parent.parent
GENERATED = "<!-- Written by grafana/generate.py; do not edit. -->"

Metric = Builder[aggregations.MetricAggregation]
Group = Builder[aggregations.BucketAggregation]
Panel = stat.Panel | timeseries.Panel | table.Panel | geomap.Panel

#: Where panels find their data: variables of the dashboards, so that they can be loaded into any Grafana.
FLOWS = dashboards.DataSourceRef(type_val="elasticsearch", uid="${flows}")
METRICS = dashboards.DataSourceRef(type_val="prometheus", uid="${metrics}")

#: When the traffic was. @timestamp is when it was processed, which for a backlog or a replay is another time; and the index of a day holds
#: the flows that started on it.
TIME = "start"

#: What the variables of a dashboard choose. An organization or a country is chosen on either end.
CHOSEN = (
    "meta.sensor_id:$sensor"
    " AND (meta.src_organization:$organization OR meta.dst_organization:$organization)"
    " AND (meta.src_country_name:$country OR meta.dst_country_name:$country)"
)

#: What stands for All in meta.sensor_id:$sensor; it matches flows without that field too.
EVERYTHING = "(*:*)"

BITS = elasticsearch.Sum().id("1").field("values.num_bits")
PACKETS = elasticsearch.Sum().id("2").field("values.num_packets")
COUNT = elasticsearch.Count().id("3")
FASTEST = elasticsearch.Max().id("4").field("values.bits_per_second")

#: Column of a table as Grafana names it → title and unit.
COLUMNS = {
    "Sum values.num_bits": ("Bits", "decbits"),
    "Sum values.num_packets": ("Packets", "short"),
    "Count": ("Flows", "short"),
    "Max": ("Fastest flow", "bps"),
}


def transformed(name: str, **options: object) -> dashboards.DataTransformerConfig:
    return dashboards.DataTransformerConfig(id_val=name, options=options)


#: Bits of an interval become bits a millisecond, which is kbit/s; Elasticsearch could divide with a script only. The names of series, which
#: then hold the calculation, are made what they were.
PER_SECOND = [
    transformed(
        "calculateField",
        mode="binary",
        binary={"left": {"matcher": {"id": "byType", "options": "number"}}, "operator": "/", "right": {"fixed": "$__interval_ms"}},
        replaceFields=True,
    ),
    transformed("renameByRegex", regex=r".*Value / \d+ ?(.*)", renamePattern="$1"),
]
KBITS_PER_SECOND = "Kbits"


def asked(metrics: list[Metric], groups: list[Group]) -> elasticsearch.Dataquery:
    query = elasticsearch.Dataquery().ref_id("A").datasource(FLOWS).time_field(TIME)
    return query.query(CHOSEN).metrics(metrics).bucket_aggs(groups)


def largest(field: str, size: int, number: str = "11", metric: Metric = BITS) -> Group:
    """The values of a field with the most bits, or flows."""
    settings = elasticsearch.ElasticsearchTermsSettings().order(aggregations.TermsOrder.DESC).order_by(metric.build().id_val)
    return elasticsearch.Terms().id(number).field(field).settings(settings.size(str(size)).min_doc_count("1"))


def by_time() -> Group:
    settings = elasticsearch.ElasticsearchDateHistogramSettings().interval("auto").min_doc_count("0")
    return elasticsearch.DateHistogram().id("21").field(TIME).settings(settings)


def total(title: str, description: str, metric: Metric, unit: str) -> stat.Panel:
    """One number for the time that is shown."""
    panel = stat.Panel().title(title).description(description).datasource(FLOWS).span(8).height(4).unit(unit)
    reduced = common.ReduceDataOptions().calcs(["sum"])
    return panel.interval("5m").with_target(asked([metric], [by_time()])).reduce_options(reduced)


def over_time(title: str, description: str, field: str, metric: Metric = BITS) -> timeseries.Panel:
    """A stacked area for each of the ten values of a field with the most bits."""
    panel = timeseries.Panel().title(title).description(description).datasource(FLOWS).span(12).height(9)
    panel = panel.interval("5m").with_target(asked([metric], [largest(field, 10, metric=metric), by_time()])).min(0)
    panel = panel.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL)).fill_opacity(50).line_width(1)
    if metric is BITS:
        return panel.unit(KBITS_PER_SECOND).transformations(PER_SECOND)
    return panel.unit("short")


def ranking(title: str, description: str, groups: Mapping[str, tuple[str, int]], *, span: int = 24) -> table.Panel:
    """A table of the 20 groups with the most bits.

    groups   field → title of its column, and how many of its values are looked at, the ones with the most bits
    """
    panel = table.Panel().title(title).description(description).datasource(FLOWS).span(span).height(11)
    terms = [largest(field, size, str(number)) for number, (field, (_, size)) in enumerate(groups.items(), 11)]
    names = {field: name for field, (name, _) in groups.items()} | {column: name for column, (name, _) in COLUMNS.items()}
    panel = panel.with_target(asked([BITS, PACKETS, COUNT, FASTEST], terms)).transformations(
        [
            transformed("organize", renameByName=names, indexByName={name: number for number, name in enumerate(names)}, excludeByName={}),
            transformed("sortBy", fields={}, sort=[{"field": "Bits", "desc": True}]),
            transformed("limit", limitField=20),
        ]
    )
    for name, unit in COLUMNS.values():
        panel = panel.override_by_name(name, [dashboards.DynamicConfigValue(id_val="unit", value=unit)])
    for field, (name, _) in groups.items():
        if field.endswith("_asn"):  # A number, but not a quantity.
            panel = panel.override_by_name(name, [dashboards.DynamicConfigValue(id_val="unit", value="none")])
    return panel


def places(title: str, description: str, field: str) -> geomap.Panel:
    """A map with a circle for each place, larger for more bits."""
    grid = elasticsearch.GeoHashGrid().id("11").field(field).settings(elasticsearch.ElasticsearchGeoHashGridSettings().precision("5"))
    where = common.FrameGeometrySource().mode(commons.FrameGeometrySourceMode.GEOHASH).geohash(field)
    style = {"size": {"field": "Sum", "min": 4, "max": 24, "fixed": 6}, "color": {"fixed": "blue"}, "opacity": 0.5}
    circles = (
        common.MapLayerOptions().type("markers").name(title).location(where).tooltip(True).config({"style": style, "showLegend": False})
    )
    panel = geomap.Panel().title(title).description(description).datasource(FLOWS).span(12).height(14).unit("decbits")
    panel = panel.with_target(asked([BITS], [grid])).view(geomap.MapViewConfig().id(maps.MapCenterID.ZERO).zoom(1)).layers([circles])
    return panel.override_by_name("Sum", [dashboards.DynamicConfigValue(id_val="displayName", value="Bits")])


def chooser(name: str, label: str, field: str, description: str) -> dashboard.QueryVariable:
    """A variable: the 500 most frequent values of a field in the time that is shown."""
    variable = dashboard.QueryVariable(name).label(label).description(description).datasource(FLOWS)
    variable = variable.query(json.dumps({"find": "terms", "field": field, "orderBy": "doc_count"}))
    variable = variable.refresh(dashboards.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboards.VariableSort.ALPHABETICAL_ASC)
    variable = variable.multi(True).include_all(True).all_value(EVERYTHING).allow_custom_value(True)
    return variable.current(dashboards.VariableOption(selected=True, text=["All"], value=["$__all"]))


def datasource(name: str, label: str, kind: str, uid: str, title: str) -> dashboard.DatasourceVariable:
    variable = dashboard.DatasourceVariable(name).label(label).type(kind)
    return variable.current(dashboards.VariableOption(selected=True, text=title, value=uid))


def board(
    name: str, title: str, description: str, variables: list[Builder[dashboards.VariableModel]], panels: list[Panel]
) -> dashboards.Dashboard:
    others = dashboard.DashboardLink("NetSage").type(dashboards.DashboardLinkType.DASHBOARDS).tags(["netsage"]).as_dropdown(True)
    made = dashboard.Dashboard(title).uid(f"netsage-{name}").description(description).tags(["netsage"]).timezone("browser")
    made = made.time("now-24h", "now").refresh("5m").link(others.keep_time(True).include_vars(True)).variables(variables)
    for number, panel in enumerate(panels, 1):
        made = made.with_panel(panel.id(number))
    return made.build()


def of_flows(name: str, title: str, description: str, panels: list[Panel]) -> dashboards.Dashboard:
    either = "Either end of a flow. The list holds those that sent; type the name of one that only received."
    variables: list[Builder[dashboards.VariableModel]] = [
        datasource("flows", "Flows from", "elasticsearch", "netsage-flows", "NetSage flows"),
        chooser("sensor", "Sensor", "meta.sensor_id", "Sensors that saw the flows."),
        chooser("organization", "Organization", "meta.src_organization", either),
        chooser("country", "Country", "meta.src_country_name", either),
    ]
    return board(name, title, description, variables, panels)


def traffic() -> dashboards.Dashboard:
    panels: list[Panel] = [
        total("Traffic", "Bits of all flows in the time that is shown.", BITS, "decbits"),
        total("Packets", "Packets of all flows in the time that is shown.", PACKETS, "short"),
        total("Flows", "Flows in the time that is shown, after stitching.", COUNT, "short"),
    ]
    registry = "Only flows of which that end is in the science registry."
    for what, field, note in (
        ("organization", "{}_organization", "Stacked, the ten largest."),
        ("country", "{}_country_name", "Stacked, the ten largest."),
        ("discipline", "scireg.{}.discipline", registry),
    ):
        panels.append(over_time(f"Sent, by {what}", f"bits/s by the {what} of the source. {note}", f"meta.{field.format('src')}"))
        panels.append(over_time(f"Received, by {what}", f"bits/s by the {what} of the destination. {note}", f"meta.{field.format('dst')}"))
    panels.append(
        over_time("Seen, by sensor", "bits/s that each sensor saw. What passes two sensors is counted by both.", "meta.sensor_id")
    )
    panels.append(
        over_time("Flows, by sensor", "Flows that began in each interval. A sensor that falls silent ends here.", "meta.sensor_id", COUNT)
    )
    description = (
        "How much was sent and when, by whom and to whom. A flow counts as a whole at the time it began, and is written when nothing more "
        "of it comes: the newest half hour is incomplete, and long flows come later still."
    )
    return of_flows("traffic", "NetSage: traffic", description, panels)


def talkers() -> dashboards.Dashboard:
    panels: list[Panel] = [
        ranking(
            "Organizations",
            "Who sent most to whom: the 20 largest of the 50 organizations that sent most and of each the 20 that it sent most to.",
            {"meta.src_organization": ("From", 50), "meta.dst_organization": ("To", 20)},
        ),
    ]
    for verb, side in (("sent", "src"), ("received", "dst")):
        asns = {f"meta.{side}_asn": ("ASN", 20), f"meta.{side}_organization": ("Organization", 5)}
        note = "An autonomous system has several rows when members of it are known by name. -1: unknown, or not to be known."
        panels.append(ranking(f"Autonomous systems that {verb}", f"Which networks {verb} most. {note}", asns, span=12))
    for verb, side in (("sent", "src"), ("received", "dst")):
        projects = {f"meta.scireg.{side}.project_names": ("Project", 20)}
        note = "A flow counts for each project of that end."
        panels.append(ranking(f"Projects that {verb}", f"Science projects by the registry. {note}", projects, span=12))
    addresses = {"meta.src_ip": ("From", 50), "meta.dst_ip": ("To", 20)}
    note = "An address stands for its network (a /24 or a /64), because the rest is removed."
    panels.append(ranking("Addresses", f"Which networks exchanged most: as for organizations. {note}", addresses))
    return of_flows("talkers", "NetSage: top talkers", "Who sends most, and to whom, in the time that is shown.", panels)


def flow_map() -> dashboards.Dashboard:
    note = "A circle stands for a cell of about 5 km; it is where GeoLite2 has the network, not where a host is."
    countries = {"meta.src_country_name": ("From", 50), "meta.dst_country_name": ("To", 20)}
    panels: list[Panel] = [
        places("Sent from", f"Where traffic comes from, larger for more bits. {note}", "meta.src_location"),
        places("Received at", f"Where traffic goes, larger for more bits. {note}", "meta.dst_location"),
        ranking("Countries", "Which country sent most to which: the 20 largest.", countries),
    ]
    return of_flows("map", "NetSage: flow map", "Where traffic comes from and goes to, in the time that is shown.", panels)


def measured(title: str, description: str, unit: str, expression: str, name: str) -> timeseries.Panel:
    """What an expression of Prometheus gives, over time."""
    panel = timeseries.Panel().title(title).description(description).datasource(METRICS).span(12).height(8).unit(unit).min(0)
    query = prometheus.Dataquery().ref_id("A").datasource(METRICS).expr(expression).legend_format(name).range()
    return panel.with_target(query).line_width(1).fill_opacity(10).show_points(commons.VisibilityMode.NEVER)


def state(title: str, description: str, expression: str, words: Mapping[int, tuple[str, str]]) -> stat.Panel:
    """A word for each chain.

    words   value → word and colour
    """
    panel = stat.Panel().title(title).description(description).datasource(METRICS).span(12).height(4).unit("none")
    results = {str(value): dashboards.ValueMappingResult(text=word, color=color) for value, (word, color) in words.items()}
    query = prometheus.Dataquery().ref_id("A").datasource(METRICS).expr(expression).legend_format("{{chain}}").instant()
    panel = panel.with_target(query).mappings([dashboards.ValueMap(options=results)]).graph_mode(commons.BigValueGraphMode.NONE)
    return panel.text_mode(commons.BigValueTextMode.VALUE_AND_NAME)


def rate(metric: str, by: str, window: str = "$__rate_interval") -> str:
    return f"sum by ({by}) (rate({metric}[{window}]))"


def health() -> dashboards.Dashboard:
    sampled = rate("netsage_sampled_seconds_total", "chain, stage", "30m"), rate("netsage_sampled_flows_total", "chain, stage", "30m")
    remembered = rate('netsage_ends_total{result="remembered"}', "chain"), rate("netsage_ends_total", "chain")
    commits = rate("netsage_commit_seconds_sum", "chain"), rate("netsage_commit_seconds_count", "chain")
    by_reason = "{{chain}} {{stage}}: {{reason}}"
    panels: list[Panel] = [
        state("Running", "Whether Prometheus reaches each process.", 'up{job="netsage"}', {0: ("down", "red"), 1: ("up", "green")}),
        state(
            "Ready",
            "A chain waits when the broker, Elasticsearch or room on the disk is missing; it goes on by itself.",
            "min by (chain) (netsage_ready)",
            {0: ("waits", "orange"), 1: ("ready", "green")},
        ),
        measured(
            "Flows in and out",
            "Flows taken, out of stitching, and stored, a second. Out is less than in, because parts are stitched and flows are dropped.",
            "short",
            rate("netsage_flows_total", "chain, direction"),
            "{{chain}} {{direction}}",
        ),
        measured(
            "Dropped flows",
            "Flows a second that stages left out, by reason. Nobody needs them.",
            "short",
            rate("netsage_dropped_flows_total", "chain, stage, reason"),
            by_reason,
        ),
        measured(
            "Dead letters",
            "How many were refused so far, by reason. Look at them: netsage-pipeline dead-letters list.",
            "short",
            "sum by (chain, stage, reason) (netsage_dead_letters_total)",
            by_reason,
        ),
        measured(
            "Queues",
            "Messages that wait for each chain; of an importer, files. What grows for an hour is not kept up with.",
            "short",
            "max by (chain) (netsage_queue_messages)",
            "{{chain}}",
        ),
        measured(
            "Behind",
            "Seconds between the newest end of a flow and now. Capture files of five minutes make it rise and fall by 300.",
            "s",
            "min by (chain) (netsage_newest_end_age_seconds)",
            "{{chain}}",
        ),
        measured(
            "Held flows",
            "Flows that stitching holds because more of them may come. They take memory: docs/design.md says how much.",
            "short",
            "sum by (chain) (netsage_held_flows)",
            "{{chain}}",
        ),
        measured(
            "Outbox",
            "What is finished and not stored yet. It grows while the output is away.",
            "short",
            "sum by (chain) (netsage_outbox_rows)",
            "{{chain}}",
        ),
        measured("Outbox, bytes", "The same in bytes.", "bytes", "sum by (chain) (netsage_outbox_bytes)", "{{chain}}"),
        measured(
            "Waiting",
            "Share of the time in which something was waited for.",
            "percentunit",
            rate("netsage_waited_seconds_total", "chain, what"),
            "{{chain}}: {{what}}",
        ),
        measured(
            "Reconnects",
            "How often a connection to RabbitMQ was made anew since the process started.",
            "short",
            "sum by (chain, link) (netsage_reconnects_total)",
            "{{chain}}: {{link}}",
        ),
        measured(
            "Time by stage",
            "Seconds that a stage takes for a flow, in the batches that are timed, within 30 minutes.",
            "s",
            f"{sampled[0]} / ({sampled[1]} > 0)",
            "{{chain}} {{stage}}",
        ),
        measured("Commits", "Seconds that a commit to the ledger takes.", "s", f"{commits[0]} / {commits[1]}", "{{chain}}"),
        measured(
            "Remembered ends",
            "Share of the ends of flows that had not to be looked up again. Below a half: many addresses, and stages take longer.",
            "percentunit",
            f"{remembered[0]} / {remembered[1]}",
            "{{chain}}",
        ),
        measured(
            "Looked up in vain",
            "Ends a second that a table had nothing for.",
            "short",
            rate("netsage_notes_total", "chain, note"),
            "{{chain}}: {{note}}",
        ),
        measured(
            "Repeated messages",
            "Messages a second that came again and were not taken again, as after a crash or when a file is published twice.",
            "short",
            rate("netsage_repeated_messages_total", "chain"),
            "{{chain}}",
        ),
        measured(
            "Message keys",
            "How full the memory of known messages is; full, the oldest are forgotten early.",
            "percentunit",
            "max by (chain) (netsage_keys_ratio)",
            "{{chain}}",
        ),
        measured(
            "Age of tables",
            "Since each lookup table was made. Older than 30 days: netsage-pipeline lookups update.",
            "s",
            "max by (table) (netsage_table_age_seconds)",
            "{{table}}",
        ),
        measured(
            "Silence",
            "Since each loop last told its numbers. More than a minute: it hangs.",
            "s",
            "max by (chain) (netsage_reading_age_seconds)",
            "{{chain}}",
        ),
        measured(
            "Memory", "Memory of each process.", "bytes", 'sum by (chain) (process_resident_memory_bytes{job="netsage"})', "{{chain}}"
        ),
        measured(
            "CPU",
            "Cores that each process keeps busy; a worker has one.",
            "short",
            rate('process_cpu_seconds_total{job="netsage"}', "chain"),
            "{{chain}}",
        ),
    ]
    variables: list[Builder[dashboards.VariableModel]] = [
        datasource("metrics", "Metrics from", "prometheus", "netsage-metrics", "NetSage metrics")
    ]
    return board("health", "NetSage: health", "What the importer, the worker and the sink say of themselves.", variables, panels)


INTRODUCTION = """
For Grafana 11.6 or later. The profile `grafana` of docker-compose.yml provisions them (`grafana/provisioning`). Elsewhere: import the
files, and choose the datasources at the top of each dashboard. What is changed in the browser is not kept: change `grafana/generate.py`,
which writes them and this page, then `make docs`.

- The time field is `start`, not `@timestamp`: a backlog or a replay is shown at the time of its traffic, and so it is in the index of
  that day.
- bits/s are the bits of an interval divided by its length, by Grafana. A flow counts as a whole in the interval in which it began, so a
  long one is a peak there.
- Organization and country choose flows that have it on either end.
- A table looks at the values with the most bits, as many as it says, and shows the 20 largest rows. Over several days Elasticsearch may
  count the smaller of them a little too low, because it asks each day's index for its largest only.
- Prometheus gives each process the label `chain` (`grafana/prometheus.yml`): worker, sink, importer, router.
- The background of a map is fetched from the internet, by the browser.

## What was tested

- Each query of a panel and of a variable, as Grafana would send it, on a real Elasticsearch that the sink filled with the demo's flows;
  with nothing chosen, and with two organizations and a country: the numbers are those that Python counts in the flows.
- Each expression on a real Prometheus that watches importer, worker and sink at work.
- That fields, metrics, labels, datasources and provisioning fit together.
- By hand, once: the calculations and renamings of columns, with Grafana's own library (@grafana/data 11.6.0 and 13.2.3).

The JSON is made with the types that Grafana Labs publishes for Grafana 11.6. It was not loaded into a Grafana, because none was at hand:
nobody has seen yet what the dashboards look like."""


def page(made: dict[str, dashboards.Dashboard]) -> Iterator[str]:
    yield "# Dashboards"
    yield GENERATED
    yield INTRODUCTION
    for name, each in made.items():
        yield f"\n## {each.title} (`grafana/dashboards/{name}.json`)\n"
        yield f"{each.description}\n"
        yield "| panel | what it shows |\n|---|---|"
        for panel in each.panels or []:
            yield f"| {panel.title} | {getattr(panel, 'description', '')} |"


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    made = {"traffic": traffic(), "talkers": talkers(), "map": flow_map(), "health": health()}
    for folder in ("grafana/dashboards", "docs"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for name, each in made.items():
        text = json.dumps(each, cls=JSONEncoder, indent=1, ensure_ascii=False)
        (directory / "grafana/dashboards" / f"{name}.json").write_text(text + "\n", "utf-8")
    (directory / "docs/dashboards.md").write_text("\n".join(page(made)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
