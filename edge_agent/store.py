"""A device's store, for the device's own programs: put tensors in, tag them, take them out again. Also while the
agent runs.

::

    from edge_agent import Store
    store = Store.open("/var/lib/edgeplan/store")
    store.put(reading, tags=["input_data"], description="two readings")

What is put here stays until its owner deletes it. Needs numpy to put and get, and no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.framing import is_text
from broker.protocol.ids import parse_result_id
from broker.protocol.messages import INLINE_TENSORS_BYTES
from broker.protocol.tensors import DTYPES, MAX_DIMS, nbytes_of
from edge_agent.catalog import Held, column_tag
from edge_agent.data_sets import MAX_COLUMNS, ChunkDamaged, Column, DataSets, Limits
from edge_agent.frames import frame_of
from edge_agent.store_database import (
    Database,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreInUse,
    StoreTooNew,
    ValueDamaged,
)
from edge_agent.store_disk import DISK, Disk
from edge_agent.store_rows import VALUE, value_columns, value_row
from edge_agent.tensor_files import FileAltered, map_tensor, tensor_path
from edge_agent.tensor_format import pack

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Entry",
    "NoSuchTensor",
    "NotTheOwner",
    "Store",
    "StoreClosed",
    "StoreDamaged",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "ValueDamaged",
]

_MAX_TAG = 256
_CHECKED_BYTES = 4 << 20
"""Up to which size of the index every row is looked at when it is opened; in a larger one, each that is read."""

_encode = msgspec.msgpack.Encoder().encode
_NAMES = {type_string: name for name, (type_string, _) in DTYPES.items() if name != "bfloat16"}


class NoSuchTensor(StoreError, KeyError):
    """No tensor in the store has this id."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(id)

    def __str__(self) -> str:
        return f"no tensor in this store has the id {self.id}"


class NotTheOwner(StoreError):
    """The tensor is a result, or was sent by a coordinator: that one releases it."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(id)

    def __str__(self) -> str:
        return f"{self.id} was not put here by the device's owner; the coordinator it belongs to releases it"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the store, without its value. ``id``: 32 hex digits. ``own``: put by the device's owner."""

    id: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    tags: tuple[str, ...]
    description: str
    own: bool


class Store:
    """The tensors of one device. Make one with `open` (or `temporary`). Any thread may call, and any number of
    processes. Once it is closed, everything raises `StoreClosed`.
    """

    def __init__(self, database: Database, *, temporary: bool = False) -> None:
        self._database = database
        self._temporary = temporary
        self._sets = DataSets(database)
        self.id = database.meta("store_id")
        """The store's random id: 8 bytes, with which the ids of all its own tensors begin."""

    def __repr__(self) -> str:
        return f"<Store {self.id.hex()} in {self.folder}>"

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, disk: Disk = DISK) -> Store:
        """The store in ``folder``, which is made if it is not there. ``disk``: where it is, if not on the real one.

        Raises `StoreDamaged`, `StoreTooNew`, or OSError.
        """
        database = Database(Path(folder).absolute(), disk=disk)
        try:
            database.check(limit=_CHECKED_BYTES)
        except BaseException:
            database.close()
            raise
        return cls(database)

    @classmethod
    def temporary(cls) -> Store:
        """A store that is gone when it is closed: for virtual devices and tests."""
        return cls(Database(Path(tempfile.mkdtemp(prefix="edgeplan-store-")), durable=False), temporary=True)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._database.folder

    @property
    def durable(self) -> bool:
        """Whether it is to survive."""
        return self._database.durable

    def put(self, array: Any, tags: Sequence[str] = (), description: str = "") -> str:
        """Keep a copy of a tensor: of numpy, of torch, or anything that numpy makes an array of. Its id, 32 hex
        digits.

        It is on the disk when this returns. Raises `TensorRefused` for a dtype that cannot travel, ValueError for a
        tag that is empty or longer than 256 characters and for a description that is no text, OSError or
        sqlite3.OperationalError when the disk is full.
        """
        return self.put_elements(*_plain(array), tags, description)

    def put_elements(
        self, dtype: str, shape: Sequence[int], data: memoryview, tags: Sequence[str] = (), description: str = ""
    ) -> str:
        """As `put`, for elements in C order, little-endian, of a dtype by name (``bfloat16`` too)."""
        tags = _checked_tags(tags)
        if not is_text(description):
            raise ValueError(f"expected a description in words, got {description!r}")
        if len(data) != nbytes_of(dtype, list(shape)) or len(shape) > MAX_DIMS:
            raise TensorRefused(f"expected the elements of {dtype}{list(shape)}, got {len(data)} bytes")
        small = len(data) <= INLINE_TENSORS_BYTES
        id = self._next_id()
        with contextlib.nullcontext() if small else self._database.writing():
            source: bytes | str
            check = None
            if small:
                source = frame_of(dtype, shape, bytes(data))
            else:
                path, head = tensor_path(self.folder, id), pack(dtype, shape)
                self._database.disk.write_whole(path, [head, data])
                source, check = str(path), zlib.crc32(data, zlib.crc32(head))
            held = Held(
                id=id,
                dtype=dtype,
                shape=tuple(shape),
                nbytes=len(data),
                source=source,
                tags=tags,
                description=description,
                check=check,
            )
            row = value_row(held, _encode(held.shape), _encode(tags), own=True, created=time.time(), lease_until=None)
            with self._database.transaction(durable=True) as connection:
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO tensors ({VALUE}) VALUES ({marks})", row)  # noqa: S608 - marks only
                connection.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, id) for tag in tags])
                self._database.count_change(connection)
        self._database.say_changed()
        return id.hex()

    def append(
        self,
        name: str,
        *columns: Any,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        max_age: float | None = None,
    ) -> int:
        """Append rows to the data set ``name``, one array for each of its columns; how many rows it has now.

        ::

            store.append("train", x, y, max_rows=10_000, max_age=7 * 24 * 3600)

        All of it is on the disk when this returns; of an append that a crash cuts off, nothing is there. The first
        append makes the data set; those that follow must have its columns: as many, each of its dtype and its shape
        but for the first dim. Plans take it by its name, ``plan.fold(carry, over="train", ...)``, or a column of it by
        a tag, ``train#0``.

        The limits hold from this append on: of the newest rows at most ``max_rows``, and ``max_bytes`` of all columns
        together, are kept (one row at least); and these rows at most ``max_age`` seconds, by the device's wall clock.

        Raises `TensorRefused`, ValueError for a name that is no tag or a limit that is no number above 0, OSError or
        sqlite3.OperationalError when the disk is full.
        """
        _checked_tags([name])
        _checked_tags([column_tag(name, MAX_COLUMNS)])
        for limit, expected, kind in (
            (max_rows, "max_rows to be an int", int),
            (max_bytes, "max_bytes to be an int", int),
            (max_age, "max_age to be a number", int | float),
        ):
            if limit is not None and not (isinstance(limit, kind) and limit > 0):
                raise ValueError(f"expected {expected} above 0, got {limit!r}")
        limits = Limits(rows=max_rows, bytes=max_bytes, age=max_age)
        return self.append_elements(name, [_plain(column) for column in columns], limits)

    def append_elements(self, name: str, columns: Sequence[Column], limits: Limits | None = None) -> int:
        """As `append`, for columns as dtype name, shape, and elements in C order, little-endian."""
        rows = self._sets.append(name, columns, limits or Limits())
        self._database.say_changed()
        return rows

    def clear(self, name: str) -> bool:
        """Remove the data set ``name``; whether there was one."""
        was = self._sets.clear(name)
        self._database.say_changed()
        return was

    def get(self, id: str) -> np.ndarray[Any, Any]:
        """A copy of a tensor's value. A bfloat16 tensor comes as its bits, uint16.

        Raises `NoSuchTensor`, `ValueDamaged`, `StoreDamaged`.
        """
        import numpy

        from broker.protocol.tensors import decode_array

        found = self._select("WHERE id = ?", (_raw(id),))
        if not found:
            return self._get_column(id)
        [held] = found
        if isinstance(held.source, bytes):
            return decode_array(held.source).copy()
        try:
            header = map_tensor(held.source, held.check)
        except (FileAltered, TensorRefused, FileNotFoundError) as error:
            raise ValueDamaged(self.folder, id, str(error)) from error
        return numpy.frombuffer(header.data, dtype=DTYPES[header.dtype][0]).reshape(header.shape).copy()

    def _get_column(self, id: str) -> np.ndarray[Any, Any]:
        import numpy

        try:
            column = self._sets.value(_raw(id))
        except ChunkDamaged as error:
            raise ValueDamaged(self.folder, id, str(error)) from error
        if column is None:
            raise NoSuchTensor(id)
        held, data = column
        return numpy.frombuffer(data, dtype=DTYPES[held.dtype][0]).reshape(held.shape).copy()

    def search(self, *tags: str) -> list[Entry]:
        """The tensors that carry all of ``tags``, oldest first; without any: all that are tagged. Then the columns of
        data sets that do.
        """
        tags = _checked_tags(tags)
        columns = [entry for entry in self._columns() if set(tags) <= set(entry.tags)]
        if not tags:
            return self._entries("WHERE id IN (SELECT id FROM tags)") + columns
        marks = ", ".join("?" * len(tags))
        matching = f"SELECT id FROM tags WHERE tag IN ({marks}) GROUP BY id HAVING count(*) = ?"  # noqa: S608 - marks only
        return self._entries(f"WHERE id IN ({matching})", (*tags, len(tags))) + columns

    def entries(self) -> list[Entry]:
        """All tensors in the store, results of coordinators too, oldest first; then the columns of data sets."""
        return self._entries("") + self._columns()

    def entry(self, id: str) -> Entry:
        """What is known of a tensor. Raises `NoSuchTensor`."""
        found = self._entries("WHERE id = ?", (_raw(id),))
        if not found:
            raise NoSuchTensor(id)
        return found[0]

    def delete(self, id: str) -> None:
        """Remove a tensor that was put here. Raises `NoSuchTensor`, or `NotTheOwner` for a coordinator's."""
        raw = _raw(id)
        if not self.entry(id).own:
            raise NotTheOwner(id)
        with self._database.transaction(durable=True) as connection:
            connection.execute("DELETE FROM tags WHERE id = ?", (raw,))
            connection.execute("DELETE FROM tensors WHERE id = ?", (raw,))
            self._database.count_change(connection)
        self._database.disk.remove(tensor_path(self.folder, raw))
        self._database.say_changed()

    def close(self) -> None:
        """Let go of it; a temporary one is removed."""
        self._database.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _next_id(self) -> bytes:
        with self._database.transaction(durable=False) as connection:
            return self._database.take_ids(connection, 1)

    def _entries(self, where: str, values: tuple[object, ...] = ()) -> list[Entry]:
        return [_entry(held) for held in self._select(where, values)]

    def _columns(self) -> list[Entry]:
        self._sets.expire()
        return [_entry(held) for held in self._sets.columns()]

    def _select(self, where: str, values: tuple[object, ...] = ()) -> list[Held]:
        with self._database.read() as connection, self._database.whole():
            rows = connection.execute(f"SELECT {VALUE} FROM tensors {where} ORDER BY rowid", values).fetchall()  # noqa: S608
            return [value_columns(row, str(tensor_path(self.folder, row[0]))) for row in rows]


def _entry(held: Held) -> Entry:
    return Entry(held.id.hex(), held.dtype, held.shape, held.nbytes, held.tags, held.description, held.own)


def _raw(id: str) -> bytes:
    """The id's bytes. Raises `NoSuchTensor` for what is no id."""
    try:
        return parse_result_id(id)
    except ValueError:
        raise NoSuchTensor(id) from None


def _checked_tags(tags: Sequence[Any]) -> tuple[str, ...]:
    """The tags, each once, in their order. Raises ValueError."""
    if isinstance(tags, str):
        raise ValueError(f"expected a list of tags, got the text {tags!r}")
    for tag in tags:
        if not is_text(tag) or not 0 < len(tag) <= _MAX_TAG:
            raise ValueError(f"expected tags of 1 to {_MAX_TAG} characters, got {tag!r}")
    return tuple(dict.fromkeys(tags))


def _plain(array: Any) -> tuple[str, tuple[int, ...], memoryview]:
    """dtype name, shape, and the elements in C order, little-endian."""
    import numpy

    bfloat16 = False
    if type(array).__module__.partition(".")[0] == "torch":
        array, bfloat16 = _from_torch(array)
    plain = numpy.asarray(array)
    if plain.dtype.byteorder == ">":
        plain = plain.astype(plain.dtype.newbyteorder("<"))
    name = "bfloat16" if bfloat16 else _NAMES.get(plain.dtype.str)
    if name is None:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {plain.dtype}")
    flat = numpy.ascontiguousarray(plain).reshape(-1)
    return name, plain.shape, flat.view(numpy.uint8).data if flat.size else memoryview(b"")


def _from_torch(tensor: Any) -> tuple[Any, bool]:
    """A torch tensor as a numpy array; and whether that holds the bits of bfloat16."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TensorRefused(f"expected a dense tensor, got {tensor.layout} of {tensor.dtype}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.dtype is torch.bfloat16:
        return plain.contiguous().view(torch.uint16).numpy(), True
    try:
        return plain.numpy(), False
    except TypeError as error:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {tensor.dtype}: {error}") from None
