"""Sessions: who they are, the numbered stream of their notifications, and how they come and go.

An unnamed session is one incarnation. A named one goes on when its coordinator starts anew: the newest incarnation
fences the older, and gets what that had not seen. What sessions submit is in `broker.submissions`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from broker.context import DEBUG, INFO, WARNING, Alarm, Context
from broker.devices import refusal_of_version
from broker.effects import PublishNotification
from broker.intervals import Intervals
from broker.ledger.interface import DropSession, MarkSeen, RecordSession
from broker.protocol.effects import Log, Send
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Failure,
    HeartbeatSeen,
    Notify,
    OpenSession,
    RefusalCode,
    Refused,
    Rejected,
    SessionOpened,
)
from broker.protocol.streams import WINDOW, Inbox, Outbox
from broker.records import Record

if TYPE_CHECKING:
    from broker.releases import Gate
    from broker.values import Gathering

__all__ = ["Session", "Sessions"]

_REJECTIONS_KEPT = WINDOW
_MOST_SEEN = 1 << 62  # nobody has seen so many; from there on numbers still fit into a message


class Session:
    """A session, there or not. Times in seconds on the core's clock."""

    __slots__ = (
        "_alarm",
        "_context",
        "_high",
        "accepted",
        "closed",
        "fetches",
        "fetching",
        "forgotten",
        "heard",
        "highest",
        "inbox",
        "incarnation",
        "lanes",
        "name",
        "outbox",
        "peer",
        "rejected",
        "renumber",
        "repeat",
        "retiring",
        "told_busy",
        "unended",
        "version",
        "watched",
    )

    def __init__(self, context: Context, incarnation: bytes, name: str, *, taken: int = 0, seen: int = 0) -> None:
        self._context = context
        self.incarnation = incarnation
        self.name = name
        self.peer: bytes | None = None
        self.version: tuple[int, int] = PROTOCOL_VERSION
        self.heard = 0.0
        self.watched = False
        self.retiring = False
        self.closed = False  # it has said goodbye, and nobody will come back for it
        self.inbox = Inbox(taken)
        self.accepted = taken  # commands that are in the ledger
        self.repeat = False  # whether to say so again
        self.told_busy = False
        self.highest = 0  # the largest counter of its ids
        self.forgotten = Intervals()  # counters of ids whose records are gone
        self.unended = 0
        self.rejected: OrderedDict[int, Failure] = OrderedDict()
        self.lanes: dict[str, deque[Gate]] = {}  # by device: see `broker.releases`
        self.fetches: dict[int, Gathering] = {}  # by the session's number: see `broker.values`
        self.fetching = 0  # how many values they are about
        self.outbox: Outbox[Record] = self._new_outbox(seen + 1)
        self.renumber = False
        self._high = seen
        self._alarm = Alarm(context, self)

    def _new_outbox(self, first: int) -> Outbox[Record]:
        config = self._context.config
        return Outbox(window=config.window, patience=config.patience, first=first)

    @property
    def outstanding(self) -> int:
        """Results that have not ended, or that it has not seen."""
        return self.unended + len(self.outbox.items)

    def notify(self, record: Record) -> None:
        """Tell it that a result has ended."""
        self.outbox.push(record)
        if self.peer is not None:
            self._context.due[self] = None

    def pump(self, now: float) -> None:
        """Send what may be sent now."""
        peer = self.peer
        if peer is None:
            return
        context = self._context
        for n, record in self.outbox.due(now):
            device = record.device
            tally = None if device is None else device.tally
            if n > self._high:
                self._high = n
                context.total.notifications += 1
                if tally is not None:
                    tally.notifications += 1
                if context.level <= DEBUG:
                    fields = {
                        "result": record.id.hex(),
                        "device": record.device_name,
                        "session": self.incarnation.hex(),
                    }
                    context.out.append(Log(level=DEBUG, event="result_notified", fields=fields))
            else:
                context.total.resent += 1
                if tally is not None:
                    tally.resent += 1
            assert record.event is not None
            message = Notify(n=n, device=record.device_name, event=record.event)
            context.out.append(Send(message=message, frames=record.value, peer=peer))
        self._alarm.set(self.outbox.next_due(), now)

    def pause(self, now: float) -> None:
        """It reads too slowly."""
        self.outbox.hold(now + self._context.config.busy_peer_pause)
        self._alarm.set(self.outbox.next_due(), now)

    def reject(self, n: int, failure: Failure) -> None:
        """Command ``n`` counts as taken, and does nothing."""
        self.rejected[n] = failure
        if len(self.rejected) > _REJECTIONS_KEPT:
            self.rejected.popitem(last=False)
        self._context.log(
            WARNING, "command_rejected", session=self.incarnation.hex(), n=n, code=failure.code, reason=failure.message
        )
        self.say_rejected(n, failure)

    def say_rejected(self, n: int, failure: Failure) -> None:
        """Tell it, perhaps again."""
        if self.peer is not None:
            self._context.send(self.peer, Rejected(n=n, failure=failure))

    def say_accepted(self) -> None:
        """Tell it how far it has come, and which of its commands do nothing, unless it has certainly heard that."""
        assert self.peer is not None
        message = Accepted(n=self.accepted, rejected=self.rejections()) if self.rejected else Accepted(n=self.accepted)
        self._context.send(self.peer, message)

    def rejections(self) -> dict[int, Failure]:
        """The commands that do nothing, of those that are accepted."""
        # Whoever sends a number has heard that those a window before it were accepted, and so which of them were not.
        known = self.inbox.taken - WINDOW
        while self.rejected and next(iter(self.rejected)) <= known:
            self.rejected.popitem(last=False)
        return {n: failure for n, failure in self.rejected.items() if n <= self.accepted}

    def forget_fetch(self, gathering: Gathering) -> None:
        """A fetch is answered, or nobody asks for it any more."""
        if self.fetches.get(gathering.r) is gathering:
            del self.fetches[gathering.r]
            self.fetching -= len(gathering.distinct)

    def forget_fetches(self) -> None:
        """Whoever asked is gone."""
        self.fetches.clear()
        self.fetching = 0

    def become(self, incarnation: bytes) -> None:
        """A newer incarnation takes up this named session: commands are numbered anew, and what was not seen is
        told again.
        """
        self.incarnation = incarnation
        self.inbox = Inbox()
        self.accepted = 0
        self.highest = 0
        self.forgotten = Intervals()
        self.rejected.clear()
        self.forget_fetches()
        self.number_from(1)

    def number_from(self, first: int) -> None:
        """Number what it has not seen anew.

        After a restart, because what was sent before and did not reach the ledger had numbers, too: it may come
        twice, and never gets lost.
        """
        unseen = [record for _, record in self.outbox.unacknowledged()]
        self.renumber = False
        self.outbox = self._new_outbox(first)
        self._high = first - 1
        for record in unseen:
            self.outbox.push(record)


class Sessions:
    """All sessions. The core sets `settled`: the notifications of records are no longer due; and `unsettled`: one is
    again.
    """

    def __init__(self, context: Context, *, ledger: bytes) -> None:
        self._context = context
        self._ledger = ledger
        self.by_incarnation: dict[bytes, Session] = {}
        self.by_name: dict[str, Session] = {}
        self.by_peer: dict[bytes, Session] = {}
        self.past: OrderedDict[bytes, int] = OrderedDict()
        """Incarnations that are no more, and the largest counter of their ids."""
        self.fenced: dict[bytes, str] = {}
        """Those of them that a newer one has taken over, and the name of their session."""
        self.blobs_endpoint = ""
        self.logs_endpoint = ""
        self.settled: Callable[[list[Record]], None]
        self.unsettled: Callable[[Record], None]

    def __iter__(self) -> Iterator[Session]:
        return iter(self.by_incarnation.values())

    # ------------------------------------------------------------------------------------------ coming

    def open(self, peer: bytes, message: OpenSession) -> None:
        """A coordinator introduces itself."""
        context = self._context
        refusal = refusal_of_version(message.version)
        if refusal is not None:
            self._refuse(peer, refusal.code, refusal.reason)
            return
        if message.incarnation in self.fenced:
            name = self.fenced[message.incarnation]
            self._refuse(peer, RefusalCode.FENCED, f"another coordinator has taken over session {name}")
            return
        session = self.by_incarnation.get(message.incarnation)
        if session is None and message.incarnation in self.past and message.session in self.by_name:
            reason = f"another coordinator has taken session {message.session} since this one was forgotten"
            self._refuse(peer, RefusalCode.FENCED, reason)
            return
        if session is not None and session.name != message.session:
            reason = f"expected session {session.name!r} of this incarnation, got {message.session!r}"
            self._refuse(peer, RefusalCode.NOT_ALLOWED, reason)
            return
        if message.ledger and message.ledger != self._ledger:
            context.other_ledger()
        new = session is None
        if session is None:
            session = self._take_over(message) if message.session in self.by_name else self._create(message)
            if session is None:
                reason = f"this broker knows {len(self.by_incarnation)} sessions, and may know no more"
                self._refuse(peer, RefusalCode.FULL, reason)
                return
        elif session.peer is not None and session.peer != peer:
            del self.by_peer[session.peer]
        session.peer = peer
        session.version = message.version
        session.heard = context.now
        session.closed = False
        self.by_peer[peer] = session
        seen = min(message.seen, _MOST_SEEN)
        if session.renumber or seen > session.outbox.last:
            session.number_from(seen + 1)
        else:
            self.seen(session, seen)
            session.outbox.rewind()
        context.due[session] = None
        context.send(
            peer,
            SessionOpened(
                version=PROTOCOL_VERSION,
                ledger=self._ledger,
                accepted=session.accepted,
                heartbeat_ms=context.config.heartbeat_ms,
                max_message=context.config.max_message,
                blobs=self.blobs_endpoint,
                logs=self.logs_endpoint,
                log_level=context.followed,
                rejected=session.rejections(),
            ),
        )
        for n, failure in session.rejected.items():
            if n > session.accepted:
                session.say_rejected(n, failure)
        self._watch(session)
        context.log(INFO, "session_opened", session=session.incarnation.hex(), name=session.name, new=new)

    def _refuse(self, peer: bytes, code: str, reason: str) -> None:
        self._context.log(WARNING, "session_refused", code=str(code), reason=reason)
        self._context.send(peer, Refused(version=PROTOCOL_VERSION, code=code, reason=reason))

    def _create(self, message: OpenSession) -> Session | None:
        if len(self.by_incarnation) >= self._context.config.sessions:
            return None
        session = Session(self._context, message.incarnation, message.session, seen=min(message.seen, _MOST_SEEN))
        session.highest = self.past.pop(message.incarnation, 0)
        self.by_incarnation[message.incarnation] = session
        if message.session:
            self.by_name[message.session] = session
        self.record(session)
        return session

    def _take_over(self, message: OpenSession) -> Session:
        session = self.by_name[message.session]
        if session.peer is not None:
            reason = f"another coordinator has taken over session {session.name}"
            self._refuse(session.peer, RefusalCode.FENCED, reason)
            del self.by_peer[session.peer]
            session.peer = None
        old = session.incarnation
        self._bury(session, fenced_by=session.name)
        session.become(message.incarnation)
        self.by_incarnation[message.incarnation] = session
        self.record(session)
        self._context.log(
            INFO, "session_taken_over", session=message.incarnation.hex(), name=session.name, before=old.hex()
        )
        return session

    def record(self, session: Session) -> None:
        """Write down where it stands."""
        self._context.writes.append(
            RecordSession(
                incarnation=session.incarnation,
                name=session.name,
                taken=session.inbox.taken,
                seen=session.outbox.acknowledged,
                highest=session.highest,
                forgotten=session.forgotten.pairs(),
                rejected=list(session.rejected.items()) if session.rejected else [],
            )
        )

    # ------------------------------------------------------------------------------------------ notifications

    def notify(self, record: Record) -> None:
        """A record has ended: tell its session, and whoever follows."""
        session = record.session
        if session is None or session.closed:
            self._settle([record])
        else:
            session.notify(record)
        if self._context.notifications_followed:
            assert record.event is not None
            notify = Notify(n=0, device=record.device_name, event=record.event)
            self._context.out.append(PublishNotification(id=record.id, notify=notify, frames=record.value))

    def seen(self, session: Session, n: int) -> None:
        """The session has all notifications up to ``n``."""
        records = session.outbox.acknowledge(n, self._context.now)
        if records:
            self._settle(records)
            if session.outbox.items:
                self._context.due[session] = None

    def _settle(self, records: list[Record]) -> None:
        new: list[Record] = []
        for record in records:
            if not record.seen:  # a notification may be asked for again, and one record may be here twice
                record.seen = True
                new.append(record)
        if new:
            self.settled(new)
            self._context.writes.append(MarkSeen(ids=[record.id for record in new]))

    def notify_again(self, record: Record) -> None:
        """The session of a record that has ended has come for it, perhaps after nobody was to come: that it is due must
        outlive the broker, since the command that asks for it is accepted.
        """
        assert record.session is not None
        if record.seen:
            record.seen = False
            self.unsettled(record)
            self._context.writes.append(MarkSeen(ids=[record.id], seen=False))
        record.session.notify(record)

    def heartbeat(self, session: Session) -> None:
        """It says that it lives."""
        assert session.peer is not None
        self._context.send(session.peer, HeartbeatSeen(heartbeat_ms=self._context.config.heartbeat_ms))

    # ------------------------------------------------------------------------------------------ going

    @property
    def _silence(self) -> float:
        config = self._context.config
        return config.silent_heartbeats * config.heartbeat_ms / 1000

    def _watch(self, session: Session) -> None:
        if not session.watched:
            session.watched = True
            self._context.at(self._context.now + self._silence, lambda now: self._look(session, now))

    def _look(self, session: Session, now: float) -> None:
        session.watched = False
        if session.peer is None:
            return
        if now - session.heard >= self._silence:
            # It may have nothing to say. If its connection is gone, this finds out.
            self._context.send(session.peer, HeartbeatSeen(heartbeat_ms=self._context.config.heartbeat_ms))
        self._watch(session)

    def leave(self, session: Session, *, goodbye: bool) -> None:
        """It is away: it said so, or its connection is gone."""
        context = self._context
        assert session.peer is not None
        del self.by_peer[session.peer]
        session.peer = None
        session.forget_fetches()
        context.log(
            INFO, "session_closed" if goodbye else "session_lost", session=session.incarnation.hex(), name=session.name
        )
        if goodbye and not session.name:
            session.closed = True
            self.seen(session, session.outbox.last)
        self._retire(session)

    def _retention(self, session: Session) -> float:
        config = self._context.config
        return config.session_retention if session.name or session.outstanding else config.idle_session_retention

    def _retire(self, session: Session) -> None:
        if session.closed and not session.unended:
            self._drop(session)
        elif not session.retiring:
            session.retiring = True
            self._context.at(self._context.now + self._retention(session), lambda now: self._look_again(session, now))

    def _look_again(self, session: Session, now: float) -> None:
        session.retiring = False
        if session.peer is not None or self.by_incarnation.get(session.incarnation) is not session:
            return
        if now - session.heard < self._retention(session) or (session.unended and not session.closed):
            self._retire(session)
            return
        self.seen(session, session.outbox.last)
        self._drop(session)

    def ended(self, session: Session) -> None:
        """A command of a session that is closed has ended: the session may go with its last."""
        if not session.unended and session.peer is None:
            self._drop(session)

    def _drop(self, session: Session) -> None:
        session.closed = True  # records that have not ended settle without it
        self._bury(session)
        if session.name:
            del self.by_name[session.name]

    def _bury(self, session: Session, *, fenced_by: str = "") -> None:
        incarnation = session.incarnation
        del self.by_incarnation[incarnation]
        self.past[incarnation] = session.highest
        if fenced_by:
            self.fenced[incarnation] = fenced_by
        if len(self.past) > self._context.config.past_sessions:
            oldest, _ = self.past.popitem(last=False)
            self.fenced.pop(oldest, None)
        self._context.writes.append(DropSession(incarnation=incarnation, highest=session.highest, fenced_by=fenced_by))

    # ------------------------------------------------------------------------------------------ after a restart

    def restore(self, write: RecordSession) -> Session:
        """Take up a session from the ledger: it is away."""
        session = Session(self._context, write.incarnation, write.name, taken=write.taken, seen=write.seen)
        session.highest = write.highest
        session.forgotten = Intervals(write.forgotten)
        session.rejected.update(write.rejected)
        session.renumber = True
        session.heard = self._context.now
        self.by_incarnation[write.incarnation] = session
        if write.name:
            self.by_name[write.name] = session
        self._retire(session)
        return session

    def restored_ended(self, record: Record) -> None:
        """Take up a record that has ended and was not seen."""
        if record.session is None or record.session.closed:
            self._settle([record])
        else:
            record.session.outbox.push(record)
