"""Weights of int8: how far they are from the float32 ones, and what is refused of their formats."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from broker.protocol.tensors import TensorHeader
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import Graph, Input
from edge_agent.plan.quantised import (
    LEVELS,
    MIDDLE,
    PackedState,
    QuantisedModel,
    axes_of,
    decode_packed,
    decode_quantised,
    dequantised,
    encode_packed,
    encode_quantised,
    quantised,
    unpacked_headers,
)
from tests.edge_agent.plan.graphs import graph_of

PACKED = PackedState(variant=b"v" * 32, state=[b"s" * 32, b"t" * 32])


def graph() -> Graph:
    """An argument, a bias and a weight."""
    inputs = [
        Input(name="x", dtype="float32", shape=[2, 3]),
        Input(name="bias", dtype="float32", shape=[4], kind="state"),
        Input(name="weight", dtype="float32", shape=[4, 3], kind="state"),
        Input(name="table", dtype="int64", shape=[4, 3], kind="state"),
    ]
    return graph_of(inputs, [], [0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_element_moves_by_more_than_half_a_scale(axis: int) -> None:
    """That is the 254th part of the largest of its channel, whichever dim has the channels."""
    weight = np.random.default_rng(axis).standard_normal((5, 6, 7)).astype(np.float32)
    ints, scale = quantised(weight, axis)
    assert (str(ints.dtype), ints.shape) == ("uint8", (5, 6, 7))
    assert (str(scale.dtype), scale.shape) == ("float32", (5 + axis,))
    others = tuple(dim for dim in range(3) if dim != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    assert np.all(np.abs(dequantised(ints, scale, axis) - weight) <= largest / 254 * (1 + 1e-5))
    assert ints.min() >= MIDDLE - LEVELS


def test_a_channel_of_zeros_stays_one() -> None:
    """And so does one whose elements are too small for a scale of their own; a largest element is met exactly."""
    weight = np.array([[0, 0], [1e-45, 0], [-3, 1]], dtype=np.float32)
    ints, scale = quantised(weight, 0)
    assert np.array_equal(ints[:2], np.full((2, 2), MIDDLE))
    assert np.all(scale > 0)
    assert ints[2, 0] == MIDDLE - LEVELS


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_integers(value: float) -> None:
    """It would take its whole channel with it."""
    with pytest.raises(ValueError, match="whose elements are finite"):
        quantised(np.array([[1, value]], dtype=np.float32), 0)


def test_packed_state_is_told_from_a_variant_by_how_it_starts() -> None:
    """A command names either; what only starts as one is malformed."""
    data = encode_packed(PACKED)
    assert decode_packed(data) == PACKED
    assert decode_packed(memoryview(data)) == PACKED
    assert decode_packed(b"") is None
    assert decode_packed(msgspec.msgpack.encode([1, "onnx", b"g" * 32, "int8", b"", []])) is None
    for wrong in (data[:-1], data + b"\x00", data[:16]):
        with pytest.raises(PlanMalformed, match="expected the packed state of a plan"):
            decode_packed(wrong)


def test_a_model_says_what_it_rounds() -> None:
    """Back from its bytes, and by place."""
    model = QuantisedModel(model=b"onnx", axes=[(2, 1)], tolerance=0.125)
    assert decode_quantised(encode_quantised(model)) == model
    assert axes_of(model, graph()) == {2: 1}
    with pytest.raises(PlanMalformed, match=r"expected a model with weights of int8, got 3 other bytes"):
        decode_quantised(b"\x92\xa1x")


@pytest.mark.parametrize("tolerance", [-0.1, 0.3, float("inf"), float("nan")])
def test_no_model_may_ask_for_any_tolerance(tolerance: float) -> None:
    """A quarter of the largest element is the most: beyond that, a proof would prove nothing."""
    with pytest.raises(PlanMalformed, match="expected a model with weights of int8"):
        decode_quantised(encode_quantised(QuantisedModel(model=b"onnx", axes=[(2, 1)], tolerance=tolerance)))


@pytest.mark.parametrize("axes", [[(0, 0)], [(3, 0)], [(2, 2)], [(9, 0)]])
def test_only_float32_weights_of_the_graph_are_rounded(axes: list[tuple[int, int]]) -> None:
    """No argument, no integers, no dim and no input that there is not."""
    with pytest.raises(PlanMalformed, match="expected dims of float32 weights to be rounded by"):
        axes_of(QuantisedModel(model=b"", axes=axes), graph())


@pytest.mark.parametrize("axes", [[(2, 0), (1, 0)], [(2, 0), (2, 0)]])
def test_weights_are_named_in_order_and_once(axes: list[tuple[int, int]]) -> None:
    """Since their scales follow in the same order."""
    with pytest.raises(PlanMalformed, match="in the graph's order, each once"):
        axes_of(QuantisedModel(model=b"", axes=axes), graph())


def test_headers_of_packed_state_pass_for_those_of_the_state() -> None:
    """Of the same shapes, so that the plan's check of them still holds; what is not rounded stays as it is."""
    data = memoryview(b"")
    packed = [
        TensorHeader("float32", (4,), data),
        TensorHeader("uint8", (4, 2), data),
        TensorHeader("uint8", (4, 3), data),
        TensorHeader("float32", (4,), data),
    ]
    headers = unpacked_headers(graph(), packed)
    assert [(one.dtype, one.shape) for one in headers] == [
        ("float32", (4,)),
        ("float32", (4, 2)),
        ("uint8", (4, 3)),
    ]
