"""Commits of all kinds, as brokers make them, and what each should leave: for the tests of ledgers on disk."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from broker.ledger.interface import (
    ChangeTags,
    DropDevice,
    DropErrand,
    DropPlan,
    DropRelease,
    DropResults,
    DropSession,
    Ending,
    MarkDelivered,
    MarkLost,
    MarkReleased,
    MarkReleasing,
    MarkSeen,
    RecordCommand,
    RecordDevice,
    RecordErrand,
    RecordPlan,
    RecordRelease,
    RecordSession,
    RecordTerminal,
    Snapshot,
    Write,
)
from broker.ledger.memory import MemoryLedger
from broker.protocol.messages import (
    Cancel,
    Cancelled,
    Expired,
    Failure,
    Invoke,
    Put,
    Release,
    ResultFailed,
    ResultInfo,
    ResultReady,
    ResultStatus,
    TagEntry,
)

__all__ = ["Story", "content"]

DIGEST = b"digest of command"[:16]
DEVICES = ("pi", "phone", "desk")


class Story:
    """Makes commits that a broker could make. ``expected``: what a ledger in memory has after them."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.expected = MemoryLedger(b"L" * 16)
        self.seq = 0
        self.unended: list[bytes] = []
        self.ended: list[bytes] = []
        self.steps: list[int] = []
        """Releases and errands that are there, by seq."""
        self._kinds = [getattr(self, name) for name in dir(self) if name.startswith("make_")]

    def commit(self, writes: int = 8) -> list[Write]:
        """The next commit."""
        made: list[Write] = []
        while len(made) < writes:
            made += self.random.choice(self._kinds)()
        self.expected.commit(made)
        return made

    def commits(self, count: int) -> list[list[Write]]:
        """The next commits."""
        return [self.commit() for _ in range(count)]

    def _some(self, ids: Sequence[bytes]) -> list[bytes]:
        return self.random.sample(ids, min(len(ids), self.random.randint(0, 3)))

    def _frames(self) -> tuple[bytes, ...]:
        sizes = self.random.choice([(), (), (10,), (100, 3), (5000,), (3000, 9000)])
        return tuple(self.random.randbytes(size) for size in sizes)

    def make_command(self) -> list[Write]:
        """A command comes: an invocation or a tensor, small or large."""
        self.seq += 1
        id = b"session1" + self.seq.to_bytes(8, "big")
        self.unended.append(id)
        frames = self._frames()
        invoke = Invoke(
            id=id, plan=b"p" * 32, args=[id, 1, 2.5, True, None, ["a", "b"]], outputs=70, tags=["x"], seed=-3
        )
        command = self.random.choice([invoke, Put(id=id, tags=["t"], description="what it is"), None])
        return [
            RecordCommand(
                seq=self.seq,
                id=id,
                outputs=70,
                device=self.random.choice(DEVICES),
                incarnation=b"session1",
                n=self.seq,
                digest=DIGEST,
                command=command,
                frames=frames if command is not None else (),
                deadline_ms=1_700_000_000_000 + self.seq,
            )
        ]

    make_another_command = make_command

    def make_delivered(self) -> list[Write]:
        """Some are taken by their devices."""
        return [MarkDelivered(ids=[*self._some(self.unended), b"?" * 16])]

    def make_end(self) -> list[Write]:
        """One ends."""
        if not self.unended:
            return []
        id = self.unended.pop(self.random.randrange(len(self.unended)))
        self.ended.append(id)
        info = ResultInfo(dtype="float32", shape=[2, 3], nbytes=24)
        failure = Failure(code="ExecutionFailed", message="no", details={"op": "aten.add", "index": 3, "x": None})
        ends: list[tuple[ResultStatus, Ending]] = [
            (ResultStatus.DONE, ResultReady(id=id, digest=DIGEST, infos=[info], inline=True)),
            (ResultStatus.FAILED, ResultFailed(id=id, digest=DIGEST, failure=failure)),
            (ResultStatus.CANCELLED, Cancelled(id=id, digest=DIGEST)),
            (ResultStatus.EXPIRED, Expired(id=id, digest=DIGEST)),
        ]
        status, event = self.random.choice(ends)
        frames = self._frames() if status is ResultStatus.DONE else ()
        return [RecordTerminal(id=id, status=status, event=event, frames=frames)]

    make_another_end = make_end

    def make_marks(self) -> list[Write]:
        """Some are seen, released, or lost."""
        writes: list[Write] = [
            MarkSeen(ids=[*self._some(self.ended), b"?" * 16]),
            MarkLost(ids=self._some(self.ended)[:1]),
        ]
        mask = self.random.getrandbits(70)
        writes += [MarkReleasing(id=id, outputs=mask) for id in self._some(self.unended)]
        writes += [MarkReleased(id=id, outputs=mask, whole=self.random.random() < 0.5) for id in self._some(self.ended)]
        return writes

    make_more_marks = make_marks

    def make_forgotten(self) -> list[Write]:
        """The retention of some is over."""
        gone = self._some(self.ended)[:1]
        self.ended = [id for id in self.ended if id not in gone]
        return [DropResults(ids=[*gone, b"?" * 16])]

    def make_steps(self) -> list[Write]:
        """A release and an errand come, and others are done."""
        self.seq += 2
        errands: list[Release | Cancel] = [Release(ids=self._some(self.ended)), Cancel(id=b"c" * 16)]
        writes: list[Write] = [
            RecordRelease(seq=self.seq - 1, incarnation=b"session1", n=self.seq, ids=self._some(self.ended)),
            RecordErrand(seq=self.seq, device="pi", digest=DIGEST, command=self.random.choice(errands)),
        ]
        for seq in self.random.sample(self.steps, len(self.steps) // 2):
            self.steps.remove(seq)
            writes += [DropRelease(seq=seq), DropErrand(seq=seq)]
        self.steps += [self.seq - 1, self.seq]
        return writes

    def make_session(self) -> list[Write]:
        """A session moves on, and another one ends."""
        k = self.random.randrange(4)
        kept = RecordSession(
            incarnation=b"session%d" % k,
            name="name" if k % 2 else "",
            taken=self.seq,
            seen=self.seq // 2,
            highest=self.seq,
            forgotten=[(1, self.seq // 3)],
        )
        return [kept, *([DropSession(incarnation=b"session%d" % (k + 3), highest=self.seq)] if k % 2 else [])]

    def make_device(self) -> list[Write]:
        """A device registers, or is forgotten."""
        name = self.random.choice(DEVICES)
        if self.random.random() < 0.2:
            return [DropDevice(device=name)]
        return [
            RecordDevice(
                device=name,
                store=b"s" * 16,
                boot=self.random.randbytes(16),
                confirmed=b"",
                issued=b"token123",
                version=(1, 0),
                runtimes=["torch"],
                labels={"place": "kitchen"},
                last_seen=1_700_000_000_000 + self.seq,
            )
        ]

    def make_tags(self) -> list[Write]:
        """Tensors of a device get and lose tags."""
        info = ResultInfo(dtype="int8", shape=[], nbytes=1)
        ids = [bytes([self.random.randrange(8)]) * 16 for _ in range(3)]
        entries = [TagEntry(id=id, tags=["x", str(self.seq)], description="d", info=info) for id in ids]
        whole = self.random.random() < 0.3
        return [ChangeTags(device=self.random.choice(DEVICES), entries=entries, gone=ids[:1], whole=whole)]

    def make_plan(self) -> list[Write]:
        """A plan is stored, and another one dropped."""
        k = self.random.randrange(5)
        kept = RecordPlan(plan=bytes([k]) * 32, parts=[b"p" * 32], beside={"source": b"s" * 32})
        return [kept, DropPlan(plan=bytes([k + 1]) * 32)]


def content(snapshot: Snapshot) -> Snapshot:
    """A snapshot to compare with another one's: without what differs from start to start."""
    return msgspec.structs.replace(snapshot, epoch=0, ledger=b"")
