"""A plan in older ops: for devices whose registry lacks some of it.

The graph itself is captured once more, as if it were a user's function, with the ops that those devices know; so that
torch's decompositions, and all that capture checks (the sizes, the results side by side), serve here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
import torch._higher_order_ops as torchs_operators

from coordinator.capture.arguments import Arguments, Leaf
from coordinator.capture.building import capture
from coordinator.capture.lowering import for_device_with
from coordinator.capture.tracing import Target
from coordinator.errors import PlanBuildError
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import Argument, Graph, Input, Special, Symbol
from edge_agent.runtimes.torch import overload
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

__all__ = ["in_older_ops"]

_EXAMPLE_SIZE = 5


def in_older_ops(graph: Graph, state: Sequence[torch.Tensor], ops: frozenset[str]) -> Graph:
    """The graph with no other ops than ``ops``, for the same inputs, state and draws.

    Raises `coordinator.errors.OpNotSupported` for an op that can't be decomposed into them, another `PlanBuildError`
    for a graph that is beyond this: with an input whose size is computed of others.
    """
    leaves = _leaves(graph, state)
    replay = _Replay(graph)
    arguments = Arguments(["t", ["t", *range(len(leaves))], ["d"]], leaves)
    with for_device_with(ops):
        captured = capture(Target(replay), arguments, name=graph.name).graph
    if len(captured.inputs) != len(graph.inputs):
        raise PlanBuildError(f"{graph.name or 'the plan'} can't be put in older ops: a constant would be made of an op")
    inputs = [
        msgspec.structs.replace(old, shape=new.shape) for old, new in zip(graph.inputs, captured.inputs, strict=True)
    ]
    return msgspec.structs.replace(
        captured,
        inputs=inputs,
        signature=graph.signature,
        tree=graph.tree,
        symbols=_narrower(graph, captured),
        conditions=[
            *graph.conditions,
            *(condition for condition in captured.conditions if condition not in graph.conditions),
        ],
    )


def _leaves(graph: Graph, state: Sequence[torch.Tensor]) -> tuple[Leaf, ...]:
    tensors = iter(state)
    sizes = _example_sizes(graph)
    leaves = []
    for one in graph.inputs:
        dims = {place: dim for place, dim in enumerate(one.shape) if isinstance(dim, str)}
        if one.kind == "state":
            leaves.append(Leaf(one.name, next(tensors)))
        elif len(dims) + sum(isinstance(dim, int) for dim in one.shape) < len(one.shape):
            raise PlanBuildError(f"{graph.name or 'the plan'} can't be put in older ops: {one.name} has computed sizes")
        else:
            leaves.append(Leaf(one.name, _example(one, sizes), dims=dims))
    return tuple(leaves)


def _example_sizes(graph: Graph) -> dict[str, int]:
    sizes = {}
    for place, symbol in enumerate(graph.symbols):
        wanted = max(symbol.low, _EXAMPLE_SIZE + 2 * place)
        sizes[symbol.name] = wanted if symbol.high is None else min(wanted, symbol.high)
    return sizes


def _example(one: Input, sizes: Mapping[str, int]) -> torch.Tensor:
    shape = [int(evaluate(dim, sizes)) for dim in one.shape]
    dtype = TORCH_DTYPES[one.dtype]
    generator = torch.Generator().manual_seed(len(one.name))
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(shape, generator=generator).to(dtype)
    if one.draw is not None:
        return torch.randperm(shape[0], generator=generator)
    return torch.zeros(shape, dtype=dtype)


def _narrower(graph: Graph, captured: Graph) -> list[Symbol]:
    """The symbols with ranges that both allow."""
    ours = {symbol.name: symbol for symbol in graph.symbols}
    if ours.keys() != {symbol.name for symbol in captured.symbols}:
        raise PlanBuildError(f"{graph.name or 'the plan'} can't be put in older ops: its sizes would not be the same")
    narrowed = []
    for symbol in captured.symbols:
        own = ours[symbol.name]
        highs = [high for high in (symbol.high, own.high) if high is not None]
        narrowed.append(Symbol(name=symbol.name, low=max(symbol.low, own.low), high=min(highs, default=None)))
    return narrowed


class _Replay:
    """The graph as a function of all its inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, *inputs: Any) -> list[Any]:
        """Its results."""
        graph = self._graph
        sizes: dict[str, Any] = {}
        for one, value in zip(graph.inputs, inputs, strict=True):
            for place, dim in enumerate(one.shape):
                if isinstance(dim, str):
                    sizes.setdefault(dim, value.shape[place])
        return _run(graph, inputs, sizes)


def _run(graph: Graph, inputs: Sequence[Any], sizes: Mapping[str, Any]) -> list[Any]:
    values = list(inputs)
    for op in graph.ops:
        args = [_plain(argument, values, sizes) for argument in op.args]
        kwargs = {name: _plain(argument, values, sizes) for name, argument in op.kwargs.items()}
        call = _CONTROL[op.name] if op.name in _CONTROL else overload(op.name)
        result = call(*args, **kwargs)
        values += result if isinstance(result, list | tuple) else [result]
    return [values[place] for place in graph.outputs]


def _cond(predicate: Any, if_true: Any, if_false: Any, operands: list[Any]) -> Any:
    return torch.cond(predicate, if_true, if_false, tuple(operands))


def _while_loop(condition: Any, body: Any, carried: list[Any], operands: list[Any]) -> Any:
    loop: Any = torchs_operators.while_loop
    return loop(
        lambda *held: condition(*held, *operands)[0],
        lambda *held: tuple(body(*held, *operands)),
        tuple(carried),
    )


def _scan(step: Any, carried: list[Any], rows: list[Any], operands: list[Any], reverse: bool = False) -> Any:
    def stepped(held: list[Any], each: list[Any]) -> Any:
        results = step(*held, *each, *operands)
        return results[: len(held)], results[len(held) :]

    last, outs = torchs_operators.scan(stepped, carried, rows, reverse=reverse)
    return [*last, *outs]


_CONTROL: Mapping[str, Callable[..., Any]] = {
    "control.cond.default": _cond,
    "control.while_loop.default": _while_loop,
    "control.scan.default": _scan,
}
"""What takes sub-graphs, by what it was captured from: a branch may be put in older ops, a loop may not."""


def _plain(argument: Argument, values: Sequence[Any], sizes: Mapping[str, Any]) -> Any:
    if not isinstance(argument, Special):
        return argument
    if argument.v is not None:
        return values[argument.v]
    if argument.s is not None:
        return evaluate(argument.s, sizes)
    if argument.g is not None:
        inner = argument.g
        return lambda *inputs: _run(inner, inputs, sizes)
    if argument.d is not None:
        return TORCH_DTYPES[argument.d]
    if argument.c is not None:
        return complex(*argument.c)
    elements = argument.l if argument.l is not None else argument.t
    if elements is not None:
        return [_plain(one, values, sizes) for one in elements]
    kind, _, name = (argument.o or "").partition(":")
    if kind == "device":
        return torch.device("cpu")
    return getattr(torch, name)
