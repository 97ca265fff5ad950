"""One message there, one back: by the broker's counters, and in bytes on the wire."""

from __future__ import annotations

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol.framing import size_of
from coordinator import connect
from tests.acceptance import plans
from tests.acceptance.wire import Tap, tap
from tests.acceptance.worlds import World
from tests.processes import Program
from tests.waiting import PATIENCE


def test_fifty_ops_cost_one_command_and_one_notification(world: World) -> None:
    """A plan of fifty ops on one pointer is one command to the device and one notification back, first run included."""
    device = world.devices[0]
    data = torch.tensor([0.5, -3.0])
    pointer = device.send(data)
    assert pointer.wait(PATIENCE)
    plan = plans.fifty_ops()
    assert len(plan.graph.ops) == 50
    on_device = plan.send(device)
    for _ in range(2):
        before = world.counters(device)
        value = on_device(pointer).get(timeout=PATIENCE)
        after = world.counters(device)
        assert torch.equal(value, plans.fifty_ops_eagerly(data))
        assert after.commands - before.commands == 1
        assert after.notifications - before.notifications == 1


def test_ten_plans_in_a_chain_cost_ten_commands_and_ten_notifications(world: World) -> None:
    """Each invocation of a chain is one command and one notification; no value leaves the device in between."""
    device = world.devices[0]
    on_device = plans.plus_one().send(device)
    pointer = device.send(torch.zeros(3))
    assert pointer.wait(PATIENCE)
    before = world.counters(device)
    for _ in range(10):
        pointer = on_device(pointer)
    value = pointer.get(timeout=PATIENCE)
    after = world.counters(device)
    assert torch.equal(value, torch.full((3,), 10.0))
    assert after.commands - before.commands == 10
    assert after.notifications - before.notifications == 10


def test_the_second_device_costs_the_coordinator_no_second_upload(world: World) -> None:
    """A plan sent to a second device reaches the broker once, and each device pulls it from there."""
    first, second = world.devices
    plan = plans.net(seed=1)
    data = torch.tensor([1.0, -2.0])
    start = world.counters()
    assert torch.equal(plan.send(first)(first.send(data)).get(timeout=PATIENCE), plan.run_plan(data))
    after_first = world.counters()
    assert after_first.blobs_in > start.blobs_in
    pulled = world.counters(second).blobs_out
    assert torch.equal(plan.send(second)(second.send(data)).get(timeout=PATIENCE), plan.run_plan(data))
    after_second = world.counters()
    assert after_second.blobs_in == after_first.blobs_in
    assert after_second.blob_bytes_in == after_first.blob_bytes_in
    assert world.counters(second).blobs_out > pulled


def test_one_changed_weight_moves_one_tensor(world: World) -> None:
    """After one weight has changed, sending again moves the manifest and that tensor, and the new weight counts."""
    device = world.devices[0]
    plan = plans.net(seed=2)
    data = torch.tensor([1.0, -2.0])
    pointer = device.send(data)
    old = plan.send(device)(pointer).get(timeout=PATIENCE)
    total, pulled = world.counters(), world.counters(device)
    with torch.no_grad():
        plan.fc2.bias.add_(torch.tensor([1.5, -1.5]))
    new = plan.send(device)(pointer).get(timeout=PATIENCE)
    manifest_and_tensor = 2
    assert world.counters().blobs_in - total.blobs_in == manifest_and_tensor
    assert world.counters(device).blobs_out - pulled.blobs_out == manifest_and_tensor
    assert torch.equal(new, plan.run_plan(data))
    assert torch.allclose(new, plan(data))
    assert not torch.allclose(new, old)


@pytest.mark.parametrize("inline", [True, False])
def test_sizes_on_the_wire(tcp: World, broker: Program, device_tap: Tap, inline: bool) -> None:
    """An invocation is at most 160 bytes on both its hops, and its notification at most 120 without the value."""
    device_id = tcp.devices[0].id
    with tap(broker.endpoint) as session_tap, connect(session_tap.endpoint, insecure=True) as fleet:
        device = fleet.device(device_id)
        pointer = device.send(torch.tensor([-1.0, 2.0]))
        assert pointer.wait(PATIENCE)
        on_device = plans.fifty_ops().send(device).options(inline=inline)
        on_device(pointer).get(timeout=PATIENCE)
        session_tap.clear()
        device_tap.clear()
        on_device(pointer).get(timeout=PATIENCE)
        [submit] = session_tap.seen(up=True, kind=m.Submit)
        [deliver] = device_tap.seen(up=False, kind=m.Deliver)
        [announce] = device_tap.seen(up=True, kind=m.Announce)
        [notify] = session_tap.seen(up=False, kind=m.Notify)
    assert submit.size <= 160
    assert deliver.size <= 160
    values = 1 if inline else 0
    for notification in (announce, notify):
        assert len(notification.frames) == 1 + values
        assert notification.size - size_of(notification.frames[1:]) <= 120
