"""A ledger in memory: for the embedded broker, for tests, and for a broker whose promises need not outlive its
process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from broker.ledger.interface import (
    LEDGER_ID_BYTES,
    ChangeTags,
    DropDevice,
    DropErrand,
    DropPlan,
    DropRelease,
    DropResults,
    DropSession,
    MarkDelivered,
    MarkLost,
    MarkReleased,
    MarkReleasing,
    MarkSeen,
    RecordCommand,
    RecordDevice,
    RecordErrand,
    RecordPlan,
    RecordRelease,
    RecordSession,
    RecordTerminal,
    Snapshot,
    StoredResult,
    Write,
)
from broker.protocol.messages import ResultStatus, TagEntry

__all__ = ["MemoryLedger"]

_RELEASED = ResultStatus.RELEASED  # each look-up of an enum's member costs as much as a call


class MemoryLedger:
    """Keeps the sum of all commits. A second broker may be started over it once the first is gone.

    ``ledger_id``: the ledger's random id; ``max_past_sessions`` bounds what is kept of sessions that are gone.
    """

    waits = False

    def __init__(self, ledger_id: bytes | None = None, *, max_past_sessions: int = 100_000) -> None:
        self.id = os.urandom(LEDGER_ID_BYTES) if ledger_id is None else ledger_id
        self.epoch = 0
        self.commits = 0
        self._max_past_sessions = max_past_sessions
        self._results: dict[bytes, StoredResult] = {}
        self._ended: dict[bytes, None] = {}
        self._releases: dict[int, RecordRelease] = {}
        self._errands: dict[int, RecordErrand] = {}
        self._sessions: dict[bytes, RecordSession] = {}
        self._past_sessions: dict[bytes, int] = {}
        self._fenced: dict[bytes, str] = {}
        self._devices: dict[str, RecordDevice] = {}
        self._tags: dict[str, dict[bytes, TagEntry]] = {}
        self._plans: dict[bytes, RecordPlan] = {}
        # One entry a kind of write, so that a commit is one look-up and one call a write.
        self._apply: dict[type, Callable[..., object]] = {
            RecordCommand: self._record_command,
            MarkDelivered: self._mark_delivered,
            RecordTerminal: self._record_terminal,
            MarkSeen: self._mark_seen,
            MarkReleasing: self._mark_releasing,
            MarkReleased: self._mark_released,
            MarkLost: self._mark_lost,
            DropResults: self._drop_results,
            RecordRelease: lambda write: self._releases.__setitem__(write.seq, write),
            DropRelease: lambda write: self._releases.pop(write.seq, None),
            RecordErrand: lambda write: self._errands.__setitem__(write.seq, write),
            DropErrand: lambda write: self._errands.pop(write.seq, None),
            RecordSession: lambda write: self._sessions.__setitem__(write.incarnation, write),
            DropSession: self._drop_session,
            RecordDevice: lambda write: self._devices.__setitem__(write.device, write),
            DropDevice: self._drop_device,
            ChangeTags: self._change_tags,
            RecordPlan: lambda write: self._plans.__setitem__(write.plan, write),
            DropPlan: lambda write: self._plans.pop(write.plan, None),
        }

    def open(self) -> Snapshot:
        """See `broker.ledger.interface.Ledger`."""
        self.epoch += 1
        return Snapshot(
            ledger=self.id,
            epoch=self.epoch,
            results=list(self._results.values()),
            ended=list(self._ended),
            releases=list(self._releases.values()),
            errands=list(self._errands.values()),
            sessions=list(self._sessions.values()),
            past_sessions=dict(self._past_sessions),
            fenced=dict(self._fenced),
            devices=list(self._devices.values()),
            tags={device: list(entries.values()) for device, entries in self._tags.items() if entries},
            plans=list(self._plans.values()),
        )

    def commit(self, writes: Sequence[Write]) -> None:
        """See `broker.ledger.interface.Ledger`."""
        self.commits += 1
        apply = self._apply
        for write in writes:
            apply[type(write)](write)

    def close(self) -> None:
        """Nothing to let go of: what is kept stays, for the next broker."""

    def _record_command(self, write: RecordCommand) -> None:
        self._ended.pop(write.id, None)
        self._results[write.id] = StoredResult(command=write)

    def _mark_delivered(self, write: MarkDelivered) -> None:
        for each in write.ids:
            stored = self._results.get(each)
            if stored is not None:
                stored.deliveries += 1

    def _record_terminal(self, write: RecordTerminal) -> None:
        stored = self._results[write.id]
        stored.terminal = write
        stored.status = write.status
        command = stored.command
        if command.frames:
            stored.command = msgspec.structs.replace(command, frames=())
        self._ended[write.id] = None

    def _mark_seen(self, write: MarkSeen) -> None:
        for each in write.ids:
            stored = self._results.get(each)
            if stored is not None:
                stored.seen = write.seen
                _thin(stored)

    def _mark_releasing(self, write: MarkReleasing) -> None:
        stored = self._results.get(write.id)
        if stored is not None:
            stored.releasing |= write.outputs

    def _mark_released(self, write: MarkReleased) -> None:
        stored = self._results.get(write.id)
        if stored is not None:
            stored.released |= write.outputs
            if write.whole:
                stored.status = ResultStatus.RELEASED
                _thin(stored)

    def _mark_lost(self, write: MarkLost) -> None:
        for each in write.ids:
            stored = self._results.get(each)
            if stored is not None and stored.status is not ResultStatus.RELEASED:
                stored.status = ResultStatus.LOST

    def _drop_results(self, write: DropResults) -> None:
        for each in write.ids:
            self._results.pop(each, None)
            self._ended.pop(each, None)

    def _drop_session(self, write: DropSession) -> None:
        self._sessions.pop(write.incarnation, None)
        self._past_sessions[write.incarnation] = write.highest
        if write.fenced_by:
            self._fenced[write.incarnation] = write.fenced_by
        while len(self._past_sessions) > self._max_past_sessions:
            oldest = next(iter(self._past_sessions))
            del self._past_sessions[oldest]
            self._fenced.pop(oldest, None)

    def _drop_device(self, write: DropDevice) -> None:
        self._devices.pop(write.device, None)
        self._tags.pop(write.device, None)

    def _change_tags(self, write: ChangeTags) -> None:
        if write.whole:
            self._tags[write.device] = {}
        entries = self._tags.setdefault(write.device, {})
        for each in write.gone:
            entries.pop(each, None)
        for entry in write.entries:
            entries[entry.id] = entry


def _thin(stored: StoredResult) -> None:
    """Values that are released, and of which nobody needs to be told any more, are needed no more."""
    terminal = stored.terminal
    if terminal is not None and terminal.frames and stored.seen and stored.status is _RELEASED:
        stored.terminal = msgspec.structs.replace(terminal, frames=())
