"""Torch tensors as frames and back, equal to the bit."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES, inspect
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES, decode_tensor, encode_tensor


def of_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of random bits: every value of the dtype, NaNs of all kinds among them; bools are 0 and 1."""
    count = math.prod(shape) * DTYPES[dtype][1]
    high = 2 if dtype == "bool" else 256
    bits = torch.randint(0, high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return bits.view(TORCH_DTYPES[dtype]).reshape(shape)


def bits_of(tensor: torch.Tensor) -> bytes:
    """The elements' bytes, in C order."""
    plain = tensor.contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).tolist()) if plain.numel() else b""


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal in dtype, shape and bits."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert bits_of(found) == bits_of(wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3), (2, 1, 2, 1, 2, 1, 2, 1)], ids=str)
def test_every_dtype_comes_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    """Without dims, without elements, of many dims: whatever the bits, NaNs too."""
    tensor = of_bits(dtype, shape)
    frame = encode_tensor(tensor)
    assert (inspect(frame).dtype, inspect(frame).shape) == (dtype, shape)
    assert_same(decode_tensor(frame), tensor)


@given(
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    seed=st.integers(0, 1 << 30),
)
def test_any_shape_comes_back_to_the_bit(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """Shapes and bits at random."""
    tensor = of_bits(dtype, shape, seed)
    assert_same(decode_tensor(encode_tensor(tensor)), tensor)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[::2, 1:],
        lambda x: x[:, 0],
        lambda x: x.expand(3, 4, 6),
        lambda x: x.flip(0),
        lambda x: x[1:1],
    ],
)
def test_any_strides_are_brought_into_order(view: object) -> None:
    """A view travels as what it shows, not as what lies under it."""
    assert callable(view)
    shown = view(of_bits("float32", (4, 6)))
    frame = encode_tensor(shown)
    assert inspect(frame).nbytes == shown.numel() * 4
    assert_same(decode_tensor(frame), shown.contiguous())


def test_lazy_views_are_worked_out() -> None:
    """A conjugate and a negative that torch has only marked travel as their values."""
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert x.conj().is_conj()
    assert decode_tensor(encode_tensor(x.conj())).tolist() == [1 - 2j, 3 + 4j]
    assert x.conj().imag.is_neg()
    assert decode_tensor(encode_tensor(x.conj().imag)).tolist() == [-2.0, 4.0]


def test_gradients_stay_behind() -> None:
    """A parameter travels as its value."""
    x = torch.nn.Parameter(torch.ones(2))
    assert not decode_tensor(encode_tensor(x)).requires_grad


def test_a_decoded_tensor_is_its_own() -> None:
    """It can be written to, and the frame stays as it was."""
    frame = encode_tensor(torch.ones(3))
    kept = bytes(frame)
    decode_tensor(memoryview(frame)).zero_()
    assert frame == kept


@pytest.mark.parametrize("size", [1, 64 << 10, 100 << 20])
@pytest.mark.alone
def test_sizes_up_to_100_megabytes(size: int) -> None:
    """One byte, 64 KiB and 100 MB come back as they were."""
    tensor = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    frame = encode_tensor(tensor)
    assert size < len(frame) < size + 100
    assert torch.equal(decode_tensor(frame), tensor)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.eye(2).to_sparse(), "expected a dense tensor, got torch.sparse_coo of torch.float32"),
        (torch.zeros(2, device="meta"), "expected a tensor with data, got one on meta"),
        (torch.zeros(2).to(torch.float8_e5m2), "got torch.float8_e5m2"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_what_cannot_travel_is_refused(tensor: torch.Tensor, sentence: str) -> None:
    """Sparse tensors, those without data, and dtypes outside the allow-list."""
    with pytest.raises(TensorRefused) as caught:
        encode_tensor(tensor)
    assert sentence in str(caught.value)


def test_names_are_those_of_the_codec() -> None:
    """Each dtype that may travel has its torch dtype, and the other way round."""
    assert list(TORCH_DTYPES) == list(DTYPES)
    assert {DTYPE_NAMES[dtype] for dtype in TORCH_DTYPES.values()} == set(DTYPES)
    assert all(torch.zeros((), dtype=dtype).element_size() == DTYPES[name][1] for name, dtype in TORCH_DTYPES.items())
