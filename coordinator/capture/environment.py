"""torch while a function is traced: what is patched and set in it, and the shape environment that keeps every guard.

This module leans on torch's internals, which is why pyproject.toml names one minor version of torch.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch._decomp.decompositions as torchs_decompositions
import torch._export.non_strict_utils as non_strict
import torch._functorch.eager_transforms as eager_transforms
import torch.export._trace as export_trace
import torch.fx.experimental._config as shapes_config
from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.proxy import TracerBase
from torch.nn.attention import SDPBackend, sdpa_kernel

from coordinator.capture import places
from coordinator.capture.control_flow import control_flow
from coordinator.capture.draws import recurrent_layers
from coordinator.capture.symbols import Guard
from coordinator.capture.watch import BeneathAutograd, TraceWatch, is_fake
from coordinator.errors import SourceLine

__all__ = ["ALONE", "Env", "patched", "replaced", "torch_as_traced"]

ALONE = threading.RLock()
"""What is patched and set in torch, and which warnings are let through, holds for all threads: so one at a time."""


class Env(ShapeEnv):
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
    if isinstance(value, torch.Tensor) and is_fake(value) and value.dim():
        return value.shape[0]
    return _real_len(value)


def _leave() -> None:
    raise BeneathAutograd


def _no_solver(**_: Any) -> None:
    """Stands in for torch's constraint solver: the guards are read from the environment."""


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` in this block."""
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
def patched(*, gradients: bool = False) -> Iterator[list[Any]]:
    """torch as tracing needs it; the shape environments that torch.export makes in this block. Without ``gradients``,
    `torch.func.grad` and its like raise `BeneathAutograd`.
    """
    envs: list[Any] = []

    def new_env(*args: Any, **kwargs: Any) -> Env:
        envs.append(Env(*args, **kwargs))
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
            stack.enter_context(replaced(owner, name, value))
        if gradients:
            # how a convolution would be run here is nobody's concern, and asking makes guards of it
            core = torch._C  # noqa: SLF001
            stack.enter_context(replaced(torchs_decompositions, "_rnn_helper", recurrent_layers))
            layout = "_conv_determine_backend_memory_format"
            stack.enter_context(replaced(core, "_select_conv_backend", lambda *_, **__: None))
            stack.enter_context(replaced(core, layout, lambda *_: torch.contiguous_format))
        else:
            stack.enter_context(replaced(eager_transforms, "grad_increment_nesting", _leave))
            stack.enter_context(replaced(eager_transforms, "jvp_increment_nesting", _leave))
        stack.enter_context(shapes_config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
        stack.enter_context(torch_as_traced())
        stack.enter_context(control_flow(traced=True))
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
