"""Fetching a file over https, no longer than allowed and not again while it is unchanged."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import time
from base64 import b64encode
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,
)

from netsage_pipeline import __version__, weburls

#: Seconds for a connection, for the next bytes of an answer, and for all of it.
CONNECT_S, READ_S, WHOLE_S = 30, 60, 3_600

#: How many redirects are followed. MaxMind's downloads have one.
REDIRECTS = 5


class NotFetched(Exception):
    """The text is why, and what to do, in words that hold nothing of the address but its host."""


class Before(NamedTuple):
    """What an answer said of its content, "" where it said nothing. Given with the next request, it is only sent again if it changed."""

    etag: str = ""
    modified: str = ""


class Answer(NamedTuple):
    """What was fetched."""

    said: Before
    sha256: str


def wrong_with(url: str) -> str:
    """What is wrong with an address, in words that hold nothing of it; "" if nothing is. http is for this machine only."""
    wrong = weburls.wrong_with(url)
    if not wrong and urlsplit(url).scheme == "http" and not _is_this_machine(host_of(url)):
        return "begins with http://, which is for this machine only"
    return wrong


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def fetch(url: str, to: Path, limit: int, *, user: str = "", password: str = "", before: Before | None = None) -> Answer | None:
    """Writes what is at an address into a file; None if it is unchanged. NotFetched; OSError if the file cannot be written.

    limit            bytes
    user, password   are given to the host of this address, and to no other that it redirects to
    before           what the answer said when it was fetched last
    """
    headers = {"User-Agent": f"netsage-pipeline/{__version__}", "Accept-Encoding": "identity"}
    if before and before.etag:
        headers["If-None-Match"] = before.etag
    if before and before.modified:
        headers["If-Modified-Since"] = before.modified
    secret = {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"} if user else {}
    last = time.monotonic() + WHOLE_S
    try:
        with urllib3.PoolManager(ssl_context=ssl.create_default_context(), cert_reqs="CERT_REQUIRED") as pool:
            response = _asked(pool, url, headers, secret)
            try:
                return _received(response, to, limit, last)
            finally:
                response.close()
    except HTTPError as error:
        raise NotFetched(_reason(error)) from None


def _asked(pool: urllib3.PoolManager, url: str, headers: dict[str, str], secret: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """The answer behind the redirects."""
    first = urlsplit(url)
    for _ in range(REDIRECTS + 1):
        here = urlsplit(url)
        response = pool.request(
            "GET",
            url,
            headers=headers | (secret if _origin(here) == _origin(first) else {}),
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
        )
        location = response.get_redirect_location()
        if not location:
            return response
        response.close()
        url = urljoin(url, location)
        wrong = wrong_with(url) or ("begins with http://" if urlsplit(url).scheme != first.scheme == "https" else "")
        if wrong:
            raise NotFetched(f"it redirects to an address that {wrong}: correct the address")
    raise NotFetched(f"it redirects more than {REDIRECTS} times: correct the address")


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _received(response: urllib3.BaseHTTPResponse, to: Path, limit: int, last: float) -> Answer | None:
    if response.status == 304:
        return None
    if response.status != 200:
        raise NotFetched(_of_status(response.status))
    digest = hashlib.sha256()
    size = 0
    with to.open("wb") as file:
        while chunk := response.read1(1 << 16):
            size += len(chunk)
            if size > limit:
                raise NotFetched(f"it sends more than {limit:,} bytes: is the address right? else raise limit_bytes")
            if time.monotonic() > last:
                raise NotFetched(f"it was not all there after {WHOLE_S} s: the next run tries it again")
            digest.update(chunk)
            file.write(chunk)
    return Answer(Before(response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")), digest.hexdigest())


def _of_status(status: int) -> str:
    if status in (401, 403):
        return f"it refuses the account or the licence key ({status}): correct them, or ask for access"
    if status in (404, 410):
        return f"it has nothing at that address ({status}): correct the address"
    if status == 429:
        return "it was asked too often (429): ask it less often"
    return f"it answers with status {status}: the next run tries it again"


def _reason(error: HTTPError) -> str:
    if isinstance(error, SSLError):
        if why := weburls.untrusted(str(error)):
            return f"its certificate is not to be trusted: {why}: SSL_CERT_FILE names an authority of your own"
        return "it does not speak TLS there: correct the address"
    if isinstance(error, NameResolutionError):
        return "its name is not known: correct the address, or see to DNS"
    if isinstance(error, NewConnectionError):
        return f"no connection ({weburls.unconnected(str(error)) or 'no reason given'}): the next run tries it again"
    if isinstance(error, ConnectTimeoutError | TimeoutError):
        return "it does not answer: the next run tries it again"
    if isinstance(error, ProtocolError | IncompleteRead):
        return "the connection was lost before all was there: the next run tries it again"
    return f"its answer cannot be read ({type(error).__name__}): correct the address"
