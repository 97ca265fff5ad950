"""What the agent writes into its store, gathered into batches, and the thread that brings them to the disk.

A disk may take its time: an SD card half a second for one sync. The driver never waits for it.
"""

from __future__ import annotations

import functools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from broker.protocol.messages import Failure
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import Database
from edge_agent.tensor_files import tensor_path

__all__ = ["Batch", "Written", "Writer"]

_encode = msgspec.msgpack.Encoder().encode
_encode_tuple = functools.lru_cache(maxsize=1024)(_encode)  # most shapes and tags are alike


@dataclass(slots=True)
class Batch:
    """Writes that belong together. ``durable``: the commands whose ends must be on the disk before they are
    announced.
    """

    values: dict[bytes, Held] = field(default_factory=dict)
    ended: dict[bytes, Ended] = field(default_factory=dict)
    recorded: list[bytes] = field(default_factory=list)
    dropped: dict[bytes, None] = field(default_factory=dict)
    durable: list[bytes] = field(default_factory=list)
    tags_changed: bool = False

    def __len__(self) -> int:
        return len(self.values) + len(self.ended) + len(self.recorded) + len(self.dropped)

    def write(self, database: Database) -> None:
        """Write all of it, or nothing: then raises sqlite3.Error.

        The files that the rows name are on the disk already: the worker and `StoreShelf.adopt` see to that.
        """
        now = time.time()
        with database.transaction(durable=bool(self.durable)) as connection:
            if self.values:
                self._write_values(connection, now)
            if self.ended:
                connection.executemany(
                    "INSERT OR REPLACE INTO commands (id, event, outputs, recorded, ended) VALUES (?, ?, ?, ?, ?)",
                    [(one.id, _encode(one.event), one.outputs, one.recorded, now) for one in self.ended.values()],
                )
            if self.recorded:
                connection.executemany(
                    "UPDATE commands SET recorded = 1 WHERE id = ?", [(command,) for command in self.recorded]
                )
            if self.dropped:
                ids = [(dropped,) for dropped in self.dropped]
                connection.executemany("DELETE FROM tensors WHERE id = ? AND own = 0", ids)
                connection.executemany("DELETE FROM tags WHERE id = ?", ids)
        for dropped in self.dropped:
            tensor_path(database.folder, dropped).unlink(missing_ok=True)

    def _write_values(self, connection: sqlite3.Connection, now: float) -> None:
        connection.executemany(
            "INSERT INTO tensors (id, own, dtype, shape, nbytes, frame, file, tags, description, blob, created)"
            " VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET dtype = excluded.dtype,"
            " shape = excluded.shape, nbytes = excluded.nbytes, frame = excluded.frame, file = excluded.file,"
            " tags = excluded.tags, description = excluded.description, blob = excluded.blob WHERE own = 0",
            [_row(held, now) for held in self.values.values()],
        )
        tags = [(tag, held.id) for held in self.values.values() for tag in set(held.tags)]
        if tags:
            connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)


def _row(held: Held, now: float) -> tuple[object, ...]:
    frame = held.source if isinstance(held.source, bytes) else None
    shape, tags = _encode_tuple(held.shape), _encode_tuple(held.tags)
    return held.id, held.dtype, shape, held.nbytes, frame, frame is None, tags, held.description, held.blob, now


@dataclass(frozen=True, slots=True)
class Written:
    """A batch is on the disk; or, with ``failure``, it is not."""

    batch: Batch
    failure: Failure | None = None


class Writer:
    """Writes one batch after the other on a thread and a connection of its own; ``done`` is called there."""

    def __init__(self, folder: Path, *, durable: bool, done: Callable[[Written], None]) -> None:
        self._folder = folder
        self._durable = durable
        self._done = done
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
        database = Database(self._folder, durable=self._durable)
        try:
            while (batch := self._batches.get()) is not None:
                self._done(written(batch, database))
        finally:
            database.close()


def written(batch: Batch, database: Database) -> Written:
    """Write a batch, and say what came of it."""
    try:
        batch.write(database)
    except (sqlite3.Error, OSError) as error:
        return Written(batch, Failure(code="StoreFull", message=f"the store could not be written: {error}"))
    return Written(batch)
