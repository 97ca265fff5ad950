"""Ops that give the same elements under another shape, mostly without copying: views, slices, splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.protocol.tensors import DTYPES
from edge_agent.plan.dtypes import COMPLEX, FLOATING, complex_of, real_of
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import (
    constant,
    describe,
    expect_dtype,
    expect_equal,
    misfit,
    tensor,
    wrap_dim,
    wrap_dims,
)
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS", "sliced_size"]

FAMILY = "views"


def _alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    return self


def _complex_alike(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, COMPLEX, "a tensor")
    return self


def _inexact_alike(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, FLOATING | COMPLEX, "a tensor")
    return self


def _inferred(scope: Scope, old: Sequence[Dim], new: Sequence[Any], what: str) -> list[Dim]:
    """``new`` with its -1 worked out from the number of elements in ``old``. Raises `PlanTypeError` if it certainly
    does not fit.
    """
    sizes = scope.sizes
    unknown = [place for place, size in enumerate(new) if size == -1]
    known = [size for size in new if size != -1]
    negative = [size for size in known if type(size) is int and size < 0]
    if len(unknown) > 1 or negative:
        raise misfit(f"sizes of 0 or more and at most one -1 for {what}", str(list(new)))
    total = sizes.mul(*old)
    if not unknown:
        expect_equal(scope, total, sizes.mul(*known), "the numbers of elements before and after")
        return list(new)
    rest = sizes.mul(*known)
    if rest == 0:
        raise misfit("sizes that tell what -1 stands for", str(list(new)))
    quotient = sizes.floordiv(total, rest)
    expect_equal(scope, sizes.mul(quotient, rest), total, "the numbers of elements before and after")
    shape = list(new)
    shape[unknown[0]] = quotient
    return shape


def _viewed(scope: Scope, self: TensorType, size: list[Any]) -> TensorType:
    return tensor(self.dtype, _inferred(scope, self.shape, size, "the new shape"))


def _reinterpreted(scope: Scope, self: TensorType, dtype: str) -> TensorType:
    old, new = DTYPES[self.dtype][1], DTYPES[dtype][1]
    if old == new:
        return tensor(dtype, self.shape)
    if not self.shape:
        raise misfit("dtypes of one size to view a tensor without dims", f"{self.dtype} and {dtype}")
    *front, last = self.shape
    if old > new:
        return tensor(dtype, [*front, scope.sizes.mul(last, old // new)])
    if type(last) is int and last % (new // old):
        raise misfit(f"a last dim that is a multiple of {new // old}", str(last))
    return tensor(dtype, [*front, scope.sizes.floordiv(last, new // old)])


def _flattened(scope: Scope, self: TensorType, start: Any, end: Any) -> TensorType:
    rank = len(self.shape)
    first, last = wrap_dim(start, rank, "start_dim"), wrap_dim(end, rank, "end_dim")
    if first > last:
        raise misfit("a start_dim not after the end_dim", f"{first} and {last}")
    if not rank:
        return tensor(self.dtype, [1])
    merged = scope.sizes.mul(*self.shape[first : last + 1])
    return tensor(self.dtype, [*self.shape[:first], merged, *self.shape[last + 1 :]])


def _unflattened(scope: Scope, self: TensorType, dim: Any, sizes: list[Any]) -> TensorType:
    axis = wrap_dim(dim, len(self.shape))
    if not self.shape or not sizes:
        raise misfit("a dim to unflatten into at least one", describe(self))
    parts = _inferred(scope, [self.shape[axis]], sizes, "sizes")
    return tensor(self.dtype, [*self.shape[:axis], *parts, *self.shape[axis + 1 :]])


def _expanded(scope: Scope, self: TensorType, size: list[Any], *_: Any) -> TensorType:
    lead = len(size) - len(self.shape)
    if lead < 0:
        raise misfit(f"at least {len(self.shape)} sizes", str(len(size)))
    shape: list[Dim] = []
    for place, wanted in enumerate(size):
        own = self.shape[place - lead] if place >= lead else None
        if wanted == -1:
            if own is None:
                raise misfit("a size for every new dim", "-1")
            shape.append(own)
            continue
        if type(wanted) is int and wanted < 0:
            raise misfit("sizes of 0 or more, or -1", str(wanted))
        if own is not None and own != 1 and scope.sizes.equal(own, 1) is False:
            expect_equal(scope, own, wanted, f"the sizes of dim {place} before and after")
        shape.append(wanted)
    return tensor(self.dtype, shape)


def _expanded_as(scope: Scope, self: TensorType, other: TensorType) -> TensorType:
    return _expanded(scope, self, list(other.shape))


def _permuted(_: Scope, self: TensorType, dims: list[Any]) -> TensorType:
    order = wrap_dims(dims, len(self.shape), "dims", none_is_all=False)
    if len(order) != len(self.shape):
        raise misfit(f"{len(self.shape)} dims", str(len(order)))
    return tensor(self.dtype, [self.shape[place] for place in order])


def _transposed(_: Scope, self: TensorType, dim0: Any, dim1: Any) -> TensorType:
    rank = len(self.shape)
    first, second = wrap_dim(dim0, rank, "dim0"), wrap_dim(dim1, rank, "dim1")
    shape = list(self.shape)
    if rank:
        shape[first], shape[second] = shape[second], shape[first]
    return tensor(self.dtype, shape)


def _matrix_transposed(_: Scope, self: TensorType) -> TensorType:
    if len(self.shape) > 2:
        raise misfit("a tensor with at most 2 dims", describe(self))
    return tensor(self.dtype, self.shape[::-1])


def _last_transposed(_: Scope, self: TensorType) -> TensorType:
    if len(self.shape) < 2:
        raise misfit("a tensor with at least 2 dims", describe(self))
    return tensor(self.dtype, [*self.shape[:-2], self.shape[-1], self.shape[-2]])


def _moved(_: Scope, self: TensorType, source: Any, destination: Any) -> TensorType:
    rank = len(self.shape)
    origins = wrap_dims(source if isinstance(source, list) else [source], rank, "source", none_is_all=False)
    targets = wrap_dims(
        destination if isinstance(destination, list) else [destination], rank, "destination", none_is_all=False
    )
    if len(origins) != len(targets):
        raise misfit(f"{len(origins)} destinations", str(len(targets)))
    if not rank:
        return self
    order: list[int | None] = [None] * rank
    for origin, target in zip(origins, targets, strict=True):
        order[target] = origin
    others = iter([place for place in range(rank) if place not in origins])
    return tensor(self.dtype, [self.shape[next(others) if place is None else place] for place in order])


def _unsqueezed(_: Scope, self: TensorType, dim: Any) -> TensorType:
    axis = wrap_dim(dim, len(self.shape) + 1)
    return tensor(self.dtype, [*self.shape[:axis], 1, *self.shape[axis:]])


def _squeezed(scope: Scope, self: TensorType, dims: list[Any] | None = None) -> TensorType:
    rank = len(self.shape)
    candidates = range(rank) if dims is None else wrap_dims(dims, rank, none_is_all=False)
    shape = [size for place, size in enumerate(self.shape) if not (place in candidates and _is_one(scope, size))]
    return tensor(self.dtype, shape)


def _squeezed_one(scope: Scope, self: TensorType, dim: Any) -> TensorType:
    return _squeezed(scope, self, [dim])


def _is_one(scope: Scope, size: Dim) -> bool:
    known = scope.sizes.equal(size, 1)
    if known is None:
        # whether the dim stays decides the rank of everything after it
        raise misfit(
            f"a size to squeeze that is known to be 1, or not to be (a condition {render(size)} != 1)", render(size)
        )
    return known


def _selected(_: Scope, self: TensorType, dim: Any, index: Any) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    size = self.shape[axis]
    if type(index) is int and type(size) is int and not -size <= index < size:
        raise misfit(f"an index from {-size} to {size - 1}", str(index))
    return tensor(self.dtype, [*self.shape[:axis], *self.shape[axis + 1 :]])


def _clamped(scope: Scope, place: Any, size: Dim) -> Dim:
    """Where a slice's end lies between 0 and ``size``, negative ones counted from the back."""
    sizes = scope.sizes
    if type(place) is int and place < 0:
        return sizes.max(sizes.add(size, place), 0)
    low, high = sizes.low(place), sizes.high(place)
    if high is not None and high < 0:
        return sizes.max(sizes.add(size, place), 0)
    if low is not None and low >= 0:
        return sizes.min(place, size)
    from_back, from_front = sizes.max(sizes.add(size, place), 0), sizes.min(place, size)
    return sizes.make("where", ["lt", place, 0], from_back, from_front)


def sliced_size(scope: Scope, size: Dim, start: Any, end: Any, step: Any) -> Dim:
    """How many elements a slice of a dim has."""
    if type(step) is int and step <= 0:
        raise misfit("a step of 1 or more", str(step))
    first = 0 if start is None else _clamped(scope, start, size)
    last = size if end is None else _clamped(scope, end, size)
    length = scope.sizes.max(scope.sizes.sub(last, first), 0)
    return length if step == 1 else scope.sizes.make("ceildiv", length, step)


def _sliced(scope: Scope, self: TensorType, dim: Any, start: Any, end: Any, step: Any) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    shape = list(self.shape)
    axis = wrap_dim(dim, len(shape))
    shape[axis] = sliced_size(scope, shape[axis], start, end, step)
    return tensor(self.dtype, shape)


def _narrowed(_: Scope, self: TensorType, dim: Any, start: Any, length: Any) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    shape = list(self.shape)
    axis = wrap_dim(dim, len(shape))
    if type(length) is int and length < 0:
        raise misfit("a length of 0 or more", str(length))
    if all(type(part) is int for part in (shape[axis], start, length)):
        first = start + shape[axis] if start < 0 else start
        if not 0 <= first <= first + length <= shape[axis]:
            raise misfit(f"a part of {shape[axis]} elements", f"{length} from {start} on")
    shape[axis] = length
    return tensor(self.dtype, shape)


def diagonal_size(scope: Scope, rows: Dim, columns: Dim, offset: Any) -> Dim:
    """How many elements a diagonal has."""
    sizes = scope.sizes
    shift = constant("offset", offset)
    rows, columns = (rows, sizes.sub(columns, shift)) if shift >= 0 else (sizes.add(rows, shift), columns)
    return sizes.max(sizes.min(rows, columns), 0)


def _diagonal(scope: Scope, self: TensorType, offset: Any, dim1: Any, dim2: Any) -> TensorType:
    rank = len(self.shape)
    first, second = wrap_dim(dim1, rank, "dim1"), wrap_dim(dim2, rank, "dim2")
    if first == second:
        raise misfit("two different dims", f"{dim1} and {dim2}")
    rest = [size for place, size in enumerate(self.shape) if place not in (first, second)]
    return tensor(self.dtype, [*rest, diagonal_size(scope, self.shape[first], self.shape[second], offset)])


def _unfolded(scope: Scope, self: TensorType, dim: Any, size: Any, step: Any) -> TensorType:
    if type(step) is int and step <= 0:
        raise misfit("a step of 1 or more", str(step))
    axis = wrap_dim(dim, len(self.shape), "dimension")
    shape = list(self.shape) or [1]
    own = shape[axis]
    if type(size) is int and (size < 0 or (type(own) is int and size > own)):
        raise misfit(f"a size from 0 to {own}", str(size))
    count = scope.sizes.add(scope.sizes.floordiv(scope.sizes.sub(shape[axis], size), step), 1)
    if not self.shape:
        return tensor(self.dtype, [size])
    shape[axis] = count
    return tensor(self.dtype, [*shape, size])


def _real(_: Scope, self: TensorType) -> TensorType:
    return tensor(real_of(self.dtype), self.shape)


def _imaginary(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, COMPLEX, "a tensor")
    return tensor(real_of(self.dtype), self.shape)


def _as_real(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, COMPLEX, "a tensor")
    return tensor(real_of(self.dtype), [*self.shape, 2])


def _as_complex(scope: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, FLOATING - {"bfloat16"}, "a tensor")
    if not self.shape or scope.sizes.equal(self.shape[-1], 2) is False:
        raise misfit("a last dim of 2", describe(self))
    return tensor(complex_of(self.dtype), self.shape[:-1])


OPS = [
    *define(
        FAMILY,
        _alike,
        """
        alias(Tensor(a) self) -> Tensor(a)
        conj(Tensor(a) self) -> Tensor(a)
        detach(Tensor(a) self) -> Tensor(a)
        lift_fresh_copy(Tensor self) -> Tensor
        resolve_conj(Tensor(a) self) -> Tensor(a)
        resolve_neg(Tensor(a) self) -> Tensor(a)
        """,
    ),
    *define(FAMILY, _complex_alike, "_conj(Tensor(a) self) -> Tensor(a)"),
    *define(FAMILY, _inexact_alike, "_neg_view(Tensor(a) self) -> Tensor(a)"),
    *define(
        FAMILY,
        _viewed,
        """
        reshape(Tensor(a) self, int[] shape) -> Tensor(a)
        view(Tensor(a) self, int[] size) -> Tensor(a)
        """,
    ),
    *define(FAMILY, _viewed, "_unsafe_view(Tensor self, int[] size) -> Tensor", views=True),
    *define(FAMILY, _reinterpreted, "view.dtype(Tensor(a) self, ScalarType dtype) -> Tensor(a)"),
    *define(FAMILY, _flattened, "flatten.using_ints(Tensor(a) self, int start_dim=0, int end_dim=-1) -> Tensor(a)"),
    *define(FAMILY, _unflattened, "unflatten.int(Tensor(a) self, int dim, int[] sizes) -> Tensor(a)"),
    *define(
        FAMILY,
        _expanded,
        """
        broadcast_to(Tensor(a) self, int[] size) -> Tensor(a)
        expand(Tensor(a) self, int[] size, *, bool implicit=False) -> Tensor(a)
        """,
    ),
    *define(FAMILY, _expanded_as, "expand_as(Tensor(a) self, Tensor other) -> Tensor(a)"),
    *define(FAMILY, _permuted, "permute(Tensor(a) self, int[] dims) -> Tensor(a)"),
    *define(
        FAMILY,
        _transposed,
        """
        swapaxes(Tensor(a) self, int axis0, int axis1) -> Tensor(a)
        transpose.int(Tensor(a) self, int dim0, int dim1) -> Tensor(a)
        """,
    ),
    *define(
        FAMILY,
        _matrix_transposed,
        """
        numpy_T(Tensor(a) self) -> Tensor(a)
        t(Tensor(a) self) -> Tensor(a)
        """,
    ),
    *define(
        FAMILY,
        _last_transposed,
        """
        adjoint(Tensor(a) self) -> Tensor(a)
        mT(Tensor(a) self) -> Tensor(a)
        """,
    ),
    *define(
        FAMILY,
        _moved,
        """
        movedim.int(Tensor(a) self, int source, int destination) -> Tensor(a)
        movedim.intlist(Tensor(a) self, int[] source, int[] destination) -> Tensor(a)
        """,
    ),
    *define(FAMILY, _unsqueezed, "unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"),
    *define(
        FAMILY,
        _squeezed,
        """
        squeeze(Tensor(a) self) -> Tensor(a)
        squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)
        """,
    ),
    *define(FAMILY, _squeezed_one, "squeeze.dim(Tensor(a) self, int dim) -> Tensor(a)"),
    *define(FAMILY, _selected, "select.int(Tensor(a) self, int dim, int index) -> Tensor(a)"),
    *define(
        FAMILY,
        _sliced,
        "slice.Tensor(Tensor(a) self, int dim=0, int? start=None, int? end=None, int step=1) -> Tensor(a)",
    ),
    *define(
        FAMILY,
        _narrowed,
        """
        narrow(Tensor(a) self, int dim, int start, int length) -> Tensor(a)
        narrow_copy(Tensor self, int dim, int start, int length) -> Tensor
        """,
    ),
    *define(FAMILY, _diagonal, "diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"),
    *define(FAMILY, _unfolded, "unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"),
    *define(FAMILY, _real, "real(Tensor(a) self) -> Tensor(a)"),
    *define(FAMILY, _imaginary, "imag(Tensor(a) self) -> Tensor(a)"),
    *define(FAMILY, _as_real, "view_as_real(Tensor(a) self) -> Tensor(a)"),
    *define(FAMILY, _as_complex, "view_as_complex(Tensor(a) self) -> Tensor(a)"),
]
