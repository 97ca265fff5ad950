"""The ledger in a SQLite file: what a broker keeps its promises by, over crashes and power cuts.

`SqliteLedger` gives the same `Snapshot` as `broker.ledger.memory.MemoryLedger` does after the same commits. Each commit
is one transaction in the write-ahead log, synced before it returns (`broker.ledger.rows`); each row has a checksum, and
a ledger that has lost its end is told by its `broker.ledger.witness`.

======================= ======================= ===================================================
table                   a row for each          is
======================= ======================= ===================================================
commands                result id               `RecordCommand`, small frames included
payloads                ... with large frames   the id and those frames, until it ends
states                  ... that needs one      deliveries, seen, released, lost
endings                 ... that has ended      `RecordTerminal`, small values included
contents                ... with large values   the id and those values, until released and seen
releases, errands       seq                     `RecordRelease`, `RecordErrand`
sessions                incarnation             `RecordSession`
past_sessions           incarnation             the incarnation, its highest counter, who fenced it
devices, plans          name, digest            `RecordDevice`, `RecordPlan`
tags                    device and id           the device and `TagEntry`
======================= ======================= ===================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from broker.ledger.errors import LedgerDamaged
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
from broker.ledger.rows import Connect, Key, Rows, Table, connect
from broker.ledger.witness import FileWitness, Witness
from broker.protocol.messages import ResultStatus, TagEntry

__all__ = ["SMALL_FRAMES_BYTES", "SqliteLedger"]

SMALL_FRAMES_BYTES = 4096
"""Frames of so many bytes in all are kept in the row that they belong to, until it goes; larger ones in rows of their
own, until nobody needs them."""

T = TypeVar("T")


class _State(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """What has become of a command besides its end. The bit masks are bytes, big-endian: they have any length."""

    id: bytes
    deliveries: int = 0
    seen: bool = False
    releasing: bytes = b""
    released: bytes = b""
    status: ResultStatus | None = None
    """Where it is not that of the end."""


class SqliteLedger:
    """A `broker.ledger.interface.Ledger` in the file ``path``.

    ``connect``: how to open the file, for tests. ``witness``: by default a file beside it, which is the lock, too.
    ``random_bytes``: for the id of a new ledger. `open` raises the errors of `broker.ledger.errors`.
    """

    waits = True

    def __init__(
        self,
        path: Path | str,
        *,
        connect: Connect = connect,
        witness: Witness | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        max_past_sessions: int = 100_000,
    ) -> None:
        self.path = str(path)
        self._connect = connect
        self._witness = FileWitness(Path(f"{path}-witness"), self.path) if witness is None else witness
        self._random_bytes = random_bytes
        self._max_past_sessions = max_past_sessions
        self._rows: Rows
        self._reset()
        self._encode = msgspec.msgpack.Encoder().encode
        self._apply: dict[type, Callable[[Any], object]] = {
            RecordCommand: self._record_command,
            MarkDelivered: self._mark_delivered,
            RecordTerminal: self._record_terminal,
            MarkSeen: self._mark_seen,
            MarkReleasing: self._mark_releasing,
            MarkReleased: self._mark_released,
            MarkLost: self._mark_lost,
            DropResults: self._drop_results,
            RecordRelease: lambda write: self._releases.put(write.seq, self._encode(write)),
            DropRelease: lambda write: self._releases.drop(write.seq),
            RecordErrand: lambda write: self._errands.put(write.seq, self._encode(write)),
            DropErrand: lambda write: self._errands.drop(write.seq),
            RecordSession: lambda write: self._sessions.put(write.incarnation, self._encode(write)),
            DropSession: self._drop_session,
            RecordDevice: lambda write: self._devices.put(write.device, self._encode(write)),
            DropDevice: self._drop_device,
            ChangeTags: self._change_tags,
            RecordPlan: lambda write: self._plans.put(write.plan, self._encode(write)),
            DropPlan: lambda write: self._plans.drop(write.plan),
        }

    def _reset(self) -> None:
        names = (
            "commands",
            "payloads",
            "states",
            "endings",
            "contents",
            "releases",
            "errands",
            "sessions",
            "past_sessions",
            "devices",
            "tags",
            "plans",
        )
        self._rows = Rows(self.path, names, connect=self._connect, witness=self._witness)
        tables = self._rows.tables
        self._commands = tables["commands"]
        self._payloads = tables["payloads"]
        self._state_rows = tables["states"]
        self._endings = tables["endings"]
        self._contents = tables["contents"]
        self._releases = tables["releases"]
        self._errands = tables["errands"]
        self._sessions = tables["sessions"]
        self._past_sessions = tables["past_sessions"]
        self._devices = tables["devices"]
        self._tags = tables["tags"]
        self._plans = tables["plans"]
        self._states: dict[bytes, _State] = {}
        self._changed: dict[bytes, _State] = {}
        self._tags_of: dict[str, dict[bytes, None]] = {}
        self._fenced: dict[bytes, str] = {}

    # ------------------------------------------------------------------------------------------ the interface

    def reserve(self) -> None:
        """Lock the ledger, with all that is kept beside it; `open` does, too. Raises the errors of `open`."""
        self._witness.open()

    def open(self) -> Snapshot:
        """See `broker.ledger.interface.Ledger`. Reads and checks all of it."""
        return self._open()

    def _open(self, *, renewed: bool = False) -> Snapshot:
        if self._rows.is_open:
            self.close()
        self._reset()
        rows = self._rows
        rows.open(lambda: self._random_bytes(LEDGER_ID_BYTES), of_the_past=renewed)
        try:
            snapshot = self._load()
            rows.all_read()
            rows.head.epoch = snapshot.epoch
            if renewed:
                self._renew(snapshot)
            rows.flush()
            if renewed:
                rows.count_anew()  # not before: until it has its new id, it must not pass for a ledger that is whole
        except BaseException:
            self.close()
            raise
        return snapshot

    def renew(self) -> bytes:
        """Make a ledger of the past, a backup that was put back, one that may be served: its new id.

        What was accepted or ended after the backup is not in it. By the new id its peers learn that they have to say
        again what they know: devices announce what they have, and present themselves as for the first time; sessions
        begin anew, and send again what has not ended. All of that is one commit. Close it afterwards.
        """
        self._open(renewed=True)
        return self._rows.head.ledger

    def _renew(self, snapshot: Snapshot) -> None:
        self._rows.head.ledger = self._random_bytes(LEDGER_ID_BYTES)
        for session in snapshot.sessions:
            self._sessions.drop(session.incarnation)
        for device in snapshot.devices:
            self._apply[RecordDevice](msgspec.structs.replace(device, confirmed=b"", issued=b""))

    def commit(self, writes: Sequence[Write]) -> None:
        """See `broker.ledger.interface.Ledger`."""
        apply = self._apply
        for write in writes:
            apply[type(write)](write)
        changed = self._changed
        if changed:
            put, encode = self._state_rows.put, self._encode
            for id, state in changed.items():
                put(id, encode(state))
            changed.clear()
        self._rows.flush()

    def close(self) -> None:
        """See `broker.ledger.interface.Ledger`."""
        self._rows.close()

    # ------------------------------------------------------------------------------------------ commands and ends

    def _record_command(self, write: RecordCommand) -> None:
        id = write.id
        if id in self._commands.index:
            self._forget(id)
        if write.frames and sum(map(len, write.frames)) > SMALL_FRAMES_BYTES:
            self._payloads.put(id, self._encode((id, write.frames)))
            write = msgspec.structs.replace(write, frames=())
        self._commands.put(id, self._encode(write))

    def _state(self, id: bytes) -> _State:
        """The state of a command, to be changed, and then written."""
        state = self._states.get(id)
        if state is None:
            state = self._states[id] = _State(id=id)
        self._changed[id] = state
        return state

    def _mark_delivered(self, write: MarkDelivered) -> None:
        known = self._commands.index
        for id in write.ids:
            if id in known:
                self._state(id).deliveries += 1

    def _record_terminal(self, write: RecordTerminal) -> None:
        id = write.id
        if id not in self._commands.index:
            raise KeyError(id)
        self._payloads.drop(id)
        self._contents.drop(id)
        state = self._states.get(id)
        if state is not None and state.status is not None:
            self._state(id).status = None
        if write.frames and sum(map(len, write.frames)) > SMALL_FRAMES_BYTES:
            self._contents.put(id, self._encode((id, write.frames)))
            write = msgspec.structs.replace(write, frames=())
        self._endings.put(id, self._encode(write))

    def _mark_seen(self, write: MarkSeen) -> None:
        known = self._commands.index
        for id in write.ids:
            if id in known:
                state = self._state(id)
                state.seen = write.seen
                if write.seen and state.status is ResultStatus.RELEASED:
                    self._contents.drop(id)

    def _mark_releasing(self, write: MarkReleasing) -> None:
        if write.id in self._commands.index:
            state = self._state(write.id)
            state.releasing = _mask(state.releasing, write.outputs)

    def _mark_released(self, write: MarkReleased) -> None:
        if write.id in self._commands.index:
            state = self._state(write.id)
            state.released = _mask(state.released, write.outputs)
            if write.whole:
                state.status = ResultStatus.RELEASED
                if state.seen:
                    self._contents.drop(write.id)

    def _mark_lost(self, write: MarkLost) -> None:
        known = self._commands.index
        for id in write.ids:
            if id in known:
                state = self._state(id)
                if state.status is not ResultStatus.RELEASED:
                    state.status = ResultStatus.LOST

    def _drop_results(self, write: DropResults) -> None:
        for id in write.ids:
            if self._commands.drop(id):
                self._forget(id)

    def _forget(self, id: bytes) -> None:
        """All but the command itself."""
        self._payloads.drop(id)
        self._endings.drop(id)
        self._contents.drop(id)
        self._changed.pop(id, None)
        if self._states.pop(id, None) is not None:
            self._state_rows.drop(id)

    # ------------------------------------------------------------------------------------------ the others

    def _drop_session(self, write: DropSession) -> None:
        self._sessions.drop(write.incarnation)
        past = self._past_sessions
        if write.fenced_by:
            self._fenced[write.incarnation] = write.fenced_by
        fenced_by = self._fenced.get(write.incarnation, "")
        past.put(write.incarnation, self._encode((write.incarnation, write.highest, fenced_by)))
        while len(past.index) > self._max_past_sessions:
            oldest = next(iter(past.index))
            past.drop(oldest)
            assert isinstance(oldest, bytes)
            self._fenced.pop(oldest, None)

    def _drop_device(self, write: DropDevice) -> None:
        self._devices.drop(write.device)
        self._drop_tags(write.device)

    def _drop_tags(self, device: str) -> None:
        for id in self._tags_of.pop(device, ()):
            self._tags.drop((device, id))

    def _change_tags(self, write: ChangeTags) -> None:
        device = write.device
        if write.whole:
            self._drop_tags(device)
        known = self._tags_of.setdefault(device, {})
        for id in write.gone:
            if id in known:
                del known[id]
                self._tags.drop((device, id))
        for entry in write.entries:
            known[entry.id] = None
            self._tags.put((device, entry.id), self._encode((device, entry)))

    # ------------------------------------------------------------------------------------------ reading

    def _load(self) -> Snapshot:
        results: dict[bytes, StoredResult] = {}
        for command in self._read(self._commands, RecordCommand, lambda each: each.id):
            results[command.id] = StoredResult(command=command)
        for id, frames in self._read(self._payloads, tuple[bytes, tuple[bytes, ...]], lambda each: each[0]):
            stored = self._of(results, self._payloads, id)
            stored.command = msgspec.structs.replace(stored.command, frames=frames)
        ended = []
        for ending in self._read(self._endings, RecordTerminal, lambda each: each.id):
            stored = self._of(results, self._endings, ending.id)
            stored.terminal = ending
            stored.status = ending.status
            if stored.command.frames:
                stored.command = msgspec.structs.replace(stored.command, frames=())
            ended.append(ending.id)
        for id, frames in self._read(self._contents, tuple[bytes, tuple[bytes, ...]], lambda each: each[0]):
            stored = self._of(results, self._contents, id)
            if stored.terminal is None:
                raise LedgerDamaged(self.path, f"table contents has a row for {id.hex()}, which has not ended")
            stored.terminal = msgspec.structs.replace(stored.terminal, frames=frames)
        for state in self._read(self._state_rows, _State, lambda each: each.id):
            stored = self._of(results, self._state_rows, state.id)
            self._states[state.id] = state
            stored.deliveries = state.deliveries
            stored.seen = state.seen
            stored.releasing = int.from_bytes(state.releasing, "big")
            stored.released = int.from_bytes(state.released, "big")
            if state.status is not None:
                stored.status = state.status
                if stored.terminal is not None and stored.seen and state.status is ResultStatus.RELEASED:
                    stored.terminal = msgspec.structs.replace(stored.terminal, frames=())
        tags: dict[str, list[TagEntry]] = {}
        for device, entry in self._read(self._tags, tuple[str, TagEntry], lambda each: (each[0], each[1].id)):
            tags.setdefault(device, []).append(entry)
            self._tags_of.setdefault(device, {})[entry.id] = None
        past_sessions: dict[bytes, int] = {}
        for incarnation, highest, name in self._read(self._past_sessions, tuple[bytes, int, str], lambda each: each[0]):
            past_sessions[incarnation] = highest
            if name:
                self._fenced[incarnation] = name
        return Snapshot(
            ledger=self._rows.head.ledger,
            epoch=self._rows.head.epoch + 1,
            results=list(results.values()),
            ended=ended,
            releases=list(self._read(self._releases, RecordRelease, lambda each: each.seq)),
            errands=list(self._read(self._errands, RecordErrand, lambda each: each.seq)),
            sessions=list(self._read(self._sessions, RecordSession, lambda each: each.incarnation)),
            past_sessions=past_sessions,
            fenced=dict(self._fenced),
            devices=list(self._read(self._devices, RecordDevice, lambda each: each.device)),
            tags=tags,
            plans=list(self._read(self._plans, RecordPlan, lambda each: each.plan)),
        )

    def _read(self, table: Table, kind: type[T], key: Callable[[T], Key]) -> Iterator[T]:
        decode = msgspec.msgpack.Decoder(kind).decode
        for number, data, checksum in self._rows.read(table):
            try:
                row = decode(data)
            except msgspec.DecodeError as error:
                raise LedgerDamaged(self.path, f"row {number} of table {table.name}: {error}") from None
            if not table.adopt(key(row), number, checksum):
                raise LedgerDamaged(self.path, f"row {number} of table {table.name} is there twice")
            yield row

    def _of(self, results: dict[bytes, StoredResult], table: Table, id: bytes) -> StoredResult:
        stored = results.get(id)
        if stored is None:
            raise LedgerDamaged(self.path, f"table {table.name} has a row for {id.hex()}, which is not in commands")
        return stored


def _mask(before: bytes, outputs: int) -> bytes:
    """A bit mask with more bits."""
    mask = int.from_bytes(before, "big") | outputs
    return mask.to_bytes((mask.bit_length() + 7) // 8, "big")
