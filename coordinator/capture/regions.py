"""Regions of a traced graph: what a branch, or the body of a loop, does, between two marks.

The user's function for a branch or a body is traced once, in its place, among all else. ``edgeplan::enter`` gives it
fresh tensors for its arguments, ``edgeplan::leave`` takes its results, and ``edgeplan::run`` stands for running it. All
three are ordinary ops, which torch's passes carry along; so guards, lines, gradients and what the function finds
outside are as anywhere else. What lies between the marks is the region, whatever else it uses are its operands; see
`coordinator.capture.graphs` for how it becomes a sub-graph.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

__all__ = ["ENTER", "LEAVE", "RUN", "Region", "Run", "new_region", "parts_of", "runs_of"]

_Library: Any = torch.library.Library

_library: Any = _Library("edgeplan", "FRAGMENT")
_library.define("enter(int region, str[] names, Tensor[] values, bool contiguous) -> Tensor[]")
_library.define("leave(int region, Tensor[] entered, Tensor[] results) -> Tensor[]")
_library.define("run(str kind, int[] regions, Tensor[] given, Tensor[] results, int carried, bool reverse) -> Tensor[]")


def _fresh(one: torch.Tensor) -> torch.Tensor:
    return one.new_empty(one.shape)


def _alike(one: torch.Tensor) -> torch.Tensor:
    return one.new_empty_strided(one.shape, one.stride())


def _enter(_region: int, _names: list[str], values: list[torch.Tensor], contiguous: bool) -> list[torch.Tensor]:
    return list(map(_fresh if contiguous else _alike, values))


def _leave(_region: int, _entered: list[torch.Tensor], results: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(map(_alike, results))


def _run(
    kind: str,
    _regions: list[int],
    given: list[torch.Tensor],
    results: list[torch.Tensor],
    carried: int,
    _reverse: bool,
) -> list[torch.Tensor]:
    if kind == "cond":  # as where they are selected, which what is contiguous can always stand for
        half = len(results) // 2
        return [torch.where(given[0], one, two) for one, two in zip(results[:half], results[half:], strict=True)]
    if kind == "while_loop":
        return list(map(_fresh, given))
    count = given[carried].shape[0]
    rows = [one.new_empty([count, *one.shape]) for one in results[carried:]]
    return [*map(_fresh, given[:carried]), *rows]


for _name, _function in (("enter", _enter), ("leave", _leave), ("run", _run)):
    # there is nothing but shapes to tell: outside of a trace, none of them is called
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"edgeplan::{_name}", _function, lib=_library)

ENTER: Any = torch.ops.edgeplan.enter.default
"""``enter(region, names, values, contiguous)``: fresh tensors for what is given to the region's function, under its own
names; with the strides of what was given, or ``contiguous``, as what a loop carries is."""

LEAVE: Any = torch.ops.edgeplan.leave.default
"""``leave(region, entered, results)``: fresh tensors for what the function gave."""

RUN: Any = torch.ops.edgeplan.run.default
"""``run(kind, regions, given, results, carried, reverse)``: running regions, of which ``results`` are those of all, one
after the other. ``cond``: ``given`` is the predicate and the operands; ``while_loop``: what is carried; ``scan``: what
is carried (``carried`` of them), then the rows."""

_numbers = itertools.count()


def new_region() -> int:
    """A number that no other region of this process has: it is no part of a plan."""
    return next(_numbers)


# ------------------------------------------------------------------------------------------------- what was traced


@dataclass(frozen=True)
class Region:
    """A region of a graph: its marks, and the places of the nodes between them."""

    enter: Node
    leave: Node
    span: range

    @property
    def names(self) -> list[str]:
        """What its function calls its arguments."""
        names: Any = self.enter.args[1]
        return list(names)

    @property
    def results(self) -> list[Node]:
        """What its function gave."""
        results: Any = self.leave.args[2]
        return list(results)


@dataclass(frozen=True)
class Run:
    """A branch or a loop of a graph."""

    node: Node
    regions: tuple[Region, ...]

    @property
    def kind(self) -> str:
        """``cond``, ``while_loop`` or ``scan``."""
        return str(self.node.args[0])

    @property
    def given(self) -> list[Node]:
        """What it was called with."""
        given: Any = self.node.args[2]
        return list(given)

    @property
    def carried(self) -> int:
        """How many of those a loop carries."""
        carried: Any = self.node.args[4]
        return int(carried)

    @property
    def reverse(self) -> bool:
        """Whether it begins with the last row."""
        return bool(self.node.args[5])


def runs_of(nodes: Sequence[Node]) -> list[Run]:
    """All branches and loops, inner ones before those that they are in."""
    places = {node: place for place, node in enumerate(nodes)}
    enters = {node.args[0]: node for node in nodes if node.target is ENTER}
    leaves = {node.args[0]: node for node in nodes if node.target is LEAVE}
    runs = []
    for node in nodes:
        if node.target is RUN:
            numbers: Any = node.args[1]
            runs.append(
                Run(
                    node,
                    tuple(
                        Region(
                            enters[number], leaves[number], range(places[enters[number]] + 1, places[leaves[number]])
                        )
                        for number in numbers
                    ),
                )
            )
    return runs


def parts_of(node: Node) -> dict[int, Node]:
    """The nodes that take a mark's tensors, one each, by their place."""
    parts: dict[int, Node] = {}
    for user in node.users:
        if user.target is operator.getitem:
            place: Any = user.args[1]
            parts[place] = user
    return parts
