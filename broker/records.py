"""One command for one device, from its submission to the end of its retention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from broker.ledger.interface import Ending
from broker.protocol.errors import TensorRefused
from broker.protocol.ids import counter_of, nth
from broker.protocol.messages import (
    Cancel,
    Expired,
    Failure,
    Frame,
    Invoke,
    Put,
    ResultFailed,
    ResultInfo,
    ResultReady,
    ResultStatus,
    StatusEntry,
)
from broker.protocol.tensors import inspect
from broker.transitions import UNENDED

if TYPE_CHECKING:
    from broker.devices import Device
    from broker.releases import Gate
    from broker.sessions import Session

__all__ = ["Record", "cancel_of", "failure_of_ending"]

_HOPEFUL = UNENDED | {ResultStatus.DONE}


class Record(Struct, kw_only=True, eq=False):
    """What the broker knows of ``width`` consecutive ids, made by one command on one device.

    Times in seconds on the core's clock. ``released`` and ``wanted`` are bit masks over the outputs: those that are
    released, and those whose release was asked for. Each is itself alone, and equal to no other.

    One is made for each command: that it is a `Struct`, which is made in C, saves more than half of that.
    """

    seq: int
    id: bytes
    outputs: int
    device: Device | None
    device_name: str
    session: Session | None
    n: int
    digest: bytes
    command: Invoke | Put | None
    frames: tuple[Frame, ...]
    size: int
    submitted: float
    deadline: float
    status: ResultStatus = ResultStatus.QUEUED
    event: Ending | None = None
    value: tuple[Frame, ...] = ()
    seen: bool = False
    resumed: int = 0  # how often it stands in the queue of `broker.retention` without being settled
    untold: bool = False  # it has ended, and that is not in the ledger: nobody may know
    wanted: int = 0
    passed: int = 0
    released: int = 0
    gate: Gate | None = None
    needs: tuple[Record, ...] = ()
    uses: int = 0
    dependents: list[Record] | None = None
    waiters: dict[tuple[str, bytes], Device] | None = None
    deliveries: int = 0
    delivered_to: bytes = b""
    relayed: bool = False

    def __repr__(self) -> str:
        return f"<Record {self.id.hex()} {self.status.value} on {self.device_name}>"

    @property
    def width(self) -> int:
        """How many ids it takes."""
        return self.outputs or 1

    @property
    def unended(self) -> bool:
        """Whether nothing terminal is known of it."""
        return self.status in UNENDED

    @property
    def inline(self) -> bool:
        """Whether it is done and the values are here."""
        event = self.event
        return type(event) is ResultReady and event.inline

    def ids(self) -> list[bytes]:
        """All ids that it takes."""
        return [self.id] if self.outputs <= 1 else [nth(self.id, k) for k in range(self.outputs)]

    def place(self, id: bytes) -> int:
        """Which of the outputs ``id`` is."""
        return counter_of(id) - counter_of(self.id)

    def bit(self, id: bytes) -> int:
        """The output ``id`` in a bit mask."""
        return 1 << self.place(id)

    @property
    def all_bits(self) -> int:
        """The bit mask of all outputs."""
        return (1 << self.width) - 1

    def status_of(self, id: bytes) -> ResultStatus:
        """The status of one of the ids."""
        if self.status is ResultStatus.DONE and (self.released | self.wanted) & self.bit(id):
            return ResultStatus.RELEASED
        return self.status

    def failure_of(self, id: bytes) -> Failure | None:
        """Why ``id`` has no value for anybody who asks now; None: it has one, or has not ended."""
        if not (self.wanted or self.released) and self.status in _HOPEFUL:
            return None  # as nearly always
        status = self.status_of(id)
        if status is ResultStatus.RELEASED or (self.wanted & self.bit(id) and self.unended):
            return Failure(code="ResultReleased", message=f"the result {id.hex()} was released")
        if status is ResultStatus.LOST:
            return Failure(
                code="ResultLost",
                message=f"the result {id.hex()} is gone with the store of device {self.device_name}",
                details={"device": self.device_name},
            )
        return None if self.event is None else failure_of_ending(self.event)

    def info_of(self, id: bytes) -> ResultInfo | None:
        """Dtype, shape and size of ``id``, where they are known."""
        event = self.event
        if type(event) is not ResultReady:
            return None
        k = self.place(id)
        if event.infos:
            return event.infos[k] if k < len(event.infos) else None
        if k >= len(self.value):
            return None
        try:
            header = inspect(self.value[k])
        except TensorRefused:
            return None
        return ResultInfo(dtype=header.dtype, shape=list(header.shape), nbytes=header.nbytes)

    def entry(self, id: bytes, until: int) -> StatusEntry:
        """What `AskStatus` is told about ``id``; ``until``: see `StatusEntry`."""
        command = self.command
        return StatusEntry(
            id=id,
            status=self.status_of(id),
            device=self.device_name,
            failure=None if self.unended else self.failure_of(id),
            info=self.info_of(id),
            plan=command.plan if type(command) is Invoke else None,
            command=self.id,
            outputs=self.outputs,
            tags=[] if command is None else command.tags,
            description="" if command is None else command.description,
            until=until,
        )

    def with_time_left(self, now: float) -> Invoke | Put:
        """The command as it is to be delivered at ``now``: with the time left until its deadline."""
        command = self.command
        assert command is not None
        if now - self.submitted < 0.5:
            return command  # less than the clocks of two machines drift apart in the time that it may take
        return msgspec.structs.replace(command, deadline_ms=max(1, round((self.deadline - now) * 1000)))


def cancel_of(id: bytes, event: Ending | None) -> Cancel:
    """What tells a device that its command has ended without it."""
    failure = event.failure if isinstance(event, ResultFailed) else None
    return Cancel(id=id, expired=isinstance(event, Expired), failure=failure)


def failure_of_ending(event: Ending) -> Failure | None:
    """The failure that an ending means for whoever wanted its value."""
    if type(event) is ResultReady:
        return None
    if type(event) is ResultFailed:
        return event.failure
    if type(event) is Expired:
        return Failure(code="DeadlineExpired", message=f"the deadline of {event.id.hex()} passed before it ended")
    return Failure(code="InvocationCancelled", message=f"the invocation {event.id.hex()} was cancelled")
