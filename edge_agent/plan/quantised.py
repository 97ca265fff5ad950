"""Weights of int8: how a variant of the precision ``int8`` has them, and how they travel.

A weight is rounded by channels, symmetrically: each channel has a *scale*, the 127th part of its largest element, and
an element becomes the nearest multiple of it, -127 to 127, written as a uint8 around 128: Intel's and AMD's processors
without VNNI add products of uint8 and int8 in 16 bits, which overflow, and those of two uint8 in 32. So no element
moves by more than half a scale, the 254th part of its channel's largest. (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018; by channels: Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference: A whitepaper", 2018.)

The weights are rounded where the plan is sent from. What a device then gets is `PackedState`: which variant, and for
each weight its elements of one byte and its scales, as blobs of their own. The plan's id stays that of its float32
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from broker.protocol.tensors import TensorHeader
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import Graph

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LEVELS",
    "MIDDLE",
    "MOST_TOLERANCE",
    "PackedState",
    "QuantisedModel",
    "axes_of",
    "decode_packed",
    "decode_quantised",
    "dequantised",
    "encode_packed",
    "encode_quantised",
    "quantised",
    "unpacked_headers",
]

LEVELS = 127
"""How many steps there are to the largest element of a channel, and to its negative."""

MIDDLE = 128
"""What stands for 0."""

MOST_TOLERANCE = 0.25
"""What a variant of int8 may at most ask for: no device takes one whose results may be anything."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Place = Annotated[int, Meta(ge=0)]

_MAGIC = b"edgeplan:packed\n"


class QuantisedModel(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """The content of a variant of int8: the model, and the inputs of the graph that are rounded, in order: the place of
    each, and the dim of its channels. ``tolerance``: how far float results may lie from the golden ones at least, as a
    part of the largest element, since so much may hang on the last bits of float32.
    """

    model: bytes
    axes: list[tuple[Place, Place]]
    tolerance: Annotated[float, Meta(ge=0, le=MOST_TOLERANCE)] = 0.0


class PackedState(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """The state of one plan as a variant takes it. ``variant`` is the variant's digest; ``state`` has one digest for
    each state input of the graph (of uint8 elements where it is rounded), then those of the scales, in the same order.
    """

    variant: Digest
    state: list[Digest]


_models = msgspec.msgpack.Decoder(QuantisedModel)
_packed = msgspec.msgpack.Decoder(PackedState)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def encode_quantised(model: QuantisedModel) -> bytes:
    """The content of a variant."""
    return _encoder.encode(model)


def decode_quantised(content: bytes) -> QuantisedModel:
    """What `encode_quantised` gave. Raises `PlanMalformed`."""
    try:
        return _models.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(f"expected a model with weights of int8, got {len(content)} other bytes: {error}") from None


def encode_packed(packed: PackedState) -> bytes:
    """The bytes that a command names in place of a variant."""
    return _MAGIC + _encoder.encode(packed)


def decode_packed(data: bytes | memoryview) -> PackedState | None:
    """What `encode_packed` gave; None for a blob that does not start as that does. Raises `PlanMalformed`."""
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        return None
    try:
        return _packed.decode(data[len(_MAGIC) :])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(f"expected the packed state of a plan, got {len(data)} other bytes: {error}") from None


def axes_of(model: QuantisedModel, graph: Graph) -> Mapping[int, int]:
    """The model's ``axes``, by place. Raises `PlanMalformed` for one that is not a dim of a float32 weight that the
    graph has as state.
    """
    for place, axis in model.axes:
        one = graph.inputs[place] if place < len(graph.inputs) else None
        if one is None or one.kind != "state" or one.dtype != "float32" or axis >= len(one.shape):
            raise PlanMalformed(f"expected dims of float32 weights to be rounded by, got dim {axis} of input {place}")
    axes = dict(model.axes)
    if list(axes.items()) != sorted(model.axes):
        raise PlanMalformed("expected the weights to be rounded in the graph's order, each once, got others")
    return axes


def unpacked_headers(graph: Graph, headers: Sequence[TensorHeader]) -> list[TensorHeader]:
    """Headers of packed state as those of the state that was packed: float32 in place of uint8, and no scales. Elements
    stay as they are: this is for a check of dtypes and shapes.
    """
    state = [one for one in graph.inputs if one.kind == "state"]
    plain = list(headers[: len(state)])
    for place, (one, header) in enumerate(zip(state, plain, strict=False)):
        if header.dtype == "uint8" and one.dtype == "float32":
            plain[place] = TensorHeader("float32", header.shape, header.data)
    return plain


def quantised(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A float32 weight as uint8 elements of its shape, and the scales of its channels, float32 of shape [channels].

    Raises ValueError for a weight with elements that are not finite.
    """
    import numpy as np

    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    largest = np.abs(weight).max(axis=others, initial=0.0).astype(np.float32)
    if not np.isfinite(largest).all():
        raise ValueError("expected a weight whose elements are finite")
    scale = largest / np.float32(LEVELS)
    scale[scale == 0] = 1.0  # of zeros only, or too small to be told from them
    ints = np.rint(weight / _along(scale, weight.ndim, axis))
    return np.ascontiguousarray(np.clip(ints, -LEVELS, LEVELS) + MIDDLE, dtype=np.uint8), scale


def dequantised(ints: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """The float32 weight that elements and the scales of their channels stand for."""
    import numpy as np

    weight: np.ndarray = (ints.astype(np.float32) - MIDDLE) * _along(scale, ints.ndim, axis)
    return weight


def _along(scale: np.ndarray, dims: int, axis: int) -> np.ndarray:
    return scale.reshape([-1 if dim == axis else 1 for dim in range(dims)])
