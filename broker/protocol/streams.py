"""Numbered streams: what makes a lossy link deliver every message once and in order.

Four streams use these two classes: commands (session to broker, broker to device), announcements (device to
broker) and notifications (broker to session). The receiver takes only the next number and answers with the last
number that it took; the sender keeps what is not yet acknowledged and goes back to it after a new connection, or
when nothing was acknowledged for `Outbox.patience` seconds. This is Go-Back-N automatic repeat request
(Kurose and Ross, Computer Networking, section 3.4.3), with cumulative acknowledgements.

Both are pure: time is an argument, in seconds.
"""

from __future__ import annotations

import enum
from collections import deque
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["WINDOW", "Inbox", "Outbox", "Verdict"]

WINDOW = 1024
"""No sender has more unacknowledged messages under way."""

T = TypeVar("T")

_NEVER_HELD = float("-inf")


class Verdict(enum.Enum):
    """What a receiver should do with a numbered message."""

    NEXT = "next"
    """Take it, and acknowledge."""
    DUPLICATE = "duplicate"
    """Drop it, and acknowledge again: the sender has missed the acknowledgement."""
    GAP = "gap"
    """Drop it: an earlier one is missing, and the sender will go back to it."""


_NEXT, _DUPLICATE, _GAP = Verdict  # each look-up of an enum's member costs as much as a call


class Inbox:
    """The receiving end: takes only the next number."""

    __slots__ = ("taken",)

    def __init__(self, taken: int = 0) -> None:
        self.taken = taken

    def offer(self, n: int) -> Verdict:
        """Judge message ``n``; a `Verdict.NEXT` counts it as taken."""
        if n == self.taken + 1:
            self.taken = n
            return _NEXT
        return _DUPLICATE if n <= self.taken else _GAP


class Outbox(Generic[T]):
    """The sending end: numbers items from 1, keeps them until acknowledged, and limits how many are under way.

    ``window``: how many unacknowledged items may be under way at once. ``patience``: after how many seconds without an
    acknowledgement the sender goes back to the first unacknowledged item; doubled at each fruitless time, up to 32
    times.
    """

    def __init__(self, *, window: int = WINDOW, patience: float = 5.0, first: int = 1) -> None:
        self.window = window
        self.patience = patience
        self.items: deque[T] = deque()
        """What is not acknowledged yet, in order: for looking at, where `len` of this costs a call too many."""
        self._base = first  # the number of items[0]
        self._sent = 0  # how many of items are under way
        self._deadline: float | None = None
        self._fruitless = 0
        self._held_until = _NEVER_HELD

    def __len__(self) -> int:
        """How many items are not acknowledged yet."""
        return len(self.items)

    @property
    def acknowledged(self) -> int:
        """The last number that the receiver has taken."""
        return self._base - 1

    @property
    def last(self) -> int:
        """The last number given out."""
        return self._base + len(self.items) - 1

    def push(self, item: T) -> int:
        """Append an item; its number. Call `due` to learn what to send."""
        items = self.items
        items.append(item)
        return self._base + len(items) - 1

    def unacknowledged(self) -> list[tuple[int, T]]:
        """All items still kept, with their numbers."""
        return list(enumerate(self.items, self._base))

    def item(self, n: int) -> T | None:
        """The item of number ``n``, if it is still kept."""
        return self.items[n - self._base] if self._base <= n <= self.last else None

    def due(self, now: float) -> list[tuple[int, T]]:
        """What to send now: new items within the window, and, when patience has run out, all again from the first."""
        if now < self._held_until:
            return []
        deadline = self._deadline
        if deadline is not None and now >= deadline:
            self._sent = 0
            self._fruitless = min(self._fruitless + 1, 5)
        items, start = self.items, self._sent
        end = len(items)
        if end > self.window:
            end = self.window
        if start >= end:
            return []
        self._sent = end
        if not start or deadline is None:  # patience is with the oldest: steady traffic must not prolong it
            self._deadline = now + self.patience * (1 << self._fruitless)
        if start == end - 1:  # the common case: one new item
            return [(self._base + start, items[start])]
        return list(enumerate(islice(items, start, end), self._base + start))

    def acknowledge(self, n: int, now: float) -> list[T]:
        """The receiver has taken all up to ``n``; returns the items this frees. Numbers never given out are ignored."""
        if not self._base <= n <= self.last:
            return []
        freed = [self.items.popleft() for _ in range(n - self._base + 1)]
        self._base = n + 1
        self._sent = max(0, self._sent - len(freed))
        self._fruitless = 0
        self._deadline = now + self.patience if self._sent else None
        return freed

    def rewind(self) -> None:
        """A new connection: everything not acknowledged is due again."""
        self._sent = 0
        self._fruitless = 0
        self._deadline = None
        self._held_until = _NEVER_HELD

    def hold(self, until: float) -> None:
        """The receiver is busy: nothing is due before ``until``, then everything not acknowledged."""
        self._sent = 0
        self._deadline = None
        self._held_until = until

    def next_due(self) -> float | None:
        """When `due` may next return something by the passing of time alone; None: never."""
        if not self.items:
            return None
        if self._sent:
            return self._deadline
        return self._held_until if self._held_until != _NEVER_HELD else None
