"""What devices say about commands: how they ended, that they run, and that a store is gone."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from broker.context import INFO, WARNING, Context
from broker.devices import Device
from broker.ledger.interface import Ending, MarkLost
from broker.protocol.failures import shortened
from broker.protocol.ids import COUNTER_END, counter_of, incarnation_of
from broker.protocol.messages import Failure, Frame, ResultFailed, ResultReady, ResultStatus
from broker.records import Record
from broker.results import Results
from broker.sessions import Sessions
from broker.transitions import ENDINGS, TRANSITIONS, Input
from broker.values import Values

__all__ = ["Announcements"]


class Announcements:
    """See the module."""

    def __init__(self, context: Context, results: Results, sessions: Sessions, values: Values) -> None:
        self._context = context
        self._results = results
        self._sessions = sessions
        self._values = values

    def ended(self, device: Device, event: Ending, frames: tuple[Frame, ...]) -> None:
        """A device says how a command has ended. The first end wins: a later one is dropped, and logged."""
        results = self._results
        if type(event) is ResultFailed:
            event = replace(event, failure=shortened(event.failure))  # it goes on, to other devices, too
        record = results.by_id.get(event.id)
        if record is None:
            self._adopt(device, event, frames)
            return
        if record.device is not device or record.id != event.id or record.digest != event.digest:
            self._refuse(device, event, record)
            return
        if type(event) is ResultReady:
            announced = len(frames) if event.inline else len(event.infos)
            if announced != record.outputs:
                event, frames = _wrong_count(record, event, announced), ()
            elif not event.inline:
                frames = ()
        else:
            frames = ()
        if results.end(record, event, frames, by_device=True):
            return
        if record.event != event:
            self._drop(device, event, record.status)
        if record.status is not ResultStatus.DONE:
            self._let_drop(device, event, record)

    def _refuse(self, device: Device, event: Ending, record: Record) -> None:
        self._context.log(
            WARNING,
            "announcement_refused",
            result=event.id.hex(),
            device=device.name,
            expected_device=record.device_name,
            expected_result=record.id.hex(),
            same_digest=record.digest == event.digest,
        )

    def _drop(self, device: Device, event: Ending, status: ResultStatus) -> None:
        self._context.log(
            INFO,
            "result_dropped",
            result=event.id.hex(),
            device=device.name,
            status=status.value,
            came=type(event).__name__,
        )

    def _let_drop(self, device: Device, event: Ending, record: Record) -> None:
        """The device has made what nobody may have any more: it may drop it. It may not fill its stream with such."""
        if isinstance(event, ResultReady) and device.mailbox.errands < self._context.config.mailbox_commands:
            self._results.releases.tell(device, record.ids())

    def _adopt(self, device: Device, event: Ending, frames: tuple[Frame, ...]) -> None:
        """How something ended that this ledger has no command of: it was another's, or its retention is over."""
        context = self._context
        config = context.config
        outputs = 1
        if isinstance(event, ResultReady):
            outputs = len(frames) if event.inline else len(event.infos)
        if not isinstance(event, ResultReady) or not event.inline:
            frames = ()
        session = self._sessions.by_incarnation.get(incarnation_of(event.id))
        if session is not None and session.outstanding >= config.session_commands:
            session = None  # nobody can be told as much as a device may invent
        record = Record(
            seq=context.next_seq(),
            id=event.id,
            outputs=outputs,
            device=device,
            device_name=device.name,
            session=session,
            n=0,
            digest=event.digest,
            command=None,
            frames=(),
            size=0,
            submitted=context.now,
            deadline=context.now + config.default_deadline_ms / 1000,
        )
        if outputs > config.outputs or counter_of(event.id) + outputs > COUNTER_END:
            self._refuse(device, event, record)
            return
        if self._results.forgotten(event.id):
            # Not so an id that only this ledger does not know: its session may hold a pointer to the value.
            self._drop(device, event, ResultStatus.FORGOTTEN)
            self._let_drop(device, event, record)
            return
        by_id = self._results.by_id
        taken = next((other for each in record.ids() if (other := by_id.get(each)) is not None), None)
        if taken is not None:
            self._refuse(device, event, taken)
            return
        self._results.write(record, incarnation_of(event.id))
        by_id.update(dict.fromkeys(record.ids(), record))
        record.status = TRANSITIONS[ResultStatus.UNKNOWN][ENDINGS[type(event)]]
        self._results.conclude(record, event, frames, by_device=True)
        context.log(INFO, "result_adopted", result=event.id.hex(), device=device.name)

    def running(self, device: Device, ids: Iterable[bytes]) -> None:
        """A device says that these run."""
        for each in ids:
            record = self._results.by_id.get(each)
            if record is not None and record.device is device:
                record.status = TRANSITIONS[record.status].get(Input.START, record.status)

    def store_lost(self, device: Device) -> None:
        """The values that the device kept are gone."""
        lost: list[bytes] = []
        for record in device.kept.values():
            after = TRANSITIONS[record.status].get(Input.STORE_LOST)
            if after is not None:
                record.status = after
                lost.append(record.id)
        device.kept.clear()
        if lost:
            self._context.writes.append(MarkLost(ids=lost))
            self._context.log(WARNING, "results_lost", device=device.name, results=len(lost))
        self._values.reconsider(device)


def _wrong_count(record: Record, event: ResultReady, announced: int) -> ResultFailed:
    """How a command ends whose device announces another number of values than it was to make."""
    what = "values" if event.inline else "descriptions"
    failure = Failure(
        code="ExecutionFailed",
        message=f"expected {record.outputs} results of device {record.device_name}, got {announced} {what}",
        details={"device": record.device_name},
    )
    return ResultFailed(id=event.id, digest=event.digest, failure=failure)
