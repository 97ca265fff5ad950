"""Variants: whole networks and their training against torch, and what a variant says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator import Plan, func2plan, training_plan
from coordinator.translation.errors import TranslationUnsupported, VariantUnsound
from coordinator.translation.graphs import translate
from coordinator.translation.variants import make_variant, prove
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import PlanMalformed, VariantRefused
from edge_agent.plan.format import Graph, Input, Symbol, digest_of, encode_graph
from edge_agent.plan.variants import (
    FILLS,
    Golden,
    compare,
    decode_variant,
    encode_variant,
    golden_inputs,
    golden_output,
)
from tests.edge_agent.plan.graphs import double_abs, graph_of, listed, op, value

FLOAT32 = 1e-4


class Wrapped(Plan):
    """A module as a plan."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """The module's."""
        result: torch.Tensor = self.module(*args)
        return result


class Recurrent(nn.Module):
    """The last output of an LSTM or a GRU, and a linear layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of [batch, time, 4]."""
        scores: torch.Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


class Words(nn.Module):
    """The mean of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of [batch, words]."""
        scores: torch.Tensor = self.head(self.embedding(x).mean(1))
        return scores


def mlp() -> nn.Module:
    """With GELU and a layer norm."""
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))


def cnn() -> nn.Module:
    """With batch norm and both kinds of pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def transformer() -> nn.Module:
    """An encoder of one layer, and a linear layer."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(4, 6)),
    "cnn": (cnn, lambda: torch.randn(4, 1, 8, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM(4, 8, batch_first=True)), lambda: torch.randn(4, 5, 4)),
    "gru": (lambda: Recurrent(nn.GRU(4, 8, batch_first=True)), lambda: torch.randn(4, 5, 4)),
    "embedding": (Words, lambda: torch.randint(0, 20, (4, 5))),
    "transformer": (transformer, lambda: torch.randn(4, 5, 8)),
}


def error_of(graph: Graph, precision: str = "") -> float:
    """How far a graph's variant lies from torch, at two sizes."""
    variant = make_variant(graph, precision=precision)
    goldens = decode_variant(variant).goldens
    assert len(goldens) == 2
    if graph.symbols:
        assert goldens[0].sizes != goldens[1].sizes
    assert goldens[0].seed != goldens[1].seed
    return prove(check_graph(graph), variant)


def with_long(*long: str) -> list[Any]:
    """The names of the networks, with a mark at those whose capture takes long."""
    return [pytest.param(name, marks=pytest.mark.long) if name in long else name for name in NETWORKS]


@pytest.mark.parametrize("name", with_long("gru", "lstm"))
def test_networks_give_what_torch_gives(name: str) -> None:
    """Forward, at two batch sizes."""
    torch.manual_seed(0)
    make, example = NETWORKS[name]
    plan = Wrapped(make())
    plan.eval()
    x = example()
    plan.build(x, args_shape=[("batch", *x.shape[1:])])
    assert error_of(plan.graph) < 1e-5


@pytest.mark.parametrize("name", with_long("gru", "lstm", "transformer"))
def test_training_steps_give_what_torch_gives(name: str) -> None:
    """Forward, backward and the update of SGD with momentum, as one graph."""
    torch.manual_seed(0)
    make, example = NETWORKS[name]
    step = training_plan(
        make(),
        loss=cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        example=(example(), torch.randint(0, 3, (4,))),
    )
    assert error_of(step.graph) < FLOAT32


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_gives_what_torch_gives(optimizer: Any) -> None:
    """Its state is made of squares: the arguments of the goldens are positive."""
    torch.manual_seed(0)
    step = training_plan(
        nn.Linear(4, 3),
        loss=cross_entropy,
        optimizer=lambda params: optimizer(params, lr=1e-2),
        example=(torch.randn(4, 4), torch.randint(0, 3, (4,))),
    )
    variant = decode_variant(make_variant(step.graph))
    assert [golden.fill for golden in variant.goldens] == ["positive", "positive"]
    assert error_of(step.graph) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float16", 1e-2), ("bfloat16", 2e-2), ("int64", 0), ("bool", 0)]
)
def test_other_dtypes(dtype: str, tolerance: float) -> None:
    """A plan of each, bfloat16 by its bits."""
    graph = graph_of(
        [Input(name="x", dtype=dtype, shape=["n", 3])],
        [
            op("flip.default", value(0), listed(0)),
            op("eq.Tensor", value(1), value(0)),
            op("cat.default", listed(value(0), value(1))),
        ],
        [3, 2],
        symbols=[Symbol(name="n", low=1)],
    )
    assert error_of(graph) <= tolerance


def test_equal_graphs_have_equal_models() -> None:
    """To the byte: so that a variant too has one name."""
    checked = check_graph(double_abs())
    assert translate(checked) == translate(check_graph(double_abs()))
    assert make_variant(double_abs()) == make_variant(double_abs())


def test_a_variant_names_its_graph() -> None:
    """And is no part of it."""
    graph = double_abs()
    variant = decode_variant(make_variant(graph))
    assert variant.graph == digest_of(encode_graph(graph))
    assert (variant.runtime, variant.precision) == ("onnx", "")


def test_sizes_are_worked_out_in_the_model() -> None:
    """Arithmetic of sizes, with Python's division, at two sizes."""

    @func2plan(args_shape=[("n", "m")])
    def sized(x: torch.Tensor) -> torch.Tensor:
        n, m = x.shape
        return x.reshape(m * n)[: (n * m - 1) // 2 + 1].sum() * n / (m + 1) + torch.arange(n * 2)[-n:].sum()

    assert error_of(sized.graph) < FLOAT32


def test_an_op_without_translation_is_named() -> None:
    """With its place in the graph."""
    graph = graph_of([Input(name="x", dtype="float32", shape=[3])], [op("lgamma.default", value(0))], [1])
    with pytest.raises(TranslationUnsupported) as caught:
        make_variant(graph)
    assert (caught.value.op, caught.value.index) == ("aten.lgamma.default", 0)
    assert str(caught.value) == (
        "aten.lgamma.default can't be translated to onnx: onnx has no translation of it yet; "
        "the plan runs on torch devices only"
    )


def test_an_unsound_translation_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a variant compares it with torch first."""
    wrong = translate(
        check_graph(graph_of([Input(name="x", dtype="float32", shape=[2])], [op("abs.default", value(0))], [1]))
    )
    monkeypatch.setattr("coordinator.translation.graphs.translate", lambda *_: wrong)
    with pytest.raises(VariantUnsound) as caught:
        make_variant(double_abs())
    assert caught.value.error == pytest.approx(0.5)
    assert "expected the onnx variant to give what torch gives, within 0.0001" in str(caught.value)


def test_a_precision_that_there_is_not() -> None:
    """Said with those that there are."""
    with pytest.raises(ValueError, match="expected a variant of '', 'float16', 'int8', got 'int4'"):
        make_variant(double_abs(), precision="int4")


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\xc1" * 40, msgspec.msgpack.encode([9, "onnx", b"g" * 32, "", b"", []])]
)
def test_bytes_that_are_no_variant(data: bytes) -> None:
    """From anywhere: refused as malformed."""
    with pytest.raises(PlanMalformed):
        decode_variant(data)


def test_a_variant_survives_its_bytes() -> None:
    """Decoded and encoded again it is the same."""
    data = make_variant(double_abs())
    assert encode_variant(decode_variant(data)) == data


@pytest.mark.parametrize("fill", FILLS)
def test_golden_arguments_are_the_same_everywhere(fill: str) -> None:
    """They come from a counter: these were computed once, and must stay."""
    graph = graph_of([Input(name="x", dtype="float32", shape=["n", 2])], [], [0], symbols=[Symbol(name="n", low=1)])
    ((dtype, array),) = golden_inputs(graph, {"n": 2}, 7, fill)
    expected = {
        "signed": GOLDEN_SIGNED,
        "positive": [0.05 + 0.25 * (one + 1) for one in GOLDEN_SIGNED],
    }[fill]
    assert dtype == "float32"
    np.testing.assert_allclose(array.reshape(-1), expected, rtol=1e-6)


GOLDEN_SIGNED = [-0.87100142, 0.14181933, -0.07947417, 0.22110617]


def test_integers_must_be_equal() -> None:
    """There is no tolerance for them, nor for another dtype or shape."""
    golden = Golden(sizes={}, seed=0, fill="signed", outputs=[golden_output("int64", np.array([1, 2]))])
    assert compare(golden, [("int64", np.array([1, 2]))]) == 0
    for dtype, array in (("int64", np.array([1, 3])), ("int32", np.array([1, 2])), ("int64", np.array([[1, 2]]))):
        with pytest.raises(VariantRefused):
            compare(golden, [(dtype, array)])


def test_what_is_not_a_number_must_be_none_on_both_sides() -> None:
    """And infinity is not near anything."""
    wanted = np.array([1.0, np.nan, np.inf], dtype=np.float32)
    golden = Golden(sizes={}, seed=0, fill="signed", outputs=[golden_output("float32", wanted)])
    assert compare(golden, [("float32", wanted)]) == 0
    for other in ([1.0, 2.0, np.inf], [1.0, np.nan, -np.inf], [np.nan, np.nan, np.inf]):
        with pytest.raises(VariantRefused):
            compare(golden, [("float32", np.array(other, dtype=np.float32))])
