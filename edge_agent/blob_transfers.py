"""A peer's side of the blob channel: what it offers, what it fetches. No sockets here.

`BlobTransfers` is told what happened and returns the messages to send; `edge_agent.blobs` has the socket and the
thread. Time is an argument. Every transfer that is not ended begins again where it stood when the link comes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from broker.disk_space import is_full
from broker.protocol import messages as m
from broker.protocol.transfer import (
    CHUNK_BYTES,
    MAX_WINDOW,
    ChunkRefused,
    Piece,
    PullRefused,
    Receiver,
    Sender,
    TransferState,
)
from edge_agent.blob_files import FileSink, MemorySink, Sink, Source, open_source

__all__ = ["BlobEvent", "BlobFailed", "BlobFetched", "BlobOffered", "BlobSettings", "BlobTransfers"]

ABSORB_BYTES = 1 << 20
"""How much of an earlier part is hashed in one go, between other work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobOffered:
    """The broker has the blob, verified and durable."""

    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFetched:
    """The blob is here, verified: in the file ``path``, synced; or, where no file was named, as ``data``."""

    digest: bytes
    path: Path | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFailed:
    """The blob could not be offered (or fetched, if ``fetching``), and is not tried again. ``full``: for want of
    room, on either side.
    """

    digest: bytes
    reason: str
    fetching: bool
    full: bool = False


BlobEvent: TypeAlias = BlobOffered | BlobFetched | BlobFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobSettings:
    """How a peer uses its blob channel; sizes in bytes, times in seconds.

    ``parallel``: how many blobs are offered, and as many fetched, at once; the others wait their turn. ``idle``: after
    how long without a transfer the connection is closed. ``chunk``, ``window`` and ``patience``: see
    `broker.protocol.transfer.Receiver`. ``reconnect``: how long to wait after a connection broke, doubled while nothing
    comes of it, up to ``reconnect_most``.
    """

    parallel: int = 4
    idle: float = 30.0
    chunk: int = CHUNK_BYTES
    window: int = MAX_WINDOW
    patience: float = 10.0
    reconnect: float = 0.05
    reconnect_most: float = 5.0


@dataclass(frozen=True, slots=True)
class _Offer:
    digest: bytes
    source: bytes | Path


@dataclass(frozen=True, slots=True)
class _Fetch:
    digest: bytes
    size: int
    into: Path | None


@dataclass(slots=True)
class _Offering:
    digest: bytes
    source: Source
    again_at: float | None = None  # when to offer again: no answer yet, or told to come later
    fruitless: int = 0


@dataclass(slots=True)
class _Fetching:
    digest: bytes
    sink: Sink
    receiver: Receiver
    clean: bool  # nothing of it came earlier
    again_at: float | None = None  # told to come later


class BlobTransfers:
    """What a peer offers and fetches on its blob channel."""

    def __init__(self, settings: BlobSettings, *, introduce: m.OpenBlobChannel, on_event: Callable[[BlobEvent], None]):
        self._settings = settings
        self._introduce = introduce
        self._on_event = on_event
        self._waiting: deque[_Offer | _Fetch] = deque()
        self._offering: dict[bytes, _Offering] = {}
        self._fetching: dict[bytes, _Fetching] = {}
        self._sender = Sender(chunk=settings.chunk)
        self._open = False
        self._chunk = settings.chunk
        self._limit: int | None = None
        self.refused = False
        """The broker does not want this connection: make a new one when something is wanted again."""

    # ------------------------------------------------------------------------------------------ what is wanted

    def offer(self, digest: bytes, source: bytes | Path, now: float) -> list[m.Message]:
        """Let the broker have a blob."""
        self._waiting.append(_Offer(digest, source))
        return self._begin(now)

    def fetch(self, digest: bytes, size: int, into: Path | None, now: float) -> list[m.Message]:
        """Get a blob from the broker."""
        self._waiting.append(_Fetch(digest, size, into))
        return self._begin(now)

    def cancel(self, digest: bytes, now: float) -> list[m.Message]:
        """End what is done about this blob, without an event. What came of it into a file stays for another time."""
        self._waiting = deque(each for each in self._waiting if each.digest != digest)
        told = self._open and (digest in self._offering or digest in self._fetching)
        self._end(digest, keep=True)
        out: list[m.Message] = [m.NoBlob(digest=digest, reason="cancelled")] if told else []
        return out + self._begin(now)

    @property
    def wanted(self) -> bool:
        """Is there anything to move?"""
        return bool(self._waiting or self._offering or self._fetching)

    def _begin(self, now: float) -> list[m.Message]:
        """Begin what waits, as far as others leave room; a digest is busy with one thing at a time."""
        out: list[m.Message] = []
        left: deque[_Offer | _Fetch] = deque()
        while self._waiting:
            each = self._waiting.popleft()
            if each.digest in self._offering and isinstance(each, _Offer):
                continue  # one `BlobOffered` answers both
            busy = self._offering if isinstance(each, _Offer) else self._fetching
            taken = each.digest in self._offering or each.digest in self._fetching
            if taken or len(busy) >= self._settings.parallel:
                left.append(each)
                continue
            try:
                out += self._begin_offer(each, now) if isinstance(each, _Offer) else self._begin_fetch(each, now)
            except OSError as error:
                reason, fetching = f"this side could not open it: {error.strerror or error}", isinstance(each, _Fetch)
                self._on_event(BlobFailed(digest=each.digest, reason=reason, fetching=fetching, full=is_full(error)))
        self._waiting = left
        return out

    def _begin_offer(self, wanted: _Offer, now: float) -> list[m.Message]:
        offering = self._offering[wanted.digest] = _Offering(wanted.digest, open_source(wanted.source))
        return self._offer_now(offering, now)

    def _begin_fetch(self, wanted: _Fetch, now: float) -> list[m.Message]:
        sink: Sink = MemorySink() if wanted.into is None else FileSink(wanted.into, wanted.size)
        receiver = Receiver(
            wanted.digest,
            wanted.size,
            chunk=self._chunk,
            window_bytes=self._settings.window,
            offset=sink.offset,
            patience=self._settings.patience,
        )
        fetching = _Fetching(wanted.digest, sink, receiver, clean=sink.offset == 0)
        self._fetching[wanted.digest] = fetching
        return self._go_on(fetching, now)

    # ------------------------------------------------------------------------------------------ the link

    def link_up(self) -> list[m.Message]:
        """The connection stands: introduce ourselves."""
        self._open = self.refused = False
        return [self._introduce]

    def link_down(self) -> None:
        """The connection is gone. What was under way is asked for again when it is back."""
        self._open = False
        self._sender = Sender(chunk=self._chunk)
        for fetching in self._fetching.values():
            fetching.receiver.resume()

    def _opened(self, opened: m.BlobChannelOpened, now: float) -> list[m.Message]:
        self.link_down()
        self._open = True
        self._chunk = max(1, min(self._settings.chunk, opened.chunk))
        self._sender = Sender(chunk=self._chunk)
        self._limit = opened.limit
        out: list[m.Message] = []
        for offering in list(self._offering.values()):
            offering.fruitless = 0
            out += self._offer_now(offering, now)
        for fetching in list(self._fetching.values()):
            fetching.receiver.chunk = self._chunk
            fetching.again_at = None
            out += self._go_on(fetching, now)
        return out

    # ------------------------------------------------------------------------------------------ what arrives

    def received(self, message: m.Message, frames: Sequence[m.Frame], now: float) -> list[m.Message]:
        """A message from the broker; what to send."""
        match message:
            case m.Chunk():
                return self._take(message, frames, now)
            case m.Pull():
                return self._asked(message)
            case m.Stored():
                if message.digest not in self._offering:
                    return []
                self._end(message.digest, keep=True)
                self._on_event(BlobOffered(digest=message.digest))
                return self._begin(now)
            case m.NoBlob():
                return self._refused(message, now)
            case m.BlobChannelOpened():
                return self._opened(message, now)
            case m.Stranger():
                return self.link_up()
            case m.Refused():
                self._open = False
                self.refused = True
                reason = f"the broker refused this connection ({message.code}): {message.reason}"
                for digest in [*self._offering, *self._fetching, *(each.digest for each in self._waiting)]:
                    self._fail(digest, reason)
                return []
            case _:
                return []

    def _asked(self, pull: m.Pull) -> list[m.Message]:
        offering = self._offering.get(pull.digest)
        if offering is None:
            return [m.NoBlob(digest=pull.digest, reason="this blob is not offered any longer")]
        offering.again_at = None  # the broker has taken up the offer: it drives from here
        try:
            self._sender.ask(pull, offering.source.size)
        except PullRefused as error:
            return [m.NoBlob(digest=pull.digest, reason=str(error))]
        return []

    def _take(self, chunk: m.Chunk, frames: Sequence[m.Frame], now: float) -> list[m.Message]:
        fetching = self._fetching.get(chunk.digest)
        if fetching is None or len(frames) != 1:
            return []
        try:
            for write in fetching.receiver.take(chunk, frames[0], now):
                fetching.sink.write(write.data)
        except ChunkRefused as error:
            return self._give_up(chunk.digest, str(error), now)
        except OSError as error:
            return self._could_not("write", chunk.digest, error, now)
        return self._go_on(fetching, now)

    def _go_on(self, fetching: _Fetching, now: float) -> list[m.Message]:
        """Ask for what is due; or end the transfer, when all is there."""
        receiver, digest = fetching.receiver, fetching.digest
        if receiver.state is TransferState.WHOLE:
            try:
                got = fetching.sink.finish()
            except OSError as error:
                return self._could_not("keep it", digest, error, now)
            del self._fetching[digest]
            self._on_event(
                BlobFetched(digest=digest, data=got) if isinstance(got, bytes) else BlobFetched(digest=digest, path=got)
            )
            return [*([m.Stored(digest=digest)] if self._open else []), *self._begin(now)]
        if receiver.state is TransferState.ALTERED:
            try:
                fetching.sink.truncate()
            except OSError as error:
                return self._could_not("write", digest, error, now)
            if fetching.clean:
                return self._give_up(digest, "expected bytes with the digest asked for, got others", now)
            fetching.clean = True  # it may be the part from earlier that was wrong
            receiver.restart()
        if not self._open or fetching.again_at is not None:
            return []
        return list(receiver.pulls(now))

    def _refused(self, refusal: m.NoBlob, now: float) -> list[m.Message]:
        offering, fetching = self._offering.get(refusal.digest), self._fetching.get(refusal.digest)
        if not refusal.retry_ms:
            self._fail(refusal.digest, refusal.reason, full=refusal.full)
            return self._begin(now)
        self._sender.drop(refusal.digest)
        if offering is not None:
            offering.again_at = now + refusal.retry_ms / 1000
        if fetching is not None:
            fetching.receiver.resume()
            fetching.again_at = now + refusal.retry_ms / 1000
        return []

    # ------------------------------------------------------------------------------------------ chunks to send

    @property
    def busy(self) -> bool:
        """Is there work that waits for nothing: chunks to send, or an earlier part to hash?"""
        return bool(self._sender) or any(each.receiver.to_absorb for each in self._fetching.values())

    @property
    def has_chunks(self) -> bool:
        """Do chunks wait to be sent?"""
        return bool(self._sender)

    def next_chunk(self, now: float) -> tuple[Piece, m.Frame] | list[m.Message]:
        """The next chunk to send, the blobs taking turns; or, when there is none, what to send in its place."""
        piece = self._sender.turn()
        if piece is None:
            return []
        try:
            return piece, self._offering[piece.digest].source.read(piece.offset, piece.length)
        except OSError as error:
            return self._could_not("read", piece.digest, error, now)

    def give_back(self, piece: Piece) -> None:
        """The link is full: the chunk was not sent."""
        self._sender.give_back(piece)

    def work(self, now: float) -> list[m.Message]:
        """Hash some of an earlier part, if there is one; what to send then."""
        out: list[m.Message] = []
        for fetching in list(self._fetching.values()):
            receiver = fetching.receiver
            if not receiver.to_absorb:
                continue
            at = receiver.position - receiver.to_absorb
            try:
                data = fetching.sink.read(at, min(ABSORB_BYTES, receiver.to_absorb))
                if data:
                    receiver.absorb(data)
                else:  # cut under us: nothing of it can be trusted
                    fetching.sink.truncate()
                    receiver.restart()
            except OSError as error:
                out += self._could_not("read", fetching.digest, error, now)
                continue
            if not receiver.to_absorb:
                out += self._go_on(fetching, now)
        return out

    # ------------------------------------------------------------------------------------------ time and endings

    def tick(self, now: float) -> list[m.Message]:
        """Time has passed: ask and offer again what is due. Call it at `next_timer`."""
        out: list[m.Message] = []
        for offering in list(self._offering.values()):
            if self._open and offering.again_at is not None and now >= offering.again_at:
                offering.fruitless = min(offering.fruitless + 1, 5)
                out += self._offer_now(offering, now)
        for fetching in list(self._fetching.values()):
            if fetching.again_at is not None and now >= fetching.again_at:
                fetching.again_at = None
            out += self._go_on(fetching, now)
        return out

    def next_timer(self) -> float | None:
        """When to call `tick`; None: never."""
        if not self._open:
            return None
        due = [each.again_at for each in self._offering.values()]
        due += [
            each.receiver.next_timer() if each.again_at is None else each.again_at for each in self._fetching.values()
        ]
        return min((when for when in due if when is not None), default=None)

    def close(self) -> None:
        """End everything, without events; what came into files stays for another time."""
        self._waiting.clear()
        for digest in [*self._offering, *self._fetching]:
            self._end(digest, keep=True)

    def _offer_now(self, offering: _Offering, now: float) -> list[m.Message]:
        if not self._open:
            return []
        size = offering.source.size
        if self._limit is not None and size > self._limit:
            self._fail(offering.digest, f"expected a blob of at most {self._limit} bytes, got {size}")
            return self._begin(now)
        offering.again_at = now + self._settings.patience * (1 << offering.fruitless)
        return [m.Offer(digest=offering.digest, size=size)]

    def _could_not(self, what: str, digest: bytes, error: OSError, now: float) -> list[m.Message]:
        """The disk of this side did not let us do ``what``."""
        return self._give_up(digest, f"this side could not {what}: {error.strerror or error}", now, full=is_full(error))

    def _give_up(self, digest: bytes, reason: str, now: float, *, full: bool = False) -> list[m.Message]:
        self._fail(digest, reason, full=full)
        return [*([m.NoBlob(digest=digest, reason=reason)] if self._open else []), *self._begin(now)]

    def _fail(self, digest: bytes, reason: str, *, full: bool = False) -> None:
        waiting = [each for each in self._waiting if each.digest == digest]
        self._waiting = deque(each for each in self._waiting if each.digest != digest)
        fetching = {isinstance(each, _Fetch) for each in waiting}
        if digest in self._offering or digest in self._fetching:
            fetching.add(digest in self._fetching)
        self._end(digest, keep=True)
        for each in sorted(fetching):
            self._on_event(BlobFailed(digest=digest, reason=reason, fetching=each, full=full))

    def _end(self, digest: bytes, *, keep: bool) -> None:
        self._sender.drop(digest)
        offering = self._offering.pop(digest, None)
        if offering is not None:
            offering.source.close()
        fetching = self._fetching.pop(digest, None)
        if fetching is not None:
            fetching.sink.close(keep=keep and fetching.sink.offset > 0)
