"""The result table: every command for every device, from its submission until it is forgotten.

The broker alone decides how a result ends, here, by the table of `broker.transitions`; the first end wins.
"""

from __future__ import annotations

from collections import deque

from broker.awaited import Awaited
from broker.context import DEBUG, WARNING, Context
from broker.dead_letters import DeadLetters
from broker.deadlines import Deadlines
from broker.devices import Device
from broker.held_ends import HeldEnds
from broker.ledger.interface import Ending, RecordCommand, RecordTerminal, StoredResult
from broker.plans import Plans
from broker.protocol.effects import Log
from broker.protocol.failures import argument_failed
from broker.protocol.ids import counter_of, incarnation_of
from broker.protocol.messages import (
    Cancelled,
    Expired,
    Failure,
    Frame,
    Invoke,
    Put,
    ResultFailed,
    ResultStatus,
    StatusEntry,
)
from broker.records import Record, cancel_of, failure_of_ending
from broker.releases import Releases
from broker.retention import Retention
from broker.sessions import Session, Sessions
from broker.transitions import ENDINGS, TRANSITIONS
from broker.values import Values

__all__ = ["Results"]

_DONE = ResultStatus.DONE
_LISTED = 1000
"""How many invocations of a session are told of in one message."""


class Results:
    """See the module."""

    def __init__(self, context: Context, plans: Plans, sessions: Sessions, values: Values) -> None:
        self._context = context
        self._plans = plans
        self._sessions = sessions
        self._values = values
        self.by_id: dict[bytes, Record] = {}
        self.retention = Retention(context, self.by_id)
        self.releases = Releases(context, self.by_id, self.retention)
        self.held = HeldEnds(context, self.end)
        self.awaited = Awaited(context, self._no_device)
        self.dead_letters = DeadLetters(self.by_id)
        self._deadlines = Deadlines(context, self._expire)
        self.unended = 0
        self.bytes = 0
        """Payload of all that has not ended."""
        self._failing: deque[tuple[Record, ResultFailed]] = deque()
        self._ending = False

    # ------------------------------------------------------------------------------------------ coming

    def add(
        self,
        command: Invoke | Put,
        frames: tuple[Frame, ...],
        *,
        session: Session,
        n: int,
        device: Device | None,
        device_name: str,
        digest: bytes,
        size: int,
        failure: Failure | None = None,
    ) -> None:
        """Take in one command for one device.

        It fails at once with ``failure``, without a device (unless that may yet appear), or when one of its arguments
        has no value.
        """
        context = self._context
        config = context.config
        now = context.now
        time_left = command.deadline_ms or config.default_deadline_ms
        if time_left > config.max_deadline_ms:
            time_left = config.max_deadline_ms
        context.seq += 1
        record = Record(
            seq=context.seq,
            id=command.id,
            outputs=command.outputs if isinstance(command, Invoke) else 1,
            device=device,
            device_name=device_name,
            session=session,
            n=n,
            digest=digest,
            command=command,
            frames=frames,
            size=size,
            submitted=now,
            deadline=now + time_left / 1000,
        )
        self.write(record, session.incarnation)
        self._enter(record)
        if device is not None:
            device.mailbox.put(record)
        if failure is None and record.needs:
            failure = self._hopeless(record)
        if failure is not None:
            self.end(record, ResultFailed(id=record.id, digest=digest, failure=failure))
        elif device is None:
            self._await_device(record)

    def _await_device(self, record: Record) -> None:
        if self._context.unsure:
            self.awaited.put(record)
        else:
            self._no_device(record)

    def _no_device(self, record: Record) -> None:
        name = record.device_name
        failure = Failure(code="UnknownDevice", message=f"no device {name!r} is known here", details={"device": name})
        self.end(record, ResultFailed(id=record.id, digest=record.digest, failure=failure))

    def take_up(self, record: Record, command: Invoke | Put, session: Session) -> None:
        """A command comes again that is known, perhaps from its device's announcement alone: if it has ended, tell."""
        if record.unended:
            return
        if record.command is None:
            record.command = command
            record.outputs = command.outputs if isinstance(command, Invoke) else 1
            self.by_id.update(dict.fromkeys(record.ids(), record))
        record.session = session
        if not record.untold:  # else it is told soon
            self._sessions.notify_again(record)

    def write(self, record: Record, incarnation: bytes) -> None:
        """Write down a command that has come."""
        self._context.writes.append(
            RecordCommand(
                seq=record.seq,
                id=record.id,
                outputs=record.outputs,
                device=record.device_name,
                incarnation=incarnation,
                n=record.n,
                digest=record.digest,
                command=record.command,
                frames=record.frames,
                deadline_ms=self._context.wall_ms(record.deadline),
            )
        )

    def _enter(self, record: Record) -> None:
        """Put an unended record into the tables."""
        if record.outputs <= 1:
            self.by_id[record.id] = record
        else:
            self.by_id.update(dict.fromkeys(record.ids(), record))
        self.unended += 1
        self.bytes += record.size
        self._deadlines.add(record)
        session = record.session
        if session is not None:
            session.unended += 1
            self.releases.entered(record, session)
        command = record.command
        if isinstance(command, Invoke):
            self._plans.use(command.plan)
        elif command is not None and command.blob is not None:
            self._plans.pin(record.id, command.blob)

    def _hopeless(self, record: Record) -> Failure | None:
        """Why a new command that needs results can only fail."""
        assert isinstance(record.command, Invoke)
        for argument in record.command.args:
            needed = self.by_id.get(argument) if type(argument) is bytes else None
            if needed is None or needed is record:
                continue
            assert type(argument) is bytes
            failure = needed.failure_of(argument)
            if failure is not None:
                return argument_failed(argument, failure)
        return None

    # ------------------------------------------------------------------------------------------ ending

    def end(self, record: Record, event: Ending, value: tuple[Frame, ...] = (), *, by_device: bool = False) -> bool:
        """End a record, unless it has ended: whether it was this that ended it.

        Commands that wait in a mailbox for a value that will never be end with it, without waiting for their device.
        """
        after = TRANSITIONS[record.status].get(ENDINGS[type(event)])
        if after is None:
            return False
        self._end(record, after, event, value, by_device=by_device)
        if self._failing and not self._ending:
            self._ending = True  # chains are long: no recursion
            while self._failing:
                dependent, failed = self._failing.popleft()
                if dependent.status is ResultStatus.QUEUED and not dependent.relayed:
                    self._end(dependent, ResultStatus.FAILED, failed, (), by_device=False)
            self._ending = False
        return True

    def _end(
        self, record: Record, after: ResultStatus, event: Ending, value: tuple[Frame, ...], *, by_device: bool
    ) -> None:
        record.status = after
        record.frames = ()
        self.unended -= 1
        self.bytes -= record.size
        self._deadlines.ended()
        command = record.command
        if isinstance(command, Invoke):
            self._plans.disuse(command.plan)
        elif command is not None and command.blob is not None:
            self._plans.unpin(record.id, command.blob)
        device = record.device
        if device is not None and device.mailbox.ended(record, by_device=by_device) and not by_device:
            device.mailbox.run(cancel_of(record.id, event), record.digest, self._context.next_seq())
        session = record.session
        if session is not None:
            session.unended -= 1
        self.conclude(record, event, value, by_device=by_device)
        self.releases.ended(record)
        if session is not None and session.closed:
            self._sessions.ended(session)

    def conclude(self, record: Record, event: Ending, value: tuple[Frame, ...], *, by_device: bool) -> None:
        """Write down how a record has ended, and tell everybody: of a value that its device has announced at once,
        since the device announces it again if this broker dies; of all else when it is in the ledger.
        """
        context = self._context
        after = record.status
        done = after is _DONE
        record.event = event
        if value:
            record.value = value
            self.retention.keep_value(record)
        context.writes.append(RecordTerminal(id=record.id, status=after, event=event, frames=value))
        if context.level <= DEBUG:
            fields = {"result": record.id.hex(), "device": record.device_name, "status": after.value}
            context.out.append(Log(level=DEBUG, event="result_recorded", fields=fields))
        device = record.device
        if done and device is not None and not record.inline:
            device.kept[record.id] = record
        if by_device and done:
            self._tell(record)
        else:
            record.untold = True
            context.after_commit(self._tell_recorded, record)
            self.dead_letters.ended(record)
        if record.dependents is not None:
            dependents, record.dependents = record.dependents, None
            if not done:
                self._fail(dependents, record, event)

    def _fail(self, dependents: list[Record], record: Record, event: Ending) -> None:
        """These need a value of ``record``, which has ended without one: see `end`."""
        failure = failure_of_ending(event)
        assert failure is not None
        for dependent in dependents:
            named = argument_failed(self._argument(dependent, record), failure)
            self._failing.append((dependent, ResultFailed(id=dependent.id, digest=dependent.digest, failure=named)))

    def _tell_recorded(self, record: Record) -> None:
        record.untold = False
        self._tell(record)

    def _tell(self, record: Record) -> None:
        self._sessions.notify(record)
        if record.waiters is not None:
            waiters, record.waiters = record.waiters, None
            for (_, wanted), waiter in waiters.items():
                self._values.supply(waiter, [wanted])

    def _argument(self, dependent: Record, record: Record) -> bytes:
        """Which of the ids of ``record`` the other one names."""
        arguments = dependent.command.args if isinstance(dependent.command, Invoke) else []
        named = (each for each in arguments if type(each) is bytes and self.by_id.get(each) is record)
        return next(named, record.id)

    def _expire(self, record: Record) -> None:
        self._decide(record, Expired(id=record.id, digest=record.digest))

    def _decide(self, record: Record, event: Ending) -> None:
        """End a record by nobody's word but the broker's own."""
        if self.held.must_wait(record):
            self.held.hold(record, event)
        else:
            self.end(record, event)

    def cancel(self, wanted: bytes) -> None:
        """End the invocation that makes the id ``wanted`` as cancelled, unless it has ended."""
        record = self.by_id.get(wanted)
        if record is not None and record.unended:
            self._decide(record, Cancelled(id=record.id, digest=record.digest))

    def worn_out(self, record: Record) -> None:
        """A command was delivered as often as may be, and never ended, unless its device says so in a moment."""
        message = f"delivered {record.deliveries} times, to as many starts of the agent, without an end"
        failure = Failure(
            code="WorkerDied",
            message=message,
            details={"device": record.device_name, "deliveries": record.deliveries},
        )
        self._context.log(
            WARNING,
            "command_worn_out",
            result=record.id.hex(),
            device=record.device_name,
            deliveries=record.deliveries,
        )
        event = ResultFailed(id=record.id, digest=record.digest, failure=failure)
        self.held.hold_for(record, event, self._context.config.patience)

    # ------------------------------------------------------------------------------------------ asking

    def forgotten(self, wanted: bytes) -> bool:
        """Whether there was a record of this id, of a session that is still known, whose time is over."""
        session = self._sessions.by_incarnation.get(incarnation_of(wanted))
        return session is not None and counter_of(wanted) in session.forgotten

    def entry(self, wanted: bytes) -> StatusEntry:
        """What is known of an id."""
        record = self.by_id.get(wanted)
        if record is not None:
            return record.entry(wanted, self._context.wall_ms(self.retention.over_at(record)))
        past = self.forgotten(wanted) or 0 < counter_of(wanted) <= self._sessions.past.get(incarnation_of(wanted), 0)
        return StatusEntry(id=wanted, status=ResultStatus.FORGOTTEN if past else ResultStatus.UNKNOWN)

    def of_session(self, session: Session, after: bytes | None) -> list[StatusEntry]:
        """The session's invocations that were not released: some of them, in the order in which they came, behind the
        one whose first id is ``after``; none, when there are no more.

        Looks at every record: for a coordinator that has just started, and not for every command.
        """
        entries: list[StatusEntry] = []
        found = after is None
        for each, record in self.by_id.items():
            if each != record.id:
                continue  # another output of the same
            if not found:
                found = each == after
            elif record.session is session and record.outputs and (record.wanted | record.released) != record.all_bits:
                entries.append(self.entry(each))
                if len(entries) == _LISTED:
                    break
        return entries

    # ------------------------------------------------------------------------------------------ after a restart

    def restore(self, stored: StoredResult, session: Session | None, device: Device | None) -> Record:
        """Take up a record from the ledger; one that has ended and was not seen waits for `Sessions.restored_ended`."""
        context = self._context
        command = stored.command
        record = Record(
            seq=command.seq,
            id=command.id,
            outputs=command.outputs,
            device=device,
            device_name=command.device,
            session=session,
            n=command.n,
            digest=command.digest,
            command=command.command,
            frames=command.frames,
            size=sum(map(len, command.frames)),
            submitted=-context.wall_offset,  # long ago: the device is told the time left
            deadline=context.from_wall_ms(command.deadline_ms),
        )
        record.deliveries = stored.deliveries
        record.released = stored.released
        record.wanted = record.passed = stored.released | stored.releasing
        if stored.terminal is None:
            self._enter(record)
            if device is None:
                self._await_device(record)
            else:
                if record.deliveries:
                    record.delivered_to = device.boot  # the same start of the agent is not counted again
                device.mailbox.put(record)
            return record
        self.by_id.update(dict.fromkeys(record.ids(), record))
        record.status = stored.status
        record.event = stored.terminal.event
        record.frames = ()
        if stored.status is not ResultStatus.RELEASED or not stored.seen:
            record.value = stored.terminal.frames
            self.retention.keep_value(record)
        if record.status is ResultStatus.DONE and device is not None and not record.inline:
            device.kept[record.id] = record
        self.dead_letters.ended(record)
        if stored.seen:
            record.seen = True
            self.retention.settled([record])
        return record
