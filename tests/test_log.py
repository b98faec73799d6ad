"""Log lines: no address and no secret in any of them, none lost, and what is no address stays."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from netsage_pipeline import log
from netsage_pipeline.addresses import parse
from netsage_pipeline.config import Settings, SettingsError

Lines = Callable[[], list[Any]]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:], level, sys.excepthook, threading.excepthook, sys.unraisablehook = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was logged since the last call."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def addresses_in(text: str) -> set[bytes]:
    """Every address that can be read anywhere in a text."""
    found = set()
    for run in re.findall(r"[0-9A-Fa-f:.]+", text):
        for begin in range(len(run)):
            for end in range(begin + 2, min(len(run), begin + 45) + 1):
                packed = parse(run[begin:end])
                if packed is not None:
                    found.add(packed)
    return found


@st.composite
def notations(draw: st.DrawFn) -> str:
    """An address as inet_pton takes it."""
    if draw(st.booleans()):
        return str(ipaddress.IPv4Address(draw(st.integers(0, 2**32 - 1))))
    numbers = draw(st.lists(st.one_of(st.just(0), st.integers(0, 0xFFFF)), min_size=8, max_size=8))
    groups = [draw(st.sampled_from([f"{number:x}", f"{number:X}", f"{number:04x}"])) for number in numbers]
    if draw(st.booleans()):
        last = ".".join(str(number >> shift & 255) for number in numbers[6:] for shift in (8, 0))
        groups[6:] = [last]
    begin = draw(st.integers(0, len(groups) - 1))
    end = begin
    while end < len(groups) and set(groups[end]) == {"0"}:
        end += 1
    if end > begin and draw(st.booleans()):
        return f"{':'.join(groups[:begin])}::{':'.join(groups[end:])}"
    return ":".join(groups)


PLACES = [
    "{}",
    "from {} to us",
    "({!r}, 5672)",
    "('{}', 5672, 0, 0)",
    "[{}]:5672",
    "{}, {}",
    "src={},dst={};",
    "b\"{}\" '{}'",
    r"b'\n{}\x00{}\t'",
    r"'one\n{}\x00{}\\'",
    "{}/128",
    "http://[{}]/",
    "<{}>",
    "{}%eth0",
    "host:{}",
    "{}.",
    "{}...",
    "({}): refused",
    "é {} é",
    "first\n{}\nlast",
]

placed = st.builds(lambda place, ip: (place.replace("{!r}", "'{}'").replace("{}", ip), ip), st.sampled_from(PLACES), notations())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=placed, name=notations(), inner=placed)
def test_no_address_in_any_notation_and_at_any_place_is_in_a_line(
    capsys: pytest.CaptureFixture[str], text: tuple[str, str], name: str, inner: tuple[str, str]
) -> None:
    log.configure(level="debug")
    own, library = structlog.get_logger(), logging.getLogger("library")
    given_ip, nested_ip = ipaddress.ip_address(text[1]), ipaddress.ip_address(inner[1])
    own.info(text[0], value=inner[0], **{name: 1, inner[0]: 2})
    own.warning("nested", value={"a": [(inner[0], {name: {text[0]}})]}, b=SimpleNamespace(ip=text[1]), ip=nested_ip)
    library.debug("%s and %r", text[0], (inner[0], 5672), extra={"more": name})
    library.debug("%d", text[0])
    try:
        try:
            raise KeyError(inner[0])
        except KeyError:
            raise ValueError(text[0], nested_ip) from OSError(name)
    except ValueError as error:
        own.exception("failed", error=error)
        library.debug("failed", exc_info=True)
    said = capsys.readouterr().err
    assert said.count("\n") == 6
    # In this notation only: 0:0:0:0:x:x:x:x holds nothing that can be read as an address.
    assert addresses_in(said).isdisjoint({given_ip.packed, nested_ip.packed, socket.inet_pton(*family_of(name))}), said


def family_of(ip: str) -> tuple[int, str]:
    return (socket.AF_INET6 if ":" in ip else socket.AF_INET), ip


@pytest.mark.parametrize(
    "text",
    [
        "waits for RabbitMQ: rabbitmq:5672",
        "2026-11-20T23:50:00.123Z 12:34:56.789",
        "std::f64::consts Foo::Bar core::option::Option",
        "networks 192.0.2.0/24, 10.0.0.0/8 and 2001:db8::/32",
        "netsage-pipeline 1.2.6, Python 3.11.7, pi 3.14",
        "00:11:22:33:44:55",
        "stages/50_asn.py:25: end() raised ValueError: a.b.c.d",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "300.400.500.600 1.2.3",
        "face:b00c dead:beef",
        "................ : :5672 ---",
        "it's b and 'quoted'",
        "Ünïcödé – ✓",
    ],
)
def test_what_is_no_address_stays(lines: Lines, text: str) -> None:
    log.configure(level="info")
    structlog.get_logger().info(text, value=[text], **{f"name {text}": {text: text}})
    assert lines()[0] | {"time": ""} == {"time": "", "level": "info", "event": text, "value": [text], f"name {text}": {text: text}}


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_a_text_in_which_no_address_can_be_read_stays(text: str) -> None:
    if not addresses_in(text) and not re.search(r"[bB]['\"]|://", text) and len(text) < 1_000:
        assert log.Redaction().text(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        pytest.param("10.1.2.3:5672", "10.1.2.x:5672", id="a port"),
        pytest.param("[2001:db8::1]:5672", "[2001:db8:0:0:x:x:x:x]:5672", id="a port behind brackets"),
        pytest.param("1:2:3:4:5:6:7:8:5672", "1:2:3:4:x:x:x:x:5672", id="a port behind eight groups"),
        pytest.param("192.0.2.1/24", "192.0.2.x/24", id="a prefix with a host in it"),
        pytest.param("192.0.2.128/25 192.0.2.0/32", "192.0.2.x/25 192.0.2.x/32", id="a prefix within one network of 70"),
        pytest.param("2001:db8::1/64 2001:db8::/128", "2001:db8:0:0:x:x:x:x/64 2001:db8:0:0:x:x:x:x/128", id="such of IPv6"),
        pytest.param("192.000.002.001", "192.000.002.x", id="leading zeros"),
        pytest.param("sensor192.0.2.1.pcap", "sensor192.0.2.x.pcap", id="within a name"),
        pytest.param("nfcapd_2001:db8::1_x", "nfcapd_2001:db8:0:0:x:x:x:x_x", id="IPv6 within a name"),
        pytest.param("300.192.0.2.1", "300.192.0.x.1", id="behind a number"),
        pytest.param("ab:" * 400, "********", id="a row without end"),
        pytest.param(r"b'\xc0\x00\x02\x01' and B\"ab\"", r"(4 bytes) and B\"ab\"", id="a bytes literal"),
        pytest.param("b'\\xzz'", "(bytes)", id="what looks like a bytes literal"),
    ],
)
def test_what_is_left_of_a_text(text: str, seen: str) -> None:
    assert log.Redaction().text(text) == seen


def test_a_line_is_a_json_object_with_time_level_event_and_the_values(lines: Lines) -> None:
    log.configure(level="info")
    structlog.get_logger().bind(queue="in").warning("waits for RabbitMQ", server="rabbitmq:5672", attempt=3, share=0.5, last=None)
    logging.getLogger("some.library").error("gone %s", "away")
    own, theirs = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", own.pop("time"))
    assert list(own) == ["level", "event", "queue", "server", "attempt", "share", "last"]
    assert list(own.values()) == ["warning", "waits for RabbitMQ", "in", "rabbitmq:5672", 3, 0.5, None]
    assert theirs | {"time": ""} == {"time": "", "level": "error", "event": "gone away", "logger": "some.library"}


def test_what_is_below_the_level_is_not_written(lines: Lines) -> None:
    log.configure(level="WARNING")
    structlog.get_logger().info("own")
    logging.getLogger("library").info("theirs")
    structlog.get_logger().error("wrong")
    assert [line["event"] for line in lines()] == ["wrong"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"NETSAGE_LOG_LEVEL: 'loud' is none of debug, info"):
        log.configure(level="loud")


def test_values_with_the_names_of_ours_are_kept_beside_them(lines: Lines) -> None:
    log.configure(level="info")
    structlog.get_logger().info("here", time="yesterday", level=3)
    line = lines()[0]
    assert (line["level"], line["time_"], line["level_"]) == ("info", "yesterday", 3)


def test_two_addresses_of_one_network_are_two_names(lines: Lines) -> None:
    log.configure(level="info")
    structlog.get_logger().info("ends", ends={"192.0.2.1": 1, "192.0.2.2": 2})
    assert lines()[0]["ends"] == {"192.0.2.x": 1, "192.0.2.x'": 2}


def test_of_bytes_only_the_length_is_written(lines: Lines) -> None:
    log.configure(level="info")
    structlog.get_logger().info("got", body=b"secret", more=[bytearray(b"secret"), memoryview(b"secret")], **{"in": {b"secret": 1}})
    logging.getLogger("library").info("%r %s", b"secret", ValueError(b"sec'ret", b'"secret"'))
    own, theirs = lines()
    assert (own["body"], own["more"], own["in"]) == ("(6 bytes)", ["(6 bytes)", "(6 bytes)"], {"(6 bytes)": 1})
    assert theirs["event"] == "(6 bytes) ((7 bytes), (8 bytes))"


class Unspeakable:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("192.0.2.1")

    def __iter__(self) -> Any:
        raise RuntimeError("192.0.2.1")


class UnspeakableMapping(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("192.0.2.1")


def test_what_cannot_be_shown_costs_no_line(lines: Lines) -> None:
    log.configure(level="info")
    endless: dict[str, Any] = {}
    endless["endless"] = endless
    own, library = structlog.get_logger(), logging.getLogger("library")
    own.info("one", value=Unspeakable(), mapping=UnspeakableMapping(a=1), numbers=[float("nan"), float("inf"), 2**80], lone="\ud800")
    own.info("two", endless=endless)
    own.info("three %s %d", "x")
    own.info("four", exc_info=5)
    own.info(None)
    own.info({"six": Unspeakable()})
    library.info("seven %d", "x")
    library.info("eight %s", Unspeakable())
    library.info(Unspeakable())
    try:
        raise ValueError(Unspeakable())
    except ValueError:
        own.exception("ten")
    said = lines()
    assert len(said) == 10
    assert said[0]["value"] == "(a Unspeakable that cannot be shown: RuntimeError)"
    assert said[0]["numbers"] == ["nan", "inf", 2**80]
    assert [line["event"] for line in said[6:8]] == ["seven %d", "eight %s"]
    assert said[6]["values"] == ["x"]
    assert "192.0.2.1" not in str(said)


PASSWORD = "p@ss/w%rd ü'\"\\1"


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(PASSWORD, id="as it is"),
        pytest.param("p%40ss%2Fw%25rd%20%C3%BC%27%22%5C1", id="percent-encoded"),
        pytest.param("p%40ss/w%25rd+%c3%bc%27%22%5c1", id="otherwise percent-encoded"),
        pytest.param(repr(PASSWORD)[1:-1], id="as Python writes it"),
        pytest.param(ascii(PASSWORD)[1:-1], id="as Python writes it in ASCII"),
        pytest.param(json.dumps(PASSWORD)[1:-1], id="as JSON writes it"),
    ],
)
def test_a_secret_in_any_notation_is_hidden(lines: Lines, written: str) -> None:
    log.configure([PASSWORD], "info")
    try:
        raise OSError(f"login with <{written}> failed")
    except OSError:
        structlog.get_logger().exception(f"<{written}>", **{written: [written, {written}]})
    line = lines()[0]
    assert (line["event"], line["********"]) == ("<********>", ["********", ["********"]])
    assert "ss" not in line["exception"].partition("OSError: ")[2].partition("<")[2].partition(">")[0]
    assert "login with <********> failed" in line["exception"]


def test_the_longer_of_two_secrets_is_hidden_as_a_whole(lines: Lines) -> None:
    log.configure(["", "abc", "abcdef"], "info")
    structlog.get_logger().info("abcdef abc")
    assert lines()[0]["event"] == "******** ********"


def test_passwords_in_urls_are_hidden_also_when_nobody_named_them(lines: Lines) -> None:
    log.configure(level="info")
    structlog.get_logger().info("amqp://me:one@a:5672/%2F amqps://me:tw@o@b,amqp://me:three@c https://d/e:f")
    assert lines()[0]["event"] == "amqp://me:********@a:5672/%2F amqps://me:********@b,amqp://me:********@c https://d/e:f"


class Inner(BaseModel):
    token: SecretStr = SecretStr("inner")


class Config(Settings):
    url: SecretStr = SecretStr("amqp://me:p%40ss@host:5672")
    hosts: tuple[str, ...] = ("http://a:raw/slash@x", "amqp://u:one@h1,amqp://u:two@h2")
    nothing: SecretStr | None = None
    empty: SecretStr = SecretStr("")
    inner: Inner = Inner()
    by_name: dict[str, SecretStr] = Field({"a": SecretStr("named")})
    plain: str = "plain"
    number: int = 5


def test_secrets_of_settings_are_all_secret_texts_and_the_passwords_in_urls() -> None:
    stages: Any = [SimpleNamespace(config=Config())]
    secrets = log.secrets_of(stages)
    assert {"amqp://me:p%40ss@host:5672", "p%40ss", "p@ss", "raw/slash", "one", "two", "inner", "named"} <= set(secrets)
    assert {"", "plain", "5", "me"}.isdisjoint(secrets)


def test_warnings_and_uncaught_exceptions_of_threads_go_the_same_way(lines: Lines) -> None:
    log.configure(level="info")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("from 192.0.2.1", stacklevel=1)
    thread = threading.Thread(target=lambda: int("192.0.2.1"))
    thread.start()
    thread.join()
    quiet = threading.Thread(target=sys.exit)
    quiet.start()
    quiet.join()
    warning, uncaught = lines()
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: from 192.0.2.x" in warning["event"]
    assert uncaught["event"] == "uncaught exception"
    assert "invalid literal for int() with base 10: '192.0.2.x'" in uncaught["exception"]


DYING = "from netsage_pipeline import log; log.configure(['hidden'], 'info'); raise ValueError('192.0.2.1', 'hidden')"


def test_an_uncaught_exception_is_one_line_too() -> None:
    done = subprocess.run([sys.executable, "-c", DYING], capture_output=True, text=True, check=False)
    line = json.loads(done.stderr)
    assert done.returncode == 1
    assert line["level"] == "critical"
    assert line["exception"].endswith("ValueError: ('192.0.2.x', '********')")


def on_a_terminal(script: str, **environment: str) -> str:
    """What a script writes when standard error is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], stderr=theirs, env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment}
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as file:
        while part := file.read(4096):
            written += part
    process.wait()
    return written.decode().replace("\r\n", "\n")


SPEAKING = (
    "import structlog; from netsage_pipeline import log; log.configure(level='info')\n"
    "structlog.get_logger().info('ends', ip='192.0.2.1', name='\\x1b[2Jgone')\n"
    "raise ValueError('2001:db8::1')"
)


def test_on_a_terminal_lines_are_readable_and_obey_nothing_that_is_in_a_value() -> None:
    said = on_a_terminal(SPEAKING, NO_COLOR="1")
    assert "\x1b" not in said
    assert "[info     ] ends" in said
    assert "ip=192.0.2.x name=\\x1b[2Jgone\n" in said
    assert said.endswith("ValueError: 2001:db8:0:0:x:x:x:x\n")
    coloured = on_a_terminal(SPEAKING)
    assert "\x1b[" in coloured
    assert "\x1b[2J" not in coloured
    assert "192.0.2.1" not in coloured


def test_a_closed_standard_error_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log.configure(level="info")
    closed = (tmp_path / "closed").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    structlog.get_logger().info("nobody hears it")
    monkeypatch.setattr(sys, "stderr", None)
    structlog.get_logger().info("nobody hears it")
