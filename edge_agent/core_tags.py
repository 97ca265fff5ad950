"""The device's tag index, as the broker was told it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker.protocol.batches import batches
from broker.protocol.framing import HEADER_LIMIT
from broker.protocol.messages import TagEntry, TagsChanged
from edge_agent.catalog import Catalog, Held
from edge_agent.core_desk import WARNING, Desk

__all__ = ["TagIndex"]

_ROOM = HEADER_LIMIT // 4
"""How many bytes of entries there are in one announcement, unless it is a single entry. One above the limit of a header
would be refused, and everything behind it in the stream would wait for ever.
"""

_LARGEST = HEADER_LIMIT - 1024
"""The largest entry that can be announced at all."""

_encode = msgspec.msgpack.Encoder().encode


class TagIndex:
    """Makes the announcements that keep the broker's index of this device right: whole once, then what has changed."""

    def __init__(self, desk: Desk, catalog: Catalog) -> None:
        self._desk = desk
        self._catalog = catalog
        self._told: dict[bytes, TagEntry] = {}

    def whole(self) -> list[TagsChanged]:
        """All that is tagged: the first of them begins the index anew, those behind it have what found no room."""
        self._told = {entry.id: entry for entry in self._catalog.tagged()}
        first, *others = self._cut(self._told.values()) or [[]]
        return [TagsChanged(entries=first, whole=True), *(TagsChanged(entries=part) for part in others)]

    def added(self, values: Iterable[Held]) -> list[TagsChanged]:
        """These values are new; none: none of them is tagged."""
        entries = [held.entry for held in values if held.tags]
        self._told.update((entry.id, entry) for entry in entries)
        return [TagsChanged(entries=part) for part in self._cut(entries)]

    def dropped(self, ids: Iterable[bytes]) -> list[TagsChanged]:
        """These values are gone; none: none of them was tagged."""
        return _without([id for id in ids if self._told.pop(id, None) is not None])

    def refresh(self) -> list[TagsChanged]:
        """Somebody else has changed the store; none: nothing that is tagged."""
        now = {entry.id: entry for entry in self._catalog.tagged()}
        entries = [entry for id, entry in now.items() if self._told.get(id) != entry]
        gone = [id for id in self._told if id not in now]
        self._told = now
        return [*_without(gone), *(TagsChanged(entries=part) for part in self._cut(entries))]

    def _cut(self, entries: Iterable[TagEntry]) -> list[list[TagEntry]]:
        """The entries in parts, each of which has room in an announcement."""
        parts: list[list[TagEntry]] = []
        room = 0
        for entry in entries:
            size = len(_encode(entry))
            if size > _LARGEST:
                self._desk.log(WARNING, "tags_too_large", result=entry.id.hex(), bytes=size, limit=_LARGEST)
                continue
            if size > room:
                parts.append([])
                room = _ROOM
            parts[-1].append(entry)
            room -= size
        return parts


def _without(gone: list[bytes]) -> list[TagsChanged]:
    return [TagsChanged(gone=some) for some in batches(gone)]
