"""Log lines: on a terminal to be read, elsewhere one JSON object a line; in none of them an address or a secret.

Everything is written to standard error: what this project says through structlog, what libraries say through the standard library's
logging, warnings, and exceptions that nobody catches.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import structlog
from pydantic import BaseModel, SecretBytes, SecretStr

from netsage_pipeline.addresses import mask, parse
from netsage_pipeline.compose import Configured
from netsage_pipeline.config import SettingsError
from netsage_pipeline.times import iso

LEVELS = ("debug", "info", "warning", "error", "critical")
HIDDEN = "********"

#: Values are followed into each other so deeply.
_DEEPEST = 20
#: Characters; a longer row of hexadecimal digits, dots and colons is not searched but hidden as a whole.
_LONGEST_RUN = 1_000
#: Characters of the longest address.
_LONGEST_ADDRESS = 45

_RUN = re.compile(r"[0-9A-Fa-f:.]+")
_ESCAPE_BEFORE = re.compile(r"\\(?:[abfnrtv0'\"\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[0-7]{1,3})\Z")
_OCTET = r"(?:25[0-5]|2[0-4]\d|[01]?\d?\d)"
_IPV4 = re.compile(rf"({_OCTET}\.{_OCTET}\.{_OCTET}\.)({_OCTET})(?:/(\d{{1,2}})(?!\d))?")
_WORD = re.compile(r"\w")
_SINGLE_COLON = re.compile(r"[^:]:[^:]")
_LENGTH = re.compile(r"/(\d{1,3})(?!\d)")
_BYTES = re.compile(r"(?<!\w)[bB](?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")")
_CREDENTIALS = re.compile(r"(://[^\s/:@]*:)[^\s/]+@")
#: A password in a URL up to the first and up to the last @; the last one for those in which a / was not encoded.
_PASSWORDS = [re.compile(rf"://[^\s/:@]*:({each})@") for each in (r"[^\s/]+?", r"[^\s/]+", r"(?![^\s/]+@)\S+")]
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def configure(secrets: Sequence[str] = (), level: str = "") -> None:
    """Sends all log lines, warnings and uncaught exceptions to standard error. May be called again, when the secrets are known.

    secrets   texts that are shown as ********, see `secrets_of`
    level     debug, info, warning, error or critical, SettingsError for any other; default: NETSAGE_LOG_LEVEL, else info
    """
    level = level or os.environ.get("NETSAGE_LOG_LEVEL") or "info"
    if level.lower() not in LEVELS:
        raise SettingsError([f"NETSAGE_LOG_LEVEL: '{level}' is none of {', '.join(LEVELS)}"])
    readable = sys.stderr.isatty()
    redacted = Redaction(secrets, printable=readable)
    handler = _Handler(redacted, _Readable() if readable else _json)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def secrets_of(stages: Iterable[Configured]) -> list[str]:
    """The secrets in the settings of stages: all SecretStr, and the passwords in URLs, secret or not."""
    found: dict[str, None] = {}
    for stage in stages:
        for text, secret in _texts(stage.config):
            if secret and text:
                found[text] = None
            for password in (match[1] for pattern in _PASSWORDS for match in pattern.finditer(text)):
                found.update(dict.fromkeys((password, unquote(password))))
    return list(found)


def _texts(value: Any) -> Iterator[tuple[str, bool]]:
    """All texts in settings, and whether they are secret."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value(), True
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode("utf-8", "replace"), True
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _texts(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _texts(each)
    elif value is not None and not isinstance(value, bool | int | float | bytes):
        yield str(value), False


class Redaction:
    """Makes JSON values of anything, without addresses, secrets and bytes; names of fields too. Never raises.

    Addresses are masked as 70_deidentify does it. Networks stay (192.0.2.0/24), also those that are named without a bit of a host; what is
    longer than /24 or /64, and a prefix with a host in it, is masked like an address.

    secrets     shown as ********, also percent-encoded or escaped
    printable   control characters, which a terminal would obey, are shown as \\x1b
    """

    def __init__(self, secrets: Sequence[str] = (), *, printable: bool = False) -> None:
        longest_first = sorted({each for each in secrets if each}, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(_any_notation, longest_first))) if longest_first else None
        self._printable = printable

    def __call__(self, _logger: Any, _method: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """As a processor of structlog: the names time, level and event are ours."""
        ours = {"time": event["time"], "level": event["level"], "event": self.value(event["event"])}
        return {**ours, **self._named({name: value for name, value in event.items() if name not in ours}, 0)}

    def value(self, value: Any, depth: int = 0) -> Any:
        """Any value as JSON can say it."""
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if kind is float:
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return self.text(str.__str__(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return f"({memoryview(value).nbytes} bytes)"
        if depth > _DEEPEST:
            return "…"
        try:
            if isinstance(value, Mapping):
                return self._named(value, depth)
            if isinstance(value, list | tuple | set | frozenset):
                return [self.value(each, depth + 1) for each in value]
        except Exception as error:
            return f"(a {kind.__name__} that cannot be shown: {type(error).__name__})"
        return self.text(_shown(value))

    def _named(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for key, value in values.items():
            name = str(self.value(key, depth + 1))
            while name in named:  # Two addresses of one network.
                name += "'"
            named[name] = self.value(value, depth + 1)
        return named

    def text(self, text: str) -> str:
        """The text without what must not be seen."""
        if self._secrets:
            text = self._secrets.sub(HIDDEN, text)
        if "://" in text:
            text = _CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
        text = _BYTES.sub(_length_of, text)
        text = _RUN.sub(_without_ipv6, text)
        text = _IPV4.sub(_without_ipv4, text)
        return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if self._printable else text


def _any_notation(secret: str) -> str:
    """A pattern for a secret in which any character may be percent-encoded or escaped as Python and JSON do."""
    parts = []
    for character in secret:
        encoded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
        notations = [re.escape(character), f"(?i:{encoded})"]
        if not character.isascii() or not character.isalnum():
            notations += [re.escape(json.dumps(character)[1:-1]), re.escape(repr(character)[1:-1]), re.escape(ascii(character)[1:-1])]
            notations.append(re.escape("\\" + character))
        if character == " ":
            notations.append(r"\+")
        parts.append(f"(?:{'|'.join(dict.fromkeys(sorted(notations, key=len, reverse=True)))})")
    return "".join(parts)


def _length_of(literal: re.Match[str]) -> str:
    try:
        return f"({len(ast.literal_eval(literal[0]))} bytes)"
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "(bytes)"


def _without_ipv6(match: re.Match[str]) -> str:
    """A row of hexadecimal digits, dots and colons without the IPv6 addresses in it."""
    run = match[0]
    if run.count(":") < 2:
        return run
    if len(run) > _LONGEST_RUN:
        return HIDDEN
    parts = []
    begin = 0
    while begin < len(run):
        if run.count(":", begin) < 2:
            parts.append(run[begin:])
            break
        end = _end_of_address(match.string, match.start(), run, begin)
        if end == begin:
            parts.append(run[begin])
            begin += 1
            continue
        length = _LENGTH.match(match.string, match.end()) if end == len(run) else None
        parts.append(run[begin:end] if length and _is_network(run[begin:end], int(length[1])) else str(mask(run[begin:end])))
        begin = end
    return "".join(parts)


def _end_of_address(text: str, start: int, run: str, begin: int) -> int:
    """Where the longest address that begins there ends; `begin` if none does."""
    for end in range(min(len(run), begin + _LONGEST_ADDRESS), begin + 1, -1):
        address = run[begin:end]
        if ":" not in address or parse(address) is None:
            continue
        # Within a word two colons alone are none: Foo::Bar, std::f64.
        if _SINGLE_COLON.search(address) or not (_continues(text, start + begin) or _WORD.match(text, start + end)):
            return end
    return begin


def _continues(text: str, at: int) -> bool:
    """Whether a word or a number goes on there; the end of an escape such as \\n is no word."""
    return at > 0 and bool(_WORD.match(text, at - 1)) and not _ESCAPE_BEFORE.search(text[max(at - 6, 0) : at])


def _without_ipv4(match: re.Match[str]) -> str:
    length = match[3]
    rest = "" if length is None else f"/{length}"
    plain = ".".join(str(int(part)) for part in (match[1] + match[2]).split("."))
    return match[0] if length is not None and _is_network(plain, int(length)) else f"{match[1]}x{rest}"


def _is_network(address: str, length: int) -> bool:
    packed = parse(address)
    if packed is None or length > (24 if len(packed) == 4 else 64):
        return False
    bits = 8 * len(packed)
    return int.from_bytes(packed, "big") & ((1 << (bits - length)) - 1) == 0


def _shown(value: Any) -> str:
    try:
        return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    except Exception as error:
        return f"(a {type(value).__name__} that cannot be shown: {type(error).__name__})"


#: The processor at the end: makes a line of what the redaction left.
_Renderer = Callable[[Any, str, Any], str]


class _Handler(logging.Handler):
    """Writes to whatever standard error is at that time; a line that cannot be formatted is written with what there is of it."""

    def __init__(self, redacted: Redaction, rendered: _Renderer) -> None:
        super().__init__()
        self._redacted, self._rendered = redacted, rendered
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
                processors=[
                    _stamped,
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    redacted,
                    rendered,
                ],
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            line = self._plainly(record, error)
        try:
            sys.stderr.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # It is closed: there is nobody to tell.
            pass

    def _plainly(self, record: logging.LogRecord, error: Exception) -> str:
        values = {"event": record.msg, "values": record.args or (), "logger": record.name, "not_formatted": type(error).__name__}
        if record.exc_info and record.exc_info[0] is not None:
            values["exception"] = record.exc_info[0].__name__
        if isinstance(record.msg, dict):
            values |= {"event": record.msg.get("event", ""), "values": record.msg}
        return _json(None, "", self._redacted(None, "", {"time": iso(record.created), "level": record.levelname.lower(), **values}))


def _stamped(_logger: Any, _method: str, event: Any) -> Any:
    record: logging.LogRecord = event["_record"]
    values = {f"{name}_" if name in ("time", "level") else name: value for name, value in event.items()}
    return {"time": iso(record.created), "level": record.levelname.lower(), **values}


def _json(_logger: Any, _method: str, event: Any) -> str:
    return json.dumps(event, ensure_ascii=False)


class _Readable:
    """A line for a terminal, in colours unless NO_COLOR is set."""

    def __init__(self) -> None:
        colors = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )

    def __call__(self, logger: Any, method: str, event: Any) -> str:
        return self._render(logger, method, event)


def _uncaught(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is SystemExit:  # Of a thread.
        return
    exc_info: Any = (kind, error, trace)
    logging.getLogger("netsage_pipeline").critical("uncaught exception", exc_info=exc_info)
