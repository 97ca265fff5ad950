"""`capture`: all the steps from torch code to a graph that is known to be right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch

from broker.protocol.tensors import inspect
from coordinator.capture.arguments import Arguments
from coordinator.capture.beneath import copies_of, trace_beneath, with_tensors
from coordinator.capture.control_flow import control_flow
from coordinator.capture.draws import Drawn, drawing
from coordinator.capture.environment import torch_as_traced
from coordinator.capture.graphs import StateSource, graph_of
from coordinator.capture.inline import while_inlining
from coordinator.capture.reads import Read
from coordinator.capture.sidebyside import SEED, SideBySide, resized
from coordinator.capture.tracing import Target, Traced, trace
from coordinator.capture.watch import BeneathAutograd, run_watched
from coordinator.errors import DimPinned, PlanBuildError, SourceLine
from edge_agent.plan.checker import CheckedGraph, check_graph, check_plan
from edge_agent.plan.errors import PlanError
from edge_agent.plan.format import Graph, Manifest, digest_of, encode_graph, version_of
from edge_agent.runtimes.torch import TorchRuntime
from edge_agent.runtimes.torch_tensors import encode_tensor

__all__ = ["Captured", "capture"]


@dataclass(frozen=True)
class Captured:
    """A graph with its types, where its state comes from, in order, the user's line for each op, and what the user's
    code read of modules.
    """

    checked: CheckedGraph
    state: tuple[StateSource, ...]
    lines: tuple[SourceLine | None, ...]
    reads: tuple[Read, ...]

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self.checked.graph


def capture(target: Target, arguments: Arguments, *, name: str) -> Captured:
    """Capture what ``target`` does to such arguments. See `coordinator.capture.arguments` for how to make them.

    Raises a `PlanBuildError` that says what can't be captured, and at which line; an exception of the user's code as
    it is, with a note.
    """
    first: Exception | None = None
    narrow: Captured | None = None
    tracer = _Tracer()
    for attempt, last in _attempts(arguments):
        try:
            captured = _capture(target, arguments, tracer(target, attempt), attempt, name)
        except DimPinned as error:
            if first is None or (error.others and isinstance(first, DimPinned) and first.by_torch):
                first = error
        except Exception as error:
            if narrow is not None:
                continue
            if attempt is arguments or isinstance(error, PlanBuildError):
                raise
            if last:
                raise first or error from None
        else:
            if not _ends(captured):
                return captured
            narrow = narrow or captured
    if narrow is not None:
        return narrow
    assert first is not None
    raise first


def _ends(captured: Captured) -> bool:
    """Whether a size that may vary has a largest value: larger ones may be traced without one, if it is not the code's
    but torch's, which takes a size of 1 that a small example makes on the way for a constant.
    """
    return any(symbol.high is not None for symbol in captured.graph.symbols)


class _Tracer:
    """Traces by torch.export; beneath autograd, once that has been found to be the way."""

    def __init__(self) -> None:
        self.beneath = False

    def __call__(self, target: Target, arguments: Arguments) -> Traced:
        if not self.beneath:
            try:
                return trace(target, arguments)
            except BeneathAutograd:
                self.beneath = True
        return trace_beneath(target, arguments)


def _capture(target: Target, arguments: Arguments, traced: Traced, traced_with: Arguments, name: str) -> Captured:
    graph, state, lines, bounds = graph_of(traced, traced_with, name=name)
    try:
        checked = check_graph(graph)
    except PlanError as error:
        index = getattr(error, "index", None)
        raise PlanBuildError(
            f"the captured plan is not right: {error}", where=None if index is None else lines[index]
        ) from error
    tensors = [_tensor_of(target, source) for source in state]
    frames = [encode_tensor(tensor) for tensor in tensors]
    manifest = Manifest(
        version=version_of(graph),
        graph=digest_of(encode_graph(graph)),
        outputs=checked.output_types,
        state=[digest_of(frame) for frame in frames],
    )
    plan = check_plan(manifest, graph, [inspect(frame) for frame in frames])
    if target.compared:
        both = SideBySide(arguments, _Eager(target, gradients=traced.beneath), gradients=traced.beneath)
        wider = both.check(plan, TorchRuntime().load(plan, tensors), bounds)
        final = msgspec.structs.replace(graph, symbols=list(wider.symbols), conditions=list(wider.conditions))
        checked = replace(checked, graph=final)
    return Captured(checked, tuple(state), tuple(lines), target.reads.found())


def _tensor_of(target: Target, source: StateSource) -> torch.Tensor:
    if source.tensor is not None:
        return source.tensor
    if source.index is not None:
        return target.state[source.index]
    return named_tensor(target.modules, source.name)


def named_tensor(modules: Mapping[str, torch.nn.Module], name: str) -> torch.Tensor:
    """The parameter or buffer of this name, as it is now. Raises AttributeError if there is none."""
    first, _, rest = name.partition(".")
    module, name = (modules[""], name) if "" in modules else (modules[first], rest)
    path, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute)
    if not isinstance(tensor, torch.Tensor):
        raise AttributeError(f"{name} is no longer a tensor")
    return tensor


class _Eager:
    """Calls the user's code with concrete arguments; the first time under watch for what a plan would freeze. With
    ``gradients``, on copies of the modules' tensors, so that nothing is left behind on the user's.
    """

    def __init__(self, target: Target, *, gradients: bool) -> None:
        self._target = target
        self._gradients = gradients
        self._watched = False

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def call() -> Any:
            if not self._gradients:
                return self._target.call(self._target.state, args, kwargs)
            with contextlib.ExitStack() as stack:
                stack.enter_context(drawing(SEED))
                stack.enter_context(Drawn())  # type: ignore[no-untyped-call]
                for module in self._target.modules.values():
                    stack.enter_context(with_tensors(module, copies_of(module)))
                state = [tensor.detach().clone() for tensor in self._target.state]
                return self._target.call(state, args, kwargs)

        with torch_as_traced(), control_flow(traced=False), while_inlining(), torch.set_grad_enabled(self._gradients):
            if self._watched:
                return call()
            result = run_watched(call)
            self._watched = True
            return result


# ------------------------------------------------------------------------------------------------- sizes to trace with

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
_MULTIPLES = tuple(range(24, 24 * 30, 24))


def _attempts(arguments: Arguments) -> Iterator[tuple[Arguments, bool]]:
    """The examples to trace with, one after the other, and whether it is the last.

    First the user's own, if all dims that may vary have a size of 2 or more there (torch takes 0 and 1 for
    constants). Then with all such dims different, so that none is taken for another; then all equal, for code that
    needs them so.
    """
    sizes = [leaf.example.shape[dim] for leaf in arguments.leaves for dim in leaf.dynamic]
    if not sizes or (arguments.given and min(sizes) >= 2):
        yield arguments, not sizes
    if not sizes:
        return
    fixed = {
        size for leaf in arguments.leaves for dim, size in enumerate(leaf.example.shape) if dim not in leaf.dynamic
    }
    for series in (_PRIMES, _MULTIPLES):
        free = [size for size in series if size not in fixed]
        last = series is _MULTIPLES
        yield _with_sizes(arguments, free), last and len(sizes) == 1
        if len(sizes) > 1:
            yield _with_sizes(arguments, free[:1] * len(sizes)), last


def _with_sizes(arguments: Arguments, sizes: Sequence[int]) -> Arguments:
    """The same call with other sizes of the dims that may vary; dims of one name stay equal."""
    generator = torch.Generator().manual_seed(0)
    chosen: dict[str, int] = {}
    left = iter([*sizes, *range(101, 1000)])
    examples = []
    for leaf in arguments.leaves:
        shape = list(leaf.example.shape)
        for dim, name in leaf.dynamic.items():
            size = chosen[name] if name in chosen else next(left)
            if name:
                chosen[name] = size
            shape[dim] = size
        examples.append(resized(leaf.example, shape, generator))
    return arguments.with_examples(examples)
