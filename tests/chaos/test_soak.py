"""A broker and an agent under a steady load take no more of the machine as time goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import Curve, print_soak, run_soak

MB = 1e6


@pytest.mark.timeout(240)
def test_a_short_soak_leaves_memory_and_open_files_flat(tmp_path: Path) -> None:
    """12 seconds of work: open files are the same after it, and memory has not run away."""
    soak = run_soak(tmp_path, seconds=12, rate=60, every=0.2)
    print_soak(soak)
    curves = {(curve.name, curve.what): curve for curve in soak.curves}
    assert soak.commands > 100
    for name in ("broker", "agent"):
        files, memory = curves[name, "open files"], curves[name, "memory"]
        assert files.flat, f"{name} had {files.thirds[0]} open files, and has {files.thirds[1]}"
        assert memory.thirds[1] - memory.thirds[0] < 10 * MB  # tables still fill in so short a time


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_30_minutes_of_work_leave_memory_and_open_files_flat(tmp_path: Path) -> None:
    """30 minutes of work: memory and open files of broker and agent are as they were after the warm-up."""
    soak = run_soak(tmp_path, seconds=1800, rate=100, every=2)
    print_soak(soak)
    assert [curve.name + "'s " + curve.what for curve in soak.curves if curve.name != "worker" and not curve.flat] == []


def test_the_soak_sees_a_leak() -> None:
    """A process that takes 10 kB more with each command is not flat; one that goes up and down is."""
    leaking = Curve("broker", "memory", list(range(100)), [40 * MB + 100_000 * k for k in range(100)])
    steady = Curve("broker", "memory", list(range(100)), [40 * MB + 1_000_000 * (k % 3) for k in range(100)])
    files = Curve("agent", "open files", list(range(100)), [20.0 + k // 20 for k in range(100)])
    assert not leaking.flat
    assert steady.flat
    assert not files.flat
