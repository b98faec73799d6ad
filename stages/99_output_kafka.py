"""99 output kafka: publishes flows to a topic, and takes them for stored when all replicas confirmed them.

Reads   *
Writes  nothing
Source  nothing
Drops   nothing; what is longer than the topic takes goes to the dead letters
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.certificates import CaFile
from netsage_pipeline.config import Output, with_user
from netsage_pipeline.flow import Sink


class Config(Output):
    brokers: str = Field("localhost:9092", description="host:port of some brokers of the cluster, separated by commas")
    topic: str = Field("netsage", description="Topic to publish to")
    flows_per_message: int = Field(
        1,
        ge=1,
        description="1: each flow is a message, a JSON object, with its meta.id as key, so that flows of one id are in order in one "
        "partition; more: arrays of so many flows at most, without a key; a worker puts no more than 100 into one",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("zstd", description="none, gzip, snappy, lz4 or zstd")
    max_message_bytes: int = Field(
        1_000_000, ge=1_000, le=1_000_000_000, description="The topic's max.message.bytes; a longer flow becomes a dead letter"
    )
    user: str = Field("", description="User name (SASL); empty: no password is given")
    password: SecretStr | None = Field(None, validate_default=True, description="Its password")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the password is given: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    tls: bool = Field(False, description="Whether the brokers speak TLS there")
    ca_file: CaFile = Field(None, description="Certificates of the authorities that they are checked by; not set: the system's")

    @field_validator("brokers")
    @classmethod
    def _are_brokers(cls, brokers: str) -> str:
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ValueError("Kafka needs a library that is not installed: pip install 'netsage-pipeline[kafka]'")
        for one in brokers.split(","):
            _, _, port = one.strip().rpartition(":")
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", one.strip()) or not 0 < int(port) < 1 << 16:
                raise ValueError("is no list of brokers: write kafka1:9092,kafka2:9092")
        return brokers

    @field_validator("topic")
    @classmethod
    def _is_topic(cls, topic: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in (".", ".."):
            raise ValueError("is no name of a topic: letters, digits, . _ and - only, at most 249")
        return topic

    _has_user = field_validator("password")(with_user)

    @field_validator("ca_file")
    @classmethod
    def _is_of_use(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("tls") is False:
            raise ValueError("is for TLS: set tls = true, or leave it out")
        return path


def _settings(config: Config) -> dict[str, Any]:
    """As librdkafka names them."""
    settings: dict[str, Any] = {
        "bootstrap.servers": config.brokers,
        "compression.type": config.compression,
        "message.max.bytes": config.max_message_bytes,
        "batch.size": min(config.max_message_bytes, 1_000_000),
        "security.protocol": f"{'SASL_' if config.user else ''}{'SSL' if config.tls else 'PLAINTEXT'}",
    }
    if config.user and config.password:
        settings |= {
            "sasl.mechanism": config.mechanism,
            "sasl.username": config.user,
            "sasl.password": config.password.get_secret_value(),
        }
    return settings | ({"ssl.ca.location": str(config.ca_file)} if config.ca_file else {})


def sink(config: Config) -> Sink:
    from netsage_pipeline.outputs.kafka import KafkaSink  # Its library need not be installed where this file is only read.  # noqa: PLC0415

    return KafkaSink(_settings(config), config.topic, config.flows_per_message)
