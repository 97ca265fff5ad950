"""What the kernel says of the processes that a test has started."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from tests.waiting import PATIENCE

__all__ = [
    "children",
    "cpu_seconds",
    "heavy_libraries",
    "mapped_files",
    "resident_bytes",
    "shared_out_bytes",
    "wait_until_gone",
]

HEAVY = ("torch", "numpy", "safetensors")


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def shared_out_bytes(pid: int) -> int:
    """The memory of a process that is in RAM, with its part of what it shares with others (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def cpu_seconds(pid: int) -> float:
    """The time that the threads of a process have spent on a core so far, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def mapped_files(pid: int) -> list[str]:
    """The files that a process has mapped, shared libraries among them."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6]


def heavy_libraries(pid: int) -> list[str]:
    """What a process has mapped of numpy and torch: neither can be imported without its shared libraries."""
    return [file for file in mapped_files(pid) if any(f"/{name}/" in file or f"/lib{name}" in file for name in HEAVY)]


def alive(pid: int) -> bool:
    """Whether a process exists, as anything but a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if alive(child)]


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not our child. Fails after `PATIENCE`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], PATIENCE)
    finally:
        os.close(descriptor)
    assert ended or not alive(pid), f"process {pid} should have ended"
