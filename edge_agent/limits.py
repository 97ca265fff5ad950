"""What one run of a plan may take of a device, as its owner has set it. Enforced in `edge_agent.admission`."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Limits"]


class Limits(Struct, frozen=True, kw_only=True):
    """0: no limit. Of a fold, they are those of one step."""

    memory_bytes: int = 0
    """For all values that a run needs at one time, its arguments and the plan's state included."""
    ops: int = 0
    """Operations on numbers, as `edge_agent.plan.cost` counts them."""
    seconds: float = 0.0
    """How long a run may take."""

    def __bool__(self) -> bool:
        return bool(self.memory_bytes or self.ops or self.seconds)
