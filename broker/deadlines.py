"""When commands expire: a heap of deadlines, of which all but a few belong to commands that have ended long before."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from broker.context import Context
from broker.records import Record

__all__ = ["Deadlines"]

_SWEEP_FROM = 4096


class Deadlines:
    """Calls ``expire`` for each record whose deadline comes before its end."""

    def __init__(self, context: Context, expire: Callable[[Record], None]) -> None:
        self._context = context
        self._expire = expire
        self._heap: list[tuple[float, int, Record]] = []
        self._over = 0  # how many of them belong to records that have ended
        self._timer_at: float | None = None

    def add(self, record: Record) -> None:
        """Watch a record that has not ended."""
        heapq.heappush(self._heap, (record.deadline, record.seq, record))
        self._arm()

    def ended(self) -> None:
        """A record that is watched has ended."""
        self._over += 1
        if self._over > _SWEEP_FROM and 2 * self._over > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].unended]
            heapq.heapify(self._heap)
            self._over = 0

    def _arm(self) -> None:
        first = self._heap[0][0]
        if self._timer_at is None or first < self._timer_at:
            self._timer_at = first
            self._context.at(first, self._wake)

    def _wake(self, now: float) -> None:
        if self._timer_at is not None and now >= self._timer_at:
            self._timer_at = None
        while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].unended):
            record = self._heap[0][2]
            if record.unended:
                self._expire(record)  # and `ended` follows, while the entry is still there
            if self._heap and self._heap[0][2] is record:
                heapq.heappop(self._heap)
                self._over -= 1
        if self._heap:
            self._arm()
