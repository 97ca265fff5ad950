"""What sessions submit: judged, fanned out over the devices named, and put into their mailboxes.

A command is taken in the order of its number only. What can't be taken now (`Busy`, `Lacking`) stops the stream, so
that nothing overtakes it; what can never be taken is `Rejected`, and what can fail for one device alone fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from broker.context import DEBUG, WARNING, Context
from broker.devices import Device, Devices
from broker.ledger.interface import RecordRelease
from broker.plans import Plans
from broker.protocol.effects import Received
from broker.protocol.framing import HEADER_LIMIT, command_digest, size_of
from broker.protocol.ids import COUNTER_END, RESULT_ID_BYTES, is_device_id, not_a_device_id, nth, parts_of
from broker.protocol.messages import (
    Busy,
    Cancel,
    Failure,
    Frame,
    Invoke,
    Lacking,
    Put,
    Release,
    StorePlan,
    Submit,
)
from broker.records import Record
from broker.results import Results
from broker.sessions import Session, Sessions
from broker.unstored import Unstored

__all__ = ["Submissions"]

_Frames = tuple[Frame, ...]

_HEADER = HEADER_LIMIT - 64
"""The largest header of a command, in bytes: it may be longer when it goes on to its device, with its digest, a larger
number, and the time that it has left. One that no device takes would hold up all behind it.
"""


class Submissions:
    """See the module. The core sets `acknowledge`: a session is to be told how far its stream has come."""

    def __init__(
        self,
        context: Context,
        devices: Devices,
        sessions: Sessions,
        results: Results,
        plans: Plans,
        unstored: Unstored,
    ) -> None:
        self._context = context
        self._devices = devices
        self._sessions = sessions
        self._results = results
        self._plans = plans
        self._unstored = unstored
        self.acknowledge: Callable[[Session], None]
        self._take: dict[type, Callable[[Session, Submit, Any, _Frames], None]] = {
            Invoke: self._take_command,
            Put: self._take_command,
            Release: self._take_release,
            Cancel: self._take_cancel,
            StorePlan: self._take_plan,
        }

    def submit(self, session: Session, message: Submit, event: Received) -> None:
        """A session's numbered command has arrived."""
        n = message.n
        taken = session.inbox.taken
        if n != taken + 1:
            if n <= taken:
                session.repeat = True
                self.acknowledge(session)
                failure = session.rejected.get(n)
                if failure is not None:
                    session.say_rejected(n, failure)
            return
        if self._context.unwritable:
            self._busy(session, n, f"the broker's ledger cannot be written: {self._context.unwritable}")
            return
        limit = self._context.config.max_message
        if event.size > limit:
            reason = f"expected a message of at most {limit} bytes, got {event.size} bytes"
            self._reject(session, n, "MessageTooLarge", reason)
            return
        # Most messages are smaller with all their frames.
        if event.size > _HEADER and (header := event.size - size_of(event.frames)) > _HEADER:
            reason = f"expected a header of at most {_HEADER} bytes, got {header} bytes"
            self._reject(session, n, "MessageTooLarge", reason)
            return
        command = message.command
        self._take[type(command)](session, message, command, event.frames)

    # ------------------------------------------------------------------------------------------ verdicts

    def _taken(self, session: Session, n: int) -> None:
        session.inbox.taken = n
        session.told_busy = False
        self.acknowledge(session)

    def _reject(self, session: Session, n: int, code: str, message: str) -> None:
        self._taken(session, n)
        session.reject(n, Failure(code=code, message=message))

    def _busy(self, session: Session, n: int, reason: str) -> None:
        assert session.peer is not None
        if not session.told_busy:  # once, however often it comes again
            session.told_busy = True
            self._context.log(WARNING, "session_told_busy", session=session.incarnation.hex(), n=n, reason=reason)
        self._context.send(session.peer, Busy(n=n, retry_ms=self._context.config.busy_ms, reason=reason))

    def _wait_for_room(self, session: Session, n: int) -> None:
        self._busy(session, n, f"the broker cannot store blobs: {self._unstored.reason}")

    def _lacking(self, session: Session, n: int, digests: list[bytes]) -> None:
        assert session.peer is not None
        if self._unstored.reason:
            self._wait_for_room(session, n)
            return
        self._context.log(DEBUG, "blobs_lacking", session=session.incarnation.hex(), n=n, blobs=len(digests))
        self._context.send(session.peer, Lacking(n=n, digests=digests))

    # ------------------------------------------------------------------------------------------ invocations and values

    def _take_command(self, session: Session, message: Submit, command: Invoke | Put, frames: _Frames) -> None:
        n, names, id = message.n, message.devices, command.id
        count = len(names)
        outputs = command.outputs if isinstance(command, Invoke) else 1
        width = outputs or 1
        incarnation, first = parts_of(id)
        last = first + count * width - 1
        if incarnation != session.incarnation:
            expected = session.incarnation.hex()
            self._reject(session, n, "NotAllowed", f"expected an id of incarnation {expected}, got {id.hex()}")
            return
        wrong = self._unfit(command, names, outputs, last)
        if wrong:
            self._reject(session, n, "NotAllowed", wrong)
            return
        if isinstance(command, Invoke):
            if not self._plans.knows(command.plan):
                self._lacking(session, n, [command.plan])
                return
        elif command.blob is not None and not self._plans.has(command.blob):
            self._lacking(session, n, [command.blob])
            return
        if first <= session.highest and session.forgotten.meets(first, last):
            reason = f"the id {id.hex()} already named another command, or a part of one, and is forgotten"
            self._reject(session, n, "IdConflict", reason)
            return
        digest = command_digest(command, frames)
        known: dict[int, Record] = {}
        if count > 1 or width > 1 or id in self._results.by_id:
            conflict = self._known(known, id, names, width, digest)
            if conflict is not None:
                reason = f"the id {conflict.hex()} already names another command, or a part of one"
                self._reject(session, n, "IdConflict", reason)
                return
        payload = size_of(frames) if frames else 0
        full = self._no_room(session, names, payload) if len(known) < count else ""
        if full:
            self._busy(session, n, full)
            return
        self._taken(session, n)
        if last > session.highest:
            session.highest = last
        by_name = self._devices.by_name
        alone = count == 1 and not (isinstance(command, Invoke) and command.each)
        for k, name in enumerate(names):
            mine = command if alone else _for_device(command, k, width)
            if k in known:
                self._results.take_up(known[k], mine, session)
                continue
            device = by_name.get(name)
            failure = None
            if count > 1 and device is not None and not self._has_room(device, payload):
                failure = Failure(code="QueueFull", message=_full(device), details={"device": name})
            self._results.add(
                mine,
                frames,
                session=session,
                n=n,
                device=device,
                device_name=name,
                digest=digest,
                size=payload,
                failure=failure,
            )
        if self._context.level <= DEBUG:
            self._context.log(
                DEBUG,
                "invocation_accepted",
                result=id.hex(),
                session=session.incarnation.hex(),
                devices=",".join(names[:16]),
                n=n,
            )

    def _known(
        self, known: dict[int, Record], first: bytes, names: list[str], width: int, digest: bytes
    ) -> bytes | None:
        """Put into ``known`` which of the devices' parts were sent before, perhaps to an earlier ledger; an id that
        already names something else, if there is one.
        """
        by_id = self._results.by_id
        for k, name in enumerate(names):
            begin = nth(first, k * width)
            for place in range(width):
                each = nth(begin, place)
                record = by_id.get(each)
                if record is None:
                    continue
                if record.id != begin or record.digest != digest or record.device_name != name:
                    return each
                known[k] = record
        return None

    def _unfit(self, command: Invoke | Put, names: list[str], outputs: int, last: int) -> str:
        """What is wrong with a command whatever the state of the fleet; nothing, usually. ``last``: the counter of the
        last of its ids.
        """
        config = self._context.config
        count = len(names)
        if not count:
            return "expected a device, got none"
        if count > config.fan_out:
            return f"expected at most {config.fan_out} devices, got {count}"
        known = self._devices.by_name
        for name in names:
            if name not in known and not is_device_id(name):
                return not_a_device_id(name)
        if outputs > config.outputs:
            return f"expected at most {config.outputs} outputs, got {outputs}"
        if not outputs and count > 1:
            return f"expected an output, got none on {count} devices, whose results could not be told apart"
        if last >= COUNTER_END:
            return f"expected an id with room for {count * outputs} results, got {command.id.hex()}"
        if isinstance(command, Invoke) and command.each:
            for position, ids in command.each.items():
                if not 0 <= position < len(command.args):
                    return f"expected the position of one of {len(command.args)} arguments in each, got {position}"
                if len(ids) != RESULT_ID_BYTES * count:
                    return f"expected {count} ids for argument {position}, got {len(ids)} bytes"
        return ""

    def _no_room(self, session: Session, names: list[str], payload: int) -> str:
        """Which limit the command would break; none, usually."""
        config = self._context.config
        count = len(names)
        results = self._results
        outstanding = session.outstanding
        if outstanding + count > config.session_commands and outstanding:
            return f"the session has {outstanding} results that have not ended or that it has not seen"
        if results.unended + count > config.total_commands and results.unended:
            return f"this broker has {results.unended} commands that have not ended"
        if results.bytes + payload * count > config.total_bytes and results.bytes:
            return f"this broker has {results.bytes} bytes of commands that have not ended"
        if count == 1:
            device = self._devices.by_name.get(names[0])
            if device is not None and not self._has_room(device, payload):
                return _full(device)
        return ""

    def _has_room(self, device: Device, payload: int) -> bool:
        config = self._context.config
        mailbox = device.mailbox
        if mailbox.commands >= config.mailbox_commands:
            return False
        return mailbox.size + payload <= config.mailbox_bytes or not mailbox.commands

    # ------------------------------------------------------------------------------------------ the others

    def _take_release(self, session: Session, message: Submit, command: Release, _frames: _Frames) -> None:
        devices = [device for name in message.devices if (device := self._devices.by_name.get(name)) is not None]
        limit = self._context.config.mailbox_commands
        full = next((device for device in devices if device.mailbox.errands >= limit), None)
        if full is not None:
            self._busy(session, message.n, f"{full.mailbox.errands} releases and cancels wait for {full.name}")
            return
        self._taken(session, message.n)
        seq = self._context.next_seq()
        if self._results.releases.release(session, command.ids, devices=devices, seq=seq):
            self._context.writes.append(
                RecordRelease(seq=seq, incarnation=session.incarnation, n=message.n, ids=command.ids)
            )

    def _take_cancel(self, session: Session, message: Submit, command: Cancel, _frames: _Frames) -> None:
        self._taken(session, message.n)
        self._results.cancel(command.id)

    def _take_plan(self, session: Session, message: Submit, command: StorePlan, frames: _Frames) -> None:
        if self._unstored.reason and not all(map(self._plans.has, (command.plan, *command.parts))):
            self._wait_for_room(session, message.n)
            return
        lacking = self._plans.store(command, frames)
        if isinstance(lacking, Failure):
            self._reject(session, message.n, lacking.code, lacking.message)
        elif lacking:
            self._lacking(session, message.n, lacking)
        else:
            self._taken(session, message.n)


def _full(device: Device) -> str:
    return f"the mailbox of {device.name} is full: {device.mailbox.commands} commands, {device.mailbox.size} bytes"


def _for_device(command: Invoke | Put, k: int, width: int) -> Invoke | Put:
    """The command for the ``k``-th of its devices: with its own ids, and its own arguments."""
    mine = nth(command.id, k * width)
    if not isinstance(command, Invoke) or not command.each:
        return msgspec.structs.replace(command, id=mine)
    args = list(command.args)
    for position, ids in command.each.items():
        args[position] = ids[RESULT_ID_BYTES * k : RESULT_ID_BYTES * (k + 1)]
    return msgspec.structs.replace(command, id=mine, args=args, each={})
