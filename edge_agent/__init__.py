"""edgeplan's edge agent: what a plan is, and running it on the data of a device.

A device's own programs use `Store`. Importing this package loads neither numpy nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> object:
    """Load `Store` when it is asked for: most who import a module of this package do not need SQLite."""
    if name == "Store":
        from edge_agent.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
