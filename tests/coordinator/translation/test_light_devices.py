"""Devices without torch: plans run there by their onnx variants, and give what torch gives."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from coordinator import Plan, VirtualWorker, connect, func2plan, tagged, training_plan
from coordinator.errors import RemoteVariantRefused
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from coordinator.translation.errors import TranslationUnsupported
from edge_agent.plan.errors import VariantRefused
from edge_agent.plan.variants import decode_variant, encode_variant
from tests import processes

WITHIN = 60.0
ROOT = Path(__file__).resolve().parents[3]

BLOCKED = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_all_but_torch(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find(name, path, target)


PathFinder.find_spec = staticmethod(find_all_but_torch)
"""


@func2plan(args_shape=[(2,)])
def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
    """The tutorial's."""
    x = x + x
    return torch.abs(x)


class Net(Plan):
    """A small CNN with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        scores: torch.Tensor = self.layers(x)
        return scores


@pytest.fixture(scope="module")
def net() -> Net:
    """Built, in eval mode."""
    torch.manual_seed(0)
    made = Net()
    made.eval()
    made.build(torch.randn(4, 1, 8, 8), args_shape=[("batch", 1, 8, 8)])
    return made


@pytest.fixture(scope="module")
def light(fleet: Fleet) -> VirtualWorker:
    """A virtual device that runs onnx."""
    return VirtualWorker(fleet, id="light", runtime="onnx", data=(tagged(torch.tensor([-1.0, 2.0]), "input_data"),))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An embedded fleet of this module's own."""
    with connect() as made:
        yield made


def value(pointer: object) -> torch.Tensor:
    """What a pointer points to."""
    assert isinstance(pointer, PointerTensor)
    got: torch.Tensor = pointer.get(timeout=WITHIN)
    return got


def test_the_tutorial_on_a_device_without_torch(light: VirtualWorker) -> None:
    """Equal: doubling and making positive round nothing."""
    pointer = plan_double_abs.send(light)(light.search("input_data")[0])
    assert torch.equal(value(pointer), torch.tensor([2.0, 4.0]))
    assert light.runtimes == ["onnx"]


def test_one_command_for_devices_with_torch_and_without(fleet: Fleet, light: VirtualWorker, net: Net) -> None:
    """Each runs what it can; the plan's id is one."""
    heavy = VirtualWorker(fleet, id="heavy")
    x = torch.randn(6, 1, 8, 8)
    sent = net.send(light, heavy)
    assert sent.id == net.id
    results = sent(x)
    wanted = net.run_plan(x)
    torch.testing.assert_close(value(results["heavy"]), wanted)
    torch.testing.assert_close(value(results["light"]), wanted, rtol=1e-5, atol=1e-5)


def test_new_weights_need_no_new_translation(light: VirtualWorker, net: Net) -> None:
    """The variant is the same, since the weights are its inputs; the results are of the new ones."""
    x = torch.randn(3, 1, 8, 8)
    before = net.variant(net.bundle())
    value(net.send(light)(x))
    old = net.id
    with torch.no_grad():
        net.get_parameter("layers.0.weight").mul_(2)
    assert net.id != old
    assert net.variant(net.bundle()) is before
    torch.testing.assert_close(value(net.send(light)(x)), net.run_plan(x), rtol=1e-5, atol=1e-5)


def test_a_variant_in_float16(light: VirtualWorker, net: Net) -> None:
    """Where asked: near the result, though not as near, from the same plan."""
    x = torch.randn(3, 1, 8, 8)
    pointer_plan = net.send(light, variant="float16")
    assert pointer_plan.id == net.id
    got, wanted = value(pointer_plan(x)), net.run_plan(x)
    assert got.dtype is torch.float32
    assert 0 < float((got - wanted).abs().max()) < 2e-2 * float(wanted.abs().max())


def test_a_variant_for_a_device_that_runs_torch_is_refused(fleet: Fleet, net: Net) -> None:
    """It would be ignored there: better said."""
    heavy = VirtualWorker(fleet, id="runs_torch")
    with pytest.raises(ValueError, match="expected devices that run onnx for the variant 'float16', got runs_torch"):
        net.send(heavy, variant="float16")


def test_what_cannot_be_translated_is_said_when_it_is_sent(light: VirtualWorker) -> None:
    """The op, the user's line, and the device; on a device with torch the plan runs."""

    @func2plan(args_shape=[(3, 3)])
    def inverse(x: torch.Tensor) -> torch.Tensor:
        inverted: torch.Tensor = torch.linalg.inv(x)
        return inverted

    with pytest.raises(TranslationUnsupported) as caught:
        inverse.send(light)
    assert caught.value.op == "aten.linalg_inv.default"
    assert "torch.linalg.inv(x)" in str(caught.value)
    assert "runs on torch devices only" in str(caught.value)
    assert "while sending inverse to light" in "".join(caught.value.__notes__)


def test_a_variant_that_gives_something_else_is_refused_by_the_device(light: VirtualWorker) -> None:
    """The device proves it on the goldens, and says by how much it is wrong."""

    @func2plan(args_shape=[("n",)])
    def tripled(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    @func2plan(args_shape=[("n",)])
    def nearly_tripled(x: torch.Tensor) -> torch.Tensor:
        return x * 3.01

    right = decode_variant(tripled.variant(tripled.bundle()))
    wrong = decode_variant(nearly_tripled.variant(nearly_tripled.bundle()))
    mixed = encode_variant(msgspec.structs.replace(right, content=wrong.content))
    tripled._variants[tripled.bundle().manifest.graph, ""] = mixed
    pointer = tripled.send(light)(torch.ones(3))
    with pytest.raises(RemoteVariantRefused) as caught:
        value(pointer)
    assert isinstance(caught.value, VariantRefused)
    assert caught.value.error == pytest.approx(0.01 / 3, rel=0.1)
    assert caught.value.tolerance == pytest.approx(1e-4)
    assert re.search(r"its result 0 \(float32\) lies 0\.003\d+ from torch's", str(caught.value))


def test_a_variant_of_another_graph_is_refused_by_the_device(light: VirtualWorker) -> None:
    """It names the graph that it was made from."""

    @func2plan(args_shape=[("n",)])
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    other = plan_double_abs.variant(plan_double_abs.bundle())
    doubled._variants[doubled.bundle().manifest.graph, ""] = other
    with pytest.raises(RemoteVariantRefused, match="it was made from the graph"):
        value(doubled.send(light)(torch.ones(3)))


def test_training_on_a_device_without_torch(light: VirtualWorker) -> None:
    """Some epochs of Adam by one command: the same losses and weights as with torch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    step = training_plan(
        model,
        loss=cross_entropy,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-2),
        example=(x[:4], y[:4]),
    )
    carry = step.initial_carry()
    final, outs = step.send(light).fold(carry, over=(x, y), batch_size=8, epochs=2)
    losses = []
    for _ in range(2):
        for start in (0, 8, 16):
            carry, out = step(carry, x[start : start + 8], y[start : start + 8])
            losses.append(out["loss"])
    torch.testing.assert_close(value(outs["loss"]), torch.stack(losses), rtol=1e-4, atol=1e-5)
    for name, weights in carry["params"].items():
        torch.testing.assert_close(value(final["params"][name]), weights, rtol=1e-3, atol=1e-5)


def test_an_agent_process_where_torch_cannot_be_imported(tmp_path: Path, net: Net) -> None:
    """Without --runtime it takes onnx; agent and worker run the plan, and never import torch."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BLOCKED)
    with pytest.MonkeyPatch.context() as patch, processes.start_broker() as broker:
        patch.setenv("PYTHONPATH", str(hooks))
        with (
            processes.start_agent("pi-kitchen", tmp_path / "store", broker),
            connect(broker.endpoint, insecure=True) as fleet,
        ):
            device = fleet.device("pi-kitchen")
            assert device.runtimes == ["onnx"]
            x = torch.randn(5, 1, 8, 8)
            torch.testing.assert_close(value(net.send(device)(x)), net.run_plan(x), rtol=1e-5, atol=1e-5)
            assert list((tmp_path / "store" / "proofs").iterdir())


def test_what_a_light_worker_needs_imports_no_torch() -> None:
    """The worker's modules, in a process in which torch's import fails."""
    lines = ("import edge_agent.worker, edge_agent.worker_onnx", "assert 'torch' not in sys.modules")
    code = "\n".join((BLOCKED, *lines))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=WITHIN)


def test_equal_seeds_draw_equal_numbers_with_and_without_torch(fleet: Fleet, light: VirtualWorker) -> None:
    """Dropout and sampling: a run here, one on torch and one on onnx are the same under a seed, and others are not."""

    @func2plan(args_shape=[("n", 6)])
    def sampled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights = x.softmax(1)
        return dropout(x), torch.multinomial(weights, 2), torch.randn_like(x), torch.randperm(x.shape[0])

    heavy = VirtualWorker(fleet, id="draws_by_torch")
    x = torch.randn(7, 6)
    here = sampled.options(seed=11)(x)
    for device in (light, heavy):
        sent = sampled.send(device)
        there = fleet.get(sent.options(seed=11)(x), timeout=WITHIN)
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
        other = fleet.get(sent.options(seed=12)(x), timeout=WITHIN)
        assert not torch.equal(there[2], other[2])
        assert not torch.equal(there[3], other[3])
        unnamed = [fleet.get(sent(x), timeout=WITHIN) for _ in range(2)]
        assert not torch.equal(unnamed[0][2], unnamed[1][2])


def test_a_folded_plan_draws_anew_at_each_step(fleet: Fleet, light: VirtualWorker) -> None:
    """The step is part of the counter: the same numbers on both runtimes, others at every step."""

    @func2plan(args_shape=[(3,), ("n", 3)])
    def walk(carry: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn_like(carry)
        return carry + noise + x.sum(0), noise

    heavy = VirtualWorker(fleet, id="walks_by_torch")
    data = torch.zeros(5, 3)
    ran = []
    for device in (light, heavy):
        pointers = walk.send(device).options(seed=3).fold(torch.zeros(3), over=data, batch_size=2)
        ran.append(fleet.get(pointers, timeout=WITHIN))
    for final, noise in ran:
        assert len({tuple(row.tolist()) for row in noise}) == 3
        torch.testing.assert_close(final, noise.sum(0))
        assert torch.equal(noise[0], walk.options(seed=3)(torch.zeros(3), data[:2])[1])
    assert torch.equal(ran[0][1], ran[1][1])
