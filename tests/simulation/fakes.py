"""Plans and tensors that cost nothing: a plan's outputs are numbers made of its id and its arguments.

So the right value of every id is known when the command is submitted, and a wrong one cannot go unseen.
"""

from __future__ import annotations

import functools
import hashlib

import msgspec

from broker.protocol.messages import Failure
from coordinator.core_events import PlanParts
from edge_agent.jobs import Operand, Output, RunJob
from edge_agent.plan.format import Manifest, TensorType, digest_of, encode_manifest

__all__ = ["FakePlan", "answer_frames", "answer_outputs", "fake_plans", "tensor_frame"]

_encode = msgspec.msgpack.encode


def tensor_frame(number: int) -> bytes:
    """The tensor frame of a 0-d int64."""
    data = number.to_bytes(8, "little", signed=True)
    return _encode({b"nd": True, b"type": "<i8", b"kind": b"", b"shape": [], b"data": data})


class FakePlan:
    """A plan of ``outputs`` numbers. With ``fails``, running it is an `ExecutionFailed`; ``poison`` kills the worker,
    and ``deadly`` the whole agent.
    """

    def __init__(
        self, number: int, *, outputs: int, fails: bool = False, poison: bool = False, deadly: bool = False
    ) -> None:
        self.outputs = outputs
        self.fails = fails
        self.poison = poison
        self.deadly = deadly
        graph = f"the graph of fake plan {number}".encode()
        signature = [TensorType(dtype="int64", shape=[])] * outputs
        manifest = encode_manifest(Manifest(version=1, graph=digest_of(graph), outputs=signature))
        self.id = digest_of(manifest)
        self.parts = PlanParts(plan=self.id, blobs={self.id: manifest, digest_of(graph): graph})


def answer_frames(plan: bytes, args: tuple[Operand, ...], outputs: int) -> list[bytes]:
    """The values that running ``plan`` on ``args`` gives."""
    digest = hashlib.blake2b(plan, digest_size=7)
    for argument in args:
        digest.update(argument if isinstance(argument, bytes) else repr(argument).encode())
    first = int.from_bytes(digest.digest(), "little")
    return [tensor_frame(first + k) for k in range(outputs)]


def answer_outputs(job: RunJob, plans: dict[bytes, FakePlan]) -> list[Output] | Failure:
    """What the fake worker answers to a job."""
    if plans[job.plan].fails:
        return Failure(code="ExecutionFailed", message="this plan always fails", details={"op_index": 0})
    frames = answer_frames(job.plan, tuple(job.args), job.outputs)
    return [Output(dtype="int64", shape=(), nbytes=8, source=frame) for frame in frames]


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
