"""Frames made without numpy are those that numpy's encoder makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, encode_array
from edge_agent.frames import frame_of
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES, encode_tensor
from edge_agent.worker_torch import TorchTensors

SHAPES = [(), (0,), (3,), (2, 0, 3), (16, 16), (100, 200), (1, 2, 1, 2, 1, 2, 1, 2)]


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_frame_of_an_array(dtype: str, shape: tuple[int, ...]) -> None:
    """Byte for byte, for every dtype and for data of every length."""
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 100).astype(dtype)
    assert frame_of(dtype, shape, array.tobytes()) == encode_array(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_frame_of_a_result(dtype: str, shape: tuple[int, ...]) -> None:
    """A worker's results as the codec frames them: also turned around, conjugated, or with a gradient to come."""
    tensor = (torch.arange(int(np.prod(shape, dtype=int))).reshape(shape) % 100).to(TORCH_DTYPES[dtype])
    tensors = [tensor, tensor.T if tensor.dim() == 2 else tensor]
    if tensor.is_complex():
        tensors += [tensor.conj(), tensor.conj().imag]
    if tensor.is_floating_point():
        tensors.append(tensor.clone().requires_grad_())
    for one in tensors:
        assert TorchTensors().frame(one) == encode_tensor(one)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.eye(2).to_sparse(), "expected a dense tensor, got torch.sparse_coo of torch.float32"),
        (torch.zeros(2).to(torch.float8_e5m2), "got torch.float8_e5m2"),
    ],
    ids=["sparse", "dtype"],
)
def test_a_result_that_cannot_travel(tensor: torch.Tensor, sentence: str) -> None:
    """It is refused, as the codec refuses it."""
    with pytest.raises(TensorRefused, match=sentence):
        TorchTensors().frame(tensor)
