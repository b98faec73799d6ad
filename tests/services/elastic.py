"""A real Elasticsearch node of one's own, to be filled, stopped, killed and hung."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

START = Path(__file__).parents[3] / "shared" / "elasticsearch" / "start"


def available() -> bool:
    return START.exists()


class Node:
    """One node; its data outlives its process. With a URL it is that of NETSAGE_TEST_ELASTICSEARCH_URL, which cannot be stopped."""

    def __init__(self, port: int, directory: Path, url: str = "") -> None:
        self.port, self._data = port, directory
        self.url = url or f"http://127.0.0.1:{port}"
        self._ours = not url

    def start(self, settings: str = "") -> None:
        environment = {**os.environ, "ES_EXTRA_SETTINGS": settings, "ES_START_TIMEOUT": "300", "ES_HEAP": "1g"}
        command = [str(START), "--port", str(self.port), "--data", str(self._data), "--wait"]
        with Path(f"{self._data}.log").open("w") as log:
            subprocess.run(command, env=environment, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=400)

    @property
    def pid(self) -> int:
        if not self._ours:  # A file with a pid may lie there from another day.
            pytest.skip("the node of NETSAGE_TEST_ELASTICSEARCH_URL is not ours to stop")
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = os.environ.get("ES_CACHE") or Path(caches) / "netsage-elasticsearch"
        return int((Path(cache) / f"node-{self.port}" / "pid").read_text())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill9(self) -> None:
        """Ends it the hard way."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)

    def stop(self) -> None:
        """Lets it end as an operator does."""
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid)

    def client(self) -> Elasticsearch:
        return Elasticsearch(self.url, request_timeout=60)


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} does not end")
