"""When commands expire: a queue and a heap of deadlines, nearly all of commands that have ended long before."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from broker.context import Context
from broker.records import Record

__all__ = ["Deadlines"]

_SWEEP_FROM = 4096


class Deadlines:
    """Calls ``expire`` for each record whose deadline comes before its end, in the order of deadlines.

    Most commands are given as much time as the one before, so that their deadlines come in order: these stand in a
    queue, and only what is due before its end in the heap.
    """

    def __init__(self, context: Context, expire: Callable[[Record], None]) -> None:
        self._context = context
        self._expire = expire
        self._queue: deque[Record] = deque()
        self._heap: list[tuple[float, int, Record]] = []
        self._over = 0  # how many of both have ended
        self._timer_at: float | None = None

    def __len__(self) -> int:
        """How many are watched, ended or not."""
        return len(self._queue) + len(self._heap)

    def add(self, record: Record) -> None:
        """Watch a record that has not ended."""
        queue, deadline = self._queue, record.deadline
        if not queue or deadline >= queue[-1].deadline:
            queue.append(record)
        else:
            heapq.heappush(self._heap, (deadline, record.seq, record))
        if self._timer_at is None or deadline < self._timer_at:
            self._arm()

    def ended(self) -> None:
        """A record that is watched has ended."""
        self._over += 1
        if self._over > _SWEEP_FROM and 2 * self._over > len(self):
            self._queue = deque(record for record in self._queue if record.unended)
            self._heap = [entry for entry in self._heap if entry[2].unended]
            heapq.heapify(self._heap)
            self._over = 0

    def _first(self) -> Record | None:
        queue, heap = self._queue, self._heap
        if heap and (not queue or heap[0] < (queue[0].deadline, queue[0].seq)):
            return heap[0][2]
        return queue[0] if queue else None

    def _arm(self) -> None:
        first = self._first()
        if first is not None and (self._timer_at is None or first.deadline < self._timer_at):
            self._timer_at = first.deadline
            self._context.at(first.deadline, self._wake)

    def _wake(self, now: float) -> None:
        if self._timer_at is not None and now >= self._timer_at:
            self._timer_at = None
        while (record := self._first()) is not None and (record.deadline <= now or not record.unended):
            if record.unended:
                self._expire(record)  # and `ended` follows, while the entry is still there
            if self._first() is record:
                if self._queue and self._queue[0] is record:
                    self._queue.popleft()
                else:
                    heapq.heappop(self._heap)
                self._over -= 1
        self._arm()
