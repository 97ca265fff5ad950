"""Ops that give a list of tensors: the parts of one, or several brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import broadcast, constant, expect_equal, misfit, tensor, wrap_dim
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "splits"


def _parts(self: TensorType, axis: int, sizes: Sequence[Dim]) -> list[TensorType]:
    return [tensor(self.dtype, [*self.shape[:axis], size, *self.shape[axis + 1 :]]) for size in sizes]


def _expect_outputs(scope: Scope, count: int) -> None:
    if count != scope.outputs:
        raise misfit(f"{count} outputs", str(scope.outputs))


def _split_into(scope: Scope, self: TensorType, axis: int, part: Dim) -> list[TensorType]:
    """Parts of a size, the last one of what is left. For a size that is not known now, the plan says how many."""
    sizes = scope.sizes
    size = self.shape[axis]
    if type(size) is int and type(part) is int:
        _expect_outputs(scope, max(-(-size // part), 1) if part else 1)
    count = scope.outputs
    if not count:
        raise misfit("at least one part", "none")
    last = sizes.sub(size, sizes.mul(part, count - 1))
    return _parts(self, axis, [*[part] * (count - 1), last])


def _split(scope: Scope, self: TensorType, part: Any, dim: Any) -> list[TensorType]:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    if type(part) is int and (part < 0 or (part == 0 and scope.sizes.equal(self.shape[axis], 0) is False)):
        raise misfit("parts of 1 or more", str(part))
    return _split_into(scope, self, axis, part)


def _split_sizes(scope: Scope, self: TensorType, split_sizes: list[Any], dim: Any) -> list[TensorType]:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    if any(type(part) is int and part < 0 for part in split_sizes):
        raise misfit("parts of 0 or more", str(min(part for part in split_sizes if type(part) is int)))
    _expect_outputs(scope, len(split_sizes))
    expect_equal(
        scope, scope.sizes.add(*split_sizes), self.shape[axis], f"the sum of the parts and the size of dim {axis}"
    )
    return _parts(self, axis, split_sizes)


def _chunked(scope: Scope, self: TensorType, chunks: Any, dim: Any) -> list[TensorType]:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    wanted = constant("chunks", chunks)
    if wanted <= 0:
        raise misfit("1 chunk or more", str(wanted))
    if self.shape[axis] == 0:
        _expect_outputs(scope, wanted)
        return _parts(self, axis, [0] * wanted)
    return _split_into(scope, self, axis, scope.sizes.make("ceildiv", self.shape[axis], wanted))


def _tensor_split(scope: Scope, self: TensorType, sections: Any, dim: Any) -> list[TensorType]:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    wanted = constant("sections", sections)
    if wanted <= 0:
        raise misfit("1 section or more", str(wanted))
    _expect_outputs(scope, wanted)
    sizes = scope.sizes
    size = self.shape[axis]
    # the first size % sections parts have one element more: ceil((size - place) / sections)
    return _parts(
        self, axis, [sizes.max(sizes.make("ceildiv", sizes.sub(size, place), wanted), 0) for place in range(wanted)]
    )


def _unbound(scope: Scope, self: TensorType, dim: Any) -> list[TensorType]:
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    axis = wrap_dim(dim, len(self.shape))
    expect_equal(scope, self.shape[axis], scope.outputs, "the size of the dim and the number of outputs")
    part = tensor(self.dtype, [*self.shape[:axis], *self.shape[axis + 1 :]])
    return [part] * scope.outputs


def _broadcast_all(scope: Scope, tensors: list[TensorType]) -> list[TensorType]:
    _expect_outputs(scope, len(tensors))
    shape = broadcast(scope, *tensors)
    return [tensor(one.dtype, shape) for one in tensors]


OPS = [
    *define(FAMILY, _split, "split.Tensor(Tensor(a -> *) self, int split_size, int dim=0) -> Tensor(a)[]"),
    *define(
        FAMILY,
        _split_sizes,
        """
        split.sizes(Tensor(a -> *) self, int[] split_size, int dim=0) -> Tensor(a)[]
        split_with_sizes(Tensor(a -> *) self, int[] split_sizes, int dim=0) -> Tensor(a)[]
        """,
    ),
    *define(FAMILY, _chunked, "chunk(Tensor(a -> *) self, int chunks, int dim=0) -> Tensor(a)[]"),
    *define(
        FAMILY, _tensor_split, "tensor_split.sections(Tensor(a -> *) self, int sections, int dim=0) -> Tensor(a)[]"
    ),
    *define(FAMILY, _unbound, "unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]"),
    *define(FAMILY, _broadcast_all, "broadcast_tensors(Tensor[] tensors) -> Tensor[]", views=True),
]
