"""The HTTP output with a real server: what it gets, each kind of answer, TLS, and a server that is killed or silent."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from hashlib import blake2b
from pathlib import Path

import orjson
import pytest

from netsage_pipeline.documents import document_id
from tests.certificates import certificates
from tests.command import conf_with, letters, run_real, written
from tests.flows import flow as raw
from tests.services.passing import Passing
from tests.services.rabbitmq import Broker, wait_for
from tests.services.receiver import CUT, Answer, Receiver, Request, receiving
from tests.services.test_outages import Watch

#: For `limits`: seconds of waiting after which it says so what it does not say at once, and the longest pause.
PATIENCE_S = "outputs.senders:PATIENCE_S"
LAST_PAUSE = "outputs.senders:LAST_PAUSE"

#: Bytes: by how much a worker may grow while nothing is stored.
GROWTH = 120_000_000

Made = Callable[..., Passing]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def passing(broker: Broker, tmp_path: Path) -> Iterator[Made]:
    made: list[Passing] = []

    def make(receiver: Receiver, output: str = "") -> Passing:
        made.append(Passing(broker, tmp_path / f"run-{len(made)}", "http", f'url = "{receiver.url}"\n{output}', "the HTTP server"))
        return made[-1]

    yield make
    for each in made:
        each.end()


def key_of(request: Request) -> str:
    """As documented: the digest of the ids in the request."""
    return blake2b("".join(each["document_id"] for each in request.documents).encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("form", ["array", "ndjson"])
def test_flows_are_posted_with_headers_and_a_key_and_each_has_its_id(passing: Made, receiver: Receiver, form: str) -> None:
    run = passing(receiver, f'format = "{form}"\nflows_per_request = 200\ntoken = "s3cret"\nheaders = {{ X-Tenant = "s3cret too" }}')
    run.publish(3_000)
    run.begin()
    run.until_done(receiver.count)
    assert run.compare(receiver.documents) == 0
    assert all(document_id(run.published[each["document_id"]]) == each["document_id"] for each in receiver.documents)
    assert max(len(request.documents) for request in receiver.requests) == 200
    for request in receiver.requests:
        assert request.key == key_of(request)
        assert request.headers["authorization"] == "Bearer s3cret"
        assert request.headers["x-tenant"] == "s3cret too"
    assert not run.worker.says("waits for")
    assert "s3cret" not in run.said


def test_a_replay_posts_as_many_as_its_summary_says_and_keeps_what_is_refused(receiver: Receiver, tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"01_input_rabbitmq": None, "99_output_rabbitmq": None, "99_output_http": f'url = "{receiver.url}"'})
    dump = written(tmp_path / "dump.ndjson", *(raw(meta={"src_port": 1_024 + number}) for number in range(2_500)))
    receiver.answers = lambda request: Answer(400 if any(each["meta"]["src_port"] == 2_000 for each in request.documents) else 204)
    outcome = run_real("replay", dump, "--conf", conf, "--dead-letters", tmp_path / "dead.ndjson")
    assert outcome.code == 0, outcome.err
    assert outcome.summary["written"] == receiver.count() == len(receiver.documents) == 2_499
    [letter] = letters(tmp_path / "dead.ndjson")
    assert letter["reason"] == "the server refuses it with status 400"
    assert letter["payload"]["meta"]["src_port"] == 2_000
    assert "document_id" not in letter["payload"]
    receiver.answers = lambda _: Answer()
    again = run_real("replay", tmp_path / "dead.ndjson", "--conf", conf)
    assert again.summary["written"] == 1
    assert receiver.count() == 2_500


def test_what_is_no_fault_of_the_flows_is_posted_again_under_the_same_key_until_it_is_stored(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver)
    failures = [
        *(Answer(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)),
        CUT,
        Answer(500, stores=True),
        CUT._replace(stores=True),
    ]
    number = len(failures)

    def sometimes(_: Request) -> Answer:
        if failures and len(receiver.requests) % 2 == 0:
            return failures.pop()
        return Answer(202)

    receiver.answers = sometimes
    run.limits = {LAST_PAUSE: 0.5}
    run.publish(12_000)
    run.begin()
    run.until_done(receiver.count)
    assert not failures
    assert run.compare(receiver.documents) > 0  # What was stored though it was not said is there twice.
    assert sum(not 200 <= request.status < 300 for request in receiver.requests) == number
    known: dict[str, list[str]] = {}
    for request in receiver.requests:
        ids = [each["document_id"] for each in request.documents]
        assert known.setdefault(request.key, ids) == ids
    assert Counter(request.key for request in receiver.requests).most_common(1)[0][1] > 1
    assert {request.key for request in receiver.requests if request.status != 202} <= {
        request.key for request in receiver.requests if request.status == 202
    }
    assert run.broker.count(run.dead) == 0


@pytest.mark.parametrize("date", [False, True])
def test_it_comes_back_when_the_server_asked_it_to(passing: Made, receiver: Receiver, date: bool) -> None:
    run = passing(receiver)
    times: list[float] = []

    def later(_: Request) -> Answer:
        times.append(time.time())
        after = formatdate(times[0] + 5, usegmt=True) if date else "4"
        return Answer(429, (("Retry-After", after),)) if len(times) == 1 else Answer()

    receiver.answers = later
    run.publish(1)  # Else the other sender may have posted some already.
    run.begin()
    run.until_done(receiver.count)
    assert 3.9 <= times[1] - times[0] < 9
    assert len(run.worker.says("waits for the HTTP server")) == 1
    assert len(run.worker.says("goes on with the HTTP server")) == 1


def test_a_request_that_is_too_long_is_halved_and_only_a_flow_that_is_too_long_is_a_dead_letter(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver)
    receiver.answers = lambda request: Answer(413 if request.length > 20_000 else 200)
    run.publish(2_000)
    long = run.flow(pad="x" * 30_000)
    run.publish_all([long], expected=False)
    run.publish(2_000)
    run.begin()
    run.until_done(receiver.count, dead=1)
    [letter] = run.letters()
    assert letter["reason"] == "the server refuses it with status 413"
    assert letter["payload"] == long
    assert run.compare(receiver.documents) == 0
    too_long = sum(request.status == 413 for request in receiver.requests)
    assert too_long < len(receiver.requests) / 3  # It learned what is too long.


def test_only_the_flow_that_is_to_blame_is_a_dead_letter_with_the_status(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver)

    def picky(request: Request) -> Answer:
        found = [each["refused"] for each in request.documents if "refused" in each]
        return Answer(found[0], body=b"value s3cret is wrong") if found else Answer()

    receiver.answers = picky
    bad = []
    for number in range(6):
        run.publish(333)
        bad.append(run.flow(refused=(400, 422, 451)[number % 3]))
        run.publish_all([bad[-1]], expected=False)
    run.begin()
    run.until_done(receiver.count, dead=6)
    found = run.letters()
    assert Counter(letter["reason"] for letter in found) == {f"the server refuses it with status {status}": 2 for status in (400, 422, 451)}
    assert sorted(orjson.dumps(letter["payload"]) for letter in found) == sorted(orjson.dumps(each) for each in bad)
    assert run.compare(receiver.documents) == 0
    assert run.worker.says("refused by the HTTP server")
    assert "s3cret" not in run.said


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(401), "it refuses the token or the headers (401): correct them in the settings"),
        (Answer(403), "it refuses the token or the headers, or what they may do (403): correct them in the settings"),
        (Answer(404), "there is nothing at that URL (404): correct it in the settings"),
        (Answer(415), "it does not take flows in this form (415): correct format or the URL in the settings"),
        (Answer(307, (("Location", "/elsewhere?key=s3cret"),)), "it redirects (307): set the URL that it redirects to"),
    ],
)
def test_what_only_somebody_can_change_is_said_at_once_and_waited_for(
    passing: Made, receiver: Receiver, answer: Answer, reason: str
) -> None:
    run = passing(receiver, 'token = "s3cret"')
    receiver.answers = lambda _: answer
    run.limits = {PATIENCE_S: 1_000}
    run.publish(500)
    run.begin()
    assert run.waits_for("") == reason
    time.sleep(1.5)
    receiver.answers = lambda _: Answer()
    run.goes_on()
    run.until_done(receiver.count)
    assert len(run.worker.says("waits for the HTTP server")) == 1
    assert run.compare(receiver.documents) == 0
    assert run.broker.count(run.dead) == 0
    assert "s3cret" not in run.said


def test_a_server_that_is_killed_or_silent_gets_every_flow(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver, "timeout_s = 2")
    run.limits = {"worker.run:OUTBOX_ROWS": 6_000}

    def under_way() -> None:
        before = receiver.count()
        receiver.delay_s = 0.1
        run.publish(20_000)
        wait_for(lambda: receiver.count() > before + 500)
        receiver.delay_s = 0

    run.begin()
    under_way()
    watch = Watch(run.worker)
    watch.start()
    receiver.stop()
    assert run.waits_for("there is no connection") == "there is no connection (Connection refused)"
    time.sleep(6)
    assert watch.stop() - watch.first < GROWTH
    assert run.worker.says("waits for the output")
    receiver.start()
    run.goes_on()
    under_way()
    receiver.silent = True
    run.waits_for("it does not answer")
    run.worker.tell(signal.SIGTERM, within=10)
    run.begin()
    run.waits_for("it does not answer")
    receiver.silent = False
    run.until_done(receiver.count)
    run.compare(receiver.documents)
    assert run.broker.count(run.dead) == 0
    assert str(receiver.port) not in run.said
    assert "s3cret" not in run.said


def test_told_to_stop_while_the_server_is_silent_it_leaves_in_time_and_the_messages_come_again(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver)
    receiver.silent = True
    run.publish(1_000)
    run.begin()
    wait_for(lambda: receiver.asked > 1)
    run.worker.tell(signal.SIGTERM, within=8)
    assert run.broker.count(run.input) == 20
    receiver.silent = False
    run.begin()
    run.until_done(receiver.count)
    run.compare(receiver.documents)


def test_what_is_answered_while_it_leaves_does_not_come_again(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver)
    run.limits = {"worker.run:LAST_WAIT_S": 0.2, "outputs.senders:LEAVING_S": 8}
    receiver.delay_s = 2
    run.publish(50)
    run.begin()
    wait_for(lambda: receiver.asked > 0)
    run.worker.tell(signal.SIGTERM, within=20)
    assert receiver.count() == 50
    assert run.broker.count(run.input) == 0
    run.begin()
    run.publish(50)
    run.until_done(receiver.count)
    assert run.compare(receiver.documents) == 0


def test_tls_with_an_authority_of_ones_own(passing: Made, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    with receiving(files) as receiver:
        wrong = passing(receiver, f'ca_file = "{files / "other.pem"}"')
        wrong.publish(100)
        wrong.limits = {PATIENCE_S: 1_000}
        wrong.begin()
        assert wrong.waits_for("certificate").startswith("its certificate is not to be trusted: ")
        wrong.worker.tell(signal.SIGTERM)
        assert not receiver.documents
        run = passing(receiver, f'ca_file = "{files / "ca.pem"}"')
        run.publish(500)
        run.begin()
        run.until_done(receiver.count)
        assert run.compare(receiver.documents) == 0


def test_at_level_debug_neither_url_nor_token_is_told(passing: Made, receiver: Receiver) -> None:
    run = passing(receiver, 'token = "s3cret-token"')
    run.environment["NETSAGE_LOG_LEVEL"] = "debug"
    receiver.answers = lambda _: Answer(500) if len(receiver.requests) < 3 else Answer()
    run.publish(200)
    run.begin()
    run.until_done(receiver.count)
    assert "s3cret" not in run.said
    assert "/flows" not in run.said
