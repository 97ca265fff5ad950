"""A set of integers that are mostly consecutive, kept as intervals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

__all__ = ["Intervals"]


class Intervals:
    """Closed intervals, apart from each other. Beyond ``limit`` of them the smallest numbers are given up."""

    __slots__ = ("_ends", "_limit", "_starts")

    def __init__(self, pairs: Iterable[tuple[int, int]] = (), *, limit: int = 1024) -> None:
        self._limit = limit
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, last in pairs:
            self.add(first, last)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number <= self._ends[place]

    def meets(self, first: int, last: int) -> bool:
        """Whether any from ``first`` to ``last`` is in it."""
        place = bisect_right(self._starts, last) - 1
        return place >= 0 and first <= self._ends[place]

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self._starts)

    def pairs(self) -> list[tuple[int, int]]:
        """The intervals, in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, first: int, last: int) -> None:
        """Take in all from ``first`` to ``last``."""
        starts, ends = self._starts, self._ends
        if ends and first == ends[-1] + 1:  # the common case: one more at the end
            ends[-1] = last
            return
        low = bisect_right(starts, first) - 1
        if low < 0 or ends[low] + 1 < first:
            low += 1
        high = low
        while high < len(starts) and starts[high] <= last + 1:
            first, last = min(first, starts[high]), max(last, ends[high])
            high += 1
        starts[low:high], ends[low:high] = [first], [last]
        if len(starts) > self._limit:
            del starts[0], ends[0]
