"""Ops that take sub-graphs: a branch, of which only one side runs, and loops."""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import describe, misfit, tensor
from edge_agent.plan.spec import Scope, SubGraph, define

__all__ = ["OPS"]

FAMILY = "control"


def _listed(types: Sequence[TensorType]) -> str:
    return ", ".join(map(describe, types)) or "nothing"


def _alike(scope: Scope, one: TensorType, other: TensorType) -> bool:
    """Whether two types are certainly the same: a loop's next step must take what the one before gave."""
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(scope.sizes.equal(a, b) is True for a, b in zip(one.shape, other.shape, strict=True))
    )


def _expect(scope: Scope, expected: Sequence[TensorType], got: Sequence[TensorType], what: str) -> None:
    if len(expected) != len(got) or not all(
        _alike(scope, one, other) for one, other in zip(expected, got, strict=True)
    ):
        raise misfit(f"{what} {_listed(expected)}", _listed(got))


def _expect_inputs(scope: Scope, graph: SubGraph, given: Sequence[TensorType]) -> None:
    _expect(scope, given, graph.inputs, f"{graph.name} to take")


def _expect_truth(predicate: TensorType, what: str) -> None:
    if predicate.dtype != "bool" or predicate.shape:
        raise misfit(f"{what} of bool[]", describe(predicate))


def _cond(
    scope: Scope, predicate: TensorType, if_true: SubGraph, if_false: SubGraph, operands: list[TensorType]
) -> Sequence[TensorType]:
    _expect_truth(predicate, "a predicate")
    for branch in (if_true, if_false):
        _expect_inputs(scope, branch, operands)
    _expect(scope, if_true.outputs, if_false.outputs, "if_false to give what if_true does:")
    return if_true.outputs


def _while_loop(
    scope: Scope, condition: SubGraph, body: SubGraph, carried: list[TensorType], operands: list[TensorType]
) -> Sequence[TensorType]:
    if not carried:
        raise misfit("at least one carried tensor", "none")
    for graph in (condition, body):
        _expect_inputs(scope, graph, [*carried, *operands])
    if len(condition.outputs) != 1:
        raise misfit("a condition with one output", str(len(condition.outputs)))
    _expect_truth(condition.outputs[0], "a condition")
    _expect(scope, carried, body.outputs, "body to give what is carried:")
    return carried


def _scan(
    scope: Scope,
    step: SubGraph,
    carried: list[TensorType],
    rows: list[TensorType],
    operands: list[TensorType],
    _reverse: bool,
) -> Sequence[TensorType]:
    if not rows or not all(one.shape for one in rows):
        raise misfit("rows to go over: at least one tensor, each with dims", _listed(rows))
    count = rows[0].shape[0]
    for one in rows[1:]:
        if scope.sizes.equal(one.shape[0], count) is not True:
            raise misfit("rows of one number", _listed(rows))
    each = [tensor(one.dtype, one.shape[1:]) for one in rows]
    _expect_inputs(scope, step, [*carried, *each, *operands])
    _expect(scope, carried, step.outputs[: len(carried)], "step to give first what is carried:")
    return [*carried, *(tensor(one.dtype, [count, *one.shape]) for one in step.outputs[len(carried) :])]


# What they give may be what they were given: after no step, or where a branch passes it on. So they count as views.
OPS = [
    *define(
        FAMILY,
        _cond,
        "cond(Tensor predicate, Graph if_true, Graph if_false, Tensor[] operands) -> Tensor[]",
        views=True,
        since=2,
        namespace="control",
    ),
    *define(
        FAMILY,
        _while_loop,
        "while_loop(Graph condition, Graph body, Tensor[] carried, Tensor[] operands) -> Tensor[]",
        views=True,
        since=2,
        namespace="control",
    ),
    *define(
        FAMILY,
        _scan,
        "scan(Graph step, Tensor[] carried, Tensor[] rows, Tensor[] operands, bool reverse=False) -> Tensor[]",
        views=True,
        since=2,
        namespace="control",
    ),
]
