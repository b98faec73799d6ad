"""The far end of a download: a real server in a thread, with TLS by an authority of the test's own, that answers as it is told."""

from __future__ import annotations

import base64
import contextlib
import io
import ssl
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class File:
    """What a path answers. With an ETag or a date it is not sent again to who has it."""

    body: bytes = b""
    status: int = 200
    etag: str = ""
    modified: str = ""
    account: str = ""  #: user:password that is asked for
    to: str = ""  #: where it redirects to
    cut: int | None = None  #: the connection ends behind so many bytes
    chunked: bool = False
    endless: bool = False
    pause_s: float = 0  #: between two bytes


@dataclass
class Far:
    """A server; `asked` are the requests that it got: path, status of the answer, headers."""

    url: str
    port: int
    files: dict[str, File] = field(default_factory=dict)
    asked: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)

    def statuses(self) -> list[int]:
        """Those of all requests since this was asked last."""
        found = [status for _, status, _ in self.asked]
        self.asked.clear()
        return found


@contextlib.contextmanager
def far(tls: Path | None) -> Iterator[Far]:
    """A server on a free port of this machine, with the certificate in that directory, or without TLS."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = made.files.get(self.path, File(status=404))
            status = self._status(file)
            made.asked.append((self.path, status, dict(self.headers)))
            self.close_connection = True
            with contextlib.suppress(OSError):  # Who asks may leave when it has enough.
                self._answer(file, status)

        def _status(self, file: File) -> int:
            if file.account and self.headers.get("Authorization") != f"Basic {base64.b64encode(file.account.encode()).decode()}":
                return 401
            if file.to:
                return 302
            known = self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")
            return 304 if file.status == 200 and any(known) and known == (file.etag or None, file.modified or None) else file.status

        def _answer(self, file: File, status: int) -> None:
            self.send_response(status)
            for name, value in (("ETag", file.etag), ("Last-Modified", file.modified), ("Location", file.to)):
                if value:
                    self.send_header(name, value)
            body = file.body if status == 200 else b""
            if file.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif not file.endless:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            while file.endless:
                self.wfile.write(b"x" * 65_536)
            if file.chunked:
                self.wfile.write(f"{len(body):x}\r\n".encode())
            for part in [body[: file.cut]] if not file.pause_s else [bytes([each]) for each in body]:
                self.wfile.write(part)
                time.sleep(file.pause_s)
            if file.chunked and file.cut is None:
                self.wfile.write(b"\r\n0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # Who does not trust us leaves in the middle of the handshake.
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    port = server.server_address[1]
    made = Far(f"{'https' if tls else 'http'}://localhost:{port}", port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive(**files: bytes) -> bytes:
    """A tar.gz as MaxMind sends it: all in a directory; a__b is a.b."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {"COPYRIGHT.txt": b"(c)", **files}.items():
            member = tarfile.TarInfo(f"of-today/{name.replace('__', '.').replace('_', '-')}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()
