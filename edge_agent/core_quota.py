"""Room in the store: who goes when it is full.

Cached plans first, then values whose lease is over (a released one is gone already, unless a command uses it still);
never a leased one, never the owner's data, nothing that a command names. What does not fit then is refused
(``StoreFull``).
"""

from __future__ import annotations

from collections.abc import Callable

from broker.protocol.messages import Failure
from edge_agent.catalog import Catalog, size_of
from edge_agent.core_desk import INFO, Desk, failure

__all__ = ["Quota"]

_AT_ONCE = 256
_SPARE = 64
"""One of so many parts of the quota is freed beyond what is needed, lest every further result evicts something."""


class Quota:
    """What coordinators may use of the device. ``limit`` in bytes; 0: there is none.

    Its owner sets ``evict_plan`` (forgets the plan used least recently; how many bytes that frees, 0 if none can go),
    ``drop`` (drops values) and ``used`` (whether a command uses a value).
    """

    evict_plan: Callable[[], int]
    drop: Callable[[list[bytes]], None]
    used: Callable[[bytes], bool]

    def __init__(self, desk: Desk, catalog: Catalog, limit: int) -> None:
        self._desk = desk
        self._catalog = catalog
        self._limit = limit
        self._handled: object = None  # the event in whose handling this was freed, which the catalog knows later:
        self._freed = 0
        self._evicted: set[bytes] = set()

    def room_for(self, nbytes: int, count: int = 1) -> Failure | None:
        """Make room for ``count`` values, of ``nbytes`` in all; why there is none."""
        limit = self._limit
        if not limit:
            return None
        needed = size_of(nbytes, count)
        if self._catalog.used + needed <= limit:
            return None
        return self._make_room(needed)

    def _make_room(self, needed: int) -> Failure | None:
        if self._handled is not self._desk.instructions:
            self._handled, self._freed = self._desk.instructions, 0
            self._evicted.clear()
        used = self._catalog.used
        over = used + needed - self._limit
        while self._freed < over and (freed := self.evict_plan()):
            self._freed += freed
        if self._freed < over and needed <= self._limit:
            self._evict_values(over + self._limit // _SPARE)
        if self._freed >= over:
            return None
        free = max(0, self._limit - used + self._freed)
        said = f"expected room for {needed} bytes in the store, got {free} of {self._limit}"
        return failure("StoreFull", said, needed=needed, free=free, limit=self._limit)

    def _evict_values(self, wanted: int) -> None:
        """Drop values until so much is freed, or none is left that may go."""
        count = _AT_ONCE
        before = -1
        gone: list[bytes] = []
        while self._freed < wanted:
            found = self._catalog.evictable(count)
            if len(found) == before:
                break
            before, count = len(found), 2 * count
            for id, size in found:
                if id not in self._evicted and not self.used(id):
                    self._evicted.add(id)
                    gone.append(id)
                    self._freed += size
                    if self._freed >= wanted:
                        break
        if gone:
            self._desk.log(INFO, "values_evicted", count=len(gone))
            self.drop(gone)
