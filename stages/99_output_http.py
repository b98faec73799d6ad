"""99 output http: posts flows to a URL, and takes them for stored when the server answered with 2xx.

Reads   *
Writes  nothing
Source  nothing
Drops   nothing; a flow that the server refuses goes to the dead letters, with the status
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.certificates import CaFile
from netsage_pipeline.config import Output
from netsage_pipeline.flow import Sink
from netsage_pipeline.outputs.posts import HttpSink
from netsage_pipeline.weburls import wrong_with


class Config(Output):
    url: SecretStr = Field(description="https://host/path that flows are posted to; http:// too")
    format: Literal["array", "ndjson"] = Field("array", description="array: a request is a JSON array; ndjson: a flow a line")
    flows_per_request: int = Field(500, ge=1, description="Flows in a request at most; it ends at 4 MB too")
    token: SecretStr | None = Field(None, description="Bearer token, for the header Authorization")
    headers: dict[str, SecretStr] = Field({}, description="Other headers of each request; their values are secrets")
    timeout_s: float = Field(60, ge=1, le=3_600, description="Seconds that sending a request may take, and each part of its answer")
    ca_file: CaFile = Field(None, description="Certificates of the authorities that an https server is checked by; not set: the system's")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: SecretStr) -> SecretStr:
        wrong = wrong_with(url.get_secret_value())
        if wrong:
            raise ValueError(f"it {wrong}: write https://host/path (a user or a password is given as a header)")
        return url

    @field_validator("token")
    @classmethod
    def _is_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not re.fullmatch(r"[\x21-\x7e]*", token.get_secret_value()):
            raise ValueError("holds what no header can: write the token alone")
        return token

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        token = info.data.get("token")
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
                raise ValueError("one has a name that no header can have")
            if name.lower() in ("content-type", "content-length", "transfer-encoding", "host", "idempotency-key"):
                raise ValueError(f"{name} is ours: leave it out")
            if name.lower() == "authorization" and token is not None and token.get_secret_value():
                raise ValueError(f"{name} and a token: set one of them")
            if not re.fullmatch(r"[\x20-\x7e]*", value.get_secret_value()):
                raise ValueError(f"{name} holds what no header can: printable ASCII characters only")
        return headers


def sink(config: Config) -> Sink:
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    if config.token is not None and config.token.get_secret_value():
        headers["Authorization"] = f"Bearer {config.token.get_secret_value()}"
    return HttpSink(
        config.url.get_secret_value(),
        headers,
        together=config.flows_per_request,
        lines=config.format == "ndjson",
        timeout_s=config.timeout_s,
        ca_file=config.ca_file,
    )
