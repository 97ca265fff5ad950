"""Tensor files on the disk: written whole or not at all, read by mapping. See `edge_agent.tensor_format`.

This module loads without numpy.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from broker.protocol.errors import EdgePlanError, TensorRefused
from broker.protocol.tensors import TensorHeader
from edge_agent.tensor_format import HEADER_LIMIT, TensorFile, header_of, pack, parse_entries

__all__ = [
    "FileAltered",
    "link",
    "map_tensor",
    "read_header",
    "sum_of_file",
    "sync_folder",
    "tensor_path",
    "tensors_in",
    "write",
    "write_whole",
]

_FOREIGN_HEADER_LIMIT = 16 << 20


_PIECE = 1 << 20


class FileAltered(EdgePlanError):
    """The bytes of a tensor file are not those that were written. ``expected``, ``got``: CRC-32 of the whole file."""

    def __init__(self, path: str, expected: int, got: int) -> None:
        self.path = path
        self.expected = expected
        self.got = got
        super().__init__(path, expected, got)

    def __str__(self) -> str:
        name = Path(self.path).name
        return f"the tensor file {name} was altered: expected CRC-32 {self.expected:08x}, got {self.got:08x}"


def tensor_path(folder: Path, id: bytes) -> Path:
    """Where the store in ``folder`` has the file of a large tensor."""
    return folder / "tensors" / f"{id.hex()}.safetensors"


def read_header(path: str | os.PathLike[str]) -> TensorFile:
    """What the file at ``path`` holds. Raises `TensorRefused`, as `header_of`; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return header_of(file.read(8 + HEADER_LIMIT), os.fstat(file.fileno()).st_size)


def tensors_in(path: str | os.PathLike[str]) -> dict[str, TensorFile]:
    """All tensors in a safetensors file from anywhere, by name. Raises `TensorRefused`, or OSError if it cannot be
    read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_FOREIGN_HEADER_LIMIT, size - 8):
            raise TensorRefused(f"expected a safetensors file, got {size} bytes that are none")
        return parse_entries(file.read(length), size)


def map_tensor(path: str | os.PathLike[str], check: int | None = None) -> TensorHeader:
    """The tensor in the file, mapped: ``data`` is a private, writable view, whose changes never reach the file.

    ``check``: the CRC-32 that the whole file must have. Raises `FileAltered`; `TensorRefused`, as `header_of`; OSError
    if it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if check is not None and (got := sum_of_file(path)) != check:
            raise FileAltered(str(path), check, got)
        found = header_of(file.read(8 + HEADER_LIMIT), size)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return TensorHeader(found.dtype, found.shape, memoryview(mapped)[found.offset :])


def sum_of_file(path: str | os.PathLike[str]) -> int:
    """The CRC-32 of the whole file. Raises OSError if it cannot be read."""
    check = 0
    with Path(path).open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            check = zlib.crc32(piece, check)
    return check


def write(path: str | os.PathLike[str], dtype: str, shape: Sequence[int], data: bytes | memoryview) -> int:
    """Write a tensor file, whole or not at all, to the disk; the CRC-32 of it. ``data``: C order, little-endian."""
    head = pack(dtype, shape)
    write_whole(path, [head, data])
    return zlib.crc32(data, zlib.crc32(head))


def write_whole(path: str | os.PathLike[str], pieces: Sequence[bytes | memoryview]) -> None:
    """Write a file, whole or not at all, and sync it and its folder. Raises OSError."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, at once, also where another file has it; not synced. Raises OSError."""
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    beside.hardlink_to(source)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # `rename` does nothing where both are the same file already


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
