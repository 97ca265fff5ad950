"""Plans and tensors that cost nothing: a plan's outputs are numbers made of its id and its arguments.

So the right value of every id is known when the command is submitted, and a wrong one cannot go unseen.
"""

from __future__ import annotations

import functools
import hashlib

import msgspec

from broker.protocol.messages import Failure
from coordinator.core_events import PlanParts
from edge_agent.jobs import Operand, RunJob
from edge_agent.plan.format import Manifest, TensorType, digest_of, encode_manifest

__all__ = [
    "LARGE_BYTES",
    "POPULAR",
    "FakePlan",
    "answer_frames",
    "answer_values",
    "fake_plans",
    "frame_of",
    "is_large",
    "large_plans",
    "tensor_file",
    "tensor_frame",
]

_encode = msgspec.msgpack.encode


def tensor_frame(number: int) -> bytes:
    """The tensor frame of a 0-d int64."""
    data = number.to_bytes(8, "little", signed=True)
    return _encode({b"nd": True, b"type": "<i8", b"kind": b"", b"shape": [], b"data": data})


_LARGE = b"large: "
LARGE_BYTES = 100_000
"""How large everybody takes a file for that says so: too large for a message."""
POPULAR = (0, 1)
"""Numbers of which users send large tensors again and again."""


def tensor_file(frame: bytes) -> bytes:
    """A tensor as a file, which passes for a large one."""
    return _LARGE + frame


def frame_of(content: bytes) -> bytes:
    """The tensor in such a file."""
    return content[len(_LARGE) :]


def is_large(content: bytes) -> bool:
    """Whether a blob passes for a large one."""
    return content.startswith(_LARGE)


class FakePlan:
    """A plan of ``outputs`` numbers. With ``fails``, running it is an `ExecutionFailed`; ``poison`` kills the worker,
    and ``deadly`` the whole agent. Of a ``large`` one the graph and the outputs pass for large, and it carries a tensor
    that users send as well.
    """

    def __init__(
        self,
        number: int,
        *,
        outputs: int,
        fails: bool = False,
        poison: bool = False,
        deadly: bool = False,
        large: bool = False,
    ) -> None:
        self.outputs = outputs
        self.fails = fails
        self.poison = poison
        self.deadly = deadly
        self.large = large
        graph = (_LARGE if large else b"") + f"the graph of fake plan {number}".encode()
        signature = [TensorType(dtype="int64", shape=[])] * outputs
        state = [tensor_file(tensor_frame(POPULAR[0]))] if large else []
        digests = [digest_of(one) for one in state]
        manifest = encode_manifest(Manifest(version=1, graph=digest_of(graph), outputs=signature, state=digests))
        self.id = digest_of(manifest)
        blobs = {self.id: manifest, digest_of(graph): graph, **dict(zip(digests, state, strict=True))}
        self.parts = PlanParts(plan=self.id, blobs=blobs)


def answer_frames(plan: bytes, args: tuple[Operand, ...], outputs: int) -> list[bytes]:
    """The values that running ``plan`` on ``args`` gives."""
    digest = hashlib.blake2b(plan, digest_size=7)
    for argument in args:
        digest.update(argument if isinstance(argument, bytes) else repr(argument).encode())
    first = int.from_bytes(digest.digest(), "little")
    return [tensor_frame(first + k) for k in range(outputs)]


def answer_values(job: RunJob, args: tuple[Operand, ...], plans: dict[bytes, FakePlan]) -> list[bytes] | Failure:
    """What the fake worker makes of a job, whose arguments are ``args`` when they are read."""
    if plans[job.plan].fails:
        return Failure(code="ExecutionFailed", message="this plan always fails", details={"op_index": 0})
    return answer_frames(job.plan, args, job.outputs)


@functools.cache
def fake_plans() -> tuple[FakePlan, ...]:
    """The plans of all simulations; the last three never give a value."""
    return (
        FakePlan(1, outputs=1),
        FakePlan(2, outputs=1),
        FakePlan(3, outputs=3),
        FakePlan(4, outputs=1, fails=True),
        FakePlan(5, outputs=1, poison=True),
        FakePlan(6, outputs=1, deadly=True),
    )


@functools.cache
def large_plans() -> tuple[FakePlan, ...]:
    """The plans of simulations with large tensors."""
    return FakePlan(7, outputs=1, large=True), FakePlan(8, outputs=2, large=True)
