"""The id of the document that a finished flow becomes: the same at every repetition, another one for another flow."""

from __future__ import annotations

from hashlib import blake2b

import orjson

from netsage_pipeline.flow import Flow


def document_id(flow: Flow, otherwise: str = "") -> str:
    """32 hex digits, made of a flow's meta.id, start, end, stitched_flows, num_bits and num_packets.

    otherwise   what a record without meta.id is known by: the key of its message and its position in it

    TypeError if the flow holds in them what JSON cannot write. What else is in the flow makes no difference.
    """
    meta, values = flow.get("meta"), flow.get("values")
    known_as = meta.get("id") if meta.__class__ is dict else None
    if not known_as and otherwise:
        return blake2b(orjson.dumps([otherwise]), digest_size=16).hexdigest()
    bits, packets = (values.get("num_bits"), values.get("num_packets")) if values.__class__ is dict else (None, None)
    told = orjson.dumps([known_as, flow.get("start"), flow.get("end"), flow.get("stitched_flows"), bits, packets])
    return blake2b(told, digest_size=16).hexdigest()
