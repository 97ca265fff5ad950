"""Ops that read or write by index. Those that write give a changed copy."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import BOOLEAN, COMPLEX, FLOATING
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.ops.views import diagonal_size, sliced_size
from edge_agent.plan.shapes import (
    broadcast,
    constant,
    describe,
    expect_dtype,
    expect_equal,
    expect_index,
    expect_rank,
    misfit,
    tensor,
    wrap_dim,
)
from edge_agent.plan.spec import Operand, Scope, define

__all__ = ["OPS"]

FAMILY = "indexing"
_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


def _same_rank(self: TensorType, index: TensorType, name: str) -> None:
    # a tensor without dims counts as one of one element
    if max(len(self.shape), 1) != max(len(index.shape), 1):
        raise misfit(f"{name} with {len(self.shape)} dims", describe(index))


def _gathered(scope: Scope, self: TensorType, dim: Any, index: TensorType, *_: Any) -> TensorType:
    expect_index(index, "an index")
    axis = wrap_dim(dim, len(self.shape))
    _same_rank(self, index, "an index")
    if self.shape and index.shape:
        _expect_within(scope, self, index, axis)
    return tensor(self.dtype, index.shape)


def _expect_within(scope: Scope, self: TensorType, index: TensorType, axis: int) -> None:
    for place, (own, wanted) in enumerate(zip(self.shape, index.shape, strict=True)):
        if place != axis and type(own) is int and type(wanted) is int and wanted > own:
            raise misfit(f"an index of at most {own} in dim {place}", str(wanted))
    del scope


def _selected(_: Scope, self: TensorType, dim: Any, index: TensorType) -> TensorType:
    expect_index(index, "an index")
    expect_rank(index, (0, 1), "an index")
    axis = wrap_dim(dim, len(self.shape))
    if not self.shape:
        return self
    count: Dim = index.shape[0] if index.shape else 1
    return tensor(self.dtype, [*self.shape[:axis], count, *self.shape[axis + 1 :]])


def _taken(_: Scope, self: TensorType, index: TensorType) -> TensorType:
    expect_dtype(index, frozenset({"int64"}), "an index")
    return tensor(self.dtype, index.shape)


def _taken_along(scope: Scope, self: TensorType, indices: TensorType, dim: Any) -> TensorType:
    expect_dtype(indices, frozenset({"int64"}), "indices")
    if dim is None:
        return tensor(self.dtype, [scope.sizes.mul(*indices.shape)])
    _same_rank(self, indices, "indices")
    axis = wrap_dim(dim, len(self.shape))
    if not self.shape:
        return tensor(self.dtype, indices.shape)
    front = broadcast(
        scope, [*self.shape[:axis], 1, *self.shape[axis + 1 :]], [*indices.shape[:axis], 1, *indices.shape[axis + 1 :]]
    )
    front[axis] = indices.shape[axis]
    return tensor(self.dtype, front)


def _indexed_shape(scope: Scope, self: TensorType, indices: list[TensorType | None]) -> list[Dim]:
    """The shape of what indices pick out of a tensor. Masks pick as many elements as the data say, so they are
    refused.
    """
    if len(indices) > len(self.shape):
        raise misfit(f"at most {len(self.shape)} indices", str(len(indices)))
    given = [place for place, index in enumerate(indices) if index is not None]
    for index in indices:
        if index is not None:
            if index.dtype in ("bool", "uint8"):
                raise misfit(
                    "indices of int64 or int32",
                    f"a mask ({index.dtype}), whose result has a size that depends on the data",
                )
            expect_index(index, "an index")
    if not given:
        raise misfit("at least one index", "none")
    picked = broadcast(scope, *(indices[place] for place in given))
    kept = [size for place, size in enumerate(self.shape) if place not in given]
    # torch puts the indices' dims where they stood if they are side by side, else in front
    side_by_side = given[-1] - given[0] + 1 == len(given)
    at = given[0] if side_by_side else 0
    return [*kept[:at], *picked, *kept[at:]]


def _indexed(scope: Scope, self: TensorType, indices: list[TensorType | None]) -> TensorType:
    return tensor(self.dtype, _indexed_shape(scope, self, indices))


def _put_at(scope: Scope, self: TensorType, indices: list[TensorType | None], values: TensorType, _: Any) -> TensorType:
    if values.dtype != self.dtype:
        raise misfit(f"values of {self.dtype}", values.dtype)
    if any(index is not None and index.dtype == "bool" for index in indices):
        _expect_masks(scope, self, indices)
        return self
    shape = _indexed_shape(scope, self, indices)
    if len(values.shape) > len(shape):
        raise misfit(f"values that broadcast to {len(shape)} dims", describe(values))
    broadcast(scope, shape, values)
    return self


def _expect_masks(scope: Scope, self: TensorType, indices: list[TensorType | None]) -> None:
    """A mask stands for as many dims as it has, with the sizes that they have. How many values it takes shows when the
    op runs.
    """
    at = 0
    for index in indices:
        if index is None or index.dtype != "bool":
            at += 1
            if index is not None:
                expect_index(index, "an index")
            continue
        masked = self.shape[at : at + len(index.shape)]
        if len(masked) != len(index.shape):
            raise misfit(f"masks of at most {len(self.shape)} dims in all", describe(index))
        for own, given in zip(masked, index.shape, strict=True):
            expect_equal(scope, own, given, "the sizes of the mask and the tensor")
        at += len(index.shape)
    if at > len(self.shape):
        raise misfit(f"indices for at most {len(self.shape)} dims", str(at))


def _scattered(scope: Scope, self: TensorType, dim: Any, index: TensorType, source: Operand, *_: Any) -> TensorType:
    expect_index(index, "an index")
    axis = wrap_dim(dim, len(self.shape))
    _same_rank(self, index, "an index")
    if self.shape and index.shape:
        _expect_within(scope, self, index, axis)
    if isinstance(source, TensorType):
        if source.dtype != self.dtype:
            raise misfit(f"a source of {self.dtype}", source.dtype)
        _same_rank(self, source, "a source")
    return self


def _scatter_reduced(
    scope: Scope, self: TensorType, dim: Any, index: TensorType, source: Operand, reduce: str, *_: Any
) -> TensorType:
    if reduce not in _REDUCTIONS:
        raise misfit(f"a reduce of {', '.join(_REDUCTIONS)}", repr(reduce))
    return _scattered(scope, self, dim, index, source)


def _scatter_combined(
    scope: Scope, self: TensorType, dim: Any, index: TensorType, source: Operand, reduce: str
) -> TensorType:
    if reduce not in ("add", "multiply"):
        raise misfit("a reduce of 'add' or 'multiply'", repr(reduce))
    return _scattered(scope, self, dim, index, source)


def _changed_along(
    scope: Scope, self: TensorType, dim: Any, index: TensorType, source: TensorType, *_: Any
) -> TensorType:
    expect_index(index, "an index")
    expect_rank(index, (0, 1), "an index")
    axis = wrap_dim(dim, len(self.shape))
    if source.dtype != self.dtype:
        raise misfit(f"a source of {self.dtype}", source.dtype)
    if self.shape and source.shape:
        expect_rank(source, len(self.shape), "a source")
        for place, (own, given) in enumerate(zip(self.shape, source.shape, strict=True)):
            if place != axis:
                expect_equal(scope, own, given, f"the sizes of dim {place}")
        expect_equal(
            scope, index.shape[0] if index.shape else 1, source.shape[axis], "the sizes of the index and the source"
        )
    return self


def _reduced_along(
    scope: Scope, self: TensorType, dim: Any, index: TensorType, source: TensorType, reduce: str, *_: Any
) -> TensorType:
    if reduce not in ("prod", "mean", "amax", "amin"):
        raise misfit("a reduce of prod, mean, amax, amin", repr(reduce))
    return _changed_along(scope, self, dim, index, source)


def _filled_along(_: Scope, self: TensorType, dim: Any, index: TensorType, value: Operand) -> TensorType:
    expect_index(index, "an index")
    expect_rank(index, (0, 1), "an index")
    wrap_dim(dim, len(self.shape))
    if isinstance(value, TensorType):
        expect_rank(value, 0, "a value")
    return self


def _masked_scattered(scope: Scope, self: TensorType, mask: TensorType, source: TensorType) -> TensorType:
    expect_dtype(mask, BOOLEAN, "a mask")
    if source.dtype != self.dtype:
        raise misfit(f"a source of {self.dtype}", source.dtype)
    return tensor(self.dtype, broadcast(scope, self, mask))


def _part_replaced(scope: Scope, self: TensorType, source: TensorType, part: list[Dim]) -> TensorType:
    expect_rank(source, len(part), "a source")
    for own, given in zip(part, source.shape, strict=True):
        expect_equal(scope, own, given, "the sizes of the part and the source")
    return self


def _select_replaced(scope: Scope, self: TensorType, source: TensorType, dim: Any, index: Any) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    size = self.shape[axis]
    if type(index) is int and type(size) is int and not -size <= index < size:
        raise misfit(f"an index from {-size} to {size - 1}", str(index))
    return _part_replaced(scope, self, source, self.shape[:axis] + self.shape[axis + 1 :])


def _slice_replaced(
    scope: Scope, self: TensorType, source: TensorType, dim: Any, start: Any, end: Any, step: Any
) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    part = list(self.shape)
    part[axis] = sliced_size(scope, part[axis], start, end, step)
    return _part_replaced(scope, self, source, part)


def _diagonal_replaced(
    scope: Scope, self: TensorType, source: TensorType, offset: Any, dim1: Any, dim2: Any
) -> TensorType:
    rank = len(self.shape)
    first, second = wrap_dim(dim1, rank, "dim1"), wrap_dim(dim2, rank, "dim2")
    if first == second:
        raise misfit("two different dims", f"{dim1} and {dim2}")
    rest = [size for place, size in enumerate(self.shape) if place not in (first, second)]
    return _part_replaced(
        scope, self, source, [*rest, diagonal_size(scope, self.shape[first], self.shape[second], offset)]
    )


def _put(_: Scope, self: TensorType, index: TensorType, source: TensorType, __: Any) -> TensorType:
    expect_dtype(index, frozenset({"int64"}), "an index")
    if source.dtype != self.dtype:
        raise misfit(f"a source of {self.dtype}", source.dtype)
    return self


def _one_hot(_: Scope, self: TensorType, num_classes: Any) -> TensorType:
    expect_dtype(self, frozenset({"int64"}), "classes")
    if type(num_classes) is int and num_classes <= 0:
        raise misfit("num_classes of 1 or more, as the largest class depends on the data", str(num_classes))
    return tensor("int64", [*self.shape, num_classes])


def _histogram(_: Scope, self: TensorType, bins: Any, *__: Any) -> TensorType:
    expect_dtype(self, FLOATING, "a tensor")
    if constant("bins", bins) <= 0:
        raise misfit("1 bin or more", str(bins))
    return tensor(self.dtype, [bins])


def _searched(
    scope: Scope, ordered: TensorType, values: Operand, out_int32: Any, right: Any, side: Any, sorter: Any
) -> TensorType:
    del right
    if side not in (None, "left", "right"):
        raise misfit("a side of 'left' or 'right'", repr(side))
    if not ordered.shape:
        raise misfit("a sorted sequence with dims", "one without")
    if isinstance(sorter, TensorType):
        expect_dtype(sorter, frozenset({"int64"}), "a sorter")
        expect_rank(sorter, len(ordered.shape), "a sorter")
    shape: list[Dim] = []
    if isinstance(values, TensorType):
        if values.dtype != ordered.dtype:
            raise misfit(f"values of {ordered.dtype}", values.dtype)
        if len(ordered.shape) > 1:
            expect_rank(values, len(ordered.shape), "values")
            for own, given in zip(ordered.shape[:-1], values.shape[:-1], strict=True):
                expect_equal(scope, own, given, "the sizes of the sorted sequence and the values")
        shape = list(values.shape)
    elif len(ordered.shape) > 1:
        raise misfit("a sorted sequence with 1 dim for a number", describe(ordered))
    if ordered.dtype in COMPLEX:
        raise misfit("a sorted sequence of real numbers", ordered.dtype)
    return tensor("int32" if out_int32 else "int64", shape)


def _bucketed(scope: Scope, values: Operand, boundaries: TensorType, out_int32: Any, right: Any) -> TensorType:
    expect_rank(boundaries, 1, "boundaries")
    return _searched(scope, boundaries, values, out_int32, right, None, None)


def _places(_: Scope, self: TensorType, size: Any, fill_value: Any) -> TensorType:
    del fill_value
    if type(size) is int and size < 0:
        raise misfit("a size of 0 or more", str(size))
    return tensor("int64", [size, len(self.shape)])


OPS = [
    *define(FAMILY, _gathered, "gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"),
    *define(FAMILY, _selected, "index_select(Tensor self, int dim, Tensor index) -> Tensor"),
    *define(FAMILY, _taken, "take(Tensor self, Tensor index) -> Tensor"),
    *define(FAMILY, _taken_along, "take_along_dim(Tensor self, Tensor indices, int? dim=None) -> Tensor"),
    *define(FAMILY, _indexed, "index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"),
    *define(
        FAMILY,
        _put_at,
        "index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _scattered,
        """
        scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor
        scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor
        scatter_add(Tensor self, int dim, Tensor index, Tensor src) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _scatter_combined,
        """
        scatter.reduce(Tensor self, int dim, Tensor index, Tensor src, *, str reduce) -> Tensor
        scatter.value_reduce(Tensor self, int dim, Tensor index, Scalar value, *, str reduce) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _scatter_reduced,
        "scatter_reduce.two(Tensor self, int dim, Tensor index, Tensor src, str reduce, *, bool "
        "include_self=True) -> Tensor",
    ),
    *define(
        FAMILY,
        _changed_along,
        """
        index_add(Tensor self, int dim, Tensor index, Tensor source, *, Scalar alpha=1) -> Tensor
        index_copy(Tensor self, int dim, Tensor index, Tensor source) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _reduced_along,
        "index_reduce(Tensor self, int dim, Tensor index, Tensor source, str reduce, *, bool include_self=True) "
        "-> Tensor",
    ),
    *define(
        FAMILY,
        _filled_along,
        """
        index_fill.int_Scalar(Tensor self, int dim, Tensor index, Scalar value) -> Tensor
        index_fill.int_Tensor(Tensor self, int dim, Tensor index, Tensor value) -> Tensor
        """,
    ),
    *define(FAMILY, _masked_scattered, "masked_scatter(Tensor self, Tensor mask, Tensor source) -> Tensor"),
    *define(FAMILY, _select_replaced, "select_scatter(Tensor self, Tensor src, int dim, int index) -> Tensor"),
    *define(
        FAMILY,
        _slice_replaced,
        "slice_scatter(Tensor self, Tensor src, int dim=0, int? start=None, int? end=None, int step=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _diagonal_replaced,
        "diagonal_scatter(Tensor self, Tensor src, int offset=0, int dim1=0, int dim2=1) -> Tensor",
    ),
    *define(FAMILY, _put, "put(Tensor self, Tensor index, Tensor source, bool accumulate=False) -> Tensor"),
    *define(FAMILY, _one_hot, "one_hot(Tensor self, int num_classes=-1) -> Tensor"),
    *define(FAMILY, _histogram, "histc(Tensor self, int bins=100, Scalar min=0, Scalar max=0) -> Tensor"),
    *define(
        FAMILY,
        _searched,
        """
        searchsorted.Scalar(Tensor sorted_sequence, Scalar self, *, bool out_int32=False, bool right=False, str?
            side=None, Tensor? sorter=None) -> Tensor
        searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, bool right=False, str?
            side=None, Tensor? sorter=None) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _bucketed,
        """
        bucketize.Scalar(Scalar self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor
        bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor
        """,
    ),
    *define(FAMILY, _places, "nonzero_static(Tensor self, *, int size, int fill_value=-1) -> Tensor"),
]
