"""How much work a hostile plan may make."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["within"]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done here takes the thread so long on a core at most: many times what is usual, however busy the machine
    is with other things, and far less than what nobody bounds.
    """
    started = time.thread_time()
    yield
    spent = time.thread_time() - started
    assert spent < seconds, f"{spent:.1f} s on a core, where {seconds:g} are allowed"
