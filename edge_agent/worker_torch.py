"""The torch runtime as the workbench wants it. Imports torch: only workers import this."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, TensorHeader
from edge_agent.frames import Form, form_of
from edge_agent.plan.checker import CheckedPlan
from edge_agent.runtimes.torch import LoadedPlan, TorchRuntime
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES, tensor_over

__all__ = ["TorchTensors"]


class TorchTensors:
    """See `edge_agent.runtimes.interface.Runtime`."""

    name = "torch"
    version = str(torch.__version__)

    def __init__(self) -> None:
        self._runtime = TorchRuntime()

    def load(self, checked: CheckedPlan, state: Sequence[TensorHeader], _variant: bytes | None = None) -> LoadedPlan:
        """A plan, ready to run. Torch runs the graph itself."""
        return self._runtime.load(checked, [self.tensor(header) for header in state])

    def tensor(self, header: TensorHeader) -> torch.Tensor:
        """A tensor over the header's elements, or over a copy where they cannot be written to: torch has no read-only
        tensors.
        """
        data = header.data
        return tensor_over(header, bytearray(data) if data.readonly else data)

    def number(self, value: float, dtype: str) -> torch.Tensor:
        """A 0-d tensor."""
        return torch.tensor(value, dtype=TORCH_DTYPES[dtype])

    def describe(self, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype name and shape. Raises `TensorRefused` for a dtype that cannot travel."""
        form = _form(tensor.dtype, tensor.shape)
        return form.dtype, form.shape

    def form(self, tensor: torch.Tensor) -> Form:
        """A tensor's dtype and shape, and what follows from them. Raises `TensorRefused`, as `describe` does."""
        return _form(tensor.dtype, tensor.shape)

    def content(self, tensor: torch.Tensor) -> bytes:
        """A copy of a tensor's elements. Raises `TensorRefused` for one that is not dense."""
        if tensor.dtype is torch.bfloat16:
            tensor = _plain(tensor).view(torch.uint16)  # numpy has no such dtype, and only the bits are wanted
        try:
            return tensor.numpy().tobytes()
        except (RuntimeError, TypeError):  # numpy does not take it as it is; to ask before would cost each as much
            return _plain(tensor).numpy().tobytes()

    def frame(self, tensor: torch.Tensor) -> bytes:
        """A tensor as a frame."""
        return self.form(tensor).frame(self.content(tensor))

    def elements(self, tensor: torch.Tensor) -> memoryview:
        """A tensor's elements."""
        return _plain(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().data

    def rows(self, tensor: torch.Tensor, where: Any) -> torch.Tensor:
        """Rows of a tensor: a view for a slice, a copy for numbers."""
        return tensor[where] if isinstance(where, slice) else tensor.index_select(0, torch.from_numpy(where))


@functools.lru_cache(maxsize=1024)
def _form(dtype: torch.dtype, shape: torch.Size) -> Form:
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {dtype}")
    return form_of(name, tuple(shape))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as numpy can take it. Raises `TensorRefused` for one that is not dense."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TensorRefused(f"expected a dense tensor, got {tensor.layout} of {tensor.dtype}")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.cpu()
