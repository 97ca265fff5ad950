"""The coordinator's side: capture torch code as plans, send them, and hold pointers to what devices keep.

``fleet = connect()``, ``VirtualWorker(fleet, id="device_1")``, ``@func2plan()``, ``class Net(Plan)``. Errors are in
`coordinator.errors`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.fleet import connect
    from coordinator.function_plan import func2plan
    from coordinator.plan import Plan
    from coordinator.tagging import hook_torch, tagged, unhook_torch
    from coordinator.training import training_plan
    from coordinator.virtual import VirtualWorker

__all__ = ["Plan", "VirtualWorker", "connect", "func2plan", "hook_torch", "tagged", "training_plan", "unhook_torch"]

_HOMES = {
    "Plan": "coordinator.plan",
    "VirtualWorker": "coordinator.virtual",
    "connect": "coordinator.fleet",
    "func2plan": "coordinator.function_plan",
    "hook_torch": "coordinator.tagging",
    "tagged": "coordinator.tagging",
    "training_plan": "coordinator.training",
    "unhook_torch": "coordinator.tagging",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `edgeplan devices` and its siblings don't wait seconds for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
