"""Which weights of a plan a variant of int8 rounds, and how the ops that use them are written.

A product of a matrix with a weight is one of integers. Each row of the matrix is rounded to int8 by a scale of its own,
found when the plan runs; the weight was rounded before, by its channels (`edge_agent.plan.quantised`); and what comes
out is multiplied with both scales. So a row's result depends on no other row of its batch. Whatever else uses such a
weight gets it as float32, made of its integers in each run: convolutions too, since onnxruntime's are slower with
integers on some processors. An embedding makes only the rows that it gives. Biases, norms, activations and products
of two computed matrices stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from coordinator.translation.ops.matrix import plus
from coordinator.translation.writer import Value, Writer
from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.format import Op, Special, TensorType
from edge_agent.plan.quantised import LEVELS, MIDDLE
from edge_agent.plan.spec import OpSpec

__all__ = ["LEAST", "Rounded", "Rounder", "Weight", "rounded_weights"]

LEAST = 1e-30
"""A row whose elements are all smaller counts as one of zeros: neither its scale nor the inverse may be infinite."""

_TURNS = frozenset(f"aten.{name}" for name in ("t.default", "numpy_T.default", "transpose.int", "permute.default"))

_USES: Mapping[str, tuple[int, int]] = {
    "aten.linear.default": (1, 0),
    "aten.mm.default": (1, 1),
    "aten.matmul.default": (1, 1),
    "aten.addmm.default": (2, 1),
    "aten.embedding.default": (0, 0),
    "aten.convolution.default": (1, 0),
    **{f"aten.conv{spatial}d.{overload}": (1, 0) for spatial in (1, 2, 3) for overload in ("default", "padding")},
    "aten.conv_transpose1d.default": (1, 1),
    "aten.conv_transpose2d.input": (1, 1),
    "aten.conv_transpose3d.input": (1, 1),
}
"""Ops that use weights: which argument it is, and which dim of it has the channels. What is multiplied with integers
must be summed over all other dims; where nothing is, any dim would do."""

_PRODUCTS = frozenset(f"aten.{name}.default" for name in ("linear", "mm", "matmul", "addmm"))
"""Those that are written with integers: the weight is their argument after the matrix that it is multiplied with."""

_OF_MATRICES = _PRODUCTS | {"aten.embedding.default"}


@dataclass(frozen=True, slots=True)
class Rounded:
    """What a variant of int8 rounds. ``axes``: the dims of the channels of the weights, by their places among the
    graph's inputs. ``products``: the ops that are written with integers, each with the argument that it multiplies
    such a weight with: its place, and which value it is. ``given``: whether there are none, since arguments
    are used as weights.
    """

    axes: Mapping[int, int]
    products: Mapping[int, tuple[int, int]]
    given: bool


def rounded_weights(checked: CheckedGraph) -> Rounded:
    """The weights that a variant of int8 rounds: float32, carried by the plan, and used by an op that is written for
    that. If two uses have their channels in different dims, the first decides.
    """
    graph = checked.graph
    views: dict[int, tuple[int, bool]] = {
        place: (place, False)
        for place, one in enumerate(graph.inputs)
        if one.kind in ("state", "user") and one.dtype == "float32" and len(one.shape) > 1
    }
    carried = any(graph.inputs[place].kind == "state" for place in views)
    axes: dict[int, int] = {}
    products: dict[int, tuple[int, int]] = {}
    given = False
    result = len(graph.inputs)
    for index, (op, spec) in enumerate(zip(graph.ops, checked.specs, strict=True)):
        argument, channels = _USES.get(op.name, (0, 0))
        place, turned = views.get(_value(op, spec, argument), (-1, False))
        rank = len(graph.inputs[place].shape) if place >= 0 else 0
        used = rank and op.name in _USES and (rank == 2 or op.name not in _OF_MATRICES)
        if op.name in _TURNS and not op.kwargs and _turns(rank, _dims(op)):
            views[result] = place, not turned
        elif used and graph.inputs[place].kind == "user":
            given = not carried
        elif used:
            axis = 1 - channels if turned else channels
            x = _value(op, spec, argument - 1)
            weights = x in views and graph.inputs[views[x][0]].kind == "state"
            fits = axes.setdefault(place, axis) == axis and op.name in _PRODUCTS
            if fits and not weights and argument <= len(op.args) and len(checked.types[x].shape) > 1:
                products[index] = argument - 1, x
        result += op.outputs
    return Rounded(dict(sorted(axes.items())), products, given)


def _value(op: Op, spec: OpSpec, place: int) -> int:
    """The number of the value that an argument is; -1: it is none."""
    if place < len(op.args):
        found = op.args[place]
    else:
        found = op.kwargs.get(spec.parameters[place].name) if place < len(spec.parameters) else None
    return found.v if isinstance(found, Special) and found.v is not None else -1


def _dims(op: Op) -> list[Any]:
    return [one.l if isinstance(one, Special) else one for one in op.args[1:]]


def _turns(rank: int, dims: list[Any]) -> bool:
    """Whether a view exchanges the dims of a matrix, by its arguments: none, two dims, or a list of all."""
    if rank != 2:
        return False
    if len(dims) == 2:
        return (dims[0] - dims[1]) % 2 == 1  # type: ignore[no-any-return]
    return not dims or [dim % 2 for dim in dims[0]] == [1, 0]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight that is rounded: its integers, in the shape of the graph's input, their scales, of the shape
    [channels], and the dim of the channels. ``turned``: it stands for the weight with its two dims exchanged.
    """

    ints: Value
    scale: Value
    axis: int
    turned: bool = False


class Rounder:
    """Writes the ops that use weights of int8, for one model."""

    def __init__(self, writer: Writer, rounded: Rounded) -> None:
        self._writer = writer
        self._rounded = rounded
        self._rows: dict[str, tuple[Value, Value]] = {}  # a matrix to its integers and the scales of its rows
        self._floats: dict[tuple[str, bool], Value] = {}

    def weight(self, place: int, kind: TensorType) -> Weight:
        """An input of the graph that is rounded. It is no input of the model: a device opens that over it."""
        axis = self._rounded.axes[place]
        ints = self._writer.external(f"x{place}", "uint8", kind.shape)
        return Weight(ints, self._writer.external(f"x{place}.scale", "float32", [kind.shape[axis]]), axis)

    def write(self, op: Op, arguments: list[Any]) -> Value | Weight | None:
        """The result of the op that is being written; None, where it is written as always, of `plain` arguments."""
        w = self._writer
        first = arguments[0] if arguments else None
        if op.name in _TURNS and isinstance(first, Weight) and _turns(first.ints.rank, arguments[1:]):
            return replace(first, turned=not first.turned)
        if op.name == "aten.embedding.default" and isinstance(first, Weight) and first.axis == 0 and not first.turned:
            return self._embedding(first, arguments[1])
        if w.index not in self._rounded.products:
            return None
        if op.name == "aten.addmm.default":
            c, x, weight, beta, alpha = arguments
            return plus(w, self.plain(c), self._product(x, weight), beta, alpha)
        x, weight, *bias = arguments
        product = self._product(x, weight)
        return w.op("Add", product, bias[0]) if bias and bias[0] is not None else product

    def plain(self, argument: Any) -> Any:
        """An argument, with float32 values in place of rounded weights."""
        if isinstance(argument, list):
            return [self.plain(one) for one in argument]
        return self._float(argument) if isinstance(argument, Weight) else argument

    def _float(self, weight: Weight) -> Value:
        key = weight.ints.name, weight.turned
        if key not in self._floats:
            w = self._writer
            # the scales stay outside: a product that follows this op at once is made one of integers by onnxruntime
            steps = w.constant(1.0, "float32"), w.constant(MIDDLE, "uint8")
            ints = w.op("DequantizeLinear", weight.ints, *steps, dtype="float32", shape=weight.ints.dims)
            channels = [-1 if dim == weight.axis else 1 for dim in range(weight.ints.rank)]
            scale = w.op("Reshape", weight.scale, w.ints(channels))
            made = w.op("Mul", ints, scale, shape=weight.ints.dims)
            self._floats[key] = w.transpose(made, [1, 0]) if weight.turned else made
        return self._floats[key]

    def _product(self, x: Value, weight: Weight) -> Value:
        """``x`` times a weight, summed over the dim that has not its channels. Its shape is not told."""
        w = self._writer
        rows, steps = self._rounded_rows(x)
        columns = weight.ints if weight.axis == 1 else w.transpose(weight.ints, [1, 0])
        middle = w.constant(MIDDLE, "uint8")
        sums = w.op("MatMulInteger", rows, columns, middle, middle, dtype="int32")
        # exact up to 2^24, and from there to 24 bits: so would a product of floats be, but after each of its sums
        return w.op("Mul", w.cast(sums, "float32"), w.op("Mul", steps, weight.scale))

    def _rounded_rows(self, x: Value) -> tuple[Value, Value]:
        """The rows of a matrix as uint8 around `MIDDLE`, and the scales of the rows."""
        if x.name not in self._rows:
            w = self._writer
            largest = w.op("ReduceMax", w.op("Abs", x), w.ints([-1]), keepdims=1)
            largest = w.op("Max", largest, w.constant(LEAST, "float32"))
            scale = w.op("Mul", largest, w.constant(1 / LEVELS, "float32"))
            # a maximum leaves nan out, and an integer can't be one: the row's scale is, if anything in it is not finite
            nothing = w.op("ReduceSum", w.op("Mul", x, w.constant(0.0, "float32")), w.ints([-1]), keepdims=1)
            scale = w.op("Add", scale, nothing)
            steps = w.constant(1.0, "float32"), w.constant(MIDDLE, "uint8")
            self._rows[x.name] = w.op("QuantizeLinear", w.op("Div", x, scale), *steps, dtype="uint8"), scale
        return self._rows[x.name]

    def _embedding(self, weight: Weight, indices: Value) -> Value:
        w = self._writer
        scale = w.op("Gather", weight.scale, indices, axis=0, shape=indices.dims)
        rows = w.cast(w.op("Gather", weight.ints, indices, axis=0), "float32")
        rows = w.op("Sub", rows, w.constant(float(MIDDLE), "float32"))
        return w.op("Mul", rows, w.unsqueeze(scale, indices.rank))
