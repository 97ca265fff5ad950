"""Tensor files: a large tensor as a safetensors file with one tensor, named ``tensor``.

Safe to read (no code in it), mapped and not copied, and readable by other tools. safetensors has no complex128: such a
tensor is written as F64 with a last dim of 2, and says so in its metadata. The same bytes are the blob that moves between
devices. This module loads without numpy.

The format: 8 bytes of header length (little-endian), a JSON header, the data; see huggingface/safetensors, README.md.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import MAX_DIMS, TensorHeader, nbytes_of

__all__ = [
    "TensorFile",
    "header_of",
    "map_tensor",
    "pack",
    "read_header",
    "sync_folder",
    "tensor_path",
    "tensors_in",
    "write",
    "write_whole",
]

_NAME = "tensor"
_TYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_DTYPES = {code: dtype for dtype, code in _TYPES.items()}
_ALIGNMENT = 64
_HEADER_LIMIT = 1 << 16
_FOREIGN_HEADER_LIMIT = 16 << 20

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[_Natural]
    data_offsets: tuple[_Natural, _Natural]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    tensor: _Entry
    metadata: dict[str, str] = msgspec.field(default={}, name="__metadata__")


_decoder = msgspec.json.Decoder(_Header)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a tensor file holds: its elements are the ``nbytes`` bytes from ``offset`` on."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def tensor_path(folder: Path, id: bytes) -> Path:
    """Where the store in ``folder`` has the file of a large tensor."""
    return folder / "tensors" / f"{id.hex()}.safetensors"


def pack(dtype: str, shape: Sequence[int]) -> bytes:
    """The beginning of a tensor file, before the data. Raises `TensorRefused` for a dtype outside the allow-list."""
    nbytes = nbytes_of(dtype, list(shape))
    metadata: dict[str, str] = {}
    stored, dims = dtype, list(shape)
    if dtype == "complex128":
        metadata, stored, dims = {"dtype": dtype}, "float64", [*dims, 2]
    entry = _Entry(dtype=_TYPES[stored], shape=dims, data_offsets=(0, nbytes))
    header = msgspec.json.encode(_Header(tensor=entry, metadata=metadata))
    padded = header + b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


def header_of(beginning: bytes | memoryview, size: int) -> TensorFile:
    """What the file says of itself, from its ``beginning`` (all of the header at least) and its whole ``size``.

    Raises `TensorRefused` for anything but one tensor of an allowed dtype that fills the file.
    """
    length = int.from_bytes(beginning[:8], "little")
    if size < 8 or length > min(_HEADER_LIMIT, size - 8) or len(beginning) < 8 + length:
        raise TensorRefused(
            f"expected a tensor file, got {size} bytes without a header of at most {_HEADER_LIMIT} bytes"
        )
    try:
        header = _decoder.decode(beginning[8 : 8 + length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorRefused(f"expected a tensor file with one tensor named {_NAME!r}: {error}") from None
    dtype, shape = _DTYPES.get(header.tensor.dtype, header.tensor.dtype), tuple(header.tensor.shape)
    if header.metadata.get("dtype") == "complex128":
        if dtype != "float64" or shape[-1:] != (2,):
            raise TensorRefused(f"expected complex128 as pairs of float64, got {dtype}{list(shape)}")
        dtype, shape = "complex128", shape[:-1]
    if len(shape) > MAX_DIMS:
        raise TensorRefused(f"expected at most {MAX_DIMS} dims, got {len(shape)}")
    nbytes = nbytes_of(dtype, shape)
    if header.tensor.data_offsets != (0, nbytes) or size != 8 + length + nbytes:
        raise TensorRefused(f"expected {nbytes} bytes for {dtype}{list(shape)}, got {size - 8 - length}")
    return TensorFile(dtype, shape, 8 + length, nbytes)


def read_header(path: str | os.PathLike[str]) -> TensorFile:
    """What the file at ``path`` holds. Raises `TensorRefused`, as `header_of`; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return header_of(file.read(8 + _HEADER_LIMIT), os.fstat(file.fileno()).st_size)


def tensors_in(path: str | os.PathLike[str]) -> dict[str, TensorFile]:
    """All tensors in a safetensors file from anywhere, by name. Raises `TensorRefused`, or OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_FOREIGN_HEADER_LIMIT, size - 8):
            raise TensorRefused(f"expected a safetensors file, got {size} bytes that are none")
        try:
            entries = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
            metadata = msgspec.json.decode(entries.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
            found = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TensorRefused(f"expected a safetensors file: {error}") from None
    tensors = {}
    for name, entry in found.items():
        dtype, shape = _DTYPES.get(entry.dtype, entry.dtype), tuple(entry.shape)
        if metadata.get("dtype") == "complex128" and name == _NAME and shape[-1:] == (2,):
            dtype, shape = "complex128", shape[:-1]
        start, end = entry.data_offsets
        if end - start != nbytes_of(dtype, shape) or 8 + length + end > size:
            raise TensorRefused(
                f"expected {nbytes_of(dtype, shape)} bytes for {name}, {dtype}{list(shape)}, got {end - start}"
            )
        tensors[name] = TensorFile(dtype, shape, 8 + length + start, end - start)
    return tensors


def map_tensor(path: str | os.PathLike[str]) -> TensorHeader:
    """The tensor in the file, mapped: ``data`` is a private, writable view, whose changes never reach the file.

    Raises `TensorRefused`, as `header_of`; OSError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = header_of(file.read(8 + _HEADER_LIMIT), size)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return TensorHeader(found.dtype, found.shape, memoryview(mapped)[found.offset :])


def write(path: str | os.PathLike[str], dtype: str, shape: Sequence[int], data: bytes | memoryview) -> None:
    """Write a tensor file, whole or not at all, to the disk. ``data``: C order, little-endian."""
    write_whole(path, [pack(dtype, shape), data])


def write_whole(path: str | os.PathLike[str], pieces: Sequence[bytes | memoryview | Any]) -> None:
    """Write a file, whole or not at all: beside it, synced, then in its place, and the folder synced. Raises OSError."""
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


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
