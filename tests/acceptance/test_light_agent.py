"""A device that cannot carry torch: what its programs take of the memory while they train."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from coordinator import connect
from edge_agent import Store
from tests import processes
from tests.acceptance.kernel import children, mapped_files, shared_out_bytes
from tests.acceptance.test_digits_training import BATCH, WITHIN, digits, training
from tests.coordinator.translation.test_light_devices import BLOCKED

MOST_BYTES = 100_000_000
LOOK_SECONDS = 0.05
LOOKS = 20
ENDLESS = 100_000
"""So many epochs take half an hour: a fold of them ends when it was looked at often enough."""

MOST_INSTALLED_BYTES = 200_000_000
INSTALLED = """
from importlib.metadata import distributions

found = [one for one in distributions() if one.metadata["Name"] not in ("pip", "setuptools")]
files = [file for one in found for file in one.files or () if file.suffix != ".pyc"]
print(sum(path.stat().st_size for path in (file.locate() for file in files) if path.exists()))
"""
"""Prints how many bytes the packages of an environment have, unpacked."""


def most_memory_while_training(folder: Path, epochs: int, python: Path | None = None) -> int:
    """The most that an agent and its worker had between them (PSS) while one command trained the digits' net."""
    [(x, y), *_], _ = digits()
    with Store.open(folder / "store") as store:
        store.append("train", x, y)
    _, step = training()
    most = 0
    with (
        processes.start_broker() as broker,
        processes.start_agent("light", folder / "store", broker, python=python) as agent,
        connect(broker.endpoint, insecure=True) as fleet,
    ):
        device = fleet.device("light")
        assert device.runtimes == ["onnx"]
        plan = step.send(device)

        def look() -> bool:
            """Whether the worker was there to be looked at."""
            nonlocal most
            tree = [agent.pid, *children(agent.pid)]
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
                most = max(most, sum(map(shared_out_bytes, tree)))
                return worker in tree
            return False

        _, outs = plan.fold(step.initial_carry(), over="train", batch_size=BATCH, epochs=ENDLESS)
        worker = agent.wait_for("worker_started", WITHIN)["pid"]
        looks = 0
        while looks < LOOKS:
            assert not outs["loss"].wait(LOOK_SECONDS)
            looks += look()
        outs["loss"].cancel()
        _, outs = plan.fold(step.initial_carry(), over="train", batch_size=BATCH, epochs=epochs)
        while not outs["loss"].wait(LOOK_SECONDS):
            look()
        assert not [
            file for pid in (agent.pid, worker) for file in mapped_files(pid) if "/torch/" in file or "libtorch" in file
        ]
        losses = fleet.get(outs["loss"], timeout=WITHIN)
        assert losses[-10:].mean() < 0.1
    return most


def test_a_light_agent_trains_in_100_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its processes together, where torch cannot be imported."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BLOCKED)
    monkeypatch.setenv("PYTHONPATH", str(hooks))
    assert 40_000_000 < most_memory_while_training(tmp_path, 40) < MOST_BYTES


@pytest.mark.long
def test_the_same_where_torch_is_not_installed(tmp_path: Path) -> None:
    """In an environment that has what a light device needs and nothing else: see ``make light``. A fold of 30,000 steps
    takes no more than a short one.
    """
    named = os.environ.get("EDGEPLAN_LIGHT_PYTHON")
    if named is None:
        pytest.skip("make light makes the environment that this needs")
    python = Path(named).absolute()
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    subprocess.run([python, "-P", "-c", asked], check=True, timeout=WITHIN)
    counted = subprocess.run([python, "-P", "-c", INSTALLED], check=True, timeout=WITHIN, capture_output=True)
    most, installed = most_memory_while_training(tmp_path, 1000, python), int(counted.stdout)
    print(f"{most / 1e6:.1f} MB while training, {installed / 1e6:.1f} MB installed")
    assert installed < MOST_INSTALLED_BYTES
    assert 40_000_000 < most < MOST_BYTES
