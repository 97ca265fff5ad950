"""A pointer never waits: not for a busy device, not for a sleeping one, not for the result that it builds on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from broker.protocol import messages as m
from coordinator import VirtualWorker, connect
from coordinator.device import Device
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from tests import processes
from tests.acceptance import plans
from tests.acceptance.wire import tap
from tests.acceptance.worlds import World
from tests.processes import Program
from tests.waiting import PATIENCE


@contextlib.contextmanager
def busy(device: Device) -> Iterator[PointerTensor]:
    """Give a device work for many seconds, and end it when the block ends: what was sent after it runs then."""
    held = plans.busy().send(device)(torch.ones(plans.BUSY_SIZE))
    try:
        yield held
        assert not held.ready, "the device was not busy long enough for this test to mean anything"
    finally:
        held.cancel()
        assert held.wait(PATIENCE)


def test_pointers_come_while_the_device_is_busy(world: World) -> None:
    """Twenty invocations on a device that works for seconds give twenty pointers meanwhile, and all end well."""
    device = world.devices[0]
    on_device = plans.double_abs().send(device)
    pointer = device.send(torch.tensor([-1.0, 2.0]))
    on_device(pointer).get(timeout=PATIENCE)
    with busy(device):
        results = [on_device(pointer) for _ in range(20)]
        assert not any(result.ready for result in results)
    assert len({result.id for result in results}) == 20
    for result in results:
        assert torch.equal(result.get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))


def test_a_chain_of_ten_is_sent_whole_before_the_first_has_run(world: World) -> None:
    """Ten plans, each on the result of the one before, have all left for the device before the first one has run."""
    device = world.devices[0]
    on_device = plans.plus_one().send(device)
    start = device.send(torch.zeros(2))
    assert start.wait(PATIENCE)
    on_device(start).get(timeout=PATIENCE)
    before = world.counters(device)
    with busy(device):
        chain = [on_device(start)]
        for _ in range(9):
            chain.append(on_device(chain[-1]))
        sent = world.counters(device)
        assert not any(result.ready for result in chain)
    busy_and_ten = 11
    assert sent.commands - before.commands == busy_and_ten
    assert sent.notifications == before.notifications
    for k, result in enumerate(chain, start=1):
        assert torch.equal(result.get(timeout=PATIENCE), torch.full((2,), float(k)))


def test_a_busy_device_does_not_delay_another(world: World) -> None:
    """The second device answers while the first one works for seconds on what it was sent before."""
    second = world.devices[1]
    on_second = plans.double_abs().send(second)
    pointer = second.send(torch.tensor([-1.0, 2.0]))
    on_second(pointer).get(timeout=PATIENCE)
    with busy(world.devices[0]):
        value = on_second(pointer).get(timeout=PATIENCE)
    assert torch.equal(value, torch.tensor([2.0, 4.0]))


def test_commands_for_both_devices_leave_before_either_has_answered(tcp: World, broker: Program) -> None:
    """On the coordinator's wire, the invocations of both devices precede the notification of either."""
    with tap(broker.endpoint) as wire, connect(wire.endpoint, insecure=True) as fleet:
        with busy(fleet.device(tcp.devices[0].id)), busy(fleet.device(tcp.devices[1].id)):
            wire.wait_for(up=True, kind=m.Submit, count=3)  # the plan, and both invocations
            assert not wire.seen(up=False, kind=m.Notify)
        passed = [each.message for each in wire.everything() if each.up]
    commands = [message.command for message in passed if isinstance(message, m.Submit)]
    assert [type(command).__name__ for command in commands] == ["StorePlan", "Invoke", "Invoke", "Cancel", "Cancel"]


def test_ten_devices_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten devices are all inside their plan at one moment: each waits there for the nine others."""
    from edge_agent.runtimes.torch import LoadedPlan

    inside = threading.Barrier(10)
    run = LoadedPlan.run

    def meet_and_run(self: LoadedPlan, *args: object, **kwargs: object) -> list[torch.Tensor]:
        inside.wait(PATIENCE)
        return run(self, *args, **kwargs)  # type: ignore[arg-type]

    plan = plans.double_abs()
    with connect() as fleet:
        devices = [VirtualWorker(fleet, id=f"device_{k}") for k in range(10)]
        data = [device.send(torch.tensor([float(k)])) for k, device in enumerate(devices)]
        monkeypatch.setattr(LoadedPlan, "run", meet_and_run)
        on_all = plan.send(*devices)
        results = on_all({device.id: pointer for device, pointer in zip(devices, data, strict=True)})
        for k, device in enumerate(devices):
            assert torch.equal(results[device.id].get(timeout=PATIENCE), torch.tensor([2.0 * k]))
    assert not inside.broken


def test_many_devices_are_one_command_to_the_broker(world: World) -> None:
    """A plan sent to several devices and called once is one command, and gives each device's pointer at once."""
    first, second = world.devices
    pointers = {device.id: device.send(torch.tensor([float(k)])) for k, device in enumerate((first, second), start=1)}
    results = plans.double_abs().send(first, second)(pointers)
    assert list(results) == [first.id, second.id]
    ids = [int(results[device.id].id, 16) for device in (first, second)]
    assert ids[1] == ids[0] + 1
    assert torch.equal(results[first.id].get(timeout=PATIENCE), torch.tensor([2.0]))
    assert torch.equal(results[second.id].get(timeout=PATIENCE), torch.tensor([4.0]))


def test_a_result_of_another_device_may_be_an_argument_before_it_is_there(world: World) -> None:
    """A plan on the second device takes a pointer to what the first one has yet to compute."""
    first, second = world.devices
    plus_one = plans.plus_one()
    with busy(first):
        of_first = plus_one.send(first)(first.send(torch.zeros(2)))
        of_second = plus_one.send(second)(of_first)
    assert torch.equal(of_second.get(timeout=PATIENCE), torch.full((2,), 2.0))


@contextlib.contextmanager
def awake(kind: str, fleet: Fleet, store: Path, broker: Program) -> Iterator[None]:
    """The device ``sleeper``, as long as the block lasts."""
    if kind == "tcp":
        with processes.start_agent("sleeper", store, broker):
            yield
        processes.wait_until_left(broker, "sleeper")
    else:
        worker = VirtualWorker(fleet, id="sleeper", store=store)
        try:
            yield
        finally:
            worker.close()


def test_a_sleeping_device_keeps_nobody_waiting(world: World, broker: Program, tmp_path: Path) -> None:
    """A device that has gone still takes commands: the pointers come at once, the values when it is back."""
    fleet = world.fleet
    device = fleet.device("sleeper")
    with awake(world.kind, fleet, tmp_path / "store", broker):
        pointer = device.send(torch.tensor([-1.0, 2.0]))
        assert pointer.wait(PATIENCE)
    assert not device.refresh().online
    on_device = plans.double_abs().send(device)
    first = on_device(pointer)
    second = on_device(first)
    assert first.status() == m.ResultStatus.QUEUED
    assert not first.ready
    with awake(world.kind, fleet, tmp_path / "store", broker):
        assert torch.equal(first.get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
        assert torch.equal(second.get(timeout=PATIENCE), torch.tensor([4.0, 8.0]))
