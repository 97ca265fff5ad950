"""Machines and links that go and come back: what was there stays, and what was asked for is done."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from broker.protocol import messages as m
from coordinator import VirtualWorker, connect
from coordinator.errors import WorkerDied
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from edge_agent import Store
from tests import processes
from tests.acceptance import plans
from tests.acceptance.kernel import children
from tests.acceptance.wire import Cable, cable, tap
from tests.acceptance.worlds import World, fresh_tag
from tests.processes import Program
from tests.waiting import PATIENCE


def test_an_agents_tags_survive_its_restart(broker: Program, tmp_path: Path) -> None:
    """What the owner put, a coordinator sent and a plan gave is found while the agent is away and after its restart."""
    own, late, sent, made = fresh_tag(), fresh_tag(), fresh_tag(), fresh_tag()
    store = tmp_path / "store"
    with Store.open(store) as opened:
        opened.put(np.array([-1.0, 2.0], dtype=np.float32), tags=[own], description="two readings")
    large = torch.arange(100_000)
    with connect(broker.endpoint, insecure=True) as fleet, tap(broker.endpoint) as wire:
        device = fleet.device("keeper")
        with processes.start_agent("keeper", store, wire):
            np.save(tmp_path / "late.npy", np.array([7], dtype=np.int64))
            command = [sys.executable, "-m", "edge_agent", "put", str(tmp_path / "late.npy"), "--store", str(store)]
            subprocess.run([*command, "--tag", late], check=True, timeout=PATIENCE, capture_output=True)
            wire.wait_for_tag(late)
            device.send(large, tags=[sent])
            plan = plans.double_abs().send(device).options(tags=[made])
            assert plan(own).wait(PATIENCE)
            wire.wait_for_tag(made)
            before = {tag: device.search(tag) for tag in (own, late, sent, made)}
        away = {tag: device.search(tag) for tag in before}
        with processes.start_agent("keeper", store, wire):
            after = {tag: device.search(tag) for tag in before}
            for pointers in (before, away, after):
                assert [len(found) for found in pointers.values()] == [1, 1, 1, 1]
                assert pointers == before
                values = fleet.get({tag: found[0] for tag, found in pointers.items()}, timeout=PATIENCE)
                assert torch.equal(values[own], torch.tensor([-1.0, 2.0]))
                assert torch.equal(values[late], torch.tensor([7]))
                assert torch.equal(values[sent], large)
                assert torch.equal(values[made], torch.tensor([2.0, 4.0]))
            assert after[own][0].description == "two readings"


def test_a_virtual_devices_store_survives_too(tmp_path: Path) -> None:
    """A virtual device with a store of its own has what it had, in another fleet."""
    for first in (True, False):
        with connect() as fleet:
            worker = VirtualWorker(fleet, id="device_1", store=tmp_path / "store")
            if first:
                assert worker.send(torch.tensor([3.0]), tags=["kept"]).wait(PATIENCE)
            [pointer] = worker.search("kept")
            assert torch.equal(pointer.get(timeout=PATIENCE), torch.tensor([3.0]))


class Site:
    """A broker, an agent and a coordinator that reach it by a cable each."""

    def __init__(self, broker: str, links: Sequence[Cable], agent: Program, fleet: Fleet) -> None:
        self.broker = broker
        self.links = links
        self.agent = agent
        self.fleet = fleet
        self.device = fleet.device("remote")

    def cut(self) -> None:
        """Cut both off, and wait until the agent has seen it."""
        for link in self.links:
            link.cut()
        self.agent.wait_for("link_lost", PATIENCE)

    def mend(self, broker: str = "") -> None:
        """Let both reach the broker, or another one; the agent comes first."""
        of_agent, of_coordinator = self.links
        of_agent.lead_to(broker or self.broker)
        self.agent.wait_for("agent_registered", PATIENCE)
        of_coordinator.lead_to(broker or self.broker)


@contextlib.contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """A fleet that can be cut off."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(processes.start_broker())
        links = [stack.enter_context(cable(broker.endpoint)) for _ in range(2)]
        agent = stack.enter_context(processes.start_agent("remote", folder / "store", links[0]))
        fleet = stack.enter_context(connect(links[1].endpoint, insecure=True))
        yield Site(broker.endpoint, links, agent, fleet)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet that can be cut off, and is whole after each test."""
    with running_site(tmp_path_factory.mktemp("site")) as made:
        yield made


def test_work_goes_on_when_the_broker_can_be_reached_again(site: Site) -> None:
    """With the link cut, pointers still come at once; agent and coordinator reconnect, and the values come."""
    on_device = plans.plus_one().send(site.device)
    pointer = site.device.send(torch.zeros(2))
    assert torch.equal(on_device(pointer).get(timeout=PATIENCE), torch.ones(2))
    for _ in range(2):
        site.cut()
        results = [on_device(pointer) for _ in range(5)]
        results.append(on_device(results[-1]))
        assert not any(result.ready for result in results)
        site.mend()
        assert torch.equal(results[-1].get(timeout=PATIENCE), torch.full((2,), 2.0))
        assert all(torch.equal(value, torch.ones(2)) for value in site.fleet.get(results[:-1], timeout=PATIENCE))


def test_a_result_made_while_the_link_was_cut_arrives_afterwards(site: Site) -> None:
    """What a device finishes while it is cut off is announced when it is back, once."""
    before = site.fleet.stats().devices["remote"].commands
    on_device = plans.plus_one().send(site.device)
    pointer = site.device.send(torch.zeros(2))
    assert torch.equal(on_device(pointer).get(timeout=PATIENCE), torch.ones(2))
    held = plans.busy().send(site.device)(torch.ones(plans.BUSY_SIZE // 2))
    after = on_device(pointer)
    while site.agent.wait_for("plan_loaded", PATIENCE)["plan"] != plans.busy().id:
        pass
    site.cut()
    site.mend()
    assert held.get(timeout=PATIENCE).shape == ()
    assert torch.equal(after.get(timeout=PATIENCE), torch.ones(2))
    put_warm_busy_and_after = 4
    assert site.fleet.stats().devices["remote"].commands - before == put_warm_busy_and_after


def test_a_broker_that_starts_anew_is_told_again(tmp_path: Path) -> None:
    """A broker that comes back without its memory gets unended commands, results and tags again: pointers stay good."""
    tag = fresh_tag()
    with processes.start_broker() as another, running_site(tmp_path) as site:
        on_device = plans.plus_one().send(site.device)
        pointer = site.device.send(torch.zeros(2), tags=[tag])
        assert torch.equal(on_device(pointer).get(timeout=PATIENCE), torch.ones(2))
        kept = on_device.options(inline=False)(pointer)
        assert kept.wait(PATIENCE)
        site.cut()
        asked = on_device(pointer)
        site.mend(another.endpoint)
        assert torch.equal(asked.get(timeout=PATIENCE), torch.ones(2))
        assert [found.id for found in site.device.search(tag)] == [pointer.id]
        assert torch.equal(kept.get(timeout=PATIENCE), torch.ones(2))
        assert torch.equal(on_device(kept).get(timeout=PATIENCE), torch.full((2,), 2.0))


def test_a_worker_that_is_killed_is_replaced(broker: Program, tmp_path: Path) -> None:
    """A command whose worker is killed is tried again, and has failed after the second time; what is behind it runs."""
    with (
        connect(broker.endpoint, insecure=True) as fleet,
        processes.start_agent("mortal", tmp_path / "store", broker, "--log-level", "debug") as agent,
    ):
        on_device = plans.busy().send(fleet.device("mortal"))
        deadly = on_device(torch.ones(plans.BUSY_SIZE))
        behind = on_device(torch.ones(2))
        for attempt in (1, 2):
            kill_at(agent, deadly, attempt=attempt)
        with pytest.raises(WorkerDied) as caught:
            deadly.get(timeout=PATIENCE)
        assert caught.value.device == "mortal"
        assert behind.get(timeout=PATIENCE).shape == ()


def kill_at(agent: Program, result: PointerTensor, *, attempt: int) -> None:
    """Kill the agent's worker while it is at a command for the ``attempt``-th time; what came before it has ended."""
    while True:
        started = agent.wait_for("invocation_started", PATIENCE)
        if (started["result"], started["attempt"]) == (result.id, attempt):
            break
    [worker] = children(agent.pid)
    assert not result.ready
    os.kill(worker, signal.SIGKILL)


def test_a_restarted_coordinator_takes_up_an_id(world: World) -> None:
    """A result id is enough for another coordinator to get the value."""
    device = world.devices[0]
    result = plans.double_abs().send(device).options(inline=False)(torch.tensor([-1.0, 2.0]))
    assert result.wait(PATIENCE)
    if world.kind == "tcp":
        with connect(world.fleet.endpoint, insecure=True) as another:
            assert another.status(result.id) == m.ResultStatus.DONE
            assert torch.equal(another.pointer(result.id).get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
    taken_up = world.fleet.pointer(result.id)
    assert torch.equal(taken_up.get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
