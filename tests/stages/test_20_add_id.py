"""20 add_id: the id of a flow."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from tests.conftest import load_stage
from tests.flows import MISSING, flow, nothing

add_id = load_stage("20_add_id")


def id_of(meta: dict[str, Any], **settings: Any) -> str:
    made: str = add_id.stage(add_id.Config(**settings), nothing)(flow(meta=meta))["meta"]["id"]
    return made


def expected(message: str, key: str = "create flowid") -> str:
    return hmac.new(key.encode(), message.encode(), hashlib.sha256).hexdigest()


def message_of(**changes: str) -> str:
    fields = {"dst_ip": "198.51.100.2", "dst_port": "443", "protocol": "tcp", "sensor_id": "sensor", "src_ip": "192.0.2.1"}
    return "".join(f"|[meta][{name}]|{value}" for name, value in (fields | {"src_port": "40000"} | changes).items()) + "|"


@pytest.mark.parametrize(
    ("meta", "changes"),
    [
        pytest.param({}, {}, id="a whole flow"),
        *(
            pytest.param({name: MISSING}, {name: ""}, id=f"a missing {name} is the empty text")
            for name in ("dst_ip", "dst_port", "protocol", "sensor_id", "src_ip", "src_port")
        ),
        pytest.param({"dst_port": 0, "src_port": 65535}, {"dst_port": "0", "src_port": "65535"}, id="ports in decimal"),
        pytest.param({"protocol": 6, "sensor_id": 1.5}, {"protocol": "6", "sensor_id": "1.5"}, id="numbers in decimal"),
        pytest.param({"src_ip": "2001:DB8::0001"}, {"src_ip": "2001:DB8::0001"}, id="addresses as they came: case and zeros count"),
        pytest.param({"sensor_id": "münchen ✓"}, {"sensor_id": "münchen ✓"}, id="UTF-8"),
        pytest.param({"sensor_id": "a|[meta][src_ip]|b"}, {"sensor_id": "a|[meta][src_ip]|b"}, id="separators in a value"),
        pytest.param({"src_asn": 1, "instance_id": "x", "src_ifindex": 9}, {}, id="other fields do not count"),
        pytest.param({"id": "of the input"}, {}, id="an id of the input is replaced"),
    ],
)
def test_the_id_is_an_hmac_of_5_tuple_and_sensor(meta: dict[str, Any], changes: dict[str, str]) -> None:
    assert id_of(meta) == expected(message_of(**changes))


def test_times_and_values_do_not_count() -> None:
    process = add_id.stage(add_id.Config(), nothing)
    assert process(flow(start=1.0, values={"num_bits": 1}))["meta"]["id"] == process(flow())["meta"]["id"]


@pytest.mark.parametrize("key", ["a", "k" * 64, "k" * 65, "k" * 200, "schlüssel"])
def test_better_the_key_is_a_setting(key: str) -> None:
    assert id_of({}, key=key) == expected(message_of(), key)


def test_the_key_is_a_secret_and_not_empty() -> None:
    assert "create flowid" not in repr(add_id.Config())
    with pytest.raises(ValueError, match="key"):
        add_id.Config(key="")
