"""The programs that chaos acts on: started again and again under the same name, stopped and killed by their pids.

Each is the leader of a process group, so that a device can be put to sleep with its worker; each is on a leash (see
`tests.chaos.leash`), and `Stage` ends them all. What they log arrives in one queue, so that whoever waits for any of
them waits in one place.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.acceptance.kernel import children
from tests.chaos.nursery import Nursery, Nursling

__all__ = ["Actor", "Heard", "Stage", "free_ports"]

ROOT = Path(__file__).resolve().parents[2]
END_WITHIN = 10.0
"""Seconds that a program may take to end in order."""
GONE_WITHIN = 120.0
"""Seconds until one that was killed is gone: the kernel first ends the sync that it is in; a busy disk takes long."""
LINES_KEPT = 400
READY = {"broker": "broker_listening", "agent": "agent_registered", "coordinator": "load_connected"}
"""What a program of each kind logs when it can do its work."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a program has logged. ``start`` counts the starts of that actor; ``at``: `time.monotonic`."""

    actor: Actor
    start: int
    event: str
    record: Mapping[str, Any]
    at: float


class Actor:
    """A program under a name. ``arguments``: its module and the module's arguments."""

    def __init__(
        self, stage: Stage, kind: str, name: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.starts = 0
        self.ready = False
        """Whether the program that runs now has said so."""
        self.ready_at = 0.0
        """... and when (`time.monotonic`)."""
        self.working = False
        """Of an agent: whether it has a worker that can run plans."""
        self.asleep = False
        self.ours = True
        """Whether the end of the program that ran last was brought about by us."""
        self.said: deque[Heard] = deque(maxlen=LINES_KEPT)
        """What it said since it was started, and nobody has waited for."""
        self.last_words: deque[str] = deque(maxlen=LINES_KEPT)
        self._arguments = arguments
        self._env = {} if env is None else dict(env)
        self._stage = stage
        self._process: subprocess.Popen[str] | Nursling | None = None
        self._reader: threading.Thread | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def pid(self) -> int:
        """The pid of the program that runs, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a program, asleep or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the program that ran last has ended; None: it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the program."""
        assert not self.running
        self.starts += 1
        self.ready = self.working = self.asleep = False
        self.ours = False
        self.said.clear()
        if self.kind == "coordinator":
            self._process = Nursling(self._stage.nursery, self._arguments)
        else:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.leash", str(os.getpid()), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
                env=_environment(self._env),
            )
        self._reader = threading.Thread(
            target=self._read, args=(self._process, self.starts), name=f"{self.name} log", daemon=True
        )
        self._reader.start()

    def _read(self, process: subprocess.Popen[str] | Nursling, start: int) -> None:
        assert process.stderr is not None
        with process.stderr, (self._stage.folder / f"{self.name}.log").open("a") as file:
            for line in process.stderr:
                file.write(line)
                file.flush()
                self.last_words.append(line.rstrip("\n"))
                with contextlib.suppress(ValueError):  # a traceback, say
                    record = json.loads(line)
                    if isinstance(record, dict):
                        event = str(record.get("event"))
                        self._stage.heard.put(Heard(self, start, event, record, time.monotonic()))

    @property
    def worker(self) -> int | None:
        """The pid of an agent's worker, if it has one."""
        if self.kind != "agent" or not self.running:
            return None
        with contextlib.suppress(OSError):
            return next(iter(children(self.pid)), None)
        return None

    def kill(self) -> None:
        """End it as a power cut would, with all that it has started, and wait until it is gone."""
        self.ours = True
        self._signal_group(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(GONE_WITHIN)
        self.ready = self.working = self.asleep = False

    def kill_worker(self) -> bool:
        """End an agent's worker by force; False: it has none."""
        worker = self.worker
        if worker is None:
            return False
        self.working = False
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
            return True
        return False

    def sleep(self) -> None:
        """Stop it, with all that it has started, in the middle of whatever it does."""
        self.asleep = True
        self._signal_group(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self.asleep = False
        self._signal_group(signal.SIGCONT)

    def end(self, within: float = END_WITHIN) -> int:
        """End it in order, or by force if that takes too long; its exit code."""
        if self._process is None:
            return 0
        self.ours = True
        if self.running:
            self.wake()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(within)
        if self.running:
            self.kill()
        code = self._process.wait(END_WITHIN)
        self._signal_group(signal.SIGKILL)  # whatever it may have left behind
        if self._reader is not None:
            self._reader.join(END_WITHIN)
        self.ready = False
        return code

    def _signal_group(self, number: int) -> None:
        # The group's id is that of its first process, and is not given to another while any of the group is left.
        # Nor is that of a process which nobody has waited for, so a pid that runs is ours.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Stage:
    """All actors, what they log, and their end. Use it in a ``with`` statement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.actors: list[Actor] = []
        listen, logs, blobs = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
        self.endpoint, self.logs, self._blobs = listen, logs, blobs
        folder.mkdir(parents=True, exist_ok=True)

    def broker(self, *arguments: str, data: str = "broker") -> Actor:
        """A broker with a data folder, which comes back at the same address."""
        where = ("--listen", self.endpoint, "--logs", self.logs, "--blobs", self._blobs)
        made = ("broker", "run", *where, "--data", str(self.folder / data), "--insecure", "--log-format", "json")
        return self._add(Actor(self, "broker", "broker", *made, *arguments))

    def agent(
        self, device: str, *arguments: str, store: str = "", name: str = "", env: Mapping[str, str] | None = None
    ) -> Actor:
        """The agent of a device. ``store``: its folder; ``name``: what to call it, if not as the device."""
        where = ("--broker", self.endpoint, "--id", device, "--store", str(self.folder / (store or device)))
        made = ("edge_agent", "run", *where, "--insecure", "--threads", "1", "--log-format", "json", *arguments)
        return self._add(Actor(self, "agent", name or device, *made, env=env))

    def coordinator(self, name: str, *arguments: str) -> Actor:
        """A coordinator: `tests.chaos.load`, with a journal and a session of this name."""
        journal = str(self.folder / f"{name}.journal")
        made = ("--broker", self.endpoint, "--session", name, "--journal", journal, *arguments)
        return self._add(Actor(self, "coordinator", name, *made))

    def _add(self, actor: Actor) -> Actor:
        self.actors.append(actor)
        return actor

    def next(self, until: float) -> Heard | None:
        """What is heard next; None: nothing until then (`time.monotonic`)."""
        try:
            heard = self.heard.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        actor = heard.actor
        if heard.start == actor.starts:
            actor.said.append(heard)
            if heard.event == READY[actor.kind]:
                actor.ready, actor.ready_at = True, heard.at
            if heard.event in {"worker_started", "worker_ended"}:
                actor.working = heard.event == "worker_started"
        return heard

    def wait_for(self, actor: Actor, event: str, within: float) -> Heard:
        """The first log event of that name since the actor was started, or since the last that was waited for. Fails
        when it does not come.
        """
        until = time.monotonic() + within
        while True:
            while actor.said:
                heard = actor.said.popleft()
                if heard.event == event:
                    return heard
            if self.next(until) is None:
                words = "\n".join(list(actor.last_words)[-20:])
                raise AssertionError(f"{actor} did not log {event} (exit code {actor.exit_code}):\n{words}")

    def hear(self, until: float) -> Iterator[Heard]:
        """All that is heard until then."""
        while (heard := self.next(until)) is not None:
            yield heard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in reversed(self.actors):  # who depends on others goes first
            if error is not None and actor.running:
                actor.kill()
            actor.end()
        if "nursery" in self.__dict__:
            self.nursery.close()

    @functools.cached_property
    def nursery(self) -> Nursery:
        """What starts coordinators."""
        return Nursery(_environment({}))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    paths = [path for path in (more.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")) if path]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(paths)}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that are free now, and that no outgoing connection takes while nobody listens."""
    import random
    import socket

    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, first_ephemeral)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
