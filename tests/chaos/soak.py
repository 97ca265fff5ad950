"""A soak: a broker and an agent under a steady load whose values are released, and what they take of the machine.

``python -m tests.chaos.soak --minutes 30``. Memory and open files must be flat: after a warm-up, the last third of the
samples is compared with the first, and a line is laid through all.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coordinator import connect
from tests.acceptance.kernel import resident_bytes
from tests.chaos.actors import Actor, Stage
from tests.chaos.load import END_WITHIN
from tests.chaos.plans import save_plans

__all__ = ["Curve", "Soak", "print_soak", "run_soak"]

READY_WITHIN = 180.0
WARM_UP = 0.3
"""The part of the time that does not count: until caches, pools and tables have the size that this load needs."""
GROWTH = 0.03
"""By how much memory may seem to grow from the first third to the last: allocators and page caches are not exact."""
REMEMBERED = 2_000
"""Ended results that the broker remembers: few, so that it reaches their number in the warm-up."""
SLACK_BYTES = 3 << 20
"""... and how much it may always, whatever the process' size."""
SLACK_FILES = 2.0


@dataclass(slots=True)
class Curve:
    """What was measured of one process, after the warm-up: ``at`` in seconds."""

    name: str
    what: str
    at: list[float]
    values: list[float]

    @property
    def thirds(self) -> tuple[float, float]:
        """The medians of the first and of the last third."""
        third = max(1, len(self.values) // 3)
        return statistics.median(self.values[:third]), statistics.median(self.values[-third:])

    @property
    def slope(self) -> float:
        """Growth an hour, by the line that fits best."""
        if len(set(self.at)) < 2:
            return 0.0
        return statistics.linear_regression(self.at, self.values).slope * 3600

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        first, last = self.thirds
        room = max(SLACK_BYTES, first * GROWTH) if self.what == "memory" else SLACK_FILES
        return last - first <= room


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak came to."""

    seconds: float
    commands: int
    curves: Sequence[Curve]


def run_soak(folder: Path, *, seconds: float, rate: float, every: float = 1.0) -> Soak:
    """So many commands a second for so long; a sample of each process ``every`` so many seconds."""
    save_plans(folder / "plans")
    with Stage(folder) as stage:
        broker, agent = stage.broker("--ended-results", str(REMEMBERED)), stage.agent("device_0")
        for actor in (broker, agent):
            actor.start()
        given = ("--device", "device_0", "--plans", str(folder / "plans"), "--rate", str(rate), "--cancels", "0.01")
        load = stage.coordinator("coordinator_0", *given)
        load.start()
        stage.wait_for(agent, "worker_started", READY_WITHIN)
        samples: dict[tuple[str, str], Curve] = {}
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            assert load.running, f"the load has ended: {list(load.last_words)[-5:]}"
            if now >= WARM_UP * seconds:
                _sample(samples, now, broker, agent)
            for _ in stage.hear(began + now + every):
                pass  # what they log meanwhile
        with connect(stage.endpoint, insecure=True) as fleet:
            commands = fleet.stats().total.commands
        assert load.end(END_WITHIN) == 0, "the load did not come to its end"
    return Soak(seconds, commands, list(samples.values()))


def _sample(samples: dict[tuple[str, str], Curve], now: float, broker: Actor, agent: Actor) -> None:
    processes = {"broker": broker.pid, "agent": agent.pid}
    if agent.worker is not None:
        processes["worker"] = agent.worker
    for name, pid in processes.items():
        with contextlib.suppress(FileNotFoundError, StopIteration):  # a worker that is just ending
            measured = {"memory": resident_bytes(pid), "open files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}
            for what, value in measured.items():
                curve = samples.setdefault((name, what), Curve(name, what, [], []))
                curve.at.append(now)
                curve.values.append(float(value))


def print_soak(soak: Soak, console: Console | None = None) -> None:
    """The table."""
    title = f"soak: {soak.seconds / 60:.1f} minutes, {soak.commands} commands, {soak.commands / soak.seconds:.0f}/s"
    table = Table("process", "what", "first third", "last third", "growth an hour", "flat", title=title)
    for curve in soak.curves:
        unit, scale = ("MB", 1e6) if curve.what == "memory" else ("", 1.0)
        first, last = (f"{value / scale:.1f} {unit}" for value in curve.thirds)
        table.add_row(
            curve.name, curve.what, first, last, f"{curve.slope / scale:+.1f} {unit}", "yes" if curve.flat else "NO"
        )
    (console or Console(width=110)).print(table)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=100.0, help="commands a second")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeplan-soak-") as folder:
        soak = run_soak(Path(folder), seconds=options.minutes * 60, rate=options.rate, every=options.every)
    print_soak(soak)
    return 0 if all(curve.flat for curve in soak.curves if curve.name != "worker") else 1


if __name__ == "__main__":
    sys.exit(main())
