"""What numpy and onnxruntime do not have: bfloat16 goes through a model as float32, complex numbers as parts."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.runtimes.onnx import Bfloat16, narrowed, widened

SHAPES = [(), (3,), (2, 3), (0,), (2, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bfloat16_keeps_its_bits_and_its_shape(shape: tuple[int, ...]) -> None:
    """Also one without dims."""
    bits = (np.arange(int(np.prod(shape, dtype=int)), dtype=np.uint16) * 97 + 0x3F80).reshape(shape)
    wide = widened(Bfloat16(bits))
    assert (wide.dtype.name, wide.shape) == ("float32", shape)
    narrow = narrowed(np.asarray(wide), "bfloat16")
    assert isinstance(narrow, Bfloat16)
    assert (narrow.bits.dtype.name, narrow.shape) == ("uint16", shape)
    assert np.array_equal(narrow.bits, bits)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_complex_tensor_has_a_dim_more_in_the_model(shape: tuple[int, ...], dtype: str) -> None:
    """Of two, and gets its own shape back."""
    value = (np.arange(int(np.prod(shape, dtype=int))) * (1 - 2j)).astype(dtype).reshape(shape)
    wide = widened(value)
    assert wide.shape == (*shape, 2)
    back = narrowed(wide, dtype)
    assert isinstance(back, np.ndarray)
    assert (back.dtype.name, back.shape) == (dtype, shape)
    assert np.array_equal(back, value)
