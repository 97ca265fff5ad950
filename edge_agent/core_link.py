"""The agent's side of its link to the broker: registration, the two numbered streams, heartbeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.protocol import messages as m
from broker.protocol.effects import Send
from broker.protocol.streams import Inbox, Outbox, Verdict
from edge_agent.core_desk import ERROR, INFO, WARNING, AgentConfig, Desk
from edge_agent.effects import GiveUp, OpenBlobs, Quarantined, Reconnect, SaveRegistration
from edge_agent.transitions import LINK, LINK_REGISTERED, LinkStep, advance

if TYPE_CHECKING:
    import random

__all__ = ["Link"]

REGISTER_PATIENCE = 2.0
REGISTER_ATTEMPTS = 4
"""After how many seconds without an answer `Register` is sent again, doubled each time; and after how many times in
vain the connection is given up.
"""

TAKEN_SECONDS = 0.02
TAKEN_COUNT = 256
"""How long an acknowledgement of deliveries may wait for more of them, and how many it covers at most: a message
saved for most commands, since their results are announced about as soon.
"""

SILENCE = 3.0
"""After how many heartbeat intervals without a word from the broker the connection is taken for dead."""

ABSENCE_SECONDS = 10.0
"""How long there may be no connection before that is said, once: a broker that starts anew is back by then."""

QUARANTINE_SECONDS = 60.0
QUARANTINE_MAX = 3600.0
"""How long a device in quarantine waits before it asks again, doubled each time; and how long at most."""

_NEXT, _GAP = Verdict.NEXT, Verdict.GAP
"""As `edge_agent.transitions.READY`: the fast path looks at them."""

_FATAL = frozenset({m.RefusalCode.VERSION, m.RefusalCode.NOT_ALLOWED, m.RefusalCode.FENCED})


class Link:
    """Registered or not, and what is under way in either direction.

    An announcement is kept in the outbox only while registered: what the broker has not on record is announced from the
    store at every registration, so nothing depends on this memory.
    """

    def __init__(
        self,
        desk: Desk,
        config: AgentConfig,
        rng: random.Random,
        *,
        device: str,
        store_id: bytes,
        boot: bytes,
        token: bytes = b"",
        ledger: bytes = b"",
    ) -> None:
        self._desk = desk
        self._config = config
        self._rng = rng
        self._device = device
        self._store_id = store_id
        self._boot = boot
        self._token = token
        self._ledger = ledger
        self._saved = token, ledger  # what the store has for certain
        self._epoch = 0
        self._interval = config.heartbeat_seconds
        self._beat_at = 0.0
        self._register_at = 0.0
        self._attempts = 0
        self._quarantines = 0  # how often in a row the broker has said that we are a copy
        self._quarantined_until = 0.0
        self._missed_at: float | None = desk.now + ABSENCE_SECONDS  # when to say that there is no connection
        self._welcomed = False  # whether the broker has ever taken us, since this agent started
        self._inbox = Inbox()
        self._outbox: Outbox[tuple[m.Event, tuple[m.Frame, ...]]] = Outbox()
        self._taken_at: float | None = None  # when deliveries are to be acknowledged
        self._told = 0  # the last number acknowledged
        self.step = LinkStep.DOWN
        self.heard = desk.now
        """When the broker was last heard. Set by the core for each message."""

    @property
    def registered(self) -> bool:
        """Whether the broker knows this device on this connection."""
        return self.step is LINK_REGISTERED

    # ------------------------------------------------------------------------------------------- connection

    def up(self) -> None:
        """The connection stands: introduce ourselves."""
        if self.step is LinkStep.DOWN:
            self._move(LinkStep.REGISTERING)
            self._missed_at = None
            self._attempts = 0
            if self._desk.now < self._quarantined_until:
                self._register_at = self._quarantined_until
            else:
                self._register()

    def down(self) -> None:
        """The connection is gone."""
        if self.step in (LinkStep.REGISTERING, LINK_REGISTERED):
            self._desk.log(INFO, "link_lost")
            self._move(LinkStep.DOWN)
            self._missed_at = self._desk.now + ABSENCE_SECONDS

    def stranger(self) -> None:
        """The broker does not know us: introduce ourselves again."""
        if self.registered:
            self._move(LinkStep.REGISTERING)
            self._attempts = 0
            self._register()

    def leave(self) -> None:
        """The agent ends."""
        if self.registered:
            self._desk.send(m.Goodbye())
        if self.step is not LinkStep.LEFT:
            self._move(LinkStep.LEFT)
            self._missed_at = None

    def welcome(self, message: m.Registered) -> bool:
        """The broker's answer to `Register`. False: it answers nothing that was asked."""
        if self.step is not LinkStep.REGISTERING:
            return False
        self._move(LINK_REGISTERED)
        self._welcomed = True
        self._quarantines = 0
        other = message.ledger != self._ledger and self._ledger != b""
        self._saved = self._token, self._ledger
        self._ledger, self._token, self._epoch = message.ledger, message.token, message.epoch
        self._interval = message.heartbeat_ms / 1000 or self._config.heartbeat_seconds
        self._beat_at = self._desk.now + self._jittered(self._interval)
        self._inbox = Inbox(message.first - 1 if message.first else 0)
        self._outbox = Outbox(first=self._outbox.last + 1)
        self._taken_at, self._told = None, self._inbox.taken
        self._desk.do(SaveRegistration(token=message.token, ledger=message.ledger, other=other))
        if message.blobs:
            self._desk.do(OpenBlobs(endpoint=message.blobs))
        self._desk.log(
            INFO,
            "agent_registered",
            device=self._device,
            epoch=message.epoch,
            ledger=message.ledger.hex(),
            first=message.first,
        )
        return True

    def unsaved(self) -> None:
        """The last `SaveRegistration` has failed: as if that answer had been lost. To present its token would confirm
        one that the next start of this agent does not have: a copy, for the broker.
        """
        self._token, self._ledger = self._saved
        self._epoch, self._inbox = 0, Inbox()

    def refused(self, message: m.Refused) -> None:
        """The broker does not take us; for good, or for now."""
        self._desk.log(WARNING, "agent_refused", code=message.code, reason=message.reason)
        if self.step is not LinkStep.REGISTERING:
            return
        if message.code == m.RefusalCode.STALE_TOKEN:
            self._quarantine(message.reason)
            return
        duplicate = message.code == m.RefusalCode.DUPLICATE_DEVICE
        if message.code in _FATAL or (duplicate and not self._welcomed):
            self._desk.do(GiveUp(code=message.code, reason=message.reason))
            return
        # Our own older connection may still look alive to the broker, or the broker is full: come again later.
        self._register_at = self._desk.now + self._jittered(self._interval)

    def _quarantine(self, reason: str) -> None:
        """Our store is a copy of another one, or an old state of itself: the broker's operator decides. Ask seldom."""
        wait = self._jittered(min(QUARANTINE_SECONDS * (1 << min(self._quarantines, 10)), QUARANTINE_MAX))
        self._quarantines += 1
        self._attempts = 0
        self._register_at = self._quarantined_until = self._desk.now + wait
        self._desk.log(ERROR, "device_quarantined", device=self._device, reason=reason, again_in=round(wait))
        self._desk.do(Quarantined(reason=reason))

    def _register(self) -> None:
        self._desk.send(
            m.Register(
                version=m.PROTOCOL_VERSION,
                device=self._device,
                store=self._store_id,
                boot=self._boot,
                token=self._token,
                epoch=self._epoch,
                taken=self._inbox.taken,
                runtimes=list(self._config.runtimes),
                labels=dict(self._config.labels),
                first=self._outbox.last + 1,
                ops=self._config.ops,
                ledger=self._ledger,
            )
        )
        self._register_at = self._desk.now + self._jittered(REGISTER_PATIENCE * (1 << self._attempts))
        self._attempts += 1
        self.heard = self._desk.now

    # ------------------------------------------------------------------------------------------- streams

    def offer(self, n: int) -> bool:
        """Whether delivery ``n`` is the next, and hereby taken."""
        if self.step is not LINK_REGISTERED:
            return False
        verdict = self._inbox.offer(n)
        if self._taken_at is None and verdict is not _GAP:
            self._taken_at = self._desk.now + TAKEN_SECONDS
        return verdict is _NEXT

    def announce(self, event: m.Event, frames: tuple[m.Frame, ...] = ()) -> None:
        """Announce, at the end of the batch. While not registered this does nothing: the store knows it."""
        if self.step is LINK_REGISTERED:
            self._outbox.push((event, frames))

    def recorded(self, n: int) -> list[bytes]:
        """The broker has all announcements up to ``n`` on record: those of the ends of these commands."""
        if self.step is not LINK_REGISTERED:
            return []
        announced = self._outbox.acknowledge(n, self._desk.now)
        return [event.id for event, _ in announced if not isinstance(event, m.TagsChanged)]

    def flush(self) -> None:
        """The batch has ended: send what is due."""
        if self.step is not LINK_REGISTERED:
            return
        desk = self._desk
        do = desk.instructions.append
        for n, (event, frames) in self._outbox.due(desk.now):
            do(Send(message=m.Announce(n=n, event=event), frames=frames))
        taken = self._inbox.taken
        if self._taken_at is not None and (desk.now >= self._taken_at or taken - self._told >= TAKEN_COUNT):
            self._taken_at, self._told = None, taken
            desk.send(m.Taken(n=taken))

    # ------------------------------------------------------------------------------------------- time

    def heartbeat_seen(self, message: m.HeartbeatSeen) -> None:
        """The broker says how often it wants to hear from us."""
        if message.heartbeat_ms:
            self._interval = message.heartbeat_ms / 1000
            self._beat_at = min(self._beat_at, self._desk.now + self._jittered(self._interval))

    def tick(self, running: Callable[[], dict[bytes, float]]) -> None:
        """Time has passed: heartbeats, retries."""
        now = self._desk.now
        if self.step is LinkStep.REGISTERING and now >= self._register_at:
            if self._attempts < REGISTER_ATTEMPTS:
                self._register()
            else:  # a connection that only looks alive
                self._attempts = 0
                self._register_at = now + self._jittered(REGISTER_PATIENCE)
                self._desk.do(Reconnect(reason="nobody answers"))
        elif self.step is LINK_REGISTERED:
            if now - self.heard > SILENCE * self._interval:
                self.heard = now
                self._desk.log(WARNING, "link_silent", seconds=SILENCE * self._interval)
                self._desk.do(Reconnect(reason="silent"))
            elif now >= self._beat_at:
                self._beat_at = now + self._jittered(self._interval)
                self._desk.send(m.Heartbeat(running=running()))
        elif self._missed_at is not None and now >= self._missed_at:
            self._missed_at = None
            self._desk.log(WARNING, "broker_unreachable", seconds=ABSENCE_SECONDS)

    def next_timer(self) -> float | None:
        """When `tick` or `flush` is due by the passing of time alone."""
        if self.step is LINK_REGISTERED:
            timer = self._beat_at
            if (due := self._outbox.next_due()) is not None and due < timer:
                timer = due
            return self._taken_at if self._taken_at is not None and self._taken_at < timer else timer
        return self._register_at if self.step is LinkStep.REGISTERING else self._missed_at

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.9, 1.1)

    def _move(self, step: LinkStep) -> None:
        self.step = advance(LINK, self.step, step, f"the link of {self._device}")
