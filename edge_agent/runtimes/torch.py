"""The torch runtime: a checked plan to a callable that runs it, op by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.errors import OpFailed

__all__ = ["LoadedPlan", "OpFailed", "TorchRuntime"]


class LoadedPlan:
    """A plan with its state, ready to run, as often as wanted. ``between_ops``, if set, is called with an op's index before that op runs;
    what it raises ends the run."""

    between_ops: Callable[[int], None] | None

    def run(self, user_inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[torch.Tensor]:
        """The plan's outputs, one a leaf of its output tree. ``sizes`` comes from `edge_agent.plan.calls.bind_sizes`, which has checked the inputs.

        Raises `OpFailed`.
        """
        raise NotImplementedError


class TorchRuntime:
    """Loads plans for torch on the CPU."""

    name = "torch"

    def load(self, checked: CheckedPlan, state: Sequence[torch.Tensor]) -> LoadedPlan:
        """Resolve the plan's ops and bind their arguments, once. ``state`` is in the manifest's order."""
        raise NotImplementedError
