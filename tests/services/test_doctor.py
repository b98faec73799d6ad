"""doctor looks at a whole site of real processes and servers, each hop of which is broken once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline import folders
from tests.command import COMMAND, run_real, surroundings, tables_with
from tests.services.conftest import absent
from tests.services.elastic import Node
from tests.services.load import Limited, Piped
from tests.services.rabbitmq import Broker, wait_for
from tests.services.sink import Sinking
from tests.services.test_metrics import now_flow

#: What is said of a hop: its name, its state, the words.
Line = tuple[str, str, str]

HOPS = ["files", "importer", "queue", "worker", "ledger", "dead letters", "queue", "sink", "dead letters", "index", "tables"]

#: Seconds in which doctor has to end, whatever hangs, on a machine that runs tests.
WITHIN = 15


class Site:
    """Importer, worker and sink with a broker and Elasticsearch between them."""

    def __init__(self, broker: Broker, elastic: Node, directory: Path) -> None:
        self.broker, self.elastic = broker, elastic
        self.captures = directory / "captures"
        self.captures.mkdir()
        self.lookups = tables_with(directory, {})
        self.sinking = Sinking(broker, elastic, directory / "sink")
        between = {name: self.sinking.environment[name] for name in ("NETSAGE_OUTPUT_KEY",)} | {
            "NETSAGE_OUTPUT_EXCHANGE": self.sinking.exchange
        }
        self.working = Piped(broker, directory / "worker", NETSAGE_LOOKUPS=str(self.lookups), NETSAGE_INACTIVITY_TIMEOUT_S="1", **between)
        with broker.channel() as channel:
            channel.queue_bind(self.sinking.input, self.sinking.exchange, self.sinking.input)
        self.import_state = directory / "import"
        self.environment = {
            **self.sinking.environment,
            **self.working.environment,
            "NETSAGE_IMPORT_STATE": str(self.import_state),
            "NETSAGE_IMPORT_METRICS": "127.0.0.1:0",
            "NETSAGE_SENSOR": "border-1",
            "NETSAGE_NFCAPD_DIR": str(self.captures),
            "NETSAGE_MIN_FILE_AGE_S": "3600",
        }
        self.directory = directory
        self.importers: list[Limited] = []
        self.numbers = 0
        self.said = ""

    def start_importer(self) -> Limited:
        log = self.directory / f"importer-{len(self.importers)}.log"
        conf = folders.shipped("conf.d") / "import"
        around = surroundings(self.lookups, **self.environment)
        self.importers.append(Limited(around, log, "run", "--conf", str(conf), limits={}))
        return self.importers[-1].works()

    def begin(self) -> None:
        self.start_importer()
        self.working.begin().works()
        self.sinking.begin().works()

    def new_file(self) -> None:
        """A capture file, of which only the name is looked at: it is too young to be imported."""
        (self.captures / time.strftime("nfcapd.%Y%m%d%H%M", time.gmtime())).write_bytes(b"x")

    def pass_flows(self, number: int) -> None:
        """Some flows through all of it, into the index."""
        before = self.sinking.count()
        self.working.put([now_flow(self.numbers + each) for each in range(number)])
        self.numbers += number
        wait_for(lambda: self.sinking.count() == before + number, 60, lambda: time.sleep(0.2))

    def doctor(self, *arguments: str, **environment: str) -> tuple[int, list[Line]]:
        """Its exit status and lines."""
        began = time.monotonic()
        outcome = run_real("doctor", *arguments, stdin=b"", lookups=self.lookups, **{**self.environment, **environment})
        assert time.monotonic() - began < WITHIN
        assert outcome.err == ""
        self.said = outcome.out.decode()
        found = [re.fullmatch(r"(.{13}) (.{8}) (\S.*)", line) for line in self.said.splitlines()]
        assert all(found), self.said
        return outcome.code, [(match[1].strip(), match[2].strip(), match[3]) for match in found if match]

    def says(self, hop: str, state: str, words: str, seconds: float = 20) -> int:
        """Waits until doctor says this of a hop; its exit status then."""
        codes: list[int] = []

        def is_said() -> bool:
            code, lines = self.doctor()
            codes[:] = [code]
            return any(name == hop and found == state and words in line for name, found, line in lines)

        try:
            wait_for(is_said, seconds, lambda: time.sleep(0.3))
        except AssertionError:
            raise AssertionError(f"{hop} {state} {words}\n{self.said}") from None
        return codes[0]

    def all_fine(self) -> None:
        """But for tables, which may be old."""

        def is_fine() -> bool:
            _, lines = self.doctor()
            return all(state == "fine" for name, state, _ in lines if name != "tables")

        try:
            wait_for(is_fine, 30, lambda: time.sleep(0.3))
        except AssertionError:
            raise AssertionError(self.said) from None

    def end(self) -> None:
        for each in self.importers:
            if each.code is None:
                each.kill()
        self.working.end()
        self.sinking.end()


@pytest.fixture(scope="module")
def whole(broker: Broker, elastic: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("nfdump") is None:
        absent("nfdump")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("NETSAGE_") and not name.startswith("NETSAGE_TEST_")]:
            patch.delenv(name)
        made = Site(broker, elastic, tmp_path_factory.mktemp("site"))
        try:
            made.begin()
            made.pass_flows(3)
            yield made
        finally:
            made.end()


@pytest.fixture
def site(whole: Site) -> Iterator[Site]:
    """The site when all of it is fine; so it is again when a test has mended what it broke."""
    whole.new_file()
    whole.all_fine()
    yield whole
    whole.all_fine()


def test_all_is_fine_with_counts(site: Site) -> None:
    code, lines = site.doctor()
    assert [name for name, _, _ in lines] == HOPS
    assert code == 0
    said = {name: words for name, _, words in lines}
    assert said["files"].startswith("border-1: ")
    assert said["worker"] == f"alive and ready: process {site.working.worker.pid} (3 flows in, 3 out)"
    assert said["sink"] == f"alive and ready: process {site.sinking.worker.pid} (3 flows in, 3 out)"
    assert said["ledger"].startswith("0 held, 0 owed, ")
    assert said["index"].startswith(f"{site.sinking.prefix}: 3 documents, 3 in the index of today, the newest of ")
    assert said["queue"] == f"{site.sinking.input}: 0 messages, 1 consumer"
    assert "guest" not in site.said
    assert "127.0.0.1" not in site.said


def test_files_that_stop_coming_and_a_directory_that_is_gone(site: Site) -> None:
    for file in site.captures.iterdir():  # One for each minute in which tests put some there.
        file.unlink()
    old = site.captures / "nfcapd.202001010000"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert site.says("files", "waiting", "does nfcapd run, and does the router send to it?") == 0
    local = site.captures / time.strftime("nfcapd.%Y%m%d%H%M", time.gmtime(time.time() - 5 * 3_600))
    local.write_bytes(b"x")
    assert site.says("files", "fine", "2 files, the newest of ") == 0
    local.unlink()
    old.unlink()
    (site.captures / "link").symlink_to("nowhere")
    (site.captures / ".snapshot").mkdir()
    (site.captures / ".snapshot" / "nfcapd.202001010000").write_bytes(b"x")
    assert site.says("files", "waiting", "holds no file yet: does nfcapd write there?") == 0
    shutil.rmtree(site.captures / ".snapshot")
    (site.captures / "link").unlink()
    site.captures.rmdir()
    assert site.says("files", "broken", "No such file or directory: see to it, or correct the directory in the settings") == 1
    site.captures.mkdir()
    site.new_file()


def test_an_importer_that_was_killed(site: Site) -> None:
    site.importers[-1].kill()
    assert site.says("importer", "broken", "not alive: start it: netsage-pipeline run --conf ") == 1
    site.start_importer()


def test_states_that_it_may_not_look_into(site: Site) -> None:
    states = {"importer": site.import_state, "ledger": site.working.ledger}
    for state in states.values():
        state.chmod(0)
    try:
        before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        around = surroundings(site.lookups, **site.environment)
        said = subprocess.run(
            [*before, str(COMMAND), "doctor"], env=around, capture_output=True, text=True, check=False
        ).stdout.splitlines()
    finally:
        for state in states.values():
            state.chmod(0o700)
    for hop, state in states.items():
        assert f"{hop:<13} broken   {state}: Permission denied: ask as its user, or as root" in said


def test_a_worker_that_was_killed_and_the_queue_before_it(site: Site) -> None:
    site.working.worker.kill()
    site.working.put([now_flow(10_000, meta={"src_ip": "10.0.0.1"})])
    assert site.says("worker", "broken", "not alive: start it: netsage-pipeline run --conf ") == 1
    assert site.says("queue", "waiting", f"{site.working.input}: 1 message, 0 consumers: nobody takes from it: see the next process") == 1
    site.working.begin().works()


def test_a_second_process_on_the_queue_of_a_chain_that_holds_flows(site: Site) -> None:
    with site.broker.channel() as channel:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(site.working.input, lambda *_: None)
        assert site.says("queue", "broken", "0 messages, 2 consumers: parts of one flow come to different processes: stop all but one") == 1


def test_a_broker_that_is_away(site: Site) -> None:
    site.broker.stop()
    try:
        assert site.says("queue", "broken", "RabbitMQ: Connection refused: start it, or correct its url in the settings") == 1
        site.says("worker", "waiting", "alive, not ready: waits for input broker: ")
        site.says("sink", "waiting", "alive, not ready: waits for input broker: ")
    finally:
        site.broker.start()


def test_a_broker_that_refuses_the_password_is_not_to_be_started(site: Site) -> None:
    code, lines = site.doctor(NETSAGE_RABBITMQ_URL=site.broker.url.replace("guest:guest", "guest:s3cret"))
    assert code == 1
    said = [said for hop, state, said in lines if (hop, state) == ("queue", "broken")]
    assert said
    assert all(each.endswith("RabbitMQ: it refuses the user or the password: correct them in the url") for each in said)


def test_a_broker_that_hangs_costs_seconds_only(site: Site) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"amqp://user:s3cret@127.0.0.1:{silent.getsockname()[1]}/"
        code, lines = site.doctor(NETSAGE_RABBITMQ_URL=url)
        assert code == 1
        assert ("queue", "broken", "does not answer within 6 s: see if it is overloaded") in lines
        assert "s3cret" not in site.said


@pytest.mark.parametrize("number", [1, 2])
def test_brokers_that_hang_leave_time_for_the_next_one(site: Site, number: int) -> None:
    with ExitStack() as open_ones:
        silent = [open_ones.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        urls = [f"amqp://user:s3cret@127.0.0.1:{each.getsockname()[1]}/" for each in silent]
        code, lines = site.doctor(NETSAGE_RABBITMQ_URL=",".join([*urls, site.broker.url]))
        assert [state for hop, state, _ in lines if hop in ("queue", "dead letters")] == ["fine"] * 4
        assert code == 0
        assert "s3cret" not in site.said


@pytest.mark.parametrize("damage", [lambda content: content[:20] + b"\0\0\0\0" + content[24:], lambda content: b"NSLG" + content[9:]])
def test_a_damaged_ledger(site: Site, damage: Callable[[bytes], bytes]) -> None:
    site.working.worker.tell(signal.SIGTERM)
    [*_, journal] = sorted(site.working.ledger.glob("journal-*"))
    content = journal.read_bytes()
    journal.write_bytes(damage(content))
    assert site.says("ledger", "broken", "netsage-pipeline ledger salvage") == 1
    journal.write_bytes(content)
    site.working.begin().works()


def test_dead_letters_with_their_reasons(site: Site) -> None:
    site.working.put(b"no JSON", b"nor this")
    command = f"netsage-pipeline dead-letters list --conf {folders.shipped('conf.d')}"
    assert site.says("dead letters", "waiting", f"2 letters (refused so far: 2 decode: not JSON): {command}") == 0
    site.broker.bodies(site.working.dead)


def test_a_sink_that_hangs(site: Site) -> None:
    os.kill(site.sinking.worker.pid, signal.SIGSTOP)
    try:
        long_ago = time.time() - 100
        for name in ("lock", "health"):
            os.utime(site.sinking.ledger / name, (long_ago, long_ago))
        assert site.says("sink", "broken", "it hangs: restart it") == 1
    finally:
        os.kill(site.sinking.worker.pid, signal.SIGCONT)


def test_elasticsearch_that_is_away_or_hangs(site: Site) -> None:
    site.elastic.signal(signal.SIGSTOP)
    try:
        assert site.says("index", "broken", "Elasticsearch: it does not answer: start it, or correct the settings of the sink") == 1
    finally:
        site.elastic.signal(signal.SIGCONT)
    site.all_fine()
    site.elastic.stop()
    try:
        assert site.says("index", "broken", "Elasticsearch: Connection refused: start it, or correct the settings of the sink") == 1
    finally:
        site.elastic.start()


def test_an_index_that_may_not_be_written_and_a_template_that_is_gone(site: Site) -> None:
    prefix = site.sinking.prefix
    with site.elastic.client() as client:
        indices = f"{prefix}-*"
        client.indices.put_settings(index=indices, settings={"index.blocks.read_only_allow_delete": True})
        assert site.says("index", "broken", "may not be written (a full disk?): make room, then take the block off its settings") == 1
        client.indices.put_settings(index=indices, settings={"index.blocks.read_only_allow_delete": None})
        site.all_fine()
        client.indices.delete_index_template(name=prefix)
        assert site.says("index", "broken", "its index template is gone: restart the sink, or install what") == 1
        site.sinking.worker.tell(signal.SIGTERM)
        site.sinking.begin().works()
        time.sleep(0.5)
        site.pass_flows(1)


@pytest.mark.parametrize(
    ("content", "state", "words"),
    [
        (b"MaxMind", "broken", "is no MaxMind DB file, or is truncated: fetch it again"),
        (None, "waiting", "missing: scireg.mmdb: put them there"),
    ],
)
def test_a_table_that_is_broken_or_missing(site: Site, content: bytes | None, state: str, words: str) -> None:
    table = site.lookups / "scireg.mmdb"
    before = table.read_bytes()
    new = site.lookups / ".new"
    with suppress(FileNotFoundError):
        table.unlink()
    if content is not None:
        new.write_bytes(content)
        new.rename(table)
    assert site.says("tables", state, words) == (1 if state == "broken" else 0)
    new.write_bytes(before)
    new.rename(table)


def test_settings_that_are_wrong_and_an_importer_that_was_never_set_up(site: Site, tmp_path: Path) -> None:
    code, lines = site.doctor(NETSAGE_SENSOR="")
    assert code == 0
    [(_, state, words)] = [line for line in lines if line[0] == "import"]
    assert state == "waiting"
    assert words.startswith("is not set up: ")
    assert "set NETSAGE_SENSOR" in words
    outcome = run_real("doctor", stdin=b"", lookups=site.lookups, **{**site.environment, "NETSAGE_RABBITMQ_URL": "http://x"})
    assert outcome.code == 2
    assert "is not set up" not in outcome.out.decode()
    conf = tmp_path / "sink"
    shutil.copytree(folders.shipped("conf.d") / "sink", conf)
    outcome = run_real("doctor", "--conf", conf, stdin=b"", lookups=site.lookups, **site.environment)
    names: list[Any] = [line.split()[0] for line in outcome.out.decode().splitlines()]
    assert names == ["queue", "sink", "dead", "index", "tables"]
