"""What the agent and its worker say to each other, over a pipe of their own (`edge_agent.pipe`).

Orders go to the worker, answers come back. The worker does its orders one after another, in order; ``n`` numbers
them, so that `edge_agent.pipe.Board` can tell which one was being done when a worker died.

A tensor is given as its *source*: bytes are a tensor frame (see `broker.protocol.tensors`), a `File` is a tensor file
(see `edge_agent.tensor_files`), a number is itself. Parts of plans likewise: bytes, or a file that holds them.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from broker.protocol.messages import Failure, Fold

__all__ = [
    "CHECKPOINT_SECONDS",
    "Answer",
    "CancelJob",
    "File",
    "JobFailed",
    "JobFinished",
    "JobProgress",
    "LoadPlan",
    "Operand",
    "Order",
    "Output",
    "PlanLoaded",
    "PlanRefused",
    "RunJob",
    "Source",
    "UnloadPlan",
    "WorkerReady",
    "WorkerUnfit",
    "as_source",
]

CHECKPOINT_SECONDS = 30.0
"""How much work of a fold a crash costs at most: an SD card wears, and a checkpoint of a large carry takes time."""


class _Spoken(Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True, gc=False):
    """Something said on the pipe: a msgpack array with its tag in front. It is data alone, which makes no cycles: the
    collector of those need not look at it.
    """


class File(Struct, frozen=True, array_like=True, gc=False):
    """What is in a file of the store. ``check``: the CRC-32 that the whole file must have, where known."""

    path: str
    check: int | None = None


Source: TypeAlias = bytes | File
Operand: TypeAlias = bytes | File | bool | int | float


def as_source(where: bytes | str, check: int | None = None) -> Source:
    """Bytes as they are, a path as `File`."""
    return File(where, check) if isinstance(where, str) else where


class LoadPlan(_Spoken, frozen=True, kw_only=True, tag=1):
    """Check a plan and make it ready to run, under the name ``plan``: its id, or the key of one of its variants.

    ``variant``: the graph in the terms of a runtime that does not take it as it is. ``packed``: an encoded
    `edge_agent.plan.quantised.PackedState`, where ``state`` is what that names.
    """

    n: int
    plan: bytes
    manifest: bytes
    graph: Source
    state: list[Source]
    variant: Source | None = None
    packed: bytes = b""


class UnloadPlan(_Spoken, frozen=True, kw_only=True, tag=2):
    """Forget a plan. Not answered."""

    plan: bytes


class RunJob(_Spoken, frozen=True, kw_only=True, tag=3):
    """Run a loaded plan; its results will be known as ``id`` and on, and are ``outputs`` in number.

    With ``fold`` it runs once a batch, and ``names`` says for each argument which tensor it is: its id, or nothing
    where the command itself has it. A fold goes on from a checkpoint only if that was made of the same tensors.
    """

    n: int
    plan: bytes
    id: bytes
    args: list[Operand]
    outputs: int = 1
    seed: int | None = None
    fold: Fold | None = None
    names: list[bytes] = []


class CancelJob(_Spoken, frozen=True, kw_only=True, tag=4):
    """Don't start job ``n``, if that is still possible. It is answered all the same."""

    n: int


Order: TypeAlias = LoadPlan | UnloadPlan | RunJob | CancelJob


class WorkerReady(_Spoken, frozen=True, kw_only=True, tag=16):
    """The worker has started: its first word. ``runtime`` names what runs plans in it, ``version`` that one's
    version.
    """

    pid: int
    runtime: str
    version: str = ""


class WorkerUnfit(_Spoken, frozen=True, kw_only=True, tag=21):
    """The worker cannot run plans, and ends: its only word. ``reason``: what is missing, say."""

    reason: str


class PlanLoaded(_Spoken, frozen=True, kw_only=True, tag=17):
    """The plan was checked, and may be run. ``seconds``: how long that took."""

    n: int
    plan: bytes
    seconds: float


class PlanRefused(_Spoken, frozen=True, kw_only=True, tag=18):
    """The plan is not one that this worker runs."""

    n: int
    plan: bytes
    failure: Failure


class Output(_Spoken, frozen=True, kw_only=True):
    """One result: its dtype, shape and size in bytes, and the tensor itself."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: Source


class JobFinished(_Spoken, frozen=True, kw_only=True, tag=19):
    """The job has run. Files that ``outputs`` name are on the disk already (fsynced)."""

    n: int
    outputs: list[Output]
    seconds: float = 0.0


class JobFailed(_Spoken, frozen=True, kw_only=True, tag=20):
    """The job has ended without a value."""

    n: int
    failure: Failure


class JobProgress(_Spoken, frozen=True, kw_only=True, tag=22):
    """The job is still at it: ``progress`` of it is done, 0 to 1. Said every half second at most.

    ``resumed``: it goes on from a checkpoint, with so many steps done by a worker before; said once.
    """

    n: int
    progress: float
    resumed: int = 0


Answer: TypeAlias = WorkerReady | WorkerUnfit | PlanLoaded | PlanRefused | JobFinished | JobFailed | JobProgress
