"""An embedded fleet of two virtual devices, shared by the tests of a module."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from coordinator import VirtualWorker, connect, tagged
from coordinator.fleet import Fleet

# The networks of these tests are small: on a busy machine, threads wait for each other many times longer than they
# compute.
torch.set_num_threads(1)

WITHIN = 60.0
"""Seconds that any one value may take."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An embedded fleet."""
    with connect() as made:
        yield made


@pytest.fixture(scope="module")
def device_1(fleet: Fleet) -> VirtualWorker:
    """A device with three tensors: readings, more of them, and a matrix."""
    return VirtualWorker(
        fleet,
        id="device_1",
        data=(
            tagged(torch.tensor([-1.0, 2.0]), "input_data", "readings", description="two readings"),
            tagged(torch.tensor([1.0, -2.0]), "input_data2", "readings"),
            tagged(torch.arange(6).reshape(2, 3), "matrix"),
        ),
    )


@pytest.fixture(scope="module")
def device_2(fleet: Fleet) -> VirtualWorker:
    """A device with one tensor, and one that is not tagged."""
    return VirtualWorker(fleet, id="device_2", data=(tagged(torch.tensor([5.0, 6.0]), "input_data"), torch.zeros(3)))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No run on a device of this process goes on before this is set: the test says what is late."""
    from edge_agent.runtimes.torch import LoadedPlan

    opened = threading.Event()
    run = LoadedPlan.run

    def run_later(self: LoadedPlan, *args: object, **kwargs: object) -> list[torch.Tensor]:
        assert opened.wait(WITHIN)
        return run(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedPlan, "run", run_later)
    yield opened
    opened.set()
