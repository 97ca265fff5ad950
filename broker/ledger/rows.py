"""Tables of checked rows in a SQLite file: what `broker.ledger.sqlite` keeps its records in.

A table has rows of a number, which gives their order, some bytes, and a checksum of both. What they mean, and by which
key they are found, its user knows: a `Table` holds in memory, for each key, the number of its row and its checksum.

Changes are gathered, row by row, and written with `Rows.flush`: one statement a table, for many rows at once. This
matters more than it seems: Python lets other threads run during each step of a statement, and a busy relay gives the
interpreter back only after milliseconds. (Measured with such a thread beside it: 300 rows a second with
``executemany``, 25,000 with 64 rows a statement.)
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from broker.ledger.errors import LedgerDamaged, LedgerError, LedgerTooNew, LedgerUnusable, LedgerUnwritable
from broker.ledger.witness import Witness

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "Connect", "Connection", "Rows", "Table", "connect"]

SCHEMA_VERSION = 2
"""Of the newest ledger: `MIGRATIONS` tell what each version changed."""

APPLICATION_ID = 0x65647067
"""In the header of the file, by which others than SQLite may tell what it is: ``edpg``."""

Key: TypeAlias = bytes | int | str | tuple[str, bytes]
Value: TypeAlias = bytes | int | str

_CHECKSUM_BITS = 32
_CHECKSUM_MASK = (1 << _CHECKSUM_BITS) - 1
_MOST_ROWS = 256
_SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, _MOST_ROWS]
"""Rows a statement. Fewer are filled up with the last one again, so that few statements need to be prepared."""

_AS_MADE = "CAST(data AS BLOB), CAST(checksum AS INTEGER)"
"""Any value may have any type in SQLite, and one that was altered is a text of any bytes, which nobody can decode."""

_FULL = 13
_IOERR = 10
_READONLY = 8
_PERM = 3
_BUSY = 5
_CANTOPEN = 14
_MAY_PASS = {_FULL, _IOERR, _READONLY, _PERM, _BUSY, _CANTOPEN}
"""SQLite's result codes that a commit may have for a reason that goes away again."""


class Connection(Protocol):
    """What is needed of a connection. Those of `sqlite3`, without a transaction of their own, and of apsw have it."""

    def execute(self, sql: str, parameters: Sequence[Value] = (), /) -> Iterable[tuple[Any, ...]]:
        """Run one statement; its rows. Nothing is left to do once all have been taken, if it has any."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


Connect: TypeAlias = Callable[[str], Connection]


def connect(path: str) -> Connection:
    """The connection that a broker uses: the standard library's. Any thread may use it, one at a time."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=0)


class Head(msgspec.Struct, kw_only=True, array_like=True):
    """What is said of the ledger as a whole, in a row that each commit writes."""

    ledger: bytes
    epoch: int = 0
    commits: int = 0
    totals: dict[str, tuple[int, int]] = {}
    """Of each table: how many rows, and the sum of their checksums. A row that vanished, or came back, shows."""


def _add_totals(head: Head, tables: Iterable[Table]) -> None:
    """Version 2 knows how many rows each table has: take those that are there."""
    for table in tables:
        head.totals[table.name] = table.total


MIGRATIONS: dict[int, Callable[[Head, Iterable[Table]], None]] = {1: _add_totals}
"""By version: what brings a ledger of it, all read, to the next version."""


class Table:
    """The rows of one table: where they are, and what is to be written of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.index: dict[Key, int] = {}
        """By key, in the order of the rows: the number of the row and its checksum, in one."""
        self._seed = zlib.crc32(name.encode())
        self._next = 1
        self._sum = 0
        self.pending: dict[int, tuple[bytes, int] | None] = {}
        """By number of the row: what to write, with its checksum; None: nothing any more."""

    @property
    def total(self) -> tuple[int, int]:
        """How many rows there are, and the sum of their checksums."""
        return len(self.index), self._sum

    def checksum(self, number: int, data: bytes) -> int:
        """Of a row: it covers the table, the number and the bytes."""
        return zlib.crc32(data, zlib.crc32(number.to_bytes(8, "big"), self._seed))

    def put(self, key: Key, data: bytes) -> None:
        """The row of ``key`` is ``data`` from now on; it keeps its place, if it had one."""
        entry = self.index.get(key)
        if entry is None:
            number = self._next
            self._next += 1
        else:
            number = entry >> _CHECKSUM_BITS
            self._sum -= entry & _CHECKSUM_MASK
        checksum = self.checksum(number, data)
        self._sum += checksum
        self.index[key] = number << _CHECKSUM_BITS | checksum
        self.pending[number] = (data, checksum)

    def drop(self, key: Key) -> bool:
        """There is no row of ``key`` any more; False: there was none."""
        entry = self.index.pop(key, None)
        if entry is None:
            return False
        self._sum -= entry & _CHECKSUM_MASK
        self.pending[entry >> _CHECKSUM_BITS] = None
        return True

    def adopt(self, key: Key, number: int, checksum: int) -> bool:
        """A row that was read is that of ``key``; False: so was another one."""
        if key in self.index:
            return False
        self.index[key] = number << _CHECKSUM_BITS | checksum
        self._next = number + 1
        self._sum += checksum
        return True


class Rows:
    """See the module. ``tables`` by name; all errors are those of `broker.ledger.errors`."""

    def __init__(self, path: str, tables: Sequence[str], *, connect: Connect, witness: Witness) -> None:
        self.path = path
        self.tables = {name: Table(name) for name in tables}
        self.head = Head(ledger=b"")
        self._connect = connect
        self._witness = witness
        self._connection: Connection | None = None
        self._version = SCHEMA_VERSION
        self._encode_head = msgspec.msgpack.Encoder().encode
        self._head_table = Table("head")
        self._statements: dict[tuple[str, int], str] = {}

    # ------------------------------------------------------------------------------------------ beginning and end

    def open(self, new_ledger: Callable[[], bytes], *, of_the_past: bool = False) -> None:
        """Open the file, or make it, with the id that ``new_ledger`` gives; check all of it but its rows.

        ``of_the_past``: it is known that commits are missing; call `count_anew` after the next `flush`.
        """
        seen = self._witness.open()
        try:
            self._connection = self._connect(self.path)
            self._open(seen, new_ledger, of_the_past)
        except LedgerError:
            self.close()
            raise
        except Exception as error:
            self.close()
            if not _of_sqlite(error):
                raise
            if _code(error) in _MAY_PASS:
                raise LedgerUnusable(self.path, str(error)) from None
            raise LedgerDamaged(self.path, str(error)) from None

    @property
    def is_open(self) -> bool:
        """Whether there is a file to let go of."""
        return self._connection is not None

    def _open(self, seen: int | None, new_ledger: Callable[[], bytes], of_the_past: bool) -> None:
        self._run("PRAGMA locking_mode = EXCLUSIVE")
        self._run("PRAGMA cell_size_check = ON")
        tables = {str(name) for (name,) in self._run("SELECT name FROM sqlite_schema")}
        if not tables:
            if seen and not of_the_past:
                raise LedgerDamaged(self.path, f"expected {seen} commits, got an empty file")
            application = 0
        else:
            ((application,),) = self._run("PRAGMA application_id")
        if tables and application != APPLICATION_ID:
            raise LedgerDamaged(self.path, f"expected application id {APPLICATION_ID:#x}, got {application:#x}")
        ((mode,),) = self._run("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise LedgerUnusable(self.path, f"expected a write-ahead log, got journal mode {mode}")
        self._run("PRAGMA synchronous = FULL")
        self._run("PRAGMA secure_delete = OFF")
        if not tables:
            self.head = Head(ledger=new_ledger())
            self._make()
        else:
            self._check(seen, of_the_past)
        if seen is None and not of_the_past:
            self._witness.made()

    def _make(self) -> None:
        self._run("BEGIN IMMEDIATE")
        self._run(f"PRAGMA application_id = {APPLICATION_ID}")
        self._run(
            "CREATE TABLE head (n INTEGER PRIMARY KEY, version INTEGER NOT NULL, data BLOB NOT NULL,"
            " checksum INTEGER NOT NULL)"
        )
        for name in self.tables:
            self._run(_create(name))
        self._write_head()
        self._run("COMMIT")

    def _check(self, seen: int | None, of_the_past: bool) -> None:
        complaints = [str(row[0]) for row in self._run("PRAGMA integrity_check(1)")]
        if complaints != ["ok"]:
            raise LedgerDamaged(self.path, "; ".join(complaints))
        heads = self._run(f"SELECT n, CAST(version AS INTEGER), {_AS_MADE} FROM head")  # noqa: S608
        if len(heads) != 1:
            raise LedgerDamaged(self.path, f"expected one row in table head, got {len(heads)}")
        number, version, data, checksum = heads[0]
        if type(version) is not int or type(data) is not bytes or checksum != self._head_checksum(version, data):
            raise LedgerDamaged(self.path, f"the checksum of row {number} of table head is wrong")
        if version > SCHEMA_VERSION:
            raise LedgerTooNew(self.path, version, SCHEMA_VERSION)
        if version not in {SCHEMA_VERSION, *MIGRATIONS}:
            raise LedgerDamaged(self.path, f"expected a version from 1 to {SCHEMA_VERSION}, got {version}")
        self._version = version
        self.head = msgspec.msgpack.decode(data, type=Head)
        for name in self.tables:
            found = self._run("SELECT sql FROM sqlite_schema WHERE name = ?", (name,))
            if found != [(_create(name),)]:
                raise LedgerDamaged(self.path, f"table {name} is not what it was made as")
        commits = self.head.commits
        if of_the_past:
            return
        if seen is None and commits:
            raise LedgerDamaged(self.path, f"expected a count of commits beside it, got none, for {commits} commits")
        if seen is not None and commits < seen:
            raise LedgerDamaged(self.path, f"expected {seen} commits, got {commits}: the last ones are missing")

    def read(self, table: Table) -> Iterator[tuple[int, bytes, int]]:
        """All rows of a table: number, data and checksum, which is right."""
        assert self._connection is not None
        before = 0
        try:
            for number, data, checksum in self._connection.execute(
                f"SELECT n, {_AS_MADE} FROM {table.name} ORDER BY n"  # noqa: S608  (a name of ours)
            ):
                if type(data) is not bytes or checksum != table.checksum(number, data) or number <= before:
                    raise LedgerDamaged(self.path, f"the checksum of row {number} of table {table.name} is wrong")
                before = number
                yield number, data, checksum
        except Exception as error:
            if not _of_sqlite(error):
                raise
            raise LedgerDamaged(self.path, f"table {table.name}, after row {before}: {error}") from None

    def all_read(self) -> None:
        """All rows of all tables have been read: check that none is missing, and bring an older ledger up to date.

        The next `flush` makes that durable, all or nothing.
        """
        if self._version == SCHEMA_VERSION:
            for table in self.tables.values():
                rows, total = self.head.totals.get(table.name, (0, 0))
                if len(table.index) != rows:
                    raise LedgerDamaged(
                        self.path, f"expected {rows} rows in table {table.name}, got {len(table.index)}"
                    )
                if table.total[1] != total:
                    raise LedgerDamaged(self.path, f"table {table.name} has rows that are not the latest")
        while self._version < SCHEMA_VERSION:
            MIGRATIONS[self._version](self.head, self.tables.values())
            self._version += 1

    def count_anew(self) -> None:
        """The witness counts from here on: what it knows of is missing for good."""
        self._witness.made()

    def close(self) -> None:
        """Let go of the files."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        finally:
            self._witness.close()

    # ------------------------------------------------------------------------------------------ writing

    def flush(self) -> None:
        """Commit what is to be written, all or nothing. When it cannot be, it stays to be written."""
        self.head.commits += 1
        try:
            self._run("BEGIN IMMEDIATE")
            for table in self.tables.values():
                if table.pending:
                    self._write(table)
                    self.head.totals[table.name] = table.total
            self._write_head()
            self._run("COMMIT")
        except Exception as error:
            self.head.commits -= 1
            if not _of_sqlite(error):
                raise
            self._roll_back()
            if _code(error) in _MAY_PASS:
                raise LedgerUnwritable(self.path, str(error)) from error
            raise LedgerDamaged(self.path, str(error)) from error
        self._witness.saw(self.head.commits)
        for table in self.tables.values():
            table.pending.clear()

    def _roll_back(self) -> None:
        try:
            self._run("ROLLBACK")
        except Exception as error:
            if not _of_sqlite(error):  # else it has rolled back by itself
                raise

    def _write(self, table: Table) -> None:
        puts: list[Value] = []
        drops: list[Value] = []
        for number, row in table.pending.items():
            if row is None:
                drops.append(number)
            else:
                puts += (number, row[0], row[1])
        if drops:
            self._in_bulk("DELETE FROM {} WHERE n IN ({})", table.name, "?", drops)
        if puts:
            self._in_bulk("INSERT OR REPLACE INTO {} (n, data, checksum) VALUES {}", table.name, "(?,?,?)", puts)

    def _in_bulk(self, form: str, table: str, row: str, values: list[Value]) -> None:
        width = row.count("?")
        for begin in range(0, len(values), width * _MOST_ROWS):
            part = values[begin : begin + width * _MOST_ROWS]
            count = len(part) // width
            size = next(size for size in _SIZES if size >= count)
            part += part[-width:] * (size - count)
            statement = self._statements.get((form + table, size))
            if statement is None:
                statement = self._statements[form + table, size] = form.format(table, ",".join([row] * size))
            self._run(statement, part)

    def _head_checksum(self, version: int, data: bytes) -> int:
        return self._head_table.checksum(version, data)

    def _write_head(self) -> None:
        data = self._encode_head(self.head)
        checksum = self._head_checksum(SCHEMA_VERSION, data)
        self._run("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (SCHEMA_VERSION, data, checksum))

    def _run(self, sql: str, parameters: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return list(self._connection.execute(sql, parameters))


def _create(name: str) -> str:
    return f"CREATE TABLE {name} (n INTEGER PRIMARY KEY, data BLOB NOT NULL, checksum INTEGER NOT NULL)"


def _of_sqlite(error: Exception) -> bool:
    """Whether SQLite says so, through `sqlite3` or apsw; or they did not understand what it gave them."""
    return isinstance(error, sqlite3.Error | UnicodeDecodeError) or _code(error) is not None


def _code(error: Exception) -> int | None:
    """SQLite's primary result code, from an error of `sqlite3` or of apsw; None: it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        code = getattr(error, "extendedresult", None)
    return code & 0xFF if type(code) is int else None
