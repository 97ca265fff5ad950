"""Losses. ``reduction``: 0 none, 1 mean, 2 sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.dtypes import FLOATING, INTEGRAL, promote, real_of
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import (
    broadcast,
    constant,
    describe,
    expect_dtype,
    expect_equal,
    expect_rank,
    misfit,
    result_type,
    tensor,
)
from edge_agent.plan.spec import Rule, Scope, define

__all__ = ["OPS"]

FAMILY = "loss"


def _reduced(dtype: str, shape: Sequence[Dim], reduction: Any) -> TensorType:
    how = constant("reduction", reduction)
    if how not in (0, 1, 2):
        raise misfit("a reduction of 0 (none), 1 (mean) or 2 (sum)", str(how))
    return tensor(dtype, [] if how else shape)


def _elementwise(scope: Scope, self: TensorType, target: TensorType, reduction: Any, *_: Any) -> TensorType:
    dtype = result_type((self, target))
    if dtype not in FLOATING:
        raise misfit("floats", dtype)
    return _reduced(dtype, broadcast(scope, self, target), reduction)


def _absolute(scope: Scope, self: TensorType, target: TensorType, reduction: Any) -> TensorType:
    dtype = result_type((self, target))
    if dtype == "bool" or (dtype in INTEGRAL and reduction == 1):
        raise misfit("numbers" if dtype == "bool" else "floats to take the mean of", dtype)
    summed = "int64" if dtype in INTEGRAL and reduction == 2 else real_of(dtype)
    return _reduced(summed, broadcast(scope, self, target), reduction)


def _divergence(scope: Scope, self: TensorType, target: TensorType, reduction: Any, *_: Any) -> TensorType:
    return _elementwise(scope, self, target, reduction)


def _cross_entropy_of_bits(
    scope: Scope, self: TensorType, target: TensorType, weight: TensorType | None, reduction: Any
) -> TensorType:
    if self.dtype != target.dtype:
        raise misfit("an input and a target of one dtype", f"{self.dtype} and {target.dtype}")
    expect_dtype(self, FLOATING, "an input")
    if len(self.shape) != len(target.shape):
        raise misfit(f"a target like {describe(self)}", describe(target))
    for own, wanted in zip(self.shape, target.shape, strict=True):
        expect_equal(scope, own, wanted, "the sizes of the input and the target")
    del weight  # broadcasts, and has no part in the result's type
    return _reduced(self.dtype, self.shape, reduction)


def _cross_entropy_of_logits(
    scope: Scope,
    self: TensorType,
    target: TensorType,
    weight: TensorType | None,
    pos_weight: TensorType | None,
    reduction: Any,
) -> TensorType:
    dtype = result_type((self, target, weight, pos_weight))
    if dtype not in FLOATING:
        raise misfit("floats", dtype)
    return _reduced(dtype, broadcast(scope, self, target, weight, pos_weight), reduction)


def _expect_classes(scope: Scope, self: TensorType, target: TensorType, weight: TensorType | None) -> list[Dim]:
    """The target's shape: one class, ``[N]``, or ``[N, d1, ...]``, for an input of ``[C]``, ``[N, C]`` or ``[N, C, d1,
    ...]``.
    """
    expect_dtype(self, FLOATING, "an input")
    expect_dtype(target, frozenset({"int64", "uint8"}), "a target of classes")
    if not self.shape:
        raise misfit("an input with dims", "one without")
    axis = 0 if len(self.shape) == 1 else 1
    wanted = self.shape[:axis] + self.shape[axis + 1 :]
    if len(wanted) != len(target.shape):
        # torch also takes one class, as a tensor of shape [1], for an input of shape [C]
        if axis == 0 and len(target.shape) == 1 and scope.sizes.equal(target.shape[0], 1):
            return list(target.shape)
        raise misfit(f"a target with {len(wanted)} dims", describe(target))
    for own, size in zip(target.shape, wanted, strict=True):
        expect_equal(scope, own, size, "the sizes of the target and the input")
    if weight is not None:
        expect_rank(weight, 1, "a weight")
        expect_equal(scope, weight.shape[0], self.shape[axis], "the sizes of the weight and the classes")
    return wanted


def _likelihood_forward(ranks: tuple[int, ...]) -> Rule:
    def rule(
        scope: Scope, self: TensorType, target: TensorType, weight: TensorType | None, reduction: Any, _: Any
    ) -> list[TensorType]:
        expect_rank(self, ranks, "an input")
        shape = _expect_classes(scope, self, target, weight)
        # a single sample is reduced in any case
        loss = _reduced(self.dtype, [] if len(self.shape) == 1 else shape, reduction)
        return [loss, tensor(self.dtype, [])]

    return rule


def _likelihood(
    scope: Scope, self: TensorType, target: TensorType, weight: TensorType | None, reduction: Any, *_: Any
) -> TensorType:
    shape = _expect_classes(scope, self, target, weight)
    return _reduced(self.dtype, [] if len(self.shape) == 1 else shape, reduction)


def _cross_entropy(
    scope: Scope, self: TensorType, target: TensorType, weight: TensorType | None, reduction: Any, *_: Any
) -> TensorType:
    if len(target.shape) == len(self.shape) and target.dtype in FLOATING:  # probabilities
        expect_dtype(self, FLOATING, "an input")
        if not self.shape:
            raise misfit("an input with dims", "one without")
        for own, wanted in zip(self.shape, target.shape, strict=True):
            expect_equal(scope, own, wanted, "the sizes of the input and the target")
        axis = 0 if len(self.shape) == 1 else 1
        return _reduced(promote(self.dtype, target.dtype), self.shape[:axis] + self.shape[axis + 1 :], reduction)
    return _likelihood(scope, self, target, weight, reduction)


OPS = [
    *define(
        FAMILY,
        _elementwise,
        """
        huber_loss(Tensor self, Tensor target, int reduction=1, float delta=1.) -> Tensor
        mse_loss(Tensor self, Tensor target, int reduction=1) -> Tensor
        smooth_l1_loss(Tensor self, Tensor target, int reduction=1, float beta=1.) -> Tensor
        soft_margin_loss(Tensor self, Tensor target, int reduction=1) -> Tensor
        """,
    ),
    *define(FAMILY, _absolute, "l1_loss(Tensor self, Tensor target, int reduction=1) -> Tensor"),
    *define(
        FAMILY,
        _divergence,
        "kl_div(Tensor self, Tensor target, int reduction=1, *, bool log_target=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _cross_entropy_of_bits,
        "binary_cross_entropy(Tensor self, Tensor target, Tensor? weight=None, int reduction=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _cross_entropy_of_logits,
        "binary_cross_entropy_with_logits(Tensor self, Tensor target, Tensor? weight=None, Tensor? pos_weight=None, "
        "int reduction=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _likelihood_forward((1, 2)),
        "nll_loss_forward(Tensor self, Tensor target, Tensor? weight, int reduction, int ignore_index) "
        "-> (Tensor output, Tensor total_weight)",
    ),
    *define(
        FAMILY,
        _likelihood_forward((4,)),
        "nll_loss2d_forward(Tensor self, Tensor target, Tensor? weight, int reduction, int ignore_index) "
        "-> (Tensor output, Tensor total_weight)",
    ),
    *define(
        FAMILY,
        _likelihood,
        """
        nll_loss(Tensor self, Tensor target, Tensor? weight=None, int reduction=1, int ignore_index=-100) -> Tensor
        nll_loss_nd(Tensor self, Tensor target, Tensor? weight=None, int reduction=1, int ignore_index=-100) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _cross_entropy,
        "cross_entropy_loss(Tensor self, Tensor target, Tensor? weight=None, int reduction=1, int ignore_index=-100, "
        "float label_smoothing=0.) -> Tensor",
    ),
]
