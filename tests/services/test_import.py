"""Real capture files through a real importer and a real RabbitMQ: what is on the queue is what was sent."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.monitoring.health import look
from tests import command
from tests.command import letters, written
from tests.services import sflow
from tests.services.conftest import Collect, absent
from tests.services.importer import Importing, importing
from tests.services.netflow import Sent, ipfix, netflow5, netflow9
from tests.services.rabbitmq import Broker, wait_for
from tests.services.sflow import Sampled
from tests.services.test_nfdump import by_addresses, random_flows, row

FLOWS = 1_050


@pytest.fixture
def run(broker: Broker, tmp_path: Path) -> Iterator[Importing]:
    with importing(broker, tmp_path) as made:
        yield made


def put(collect: Collect, run: Importing, name: str, datagrams: list[bytes], **how: Any) -> Path:
    """Has a file collected elsewhere, and moves it where the importer looks."""
    file = collect(run.directory / f"collected-{name}", datagrams, **how)
    return Path(shutil.move(file, run.captures / name))


@pytest.mark.parametrize(
    ("export", "flows"),
    [
        pytest.param(netflow5, random_flows(FLOWS, versions=(4,), numbers=16), id="NetFlow v5"),
        pytest.param(netflow9, random_flows(FLOWS), id="NetFlow v9"),
        pytest.param(ipfix, random_flows(FLOWS), id="IPFIX"),
    ],
)
def test_netflow_comes_out_as_it_was_sent(
    collect: Collect, run: Importing, export: Callable[[list[Sent]], list[bytes]], flows: list[Sent]
) -> None:
    put(collect, run, "nfcapd.202311142210", export(flows))
    run.start()
    assert by_addresses(run.flows(FLOWS)) == by_addresses([row(sent) for sent in flows])
    run.stop()
    (counts,) = run.said("at work")
    assert {name: counts[name] for name in ("files", "read", "written", "messages")} == {
        "files": 1,
        "read": FLOWS,
        "written": FLOWS,
        "messages": 11,
    }


def test_sflow_comes_out_as_it_was_sampled(collect: Collect, run: Importing) -> None:
    """sfcapd counts frames as they were on the wire, Ethernet and checksum (18 bytes) included, times the sampling rate."""
    if shutil.which("sfcapd") is None:
        absent("sfcapd")
    draw = random.Random(7)
    packets = [
        Sampled(
            src_ip=f"128.101.{each % 50}.1" if each % 3 else f"2001:468:{each % 50 + 1:x}::1",
            dst_ip="141.211.2.2" if each % 3 else "2001:468:2::9",
            src_port=1_000 + each % 100,
            dst_port=443,
            protocol=(6, 17)[each % 2],
            octets=draw.randrange(100, 1_501),
            in_if=7,
            out_if=9,
            rate=100,
        )
        for each in range(2_000)
    ]
    run.environment["NETSAGE_FLOW_TYPE"] = "sflow"
    began = time.time()
    put(collect, run, "nfcapd.202311142210", list(sflow.datagrams(packets)), program="sfcapd")
    expected: Counter[tuple[Any, ...]] = Counter()
    for packet in packets:
        flow = (packet.src_ip, packet.dst_ip, packet.src_port, packet.dst_port, {6: "tcp", 17: "udp"}[packet.protocol])
        expected[(*flow, "bits")] += (packet.octets + 18) * packet.rate * 8
        expected[(*flow, "packets")] += packet.rate
    run.start()
    got: Counter[tuple[Any, ...]] = Counter()
    for each in run.flows(len(expected) // 2):
        meta, values = each["meta"], each["values"]
        assert (meta["flow_type"], meta["sensor_id"], meta["src_ifindex"], meta["dst_ifindex"]) == ("sflow", "sensor", 7, 9)
        assert began - 1 < each["start"] <= each["end"] < time.time() + 1
        flow = (meta["src_ip"], meta["dst_ip"], meta["src_port"], meta["dst_port"], meta["protocol"])
        got[(*flow, "bits")] += values["num_bits"]
        got[(*flow, "packets")] += values["num_packets"]
    assert got == expected


def test_softflowd_on_captured_traffic_of_this_machine(collect: Collect, run: Importing) -> None:
    softflowd = shutil.which("softflowd", path=f"{os.environ['PATH']}:/usr/sbin")
    if softflowd is None:
        absent("softflowd")
    packets = captured()
    pcap = run.directory / "traffic.pcap"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 17, 1)
    records = [struct.pack("<IIII", int(at), int(at % 1 * 1e6), len(frame), len(frame)) + frame for at, frame in packets]
    pcap.write_bytes(header + b"".join(records))
    put(collect, run, "nfcapd.202311142210", exported(pcap, softflowd))
    expected: Counter[tuple[Any, ...]] = Counter()
    for _, frame in packets:
        (length,) = struct.unpack_from(">H", frame, 16)
        ports = struct.unpack_from(">HH", frame, 34)
        flow = (*ports, {6: "tcp", 17: "udp"}[frame[23]])
        expected[(*flow, "bits")] += length * 8
        expected[(*flow, "packets")] += 1
    run.start()
    got: Counter[tuple[Any, ...]] = Counter()
    for each in run.flows(len(expected) // 2):
        meta, values = each["meta"], each["values"]
        assert meta["src_ip"] == meta["dst_ip"] == "127.0.0.1"
        assert packets[0][0] - 1 < each["start"] <= each["end"] < packets[-1][0] + 1
        flow = (meta["src_port"], meta["dst_port"], meta["protocol"])
        got[(*flow, "bits")] += values["num_bits"]
        got[(*flow, "packets")] += values["num_packets"]
    assert got == expected


def captured() -> list[tuple[float, bytes]]:
    """Frames of the loopback interface with their times: conversations by TCP and UDP between ports of ours."""
    try:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    except PermissionError:
        absent("the right to capture traffic")
    with sniffer:
        sniffer.bind(("lo", 0))
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_000_000)
        ports = converse()
        frames: list[tuple[float, bytes]] = []
        until = time.monotonic() + 0.5
        sniffer.settimeout(0.1)
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                frame, address = sniffer.recvfrom(1 << 17)  # Longer than an IP packet can be.
                is_ours = address[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00" and frame[23] in (6, 17)
                if is_ours and {*struct.unpack_from(">HH", frame, 34)} in ports:  # Each frame passes the interface twice.
                    frames.append((time.time(), frame))
    assert len(frames) > 200
    return frames


def converse() -> list[set[int]]:
    """A request and an answer by TCP, and datagrams by UDP from several ports; the pairs of ports."""
    ports: list[set[int]] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            while connection.recv(65_536):
                pass
            connection.sendall(bytes(300_000))

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            ports.append({client.getsockname()[1], server.getsockname()[1]})
            client.sendall(bytes(200_000))
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass
        thread.join()
        for number in range(5):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for size in range(1, 41):
                    sender.sendto(bytes(size * (number + 1)), receiver.getsockname())
                ports.append({sender.getsockname()[1], receiver.getsockname()[1]})
    return ports


def exported(pcap: Path, softflowd: str) -> list[bytes]:
    """What softflowd sends of a capture: IPFIX."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(1)
        target = f"127.0.0.1:{receiver.getsockname()[1]}"
        files = ["-p", str(pcap.with_suffix(".pid")), "-c", "none"]  # With a socket for control it waits for somebody to connect.
        times = ["-v", "10", "-A", "milli"]  # Those of v9 count from when it started itself, behind the packets of the file.
        subprocess.run([softflowd, "-r", str(pcap), "-n", target, "-d", *times, *files], check=True, capture_output=True, timeout=30)
        datagrams: list[bytes] = []
        while True:
            try:
                datagrams.append(receiver.recv(65_535))
            except TimeoutError:
                return datagrams


def test_several_sensors_are_imported_in_turns_each_in_order_of_time(collect: Collect, run: Importing) -> None:
    run.settings(
        "".join(
            f'[[sensors]]\nname = "{name}"\ndirectory = "{run.captures / name}"\nmin_bytes = 0\nmin_file_age_s = 0\ninstance = "{name}-1"\n'
            for name in ("busy", "quiet")
        )
    )
    for number in range(6):
        file = put(collect, run, f"{number}", ipfix([Sent(src_port=number)]))
        for name, much in (("busy", True), ("quiet", number < 2)):
            if much:
                target = run.captures / name / f"day-{5 - number}" / f"nfcapd.2023111422{10 + number}"
                target.parent.mkdir(parents=True)
                shutil.copy(file, target)
        file.unlink()
    run.start()
    flows = run.flows(8)
    run.stop()
    order = [(flow["meta"]["sensor_id"], flow["meta"]["src_port"]) for flow in flows]
    assert order == [("busy", 0), ("quiet", 0), ("busy", 1), ("quiet", 1), ("busy", 2), ("busy", 3), ("busy", 4), ("busy", 5)]
    assert {flow["meta"]["instance_id"] for flow in flows} == {"busy-1", "quiet-1"}


def test_the_broker_may_be_away_at_any_time(collect: Collect, run: Importing, broker: Broker) -> None:
    flows = random_flows(20_000)
    put(collect, run, "nfcapd.202311142210", ipfix(flows[:10_000]))
    broker.stop()
    run.start()
    wait_for(lambda: bool(run.said("waits for RabbitMQ")), 30)
    broker.start()
    wait_for(lambda: bool(run.said("goes on with RabbitMQ")), 60)
    put(collect, run, "nfcapd.202311142215", ipfix(flows[10_000:]))
    got = run.flows(20_000, 90)
    run.stop()
    assert by_addresses(got) == by_addresses([row(sent) for sent in flows])
    assert (len(run.said("waits for RabbitMQ")), len(run.said("goes on with RabbitMQ"))) == (1, 1)


def test_told_to_stop_with_the_broker_away_it_leaves_and_the_next_one_sends_the_rest(
    collect: Collect, run: Importing, broker: Broker
) -> None:
    flows = random_flows(3_000)
    put(collect, run, "nfcapd.202311142210", ipfix(flows))
    broker.stop()
    run.start()
    wait_for(lambda: bool(run.said("waits for RabbitMQ")), 30)
    run.stop()
    broker.start()
    run.start()
    assert by_addresses(run.flows(3_000)) == by_addresses([row(sent) for sent in flows])


def test_a_second_importer_on_the_same_state_is_refused(run: Importing) -> None:
    run.start()
    wait_for(lambda: run.process.has_worked)
    second = run.start()
    assert not second.lasts(20)
    assert second.code == 1
    assert "is in use by process" in second.said
    assert second.said.count("\n") == 1


def test_a_file_that_may_not_be_read_is_said_once_and_keeps_no_other_back(collect: Collect, run: Importing) -> None:
    run.settings(f'[[sensors]]\nname = "sensor"\ndirectory = "{run.captures}"\nmin_bytes = 0\nmin_file_age_s = 0\n')
    secret = put(collect, run, "nfcapd.202311142210", ipfix([Sent(src_port=1)]))
    put(collect, run, "nfcapd.202311142215", ipfix([Sent(src_port=2)]))
    secret.chmod(0)
    run.start(before=["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else [])
    assert [flow["meta"]["src_port"] for flow in run.flows(1)] == [2]
    time.sleep(1)  # It looks four times a second.
    (line,) = run.said("is not imported")
    assert (line["file"], line["reason"]) == (str(secret), "cannot be read: Permission denied")
    secret.chmod(0o644)
    assert [flow["meta"]["src_port"] for flow in run.flows(1)] == [1]


def test_a_directory_that_may_not_be_read_is_waited_for_but_for_that_of_the_disk_itself(collect: Collect, run: Importing) -> None:
    for name in ("lost+found", "secret"):
        (run.captures / name).mkdir()
        (run.captures / name).chmod(0)
    put(collect, run, "nfcapd.202311142210", ipfix([Sent(src_port=1)]))
    run.settings(f'[[sensors]]\nname = "sensor"\ndirectory = "{run.captures}"\nmin_bytes = 0\nmin_file_age_s = 0\n')
    run.start(before=["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else [])
    run.flows(1)
    (run.captures / "secret").chmod(0o755)
    wait_for(lambda: bool(run.said("goes on")), 30)
    (run.captures / "lost+found").chmod(0o755)
    (line,) = run.said("waits for the files of sensor sensor")
    assert line["reason"] == f"{run.captures}/secret: Permission denied"


def test_an_imported_file_that_may_not_be_deleted_is_said_once_as_what_it_is(collect: Collect, run: Importing) -> None:
    put(collect, run, "nfcapd.202311142210", ipfix([Sent(src_port=1)]))
    os.utime(run.captures / "nfcapd.202311142210", (1, 1))
    run.settings(f'[[sensors]]\nname = "sensor"\ndirectory = "{run.captures}"\nmin_bytes = 0\nmin_file_age_s = 0\ndelete_after_days = 1\n')
    run.captures.chmod(0o555)
    run.start(before=["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else [])
    run.flows(1)
    time.sleep(1)  # It looks four times a second.
    run.captures.chmod(0o755)
    (line,) = run.said("was imported and cannot be deleted")
    assert (line["file"], line["reason"]) == (str(run.captures / "nfcapd.202311142210"), "Permission denied")
    assert not run.said("is not imported")


def test_with_stages_in_the_chain_flows_pass_them(collect: Collect, run: Importing) -> None:
    run.settings(f'[[sensors]]\nname = "sensor"\ndirectory = "{run.captures}"\nmin_bytes = 0\nmin_file_age_s = 0\n')
    (run.conf / "20_add_id.toml").write_text("")
    put(collect, run, "nfcapd.202311142210", ipfix(random_flows(250)))
    run.start()
    flows = run.flows(250)
    assert all(len(flow["meta"]["id"]) == 64 for flow in flows)
    run.stop()
    run.start()
    wait_for(lambda: run.process.has_worked)
    time.sleep(2)
    run.stop()
    assert run.flows(0) == []


def test_a_counter_beyond_64_bits_costs_its_flow_alone(collect: Collect, run: Importing, tmp_path: Path) -> None:
    sent = [Sent(src_port=1), Sent(src_port=2, octets=1 << 61), Sent(src_port=3, octets=(1 << 64) - 1, out_octets=1), Sent(src_port=4)]
    put(collect, run, "nfcapd.202311142210", netflow9(sent))
    run.start()
    outcome = command.run("replay", written(tmp_path / "taken", run.flows(4)), "--dead-letters", tmp_path / "letters")
    run.stop()
    assert sorted(flow["meta"]["src_port"] for flow in outcome.flows) == [1, 4]
    found = sorted((each["payload"]["meta"]["src_port"], each["reason"]) for each in letters(tmp_path / "letters"))
    assert found == [(2, "values.num_bits: beyond 64 bits"), (3, "values.num_bits: beyond 64 bits")]


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        pytest.param(
            {"NETSAGE_SENSOR": ""}, "a sensor needs the name that its flows are to have (meta.sensor_id): set NETSAGE_SENSOR", id="no name"
        ),
        pytest.param({"NETSAGE_MIN_BYTES": "many"}, "'many' (from NETSAGE_MIN_BYTES) is not a number of bytes", id="no number"),
        pytest.param({"PATH": "/nowhere"}, "nfdump is not installed: apt-get install nfdump", id="no nfdump"),
    ],
)
def test_wrong_settings_are_a_line(run: Importing, environment: dict[str, str], line: str) -> None:
    run.environment.update(environment)
    process = run.start()
    assert not process.lasts(20)
    assert process.code == 2
    assert line in process.said
    assert process.said.count("\n") == 1


def test_metrics_count_what_was_imported(collect: Collect, run: Importing) -> None:
    put(collect, run, "nfcapd.202311142210", ipfix([Sent(src_port=1, octets=5), Sent(src_port=2, octets=500)]))
    run.environment["NETSAGE_MIN_BYTES"] = "100"
    run.start()
    assert len(run.flows(1)) == 1
    wait_for(lambda: look(run.state).numbers["out"] == 1, 10)
    assert look(run.state).numbers["in"] == 2
    assert look(run.state).ready
