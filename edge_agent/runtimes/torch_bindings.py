"""Torch's bindings of ops to Python, for ops that cost less than being called.

An overload called as such goes through torch's boxed interpreter of schemas; the binding of the same op (``torch.add``)
parses its arguments itself, in two thirds of the time. But it chooses among the op's overloads by what it is given. So
one is taken only for the ops listed here, and only where all arguments are tensors: then it comes to the same overload,
which the tests see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["BOUND", "binding"]

_ONE = "abs neg exp log sqrt rsqrt sin cos tanh sigmoid relu sign reciprocal floor ceil logical_not"
_ALL_OF_ONE = "sum mean max min t clone"
_TWO = "maximum minimum logical_and logical_or mm dot"
_TWO_TENSORS = "add sub mul div eq ne lt le gt ge"

BOUND: dict[str, int] = {
    **{f"aten.{name}.default": 1 for name in f"{_ONE} {_ALL_OF_ONE}".split()},
    **{f"aten.{name}.default": 2 for name in _TWO.split()},
    **{f"aten.{name}.Tensor": 2 for name in _TWO_TENSORS.split()},
    "aten.where.self": 3,
    "aten.addmm.default": 3,
}
"""The ops that have one, each with how many tensors it is given."""


def binding(name: str, tensors: int) -> Callable[..., Any] | None:
    """What to call for an op with so many tensors as its arguments, and nothing else; None: its overload."""
    if BOUND.get(name) != tensors:
        return None
    found: Callable[..., Any] = getattr(torch, name.split(".")[1])
    return found
