"""How long a loop may take while its plan is built, where it runs with values of ours, too."""

from __future__ import annotations

import time
from collections.abc import Callable

from coordinator.errors import LoopEndless, SourceLine

__all__ = ["Patience"]


class Patience:
    """Of one run. ``seconds`` count only after so many ``steps``: a slow step is no endless loop."""

    def __init__(self, loop: str = "torch.while_loop", *, steps: int = 10_000, seconds: float = 10.0) -> None:
        self._loop = loop
        self._steps = steps
        self._seconds = seconds
        self._taken = 0
        self._started = time.monotonic()

    def spend(self, where: Callable[[], SourceLine | None] = lambda: None) -> None:
        """Once a step. Raises `LoopEndless`, after many steps and a long time."""
        self._taken += 1
        if self._taken > self._steps and time.monotonic() - self._started > self._seconds:
            raise LoopEndless(self._loop, self._taken, where=where())
