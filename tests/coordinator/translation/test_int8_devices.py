"""Variants of int8 on devices: how near their results are, what moves there, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator import Plan, VirtualWorker, connect, func2plan, training_plan
from coordinator.errors import RemoteVariantRefused
from coordinator.fleet import Fleet
from coordinator.function_plan import FunctionPlan
from coordinator.pointers import PointerTensor
from coordinator.translation.errors import NothingToQuantise, WeightNotFinite
from coordinator.variants import packed_state
from edge_agent.plan.quantised import QuantisedModel, decode_packed, decode_quantised, encode_quantised
from edge_agent.plan.variants import decode_variant, encode_variant
from tests import processes
from tests.coordinator.translation.test_light_devices import BLOCKED

WITHIN = 60.0


class Digits(Plan):
    """Which digit an image shows: two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        scores: torch.Tensor = self.layers(x)
        return scores


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and what they show."""
    found = load_digits()
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


@pytest.fixture(scope="module")
def net() -> Digits:
    """Trained on two thirds of the digits."""
    torch.manual_seed(0)
    made = Digits()
    x, y = digits()
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for step in range(120):
        rows = torch.arange(step * 100, step * 100 + 100) % 1200
        optimizer.zero_grad()
        cross_entropy(made(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    made.eval()
    made.build(x[:4], args_shape=[("batch", 64)])
    return made


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An embedded fleet of this module's own."""
    with connect() as made:
        yield made


@pytest.fixture(scope="module")
def light(fleet: Fleet) -> VirtualWorker:
    """A virtual device that runs onnx."""
    return VirtualWorker(fleet, id="light", runtime="onnx")


def value(pointer: object) -> torch.Tensor:
    """What a pointer points to."""
    assert isinstance(pointer, PointerTensor)
    got: torch.Tensor = pointer.get(timeout=WITHIN)
    return got


def right(scores: torch.Tensor, y: torch.Tensor) -> float:
    """How many of the digits are right, of 1."""
    return float((scores.argmax(1) == y).float().mean())


def test_digits_are_read_as_well_as_with_float32(light: VirtualWorker, net: Digits) -> None:
    """Of what nobody trained with, within 1 %; the scores are near, and of the same plan."""
    x, y = (one[1200:] for one in digits())
    pointer_plan = net.send(light, variant="int8")
    assert pointer_plan.id == net.id
    scores, wanted = value(pointer_plan(x)), net.run_plan(x)
    assert right(wanted, y) > 0.9
    assert abs(right(scores, y) - right(wanted, y)) <= 0.01
    assert scores.dtype is torch.float32
    assert 0 < float((scores - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


def moved(fleet: Fleet, device: VirtualWorker) -> tuple[int, int]:
    """How many blobs the device was given so far, and how many bytes they have."""
    counters = fleet.stats().devices[device.id]
    return counters.blobs_out, counters.blob_bytes_out


def test_a_quarter_of_the_bytes_moves(fleet: Fleet) -> None:
    """Of a network of some size: what a device gets for int8, against what it gets for float32."""
    torch.manual_seed(0)
    plan = FunctionPlan(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)).eval())
    plan.build(torch.randn(4, 256), args_shape=[("batch", 256)])
    nbytes = {}
    for precision in ("", "int8"):
        device = VirtualWorker(fleet, id=f"weighed{precision}", runtime="onnx")
        value(plan.send(device, variant=precision)(torch.randn(2, 256)))
        nbytes[precision] = moved(fleet, device)[1]
    floats = 4 * (256 * 512 + 512 * 64)
    assert nbytes[""] > floats
    assert nbytes["int8"] < 0.27 * floats


def test_new_weights_need_no_new_variant_and_move_alone(fleet: Fleet, net: Digits) -> None:
    """One changed weight: its bytes, its scales, the manifest and the packed state, and no proof anew."""
    device = VirtualWorker(fleet, id="changing", runtime="onnx")
    x = digits()[0][:5]
    value(net.send(device, variant="int8")(x))
    before, variant, old = moved(fleet, device), net.variant(net.bundle(), "int8"), net.id
    weight = net.get_parameter("layers.2.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.randn(10, 128))
    try:
        assert net.id != old
        scores = value(net.send(device, variant="int8")(x))
        after = moved(fleet, device)
        wanted = net.run_plan(x)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert net.variant(net.bundle(), "int8") is variant
    assert after[0] - before[0] == 4
    assert 10 * 128 < after[1] - before[1] < 10 * 128 + 1200
    assert float((scores - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


def test_weights_that_have_not_changed_are_not_rounded_again(net: Digits) -> None:
    """Sending a plan again is as quick as without; what is not used any more is forgotten."""
    bundle = net.bundle()
    made = {(b"old" * 16, 0): (b"", b"")}
    variant = net.variant(bundle, "int8")
    first = packed_state(bundle, variant, made)
    assert list(first) == [
        "onnx-int8:layers.0.weight",
        "onnx-int8:layers.0.weight:scale",
        "onnx-int8:layers.2.weight",
        "onnx-int8:layers.2.weight:scale",
        "onnx-int8-state",
    ]
    assert len(made) == 2
    frames = list(made.values())
    assert packed_state(bundle, variant, made) == first
    assert all(now is then for now, then in zip(made.values(), frames, strict=True))
    packed = decode_packed(first["onnx-int8-state"])
    assert packed is not None
    assert not {bundle.manifest.state[0], bundle.manifest.state[2]} & set(packed.state)


def test_so_much_state_that_it_is_not_named(light: VirtualWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a command names the variant, and the device rounds the weights: to the same."""
    torch.manual_seed(0)
    plan = FunctionPlan(nn.Linear(6, 3).eval())
    plan.build(torch.randn(4, 6), args_shape=[("batch", 6)])
    x = torch.randn(5, 6)
    named = value(plan.send(light, variant="int8")(x))
    monkeypatch.setattr("coordinator.variants.INLINE_TENSORS_BYTES", 10)
    assert list(plan.variant_parts(plan.bundle(), "int8")) == ["onnx-int8"]
    assert torch.equal(value(plan.send(light, variant="int8")(x)), named)


def test_a_saved_plan_keeps_its_variant(light: VirtualWorker, net: Digits, tmp_path: Path) -> None:
    """And is sent with it, without being translated again."""
    x = digits()[0][:5]
    scores = value(net.send(light, variant="int8")(x))
    net.save(tmp_path / "net.plan")
    loaded = Plan.load(tmp_path / "net.plan")
    assert loaded.bundle().beside["onnx-int8"] == net.variant(net.bundle(), "int8")
    assert torch.equal(value(loaded.send(light, variant="int8")(x)), scores)


def test_a_wrong_variant_is_refused_by_the_device(light: VirtualWorker) -> None:
    """It proves it on the goldens, and says by how much it is wrong; float32 weights are not there to fall back on."""
    torch.manual_seed(0)
    plan = FunctionPlan(nn.Linear(64, 5).eval())
    plan.build(torch.randn(4, 64), args_shape=[("batch", 64)])
    whole = decode_variant(plan.variant(plan.bundle(), "int8"))
    content = decode_quantised(whole.content)
    model = onnx.load_from_string(content.model)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8 and tensor.data_location != onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.array(120, np.uint8), tensor.name))
    wrong = encode_quantised(QuantisedModel(model=model.SerializeToString(), axes=content.axes))
    wrong_variant = encode_variant(msgspec.structs.replace(whole, content=wrong))
    plan._variants[plan.bundle().manifest.graph, "int8"] = wrong_variant
    with pytest.raises(RemoteVariantRefused) as caught:
        value(plan.send(light, variant="int8")(torch.ones(3, 64)))
    assert caught.value.tolerance == pytest.approx(2e-3)
    assert caught.value.error is not None
    assert caught.value.error > 2e-3
    assert "from torch's, as a part of the largest element, where 0.002 is allowed" in str(caught.value)


def test_what_has_no_variant_of_int8_is_said_when_it_is_sent(light: VirtualWorker) -> None:
    """A plan without weights, a training step, and one whose weight is not finite; by name."""

    @func2plan(args_shape=[(3,)])
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(NothingToQuantise, match="expected a float32 weight that the plan carries") as caught:
        doubled.send(light, variant="int8")
    assert "while sending doubled to light" in "".join(caught.value.__notes__)
    model = nn.Linear(4, 3)
    step = training_plan(
        model,
        loss=cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        example=(torch.randn(4, 4), torch.randint(0, 3, (4,))),
    )
    with pytest.raises(NothingToQuantise, match="the plan's weights are arguments"):
        step.send(light, variant="int8")
    plan = FunctionPlan(model.eval())
    plan.build(torch.randn(4, 4))
    with torch.no_grad():
        model.weight[1, 2] = torch.inf
    with pytest.raises(WeightNotFinite) as refused:
        plan.send(light, variant="int8")
    assert refused.value.weight == "weight"
    assert str(refused.value) == ("expected finite elements in weight, to be rounded to int8, got infinite ones or nan")


def test_a_variant_for_a_device_that_runs_torch_is_refused(fleet: Fleet, net: Digits) -> None:
    """It would be ignored there."""
    heavy = VirtualWorker(fleet, id="runs_torch")
    with pytest.raises(ValueError, match="expected devices that run onnx for the variant 'int8', got runs_torch"):
        net.send(heavy, variant="int8")


class Two(Plan):
    """With a second method."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the layer."""
        result: torch.Tensor = self.layer(x)
        return result

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """The largest of them."""
        largest: torch.Tensor = self.layer(x).amax(1)
        return largest


def test_other_methods_are_sent_in_the_same_precision(light: VirtualWorker) -> None:
    """Each by its own variant."""
    torch.manual_seed(0)
    plan = Two()
    x = torch.randn(3, 8)
    plan.build(x, args_shape=[("batch", 8)])
    plan.build_method("score", x, args_shape=[("batch", 8)])
    sent = plan.send(light, variant="int8")
    scores = value(sent(x))
    assert torch.equal(value(sent.score(x)), scores.amax(1))
    assert not torch.equal(scores, plan.run_plan(x))


def test_an_agent_process_without_torch(tmp_path: Path, net: Digits) -> None:
    """Agent and worker, with torch's import blocked: large weights come as files, a second run needs nothing, and new
    weights no new proof.
    """
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BLOCKED)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 1200), nn.Tanh(), nn.Linear(1200, 10)).eval()
    plan = FunctionPlan(model)
    plan.build(torch.randn(4, 64), args_shape=[("batch", 64)])
    with pytest.MonkeyPatch.context() as patch, processes.start_broker() as broker:
        patch.setenv("PYTHONPATH", str(hooks))
        with (
            processes.start_agent("pi-kitchen", tmp_path / "store", broker),
            connect(broker.endpoint, insecure=True) as fleet,
        ):
            device = fleet.device("pi-kitchen")
            x = torch.randn(5, 64)
            sent = plan.send(device, variant="int8")
            scores, wanted = value(sent(x)), plan.run_plan(x)
            assert float((scores - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
            before = fleet.stats().devices[device.id].blobs_out
            assert torch.equal(value(sent(x)), scores)
            assert fleet.stats().devices[device.id].blobs_out == before
            [proof] = (tmp_path / "store" / "proofs").iterdir()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(2)
            assert not torch.equal(value(plan.send(device, variant="int8")(x)), scores)
            assert list((tmp_path / "store" / "proofs").iterdir()) == [proof]
