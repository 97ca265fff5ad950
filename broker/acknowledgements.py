"""From what was taken to its acknowledgement, by way of the ledger.

The writes of a few batches go out as one `Persist` (a group commit); `Accepted` and `Recorded` follow its
`Persisted`, and say no more than is in the ledger; so does whatever else a part of the core has put off by
`broker.context.Context.after_commit`. Relaying does not wait for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from broker.context import DEBUG, Context
from broker.devices import Device
from broker.effects import Persist
from broker.protocol.messages import Recorded
from broker.sessions import Session, Sessions

__all__ = ["Acknowledgements"]


class _Ticket:
    """What is acknowledged when a `Persist` is done: numbers of sessions and devices, and whose numbers they are; and
    what else waits for it.
    """

    __slots__ = ("after", "devices", "number", "sessions")

    def __init__(
        self,
        number: int,
        sessions: list[tuple[Session, bytes, int]],
        devices: list[tuple[Device, int, int]],
        after: list[tuple[Callable[[Any], None], Any]],
    ) -> None:
        self.number = number
        self.sessions = sessions
        self.devices = devices
        self.after = after


class Acknowledgements:
    """See the module."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self._context = context
        self._sessions = sessions
        self._owed_sessions: dict[Session, None] = {}
        self._owed_devices: dict[Device, None] = {}
        self._flush_at: float | None = None
        self._tickets: deque[_Ticket] = deque()
        self._last = 0

    def owe_session(self, session: Session) -> None:
        """A session has sent a command, new or again."""
        self._owed_sessions[session] = None

    def owe_device(self, device: Device) -> None:
        """A device has announced something, new or again."""
        self._owed_devices[device] = None

    def batch_ended(self) -> None:
        """Nothing more is waiting: commit, now or soon."""
        context = self._context
        if not (context.writes or context.after or self._owed_sessions or self._owed_devices):
            return
        config = context.config
        if not config.commit_within or len(context.writes) >= config.commit_writes:
            self.flush()
        elif self._flush_at is None:
            self._flush_at = context.now + config.commit_within
            context.at(self._flush_at, self.flush)

    def flush(self, _now: float = 0.0) -> None:
        """Hand what is to be written to the ledger; acknowledge what needs no writing."""
        context = self._context
        self._flush_at = None
        forgetful, context.forgetful = context.forgetful, {}
        sessions: list[tuple[Session, bytes, int]] = []
        for session in self._owed_sessions:
            taken = session.inbox.taken
            if taken > session.accepted:
                self._sessions.record(session)
                forgetful.pop(session, None)
                sessions.append((session, session.incarnation, taken))
            if session.repeat:
                session.repeat = False
                if session.peer is not None:
                    session.say_accepted()
        devices: list[tuple[Device, int, int]] = []
        for device in self._owed_devices:
            if device.inbox.taken > device.recorded:
                devices.append((device, device.registrations, device.inbox.taken))
            elif device.peer is not None:
                context.send(device.peer, Recorded(n=device.recorded))
        for session in forgetful:
            if self._sessions.by_incarnation.get(session.incarnation) is session:
                self._sessions.record(session)
        self._owed_sessions = {}
        self._owed_devices = {}
        after, context.after = context.after, []
        if not (context.writes or sessions or devices):
            if self._tickets:
                self._tickets[-1].after += after  # what it waits for is under way
            else:
                _do(after)
            return
        self._last += 1
        self._tickets.append(_Ticket(self._last, sessions, devices, after))
        writes, context.writes = context.writes, []
        context.out.append(Persist(ticket=self._last, writes=writes))

    def persisted(self, number: int) -> None:
        """All up to the ``number``-th `Persist` is in the ledger."""
        context = self._context
        while self._tickets and self._tickets[0].number <= number:
            ticket = self._tickets.popleft()
            for session, incarnation, taken in ticket.sessions:
                if session.incarnation != incarnation or taken <= session.accepted:
                    continue  # a newer incarnation has taken over
                session.accepted = taken
                if session.peer is not None:
                    session.say_accepted()
                    if context.level <= DEBUG:
                        context.log(DEBUG, "commands_accepted", session=incarnation.hex(), n=taken)
            for device, registrations, taken in ticket.devices:
                if device.registrations != registrations or taken <= device.recorded:
                    continue  # its announcements are numbered anew
                device.recorded = taken
                if device.peer is not None:
                    context.send(device.peer, Recorded(n=taken))
            if ticket.after:
                _do(ticket.after)


def _do(after: list[tuple[Callable[[Any], None], Any]]) -> None:
    for act, subject in after:
        act(subject)
