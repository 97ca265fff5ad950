"""Real programs for tests: brokers and agents as processes, watched by their log events and ended by their pids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from coordinator.local_processes import LocalProcess

__all__ = ["HasEndpoint", "Program", "running", "start_agent", "start_broker", "started", "wait_until_left"]

START_WITHIN = 60.0
"""Seconds that a program may take to be ready: python, torch and two busy cores."""


class HasEndpoint(Protocol):
    """A broker, or something that stands in front of one."""

    @property
    def endpoint(self) -> str:
        """Where to connect."""


class Program(LocalProcess):
    """A process; ``endpoint`` is where a broker listens."""

    endpoint: str = ""

    def kill(self) -> None:
        """End it by force, as a power cut would, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()


def start_broker(data: Path | None = None, *arguments: str) -> Program:
    """A broker on free ports of the loopback address, ready to be connected to. Stop it, or use it in a ``with``
    statement.
    """
    folder = () if data is None else ("--data", str(data))
    listen = ("--listen", "tcp://127.0.0.1:*")
    program = Program("broker", "broker", "run", *listen, *folder, "--insecure", *arguments)
    with _stopped_on_error(program):
        program.endpoint = str(program.wait_for("broker_listening", START_WITHIN)["listen"])
    return program


def start_agent(
    device: str,
    store: os.PathLike[str],
    broker: HasEndpoint,
    *arguments: str,
    wait: bool = True,
    python: os.PathLike[str] | None = None,
    before: Iterable[str] = (),
) -> Program:
    """An agent, registered unless ``wait`` is False. ``store``: its folder, made if it is not there. ``python``: of
    another environment than this one. ``before``: a command that runs it.
    """
    where = ("--broker", broker.endpoint, "--id", device, "--store", str(store))
    program = Program(device, "edge_agent", "run", *where, "--insecure", *arguments, python=python, before=before)
    if wait:
        with _stopped_on_error(program):
            program.wait_for("agent_registered", START_WITHIN)
    return program


def wait_until_left(broker: Program, device: str) -> None:
    """Wait until the broker has read a device's goodbye: what others ask it may be read before, though it was sent
    afterwards.
    """
    while broker.wait_for("device_left", START_WITHIN)["device"] != device:
        pass


@contextlib.contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Any program, with the ``options`` of `subprocess.Popen`, as text; killed on leaving if it has not ended."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def running(store: Path, *devices: str) -> Iterator[Program]:
    """A broker and agents of these names, with stores in folders of ``store``; all ended on leaving."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_broker())
        agents = [stack.enter_context(start_agent(each, store / each, broker, wait=False)) for each in devices]
        for agent in agents:
            agent.wait_for("agent_registered", START_WITHIN)
        yield broker


@contextlib.contextmanager
def _stopped_on_error(program: Program) -> Iterator[None]:
    try:
        yield
    except BaseException:
        program.stop()
        raise
