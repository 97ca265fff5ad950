"""`func2plan`: plans made of functions."""

from __future__ import annotations

import copy
import importlib
import inspect
import operator
import pickle
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import nn

from coordinator.capture.building import Captured
from coordinator.capture.graphs import StateSource
from coordinator.capture.inline import inlining
from coordinator.capture.tracing import Target
from coordinator.plan import Plan
from coordinator.plan_looks import Looks, Place
from coordinator.plan_state import PlanState, TracedState, brief

__all__ = ["FunctionPlan", "OpPlan", "func2plan"]


class FunctionPlan(Plan, ours=True):
    """A plan made of a function, by `func2plan`. Called, it runs what was built, here."""

    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], state: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"expected a function to make a plan of, got a {type(function).__name__}")
        object.__setattr__(self, "_function", function)  # a module is not to become a part of this one
        self._state = PlanState(state)
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            object.__setattr__(self, attribute, getattr(function, attribute, None))
        object.__setattr__(self, "__wrapped__", function)
        self._takes_state = _has_parameter(function, "state")
        if len(self._state) and not self._takes_state:
            raise TypeError(f"{self.name} was given state, and has no parameter 'state' to get it")

    def __getstate__(self) -> dict[str, Any]:
        """As any plan's, with the function under a name by which a pickle finds it."""
        state = super().__getstate__()
        state.pop("__wrapped__")
        return {**state, "_function": _Named(self._function)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        function = state["_function"].function
        super().__setstate__({**state, "_function": function, "__wrapped__": function})  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self._function, "__name__", None) or type(self._function).__name__)

    @property
    def state(self) -> PlanState:
        """The tensors that the plan carries: `PlanState.read`, `PlanState.write`."""
        return self._state

    def _target(self) -> Target:
        if not self._takes_state or not len(self._state):
            return Target(self._function, modules=self._carried())
        return Target(self._function, modules=self._carried(), state=self._state.read(), state_view=TracedState)

    def _carried(self) -> Mapping[str, nn.Module]:
        if isinstance(self._function, nn.Module):
            return {"": self._function}
        return _modules_outside(self._function)

    def _entry(self) -> tuple[Callable[..., Any], frozenset[str]]:
        entry = self._function.forward if isinstance(self._function, nn.Module) else self._function
        return entry, frozenset({"state"} if len(self._state) else ())

    def _looks(self, places: tuple[Place, ...]) -> Looks:
        looks = super()._looks(places)
        state = {f"state[{k}]": brief(tensor) for k, tensor in enumerate(self._state.read())}
        return replace(looks, parts={**looks.parts, **state})

    def _tensor(self, source: StateSource) -> torch.Tensor:
        return super()._tensor(source) if source.index is None else self._state.read()[source.index]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, as inside another plan."""
        if len(self._state):
            kwargs["state"] = self._state
        return self._function(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run what was built, here; inside another plan that is being built, be a part of it."""
        if inlining():
            return self.forward(*args, **kwargs)
        return self.run_plan(*args, **kwargs)


class OpPlan(FunctionPlan, ours=True):
    """A plan of one op of torch's, for pointers. It is not run beside the op when it is built: none of the user's code
    is in it, and its arguments may be large, or such that values of ours don't fit. It serves many lines of the user's,
    so it knows none: see `coordinator.operators`.
    """

    def _target(self) -> Target:
        return replace(super()._target(), compared=False)

    def _keep(self, captured: Captured) -> None:
        super()._keep(replace(captured, lines=(None,) * len(captured.lines)))


class _Named:
    """A plan's function, as it is copied and pickled. Pickle knows a function by the name that it has in its module,
    where `func2plan`, as a decorator, has put the plan.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> _Named:
        return _Named(copy.deepcopy(self.function, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.function, types.FunctionType):
            return _Named, (self.function,)  # a module, say: it has a pickle of its own
        module, name = self.function.__module__, self.function.__qualname__
        found = _at(module, name)
        if found is self.function:
            return _Named, (self.function,)
        if getattr(found, "__wrapped__", None) is self.function:
            return _decorated, (module, name)
        raise pickle.PicklingError(
            f"can't pickle the plan of {module}.{name}: expected a function or a plan that can be imported by that "
            "name; plan.save(path) and Plan.load(path) take what was built of any function"
        )


def _at(module: str, name: str) -> Any:
    """What has this name in a module; None if nothing has."""
    try:
        return operator.attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None


def _decorated(module: str, name: str) -> _Named:
    """The function of a plan by the plan's name, as a pickle finds it."""
    importlib.import_module(module)
    return _Named(_at(module, name).__wrapped__)


@overload
def func2plan(args_shape: Callable[..., Any]) -> FunctionPlan: ...


@overload
def func2plan(
    args_shape: Sequence[Any] | Mapping[str, Any] | None = None,
    args_dtype: Sequence[Any] | Mapping[str, Any] | None = None,
    state: Sequence[torch.Tensor] = (),
) -> Callable[[Callable[..., Any]], FunctionPlan]: ...


def func2plan(
    args_shape: Sequence[Any] | Mapping[str, Any] | Callable[..., Any] | None = None,
    args_dtype: Sequence[Any] | Mapping[str, Any] | None = None,
    state: Sequence[torch.Tensor] = (),
) -> FunctionPlan | Callable[[Callable[..., Any]], FunctionPlan]:
    """Decorator: a `FunctionPlan` of a function, with or without parentheses.

    With ``args_shape`` it is built at once (see `Plan.build`). ``state`` has the tensors that the function gets by
    ``state.read()``.
    """
    if callable(args_shape):
        return FunctionPlan(args_shape)

    def decorate(function: Callable[..., Any]) -> FunctionPlan:
        plan = FunctionPlan(function, state)
        if args_shape is not None:
            plan.build(args_shape=args_shape, args_dtype=args_dtype)
        return plan

    return decorate


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _modules_outside(function: Callable[..., Any]) -> dict[str, nn.Module]:
    """The modules with parameters or buffers that a function uses by a name of its surroundings."""
    try:
        outside = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # no function, or one whose surroundings are not complete yet
        return {}
    found = {**outside.globals, **outside.nonlocals}
    return {
        name: module for name, module in sorted(found.items()) if isinstance(module, nn.Module) and module.state_dict()
    }
