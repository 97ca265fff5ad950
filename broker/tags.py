"""The tag index: which tensors the devices have, by tag, as they last said. It answers also for devices that sleep."""

from __future__ import annotations

from collections.abc import Iterable

from broker.protocol.messages import TagEntry

__all__ = ["TagIndex"]

_Entries = dict[bytes, TagEntry]


class TagIndex:
    """Entries by device, by tag and by id. ``limit``: how many entries one device may have."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._devices: dict[str, _Entries] = {}
        self._by_tag: dict[str, dict[str, dict[bytes, None]]] = {}  # tag, device, ids
        self._owners: dict[bytes, dict[str, None]] = {}  # id, devices: a tensor that was moved may be on two

    def count(self, device: str) -> int:
        """How many tagged tensors the device has."""
        return len(self._devices.get(device, ()))

    def entries(self, device: str) -> list[TagEntry]:
        """All of one device."""
        return list(self._devices.get(device, {}).values())

    def entry(self, device: str, id: bytes) -> TagEntry | None:
        """What the device says of ``id``."""
        return self._devices.get(device, {}).get(id)

    def owner(self, id: bytes) -> str | None:
        """A device that has the tensor ``id``."""
        owners = self._owners.get(id)
        return next(iter(owners)) if owners else None

    def change(self, device: str, entries: Iterable[TagEntry], gone: Iterable[bytes], *, whole: bool) -> int:
        """Take in what a device says, as in `TagsChanged`; how many entries found no room."""
        known = self._devices.setdefault(device, {})
        if whole:
            for each in list(known):
                self._remove(device, known, each)
        for each in gone:
            self._remove(device, known, each)
        dropped = 0
        for entry in entries:
            self._remove(device, known, entry.id)
            if len(known) >= self._limit:
                dropped += 1
                continue
            known[entry.id] = entry
            self._owners.setdefault(entry.id, {})[device] = None
            for tag in entry.tags:
                self._by_tag.setdefault(tag, {}).setdefault(device, {})[entry.id] = None
        if not known:
            del self._devices[device]
        return dropped

    def forget(self, device: str) -> None:
        """The device has nothing any more."""
        self.change(device, (), (), whole=True)

    def search(self, tags: list[str], devices: list[str] | None) -> dict[str, list[TagEntry]]:
        """The entries that carry all of ``tags``, by device: for each of ``devices``; or, with None, wherever
        there are any.
        """
        if devices is not None:
            return {device: self._matches(device, tags) for device in devices}
        if not tags:
            return {device: list(entries.values()) for device, entries in self._devices.items()}
        rarest = min((self._by_tag.get(tag, {}) for tag in tags), key=len)
        found = {device: self._matches(device, tags) for device in rarest}
        return {device: entries for device, entries in found.items() if entries}

    def _matches(self, device: str, tags: list[str]) -> list[TagEntry]:
        known = self._devices.get(device, {})
        if not tags:
            return list(known.values())
        ids = [self._by_tag.get(tag, {}).get(device, {}) for tag in tags]
        rarest = min(ids, key=len)
        return [known[each] for each in rarest if all(each in others for others in ids)]

    def _remove(self, device: str, known: _Entries, id: bytes) -> None:
        entry = known.pop(id, None)
        if entry is None:
            return
        owners = self._owners[id]
        del owners[device]
        if not owners:
            del self._owners[id]
        for tag in entry.tags:
            by_device = self._by_tag.get(tag)
            ids = None if by_device is None else by_device.get(device)
            if by_device is None or ids is None:
                continue  # a tag that the entry names twice
            ids.pop(id, None)
            if not ids:
                del by_device[device]
                if not by_device:
                    del self._by_tag[tag]
