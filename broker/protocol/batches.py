"""Many ids in several messages: a header has a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

__all__ = ["IDS_A_MESSAGE", "batches"]

T = TypeVar("T")

IDS_A_MESSAGE = 4096
"""How many ids, or digests, one message asks for or tells of at most; a broker looks at no more of them."""


def batches(items: list[T], most: int = IDS_A_MESSAGE) -> Iterator[list[T]]:
    """All items in their order, ``most`` at a time; none of none."""
    for start in range(0, len(items), most):
        yield items[start : start + most]
