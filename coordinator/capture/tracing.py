"""torch.export under our rules: what a function does to example tensors, as torch's own graph.

torch.export (non-strict) is made to keep what it would drop: every guard stays with the user's line that asked for
it, also those of the decompositions; each op keeps its line whatever the function is called; two dims of equal size
stay two dims. What a guard means for the plan is decided in `coordinator.capture.symbols`, not by torch's constraint
solver.

This module leans on torch's internals, which is why pyproject.toml names one minor version of torch.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch._export.non_strict_utils as non_strict
import torch.export._trace as export_trace
import torch.fx.experimental._config as shapes_config
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.proxy import TracerBase
from torch.nn.attention import SDPBackend, sdpa_kernel

from coordinator.capture import places
from coordinator.capture.arguments import Arguments
from coordinator.capture.failures import explained_failure
from coordinator.capture.inline import while_inlining
from coordinator.capture.lowering import is_random, lowered
from coordinator.capture.python_numbers import Numbers
from coordinator.capture.symbols import DynamicDim, Guard
from coordinator.capture.watch import TraceWatch
from coordinator.errors import OutputNotSupported, SourceLine
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.format import Tree
from edge_agent.plan.trees import leaf_paths, spec_of
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES

__all__ = ["ALONE", "Target", "Traced", "results_of", "torch_as_traced", "trace"]


@dataclass(frozen=True)
class Target:
    """What is captured: the user's ``function``, or a module's ``__call__``.

    ``modules`` hold the parameters and buffers that are looked up by name at every send, each under the name that it
    has in the function; an empty name is the module itself. ``state`` has the tensors of a function plan, which the
    function gets through ``state_view(tensors)`` as its argument ``state``.
    """

    function: Callable[..., Any]
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    state: tuple[torch.Tensor, ...] = ()
    state_view: Callable[[Sequence[torch.Tensor]], Any] | None = None

    def call(self, state: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the user's code, with ``state`` in place of its own."""
        if self.state_view is not None:
            kwargs = {**kwargs, "state": self.state_view(state)}
        return places.call_user(self.function, args, kwargs)


@dataclass(frozen=True)
class Traced:
    """What tracing gave: torch's graph, the shape environment with all that was assumed, how the results nest, the
    names of the target's modules, and the random ops by their lines, as they are called before they are decomposed.
    """

    program: ExportedProgram
    env: Any
    guards: tuple[Guard, ...]
    dims: tuple[DynamicDim, ...]
    tree: Tree
    modules: tuple[str, ...]
    random_ops: Mapping[SourceLine | None, str]


ALONE = threading.RLock()
"""What is patched and set in torch, and which warnings are let through, holds for all threads: so one at a time."""


def trace(target: Target, arguments: Arguments) -> Traced:
    """Trace the user's code with the examples of ``arguments``.

    Raises a `PlanBuildError`; an exception of the user's code keeps its type, and gains a note with the line.
    """
    root = _Root(target, arguments)
    dynamic = tuple(dict.fromkeys(leaf.dynamic, Dim.AUTO) or None for leaf in arguments.leaves)
    program: ExportedProgram | None = None
    with ALONE, _patched() as envs, while_inlining():
        try:
            program = torch.export.export(
                root,
                tuple(leaf.example for leaf in arguments.leaves),
                dynamic_shapes=(dynamic,) if dynamic else None,
                strict=False,
            )
            random_ops = {
                places.of_stack_trace(node.meta.get("stack_trace")): str(node.target)
                for node in program.graph.nodes
                if is_random(node)
            }
            program = lowered(program)
        except Exception as error:  # noqa: BLE001 -- every way to fail is told apart by explained_failure
            explained = explained_failure(error, program)
            # of the traceback only the user's part is kept: torch's hundred frames hide it
            raise explained.with_traceback(places.user_traceback(error)) from explained.__cause__
    env = envs[0]
    return Traced(
        program, env, env.told(), _dynamic_dims(env, arguments), root.results.tree, tuple(target.modules), random_ops
    )


# ------------------------------------------------------------------------------------------------- the traced module


class _Results:
    """How the results nest."""

    tree: Tree = None


class _Root(torch.nn.Module):
    """The user's code as a module from flat leaves to flat leaves, with its state as parameters and buffers."""

    def __init__(self, target: Target, arguments: Arguments) -> None:
        super().__init__()
        self.user = target.modules.get("")
        # numbered: a name may be one that torch's modules have themselves
        self.outer = torch.nn.ModuleList(module for name, module in target.modules.items() if name)
        for k, tensor in enumerate(target.state):
            self.register_buffer(f"state_{k}", tensor.detach().cpu().contiguous())
        self._call = target.call
        self._arguments = arguments
        self._states = len(target.state)
        self.results = _Results()

    def forward(self, *leaves: Any) -> list[Any]:
        """Called by torch.export with fake tensors."""
        numbers = Numbers()
        for leaf, value in zip(self._arguments.leaves, leaves, strict=True):
            if leaf.number is not None:
                numbers.add(value)
        args, kwargs = self._arguments.call(leaves)
        state = [getattr(self, f"state_{k}") for k in range(self._states)]
        with TraceWatch(numbers):
            result = self._call(state, args, kwargs)
        # torch.export restores what forward() assigns to the module itself
        self.results.tree, found, paths = results_of(result)
        return [_as_tensor(value, path) for value, path in zip(found, paths, strict=True)]


def results_of(result: Any) -> tuple[Tree, list[Any], list[str]]:
    """How a function's results nest, the results, and what errors call each. Raises `OutputNotSupported`."""
    try:
        tree, found = spec_of(result, name="output")
    except ArgumentMismatch as error:
        raise OutputNotSupported(error.argument, error.got) from None
    return tree, found, leaf_paths(tree, "output")


def _as_tensor(value: Any, path: str) -> torch.Tensor:
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


# ------------------------------------------------------------------------------------------------- torch, patched


class _Env(ShapeEnv):
    """A shape environment that never stops to listen, and notes the user's line with each guard."""

    @property
    def frozen(self) -> bool:
        """export freezes the environment before the decompositions run, whose guards would then be dropped."""
        return False

    @frozen.setter
    def frozen(self, value: bool) -> None:
        pass

    def _get_stack_summary(self, is_debug: bool = False, framework_loc: str | None = None) -> tuple[SLoc, str]:  # noqa: ARG002
        site: Any = _Site(places.here(), _asked_directly(sys._getframe(1)))  # noqa: SLF001 -- as in places
        return SLoc(framework_loc or "", site), ""

    def told(self) -> tuple[Guard, ...]:
        """All guards, each with its place."""
        sites: list[Any] = [guard.sloc.maybe_user_loc for guard in self.guards]
        return tuple(Guard(guard.expr, site.where, site.direct) for guard, site in zip(self.guards, sites, strict=True))


@dataclass(frozen=True)
class _Site:
    where: SourceLine | None
    direct: bool


def _asked_directly(frame: FrameType | None) -> bool:
    """Whether a size is compared by the user's own line: nothing lies between but the machinery of symbolic sizes."""
    while frame is not None and frame.f_code is not _TORCH_CALLED:
        name = frame.f_code.co_filename
        if places.is_user(name):
            return True
        if (
            places.is_library(name)
            and "/torch/fx/experimental/" not in name
            and not name.endswith("/torch/__init__.py")
        ):
            return False
        frame = frame.f_back
    return False


_TORCH_CALLED = TraceWatch.__torch_function__.__code__

_real_len = builtins.len


def _len(value: Any) -> Any:
    # Python makes an int of what __len__ gives, which would fix the size
    if type(value) is FakeTensor and value.dim():
        return value.shape[0]
    return _real_len(value)


def _no_solver(**_: Any) -> None:
    """Stands in for torch's constraint solver: the guards are read from the environment."""


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def _patched() -> Iterator[list[Any]]:
    """torch as this module needs it; the shape environments that are made in this block."""
    envs: list[Any] = []

    def new_env(*args: Any, **kwargs: Any) -> _Env:
        envs.append(_Env(*args, **kwargs))
        return envs[-1]  # type: ignore[no-any-return]

    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (non_strict, "ShapeEnv", new_env),
            (export_trace, "produce_guards_and_solve_constraints", _no_solver),
            (export_trace, "print", lambda *_, **__: None),  # it prints the graph so far when a guard fails
            (TracerBase, "_filter_traceback_frames", places.keep_user_frame),
            (builtins, "len", _len),
        ):
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(shapes_config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
        stack.enter_context(torch_as_traced())
        stack.enter_context(warnings.catch_warnings())
        # torch.export copies its own tree specs in a way that its own pytree deprecates
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        # a tensor that forward() keeps on its module would be lost; a recurrent layer only lists its weights anew
        warnings.filterwarnings(
            "error", message=r"The tensor attributes? .* assigned during export", category=UserWarning
        )
        # a gradient's intermediate values, which would become constants of the example
        warnings.filterwarnings("error", message=r"A model attribute .* requires gradient", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"The tensor attributes? \S*_flat_weights", category=UserWarning)
        log.setLevel(logging.ERROR)  # it warns of what becomes an error of ours, or a condition
        try:
            yield envs
        finally:
            log.setLevel(level)


@contextlib.contextmanager
def torch_as_traced() -> Iterator[None]:
    """torch without what only this machine's backend has: no mkldnn, attention in its MATH form, no fast path; and
    without gradients.
    """
    with ALONE:
        mkldnn = torch._C._get_mkldnn_enabled()  # noqa: SLF001
        fastpath = torch.backends.mha.get_fastpath_enabled()
        # torch.backends.mkldnn.flags() would set TF32 as well, which warns on machines without it
        torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch._C._set_mkldnn_enabled(mkldnn)  # noqa: SLF001
            torch.backends.mha.set_fastpath_enabled(fastpath)


# ------------------------------------------------------------------------------------------------- after tracing


def _dynamic_dims(env: Any, arguments: Arguments) -> tuple[DynamicDim, ...]:
    # by the symbols that they began with, not by what these have been replaced with
    return tuple(
        DynamicDim(k, dim, leaf.path, env.source_to_var[f"L['leaves'][{k}].size()[{dim}]"], name)
        for k, leaf in enumerate(arguments.leaves)
        for dim, name in leaf.dynamic.items()
    )
