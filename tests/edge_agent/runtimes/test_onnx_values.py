"""What numpy and onnxruntime do not have: bfloat16 goes through a model as float32, complex numbers as parts."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.translation.variants import make_variant
from edge_agent.plan.checker import CheckedPlan, check_graph
from edge_agent.plan.format import Input, Manifest, digest_of, encode_graph
from edge_agent.runtimes.onnx import Bfloat16, OnnxRuntime, narrowed, widened
from tests.edge_agent.plan.graphs import graph_of, op, value

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


def test_a_plan_takes_and_gives_them_beside_others() -> None:
    """Each input and output by its own dtype."""
    dtypes = ("float32", "bfloat16", "complex64")
    inputs = [Input(name=dtype, dtype=dtype, shape=[2]) for dtype in dtypes]
    graph = graph_of(inputs, [op("add.Tensor", value(k), value(k)) for k in range(3)], [4, 3, 5])
    checked = check_graph(graph)
    manifest = Manifest(version=3, graph=digest_of(encode_graph(graph)), outputs=checked.output_types)
    plan = OnnxRuntime().load(CheckedPlan(manifest, checked), [], make_variant(graph))
    plain, whole = np.array([1, -2], np.float32), np.array([1 + 2j, -3j], np.complex64)
    brain, single, parts = plan.run([plain, Bfloat16(np.array([0x3F80, 0xC000], np.uint16)), whole], {})
    assert isinstance(brain, Bfloat16)
    assert brain.bits.tolist() == [0x4000, 0xC080]
    assert isinstance(single, np.ndarray)
    assert isinstance(parts, np.ndarray)
    assert (single.dtype.name, single.tolist()) == ("float32", [2, -4])
    assert (parts.dtype.name, parts.tolist()) == ("complex64", [2 + 4j, -6j])
