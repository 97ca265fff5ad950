"""The tensors that a function plan carries beside its code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from coordinator.errors import ArgumentNotSupported, MutatedState

__all__ = ["PlanState", "TracedState", "brief"]


class PlanState:
    """A function plan's state: its function gets it as ``state``, and calls `read`.

    `write` sets other values; they are sent when the plan is sent again. The tensors that `read` gives may be written
    to in place as well.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._tensors: list[torch.Tensor] = []
        if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Iterable):  # a tensor iterates over its rows
            raise ArgumentNotSupported("state", "a list or tuple of tensors", f"a {type(tensors).__name__}")
        for k, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor):
                raise ArgumentNotSupported(f"state[{k}]", "a tensor", f"a {type(tensor).__name__}")
            self._tensors.append(tensor.detach().clone())

    @classmethod
    def over(cls, tensors: Iterable[torch.Tensor]) -> PlanState:
        """The state that is these very tensors."""
        state = cls()
        state._tensors = list(tensors)
        return state

    def read(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order in which they were given."""
        return tuple(self._tensors)

    def write(self, *tensors: torch.Tensor) -> None:
        """Set all tensors, in that order. Other shapes or dtypes need another `Plan.build`."""
        if len(tensors) != len(self._tensors):
            raise ArgumentNotSupported("state", f"{len(self._tensors)} tensors", f"{len(tensors)}")
        for k, (old, new) in enumerate(zip(self._tensors, tensors, strict=True)):
            if not isinstance(new, torch.Tensor):
                raise ArgumentNotSupported(f"state[{k}]", "a tensor", f"a {type(new).__name__}")
            if old.shape == new.shape and old.dtype == new.dtype:
                with torch.no_grad():
                    old.copy_(new)  # the same tensor: another plan may have this one inside
            else:
                self._tensors[k] = new.detach().clone()

    def __len__(self) -> int:
        return len(self._tensors)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<PlanState of {len(self)} tensors>"


class TracedState:
    """What the function gets as ``state`` while it is traced or compared."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)

    def read(self) -> tuple[torch.Tensor, ...]:
        """The tensors."""
        return self._tensors

    def write(self, *_tensors: torch.Tensor) -> None:
        """A plan doesn't change what it carries: raises `MutatedState`."""
        from coordinator.capture import places

        raise MutatedState("state", where=places.here())


def brief(tensor: torch.Tensor) -> str:
    """A tensor's dtype and shape, to be read."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
