"""The store's folder: a SQLite index with the small tensors in it, and files for the large ones.

::

    DIR/store.sqlite3    the index (WAL): tensors, tags, ended commands, parts of plans, the registration
    DIR/tensors/         tensor files, one a large tensor, named by its id
    DIR/blobs/           large parts of plans, named by their digest
    DIR/incoming/        blobs on their way in
    DIR/changed          a FIFO: whoever puts or deletes something writes a byte, and a running agent wakes up
    DIR/agent.lock       held by the running agent: a store has one at most

A row is written after the file that it names has reached the disk, so every row has its file, whenever the power goes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from broker.protocol.errors import EdgePlanError
from edge_agent.tensor_files import sync_folder

__all__ = ["Database", "StoreDamaged", "StoreError", "StoreInUse", "StoreTooNew"]

SCHEMA_VERSION = 1
_BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tensors (
    id BLOB PRIMARY KEY,
    own INTEGER NOT NULL,           -- 1: put by the device's owner; 0: a result, or sent by a coordinator
    dtype TEXT NOT NULL,
    shape BLOB NOT NULL,            -- msgpack
    nbytes INTEGER NOT NULL,
    frame BLOB,                     -- a small tensor, or
    file INTEGER NOT NULL,          -- 1: a file in tensors/
    tags BLOB NOT NULL,             -- msgpack
    description TEXT NOT NULL,
    blob BLOB,                      -- the digest of the file, where known
    created REAL NOT NULL,          -- seconds since the Unix epoch, on the device's clock
    lease_until REAL                -- likewise; NULL: until it is released
);
CREATE TABLE tags (tag TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (tag, id)) WITHOUT ROWID;
CREATE TABLE commands (
    n INTEGER PRIMARY KEY,          -- in the order in which they ended
    id BLOB NOT NULL UNIQUE,
    event BLOB NOT NULL,            -- what was announced, without its frames
    outputs INTEGER NOT NULL,
    recorded INTEGER NOT NULL,      -- whether the broker has it on record
    ended REAL NOT NULL
);
CREATE INDEX unrecorded ON commands (n) WHERE recorded = 0;
CREATE TABLE blobs (
    n INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    data BLOB,                      -- a small one; NULL: a file in blobs/
    size INTEGER NOT NULL,
    manifest INTEGER NOT NULL
);
"""


class StoreError(EdgePlanError):
    """A store cannot be used, or what was asked of it cannot be done."""


class StoreDamaged(StoreError):
    """The folder's index is no store, or is damaged."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(folder, reason)

    def __str__(self) -> str:
        return f"expected a store in {self.folder}, got something else or a damaged one: {self.reason}"


class StoreTooNew(StoreError):
    """A later version of edgeplan has written this store."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        super().__init__(folder, version)

    def __str__(self) -> str:
        return f"expected a store of version {SCHEMA_VERSION} in {self.folder}, got version {self.version}"


class StoreInUse(StoreError):
    """Another agent runs on this store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(folder)

    def __str__(self) -> str:
        return f"another agent runs on the store in {self.folder}; a store has one at most"


class Database:
    """One connection to a store's index. Threads take turns by `transaction` and `read`.

    ``durable`` False: nothing waits for the disk, as in a store that is temporary anyway. Raises `StoreDamaged`,
    `StoreTooNew`, or OSError if the folder cannot be made.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self.durable = durable
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("tensors", "blobs", "incoming"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / "changed", mode=0o600)
        path = folder / "store.sqlite3"
        fresh = not path.exists()
        self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StoreDamaged(folder, str(error)) from error
        except BaseException:
            self._connection.close()
            raise
        if fresh and durable:
            sync_folder(folder)

    def _open(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {'NORMAL' if self.durable else 'OFF'}")
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            with self.transaction(durable=True):
                (version,) = run("PRAGMA user_version").fetchone()
                if version == 0:  # nobody else was faster
                    for statement in _SCHEMA.split(";\n"):
                        run(statement)
                    run("INSERT INTO meta VALUES ('store_id', ?)", (os.urandom(8),))
                    run("INSERT INTO meta VALUES ('last_own', 0)")
                    run("INSERT INTO meta VALUES ('changes', 0)")
                    run(f"PRAGMA user_version = {SCHEMA_VERSION}")
                    version = SCHEMA_VERSION
        if version > SCHEMA_VERSION:
            raise StoreTooNew(self.folder, version)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """All that is written in it, or nothing. With ``durable`` it is on the disk when this ends.

        Raises sqlite3.Error; then nothing was written.
        """
        with self._lock:
            run = self._connection.execute
            if durable and self.durable:
                run("PRAGMA synchronous = FULL")
            try:
                run("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    run("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        run("ROLLBACK")
                    raise
            finally:
                if durable and self.durable:
                    run("PRAGMA synchronous = NORMAL")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, for reading."""
        with self._lock:
            yield self._connection

    def meta(self, key: str) -> bytes:
        """A setting of the store; empty if there is none."""
        with self.read() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row is not None else b""

    def data_version(self) -> int:
        """A number that changes whenever another connection has written."""
        with self.read() as connection:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def changes(self) -> int:
        """How often the owner has changed something; each of its transactions calls `count_change`."""
        with self.read() as connection:
            (count,) = connection.execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()
        return int(count)

    @staticmethod
    def count_change(connection: sqlite3.Connection) -> None:
        """Part of a transaction that the agent must know of: see `changes`."""
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

    def say_changed(self) -> None:
        """Wake up the agent, if one runs; else it will see when it starts."""
        try:
            descriptor = os.open(self.folder / "changed", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return  # nobody listens
        try:
            os.write(descriptor, b"!")
        except BlockingIOError:
            return  # it has not heard the last thousands yet
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
