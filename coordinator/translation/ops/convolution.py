"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.translation.ops.reduction import place_of, reduced
from coordinator.translation.ops.views import windows
from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Value, Writer, unsupported

__all__: list[str] = []


def _spread(values: Any, count: int) -> list[int]:
    listed = list(values) if isinstance(values, list) else [values]
    return listed * count if len(listed) == 1 else listed


def _batched(w: Writer, x: Value, spatial: int) -> Value:
    return x if x.rank == spatial + 2 else w.unsqueeze(x, 0)


def _unbatched(w: Writer, result: Value, x: Value, spatial: int) -> Value:
    return result if x.rank == spatial + 2 else w.op("Squeeze", result, w.ints([0]))


def _convolution(
    w: Writer,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Sequence[int],
    dilation: Any,
    groups: int,
    *,
    output_padding: Any = None,
) -> Value:
    spatial = weight.rank - 2
    attributes: dict[str, Any] = {
        "strides": _spread(stride, spatial),
        "dilations": _spread(dilation, spatial),
        "group": groups,
        "pads": list(padding) if len(padding) == 2 * spatial else _spread(list(padding), spatial) * 2,
    }
    kind = "Conv"
    if output_padding is not None:
        kind = "ConvTranspose"
        attributes["output_padding"] = _spread(output_padding, spatial)
    shape = [size for size in weight.dims[2:] if isinstance(size, int)]
    if len(shape) == spatial:
        attributes["kernel_shape"] = shape
    inputs = [w.wide(_batched(w, x, spatial)), w.wide(weight), None if bias is None else w.wide(bias)]
    return _unbatched(w, w.op(kind, *inputs, **attributes), x, spatial)


@translates("convolution")
def _convolve(
    w: Writer,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    padding = _spread(padding, weight.rank - 2) * 2
    return _convolution(
        w, x, weight, bias, stride, padding, dilation, groups, output_padding=output_padding if transposed else None
    )


@translates("conv1d", "conv2d", "conv3d")
def _conv(
    w: Writer, x: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    return _convolution(w, x, weight, bias, stride, _spread(padding, weight.rank - 2) * 2, dilation, groups)


@translates("conv1d.padding", "conv2d.padding")
def _conv_padding(
    w: Writer, x: Value, weight: Value, bias: Value | None, stride: Any, padding: str, dilation: Any, groups: int
) -> Value:
    spatial = weight.rank - 2
    amounts = [0] * 2 * spatial
    if padding == "same":
        steps = _spread(dilation, spatial)
        if not all(isinstance(size, int) for size in weight.dims[2:]):
            raise unsupported("a kernel whose size is known only when the plan runs is not translated")
        totals = [step * (int(size) - 1) for step, size in zip(steps, weight.dims[2:], strict=True)]  # type: ignore[arg-type]
        amounts = [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
    return _convolution(w, x, weight, bias, stride, amounts, dilation, groups)


@translates("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    w: Writer,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Value:
    padding = _spread(padding, weight.rank - 2) * 2
    return _convolution(w, x, weight, bias, stride, padding, dilation, groups, output_padding=output_padding)


# ------------------------------------------------------------------------------------------------ pooling


def _pool(
    w: Writer, x: Value, spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
) -> tuple[Value, dict[str, Any]]:
    sizes = _spread(kernel, spatial)
    attributes: dict[str, Any] = {
        "kernel_shape": sizes,
        "strides": _spread(stride, spatial) if stride else sizes,
        "pads": _spread(padding, spatial) * 2,
        "ceil_mode": int(ceil),
    }
    if dilation is not None:
        attributes["dilations"] = _spread(dilation, spatial)
    return _batched(w, x, spatial), attributes


def _max_pool(spatial: int, *, indices: bool) -> Translation:
    def write(
        w: Writer, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
    ) -> Value | list[Value]:
        data, attributes = _pool(w, x, spatial, kernel, stride, padding, dilation, ceil)
        if not indices:
            return _unbatched(w, w.op("MaxPool", data, **attributes), x, spatial)
        results = w.ops("MaxPool", data, dtypes=(None, "int64"), **attributes)
        # onnx counts through the whole tensor, torch within each plane
        plane = w.size(w.count(data.dims[2:]))
        results[1] = w.op("Mod", results[1], plane)
        return [_unbatched(w, one, x, spatial) for one in results]

    return write


for _spatial in (1, 2, 3):
    TRANSLATIONS[f"aten.max_pool{_spatial}d.default"] = _max_pool(_spatial, indices=False)
    TRANSLATIONS[f"aten.max_pool{_spatial}d_with_indices.default"] = _max_pool(_spatial, indices=True)


def _avg_pool(spatial: int) -> Translation:
    def write(
        w: Writer, x: Value, kernel: Any, stride: Any, padding: Any, ceil: bool, count_pad: bool, divisor: Any = None
    ) -> Value:
        data, attributes = _pool(w, w.wide(x), spatial, kernel, stride, padding, None, ceil)
        if divisor is not None:
            if ceil:
                raise unsupported("pooling with a divisor of its own and ceil_mode is not translated")
            attributes["count_include_pad"] = 1
            pooled = w.op("AveragePool", data, **attributes)
            factor = float(np.prod(attributes["kernel_shape"])) / divisor
            return _unbatched(w, w.op("Mul", pooled, w.operand(factor, pooled.dtype)), x, spatial)
        attributes["count_include_pad"] = int(count_pad)
        return _unbatched(w, w.op("AveragePool", data, **attributes), x, spatial)

    return write


for _spatial in (1, 2, 3):
    TRANSLATIONS[f"aten.avg_pool{_spatial}d.default"] = _avg_pool(_spatial)


def _adaptive_avg(spatial: int) -> Translation:
    def write(w: Writer, x: Value, _output_size: Any) -> Value:
        result = w.wide(x)
        for k in range(spatial):
            axis = x.rank - spatial + k
            before, after = x.dims[axis], w.out[0].shape[axis]
            if before == after:
                continue
            if after == 1:
                result = reduced(w, "ReduceMean", result, [axis], keep=True)
                continue
            if not (isinstance(before, int) and isinstance(after, int)):
                raise unsupported("adaptive pooling of a size that is known only when the plan runs is not translated")
            order = [*(place for place in range(x.rank) if place != axis), axis]
            shape = [*result.dims[:axis], after, *result.dims[axis + 1 :]]
            moved = w.op("MatMul", w.transpose(result, order), w.constant(_shares(before, after), result.dtype))
            back = [order.index(place) for place in range(x.rank)]
            result = w.op("Transpose", moved, perm=back, shape=shape)
        return result

    return write


def _shares(before: int, after: int) -> Any:
    """How much each element before counts in each of the means after."""
    shares = np.zeros((before, after))
    for k in range(after):
        start, end = k * before // after, -(-(k + 1) * before // after)
        shares[start:end, k] = 1 / (end - start)
    return shares


for _spatial, _names in (
    (1, ("adaptive_avg_pool1d",)),
    (2, ("_adaptive_avg_pool2d", "adaptive_avg_pool2d")),
    (3, ("_adaptive_avg_pool3d", "adaptive_avg_pool3d")),
):
    for _name in _names:
        TRANSLATIONS[f"aten.{_name}.default"] = _adaptive_avg(_spatial)


def _adaptive_max(spatial: int) -> Translation:
    def write(w: Writer, x: Value, _output_size: Any) -> list[Value]:
        before, after = x.dims[x.rank - spatial :], w.out[0].shape[x.rank - spatial :]
        if all(size == 1 for size in after):
            flat = w.reshape(x, [*x.dims[: x.rank - spatial], w.count(before)])
            place = place_of(w, "ArgMax", flat, -1, keep=False)
            top = reduced(w, "ReduceMax", flat, [-1])
            return [w.op("Reshape", one, w.shape(w.out[0].shape)) for one in (top, place)]
        sizes = list(zip(before, after, strict=True))
        if not all(isinstance(a, int) and isinstance(b, int) and a % b == 0 for a, b in sizes):
            raise unsupported("adaptive pooling into windows of different sizes is not translated")
        kernel = [int(a) // int(b) for a, b in sizes]  # type: ignore[arg-type]
        found = _max_pool(spatial, indices=True)(w, x, kernel, kernel, [0], [1], False)
        assert isinstance(found, list)
        return found

    return write


for _spatial in (1, 2, 3):
    TRANSLATIONS[f"aten.adaptive_max_pool{_spatial}d.default"] = _adaptive_max(_spatial)


# ------------------------------------------------------------------------------------------------ columns


@translates("im2col")
def _im2col(w: Writer, x: Value, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Value:
    data = _batched(w, x, 2)
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (_spread(one, 2) for one in (kernel, dilation, padding, stride))
    batch, channels, height, width = data.dims
    rows = _windows_in(w, height, kh, dh, ph, sh)
    columns = _windows_in(w, width, kw, dw, pw, sw)
    padded = w.op("Pad", data, w.ints([0, 0, ph, pw, 0, 0, ph, pw]), w.operand(0, x.dtype))
    parts = w.op("Gather", padded, windows(w, rows, kh, sh, dh), axis=2)
    parts = w.op("Gather", parts, windows(w, columns, kw, sw, dw), axis=4)
    # batch, channels, rows, kh, columns, kw
    turned = w.op("Transpose", parts, perm=[0, 1, 3, 5, 2, 4])
    del batch, channels
    return w.op("Reshape", turned, w.shape(w.out[0].shape))


def _windows_in(w: Writer, size: Any, kernel: int, dilation: int, padding: int, stride: int) -> Any:
    rest = 2 * padding - dilation * (kernel - 1) - 1
    if isinstance(size, int):
        return (size + rest) // stride + 1
    return w.sizes.normal(["add", ["floordiv", ["add", size, rest], stride], 1])


@translates("col2im")
def _col2im(w: Writer, x: Value, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Value:
    data = x if x.rank == 3 else w.unsqueeze(x, 0)
    result = w.op(
        "Col2Im",
        w.wide(data),
        w.shape(size),
        w.ints(_spread(kernel, 2)),
        dilations=_spread(dilation, 2),
        pads=_spread(padding, 2) * 2,
        strides=_spread(stride, 2),
    )
    return result if x.rank == 3 else w.op("Squeeze", result, w.ints([0]))
