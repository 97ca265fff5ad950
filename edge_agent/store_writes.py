"""What the agent writes into its store, gathered into batches, and the thread that brings them to the disk.

A disk may take its time: an SD card half a second for one sync. The driver never waits for it.

What a crash may take, since it was gathered and not written yet, is nothing that anybody relies on: the end of an
inline result is on record at the broker, or its command comes again; what the broker has on record is announced once
more, and dropped there; a released value stays until its lease is over; a part of a plan is fetched again. What others
rely on is `Batch.durable`, and is told of when it is on the disk.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from broker.protocol.messages import Failure
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import Database
from edge_agent.store_disk import DISK, Connection, Disk
from edge_agent.store_rows import COMMAND, SHARED, command_rows, value_runs
from edge_agent.store_statements import Statement
from edge_agent.tensor_files import tensor_path

__all__ = ["Batch", "Blob", "DirectWriter", "Writer", "Written"]

_KEEP_VALUES = Statement(
    f"INSERT INTO tensors ({SHARED}, id, frame, lease_until, sum) VALUES {{}}"  # noqa: S608 - names of columns only
    " ON CONFLICT (id) DO UPDATE SET dtype = excluded.dtype,"
    " shape = excluded.shape, nbytes = excluded.nbytes, frame = excluded.frame, file = excluded.file,"
    " tags = excluded.tags, description = excluded.description, blob = excluded.blob,"
    " created = excluded.created, lease_until = excluded.lease_until, file_sum = excluded.file_sum,"
    " sum = excluded.sum WHERE own = 0",
    own=4,
    shared=10,
)
_KEEP_COMMANDS = Statement(f"INSERT OR REPLACE INTO commands ({COMMAND}) VALUES {{}}", own=7)  # noqa: S608
_MARK_RECORDED = Statement("UPDATE commands SET recorded = 1, sum = sum | 1 WHERE id IN ({})", own=1)
_DROP_VALUES = Statement("DELETE FROM tensors WHERE id IN ({}) AND own = 0", own=1)
_DROP_TAGS = Statement("DELETE FROM tags WHERE id IN ({})", own=1)

_PRUNED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Blob:
    """A part of a plan, on its way. ``data`` None: it has its file already, whose name is still to be synced."""

    data: bytes | None
    size: int
    manifest: bool
    inline: bool
    """Whether it goes into the index."""


@dataclass(slots=True)
class Batch:
    """Writes that belong together. ``durable``: the commands whose ends must be on the disk before they are
    announced. ``until``: when the lease of a value ends, or the retention of a command, on the store's own clock.
    ``clock``: what that shows when the batch is handed over. ``records``: how many ended commands are kept at most;
    None: nothing is to be pruned.
    """

    values: dict[bytes, Held] = field(default_factory=dict)
    leases: dict[bytes, float] = field(default_factory=dict)
    ended: dict[bytes, Ended] = field(default_factory=dict)
    until: dict[bytes, float] = field(default_factory=dict)
    blobs: dict[bytes, Blob] = field(default_factory=dict)
    dropped_blobs: dict[bytes, None] = field(default_factory=dict)
    survived: list[bytes] = field(default_factory=list)  # commands that have ended after deaths of the worker
    clock: float = 0.0
    records: int | None = None
    recorded: list[bytes] = field(default_factory=list)
    dropped: dict[bytes, bool] = field(default_factory=dict)  # whether it has a file
    durable: list[bytes] = field(default_factory=list)
    tags_changed: bool = False

    def __len__(self) -> int:
        return (
            len(self.values)
            + len(self.ended)
            + len(self.recorded)
            + len(self.dropped)
            + len(self.blobs)
            + len(self.dropped_blobs)
            + (self.records is not None)
        )

    def write(self, database: Database) -> None:
        """Write all of it, or nothing: then raises sqlite3.Error.

        The files that the rows name are on the disk already: the worker and `StoreShelf.adopt` see to that.
        """
        now = time.time()
        if self.blobs:
            self._write_files(database)
        with database.transaction(durable=bool(self.durable)) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'clock'", (self.clock,))
            if self.values:
                self._write_values(connection, now)
            if self.ended:
                _KEEP_COMMANDS.run(connection, command_rows(self.ended.values(), now, self.until))
            if self.recorded:
                _MARK_RECORDED.run(connection, [(command,) for command in self.recorded])
            if self.survived:
                connection.executemany("DELETE FROM deaths WHERE id = ?", [(id,) for id in self.survived])
            if self.dropped:
                ids = [(dropped,) for dropped in self.dropped]
                _DROP_VALUES.run(connection, ids)
                _DROP_TAGS.run(connection, ids)
            if self.blobs or self.dropped_blobs:
                self._write_blobs(connection)
            if self.records is not None:
                self._prune(connection, self.records)
        remove, folder = database.disk.remove, database.folder
        for dropped, has_file in self.dropped.items():
            if has_file:
                remove(tensor_path(folder, dropped))
        for dropped in self.dropped_blobs:
            remove(folder / "blobs" / dropped.hex())

    def _write_files(self, database: Database) -> None:
        """Bring the files of parts to the disk, before there are rows that name them."""
        folder = database.folder / "blobs"
        sync = False
        for digest, blob in self.blobs.items():
            if blob.data is None:
                sync = True
            elif not blob.inline:
                database.disk.write_whole(folder / digest.hex(), [blob.data])
        if sync and database.durable:
            database.disk.sync_folder(folder)

    def _write_blobs(self, connection: Connection) -> None:
        connection.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest in self.dropped_blobs])
        connection.executemany(
            "INSERT OR IGNORE INTO blobs (digest, data, size, manifest) VALUES (?, ?, ?, ?)",
            [
                (digest, blob.data if blob.inline else None, blob.size, blob.manifest)
                for digest, blob in self.blobs.items()
            ],
        )

    def _prune(self, connection: Connection, records: int) -> None:
        """Forget commands that the broker has on record and whose retention is over, or that are too many: oldest
        first, not all at once.
        """
        connection.execute(
            "DELETE FROM commands WHERE recorded = 1 AND until <= ? AND n < (SELECT min(n) FROM commands) + ?",
            (self.clock, _PRUNED_AT_ONCE),
        )
        connection.execute(
            "DELETE FROM commands WHERE recorded = 1 AND n <= (SELECT max(n) FROM commands) - ?", (records,)
        )

    def _write_values(self, connection: Connection, now: float) -> None:
        for shared, rows in value_runs(self.values.values(), self.leases, now):
            _KEEP_VALUES.run(connection, rows, shared)
        tags = [(tag, held.id) for held in self.values.values() for tag in set(held.tags)]
        if tags:
            connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)


@dataclass(frozen=True, slots=True)
class Written:
    """A batch is on the disk; or, with ``failure``, it is not."""

    batch: Batch
    failure: Failure | None = None


class Writer:
    """Writes one batch after the other on a thread and a connection of its own; ``done`` is called there."""

    def __init__(self, folder: Path, *, durable: bool, done: Callable[[Written], None], disk: Disk = DISK) -> None:
        self._folder = folder
        self._durable = durable
        self._done = done
        self._disk = disk
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Write it, soon."""
        self._batches.put(batch)

    def close(self) -> None:
        """Write what was handed in, and end."""
        self._batches.put(None)
        self._thread.join()

    def _work(self) -> None:
        database = Database(self._folder, durable=self._durable, disk=self._disk)
        try:
            while (batch := self._batches.get()) is not None:
                self._done(written(batch, database))
        finally:
            database.close()


class DirectWriter:
    """Writes one batch after the other at once, on the caller's thread: for simulations."""

    def __init__(self, database: Database, done: Callable[[Written], None]) -> None:
        self._database = database
        self._done = done

    def write(self, batch: Batch) -> None:
        """Write it, now."""
        self._done(written(batch, self._database))

    def close(self) -> None:
        """Nothing is left."""


def written(batch: Batch, database: Database) -> Written:
    """Write a batch, and say what came of it."""
    try:
        batch.write(database)
    except (sqlite3.Error, OSError) as error:
        damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        code = "StoreDamaged" if damaged else "StoreFull"
        return Written(batch, Failure(code=code, message=f"the store could not be written: {error}"))
    return Written(batch)
