"""What an operator sees of a fleet: the `edgeplan` program over real processes."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest
import torch

from broker.settings import ExitCode
from coordinator.device import Device
from coordinator.errors import ExecutionFailed
from coordinator.pointers import PointerTensor
from tests.acceptance import plans
from tests.acceptance.worlds import World, fresh_tag
from tests.processes import Program
from tests.waiting import PATIENCE

HOPS = [
    ("session", "invocation_submitted"),
    ("broker", "invocation_accepted"),
    ("broker", "invocation_relayed"),
    ("agent", "invocation_taken"),
    ("agent", "invocation_started"),
    ("agent", "invocation_finished"),
    ("agent", "result_announced"),
    ("broker", "result_recorded"),
    ("broker", "result_notified"),
    ("session", "result_received"),
]
"""What is logged of one invocation from start to end, where it happens."""

Record = dict[str, Any]


def edgeplan(broker: Program, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's program to its end."""
    command = [sys.executable, "-m", "coordinator", *arguments, "--broker", broker.endpoint, "--insecure"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def printed(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a program which has ended well has printed."""
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


class Follower:
    """`edgeplan logs --follow` as a process, line by line."""

    def __init__(self, broker: Program, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", "coordinator", "logs", "--follow", *arguments]
        self.process = subprocess.Popen(
            [*command, "--broker", broker.endpoint, "--insecure"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="follower")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout: float) -> str | None:
        """The next line; None, if there is none in time."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return None
        assert line is not None, "the program has ended"
        return line

    def interrupt(self) -> tuple[int, str]:
        """Press ctrl-C; the exit code, and what it has said on stderr."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class JsonFollower(Follower):
    """The same with ``--json``, and its records."""

    def __init__(self, broker: Program, *arguments: str) -> None:
        super().__init__(broker, "--json", *arguments)
        self.records: list[Record] = []

    def read(self, timeout: float) -> Record | None:
        """The next record; None, if there is none in time."""
        line = self.line(timeout)
        if line is None:
            return None
        record: Record = json.loads(line)
        self.records.append(record)
        return record

    def read_until(self, event: str, id: str) -> list[Record]:
        """Read on to an event that names a result; all records that name it. Fails after `PATIENCE`."""
        while (record := self.read(PATIENCE)) is not None:
            if record["event"] == event and record.get("result") == id:
                return [each for each in self.records if each.get("result") == id]
        raise AssertionError(f"expected {event} of {id}, saw {[record['event'] for record in self.records]}")


def invoke(device: Device) -> PointerTensor:
    """One invocation, ended."""
    result: PointerTensor = plans.double_abs().send(device)(torch.tensor([-1.0, 2.0]))
    assert result.wait(PATIENCE)
    return result


def wait_until_followed(follower: JsonFollower, device: Device) -> None:
    """Invoke until all three programs send their events: each is told to only once somebody follows."""
    components: set[str] = set()
    for _ in range(100):
        invoke(device)
        while (record := follower.read(0.2)) is not None:
            components.add(record["component"])
        if {"session", "broker", "agent"} <= components:
            return
    raise AssertionError(f"expected events of three programs, saw those of {components}")


@pytest.fixture
def follower(tcp: World, broker: Program) -> Iterator[JsonFollower]:
    """Somebody who follows everything."""
    with JsonFollower(broker, "--level", "debug") as made:
        wait_until_followed(made, tcp.devices[0])
        yield made


def test_a_results_id_tells_its_way_hop_by_hop(tcp: World, follower: JsonFollower) -> None:
    """All hops of one invocation appear under its id, once each, in the order of their times, over three processes."""
    result = invoke(tcp.devices[0])
    story = follower.read_until("result_received", result.id)
    for _ in range(len(HOPS)):  # the programs send on their own: those of the agent may come last
        if len({(record["component"], record["event"]) for record in story} & set(HOPS)) == len(HOPS):
            break
        follower.read(1.0)
        story = [each for each in follower.records if each.get("result") == result.id]
    found = sorted(story, key=lambda record: str(record["timestamp"]))
    of_the_way = [(record["component"], record["event"]) for record in found]
    assert sorted(hop for hop in of_the_way if hop in HOPS) == sorted(HOPS)
    for component in ("session", "broker", "agent"):
        here = [hop for hop in HOPS if hop[0] == component]
        assert [hop for hop in of_the_way if hop in here] == here
    assert of_the_way[0] == HOPS[0]
    assert of_the_way[-1] == HOPS[-1]
    for record in story:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
        assert record["level"] == "debug"
        assert record.get("device", record.get("devices")) in {tcp.devices[0].id, None}


def test_nothing_of_a_tensor_is_logged(tcp: World, follower: JsonFollower) -> None:
    """No event has tensor contents in any form: not as numbers, not as bytes."""
    device = tcp.devices[0]
    pointer = device.send(torch.tensor([1234.5625, -4321.0]))
    result = plans.double_abs().send(device)(pointer)
    assert result.wait(PATIENCE)
    follower.read_until("result_received", result.id)
    said = json.dumps(follower.records)
    for form in ("1234.5", "4321", torch.tensor([1234.5625]).numpy().tobytes().hex()):
        assert form not in said


@pytest.mark.parametrize("by", ["device", "result", "level", "component"])
def test_filters(tcp: World, broker: Program, follower: JsonFollower, by: str) -> None:
    """A filter by device, result, level or component lets through what it names, and nothing else."""
    first, second = tcp.devices
    session = tcp.fleet.session_id
    arguments = {
        "device": ["--level", "debug", "--device", second.id],
        "result": ["--level", "debug", "--result", session],
        "level": ["--level", "warning"],
        "component": ["--level", "debug", "--component", "agent"],
    }[by]
    failing = plans.index_select().send(second)
    with JsonFollower(broker, *arguments) as filtered:
        passed: list[Record] = []
        for _ in range(100):
            invoke(first)
            invoke(second)
            failed = failing(torch.ones(2), torch.tensor([5]))
            with pytest.raises(ExecutionFailed):
                failed.get(timeout=PATIENCE)
            while (record := filtered.read(0.2)) is not None:
                passed.append(record)
            if len({record.get("result") for record in passed}) >= 3 and len(passed) > 3:
                break
        assert passed
        if by == "device":
            assert {record.get("device", record.get("devices")) for record in passed} == {second.id}
        elif by == "result":
            assert all(any(str(value).startswith(session) for value in record.values()) for record in passed)
        elif by == "level":
            assert {record["level"] for record in passed} <= {"warning", "error"}
            assert "invocation_failed" in {record["event"] for record in passed}
        else:
            assert {record["component"] for record in passed} == {"agent"}
        code, said = filtered.interrupt()
    assert (code, said.strip()) == (ExitCode.OK, "")


def test_text_for_people(tcp: World, broker: Program) -> None:
    """Without --json an event is a line of text with its name and its ids; ctrl-C ends following with 0."""
    with Follower(broker, "--level", "debug") as follower:
        for _ in range(100):
            result = invoke(tcp.devices[0])
            lines = []
            while (line := follower.line(0.2)) is not None:
                lines.append(line)
            if any("invocation_relayed" in line and result.id in line for line in lines):
                break
        else:
            raise AssertionError("expected a line for the relay of an invocation")
        code, said = follower.interrupt()
    assert (code, said.strip()) == (ExitCode.OK, "")


# ------------------------------------------------------------------------------------------------- questions


def test_devices_search_and_status(tcp: World, broker: Program) -> None:
    """The program lists devices, finds tensors by tags over all of them, and says what became of a result, as JSON."""
    tag = fresh_tag()
    pointers = [device.send(torch.ones(2, 3), tags=[tag, "odd"], description="ones") for device in tcp.devices]
    assert all(pointer.wait(PATIENCE) for pointer in pointers)
    result = invoke(tcp.devices[0])

    listed = printed(edgeplan(broker, "devices", "--json"))
    mine = {row["device"]: row for row in listed if row["device"] in {device.id for device in tcp.devices}}
    assert set(mine) == {device.id for device in tcp.devices}
    for row in mine.values():
        assert row["online"] is True
        assert row["runtimes"] == ["torch"]
        assert row["version"] == [1, 1]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["last_seen"])

    found = printed(edgeplan(broker, "search", tag, "odd", "--json"))
    assert {row["device"]: row["id"] for row in found} == {
        device.id: pointer.id for device, pointer in zip(tcp.devices, pointers, strict=True)
    }
    assert {(row["dtype"], tuple(row["shape"]), row["description"]) for row in found} == {("float32", (2, 3), "ones")}
    assert printed(edgeplan(broker, "search", fresh_tag(), "--json")) == []

    entry = printed(edgeplan(broker, "status", result.id, "--json"))
    assert (entry["id"], entry["status"], entry["device"]) == (result.id, "done", tcp.devices[0].id)
    assert entry["plan"] == plans.double_abs().id


def test_tables_for_people(tcp: World, broker: Program) -> None:
    """Without --json the program prints a table that has the same."""
    table = edgeplan(broker, "devices")
    assert table.returncode == ExitCode.OK
    assert all(device.id in table.stdout for device in tcp.devices)
    result = invoke(tcp.devices[0])
    status = edgeplan(broker, "status", result.id)
    assert status.returncode == ExitCode.OK
    assert "done" in status.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status", "ab" * 16], ExitCode.NOT_FOUND, "unknown"),
        (["status", "nonsense"], ExitCode.USAGE, "32 hex digits"),
        (["devices", "--no-such-flag"], ExitCode.USAGE, "--no-such-flag"),
        (["devices", "--broker", "tcp://203.0.113.1:5750"], ExitCode.USAGE, "tcp://203.0.113.1:5750"),
        (["devices", "--broker", "tcp://127.0.0.1:9", "--timeout", "0.3"], ExitCode.UNREACHABLE, "tcp://127.0.0.1:9"),
    ],
)
def test_exit_codes(broker: Program, arguments: list[str], code: ExitCode, said: str) -> None:
    """What does not exist, what is refused, who does not answer: each has an exit code and a sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", *arguments, "--insecure"],
        env={**os.environ, "EDGEPLAN_BROKER": broker.endpoint},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
