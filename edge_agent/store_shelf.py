"""The store as the agent uses it: `edge_agent.catalog.Shelf` on disk.

Writes are gathered, and written together by a thread of their own (`edge_agent.store_writes`). What the agent asks
for is answered from the gathered writes and a cache of what was lately used, so the fast path seldom reaches SQLite.
What must survive is on the disk before it is announced, the rest a little later (an inline result is on record at the
broker anyway).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import queue
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker.protocol.ids import nth
from broker.protocol.messages import DEFAULT_DEADLINE_MS, ResultInfo, ResultReady, TagEntry
from edge_agent.catalog import Ended, Held, size_of
from edge_agent.checkpoints import names_of
from edge_agent.data_sets import DataSets
from edge_agent.store_cache import ValueCache
from edge_agent.store_database import Database, StoreInUse
from edge_agent.store_disk import DISK, Disk
from edge_agent.store_highest import HighestIds
from edge_agent.store_orphans import remove_orphans
from edge_agent.store_parts import Parts
from edge_agent.store_rows import COMMAND, VALUE, ended_of, value_columns
from edge_agent.store_writes import Batch, DirectWriter, Writer, Written, written
from edge_agent.tensor_files import read_header, sum_of_file, tensor_path
from edge_agent.tensor_format import header_of

__all__ = ["StoreShelf"]

_CHECKED_BYTES = 256 << 20
"""Up to which size of the index every row is looked at when the store is opened: about a second for 64 MiB."""

RETENTION_SECONDS = 7 * 24 * 3600.0
"""How long after its deadline a command is remembered, and its results are leased. As in the broker's settings."""

RECORDS = 1_000_000
"""How many ended commands are remembered at most. The oldest that the broker has on record are forgotten first: such
a command does not come again.
"""

_TAGGED = "id, tags, description, dtype, shape, nbytes"

_shapes = msgspec.msgpack.Decoder(tuple[int, ...])
_texts = msgspec.msgpack.Decoder(tuple[str, ...])


_boottime: Callable[[], float] = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds, also those that the device slept; wherever its wall clock stands."""


class StoreShelf:
    """A `Shelf` on the store in ``folder``. Of one thread.

    ``wake`` is called, on another thread, when a batch is over: time for `commit`. ``disk`` and ``boottime`` are the
    real ones unless a test gives others; with ``direct`` batches are written on the caller's thread.

    The store has a clock of its own: seconds that went by while an agent had it open, on CLOCK_BOOTTIME. It runs behind
    the world's, so a lease may last longer than was promised and never shorter, wherever the device's wall clock is.

    Raises `StoreInUse` if another agent has the store, and what `Database` raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        wake: Callable[[], None] | None = None,
        disk: Disk = DISK,
        boottime: Callable[[], float] = _boottime,
        direct: bool = False,
    ) -> None:
        self._database = Database(folder, durable=durable, disk=disk)
        self._disk = disk
        self._boottime = boottime
        self.folder = folder
        self._lock = (folder / "agent.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._database.close()
            raise StoreInUse(folder) from None
        try:
            self._database.check(limit=_CHECKED_BYTES)
        except BaseException:
            self._lock.close()
            self._database.close()
            raise
        self.changed = os.open(folder / "changed", os.O_RDWR | os.O_NONBLOCK)
        """A descriptor that can be read when another program has put or deleted something: see `look`."""
        self.store_id = self._database.meta("store_id")
        self._parts = Parts(self._database)
        self._sets = DataSets(self._database)
        self._sets.forget_joined()
        self._version = self._database.data_version()
        self._changes = self._database.changes()
        self._pending = Batch()
        self._writing: Batch | None = None  # on its way to the disk, by the writer
        self._written: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._due = False  # whether a commit found the writer busy
        self._ends: list[Written] = []  # of batches that are over, and that `commit` has not told of yet
        self._writer: Writer | DirectWriter
        if direct:
            self._writer = DirectWriter(self._database, self._batch_written)
        else:
            self._writer = Writer(folder, durable=durable, done=self._batch_written, disk=disk)
        self._wake = wake
        self._cache = ValueCache()
        self._highest = HighestIds(self._database)
        self._started = boottime()
        with self._database.read() as connection:
            run = connection.execute
            (clock,) = run("SELECT value FROM meta WHERE key = 'clock'").fetchone()
            (values, count) = run("SELECT coalesce(sum(nbytes), 0), count(*) FROM tensors WHERE own = 0").fetchone()
            (blobs,) = run("SELECT coalesce(sum(size), 0) FROM blobs").fetchone()
            self._deaths = {bytes(id): int(deaths) for id, deaths in run("SELECT id, deaths FROM deaths").fetchall()}
        self._clock = float(clock)
        self.used = values + count * size_of(0) + blobs
        """How many bytes the values and plans of coordinators have, about."""
        remove_orphans(self._database, disk, self.store_id)
        self.prune()

    # ------------------------------------------------------------------------------------------- questions

    def find(self, id: bytes) -> Held | None:
        """As `Catalog.find`."""
        held = self._pending.values.get(id)
        if held is not None:
            return held
        held = self._cache.get(id)
        if held is not None:
            return held
        writing = self._writing
        if id in self._pending.dropped:
            return None
        if writing is not None:
            if (held := writing.values.get(id)) is not None:
                return held
            if id in writing.dropped:
                return None
        with self._database.read() as connection, self._database.whole():
            row = connection.execute(f"SELECT {VALUE} FROM tensors WHERE id = ?", (id,)).fetchone()  # noqa: S608
            if row is None:
                return self._sets.find(id) if id[:8] == self.store_id else None
            held = self._held(row)
        self._cache.put(held)
        return held

    def ended(self, id: bytes) -> Ended | None:
        """As `Catalog.ended`."""
        waiting = self._pending.ended.get(id)
        if waiting is None and self._writing is not None:
            waiting = self._writing.ended.get(id)
        if waiting is not None:
            return waiting
        if self._highest.beyond(id):
            return None
        with self._database.read() as connection, self._database.whole():
            row = connection.execute(f"SELECT {COMMAND} FROM commands WHERE id = ?", (id,)).fetchone()  # noqa: S608
            return None if row is None else ended_of(row)

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """As `Catalog.with_tags`; at most two are returned, which is enough to know that it is not one."""
        self._settle_tags()
        marks = ", ".join("?" * len(tags))
        with self._database.read() as connection, self._database.whole():
            rows = connection.execute(
                f"SELECT {VALUE} FROM tensors WHERE id IN"  # noqa: S608 - marks and names of columns only
                f" (SELECT id FROM tags WHERE tag IN ({marks}) GROUP BY id HAVING count(*) = ?) LIMIT 2",
                (*tags, len(set(tags))),
            ).fetchall()
            found = [self._held(row) for row in rows]
        return found + self._sets_with(tags)

    def _sets_with(self, tags: Sequence[str]) -> list[Held]:
        """The columns of data sets that carry these tags, after what is too old has gone."""
        if not (columns := self._sets.with_tags(tags)) or not self._sets.expire():
            return columns
        self._version = -1  # `look` shall see it, though it was us
        return self._sets.with_tags(tags)

    def tagged(self) -> list[TagEntry]:
        """As `Catalog.tagged`."""
        self._settle_tags()
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_TAGGED} FROM tensors WHERE id IN (SELECT id FROM tags) ORDER BY rowid"  # noqa: S608
            ).fetchall()
        return [_tag_entry(row) for row in rows] + self._sets.entries()

    def unrecorded(self) -> list[Ended]:
        """As `Catalog.unrecorded`."""
        self._settle()
        with self._database.read() as connection, self._database.whole():
            rows = connection.execute(
                f"SELECT {COMMAND} FROM commands WHERE recorded = 0 ORDER BY n"  # noqa: S608
            ).fetchall()
            return [ended_of(row) for row in rows]

    def deaths(self, id: bytes) -> int:
        """As `Catalog.deaths`."""
        return self._deaths.get(id, 0) if self._deaths else 0

    def folded(self, id: bytes) -> list[bytes] | None:
        """As `Catalog.folded`."""
        return names_of(self.folder, id)

    def evictable(self, count: int) -> list[tuple[bytes, int]]:
        """As `Catalog.evictable`."""
        unrecorded: set[bytes] = set()
        gathered = [one for batch in self._batches() for one in batch.ended.values()]
        waiting = [(one.id, one.outputs) for one in gathered if not one.recorded]
        with self._database.read() as connection:
            waiting += connection.execute("SELECT id, outputs FROM commands WHERE recorded = 0").fetchall()
            for id, outputs in waiting:
                unrecorded.update(nth(id, k) for k in range(outputs))
            found: list[tuple[bytes, int]] = []
            rows = connection.execute(
                "SELECT id, nbytes FROM tensors WHERE own = 0 AND lease_until <= ? ORDER BY rowid", (self._now(),)
            )
            while len(found) < count and (row := rows.fetchone()) is not None:
                if row[0] not in unrecorded and not any(row[0] in batch.dropped for batch in self._batches()):
                    found.append((bytes(row[0]), size_of(row[1])))
        return found

    def _batches(self) -> list[Batch]:
        """What is gathered, and what is on its way."""
        return [self._pending] if self._writing is None else [self._pending, self._writing]

    def blob(self, digest: bytes) -> bytes | str | None:
        """As `Catalog.blob`. One that is not what its name says is dropped: there are more where it came from."""
        part, dropped = self._parts.find(digest, self._batches())
        if dropped:
            self.drop_blobs([digest])
        return part

    def plans(self) -> list[tuple[bytes, bytes]]:
        """As `Catalog.plans`."""
        self._settle()
        found, damaged = self._parts.manifests()
        self.drop_blobs(damaged)
        return found

    def parts(self) -> list[bytes]:
        """As `Catalog.parts`."""
        self._settle()
        return self._parts.others()

    def blob_size(self, digest: bytes) -> int:
        """As `Catalog.blob_size`."""
        return self._parts.size(digest, self._batches())

    def registration(self) -> tuple[bytes, bytes]:
        """The token and the ledger id of the last registration; empty where there was none."""
        return self._database.meta("token"), self._database.meta("ledger")

    def look(self) -> bool:
        """Whether another program has put or deleted something since the last look."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.changed, 1 << 16)
        version = self._database.data_version()
        if version == self._version:
            return False
        self._version = version
        changes = self._database.changes()
        if changes == self._changes:
            return False  # it was our own writer
        self._changes = changes
        for id in self._cache.own():
            self._cache.forget(id)
        return True

    # ------------------------------------------------------------------------------------------- writes

    def keep(
        self,
        ended: Ended | None,
        values: Sequence[Held],
        *,
        durable: bool,
        left: float = DEFAULT_DEADLINE_MS / 1000,
    ) -> None:
        """As `Shelf.keep`."""
        pending = self._pending
        until = self._now() + RETENTION_SECONDS + (left if left > 0 else 0.0)
        # An untagged inline value is part of the broker's record: what stays here of it only saves fetching it.
        event = None if ended is None else ended.event
        lent = isinstance(event, ResultReady) and event.inline
        for held in values:
            id, tags = held.id, held.tags
            pending.values[id] = held
            pending.leases[id] = 0.0 if lent and not tags else until
            self.used += size_of(held.nbytes)
            if tags:
                pending.tags_changed = True
        if ended is not None:
            id = ended.id
            pending.ended[id] = ended
            pending.until[id] = until
            if durable:
                pending.durable.append(id)
            if self._deaths and self._deaths.pop(id, None) is not None:
                pending.survived.append(id)

    def _now(self) -> float:
        """The store's own clock."""
        return self._clock + self._boottime() - self._started

    def mark_death(self, id: bytes, deaths: int) -> None:
        """As `Shelf.mark_death`."""
        self._deaths[id] = deaths
        with self._database.transaction(durable=True) as connection:
            connection.execute("INSERT OR REPLACE INTO deaths VALUES (?, ?)", (id, deaths))

    def prune(self) -> None:
        """Forget what need not be remembered any more, at the next `commit`."""
        self._pending.records = RECORDS
        if self._sets.expire():
            self._version = -1  # `look` shall see it, though it was us

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        ended = self._pending.ended
        for command in ids:
            waiting = ended.get(command)
            if waiting is None:
                self._pending.recorded.append(command)
            else:
                ended[command] = Ended(id=command, event=waiting.event, outputs=waiting.outputs, recorded=True)

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        pending = self._pending
        for value in ids:
            held = self.find(value)
            if held is None or held.own:
                continue
            pending.tags_changed = pending.tags_changed or bool(held.tags)
            self.used -= size_of(held.nbytes)
            self._cache.forget(value)
            if pending.values.pop(value, None) is None:
                pending.dropped[value] = isinstance(held.source, str)
            elif isinstance(held.source, str):
                self._disk.remove(Path(held.source))

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """As `Shelf.keep_blob`."""
        if any(digest in batch.dropped_blobs for batch in self._batches()):
            self._settle()  # else its file would be removed after it has come
        blob = self._parts.take(digest, source, manifest=manifest)
        if not self.blob_size(digest):
            self.used += blob.size
            self._pending.blobs[digest] = blob

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """As `Shelf.drop_blobs`."""
        for digest in digests:
            self.used -= self.blob_size(digest)
            self._pending.blobs.pop(digest, None)
            self._pending.dropped_blobs[digest] = None

    def save_registration(self, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        """As `Shelf.save_registration`."""
        if other:
            self._settle()
        with self._database.transaction(durable=True) as connection:
            if other:
                connection.execute("UPDATE commands SET recorded = 0, sum = sum & ~1")
            self._database.write_registration(connection, token, ledger)

    def adopt(self, id: bytes, source: bytes | str) -> Held:
        """Make the content of a tensor file the value ``id``, without writing the row yet: hand the result to `keep`.

        Another thread may call this. Raises `TensorRefused`, or OSError.
        """
        path = tensor_path(self.folder, id)
        if isinstance(source, bytes):
            found = header_of(source[: 1 << 17], len(source))
            self._disk.write_whole(path, [source])
        else:
            found = read_header(source)
            self._disk.link(Path(source), path)  # no move: the same blob may have been put under several ids at once
            if self._database.durable:
                self._disk.sync_folder(path.parent)
        check = sum_of_file(path)
        return Held(id=id, dtype=found.dtype, shape=found.shape, nbytes=found.nbytes, source=str(path), check=check)

    def drop_files(self, paths: Iterable[str]) -> None:
        """Remove files that no row names."""
        for path in paths:
            self._disk.remove(Path(path))

    # ------------------------------------------------------------------------------------------- commits

    @property
    def waiting(self) -> int:
        """How many writes are gathered, and not handed to the writer yet."""
        return len(self._pending)

    @property
    def must_commit(self) -> bool:
        """Whether `commit` has something to do that must not be put off."""
        return bool(self._pending.durable) or not self._written.empty() or bool(self._ends)

    def commit(self, *, due: bool = True) -> list[Written]:
        """Hand what is gathered to the writer, or, if it is busy, at the next commit after that; and tell what it has
        finished since the last time. ``due`` False: what may still wait is not handed over.
        """
        self._collect()
        due = due or self._due or bool(self._pending.durable)
        self._due = due and self._writing is not None
        if due and self._writing is None and len(self._pending):
            self._writing, self._pending = self._pending, Batch()
            self._writing.clock = self._now()
            self._writer.write(self._writing)
            if isinstance(self._writer, DirectWriter):
                self._collect()
        ends, self._ends = self._ends, []
        return ends

    def _batch_written(self, end: Written) -> None:
        """Called by the writer, on its thread."""
        self._written.put(end)
        if self._wake is not None:
            self._wake()

    def _collect(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._over(self._written.get_nowait())

    def _over(self, end: Written) -> None:
        """A batch is over: what it wrote may be forgotten, or must be."""
        self._writing = None
        self._ends.append(end)
        if end.failure is None:
            values, dropped = end.batch.values, self._pending.dropped
            self._cache.put(*(held for id, held in values.items() if id not in dropped))
            self._highest.see(end.batch.ended)
            return
        # What was announced without waiting stays on record at the broker; what was to be on the disk first has failed.
        for held in end.batch.values.values():
            self.used -= size_of(held.nbytes)
            if isinstance(held.source, str):
                self._disk.remove(Path(held.source))
        for digest, blob in end.batch.blobs.items():
            self.used -= blob.size
            self._disk.remove(self._parts.path(digest))

    def _settle(self) -> None:
        """Wait until all that is gathered is written: for a question that only the index can answer."""
        if self._writing is not None:
            self._over(self._written.get())
        if len(self._pending):
            batch, self._pending = self._pending, Batch()
            batch.clock = self._now()
            self._over(written(batch, self._database))

    def _settle_tags(self) -> None:
        if self._pending.tags_changed or (self._writing is not None and self._writing.tags_changed):
            self._settle()

    def _held(self, row: tuple[Any, ...]) -> Held:
        return value_columns(row, str(tensor_path(self.folder, row[0])))

    def close(self) -> None:
        """Write what is gathered, and let go of the store."""
        self._settle()
        with contextlib.suppress(sqlite3.Error), self._database.transaction(durable=False) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'clock'", (self._now(),))
        self._writer.close()
        os.close(self.changed)
        self._database.close()
        self._lock.close()


def _tag_entry(row: tuple[Any, ...]) -> TagEntry:
    id, tags, description, dtype, shape, nbytes = row
    info = ResultInfo(dtype=dtype, shape=list(_shapes.decode(shape)), nbytes=nbytes)
    return TagEntry(id=bytes(id), tags=list(_texts.decode(tags)), description=description, info=info)
