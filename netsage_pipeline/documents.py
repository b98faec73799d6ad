"""The id of the document that a finished flow becomes: the same at every repetition, another one for another flow."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.flow import Flow


def document_id(flow: Flow, otherwise: str = "") -> str:
    """32 hex digits, made of a flow's meta.id, start, end, stitched_flows, num_bits and num_packets.

    otherwise   what a record without meta.id is known by: a digest of all that it holds

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


class Written(NamedTuple):
    """A flow as it is written for a receiver that knows repeats by a field of it."""

    known_as: str  #: its document id
    body: bytes  #: the flow as JSON, with `document_id`

    @property
    def flow(self) -> Flow:
        """As it was before."""
        flow: Flow = orjson.loads(self.body)
        del flow["document_id"]
        return flow


def written(flow: Flow) -> Written:
    """The flow with its id, a record without meta.id under one of all that it holds. TypeError if it holds what JSON cannot write."""
    plain = {name: value for name, value in flow.items() if name != "document_id"}
    meta = flow.get("meta")
    has_id = meta.__class__ is dict and meta.get("id")
    known_as = document_id(plain, "" if has_id else blake2b(orjson.dumps(plain), digest_size=16).hexdigest())
    plain["document_id"] = known_as
    return Written(known_as, orjson.dumps(plain))
