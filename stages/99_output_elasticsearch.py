"""99 output elasticsearch: writes flows into daily indices, each under an id of its own content, so that a repetition changes nothing.

Reads   *
Writes  nothing
Source  nothing
Drops   nothing; what the mapping refuses goes to the dead letters, with the server's reason
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import orjson
import structlog
from elasticsearch import AuthorizationException
from pydantic import Field, field_validator

from netsage_pipeline.config import Output
from netsage_pipeline.documents import document_id
from netsage_pipeline.elastic import templates
from netsage_pipeline.elastic.bulk import Bulk, Document
from netsage_pipeline.elastic.cluster import Cluster, client, is_refusal
from netsage_pipeline.elastic.retention import wrong_with_prefix
from netsage_pipeline.flow import Flow, Stored
from netsage_pipeline.outputs.batches import encoded
from netsage_pipeline.times import day_of

log = structlog.get_logger(__name__)

DAY_S = 86_400


class Config(Cluster, Output):
    prefix: str = Field("om-ns-netsage", description="Beginning of the names of indices; the day a flow started follows, as -YYYY.MM.DD")
    time: str = Field(
        "start", min_length=1, description="Field that says of which day a record is, with dots where it lies inside of others"
    )

    @field_validator("prefix")
    @classmethod
    def _is_name(cls, prefix: str) -> str:
        if wrong := wrong_with_prefix(prefix):
            raise ValueError(wrong)
        return prefix


class ElasticSink:
    """Batches of flows as documents; a batch is stored when each of its documents is stored or refused."""

    def __init__(self, config: Config, fields: dict[str, str]) -> None:
        self._client = client(config)
        self._prefix, self._fields = config.prefix, fields
        self._time = config.time
        self._places = [name.split(".") for name, word in fields.items() if word == "location"]
        self._warned: set[str] = set()
        self._bulk = Bulk(self._client, self._install, _flow_of)

    def _install(self) -> None:
        """Sees to the index template. Whatever the client raises goes through, but for a user who may only write documents."""
        written_to = [f"{self._prefix}-{day_of(time.time() - ago)}" for ago in (0, DAY_S)]
        try:
            for line in templates.install(self._client, self._prefix, self._fields, written_to):
                log.info(line)
        except templates.TemplateError as error:
            self._warn(str(error))
        except AuthorizationException as error:
            if not is_refusal(error):  # It is read-only for now.
                raise
            self._warn(f"index template {self._prefix}: this user may not install it: let another one, netsage-pipeline fields --template")

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            log.warning(line)

    def write(self, batch: int, flows: list[Flow]) -> None:
        documents, _, refused = encoded(flows, partial(self._document, batch))
        self._bulk.write(batch, documents, refused)

    def _document(self, batch: int, flow: Flow) -> Document:
        """ValueError if it has no day, TypeError if it cannot be written as JSON."""
        day = day_of(_value(flow, self._time), self._time)
        known_as = document_id(flow).encode()
        flow.pop("document_id", None)
        for path in self._places:
            _bare(flow, path)
        body = orjson.dumps(flow)
        index = f"{self._prefix}-{day}"
        action = b'{"index":{"_index":"%s","_id":"%s"}}' % (index.encode(), known_as)
        return Document(batch, index, action, b'%s,"document_id":"%s"}' % (body[:-1], known_as))

    def stored(self, seconds: float = 0) -> list[Stored]:
        return self._bulk.stored(seconds)

    def close(self) -> None:
        self._bulk.close()


def _value(flow: Flow, path: str) -> Any:
    """What lies at a path; None if nothing does."""
    value: Any = flow
    for name in path.split("."):
        value = value.get(name) if value.__class__ is dict else None
    return value


def _bare(flow: Flow, path: list[str]) -> None:
    """Leaves of a place only its point: Elasticsearch takes no geo_point that says more, such as where it is from."""
    parent: Any = flow
    for name in path[:-1]:
        parent = parent.get(name)
        if parent.__class__ is not dict:
            return
    place = parent.get(path[-1])
    if place.__class__ is dict and len(place) > 2 and "lat" in place and "lon" in place:
        parent[path[-1]] = {"lat": place["lat"], "lon": place["lon"]}


def _flow_of(source: bytes) -> Flow:
    flow: Flow = orjson.loads(source)
    del flow["document_id"]
    return flow


def sink(config: Config, fields: dict[str, str]) -> ElasticSink:
    return ElasticSink(config, fields)
