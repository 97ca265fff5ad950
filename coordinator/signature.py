"""How a plan is called: from a call's arguments to one leaf for each of its inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from coordinator.operators import RemoteOperators
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.format import Graph, Input, Tree
from edge_agent.plan.trees import flatten, leaf_paths, unflatten
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES

__all__ = ["Signature"]

_NUMBERS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int64": (int,),
    "float64": (float, int),
    "complex128": (complex, float, int),
}
"""The Python numbers that an input of kind ``number`` takes, by its dtype; a bool is an int."""


class Signature:
    """The calls that a graph takes. All errors are `ArgumentMismatch` or `ConditionFailed`, and name the argument.

    `bind` first, then `sizes`; then the leaves may be sent, or made `tensors` and run.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs: tuple[Input, ...] = tuple(graph.given)
        call: Any = graph.signature  # ["t", positional tree, named tree]: the checker has seen to that
        _, positional, named = call
        self._positional: list[Tree] = positional[1:]
        self._named: dict[str, Tree] = dict(zip(named[1::2], named[2::2], strict=True))
        self.flat = len(self.trees) if all(isinstance(tree, int) for tree in self.trees) else -1
        """How many arguments there are, each of them one leaf; -1: some nest."""

    @property
    def names(self) -> list[str]:
        """The arguments that can be given by name, in the order in which they are taken by position."""
        return list(self._named)

    @property
    def trees(self) -> list[Tree]:
        """How each argument nests, in the order in which they are taken by position; leaves are numbered through."""
        return [*self._positional, *self._named.values()]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call, one for each of `inputs`, in their order.

        Whatever is no list, tuple, dict or None is a leaf, and so is anything that stands where the plan has one
        tensor. A number is made the kind that the plan has there; a numpy array becomes a tensor.
        """
        if len(args) == self.flat and not kwargs:  # the common case: nothing is nested, and nothing named
            return [_plain(leaf, given) for leaf, given in zip(args, self.inputs, strict=True)]
        positional, named = list(args[: len(self._positional)]), self._by_name(args[len(self._positional) :], kwargs)
        if len(positional) < len(self._positional):
            missing = self._name_of_position(len(positional))
            raise ArgumentMismatch(missing, "a value", "nothing")
        leaves: list[Any] = []
        for k, tree in enumerate(self._positional):
            leaves += flatten(tree, positional[k], name=self._name_of_position(k))
        for name, tree in self._named.items():
            leaves += flatten(tree, named[name], name=name)
        return [_plain(leaf, given) for leaf, given in zip(leaves, self.inputs, strict=True)]

    def _by_name(self, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        total = len(self._positional) + len(self._named)
        if len(rest) > len(self._named):
            names = ", ".join(self._named)
            raise ArgumentMismatch(
                "arguments", f"at most {total}{f' ({names})' if names else ''}", f"{len(self._positional) + len(rest)}"
            )
        named = dict(zip(self._named, rest, strict=False))
        for name, value in kwargs.items():
            if name not in self._named:
                raise ArgumentMismatch(
                    name, f"one of the arguments {', '.join(self._named) or '(none)'}", "this keyword"
                )
            if name in named:
                raise ArgumentMismatch(name, "one value", "two, by position and by keyword")
            named[name] = value
        for name, tree in self._named.items():
            if name not in named:
                if _has_leaves(tree):
                    raise ArgumentMismatch(name, "a value", "nothing")
                named[name] = unflatten(tree, [])
        return named

    def _name_of_position(self, k: int) -> str:
        # inputs are named by their path: what is left of the first one's, without its place in the nest
        first = _first_leaf(self._positional[k])
        if first is None:
            return f"args[{k}]"
        return self.inputs[first].name.removesuffix(leaf_paths(self._positional[k], "")[0])

    def types(self, leaves: Sequence[Any]) -> list[tuple[str, tuple[int, ...]] | None]:
        """The dtype name and shape of each leaf, as `edge_agent.plan.calls.bind_sizes` takes them; None where they
        are not known.

        A leaf is a tensor, a number, or something with ``dtype`` and ``shape`` (a pointer), which may be None; a leaf
        of None is not known.
        """
        return [_type_of(leaf, given) for leaf, given in zip(leaves, self.inputs, strict=True)]

    def sizes(self, leaves: Sequence[Any]) -> dict[str, int]:
        """Check the leaves against the plan's inputs; the size of each of its symbols, as far as known."""
        return bind_sizes(self.graph, self.types(leaves))

    def tensors(self, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """The leaves as a runtime takes them: dense CPU tensors in C order, numbers among them."""
        return [_tensor(leaf, given) for leaf, given in zip(leaves, self.inputs, strict=True)]

    def results(self, values: Sequence[Any]) -> Any:
        """The plan's results, nested as its function nests them."""
        return unflatten(self.graph.tree, values)


def _has_leaves(tree: Tree) -> bool:
    return _first_leaf(tree) is not None


def _first_leaf(tree: Tree) -> int | None:
    if isinstance(tree, int):
        return tree
    if not isinstance(tree, list):
        return None
    subtrees = tree[2::2] if tree[0] == "d" else tree[1:]
    return next((leaf for subtree in subtrees if (leaf := _first_leaf(subtree)) is not None), None)


def _plain(leaf: Any, given: Input) -> Any:
    if given.kind == "number" and isinstance(leaf, bool | int | float | complex):
        if not isinstance(leaf, _NUMBERS[given.dtype]) or (isinstance(leaf, int) and not -(1 << 63) <= leaf < 1 << 63):
            raise ArgumentMismatch(given.name, _wanted_number(given), f"{leaf!r}")
        if given.dtype == "complex128":
            return torch.tensor(leaf, dtype=torch.complex128)  # commands have no complex numbers
        kind = _NUMBERS[given.dtype][0]
        return kind(leaf)
    if type(leaf).__module__ == "numpy" and "numpy" in sys.modules:
        import numpy as np

        if isinstance(leaf, np.ndarray | np.generic):
            try:
                return torch.from_numpy(np.array(leaf, dtype=leaf.dtype.newbyteorder("=")))
            except TypeError:
                raise ArgumentMismatch(given.name, f"a tensor of {given.dtype}", f"an array of {leaf.dtype}") from None
    return leaf


def _tensor(leaf: Any, given: Input) -> torch.Tensor:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if isinstance(leaf, bool | int | float):
        return torch.tensor(leaf, dtype=TORCH_DTYPES[given.dtype])
    got = "a pointer: send the plan to its device" if isinstance(leaf, RemoteOperators) else f"a {type(leaf).__name__}"
    raise ArgumentMismatch(given.name, f"a tensor of {given.dtype} to run the plan here", got)


def _wanted_number(given: Input) -> str:
    return {"bool": "a bool", "int64": "an int of 64 bits", "float64": "a number", "complex128": "a number"}[
        given.dtype
    ]


def _type_of(leaf: Any, given: Input) -> tuple[str, tuple[int, ...]] | None:
    if leaf is None:
        return None
    if isinstance(leaf, bool | int | float):
        if given.kind != "number":
            raise ArgumentMismatch(given.name, f"a tensor of {given.dtype}", f"the number {leaf!r}")
        return given.dtype, ()
    try:
        dtype, shape = leaf.dtype, leaf.shape
    except AttributeError:
        raise ArgumentMismatch(given.name, f"a tensor of {given.dtype}", f"a {type(leaf).__name__}") from None
    if dtype is None or shape is None:
        return None
    name = dtype if isinstance(dtype, str) else DTYPE_NAMES.get(dtype, str(dtype))
    return name, tuple(shape)
