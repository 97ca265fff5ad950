"""Variants of int8: which weights they round, that they give what torch gives with the same roundings, and that nothing
else passes for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.functional import cross_entropy, linear

from broker.protocol.tensors import decode_array
from coordinator import func2plan, training_plan
from coordinator.function_plan import FunctionPlan
from coordinator.translation.errors import NothingToQuantise, VariantUnsound
from coordinator.translation.quantised import rounded_weights
from coordinator.translation.variants import make_variant, prove
from edge_agent.plan.checker import CheckedPlan, check_graph
from edge_agent.plan.errors import PlanMalformed, VariantRefused
from edge_agent.plan.format import Graph, Manifest, digest_of, encode_graph
from edge_agent.plan.quantised import QuantisedModel, decode_quantised, encode_quantised, quantised
from edge_agent.plan.variants import TOLERANCES, Variant, decode_variant, encode_variant
from edge_agent.runtimes.onnx import OnnxModel, OnnxPlan, OnnxRuntime
from tests.coordinator.networks import NETWORKS, Scanned
from tests.edge_agent.plan.graphs import double_abs

INT8 = TOLERANCES["int8"]["float32"]
CARRIED = [name for name in NETWORKS if name not in ("FFT", "half", "bfloat16", "double", "complex", "int")]
"""Networks that carry a float32 weight and use it as one, outside of loops."""


class Tied(nn.Module):
    """One table for words, for scores of words, and for its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.back = nn.Parameter(torch.randn(5, 5))

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores, a product with the table as it is, one with a weight in the middle, and a penalty."""
        x = self.table(words)
        table = self.table.weight
        return linear(x, table), linear(x, table) @ table, x @ self.back.transpose(0, -1) @ self.back, table.abs().sum()


def built(module: nn.Module, *args: torch.Tensor) -> FunctionPlan:
    """A plan of a module, in eval mode, with a batch of any size."""
    plan = FunctionPlan(module.eval())
    plan.build(*args, args_shape=[("batch", *one.shape[1:]) for one in args])
    return plan


def mlp() -> FunctionPlan:
    """Two linear layers."""
    torch.manual_seed(0)
    return built(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6))


def model_of(graph: Graph, variant: bytes) -> OnnxModel:
    """A variant, without a state."""
    checked = check_graph(graph)
    manifest = Manifest(version=1, graph=digest_of(encode_graph(graph)), outputs=checked.output_types)
    return OnnxRuntime().model(CheckedPlan(manifest, checked), variant)


def loaded(plan: FunctionPlan, precision: str = "int8") -> OnnxPlan:
    """A plan's variant with the plan's state."""
    return model_of(plan.graph, make_variant(plan.graph, precision=precision)).load(state_of(plan))


def state_of(plan: FunctionPlan) -> list[np.ndarray]:
    """Its weights and biases, in the plan's order."""
    bundle = plan.bundle()
    return [decode_array(bundle.state[digest]) for digest in bundle.manifest.state]


def changed(variant: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    """A variant with another model, and the same goldens."""
    whole = decode_variant(variant)
    content = decode_quantised(whole.content)
    model = onnx.load_from_string(content.model)
    change(model)
    other = QuantisedModel(model=model.SerializeToString(), axes=content.axes)
    return encode_variant(msgspec.structs.replace(whole, content=encode_quantised(other)))


# ----------------------------------------------------------------------------------------------- what is rounded


@pytest.mark.parametrize("name", CARRIED)
def test_networks_give_what_torch_gives_with_the_same_roundings(name: str) -> None:
    """To the last bits of float32, at two batch sizes, whatever the depth."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    plan = FunctionPlan(network.make().train(network.train_mode))
    plan.build(*network.draw(5), args_shape=list(network.shape))
    variant = make_variant(plan.graph, precision="int8")
    assert [len(golden.sizes) for golden in decode_variant(variant).goldens] == [len(plan.graph.symbols)] * 2
    assert prove(check_graph(plan.graph), variant) < 1e-5


def test_weights_are_rounded_by_what_is_not_summed() -> None:
    """Rows of a linear layer and of a table of words, columns of a matrix on the right, turned ones too; one that is
    used both ways is rounded by its first use, and its other uses are of float32.
    """
    plan = built(Tied(), torch.randint(0, 7, (4, 2)))
    graph = plan.graph
    rounded = rounded_weights(check_graph(graph))
    assert {graph.inputs[place].name: axis for place, axis in rounded.axes.items()} == {"table.weight": 0, "back": 0}
    assert [graph.ops[index].name for index in rounded.products] == [
        "aten.linear.default",
        "aten.linear.default",
        "aten.matmul.default",
    ]
    assert prove(check_graph(graph), make_variant(graph, precision="int8")) < 1e-5


def test_a_convolution_has_its_kernel_in_one_byte() -> None:
    """By the channels that it gives, transposed ones too; it computes in float32."""
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2))
    plan = built(module, torch.randn(2, 2, 6, 6))
    rounded = rounded_weights(check_graph(plan.graph))
    assert list(rounded.axes.values()) == [0, 1]
    assert not rounded.products
    assert prove(check_graph(plan.graph), make_variant(plan.graph, precision="int8")) < 1e-5


Uses = Callable[..., Any]

USES: dict[str, tuple[tuple[int | str, ...], Uses]] = {
    "one row": ((6,), linear),
    "twice": (("n", 6), lambda x, w: linear(x, w) * torch.mm(x, w.t())),
    "several dims": ((2, "n", 6), linear),
    "changed before": (("n", 6), lambda x, w: linear(x, w * 2) + linear(x, w)),
    "added": (("n", 6), lambda x, w: torch.addmm(x, x, w.t(), beta=0.5, alpha=2)),
    "added to nothing": (("n", 6), lambda x, w: torch.addmm(x, x, w.t(), beta=0)),
    "both ways": (("n", 6), lambda x, w: linear(x, w) @ w),
    "with a weight": (("n", 6), lambda x, w: x @ (w @ w) + x @ w),
    "turned by permute": (("n", 6), lambda x, w: x @ w.permute(1, 0)),
    "turned twice": (("n", 6), lambda x, w: linear(x, w.mT.transpose(-1, 0))),
    "returned": (("n", 6), lambda x, w: (linear(x, w), w.t())),
    "the largest": (("n", 6), lambda x, w: linear(x, w).argmax(1)),
}


@pytest.mark.parametrize("name", USES)
def test_every_use_of_a_weight_gives_what_torch_gives(name: str) -> None:
    """As a product of integers or of float32, whatever else the weight is used for."""
    torch.manual_seed(0)
    shape, use = USES[name]

    @func2plan(args_shape=[shape], state=(torch.randn(6, 6),))
    def used(x: torch.Tensor, state: Any) -> Any:
        return use(x, *state.read())

    assert rounded_weights(check_graph(used.graph)).axes
    assert prove(check_graph(used.graph), make_variant(used.graph, precision="int8")) < 1e-6


def test_a_model_holds_no_weights() -> None:
    """Neither as numbers nor as inputs: new weights need no new one."""
    plan = mlp()
    whole = decode_variant(make_variant(plan.graph, precision="int8"))
    model = onnx.load_from_string(decode_quantised(whole.content).model)
    assert [one.name for one in model.graph.input] == ["x0", "x2", "x4"]
    given = [one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    assert given == ["x1", "x1.scale", "x3", "x3.scale"]
    assert make_variant(plan.graph, precision="int8") == encode_variant(whole)


def test_a_row_does_not_depend_on_its_batch() -> None:
    """It has a scale of its own: alone, or beside a row a million times as large, it gives the same."""
    plan = loaded(mlp())
    x = torch.randn(1, 6).numpy()
    [alone] = plan.run([x], {})
    [beside] = plan.run([np.concatenate([x * 1e6, x])], {})
    assert isinstance(alone, np.ndarray)
    assert isinstance(beside, np.ndarray)
    assert np.array_equal(beside[1:], alone)


def test_what_is_not_a_number_stays_none() -> None:
    """A row with nan gives nan, a row of zeros what the biases give, and the others what they give alone."""
    layer = nn.Linear(6, 3)
    plan = loaded(built(layer, torch.randn(4, 6)))
    x = np.ones((3, 6), np.float32)
    x[0, 2] = np.nan
    x[1] = 0
    [result] = plan.run([x], {})
    assert isinstance(result, np.ndarray)
    assert np.isnan(result[0]).all()
    assert np.array_equal(result[1], layer.bias.detach().numpy())
    assert np.isfinite(result[2]).all()


def test_a_device_that_rounds_the_weights_itself_gives_the_same() -> None:
    """The state as it is, or packed: the rounding is one."""
    plan = mlp()
    model = model_of(plan.graph, make_variant(plan.graph, precision="int8"))
    state = state_of(plan)
    rounded = {0: quantised(state[0], 0), 2: quantised(state[2], 0)}
    packed = [rounded[k][0] if k in rounded else one for k, one in enumerate(state)]
    packed += [scale for _, scale in rounded.values()]
    x = torch.randn(3, 6).numpy()
    results = [model.load(one).run([x], {})[0] for one in (state, packed)]
    assert np.array_equal(results[0], results[1])  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------- what is refused


def wrong_zero(model: onnx.ModelProto) -> None:
    """Elements stand around 127."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8 and tensor.data_location != onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.array(127, np.uint8), tensor.name))


def saturated(model: onnx.ModelProto) -> None:
    """Sums are cut at 16 bits, as they are by processors that add products of bytes there."""
    (first, *_) = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    limits = [("low", -32768), ("high", 32767)]
    for name, limit in limits:
        model.graph.initializer.append(numpy_helper.from_array(np.array(limit, np.int32), name))
    place = list(model.graph.node).index(first)
    sums, first.output[0] = first.output[0], "uncut"
    model.graph.node.insert(place + 1, onnx.helper.make_node("Clip", ["uncut", "low", "high"], [sums]))


def unscaled(model: onnx.ModelProto) -> None:
    """Channels have each other's scales."""
    (first, *_) = [node for node in model.graph.node if "x1.scale" in node.input]
    name = "mean"
    place = list(model.graph.node).index(first)
    first.input[list(first.input).index("x1.scale")] = name
    model.graph.node.insert(place, onnx.helper.make_node("ReduceMean", ["x1.scale"], [name]))


@pytest.mark.parametrize("change", [wrong_zero, saturated, unscaled])
def test_a_wrong_kernel_is_refused(change: Callable[[onnx.ModelProto], None]) -> None:
    """The goldens are those of the same roundings, so that what is allowed is much less than what rounding costs."""
    torch.manual_seed(0)
    plan = built(nn.Linear(64, 32), torch.randn(4, 64))
    variant = make_variant(plan.graph, precision="int8")
    with pytest.raises(VariantRefused) as caught:
        prove(check_graph(plan.graph), changed(variant, change))
    assert caught.value.tolerance == INT8
    assert caught.value.error is not None
    assert INT8 < caught.value.error < math.inf


def test_an_unsound_translation_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes the variant compares it with torch first."""
    plan = mlp()
    monkeypatch.setattr("coordinator.translation.quantised.LEVELS", 100)
    with pytest.raises(VariantUnsound) as caught:
        make_variant(plan.graph, precision="int8")
    assert caught.value.error > INT8


def test_a_plan_without_such_weights_has_no_variant_of_int8() -> None:
    """It is said what would be one."""
    with pytest.raises(NothingToQuantise) as caught:
        make_variant(double_abs(), precision="int8")
    assert not caught.value.given
    assert str(caught.value) == (
        "there is nothing to quantise: expected a float32 weight that the plan carries and a linear layer, "
        "a convolution or an embedding uses outside of loops and branches, got none; send it without variant='int8'"
    )


def test_weights_in_a_loop_stay_as_they_are() -> None:
    """A plan that has no others has nothing to quantise."""
    plan = FunctionPlan(Scanned(0))
    plan.build(torch.randn(5, 6), args_shape=[(-1, 6)])
    with pytest.raises(NothingToQuantise):
        make_variant(plan.graph, precision="int8")


def test_a_training_step_has_no_variant_of_int8() -> None:
    """Its weights are arguments: rounded, they would stay where they are."""
    step = training_plan(
        nn.Linear(4, 3),
        loss=cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        example=(torch.randn(4, 4), torch.randint(0, 3, (4,))),
    )
    with pytest.raises(NothingToQuantise) as caught:
        make_variant(step.graph, precision="int8")
    assert caught.value.given
    assert str(caught.value) == (
        "there is nothing to quantise: the plan's weights are arguments, as those of a training step are, and "
        "a step that small is lost in int8; only weights that the plan carries are rounded"
    )


def test_gradients_of_a_plan_are_those_at_the_rounded_weights() -> None:
    """With carried weights, and none of the last bits lost that torch has."""

    @func2plan(args_shape=[("n", 4)], state=(torch.randn(3, 4),))
    def slope(x: torch.Tensor, state: Any) -> torch.Tensor:
        (weight,) = state.read()
        gradient: torch.Tensor = torch.func.grad(lambda x: linear(x, weight).square().sum())(x)
        return gradient

    assert prove(check_graph(slope.graph), make_variant(slope.graph, precision="int8")) < 1e-5


def test_state_that_does_not_fit_is_refused() -> None:
    """Too much, too little, of another shape or dtype, or not finite."""
    plan = mlp()
    model = model_of(plan.graph, make_variant(plan.graph, precision="int8"))
    state = state_of(plan)
    ints, scale = quantised(state[0], 0)
    second = quantised(state[2], 0)
    right = [ints, state[1], second[0], state[3], scale, second[1]]
    model.load(right)
    for place, wrong in ((0, ints[:1]), (0, state[0]), (4, scale[:1]), (4, scale.astype(np.float64))):
        other = [*right]
        other[place] = wrong
        with pytest.raises(PlanMalformed, match=r"for 0\.weight, rounded to int8, got"):
            model.load(other)
    for short in (right[:5], right[:3], [*right, scale]):
        with pytest.raises(PlanMalformed, match="expected"):
            model.load(short)
    state[0] = np.full_like(state[0], np.nan)
    with pytest.raises(VariantRefused, match=r"0\.weight can't be rounded to int8"):
        model.load(state)


def test_a_variant_that_is_no_model_of_int8_is_refused() -> None:
    """Of another content, or of weights that the model has not."""
    plan = mlp()
    whole = decode_variant(make_variant(plan.graph, precision="int8"))
    state = state_of(plan)

    def refused(variant: Variant, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            model_of(plan.graph, encode_variant(variant)).load(state)

    refused(msgspec.structs.replace(whole, content=b"onnx"), PlanMalformed, "expected a model with weights of int8")
    plain = decode_variant(make_variant(plan.graph)).content
    content = encode_quantised(QuantisedModel(model=plain, axes=[(1, 0)]))
    refused(msgspec.structs.replace(whole, content=content), VariantRefused, "onnxruntime does not load it")
    content = encode_quantised(QuantisedModel(model=decode_quantised(whole.content).model, axes=[(0, 0)]))
    refused(msgspec.structs.replace(whole, content=content), PlanMalformed, "expected dims of float32 weights")
