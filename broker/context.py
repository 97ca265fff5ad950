"""What the parts of the broker's core share: what they say, the time, timers, and the counters.

A part appends to ``out`` and ``writes``; `broker.core` hands ``out`` to the driver when an event is done with, and
``writes`` to the ledger when a batch is.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from broker.config import BrokerConfig
from broker.ledger.interface import Write
from broker.protocol.effects import Log, Send
from broker.protocol.messages import Counters, Frame, LogValue, Message

if TYPE_CHECKING:
    from broker.sessions import Session

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "Alarm", "Blobs", "Context", "Pumped", "Tally", "Timer"]

DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40

Timer = Callable[[float], None]

T = TypeVar("T")


class Blobs(Protocol):
    """What the core asks about blobs: of `broker.blob_desk.BlobDesk`, which keeps them until the answer was used."""

    def size(self, digest: bytes) -> int | None:
        """The size of a blob that is there, whole; None: it is not."""
        ...


class Pumped(Protocol):
    """Whoever has a numbered stream to a peer."""

    def pump(self, now: float) -> None:
        """Send what may be sent now."""
        ...


class Alarm:
    """Has a stream pumped when it is due. One timer at a time: a stream may have moved on when it comes."""

    __slots__ = ("_at", "_context", "_stream")

    def __init__(self, context: Context, stream: Pumped) -> None:
        self._context = context
        self._stream = stream
        self._at: float | None = None

    def set(self, due: float | None, now: float) -> None:
        """The stream is next due then, as far as is known; None: it is not."""
        if due is None or (self._at is not None and self._at <= due):
            return
        self._at = due
        self._context.at(max(due, now), self._ring)

    def _ring(self, now: float) -> None:
        if self._at is not None and now >= self._at:
            self._at = None
            self._context.due[self._stream] = None


class Tally:
    """Counters that are being counted: see `broker.protocol.messages.Counters`."""

    __slots__ = (
        "blob_bytes_in",
        "blob_bytes_out",
        "blobs_in",
        "blobs_out",
        "bytes_in",
        "bytes_out",
        "commands",
        "control",
        "notifications",
        "resent",
    )

    def __init__(self) -> None:
        self.commands = 0
        self.notifications = 0
        self.resent = 0
        self.control = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.blobs_in = 0
        self.blobs_out = 0
        self.blob_bytes_in = 0
        self.blob_bytes_out = 0

    def counters(self) -> Counters:
        """As a part of a message."""
        return Counters(**{name: getattr(self, name) for name in self.__slots__})


class Context:
    """See the module. ``wall_offset``: what to add to ``now`` to get seconds since the Unix epoch."""

    def __init__(self, config: BrokerConfig, *, wall_offset: float) -> None:
        self.config = config
        self.wall_offset = wall_offset
        self.now = 0.0
        self.out: list[object] = []
        self.writes: list[Write] = []
        self.due: dict[Pumped, None] = {}
        """Whose streams may have something to send; pumped when the event is done with."""
        self.total = Tally()
        self.level = config.log_level
        self.followed = 0
        """From which level on the log stream is followed; 0: by nobody."""
        self.notifications_followed = False
        self.unwritable = ""
        """Why the ledger cannot be written now; empty: it can."""
        self.seq = 0
        """The last number of a command, release or errand."""
        self.after: list[tuple[Callable[[Any], None], Any]] = []
        """What is to be done, and with what, once all that is in ``writes`` now is in the ledger."""
        self.forgetful: dict[Session, None] = {}
        """Sessions of which results were forgotten: that is to be written with the next commit."""
        self.started = 0.0
        self.unsure_until = float("-inf")
        """Until then peers may know more than the ledger: they were told it by a broker that died, or by another
        ledger."""
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    # ------------------------------------------------------------------------------------------ saying

    def send(self, peer: bytes, message: Message, frames: tuple[Frame, ...] = ()) -> None:
        """Send a message that is not of a numbered stream, and count it."""
        self.total.control += 1
        self.out.append(Send(message=message, frames=frames, peer=peer))

    def log(self, level: int, event: str, **fields: LogValue) -> None:
        """Log, if anybody wants that level. On hot paths compare `level` before making the fields."""
        if level >= self.level:
            self.out.append(Log(level=level, event=event, fields=fields))

    def next_seq(self) -> int:
        """The number of the next command, release or errand."""
        self.seq += 1
        return self.seq

    # ------------------------------------------------------------------------------------------ the ledger

    def after_commit(self, act: Callable[[T], None], subject: T) -> None:
        """Call ``act`` with ``subject`` once all that was written so far is in the ledger: what a peer learns must not
        be lost with the broker.
        """
        self.after.append((act, subject))

    def other_ledger(self) -> None:
        """A peer has come that knew another ledger: this one is new, and has yet to hear what that one knew."""
        self.unsure_until = max(self.unsure_until, self.started + self.config.restart_grace)

    @property
    def unsure(self) -> bool:
        """Whether peers may know more than the ledger."""
        return self.now < self.unsure_until

    # ------------------------------------------------------------------------------------------ time

    def wall_ms(self, when: float | None = None) -> int:
        """``when`` (None: now) in milliseconds since the Unix epoch."""
        wall = round(((self.now if when is None else when) + self.wall_offset) * 1000)
        if wall < 0:
            wall = 0
        return wall

    def from_wall_ms(self, wall_ms: int) -> float:
        """The moment on the core's clock that is ``wall_ms`` since the Unix epoch."""
        return wall_ms / 1000 - self.wall_offset

    def at(self, when: float, timer: Timer) -> None:
        """Call ``timer`` once ``when`` has come. It can't be taken back: it must see whether it is still needed."""
        heapq.heappush(self._timers, (when, next(self._count), timer))

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        return self._timers[0][0] if self._timers else None

    def run_timers(self) -> None:
        """Call all timers that are due."""
        now = self.now
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)
