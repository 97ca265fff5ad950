"""A graph with the roundings of its variant of int8 as ops of its own: so that torch can say what that must give.

The variant multiplies integers, and torch here multiplies the float32 numbers that they stand for: equal, but for the
last bits of float32, and for what these change of an element that lies in the middle between two integers. In a network
of many layers such an element moves some of the next layer's over the middle, and these more: there nothing but the
roundings' own error bounds how far two right results lie apart. A ``shift`` tells how far that is in one network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from coordinator.translation.quantised import LEAST, Rounded
from edge_agent.plan.format import Argument, Graph, Op, Special
from edge_agent.plan.quantised import LEVELS, dequantised, quantised

__all__ = ["rounded_graph", "rounded_inputs"]


def rounded_graph(graph: Graph, rounded: Rounded, shift: float = 0.0) -> Graph:
    """The graph, with the rows of each matrix rounded that is multiplied with a rounded weight. The weights are inputs
    as before: see `rounded_inputs`. ``shift``: by which part of themselves elements are moved before they are rounded.
    """
    made = _Renumbered(len(graph.inputs))
    rows: dict[int, Special] = {}
    for index, op in enumerate(graph.ops):
        place, matrix = rounded.products.get(index, (-1, -1))
        if matrix >= 0 and matrix not in rows:
            rows[matrix] = _rounded_rows(made, made.number(matrix), shift)
        made.take(op, {place: rows[matrix]} if matrix >= 0 else {})
    outputs = [made.number(value).v or 0 for value in graph.outputs]
    return msgspec.structs.replace(graph, ops=made.ops, outputs=outputs)


def rounded_inputs(arrays: Sequence[tuple[str, np.ndarray]], axes: Mapping[int, int]) -> list[tuple[str, np.ndarray]]:
    """The inputs of a run, by dtype and array, with the weights as their integers stand for them."""
    return [
        (dtype, dequantised(*quantised(array, axes[place]), axes[place]) if place in axes else array)
        for place, (dtype, array) in enumerate(arrays)
    ]


def _rounded_rows(made: _Renumbered, x: Special, shift: float) -> Special:
    last = Special(l=[-1])
    largest = made.add("aten.amax.default", made.add("aten.abs.default", x), last, True)
    scale = made.add("aten.mul.Tensor", made.add("aten.clamp_min.default", largest, LEAST), 1 / LEVELS)
    steps = made.add("aten.div.Tensor", x, scale)
    if shift:
        steps = made.add("aten.mul.Tensor", steps, 1 + shift)
    return made.add("aten.mul.Tensor", made.add("aten.round.default", steps), scale)


class _Renumbered:
    """Ops under way into another graph, whose values have other numbers there."""

    def __init__(self, inputs: int) -> None:
        self.ops: list[Op] = []
        self._numbers = list(range(inputs))  # by the number in the old graph
        self._next = inputs

    def number(self, value: int) -> Special:
        """An old value as an argument of a new op."""
        return Special(v=self._numbers[value])

    def add(self, name: str, *args: Argument) -> Special:
        """A new op, of one result."""
        self.ops.append(Op(name=name, args=list(args)))
        self._next += 1
        return Special(v=self._next - 1)

    def take(self, op: Op, replaced: Mapping[int, Special]) -> None:
        """The next op of the old graph, with some arguments replaced, by their places."""

        def one(argument: Any) -> Any:
            if not isinstance(argument, Special):
                return argument
            if argument.v is not None:
                return self.number(argument.v)
            if argument.l is not None:
                return Special(l=[one(element) for element in argument.l])
            return Special(t=[one(element) for element in argument.t]) if argument.t is not None else argument

        args = [replaced[place] if place in replaced else one(argument) for place, argument in enumerate(op.args)]
        kwargs = {name: one(argument) for name, argument in op.kwargs.items()}
        self.ops.append(msgspec.structs.replace(op, args=args, kwargs=kwargs))
        self._numbers += range(self._next, self._next + op.outputs)
        self._next += op.outputs
