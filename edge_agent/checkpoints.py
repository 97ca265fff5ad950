"""Where a fold goes on from after a crash: files named by the invocation's id.

``ID.outs`` has the outputs stacked so far, and only grows: at each checkpoint by a record of the steps done since the
last one: their number (8 bytes, little-endian) and then, output by output, their elements. ``ID`` has the rest: a mark
of the format, the SHA-256 of what follows, and in msgpack how many steps are done, of how many rows, the carry, and how
much of ``ID.outs`` belongs to it, with the SHA-256 of that. It is written last, whole or not at all: what ``ID.outs``
has beyond is of a checkpoint that a crash has cut off, and is written over.

``ID.data`` has the names of the tensors that are folded, so that an agent finds the same ones again without reading the
rest; ``ID`` has them, too, and is of no use with others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_agent.stacks import Stack
from edge_agent.tensor_files import write_whole

__all__ = ["Checkpoint", "Kept", "names_of"]

_MARK = b"edgeplan fold 2\n"
"""Begins a file of this format. The first one had no mark, and all outputs in one file: such a one is none."""

_KEPT_CHECKPOINTS = 32
"""Checkpoints of invocations that never came back are deleted beyond so many."""

_PIECE = 1 << 18


class Kept(NamedTuple):
    """What a checkpoint holds: how many steps are done, the carry after them as frames, and their outputs."""

    step: int
    carry: list[bytes]
    outs: list[Stack]


class _Head(msgspec.Struct, frozen=True, array_like=True):
    step: int
    rows: int
    carry: list[bytes]
    outs: list[tuple[str, tuple[int, ...]]]
    length: int
    digest: bytes
    names: list[bytes]


class Checkpoint:
    """The files from which the folding of ``id`` goes on. What was cut or altered, or is of other data, is none.

    ``names``: of the tensors that are folded, as in `edge_agent.jobs.RunJob`.
    """

    def __init__(self, folder: Path, id: bytes, names: Sequence[bytes] = ()) -> None:
        self._path = folder / "checkpoints" / id.hex()
        self._outs = self._path.with_name(f"{id.hex()}.outs")
        self._names = list(names)
        self._named = False  # on the disk
        self._steps = self._length = 0  # that are in the file of outputs, and its bytes
        self._sum = hashlib.sha256()  # of these

    def load(self, rows: int, total: int) -> Kept | None:
        """What was saved last, for data of so many rows and a fold of ``total`` steps. Raises MemoryError, as `Stack`
        does.
        """
        self._steps, self._length, self._sum = 0, 0, hashlib.sha256()
        head = self._head()
        if head is None or (head.rows, head.names) != (rows, self._names) or not 0 < head.step <= total:
            return None
        outs = self._stacked(head, total)
        return None if outs is None else Kept(head.step, head.carry, outs)

    def save(self, step: int, rows: int, carry: list[bytes], outs: Sequence[Stack]) -> None:
        """Keep this instead, on the disk when it returns. ``outs``: those that `load` gave or that were saved before,
        with more below. Raises OSError.
        """
        self._path.parent.mkdir(exist_ok=True)
        if not self._named:
            _write(_names_path(self._path), msgspec.msgpack.encode(self._names))
            self._named = True
        self._append(step, outs)
        shapes = [(one.dtype, one.shape) for one in outs]
        head = _Head(step, rows, carry, shapes, self._length, self._sum.digest(), self._names)
        _write(self._path, msgspec.msgpack.encode(head))
        self._prune()

    def drop(self) -> None:
        """The folding has ended."""
        self._unlink(self._path.name)

    def _head(self) -> _Head | None:
        content = _read(self._path)
        return None if content is None else msgspec.msgpack.decode(content, type=_Head)

    def _stacked(self, head: _Head, total: int) -> list[Stack] | None:
        """The outputs that ``head`` speaks of, if they are all there."""
        if not head.outs:
            return []
        try:
            file = self._outs.open("rb")
        except OSError:
            return None
        with file:
            seen, left = hashlib.sha256(), head.length
            while left and (piece := file.read(min(left, _PIECE))):
                seen.update(piece)
                left -= len(piece)
            if left or seen.digest() != head.digest:
                return None
            outs = [Stack(dtype, shape, total) for dtype, shape in head.outs]
            file.seek(0)
            while file.tell() < head.length:
                count = int.from_bytes(file.read(8), "little")
                for out in outs:
                    file.readinto(out.take(count))
        self._steps, self._length, self._sum = head.step, head.length, seen
        return outs

    def _append(self, step: int, outs: Sequence[Stack]) -> None:
        """Put the steps since the last time into the file of outputs, behind what is known to be right there."""
        if not outs:
            return
        parts = [out.between(self._steps, step) for out in outs]
        record = [memoryview((step - self._steps).to_bytes(8, "little")), *parts]
        with self._outs.open("ab") as file:
            file.truncate(self._length)
            for piece in record:
                file.write(piece)
                self._sum.update(piece)
                self._length += len(piece)
            file.flush()
            os.fsync(file.fileno())
        self._steps = step

    def _prune(self) -> None:
        newest: dict[str, int] = {}
        for path in self._path.parent.iterdir():
            name = path.name.partition(".")[0]
            newest[name] = max(newest.get(name, 0), path.stat().st_mtime_ns)
        for name in sorted(newest, key=newest.__getitem__)[:-_KEPT_CHECKPOINTS]:
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        for path in self._path.parent.glob(f"{name}*"):  # also what a crash has cut off
            path.unlink(missing_ok=True)


def names_of(folder: Path, id: bytes) -> list[bytes] | None:
    """The names of the tensors that the folding of ``id`` had begun with when it last had a checkpoint."""
    content = _read(_names_path(folder / "checkpoints" / id.hex()))
    return None if content is None else msgspec.msgpack.decode(content, type=list[bytes])


def _names_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _write(path: Path, content: bytes) -> None:
    write_whole(path, [_MARK, hashlib.sha256(content).digest(), content])


def _read(path: Path) -> memoryview | None:
    """What was written there; None: it is not there, was cut or altered, or is of another format."""
    try:
        whole = memoryview(path.read_bytes())
    except OSError:
        return None
    start = len(_MARK) + 32
    mark, digest, content = whole[: len(_MARK)], whole[len(_MARK) : start], whole[start:]
    return content if mark == _MARK and hashlib.sha256(content).digest() == digest else None
