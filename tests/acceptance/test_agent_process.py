"""The agent's own process: small, clean, and gone when it is told to go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from broker.settings import ExitCode
from coordinator import connect
from coordinator.fleet import Fleet
from edge_agent import Store
from tests import processes
from tests.acceptance import plans
from tests.acceptance.kernel import children, heavy_libraries, resident_bytes, wait_until_gone
from tests.acceptance.wire import Tap, tap
from tests.acceptance.worlds import fresh_tag
from tests.processes import Program
from tests.waiting import PATIENCE

MOST_RESIDENT_BYTES = 45_000_000


@pytest.fixture
def fleet(broker: Program) -> Iterator[Fleet]:
    """A fleet with the shared broker."""
    with connect(broker.endpoint, insecure=True) as made:
        yield made


@pytest.fixture
def wire(broker: Program) -> Iterator[Tap]:
    """What passes between the broker and ``agent``."""
    with tap(broker.endpoint) as made:
        yield made


@pytest.fixture
def agent(wire: Tap, tmp_path: Path) -> Iterator[Program]:
    """An agent of its own, ``idler``, whose worker ends after half a second without work."""
    with processes.start_agent("idler", tmp_path / "store", wire, "--idle", "0.5") as process:
        yield process


def test_the_idle_agent_is_small(agent: Program) -> None:
    """The idle agent takes less than 45 MB, has neither numpy nor torch in its process, and no worker."""
    assert heavy_libraries(agent.pid) == []
    assert children(agent.pid) == []
    assert resident_bytes(agent.pid) < MOST_RESIDENT_BYTES
    assert heavy_libraries(os.getpid()), "this very test should see torch in its own process"


def test_the_worker_ends_after_its_idle_time_and_comes_back(agent: Program, fleet: Fleet) -> None:
    """A first command starts the worker, idling ends it with all its memory, the next command starts another one."""
    device = fleet.device("idler")
    on_device = plans.double_abs().send(device)
    workers = []
    for _ in range(2):
        result = on_device(torch.tensor([-1.0, 2.0]))
        worker = agent.wait_for("worker_started", PATIENCE)["pid"]
        assert torch.equal(result.get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
        agent.wait_for("worker_ended", PATIENCE)
        wait_until_gone(worker)
        assert children(agent.pid) == []
        workers.append(worker)
    assert workers[0] != workers[1]
    assert heavy_libraries(agent.pid) == []
    assert resident_bytes(agent.pid) < MOST_RESIDENT_BYTES


def test_owners_data_and_large_values_leave_the_agent_small(
    agent: Program, wire: Tap, fleet: Fleet, tmp_path: Path
) -> None:
    """A tensor of 60 MB, put by its owner, found, fetched and sent back, passes the agent as a file."""
    tag = fresh_tag()
    device = fleet.device("idler")
    with Store.open(tmp_path / "store") as store:
        store.put(torch.arange(15_000_000, dtype=torch.int32).numpy(), tags=[tag])
    wire.wait_for_tag(tag)
    [pointer] = device.search(tag)
    value = pointer.get(timeout=PATIENCE)
    back = device.send(value).get(timeout=PATIENCE)
    assert torch.equal(back, torch.arange(15_000_000, dtype=torch.int32))
    assert heavy_libraries(agent.pid) == []
    assert resident_bytes(agent.pid) < MOST_RESIDENT_BYTES


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_sigterm_ends_an_agent_in_order(
    broker: Program, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """SIGTERM ends an agent with 0 and its worker with it, whatever they do; no process and no temporary file stays."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    device = fleet.device("leaver")
    with processes.start_agent("leaver", tmp_path / "store", broker, "--log-level", "debug") as agent:
        held = plans.busy().send(device)(torch.ones(plans.BUSY_SIZE)) if busy else None
        if held is not None:
            assert agent.wait_for("invocation_started", PATIENCE)["result"] == held.id
        workers = children(agent.pid)
        assert len(workers) == busy
        assert agent.stop() == ExitCode.OK
        processes.wait_until_left(broker, "leaver")
        assert not device.refresh().online
        for worker in workers:
            wait_until_gone(worker)
    assert list(scratch.iterdir()) == []
    with Store.open(tmp_path / "store") as store:
        store.put(torch.ones(1).numpy())
    if held is not None:
        assert not held.ready, "it should wait for the device to come back"
        held.cancel()


def test_sigterm_ends_a_broker_in_order(tmp_path: Path) -> None:
    """SIGTERM ends a broker with 0 though a device and a coordinator are connected; both still end in order."""
    with processes.start_broker() as broker:
        with (
            processes.start_agent("first", tmp_path / "store", broker) as agent,
            connect(broker.endpoint, insecure=True) as fleet,
        ):
            assert [device.id for device in fleet.devices()] == ["first"]
            assert broker.stop() == ExitCode.OK
            assert agent.stop() == ExitCode.OK
        assert fleet.closed
