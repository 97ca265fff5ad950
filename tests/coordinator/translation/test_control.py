"""Branches and loops on onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from broker.protocol.tensors import DTYPES
from coordinator.translation.errors import TranslationUnsupported
from coordinator.translation.graphs import translate
from coordinator.translation.variants import make_variant, prove
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import check_graph
from edge_agent.plan.format import Graph, Special, Symbol
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES
from tests.edge_agent.plan.agreement import loaded
from tests.edge_agent.plan.control_graphs import (
    EXAMPLES,
    Example,
    branch,
    control,
    halving,
    inner,
    nested,
    running,
    taking,
)
from tests.edge_agent.plan.graphs import graph_of, listed, op, value


def agrees(graph: Graph, *args: torch.Tensor) -> None:
    """onnxruntime gives what torch does."""
    checked = check_graph(graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(translate(checked), options, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    feed = {f"x{k}": _plain(one) for k, one in enumerate(args) if f"x{k}" in taken}
    sizes = bind_sizes(graph, [(DTYPE_NAMES[one.dtype], tuple(one.shape)) for one in args])
    for found, wanted in zip(session.run(None, feed), loaded(checked).run(args, sizes), strict=True):
        assert found.dtype == _plain(wanted).dtype
        np.testing.assert_allclose(found, _plain(wanted), rtol=1e-5, atol=1e-6)


def _plain(tensor: torch.Tensor) -> np.ndarray:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    array: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor.contiguous()).numpy()
    return array


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.name for one in EXAMPLES])
def test_each_op(example: Example) -> None:
    """If, Loop and Scan, whose sub-graphs see what lies around them."""
    agrees(example.graph, *example.args)


def test_other_calls() -> None:
    """The other side of a branch, a loop that does not run, one row, from the last row, nested eight deep."""
    x, w = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, 2.0, 0.5])
    agrees(branch(), -torch.ones(3, 2), torch.eye(2))
    agrees(halving(), torch.ones(3), torch.tensor(2.0))
    agrees(halving(2), torch.full((3,), 100.0), torch.tensor(2.0))
    agrees(running(), x[:1], w)
    agrees(running(reverse=True), x, w)
    agrees(nested(8), torch.tensor(1.0), torch.tensor(True))


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "bfloat16", "complex64"])
def test_a_scan_over_no_rows(dtype: str) -> None:
    """What is carried, and outputs of no rows; also where there are some."""
    row = taking("row", dtype, 2)
    step = inner([taking("total", dtype), row], [], [0, 1, 0])
    graph = graph_of(
        [taking("total", dtype), taking("x", dtype, "n", 2)],
        [control("scan", step, listed(value(0)), listed(value(1)), listed(), outputs=3)],
        [2, 3, 4],
        symbols=[Symbol(name="n")],
    )
    for size in (0, 3):
        agrees(graph, torch.ones((), dtype=TORCH_DTYPES[dtype]), torch.ones(size, 2, dtype=TORCH_DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_carried_may_be_of_any_dtype(dtype: str) -> None:
    """Through all three, unchanged, and as rows."""
    x, row, yes = taking("x", dtype, 2), taking("row", dtype, 2), taking("yes", "bool")
    graph = graph_of(
        [taking("rows", dtype, "n", 2), x, yes],
        [
            control("cond", value(2), inner([x, row], [], [0]), inner([x, row], [], [1]), listed(value(1), value(1))),
            control("scan", inner([x, row], [], [1, 0]), listed(value(3)), listed(value(0)), listed(), outputs=2),
            control(
                "while_loop",
                inner([yes, x, row], [], [0]),
                inner([yes, x, row], [op("logical_not.default", value(0))], [3, 2, 1]),
                listed(value(2), value(4), value(1)),
                listed(),
                outputs=3,
            ),
        ],
        [3, 4, 5, 7, 8],
        symbols=[Symbol(name="n", low=1)],
    )
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(3, 2, generator=generator) * 4).to(TORCH_DTYPES[dtype])
    for yes_or_no in (True, False):
        agrees(graph, rows, rows[1], torch.tensor(yes_or_no))


def test_sizes_and_constants_inside() -> None:
    """What is computed of a size inside one sub-graph is not looked for in another."""
    x, row = taking("x", "float32", "n"), taking("row", "bool")
    filled = op(
        "full.default", listed(Special(s=["add", "n", 1])), Special(s=["mul", 2, "n"]), dtype=Special(d="float32")
    )
    sides = [
        inner([x], [filled, op("sum.default", value(1)), op("add.Tensor", value(0), value(2))], [3]),
        inner([x], [filled, op("amax.default", value(1)), op("mul.Tensor", value(0), value(2))], [3]),
    ]
    step = [control("cond", value(1), *sides, listed(value(0))), op("div.Tensor", value(2), Special(s="n"))]
    graph = graph_of(
        [x, taking("rows", "bool", "m")],
        [
            control("scan", inner([x, row], step, [3]), listed(value(0)), listed(value(1)), listed()),
            filled,
            op("amin.default", value(3)),
            op("add.Tensor", value(2), value(4)),
        ],
        [5],
        symbols=[Symbol(name="n", low=1), Symbol(name="m", low=1)],
    )
    for size in (1, 4):
        agrees(graph, torch.ones(size), torch.tensor([True, False, True]))


@pytest.mark.parametrize("precision", ["", "float16"])
@pytest.mark.parametrize("graph", [branch(), halving(6), running(), nested(3)], ids=lambda graph: graph.name)
def test_variants_are_proven(graph: Graph, precision: str) -> None:
    """Goldens at two sizes; in float16, what is carried is, too."""
    assert prove(check_graph(graph), make_variant(graph, precision=precision)) < 2e-2


def test_a_loop_that_does_not_end_with_made_up_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no goldens, and so no variant: the reason is said."""
    from coordinator.capture import patience

    monkeypatch.setattr(patience.Patience.__init__, "__kwdefaults__", {"steps": 50, "seconds": 0.0})
    x = taking("x", "float32", "n")
    going = inner([x], [op("amax.default", value(0)), op("gt.Scalar", value(1), -1.0)], [2])
    body = inner([x], [op("mul.Tensor", value(0), 1.0)], [1])
    loop = control("while_loop", going, body, listed(value(0)), listed())
    graph = graph_of([x], [loop], [1], symbols=[Symbol(name="n", low=1)])
    with pytest.raises(TranslationUnsupported, match="no arguments were found with which torch runs it"):
        make_variant(graph)


def test_what_cannot_be_translated_inside_is_named() -> None:
    """By its own name and number, not by the loop's."""
    x = taking("x", "float32", 2, 2)
    failing: Any = inner([x], [op("linalg_inv.default", value(0))], [1])
    graph = graph_of(
        [x, taking("yes", "bool")], [control("cond", value(1), failing, inner([x], [], [0]), listed(value(0)))], [2]
    )
    with pytest.raises(TranslationUnsupported) as caught:
        translate(check_graph(graph))
    assert (caught.value.op, caught.value.index) == ("aten.linalg_inv.default", 1)
