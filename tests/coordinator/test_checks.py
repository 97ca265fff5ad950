"""What users say is checked before it is sent: what the broker would refuse must not stand before all that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.checks import checked_description, checked_result_id, checked_seed, checked_session_name
from coordinator.fleet import Fleet

WITHIN = 60.0
DEVICE = "expected a device id of 1 to 64 letters, digits, '_', '.' or '-', starting with a letter or digit, got "


@func2plan(args_shape=[(2,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@func2plan(args_shape=[(), ("rows",)])
def add_up(carry: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A plan to fold."""
    return carry + x.sum(), x.mean()


@pytest.mark.parametrize("seed", [0, -(1 << 63), (1 << 64) - 1])
def test_a_seed(seed: int) -> None:
    """Any whole number of 64 bits, signed or not, as for torch."""
    assert checked_seed(seed) == seed


@pytest.mark.parametrize("seed", ["a", 1.5, 1 << 64, -(1 << 63) - 1])
def test_what_is_no_seed(seed: object) -> None:
    """The error says which seed, and what came."""
    with pytest.raises(ValueError, match=r"^expected shuffle to be a whole number of 64 bits, got "):
        checked_seed(seed, "shuffle")


@pytest.mark.parametrize("description", [5, None, "\ud800"])
def test_what_is_no_description(description: object) -> None:
    """No text, or text that UTF-8 can't write."""
    with pytest.raises(ValueError, match=r"^expected a description in words, got "):
        checked_description(description)


def test_what_is_no_session_name() -> None:
    """No text, text that UTF-8 can't write, or too much of it; none is the empty one."""
    assert [checked_session_name(name) for name in ("", "nightly", "x" * 256)] == ["", "nightly", "x" * 256]
    for name in (5, "\ud800"):
        with pytest.raises(ValueError, match=r"^expected a session name in words, got "):
            connect(session=name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^expected a session name of at most 256 characters, got 257$"):
        checked_session_name("x" * 257)


def test_what_is_no_result_id() -> None:
    """A raw id has 16 bytes."""
    assert checked_result_id(bytes(16)) == bytes(16)
    with pytest.raises(ValueError, match=r"^expected a result id of 16 bytes, got 3$"):
        checked_result_id(bytes(3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda device: device.search(5), "expected tags of 1 to 256 characters, got [5]"),
        (lambda device: device.search("\ud800"), "expected tags of 1 to 256 characters, got ['\\ud800']"),
        (lambda device: device.fleet.search("a", devices=["no name"]), "expected a device id of 1 to 64 letters"),
        (lambda device: device.fleet.status(b"id"), "expected a result id of 16 bytes, got 2"),
        (lambda device: device.fleet.pointer(b"id"), "expected a result id of 16 bytes, got 2"),
        (lambda device: device.fleet.dead_letters(1.5), "expected a limit of at least 0, got 1.5"),
        (lambda device: device.send(torch.ones(2), description=5), "expected a description in words, got 5"),
        (
            lambda _: tagged(torch.ones(2), description=5),  # type: ignore[arg-type]
            "expected a description in words, got 5",
        ),
        (lambda device: device.send(torch.ones(2), tags=None), "expected tags of 1 to 256 characters, got None"),
        (lambda device: device.send(torch.ones(2), tags=3), "expected tags of 1 to 256 characters, got 3"),
        (lambda device: double.send(device).options(tags=3), "expected tags of 1 to 256 characters, got 3"),
        (lambda device: device.fleet.search("a", devices=3), "expected devices to be a list of device ids, got 3"),
        (lambda device: device.fleet.device(3), f"{DEVICE}3"),
        (lambda device: device.fleet.device(b"d1"), f"{DEVICE}b'd1'"),
        (lambda device: device.fleet.status(3), "expected a result id of 32 hex digits, got 3"),
        (lambda device: device.fleet.pointer(None), "expected a result id of 32 hex digits, got None"),
        (lambda device: device.fleet.notifications(3), "expected a prefix of up to 32 hex digits, got 3"),
        (lambda device: device.fleet.notifications("0g"), "expected a prefix of up to 32 hex digits, got '0g'"),
        (lambda device: device.fleet.logs(device=3), f"{DEVICE}3"),
        (lambda device: device.fleet.logs(device="no name"), f"{DEVICE}'no name'"),
        (lambda device: device.fleet.logs(component=3), "expected a component's name, got 3"),
        (lambda device: device.fleet.logs(session=3), "expected a session id of 16 hex digits, got 3"),
        (lambda device: device.fleet.logs(session="nightly"), "expected a session id of 16 hex digits, got 'nightly'"),
        (lambda device: device.fleet.logs(result="0g"), "expected a prefix of up to 32 hex digits, got '0g'"),
        (lambda device: device.fleet.logs(result=3), "expected a prefix of up to 32 hex digits, got 3"),
        (lambda device: device.search("input_data")[0].get(timeout="x"), "expected a timeout in seconds, got 'x'"),
        (lambda device: device.search("input_data")[0].wait(float("nan")), "expected a timeout in seconds, got nan"),
        (lambda device: device.fleet.get([], timeout="x"), "expected a timeout in seconds, got 'x'"),
        (lambda device: device.fleet.as_completed([], timeout="x"), "expected a timeout in seconds, got 'x'"),
        (lambda device: device.fleet.flush("x"), "expected a timeout in seconds, got 'x'"),
        (lambda device: device.fleet.notifications().receive("x"), "expected a timeout in seconds, got 'x'"),
        (
            lambda device: VirtualWorker(device.fleet, "d4", timeout="x"),  # type: ignore[arg-type]
            "expected a timeout in seconds, got 'x'",
        ),
        (
            lambda _: connect(timeout="x"),  # type: ignore[arg-type]
            "expected a timeout in seconds, got 'x'",
        ),
        (
            lambda _: connect(max_unaccepted="x"),  # type: ignore[arg-type]
            "expected max_unaccepted to be a whole number of at least 1, got 'x'",
        ),
        (
            lambda _: connect(max_unaccepted_bytes=0),
            "expected max_unaccepted_bytes to be a whole number of at least 1, got 0",
        ),
        *(
            (
                lambda device, deadline=deadline: double.send(device).options(deadline=deadline),
                f"expected a deadline of 0.001 to 9,000,000,000,000 seconds, got {deadline!r}",
            )
            for deadline in ("x", 1e-6, 0, -1, 1e300, float("nan"))
        ),
        (
            lambda device: double.send(device).options(seed="a"),
            "expected seed to be a whole number of 64 bits, got 'a'",
        ),
        (lambda device: double.send(device).options(description=5), "expected a description in words, got 5"),
        (
            lambda device: add_up.send(device).fold(torch.tensor(0.0), over="readings", batch_size=1, shuffle="a"),
            "expected shuffle to be a whole number of 64 bits, got 'a'",
        ),
    ],
)
def test_it_is_refused_at_once_and_the_session_goes_on(
    device_1: VirtualWorker, call: Callable[[VirtualWorker], Any], sentence: str
) -> None:
    """Nothing is sent, so nothing that is sent later waits behind it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared below
        call(device_1)
    assert str(caught.value).startswith(sentence)
    value = double.send(device_1).options(inline=1)(torch.ones(2)).get(WITHIN)
    assert torch.equal(value, torch.full((2,), 2.0))


def test_what_is_no_device_or_pointer(device_1: VirtualWorker) -> None:
    """What a pointer is to move to, and what is waited for."""
    pointer = device_1.search("input_data")[0]
    for other in ("device_2", device_1.fleet):
        with pytest.raises(TypeError, match=f"^expected a device to move a tensor to, got a {type(other).__name__}$"):
            pointer.move(other)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^expected pointers, got a int$"):
        device_1.fleet.as_completed(3)


def test_one_name_stands_for_a_list_of_one(device_1: VirtualWorker) -> None:
    """A string is one tag and one device, not its letters."""
    assert list(device_1.fleet.search("input_data", devices="device_1")) == ["device_1"]
    made = device_1.send(torch.ones(2), tags="one tag")
    assert made.tags == ("one tag",)
    made.release()


def test_ids_in_any_letters(device_1: VirtualWorker) -> None:
    """Hex digits may be large ones: in the id of a result, and in what ids begin with."""
    fleet = device_1.fleet
    (pointer,) = device_1.search("input_data")
    assert fleet.pointer(pointer.id.upper()) == pointer
    with fleet.notifications(fleet.session_id.upper()) as ours:
        while (told := ours.receive(0.02)) is None:  # subscribing takes a moment that nobody tells
            device_1.send(torch.ones(1)).release()
    assert told.id.startswith(fleet.session_id)


def test_a_virtual_device_of_no_fleet() -> None:
    """It is told so, and not by an attribute that an int has not."""
    with pytest.raises(TypeError, match=r"^expected a fleet, as of connect\(\), got a int$"):
        VirtualWorker(3, id="device_3")  # type: ignore[arg-type]


def test_a_virtual_device_ends_with_its_block(fleet: Fleet) -> None:
    """As by `close`."""
    with VirtualWorker(fleet, id="device_5") as device:
        assert device.registered
    assert not device.registered


def test_data_that_is_one_tensor(fleet: Fleet) -> None:
    """A tensor iterates over its rows, which have no tags: a forgotten comma must not lose them."""
    with pytest.raises(TypeError, match=r"^expected data to be a list or tuple of tensors, got one tensor$"):
        VirtualWorker(fleet, id="device_3", data=tagged(torch.ones(2), "input_data"))


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({"data": [torch.ones(1), 3]}, TypeError, "expected data[1] to be a tensor, got a int"),
        ({"data": "abc"}, TypeError, "expected data[0] to be a tensor, got a str"),
        ({"data": 3}, TypeError, "expected data to be a list or tuple of tensors, got a int"),
        ({"runtime": "foo"}, ValueError, "expected runtime to be 'torch' or 'onnx', got 'foo'"),
        ({"limits": 3}, TypeError, "expected limits to be edge_agent.limits.Limits, got a int"),
        ({"id": "no name"}, ValueError, "expected a device id of 1 to 64 letters"),
    ],
)
def test_what_is_no_virtual_device(
    fleet: Fleet, tmp_path: Path, given: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    """Refused before anything is begun: the broker hears of no device, and nothing is stored."""
    with pytest.raises(kind) as caught:
        VirtualWorker(fleet, **{"id": "device_4", "store": tmp_path, **given})
    assert str(caught.value).startswith(sentence)
    assert "device_4" not in [device.id for device in fleet.devices()]
    assert list(tmp_path.iterdir()) == []
