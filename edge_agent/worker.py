"""The worker process: executes plans, so that the agent's own process stays small and answers whatever a plan does.

Started by `edge_agent.worker_hosts.ProcessWorker` as ``python -m edge_agent.worker``, with one end of a socket pair
and a few bytes of shared memory. It never outlives its agent: it ends when the pipe closes, and the kernel kills it
when the agent's thread is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import mmap
import os
import signal
import socket
import sys
from pathlib import Path

from edge_agent.jobs import CHECKPOINT_SECONDS, Answer, Order, WorkerReady, WorkerUnfit
from edge_agent.limits import Limits
from edge_agent.pipe import Board, Pipe, worker_end
from edge_agent.runtimes.interface import Runtime
from edge_agent.workbench import Workbench, serve

__all__ = ["load_runtime", "main"]

_PR_SET_PDEATHSIG = 1


def load_runtime(name: str, threads: int = 1) -> Runtime:
    """The runtime of that name. Raises ImportError where it is not installed, ValueError where there is none.

    ``threads``: how many a plan may use; torch has a setting of its own for that.
    """
    if name == "onnx":
        from edge_agent.worker_onnx import OnnxTensors

        return OnnxTensors(threads)
    if name != "torch":
        raise ValueError(f"expected the runtime torch or onnx, got {name!r}")
    from edge_agent.worker_torch import TorchTensors

    return TorchTensors()


def main() -> None:
    """Serve one agent, until it goes."""
    parser = argparse.ArgumentParser(prog="edge_agent.worker", description="Runs plans for an agent, which starts it.")
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--board", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS)
    parser.add_argument("--max-memory", type=int, default=0)
    parser.add_argument("--max-ops", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=0.0)
    options = parser.parse_args()

    _die_with(options.parent)
    _go_nowhere(options.folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole terminal: the agent decides
    pipe = worker_end(socket.socket(fileno=options.pipe))
    board = Board(memoryview(mmap.mmap(options.board, Board.SIZE)))
    code = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the agent is gone, and nobody wants the answer
        runtime = _ready(options.runtime, options.threads, pipe)
        if runtime is None:
            code = 1
        else:
            ready = WorkerReady(pid=os.getpid(), runtime=runtime.name, version=runtime.version)
            limits = Limits(memory_bytes=options.max_memory, ops=options.max_ops, seconds=options.max_seconds)
            every = options.checkpoint_seconds
            bench = Workbench(runtime, options.folder, board, limits=limits, alone=True, checkpoint_seconds=every)
            serve(pipe, bench, ready)
    os._exit(code)  # all is on the disk that should be; taking torch apart would only take time


def _ready(name: str, threads: int, pipe: Pipe[Answer, Order]) -> Runtime | None:
    """The runtime, imported and set; None: it cannot be, and the agent was told why."""
    try:
        runtime = load_runtime(name, threads)
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        pipe.say([WorkerUnfit(reason=f"{type(error).__name__}: {error}")])
        return None
    if name == "torch":
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)  # once: no plan records gradients, and to say so at each run takes time
    gc.freeze()  # torch's hundred thousand objects are here to stay: don't look through them again and again
    return runtime


def _go_nowhere(folder: Path) -> None:
    """Into an empty folder of the store: a model may name files for its weights, and those beside the agent are its
    owner's. onnxruntime takes none from above the working directory.
    """
    nowhere = folder.absolute() / "nowhere"
    nowhere.mkdir(mode=0o700, exist_ok=True)
    os.chdir(nowhere)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when the thread that has started it ends, as in prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)  # it was gone before we asked


if __name__ == "__main__":
    main()
