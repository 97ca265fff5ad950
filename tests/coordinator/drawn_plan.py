"""The plan of docs/plans.md, and its picture: ``python -m tests.coordinator.drawn_plan`` draws it anew."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from coordinator import Plan

__all__ = ["PICTURE", "Net", "drawn"]

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "plan.svg"


class Net(Plan):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        result: torch.Tensor = self.out(torch.relu(self.hidden(x)))
        return result


def drawn() -> str:
    """The picture."""
    net = Net()
    net.build(torch.randn(2, 4), args_shape=[("batch", 4)])
    return net.draw().svg


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(), encoding="utf-8")
