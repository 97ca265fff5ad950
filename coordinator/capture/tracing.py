"""torch.export under our rules: what a function does to example tensors, as torch's own graph.

What needs autograd or a generator of random numbers is left to `coordinator.capture.beneath`.

torch.export (non-strict) is made to keep what it would drop: every guard stays with the user's line that asked for
it, also those of the decompositions; each op keeps its line whatever the function is called; two dims of equal size
stay two dims. What a guard means for the plan is decided in `coordinator.capture.symbols`, not by torch's constraint
solver.

This module leans on torch's internals, as `coordinator.capture.environment` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph

from coordinator.capture import places
from coordinator.capture.arguments import Arguments
from coordinator.capture.effects import run_without_effects
from coordinator.capture.environment import ALONE, patched
from coordinator.capture.failures import explained_failure
from coordinator.capture.inline import while_inlining
from coordinator.capture.lowering import is_random, lowered
from coordinator.capture.python_numbers import Numbers
from coordinator.capture.reads import Reads
from coordinator.capture.symbols import DynamicDim, Guard
from coordinator.capture.watch import BeneathAutograd, TraceWatch
from coordinator.errors import OutputNotSupported
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.format import Tree
from edge_agent.plan.trees import leaf_paths, spec_of
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES

__all__ = ["Program", "Target", "Traced", "as_result", "dynamic_dims", "results_of", "trace"]


@dataclass(frozen=True)
class Target:
    """What is captured: the user's ``function``, or a module's ``__call__``.

    ``modules`` hold the parameters and buffers that are looked up by name at every send, each under the name that it
    has in the function; an empty name is the module itself. ``state`` has the tensors of a function plan, which the
    function gets through ``state_view(tensors)`` as its argument ``state``. ``compared``: whether the plan is run
    beside it. ``reads`` note what it reads of modules.
    """

    function: Callable[..., Any]
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    state: tuple[torch.Tensor, ...] = ()
    state_view: Callable[[Sequence[torch.Tensor]], Any] | None = None
    compared: bool = True
    reads: Reads = field(default_factory=Reads)

    def call(self, state: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the user's code, with ``state`` in place of its own."""
        if self.state_view is not None:
            kwargs = {**kwargs, "state": self.state_view(state)}
        with self.reads.noting():
            return places.call_user(self.function, args, kwargs)

    def run_alone(
        self, state: Sequence[torch.Tensor], arguments: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> Any:
        """As `call`, for a trace. Raises `LostSideEffect` for what the user's code does besides computing."""
        return run_without_effects(lambda: self.call(state, *arguments()), self.function, *self.modules.values())


class Program(Protocol):
    """What is read of torch's graph: an `ExportedProgram`, or one of `coordinator.capture.beneath`."""

    @property
    def graph(self) -> Graph:
        """The nodes."""

    @property
    def graph_signature(self) -> ExportGraphSignature:
        """What its inputs and outputs are."""

    @property
    def constants(self) -> Mapping[str, Any]:
        """The tensors that the function holds, by name."""


@dataclass(frozen=True)
class Traced:
    """What tracing gave: torch's graph, the shape environment with all that was assumed, how the results nest, and the
    names of the target's modules. ``beneath``: autograd is at work in it.
    """

    program: Program
    env: Any
    guards: tuple[Guard, ...]
    dims: tuple[DynamicDim, ...]
    tree: Tree
    modules: tuple[str, ...]
    beneath: bool = False


def trace(target: Target, arguments: Arguments) -> Traced:
    """Trace the user's code with the examples of ``arguments``.

    Raises a `PlanBuildError`; an exception of the user's code keeps its type, and gains a note with the line;
    `BeneathAutograd` if this is not the way to trace it.
    """
    root = _Root(target, arguments)
    dynamic = tuple(dict.fromkeys(leaf.dynamic, Dim.AUTO) or None for leaf in arguments.leaves)
    program: ExportedProgram | None = None
    with ALONE, patched() as envs, while_inlining():
        try:
            program = torch.export.export(
                root,
                tuple(leaf.example for leaf in arguments.leaves),
                dynamic_shapes=(dynamic,) if dynamic else None,
                strict=False,
            )
            if any(map(is_random, program.graph.nodes)):
                raise BeneathAutograd
            program = lowered(program)
        except BeneathAutograd:
            raise
        except Exception as error:
            if root.results.watch is not None and root.results.watch.beneath:
                raise BeneathAutograd from error
            explained = explained_failure(error, program)
            # of the traceback only the user's part is kept: torch's hundred frames hide it
            raise explained.with_traceback(places.user_traceback(error)) from explained.__cause__
    env = envs[0]
    return Traced(program, env, env.told(), dynamic_dims(env, arguments), root.results.tree, tuple(target.modules))


# ------------------------------------------------------------------------------------------------- the traced module


class _Results:
    """How the results nest, and who watched. (torch.export restores what forward() assigns to the module itself.)"""

    tree: Tree = None
    watch: TraceWatch | None = None


class _Root(torch.nn.Module):
    """The user's code as a module from flat leaves to flat leaves, with its state as parameters and buffers."""

    def __init__(self, target: Target, arguments: Arguments) -> None:
        super().__init__()
        self.user = target.modules.get("")
        # numbered: a name may be one that torch's modules have themselves
        self.outer = torch.nn.ModuleList(module for name, module in target.modules.items() if name)
        for k, tensor in enumerate(target.state):
            self.register_buffer(f"state_{k}", tensor.detach().cpu().contiguous())
        self._target = target
        self._arguments = arguments
        self._states = len(target.state)
        self.results = _Results()

    def forward(self, *leaves: Any) -> list[Any]:
        """Called by torch.export with fake tensors."""
        numbers = Numbers()
        for leaf, value in zip(self._arguments.leaves, leaves, strict=True):
            if leaf.number is not None:
                numbers.add(value)
        state = [getattr(self, f"state_{k}") for k in range(self._states)]
        self.results.watch = TraceWatch(numbers)
        with self.results.watch:
            result = self._target.run_alone(state, lambda: self._arguments.call(leaves))
        self.results.watch.finish()
        self.results.tree, found, paths = results_of(result)
        return [as_result(value, path) for value, path in zip(found, paths, strict=True)]


def results_of(result: Any) -> tuple[Tree, list[Any], list[str]]:
    """How a function's results nest, the results, and what errors call each. Raises `OutputNotSupported`."""
    try:
        tree, found = spec_of(result, name="output")
    except ArgumentMismatch as error:
        raise OutputNotSupported(error.argument, error.got) from None
    return tree, found, leaf_paths(tree, "output")


def as_result(value: Any, path: str) -> torch.Tensor:
    """A result as a tensor: numbers become one. Raises `OutputNotSupported`."""
    if isinstance(value, torch.Tensor):
        if value.dtype not in DTYPE_NAMES or value.layout is not torch.strided:
            raise OutputNotSupported(path, f"a tensor of {value.dtype}, {value.layout}")
        return value
    for kinds, dtype in _NUMBERS:
        if isinstance(value, kinds):
            return torch.full((), value, dtype=dtype)
    raise OutputNotSupported(path, f"a {type(value).__name__}")


_NUMBERS: tuple[tuple[Any, torch.dtype], ...] = (
    (bool | torch.SymBool, torch.bool),
    (int | torch.SymInt, torch.int64),
    (float | torch.SymFloat, torch.float64),
)
"""Numbers that a plan may return, as tensors of 0 dims."""


# ------------------------------------------------------------------------------------------------- after tracing


def dynamic_dims(env: Any, arguments: Arguments) -> tuple[DynamicDim, ...]:
    """The dims that may vary, with torch's symbols for them."""
    # by the symbols that they began with, not by what these have been replaced with
    return tuple(
        DynamicDim(k, dim, leaf.path, env.source_to_var[f"L['leaves'][{k}].size()[{dim}]"], name)
        for k, leaf in enumerate(arguments.leaves)
        for dim, name in leaf.dynamic.items()
    )
