"""Routers and the workers behind them: what goes to which shard, what may run twice, and what is refused. With a broker: tests/services."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import configured
from netsage_pipeline.doctor import hops_of
from netsage_pipeline.flow import Flow
from tests.command import conf_with, run, run_real
from tests.conftest import CONFORMANCE, load_stage
from tests.flows import flow
from tests.invariants import any_flow, body, chain_of, examples, shipped

output, queue = load_stage("99_output_rabbitmq"), load_stage("01_input_rabbitmq")
ROUTER = folders.shipped("conf.d") / "router"


class Recorder:
    """Stands in for the link to the broker."""

    def __init__(self, *_given: Any) -> None:
        self.messages: list[tuple[int, str, str, bytes, str]] = []

    def publish(self, *message: Any) -> None:
        self.messages.append(message)


@pytest.fixture(autouse=True, scope="module")
def _recorded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "Publisher", Recorder)
        yield


def split(flows: list[Flow], shards: int, message: str = "ab12") -> tuple[list[tuple[str, list[Flow], str]], Any]:
    """The messages that are made: routing key, flows, id."""
    sink = output.sink(output.Config(shards=shards, key="k", exchange="x"))
    sink.split(7, flows, message)
    link = sink._messages._link
    assert {(made[0], made[1]) for made in link.messages} <= {(7, "x")}
    return [(key, orjson.loads(content), known_as) for _, _, key, content, known_as in link.messages], sink


IDS = st.one_of(st.sampled_from(["", None, 7, "a", "é😀"]), st.text("0123456789abcdef", min_size=64, max_size=64), st.text(max_size=3))


def flows_of(ids: list[Any]) -> list[Flow]:
    return [{"meta": {"id": each}, "number": number} for number, each in enumerate(ids)]


@examples(200)
@given(st.lists(IDS, max_size=60), st.integers(1, 9))
def test_each_flow_is_in_one_message_of_its_shard_in_the_order_in_which_it_came(ids: list[Any], shards: int) -> None:
    flows = flows_of([each for each in ids if not isinstance(each, str) or each.isprintable()])
    messages, _ = split(flows, shards)
    assert len({known_as for _, _, known_as in messages}) == len({key for key, _, _ in messages}) == len(messages)
    assert sorted(each["number"] for _, part, _ in messages for each in part) == list(range(len(flows)))
    places = defaultdict[Any, set[int]](set)
    for key, part, known_as in messages:
        shard = int(key.removeprefix("k."))
        assert 0 <= shard < shards
        assert known_as == f"ab12/{shard}"
        assert part == [flows[each["number"]] for each in part]
        assert [each["number"] for each in part] == sorted(each["number"] for each in part)
        for each in part:
            places[each["meta"]["id"] or ""].add(shard)
    assert all(len(each) == 1 for each in places.values())


@examples(100)
@given(st.lists(IDS, max_size=20), st.lists(IDS, max_size=20), st.integers(1, 9))
def test_where_an_id_goes_depends_on_nothing_but_the_id(some: list[Any], others: list[Any], shards: int) -> None:
    each = "5f" * 32
    places = {
        key
        for before, after in ((some, others), (others, some), ([], []))
        for key, part, _ in split(flows_of([*before, each, *after]), shards)[0]
        if any(flow["meta"]["id"] == each for flow in part)
    }
    assert len(places) == 1


def test_a_shard_is_the_same_in_every_version() -> None:
    """Else flows that are held would not meet their later parts. The digests are those of `b2sum -l 64`."""
    digests = {"a": "40f89e395b66422f", "b": "8472c2e34d854f75", "0" * 64: "de4d7977bd8b8493"}
    for shards in (2, 3, 64):
        for known_as, digest in digests.items():
            assert output.shard_of({"meta": {"id": known_as}}, shards) == int(digest, 16) % shards
        without = [{}, {"meta": None}, {"meta": {}}, {"meta": {"id": ""}}, {"meta": {"id": None}, "other": 1}]
        assert len({output.shard_of(each, shards) for each in without}) == 1


def test_ids_spread_over_all_shards() -> None:
    counts = defaultdict[int, int](int)
    for number in range(4_000):
        counts[output.shard_of({"meta": {"id": f"{number:064x}"}}, 4)] += 1
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(900 < count < 1_100 for count in counts.values())


def test_what_cannot_be_written_is_refused_and_the_rest_of_the_message_goes_out() -> None:
    bad = {"meta": {"id": "a"}, "x": 1 << 65}
    messages, sink = split([{"meta": {"id": "a"}}, bad], 2)
    assert [part for _, part, _ in messages] == [[{"meta": {"id": "a"}}]]
    assert sink._messages._batches[7].refusals == [(bad, "integer beyond 64 bits")]
    assert split([bad], 2)[1]._messages._stored == [(7, 0, [(bad, "integer beyond 64 bits")])]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        pytest.param({"shard": ""}, ("netsage_deidentifier_raw", "", "netsage_dead_letters"), id="none"),
        pytest.param({"shard": "0"}, ("netsage_deidentifier_raw.0", "", "netsage_dead_letters.0"), id="defaults"),
        pytest.param({"shard": 3, "queue": "q", "key": "k", "dead_letters": "d"}, ("q.3", "k.3", "d.3"), id="all three"),
    ],
)
def test_a_shard_has_queues_of_its_own(given: dict[str, Any], names: tuple[str, str, str]) -> None:
    config = queue.Config(**given)
    assert (config.queue, config.key, config.dead_letters) == names


@pytest.mark.parametrize("shard", ["-1", "x", "0.5"])
def test_a_shard_is_a_number(shard: str) -> None:
    with pytest.raises(ValidationError):
        queue.Config(shard=shard)


@pytest.mark.parametrize("name", ["queue", "key", "dead_letters"])
def test_a_name_has_room_for_the_number_of_its_shard(name: str) -> None:
    assert len(getattr(queue.Config(shard=7, **{name: "q" * 253}), name)) == 255
    with pytest.raises(ValidationError, match=r"longer than 255 bytes of UTF-8 with \.7 behind it"):
        queue.Config(shard=7, **{name: "q" * 254})
    with pytest.raises(ValidationError, match=r"longer than 255 bytes of UTF-8 with \.7 behind it"):
        queue.Config(shard=7, **{name: "ü" * 127})


@pytest.mark.parametrize("name", ["queue", "key"])
def test_the_names_of_a_router_have_room_for_the_number_of_every_shard(name: str) -> None:
    assert output.Config(shards=10, **{name: "q" * 253}).shards == 10
    for too_long in ("q" * 253, "ü" * 126 + "q"):
        with pytest.raises(ValidationError, match=rf"{name} is longer than 255 bytes of UTF-8 with \.10 behind it: shorten it"):
            output.Config(shards=11, **{name: too_long})


# What may run twice.


def router() -> Chain:
    return chain_of("arrival", stages=configured(ROUTER, [folders.shipped("stages")]))


def plain() -> Chain:
    """The worker's stages up to 20."""
    return chain_of("arrival", stages=[stage for stage in shipped() if stage.name < "40"])


def let_through(chain: Chain, message: bytes) -> list[Flow]:
    return chain.enrich(chain.let_in(message, "queue", "1"))


def runs_twice_as_once(message: bytes) -> int:
    """Checks that 10 and 20 change nothing at a flow that went through them; gives how many came through."""
    once = let_through(plain(), message)
    behind = plain()
    twice = let_through(behind, orjson.dumps(let_through(router(), message)))
    assert orjson.dumps(twice) == orjson.dumps(once)
    assert (behind.dropped.total(), behind.refused.total(), behind.dead) == (0, 0, [])
    return len(once)


@examples(500)
@given(st.lists(any_flow(), max_size=8))
def test_the_stages_of_a_router_change_nothing_when_a_worker_runs_them_again(flows: list[Flow]) -> None:
    runs_twice_as_once(body(flows))


def test_with_the_flows_of_every_kind_of_sensor_too() -> None:
    messages = [line for file in sorted(CONFORMANCE.glob("*.in.ndjson")) for line in file.read_bytes().splitlines()]
    now = chain_of().now.seconds
    through = 0
    for message in messages:
        through += runs_twice_as_once(message)
        of_now = [_at(each, now) for each in _listed(orjson.loads(message))]
        through += runs_twice_as_once(orjson.dumps(of_now))
    assert through > len(messages) / 2 > 0


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _at(value: Any, now: float) -> Any:
    """The flow as if it were of now, so that its times are no reason to drop it."""
    return {**value, "start": now - 20, "end": now - 10} if isinstance(value, dict) else value


# What is refused.


def test_a_router_does_not_hold_flows(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"99_output_rabbitmq": "shards = 2"})
    for command in (("check",), ("run",)):
        outcome = run_real(*command, "--conf", conf, NETSAGE_STATE=str(tmp_path / "state"))
        assert outcome.code == 2
        assert outcome.said == [
            f"{conf}/99_output_rabbitmq.toml: shards: flows go to shards before 40_aggregation holds them: set it in conf.d/router alone"
        ]


def test_behind_routers_rules_for_sensors_do_not_run_once_more(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"15_sensor_specific": "[[sampling]]\nsensor = 'a'\nfactor = 100"})
    assert run("check", "--conf", conf).code == 0
    for command in (("check",), ("run",)):
        outcome = run_real(*command, "--conf", conf, NETSAGE_SHARD="0", NETSAGE_STATE=str(tmp_path / "state"))
        assert outcome.code == 2
        assert outcome.said == [
            f"{conf}/15_sensor_specific.toml: runs in the routers, and must not run once more behind them: enabled = false"
        ]


def test_the_shipped_router_and_the_worker_behind_it_are_right(tmp_path: Path) -> None:
    assert run("check", "--conf", ROUTER).code == 0
    assert run("check", NETSAGE_SHARD="1").code == 0
    shutil.copytree(ROUTER, tmp_path / "router")
    (tmp_path / "router" / "15_sensor_specific.toml").write_text("[[sampling]]\nsensor = 'a'\nfactor = 100")
    assert run("check", "--conf", tmp_path / "router").code == 0


def test_a_router_is_not_for_a_replay(tmp_path: Path) -> None:
    flows = tmp_path / "flows.ndjson"
    flows.write_bytes(orjson.dumps(flow()))
    outcome = run("replay", flows, "--conf", ROUTER, "--to", "-", "--now", "1700000000")
    assert (outcome.code, len(outcome.flows)) == (0, 1)


def test_the_doctor_looks_at_the_queue_of_each_shard_and_at_no_ledger_of_a_router(tmp_path: Path) -> None:
    hops = hops_of([(ROUTER, configured(ROUTER, [folders.shipped("stages")]))], tmp_path)
    assert [hop.name for hop in hops] == ["queue", "router", "dead letters", "queue", "queue", "tables"]


def test_the_doctor_calls_a_probe_a_probe(tmp_path: Path) -> None:
    conf = folders.shipped("conf.d") / "probe"
    hops = hops_of([(conf, configured(conf, [folders.shipped("stages")]))], tmp_path)
    assert [hop.name for hop in hops] == ["probe", "index", "tables"]
