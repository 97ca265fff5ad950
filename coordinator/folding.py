"""Does a plan fold, and do carry and data fit it? See `PointerPlan.fold`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from broker.protocol.messages import Fold
from coordinator.signature import Signature
from edge_agent.catalog import column_tag
from edge_agent.folding import steps_of
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.expressions import evaluate, render, symbols_of
from edge_agent.plan.format import TensorType, Tree
from edge_agent.plan.trees import flatten, unflatten

__all__ = ["Folding", "shape_of"]

_Type: TypeAlias = tuple[str, tuple[int, ...]] | None
_Shapes: TypeAlias = list[tuple[int, ...] | None]


@dataclass(frozen=True)
class Folding:
    """How a plan of the form ``(carry, *batch) -> (carry, out)`` is folded."""

    fold: Fold
    signature: Signature
    types: Sequence[TensorType]

    @classmethod
    def of(
        cls,
        signature: Signature,
        types: Sequence[TensorType],
        tree: Tree,
        batch_size: int,
        epochs: int,
        shuffle: int | None,
    ) -> Self:
        """Raises `ArgumentMismatch` for a plan that is not of that form: it names where it differs."""
        for name, value in (("batch_size", batch_size), ("epochs", epochs)):
            if type(value) is not int or value < 1:
                raise ArgumentMismatch(name, "a whole number of at least 1", repr(value))
        arguments = signature.trees
        if len(arguments) < 2 or not (isinstance(tree, list) and tree[0] in ("t", "l") and len(tree) == 3):
            got = f"one of {len(arguments)} arguments that gives {_shape_of_nest(tree)}"
            raise ArgumentMismatch("the plan", "one of the form (carry, *batch) -> (carry, out)", got)
        # positions instead of values: which output stands at which place of the carry
        carry = arguments[0]
        outputs = unflatten(tree, list(range(len(types))))
        order = flatten(carry, outputs[0], name="the carry that it gives")
        for k, output in enumerate(order):
            given, gives = signature.inputs[k], types[output]
            if (given.dtype, list(given.shape)) != (gives.dtype, list(gives.shape)):
                raise ArgumentMismatch(
                    f"the carry that it gives for {given.name}",
                    f"{given.dtype}[{', '.join(map(render, given.shape))}], as it takes",
                    f"{gives.dtype}[{', '.join(map(render, gives.shape))}]",
                )
        same = order == sorted(order)
        fold = Fold(
            carry=len(order), batch_size=batch_size, epochs=epochs, shuffle=shuffle, order=[] if same else order
        )
        return cls(fold, signature, types)

    def batch(self, over: Any) -> tuple[Any, ...]:
        """The arguments after the carry. One tag for several tensors is a data set: they are its columns."""
        count = len(self.signature.inputs) - self.fold.carry
        if not isinstance(over, str) or count == 1:
            return tuple(over) if isinstance(over, tuple) else (over,)
        tags = [None] * self.fold.carry + [column_tag(over, k) for k in range(count)]
        return tuple(unflatten(tree, tags) for tree in self.signature.trees[1:])

    def check(self, leaves: Sequence[_Type]) -> _Shapes:
        """Check what is known of the arguments' types; the shape of each output, as far as that tells it."""
        fold, carry = self.fold, self.fold.carry
        rows = self._rows(leaves)
        batches = {fold.batch_size} if rows is None else {min(rows, fold.batch_size), rows % fold.batch_size or rows}
        batches = {size for size in batches if size <= fold.batch_size} or {fold.batch_size}
        sizes: dict[str, int] = {}
        shapes: list[_Shapes] = []
        for size in sorted(batches):
            of_batch = [one and (one[0], (size, *one[1][1:])) for one in leaves[carry:]]
            sizes = bind_sizes(self.signature.graph, [*leaves[:carry], *of_batch])
            shapes.append([shape_of(one, sizes) for one in self.types])
        for k in range(carry, len(self.types)):
            each = {found[k] for found in shapes}
            if len(each) > 1:
                got = " and ".join(str(list(shape)) for shape in each if shape is not None)
                raise ArgumentMismatch(f"output {k}", "one shape whatever the batch, to be stacked", got)
        steps = None if rows is None else steps_of(fold, rows)
        outs = [None if one is None or steps is None else (steps, *one) for one in shapes[0][carry:]]
        return [*shapes[0][:carry], *outs]

    def _rows(self, leaves: Sequence[_Type]) -> int | None:
        known = [
            (given.name, one[1])
            for given, one in zip(self.signature.inputs[self.fold.carry :], leaves[self.fold.carry :], strict=True)
            if one is not None
        ]
        for name, shape in known:
            if not shape or not shape[0] or shape[0] != known[0][1][0]:
                expected = "rows, one at least" if not shape or not shape[0] else f"{known[0][1][0]} rows"
                raise ArgumentMismatch(name, expected, f"the shape {list(shape)}")
        return known[0][1][0] if known else None


def shape_of(kind: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of a tensor of this type where its symbols have these sizes; None: they do not tell it."""
    if any(not symbols_of(dim) <= sizes.keys() for dim in kind.shape):
        return None
    return tuple(int(evaluate(dim, sizes)) for dim in kind.shape)


def _shape_of_nest(tree: Tree) -> str:
    if not isinstance(tree, list):
        return "one tensor"
    return f"a {'dict' if tree[0] == 'd' else 'tuple'} of {len(tree[1:]) // (2 if tree[0] == 'd' else 1)}"
