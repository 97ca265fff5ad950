"""Brokers and agents as processes of this machine: started, watched by their log events, ended by pid."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from broker.protocol.errors import EdgePlanError

__all__ = ["LocalProcess", "ProcessFailed", "start_agent", "start_broker"]

PATIENCE = 60.0
"""Seconds that a process may take to say that it is ready. Seconds, not one: small machines start Python slowly."""

STOP_PATIENCE = 10.0
"""Seconds that a process may take to end in order, before it is killed."""


class ProcessFailed(EdgePlanError):
    """A process did not say what was waited for. ``output``: its last lines."""

    def __init__(self, name: str, event: str, output: Iterable[str]) -> None:
        self.name = name
        self.event = event
        self.output = list(output)
        super().__init__(name, event)

    def __str__(self) -> str:
        said = "\n".join(self.output) or "nothing"
        return f"{self.name} did not log {self.event}; its last words:\n{said}"


class LocalProcess:
    """A program of this project as a process that logs JSON lines. Leave its ``with`` block, or call `stop`.

    ``before``: a command that runs it, with its arguments, such as a tracer. ``python``: of another environment than
    this one; then the edgeplan that is installed there runs.
    """

    def __init__(
        self, name: str, *arguments: str, before: Iterable[str] = (), python: os.PathLike[str] | None = None
    ) -> None:
        self.name = name
        interpreter = [sys.executable] if python is None else [os.fspath(python), "-P"]
        command = [*before, *interpreter, "-m", *arguments, "--log-format", "json"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, name=f"{name} log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, event: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """The first log record of this name that has not been looked at. Raises `ProcessFailed`."""
        until = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise ProcessFailed(self.name, event, self._said[-20:])
            self._said.append(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a traceback, say: it is kept for `ProcessFailed`
            if isinstance(record, dict) and record.get("event") == event:
                return record

    def stop(self) -> int:
        """End the process in order, or by force if it does not; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait(STOP_PATIENCE)
        self._reader.join(STOP_PATIENCE)
        if self._process.stderr is not None:
            self._process.stderr.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_broker(data: Path) -> tuple[LocalProcess, str]:
    """A broker on free ports of the loopback address, and its endpoint. It can be connected to."""
    listen = "tcp://127.0.0.1:*"
    process = LocalProcess("broker", "broker", "run", "--listen", listen, "--data", str(data), "--insecure")
    try:
        return process, str(process.wait_for("broker_listening")["listen"])
    except BaseException:
        process.stop()
        raise


def start_agent(device: str, store: Path, broker: str) -> LocalProcess:
    """An agent, which may not have registered yet: wait for its ``agent_registered``."""
    arguments = ("--broker", broker, "--id", device, "--store", str(store), "--insecure")
    return LocalProcess(device, "edge_agent", "run", *arguments)
