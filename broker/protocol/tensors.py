"""Tensors as frames: msgpack-numpy under a strict allow-list of dtypes.

A frame is the msgpack map that ``msgpack_numpy.encode`` makes of an array: ``nd`` (True), ``type`` (numpy's type
string, little-endian), ``kind`` (empty), ``shape``, ``data`` (C order). A bfloat16 tensor is the map of its bits as
``<u2`` with one key more, ``as``: ``bfloat16``.

msgpack-numpy itself unpickles what calls itself an object array. Here a frame is judged by `inspect` before any of
it is decoded: an object array, a structured or an unknown dtype, a byte count that does not fit the shape is
`TensorRefused`, and no pickle is ever loaded.

This module loads without numpy, so that an agent can judge and pass on tensors that it never opens; `encode_array`
and `decode_array` import it when they are called.
"""

from __future__ import annotations

import functools
import math
import reprlib
from typing import TYPE_CHECKING, Any

import msgspec

from broker.protocol.errors import TensorRefused

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "MAX_DIMS", "MAX_EXTENT", "TensorHeader", "decode_array", "encode_array", "inspect", "nbytes_of"]

DTYPES: dict[str, tuple[str, int]] = {
    "bool": ("|b1", 1),
    "uint8": ("|u1", 1),
    "int8": ("|i1", 1),
    "int16": ("<i2", 2),
    "uint16": ("<u2", 2),
    "int32": ("<i4", 4),
    "uint32": ("<u4", 4),
    "int64": ("<i8", 8),
    "uint64": ("<u8", 8),
    "float16": ("<f2", 2),
    "bfloat16": ("<u2", 2),
    "float32": ("<f4", 4),
    "float64": ("<f8", 8),
    "complex64": ("<c8", 8),
    "complex128": ("<c16", 16),
}
"""The dtypes that may travel: name to (numpy type string of the bits, bytes an element)."""

MAX_DIMS = 32
"""The most dims that a tensor may have."""

MAX_EXTENT = (1 << 63) - 1
"""The most bytes that a tensor may have, or would have if its dims of 0 were 1."""

_BY_TYPE = {type_string: name for name, (type_string, _) in DTYPES.items() if name != "bfloat16"}
_KEYS = frozenset({b"nd", b"type", b"kind", b"shape", b"data"})
_map = msgspec.msgpack.Decoder(dict[bytes, msgspec.Raw])
_shape = msgspec.msgpack.Decoder(list[int])
_text = msgspec.msgpack.Decoder(str)
_data = msgspec.msgpack.Decoder(memoryview)
_TRUE = b"\xc3"


class TensorHeader(msgspec.Struct, frozen=True):
    """What a tensor frame says of itself. ``data`` is a view into the frame: C order, little-endian.

    A struct, since one is made for every small value: a frozen dataclass takes ten times as long.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def nbytes(self) -> int:
        """The size of the tensor's elements, in bytes."""
        return len(self.data)


def nbytes_of(dtype: str, shape: tuple[int, ...] | list[int]) -> int:
    """The bytes that a tensor of this dtype and shape has.

    Raises `TensorRefused` for a dtype outside the allow-list.
    """
    try:
        return DTYPES[dtype][1] * math.prod(shape)
    except KeyError:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}") from None


_SMALL = 2048
"""Frames above this length, in bytes, are judged each time: there it does not show."""
_LENGTHS = 256
_EACH = 4

_known: dict[int, list[tuple[bytes, str, tuple[int, ...]]]] = {}
"""Beginnings of frames that were judged before, by the length of the frame.

In our own layout the data comes last, so a frame is its beginning (all fields, and the data's length) and the data. One
of the same length with the same beginning differs in nothing but its data, and need not be judged again.
"""


def inspect(frame: bytes | memoryview) -> TensorHeader:
    """Judge a frame, without numpy and without copying its data.

    Raises `TensorRefused` for anything but a well-formed tensor of an allowed dtype.
    """
    for start, dtype, shape in _known.get(len(frame), ()):
        if frame[: len(start)] == start:
            return TensorHeader(dtype, shape, memoryview(frame)[len(start) :])
    header = _judge(frame)
    _remember(frame, header)
    return header


def _remember(frame: bytes | memoryview, header: TensorHeader) -> None:
    """Keep the beginning of a well-formed frame."""
    length = len(frame)
    start = bytes(frame[: length - header.nbytes])
    if length > _SMALL or start + bytes(header.data) != frame:
        return  # large, or of another layout
    if len(_known) >= _LENGTHS and length not in _known:
        _known.clear()
    known = _known.setdefault(length, [])
    if len(known) < _EACH and all(start != other for other, _, _ in known):
        known.append((start, header.dtype, header.shape))


def _judge(frame: bytes | memoryview) -> TensorHeader:
    try:
        fields = _map.decode(frame)
        as_bits_of = fields.pop(b"as", None)
        if fields.keys() != _KEYS:
            got = reprlib.repr(sorted(fields))
            raise TensorRefused(f"expected the fields nd, type, kind, shape and data, got {got}")
        if bytes(fields[b"nd"]) != _TRUE:
            raise TensorRefused("expected an array (nd: true), got a scalar")
        if len(_data.decode(fields[b"kind"])):
            raise TensorRefused(
                "expected an array of numbers, got an object or structured array, which is never decoded"
            )
        type_string = _text.decode(fields[b"type"])
        shape = tuple(_shape.decode(fields[b"shape"]))
        data = _data.decode(fields[b"data"])
        claimed = None if as_bits_of is None else _text.decode(as_bits_of)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorRefused(f"expected a tensor frame, got {len(frame)} bytes that are not one: {error}") from None
    dtype = _BY_TYPE.get(type_string)
    if dtype is None:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {reprlib.repr(type_string)}")
    if claimed is not None:
        if claimed != "bfloat16" or dtype != "uint16":
            raise TensorRefused(f"expected the bits of bfloat16 as <u2, got {reprlib.repr(claimed)} as {type_string}")
        dtype = claimed
    if len(shape) > MAX_DIMS or any(dim < 0 for dim in shape):
        raise TensorRefused(f"expected at most {MAX_DIMS} dims of 0 or more, got shape {reprlib.repr(shape)}")
    # numpy and torch refuse such a shape also where a dim of 0 makes it empty.
    if DTYPES[dtype][1] * math.prod(dim for dim in shape if dim) > MAX_EXTENT:
        raise TensorRefused(f"expected dims whose product fits 63 bits, got {dtype}{list(shape)}")
    if len(data) != nbytes_of(dtype, shape):
        raise TensorRefused(f"expected {nbytes_of(dtype, shape)} bytes for {dtype}{list(shape)}, got {len(data)}")
    return TensorHeader(dtype, shape, data)


@functools.cache
def _codec() -> tuple[Any, Any, Any]:
    import msgpack
    import msgpack_numpy
    import numpy as np

    return msgpack, msgpack_numpy, np


def encode_array(array: np.ndarray[Any, Any] | np.generic, *, bfloat16_bits: bool = False) -> bytes:
    """The frame of a numpy array, of any memory layout and byte order, or of a numpy scalar.

    ``bfloat16_bits``: the array is uint16 and holds the bits of a bfloat16 tensor.
    Raises `TensorRefused` for a dtype outside the allow-list, object arrays among them.
    """
    msgpack, msgpack_numpy, numpy = _codec()
    array = numpy.asarray(array)  # msgpack-numpy has another frame for scalars, and 0-d results of numpy are scalars
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.str not in _BY_TYPE:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {array.dtype}")
    if not array.flags.c_contiguous:
        array = numpy.ascontiguousarray(array)
    fields = msgpack_numpy.encode(array)
    if bfloat16_bits:
        if array.dtype.str != "<u2":
            raise TensorRefused(f"expected the bits of bfloat16 as uint16, got {array.dtype}")
        fields[b"as"] = "bfloat16"
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_array(frame: bytes | memoryview) -> np.ndarray[Any, Any]:
    """The array of a frame, without a copy: read-only where the frame is. A bfloat16 tensor comes as its bits, uint16.

    Raises `TensorRefused`, as `inspect` does.
    """
    header = inspect(frame)
    _, msgpack_numpy, _ = _codec()
    array: np.ndarray[Any, Any] = msgpack_numpy.decode(
        {b"nd": True, b"type": DTYPES[header.dtype][0], b"kind": b"", b"shape": header.shape, b"data": header.data}
    )
    return array
