"""What the type rules of several op families share: shapes, dims by index, and who computes in which dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edge_agent.plan.dtypes import INDICES, NUMBER_DTYPES, common_dtype
from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.spec import Number, Operand, Scope

__all__ = [
    "broadcast",
    "constant",
    "describe",
    "expect_dtype",
    "expect_equal",
    "expect_index",
    "expect_rank",
    "misfit",
    "result_type",
    "same",
    "spread",
    "tensor",
    "wrap_dim",
    "wrap_dims",
]


def tensor(dtype: str, shape: Sequence[Dim]) -> TensorType:
    """A tensor type."""
    return TensorType(dtype=dtype, shape=list(shape))


def same(like: TensorType) -> TensorType:
    """The type itself: types are frozen, and may be shared."""
    return like


def misfit(expected: str, got: str) -> PlanTypeError:
    """The error of a rule whose arguments do not fit."""
    return PlanTypeError(f"expected {expected}, got {got}")


def describe(operand: Operand) -> str:
    """``float32[s0, 6]``, or ``an int``."""
    if isinstance(operand, Number):
        return (
            f"the {operand.kind} {operand.value}"
            if isinstance(operand.value, int | float | complex)
            else f"a symbolic {operand.kind}"
        )
    return f"{operand.dtype}[{', '.join(map(render, operand.shape))}]"


def result_type(operands: Iterable[Operand | None]) -> str:
    """The dtype that an element-wise op computes in."""
    weighed = []
    for operand in operands:
        if isinstance(operand, Number):
            weighed.append((NUMBER_DTYPES[operand.kind], "number"))
        elif operand is not None:
            weighed.append((operand.dtype, "dims" if operand.shape else "scalar"))
    if len(weighed) == 1 or all(dtype == weighed[0][0] and weight != "number" for dtype, weight in weighed):
        return weighed[0][0]
    return common_dtype(weighed)


def broadcast(scope: Scope, *operands: Operand | Sequence[Dim] | None) -> list[Dim]:
    """The shape that operands (or shapes) broadcast to. Raises `PlanTypeError` if it is certain that they do not."""
    shapes: list[Sequence[Dim]] = []
    for operand in operands:
        if isinstance(operand, TensorType):
            shapes.append(operand.shape)
        elif operand is not None and not isinstance(operand, Number):
            shapes.append(operand)
    result: list[Dim] = []
    for shape in shapes:
        if shape == result:
            continue
        if len(shape) > len(result):
            result = [*shape[: len(shape) - len(result)], *result]
        offset = len(result) - len(shape)
        for place, dim in enumerate(shape):
            held = result[offset + place]
            if held != dim:
                result[offset + place] = scope.sizes.broadcast(held, dim)
    return result


def constant(name: str, value: object) -> int:
    """An argument that must be an integer known now, such as which dim."""
    if type(value) is int:
        return value
    raise misfit(f"a constant for {name}", "a size that is known only when the plan runs")


def wrap_dim(dim: Any, rank: int, name: str = "dim") -> int:
    """A dim's index from the front. A tensor without dims takes 0 and -1."""
    axis = constant(name, dim)
    room = max(rank, 1)
    if not -room <= axis < room:
        raise misfit(f"{name} from {-room} to {room - 1}", str(axis))
    return axis + room if axis < 0 else axis


def wrap_dims(dims: Iterable[Any] | None, rank: int, name: str = "dim", *, none_is_all: bool = True) -> list[int]:
    """Dims' indices from the front, each once. None, or none at all, means all (``none_is_all``)."""
    given = [] if dims is None else [wrap_dim(dim, rank, name) for dim in dims]
    if not given and (dims is None or none_is_all):
        return list(range(rank))
    if len(set(given)) != len(given):
        raise misfit(f"each dim once in {name}", str(given))
    return given


def spread(values: Sequence[Any], count: int, name: str) -> list[Any]:
    """One value a dim; a single one stands for all."""
    if len(values) == count:
        return list(values)
    if len(values) == 1:
        return [values[0]] * count
    raise misfit(f"1 or {count} values of {name}", str(len(values)))


def expect_rank(operand: TensorType, ranks: int | tuple[int, ...], name: str) -> None:
    """Raises `PlanTypeError` unless the tensor has that many dims."""
    allowed = (ranks,) if isinstance(ranks, int) else ranks
    if len(operand.shape) not in allowed:
        raise misfit(f"{name} with {' or '.join(map(str, allowed))} dims", describe(operand))


def expect_dtype(operand: Operand, dtypes: frozenset[str], name: str) -> None:
    """Raises `PlanTypeError` unless the tensor's dtype is one of these."""
    dtype = NUMBER_DTYPES[operand.kind] if isinstance(operand, Number) else operand.dtype
    if dtype not in dtypes:
        raise misfit(f"{name} of {', '.join(sorted(dtypes))}", dtype)


def expect_index(operand: TensorType, name: str) -> None:
    """Raises `PlanTypeError` unless the tensor can index another."""
    expect_dtype(operand, INDICES, name)


def expect_equal(scope: Scope, a: Dim, b: Dim, what: str) -> None:
    """Raises `PlanTypeError` if it is certain that two sizes differ."""
    if a != b and scope.sizes.equal(a, b) is False:
        raise misfit(f"{what} to be equal", f"{render(a)} and {render(b)}")
