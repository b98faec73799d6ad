"""The far end of the HTTP output: a real server in a thread that reads what is posted, keeps what it took, and fails as it is told."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Request(NamedTuple):
    """What was posted, and how it was answered: 0 if the connection was cut instead, behind what was stored or before."""

    headers: dict[str, str]
    documents: list[dict[str, Any]]
    length: int
    status: int

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]


class Answer(NamedTuple):
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    stores: bool = False  #: what it took, though it answers otherwise
    body: bytes = b""


#: Cuts the connection instead of answering.
CUT = Answer(0)


class Receiver:
    """One server on a port of its own.

    answers   status of the answer to what was posted
    silent    whether it answers nobody; who asks waits
    """

    def __init__(self, tls: Path | None = None) -> None:
        self.answers: Callable[[Request], Answer] = lambda _: Answer()
        self.silent = False
        self.delay_s = 0.0
        self.asked = 0
        self.requests: list[Request] = []
        self.documents: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._tls = tls
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}/flows?key=s3cret-in-url"

    def start(self) -> None:
        """Listens, after a first time at the same port."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        if self._tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._tls / "server.pem", self._tls / "server.key")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        """As if it were killed: nobody listens any more, and all connections are reset."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.reset()

    def took(self, headers: dict[str, str], body: bytes) -> Answer:
        """Reads a request and keeps it."""
        self.asked += 1
        while self.silent:
            time.sleep(0.02)
        time.sleep(self.delay_s)
        if headers["content-type"] == "application/x-ndjson":
            assert body.endswith(b"\n")
            documents = [orjson.loads(line) for line in body.splitlines()]
        else:
            assert headers["content-type"] == "application/json"
            documents = orjson.loads(body)
        with self._lock:
            answer = self.answers(Request(headers, documents, len(body), 0))
            self.requests.append(Request(headers, documents, len(body), answer.status))
            if 200 <= answer.status < 300 or answer.stores:
                self.documents += documents
        return answer

    def count(self) -> int:
        with self._lock:
            return len({each["document_id"] for each in self.documents})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """Who does not trust us leaves in the middle of the handshake."""

    def reset(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            if len(body) < int(headers["content-length"]):
                self.close_connection = True
                return
            answer = receiver.took(headers, body)
            if not answer.status:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            with contextlib.suppress(OSError):  # Who was killed does not listen any more.
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def receiving(tls: Path | None = None) -> Iterator[Receiver]:
    """One that ends with the test."""
    made = Receiver(tls)
    try:
        yield made
    finally:
        made.silent = False
        made.stop()
