"""Norms, softmax, embedding, resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.translation.ops.pointwise import number
from coordinator.translation.ops.reduction import moments, reduced
from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Value, Writer, unsupported
from edge_agent.plan.shapes import wrap_dim

__all__: list[str] = []


def _scaled(w: Writer, x: Value, weight: Value | None, bias: Value | None, shape: Sequence[Any] | None = None) -> Value:
    def shaped(value: Value) -> Value:
        own = w.cast(value, x.dtype)
        return own if shape is None else w.reshape(own, shape)

    if weight is not None:
        x = w.op("Mul", x, shaped(weight), shape=x.shape)
    return x if bias is None else w.op("Add", x, shaped(bias), shape=x.shape)


def _inverse_root(w: Writer, variance: Value, eps: float) -> Value:
    return w.op(
        "Reciprocal",
        w.op("Sqrt", w.op("Add", variance, number(w, eps, variance)), shape=variance.shape),
        shape=variance.shape,
    )


def _normalised(w: Writer, x: Value, dims: Sequence[int], eps: float) -> tuple[Value, Value, Value]:
    """The normalised values, mean and inverse root of the variance, these with the dims kept."""
    variance, mean = moments(w, x, dims, 0, keep=True)
    rstd = _inverse_root(w, Value(variance.name, variance.dtype, mean.shape), eps)
    return w.op("Mul", w.op("Sub", x, mean), rstd, shape=x.dims), mean, rstd


@translates("native_layer_norm")
def _native_layer_norm(
    w: Writer, x: Value, shape: Sequence[Any], weight: Value | None, bias: Value | None, eps: float
) -> list[Value]:
    wide = w.wide(x)
    result, mean, rstd = _normalised(w, wide, list(range(x.rank - len(shape), x.rank)), eps)
    return [_scaled(w, result, weight, bias), mean, rstd]


@translates("layer_norm")
def _layer_norm(
    w: Writer, x: Value, shape: Sequence[Any], weight: Value | None, bias: Value | None, eps: float, _cudnn: bool
) -> Value:
    wide = w.wide(x)
    if weight is not None:
        axis = x.rank - len(shape)
        scale = w.cast(weight, wide.dtype)
        shift = None if bias is None else w.cast(bias, wide.dtype)
        return w.op("LayerNormalization", wide, scale, shift, axis=axis, epsilon=eps)
    return _native_layer_norm(w, x, shape, weight, bias, eps)[0]


@translates("rms_norm")
def _rms_norm(w: Writer, x: Value, shape: Sequence[Any], weight: Value | None, eps: float | None) -> Value:
    wide = w.wide(x)
    small = {"float64": 2.220446049250313e-16, "float16": 0.0009765625, "bfloat16": 0.0078125}
    eps = small.get(x.dtype, 1.1920928955078125e-07) if eps is None else eps
    squares = w.op("Mul", wide, wide, shape=x.dims)
    mean = reduced(w, "ReduceMean", squares, list(range(x.rank - len(shape), x.rank)), keep=True)
    return _scaled(w, w.op("Mul", wide, _inverse_root(w, mean, eps), shape=x.dims), weight, None)


def _grouped(
    w: Writer, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    batch, channels, *rest = x.dims
    wide = w.wide(x)
    each = channels // groups if isinstance(channels, int) else w.sizes.normal(["floordiv", channels, groups])
    parted = w.reshape(wide, [batch, groups, w.count([each, *rest])])
    result, mean, rstd = _normalised(w, parted, [2], eps)
    whole = w.reshape(result, x.dims)
    shape = [1, channels, *[1] * len(rest)]
    return _scaled(w, whole, weight, bias, shape), w.reshape(mean, [batch, groups]), w.reshape(rstd, [batch, groups])


@translates("native_group_norm")
def _native_group_norm(
    w: Writer,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    _n: Any,
    _c: Any,
    _hw: Any,
    groups: int,
    eps: float,
) -> list[Value]:
    return list(_grouped(w, x, groups, weight, bias, eps))


@translates("group_norm")
def _group_norm(
    w: Writer, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float, _cudnn: bool
) -> Value:
    return _grouped(w, x, groups, weight, bias, eps)[0]


def _per_channel(x: Value) -> list[Any]:
    return [1, x.dims[1], *[1] * (x.rank - 2)]


def _with_stats(
    w: Writer, x: Value, weight: Value | None, bias: Value | None, mean: Value, variance: Value, eps: float
) -> Value:
    wide = w.wide(x)
    shape = _per_channel(x)
    rstd = _inverse_root(w, w.cast(variance, wide.dtype), eps)
    factor = rstd if weight is None else w.op("Mul", rstd, w.cast(weight, wide.dtype), shape=rstd.shape)
    center = w.reshape(w.cast(mean, wide.dtype), shape)
    result = w.op("Mul", w.op("Sub", wide, center), w.reshape(factor, shape), shape=x.dims)
    return _scaled(w, result, None, bias, shape)


def _with_own_stats(
    w: Writer, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    dims = [0, *range(2, x.rank)]
    result, mean, rstd = _normalised(w, w.wide(x), dims, eps)
    channels = [x.dims[1]]
    return _scaled(w, result, weight, bias, _per_channel(x)), w.reshape(mean, channels), w.reshape(rstd, channels)


@translates("batch_norm")
def _batch_norm(
    w: Writer,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    _momentum: float,
    eps: float,
    _cudnn: bool,
) -> Value:
    if training or mean is None or variance is None:
        return _with_own_stats(w, x, weight, bias, eps)[0]
    return _with_stats(w, x, weight, bias, mean, variance, eps)


@translates("_native_batch_norm_legit_no_training")
def _batch_norm_inference(
    w: Writer,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    _momentum: float,
    eps: float,
) -> list[Value]:
    empty = [w.constant(np.zeros(0), kind.dtype) for kind in w.out[1:]]
    return [_with_stats(w, x, weight, bias, mean, variance, eps), *empty]


@translates("_native_batch_norm_legit.no_stats")
def _batch_norm_no_stats(
    w: Writer, x: Value, weight: Value | None, bias: Value | None, _training: bool, _momentum: float, eps: float
) -> list[Value]:
    return list(_with_own_stats(w, x, weight, bias, eps))


@translates("instance_norm")
def _instance_norm(
    w: Writer,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    use_input_stats: bool,
    _momentum: float,
    eps: float,
    _cudnn: bool,
) -> Value:
    if not use_input_stats and mean is not None and variance is not None:
        return _with_stats(w, x, weight, bias, mean, variance, eps)
    result, _, _ = _normalised(w, w.wide(x), list(range(2, x.rank)), eps)
    return _scaled(w, result, weight, bias, _per_channel(x))


# ------------------------------------------------------------------------------------------------ softmax


def _softmax(kind: str) -> Translation:
    def write(w: Writer, x: Value, dim: int, _rest: Any = None) -> Value:
        wide = w.wide(x)
        if not x.rank:
            return w.op("Sub", wide, wide) if kind == "LogSoftmax" else w.op("Exp", w.op("Sub", wide, wide))
        return w.op(kind, wide, axis=wrap_dim(dim, x.rank))

    return write


for _name in ("_softmax.default", "softmax.int"):
    TRANSLATIONS[f"aten.{_name}"] = _softmax("Softmax")
for _name in ("_log_softmax.default", "log_softmax.int"):
    TRANSLATIONS[f"aten.{_name}"] = _softmax("LogSoftmax")


@translates("_safe_softmax")
def _safe_softmax(w: Writer, x: Value, dim: int, _dtype: Any) -> Value:
    result = _softmax("Softmax")(w, x, dim)
    assert isinstance(result, Value)
    return w.op("Where", w.op("IsNaN", result, dtype="bool"), number(w, 0.0, result), result)


@translates("embedding")
def _embedding(w: Writer, weight: Value, indices: Value, *_rest: Any) -> Value:
    return w.op("Gather", weight, indices, axis=0)


# ------------------------------------------------------------------------------------------------ resampling


def _resize(w: Writer, x: Value, size: Any, scales: Any, **attributes: Any) -> Value:
    if x.dtype == "float64":
        raise unsupported("onnxruntime has no Resize of float64")
    wide = w.wide(x)
    if scales is not None:
        factors = w.constant(np.array([1.0, 1.0, *scales]), "float32")
        return w.op("Resize", wide, None, factors, **attributes)
    del size
    return w.op("Resize", wide, None, None, w.shape(w.out[0].shape), **attributes)


@translates("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec")
def _nearest(w: Writer, x: Value, size: Any, scales: Any) -> Value:
    return _resize(
        w, x, size, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@translates("upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec")
def _linear(w: Writer, x: Value, size: Any, align: bool, scales: Any) -> Value:
    mode = "align_corners" if align else "half_pixel"
    return _resize(w, x, size, scales, mode="linear", coordinate_transformation_mode=mode)


@translates("upsample_bicubic2d.vec")
def _cubic(w: Writer, x: Value, size: Any, align: bool, scales: Any) -> Value:
    mode = "align_corners" if align else "half_pixel"
    return _resize(w, x, size, scales, mode="cubic", coordinate_transformation_mode=mode, cubic_coeff_a=-0.75)


@translates("grid_sampler_2d")
def _grid_sampler(w: Writer, x: Value, grid: Value, mode: int, padding: int, align: bool) -> Value:
    return w.op(
        "GridSample",
        w.wide(x),
        w.wide(grid),
        mode=("linear", "nearest", "cubic")[mode],
        padding_mode=("zeros", "border", "reflection")[padding],
        align_corners=int(align),
    )
