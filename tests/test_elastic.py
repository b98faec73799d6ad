"""How Elasticsearch is named in settings, and what is said of its answers. With a server: tests/services/test_sink_access.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import elastic_transport
import elasticsearch
import pytest
from elastic_transport import ApiResponseMeta, HttpHeaders, NodeConfig

from netsage_pipeline import folders
from netsage_pipeline.config import read, settings_of
from netsage_pipeline.elastic.cluster import client, is_refusal, reason_of, refusal_of
from tests.conftest import load_stage

FILE = folders.shipped("conf.d") / "sink" / "99_output_elasticsearch.toml"
Config = load_stage("99_output_elasticsearch").Config


def configured(**environment: str) -> Any:
    """The settings, or the lines that say what is wrong with them."""
    config, errors = settings_of(Config, read(FILE, {f"NETSAGE_{name}": value for name, value in environment.items()}))
    return [line.removeprefix(f"{FILE}: ") for line in errors] if errors else config


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        pytest.param(
            {"ELASTICSEARCH_URL": "localhost:9200"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): it does not begin with http:// or https://: write https://host:9200 "
                "(user and password have settings of their own)",
            ],
            id="no scheme",
        ),
        pytest.param(
            {"ELASTICSEARCH_URL": "https://one:9200,https://u:secret@two:9200"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): URL 2 of 2 holds a user or a password: write https://host:9200 "
                "(user and password have settings of their own)",
            ],
            id="a password in the second URL",
        ),
        pytest.param(
            {"ELASTICSEARCH_URL": "https://:9200"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): it names no host or port that can be used: write https://host:9200 "
                "(user and password have settings of their own)",
            ],
            id="no host",
        ),
        pytest.param(
            {"ELASTICSEARCH_URL": "https://host:port"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): it is no URL: write https://host:9200 "
                "(user and password have settings of their own)"
            ],
            id="no port",
        ),
        pytest.param(
            {"ELASTICSEARCH_URL": "https://one:9200,"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): URL 2 of 2 does not begin with http:// or https://: "
                "write https://host:9200 "
                "(user and password have settings of their own)",
            ],
            id="an empty one",
        ),
        pytest.param(
            {"ELASTICSEARCH_URL": "https://one:9200,http://two:9200"},
            [
                "url: that value (from NETSAGE_ELASTICSEARCH_URL): some begin with http:// and some with https://: write them alike",
            ],
            id="http and https",
        ),
        pytest.param(
            {"ELASTICSEARCH_USER": "netsage"},
            ["password: that value (from default of NETSAGE_ELASTICSEARCH_PASSWORD): user and password belong together: set both, or none"],
            id="a user without password",
        ),
        pytest.param(
            {"ELASTICSEARCH_PASSWORD": "secret"},
            ["password: that value (from NETSAGE_ELASTICSEARCH_PASSWORD): user and password belong together: set both, or none"],
            id="a password without user",
        ),
        pytest.param(
            {"ELASTICSEARCH_USER": "netsage", "ELASTICSEARCH_PASSWORD": "secret", "ELASTICSEARCH_API_KEY": "key"},
            ["api_key: that value (from NETSAGE_ELASTICSEARCH_API_KEY): an API key and a user: set one of them"],
            id="a user and an API key",
        ),
        pytest.param(
            {"ELASTICSEARCH_CA_FILE": "/nowhere/ca.pem"},
            ["ca_file: '/nowhere/ca.pem' (from NETSAGE_ELASTICSEARCH_CA_FILE): cannot be read: No such file or directory"],
            id="a missing certificate",
        ),
        pytest.param(
            {"ELASTICSEARCH_CA_FILE": str(FILE)},
            [f"ca_file: '{FILE}' (from NETSAGE_ELASTICSEARCH_CA_FILE): is no certificate: give it as PEM"],
            id="no certificate",
        ),
        pytest.param(
            {"INDEX_PREFIX": "Flows"},
            [
                "prefix: 'Flows' (from NETSAGE_INDEX_PREFIX): is no beginning of index names: lower-case letters, digits, '.', '_' "
                "and '-', a letter or digit first, no wildcards",
            ],
            id="a prefix in capitals",
        ),
    ],
)
def test_what_is_wrong_with_a_setting_is_a_line(environment: dict[str, str], lines: list[str]) -> None:
    assert configured(**environment) == lines


def test_all_that_is_wrong_is_said_at_once_and_no_secret_in_it(tmp_path: Path) -> None:
    lines = configured(
        ELASTICSEARCH_URL="https://u:s3cret@host:9200",
        ELASTICSEARCH_USER="netsage",
        ELASTICSEARCH_PASSWORD_FILE=str(tmp_path / "missing"),
        ELASTICSEARCH_CA_FILE="/nowhere/ca.pem",
        INDEX_PREFIX="-x",
    )
    assert [line.partition(":")[0] for line in lines] == ["password_file", "url", "password", "ca_file", "prefix"]
    assert "s3cret" not in "".join(lines)


def test_empty_variables_are_as_if_they_were_not_set() -> None:
    names = ("URL", "USER", "PASSWORD", "PASSWORD_FILE", "API_KEY", "API_KEY_FILE", "CA_FILE")
    config = configured(**{f"ELASTICSEARCH_{name}": "" for name in names}, INDEX_PREFIX="")
    assert config == configured()
    assert (config.url.get_secret_value(), config.prefix) == ("http://localhost:9200", "om-ns-netsage")
    client(config).close()


def test_secrets_from_files_and_several_urls_become_a_client(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    config = configured(
        ELASTICSEARCH_URL="https://one, https://two:9243/path, HTTPS://[::1]",
        ELASTICSEARCH_USER="netsage",
        ELASTICSEARCH_PASSWORD_FILE=str(tmp_path / "password"),
    )
    made = client(config)
    nodes = [node.config for node in made.transport.node_pool.all()]
    assert sorted((node.scheme, node.host, node.port, node.path_prefix) for node in nodes) == [
        ("https", "::1", 443, ""),
        ("https", "one", 443, ""),
        ("https", "two", 9243, "/path"),
    ]
    http = client(configured(ELASTICSEARCH_URL="http://one"))
    assert [node.config.port for node in http.transport.node_pool.all()] == [80]
    http.close()
    assert made._headers["authorization"] == "Basic bmV0c2FnZTpzM2NyZXQ="
    made.close()


def meta(status: int) -> ApiResponseMeta:
    return ApiResponseMeta(status, "1.1", HttpHeaders(), 0.1, NodeConfig("http", "localhost", 9200))


@pytest.mark.parametrize(
    ("error", "reason", "refusal"),
    [
        (elastic_transport.ConnectionTimeout("x"), "it does not answer", False),
        (elastic_transport.ConnectionError("(<x>, '[Errno 111] Connection refused')"), "Connection refused", False),
        (elastic_transport.ConnectionError("IncompleteRead(0 bytes read)"), "the connection was lost", False),
        (
            elastic_transport.TlsError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"),
            "its certificate is not to be trusted: self-signed certificate",
            True,
        ),
        (elastic_transport.TlsError("[SSL] record layer failure"), "it does not speak TLS there: is it a port for http?", True),
        (
            elasticsearch.AuthenticationException("x", meta(401), {}),
            "it refuses the user, the password or the API key (401): correct them in the settings",
            True,
        ),
        (elasticsearch.ApiError("x", meta(502), "<html>"), "it answers with status 502", False),
        (
            elasticsearch.AuthorizationException("x", meta(403), {"error": {"type": "security_exception", "reason": "unauthorized"}}),
            "security_exception: unauthorized (status 403)",
            True,
        ),
        (
            elasticsearch.AuthorizationException(
                "x", meta(403), {"error": {"type": "cluster_block_exception", "reason": "blocked by: [x];"}}
            ),
            "cluster_block_exception: blocked by: [x]; (status 403)",
            False,
        ),
        (
            elasticsearch.UnsupportedProductError("x", meta(200), "secret"),
            "its answer is not that of Elasticsearch: is the URL that of something else?",
            False,
        ),
        (
            elastic_transport.SerializationError("Unable to deserialize as JSON: b'secret'"),
            "its answer is not that of Elasticsearch: is the URL that of something else?",
            False,
        ),
    ],
)
def test_why_a_request_failed(error: Exception, reason: str, refusal: bool) -> None:
    assert reason_of(error) == reason
    assert is_refusal(error) == refusal


def caused(kind: str, reason: str, by: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": kind, "reason": reason} | ({"caused_by": by} if by else {})


def parsing(field: str, kind: str, preview: str, by: dict[str, Any] | None = None) -> dict[str, Any]:
    where = f"failed to parse field [{field}] of type [{kind}] in document with id 'id'of 192.0.2.7'. Preview of field's value: '{preview}'"
    return caused("document_parsing_exception", f"[1:6] {where}", by)


_OUT_OF_RANGE = "Numeric value (99999999999999999999) out of range of long (-9223372036854775808 - 9223372036854775807)"
_SOURCE = '\n at [Source: (byte[])"{"n":99999999999999999999,"k":"SECRET"}"; line: 1, column: 26]'


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(
            parsing("meta.src_asn", "long", 'SE"CR"ET', caused("illegal_argument_exception", 'For input string: "SE"CR"ET"')),
            "meta.src_asn: document_parsing_exception: failed to parse field [meta.src_asn] of type [long]: "
            'illegal_argument_exception: For input string: "…"',
            id="a text",
        ),
        pytest.param(
            parsing("n", "long", "9" * 20, caused("illegal_argument_exception", f"Value [{'9' * 20}] is out of range for a long")),
            "n: document_parsing_exception: failed to parse field [n] of type [long]: "
            "illegal_argument_exception: Value […] is out of range for a long",
            id="a large number in a text",
        ),
        pytest.param(
            parsing(
                "n",
                "long",
                "9" * 20,
                caused(
                    "x_content_parse_exception",
                    f"[1:26] {_OUT_OF_RANGE}{_SOURCE}",
                    caused("input_coercion_exception", f"{_OUT_OF_RANGE}{_SOURCE}"),
                ),
            ),
            "n: document_parsing_exception: failed to parse field [n] of type [long]: "
            "x_content_parse_exception: Numeric value (…) out of range of long (…): "
            "input_coercion_exception: Numeric value (…) out of range of long (…)",
            id="a large number",
        ),
        pytest.param(
            parsing(
                "start",
                "date",
                "SECRET [x]",
                caused(
                    "illegal_argument_exception",
                    "failed to parse date field [SECRET [x]] with format [strict_date_optional_time||epoch_millis]",
                    caused("date_time_parse_exception", "Failed to parse with all enclosed parsers"),
                ),
            ),
            "start: document_parsing_exception: failed to parse field [start] of type [date]: "
            "illegal_argument_exception: failed to parse date field […]: "
            "date_time_parse_exception: Failed to parse with all enclosed parsers",
            id="a date",
        ),
        pytest.param(
            parsing("k", "keyword", "{s=SECRET}", caused("illegal_argument_exception", "Expected text at 1:6 but found START_OBJECT")),
            "k: document_parsing_exception: failed to parse field [k] of type [keyword]: "
            "illegal_argument_exception: Expected text but found START_OBJECT",
            id="an object",
        ),
        pytest.param(
            caused(
                "document_parsing_exception",
                "[1:6] object mapping for [meta] tried to parse field [meta] as object, but found a concrete value",
            ),
            "meta: document_parsing_exception: object mapping for [meta] tried to parse field [meta] as object, but found a concrete value",
            id="no object",
        ),
        pytest.param(
            caused("document_parsing_exception", f"[1:7] failed to parse: [1:9] Unexpected end-of-input (SECRET){_SOURCE}"),
            "document_parsing_exception: failed to parse: Unexpected end-of-input (…)",
            id="no field",
        ),
        pytest.param(
            caused(
                "illegal_argument_exception",
                'Document contains at least one immense term in field="k" (whose UTF8 encoding is longer than the max length 32766), '
                "all of which were skipped. The prefix of the first immense term is: '[83, 69, 67]...', "
                "original message: bytes can be at most 32766",
            ),
            'k: illegal_argument_exception: Document contains at least one immense term in field="…" (whose UTF8 encoding is longer '
            "than the max length 32766), all of which were skipped. The prefix of the first immense term is: '…', "
            "original message: bytes can be at most 32766",
            id="an immense term",
        ),
        pytest.param(
            caused(
                "strict_dynamic_mapping_exception", "[1:9] mapping set to strict, dynamic introduction of [x] within [meta] is not allowed"
            ),
            "meta.x: strict_dynamic_mapping_exception: mapping set to strict, dynamic introduction of [x] within [meta] is not allowed",
            id="a strict mapping",
        ),
        pytest.param(caused("index_closed_exception", "closed"), "index_closed_exception: closed", id="a closed index"),
        pytest.param({"type": "unknown"}, "unknown", id="no reason"),
    ],
)
def test_a_refusal_names_the_field_and_no_value(error: dict[str, Any], reason: str) -> None:
    assert refusal_of(error) == reason[:300]
    assert "SECRET" not in refusal_of(error)


def test_a_long_reason_is_soon_told() -> None:
    before = time.monotonic()
    refusal_of(caused("strict_dynamic_mapping_exception", f"dynamic introduction of [{' ' * 200_000}] within [meta] is not allowed"))
    assert time.monotonic() - before < 5
