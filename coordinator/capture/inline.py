"""Whether a plan that is called right now is part of another one that is being built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["inlining", "while_inlining"]

_inlining: ContextVar[bool] = ContextVar("edgeplan_inlining", default=False)


def inlining() -> bool:
    """True while a plan is built: a plan called now gives its function's own result, so that it becomes part of the
    other.
    """
    return _inlining.get()


@contextlib.contextmanager
def while_inlining() -> Iterator[None]:
    """Build a plan in this block."""
    token = _inlining.set(True)
    try:
        yield
    finally:
        _inlining.reset(token)
