"""Ops that make tensors of nothing but sizes and numbers. None leaves memory uninitialised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edge_agent.plan.dtypes import COMPLEX, DEFAULT, FLOATING, INTEGRAL, NUMBER_DTYPES
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import constant, misfit, tensor
from edge_agent.plan.spec import Number, Scope, define

__all__ = ["OPS"]

FAMILY = "creation"
_REST = "ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None"


def _expect_plain(options: Sequence[Any]) -> None:
    # layout, device, pin_memory, and for some a memory format: the last only says how the elements lie
    if len(options) > 2 and options[2]:
        raise misfit("memory that is not pinned", "pin_memory of True")


def _expect_sizes(size: Sequence[Any]) -> None:
    if any(type(dim) is int and dim < 0 for dim in size):
        raise misfit("sizes of 0 or more", str(list(size)))


def _full(_: Scope, size: list[Any], fill_value: Number, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes(size)
    return tensor(dtype or NUMBER_DTYPES[fill_value.kind], size)


def _filled(_: Scope, size: list[Any], dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes(size)
    return tensor(dtype or DEFAULT, size)


def _full_like(_: Scope, self: TensorType, __: Number, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    return tensor(dtype or self.dtype, self.shape)


def _filled_like(_: Scope, self: TensorType, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    return tensor(dtype or self.dtype, self.shape)


def _new_full(_: Scope, self: TensorType, size: list[Any], __: Number, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes(size)
    return tensor(dtype or self.dtype, size)


def _new_filled(_: Scope, self: TensorType, size: list[Any], dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes(size)
    return tensor(dtype or self.dtype, size)


def _scalar(_: Scope, __: Number, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    return tensor(dtype or DEFAULT, [])


def _range(scope: Scope, start: Number, end: Number, step: Number, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    kinds = {start.kind, end.kind, step.kind}
    if "complex" in kinds or "bool" in kinds:
        raise misfit("real numbers", " and ".join(sorted(kinds)))
    result = dtype or ("int64" if kinds == {"int"} else DEFAULT)
    if result in COMPLEX or result == "bool":
        raise misfit("a dtype of real numbers", result)
    if all(isinstance(number.value, int | float) for number in (start, end, step)):
        size: Dim = _range_size(start.value, end.value, step.value, result)
    elif kinds == {"int"}:
        size = scope.sizes.make("ceildiv", scope.sizes.sub(end.value, start.value), step.value)
    elif result == "int64":
        raise misfit("integers for a range of int64", " and ".join(sorted(kinds)))
    else:
        size = scope.sizes.make("ceil", ["truediv", ["sub", end.value, start.value], step.value])
    return tensor(result, [size])


def _range_size(start: float, end: float, step: float, dtype: str) -> int:
    """ceil((end - start) / step), in integers for int64 and in float64 otherwise, as in aten's ``arange``."""
    if not all(map(math.isfinite, (start, end, step))):
        raise misfit("finite numbers", f"{start}, {end}, {step}")
    leads = step != 0 and (end - start) * (1 if step > 0 else -1) >= 0
    if dtype == "int64":
        start, end, step = int(start), int(end), int(step)
    if not leads or step == 0:
        raise misfit("a step other than 0 that leads from start to end", f"{start}, {end}, {step}")
    if isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        return -((start - end) // step)
    count = (end - start) / step
    if not count < 1 << 53:
        raise misfit("a range of fewer elements", str(count))
    return math.ceil(count)


def _range_to(scope: Scope, end: Number, dtype: str | None, *options: Any) -> TensorType:
    return _range(scope, Number("int", 0), end, Number("int", 1), dtype, *options)


def _range_from(scope: Scope, start: Number, end: Number, dtype: str | None, *options: Any) -> TensorType:
    return _range(scope, start, end, Number("int", 1), dtype, *options)


def _spaced(_: Scope, start: Number, end: Number, steps: Any, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes([steps])
    plain = NUMBER_DTYPES["complex"] if "complex" in (start.kind, end.kind) else DEFAULT
    if dtype is not None and dtype not in COMPLEX and plain in COMPLEX:
        raise misfit("a complex dtype", dtype)
    return tensor(dtype or plain, [steps])


def _spaced_by_powers(scope: Scope, start: Number, end: Number, steps: Any, _: Any, *rest: Any) -> TensorType:
    return _spaced(scope, start, end, steps, *rest)


def _identity(scope: Scope, n: Any, dtype: str | None, *options: Any) -> TensorType:
    return _rectangle(scope, n, n, dtype, *options)


def _rectangle(_: Scope, n: Any, m: Any, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    _expect_sizes([n, m])
    return tensor(dtype or DEFAULT, [n, m])


def _lower_triangle(rows: int, columns: int, offset: int) -> int:
    """How many elements lie on and below a diagonal: each row's count rises by one between 0 and ``columns``."""
    first = max(0, -offset)  # rows above it have none
    full = max(first, min(rows, columns - offset))  # rows from it on have all
    rising = max(min(full, rows) - first, 0)
    partly = rising * (first + offset + 1) + rising * (rising - 1) // 2
    return max(partly, 0) + max(rows - max(full, first), 0) * columns


def _lower_indices(_: Scope, row: Any, col: Any, offset: Any, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    rows, columns, shift = _triangle_sizes(row, col, offset, dtype)
    return tensor(dtype or "int64", [2, _lower_triangle(rows, columns, shift)])


def _upper_indices(_: Scope, row: Any, col: Any, offset: Any, dtype: str | None, *options: Any) -> TensorType:
    _expect_plain(options)
    rows, columns, shift = _triangle_sizes(row, col, offset, dtype)
    return tensor(dtype or "int64", [2, rows * columns - _lower_triangle(rows, columns, shift - 1)])


def _triangle_sizes(row: Any, col: Any, offset: Any, dtype: str | None) -> tuple[int, int, int]:
    sizes = constant("row", row), constant("col", col), constant("offset", offset)
    _expect_sizes(sizes[:2])
    if max(map(abs, sizes)) >= 1 << 31:
        raise misfit("sizes below 2147483648", str(sizes))
    if dtype is not None and dtype not in INTEGRAL and dtype not in FLOATING:
        raise misfit("a dtype of real numbers", dtype)
    return sizes


OPS = [
    *define(FAMILY, _full, f"full(int[] size, Scalar fill_value, *, {_REST}) -> Tensor"),
    *define(
        FAMILY,
        _filled,
        f"""
        ones(int[] size, *, {_REST}) -> Tensor
        zeros(int[] size, *, {_REST}) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _full_like,
        f"full_like(Tensor self, Scalar fill_value, *, {_REST}, MemoryFormat? memory_format=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _filled_like,
        f"""
        ones_like(Tensor self, *, {_REST}, MemoryFormat? memory_format=None) -> Tensor
        zeros_like(Tensor self, *, {_REST}, MemoryFormat? memory_format=None) -> Tensor
        """,
    ),
    *define(FAMILY, _new_full, f"new_full(Tensor self, int[] size, Scalar fill_value, *, {_REST}) -> Tensor"),
    *define(
        FAMILY,
        _new_filled,
        f"""
        new_ones(Tensor self, int[] size, *, {_REST}) -> Tensor
        new_zeros(Tensor self, int[] size, *, {_REST}) -> Tensor
        """,
    ),
    *define(FAMILY, _scalar, f"scalar_tensor(Scalar s, *, {_REST}) -> Tensor"),
    *define(FAMILY, _range_to, f"arange(Scalar end, *, {_REST}) -> Tensor"),
    *define(FAMILY, _range_from, f"arange.start(Scalar start, Scalar end, *, {_REST}) -> Tensor"),
    *define(FAMILY, _range, f"arange.start_step(Scalar start, Scalar end, Scalar step=1, *, {_REST}) -> Tensor"),
    *define(FAMILY, _spaced, f"linspace(Scalar start, Scalar end, int steps, *, {_REST}) -> Tensor"),
    *define(
        FAMILY,
        _spaced_by_powers,
        f"logspace(Scalar start, Scalar end, int steps, float base=10., *, {_REST}) -> Tensor",
    ),
    *define(FAMILY, _identity, f"eye(int n, *, {_REST}) -> Tensor"),
    *define(FAMILY, _rectangle, f"eye.m(int n, int m, *, {_REST}) -> Tensor"),
    *define(
        FAMILY,
        _lower_indices,
        f"tril_indices(int row, int col, int offset=0, *, {_REST.replace('dtype=None', 'dtype=4')}) -> Tensor",
    ),
    *define(
        FAMILY,
        _upper_indices,
        f"triu_indices(int row, int col, int offset=0, *, {_REST.replace('dtype=None', 'dtype=4')}) -> Tensor",
    ),
]
