"""Starts coordinators by forking: importing torch takes seconds, which is longer than many of them live.

The nursery is a process of its own that has imported what a coordinator needs, and has one thread only. It is asked on
a socket; a coordinator that it has forked is as much a process as any, ends with the nursery, and stays a zombie until
it was waited for, so that its pid is not given to another before.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_REQUEST_BYTES = 1 << 16
ANSWER_WITHIN = 300.0
"""Seconds: the first answer comes when torch is imported."""


class Nursling:
    """A forked coordinator, with what `subprocess.Popen` offers of it. ``stderr``: what it says."""

    def __init__(self, nursery: Nursery, arguments: Sequence[str]) -> None:
        self._nursery = nursery
        out, into = os.pipe()
        try:
            self.pid = int(nursery.ask({"start": list(arguments)}, into))
        finally:
            os.close(into)
        self.stderr: IO[str] = os.fdopen(out, errors="replace")
        self._descriptor = os.pidfd_open(self.pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._look(0.0)

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("coordinator", timeout)
        return code

    def _look(self, timeout: float) -> int | None:
        if self._code is None and select.select([self._descriptor], [], [], timeout)[0]:
            self._code = int(self._nursery.ask({"wait": self.pid}))
            os.close(self._descriptor)
        return self._code


class Nursery:
    """The way to a nursery: for one thread. Close it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_WITHIN)
        with theirs:
            command = [sys.executable, "-m", "tests.chaos.leash", str(os.getpid()), "tests.chaos.nursery"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
                process_group=0,
            )

    def ask(self, request: dict[str, Any], *descriptors: int) -> str:
        """Ask for something; the answer."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        answer = self._socket.recv(_REQUEST_BYTES)
        if not answer:
            raise RuntimeError("the nursery is gone")
        return answer.decode()

    def close(self) -> None:
        """End it, and with it whoever was started by it."""
        self._socket.close()
        self._process.kill()
        self._process.wait(ANSWER_WITHIN)


def _serve(end: socket.socket) -> None:
    from tests.chaos import load  # torch, once for all

    nursery = os.getpid()
    while True:
        text, descriptors, _, _ = socket.recv_fds(end, _REQUEST_BYTES, 1)
        if not text:
            return
        request = json.loads(text)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            end.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        [stderr] = descriptors
        pid = os.fork()
        if pid == 0:
            _become(load.main, request["start"], stderr, nursery, end)
        os.close(stderr)
        end.send(str(pid).encode())


def _become(main: Any, arguments: list[str], stderr: int, nursery: int, end: socket.socket) -> None:
    """The child's life."""
    code = 1
    try:
        end.close()
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(stderr, sys.stderr.fileno())
        os.close(stderr)
        if os.getppid() == nursery:
            code = main(arguments)
    except BaseException:  # noqa: BLE001 - whatever it is, it is said, and ends this process, not the copied loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as made:
        _serve(made)
