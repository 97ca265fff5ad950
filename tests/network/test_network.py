"""Real programs on hosts with links that lose, break, deceive and dawdle."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network.hosts import Network, network

pytestmark = pytest.mark.timeout(300)

HEARTBEAT_MS = 500
LOST_WITHIN = 30.0
SESSION_LOST_WITHIN = 120.0
"""A session that says nothing is left alone until its connection is seen to be gone, by ZeroMQ's heartbeats."""


class Coordinator:
    """A `tests.network.load`, spoken to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self.answer() == {"connected": True}

    def say(self, *words: object) -> None:
        """Let it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")

    def answer(self) -> Any:
        """What it says to the earliest line that it has not answered. The test's timeout bounds the wait."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the coordinator has ended"
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        """Both."""
        self.say(*words)
        return self.answer()


@pytest.fixture
def net() -> Iterator[Network]:
    """A network of the test's own."""
    with network() as made:
        yield made


def all_right(count: int) -> dict[str, Any]:
    """What ``invoke`` answers when all went well."""
    return {"right": count, "errors": {}}


def test_loss_and_latency_cost_time_and_nothing_else(net: Network, tmp_path: Path) -> None:
    """5 % of all packets lost at each end, 20 ms each way: every value comes, once, and is right."""
    net.broker(tmp_path / "broker", "--heartbeat-ms", "2000")
    near, far = net.host("c"), net.host("d", delay_ms=20)
    net.agent(far, "device", tmp_path / "device")
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("invoke", 8, "device") == all_right(8)
    far.lose(5)
    near.lose(5)
    assert coordinator.ask("invoke", 150, "device") == all_right(150)
    assert coordinator.ask("put", 300_000, "device")["equal"]


@pytest.mark.parametrize(
    "how", ["cut", pytest.param("deafen", marks=pytest.mark.long), pytest.param("mute", marks=pytest.mark.long)]
)
def test_a_partition_ends_and_nothing_is_lost(net: Network, tmp_path: Path, how: str) -> None:
    """An unplugged cable; only the way to the device gone; only the way back gone: the device is lost, returns, and
    everything that was sent meanwhile is done.
    """
    broker = net.broker(tmp_path / "broker", "--heartbeat-ms", str(HEARTBEAT_MS))
    near, far = net.host("c"), net.host("d")
    agent = net.agent(far, "device", tmp_path / "device")
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("invoke", 8, "device") == all_right(8)
    coordinator.say("invoke", 300, "device")
    getattr(far, how)()
    if how == "deafen":  # it is heard, and hears nothing: the device notices
        agent.wait_for("link_silent", LOST_WITHIN)
    else:
        assert broker.wait_for("device_lost", LOST_WITHIN)["device"] == "device"
    far.mend() if how == "cut" else far.hear()
    assert coordinator.answer() == all_right(300)


@pytest.mark.long
def test_a_session_that_is_cut_off_gets_everything_when_it_is_back(net: Network, tmp_path: Path) -> None:
    """The coordinator's cable is unplugged while its results end."""
    broker = net.broker(tmp_path / "broker", "--heartbeat-ms", str(HEARTBEAT_MS))
    near, far = net.host("c"), net.host("d")
    net.agent(far, "device", tmp_path / "device")
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("invoke", 8, "device") == all_right(8)
    for cut, mend in (("cut", "mend"), ("mute", "hear")):
        coordinator.say("invoke", 200, "device")
        getattr(near, cut)()
        broker.wait_for("session_lost", SESSION_LOST_WITHIN)
        getattr(near, mend)()
        assert coordinator.answer() == all_right(200)


def test_commands_do_not_wait_behind_a_large_blob_on_a_narrow_link(net: Network, tmp_path: Path) -> None:
    """20 MB over 4 Mbit/s take most of a minute; invocations meanwhile come back before it has arrived."""
    net.broker(tmp_path / "broker")
    near, far = net.host("c"), net.host("d", delay_ms=10)
    net.agent(far, "device", tmp_path / "device")
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("trip", "device")["under_way"] == []
    far.narrow("4mbit")
    coordinator.ask("begin", 20_000_000, "device")
    trips = [coordinator.ask("trip", "device") for _ in range(5)]
    far.widen()
    arrived = coordinator.ask("end")
    assert arrived["equal"]
    assert all(trip["under_way"] == [True] for trip in trips), (trips, arrived)


@pytest.mark.long
def test_a_tensor_arrives_whole_over_a_link_that_is_cut_again_and_again(net: Network, tmp_path: Path) -> None:
    """8 MB, each connection for blobs cut after 1 MB: it goes on where it was."""
    net.broker(tmp_path / "broker")
    near, far = net.host("c"), net.host("d", cut_blobs_every=1_000_000)
    net.agent(far, "device", tmp_path / "device")
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("put", 8_000_000, "device")["equal"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_64_mb_over_a_link_cut_every_5_mb(net: Network, tmp_path: Path) -> None:
    """And narrow, lossy and slow at that."""
    net.broker(tmp_path / "broker")
    near, far = net.host("c"), net.host("d", delay_ms=5, cut_blobs_every=5_000_000)
    net.agent(far, "device", tmp_path / "device")
    far.lose(1)
    coordinator = Coordinator(net.coordinator(near))
    assert coordinator.ask("put", 64_000_000, "device")["equal"]
