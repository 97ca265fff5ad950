"""Moving tensors from device to device, through the broker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker.protocol.messages import ResultStatus
from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.errors import ArgumentFailed, ForeignPointer, ResultReleased
from coordinator.fleet import Fleet
from coordinator.moving import identity
from coordinator.pointers import PointerTensor
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES
from tests.coordinator.conftest import WITHIN
from tests.processes import running


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@func2plan(args_shape=[(-1, 2)])
def broken(x: torch.Tensor) -> torch.Tensor:
    """Fails where an index is too large."""
    return x[:, x.to(torch.int64)[:, 0]]


def bits(tensor: torch.Tensor) -> bytes:
    """All bytes of a tensor."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return bytes(data.numpy())


def status_after_flush(pointer: PointerTensor) -> ResultStatus:
    """What the broker says once it has all that was sent."""
    pointer.fleet.flush(WITHIN)
    return pointer.status()


@pytest.mark.parametrize("name", sorted(TORCH_DTYPES))
def test_every_dtype_moves_bit_by_bit(
    fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker, name: str
) -> None:
    """A tensor with any bits, of two dims, is the same on the other device, and gone on the first."""
    dtype = TORCH_DTYPES[name]
    raw = torch.arange(6 * torch.empty(0, dtype=dtype).element_size(), dtype=torch.uint8)
    tensor = torch.tensor([[True, False]]) if dtype is torch.bool else raw.view(dtype).reshape(2, 3)
    source = device_1.send(tensor, tags=["moving"], description="some bits")
    moved = source.move(device_2)
    assert (moved.device, moved.dtype, moved.shape) == (device_2, dtype, tensor.shape)
    assert (moved.tags, moved.description) == (("moving",), "some bits")
    assert bits(moved.get(WITHIN)) == bits(tensor)
    assert status_after_flush(source) is ResultStatus.RELEASED
    with pytest.raises(ResultReleased):
        source.get(WITHIN)
    moved.release()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1, 1, 1, 1)])
def test_every_shape_moves(device_1: VirtualWorker, device_2: VirtualWorker, shape: tuple[int, ...]) -> None:
    """Dims of 0 and 1, and none at all."""
    moved = device_1.send(torch.full(shape, 2.5)).move(device_2)
    assert torch.equal(moved.get(WITHIN), torch.full(shape, 2.5))


def test_what_does_not_exist_yet_moves(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A pointer whose result is not ready, of an unknown size, moves at once; chains go on from there."""
    sleeper = VirtualWorker(fleet, "away")
    sleeper.close()
    source = double.send(fleet.device("away"))("reading")
    moved = source.move(device_1)
    doubled = double.send(device_1)(moved)
    assert (moved.ready, moved.shape) == (False, None)
    VirtualWorker(fleet, "away", data=(tagged(torch.tensor([1.0, 2.0]), "reading"),))
    assert torch.equal(doubled.get(WITHIN), torch.tensor([4.0, 8.0]))
    assert torch.equal(moved.get(WITHIN), torch.tensor([2.0, 4.0]))
    assert moved.move(device_1) is moved


def test_an_owners_tensor_is_copied(device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """What the device's owner put stays, and is found again."""
    (own,) = device_1.search("readings", "input_data2")
    moved = own.move(device_2)
    assert torch.equal(moved.get(WITHIN), torch.tensor([1.0, -2.0]))
    moved.fleet.flush(WITHIN)
    assert torch.equal(own.get(WITHIN), torch.tensor([1.0, -2.0]))
    assert device_1.search("readings", "input_data2") == [own]
    assert moved in device_2.search("input_data2")
    moved.release()


def test_a_copy_that_fails_leaves_the_source(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A tensor that can't get to where it was to go is still where it was; one that never came to be says why."""
    source = device_1.send(torch.tensor([1.0, 2.0]))
    assert source.wait(WITHIN)
    with pytest.raises(LookupError):
        source.move(fleet.device("nobody")).get(WITHIN)
    assert status_after_flush(source) is ResultStatus.DONE
    assert torch.equal(source.get(WITHIN), torch.tensor([1.0, 2.0]))
    other = VirtualWorker(fleet, "other")
    failed = broken.send(device_1)(torch.full((2, 2), 7.0))
    with pytest.raises(ArgumentFailed):
        failed.move(other).get(WITHIN)


def test_a_device_without_torch(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A tensor moves to a device that runs onnx and back, bit by bit, complex numbers, which onnx lacks, as well."""
    light = VirtualWorker(fleet, "light", runtime="onnx")
    for tensor in (torch.tensor([[1.5, -0.0, torch.inf]]), torch.tensor([1j, -2.5])):
        there = device_1.send(tensor).move(light)
        assert bits(there.get(WITHIN)) == bits(tensor)
        assert bits(there.move(device_1).get(WITHIN)) == bits(tensor)
    light.close()


def test_a_foreign_device(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A device of another fleet is refused before anything is sent."""
    with connect() as other, pytest.raises(ForeignPointer, match="the device d9 of another"):
        device_1.send(torch.ones(1)).move(other.device("d9"))


def test_one_identity_a_type() -> None:
    """The plan is made once for a dtype and number of dims, passes the checker, and is the same in every process."""
    bundle = identity("float32", 2)
    assert identity("float32", 2) is bundle
    assert bundle.plan_id != identity("float32", 3).plan_id
    bundle.verify()


def test_large_tensors_move_between_processes(tmp_path: Path) -> None:
    """Five megabytes go from one agent to another bit by bit, as a blob, and the coordinator has no part in it."""
    tensor = torch.randn(1_300_000, generator=torch.Generator().manual_seed(1))
    with running(tmp_path, "d1", "d2") as broker, connect(broker.endpoint, insecure=True, session="mover") as fleet:
        source = double.send(fleet.device("d1"))(fleet.device("d1").send(tensor / 2))
        assert source.wait(WITHIN)
        before = fleet.stats().total
        moved = source.move(fleet.device("d2"))
        assert moved.wait(WITHIN)
        after = fleet.stats()
        moved_bytes = after.total.blob_bytes_in - before.blob_bytes_in
        assert tensor.nbytes <= moved_bytes < tensor.nbytes + 10_000
        assert bits(moved.get(WITHIN)) == bits(tensor)
        taken_up = fleet.pointer(moved.id)
        back = taken_up.move(fleet.device("d1"))
        assert bits(back.get(WITHIN)) == bits(tensor)
        assert status_after_flush(source) is ResultStatus.RELEASED
        assert status_after_flush(taken_up) is ResultStatus.RELEASED
