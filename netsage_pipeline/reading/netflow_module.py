"""What Logstash's netflow module, and its codec before, wrote into Elasticsearch, as flows: NetFlow v5 and v9 by one set of names of the
codec and another one of the module, which leaves udp_dst_port as it is, IPFIX by its own, and firewalls (Cisco ASA) by names for both
directions. Source: the codec's netflow.yaml and ipfix.yaml, the module's netflow.conf.erb.
"""

from __future__ import annotations

from typing import Any

from netsage_pipeline.reading.foreign import Names

#: Which field of a flow is in which field of a document's `netflow`; the first one that it has counts.
NAMES = Names(
    src_ip=("ipv4_src_addr", "ipv6_src_addr", "sourceIPv4Address", "sourceIPv6Address", "src_addr"),
    dst_ip=("ipv4_dst_addr", "ipv6_dst_addr", "destinationIPv4Address", "destinationIPv6Address", "dst_addr"),
    src_port=("l4_src_port", "sourceTransportPort", "src_port", "tcp_src_port", "udp_src_port"),
    dst_port=("l4_dst_port", "destinationTransportPort", "dst_port", "tcp_dst_port", "udp_dst_port"),
    src_asn=("src_as", "bgpSourceAsNumber"),
    dst_asn=("dst_as", "bgpDestinationAsNumber"),
    src_ifindex=("input_snmp", "ingressInterface"),
    dst_ifindex=("output_snmp", "egressInterface"),
    protocol=("protocol", "protocolIdentifier"),
    times=(
        ("first_switched", "last_switched"),
        ("flowStartMilliseconds", "flowEndMilliseconds"),
        ("flowStartSeconds", "flowEndSeconds"),
        ("flow_start_msec", "event_time_msec"),
    ),
    octets=("in_bytes", "octetDeltaCount", "bytes", "fwd_flow_delta_bytes", "initiatorOctets"),
    packets=("in_pkts", "packetDeltaCount", "packets", "initiatorPackets"),
    sensor=("sensor",),
    out_octets=("out_bytes", "rev_flow_delta_bytes", "responderOctets"),
    out_packets=("out_pkts", "responderPackets"),
)


def fields_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a document's `netflow`, nested or flat (netflow.in_bytes), and its sensor; None if it is no such document."""
    nested = document.get("netflow")
    fields = dict(nested) if isinstance(nested, dict) else {}
    fields |= {name[8:]: value for name, value in document.items() if name.startswith("netflow.")}
    if not fields:
        return None
    fields["sensor"] = _sensor(document)
    return fields


def _sensor(document: dict[str, Any]) -> Any:
    """What the document says of its exporter: its own sensor, or the host that sent it."""
    host = document.get("host")
    if isinstance(host, dict):
        host = host.get("name") or host.get("hostname") or host.get("ip")
    given = document.get("sensor_id") or document.get("sensor") or host or document.get("host.name") or document.get("host.ip")
    return given[0] if isinstance(given, list) and given else given
