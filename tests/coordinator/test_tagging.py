"""Tags on torch tensors: carried by `tagged`, and by methods of all tensors once they are hooked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from coordinator import VirtualWorker, hook_torch, tagged, unhook_torch
from coordinator.tagging import description_of, tags_of

WITHIN = 60.0


@pytest.fixture
def hooked() -> Iterator[None]:
    """Hooked, and unhooked afterwards."""
    hook_torch()
    yield
    unhook_torch()


def test_tagged_carries_tags_and_shares_memory() -> None:
    """The result has the tags, each once, and the same memory; the argument stays as it was."""
    tensor = torch.ones(2, requires_grad=True)
    carrier = tagged(tensor, "a", "b", "a", description="two ones")
    assert (tags_of(carrier), description_of(carrier)) == (("a", "b"), "two ones")
    assert (tags_of(tensor), description_of(tensor)) == ((), "")
    with torch.no_grad():
        tensor.mul_(3)
    assert torch.equal(carrier, torch.full((2,), 3.0))
    assert not carrier.requires_grad


def test_tagging_again_adds() -> None:
    """Tags of the argument are kept, its description unless there is a new one."""
    twice = tagged(tagged(torch.ones(1), "a", description="one"), "b")
    assert (tags_of(twice), description_of(twice)) == (("a", "b"), "one")


@pytest.mark.parametrize("tag", ["", "x" * 257, 3])
def test_what_is_no_tag(tag: object) -> None:
    """Empty and overlong ones, and what is no text."""
    with pytest.raises(ValueError, match="expected tags of 1 to 256 characters"):
        tagged(torch.ones(1), tag)  # type: ignore[arg-type]


def test_tensors_have_no_methods_of_ours_by_default() -> None:
    """Importing the package changes nothing in torch."""
    for name in ("tag", "describe", "send"):
        assert not hasattr(torch.Tensor, name)


def test_hooked_tensors_are_tagged_described_and_sent(hooked: None, device_1: VirtualWorker) -> None:
    """x.tag(...).describe(...).send(device), as in PySyft."""
    tensor: torch.Tensor = torch.tensor([1.0, 2.0]).tag("hooked", "data").describe("from a hook")  # type: ignore[attr-defined]
    pointer = tensor.send(device_1)  # type: ignore[attr-defined]
    assert pointer.wait(WITHIN)
    (found,) = device_1.search("hooked", "data")
    assert found == pointer
    assert found.description == "from a hook"
    assert torch.equal(found.get(WITHIN), tensor)


def test_hooking_is_reversible_and_may_be_repeated() -> None:
    """Twice is once; afterwards torch is as it was."""
    hook_torch()
    hook_torch()
    assert hasattr(torch.Tensor, "send")
    unhook_torch()
    unhook_torch()
    assert not hasattr(torch.Tensor, "send")


def test_a_method_of_torchs_own_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch has a method of that name some day, hooking says so and changes nothing."""
    monkeypatch.setattr(torch.Tensor, "send", lambda _self: None, raising=False)
    with pytest.raises(RuntimeError, match="'send' already"):
        hook_torch()
    assert not hasattr(torch.Tensor, "tag")
