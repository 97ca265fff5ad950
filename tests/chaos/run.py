"""One run of chaos: stage, load, monkey, audit; and its table. ``python -m tests.chaos --kills 500 --seed 7``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coordinator import connect
from tests.chaos.actors import Stage
from tests.chaos.audit import Audit, audit
from tests.chaos.load import END_WITHIN
from tests.chaos.monkey import Monkey, Pace, Toll
from tests.chaos.observer import Observer
from tests.chaos.plans import save_plans

__all__ = ["Outcome", "print_outcome", "run_chaos"]

READY_WITHIN = 180.0
HEARTBEAT_MS = "1000"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    moments: Sequence[float]
    """When it began, chaos set in and ended, all were up again, all had come to its end, all was compared."""
    toll: Toll
    audit: Audit


def run_chaos(
    folder: Path,
    *,
    seed: int,
    kills: int,
    within: float,
    devices: int = 3,
    coordinators: int = 2,
    pace: Pace | None = None,
    load: tuple[str, ...] = (),
) -> Outcome:
    """Kill so many under load, within so many seconds; then let everything come to its end, and compare."""
    moments = [time.monotonic()]
    save_plans(folder / "plans")
    names = [f"device_{k}" for k in range(devices)]
    with Stage(folder) as stage, Observer(stage.logs) as observer:
        stage.broker("--heartbeat-ms", HEARTBEAT_MS).start()
        for name in names:
            stage.agent(name).start()
        given = [argument for name in names for argument in ("--device", name)]
        given += ["--plans", str(folder / "plans"), "--seed", str(seed), *load]
        loads = [stage.coordinator(f"coordinator_{k}", *given) for k in range(coordinators)]
        for actor in loads:
            actor.start()
        monkey = Monkey(stage, seed=seed, pace=pace, last_end=lambda: observer.last)
        if not monkey.rest(READY_WITHIN):
            raise AssertionError(f"not ready within {READY_WITHIN:g} s: {_unready(stage)}")
        _wait_for_load(stage, observer)
        moments.append(time.monotonic())
        monkey.rage(kills, within)
        moments.append(time.monotonic())
        if not monkey.rest(READY_WITHIN):
            raise AssertionError(f"not ready again within {READY_WITHIN:g} s: {_unready(stage)}")
        moments.append(time.monotonic())
        for actor in loads:
            code = actor.end(END_WITHIN + 30)
            if code != 0:
                monkey.toll.deaths.append(
                    f"{actor} did not come to its end, exit code {code}: {_last(actor.last_words)}"
                )
        moments.append(time.monotonic())
        with connect(stage.endpoint, insecure=True) as fleet:
            found = audit(fleet, [folder / f"{actor.name}.journal" for actor in loads], observer, monkey.toll)
            moments.append(time.monotonic())
    return Outcome(seed, moments, monkey.toll, found)


def _wait_for_load(stage: Stage, observer: Observer) -> None:
    """Until results come, from workers that are there."""
    until = time.monotonic() + READY_WITHIN
    while observer.count < 20 and time.monotonic() < until:
        stage.next(time.monotonic() + 0.1)


def _unready(stage: Stage) -> str:
    unready = [actor for actor in stage.actors if not actor.ready]
    return "\n".join(f"{actor} (exit code {actor.exit_code}): {_last(actor.last_words)}" for actor in unready)


def _last(words: Iterable[str]) -> str:
    return " / ".join(list(words)[-5:])


def print_outcome(outcome: Outcome, console: Console | None = None) -> None:
    """The table."""
    toll, found = outcome.toll, outcome.audit
    console = console or Console(width=110)
    start, chaos, rest, drain, compare = (b - a for a, b in itertools.pairwise(outcome.moments))
    title = (
        f"chaos, seed {outcome.seed}: {len(toll.kills)} kills under load. {start:.0f} s to start, {chaos:.0f} s of "
        f"chaos, {rest + drain:.0f} s until all had ended, {compare:.0f} s to compare"
    )
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for kind, count in toll.by_kind.most_common():
        times = sorted(toll.recoveries.get(kind, []))
        text = ""
        if times:
            text = f"ready again after {statistics.median(times):.1f} s (median), {times[-1]:.1f} s (longest)"
        table.add_row(f"killed: {kind}", str(count), text)
    for kind, count in toll.stops.most_common():
        table.add_row(f"stopped for a while: {kind}", str(count), "")
    table.add_section()
    table.add_row("commands sent", str(found.sent), "a fan-out counts once for each device")
    table.add_row("accepted", str(found.accepted), "as the coordinator that sent them saw and wrote down")
    table.add_row("accepted and terminal", str(found.accepted_terminal), "")
    table.add_row("never arrived", str(found.never_arrived), "not accepted, and their coordinator was killed")
    for status, count in found.terminal.most_common():
        table.add_row(f"terminal: {status}", str(count), "")
    table.add_row("values compared", str(found.values_checked), "")
    table.add_section()
    for name in ("lost", "doubled", "wrong", "unexplained"):
        sentences = getattr(found, name)
        table.add_row(name, str(len(sentences)), "\n".join(sentences[:5]))
    console.print(table)
