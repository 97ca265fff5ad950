"""How often the body of a loop runs at most, where the graph itself says so.

A scan runs once for each row. A while loop runs as often as its data say, but for one that counts: its condition needs
(perhaps among other things) a carried integer to lie below a limit, and its body adds a constant to that integer, which
starts from a constant. Then the limit is a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.expressions import EverySymbol, check_expression
from edge_agent.plan.format import Argument, Dim, Graph, Op, Special
from edge_agent.plan.nesting import argument_of
from edge_agent.plan.sizes import Sizes

__all__ = ["most_steps"]

_COUNTERS = ("int64", "int32")
"""Dtypes that no count overflows before it comes to its limit."""
_LIMIT = 1 << 31
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


def most_steps(checked: CheckedGraph, index: int, sizes: Sizes) -> Dim | None:
    """At most how often the body of the loop that is op ``index`` runs; None: nobody can say."""
    op = checked.graph.ops[index]
    if op.name == "control.scan.default":
        rows = _elements(argument_of(op, 2, "rows"))
        return checked.types[_value(rows[0])].shape[0]
    inner = checked.inner[index]
    counts = (_steps_of(checked, op, inner, one, sizes) for one in _comparisons(inner["condition"].graph))
    found = [one for one in counts if one is not None]
    return sizes.min(*found) if found else None


def _comparisons(condition: Graph) -> Iterator[Op]:
    """The comparisons that must all hold for the loop to go on."""
    pending = list(condition.outputs)
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        op = _maker(condition, value)
        if op is None or value in seen:
            continue
        seen.add(value)
        if op.name in _AND:
            pending += [one.v for one in op.args if isinstance(one, Special) and one.v is not None]
        elif op.name in _BOUNDS:
            yield op


def _steps_of(checked: CheckedGraph, op: Op, inner: Any, comparison: Op, sizes: Sizes) -> Dim | None:
    """The bound that one comparison makes."""
    carried = _elements(argument_of(op, 2, "carried"))
    counter, limit = comparison.args[0], _number(comparison.args[1], sizes)
    place = counter.v if isinstance(counter, Special) and counter.v is not None else len(carried)
    if limit is None or place >= len(carried) or checked.types[_value(carried[place])].dtype not in _COUNTERS:
        return None
    body: Graph = inner["body"].graph
    by = _added(body, place)
    start = _constant(checked.graph, _value(carried[place]))
    sign, included = _BOUNDS[comparison.name]
    if by is None or start is None or by * sign <= 0 or abs(start) > _LIMIT or abs(by) > _LIMIT:
        return None
    if isinstance(limit, int) and abs(limit) > _LIMIT:
        return None
    way = sizes.sub(limit, start) if sign > 0 else sizes.sub(start, limit)
    width = abs(by)
    return sizes.max(0, sizes.floordiv(sizes.add(way, included + width - 1), width))


def _added(body: Graph, place: int) -> int | None:
    """What the body adds to a carried value, if it is a constant."""
    op = _maker(body, body.outputs[place])
    if op is None or op.name not in _STEPS or op.kwargs or len(op.args) != 2:
        return None
    for one, other in ((op.args[0], op.args[1]), (op.args[1], op.args[0])):
        if isinstance(one, Special) and one.v == place and type(other) is int:
            swapped = one is op.args[1]
            return None if swapped and _STEPS[op.name] < 0 else _STEPS[op.name] * other
    return None


def _constant(graph: Graph, value: int) -> int | None:
    """A value that is the same integer in every run."""
    op = _maker(graph, value)
    while op is not None and op.name in _SAME and isinstance(op.args[0], Special) and op.args[0].v is not None:
        op = _maker(graph, op.args[0].v)
    if op is None:
        return None
    filled = {"aten.zeros.default": 0, "aten.ones.default": 1}.get(op.name)
    if op.name == "aten.full.default" and len(op.args) > 1 and type(op.args[1]) is int:
        filled = op.args[1]
    if op.name == "aten.scalar_tensor.default" and type(op.args[0]) is int:
        filled = op.args[0]
    return filled


def _maker(graph: Graph, value: int) -> Op | None:
    """The op whose only output is this value."""
    first = len(graph.inputs)
    for op in graph.ops:
        if first <= value < first + op.outputs:
            return op if op.outputs == 1 else None
        first += op.outputs
    return None


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
