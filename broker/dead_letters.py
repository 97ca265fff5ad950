"""Commands that were given up: a worker died of them, or they were delivered again and again without an end."""

from __future__ import annotations

from collections.abc import Mapping

from broker.protocol.messages import ResultFailed
from broker.records import Record

__all__ = ["DeadLetters"]

_CODE = "WorkerDied"
_KEPT = 10_000


class DeadLetters:
    """The last of them, for operators, for as long as ``by_id`` has their records."""

    def __init__(self, by_id: Mapping[bytes, Record]) -> None:
        self._by_id = by_id
        self._ids: dict[bytes, None] = {}

    def __len__(self) -> int:
        """How many they are, at most: some may be forgotten already."""
        return len(self._ids)

    def ended(self, record: Record) -> None:
        """A record has ended, one way or the other."""
        event = record.event
        if type(event) is ResultFailed and event.failure.code == _CODE:
            self._ids[record.id] = None
            if len(self._ids) > _KEPT:
                del self._ids[next(iter(self._ids))]

    def records(self) -> list[Record]:
        """All, the last first."""
        found = [record for each in self._ids if (record := self._by_id.get(each)) is not None]
        self._ids = {record.id: None for record in found}
        return found[::-1]
