"""A device with an arm64 processor and no torch, emulated: its programs are those of arm64, the rest is as elsewhere.

`make arm64` makes the Debian that this needs. What time and memory it takes says nothing of a real device.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.device import Device
from coordinator.fleet import Fleet
from edge_agent import Store
from tests import processes
from tests.acceptance.kernel import children, mapped_files, wait_until_gone
from tests.acceptance.test_digits_training import BATCH, digits, on_device, training
from tests.arm64.debian import inside
from tests.coordinator.coverage import Coverage
from tests.coordinator.networks import NETWORKS
from tests.processes import Program

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

WITHIN = 120.0
NEAR = 1e-5
"""How far what arm64 has trained may lie from what this machine has."""

PYTHON = Path("/usr/bin/python3")
VERSIONS = "import onnxruntime, platform as p; print(p.machine(), p.python_version(), onnxruntime.__version__)"
HAS_TORCH = "import importlib.util; print(importlib.util.find_spec('torch'))"


@dataclass(frozen=True)
class Board:
    """An emulated device. ``share`` is its disk, ``/mnt`` to the programs that run there."""

    root: Path
    share: Path
    broker: Program

    def start(self) -> Program:
        """Its agent, registered."""
        here = inside(self.root, self.share)
        return processes.start_agent("arm64", Path("/mnt/store"), self.broker, python=PYTHON, before=here)

    def ask(self, code: str) -> str:
        """What a line of Python prints there."""
        command = [*inside(self.root, self.share), str(PYTHON), "-P", "-c", code]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WITHIN)
        assert done.stderr == ""
        return done.stdout.strip()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """With two readings and a third of the digits in its store, which its owner has put there."""
    named = os.environ.get("EDGEPLAN_ARM64_ROOT")
    if named is None:
        pytest.skip("make arm64 makes the Debian that this needs")
    root = Path(named).absolute()
    if not (root / PYTHON.relative_to("/")).exists():
        pytest.fail(f"EDGEPLAN_ARM64_ROOT names {root}, which has no Python: make arm64 makes it")
    share = tmp_path_factory.mktemp("board")
    [(x, y), *_], _ = digits()
    with Store.open(share / "store") as store:
        store.put(torch.tensor([-1.0, 2.0]), tags=["input_data"])
        store.append("train", x, y)
    with processes.start_broker() as broker:
        yield Board(root, share, broker)


@pytest.fixture(scope="module")
def agent(board: Board) -> Iterator[Program]:
    """Its agent."""
    started = time.monotonic()
    with board.start() as program:
        print(f"\nThe agent registered {time.monotonic() - started:.1f} s after it was started")
        yield program


@pytest.fixture(scope="module")
def fleet(board: Board, agent: Program) -> Iterator[Fleet]:
    """Of this device alone."""
    with connect(board.broker.endpoint, insecure=True) as made:
        yield made


@pytest.fixture(scope="module")
def device(fleet: Fleet) -> Device:
    """The device."""
    return fleet.device("arm64")


@func2plan(args_shape=[(2,)])
def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
    """The tutorial's."""
    x = x + x
    return torch.abs(x)


def leaves(nest: Any) -> Iterator[Any]:
    """All that stands in dicts in dicts."""
    if isinstance(nest, Mapping):
        for value in nest.values():
            yield from leaves(value)
    else:
        yield nest


def test_it_is_an_arm64_without_torch(board: Board, device: Device) -> None:
    """Both of its processes have mapped libraries of arm64 and nothing of torch, which is not installed there."""
    machine, python, onnxruntime = board.ask(VERSIONS).split()
    assert machine == "aarch64"
    assert board.ask(HAS_TORCH) == "None"
    assert device.runtimes == ["onnx"]
    print(f"It is an {machine} with Python {python} and onnxruntime {onnxruntime}, and without torch")


def test_it_runs_the_tutorials_plan(device: Device, agent: Program) -> None:
    """Two ops on what its owner has put there, by a worker that the agent has started; both are programs of arm64."""
    (readings,) = device.search("input_data")
    value = plan_double_abs.send(device)(readings).get(timeout=WITHIN)
    assert torch.equal(value, torch.tensor([2.0, 4.0]))
    (worker,) = children(agent.pid)
    for pid in (agent.pid, worker):
        files = mapped_files(pid)
        assert any("/aarch64-linux-gnu/" in file for file in files)
        assert not [file for file in files if "x86_64" in file or "torch" in file]
    print(f"The tutorial's plan gave {value.tolist()} for [-1.0, 2.0]")


def test_an_epoch_of_training_is_one_command(fleet: Fleet, device: Device) -> None:
    """One message to it and one from it, as the broker has counted; and it trains as this machine does, by either
    runtime.
    """
    [(x, y), *_], _ = digits()
    _, step = training()
    there = step.send(device)
    carry = on_device(device, step.initial_carry())
    for pointer in leaves(carry):
        assert pointer.wait(WITHIN)  # or the broker would count what it says of them
    before = fleet.stats()
    started = time.monotonic()
    final, outs = there.fold(carry, over="train", batch_size=BATCH)
    assert outs["loss"].wait(WITHIN)
    seconds = time.monotonic() - started
    after = fleet.stats()
    for now, then in ((after.devices[device.id], before.devices[device.id]), (after.total, before.total)):
        assert (now.commands - then.commands, now.notifications - then.notifications) == (1, 1)
    losses = fleet.get(outs["loss"], timeout=WITHIN)
    weights = fleet.get(final["params"], timeout=WITHIN)
    assert losses.shape == (-(-len(y) // BATCH),)
    assert losses[-5:].mean() < losses[:5].mean() - 0.3
    furthest = 0.0
    with connect() as here:
        for runtime in ("onnx", "torch"):
            data = (tagged(x.clone(), "x"), tagged(y.clone(), "y"))
            one = VirtualWorker(here, id=runtime, runtime=runtime, data=data)
            ended, out = step.send(one).fold(step.initial_carry(), over=("x", "y"), batch_size=BATCH)
            pairs = [(losses, here.get(out["loss"], timeout=WITHIN))]
            known = here.get(ended["params"], timeout=WITHIN)
            pairs += [(weights[name], known[name]) for name in known]
            furthest = max(furthest, *(float((got - wanted).abs().max()) for got, wanted in pairs))
    print(
        f"One epoch of the digits, {len(losses)} steps: loss {losses[0]:.2f} to {losses[-1]:.2f}, by one command and"
        f" one notification, in {seconds:.1f} s under emulation; at most {furthest:.0e} from this machine's result"
    )
    assert furthest < NEAR


def test_every_network_gives_there_what_eager_torch_gives_here(fleet: Fleet, device: Device) -> None:
    """Each that a device without torch runs, within its dtypes' tolerances, and a training step of each."""
    coverage = Coverage(fleet, device)
    started = time.monotonic()
    cells = [coverage.cell(row, column) for row in NETWORKS for column in ("onnx device", "training on onnx")]
    ran = [cell for cell in cells if not cell.reason]
    assert len(ran) >= len(NETWORKS)
    print(
        f"{len(ran)} of {len(cells)} plans of the table of what runs where, in {time.monotonic() - started:.0f} s: at"
        f" most {max(cell.error for cell in ran):.0e} from eager torch"
    )


def test_what_it_has_survives_its_agents_death(board: Board, agent: Program, fleet: Fleet, device: Device) -> None:
    """The worker ends with the agent that is killed, and the next agent has the values of the one before."""
    (readings,) = device.search("input_data")
    doubled = plan_double_abs.send(device)(readings)
    assert doubled.wait(WITHIN)
    (worker,) = children(agent.pid)
    agent.kill()
    wait_until_gone(worker)
    with board.start():
        again = plan_double_abs.send(device)(doubled)
        assert torch.equal(again.get(timeout=WITHIN), torch.tensor([4.0, 8.0]))
