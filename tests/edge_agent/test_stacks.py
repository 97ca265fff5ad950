"""Tensors one below the other, in the memory of their elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from broker.protocol.tensors import DTYPES, TensorHeader
from edge_agent.stacks import Stack
from edge_agent.worker_onnx import OnnxTensors
from edge_agent.worker_torch import TorchTensors


@pytest.mark.parametrize("tensors", [TorchTensors(), OnnxTensors()], ids=["torch", "onnx"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)])
def test_what_is_stacked_is_one_tensor(tensors: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Of every dtype, 0-d and empty ones too, of either runtime: with a first dim more, equal to the bit."""
    stack = Stack(dtype, shape, 3)
    contents = [bytes([n]) * stack.each for n in (0, 1, 1)]
    for content in contents:
        stack.add(tensors.elements(tensors.tensor(TensorHeader(dtype, shape, memoryview(content)))))
    whole = tensors.tensor(stack.whole())
    assert tensors.describe(whole) == (dtype, (3, *shape))
    assert bytes(tensors.elements(whole)) == b"".join(contents)


def test_tensors_that_are_views_are_stacked_by_their_elements() -> None:
    """Transposed, every other one, conjugated: in C order."""
    value = torch.arange(6.0).reshape(2, 3)
    for view in (value.T, value[:, ::2], (value + 1j * value).conj()):
        dtype, shape = TorchTensors().describe(view)
        stack = Stack(dtype, shape, 1)
        stack.add(TorchTensors().elements(view))
        assert torch.equal(TorchTensors().tensor(stack.whole())[0], view)


def test_it_is_a_view_and_outlives_the_stack() -> None:
    """No second copy is made of it, by either runtime."""
    stack = Stack("float32", (), 2)
    stack.add(memoryview(np.float32(7).tobytes()))
    runtimes: list[Any] = [TorchTensors(), OnnxTensors()]
    wholes = [tensors.tensor(stack.whole()) for tensors in runtimes]
    stack.between(0, 1)[:] = np.float32(8).tobytes()
    del stack
    assert [whole.tolist() for whole in wholes] == [[8], [8]]


@pytest.mark.parametrize("rows", [1 << 45, 1 << 62])
def test_more_than_the_device_could_ever_hold_is_refused_at_once(rows: int) -> None:
    """With how much it would have been, and not after days of work."""
    with pytest.raises(MemoryError) as caught:
        Stack("float64", (1000,), rows)
    assert str(caught.value) == (
        f"expected memory for {rows:,} outputs of 8,000 bytes each, {rows * 8000:,} bytes in all, got none"
    )
