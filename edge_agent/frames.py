"""Tensor frames from plain elements, without numpy, and quickly: a worker makes one for every small result.

The bytes are those of `broker.protocol.tensors.encode_array`, which says what they mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from broker.protocol.tensors import DTYPES, nbytes_of

__all__ = ["Form", "form_of", "frame_of"]

_encode = msgspec.msgpack.Encoder().encode
_BIN8, _BIN16, _BIN32 = 0xC4, 0xC5, 0xC6


class Form:
    """What all tensors of one dtype and shape have in common: how many bytes they have, and their frames but for the
    elements. See `form_of`.
    """

    __slots__ = ("_after", "_before", "dtype", "nbytes", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.nbytes = nbytes_of(dtype, shape)
        fields = {b"nd": True, b"type": DTYPES[dtype][0], b"kind": b"", b"shape": shape, b"data": b""}
        if dtype == "bfloat16":
            fields[b"as"] = "bfloat16"
        before, _, self._after = _encode(fields).rpartition(_encode(b"data") + _encode(b""))
        self._before = before + _encode(b"data") + _start_of_bytes(self.nbytes)

    def frame(self, elements: bytes) -> bytes:
        """The frame of the tensor with these elements: C order, little-endian, ``nbytes`` of them."""
        return b"".join((self._before, elements, self._after))


@functools.lru_cache(maxsize=1024)
def form_of(dtype: str, shape: tuple[int, ...]) -> Form:
    """The form of such tensors, made once. Raises `TensorRefused` for a dtype that cannot travel."""
    return Form(dtype, shape)


def frame_of(dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    """The frame of a tensor with these elements: C order, little-endian, as many bytes as dtype and shape say."""
    return form_of(dtype, tuple(shape)).frame(data)


def _start_of_bytes(size: int) -> bytes:
    """What msgpack puts before so many bytes."""
    if size < 1 << 8:
        return bytes((_BIN8, size))
    if size < 1 << 16:
        return bytes((_BIN16,)) + size.to_bytes(2, "big")
    return bytes((_BIN32,)) + size.to_bytes(4, "big")
