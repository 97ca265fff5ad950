"""Tensors one below the other, as the steps of a fold give them: elements in one piece of memory, no object for each.

This module loads without numpy.
"""

from __future__ import annotations

import mmap

from broker.protocol.tensors import TensorHeader, nbytes_of

__all__ = ["Stack"]


class Stack:
    """Room for ``rows`` tensors of one dtype and shape. Memory is taken as it is filled: the kernel gives a page when
    it is first written to.

    ``filled``: how many are in it. Raises MemoryError where the device could never hold them all.
    """

    __slots__ = ("_elements", "dtype", "each", "filled", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], rows: int) -> None:
        self.dtype = dtype
        self.shape = shape
        self.each = nbytes_of(dtype, shape)
        self.filled = 0
        size = self.each * rows
        try:
            room = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            said = f"expected memory for {rows:,} outputs of {self.each:,} bytes each, {size:,} bytes in all, got none"
            raise MemoryError(said) from error
        self._elements = memoryview(room)[:size]

    def add(self, elements: memoryview) -> None:
        """Put a tensor below the others: its elements, as bytes in C order."""
        self.take(1)[:] = elements

    def take(self, count: int) -> memoryview:
        """The room of the next ``count`` tensors, for their elements to be written there."""
        start, self.filled = self.filled, self.filled + count
        return self.between(start, self.filled)

    def between(self, start: int, stop: int) -> memoryview:
        """The elements of the tensors from ``start`` up to ``stop``: a view."""
        return self._elements[start * self.each : stop * self.each]

    def whole(self) -> TensorHeader:
        """All that are in it as one tensor, with a first dim of ``filled``: a view, which keeps the memory alive."""
        return TensorHeader(self.dtype, (self.filled, *self.shape), self.between(0, self.filled))
