"""A real Kafka node of one's own, to be killed and hung, and what is in its topics."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from confluent_kafka.cimpl import NewTopic

from tests.services.elastic import wait_for_end

SCRIPTS = Path(__file__).parents[3] / "shared" / "kafka"

PARTITIONS = 3


class Message(NamedTuple):
    """A message as it is in a topic."""

    partition: int
    key: str
    header: str  #: document_id, "" if it has none
    body: bytes

    @property
    def documents(self) -> list[dict[str, Any]]:
        value = orjson.loads(self.body)
        return value if isinstance(value, list) else [value]


def available() -> bool:
    return (SCRIPTS / "start").is_file()


class Node:
    """One node; its data outlives its process."""

    def __init__(self, port: int, data: Path) -> None:
        self.port, self._data = port, data
        self.brokers = f"127.0.0.1:{port}"
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._base = os.environ.get("NETSAGE_KAFKA_BASE") or str(Path(caches) / "netsage-kafka")  # Tests do not see our variables.

    def start(self, settings: str = "") -> None:
        self._run("start", "--data", str(self._data), KAFKA_EXTRA_SETTINGS=settings)

    def kill9(self) -> None:
        self._run("kill9")

    @property
    def pid(self) -> int:
        return int((Path(self._base) / f"node-{self.port}" / "pid").read_text())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _run(self, script: str, *arguments: str, **environment: str) -> None:
        pid = self.pid if script == "kill9" else 0
        with Path(f"{self._data}.log").open("w") as log:  # A file, because what start leaves behind would keep a pipe open.
            subprocess.run(
                [SCRIPTS / script, "--port", str(self.port), *arguments],
                env={**os.environ, "KAFKA_START_TIMEOUT": "120", "NETSAGE_KAFKA_BASE": self._base, **environment},
                check=True,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                timeout=300,
            )
        if pid:
            wait_for_end(pid)

    def topic(self, name: str, **settings: str) -> None:
        """Creates one, and waits until it is there."""
        new = NewTopic(name, PARTITIONS, 1, config={key.replace("_", "."): value for key, value in settings.items()})
        admin = AdminClient({"bootstrap.servers": self.brokers})
        for future in admin.create_topics([new], operation_timeout=30).values():
            future.result(60)

    def password(self, user: str, password: str) -> None:
        """Gives a user one (SCRAM)."""
        credentials = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4_096)
        admin = AdminClient({"bootstrap.servers": self.brokers})
        for future in admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, credentials, password.encode())]).values():
            future.result(60)

    def permit(self, user: str, topic: str) -> None:
        """Lets a user write to a topic."""
        rule = AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{user}", "*", AclOperation.WRITE, AclPermissionType.ALLOW
        )
        admin = AdminClient({"bootstrap.servers": self.brokers})
        for future in admin.create_acls([rule]).values():
            future.result(60)

    def count(self, topic: str) -> int:
        """Messages in a topic."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "tests"})
        try:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            return sum(consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=30)[1] for each in partitions)
        finally:
            consumer.close()

    def read(self, topic: str) -> list[Message]:
        """All that is in a topic, each partition in order."""
        settings = {"bootstrap.servers": self.brokers, "group.id": "tests", "enable.auto.commit": False, "enable.partition.eof": True}
        consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
        try:
            left = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in left])
            found = []
            while left:
                message = consumer.poll(30)
                assert message is not None, f"no answer from partitions {left} of {topic}"
                error = message.error()
                if error:
                    assert error.name() == "_PARTITION_EOF", error
                    left.discard(message.partition() or 0)
                    continue
                headers = dict(message.headers() or [])
                header, key, body = headers.get("document_id") or b"", message.key() or b"", message.value()
                assert isinstance(header, bytes)
                assert isinstance(key, bytes)
                assert isinstance(body, bytes)
                found.append(Message(message.partition() or 0, key.decode(), header.decode(), body))
        finally:
            consumer.close()
        return found
