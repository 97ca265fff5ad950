"""Kills and stops actors at random instants, starts them again, and measures how long they take to recover.

The choices come from a seed; the instants at which they hit do not, with real processes.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.actors import Actor, Stage

__all__ = ["Kill", "Monkey", "Pace", "Toll"]

_WEIGHTS = {
    ("kill", "broker"): 24,
    ("kill", "agent"): 16,
    ("kill", "worker"): 20,
    ("kill", "coordinator"): 8,
    ("stop", "broker"): 5,
    ("stop", "agent"): 8,
    ("stop", "coordinator"): 3,
}
BROKEN = frozenset({"device_quarantined", "agent_crashed", "broker_failed", "ledger_damaged"})
"""What nobody says, whoever was killed."""
ENOUGH = 10
"""Findings after which chaos goes no further: programs that end by themselves are no load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How chaos goes; in seconds."""

    between: tuple[float, float] = (0.1, 1.2)
    """Between two deeds."""
    down: tuple[float, float] = (0.0, 1.0)
    """Between a kill and the next start."""
    asleep: tuple[float, float] = (0.2, 6.0)
    early: float = 0.15
    """How likely one is hit that has not recovered yet."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A death that chaos has brought about, and when."""

    kind: str
    name: str
    at: float


@dataclass(slots=True)
class Toll:
    """What was done."""

    kills: list[Kill] = field(default_factory=list)
    stops: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a kill until the next one of that kind was ready; the time for which it was kept down included."""
    deaths: list[str] = field(default_factory=list)
    """Programs that ended by themselves."""

    @property
    def by_kind(self) -> Counter[str]:
        """How many kills there were of each kind."""
        return Counter(kill.kind for kill in self.kills)


class Monkey:
    """See the module. ``last_end``: when a result has ended last (`time.monotonic`): so what is killed is at work."""

    def __init__(self, stage: Stage, *, seed: int, last_end: Callable[[], float], pace: Pace | None = None) -> None:
        self.toll = Toll()
        self._rng = random.Random(seed)
        self._owed = [kind for deed, kind in _WEIGHTS if deed == "kill"]
        """Kinds of which none was killed yet: they come first, so that the shortest run has some of each."""
        self._rng.shuffle(self._owed)
        self._raging = False
        self._last_end = last_end
        self._stage = stage
        self._pace = pace or Pace()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._killed_at: dict[tuple[str, str], float] = {}

    def rage(self, kills: int, within: float) -> None:
        """Go on until so many were killed; not longer than ``within`` seconds."""
        until = time.monotonic() + within
        self._raging = True
        self._later(0.0, self._act)
        while len(self.toll.kills) < kills and len(self.toll.deaths) < ENOUGH and time.monotonic() < until:
            self._wait_and_do(until)
        self._raging = False

    def rest(self, within: float) -> bool:
        """Start and wake everybody, and wait until all are ready; False: they were not, within so many seconds."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            for actor in self._stage.actors:
                self._look_after(actor)
            if not self._due and all(actor.ready and not actor.asleep for actor in self._stage.actors):
                return True
            self._wait_and_do(min(until, time.monotonic() + 0.5))
        return False

    def _later(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), deed))

    def _wait_and_do(self, until: float) -> None:
        """Hear what actors say until the next deed is due; then do it."""
        first = self._due[0][0] if self._due else until
        for heard in self._stage.hear(min(first, until)):
            if heard.event in BROKEN:
                self.toll.deaths.append(f"{heard.actor.name} said {heard.event}: {dict(heard.record)}")
            kind = "worker" if heard.event == "worker_started" else heard.actor.kind
            if heard.event == "worker_started" or (heard.actor.ready and heard.start == heard.actor.starts):
                died = self._killed_at.pop((kind, heard.actor.name), None)
                if died is not None:
                    self.toll.recoveries.setdefault(kind, []).append(heard.at - died)
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    # --------------------------------------------------------------------------------------------- deeds

    def _act(self) -> None:
        """Do something to somebody, and come again."""
        if not self._raging:
            return
        deed, kind = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if self._owed:
            deed, kind = "kill", self._owed[-1]
            self._owed.insert(0, self._owed.pop())
        for actor in self._stage.actors:
            self._look_after(actor)
        early = self._rng.random() < self._pace.early
        of_kind = "agent" if kind == "worker" else kind
        targets = [
            actor
            for actor in self._stage.actors
            if actor.kind == of_kind and actor.running and not actor.asleep and (early or self._recovered(actor))
        ]
        if targets:
            target = self._rng.choice(targets)
            if deed == "stop":
                self._stop(target)
            elif kind == "worker":
                if target.kill_worker():
                    self._note(kind, target)
            else:
                self._note(kind, target)
                target.kill()
                self._later(self._rng.uniform(*self._pace.down), target.start)
        self._later(self._rng.uniform(*self._pace.between), self._act)

    def _note(self, kind: str, target: Actor) -> None:
        now = time.monotonic()
        self._owed = [owed for owed in self._owed if owed != kind]
        self.toll.kills.append(Kill(kind, target.name, now))
        self._killed_at[kind, target.name] = now

    def _stop(self, target: Actor) -> None:
        self.toll.stops[target.kind] += 1
        start = target.starts
        target.sleep()

        def wake() -> None:
            if target.starts == start and target.running:
                target.wake()

        self._later(self._rng.uniform(*self._pace.asleep), wake)

    def _look_after(self, actor: Actor) -> None:
        """Who has ended without our doing is a finding; he is started again, so that the others can go on."""
        if actor.starts and not actor.running and not actor.ours:
            words = [line for line in actor.last_words if '"info"' not in line and '"debug"' not in line]
            self.toll.deaths.append(
                f"{actor.name} ended by itself, exit code {actor.exit_code}: {' / '.join(words[-6:])}"
            )
            actor.start()

    def _recovered(self, actor: Actor) -> bool:
        """Whether it works again: the broker, once a result has ended since."""
        if actor.kind == "agent":
            return actor.working
        return actor.ready and (actor.kind != "broker" or self._last_end() > actor.ready_at)
