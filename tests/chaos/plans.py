"""The plans that run under chaos, each with what it computes in numpy: so that an auditor can say what must come out.

All are on int64, which wraps around alike everywhere: a value is right or it is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from coordinator import Plan

__all__ = ["LARGE", "OPS", "PUT", "SMALL", "digest", "literal", "save_plans"]

Array = npt.NDArray[np.int64]

SMALL = 8
"""Elements of a small value: it rides in its notification."""
LARGE = 20_000
"""Elements of a large one: 160 kB, a blob wherever it goes."""
PUT = "put"
"""The name of what is no plan: a tensor that the coordinator sends."""


def _slow(x: Array) -> list[Array]:
    return [x + 1]


OPS: dict[str, Callable[..., list[Array]]] = {
    "step": lambda x: [x * 3 + 1],
    "add": lambda x, y: [x + y],
    "pair": lambda x: [x + 1, x * 2],
    "grow": lambda x: [np.tile(x, LARGE // SMALL)],
    "shrink": lambda x: [x.reshape(-1, SMALL).sum(axis=0)],
    "slow": _slow,
}
"""What each plan gives."""


def digest(value: Any) -> str:
    """What is written down of a value: an array's, or a tensor's."""
    return hashlib.blake2b(np.ascontiguousarray(value, dtype=np.int64).tobytes(), digest_size=8).hexdigest()


def literal(seed: int) -> Array:
    """The large literal of that seed."""
    return np.random.default_rng(seed).integers(-1000, 1000, LARGE, dtype=np.int64)


def save_plans(folder: Path) -> None:
    """Build all of them, and write each to a file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plan in _built().items():
        plan.save(folder / name)


def _built() -> dict[str, Plan]:
    import torch

    from coordinator import func2plan

    whole = torch.int64

    @func2plan(args_shape=[(-1,)], args_dtype=[whole])
    def step(x: torch.Tensor) -> torch.Tensor:
        return x * 3 + 1

    @func2plan(args_shape=[(SMALL,), (SMALL,)], args_dtype=[whole, whole])
    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    @func2plan(args_shape=[(SMALL,)], args_dtype=[whole])
    def pair(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2

    @func2plan(args_shape=[(SMALL,)], args_dtype=[whole])
    def grow(x: torch.Tensor) -> torch.Tensor:
        return x.repeat(LARGE // SMALL)

    @func2plan(args_shape=[(LARGE,)], args_dtype=[whole])
    def shrink(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, SMALL).sum(0)

    @func2plan(args_shape=[(SMALL,)], args_dtype=[whole])
    def slow(x: torch.Tensor) -> torch.Tensor:
        # Some hundredths of a second of work, whose outcome does not matter: tanh stays within 1.
        square = x.repeat(32).to(torch.float32).unsqueeze(1) * torch.ones(1, 256)
        for _ in range(20):
            square = torch.tanh(square @ square)
        return x + 1 + (square.sum() * 0).to(torch.int64)

    return {"step": step, "add": add, "pair": pair, "grow": grow, "shrink": shrink, "slow": slow}
