"""Federated training on real data: devices train on their own digits, and only weights travel."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator import VirtualWorker, connect, tagged, training_plan
from coordinator.device import Device
from coordinator.fleet import Fleet
from coordinator.training import TrainingPlan
from edge_agent import Store
from tests import processes

Shard: TypeAlias = tuple[torch.Tensor, torch.Tensor]

WITHIN = 120.0
DEVICES = ("north", "east", "south")
HELD_OUT = 360
ROUNDS = 5
EPOCHS = 3
BATCH = 16


@functools.cache
def digits() -> tuple[tuple[Shard, ...], Shard]:
    """A shard for each device, and what none of them has: images as 64 numbers from 0 to 1, and what they show."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(found.target, dtype=torch.int64)[order]
    here = [slice(HELD_OUT + k, None, len(DEVICES)) for k in range(len(DEVICES))]
    return tuple((x[of].contiguous(), y[of].contiguous()) for of in here), (x[:HELD_OUT], y[:HELD_OUT])


def accuracy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The part that is right."""
    return (scores.argmax(1) == y).to(torch.float32).mean()


def make_net() -> nn.Sequential:
    """The same one each time: 64-128-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@functools.cache
def training() -> tuple[nn.Module, TrainingPlan]:
    """The net, and its training step."""
    model = make_net()
    [(x, y), *_], _ = digits()
    step = training_plan(
        model,
        loss=cross_entropy,
        optimizer=lambda params: torch.optim.Adam(params, lr=2e-3),
        example=(x[:BATCH], y[:BATCH]),
        metrics={"accuracy": accuracy},
    )
    return model, step


def mean(nests: Sequence[Any]) -> Any:
    """The mean of tensors at the same places."""
    first = nests[0]
    if isinstance(first, Mapping):
        return {key: mean([nest[key] for nest in nests]) for key in first}
    return torch.stack(list(nests)).mean(0)


def train(fleet: Fleet, devices: Sequence[Device]) -> float:
    """Some rounds of training on each device, one command a round; how good the mean of the weights is."""
    model, step = training()
    plans = [step.send(device) for device in devices]
    carry = step.initial_carry()
    for round_ in range(ROUNDS):
        folded = [
            plan.fold(carry, over=("x", "y"), batch_size=BATCH, epochs=EPOCHS, shuffle=round_)[0] for plan in plans
        ]
        weights = [fleet.get(final["params"], timeout=WITHIN) for final in folded]
        carry = step.initial_carry() | {"params": mean(weights)}
    _, (x, y) = digits()
    with torch.no_grad():
        return accuracy(torch.func.functional_call(model, carry["params"], (x,)), y).item()


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_the_mean_of_three_devices_weights_reads_digits(runtime: str) -> None:
    """Five rounds of three epochs on a third of the digits each: at least 95 % of what nobody trained with is right."""
    shards, _ = digits()
    with connect() as fleet:
        devices = [
            VirtualWorker(fleet, id=name, runtime=runtime, data=(tagged(x.clone(), "x"), tagged(y.clone(), "y")))
            for name, (x, y) in zip(DEVICES, shards, strict=True)
        ]
        assert all(device.runtimes == [runtime] for device in devices)
        one_epoch_is_one_command(fleet, devices[0])
        assert train(fleet, devices) >= 0.95


def test_three_agents_without_torch_learn_to_read_digits(tmp_path: Path) -> None:
    """The same with real programs: a broker, and three agents whose owners put the data into their stores."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(processes.start_broker())
        agents = []
        for name, (x, y) in zip(DEVICES, digits()[0], strict=True):
            with Store.open(tmp_path / name) as store:
                store.put(x, tags=["x"])
                store.put(y, tags=["y"])
            started = processes.start_agent(name, tmp_path / name, broker, "--runtime", "onnx", wait=False)
            agents.append(stack.enter_context(started))
        for agent in agents:
            agent.wait_for("agent_registered", WITHIN)
        fleet = stack.enter_context(connect(broker.endpoint, insecure=True))
        one_epoch_is_one_command(fleet, fleet.device(DEVICES[0]))
        assert train(fleet, [fleet.device(name) for name in DEVICES]) >= 0.95


def on_device(device: Device, nest: Any) -> Any:
    """Pointers to tensors that the device has now, nested alike."""
    if isinstance(nest, Mapping):
        return {key: on_device(device, value) for key, value in nest.items()}
    return device.send(nest)


def one_epoch_is_one_command(fleet: Fleet, device: Device) -> None:
    """Thirty steps and the outputs of each: one message to the device, one from it, as the broker has counted."""
    _, step = training()
    [(_, y), *_], _ = digits()
    plan = step.send(device)
    sent = on_device(device, step.initial_carry())
    carry, outs = plan.fold(sent, over=("x", "y"), batch_size=BATCH)  # all pointers stay: a release is a command, too
    first = fleet.get(outs["loss"], timeout=WITHIN)
    before = fleet.stats()
    final, out = plan.fold(carry, over=("x", "y"), batch_size=BATCH)
    assert out["loss"].wait(WITHIN)
    after = fleet.stats()
    for now, then in ((after.devices[device.id], before.devices[device.id]), (after.total, before.total)):
        assert (now.commands - then.commands, now.notifications - then.notifications) == (1, 1)
    assert final["params"]["0.weight"].ready
    second = fleet.get(out["loss"], timeout=WITHIN)
    assert first.shape == second.shape == (-(-len(y) // BATCH),)
    assert second.mean() < first.mean() - 0.3
