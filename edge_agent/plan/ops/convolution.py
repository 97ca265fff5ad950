"""Convolutions, pooling, and the unfolding that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent.plan.dtypes import COMPLEX, FLOATING, INTEGRAL
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import constant, describe, expect_dtype, expect_equal, expect_rank, misfit, spread, tensor
from edge_agent.plan.spec import Rule, Scope, define

__all__ = ["OPS"]

FAMILY = "convolution"


def _positive(values: Sequence[Any], name: str, least: int = 1) -> None:
    if any(type(value) is int and value < least for value in values):
        raise misfit(f"{name} of {least} or more", str(list(values)))


def _windows(scope: Scope, size: Dim, kernel: Dim, stride: Any, padding: Any, dilation: Any) -> Dim:
    """How often a window of ``kernel`` elements, ``dilation`` apart, fits: floor((size + 2 padding - dilation (kernel
    - 1) - 1) / stride) + 1.
    """
    sizes = scope.sizes
    span = sizes.add(sizes.mul(dilation, sizes.sub(kernel, 1)), 1)
    count = sizes.add(sizes.floordiv(sizes.sub(sizes.add(size, sizes.mul(2, padding)), span), stride), 1)
    if type(count) is int and count < 1:
        raise misfit("an input at least as large as the kernel", f"a size of {size} and a kernel of {span}")
    return count


def _convolved(
    scope: Scope,
    operand: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    transposed: bool,
    output_padding: Sequence[Any],
    groups: Any,
) -> TensorType:
    dims = len(weight.shape) - 2
    if dims not in (1, 2, 3):
        raise misfit("a weight with 3, 4 or 5 dims", describe(weight))
    expect_rank(operand, (dims + 1, dims + 2), "an input")
    dtypes = {one.dtype for one in (operand, weight, bias) if one is not None}
    if len(dtypes) > 1:
        raise misfit("an input, a weight and a bias of one dtype", " and ".join(sorted(dtypes)))
    expect_dtype(operand, FLOATING | COMPLEX | INTEGRAL, "an input")
    strides = spread(stride, dims, "stride")
    paddings = spread(padding, dims, "padding")
    dilations = spread(dilation, dims, "dilation")
    extra = spread(output_padding, dims, "output_padding")
    by = constant("groups", groups)
    _positive([*strides, *dilations, by], "stride, dilation and groups")
    _positive([*paddings, *extra], "padding", 0)
    sizes = scope.sizes
    batch, channels, area = operand.shape[: -dims - 1], operand.shape[-dims - 1], operand.shape[-dims:]
    if transposed:
        expect_equal(scope, channels, weight.shape[0], "the input's channels and the weight's")
        made = sizes.mul(weight.shape[1], by)
        out: list[Dim] = []
        for place, size in enumerate(area):
            span = sizes.mul(dilations[place], sizes.sub(weight.shape[2 + place], 1))
            grown = sizes.mul(sizes.sub(size, 1), strides[place])
            made_size = sizes.add(grown, sizes.mul(-2, paddings[place]), span, extra[place], 1)
            if type(made_size) is int and made_size < 1:
                raise misfit("a result with at least one element in each dim", str(made_size))
            out.append(made_size)
    else:
        expect_equal(scope, channels, sizes.mul(weight.shape[1], by), "the input's channels and the weight's")
        made = weight.shape[0]
        out = [
            _windows(scope, size, weight.shape[2 + place], strides[place], paddings[place], dilations[place])
            for place, size in enumerate(area)
        ]
    if type(made) is int and made % by:
        raise misfit(f"output channels that {by} groups divide", str(made))
    if bias is not None:
        expect_rank(bias, 1, "a bias")
        expect_equal(scope, bias.shape[0], made, "the bias's size and the output's channels")
    return tensor(operand.dtype, [*batch, made, *out])


def _plain(dims: int) -> Rule:
    def rule(
        scope: Scope,
        operand: TensorType,
        weight: TensorType,
        bias: TensorType | None,
        stride: list[Any],
        padding: list[Any],
        dilation: list[Any],
        groups: Any,
    ) -> TensorType:
        expect_rank(weight, dims + 2, "a weight")
        return _convolved(scope, operand, weight, bias, stride, padding, dilation, False, [0], groups)

    return rule


def _padded_by_name(dims: int) -> Rule:
    def rule(
        scope: Scope,
        operand: TensorType,
        weight: TensorType,
        bias: TensorType | None,
        stride: list[Any],
        padding: str,
        dilation: list[Any],
        groups: Any,
    ) -> TensorType:
        if padding not in ("valid", "same"):
            raise misfit("a padding of 'valid' or 'same'", repr(padding))
        expect_rank(weight, dims + 2, "a weight")
        found = _convolved(scope, operand, weight, bias, stride, [0], dilation, False, [0], groups)
        if padding == "valid":
            return found
        if any(step != 1 for step in stride):
            raise misfit("a stride of 1 with padding 'same'", str(stride))
        return tensor(found.dtype, [*found.shape[:-dims], *operand.shape[-dims:]])

    return rule


def _transposed(dims: int) -> Rule:
    def rule(
        scope: Scope,
        operand: TensorType,
        weight: TensorType,
        bias: TensorType | None,
        stride: list[Any],
        padding: list[Any],
        output_padding: list[Any],
        groups: Any,
        dilation: list[Any],
    ) -> TensorType:
        expect_rank(weight, dims + 2, "a weight")
        return _convolved(scope, operand, weight, bias, stride, padding, dilation, True, output_padding, groups)

    return rule


def _pooled(
    scope: Scope,
    operand: TensorType,
    dims: int,
    kernel: Sequence[Any],
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    ceil_mode: bool,
) -> TensorType:
    expect_dtype(operand, INTEGRAL | FLOATING, "real numbers")
    expect_rank(operand, (dims + 1, dims + 2), "an input")
    kernels = spread(kernel, dims, "kernel_size")
    strides = spread(stride, dims, "stride") if stride else kernels
    paddings = spread(padding, dims, "padding")
    dilations = spread(dilation, dims, "dilation")
    _positive([*kernels, *strides, *dilations], "kernel_size, stride and dilation")
    _positive(paddings, "padding", 0)
    sizes = scope.sizes
    out: list[Dim] = []
    for size, window, step, pad, apart in zip(
        operand.shape[-dims:], kernels, strides, paddings, dilations, strict=True
    ):
        if type(pad) is int and type(window) is int and pad > window // 2:
            raise misfit(f"a padding of at most half the kernel, {window // 2}", str(pad))
        if not ceil_mode:
            count = _windows(scope, size, window, step, pad, apart)
        else:
            # as in aten/src/ATen/native/Pool.h: rounded up, unless the last window would start beyond the input
            span = sizes.add(sizes.mul(apart, sizes.sub(window, 1)), 1)
            room = sizes.sub(sizes.add(size, sizes.mul(2, pad)), span)
            rounded = sizes.add(sizes.make("ceildiv", room, step), 1)
            start, end = sizes.mul(sizes.sub(rounded, 1), step), sizes.add(size, pad)
            if type(start) is int and type(end) is int:
                count = sizes.sub(rounded, 1) if start >= end else rounded
            else:
                count = sizes.make("where", ["ge", start, end], sizes.sub(rounded, 1), rounded)
        if type(count) is int and count < 1:
            raise misfit("an input at least as large as the kernel", f"a size of {size} and a kernel of {window}")
        out.append(count)
    return tensor(operand.dtype, [*operand.shape[:-dims], *out])


def _max_pool(dims: int) -> Rule:
    def rule(
        scope: Scope, self: TensorType, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> TensorType:
        return _pooled(scope, self, dims, kernel, stride, padding, dilation, ceil_mode)

    return rule


def _max_pool_with_indices(dims: int) -> Rule:
    def rule(
        scope: Scope, self: TensorType, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> list[TensorType]:
        found = _pooled(scope, self, dims, kernel, stride, padding, dilation, ceil_mode)
        return [found, tensor("int64", found.shape)]

    return rule


def _average_pool(dims: int) -> Rule:
    def rule(
        scope: Scope, self: TensorType, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, *_: Any
    ) -> TensorType:
        return _pooled(scope, self, dims, kernel, stride, padding, [1], ceil_mode)

    return rule


def _adaptive(dims: int) -> Rule:
    def rule(_: Scope, self: TensorType, output_size: list[Any]) -> TensorType:
        expect_dtype(self, FLOATING, "an input")
        expect_rank(self, (dims + 1, dims + 2), "an input")
        out = spread(output_size, dims, "output_size")
        _positive(out, "output_size", 0)
        return tensor(self.dtype, [*self.shape[:-dims], *out])

    return rule


def _adaptive_max(dims: int) -> Rule:
    average = _adaptive(dims)

    def rule(scope: Scope, self: TensorType, output_size: list[Any]) -> list[TensorType]:
        found = average(scope, self, output_size)
        assert isinstance(found, TensorType)  # of one output
        return [found, tensor("int64", found.shape)]

    return rule


def _columns(
    scope: Scope, self: TensorType, kernel: list[Any], dilation: list[Any], padding: list[Any], stride: list[Any]
) -> TensorType:
    expect_rank(self, (3, 4), "an input")
    kernels, strides = spread(kernel, 2, "kernel_size"), spread(stride, 2, "stride")
    paddings, dilations = spread(padding, 2, "padding"), spread(dilation, 2, "dilation")
    _positive([*kernels, *strides, *dilations], "kernel_size, stride and dilation")
    sizes = scope.sizes
    counts = [
        _windows(scope, size, kernels[place], strides[place], paddings[place], dilations[place])
        for place, size in enumerate(self.shape[-2:])
    ]
    return tensor(self.dtype, [*self.shape[:-3], sizes.mul(self.shape[-3], *kernels), sizes.mul(*counts)])


def _from_columns(
    scope: Scope,
    self: TensorType,
    output: list[Any],
    kernel: list[Any],
    dilation: list[Any],
    padding: list[Any],
    stride: list[Any],
) -> TensorType:
    expect_rank(self, (2, 3), "columns")
    area, kernels = spread(output, 2, "output_size"), spread(kernel, 2, "kernel_size")
    strides, paddings, dilations = (
        spread(stride, 2, "stride"),
        spread(padding, 2, "padding"),
        spread(dilation, 2, "dilation"),
    )
    _positive([*kernels, *strides, *dilations], "kernel_size, stride and dilation")
    sizes = scope.sizes
    counts = [
        _windows(scope, size, kernels[place], strides[place], paddings[place], dilations[place])
        for place, size in enumerate(area)
    ]
    expect_equal(scope, self.shape[-1], sizes.mul(*counts), "the number of columns and of windows")
    return tensor(self.dtype, [*self.shape[:-2], sizes.floordiv(self.shape[-2], sizes.mul(*kernels)), *area])


OPS = [
    *define(
        FAMILY,
        _convolved,
        "convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
        "bool transposed, int[] output_padding, int groups) -> Tensor",
    ),
    *define(
        FAMILY,
        _plain(1),
        "conv1d(Tensor input, Tensor weight, Tensor? bias=None, int[1] stride=[1], int[1] padding=[0], "
        "int[1] dilation=[1], int groups=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _plain(2),
        "conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=[1, 1], int[2] padding=[0, 0], "
        "int[2] dilation=[1, 1], int groups=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _plain(3),
        "conv3d(Tensor input, Tensor weight, Tensor? bias=None, int[3] stride=[1, 1, 1], int[3] padding=[0, 0, 0], "
        "int[3] dilation=[1, 1, 1], int groups=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _padded_by_name(1),
        'conv1d.padding(Tensor input, Tensor weight, Tensor? bias=None, int[1] stride=[1], str padding="valid", '
        "int[1] dilation=[1], int groups=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _padded_by_name(2),
        'conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=[1, 1], str padding="valid", '
        "int[2] dilation=[1, 1], int groups=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _transposed(1),
        "conv_transpose1d(Tensor input, Tensor weight, Tensor? bias=None, int[1] stride=[1], int[1] padding=[0], "
        "int[1] output_padding=[0], int groups=1, int[1] dilation=[1]) -> Tensor",
    ),
    *define(
        FAMILY,
        _transposed(2),
        "conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=[1, 1], int[2] "
        "padding=[0, 0], int[2] output_padding=[0, 0], int groups=1, int[2] dilation=[1, 1]) -> Tensor",
    ),
    *define(
        FAMILY,
        _transposed(3),
        "conv_transpose3d.input(Tensor input, Tensor weight, Tensor? bias=None, int[3] stride=[1, 1, 1], "
        "int[3] padding=[0, 0, 0], int[3] output_padding=[0, 0, 0], int groups=1, int[3] dilation=[1, 1, 1]) -> Tensor",
    ),
    *define(
        FAMILY,
        _max_pool(1),
        "max_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], int[1] dilation=[1], "
        "bool ceil_mode=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _max_pool(2),
        "max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool "
        "ceil_mode=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _max_pool(3),
        "max_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] dilation=1, bool "
        "ceil_mode=False) -> Tensor",
    ),
    *define(
        FAMILY,
        _max_pool_with_indices(1),
        "max_pool1d_with_indices(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], int[1] "
        "dilation=[1], bool ceil_mode=False) -> (Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _max_pool_with_indices(2),
        "max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] "
        "dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _max_pool_with_indices(3),
        "max_pool3d_with_indices(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] "
        "dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)",
    ),
    *define(
        FAMILY,
        _average_pool(1),
        "avg_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], bool ceil_mode=False, "
        "bool count_include_pad=True) -> Tensor",
    ),
    *define(
        FAMILY,
        _average_pool(2),
        "avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, "
        "bool count_include_pad=True, int? divisor_override=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _average_pool(3),
        "avg_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, bool ceil_mode=False, "
        "bool count_include_pad=True, int? divisor_override=None) -> Tensor",
    ),
    *define(FAMILY, _adaptive(1), "adaptive_avg_pool1d(Tensor self, int[1] output_size) -> Tensor"),
    *define(
        FAMILY,
        _adaptive(2),
        """
        _adaptive_avg_pool2d(Tensor self, int[2] output_size) -> Tensor
        adaptive_avg_pool2d(Tensor self, int[2] output_size) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _adaptive(3),
        """
        _adaptive_avg_pool3d(Tensor self, int[3] output_size) -> Tensor
        adaptive_avg_pool3d(Tensor self, int[3] output_size) -> Tensor
        """,
    ),
    *define(FAMILY, _adaptive_max(1), "adaptive_max_pool1d(Tensor self, int[1] output_size) -> (Tensor, Tensor)"),
    *define(FAMILY, _adaptive_max(2), "adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)"),
    *define(FAMILY, _adaptive_max(3), "adaptive_max_pool3d(Tensor self, int[3] output_size) -> (Tensor, Tensor)"),
    *define(
        FAMILY,
        _columns,
        "im2col(Tensor self, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride) -> Tensor",
    ),
    *define(
        FAMILY,
        _from_columns,
        "col2im(Tensor self, int[2] output_size, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] "
        "stride) -> Tensor",
    ),
]
