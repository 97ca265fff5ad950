"""`training_plan`: the usual training step of a model as a plan.

The plan has the form ``(carry, *batch) -> (carry, out)``: what changes from step to step (parameters, the state of the
optimiser, buffers such as batch norm's running statistics) goes in and comes out, so that a device can go on by itself.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from coordinator.capture.beneath import with_tensors
from coordinator.capture.environment import ALONE, replaced
from coordinator.capture.watch import is_fake
from coordinator.errors import ArgumentNotSupported, OptimizerNotSupported
from coordinator.function_plan import FunctionPlan

__all__ = ["TrainingPlan", "training_plan"]


class TrainingPlan(FunctionPlan, ours=True):
    """A training step that devices run. Made, and built, by `training_plan`; `initial_carry` gives what its first
    call takes.

    Called, ``carry, out = step(carry, *batch)``, it runs here; `send` gives a `PointerPlan` that is called alike.
    """

    def __init__(self, step: Callable[..., Any], initial: Callable[[], dict[str, Any]], name: str) -> None:
        super().__init__(step)
        object.__setattr__(self, "_initial", initial)
        object.__setattr__(self, "_called", name)

    _initial: Callable[[], dict[str, Any]]
    _called: str

    @property
    def name(self) -> str:
        """The model's class, and what is done with it."""
        return self._called

    def initial_carry(self) -> dict[str, Any]:
        """``{"params": {name: tensor}, "optimizer": {name: {key: tensor}}}``, and ``"buffers"`` where the model has
        any: copies of the model's own as they are now, and an optimiser that has not made a step.
        """
        return self._initial()


def training_plan(
    model: nn.Module,
    *,
    loss: Callable[..., torch.Tensor],
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    example: Sequence[Any],
    metrics: Mapping[str, Callable[..., Any]] | None = None,
) -> TrainingPlan:
    """The training step of ``model``, built.

    ``example`` is one batch: what the model takes, then the target; the first dim of all of them is the batch, and
    may have any size. ``loss(prediction, target)`` gives a number; without a target (an example of one) it gets the
    prediction alone. ``optimizer`` makes an optimiser of `torch.optim` from a list of parameters. ``metrics`` are
    functions as ``loss`` is, whose results come out beside ``out["loss"]``, of the prediction before the update.

    Parameters that don't require gradients are not trained: the plan carries them as they are. Raises
    `OptimizerNotSupported`, `ArgumentNotSupported`, or another `PlanBuildError`.
    """
    for name, function in (("model", model), ("loss", loss), ("optimizer", optimizer), *(metrics or {}).items()):
        _check(name, function, "a function", fits=callable(function))
    # A tensor would be taken for a batch of its rows.
    _check("example", example, "a batch as a tuple: what the model takes, then the target", fits=_is_batch(example))
    batch = tuple(example)
    step = _Step(model, loss, optimizer, dict(metrics or {}), targets=min(len(batch) - 1, 1))

    module = model

    def training_step(carry: dict[str, Any], *batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        assert module is step.model  # named here, so that the plan knows whose frozen parameters it carries
        return step(carry, batch)

    plan = TrainingPlan(training_step, step.initial_carry, f"{type(model).__name__}_training")
    carry = step.initial_carry()
    shapes = [_shapes(carry), *(_batched(value) for value in batch)]
    plan.build(carry, *batch, args_shape=shapes)
    return plan


def _is_batch(example: object) -> bool:
    return isinstance(example, Sequence) and not isinstance(example, str)


def _check(name: str, value: object, expected: str, *, fits: bool) -> None:
    if not fits:
        raise ArgumentNotSupported(name, expected, f"a {type(value).__name__}")


class _Step:
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
        metrics: Mapping[str, Callable[..., Any]],
        *,
        targets: int,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.metrics = metrics
        self.targets = targets

    def initial_carry(self) -> dict[str, Any]:
        params = {name: tensor.detach().clone() for name, tensor in self._trained().items()}
        carry: dict[str, Any] = {"params": params, "optimizer": _initial_state(self.optimizer, params)}
        kept = self.model.state_dict()
        buffers = {name: tensor.detach().clone() for name, tensor in self.model.named_buffers() if name in kept}
        return {**carry, "buffers": buffers} if buffers else carry

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}

    def __call__(self, carry: dict[str, Any], batch: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        params = {name: tensor.detach().clone().requires_grad_() for name, tensor in carry["params"].items()}
        buffers = {name: tensor.detach().clone() for name, tensor in carry.get("buffers", {}).items()}
        optimizer = self.optimizer(list(params.values()))
        traced = any(map(is_fake, params.values()))
        names = {id(tensor): name for name, tensor in params.items()}
        for tensor in params.values():
            state = carry["optimizer"][names[id(tensor)]]
            if state:
                optimizer.state[tensor] = {
                    # eager torch computes with the count as a Python number
                    key: value.double() if key == "step" and traced else value.detach().clone()
                    for key, value in state.items()
                }
        inputs, target = batch[: len(batch) - self.targets], batch[len(batch) - self.targets :]
        with with_tensors(self.model, {**params, **buffers}):
            prediction = self.model(*inputs)
            loss = self.loss(prediction, *target)
            out = {"loss": loss.detach()}
            with torch.no_grad():
                out |= {name: metric(prediction, *target) for name, metric in self.metrics.items()}
            written = dict(self.model.named_buffers())
        loss.backward()  # type: ignore[no-untyped-call]
        with _steppable(optimizer, traced=traced):
            optimizer.step()
        state = {name: dict(optimizer.state.get(tensor, {})) for name, tensor in params.items()}
        after: dict[str, Any] = {
            "params": {name: tensor.detach() for name, tensor in params.items()},
            "optimizer": {
                name: {key: state[name][key].to(before.dtype) for key, before in carry["optimizer"][name].items()}
                for name in params
            },
        }
        if buffers:
            after["buffers"] = {name: written[name] for name in buffers}
        return after, out


# ------------------------------------------------------------------------------------------------- optimisers


def _base(optimizer: torch.optim.Optimizer) -> tuple[ModuleType, str]:
    """The module of torch.optim whose function makes the step, and that function's name."""
    home = inspect.unwrap(type(optimizer).step).__module__
    name = home.rpartition(".")[2]
    if home.startswith("torch.optim.") and hasattr(sys.modules[home], name):
        return sys.modules[home], name
    raise OptimizerNotSupported(type(optimizer).__name__, "its step is not one of torch.optim's functions")


def _initial_state(
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], params: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """The optimiser's state before the first step: what its own step makes first, with nothing done after that."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    optimizer = make(list(leaves.values()))
    module, function = _base(optimizer)
    kind = type(optimizer).__name__
    for group in optimizer.param_groups:
        if group.get("dampening"):
            raise OptimizerNotSupported(kind, "with dampening, its first step differs from all others")
        if group.get("lr_decay"):
            raise OptimizerNotSupported(kind, "its learning rate depends on the number of the step")
    for tensor in leaves.values():
        tensor.grad = torch.zeros_like(tensor)
    with ALONE, replaced(module, function, lambda *_, **__: None):
        optimizer.step()
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in leaves.items():
        state[name] = {}
        for key, value in optimizer.state.get(tensor, {}).items():
            if value is None:
                value = torch.zeros_like(tensor)  # a momentum that begins with the first gradient # noqa: PLW2901
            if not isinstance(value, torch.Tensor):
                raise OptimizerNotSupported(kind, f"its state has {key}, which is no tensor")
            state[name][key] = value.detach().clone()
    return state


@contextlib.contextmanager
def _steppable(optimizer: torch.optim.Optimizer, *, traced: bool) -> Iterator[None]:
    """The optimiser as a trace can follow it: one tensor at a time, and its count of steps a tensor."""
    module, _ = _base(optimizer)
    for group in optimizer.param_groups:
        for key in ("foreach", "fused"):
            if key in group:
                group[key] = False
        if traced and "capturable" in group:
            group["capturable"] = True
    with contextlib.ExitStack() as stack:
        if traced:
            # what torch.compile sets: the count is not asked for its value, nor the device for its name
            stack.enter_context(replaced(torch.compiler, "is_compiling", lambda: True))
            if all("capturable" not in group for group in optimizer.param_groups) and hasattr(module, "_get_value"):
                # without a decay, the count does not matter
                stack.enter_context(replaced(module, "_get_value", lambda _: 1.0))
        yield


# ------------------------------------------------------------------------------------------------- shapes


def _shapes(nest: Any) -> Any:
    return {key: _shapes(value) for key, value in nest.items()} if isinstance(nest, dict) else tuple(nest.shape)


def _batched(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("batch", *value.shape[1:]) if value.dim() else ()
    if isinstance(value, Mapping):
        return {key: _batched(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_batched(part) for part in value]
    return None
