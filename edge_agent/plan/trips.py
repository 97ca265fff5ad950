"""How often the body of a loop runs at most, where the graph itself says so.

A scan runs once for each row. A while loop runs as often as its data say, but for one that counts: its condition needs
(perhaps among other things) a carried integer to lie below a limit, and its body adds a constant to that integer, which
starts from a constant. Then the limit is a bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.expressions import EverySymbol, check_expression
from edge_agent.plan.format import Argument, Dim, Graph, Op, Special
from edge_agent.plan.nesting import argument_of
from edge_agent.plan.sizes import Sizes

__all__ = ["Trips"]

_WIDTHS = {"int64": 1 << 62, "int32": 1 << 31}
"""Dtypes of counts, and how far they may come without overflowing."""
_LIMIT = 1 << 31
"""Starts and steps beyond it are nobody's counts."""
_AND = ("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.mul.Tensor")
_BOUNDS = {
    "aten.lt.Scalar": (1, 0),
    "aten.le.Scalar": (1, 1),
    "aten.gt.Scalar": (-1, 0),
    "aten.ge.Scalar": (-1, 1),
}
"""Comparisons with a limit: upwards or downwards, and whether the limit is still in."""
_STEPS = {"aten.add.Tensor": 1, "aten.add.Scalar": 1, "aten.sub.Tensor": -1, "aten.sub.Scalar": -1}
_SAME = ("aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default")


class Trips:
    """The bounds of one plan's loops, in terms of ``sizes``."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._makers: dict[int, list[Op | None]] = {}  # by the graph that they are of, which lives as long

    def most(self, checked: CheckedGraph, index: int) -> Dim | None:
        """At most how often the body of the loop that is op ``index`` runs; None: nobody can say."""
        op = checked.graph.ops[index]
        if op.name == "control.scan.default":
            rows = _elements(argument_of(op, 2, "rows"))
            return checked.types[_value(rows[0])].shape[0]
        inner = checked.inner[index]
        condition, body = inner["condition"].graph, inner["body"].graph
        counts = (self._steps(checked, op, body, one) for one in self._comparisons(condition))
        return next((one for one in counts if one is not None), None)

    def _comparisons(self, condition: Graph) -> Iterator[Op]:
        """The comparisons that must all hold for the loop to go on."""
        pending = list(condition.outputs)
        seen: set[int] = set()
        while pending:
            value = pending.pop()
            op = self._maker(condition, value)
            if op is None or value in seen:
                continue
            seen.add(value)
            if op.name in _AND:
                pending += [one.v for one in op.args if isinstance(one, Special) and one.v is not None]
            elif op.name in _BOUNDS and len(op.args) == 2:
                yield op

    def _steps(self, checked: CheckedGraph, op: Op, body: Graph, comparison: Op) -> Dim | None:
        """The bound that one comparison makes."""
        carried = _elements(argument_of(op, 2, "carried"))
        counter, limit = comparison.args[0], _number(comparison.args[1], self._sizes)
        place = counter.v if isinstance(counter, Special) and counter.v is not None else len(carried)
        if limit is None or place >= len(carried):
            return None
        width = _WIDTHS.get(checked.types[_value(carried[place])].dtype, 0)
        by = self._added(body, place)
        start = self._constant(checked.graph, _value(carried[place]))
        sign, included = _BOUNDS[comparison.name]
        if by is None or start is None or by * sign <= 0 or max(abs(start), abs(by)) > _LIMIT:
            return None
        # what it comes to last is a step beyond the limit: of a size, only 64 bits are sure to hold that
        if abs(limit) + abs(by) > width if isinstance(limit, int) else width <= _LIMIT:
            return None
        sizes = self._sizes
        way = sizes.sub(limit, start) if sign > 0 else sizes.sub(start, limit)
        return sizes.max(0, sizes.floordiv(sizes.add(way, included + abs(by) - 1), abs(by)))

    def _added(self, body: Graph, place: int) -> int | None:
        """What the body adds to a carried value, if it is a constant."""
        op = self._maker(body, body.outputs[place])
        if op is None or op.name not in _STEPS or op.kwargs or len(op.args) != 2:
            return None
        sign = _STEPS[op.name]
        first, second = op.args
        if isinstance(first, Special) and first.v == place and type(second) is int:
            return sign * second
        if sign > 0 and isinstance(second, Special) and second.v == place and type(first) is int:
            return first
        return None

    def _constant(self, graph: Graph, value: int) -> int | None:
        """A value that is the same integer in every run."""
        op = self._maker(graph, value)
        if op is not None and op.name in _SAME:
            source = op.args[0] if op.args else None
            op = self._maker(graph, source.v) if isinstance(source, Special) and source.v is not None else None
        if op is None:
            return None
        if op.name == "aten.full.default" and len(op.args) > 1 and type(op.args[1]) is int:
            return op.args[1]
        return {"aten.zeros.default": 0, "aten.ones.default": 1}.get(op.name)

    def _maker(self, graph: Graph, value: int) -> Op | None:
        """The op whose only output is this value."""
        makers = self._makers.get(id(graph))
        if makers is None:
            makers = [None] * len(graph.inputs)
            for op in graph.ops:
                makers += [op] if op.outputs == 1 else [None] * op.outputs
            self._makers[id(graph)] = makers
        return makers[value]


def _number(argument: Argument, sizes: Sizes) -> Dim | None:
    if type(argument) is int:
        return argument
    if isinstance(argument, Special) and argument.s is not None:
        return sizes.normal(argument.s) if check_expression(argument.s, EverySymbol()) == "int" else None
    return None


def _elements(argument: Argument) -> list[Argument]:
    assert isinstance(argument, Special)  # the checker has seen to it
    return list((argument.l if argument.l is not None else argument.t) or ())


def _value(argument: Argument) -> int:
    assert isinstance(argument, Special)
    assert argument.v is not None
    return argument.v
