"""The index template: how each field is mapped, and whose indices it is for. Installing it is tested with a real server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from netsage_pipeline import folders
from netsage_pipeline.elastic.templates import MAPPED, VERSION, template
from netsage_pipeline.fields import TYPES, known
from netsage_pipeline.stagefile import find

SHIPPED = known(find([folders.shipped("stages")]).values())

#: What version 1 makes of the fields that dashboards and the specification name. A field whose type changes needs a new VERSION.
KEYWORDS = """
    @pipeline_ver @version document_id es_doc_id tags type
    meta.country_scope meta.flow_type meta.id meta.instance_id meta.ip_version meta.is_network_testing meta.protocol meta.sensor_group
    meta.sensor_id meta.sensor_type meta.{}.community meta.{}_continent meta.{}_country_name meta.{}_discipline meta.{}_ip
    meta.{}_organization meta.{}_preferred_org meta.{}_project_names meta.{}_resource_name meta.scireg.{}.discipline
    meta.scireg.{}.org_abbr meta.scireg.{}.org_name meta.scireg.{}.project_abbrs meta.scireg.{}.project_names
    meta.scireg.{}.projects.project_name meta.scireg.{}.resource meta.scireg.{}.resource_abbr meta.scireg.{}.role
    PRIVATE.{}_ip PRIVATE.{}_organization
"""
LONGS = """
    interval meta.{}_asn meta.{}_ifindex meta.{}_port stitched_flows values.num_bits values.num_packets values.tcp_mss
    values.tcp_rexmit_bytes values.tcp_rexmit_pkts values.tcp_window_scale PRIVATE.{}_asn
"""
DOUBLES = """
    @processing_time meta.scireg.{}.latitude meta.scireg.{}.longitude values.bits_per_second values.duration values.packets_per_second
    values.tcp_rtt_avg values.tcp_rtt_std
"""
DATES = "@exit_time @ingest_time @timestamp start end"
POINTS = "meta.{}_location meta.{}_preferred_location"
EXPECTED = {
    name.format(side): kind
    for kind, names in (("keyword", KEYWORDS), ("long", LONGS), ("double", DOUBLES), ("date", DATES), ("geo_point", POINTS))
    for name in names.split()
    for side in ("src", "dst")
}


def leaves(properties: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Field → type of a mapping."""
    for name, field in properties.items():
        if "properties" in field:
            yield from leaves(field["properties"], f"{path}{name}.")
        else:
            yield f"{path}{name}", field["type"]


def mapped(fields: Mapping[str, str]) -> dict[str, str]:
    return dict(leaves(template("om-ns-netsage", fields)["template"]["mappings"]["properties"]))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_field_is_mapped_as_version_1_of_the_template_has_it(name: str) -> None:
    assert VERSION == 1
    assert mapped(SHIPPED)[name] == EXPECTED[name]


def test_every_field_but_objects_is_mapped_and_nothing_else_is_indexed() -> None:
    assert mapped(SHIPPED).keys() == {name for name, word in SHIPPED.items() if word != "object"}
    assert template("om-ns-netsage", SHIPPED)["template"]["mappings"]["dynamic"] is False


def test_every_type_word_has_a_mapping_but_for_those_that_stand_for_no_value() -> None:
    assert set(TYPES) - MAPPED.keys() == {"object", "removed"}


def test_no_setting_is_ours() -> None:
    assert template("om-ns-netsage", SHIPPED)["template"].keys() == {"mappings"}


def test_the_longer_prefix_has_the_higher_priority() -> None:
    feeds = [template(prefix, SHIPPED) for prefix in ("om-ns-netsage", "om-ns-netsage-tacc")]
    assert feeds[0]["priority"] < feeds[1]["priority"]
    assert [feed["index_patterns"] for feed in feeds] == [["om-ns-netsage-*"], ["om-ns-netsage-tacc-*"]]
