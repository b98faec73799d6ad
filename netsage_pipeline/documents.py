"""The id of the document that a finished flow becomes: the same at every repetition, another one for another flow."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from netsage_pipeline.flow import Flow


def document_id(flow: Flow, otherwise: str = "") -> str:
    """32 hex digits, made of a flow's meta.id, start, end, stitched_flows, num_bits and num_packets.

    otherwise   what a record without meta.id is known by: the key of its message and its position in it

    TypeError if the flow holds in them what JSON cannot write. What else is in the flow makes no difference.
    """
    return blake2b(orjson.dumps(identity(flow, otherwise)), digest_size=16).hexdigest()


def identity(flow: Flow, otherwise: str = "") -> list[Any]:
    """What the id is made of."""
    meta, values = flow.get("meta"), flow.get("values")
    known_as = meta.get("id") if meta.__class__ is dict else None
    if not known_as and otherwise:
        return [otherwise]
    bits, packets = (values.get("num_bits"), values.get("num_packets")) if values.__class__ is dict else (None, None)
    return [known_as, flow.get("start"), flow.get("end"), flow.get("stitched_flows"), bits, packets]
