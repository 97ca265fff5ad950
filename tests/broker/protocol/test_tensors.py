"""Tensor frames: equal to the bit, and judged before anything of them is decoded."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

import msgpack
import msgpack_numpy
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, MAX_DIMS, decode_array, encode_array, inspect, nbytes_of

NUMPY_DTYPES = [name for name in DTYPES if name != "bfloat16"]
Array = np.ndarray[Any, Any]


def same_bits(a: Array, b: Array) -> bool:
    """Equal in dtype, shape and every bit, NaNs and signed zeros included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fields(**changed: Any) -> bytes:
    """The frame of a float32 tensor of two elements, with fields changed; None takes one out."""
    whole: dict[bytes, Any] = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": bytes(8)}
    whole |= {name.encode(): value for name, value in changed.items()}
    packed: bytes = msgpack.packb({name: value for name, value in whole.items() if value is not None})
    return packed


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_every_dtype_round_trips(name: str) -> None:
    """Whatever the bits, also those of NaN, inf and subnormal numbers."""

    @settings(max_examples=30)
    @given(hnp.arrays(np.dtype(DTYPES[name][0]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    def round_trip(array: Array) -> None:
        frame = encode_array(array)
        header = inspect(frame)
        assert (header.dtype, header.shape, header.nbytes) == (name, array.shape, array.nbytes)
        assert bytes(header.data) == array.tobytes()
        assert same_bits(decode_array(frame), array)

    round_trip()


def test_bfloat16_travels_as_its_bits() -> None:
    """numpy has no bfloat16: the frame says what the 16 bits are."""
    bits = np.array([0x3F80, 0xFF80, 0x7FC1, 0x0001], dtype=np.uint16)  # 1, -inf, a NaN, the smallest
    frame = encode_array(bits, bfloat16_bits=True)
    assert inspect(frame).dtype == "bfloat16"
    assert same_bits(decode_array(frame), bits)
    assert inspect(encode_array(bits)).dtype == "uint16"


def test_bfloat16_bits_must_be_uint16() -> None:
    """Anything else is our caller's mistake, and has its sentence."""
    with pytest.raises(TensorRefused, match="expected the bits of bfloat16 as uint16, got float32"):
        encode_array(np.zeros(2, np.float32), bfloat16_bits=True)


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1.5) * np.ones((), np.float32),
        np.empty((0,), np.int64),
        np.empty((3, 0, 2), np.complex128),
        np.frombuffer(b"\x01", np.uint8),
        np.arange(16 * 1024, dtype=np.int32),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24.0)[::-2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3), (4, 3)),
        np.arange(5, dtype=">f8"),
        np.array([1, 256], dtype=">u2"),
        np.array([1 + 2j], dtype=">c8"),
        np.arange(2**8, dtype=np.int16).reshape((2,) * 8),
        np.zeros((1,) * MAX_DIMS, np.bool_),
        np.array([0x7FF0000000000001, 0xFFF8000000000000], np.uint64).view(np.float64),
        np.array([-0.0, np.inf, -np.inf, np.nan]),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.ndim}d-{array.nbytes}B",
)
def test_every_layout_round_trips(array: Array) -> None:
    """0-d, empty, one byte, 64 KiB, strided, reversed, Fortran, broadcast, big-endian, 8 dims: equal to the bit."""
    again = decode_array(encode_array(array))
    assert again.shape == array.shape
    assert same_bits(again, array.astype(array.dtype.newbyteorder("<")))


def test_a_tensor_of_100_mb_round_trips_without_a_copy() -> None:
    """The array that comes out is a view into the frame."""
    array = np.arange(100_000_000 // 8, dtype=np.float64)
    frame = encode_array(array)
    again = decode_array(frame)
    assert same_bits(again, array)
    assert not again.flags.owndata
    assert not again.flags.writeable


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=lambda make: make.__name__)
def test_a_frame_may_be_any_bytes(make: Any) -> None:
    """pyzmq hands out memoryviews."""
    array = np.arange(3, dtype=np.int8)
    assert same_bits(decode_array(make(encode_array(array))), array)


def test_msgpack_numpy_reads_our_frames() -> None:
    """The frames are ordinary msgpack-numpy: any of its readers takes them."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert same_bits(msgpack.unpackb(encode_array(array), object_hook=msgpack_numpy.decode), array)
    assert same_bits(decode_array(msgpack.packb(array, default=msgpack_numpy.encode)), array)


@pytest.mark.parametrize(("name", "size"), [("bool", 6), ("bfloat16", 12), ("complex128", 96)])
def test_sizes_follow_from_dtype_and_shape(name: str, size: int) -> None:
    """Without the tensor."""
    assert nbytes_of(name, (2, 3)) == size


def test_the_size_of_an_unknown_dtype_is_refused() -> None:
    """The sentence lists what is allowed."""
    with pytest.raises(TensorRefused, match=r"expected a dtype of bool, uint8, .*, got 'float8'"):
        nbytes_of("float8", (1,))


# ------------------------------------------------------------------------------------------------- no pickle, ever


class Canary:
    """Unpickling one sings."""

    songs: ClassVar[list[str]] = []

    @staticmethod
    def sing() -> str:
        """What a pickle would run on the machine that loads it."""
        Canary.songs.append("loaded")
        return "loaded"

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return (Canary.sing, ())


@pytest.fixture
def canary_frame() -> bytes:
    """The frame that msgpack-numpy makes of an object array with a canary inside."""
    Canary.songs.clear()
    array = np.empty(1, dtype=object)
    array[0] = Canary()
    frame: bytes = msgpack.packb(array, default=msgpack_numpy.encode)
    return frame


def test_the_canary_sings_where_pickles_are_loaded(canary_frame: bytes) -> None:
    """msgpack-numpy alone unpickles this very frame: the next tests would see it."""
    msgpack.unpackb(canary_frame, object_hook=msgpack_numpy.decode)
    assert Canary.songs == ["loaded"]


def test_an_object_array_is_refused_before_its_pickle_is_loaded(canary_frame: bytes) -> None:
    """Refused, and the canary is silent."""
    for judge in (inspect, decode_array):
        with pytest.raises(TensorRefused, match="got an object or structured array, which is never decoded"):
            judge(canary_frame)
    assert Canary.songs == []


@pytest.mark.parametrize("kind", [b"O", b"V", b"o", b" "])
@pytest.mark.parametrize("type_string", ["<f4", "|O", "O", "|V8"])
def test_no_disguise_of_a_pickle_is_loaded(kind: bytes, type_string: str) -> None:
    """Whatever the frame says of its type, a kind means an array that is not of numbers."""
    Canary.songs.clear()
    with pytest.raises(TensorRefused):
        decode_array(fields(kind=kind, type=type_string, data=pickle.dumps(Canary())))
    assert Canary.songs == []


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()], dtype=object),
        np.zeros(2, dtype=[("a", "<f4"), ("b", "<i2")]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.zeros(1, np.longdouble),
        np.zeros(1, np.void(3).dtype),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_may_not_travel_is_not_sent(array: Array) -> None:
    """The sender hears of it, with the dtypes that are allowed."""
    with pytest.raises(TensorRefused, match="expected a dtype of bool, uint8"):
        encode_array(array)


# ------------------------------------------------------------------------------------------------- frames that lie


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (b"", "expected a tensor frame, got 0 bytes that are not one"),
        (b"\x80", "expected the fields nd, type, kind, shape and data, got"),
        (b"\xdf\xff\xff\xff\xff", "expected a tensor frame, got 5 bytes"),
        (b"\x91" * 100_000, "expected a tensor frame, got 100000 bytes"),
        (b"\x81\xc4\x02nd" * 50_000, "expected a tensor frame, got"),
        (fields() + b"\x00", "expected a tensor frame, got"),
        (fields(nd=False), "expected an array"),
        (fields(nd=1), "expected an array"),
        (fields(nd=None), "expected the fields"),
        (fields(more=1), "expected the fields"),
        (fields(type="<f16"), "expected a dtype of"),
        (fields(type=">f4"), "expected a dtype of"),
        (fields(type="<M8[s]"), "expected a dtype of"),
        (fields(type="x" * 100_000), "expected a dtype of"),
        (fields(type=b"<f4"), "expected a tensor frame, got"),
        (fields(shape=[3]), r"expected 12 bytes for float32\[3\], got 8"),
        (fields(shape=[1]), r"expected 4 bytes for float32\[1\], got 8"),
        (fields(shape=[]), r"expected 4 bytes for float32\[\], got 8"),
        (fields(shape=[-1, -2]), "expected at most 32 dims of 0 or more"),
        (fields(shape=[1] * 33, data=bytes(4)), "expected at most 32 dims of 0 or more"),
        (fields(shape=[9] * 100_000), "expected at most 32 dims of 0 or more"),
        (fields(shape=[2.0]), "expected a tensor frame, got"),
        (fields(shape=[True, 2]), "expected a tensor frame, got"),
        (fields(shape="ab"), "expected a tensor frame, got"),
        (fields(shape=[1 << 62, 4]), "expected dims whose product fits 63 bits"),
        (fields(shape=[0, 1 << 62], data=b""), "expected dims whose product fits 63 bits"),
        (fields(shape=[(1 << 64) - 1, 0], data=b""), "expected dims whose product fits 63 bits"),
        (fields(data="12345678"), "expected a tensor frame, got"),
        (fields(data=None), "expected the fields"),
        ({"as": "bfloat16"}, "expected the bits of bfloat16 as <u2, got 'bfloat16' as <f4"),
        ({"as": "float8", "type": "<u2", "shape": [4]}, "expected the bits of bfloat16 as <u2, got 'float8' as <u2"),
        ({"as": b"bfloat16", "type": "<u2", "shape": [4]}, "expected a tensor frame, got"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value if isinstance(value, dict) else value[:60]!r}",
)
def test_a_frame_that_lies_is_refused(frame: bytes | dict[str, Any], sentence: str) -> None:
    """The sentence says what was expected and what came, and stays short whatever came."""
    sent = fields(**frame) if isinstance(frame, dict) else frame
    for judge in (inspect, decode_array):
        with pytest.raises(TensorRefused, match=sentence) as caught:
            judge(sent)
        assert len(str(caught.value)) < 500


def judged(frame: bytes) -> None:
    """Decode or refuse; any other error ends the test."""
    try:
        array = decode_array(frame)
    except TensorRefused:
        return
    assert array.nbytes <= len(frame)


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_random_bytes_are_a_tensor_or_refused(frame: bytes) -> None:
    """Noise has no other effect than the error."""
    judged(frame)


@settings(max_examples=500)
@given(
    array=hnp.arrays(st.sampled_from([np.float32, np.uint8, np.complex64]), hnp.array_shapes(max_side=3)),
    at=st.integers(0, 80),
    cut=st.integers(0, 6),
    put=st.binary(max_size=6),
)
def test_altered_frames_are_a_tensor_or_refused(array: Array, at: int, cut: int, put: bytes) -> None:
    """Bytes changed, cut out or put in."""
    frame = encode_array(array)
    judged(frame[:at] + put + frame[at + cut :])


ANYTHING = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()


@settings(max_examples=500)
@given(
    st.dictionaries(
        st.sampled_from([b"nd", b"type", b"kind", b"shape", b"data", b"as"]),
        st.sampled_from([True, "<f4", "|O", "<u2", b"", b"O", [2], [0], bytes(8), "bfloat16"])
        | ANYTHING
        | st.lists(ANYTHING, max_size=3),
    )
)
def test_well_formed_maps_are_a_tensor_or_refused(whole: dict[bytes, Any]) -> None:
    """The right keys, with anything under them."""
    judged(msgspec.msgpack.encode(whole))
