"""Tensors of every size, dtype and layout come back equal to the bit: sent, run through a plan, fetched."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch

from broker.protocol.tensors import DTYPES
from coordinator import Plan, func2plan
from coordinator.device import Device
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES
from tests.acceptance import plans
from tests.acceptance.worlds import World
from tests.waiting import PATIENCE

MEGABYTE = 1_000_000


def bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of arbitrary bits: among floats also NaNs of any payload, infinities and denormals."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = dtype.itemsize
    count = torch.Size(shape).numel() * size
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def equal_to_the_bit(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Same dtype, shape and bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.numel() == 0:
        return True
    return torch.equal(
        *(tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    )


@functools.cache
def tensors() -> Mapping[str, torch.Tensor]:
    """The kinds of tensors that there are, small ones and some that are larger than a message takes."""
    found = {f"dtype {name}": bits((3, 5), TORCH_DTYPES[name], seed) for seed, name in enumerate(DTYPES)}
    found |= {
        "0-d": torch.tensor(2.5),
        "0-d bfloat16": torch.tensor(2.5, dtype=torch.bfloat16),
        "empty": torch.empty(0),
        "empty among dims": torch.empty((3, 0, 2), dtype=torch.int64),
        "1 byte": torch.tensor([200], dtype=torch.uint8),
        "64 KiB": bits((64 * 1024,), torch.uint8, 31),
        "a byte more": bits((64 * 1024 + 1,), torch.uint8, 32),
        "8 dims": bits((2, 1, 3, 2, 1, 2, 2, 3), torch.float32, 33),
        "transposed": bits((4, 6), torch.float32, 34).t(),
        "strided": bits((100,), torch.int16, 35)[3:90:7],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "conjugated": bits((7,), torch.complex64, 36).conj(),
        "large and transposed": bits((300, 200), torch.float64, 37).t(),
        "large bfloat16": bits((300, 200), torch.bfloat16, 38),
        "large complex128": bits((100, 100), torch.complex128, 39),
        "nan and inf": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]),
    }
    return found


@functools.cache
def give_back() -> Plan:
    """A plan that takes a dict of all `tensors` and gives each back; one argument is one leaf, so it is one message."""

    @func2plan()
    def plan_give_back(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in given.items()}

    plan_give_back.build(dict(tensors()))
    return plan_give_back


def test_what_is_sent_comes_back(world: World) -> None:
    """Every kind of tensor is the same to the bit after `send` and `get`, with all values in one round."""
    device = world.devices[0]
    pointers = {name: device.send(tensor) for name, tensor in tensors().items()}
    values = world.fleet.get(pointers, timeout=PATIENCE)
    assert list(values) == list(pointers)
    for name, tensor in tensors().items():
        assert equal_to_the_bit(values[name], tensor), name


def test_what_a_plan_gives_back_is_the_same(world: World) -> None:
    """Every kind of tensor passes a plan as an argument and as a result, and is the same to the bit."""
    device = world.devices[0]
    pointers = {name: device.send(tensor) for name, tensor in tensors().items()}
    results = give_back().send(device)(pointers)
    values = world.fleet.get(results, timeout=PATIENCE)
    for name, tensor in tensors().items():
        assert equal_to_the_bit(values[name], tensor), name
        assert results[name].shape == tensor.shape
        assert results[name].dtype == tensor.dtype


def test_what_is_passed_in_the_call_comes_back(world: World) -> None:
    """Tensors that stand in the call itself travel with it, small and large, and are the same to the bit."""
    values = world.fleet.get(give_back().send(world.devices[0])(dict(tensors())), timeout=PATIENCE)
    for name, tensor in tensors().items():
        assert equal_to_the_bit(values[name], tensor), name


def through_a_plan(device: Device, sent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes back of a tensor: at once, and through a plan."""
    pointer = device.send(sent)
    result = plans.identity().send(device)(pointer)
    both = device.fleet.get((pointer, result), timeout=2 * PATIENCE)
    for each in (pointer, result):
        each.release()
    return both[0], both[1]


@pytest.mark.parametrize("size", [1, 64 * 1024, 100 * MEGABYTE], ids=["1 byte", "64 KiB", "100 MB"])
def test_sizes_of_bytes(world: World, size: int) -> None:
    """One plan of a symbolic length takes one byte, 64 KiB and 100 MB, and each comes back equal to the bit."""
    sent = torch.arange(size, dtype=torch.int64).mul_(2654435761).bitwise_right_shift_(7).to(torch.uint8)
    back, result = through_a_plan(world.devices[0], sent)
    assert torch.equal(back, sent)
    assert torch.equal(result, sent)


def test_what_was_sent_may_change_at_once(world: World) -> None:
    """`send` takes the tensor as it is at that moment, also a large one that leaves later."""
    for count in (4, 100_000):
        mine = torch.zeros(count)
        pointer = world.devices[0].send(mine)
        mine += 1
        value = pointer.get(timeout=PATIENCE)
        assert torch.equal(value, torch.zeros(count))
        value += 1
        assert torch.equal(pointer.get(timeout=PATIENCE), torch.zeros(count))
