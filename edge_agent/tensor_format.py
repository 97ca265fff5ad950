"""Tensor files: a large tensor as a safetensors file with one tensor, named ``tensor``.

Safe to read (no code in it), mapped and not copied, and readable by other tools. safetensors has no complex128: such
a tensor is written as F64 with a last dim of 2, and says so in its metadata. The same bytes are the blob that moves
between devices. Pure: `edge_agent.tensor_files` reads and writes them.

The format: 8 bytes of header length (little-endian), a JSON header, the data; see huggingface/safetensors, README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import MAX_DIMS, nbytes_of

__all__ = ["HEADER_LIMIT", "TensorFile", "header_of", "pack", "parse_entries"]

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
HEADER_LIMIT = 1 << 16
"""The longest header of a tensor file, in bytes."""

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
    if size < 8 or length > min(HEADER_LIMIT, size - 8) or len(beginning) < 8 + length:
        raise TensorRefused(
            f"expected a tensor file, got {size} bytes without a header of at most {HEADER_LIMIT} bytes"
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


def parse_entries(header: bytes, size: int) -> dict[str, TensorFile]:
    """All tensors that the JSON ``header`` of a safetensors file of ``size`` bytes names. Raises `TensorRefused`."""
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        found = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorRefused(f"expected a safetensors file: {error}") from None
    data = 8 + len(header)
    tensors = {}
    for name, entry in found.items():
        dtype, shape = _DTYPES.get(entry.dtype, entry.dtype), tuple(entry.shape)
        if metadata.get("dtype") == "complex128" and name == _NAME and shape[-1:] == (2,):
            dtype, shape = "complex128", shape[:-1]
        start, end = entry.data_offsets
        nbytes = nbytes_of(dtype, shape)
        if end - start != nbytes or data + end > size:
            raise TensorRefused(f"expected {nbytes} bytes for {name}, {dtype}{list(shape)}, got {end - start}")
        tensors[name] = TensorFile(dtype, shape, data + start, nbytes)
    return tensors
