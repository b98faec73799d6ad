"""The field table: what a flow holds when it comes in. What stages add is named in their docstrings; docs/fields.md has both."""

from __future__ import annotations

#: Field → type word and meaning, of a flow as an exporter's importer sends it.
EXPORTED: dict[str, str] = {
    "type": 'text, "flow"',
    "interval": "integer, seconds between two exports",
    "start": "number, unix seconds (milliseconds are accepted)",
    "end": "number, unix seconds (milliseconds are accepted)",
    "meta": "object, who",
    "meta.flow_type": "text, netflow, sflow or tstat",
    "meta.sensor_id": "text, name of the device that saw the flow",
    "meta.instance_id": "text or integer, which of the sensor's exporters",
    "meta.src_ip": "text, IPv4 or IPv6",
    "meta.dst_ip": "text, IPv4 or IPv6",
    "meta.src_port": "integer",
    "meta.dst_port": "integer",
    "meta.src_asn": "integer, autonomous system number as the exporter has it",
    "meta.dst_asn": "integer, autonomous system number as the exporter has it",
    "meta.src_ifindex": "integer, SNMP index of the interface",
    "meta.dst_ifindex": "integer, SNMP index of the interface",
    "meta.protocol": "text, in lower case: tcp, udp, icmp",
    "values": "object, how much",
    "values.duration": "number, seconds",
    "values.num_bits": "integer",
    "values.num_packets": "integer",
    "values.bits_per_second": "number",
    "values.packets_per_second": "number",
}
