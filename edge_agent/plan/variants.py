"""Variants: a graph in the terms of another runtime, with what proves that it is the same.

A variant is a blob beside a plan. It names the graph that it was made from, so it never changes a plan's id, and serves
every plan of that graph, whatever the weights. It carries *goldens*: how to make arguments (from a seed, by
`golden_inputs`, equal on every machine), and what torch gave for them. Who makes a variant compares before it is
stored; a device compares once before it runs it. Large results are told by a sample of their elements.

A variant of the precision ``int8`` lies further from torch than a wrong kernel might. So it is compared with what torch
gives for the graph with the same roundings in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from broker.protocol.tensors import DTYPES
from edge_agent.plan.errors import PlanMalformed, VariantRefused
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import Graph
from edge_agent.runtimes.random import drawn

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FILLS",
    "PRECISIONS",
    "SAMPLE",
    "TOLERANCES",
    "Golden",
    "GoldenOutput",
    "Variant",
    "compare",
    "decode_variant",
    "encode_variant",
    "golden_inputs",
    "golden_output",
]

VARIANT_VERSION = 1

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "": {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2},
    "float16": {"float64": 2e-2, "float32": 2e-2, "float16": 2e-2, "bfloat16": 5e-2},
    "int8": {"float64": 2e-3, "float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2},
}
"""By precision and dtype: how far a result may lie from torch's, as a part of the largest of its elements. All other
dtypes must be equal.

For int8 torch makes the same roundings, so float32 results agree to the last bits, but where such a bit lets an element
in the middle between two integers go the other way. That moves a sum of n products by at most the 127th part of the
largest of them, and the largest such sum has about sqrt(n) times that one's size: 2e-3 for n = 16. A variant of a
network in which more hangs on such bits says so (`edge_agent.plan.quantised.QuantisedModel.tolerance`)."""

PRECISIONS = tuple(TOLERANCES)
"""What a variant computes in: the plan's own dtypes, or less."""

FILLS = ("signed", "positive")
"""How arguments are made: around 0, or above it (for plans that take roots of them)."""

SAMPLE = 256
"""How many elements of a result are told at most."""

_LEAST = 1e-3
"""Results whose elements are all smaller than this are compared as if one was as large."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class GoldenOutput(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A result of a golden run: its dtype, its shape, and up to `SAMPLE` elements, evenly spaced, as little-endian
    float64 (int64 for integers and bool).
    """

    dtype: str
    shape: list[int]
    elements: bytes


class Golden(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """One golden run: the sizes of the symbols, how its arguments are made, and what torch gave."""

    sizes: dict[str, int]
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)]
    fill: str
    outputs: list[GoldenOutput]


class Variant(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A graph for another runtime. ``graph`` is the digest of the graph that it was made from; ``content`` is the
    runtime's own (an ONNX model); ``precision`` is one of `PRECISIONS`.
    """

    version: int
    runtime: str
    graph: Digest
    precision: str
    content: bytes
    goldens: list[Golden]


_decoder = msgspec.msgpack.Decoder(Variant)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def encode_variant(variant: Variant) -> bytes:
    """The bytes of a variant: a blob."""
    return _encoder.encode(variant)


def decode_variant(data: bytes | memoryview) -> Variant:
    """The variant that the bytes hold. Raises `PlanMalformed`."""
    try:
        variant = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(f"expected a variant of a plan, got {len(data)} other bytes: {error}") from None
    if variant.version != VARIANT_VERSION or variant.precision not in PRECISIONS:
        raise PlanMalformed(
            f"expected a variant of version {VARIANT_VERSION}, got version {variant.version} "
            f"with the precision {variant.precision[:32]!r}"
        )
    return variant


# ------------------------------------------------------------------------------------------------ golden runs


def golden_inputs(graph: Graph, sizes: Mapping[str, int], seed: int, fill: str) -> list[tuple[str, np.ndarray]]:
    """A dtype and an array for each input of the graph, state included; bfloat16 as float32 whose lower bits are 0.

    The elements come from a counter (SplitMix64), so that they are the same on every machine and with every numpy;
    random inputs are drawn under ``seed``, as when the plan runs.
    """
    import numpy as np

    made = []
    for place, one in enumerate(graph.inputs):
        shape = tuple(int(evaluate(dim, sizes)) for dim in one.shape)
        array = drawn(one, sizes, seed) if one.draw else _filled(one.dtype, shape, (seed << 20) + place, fill)
        made.append((one.dtype, np.asarray(array)))  # without dims, numpy makes numbers of arrays
    return made


def _filled(dtype: str, shape: tuple[int, ...], stream: int, fill: str) -> np.ndarray:
    import numpy as np

    count = int(np.prod(shape, dtype=np.int64))
    unit = _unit(stream, count).reshape(shape)
    if dtype == "bool":
        return unit < 0.5
    if dtype not in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128"):
        # indices of anything with two elements or more; a lone number counts something
        values = np.ones(shape) if not shape else np.floor(unit * 2)
        return values.astype(dtype)
    if fill == "positive":
        values = 0.05 + 0.5 * unit
    elif len(shape) > 1:
        values = 2 * unit - 1
    else:
        values = 0.5 + unit
    if dtype == "bfloat16":
        bits = np.asarray(values.astype(np.float32)).view(np.uint32) & np.uint32(0xFFFF0000)
        return np.asarray(bits).view(np.float32)
    if dtype in ("complex64", "complex128"):
        other = _unit(stream + (1 << 40), count).reshape(shape)
        return (values + 1j * (2 * other - 1)).astype(dtype)
    return values.astype(dtype)


def _unit(stream: int, count: int) -> np.ndarray:
    """Numbers from 0 to 1, of 53 bits: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014."""
    import numpy as np

    start = np.uint64((stream * 0xD1342543DE82EF95) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def golden_output(dtype: str, array: np.ndarray) -> GoldenOutput:
    """What is told of a result. ``array``: as numpy has it, bfloat16 as float32."""
    return GoldenOutput(dtype=dtype, shape=list(array.shape), elements=_sampled(dtype, array).tobytes())


def _sampled(dtype: str, array: np.ndarray) -> np.ndarray:
    import numpy as np

    flat = array.reshape(-1)
    count = min(flat.size, SAMPLE)
    places = (np.arange(count, dtype=np.int64) * flat.size) // max(count, 1)
    taken = flat[places]
    if dtype in ("complex64", "complex128"):
        return taken.astype("<c16").view("<f8")
    return taken.astype("<f8" if dtype in ("float16", "bfloat16", "float32", "float64") else "<i8")


def compare(
    golden: Golden, results: Sequence[tuple[str, np.ndarray]], allowed: Mapping[str, float] = TOLERANCES[""]
) -> float:
    """The largest difference between results and what a golden run says, as a part of the largest element.

    Raises `VariantRefused` where it is beyond what is ``allowed`` of its dtype.
    """
    import numpy as np

    if len(results) != len(golden.outputs):
        raise VariantRefused(f"expected {len(golden.outputs)} results, got {len(results)}")
    worst = 0.0
    for place, ((dtype, array), wanted) in enumerate(zip(results, golden.outputs, strict=True)):
        if dtype != wanted.dtype or list(array.shape) != wanted.shape:
            raise VariantRefused(
                f"expected {wanted.dtype}{wanted.shape} as result {place}, got {dtype}{list(array.shape)}", output=place
            )
        got = _sampled(dtype, array)
        want = np.frombuffer(wanted.elements, dtype=got.dtype)
        if want.size != got.size:
            raise VariantRefused(f"expected {got.size} golden elements of result {place}, got {want.size}")
        error = _difference(got, want)
        base = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
        tolerance = allowed.get(base, 0.0)
        if not error <= tolerance:
            raise VariantRefused(
                f"its result {place} ({dtype}) lies {error:.3g} from torch's, as a part of the largest element, "
                f"where {tolerance:g} is allowed",
                error=error,
                tolerance=tolerance,
                output=place,
            )
        worst = max(worst, error)
    return worst


def _difference(got: Any, want: Any) -> float:
    import numpy as np

    if not want.size:
        return 0.0
    if want.dtype.kind == "i":
        return float(np.count_nonzero(got != want) > 0)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    if np.all(same):
        return 0.0
    gap = np.abs(got[~same] - want[~same])
    if not np.all(np.isfinite(gap)):
        return float("inf")
    finite = np.abs(want[np.isfinite(want)])
    return float(gap.max() / max(float(finite.max()) if finite.size else 0.0, _LEAST))


assert sys.byteorder == "little", "tensors are little-endian here"
assert set(TOLERANCES[""]) <= set(DTYPES)
