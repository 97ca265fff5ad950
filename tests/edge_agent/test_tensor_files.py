"""Tensor files: equal to the bit, readable by others, and nothing but one tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import DTYPES
from edge_agent.tensor_files import map_tensor, read_header, tensors_in, write, write_whole
from edge_agent.tensor_format import header_of, pack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (1, 2, 1, 2, 1, 2, 1, 2)])
def test_what_is_written_is_read_again(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Every dtype, empty and 0-d too: header and elements."""
    count = int(np.prod(shape, dtype=int))
    data = bytes((7 + k) % 251 for k in range(count * DTYPES[dtype][1]))
    write(tmp_path / "t", dtype, shape, data)
    found = map_tensor(tmp_path / "t")
    assert (found.dtype, found.shape, bytes(found.data)) == (dtype, shape, data)
    header = read_header(tmp_path / "t")
    assert (header.dtype, header.shape, header.nbytes) == (dtype, shape, len(data))


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "complex128"])
def test_other_tools_read_it(tmp_path: Path, dtype: str) -> None:
    """safetensors' own library finds one tensor named ``tensor``, equal to the bit."""
    data = bytes(range(1, 1 + 6 * DTYPES[dtype][1])) if dtype != "bool" else bytes([0, 1, 1, 0, 1, 0])
    write(tmp_path / "t.safetensors", dtype, (2, 3), data)
    [(name, tensor)] = load_file(tmp_path / "t.safetensors").items()
    assert (name, tuple(tensor.shape), tensor.dtype) == ("tensor", (2, 3), getattr(torch, dtype))
    assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == data


def test_complex128_is_pairs_of_float64_to_others(tmp_path: Path) -> None:
    """safetensors has no such dtype: a last dim of 2, and the name in the metadata."""
    value = np.array([1 + 2j, 3 - 4j])
    write(tmp_path / "t.safetensors", "complex128", (2,), value.tobytes())
    tensor = load_file(tmp_path / "t.safetensors")["tensor"]
    assert torch.equal(torch.view_as_complex(tensor), torch.from_numpy(value))
    assert read_header(tmp_path / "t.safetensors").dtype == "complex128"


def test_what_is_changed_in_memory_stays_out_of_the_file(tmp_path: Path) -> None:
    """The mapping is private: a file may be mapped by many, and is never written to."""
    write(tmp_path / "t", "uint8", (3,), b"abc")
    mapped = map_tensor(tmp_path / "t")
    mapped.data[0] = 0
    assert bytes(map_tensor(tmp_path / "t").data) == b"abc"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves neither a torn file nor its beginning."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "t", [b"abc"])
    assert list(tmp_path.iterdir()) == []


def file_of(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file."""
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    """One tensor's part of the header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        file_of({}),
        file_of({"other": entry()}, b"1234"),
        file_of({"tensor": entry(), "more": entry()}, b"1234"),
        file_of({"tensor": entry(dtype="F8_E5M2", offsets=(0, 1))}, b"1"),
        file_of({"tensor": entry()}, b"123"),
        file_of({"tensor": entry()}, b"12345"),
        file_of({"tensor": entry(offsets=(4, 8))}, b"12345678"),
        file_of({"tensor": entry(shape=(-1,))}, b"1234"),
        file_of({"tensor": entry(shape=(1 << 40, 1 << 40))}, b"1234"),
        file_of({"tensor": entry(shape=[1] * 100)}, b"1234"),
        file_of({"tensor": entry(), "__metadata__": {"dtype": "complex128"}}, b"1234"),
        pack("float32", (2,))[:-3],
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """Cut, lying about its size, of another dtype, with more or other tensors: TensorRefused."""
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TensorRefused):
        read_header(tmp_path / "t")


@given(st.binary(max_size=200), st.integers(0, 1 << 70))
def test_random_bytes_are_a_tensor_or_refused(content: bytes, size: int) -> None:
    """Nothing else comes out, whatever the bytes."""
    for length in (len(content), size):
        try:
            found = header_of(content, length)
        except TensorRefused:
            continue
        assert found.offset + found.nbytes == length


@given(st.binary(max_size=30), st.integers(0, 200))
def test_a_good_file_with_altered_bytes_is_a_tensor_or_refused(junk: bytes, place: int) -> None:
    """Bit flips in the header are caught, or name another tensor of the same size."""
    good = bytearray(pack("float32", (2, 3)) + bytes(24))
    good[place : place + len(junk)] = junk[: max(0, len(good) - place)]
    try:
        found = header_of(bytes(good), len(good))
    except TensorRefused:
        return
    assert found.offset + found.nbytes == len(good)


def test_foreign_files_may_hold_several_tensors(tmp_path: Path) -> None:
    """As other tools write them, bfloat16 too; a file that is none is refused."""
    tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.arange(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = tensors_in(tmp_path / "model.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        "a": ("bfloat16", (2,)),
        "b": ("int64", (3,)),
    }
    raw = (tmp_path / "model.safetensors").read_bytes()
    assert raw[found["b"].offset :][: found["b"].nbytes] == torch.arange(3).numpy().tobytes()
    for cut in (0, 4, 30, len(raw) - 1):
        (tmp_path / "cut").write_bytes(raw[:cut])
        with pytest.raises(TensorRefused):
            tensors_in(tmp_path / "cut")
