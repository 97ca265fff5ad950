"""Ops that autograd asks for, in ops of the registry, where torch has no decomposition of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._decomp import decomposition_table

__all__ = ["BENEATH"]

aten: Any = torch.ops.aten


def _spread(values: Sequence[Any] | int, dims: int) -> list[Any]:
    found = [values] if isinstance(values, int) else list(values)
    return found * dims if len(found) == 1 else found


def _convolution_backward(
    grad: torch.Tensor,
    operand: torch.Tensor,
    weight: torch.Tensor,
    _bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Convolutions again: with the kernel turned round for the input; of input and gradient for the weight."""
    dims = weight.dim() - 2
    stride, padding, dilation = _spread(stride, dims), _spread(padding, dims), _spread(dilation, dims)
    area, kernel, made = operand.shape[2:], weight.shape[2:], grad.shape[2:]
    zeros = [0] * dims
    to_input = to_weight = to_bias = None
    if mask[0]:
        if transposed:
            to_input = aten.convolution(grad, weight, None, stride, padding, dilation, False, zeros, groups)
        else:
            # what the strides left over at the end gets no gradient
            extra = [
                area[k] - ((made[k] - 1) * stride[k] - 2 * padding[k] + dilation[k] * (kernel[k] - 1) + 1)
                for k in range(dims)
            ]
            to_input = aten.convolution(grad, weight, None, stride, padding, dilation, True, extra, groups)
    if mask[1]:
        # for a transposed convolution, input and gradient change their parts
        first, second = (grad, operand) if transposed else (operand, grad)
        to_weight = _weight_gradient(first, second, weight, stride, padding, dilation, groups)
    if mask[2]:
        to_bias = grad.sum([0, *range(2, dims + 2)])
    return to_input, to_weight, to_bias


def _weight_gradient(
    operand: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """The batch is what is summed over, so it takes the place of the channels: the input's channels are the batch, the
    gradient's are the kernels; strides and dilations change places.
    """
    dims = weight.dim() - 2
    batch, channels = operand.shape[0], operand.shape[1]
    made = grad.shape[1]
    if groups == 1:
        rows, kernels = operand.transpose(0, 1), grad.transpose(0, 1)
        found = aten.convolution(rows, kernels, None, dilation, padding, stride, False, [0] * dims, 1)
        found = found.transpose(0, 1)
    else:
        # [g, c/g, n, ...] as a batch of c/g, with g groups of n channels
        rows = operand.reshape(batch, groups, channels // groups, *operand.shape[2:])
        rows = rows.permute(2, 1, 0, *range(3, dims + 3)).reshape(
            channels // groups, groups * batch, *operand.shape[2:]
        )
        kernels = grad.reshape(batch, made, *grad.shape[2:]).transpose(0, 1)
        found = aten.convolution(rows, kernels, None, dilation, padding, stride, False, [0] * dims, groups)
        found = found.transpose(0, 1)
    for k in range(dims):
        found = found.narrow(2 + k, 0, weight.shape[2 + k])
    gradient: torch.Tensor = found.contiguous()
    return gradient


def _max_pool_backward(dims: int) -> Any:
    def backward(grad: torch.Tensor, operand: torch.Tensor, *rest: Any) -> torch.Tensor:
        """Each gradient goes where its maximum was."""
        indices = rest[-1]
        lead = operand.dim() - dims
        area = operand.shape[lead:]
        flat = operand.new_zeros([*operand.shape[:lead], math.prod(area)])
        rows = flat.scatter_add(-1, indices.flatten(lead), grad.flatten(lead))
        return rows.reshape(operand.shape)

    return backward


def _average_pool_backward(dims: int) -> Any:
    def backward(
        grad: torch.Tensor,
        operand: torch.Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None = None,
    ) -> torch.Tensor:
        """Each gradient is spread over its window: a transposed convolution with a kernel of ones."""
        kernel, padding = _spread(kernel, dims), _spread(padding, dims)
        stride = _spread(stride, dims) if stride else kernel
        lead = operand.dim() - dims
        area, made = operand.shape[lead:], grad.shape[lead:]
        ones = grad.new_ones([1, 1, *kernel])
        # a window that sticks out is cut: past the padding it has no elements
        reach = [(made[k] - 1) * stride[k] + kernel[k] for k in range(dims)]
        rows = grad.reshape(-1, 1, *made)
        if divisor_override:
            rows = rows / divisor_override
        elif (count_include_pad or not any(padding)) and not ceil_mode:
            rows = rows / math.prod(kernel)
        else:
            inside = grad.new_ones([1, 1, *area])
            edge = [0] * (2 * dims)
            beyond = [0] * (2 * dims)
            for k in range(dims):
                place = 2 * (dims - 1 - k)
                edge[place] = edge[place + 1] = padding[k]
                beyond[place + 1] = max(reach[k] - area[k] - 2 * padding[k], 0)
            padded = aten.constant_pad_nd(inside, edge, 1.0 if count_include_pad else 0.0)
            padded = aten.constant_pad_nd(padded, beyond, 0.0)
            counts = aten.convolution(padded, ones, None, stride, [0] * dims, [1] * dims, False, [0] * dims, 1)
            for k in range(dims):
                counts = counts.narrow(2 + k, 0, made[k])
            rows = rows / counts
        found = aten.convolution(rows, ones, None, stride, [0] * dims, [1] * dims, True, [0] * dims, 1)
        for k in range(dims):
            short = area[k] + padding[k] - reach[k]
            if not isinstance(short, int) or short > 0:
                pad = [0] * (2 * dims)
                pad[2 * (dims - 1 - k) + 1] = torch.sym_max(short, 0)  # type: ignore[no-untyped-call]
                found = aten.constant_pad_nd(found, pad, 0.0)
            found = found.narrow(2 + k, padding[k], area[k])
        result: torch.Tensor = found.reshape(operand.shape)
        return result

    return backward


def _adaptive_average_pool_backward(dims: int) -> Any:
    def backward(grad: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
        """A product with the matrix of the windows, dim by dim."""
        size: Any
        made: Any
        lead = operand.dim() - dims
        found: Any = grad
        for k in range(dims):
            size, made = operand.shape[lead + k], grad.shape[lead + k]
            found = found.transpose(lead + k, -1) @ _windows(size, made, grad)
            found = found.transpose(lead + k, -1)
        result: torch.Tensor = found
        return result

    return backward


def _windows(size: Any, made: Any, like: torch.Tensor) -> torch.Tensor:
    """``[made, size]``: one over the window's length, where an element is in the window: from floor(k size / made) to
    ceil((k + 1) size / made), as in aten/src/ATen/native/AdaptivePooling.h.
    """
    place = torch.arange(made).unsqueeze(1)
    element = torch.arange(size).unsqueeze(0)
    start = (place * size) // made
    end = ((place + 1) * size + made - 1) // made
    inside = (element >= start) & (element < end)
    share: torch.Tensor = inside.to(like.dtype) / (end - start).to(like.dtype)
    return share


def _shrink_backward(grad: torch.Tensor, operand: torch.Tensor, bound: float) -> torch.Tensor:
    within = (operand >= -bound) & (operand <= bound)
    return torch.where(within, torch.zeros_like(grad), grad)


def _replication_pad_backward(dims: int) -> Any:
    def backward(grad: torch.Tensor, operand: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        """What went to the edge's copies comes back to the edge: a sum by index, dim by dim."""
        found = grad
        for k in range(dims):
            dim = operand.dim() - 1 - k
            size = operand.shape[dim]
            index = (torch.arange(grad.shape[dim]) - padding[2 * k]).clamp(0, size - 1)
            shape = list(found.shape)
            shape[dim] = size
            found = found.new_zeros(shape).index_add(dim, index, found)
        return found

    return backward


def _nearest_backward(dims: int) -> Any:
    def backward(
        grad: torch.Tensor, output_size: Sequence[int], input_size: Sequence[int], *scales: float | None
    ) -> torch.Tensor:
        """Each gradient goes back to the element that it was copied from."""
        found = grad
        for k in range(dims):
            dim = 2 + k
            size, made = input_size[dim], output_size[k]
            scale = scales[k] if k < len(scales) else None
            step = 1.0 / scale if scale else size / made
            index = (torch.arange(made, dtype=torch.float32) * step).floor().to(torch.int64).clamp(max=size - 1)
            shape = list(found.shape)
            shape[dim] = size
            found = found.new_zeros(shape).index_add(dim, index, found)
        return found

    return backward


def _linear_backward(dims: int) -> Any:
    def backward(
        grad: torch.Tensor,
        output_size: Sequence[int],
        input_size: Sequence[int],
        align_corners: bool,
        *scales: float | None,
    ) -> torch.Tensor:
        """Resampling is a product with a matrix, dim by dim; so is its gradient, with the matrix turned round."""
        found = grad
        for k in range(dims):
            dim = 2 + k
            matrix = _weights_of_lines(
                input_size[dim], output_size[k], align_corners, scales[k] if k < len(scales) else None, grad
            )
            found = (found.transpose(dim, -1) @ matrix).transpose(dim, -1)
        return found

    return backward


def _weights_of_lines(
    size: Any, made: Any, align_corners: bool, scale: float | None, like: torch.Tensor
) -> torch.Tensor:
    """``[made, size]``: how much of each element a new one takes, as in aten/src/ATen/native/UpSample.h."""
    place = torch.arange(made, dtype=like.dtype)
    if align_corners:
        at = place * ((size - 1) / (made - 1) if made > 1 else 0.0)
    else:
        step = 1.0 / scale if scale else size / made
        at = ((place + 0.5) * step - 0.5).clamp(min=0)
    low = at.floor().clamp(max=size - 1)
    share = at - low
    high = (low + 1).clamp(max=size - 1)
    element = torch.arange(size, dtype=like.dtype).unsqueeze(0)
    first = (element == low.unsqueeze(1)).to(like.dtype) * (1 - share).unsqueeze(1)
    return first + (element == high.unsqueeze(1)).to(like.dtype) * share.unsqueeze(1)


_MISSING: dict[Any, Any] = {
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward(2),
    aten.max_pool3d_with_indices_backward.default: _max_pool_backward(3),
    aten.adaptive_max_pool2d_backward.default: _max_pool_backward(2),
    aten.adaptive_max_pool3d_backward.default: _max_pool_backward(3),
    aten.avg_pool2d_backward.default: _average_pool_backward(2),
    aten.avg_pool3d_backward.default: _average_pool_backward(3),
    aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward(2),  # noqa: SLF001 -- an op's name
    aten._adaptive_avg_pool3d_backward.default: _adaptive_average_pool_backward(3),  # noqa: SLF001 -- an op's name
    aten.hardshrink_backward.default: _shrink_backward,
    aten.softshrink_backward.default: _shrink_backward,
    aten.replication_pad1d_backward.default: _replication_pad_backward(1),
    aten.replication_pad2d_backward.default: _replication_pad_backward(2),
    aten.replication_pad3d_backward.default: _replication_pad_backward(3),
    aten.upsample_nearest1d_backward.default: _nearest_backward(1),
    aten.upsample_nearest2d_backward.default: _nearest_backward(2),
    aten.upsample_nearest3d_backward.default: _nearest_backward(3),
    aten.upsample_linear1d_backward.default: _linear_backward(1),
    aten.upsample_bilinear2d_backward.default: _linear_backward(2),
    aten.upsample_trilinear3d_backward.default: _linear_backward(3),
}

_MUTATING = {
    op: decomposition_table[op]
    for op in (
        aten.native_batch_norm.default,
        aten._native_batch_norm_legit.default,  # noqa: SLF001 -- an op's name
        aten._batch_norm_with_update.default,  # noqa: SLF001 -- an op's name
    )
    if op in decomposition_table
}
"""``native_batch_norm`` writes to its running statistics without saying so in its schema."""


@dataclass(frozen=True)
class _Beneath:
    missing: Mapping[Any, Any]
    mutating: Mapping[Any, Any]


BENEATH = _Beneath(_MISSING, _MUTATING)
