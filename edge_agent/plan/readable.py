"""A plan as people read it.

::

    plan_double_abs(x: float32[2]) -> float32[2]:
        add = aten.add.Tensor(x, x)
        abs = aten.abs.default(add)
        return abs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.checker import check_graph
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Argument, Graph, Op, Special, TensorType
from edge_agent.plan.registry import REGISTRY
from edge_agent.plan.trees import unflatten

__all__ = ["argument_text", "readable", "render_type", "step_text", "uses_of", "value_names"]

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
    names = value_names(graph)
    inputs = [
        f"{one.name}: {render_type(own)}{'' if one.kind == 'user' else f' ({one.kind})'}"
        for one, own in zip(graph.inputs, checked.types, strict=False)
    ]
    outputs = _nest(unflatten(graph.tree, [_Text(render_type(one)) for one in checked.output_types]))
    lines = [_signature(plan_name or graph.name or "plan", inputs, outputs)]
    lines += [f"    for {_range(symbol.name, symbol.low, symbol.high)}" for symbol in graph.symbols]
    lines += [f"    if {render(condition)}" for condition in graph.conditions]
    first = len(graph.inputs)
    for op in graph.ops:
        lines.append(f"    {_step(op, first, names)}")
        first += op.outputs
    returned = _nest(unflatten(graph.tree, [_Text(names[value]) for value in graph.outputs]))
    lines.append(f"    return {returned}")
    return "\n".join(lines)


def step_text(graph: Graph, index: int) -> str:
    """One op of a checked graph, as `readable` writes it: ``add = aten.add.Tensor(x, x)``."""
    first = len(graph.inputs) + sum(op.outputs for op in graph.ops[:index])
    return _step(graph.ops[index], first, value_names(graph))


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


def uses_of(argument: Argument) -> list[int]:
    """The values that an argument names."""
    if not isinstance(argument, Special):
        return []
    if argument.v is not None:
        return [argument.v]
    elements = argument.l if argument.l is not None else argument.t
    return [value for one in elements or () for value in uses_of(one)]


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


def _signature(name: str, inputs: Sequence[str], outputs: str) -> str:
    line = f"{name}({', '.join(inputs)}) -> {outputs}:"
    if len(line) <= _LONG:
        return line
    return "\n".join([f"{name}(", *(f"        {one}," for one in inputs), f") -> {outputs}:"])


def _range(name: str, low: int, high: int | None) -> str:
    if high is not None:
        return f"{name} from {low} to {high}"
    return f"{name} of {low} or more" if low else f"any {name}"


def _step(op: Op, first: int, names: Sequence[str]) -> str:
    bound = ", ".join(names[first : first + op.outputs])
    listed = "," if op.outputs == 1 and REGISTRY[op.name].outputs is None else ""
    return f"{bound}{listed} = {_call(op, names)}" if bound else _call(op, names)


def _call(op: Op, names: Sequence[str]) -> str:
    arguments = [argument_text(one, names) for one in op.args]
    arguments += [f"{name}={argument_text(one, names)}" for name, one in op.kwargs.items()]
    return f"{op.name}({', '.join(arguments)})"


def argument_text(argument: Argument, names: Sequence[str]) -> str:
    """An argument as `readable` writes it, with these names of values."""
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
