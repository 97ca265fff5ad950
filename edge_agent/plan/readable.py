"""A plan as people read it.

::

    plan_double_abs(x: float32[2]) -> float32[2]:
        add = aten.add.Tensor(x, x)
        abs = aten.abs.default(add)
        return abs

A sub-graph stands under the op that takes it, under the name of the argument that it is::

    halved(x: float32[n]) -> float32[n]:
        for any n
        while_loop, = control.while_loop.default(condition, body, [x], []):
            condition(x: float32[n]) -> bool[]:
                ...
            body(x: float32[n]) -> float32[n]:
                ...
        return while_loop
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from edge_agent.plan.checker import CheckedGraph, check_graph
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Argument, Graph, Op, Special, Symbol, TensorType, Tree
from edge_agent.plan.nesting import all_ops, uses_of
from edge_agent.plan.registry import REGISTRY
from edge_agent.plan.trees import unflatten

__all__ = ["argument_text", "range_text", "readable", "render_type", "step_text", "value_names"]

_LONG = 100
"""From how many characters on a signature has a line for each input."""


def render_type(tensor: TensorType) -> str:
    """``float32[s0, 6]``; without dims: ``float32[]``."""
    return f"{tensor.dtype}[{', '.join(map(render, tensor.shape))}]"


def readable(graph: Graph, *, plan_name: str = "") -> str:
    """The graph as text: a typed signature, symbols and conditions, one op a line. ``plan_name`` stands in for the
    graph's name.

    The graph is checked for its types; raises what `check_graph` raises.
    """
    checked = check_graph(graph)
    return "\n".join(_written(checked, plan_name or graph.name or "plan", graph.tree))


def _written(checked: CheckedGraph, name: str, tree: Tree) -> list[str]:
    graph = checked.graph
    names = value_names(graph)
    inputs = [
        f"{one.name}: {render_type(own)}{'' if one.kind == 'user' else f' ({one.kind})'}"
        for one, own in zip(graph.inputs, checked.types, strict=False)
    ]
    outputs = _nest(unflatten(tree, [_Text(render_type(one)) for one in checked.output_types]))
    lines = _signature(name, inputs, outputs)
    lines += [f"    for {range_text(symbol)}" for symbol in graph.symbols]
    lines += [f"    if {render(condition)}" for condition in graph.conditions]
    first = len(graph.inputs)
    for index, op in enumerate(graph.ops):
        inner = checked.inner.get(index, {})
        lines.append(f"    {_step(op, first, names)}{':' if inner else ''}")
        for parameter, one in inner.items():
            count = len(one.graph.outputs)
            lines += [f"        {line}" for line in _written(one, parameter, 0 if count == 1 else ["t", *range(count)])]
        first += op.outputs
    returned = _nest(unflatten(tree, [_Text(names[value]) for value in graph.outputs]))
    lines.append(f"    return {returned}")
    return lines


def step_text(graph: Graph, number: int) -> str:
    """One op of a checked plan, as `readable` writes it: ``add = aten.add.Tensor(x, x)``. ``number``: as
    `edge_agent.plan.nesting.all_ops` counts.
    """
    own, index = (graph, number) if number < len(graph.ops) else next(islice(all_ops(graph), number, None))
    first = len(own.inputs) + sum(op.outputs for op in own.ops[:index])
    return _step(own.ops[index], first, value_names(own))


def value_names(graph: Graph) -> list[str]:
    """A name for each value: an input's own, an op's after the op, with a number where it has been taken. What an op
    gives among other things, and nobody uses, is ``_``.
    """
    names = [one.name for one in graph.inputs]
    taken = dict.fromkeys(names, 0)
    used = {value for op in graph.ops for argument in (*op.args, *op.kwargs.values()) for value in uses_of(argument)}
    used.update(graph.outputs)
    for op in graph.ops:
        parts = op.name.split(".")
        base = parts[1] if len(parts) > 1 else op.name
        wanted = [op.outputs == 1 or len(names) + place in used for place in range(op.outputs)]
        several = sum(wanted) > 1
        for place, needed in enumerate(wanted):
            names.append(_free(f"{base}_{place}" if several else base, taken) if needed else "_")
    return names


def _free(base: str, taken: dict[str, int]) -> str:
    name, count = base, taken.get(base, 0)
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken[base] = count
    taken[name] = 0
    return name


class _Text(str):
    """A leaf of a nest that stands without quotes."""

    __slots__ = ()


def _nest(nest: Any) -> str:
    if isinstance(nest, _Text):
        return nest
    if isinstance(nest, dict):
        return "{" + ", ".join(f"{key!r}: {_nest(value)}" for key, value in nest.items()) + "}"
    if isinstance(nest, list):
        return "[" + ", ".join(map(_nest, nest)) + "]"
    if isinstance(nest, tuple):
        return "(" + ", ".join(map(_nest, nest)) + (",)" if len(nest) == 1 else ")")
    return "None"


def _signature(name: str, inputs: Sequence[str], outputs: str) -> list[str]:
    line = f"{name}({', '.join(inputs)}) -> {outputs}:"
    if len(line) <= _LONG:
        return [line]
    return [f"{name}(", *(f"        {one}," for one in inputs), f") -> {outputs}:"]


def range_text(symbol: Symbol) -> str:
    """A size that may vary, with its range."""
    if symbol.high is not None:
        return f"{symbol.name} from {symbol.low} to {symbol.high}"
    return f"{symbol.name} of {symbol.low} or more" if symbol.low else f"any {symbol.name}"


def _step(op: Op, first: int, names: Sequence[str]) -> str:
    bound = ", ".join(names[first : first + op.outputs])
    listed = "," if op.outputs == 1 and REGISTRY[op.name].outputs is None else ""
    return f"{bound}{listed} = {_call(op, names)}" if bound else _call(op, names)


def _call(op: Op, names: Sequence[str]) -> str:
    spec = REGISTRY[op.name]
    arguments = [
        parameter.name if parameter.kind == "Graph" else argument_text(one, names)
        for one, parameter in zip(op.args, spec.parameters, strict=False)
    ]
    arguments += [f"{name}={argument_text(one, names)}" for name, one in op.kwargs.items()]
    return f"{op.name}({', '.join(arguments)})"


def argument_text(argument: Argument, names: Sequence[str]) -> str:
    """An argument as `readable` writes it, with these names of values. A sub-graph is written under its op."""
    if not isinstance(argument, Special):
        return repr(argument)
    if argument.v is not None:
        return names[argument.v]
    if argument.s is not None:
        return render(argument.s)
    if argument.l is not None:
        return f"[{', '.join(argument_text(one, names) for one in argument.l)}]"
    if argument.t is not None:
        return f"({', '.join(argument_text(one, names) for one in argument.t)})"
    if argument.c is not None:
        return repr(complex(*argument.c))
    return str(argument.d or argument.o)
