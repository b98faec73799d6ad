"""The id of the document that a finished flow becomes: the same at every repetition, another one for another flow."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.flow import Flow


def document_id(flow: Flow) -> str:
    """32 hex digits, made of a flow's meta.id, start, end, stitched_flows, num_bits and num_packets.

    A record without meta.id is known by all that it holds but for `document_id`: two of them are not to be taken for one.
    TypeError if that holds what JSON cannot write. What else is in the flow makes no difference.
    """
    return blake2b(orjson.dumps(identity(flow)), digest_size=16).hexdigest()


def identity(flow: Flow) -> list[Any]:
    """What the id is made of."""
    meta, values = flow.get("meta"), flow.get("values")
    known_as = meta.get("id") if meta.__class__ is dict else None
    if not known_as:
        return [blake2b(orjson.dumps(_without_id(flow)), digest_size=16).hexdigest()]
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
    """The flow with its id. TypeError if it holds what JSON cannot write."""
    plain = _without_id(flow)
    known_as = plain["document_id"] = document_id(flow)
    return Written(known_as, orjson.dumps(plain))


def _without_id(flow: Flow) -> Flow:
    return {name: value for name, value in flow.items() if name != "document_id"}
