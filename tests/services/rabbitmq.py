"""A real RabbitMQ for tests, what tests do with it behind the back of the code under test, and a proxy that stands in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

SCRIPTS = Path(__file__).parents[3] / "shared" / "rabbitmq"


class Broker:
    """A node on a port of its own, or the one that NETSAGE_TEST_RABBITMQ_URL names, which cannot be stopped."""

    def __init__(self, port: int, data: Path, url: str = "") -> None:
        self.port = port
        self.url = url or f"amqp://guest:guest@127.0.0.1:{port}/"
        self._ours = not url
        self._data = data

    def start(self) -> None:
        self._run("start", "--port", str(self.port))

    def stop(self) -> None:
        self._run("stop", "--port", str(self.port))

    def kill9(self) -> None:
        """As a power cut would end it."""
        self._run("kill9", "--port", str(self.port))

    def end(self) -> None:
        """For good, with the name server that start began for this node alone."""
        self.kill9()
        environment = {**os.environ, "ERL_EPMD_PORT": str(self.port + 10_000)}
        subprocess.run(["epmd", "-kill"], env=environment, capture_output=True, check=False, timeout=30)  # Stays where a node is left.

    def ctl(self, *command: str) -> str:
        return self._run("ctl", str(self.port), *command)

    def _run(self, script: str, *arguments: str) -> str:
        if not self._ours:
            pytest.skip("the broker of NETSAGE_TEST_RABBITMQ_URL is not ours to stop or to change")
        # A file, because what start leaves behind would keep a pipe open.
        with (self._data / f"{script}.out").open("w+", encoding="utf-8") as said:
            code = subprocess.run(
                [SCRIPTS / script, *arguments],
                env={**os.environ, "NETSAGE_RABBITMQ_BASE": str(self._data)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=150,
                check=False,
            ).returncode
            said.seek(0)
            text = said.read()
        assert code == 0, f"{script} {' '.join(arguments)}: {text}"
        return text

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel of a client that has nothing to do with the code under test."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def declare(self, queue: str, **arguments: Any) -> None:
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments=arguments)

    def put(self, queue: str, bodies: list[bytes], properties: pika.BasicProperties | None = None) -> None:
        with self.channel() as channel:
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish("", queue, body, properties or pika.BasicProperties(delivery_mode=2), mandatory=True)

    def take(self, queue: str) -> list[tuple[pika.BasicProperties, bytes]]:
        """Empties a queue."""
        taken: list[tuple[pika.BasicProperties, bytes]] = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None or properties is None or body is None:
                    return taken
                taken.append((properties, body))

    def bodies(self, queue: str) -> list[bytes]:
        return [body for _, body in self.take(queue)]

    def count(self, queue: str) -> int:
        """The messages that are ready."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)


def available() -> bool:
    return bool(os.environ.get("NETSAGE_TEST_RABBITMQ_URL")) or (
        (SCRIPTS / "start").is_file() and Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists()
    )


def free_port(first: int) -> int:
    """The first of ten ports on which nobody listens."""
    for port in range(first, first + 10):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError(f"all of {first} to {first + 9} are taken")


class Proxy:
    """Stands between a client and a server: cuts connections, falls silent, and speaks TLS to the client."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.silent = False
        self.port = 0
        self.accepted = 0
        self._target = target
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def url(self) -> str:
        return f"amqp{'s' if self._tls else ''}://guest:guest@localhost:{self.port}/"

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _abort(self) -> None:
        for writer in [*self._writers]:
            writer.transport.abort()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # A refused handshake is what a test wants.
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "localhost", 0, family=socket.AF_INET, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._abort()
        await asyncio.sleep(0.1)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other_writer}
        await asyncio.gather(self._pass_on(reader, other_writer), self._pass_on(other_reader, writer))
        self._writers -= {writer, other_writer}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                while self.silent:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def wait_for(condition: Callable[[], bool], seconds: float = 60, doing: Callable[[], object] = lambda: None) -> None:
    """Until it is so; fails after so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        doing()
        time.sleep(0.01)
