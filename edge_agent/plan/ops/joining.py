"""Ops that put tensors together, repeat, reorder, pad or cut the elements of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.dtypes import promote
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.ops.views import diagonal_size
from edge_agent.plan.shapes import constant, describe, expect_equal, expect_rank, misfit, tensor, wrap_dim, wrap_dims
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "joining"


def _common(tensors: Sequence[TensorType]) -> str:
    if not tensors:
        raise misfit("at least one tensor", "none")
    dtype = tensors[0].dtype
    for one in tensors:
        dtype = promote(dtype, one.dtype)
    return dtype


def _concatenated(scope: Scope, tensors: list[TensorType], dim: Any) -> TensorType:
    dtype = _common(tensors)
    # torch skips tensors of shape [0], whatever the others' dims
    parts = [one for one in tensors if one.shape != [0]] or [tensors[0]]
    first = parts[0]
    rank = len(first.shape)
    if not rank:
        raise misfit("tensors with dims", "one without")
    axis = wrap_dim(dim, rank)
    for one in parts:
        if len(one.shape) != rank:
            raise misfit(f"tensors with {rank} dims each", describe(one))
        for place, (a, b) in enumerate(zip(first.shape, one.shape, strict=True)):
            if place != axis:
                expect_equal(scope, a, b, f"the sizes of dim {place}")
    joined = scope.sizes.add(*(one.shape[axis] for one in parts))
    return tensor(dtype, [*first.shape[:axis], joined, *first.shape[axis + 1 :]])


def _stacked(scope: Scope, tensors: list[TensorType], dim: Any) -> TensorType:
    dtype = _common(tensors)
    first = tensors[0]
    for one in tensors:
        expect_rank(one, len(first.shape), "tensors to stack")
        for place, (a, b) in enumerate(zip(first.shape, one.shape, strict=True)):
            expect_equal(scope, a, b, f"the sizes of dim {place}")
    axis = wrap_dim(dim, len(first.shape) + 1)
    return tensor(dtype, [*first.shape[:axis], len(tensors), *first.shape[axis:]])


def _at_least(operand: TensorType, rank: int) -> TensorType:
    if rank == 2 and len(operand.shape) == 1:
        return tensor(operand.dtype, [1, *operand.shape])
    return tensor(operand.dtype, [*[1] * (rank - len(operand.shape)), *operand.shape])


def _beside(scope: Scope, tensors: list[TensorType]) -> TensorType:
    parts = [_at_least(one, 1) for one in tensors]
    return _concatenated(scope, parts, 0 if parts and len(parts[0].shape) == 1 else 1)


def _below(scope: Scope, tensors: list[TensorType]) -> TensorType:
    return _concatenated(scope, [_at_least(one, 2) for one in tensors], 0)


def _at_least_1d(_: Scope, self: TensorType) -> TensorType:
    return _at_least(self, 1)


def _at_least_2d(_: Scope, self: TensorType) -> TensorType:
    return _at_least(self, 2)


def _flipped(_: Scope, self: TensorType, dims: list[Any]) -> TensorType:
    wrap_dims(dims, len(self.shape), "dims", none_is_all=False)
    return self


def _rolled(_: Scope, self: TensorType, shifts: list[Any], dims: list[Any]) -> TensorType:
    for dim in dims:
        wrap_dim(dim, len(self.shape), "dims")
    if len(shifts) != (len(dims) or 1):
        raise misfit(f"{len(dims) or 1} shifts", str(len(shifts)))
    return self


def _rotated(_: Scope, self: TensorType, times: Any, dims: list[Any]) -> TensorType:
    turns = wrap_dims(dims, len(self.shape), "dims", none_is_all=False)
    if len(turns) != 2 or len(self.shape) < 2:
        raise misfit("two different dims to rotate in", f"{dims} of {describe(self)}")
    shape = list(self.shape)
    if constant("k", times) % 2:
        first, second = turns
        shape[first], shape[second] = shape[second], shape[first]
    return tensor(self.dtype, shape)


def _repeated(scope: Scope, self: TensorType, repeats: list[Any]) -> TensorType:
    lead = len(repeats) - len(self.shape)
    if lead < 0:
        raise misfit(f"at least {len(self.shape)} repeats", str(len(repeats)))
    _expect_natural(repeats, "repeats")
    shape = [1] * lead + list(self.shape)
    return tensor(self.dtype, [scope.sizes.mul(size, times) for size, times in zip(shape, repeats, strict=True)])


def _tiled(scope: Scope, self: TensorType, dims: list[Any]) -> TensorType:
    return _repeated(scope, self, [1] * (len(self.shape) - len(dims)) + dims)


def _expect_natural(values: Sequence[Any], name: str) -> None:
    if any(type(value) is int and value < 0 for value in values):
        raise misfit(f"{name} of 0 or more", str(list(values)))


def _repeat_interleaved(scope: Scope, self: TensorType, repeats: Any, dim: Any, output_size: Any) -> TensorType:
    _expect_natural([repeats], "repeats")
    if dim is None:
        result: list[Dim] = [scope.sizes.mul(*self.shape, repeats)]
        axis = 0
    else:
        axis = wrap_dim(dim, len(self.shape))
        result = list(self.shape) or [1]
        result[axis] = scope.sizes.mul(result[axis], repeats)
    if output_size is not None:
        expect_equal(scope, output_size, result[axis], "output_size and the repeated size")
    return tensor(self.dtype, result)


def _triangle(_: Scope, self: TensorType, *__: Any) -> TensorType:
    if len(self.shape) < 2:
        raise misfit("a tensor with at least 2 dims", describe(self))
    return self


def _diagonal_of(scope: Scope, self: TensorType, diagonal: Any) -> TensorType:
    expect_rank(self, (1, 2), "a vector or a matrix")
    if len(self.shape) == 2:
        return tensor(self.dtype, [diagonal_size(scope, self.shape[0], self.shape[1], diagonal)])
    side = scope.sizes.add(self.shape[0], abs(constant("diagonal", diagonal)))
    return tensor(self.dtype, [side, side])


def _diagonal_embedded(scope: Scope, self: TensorType, offset: Any, dim1: Any, dim2: Any) -> TensorType:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    rank = len(self.shape) + 1
    first, second = wrap_dim(dim1, rank, "dim1"), wrap_dim(dim2, rank, "dim2")
    if first == second:
        raise misfit("two different dims", f"{dim1} and {dim2}")
    side = scope.sizes.add(self.shape[-1], abs(constant("offset", offset)))
    rest = iter(self.shape[:-1])
    return tensor(self.dtype, [side if place in (first, second) else next(rest) for place in range(rank)])


def _grids(scope: Scope, tensors: list[TensorType], indexing: str) -> list[TensorType]:
    if indexing not in ("ij", "xy"):
        raise misfit("an indexing of 'ij' or 'xy'", repr(indexing))
    for one in tensors:
        expect_rank(one, (0, 1), "vectors")
        if one.dtype != tensors[0].dtype:
            raise misfit("tensors of one dtype", f"{tensors[0].dtype} and {one.dtype}")
    if len(tensors) != scope.outputs:
        raise misfit(f"{len(tensors)} outputs", str(scope.outputs))
    shape: list[Dim] = [one.shape[0] if one.shape else 1 for one in tensors]
    if indexing == "xy" and len(shape) > 1:
        shape[0], shape[1] = shape[1], shape[0]
    return [tensor(one.dtype, shape) for one in tensors]


def _padded(scope: Scope, self: TensorType, pad: list[Any], *_: Any) -> TensorType:
    if len(pad) % 2 or len(pad) // 2 > len(self.shape):
        raise misfit(f"two sizes a dim for at most {len(self.shape)} dims", f"{len(pad)} sizes")
    shape = list(self.shape)
    for place in range(len(pad) // 2):
        axis = len(shape) - 1 - place
        size = scope.sizes.add(shape[axis], pad[2 * place], pad[2 * place + 1])
        if type(size) is int and size < 0:
            raise misfit("sizes of 0 or more after padding", str(size))
        shape[axis] = size
    return tensor(self.dtype, shape)


def _padded_by_itself(scope: Scope, self: TensorType, padding: list[Any]) -> TensorType:
    dims = len(padding) // 2
    expect_rank(self, (dims + 1, dims + 2), "an input")
    return _padded(scope, self, padding)


def _padding_for(dims: int) -> Any:
    def rule(scope: Scope, self: TensorType, padding: list[Any]) -> TensorType:
        if len(padding) != 2 * dims:
            raise misfit(f"{2 * dims} sizes of padding", str(len(padding)))
        return _padded_by_itself(scope, self, padding)

    return rule


def _padded_in_mode(scope: Scope, self: TensorType, pad: list[Any], mode: str, _: Any) -> TensorType:
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise misfit("a mode of 'constant', 'reflect', 'replicate' or 'circular'", repr(mode))
    return _padded(scope, self, pad)


def _pixels_shuffled(scope: Scope, self: TensorType, factor: Any) -> TensorType:
    by = _factor(self, factor)
    *front, channels, height, width = self.shape
    if type(channels) is int and channels % (by * by):
        raise misfit(f"a multiple of {by * by} channels", str(channels))
    sizes = scope.sizes
    return tensor(self.dtype, [*front, sizes.floordiv(channels, by * by), sizes.mul(height, by), sizes.mul(width, by)])


def _factor(operand: TensorType, factor: Any) -> int:
    if len(operand.shape) < 3:
        raise misfit("a tensor with at least 3 dims", describe(operand))
    by = constant("the factor", factor)
    if not 0 < by < 1 << 16:
        raise misfit("a factor of 1 or more", str(by))
    return by


def _channels_shuffled(_: Scope, self: TensorType, groups: Any) -> TensorType:
    if len(self.shape) < 3:
        raise misfit("a tensor with at least 3 dims", describe(self))
    by = constant("groups", groups)
    if by <= 0 or (type(self.shape[1]) is int and self.shape[1] % by):
        raise misfit(f"groups that divide {self.shape[1]} channels", str(by))
    return self


OPS = [
    *define(
        FAMILY,
        _concatenated,
        """
        cat(Tensor[] tensors, int dim=0) -> Tensor
        concat(Tensor[] tensors, int dim=0) -> Tensor
        """,
    ),
    *define(FAMILY, _stacked, "stack(Tensor[] tensors, int dim=0) -> Tensor"),
    *define(FAMILY, _beside, "hstack(Tensor[] tensors) -> Tensor"),
    *define(FAMILY, _below, "vstack(Tensor[] tensors) -> Tensor"),
    *define(FAMILY, _at_least_1d, "atleast_1d(Tensor self) -> Tensor", views=True),
    *define(FAMILY, _at_least_2d, "atleast_2d(Tensor self) -> Tensor", views=True),
    *define(FAMILY, _flipped, "flip(Tensor self, int[] dims) -> Tensor"),
    *define(FAMILY, _rolled, "roll(Tensor self, int[1] shifts, int[1] dims=[]) -> Tensor"),
    *define(FAMILY, _rotated, "rot90(Tensor self, int k=1, int[] dims=[0, 1]) -> Tensor"),
    *define(FAMILY, _repeated, "repeat(Tensor self, int[] repeats) -> Tensor"),
    *define(FAMILY, _tiled, "tile(Tensor self, int[] dims) -> Tensor"),
    *define(
        FAMILY,
        _repeat_interleaved,
        "repeat_interleave.self_int(Tensor self, int repeats, int? dim=None, *, int? output_size=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _triangle,
        """
        tril(Tensor self, int diagonal=0) -> Tensor
        triu(Tensor self, int diagonal=0) -> Tensor
        """,
    ),
    *define(FAMILY, _diagonal_of, "diag(Tensor self, int diagonal=0) -> Tensor"),
    *define(FAMILY, _diagonal_embedded, "diag_embed(Tensor self, int offset=0, int dim1=-2, int dim2=-1) -> Tensor"),
    *define(FAMILY, _grids, "meshgrid.indexing(Tensor[] tensors, *, str indexing) -> Tensor[]", views=True),
    *define(FAMILY, _padded, "constant_pad_nd(Tensor self, int[] pad, Scalar value=0) -> Tensor"),
    *define(FAMILY, _padded_in_mode, 'pad(Tensor self, int[] pad, str mode="constant", float? value=None) -> Tensor'),
    *define(
        FAMILY,
        _padding_for(1),
        """
        reflection_pad1d(Tensor self, int[2] padding) -> Tensor
        replication_pad1d(Tensor self, int[2] padding) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _padding_for(2),
        """
        reflection_pad2d(Tensor self, int[4] padding) -> Tensor
        replication_pad2d(Tensor self, int[4] padding) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _padding_for(3),
        """
        reflection_pad3d(Tensor self, int[6] padding) -> Tensor
        replication_pad3d(Tensor self, int[6] padding) -> Tensor
        """,
    ),
    *define(FAMILY, _pixels_shuffled, "pixel_shuffle(Tensor self, int upscale_factor) -> Tensor", views=True),
    *define(FAMILY, _channels_shuffled, "channel_shuffle(Tensor self, int groups) -> Tensor", views=True),
]
