"""A session's core under a virtual clock, and what a broker would say to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from broker.protocol import messages as m
from broker.protocol.effects import BatchEnded, LinkUp, Log, Received, Send, Tick
from broker.protocol.framing import decode, encode
from broker.protocol.messages import Frame
from coordinator.core import SessionConfig, SessionCore
from coordinator.core_events import PlanParts, SendPlan, SubmitCommand, Upload, Uploaded
from coordinator.core_results import Result

T = TypeVar("T")

LEDGER = b"ledger-1"
PLAN = b"p" * 32
INCARNATION = b"incarnat"
FAILURE = m.Failure(code="StoreFull", message="no room")


def parts(plan: bytes = PLAN, sizes: Sequence[int] = (40,)) -> PlanParts:
    """A plan with a manifest of 10 bytes and one part of each size."""
    blobs = {plan: bytes(10)}
    for k, size in enumerate(sizes):
        blobs[bytes([65 + k]) * 31 + plan[:1]] = bytes(size)
    return PlanParts(plan=plan, blobs=blobs)


class Session:
    """A core, its clock, and all that it has done."""

    def __init__(self, **config: object) -> None:
        self.core = SessionCore(SessionConfig(**config), incarnation=INCARNATION)  # type: ignore[arg-type]
        self.now = 100.0
        self.notified = 0
        self.done: list[object] = []
        self.new: list[object] = []

    def handle(self, event: object) -> list[object]:
        """Feed one event; what the core made of it (kept in ``new`` and ``done`` too)."""
        self.new = self.core.handle(event, self.now)
        self.done += self.new
        for instruction in self.new:
            if isinstance(instruction, Send):  # whatever it says must be sayable
                assert decode(encode(instruction.message)) == instruction.message
        return self.new

    def told(self, message: m.Message, *frames: bytes) -> list[object]:
        """A message from the broker."""
        return self.handle(Received(message=message, frames=frames))

    def open(self, *, ledger: bytes = LEDGER, accepted: int = 0, heartbeat_ms: int = 10_000) -> list[object]:
        """Connect, and let the broker answer."""
        self.handle(LinkUp())
        return self.opened(ledger=ledger, accepted=accepted, heartbeat_ms=heartbeat_ms)

    def opened(self, *, ledger: bytes = LEDGER, accepted: int = 0, heartbeat_ms: int = 10_000) -> list[object]:
        """The broker's answer alone."""
        return self.told(
            m.SessionOpened(
                version=m.PROTOCOL_VERSION,
                ledger=ledger,
                accepted=accepted,
                heartbeat_ms=heartbeat_ms,
                max_message=4 << 20,
            )
        )

    def submit(
        self,
        command: m.Invoke | m.Put | m.Release | m.Cancel,
        *devices: str,
        plan: PlanParts | None = None,
        upload: bytes | None = None,
        frames: tuple[bytes, ...] = (),
    ) -> list[object]:
        """The user's call."""
        event = SubmitCommand(devices=devices or ("d1",), command=command, plan=plan, upload=upload, frames=frames)
        return self.handle(event)

    def invoke(self, *args: m.Argument, devices: Sequence[str] = ("d1",), plan: PlanParts | None = None) -> Result:
        """Invoke a plan of one output; the first device's result."""
        first = self.core.take_ids(len(devices))
        parts_ = plan or parts()
        self.submit(m.Invoke(id=first, plan=parts_.plan, args=list(args)), *devices, plan=parts_)
        result = self.core.result(first)
        assert result is not None
        return result

    def put_blob(self) -> Result:
        """Put a tensor that must be uploaded first, under its id as the key."""
        first = self.core.take_ids(1)
        self.submit(m.Put(id=first), upload=first)
        result = self.core.result(first)
        assert result is not None
        return result

    def with_plan(self) -> None:
        """Have the plan sent and accepted, so that a test can look at what follows."""
        self.handle(SendPlan(plan=parts()))
        self.told(m.Accepted(n=self.last_n()))

    def notify(self, event: m.Event, *frames: bytes, n: int | None = None, device: str = "d1") -> list[object]:
        """A notification, with the next number."""
        if n is None:
            self.notified += 1
            n = self.notified
        return self.told(m.Notify(n=n, device=device, event=event), *frames)

    def ready(self, result: Result, *frames: bytes) -> list[object]:
        """The result is ready, inline."""
        return self.notify(m.ResultReady(id=result.id, digest=result.digest, inline=True), *(frames or (b"value",)))

    def batch(self) -> list[object]:
        """No more messages wait."""
        return self.handle(BatchEnded())

    def tick(self) -> list[object]:
        """Go on to the next timer; what it did."""
        at = self.core.next_timer()
        assert at is not None
        self.now = max(self.now, at)
        return self.handle(Tick())

    def sent(self, kind: type[T], instructions: Sequence[object] | None = None) -> list[T]:
        """The messages of a kind among the last instructions."""
        chosen = self.new if instructions is None else instructions
        return [i.message for i in chosen if isinstance(i, Send) and isinstance(i.message, kind)]

    def submits(self, instructions: Sequence[object] | None = None) -> list[tuple[int, m.Command]]:
        """Number and command of each `Submit` among the last instructions."""
        return [(message.n, message.command) for message in self.sent(m.Submit, instructions)]

    def attached(self) -> list[list[Frame]]:
        """The frames of each `StorePlan` among the last instructions."""
        sends = [i for i in self.new if isinstance(i, Send)]
        messages = [(send.message, list(send.frames)) for send in sends]
        return [f for sent, f in messages if isinstance(sent, m.Submit) and isinstance(sent.command, m.StorePlan)]

    def last_n(self) -> int:
        """The last number that was given to a command."""
        return max((n for n, _ in self.submits(self.done)), default=0)

    def of(self, kind: type[T], instructions: Sequence[object] | None = None) -> list[T]:
        """The instructions of a kind among the last ones."""
        return [i for i in (self.new if instructions is None else instructions) if isinstance(i, kind)]

    def logged(self) -> list[str]:
        """The names of all events logged so far."""
        return [i.event for i in self.done if isinstance(i, Log)]

    def upload_all(self, digest: bytes = b"d" * 32) -> list[object]:
        """End every upload that was asked for just now."""
        made: list[object] = []
        for upload in self.of(Upload):
            made += self.handle(Uploaded(key=upload.key, digest=digest, ledger=upload.ledger))
        return made


def opened() -> Session:
    """An open session whose plan is with the broker."""
    session = Session()
    session.open()
    session.with_plan()
    return session
