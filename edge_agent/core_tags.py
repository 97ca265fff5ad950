"""The device's tag index, as the broker was told it."""

from __future__ import annotations

from collections.abc import Iterable

from broker.protocol.messages import TagEntry, TagsChanged
from edge_agent.catalog import Catalog, Held

__all__ = ["TagIndex"]


class TagIndex:
    """Makes the announcements that keep the broker's index of this device right: whole once, then what has changed."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._told: dict[bytes, TagEntry] = {}

    def whole(self) -> TagsChanged:
        """All that is tagged."""
        self._told = {entry.id: entry for entry in self._catalog.tagged()}
        return TagsChanged(entries=list(self._told.values()), whole=True)

    def added(self, values: Iterable[Held]) -> TagsChanged | None:
        """These values are new; None: none of them is tagged."""
        entries = [held.entry for held in values if held.tags]
        if not entries:
            return None
        self._told.update((entry.id, entry) for entry in entries)
        return TagsChanged(entries=entries)

    def dropped(self, ids: Iterable[bytes]) -> TagsChanged | None:
        """These values are gone; None: none of them was tagged."""
        gone = [id for id in ids if self._told.pop(id, None) is not None]
        return TagsChanged(gone=gone) if gone else None

    def refresh(self) -> TagsChanged | None:
        """Somebody else has changed the store; None: nothing that is tagged."""
        now = {entry.id: entry for entry in self._catalog.tagged()}
        entries = [entry for id, entry in now.items() if self._told.get(id) != entry]
        gone = [id for id in self._told if id not in now]
        self._told = now
        return TagsChanged(entries=entries, gone=gone) if entries or gone else None
