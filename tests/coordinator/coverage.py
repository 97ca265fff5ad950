"""What runs where: every network of `tests.coordinator.networks`, by every way there is to run it.

A cell is the largest error against eager torch, or why it does not run. `docs/coverage.md` is made of them, see
`tests.coordinator.coverage_table`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from coordinator import VirtualWorker, connect, training_plan
from coordinator.capture.control_flow import control_flow
from coordinator.capture.draws import Drawn, drawing
from coordinator.device import Device
from coordinator.errors import GradientThroughLoop
from coordinator.fleet import Fleet
from coordinator.function_plan import FunctionPlan
from coordinator.training import TrainingPlan
from coordinator.translation.errors import TranslationUnsupported, VariantUnsound
from edge_agent.plan.variants import TOLERANCES
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES
from tests.coordinator.networks import NETWORKS, Network

__all__ = ["COLUMNS", "Cell", "Coverage", "WrongResult", "covering"]

SEED = 5
_EXAMPLE = 5
_OTHERS = (2, 7)
"""Batch sizes: of the example that a plan is made from, and of what it is then run on."""

_WITHIN = 60.0
_LEAST = 1e-3  # results whose elements are all smaller are compared as if one was as large


class WrongResult(AssertionError):
    """A plan gave something else than eager torch, beyond the tolerance."""


@dataclass(frozen=True)
class Cell:
    """``error``: the largest difference, as a part of the largest element of its tensor. ``reason``: why it does not
    run.
    """

    error: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        return f"{self.error:.0e}" if self.error else "equal"


@dataclass
class _Case:
    """One network, captured once for all columns."""

    network: Network
    _module: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self._module = self.network.make()

    @cached_property
    def plan(self) -> FunctionPlan:
        """What it gives, captured with a batch of any size."""
        plan = FunctionPlan(copy.deepcopy(self._module).train(self.network.train_mode))
        plan.build(*self.network.draw(_EXAMPLE), args_shape=list(self.network.shape))
        return plan

    @cached_property
    def step(self) -> TrainingPlan:
        """A training step of it."""
        return training_plan(
            copy.deepcopy(self._module).train(), loss=_loss, optimizer=_optimizer, example=self.network.draw(_EXAMPLE)
        )

    def run_eagerly(self, args: tuple[torch.Tensor, ...]) -> Any:
        """What eager torch gives, drawing as plans do."""
        # Python's own if and for in place of torch's, which would compile them
        with drawing(SEED), Drawn(), control_flow(traced=False):  # type: ignore[no-untyped-call]
            return self._module.train(self.network.train_mode)(*args)

    def train_eagerly(self, args: tuple[torch.Tensor, ...]) -> Any:
        """The loss, and parameters, momentum (the gradients) and buffers after one step by eager torch."""
        module = copy.deepcopy(self._module).train()
        optimizer = _optimizer(list(module.parameters()))
        with drawing(SEED), Drawn(), control_flow(traced=False):  # type: ignore[no-untyped-call]
            loss = _loss(module(*args))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {
            "loss": loss,
            "params": dict(module.named_parameters()),
            "momentum": {
                name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in module.named_parameters()
            },
            "buffers": dict(module.named_buffers()),
        }

    def trained(self, run: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> Any:
        """The same, by a call of the step."""
        before = self.step.initial_carry()
        carry, out = run(before, *args)
        if all(torch.equal(before["params"][name], after) for name, after in carry["params"].items()):
            raise WrongResult("the step has left the parameters as they were")
        return {
            "loss": out["loss"],
            "params": carry["params"],
            "momentum": {name: state["momentum_buffer"] for name, state in carry["optimizer"].items()},
            "buffers": carry.get("buffers", {}),
        }


class Coverage:
    """The table, cell by cell; each is made once. ``light``: a device without torch, else one is made."""

    def __init__(self, fleet: Fleet, light: Device | None = None) -> None:
        self._fleet = fleet
        self._light = light
        self._cases: dict[str, _Case] = {}
        self._cells: dict[tuple[str, str], Cell] = {}

    def cell(self, row: str, column: str) -> Cell:
        """What a network does in a column. Raises `WrongResult`."""
        if (row, column) not in self._cells:
            try:
                error = COLUMNS[column](self, self._cases.setdefault(row, _Case(NETWORKS[row])))
                self._cells[row, column] = Cell(error)
            except (TranslationUnsupported, VariantUnsound) as refused:
                self._cells[row, column] = Cell(reason=str(refused).partition("; the plan runs on")[0])
            except GradientThroughLoop as refused:
                self._cells[row, column] = Cell(reason=refused.reason.partition(":")[0])
        return self._cells[row, column]

    @cached_property
    def _torch(self) -> Device:
        return VirtualWorker(self._fleet, id="with-torch")

    @cached_property
    def _onnx(self) -> Device:
        return self._light or VirtualWorker(self._fleet, id="without-torch", runtime="onnx")

    def _capture(self, case: _Case) -> float:
        return self._ran(case, case.plan.options(seed=SEED))

    def _on_torch(self, case: _Case) -> float:
        return self._ran(case, self._sent(case.plan, self._torch))

    def _on_onnx(self, case: _Case) -> float:
        return self._ran(case, self._sent(case.plan, self._onnx))

    def _trained_on_torch(self, case: _Case) -> float:
        return self._stepped(case, self._sent(case.step, self._torch))

    def _trained_on_onnx(self, case: _Case) -> float:
        return self._stepped(case, self._sent(case.step, self._onnx))

    def _sent(self, plan: FunctionPlan, device: Device) -> Callable[..., Any]:
        call = plan.send(device).options(seed=SEED)
        return lambda *args: self._fleet.get(call(*args), timeout=_WITHIN)

    def _ran(self, case: _Case, run: Callable[..., Any]) -> float:
        errors = []
        for batch in _OTHERS:
            args = case.network.draw(batch)
            errors.append(_error(run(*args), case.run_eagerly(args)))
        return max(errors)

    def _stepped(self, case: _Case, run: Callable[..., Any]) -> float:
        args = case.network.draw(_OTHERS[-1])
        return _error(case.trained(run, args), case.train_eagerly(args))


COLUMNS: dict[str, Callable[[Coverage, _Case], float]] = {
    "capture": Coverage._capture,
    "torch device": Coverage._on_torch,
    "onnx device": Coverage._on_onnx,
    "training on torch": Coverage._trained_on_torch,
    "training on onnx": Coverage._trained_on_onnx,
}
"""By the name that the table has for them."""


@contextmanager
def covering() -> Iterator[Coverage]:
    """With a fleet of two devices, one of each runtime."""
    with connect() as fleet:
        yield Coverage(fleet)


def _optimizer(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def _loss(result: Any) -> torch.Tensor:
    """The mean square of all that has a gradient."""
    parts = [
        leaf.abs().float().square().mean() if leaf.is_complex() else leaf.float().square().mean()
        for leaf in _leaves(result)
        if leaf.is_floating_point() or leaf.is_complex()
    ]
    return torch.stack(parts).mean()


def _leaves(nest: Any) -> list[torch.Tensor]:
    if isinstance(nest, dict):
        return [leaf for key in sorted(nest) for leaf in _leaves(nest[key])]
    if isinstance(nest, list | tuple):
        return [leaf for one in nest for leaf in _leaves(one)]
    return [nest.detach()] if isinstance(nest, torch.Tensor) and not nest.requires_grad else [nest]


def _error(got: Any, wanted: Any) -> float:
    """The largest difference of any leaf. Raises `WrongResult` beyond the tolerance of its dtype."""
    worst = 0.0
    pairs = list(zip(_leaves(got), _leaves(wanted), strict=True))
    for place, (one, other) in enumerate(pairs):
        other = other.detach()  # noqa: PLW2901
        if one.dtype is not other.dtype or one.shape != other.shape:
            raise WrongResult(
                f"expected {other.dtype}{list(other.shape)} as result {place}, got {one.dtype}{list(one.shape)}"
            )
        error = _difference(one, other)
        name = DTYPE_NAMES[one.dtype]
        tolerance = TOLERANCES[""].get({"complex64": "float32", "complex128": "float64"}.get(name, name), 0.0)
        if not error <= tolerance:
            raise WrongResult(f"result {place} ({name}) lies {error:.3g} from eager torch's, beyond {tolerance:g}")
        worst = max(worst, error)
    return worst


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    if torch.equal(one, other) or not other.numel():
        return 0.0
    if not (other.is_floating_point() or other.is_complex()):
        return 1.0
    wide = torch.complex128 if other.is_complex() else torch.float64
    gap = (one.to(wide) - other.to(wide)).abs().max()
    return float(gap / other.to(wide).abs().max().clamp(min=_LEAST))
