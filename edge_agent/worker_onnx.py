"""The onnx runtime as the workbench wants it. No torch: numpy and onnxruntime. Only workers import this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, TensorHeader
from edge_agent.frames import Form, form_of
from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.errors import VariantRefused
from edge_agent.runtimes.onnx import Array, Bfloat16, OnnxPlan, OnnxRuntime

__all__ = ["OnnxTensors"]

_NAMES = {np.dtype(code): name for name, (code, _) in DTYPES.items() if name != "bfloat16"}


class OnnxTensors:
    """See `edge_agent.runtimes.interface.Runtime`. ``threads``: how many a plan may use."""

    name = "onnx"
    version = str(ort.__version__)

    def __init__(self, threads: int = 1) -> None:
        self._runtime = OnnxRuntime(threads)

    def load(self, checked: CheckedPlan, state: Sequence[TensorHeader], variant: bytes | None = None) -> OnnxPlan:
        """A plan, by its variant. Raises `VariantRefused`, also where there is none."""
        if variant is None:
            raise VariantRefused("the command names none, and without torch this device runs nothing else")
        return self._runtime.load(checked, [self.tensor(header) for header in state], variant)

    def tensor(self, header: TensorHeader) -> Array:
        """An array over the header's elements."""
        array = np.frombuffer(header.data, dtype=DTYPES[header.dtype][0]).reshape(header.shape)
        return Bfloat16(array) if header.dtype == "bfloat16" else array

    def number(self, value: float, dtype: str) -> Array:
        """A 0-d array."""
        if dtype == "bfloat16":
            raise TensorRefused("expected a number of a dtype that numpy has, got bfloat16")
        return np.array(value, dtype=DTYPES[dtype][0])

    def describe(self, tensor: Array) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype name and shape. Raises `TensorRefused` for a dtype that cannot travel."""
        form = self.form(tensor)
        return form.dtype, form.shape

    def form(self, tensor: Array) -> Form:
        """A tensor's dtype and shape, and what follows from them. Raises `TensorRefused`, as `describe` does."""
        if isinstance(tensor, Bfloat16):
            return form_of("bfloat16", tensor.shape)
        name = _NAMES.get(tensor.dtype)
        if name is None:
            raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {tensor.dtype}")
        return form_of(name, tensor.shape)

    def content(self, tensor: Array) -> bytes:
        """A copy of a tensor's elements."""
        return _plain(tensor).tobytes()

    def frame(self, tensor: Array) -> bytes:
        """A tensor as a frame."""
        return self.form(tensor).frame(self.content(tensor))

    def elements(self, tensor: Array) -> memoryview:
        """A tensor's elements."""
        return np.ascontiguousarray(_plain(tensor)).reshape(-1).view(np.uint8).data

    def rows(self, tensor: Array, where: Any) -> Array:
        """Rows of a tensor: a view for a slice, a copy for numbers."""
        return Bfloat16(tensor.bits[where]) if isinstance(tensor, Bfloat16) else tensor[where]


def _plain(tensor: Array) -> np.ndarray:
    return tensor.bits if isinstance(tensor, Bfloat16) else tensor
