"""What a plan can't do, seen while it happens: values asked for while tracing, Python's randomness and clock in eager
code.
"""

from __future__ import annotations

import datetime as dt
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import torch
import torch._C._functorch as functorch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from coordinator.capture import places
from coordinator.capture.python_numbers import Numbers
from coordinator.errors import (
    DataDependentBranch,
    DataDependentSize,
    LostSideEffect,
    NumpyInPlan,
    PlanBuildError,
    PythonRandomness,
    SourceLine,
)

__all__ = ["BeneathAutograd", "TraceWatch", "is_fake", "run_watched"]


class BeneathAutograd(Exception):
    """The function is to be traced by `coordinator.capture.beneath`: it computes gradients, or draws random
    numbers.
    """


_BRANCHES = {torch.Tensor.__bool__}
_VALUES = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__complex__,
    torch.Tensor.__index__,
}
_GRADIENTS = {torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward}
_NUMPY: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}


_MAX_POOLS = {torch.max_pool1d, torch.nn.functional.max_pool1d}


def _is_pool_of_any_length(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func not in _MAX_POOLS or not 0 < len(args) <= 6 or kwargs.get("return_indices"):
        return False
    return isinstance(args[0].shape[-1], torch.SymInt)


def _max_pool1d(
    rows: torch.Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> torch.Tensor:
    """As a pool of two dims: torch's own takes the length for a number."""
    kernel, step, pad, apart = (
        (one if isinstance(one, int) else one[0]) for one in (kernel_size, stride or kernel_size, padding, dilation)
    )
    flat = rows.unsqueeze(-2)
    return torch.max_pool2d(flat, (1, kernel), (1, step), (0, pad), (1, apart), ceil_mode).squeeze(-2)


class TraceWatch(TorchFunctionMode):
    """Between the user's function and torch while it is traced: stops it where it asks for a value that is not known,
    and lets Python numbers behave as such.
    """

    def __init__(self, numbers: Numbers, *, gradients: bool = False) -> None:
        super().__init__()
        self.numbers = numbers
        self.gradients = gradients
        self.beneath = False
        self.refused: PlanBuildError | None = None

    def _refuse(self, error: PlanBuildError) -> NoReturn:
        self.refused = self.refused or error
        raise error

    def finish(self) -> None:
        """After the user's code. Raises what it was stopped with, where it has caught that and gone on."""
        if self.refused is not None:
            raise self.refused

    def leave(self) -> None:
        """Go on beneath autograd."""
        self.beneath = True
        raise BeneathAutograd

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """torch calls this in place of ``func``."""
        kwargs = kwargs or {}
        if func in _GRADIENTS and not self.gradients:
            self.leave()
        if args and _is_unknown(args[0]):
            where = places.here()
            if where is not None:
                number = args[0] in self.numbers
                if func in _BRANCHES:
                    self._refuse(DataDependentBranch(number=number, where=where))
                if func in _VALUES and not _is_no_index(func, args[0]):
                    self._refuse(DataDependentSize(f"Tensor.{func.__name__}", number=number, where=where))
                if func in _NUMPY:
                    self._refuse(NumpyInPlan("numpy", where=where))
        if not self.gradients and _is_pool_of_any_length(func, args, kwargs):
            return _max_pool1d(*args, **kwargs)
        if len(self.numbers):
            return self.numbers.call(func, args, kwargs)
        return func(*args, **kwargs)


def _innermost(value: object) -> object:
    while type(value) is torch.Tensor and functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    return value


def is_fake(value: object) -> bool:
    """Whether a tensor is one of tracing, be it inside `torch.func`'s own."""
    return isinstance(_innermost(value), FakeTensor)


def _is_unknown(value: object) -> bool:
    inner = _innermost(value)
    return isinstance(inner, FakeTensor) and inner.constant is None


def _is_no_index(function: object, value: torch.Tensor) -> bool:
    """Whether it asks for an index, as Python does where a list is multiplied, and torch refuses that for a tensor of
    this type, whatever it holds.
    """
    if function is not torch.Tensor.__index__:
        return False
    fraction = value.dtype.is_floating_point or value.dtype.is_complex
    return fraction or any(type(size) is int and size != 1 for size in value.shape)


# ------------------------------------------------------------------------------------------------- eager code

_CLOCKS = {
    *("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime"),
    *("time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns", "clock_gettime_ns"),
    # these may be given a time; what they are given is not seen
    *("localtime", "gmtime", "ctime", "asctime", "strftime"),
}
_SYSTEM = {"urandom", "getrandom", "times"}
_NOW = {"now", "utcnow", "today"}


def run_watched(call: Callable[[], Any]) -> Any:
    """Call eager user code. Raises `PythonRandomness`, with the line, if it draws on Python's or numpy's random
    numbers, on the system's, or on a clock: a plan would freeze what they gave; `LostSideEffect` if it logs. Either
    goes before what the code raises itself.
    """
    found: list[PlanBuildError] = []

    def profile(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and not found:
            name = _drawn(function)
            if name is not None and not places.interrupts(frame):
                _note(found, name, frame)

    numpy_state = _numpy_state()
    if sys.getprofile() is not None:
        return call()  # somebody measures this program: what is drawn shows in the result then
    sys.setprofile(profile)
    try:
        result = call()
    except Exception:
        if found:
            raise found[0] from None
        raise
    finally:
        sys.setprofile(None)
    if found:
        raise found[0]
    if _numpy_state() != numpy_state:
        raise PythonRandomness("numpy.random", where=_numpy_line(call))
    return result


def _drawn(function: Any) -> str | None:
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    if isinstance(owner, random.Random):
        return None if name in ("seed", "setstate", "getstate") else f"random.{name}"
    if isinstance(owner, type) and issubclass(owner, dt.date):
        return f"{owner.__name__}.{name}" if name in _NOW else None
    module = getattr(function, "__module__", None)
    if module == "time" and name in _CLOCKS:
        return f"time.{name}"
    if module in ("posix", "nt") and name in _SYSTEM:
        return f"os.{name}"
    if module == "_uuid":
        return f"uuid.{name}"
    return None


def _note(found: list[PlanBuildError], name: str, frame: FrameType | None) -> None:
    # torch looks at the clock for its own ends; the standard library asks for whoever called it
    while frame is not None and places.is_stdlib(frame.f_code.co_filename):
        name = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}"
        frame = frame.f_back
    if frame is not None and places.is_user(frame.f_code.co_filename):
        # a log record has the time in it, and is lost
        kind: type[LostSideEffect | PythonRandomness] = (
            LostSideEffect if name.startswith("logging.") else PythonRandomness
        )
        found.append(kind(name, where=places.of_frame(frame)))


def _numpy_state() -> bytes | None:
    if "numpy" not in sys.modules:
        return None
    import numpy as np

    state: Any = np.random.get_state()  # noqa: NPY002 -- the legacy generator is the one without an owner
    return bytes(state[1]) + int(state[2]).to_bytes(4, "little")


def _numpy_line(call: Callable[[], Any]) -> SourceLine | None:
    """The line that draws from numpy's global generator: the code runs once more, line by line."""
    last: SourceLine | None = None
    found: SourceLine | None = None
    state = _numpy_state()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal last, found
        if not places.is_user(frame.f_code.co_filename):
            return None
        if found is None and _numpy_state() != state:
            found = last
        if event in ("line", "call"):
            last = places.of_frame(frame)
        return trace

    with places.line_by_line(trace):
        call()
    return found or last
