"""One thread, one seed, one virtual clock: what happens, and when.

Everything random in a simulation comes from `World.random`, and everything that happens goes through `World.at`, so a
seed replays exactly. `World.story` tells the last things that happened, for a broken promise to be understood.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

from broker.protocol.effects import Log

__all__ = ["World"]


class World:
    """The true clock, in seconds, and what is to happen."""

    def __init__(self, seed: int, *, story: int = 400) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.happened = 0
        self._story: deque[tuple[float, str, str, object]] = deque(maxlen=story)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen at ``time``; what has the same time happens in the order in which it was said."""
        self._count += 1
        heapq.heappush(self._due, (max(time, self.now), self._count, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen ``delay`` seconds from now."""
        self.at(self.now + delay, action)

    def tell(self, who: str, what: str, about: object = None) -> None:
        """Add a line to the story. ``about`` becomes text only if somebody reads it: it must not change."""
        self._story.append((self.now, who, what, about))

    @property
    def story(self) -> list[str]:
        """The last lines of the story."""
        return [f"{when:10.4f} {who:12} {what}{_text(about)}" for when, who, what, about in self._story]

    def random_bytes(self, count: int) -> bytes:
        """As ``os.urandom``, but of the seed."""
        return self.random.randbytes(count)

    def run(self, *, until: float, at_most: int, enough: Callable[[], bool] | None = None) -> None:
        """Let things happen until ``until``, or until ``enough``, which is asked about once a second.

        RuntimeError after ``at_most`` of them: something goes in circles.
        """
        due, pop = self._due, heapq.heappop
        ask_at = self.now + 1.0 if enough is not None else until + 1.0
        while due and due[0][0] <= until:
            self.now, _, action = pop(due)
            if self.now >= ask_at:
                ask_at = self.now + 1.0
                if enough is not None and enough():
                    self.at(self.now, action)
                    return
            self.happened += 1
            if self.happened > at_most:
                raise RuntimeError(f"more than {at_most} things happened by {self.now:.1f} s")
            action()
        self.now = until


def _text(about: object) -> str:
    if about is None:
        return ""
    if isinstance(about, Log):
        return " ".join([about.event, *(f"{key}={value}" for key, value in about.fields.items())])
    return repr(about)[:300]
