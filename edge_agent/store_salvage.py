"""What is whole of a damaged store, into a new one: the owner's own tensors, each with its tags and its description,
and data sets, but for appends that are damaged.

Results and plans are not saved: their coordinators are told that they are lost, and broker and sessions have what they
need to make them again.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import inspect
from edge_agent.catalog import Held
from edge_agent.data_sets import ChunkDamaged, columns_in
from edge_agent.store import Store
from edge_agent.store_database import StoreDamaged
from edge_agent.store_disk import DISK
from edge_agent.store_rows import CHUNK, VALUE, RowDamaged, value_columns
from edge_agent.tensor_files import FileAltered, map_tensor, tensor_path

__all__ = ["Salvaged", "salvage"]


@dataclass(frozen=True, slots=True)
class Salvaged:
    """``saved``: the old id of each tensor and its new one. ``lost``: what could not be read or was altered, a sentence
    each.
    """

    saved: dict[str, str]
    lost: list[str]


def salvage(folder: Path, into: Path) -> Salvaged:
    """Put into the store ``into``, made if it is not there, all of the owner's tensors in ``folder`` that verify.

    Nothing in ``folder`` is deleted. Raises `StoreDamaged` where its index cannot be read at all, ValueError for one
    and the same folder, and what `Store.open` raises for ``into``.
    """
    folder, into = folder.absolute(), into.absolute()
    if folder == into:
        raise ValueError(f"expected another folder to save to than {folder}")
    saved: dict[str, str] = {}
    lost: list[str] = []
    rows = _rows(folder, f"SELECT {VALUE} FROM tensors NOT INDEXED", lost)  # noqa: S608 - names of columns only
    chunks = _rows(folder, f"SELECT {CHUNK} FROM chunks NOT INDEXED", lost)  # noqa: S608
    with Store.open(into) as store:
        for row in rows:
            try:
                held = value_columns(row, str(tensor_path(folder, bytes(row[0]))))
                if not held.own:
                    continue
                dtype, shape, data = _elements(held)
            except (RowDamaged, FileAltered, TensorRefused, OSError, TypeError, ValueError) as error:
                lost.append(str(error))
            else:
                saved[held.id.hex()] = store.put_elements(dtype, shape, data, held.tags, held.description)
        for row in chunks:
            try:
                name, columns = columns_in(row, folder)
                store.append_elements(name, columns)
            except (RowDamaged, ChunkDamaged, TensorRefused, OSError, TypeError, ValueError) as error:
                lost.append(str(error))
    return Salvaged(saved, lost)


def _elements(held: Held) -> tuple[str, tuple[int, ...], memoryview]:
    if isinstance(held.source, bytes):
        header = inspect(held.source)
        return header.dtype, header.shape, memoryview(header.data)
    header = map_tensor(held.source, held.check)
    return header.dtype, header.shape, memoryview(header.data)


def _rows(folder: Path, statement: str, lost: list[str]) -> list[tuple[Any, ...]]:
    """The rows of a table, as far as the index can be read."""
    path = folder / "store.sqlite3"
    if not path.exists() or not path.stat().st_size:
        raise StoreDamaged(folder, "its index is gone")
    found: list[tuple[Any, ...]] = []
    connection = DISK.connect(path)
    try:
        rows = connection.execute(statement)
        while (row := rows.fetchone()) is not None:
            found.append(row)
    except sqlite3.DatabaseError as error:
        if "no such table: chunks" in str(error):
            return []  # an older store
        if not found and "FROM tensors" in statement:
            raise StoreDamaged(folder, str(error)) from error
        lost.append(f"the index breaks off after {len(found)} rows: {error}")
    finally:
        connection.close()
    return found
