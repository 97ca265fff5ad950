"""Does a call fit a plan? Answered from dtypes and shapes alone, by the coordinator before it sends and by the device
before it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed
from edge_agent.plan.expressions import evaluate, render, symbols_of
from edge_agent.plan.format import Graph, Input, Symbol
from edge_agent.plan.sizes import Sizes

__all__ = ["Argument", "bind_sizes", "describe_input"]

Argument: TypeAlias = tuple[str, Sequence[int]] | None
"""A user argument's dtype name and shape; None: not known here."""


def bind_sizes(graph: Graph, shapes: Sequence[Argument]) -> dict[str, int]:
    """The size of each symbol, from the user's arguments (in the order of the graph's user inputs). The graph is a
    checked one.

    An argument that is None is skipped: symbols that only it would tell stay unbound, and conditions on them
    unchecked. Raises `ArgumentMismatch`, which names the argument, what was expected and what came, or
    `ConditionFailed`.
    """
    inputs = graph.given if graph.inputs and graph.inputs[-1].kind in ("state", "random") else graph.inputs
    if len(shapes) != len(inputs):
        raise ArgumentMismatch("the arguments", f"{len(inputs)} of them", str(len(shapes)))
    sizes: dict[str, int] = {}
    compound = False
    for one, given in zip(inputs, shapes, strict=True):
        if given is None:
            continue
        dtype, shape = given
        if dtype != one.dtype or len(shape) != len(one.shape):
            raise _mismatch(graph, one, given, sizes)
        for dim, size in zip(one.shape, shape, strict=True):
            if type(dim) is str:
                if sizes.setdefault(dim, size) != size:
                    raise _mismatch(graph, one, given, sizes)
            elif type(dim) is int:
                if dim != size:
                    raise _mismatch(graph, one, given, sizes)
            else:
                compound = True
    if compound:
        _bind_compound(graph, inputs, shapes, sizes)
    for symbol in graph.symbols:
        bound = sizes.get(symbol.name)
        if bound is not None and (bound < symbol.low or (symbol.high is not None and bound > symbol.high)):
            raise _out_of_range(graph, inputs, shapes, symbol)
    for condition in graph.conditions:
        if len(sizes) < len(graph.symbols) and not symbols_of(condition) <= sizes.keys():
            continue
        if not evaluate(condition, sizes):
            names = symbols_of(condition)
            raise ConditionFailed(render(condition), {name: size for name, size in sizes.items() if name in names})
    return sizes


def _bind_compound(graph: Graph, inputs: Sequence[Input], shapes: Sequence[Argument], sizes: dict[str, int]) -> None:
    """Dims such as ``2 * s0``: each either tells its symbol, or must be equal to what the symbols say."""
    algebra = Sizes()
    for one, given in zip(inputs, shapes, strict=True):
        if given is None:
            continue
        for dim, size in zip(one.shape, given[1], strict=True):
            if not isinstance(dim, list):
                continue
            unbound = symbols_of(dim) - sizes.keys()
            if not unbound:
                if evaluate(dim, sizes) != size:
                    raise _mismatch(graph, one, given, sizes)
                continue
            line = algebra.line(dim)
            if line is not None:
                symbol, slope, offset = line
                if (size - offset) % slope:
                    raise _mismatch(graph, one, given, sizes)
                sizes[symbol] = (size - offset) // slope


def describe_input(graph: Graph, one: Input, sizes: dict[str, int] | None = None) -> str:
    """What an input takes: ``float32[s0, 6] with s0 from 2 to 64``; with what is known of its symbols' sizes."""
    text = f"{one.dtype}[{', '.join(map(render, one.shape))}]"
    if one.kind == "number":
        return f"a number ({one.dtype})"
    mentioned: set[str] = set().union(*(symbols_of(dim) for dim in one.shape))
    notes = []
    for symbol in graph.symbols:
        if symbol.name in mentioned:
            if sizes and symbol.name in sizes:
                notes.append(f"{symbol.name} = {sizes[symbol.name]}")
            elif symbol.high is not None:
                notes.append(f"{symbol.name} from {symbol.low} to {symbol.high}")
            elif symbol.low:
                notes.append(f"{symbol.name} of {symbol.low} or more")
    return f"{text} with {' and '.join(notes)}" if notes else text


def _mismatch(graph: Graph, one: Input, given: tuple[str, Sequence[int]], sizes: dict[str, int]) -> ArgumentMismatch:
    dtype, shape = given
    return ArgumentMismatch(one.name, describe_input(graph, one, sizes), f"{dtype}{list(shape)}")


def _out_of_range(graph: Graph, inputs: Sequence[Input], shapes: Sequence[Any], symbol: Symbol) -> ArgumentMismatch:
    for one, given in zip(inputs, shapes, strict=True):
        if given is not None and any(symbol.name in symbols_of(dim) for dim in one.shape):
            return _mismatch(graph, one, given, {})
    raise AssertionError(f"{symbol.name} was bound by an argument")  # pragma: no cover
