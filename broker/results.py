"""The result table: every command for every device, from its submission until it is forgotten.

The broker alone decides how a result ends, here, by the table of `broker.transitions`; the first end wins.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from broker.context import DEBUG, INFO, WARNING, Context
from broker.devices import Device
from broker.ledger.interface import (
    DropRelease,
    DropResults,
    Ending,
    MarkLost,
    MarkReleased,
    RecordCommand,
    RecordRelease,
    RecordTerminal,
    StoredResult,
)
from broker.plans import Plans
from broker.protocol.effects import Log
from broker.protocol.framing import command_digest
from broker.protocol.ids import counter_of, incarnation_of
from broker.protocol.messages import (
    Cancel,
    Cancelled,
    Expired,
    Failure,
    Frame,
    Invoke,
    Put,
    Release,
    ResultFailed,
    ResultReady,
    ResultStatus,
    StatusEntry,
)
from broker.records import Record, failure_of_ending
from broker.sessions import Gate, PendingRelease, Session, Sessions
from broker.transitions import TRANSITIONS, Input
from broker.values import Values

__all__ = ["Results"]

_INPUTS: dict[type, Input] = {
    ResultReady: Input.VALUE,
    ResultFailed: Input.FAILURE,
    Cancelled: Input.CANCEL,
    Expired: Input.DEADLINE,
}
_FAR_DEAD = 4096


class Results:
    """See the module."""

    def __init__(self, context: Context, plans: Plans, sessions: Sessions, values: Values) -> None:
        self._context = context
        self._plans = plans
        self._sessions = sessions
        self._values = values
        self.by_id: dict[bytes, Record] = {}
        self.unended = 0
        self.bytes = 0
        """Payload of all that has not ended."""
        self.value_bytes = 0
        """Inline values of all that has."""
        self._seq = 0
        self._deadlines: list[tuple[float, int, Record]] = []
        self._dead = 0  # entries of _deadlines whose record has ended
        self._deadline_timer: float | None = None
        self._settled: deque[Record] = deque()  # ended, and no notification is due: they may be forgotten
        self._forget_timer_set = False
        self._failing: deque[tuple[Record, ResultFailed]] = deque()
        self._ending = False

    def next_seq(self) -> int:
        """The next number of a command, release or errand."""
        self._seq += 1
        return self._seq

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
    ) -> Record:
        """Take in one command for one device. It fails at once with ``failure``, without a device, or if an argument has failed."""
        context = self._context
        config = context.config
        now = context.now
        invoke = type(command) is Invoke
        outputs: int = command.outputs if invoke else 1  # type: ignore[union-attr]  # told by its type
        deadline = now + min(command.deadline_ms or config.default_deadline_ms, config.max_deadline_ms) / 1000
        record = Record(
            seq=self.next_seq(),
            id=command.id,
            outputs=outputs,
            device=device,
            device_name=device_name,
            session=session,
            n=n,
            digest=digest,
            command=command,
            frames=frames,
            size=size,
            submitted=now,
            deadline=deadline,
        )
        self._write_command(record, session.incarnation)
        self._enter(record)
        if device is not None:
            device.mailbox.put(record)
        failure = failure or self._hopeless(record)
        if failure is not None:
            self.end(record, ResultFailed(id=record.id, digest=digest, failure=failure))
        return record

    def _write_command(self, record: Record, incarnation: bytes) -> None:
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
        by_id = self.by_id
        if record.outputs <= 1:
            by_id[record.id] = record
        else:
            for id in record.ids():
                by_id[id] = record
        self.unended += 1
        self.bytes += record.size
        heapq.heappush(self._deadlines, (record.deadline, record.seq, record))
        self._arm_deadlines()
        session = record.session
        if session is not None:
            session.unended += 1
            session.bytes += record.size
            lane = session.gates.get(record.device_name)
            if lane is None:
                lane = session.gates[record.device_name] = deque()
                lane.append(Gate(lane))
            record.gate = lane[-1]
            record.gate.unended += 1
        command = record.command
        if type(command) is Invoke:
            self._plans.use(command.plan)
            if command.args:
                self._tie(record, command)
        elif type(command) is Put and command.blob is not None:
            self._plans.pin(record.id, command.blob)

    def _tie(self, record: Record, command: Invoke) -> None:
        """Let the records that the command names know that it needs them."""
        needs: list[Record] = []
        for argument in command.args:
            if type(argument) is bytes:
                needed = self.by_id.get(argument)
                if needed is None or needed is record:
                    continue
                needs.append(needed)
                needed.uses += 1
                if needed.unended:
                    if needed.dependents is None:
                        needed.dependents = []
                    needed.dependents.append(record)
        record.needs = tuple(needs)

    def _hopeless(self, record: Record) -> Failure | None:
        """Why a new command can only fail."""
        if record.device is None:
            name = record.device_name
            return Failure(code="UnknownDevice", message=f"no device {name!r} is known here", details={"device": name})
        for needed in record.needs:
            assert type(record.command) is Invoke
            for argument in record.command.args:
                if type(argument) is bytes and self.by_id.get(argument) is needed:
                    failure = needed.failure_of(argument)
                    if failure is None and needed.wanted & needed.bit(argument):
                        failure = Failure(code="ResultReleased", message=f"the result {argument.hex()} was released")
                    if failure is not None:
                        return argument_failed(argument, failure)
        return None

    # ------------------------------------------------------------------------------------------ ending

    def end(self, record: Record, event: Ending, value: tuple[Frame, ...] = (), *, by_device: bool = False) -> bool:
        """End a record, unless it has ended: whether it was this that ended it.

        Commands that wait in a mailbox for a value that will never be end with it, without waiting for their device.
        """
        after = TRANSITIONS[record.status].get(_INPUTS[type(event)])
        if after is None:
            return False
        self._leave(record, after, by_device=by_device)
        self._conclude(record, event, value)
        if self._failing and not self._ending:
            self._ending = True
            while self._failing:
                dependent, failed = self._failing.popleft()
                if dependent.status is ResultStatus.QUEUED and not dependent.relayed:
                    self._leave(dependent, TRANSITIONS[dependent.status][Input.FAILURE], by_device=False)
                    self._conclude(dependent, failed, ())
            self._ending = False
        return True

    def _conclude(self, record: Record, event: Ending, value: tuple[Frame, ...]) -> None:
        """Write down how a record has ended, and tell everybody."""
        context = self._context
        after = record.status
        record.event = event
        record.value = value
        if value:
            self.value_bytes += sum(map(len, value))
        context.writes.append(RecordTerminal(id=record.id, status=after, event=event, frames=value))
        if context.level <= DEBUG:
            fields = {"result": record.id.hex(), "device": record.device_name, "status": after.value}
            context.out.append(Log(level=DEBUG, event="result_recorded", fields=fields))
        device = record.device
        if after is ResultStatus.DONE and device is not None and not record.inline:
            device.kept[record.id] = record
        self._sessions.notify(record)
        if record.waiters is not None:
            waiters, record.waiters = record.waiters, None
            for (_, id), waiter in waiters.items():
                self._values.supply(waiter, [id])
        dependents, record.dependents = record.dependents, None
        if dependents is not None and after is not ResultStatus.DONE:
            failure = failure_of_ending(event)
            assert failure is not None
            for dependent in dependents:
                named = argument_failed(self._argument(dependent, record), failure)
                self._failing.append((dependent, ResultFailed(id=dependent.id, digest=dependent.digest, failure=named)))
        if record.passed:
            self._try_release([record])

    def _argument(self, dependent: Record, record: Record) -> bytes:
        """Which of the ids of ``record`` the other one names."""
        arguments = dependent.command.args if type(dependent.command) is Invoke else []
        return next((id for id in arguments if type(id) is bytes and self.by_id.get(id) is record), record.id)

    def _leave(self, record: Record, after: ResultStatus, *, by_device: bool) -> None:
        """Take a record that ends out of the tables of unended ones."""
        record.status = after
        record.frames = ()
        self.unended -= 1
        self.bytes -= record.size
        self._dead += 1
        if self._dead > _FAR_DEAD and 2 * self._dead > len(self._deadlines):
            self._deadlines = [entry for entry in self._deadlines if entry[2].unended]
            heapq.heapify(self._deadlines)
            self._dead = 0
        command = record.command
        if type(command) is Invoke:
            self._plans.disuse(command.plan)
        elif type(command) is Put and command.blob is not None:
            self._plans.unpin(record.id, command.blob)
        device = record.device
        if device is not None and device.mailbox.ended(record) and not by_device:
            device.mailbox.run(Cancel(id=record.id), record.digest, self.next_seq())
        for needed in record.needs:
            needed.uses -= 1
            if not needed.uses and needed.passed:
                self._try_release([needed])
        record.needs = ()
        session = record.session
        if session is not None:
            session.unended -= 1
            session.bytes -= record.size
            gate, record.gate = record.gate, None
            if gate is not None:
                gate.unended -= 1
                if not gate.unended:
                    self._open_gates(session, record.device_name, gate.lane)
            self._sessions.ended(session)

    # ------------------------------------------------------------------------------------------ deadlines

    def _arm_deadlines(self) -> None:
        first = self._deadlines[0][0]
        if self._deadline_timer is None or first < self._deadline_timer:
            self._deadline_timer = first
            self._context.at(first, self._expire)

    def _expire(self, now: float) -> None:
        if self._deadline_timer is not None and now >= self._deadline_timer:
            self._deadline_timer = None
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or not deadlines[0][2].unended):
            _, _, record = heapq.heappop(deadlines)
            if not record.unended:
                self._dead -= 1
            elif record.deadline > now:  # it was put off
                heapq.heappush(deadlines, (record.deadline, record.seq, record))
            else:
                self._dead -= 1  # `_leave` counts an entry that is gone already
                self.end(record, Expired(id=record.id, digest=record.digest))
            deadlines = self._deadlines  # `end` may have made a new list
        if deadlines:
            self._arm_deadlines()

    # ------------------------------------------------------------------------------------------ release and cancel

    def release(self, session: Session, ids: Iterable[bytes], *, devices: Iterable[Device], seq: int) -> bool:
        """Release ids, once all commands that the session sent before have ended on their devices, and all that name them anywhere.

        Those that no record names go to ``devices`` as they are: they may be results of an earlier ledger. Whether something is left to
        wait for.
        """
        by_device: dict[str, list[bytes]] = {}
        unknown: list[bytes] = []
        for id in ids:
            record = self.by_id.get(id)
            if record is None:
                unknown.append(id)
            elif record.unended or record.status is ResultStatus.DONE:
                record.wanted |= record.bit(id)
                by_device.setdefault(record.device_name, []).append(id)
        if unknown:
            command = Release(ids=unknown)
            for device in devices:
                device.mailbox.run(command, command_digest(command), self.next_seq())
        pending = PendingRelease(seq)
        for name, group in by_device.items():
            lane = session.gates.get(name)
            if lane is None or (len(lane) == 1 and not lane[0].unended):
                self._pass(group)
                continue
            lane[-1].ids = group
            lane[-1].release = pending
            lane.append(Gate(lane))
            pending.gates += 1
        return pending.gates > 0

    def _open_gates(self, session: Session, device_name: str, lane: deque[Gate]) -> None:
        while lane and not lane[0].unended:
            gate = lane[0]
            pending = gate.release
            if pending is None:
                if session.gates.get(device_name) is lane:
                    del session.gates[device_name]
                return
            lane.popleft()
            self._pass(gate.ids)
            pending.gates -= 1
            if not pending.gates:
                self._context.writes.append(DropRelease(seq=pending.seq))

    def _pass(self, ids: list[bytes]) -> None:
        records: dict[Record, None] = {}
        for id in ids:
            record = self.by_id.get(id)
            if record is not None:
                record.passed |= record.bit(id)
                records[record] = None
        self._try_release(records)

    def _try_release(self, records: Iterable[Record]) -> None:
        """Release what nothing waits for any more, with one errand a device."""
        errands: dict[Device, list[bytes]] = {}
        for record in records:
            due = record.passed & ~record.released
            if record.uses or record.status is not ResultStatus.DONE or not due:
                continue
            record.released |= due
            whole = record.released == record.all_bits
            self._context.writes.append(MarkReleased(id=record.id, outputs=due, whole=whole))
            if record.device is not None:
                errands.setdefault(record.device, []).extend(id for id in record.ids() if due & record.bit(id))
            if whole:
                record.status = TRANSITIONS[record.status][Input.RELEASE]
                if record.device is not None:
                    record.device.kept.pop(record.id, None)
                if record.seen:
                    self._drop_value(record)
        for device, ids in errands.items():
            self.tell_to_release(device, ids)

    def tell_to_release(self, device: Device, ids: list[bytes]) -> None:
        """The device may drop these: by an errand."""
        command = Release(ids=ids)
        device.mailbox.run(command, command_digest(command), self.next_seq())

    def _drop_value(self, record: Record) -> None:
        self.value_bytes -= sum(map(len, record.value))
        record.value = ()

    def cancel(self, id: bytes) -> None:
        """End the invocation that makes ``id`` as cancelled, unless it has ended."""
        record = self.by_id.get(id)
        if record is not None:
            self.end(record, Cancelled(id=record.id, digest=record.digest))

    # ------------------------------------------------------------------------------------------ devices

    def announced(self, device: Device, event: Ending, frames: tuple[Frame, ...]) -> None:
        """A device says how a command has ended."""
        context = self._context
        record = self.by_id.get(event.id)
        if record is None:
            self._adopt(device, event, frames)
            return
        if record.device is not device or record.id != event.id or record.digest != event.digest:
            context.log(WARNING, "announcement_refused", result=event.id.hex(), device=device.name, expected=record.device_name)
            return
        if type(event) is ResultReady:
            wrong = wrong_count(record.outputs, event, frames)
            if wrong:
                failure = Failure(code="ExecutionFailed", message=wrong, details={"device": device.name})
                event, frames = ResultFailed(id=event.id, digest=event.digest, failure=failure), ()
            elif not event.inline:
                frames = ()
        else:
            frames = ()
        if self.end(record, event, frames, by_device=True):
            return
        if record.event != event:
            status = record.status.value
            context.log(INFO, "result_dropped", result=event.id.hex(), device=device.name, status=status)
        if type(event) is ResultReady and record.status is not ResultStatus.DONE:
            # The device has made what nobody may have any more.
            self.tell_to_release(device, record.ids())

    def _adopt(self, device: Device, event: Ending, frames: tuple[Frame, ...]) -> None:
        """A device says how something ended that this ledger never knew: it was another's, or its retention is over."""
        context = self._context
        if self.forgotten(event.id):
            context.log(INFO, "result_dropped", result=event.id.hex(), device=device.name, status=ResultStatus.FORGOTTEN.value)
            if type(event) is ResultReady:
                self.tell_to_release(device, [event.id])
            return
        outputs = 1
        if type(event) is ResultReady:
            outputs = len(frames) if event.inline else len(event.infos)
        else:
            frames = ()
        if outputs > context.config.outputs:
            return
        config = context.config
        session = self._sessions.by_incarnation.get(incarnation_of(event.id))
        record = Record(
            seq=self.next_seq(),
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
        if any(id in self.by_id for id in record.ids()):
            context.log(WARNING, "announcement_refused", result=event.id.hex(), device=device.name, expected="")
            return
        self._write_command(record, incarnation_of(event.id))
        for id in record.ids():
            self.by_id[id] = record
        record.status = TRANSITIONS[ResultStatus.UNKNOWN][_INPUTS[type(event)]]
        self._conclude(record, event, frames)
        context.log(INFO, "result_adopted", result=event.id.hex(), device=device.name)

    def started(self, device: Device, ids: Iterable[bytes]) -> None:
        """A device says that these run."""
        for id in ids:
            record = self.by_id.get(id)
            if record is not None and record.device is device:
                after = TRANSITIONS[record.status].get(Input.START)
                if after is not None:
                    record.status = after

    def worn_out(self, record: Record) -> None:
        """A command was delivered as often as may be, and never ended."""
        message = f"delivered {record.deliveries} times, to as many starts of the agent, without an end"
        details: dict[str, str | int | float | bool | None] = {"device": record.device_name, "deliveries": record.deliveries}
        failure = Failure(code="WorkerDied", message=message, details=details)
        self._context.log(WARNING, "command_worn_out", result=record.id.hex(), device=record.device_name, deliveries=record.deliveries)
        self.end(record, ResultFailed(id=record.id, digest=record.digest, failure=failure))

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
        self._values.reconsider(device)

    # ------------------------------------------------------------------------------------------ forgetting

    def settled(self, record: Record) -> None:
        """No notification of this record is due any more: it may be forgotten when its time has come."""
        if record.status is ResultStatus.RELEASED:
            self._drop_value(record)
        self._settled.append(record)
        config = self._context.config
        while len(self._settled) > config.ended_results or (self._settled and self.value_bytes > config.value_bytes):
            self._forget_one()
        if self._settled and not self._forget_timer_set:
            self._forget_timer_set = True
            self._context.at(self._forget_at(self._settled[0]), self._forget)

    def _forget_at(self, record: Record) -> float:
        return record.deadline + self._context.config.retention_ms / 1000

    def _forget_one(self) -> None:
        record = self._settled.popleft()
        for id in record.ids():
            del self.by_id[id]
        self._drop_value(record)
        if record.device is not None:
            record.device.kept.pop(record.id, None)
        self._context.writes.append(DropResults(ids=[record.id]))

    def _forget(self, now: float) -> None:
        """In the order in which they were seen: one with a long deadline may keep others a little longer."""
        self._forget_timer_set = False
        while self._settled and self._forget_at(self._settled[0]) <= now:
            self._forget_one()
        if self._settled:
            self._forget_timer_set = True
            self._context.at(self._forget_at(self._settled[0]), self._forget)

    def forgotten(self, id: bytes) -> bool:
        """Whether a session has made this id, and no record is left of it."""
        incarnation = incarnation_of(id)
        session = self._sessions.by_incarnation.get(incarnation)
        highest = self._sessions.past.get(incarnation, 0) if session is None else session.highest
        return id not in self.by_id and counter_of(id) <= highest

    # ------------------------------------------------------------------------------------------ asking

    def entry(self, id: bytes) -> StatusEntry:
        """What is known of an id."""
        record = self.by_id.get(id)
        if record is not None:
            return record.entry(id)
        return StatusEntry(id=id, status=ResultStatus.FORGOTTEN if self.forgotten(id) else ResultStatus.UNKNOWN)

    # ------------------------------------------------------------------------------------------ after a restart

    def count_from(self, seq: int) -> None:
        """Numbers up to ``seq`` are taken."""
        self._seq = max(self._seq, seq)

    def restore_release(self, write: RecordRelease, session: Session | None) -> None:
        """Take up a release that waits for commands that are taken up already."""
        self.count_from(write.seq)
        if session is None or not self.release(session, write.ids, devices=(), seq=write.seq):
            self._context.writes.append(DropRelease(seq=write.seq))

    def restore(self, stored: StoredResult, session: Session | None, device: Device | None) -> Record:
        """Take up a record from the ledger; one that has ended and was not seen waits for `Sessions.notify`."""
        context = self._context
        command = stored.command
        self.count_from(command.seq)
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
            submitted=0.0 - context.wall_offset,  # long ago: the device is told the time left
            deadline=context.from_wall_ms(command.deadline_ms),
        )
        record.deliveries = stored.deliveries
        record.released = record.wanted = record.passed = stored.released
        if stored.terminal is None:
            # Its device may have ended it while there was no broker to tell.
            record.deadline = max(record.deadline, context.now + context.config.restart_grace)
            self._enter(record)
            if device is not None:
                device.mailbox.put(record)
            return record
        for id in record.ids():
            self.by_id[id] = record
        record.status = stored.status
        record.event = stored.terminal.event
        record.value = stored.terminal.frames if stored.status is not ResultStatus.RELEASED or not stored.seen else ()
        record.frames = ()
        self.value_bytes += sum(map(len, record.value))
        if record.status is ResultStatus.DONE and device is not None and not record.inline:
            device.kept[record.id] = record
        if stored.seen:
            record.seen = True
            self.settled(record)
        return record


def argument_failed(argument: bytes, failure: Failure) -> Failure:
    """The failure of a command whose argument ended without a value."""
    details: dict[str, str | int | float | bool | None] = {"argument": argument.hex()}
    details |= {"code": failure.code, "message": failure.message}
    return Failure(code="ArgumentFailed", message=f"the argument {argument.hex()} has no value: {failure.message}", details=details)


def wrong_count(outputs: int, event: ResultReady, frames: tuple[Frame, ...]) -> str:
    """What is wrong with the number of values that a device announces; nothing, usually."""
    announced = len(frames) if event.inline else len(event.infos)
    if announced == outputs:
        return ""
    return f"expected {outputs} results, got {announced} {'values' if event.inline else 'descriptions'}"
