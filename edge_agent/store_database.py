"""The store's folder: a SQLite index with the small tensors in it, and files for the large ones.

::

    DIR/store.sqlite3    the index (WAL): tensors, tags, ended commands, parts of plans, the registration
    DIR/tensors/         tensor files, one a large tensor, named by its id
    DIR/chunks/          large appends to data sets (see `edge_agent.data_sets`)
    DIR/joined/          columns of data sets, put together for plans; made again at any time
    DIR/blobs/           large parts of plans, named by their digest
    DIR/incoming/        blobs on their way in
    DIR/changed          a FIFO: whoever puts or deletes something writes a byte, and a running agent wakes up
    DIR/seal             how many transactions have reached the disk, at least: an index that has fewer has lost some
    DIR/writing.lock     shared by those who write a file that no row names yet
    DIR/agent.lock       held by the running agent: a store has one at most

A row is written after the file that it names has reached the disk, so every row has its file, whenever the power goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from broker.protocol.errors import EdgePlanError
from edge_agent.store_disk import DISK, Connection, Disk
from edge_agent.store_rows import MIGRATIONS, SCHEMA, SCHEMA_VERSION, RowDamaged, check_rows, row_sum, sum_all

__all__ = ["Database", "StoreClosed", "StoreDamaged", "StoreError", "StoreInUse", "StoreTooNew", "ValueDamaged"]

_SEAL = struct.Struct("<4sQI")
_SEAL_MAGIC = b"seal"
_NAMED = ("store_id", "token", "ledger")
"""The settings that ``named_sum`` covers."""


class StoreError(EdgePlanError):
    """A store cannot be used, or what was asked of it cannot be done."""


class StoreDamaged(StoreError):
    """The folder's index is no store, or something in it is not what was written, or is missing.

    Nothing of such a store is served as if it were whole. ``edgeplan-agent salvage`` takes out of it what verifies.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(folder, reason)

    def __str__(self) -> str:
        return (
            f"expected a store in {self.folder}, got something else or a damaged one: {self.reason}"
            " (edgeplan-agent salvage saves what is whole of it)"
        )


class ValueDamaged(StoreDamaged):
    """The file of one value is not what was written; the rest of the store is as good as before. ``id``: 32 hex
    digits.
    """

    def __init__(self, folder: Path, id: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.id = id

    def __str__(self) -> str:
        return f"the file of {self.id} in {self.folder} is damaged: {self.reason}"


class StoreTooNew(StoreError):
    """A later version of edgeplan has written this store."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        super().__init__(folder, version)

    def __str__(self) -> str:
        return f"expected a store of version {SCHEMA_VERSION} in {self.folder}, got version {self.version}"


class StoreClosed(StoreError):
    """The store was closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(folder)

    def __str__(self) -> str:
        return f"the store in {self.folder} is closed"


class StoreInUse(StoreError):
    """Another agent runs on this store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(folder)

    def __str__(self) -> str:
        return f"another agent runs on the store in {self.folder}; a store has one at most"


class Database:
    """One connection to a store's index. Threads take turns by `transaction` and `read`.

    ``durable`` False: nothing waits for the disk, as in a store that is temporary anyway. ``disk``: where it is, if not
    on the real one. Raises `StoreDamaged`, `StoreTooNew`, or OSError if the folder cannot be made.
    """

    def __init__(self, folder: Path, *, durable: bool = True, disk: Disk = DISK) -> None:
        self.folder = folder
        self.durable = durable
        self.disk = disk
        self._lock = threading.RLock()
        self._closed = False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("tensors", "blobs", "chunks", "incoming"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / "changed", mode=0o600)
        sealed = _read_seal(folder)  # first: the index only grows beyond it
        path = folder / "store.sqlite3"
        self.fresh = not path.exists()
        if sealed and (self.fresh or not path.stat().st_size):
            raise StoreDamaged(folder, "its index is gone")
        if _is_cut(path):
            raise StoreDamaged(folder, "its index ends within a page")
        self._connection: Connection = disk.connect(path)
        try:
            with self.whole():
                self._open(sealed)
        except BaseException:
            self._connection.close()
            raise
        if self.fresh and durable:
            disk.sync_folder(folder)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What SQLite or a row's sum tells of damage becomes `StoreDamaged`. That the disk is full, or that somebody
        else is writing, does not.
        """
        try:
            yield
        except (sqlite3.DatabaseError, RowDamaged) as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise
            raise StoreDamaged(self.folder, str(error)) from error

    def _open(self, sealed: int) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {'NORMAL' if self.durable else 'OFF'}")
        run("PRAGMA cache_size = -512")
        (version,) = run("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            with self.transaction(durable=True):
                (version,) = run("PRAGMA user_version").fetchone()
                if version == 0:  # nobody else was faster
                    if sealed:
                        raise RowDamaged("its index is empty")
                    self._make()
                elif version < SCHEMA_VERSION:
                    self._migrate(version)
            version = max(version, SCHEMA_VERSION)
        if version > SCHEMA_VERSION:
            raise StoreTooNew(self.folder, version)
        (generation,) = run("SELECT value FROM meta WHERE key = 'generation'").fetchone() or (0,)
        if generation < sealed:
            raise RowDamaged(f"expected {sealed} transactions at least, got {generation}: the last ones are missing")
        if self._named_sum() != self.meta("named_sum"):
            raise RowDamaged("its id or its registration was altered")

    def _make(self) -> None:
        run = self._connection.execute
        for statement in SCHEMA.split(";\n"):
            run(statement)
        run("INSERT INTO meta VALUES ('store_id', ?)", (os.urandom(8),))
        for counter in ("last_own", "changes", "clock", "generation"):
            run("INSERT INTO meta VALUES (?, 0)", (counter,))
        self._sum_named()
        run(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self, version: int) -> None:
        run = self._connection.execute
        for before in range(version, SCHEMA_VERSION):
            for statement in MIGRATIONS[before].strip().split(";\n"):
                run(statement)
        sum_all(self._connection)
        self._sum_named()
        run(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _named_sum(self) -> bytes:
        return row_sum(tuple(self.meta(key) for key in _NAMED)).to_bytes(4, "big")

    def _sum_named(self) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('named_sum', ?)", (self._named_sum(),))

    def check(self, *, limit: int) -> None:
        """Look at every row, if the index has at most ``limit`` bytes. Raises `StoreDamaged`."""
        if self.fresh or (self.folder / "store.sqlite3").stat().st_size > limit:
            return
        with self.read() as connection, self.whole():
            check_rows(connection, self.meta("store_id"))

    @contextlib.contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Connection]:
        """All that is written in it, or nothing. With ``durable`` it is on the disk when this ends.

        Raises `StoreClosed`, and sqlite3.Error; then nothing was written.
        """
        with self.read():
            run = self._connection.execute
            durable = durable and self.durable
            if durable:
                run("PRAGMA synchronous = FULL")
            try:
                run("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    generation = self._count_generation() if durable else 0
                    run("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        run("ROLLBACK")
                    raise
            finally:
                if durable:
                    run("PRAGMA synchronous = NORMAL")
            if generation:
                _write_seal(self.folder, generation)

    def _count_generation(self) -> int:
        run = self._connection.execute
        run("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
        row = run("SELECT value FROM meta WHERE key = 'generation'").fetchone()
        return 0 if row is None else int(row[0])

    def write_registration(self, connection: Connection, token: bytes, ledger: bytes) -> None:
        """Part of a transaction: keep what the broker gave."""
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("token", token), ("ledger", ledger)])
        self._sum_named()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """The connection, for reading. Raises `StoreClosed`."""
        with self._lock:
            if self._closed:
                raise StoreClosed(self.folder)
            yield self._connection

    def meta(self, key: str) -> bytes:
        """A setting of the store; empty if there is none."""
        with self.read() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row is not None else b""

    @contextlib.contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[bool]:
        """Whoever writes a file and its row afterwards does it in here. ``alone``: when nobody else is at that; whether
        that is so.
        """
        with (self.folder / "writing.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            except BlockingIOError:
                yield False
            else:
                yield True

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

    def take_ids(self, connection: Connection, count: int) -> bytes:
        """Part of a transaction: so many new ids of the store's own, one after another; the first."""
        connection.execute("UPDATE meta SET value = value + ? WHERE key = 'last_own'", (count,))
        (last,) = connection.execute("SELECT value FROM meta WHERE key = 'last_own'").fetchone()
        return self.meta("store_id") + (int(last) - count + 1).to_bytes(8, "big")

    @staticmethod
    def count_change(connection: Connection) -> None:
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
            self._closed = True
            self._connection.close()


def _is_cut(index: Path) -> bool:
    """Whether an index ends within a page, and no log is there that would tell the rest: SQLite reads zeros behind the
    end, and where zeros were, no sum tells. See https://sqlite.org/fileformat.html#database_header for the page's size.
    """
    if any(log.exists() and log.stat().st_size for log in (Path(f"{index}-wal"), Path(f"{index}-journal"))):
        return False
    if not index.exists() or not (length := index.stat().st_size):
        return False
    with index.open("rb") as file:
        header = file.read(18)
    page = int.from_bytes(header[16:18], "big")
    return bool(length % (65536 if page == 1 else page or length))


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite means the file, not the moment: a lock or a full disk are over some time."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF not in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
    )


def _read_seal(folder: Path) -> int:
    """How many durable transactions there were at least; 0: nobody knows."""
    try:
        data = (folder / "seal").read_bytes()
    except FileNotFoundError:
        return 0
    if len(data) != _SEAL.size:
        return 0
    magic, generation, check = _SEAL.unpack(data)
    return int(generation) if magic == _SEAL_MAGIC and check == zlib.crc32(data[:-4]) else 0


def _write_seal(folder: Path, generation: int) -> None:
    """Say that so many transactions have reached the disk. Not synced: what stands there is never too much. Where it
    can't be written, on a full disk, say, it stays behind: the transaction itself is done.
    """
    data = _SEAL_MAGIC + generation.to_bytes(8, "little")
    data += zlib.crc32(data).to_bytes(4, "little")
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / "seal", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)
