"""The sink as a real process between a real broker and a real Elasticsearch: what was published, what is stored, what stands in front."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import signal
import ssl
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
import pika
from elasticsearch import ApiError, Elasticsearch

from netsage_pipeline import folders
from tests.services.elastic import Node
from tests.services.load import Limited, Piped
from tests.services.rabbitmq import Broker, Proxy, wait_for

#: The settings of the sink as they are shipped.
CONF = folders.shipped("conf.d") / "sink"

#: For `limits`.
REQUEST_S = "elastic.cluster:REQUEST_S"
PREPARED_S = "elastic.bulk:PREPARED_S"

#: Flows a message as the worker publishes them; some messages hold one.
TOGETHER = 50


class Found(NamedTuple):
    """What is in an index, or should be."""

    documents: int
    bits: int


class Sinking(Piped):
    """A queue of its own, an index prefix of its own, and the process between the two."""

    def __init__(self, broker: Broker, elastic: Node, directory: Path, *, conf: Path = CONF, url: str = "", **environment: str) -> None:
        super().__init__(broker, directory, "--conf", conf)
        self.elastic = elastic
        self.prefix = f"sink-{uuid.uuid4().hex[:12]}"
        self.published: dict[str, list[int]] = defaultdict(list)  # day → bits of each flow
        self._number = 0
        self._messages: list[bytes] = []
        self.environment |= {
            "NETSAGE_OUTPUT_KEY": self.input,
            "NETSAGE_SINK_DEAD_LETTERS": self.dead,
            "NETSAGE_SINK_STATE": str(self.ledger),
            "NETSAGE_ELASTICSEARCH_URL": url or elastic.url,
            "NETSAGE_INDEX_PREFIX": self.prefix,
            **environment,
        }

    def end(self) -> None:
        super().end()
        with contextlib.suppress(Exception), self.elastic.client() as client:
            for index in self.indices(client):
                client.indices.delete(index=index)
            client.options(ignore_status=404).indices.delete_index_template(name=self.prefix)

    # What is published.

    def flow(self, day: int = 0, **more: Any) -> dict[str, Any]:
        """A flow as the worker hands it out, with bits that no other one has."""
        self._number += 1
        number = self._number
        start = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day, milliseconds=number)
        return {
            "type": "flow",
            "start": _iso(start),
            "end": _iso(start + timedelta(seconds=1)),
            "stitched_flows": 1,
            "meta": {
                "id": f"{number:064x}",
                "src_ip": "128.101.1.x",
                "dst_ip": "134.68.22.x",
                "src_asn": number % 65_000,
                "protocol": "tcp",
            },
            "values": {"num_bits": 1 + number * 7_919, "num_packets": 1 + number % 99, "duration": 1.0},
            **more,
        }

    def publish(self, flows: int, days: tuple[int, ...] = (0,)) -> None:
        """So many flows, in messages of several or, one in ten, of one; they are expected from now on."""
        messages: list[bytes] = []
        while flows > 0:
            together = 1 if len(messages) % 10 == 9 else min(TOGETHER, flows)
            made = [self.flow(days[number % len(days)]) for number in range(together)]
            for each in made:
                self.expect(each)
            messages.append(orjson.dumps(made[0] if together == 1 else made))
            flows -= together
        self._messages += messages
        self._put(messages)

    def expect(self, flow: dict[str, Any]) -> None:
        self.published[flow["start"][:10].replace("-", ".")].append(flow["values"]["num_bits"])

    def publish_again(self) -> None:
        """All of it once more."""
        self._put(self._messages)

    def _put(self, messages: list[bytes]) -> None:
        with self.broker.channel() as channel:
            for body in messages:
                channel.basic_publish("", self.input, body, pika.BasicProperties(delivery_mode=2, message_id=uuid.uuid4().hex))

    @property
    def expected(self) -> dict[str, Found]:
        return {f"{self.prefix}-{day}": Found(len(bits), sum(bits)) for day, bits in sorted(self.published.items())}

    # What is stored.

    def indices(self, client: Elasticsearch) -> list[str]:
        return sorted(client.indices.get(index=f"{self.prefix}-*", expand_wildcards="all", filter_path="*.aliases").body)

    def found(self) -> dict[str, Found]:
        """Documents and the sum of their bits, by index."""
        found = {}
        with self.elastic.client() as client:
            for index in self.indices(client):
                client.indices.refresh(index=index)
                answer = client.search(
                    index=index, size=0, track_total_hits=True, aggregations={"bits": {"sum": {"field": "values.num_bits"}}}
                )
                found[index] = Found(answer["hits"]["total"]["value"], round(answer["aggregations"]["bits"]["value"]))
        return found

    def count(self) -> int:
        """Documents in all its indices; 0 where that cannot be said."""
        try:
            return sum(each.documents for each in self.found().values())
        except ApiError:
            return 0

    def documents(self) -> list[dict[str, Any]]:
        with self.elastic.client() as client:
            client.indices.refresh(index=f"{self.prefix}-*")
            hits = client.search(index=f"{self.prefix}-*", size=1_000)["hits"]["hits"]
        return [{"_index": hit["_index"], "_id": hit["_id"], **hit["_source"]} for hit in hits]

    def writes(self) -> int:
        """How often documents were written, over others or not, since the server was started."""
        with self.elastic.client() as client:
            return int(client.indices.stats(index=f"{self.prefix}-*", metric="indexing")["_all"]["primaries"]["indexing"]["index_total"])

    def wait_until_stored(self, seconds: float = 120) -> None:
        """Waits until all that was published is stored and acknowledged, and compares."""
        expected = self.expected
        total = sum(each.documents for each in expected.values())

        def is_stored() -> bool:
            assert self.worker.lasts(0.3), f"it ended with {self.worker.code}:\n{self.worker.said}"
            return self.count() >= total and not self.broker.count(self.input)

        try:
            wait_for(is_stored, seconds)
        except AssertionError:
            raise AssertionError(f"{self.found()} of {expected}\n{self.worker.said}") from None
        assert self.found() == expected

    def stop_when_done(self) -> None:
        """Tells it to stop; nothing is left in the queue, because it acknowledged all."""
        self.worker.tell(signal.SIGTERM)
        assert self.broker.count(self.input) == 0
        assert self.worker.says("stopped")[0]["owed"] == 0

    def comes_again(self) -> bool:
        """Whether the next message in the queue was delivered to somebody before."""
        with self.broker.channel() as channel:
            method, _, _ = channel.basic_get(self.input)
            if method is None:
                return False
            assert method.delivery_tag is not None
            channel.basic_nack(method.delivery_tag, requeue=True)
            return bool(method.redelivered)

    # What it says.

    def waits_for(self, text: str, process: Limited | None = None, seconds: float = 60) -> str:
        """Waits until it says that it waits for Elasticsearch because of this; gives the whole reason."""
        found: list[str] = []

        def says_so() -> bool:
            each = process or self.worker
            assert each.lasts(0.1), f"it ended with {each.code}:\n{each.said}"
            found[:] = [event["reason"] for event in each.says("waits for Elasticsearch") if text.lower() in event["reason"].lower()]
            return bool(found)

        wait_for(says_so, seconds)
        return found[-1]


class Front(Proxy):
    """Stands in front of Elasticsearch: asks for a user and a password, speaks TLS, and may cut off the answers to what was written.

    login      "user:password" or, for an API key, the key; "": anybody
    forgetful  whether an answer to a bulk request is thrown away and the connection aborted, when it has come
    """

    def __init__(self, elastic: Node, tls: ssl.SSLContext | None = None, login: str = "") -> None:
        self.forgetful = False
        self.forgotten = 0
        self.delay_s = 0.0  # by which an answer to a bulk request comes later
        self.limit = 0  # bytes of a request; a longer one is refused with 413
        self.too_long = 0
        self.forbids = b""  # requests that begin so are refused with 403
        self._login = base64.b64encode(login.encode()).decode() if ":" in login else login
        super().__init__(urlsplit(elastic.url).port or 9200, tls)

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://localhost:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head, body = await self._message(reader)
                refusal = self._refusal(head, body)
                if refusal:
                    writer.write(refusal)
                    await writer.drain()
                    continue
                server_writer.write(head + body)
                answer = b"".join(await self._message(server_reader))
                while self.silent:
                    await asyncio.sleep(0.05)
                if b"/_bulk" in head.partition(b"\r\n")[0]:
                    if self.forgetful:
                        self.forgotten += 1
                        break
                    await asyncio.sleep(self.delay_s)
                writer.write(answer)
                await writer.drain()
        for each in (writer, server_writer):
            each.transport.abort()
        self._writers -= {writer, server_writer}

    async def _message(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        """Head and body of a request or an answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length:
            return head, await reader.readexactly(int(length[1]))
        body = b""
        if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
            while not body.endswith(b"0\r\n\r\n"):
                body += await reader.readuntil(b"\r\n")
        return head, body

    def _refusal(self, head: bytes, body: bytes) -> bytes:
        if self._login:
            given = re.search(rb"(?i)\r\nauthorization: *(?:basic|apikey) +(\S+)", head)
            if given is None or given[1].decode() != self._login:
                return _answer("401 Unauthorized", b'{"error":{"type":"security_exception","reason":"no"},"status":401}')
        if self.forbids and head.startswith(self.forbids):
            return _answer("403 Forbidden", b'{"error":{"type":"security_exception","reason":"unauthorized"},"status":403}')
        if self.limit and len(body) > self.limit:
            self.too_long += 1
            return _answer("413 Request Entity Too Large", b"<html>too large</html>", "text/html")
        return b""


def _answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nx-elastic-product: Elasticsearch\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def front(elastic: Node, tls: ssl.SSLContext | None = None, login: str = "") -> Iterator[Front]:
    """One that ends with the test."""
    made = Front(elastic, tls, login)
    try:
        yield made
    finally:
        made.silent = False
        made.close()


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
