"""``make bench``: what an invocation costs, beside a floor in the same run.

Each round measures the floor and edgeplan one right after the other, so that both see the same machine; the ratios are
of medians over the rounds. Nothing here passes or fails: the figures are for people to read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from coordinator import connect, func2plan
from coordinator.pointer_plan import PointerPlan
from coordinator.pointers import PointerTensor
from tests import processes
from tests.acceptance.kernel import children, cpu_seconds
from tests.benchmarks import floor, parts
from tests.benchmarks.accepting import accepted_per_second
from tests.benchmarks.report import Row, print_rows, quantile

WINDOW = 256
"""How many invocations are under way at once when throughput is measured."""

REQUEST = [bytes(97)]
"""The floor's request: as many bytes as the `Submit` of the two-op plan on one pointer."""

REPLY = [bytes(56), bytes(48)]
"""The floor's reply: as many bytes as its notification, and its value of two floats."""

TABLE_WIDTH = 120
"""Columns that the table needs; a narrower terminal wraps it."""

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds before a result that does not come ends the benchmark."""


@func2plan()
def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
    """The tutorial's two-op plan."""
    x = x + x
    return torch.abs(x)


@func2plan()
def plan_of_seconds(x: torch.Tensor) -> torch.Tensor:
    """Keeps a device busy: matrix products, one after the other."""
    for _ in range(40):
        x = torch.tanh(x @ x)
    return x


def latencies(plan: PointerPlan, argument: PointerTensor, count: int) -> list[float]:
    """Seconds from the call to the value, one after the other."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        plan(argument).get(timeout=TIMEOUT)
        taken.append(time.perf_counter() - start)
    return taken


def rate(plan: PointerPlan, argument: PointerTensor, count: int) -> float:
    """Invocations a second with their values had, `WINDOW` under way at once."""
    start = time.perf_counter()
    under_way: deque[PointerTensor] = deque()
    for _ in range(count):
        if len(under_way) == WINDOW:
            under_way.popleft().get(timeout=TIMEOUT)
        under_way.append(plan(argument))
    while under_way:
        under_way.popleft().get(timeout=TIMEOUT)
    return count / (time.perf_counter() - start)


def pointer_times(plan: PointerPlan, argument: PointerTensor, count: int) -> list[float]:
    """Seconds that the call itself takes."""
    taken = []
    pointers = []
    for _ in range(count):
        start = time.perf_counter()
        pointers.append(plan(argument))
        taken.append(time.perf_counter() - start)
    return taken


class CpuMeter:
    """The time on a core that some processes spend on each of many calls, in microseconds, by round."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.rounds: list[dict[str, float]] = []

    def watch(self, measure: Callable[[], T], count: int) -> T:
        """What ``measure`` gives, which makes ``count`` calls."""
        before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        measured = measure()
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in self._pids.items()}
        self.rounds.append({name: 1e6 * seconds / count for name, seconds in spent.items()})
        return measured

    @property
    def totals(self) -> list[float]:
        """Of all the processes together."""
        return [sum(one.values()) for one in self.rounds]

    def __str__(self) -> str:
        medians = {name: statistics.median(one[name] for one in self.rounds) for name in self._pids}
        return ", ".join(f"{name} {median:.0f}" for name, median in medians.items())


def accepting(folder: Path, rounds: int, count: int) -> tuple[list[float], list[float]]:
    """Accepted commands a second, round by round: with a ledger that is synced, and with one in memory."""
    synced, in_memory = [], []
    with processes.start_broker(folder) as on_disk, processes.start_broker() as without:
        for _ in range(rounds):
            synced.append(accepted_per_second(on_disk.endpoint, count))
            in_memory.append(accepted_per_second(without.endpoint, count))
    return synced, in_memory


def main() -> int:
    """Measure and print; 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds (default: 5)")
    parser.add_argument("--count", type=int, default=1000, help="round trips a round (default: 1000)")
    parser.add_argument("--pipelined", type=int, default=10_000, help="pipelined invocations a round (default: 10000)")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    ours: dict[str, list[float]] = {"p50": [], "p99": [], "rate": []}
    theirs: dict[str, list[float]] = {"p50": [], "p99": [], "rate": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        processes.start_broker() as broker,
        processes.start_agent("bench", Path(folder) / "bench", broker) as agent,
        connect(broker.endpoint, insecure=True) as fleet,
        floor.running(REQUEST, REPLY) as raw,
    ):
        device = fleet.device("bench")
        argument = device.send(torch.tensor([-1.0, 2.0]))
        plan_double_abs.build(torch.tensor([1.0, -2.0]))
        plan = plan_double_abs.send(device)
        latencies(plan, argument, 200)
        raw.latencies(200)
        [worker] = children(agent.pid)
        our_pids = {"coordinator": os.getpid(), "broker": broker.pid, "agent": agent.pid, "worker": worker}
        their_pids = {"client": os.getpid(), **dict(zip(("relay", "echo"), raw.pids, strict=True))}
        our_cpu, our_cpu_pipelined = CpuMeter(our_pids), CpuMeter(our_pids)
        their_cpu, their_cpu_pipelined = CpuMeter(their_pids), CpuMeter(their_pids)
        count, pipelined = options.count, options.pipelined
        with console.status("measuring ...") as status:
            for number in range(options.rounds):
                status.update(f"round {number + 1} of {options.rounds}")
                for figures, seconds, per_second in (
                    (
                        theirs,
                        their_cpu.watch(lambda: raw.latencies(count), count),
                        their_cpu_pipelined.watch(lambda: raw.rate(pipelined, WINDOW), pipelined),
                    ),
                    (
                        ours,
                        our_cpu.watch(lambda: latencies(plan, argument, count), count),
                        our_cpu_pipelined.watch(lambda: rate(plan, argument, pipelined), pipelined),
                    ),
                ):
                    figures["p50"].append(1e6 * quantile(seconds, 0.5))
                    figures["p99"].append(1e6 * quantile(seconds, 0.99))
                    figures["rate"].append(per_second)
            status.update("pointers at once")
            idle = pointer_times(plan, argument, options.count)
            plan_of_seconds.build(torch.randn(900, 900))
            busy_plan = plan_of_seconds.send(device)
            held = busy_plan(device.send(torch.randn(900, 900)))
            busy = pointer_times(plan, argument, options.count)
            still_busy = not held.ready
            held.wait(TIMEOUT)
            agent.stop()
            asleep = pointer_times(plan, argument, options.count)
            status.update("accepted commands")
            synced, in_memory = accepting(Path(folder) / "broker", options.rounds, options.pipelined)
            status.update("parts")
            of_parts = parts.rows(options.rounds)
    rows = [
        Row(name="invocation and its value, p50", unit="us", ours=ours["p50"], floor=theirs["p50"], at_most=3),
        Row(name="invocation and its value, p99", unit="us", ours=ours["p99"], floor=theirs["p99"]),
        Row(name=f"pipelined, {WINDOW} under way", unit="1/s", ours=ours["rate"], floor=theirs["rate"], at_least=0.4),
        Row(name="CPU of all processes, one at a time", unit="us", ours=our_cpu.totals, floor=their_cpu.totals),
        Row(
            name="CPU of all processes, pipelined",
            unit="us",
            ours=our_cpu_pipelined.totals,
            floor=their_cpu_pipelined.totals,
        ),
    ]
    for name, taken in (("idle", idle), ("busy", busy), ("asleep", asleep)):
        median = [1e6 * statistics.median(taken)]
        rows.append(Row(name=f"the call until the pointer, device {name}", unit="us", ours=median, at_most=1000))
    rows.append(Row(name="accepted on disk; floor: in memory", unit="1/s", ours=synced, floor=in_memory))
    print_rows(
        rows, console, f"{options.rounds} rounds of {options.count} round trips and {options.pipelined} pipelined"
    )
    console.print("floor above: raw pyzmq, a client, a Python ROUTER relay and an echo peer; the same bytes and hops")
    console.print(f"CPU, one at a time: {our_cpu}; floor: {their_cpu}")
    console.print(f"CPU, pipelined: {our_cpu_pipelined}; floor: {their_cpu_pipelined}")
    if not still_busy:
        console.print("[yellow]the device was no longer busy when the last pointer was made[/yellow]")
    print_rows(of_parts, console, "in one process, each beside a peer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
