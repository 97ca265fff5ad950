"""Further methods of a `Plan` class, each a plan of its own over the same weights. See `Plan.build_method`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from coordinator.errors import ProtectedName
from coordinator.function_plan import FunctionPlan
from coordinator.plan import Plan

__all__ = ["MethodPlan"]


class MethodPlan(FunctionPlan, ours=True):
    """A method of ``module`` as a plan. Its state is what the method uses of the module's."""

    _module: Plan

    def __init__(self, module: Plan, method: str) -> None:
        if not isinstance(method, str):
            raise TypeError(f"expected the name of a method, got a {type(method).__name__}")
        if method.startswith("_") or method == "forward" or hasattr(Plan, method):
            raise ProtectedName(type(module).__name__, method)
        bound = getattr(module, method)  # AttributeError, if there is none

        @functools.wraps(bound)
        def call(*args: Any, **kwargs: Any) -> Any:
            return bound(*args, **kwargs)

        super().__init__(call)
        object.__setattr__(self, "_module", module)  # a module is not to become a part of this one

    @property
    def name(self) -> str:
        """The class's and the method's name."""
        return f"{type(self._module).__name__}.{super().name}"

    def _carried(self) -> Mapping[str, nn.Module]:
        return {"": self._module}
