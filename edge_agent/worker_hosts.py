"""The agent's handle on its worker: a process of its own, or a thread of this one, with the same pipe in between."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_agent.jobs import CHECKPOINT_SECONDS, Answer, CancelJob, Order, WorkerReady, WorkerUnfit
from edge_agent.pipe import Board, Pipe, agent_end, worker_end

if TYPE_CHECKING:
    from edge_agent.limits import Limits
    from edge_agent.runtimes.interface import Runtime

__all__ = ["ProcessWorker", "ThreadWorker", "WorkerHost"]

_GRACE_SECONDS = 5.0
_LEAVE_SECONDS = 1.0
"""How long a worker process that shall end may take to leave what it is at, before it is killed."""


class WorkerHost(Protocol):
    """One worker at a time; may be started again after it has ended. Of one thread."""

    def start(self) -> None:
        """Start a worker. Raises OSError if there is no room for one."""

    def fileno(self) -> int:
        """What to poll for answers; -1 while there is no worker."""

    @property
    def clogged(self) -> bool:
        """Whether orders wait for `flush`: poll for writing too."""

    def assign(self, orders: Sequence[Order]) -> None:
        """Give it orders."""

    def flush(self) -> None:
        """Give it the orders that did not fit."""

    def hear(self) -> list[Answer] | None:
        """What it has answered; None: it is gone, see `bury`."""

    def stop(self) -> None:
        """Let it end: `hear` gives None when it has."""

    def kill(self) -> None:
        """End it at once, as far as that can be: `hear` gives None then."""

    def bury(self) -> tuple[int, str]:
        """It is gone, or shall be: the number of the order that it was at, and how it ended."""


class _Piped:
    """What both kinds have in common: the pipe and the board."""

    def __init__(self) -> None:
        self._pipe: Pipe[Order, Answer] | None = None
        self._end: socket.socket | None = None
        self._board: Board | None = None

    def fileno(self) -> int:
        """What to poll for answers; -1 while there is no worker."""
        return -1 if self._pipe is None else self._pipe.fileno()

    @property
    def clogged(self) -> bool:
        """Whether orders wait for `flush`."""
        return self._pipe is not None and self._pipe.clogged

    def assign(self, orders: Sequence[Order]) -> None:
        """Give it orders. If it is gone they are lost with it: `hear` will tell."""
        if self._pipe is None or self._board is None:
            return
        try:  # noqa: SIM105  (every invocation passes here, and contextlib.suppress takes three calls)
            self._pipe.say(orders)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is gone
        if CancelJob in map(type, orders):  # hardly ever, which this finds out in no time
            for order in orders:
                if isinstance(order, CancelJob):
                    self._leave(order.n, self._board)

    def flush(self) -> None:
        """Give it the orders that did not fit."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._pipe.flush()

    def hear(self) -> list[Answer] | None:
        """What it has answered; None: it is gone."""
        return None if self._pipe is None else self._pipe.hear()

    def stop(self) -> None:
        """Let it end, once it has done what it was given."""
        if self._end is not None:
            with contextlib.suppress(OSError):  # it is gone already
                self._end.shutdown(socket.SHUT_WR)

    def _open(self, board: Board) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._end, self._pipe, self._board = ours, agent_end(ours), board
        return theirs

    @staticmethod
    def _leave(n: int, board: Board) -> None:
        """The worker hears the pipe between two jobs only. It may be about to start this one, so say it on the board,
        too; unless it is just leaving another one: then it hears of this one in time.
        """
        doing, leave = board.doing, board.leave
        if leave != Board.ALL and (not doing or doing != leave):
            board.leave = n

    def _leave_all(self) -> None:
        """Let it leave what it is at between two ops, and end."""
        if self._board is not None:
            self._board.leave = Board.ALL

    def _close(self) -> int:
        doing = 0 if self._board is None else self._board.doing
        self._leave_all()
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = self._end = self._board = None
        return doing


class ProcessWorker(_Piped):
    """A worker as a process: the agent's own never imports what runs plans. ``threads``: how many a plan may use;
    ``limits``: what else; ``checkpoint_seconds``: how much work of a fold its death costs at most.
    """

    def __init__(
        self,
        runtime: str,
        folder: Path,
        *,
        threads: int = 0,
        limits: Limits | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        super().__init__()
        self._runtime = runtime
        self._folder = folder
        self._threads = threads or max(1, (os.cpu_count() or 1) // 2)
        self._limits = limits
        self._checkpoint_seconds = checkpoint_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process' id; None: there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process."""
        memory = os.memfd_create("edgeplan-board", os.MFD_CLOEXEC)
        os.truncate(memory, Board.SIZE)
        theirs = self._open(Board(memoryview(mmap.mmap(memory, Board.SIZE))))
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),  # the same edgeplan as this one, wherever the agent was started
            "OMP_NUM_THREADS": str(self._threads),
        }
        command = [sys.executable, "-m", "edge_agent.worker", "--pipe", str(theirs.fileno()), "--board", str(memory)]
        command += ["--parent", str(os.getpid()), "--folder", str(self._folder), "--runtime", self._runtime]
        command += ["--threads", str(self._threads), "--checkpoint-seconds", str(self._checkpoint_seconds)]
        if self._limits:
            command += ["--max-memory", str(self._limits.memory_bytes), "--max-ops", str(self._limits.ops)]
            command += ["--max-seconds", str(self._limits.seconds)]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(), memory), stdin=subprocess.DEVNULL, env=environment
            )
        except OSError:
            self._close()
            raise
        finally:
            theirs.close()
            os.close(memory)

    def bury(self) -> tuple[int, str]:
        """Wait until it has left what it is at, and kill what is left of it."""
        process, self._process = self._process, None
        doing = self._close()
        if process is None:
            return doing, "there was no worker"
        try:
            code = process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return doing, _how_it_ended(code)

    def kill(self) -> None:
        """Kill it; what it was at has written nothing that anybody names."""
        if self._process is not None:
            self._process.kill()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class ThreadWorker(_Piped):
    """A worker as a thread, for virtual devices. ``runtime`` is called on that thread. Of the ``limits``, that of
    memory is kept by what a plan is known to cost, not by the kernel: the process is not the worker's own.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        folder: Path,
        *,
        limits: Limits | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        super().__init__()
        self._checkpoint_seconds = checkpoint_seconds
        self._limits = limits
        self._runtime = runtime
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._ended = ""

    def start(self) -> None:
        """Start the thread."""
        board = Board(memoryview(bytearray(Board.SIZE)))
        theirs = self._open(board)
        self._ended = "it ended"
        self._thread = threading.Thread(target=self._work, args=(theirs, board), name="plan-worker", daemon=True)
        self._thread.start()

    def _work(self, end: socket.socket, board: Board) -> None:
        from edge_agent.workbench import Workbench, serve  # only who runs plans needs it

        pipe = worker_end(end)
        try:
            try:
                runtime = self._runtime()
            except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
                pipe.say([WorkerUnfit(reason=f"{type(error).__name__}: {error}")])
                return
            ready = WorkerReady(pid=os.getpid(), runtime=runtime.name, version=runtime.version)
            every = self._checkpoint_seconds
            bench = Workbench(runtime, self._folder, board, limits=self._limits, checkpoint_seconds=every)
            serve(pipe, bench, ready)
        except OSError:
            return  # the agent is gone
        except BaseException as error:
            self._ended = f"{type(error).__name__}: {error}"
            raise
        finally:
            pipe.close()

    def kill(self) -> None:
        """Leave it alone until it comes to the end of an op, and ends: a thread cannot be killed. What it says is not
        heard any more.
        """
        self._leave_all()
        self._thread, self._ended = None, "it did not stop"
        if self._end is not None:
            with contextlib.suppress(OSError):  # it is gone already
                self._end.shutdown(socket.SHUT_RDWR)

    def bury(self) -> tuple[int, str]:
        """Wait for its end; one that is stuck is left alone."""
        thread, self._thread = self._thread, None
        doing = self._close()
        if thread is not None:
            thread.join(_GRACE_SECONDS)
        return doing, self._ended
