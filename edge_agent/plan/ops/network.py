"""What networks have besides products and convolutions: normalisation, softmax, embedding, resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.dtypes import COMPLEX, FLOATING, promote
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import (
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
from edge_agent.plan.spec import Rule, Scope, define

__all__ = ["OPS"]

FAMILY = "network"
_HALVES = frozenset({"float16", "bfloat16"})


def _mixed(operand: TensorType, *parameters: TensorType | None) -> bool:
    """Whether a half-precision input meets float32 parameters: then the statistics are float32, too."""
    given = [one for one in parameters if one is not None]
    if any(one.dtype != operand.dtype and not (operand.dtype in _HALVES and one.dtype == "float32") for one in given):
        raise misfit(f"parameters of {operand.dtype}", " and ".join(one.dtype for one in given))
    return any(one.dtype != operand.dtype for one in given)


def _layer_shape(
    scope: Scope, operand: TensorType, normalized: Sequence[Any], *parameters: TensorType | None
) -> list[Dim]:
    """The shape of a layer's statistics: 1 in place of each dim that is normalised over."""
    count = len(normalized)
    if not count or count > len(operand.shape):
        raise misfit(f"a normalized_shape of 1 to {len(operand.shape)} sizes", str(count))
    for own, wanted in zip(operand.shape[-count:], normalized, strict=True):
        expect_equal(scope, own, wanted, "the last sizes of the input and normalized_shape")
    for parameter in parameters:
        if parameter is not None:
            expect_rank(parameter, count, "a weight or bias")
            for own, wanted in zip(parameter.shape, normalized, strict=True):
                expect_equal(scope, own, wanted, "the sizes of a weight or bias and normalized_shape")
    return [*operand.shape[:-count], *[1] * count]


def _native_layer_norm(
    scope: Scope, operand: TensorType, normalized: list[Any], weight: TensorType | None, bias: TensorType | None, _: Any
) -> list[TensorType]:
    expect_dtype(operand, FLOATING, "an input")
    statistics = _layer_shape(scope, operand, normalized, weight, bias)
    dtype = "float32" if _mixed(operand, weight, bias) else operand.dtype
    found = tensor(dtype, statistics)
    return [operand, found, found]


def _layer_norm(
    scope: Scope,
    operand: TensorType,
    normalized: list[Any],
    weight: TensorType | None,
    bias: TensorType | None,
    *_: Any,
) -> TensorType:
    return _native_layer_norm(scope, operand, normalized, weight, bias, None)[0]


def _rms_norm(
    scope: Scope, operand: TensorType, normalized: list[Any], weight: TensorType | None, _: Any
) -> TensorType:
    expect_dtype(operand, FLOATING | COMPLEX, "an input")
    _layer_shape(scope, operand, normalized, weight)
    return tensor(operand.dtype if weight is None else promote(operand.dtype, weight.dtype), operand.shape)


def _group_norm_type(scope: Scope, operand: TensorType, groups: Any, *parameters: TensorType | None) -> TensorType:
    expect_dtype(operand, FLOATING, "an input")
    if len(operand.shape) < 2:
        raise misfit("an input with at least 2 dims", describe(operand))
    by = constant("the number of groups", groups)
    if by <= 0 or (type(operand.shape[1]) is int and operand.shape[1] % by):
        raise misfit(f"groups that divide {operand.shape[1]} channels", str(by))
    for parameter in parameters:
        if parameter is not None:
            expect_rank(parameter, 1, "a weight or bias")
            expect_equal(scope, parameter.shape[0], operand.shape[1], "the sizes of a weight or bias and the channels")
    dtype = "float32" if _mixed(operand, *parameters) else operand.dtype
    return tensor(dtype, [operand.shape[0], by])


def _native_group_norm(
    scope: Scope,
    operand: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    batch: Any,
    channels: Any,
    area: Any,
    groups: Any,
    _: Any,
) -> list[TensorType]:
    statistics = _group_norm_type(scope, operand, groups, weight, bias)
    expect_equal(scope, batch, operand.shape[0], "N and the input's first size")
    expect_equal(scope, channels, operand.shape[1], "C and the input's second size")
    expect_equal(scope, area, scope.sizes.mul(*operand.shape[2:]), "HxW and the product of the input's other sizes")
    return [operand, statistics, statistics]


def _group_norm(
    scope: Scope, operand: TensorType, groups: Any, weight: TensorType | None, bias: TensorType | None, *_: Any
) -> TensorType:
    _group_norm_type(scope, operand, groups, weight, bias)
    return operand


def _channel_norm(scope: Scope, operand: TensorType, *parameters: TensorType | None) -> TensorType:
    expect_dtype(operand, FLOATING, "an input")
    if len(operand.shape) < 2:
        raise misfit("an input with at least 2 dims", describe(operand))
    for parameter in parameters:
        if parameter is not None:
            expect_rank(parameter, 1, "a weight, bias or statistic")
            expect_equal(
                scope, parameter.shape[0], operand.shape[1], "the sizes of a weight, bias or statistic and the channels"
            )
    return operand


def _instance_norm(
    scope: Scope,
    operand: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    mean: TensorType | None,
    variance: TensorType | None,
    use_input_stats: bool,
    *_: Any,
) -> TensorType:
    if use_input_stats and (mean is not None or variance is not None):
        raise misfit("no running statistics where those of the input are used", "some, which the op would change")
    return _channel_norm(scope, operand, weight, bias, mean, variance)


def _batch_norm(
    scope: Scope,
    operand: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    mean: TensorType | None,
    variance: TensorType | None,
    training: bool,
    *_: Any,
) -> TensorType:
    if training and (mean is not None or variance is not None):
        raise misfit("no running statistics in training", "some, which the op would change")
    return _channel_norm(scope, operand, weight, bias, mean, variance)


def _batch_norm_evaluated(
    scope: Scope,
    operand: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    mean: TensorType,
    variance: TensorType,
    *_: Any,
) -> list[TensorType]:
    dtype = "float32" if _mixed(operand, weight, bias, mean, variance) else operand.dtype
    found = _channel_norm(scope, operand, weight, bias, mean, variance)
    return [found, tensor(dtype, [0]), tensor(dtype, [0])]


def _batch_norm_of_itself(
    scope: Scope, operand: TensorType, weight: TensorType | None, bias: TensorType | None, training: bool, *_: Any
) -> list[TensorType]:
    if not training:
        raise misfit("training, as there are no running statistics", "evaluation")
    dtype = "float32" if _mixed(operand, weight, bias) else operand.dtype
    found = _channel_norm(scope, operand, weight, bias)
    statistics = tensor(dtype, [operand.shape[1]])
    return [found, statistics, statistics]


def _softmax(_: Scope, self: TensorType, dim: Any, half_to_float: bool) -> TensorType:
    expect_dtype(self, FLOATING, "an input")
    wrap_dim(dim, len(self.shape))
    if half_to_float:
        raise misfit("half_to_float of False, as on the CPU", "True")
    return self


def _softmax_as(_: Scope, self: TensorType, dim: Any, dtype: str | None) -> TensorType:
    result = dtype or self.dtype
    if result not in FLOATING:
        raise misfit("floats", result)
    wrap_dim(dim, len(self.shape))
    return tensor(result, self.shape)


def _embedding(_: Scope, weight: TensorType, indices: TensorType, *__: Any) -> TensorType:
    expect_rank(weight, 2, "a table")
    expect_index(indices, "indices")
    return tensor(weight.dtype, [*indices.shape, weight.shape[1]])


def _resampled_area(
    scope: Scope, operand: TensorType, dims: int, output_size: list[Any] | None, scales: list[Any] | None
) -> TensorType:
    expect_rank(operand, dims + 2, "an input")
    if (output_size is None) == (scales is None):
        raise misfit("either output_size or scale_factors", "both" if scales is not None else "neither")
    given = output_size if output_size is not None else scales
    assert given is not None  # one of them is
    if len(given) != dims:
        raise misfit(f"{dims} sizes or factors", str(len(given)))
    if output_size is not None:
        out = output_size
    else:
        out = [_scaled(scope, size, scale) for size, scale in zip(operand.shape[2:], given, strict=True)]
    if any(type(size) is int and size <= 0 for size in out):
        raise misfit("output sizes of 1 or more", str(out))
    return tensor(operand.dtype, [*operand.shape[:2], *out])


def _scaled(scope: Scope, size: Dim, scale: Any) -> Dim:
    if type(scale) is int or (type(scale) is float and scale.is_integer() and abs(scale) < 1 << 31):
        return scope.sizes.mul(size, int(scale))
    if type(size) is int and type(scale) is float:
        product = size * scale
        if not abs(product) < 1 << 53:
            raise misfit("a finite scale", str(scale))
        return int(product)
    return scope.sizes.make("trunc", ["mul", size, scale])


def _resampled(dims: int) -> Rule:
    def rule(scope: Scope, operand: TensorType, output_size: list[Any] | None, *rest: Any) -> TensorType:
        return _resampled_area(scope, operand, dims, output_size, rest[-1])

    return rule


def _grid_sampled(scope: Scope, operand: TensorType, grid: TensorType, *_: Any) -> TensorType:
    expect_dtype(operand, FLOATING, "an input")
    expect_rank(operand, 4, "an input")
    expect_rank(grid, 4, "a grid")
    if operand.dtype != grid.dtype:
        raise misfit("an input and a grid of one dtype", f"{operand.dtype} and {grid.dtype}")
    expect_equal(scope, operand.shape[0], grid.shape[0], "the batches of the input and the grid")
    expect_equal(scope, grid.shape[3], 2, "the grid's last size and 2")
    return tensor(operand.dtype, [operand.shape[0], operand.shape[1], grid.shape[1], grid.shape[2]])


OPS = [
    *define(
        FAMILY,
        _native_layer_norm,
        "native_layer_norm(Tensor input, int[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> "
        "(Tensor, Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _layer_norm,
        "layer_norm(Tensor input, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, "
        "float eps=1.0000000000000001e-05, bool cudnn_enable=True) -> Tensor",
    ),
    *define(
        FAMILY,
        _rms_norm,
        "rms_norm(Tensor input, int[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _native_group_norm,
        "native_group_norm(Tensor input, Tensor? weight, Tensor? bias, int N, int C, int HxW, int group, float eps) "
        "-> (Tensor, Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _group_norm,
        "group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, "
        "float eps=1.0000000000000001e-05, bool cudnn_enabled=True) -> Tensor",
    ),
    *define(
        FAMILY,
        _instance_norm,
        "instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
        "bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor",
    ),
    *define(
        FAMILY,
        _batch_norm,
        "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool "
        "training, float momentum, float eps, bool cudnn_enabled) -> Tensor",
    ),
    *define(
        FAMILY,
        _batch_norm_evaluated,
        "_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, "
        "Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _batch_norm_of_itself,
        "_native_batch_norm_legit.no_stats(Tensor input, Tensor? weight, Tensor? bias, bool training, float momentum, "
        "float eps) -> (Tensor, Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _softmax,
        """
        _log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor
        _softmax(Tensor self, int dim, bool half_to_float) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _softmax_as,
        """
        _safe_softmax(Tensor self, int dim, ScalarType? dtype=None) -> Tensor
        log_softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor
        softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _embedding,
        "embedding(Tensor weight, Tensor indices, int padding_idx=-1, bool scale_grad_by_freq=False, bool "
        "sparse=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _resampled(1),
        """
        upsample_linear1d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
        upsample_nearest1d.vec(Tensor input, int[]? output_size, float[]? scale_factors) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _resampled(2),
        """
        upsample_bicubic2d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
        upsample_bilinear2d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
        upsample_nearest2d.vec(Tensor input, int[]? output_size, float[]? scale_factors) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _resampled(3),
        """
        upsample_nearest3d.vec(Tensor input, int[]? output_size, float[]? scale_factors) -> Tensor
        upsample_trilinear3d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _grid_sampled,
        "grid_sampler_2d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners)"
        " -> Tensor",
    ),
]
