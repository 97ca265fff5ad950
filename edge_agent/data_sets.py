"""Data sets in a store: columns with rows in common, to which a device's programs append.

Each append is a *chunk*: one row of the index, with all columns, so that a crash leaves whole appends only and columns
never differ in length. A small chunk stands in the index; a large one in a file of ``chunks/``, columns one after
another, C order.

Every append, and every expiry of old rows, makes a new *version*: a window of chunks, from some row of the first one
on. Column ``k`` of it is a tensor of its own, with an id that is never another's, and the tags ``NAME`` and
``NAME#k``. It is put together when somebody asks for it; elements in C order are joined along the first dim by joining
their bytes, so that this needs no numpy.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from broker.protocol.errors import TensorRefused
from broker.protocol.ids import counter_of, nth
from broker.protocol.messages import INLINE_TENSORS_BYTES, TagEntry
from broker.protocol.tensors import MAX_DIMS, nbytes_of
from edge_agent.catalog import Held, column_tag
from edge_agent.frames import frame_of
from edge_agent.store_database import Database
from edge_agent.store_disk import Connection
from edge_agent.store_rows import CHUNK, RowDamaged, row_sum
from edge_agent.tensor_files import sum_of_file
from edge_agent.tensor_format import pack

__all__ = ["MAX_COLUMNS", "ChunkDamaged", "Column", "DataSets", "Limits", "chunk_of", "columns_in"]

MAX_COLUMNS = 256

_JOINED = 8
"""How many columns stay joined as files; a command that was given an older one may still be waiting for its turn."""

_PIECE = 1 << 20

_encode = msgspec.msgpack.Encoder().encode
_types = msgspec.msgpack.Decoder(list[tuple[str, list[int]]])

Column: TypeAlias = tuple[str, tuple[int, ...], memoryview]
"""dtype name, shape, elements."""


class Limits(Struct, frozen=True, kw_only=True):
    """How much of a data set is kept, the newest rows of it: so many rows, so many bytes in all columns, rows that were
    appended so many seconds ago, by the device's wall clock. None: no limit.
    """

    rows: int | None = None
    bytes: int | None = None
    age: float | None = None


class _Chunk(NamedTuple):
    n: int
    name: str
    id: bytes  # of the first column, when this was the last chunk; those of the others follow
    first: int  # the chunk with which the data set began then,
    skipped: int  # without so many of its rows
    total: int  # the rows that it had then
    rows: int
    columns: bytes  # the dtype and the shape of a row, for each column
    data: bytes | None
    created: float
    until: float | None  # when it is too old
    file: str | None
    file_sum: int | None

    @property
    def types(self) -> list[tuple[str, list[int]]]:
        return _types.decode(self.columns)

    def row(self) -> tuple[Any, ...]:
        """As it stands in the index, but for its number; that is not known before."""
        return (*self[1:], row_sum(self[1:]))


def chunk_of(row: tuple[Any, ...]) -> _Chunk:
    """The chunk in a row of the index. Raises `RowDamaged`."""
    if row_sum(tuple(row[1:-1])) != row[-1]:
        raise RowDamaged(f"the row of chunk {row[0]} was altered")
    return _Chunk(*row[:-1])


def columns_in(row: tuple[Any, ...], folder: Path) -> tuple[str, list[Column]]:
    """What was appended to which data set, out of the row and the file of a chunk. Raises `RowDamaged`,
    `ChunkDamaged`, OSError.
    """
    chunk = chunk_of(row)
    data = chunk.data
    if data is None:
        path = folder / "chunks" / str(chunk.file)
        data = path.read_bytes()
        if zlib.crc32(data) != chunk.file_sum:
            raise ChunkDamaged(path, chunk.file_sum)
    columns: list[Column] = []
    rest = memoryview(data)
    for dtype, shape in chunk.types:
        whole = (chunk.rows, *shape)
        size = nbytes_of(dtype, whole)
        columns.append((dtype, whole, rest[:size]))
        rest = rest[size:]
    return chunk.name, columns


class DataSets:
    """The data sets of a store. Of one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._joined: OrderedDict[bytes, Held] = OrderedDict()
        self._whole: set[str] = set()  # files that were looked at

    # ------------------------------------------------------------------------------------------- appending

    def append(self, name: str, columns: Sequence[Column], limits: Limits) -> int:
        """Add rows; how many there are now. On the disk when it returns. Raises `TensorRefused`, sqlite3.Error, or
        OSError.
        """
        rows, types = _checked(name, columns)
        now = time.time()
        pieces = [data for _, _, data in columns]
        small = sum(map(len, pieces)) <= INLINE_TENSORS_BYTES
        database = self._database
        self._fitting(name, types)
        with database.transaction(durable=False) as connection:
            first_id = database.take_ids(connection, len(columns))
        with contextlib.nullcontext() if small else database.writing():
            file, file_sum = None, None
            if not small:
                file, file_sum = first_id.hex(), 0
                for piece in pieces:
                    file_sum = zlib.crc32(piece, file_sum)
                database.disk.write_whole(self._path(file), pieces)
            with database.transaction(durable=True) as connection:
                before = self._fitting(name, types)
                connection.execute(
                    f"INSERT INTO chunks ({CHUNK[3:]}) VALUES ({', '.join('?' * 13)})",  # noqa: S608 - marks only
                    _Chunk(
                        n=0,
                        name=name,
                        id=first_id,
                        first=0,
                        skipped=0,
                        total=0,
                        rows=rows,
                        columns=_encode(types),
                        data=b"".join(pieces) if small else None,
                        created=now,
                        until=None if limits.age is None else now + limits.age,
                        file=file,
                        file_sum=file_sum,
                    ).row(),
                )
                newest = self._newest(name)
                assert newest is not None
                total, gone = self._set_window(connection, newest, before, limits, now)
                database.count_change(connection)
        self._remove(gone)
        return total

    def _fitting(self, name: str, types: list[tuple[str, list[int]]]) -> _Chunk | None:
        """The newest chunk of a data set. Raises `TensorRefused` if other columns are to follow it."""
        newest = self._newest(name)
        if newest is not None and newest.types != types:
            raise TensorRefused(f"expected columns of {_said(newest.types)}, as {name} has, got {_said(types)}")
        return newest

    def _set_window(
        self, connection: Connection, newest: _Chunk, before: _Chunk | None, limits: Limits, now: float
    ) -> tuple[int, list[str]]:
        """Say where the data set begins of which ``newest`` is the end now, ``before`` it was; what is outside goes.
        Its number of rows, and files that nobody needs.
        """
        total = newest.rows + (before.total if before is not None else 0)
        first, skipped = (newest.n, 0) if before is None else (before.first, before.skipped)
        most = total if limits.rows is None else max(1, limits.rows)
        if limits.bytes is not None:
            row_bytes = sum(nbytes_of(dtype, [1, *shape]) for dtype, shape in newest.types)
            most = min(most, max(1, limits.bytes // max(1, row_bytes)))
        (expired,) = connection.execute(
            "SELECT coalesce(max(n), 0) FROM chunks WHERE name = ? AND n < ? AND until <= ?",
            (newest.name, newest.n, now),
        ).fetchone()
        gone: list[str] = []
        rows = connection.execute(
            "SELECT n, rows, file FROM chunks WHERE name = ? AND n >= ? AND n < ? ORDER BY n",
            (newest.name, first, newest.n),
        )
        while (row := rows.fetchone()) is not None:
            n, left, file = row
            if n != first:
                first, skipped = n, 0
            if n > expired and total - (left - skipped) < most:
                break
            total -= left - skipped
            gone += [file] if file else []
        else:
            if first != newest.n:
                first, skipped = newest.n, 0
        skipped += max(0, total - most)
        total = min(total, most)
        connection.execute("DELETE FROM chunks WHERE name = ? AND n < ?", (newest.name, first))
        self._rewrite(connection, newest._replace(first=first, skipped=skipped, total=total))
        return total, gone

    def _rewrite(self, connection: Connection, chunk: _Chunk) -> None:
        connection.execute(
            "UPDATE chunks SET id = ?, first = ?, skipped = ?, total = ?, sum = ? WHERE n = ?",
            (chunk.id, chunk.first, chunk.skipped, chunk.total, chunk.row()[-1], chunk.n),
        )

    def expire(self, *, now: float | None = None) -> bool:
        """Drop what is too old; whether there was anything."""
        now = time.time() if now is None else now
        with self._database.read() as connection:
            old = connection.execute("SELECT DISTINCT name FROM chunks WHERE until <= ?", (now,)).fetchall()
        gone: list[str] = []
        for (name,) in old:
            with self._database.transaction(durable=True) as connection:
                newest = self._newest(name)
                if newest is None:
                    continue
                if newest.until is not None and newest.until <= now:
                    gone += self._files(connection, name)
                    connection.execute("DELETE FROM chunks WHERE name = ?", (name,))
                else:
                    before = newest._replace(total=newest.total - newest.rows)
                    newest = newest._replace(id=self._database.take_ids(connection, len(newest.types)))
                    _, files = self._set_window(connection, newest, before, Limits(), now)
                    gone += files
                self._database.count_change(connection)
        self._remove(gone)
        return bool(old)

    def clear(self, name: str) -> bool:
        """Remove a data set; whether there was one."""
        with self._database.transaction(durable=True) as connection:
            files = self._files(connection, name)
            was = self._newest(name) is not None
            connection.execute("DELETE FROM chunks WHERE name = ?", (name,))
            self._database.count_change(connection)
        self._remove(files)
        return was

    def _files(self, connection: Connection, name: str) -> list[str]:
        rows = connection.execute("SELECT file FROM chunks WHERE name = ? AND file IS NOT NULL", (name,)).fetchall()
        return [file for (file,) in rows]

    def _remove(self, files: Sequence[str]) -> None:
        for file in files:
            self._database.disk.remove(self._path(file))

    def _path(self, file: str) -> Path:
        return self._database.folder / "chunks" / file

    # ------------------------------------------------------------------------------------------- looking

    def columns(self) -> list[Held]:
        """Each column of the newest version of each data set, without its value (``source`` is empty)."""
        with self._database.read() as connection, self._database.whole():
            rows = connection.execute(
                f"SELECT {CHUNK} FROM chunks WHERE n IN (SELECT max(n) FROM chunks GROUP BY name) ORDER BY n"  # noqa: S608
            ).fetchall()
            newest = [chunk_of(row) for row in rows]
        return [_column(chunk, k) for chunk in newest for k in range(len(chunk.types))]

    def entries(self) -> list[TagEntry]:
        """These for the tag index."""
        return [held.entry for held in self.columns()]

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """The columns that carry all of these tags; with their values, if it is one."""
        tag = min(tags, key=len)
        newest = self._newest(tag) or self._newest(tag.rpartition("#")[0])
        if newest is None:
            return []
        found = [_column(newest, k) for k in range(len(newest.types))]
        found = [held for held in found if set(tags) <= set(held.tags)]
        if len(found) == 1 and (held := self.find(found[0].id)) is not None:
            return [held]
        return found

    def find(self, id: bytes) -> Held | None:
        """The column of this id, of whatever version, with its value, if all of that is still there."""
        if (held := self._joined.get(id)) is not None:
            return held
        with self._database.read() as connection, self._database.whole():
            found = self._version(connection, id)
            if found is None:
                return None
            held = self._joined[id] = self._join(connection, *found)
        if len(self._joined) > _JOINED:
            _, old = self._joined.popitem(last=False)
            if isinstance(old.source, str):
                self._database.disk.remove(Path(old.source))
        return held

    def value(self, id: bytes) -> tuple[Held, bytes] | None:
        """As `find`, with the elements instead of a source. Raises `ChunkDamaged`."""
        with self._database.read() as connection, self._database.whole():
            found = self._version(connection, id)
            return None if found is None else (_column(*found), b"".join(self._pieces(connection, *found)))

    def forget_joined(self) -> None:
        """Remove what an agent before has joined."""
        for path in (self._database.folder / "joined").glob("*"):
            self._database.disk.remove(path)

    def _version(self, connection: Connection, id: bytes) -> tuple[_Chunk, int] | None:
        """The last chunk of the version of which ``id`` is a column, and which one; None: not all of it is there."""
        row = connection.execute(
            f"SELECT {CHUNK} FROM chunks WHERE id <= ? ORDER BY id DESC LIMIT 1",  # noqa: S608
            (id,),
        ).fetchone()
        if row is None or bytes(row[2])[:8] != id[:8]:
            return None
        last = chunk_of(row)
        k = counter_of(id) - counter_of(last.id)
        begins = connection.execute("SELECT n FROM chunks WHERE n = ?", (last.first,)).fetchone()
        return None if begins is None or k >= len(last.types) else (last, k)

    def _newest(self, name: str) -> _Chunk | None:
        with self._database.read() as connection, self._database.whole():
            row = connection.execute(
                f"SELECT {CHUNK} FROM chunks WHERE name = ? ORDER BY n DESC LIMIT 1",  # noqa: S608
                (name,),
            ).fetchone()
            return None if row is None else chunk_of(row)

    # ------------------------------------------------------------------------------------------- putting together

    def _join(self, connection: Connection, last: _Chunk, k: int) -> Held:
        held = _column(last, k)
        pieces = self._pieces(connection, last, k)
        path = self._database.folder / "joined" / f"{held.id.hex()}.safetensors"
        check = 0
        try:
            if held.nbytes <= INLINE_TENSORS_BYTES:
                return msgspec.structs.replace(held, source=frame_of(held.dtype, held.shape, b"".join(pieces)))
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with path.open("wb") as file:  # not synced: it can be made again
                for piece in (pack(held.dtype, held.shape), *pieces):
                    check = zlib.crc32(piece, check)
                    file.write(piece)
        except ChunkDamaged as damaged:
            # Whoever opens it sees that it is not what was written, and says so to whoever asked for it.
            return msgspec.structs.replace(held, source=str(damaged.path), check=damaged.expected)
        except OSError:  # there is no room: as little is there to be opened
            path.unlink(missing_ok=True)
        return msgspec.structs.replace(held, source=str(path), check=check)

    def _pieces(self, connection: Connection, last: _Chunk, k: int) -> Iterator[bytes]:
        """The elements of a column, in order. Raises `ChunkDamaged`."""
        sizes = [nbytes_of(dtype, [1, *shape]) for dtype, shape in last.types]
        rows = connection.execute(
            f"SELECT {CHUNK} FROM chunks WHERE name = ? AND n >= ? AND n <= ? ORDER BY n",  # noqa: S608
            (last.name, last.first, last.n),
        )
        while (row := rows.fetchone()) is not None:
            chunk = chunk_of(row)
            skipped = last.skipped if chunk.n == last.first else 0
            start = chunk.rows * sum(sizes[:k]) + skipped * sizes[k]
            length = (chunk.rows - skipped) * sizes[k]
            if chunk.data is not None:
                yield chunk.data[start : start + length]
            elif chunk.file is not None:
                yield from self._read(self._path(chunk.file), chunk.file_sum, start, length)

    def _read(self, path: Path, check: int | None, start: int, length: int) -> Iterator[bytes]:
        try:
            if path.name not in self._whole:
                if sum_of_file(path) != check:
                    raise ChunkDamaged(path, check)
                self._whole.add(path.name)
            with path.open("rb") as file:
                file.seek(start)
                while length and (piece := file.read(min(_PIECE, length))):
                    length -= len(piece)
                    yield piece
        except OSError:
            raise ChunkDamaged(path, check) from None
        if length:
            raise ChunkDamaged(path, check)


class ChunkDamaged(Exception):
    """The file of a chunk is not what was written."""

    def __init__(self, path: Path, expected: int | None) -> None:
        self.path = path
        self.expected = expected
        super().__init__(f"the file {path.name} of an append was altered")


def _column(last: _Chunk, k: int) -> Held:
    dtype, row = last.types[k]
    shape = (last.total, *row)
    return Held(
        id=nth(last.id, k),
        dtype=dtype,
        shape=shape,
        nbytes=nbytes_of(dtype, list(shape)),
        source=b"",
        tags=(last.name, column_tag(last.name, k)),
        own=True,
    )


def _checked(name: str, columns: Sequence[Column]) -> tuple[int, list[tuple[str, list[int]]]]:
    """The number of rows, and the type of a row of each column. Raises `TensorRefused`."""
    if not 0 < len(columns) <= MAX_COLUMNS:
        raise TensorRefused(f"expected 1 to {MAX_COLUMNS} columns for {name}, got {len(columns)}")
    for dtype, shape, data in columns:
        if not 0 < len(shape) <= MAX_DIMS or len(data) != nbytes_of(dtype, list(shape)):
            raise TensorRefused(f"expected rows for {name}, got {dtype}{list(shape)}")
    counts = {shape[0] for _, shape, _ in columns}
    if len(counts) != 1 or not min(counts):
        said = " and ".join(str(shape[0]) for _, shape, _ in columns)
        raise TensorRefused(f"expected columns with the same number of rows, one at least, got {said}")
    return counts.pop(), [(dtype, list(shape[1:])) for dtype, shape, _ in columns]


def _said(types: Sequence[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{dtype}{shape}" for dtype, shape in types)
