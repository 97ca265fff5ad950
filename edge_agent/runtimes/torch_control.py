"""Branches and loops of the torch runtime: what takes sub-graphs, as functions of them.

A sub-graph comes as a function from its inputs to its outputs (`Body`), made anew for each run of the plan. What a
branch is given and gives, what a loop carries, and the rows that it goes over, are contiguous: whatever strides the ops
were captured with, they take that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

__all__ = ["CONTROL", "Body"]


class Body(Protocol):
    """A sub-graph, ready to be run. ``empty(place, count)``: a tensor for ``count`` of its outputs ``place``."""

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Its outputs."""

    def empty(self, place: int, count: int) -> torch.Tensor:
        """Memory for as many of one output."""

    @property
    def outputs(self) -> int:
        """How many it gives."""


def _cond(
    predicate: torch.Tensor, if_true: Body, if_false: Body, operands: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    taken = if_true if bool(predicate) else if_false
    return [one.contiguous() for one in taken([one.contiguous() for one in operands])]


def _while_loop(
    condition: Body, body: Body, carried: Sequence[torch.Tensor], operands: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    held = [one.contiguous() for one in carried]
    while bool(condition([*held, *operands])[0]):
        held = [one.contiguous() for one in body([*held, *operands])]
    return held


def _scan(
    step: Body,
    carried: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
    operands: Sequence[torch.Tensor],
    reverse: bool = False,
) -> Sequence[torch.Tensor]:
    count = rows[0].shape[0]
    if any(one.shape[0] != count for one in rows):
        raise ValueError(f"expected rows of one number, got {[one.shape[0] for one in rows]}")
    held = [one.contiguous() for one in carried]
    over = [one.contiguous() for one in rows]
    width = len(held)
    given = [step.empty(place, count) for place in range(width, step.outputs)]
    for place in range(count - 1, -1, -1) if reverse else range(count):
        results = step([*held, *(one[place] for one in over), *operands])
        held = [one.contiguous() for one in results[:width]]
        for kept, one in zip(given, results[width:], strict=True):
            kept[place] = one
    return [*held, *given]


CONTROL: Mapping[str, Callable[..., Any]] = {
    "control.cond.default": _cond,
    "control.while_loop.default": _while_loop,
    "control.scan.default": _scan,
}
"""What runs each op that takes sub-graphs."""
