"""Between torch tensors and tensor frames, equal to the bit. See `broker.protocol.tensors` for the frame."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, TensorHeader, encode_array, inspect

__all__ = ["DTYPE_NAMES", "TORCH_DTYPES", "decode_tensor", "encode_tensor", "tensor_over"]

TORCH_DTYPES: dict[str, torch.dtype] = {name: cast(torch.dtype, getattr(torch, name)) for name in DTYPES}
"""dtype name to torch dtype."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""torch dtype to dtype name."""

_NUMPY_DTYPES = {name: np.dtype(code) for name, (code, _) in DTYPES.items() if name != "bfloat16"}


def encode_tensor(tensor: torch.Tensor) -> bytes:
    """The frame of a dense tensor on any device, of any strides. Gradients are left behind.

    Raises `TensorRefused` for sparse and quantised tensors, those without data, and for a dtype outside the allow-list.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TensorRefused(f"expected a dense tensor, got {tensor.layout} of {tensor.dtype}")
    if tensor.is_meta:
        raise TensorRefused("expected a tensor with data, got one on meta")
    if tensor.dtype not in DTYPE_NAMES:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {tensor.dtype}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.dtype is torch.bfloat16:
        return encode_array(plain.view(torch.uint16).numpy(), bfloat16_bits=True)
    return encode_array(plain.numpy())


def decode_tensor(frame: bytes | memoryview) -> torch.Tensor:
    """A tensor of its own, writable, with the frame's dtype, shape and bits. Raises `TensorRefused`."""
    header = inspect(frame)
    return tensor_over(header, bytearray(header.data))


def tensor_over(header: TensorHeader, elements: bytearray | memoryview) -> torch.Tensor:
    """A tensor of the header's dtype and shape whose memory is ``elements``, which must be writable."""
    name, shape = header.dtype, header.shape
    if not elements:  # torch takes no memory of no bytes
        return torch.empty(shape, dtype=TORCH_DTYPES[name])
    if len(shape) == 1:
        return torch.frombuffer(elements, dtype=TORCH_DTYPES[name])
    if name == "bfloat16":  # numpy has none
        return torch.frombuffer(elements, dtype=torch.bfloat16).reshape(shape)
    # numpy gives it its shape in a tenth of the time that torch's reshape takes
    return torch.from_numpy(np.ndarray(shape, _NUMPY_DTYPES[name], elements))
