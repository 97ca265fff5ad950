"""Tags on a torch tensor, before it goes to a device.

`tagged` gives a tensor that shares the memory of the one it was made from and carries tags and a description as
attributes; operations on it give plain tensors. `hook_torch` adds ``tag``, ``describe`` and ``send`` to all torch
tensors, until `unhook_torch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from coordinator.checks import checked_description, checked_tags

if TYPE_CHECKING:
    from coordinator.device import Device
    from coordinator.pointers import PointerTensor

__all__ = ["description_of", "hook_torch", "tagged", "tags_of", "unhook_torch"]

_TAGS = "edgeplan_tags"
_DESCRIPTION = "edgeplan_description"
_HOOKS = ("tag", "describe", "send")


def tagged(tensor: torch.Tensor, *tags: str, description: str = "") -> torch.Tensor:
    """``tensor`` with tags, for `VirtualWorker` and `Device.send`. Shares its memory, but not its gradients; the
    argument stays as it is.

    Tags that the argument carries already are kept. Raises ValueError for what is no tag or no description.
    """
    carrier = tensor.detach()
    _set(carrier, (*tags_of(tensor), *checked_tags(tags)), checked_description(description) or description_of(tensor))
    return carrier


def tags_of(tensor: torch.Tensor) -> tuple[str, ...]:
    """The tags that a tensor carries."""
    return tuple(getattr(tensor, _TAGS, ()))


def description_of(tensor: torch.Tensor) -> str:
    """The description that a tensor carries."""
    return str(getattr(tensor, _DESCRIPTION, ""))


def _set(tensor: torch.Tensor, tags: Sequence[str], description: str) -> None:
    setattr(tensor, _TAGS, tuple(dict.fromkeys(tags)))
    setattr(tensor, _DESCRIPTION, description)


# ------------------------------------------------------------------------------------------------- on all tensors


def hook_torch() -> None:
    """Give every torch tensor ``tag(*tags)``, ``describe(text)`` and ``send(device)``. May be called again; see
    `unhook_torch`.

    Raises RuntimeError if torch has got a method of one of these names.
    """
    for name in _HOOKS:
        present = getattr(torch.Tensor, name, None)
        if present is not None and present is not _METHODS[name]:
            raise RuntimeError(f"torch.Tensor has a method {name!r} already: use tagged() and device.send() instead")
    for name in _HOOKS:
        setattr(torch.Tensor, name, _METHODS[name])


def unhook_torch() -> None:
    """Take back `hook_torch`. Tags that tensors carry stay."""
    for name in _HOOKS:
        if getattr(torch.Tensor, name, None) is _METHODS[name]:
            delattr(torch.Tensor, name)


def _tag(self: torch.Tensor, *tags: str) -> torch.Tensor:
    """Add tags to this tensor; the tensor itself."""
    _set(self, (*tags_of(self), *checked_tags(tags)), description_of(self))
    return self


def _describe(self: torch.Tensor, description: str) -> torch.Tensor:
    """Describe this tensor; the tensor itself."""
    _set(self, tags_of(self), checked_description(description))
    return self


def _send(self: torch.Tensor, device: Device) -> PointerTensor:
    """Send this tensor to ``device``, with its tags; its pointer, at once."""
    return device.send(self)


_METHODS: dict[str, Any] = {"tag": _tag, "describe": _describe, "send": _send}
