"""Fourier transforms."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import constant, expect_dtype, misfit, tensor, wrap_dim
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "spectral"

_COMPLEX_OF = {"float32": "complex64", "float64": "complex128"}
_REAL_OF = {wide: real for real, wide in _COMPLEX_OF.items()}


def _dims(operand: TensorType, dim: list[Any], normalization: Any) -> list[int]:
    if normalization not in (0, 1, 2):
        raise misfit("a normalization of 0, 1 or 2", str(normalization))
    found = [wrap_dim(constant("dim", one), len(operand.shape)) for one in dim]
    if not found:
        raise misfit("at least one dim", "none")
    if any(operand.shape[one] == 0 for one in found):
        raise misfit("dims with at least one element", "an empty one")
    return found


def _of_real(scope: Scope, self: TensorType, dim: list[Any], normalization: Any, onesided: bool) -> TensorType:
    expect_dtype(self, frozenset(_COMPLEX_OF), "an input")
    shape = list(self.shape)
    last = _dims(self, dim, normalization)[-1]
    if onesided:
        shape[last] = scope.sizes.add(scope.sizes.floordiv(shape[last], 2), 1)
    return tensor(_COMPLEX_OF[self.dtype], shape)


def _to_real(_: Scope, self: TensorType, dim: list[Any], normalization: Any, last_dim_size: Any) -> TensorType:
    expect_dtype(self, frozenset(_REAL_OF), "an input")
    shape = list(self.shape)
    last = _dims(self, dim, normalization)[-1]
    if type(last_dim_size) is int and last_dim_size < 1:
        raise misfit("a last size of 1 or more", str(last_dim_size))
    shape[last] = last_dim_size
    return tensor(_REAL_OF[self.dtype], shape)


def _of_complex(_: Scope, self: TensorType, dim: list[Any], normalization: Any, __: bool) -> TensorType:
    expect_dtype(self, frozenset(_REAL_OF), "an input")
    _dims(self, dim, normalization)
    return self


OPS = [
    *define(FAMILY, _of_real, "_fft_r2c(Tensor self, int[] dim, int normalization, bool onesided) -> Tensor"),
    *define(FAMILY, _to_real, "_fft_c2r(Tensor self, int[] dim, int normalization, int last_dim_size) -> Tensor"),
    *define(FAMILY, _of_complex, "_fft_c2c(Tensor self, int[] dim, int normalization, bool forward) -> Tensor"),
]
