"""The same code makes the same bytes: in another process, another directory, under another hash seed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from coordinator.function_plan import func2plan
from tests.coordinator.capture.checks import built

ROOT = Path(__file__).parents[3]
PROGRAM = """
import torch
from torch import nn
from coordinator.function_plan import func2plan
from coordinator.plan import Plan

@func2plan(args_shape=[("batch", 4), (-1, 4)])
def first(x, y):
    if x.shape[0] % 2 == 0 and y.shape[0] > 3:
        return {"b": torch.cat([x, y]) @ torch.arange(16.0).reshape(4, 4), "a": x.mean(0) / len(y)}
    return {"b": x, "a": y}

class Net(Plan):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)
        for k, parameter in enumerate(self.parameters()):
            nn.init.constant_(parameter, 0.5 + k)

    def forward(self, x):
        return torch.log_softmax(self.two(torch.relu(self.one(x))), -1)

print(first.id, Net().build(torch.ones(3, 4), args_shape=[(-1, 4)]).id)
"""


def _ids(folder: Path, seed: str) -> list[str]:
    folder.mkdir()
    program = folder / f"program_{seed}.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    shutil.rmtree(folder)
    return done.stdout.split()


def test_ids_are_equal_in_two_processes(tmp_path: Path) -> None:
    """Neither the process, nor where the code lies, nor Python's hash seed is in a plan's id."""
    first = _ids(tmp_path / "here", "1")
    second = _ids(tmp_path / "there", "2")
    assert first == second
    assert all(len(plan_id) == 64 for plan_id in first)


def test_no_path_is_in_what_is_hashed() -> None:
    """Source lines ride beside the plan, not in it."""

    @func2plan(args_shape=[(-1, 2)])
    def function(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    bundle = function.bundle()
    assert str(Path(__file__).parent).encode() not in b"".join(bundle.parts.values())
    assert Path(__file__).name.encode() in bundle.beside["source"]


def test_plans_built_on_several_threads() -> None:
    """Threads that build at the same time make the plans that one would, and leave torch as it was."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).sum() / len(x)

    before = (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled(), len, torch.is_grad_enabled())
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: built(function, torch.ones(3, 2), shape=[(-1, 2)]).id, range(6)))
    assert len(ids) == 1
    after = (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled(), len, torch.is_grad_enabled())
    assert after == before


def test_building_twice_gives_the_same_plan() -> None:
    """What was traced before leaves nothing behind."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sum() / len(x)

    plans = [built(function, torch.ones(size, 2), shape=[(-1, 2)]) for size in (3, 3, 8)]
    assert len({plan.id for plan in plans}) == 1
