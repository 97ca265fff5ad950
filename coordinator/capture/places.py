"""Where in the user's code something happens: the line that an error names, and that each op of a plan came from.

The user's code is what `call_user` calls, but for torch, the libraries beneath it, Python's own library and this
package: a helper module or a third-party layer counts as the user's.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from coordinator.errors import SourceLine

__all__ = [
    "call_user",
    "here",
    "interrupts",
    "is_library",
    "is_user",
    "keep_user_frame",
    "line_by_line",
    "of_exception",
    "of_frame",
    "of_stack_trace",
]


def call_user(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the user's code: frames above this one are not looked at."""
    return function(*args, **kwargs)


_BOUNDARY = call_user.__code__
_SITE = Path(torch.__file__).parent.parent
_OURS = Path(__file__).parent.parent
_LIBRARIES = tuple(f"{_SITE / name}/" for name in ("torch", "torchgen", "sympy", "mpmath", "numpy", "functorch"))
_OWN_FILES = (
    f"{_OURS / 'capture'}/",
    str(_OURS / "plan.py"),
    str(_OURS / "plan_state.py"),
    str(_OURS / "signature.py"),
    str(_OURS / "training.py"),
    f"{_OURS.parent / 'edge_agent'}/",
    f"{_OURS.parent / 'broker'}/",
)
_OUTSIDE = {"call_user", "forward", "trace"}
_STDLIB = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})


@functools.cache
def is_library(filename: str) -> bool:
    """Whether the file belongs to torch, numpy or a library beneath them."""
    return filename.startswith(_LIBRARIES)


@functools.cache
def is_stdlib(filename: str) -> bool:
    """Whether the file belongs to Python's own library, or was never a file."""
    if filename.startswith("<"):
        return not filename.startswith(("<ipython-input", "<stdin"))
    return filename.startswith(_STDLIB) and "-packages/" not in filename


@functools.cache
def is_user(filename: str) -> bool:
    """Whether the file is the user's."""
    return not (is_library(filename) or is_stdlib(filename) or filename.startswith(_OWN_FILES))


def _line(filename: str, line: int) -> SourceLine:
    return SourceLine(filename, line, linecache.getline(filename, line).strip())


def of_frame(frame: FrameType | None) -> SourceLine | None:
    """The innermost line of the user's code at or above a frame, up to `call_user`; None if there is none."""
    while frame is not None and frame.f_code is not _BOUNDARY:
        if is_user(frame.f_code.co_filename):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def interrupts(frame: FrameType | None) -> bool:
    """Whether a frame runs for a garbage collection, which may come in the middle of any line and calls back into
    programs that have nothing to do with it (`gc.callbacks`).
    """
    called_back = {
        getattr(callback, "__code__", None) or getattr(type(callback).__call__, "__code__", None)
        for callback in gc.callbacks
    }
    while frame is not None and frame.f_code is not _BOUNDARY:
        if frame.f_code in called_back:
            return True
        frame = frame.f_back
    return False


def here() -> SourceLine | None:
    """The innermost line of the user's code that is running now."""
    return of_frame(sys._getframe(1))  # noqa: SLF001 -- inspect.currentframe, without its two calls


def of_exception(error: BaseException) -> tuple[SourceLine | None, bool]:
    """The innermost line of the user's code that an exception passed through, and whether it came there through
    numpy.
    """
    found: SourceLine | None = None
    through_numpy = False
    inside = False
    tb: TracebackType | None = error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if code is _BOUNDARY:
            inside, found, through_numpy = True, None, False
        elif inside and is_user(code.co_filename):
            found, through_numpy = _line(code.co_filename, tb.tb_lineno), False
        elif inside and "/numpy/" in code.co_filename:
            through_numpy = True
        tb = tb.tb_next
    return found, through_numpy


def user_traceback(error: BaseException) -> TracebackType | None:
    """The traceback of an exception from the user's code on; None if it did not come from there."""
    tb, found = error.__traceback__, None
    while tb is not None:
        if tb.tb_frame.f_code is _BOUNDARY:
            found = tb.tb_next
        tb = tb.tb_next
    return found


def keep_user_frame(_tracer: object, stack: traceback.StackSummary) -> traceback.StackSummary:
    """The one frame of a stack that an op is remembered by. Stands in for ``TracerBase._filter_traceback_frames``,
    which keeps only frames of functions that are called ``forward``.
    """
    for frame in reversed(stack):
        if frame.filename.startswith(_OWN_FILES[0]) and frame.name in _OUTSIDE:
            break
        if is_user(frame.filename):
            return traceback.StackSummary.from_list([frame])
    return traceback.StackSummary.from_list([])


@contextlib.contextmanager
def line_by_line(trace: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """In this block ``trace`` is told of each line, as `sys.settrace` tells it, and of no line that a garbage
    collection runs (a callback, a finalizer) in the middle of another one: it comes later.
    """
    previous, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)
        if collects:
            gc.enable()


_FRAME = re.compile(r'File "(.+)", line (\d+), in ')


def of_stack_trace(text: str | None) -> SourceLine | None:
    """The line that an op's ``stack_trace`` names, as `keep_user_frame` left it."""
    found = _FRAME.match(text or "")
    if not found or not is_user(found[1]):
        return None
    return _line(found[1], int(found[2]))
