"""Tensor frames from plain elements, without numpy, and quickly: a worker makes one for every small result.

The bytes are those of `broker.protocol.tensors.encode_array`, which says what they mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from broker.protocol.tensors import DTYPES

__all__ = ["frame_of"]

_encode = msgspec.msgpack.Encoder().encode
_BIN8, _BIN16, _BIN32 = 0xC4, 0xC5, 0xC6


def frame_of(dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    """The frame of a tensor with these elements: C order, little-endian, as many bytes as dtype and shape say."""
    before, after = _around(dtype, tuple(shape))
    size = len(data)
    if size < 1 << 8:
        return b"".join((before, bytes((_BIN8, size)), data, after))
    if size < 1 << 16:
        return b"".join((before, bytes((_BIN16,)), size.to_bytes(2, "big"), data, after))
    return b"".join((before, bytes((_BIN32,)), size.to_bytes(4, "big"), data, after))


@functools.lru_cache(maxsize=1024)
def _around(dtype: str, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What stands before the elements, and what after them."""
    fields = {b"nd": True, b"type": DTYPES[dtype][0], b"kind": b"", b"shape": shape, b"data": b""}
    if dtype == "bfloat16":
        fields[b"as"] = "bfloat16"
    before, _, after = _encode(fields).rpartition(_encode(b"data") + _encode(b""))
    return before + _encode(b"data"), after
