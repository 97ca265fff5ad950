"""One thread, one seed, one virtual clock: what happens, and when.

Everything random in a simulation comes from `World.random`, and everything that happens goes through `World.at`, so a
seed replays exactly. `World.story` holds the last things that happened, for a broken promise to be understood.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

__all__ = ["World"]


class World:
    """The clock, in seconds, and what is to happen."""

    def __init__(self, seed: int, *, story: int = 400) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.happened = 0
        self.story: deque[str] = deque(maxlen=story)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen at ``time``; what has the same time happens in the order in which it was said."""
        self._count += 1
        heapq.heappush(self._due, (max(time, self.now), self._count, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen ``delay`` seconds from now."""
        self.at(self.now + delay, action)

    def tell(self, who: str, what: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now:10.4f} {who:12} {what}")

    def random_bytes(self, count: int) -> bytes:
        """As ``os.urandom``, but of the seed."""
        return self.random.randbytes(count)

    def run(self, *, until: float, at_most: int) -> None:
        """Let things happen until ``until``. RuntimeError after ``at_most`` of them: something goes in circles."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            self.happened += 1
            if self.happened > at_most:
                raise RuntimeError(f"more than {at_most} things happened by {self.now:.1f} s")
            action()
        self.now = until
