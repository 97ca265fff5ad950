"""Releasing results: `Release` acts after all that its session sent before.

An id is released once all commands that the session had sent to the same device have ended, and all commands that
name the id have, on whatever device. A sleeping device thus holds up nothing but what it needs itself.

Commands of one session on one device stand in a *lane*, divided by *gates*: a release closes the lane's last gate,
and acts when all commands before it have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from broker.context import Context
from broker.devices import Device
from broker.ledger.interface import DropRelease, MarkReleased, MarkReleasing, RecordRelease
from broker.protocol.batches import batches
from broker.protocol.framing import command_digest
from broker.protocol.messages import Invoke, Release, ResultStatus
from broker.records import Record
from broker.retention import Retention
from broker.sessions import Session
from broker.transitions import TRANSITIONS, Input

__all__ = ["Gate", "Releases"]


class _Pending:
    """A release that waits at ``gates`` gates."""

    __slots__ = ("gates", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.gates = 0


class Gate:
    """Commands of one session on one device that came between two releases."""

    __slots__ = ("ids", "lane", "release", "unended")

    def __init__(self, lane: deque[Gate]) -> None:
        self.lane = lane
        self.unended = 0
        self.ids: list[bytes] = []
        self.release: _Pending | None = None  # None: no release has closed it yet


class Releases:
    """See the module. ``by_id`` is the table of results."""

    def __init__(self, context: Context, by_id: dict[bytes, Record], retention: Retention) -> None:
        self._context = context
        self._by_id = by_id
        self._retention = retention

    # ------------------------------------------------------------------------------------------ commands come and go

    def entered(self, record: Record, session: Session) -> None:
        """A command has come that has not ended."""
        lane = session.lanes.get(record.device_name)
        if lane is None:
            lane = session.lanes[record.device_name] = deque()
            lane.append(Gate(lane))
        gate = record.gate = lane[-1]
        gate.unended += 1
        command = record.command
        if type(command) is Invoke and command.args:
            self._tie(record, command)

    def _tie(self, record: Record, command: Invoke) -> None:
        """Let the records that the command names know that it needs them."""
        by_id = self._by_id
        needs: list[Record] = []
        for argument in command.args:
            if type(argument) is bytes:
                needed = by_id.get(argument)
                if needed is None or needed is record:
                    continue  # what is tagged on the device, mostly
                needs.append(needed)
                needed.uses += 1
                if needed.unended:
                    if needed.dependents is None:
                        needed.dependents = []
                    needed.dependents.append(record)
        if needs:
            record.needs = tuple(needs)

    def ended(self, record: Record) -> None:
        """A command has ended, and everybody has been told: release what waited for it."""
        if record.needs:
            needs, record.needs = record.needs, ()
            for needed in needs:
                needed.uses -= 1
                if not needed.uses and needed.passed:
                    self._act([needed])
        gate = record.gate
        if gate is not None:
            record.gate = None
            gate.unended -= 1
            if not gate.unended and record.session is not None:
                self._open_gates(record.session, record.device_name, gate.lane)
        if record.passed:
            self._act([record])

    # ------------------------------------------------------------------------------------------ releases

    def release(self, session: Session, ids: Iterable[bytes], *, devices: Iterable[Device], seq: int) -> bool:
        """Release ids, as soon as may be; whether something is left to wait for.

        Those that no record names go to ``devices`` as they are: they may be results of an earlier ledger.
        """
        by_device: dict[str, list[bytes]] = {}
        unknown: list[bytes] = []
        for each in ids:
            record = self._by_id.get(each)
            if record is None:
                unknown.append(each)
            elif not record.wanted & record.bit(each) and (record.unended or record.status is ResultStatus.DONE):
                record.wanted |= record.bit(each)
                by_device.setdefault(record.device_name, []).append(each)
        if unknown:
            for device in devices:
                self.tell(device, unknown)
        pending = _Pending(seq)
        for name, group in by_device.items():
            lane = session.lanes.get(name)
            if lane is None or (len(lane) == 1 and not lane[0].unended):
                self._pass(group)
                continue
            lane[-1].ids = group
            lane[-1].release = pending
            lane.append(Gate(lane))
            pending.gates += 1
        return pending.gates > 0

    def _open_gates(self, session: Session, device_name: str, lane: deque[Gate]) -> None:
        while not lane[0].unended:
            pending = lane[0].release
            if pending is None:
                if session.lanes.get(device_name) is lane:
                    del session.lanes[device_name]
                    lane.clear()  # its gate names it: a cycle for each burst of commands would wait for the collector
                return
            gate = lane.popleft()
            self._pass(gate.ids)
            pending.gates -= 1
            if not pending.gates:
                self._context.writes.append(DropRelease(seq=pending.seq))

    def _pass(self, ids: list[bytes]) -> None:
        """All commands that were sent to the same device before the release of these have ended."""
        records: dict[Record, None] = {}
        for each in ids:
            record = self._by_id.get(each)
            if record is not None:
                record.passed |= record.bit(each)
                records[record] = None
        self._act(records)
        for record in records:
            waiting = record.passed & ~record.released
            if waiting and (record.unended or record.status is ResultStatus.DONE):
                self._context.writes.append(MarkReleasing(id=record.id, outputs=waiting))

    def _act(self, records: Iterable[Record]) -> None:
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
                errands.setdefault(record.device, []).extend(each for each in record.ids() if due & record.bit(each))
            if whole:
                record.status = TRANSITIONS[record.status][Input.RELEASE]
                if record.device is not None:
                    record.device.kept.pop(record.id, None)
                if record.seen:
                    self._retention.drop_value(record)
        for device, ids in errands.items():
            self.tell(device, ids)

    def tell(self, device: Device, ids: list[bytes]) -> None:
        """The device may drop these."""
        for some in batches(ids):
            command = Release(ids=some)
            device.mailbox.run(command, command_digest(command), self._context.next_seq())

    # ------------------------------------------------------------------------------------------ after a restart

    def restore(self, write: RecordRelease, session: Session | None) -> None:
        """Take up a release that waits, after the commands that came before it."""
        if session is None or not self.release(session, write.ids, devices=(), seq=write.seq):
            self._context.writes.append(DropRelease(seq=write.seq))

    def resume(self) -> None:
        """Everything has been taken up: release what nothing needs any more."""
        self._act({record: None for record in self._by_id.values() if record.passed & ~record.released})
