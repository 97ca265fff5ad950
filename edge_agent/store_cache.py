"""The values that were used last, so that the fast path seldom reaches SQLite."""

from __future__ import annotations

from collections import OrderedDict

from edge_agent.catalog import Held

__all__ = ["ValueCache"]

_VALUES = 1024
_BYTES = 2 << 20
_OVERHEAD = 256


class ValueCache:
    """So many, and so many bytes of them; the one used least recently goes first."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, Held] = OrderedDict()
        self._bytes = 0

    def get(self, id: bytes) -> Held | None:
        """The value, if it is here; it is the last to go then."""
        held = self._values.get(id)
        if held is not None:
            self._values.move_to_end(id)
        return held

    def put(self, *new: Held) -> None:
        """Remember these, or what they are now. Many at once, since a batch that was written brings a thousand."""
        values, count = self._values, self._bytes
        for held in new:
            id = held.id
            if (before := values.pop(id, None)) is not None:
                count -= len(before.source) + _OVERHEAD
            values[id] = held
            count += len(held.source) + _OVERHEAD
        while len(values) > _VALUES or count > _BYTES:
            _, oldest = values.popitem(last=False)
            count -= len(oldest.source) + _OVERHEAD
        self._bytes = count

    def forget(self, id: bytes) -> None:
        """It is not what it was."""
        held = self._values.pop(id, None)
        if held is not None:
            self._bytes -= len(held.source) + _OVERHEAD

    def own(self) -> list[bytes]:
        """The ids of the owner's values among them."""
        return [held.id for held in self._values.values() if held.own]
