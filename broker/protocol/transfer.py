"""How one blob moves: what to ask for, what to do with what comes, and what to answer.

The receiver drives. It asks for ranges (`Pull`), has at most a window of bytes under way, and so decides what it takes
and how fast; the sender only answers. The window follows the link: bandwidth times round trip, and never less than
`MIN_WINDOW`. What a broken link can cost is one window.

`Receiver` writes strictly in order, and holds early pieces in memory (never more than the window). So a partial
file is always the blob's beginning, and its length is the offset at which to resume, also after a restart.

Everything here is pure: time is an argument, in seconds, and reading and writing is the caller's.
"""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from broker.protocol.errors import InvalidTransition, ProtocolError
from broker.protocol.messages import Chunk, Frame, Pull

__all__ = [
    "CHUNK_BYTES",
    "ChunkRefused",
    "MAX_WINDOW",
    "MIN_WINDOW",
    "Piece",
    "PullRefused",
    "Receiver",
    "Sender",
    "TRANSITIONS",
    "TransferState",
    "Write",
]

CHUNK_BYTES = 128 * 1024
"""The largest chunk by default, in bytes."""

MIN_WINDOW = 128 * 1024
"""A receiver has this much under way even on the slowest link, in bytes."""

MAX_WINDOW = 8 << 20
"""... and no more than this on the fastest: what 1 Gbit/s over 64 ms needs. In bytes."""

SMALLEST_PULL = 16 * 1024
"""The shortest range that is asked for, the blob's end aside: shorter ones cost more in messages than they save."""

HEADROOM = 1.25
"""How far the window exceeds bandwidth times round trip, so that it finds out when the link has become faster. The gain
with which BBR probes (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016)."""

HEADROOM_AT_START = 2.0
"""... and before the link is known to be full: the window doubles each round trip, until `ROUNDS_TO_FULL` in a row have
brought less than a quarter more. (BBR's start-up, with a gain that needs no draining afterwards.)"""

ROUNDS_TO_FULL = 3

SAMPLES_PER_EPOCH = 32
"""The bandwidth is the best of this many samples, and of as many before them."""


class ChunkRefused(ProtocolError):
    """A chunk that no honest sender sends: outside the blob, never asked for, empty, or of a blob of another size."""


class PullRefused(ProtocolError):
    """A pull that no honest receiver sends: outside the blob, or empty."""


class TransferState(enum.Enum):
    """Where a `Receiver` stands."""

    READING_BACK = "reading_back"
    """The beginning is there from an earlier time, and is being hashed."""
    PULLING = "pulling"
    """The rest is asked for and comes in."""
    WHOLE = "whole"
    """All bytes are there, and have the digest that names them."""
    ALTERED = "altered"
    """All bytes are there, and have another digest."""


TRANSITIONS: dict[TransferState, frozenset[TransferState]] = {
    TransferState.READING_BACK: frozenset({TransferState.PULLING, TransferState.WHOLE, TransferState.ALTERED}),
    TransferState.PULLING: frozenset({TransferState.PULLING, TransferState.WHOLE, TransferState.ALTERED}),
    TransferState.WHOLE: frozenset(),
    TransferState.ALTERED: frozenset({TransferState.PULLING}),
}
"""What may follow what. Out of ALTERED leads `Receiver.restart` alone, which begins again at byte 0."""


@dataclass(frozen=True, slots=True)
class Write:
    """Append these bytes: they belong at ``offset``, which is where the last ones ended."""

    offset: int
    data: Frame


@dataclass(slots=True)
class _Asked:
    """A range that was asked for, at ``sent``, and has not come yet.

    How it stood then: ``delivered`` bytes had come in all, the last of them at ``last_byte``, asked for at
    ``last_asked``.
    """

    start: int
    end: int
    sent: float
    delivered: int
    last_byte: float
    last_asked: float
    again: bool = False


class _Link:
    """What the arrivals tell of the link: its bandwidth (best of late) and its round trip (least since it stands)."""

    __slots__ = ("_best", "_best_before", "_flat_rounds", "_peak", "_round_ends", "_samples", "round_trip")

    def __init__(self) -> None:
        self.round_trip: float | None = None
        self._best = 0.0
        self._best_before = 0.0
        self._samples = 0
        self._peak = 0.0  # the bandwidth when it last grew by a quarter
        self._flat_rounds = 0
        self._round_ends: int | None = None  # a question put when so many bytes had come begins the next round trip

    @property
    def bandwidth(self) -> float:
        """In bytes a second; 0: not known yet."""
        return max(self._best, self._best_before)

    def sample(self, asked: _Asked, now: float, delivered: int) -> None:
        """All of ``asked`` has come, and ``delivered`` bytes in all.

        The rate is judged over the longer of the time in which the bytes came and that in which they were asked for:
        what waited somewhere and then came in a burst says nothing of the link (Cheng et al., "Delivery Rate
        Estimation", draft-cheng-iccrg-delivery-rate-estimation, 2022).
        """
        round_trip, before = now - asked.sent, asked.delivered
        seconds = max(now - asked.last_byte, asked.sent - asked.last_asked)
        if round_trip <= 0:
            return
        if self.round_trip is None or round_trip < self.round_trip:
            self.round_trip = round_trip
        self._best = max(self._best, (delivered - before) / seconds)
        self._samples += 1
        if self._samples >= SAMPLES_PER_EPOCH:
            self._best_before, self._best, self._samples = self._best, 0.0, 0
        if self._round_ends is None or before >= self._round_ends:
            self._round_ends = delivered
            if self.bandwidth >= 1.25 * self._peak:
                self._peak, self._flat_rounds = self.bandwidth, 0
            else:
                self._flat_rounds += 1

    def window(self) -> int:
        gain = HEADROOM if self._flat_rounds >= ROUNDS_TO_FULL else HEADROOM_AT_START
        return max(MIN_WINDOW, int(gain * self.bandwidth * (self.round_trip or 0.0)))


class Receiver:
    """The receiving end of one blob.

    ``offset``: how many bytes of the blob are there already; hand them to `absorb`, in order, before anything is asked
    for. ``chunk``: the longest range to ask for at once; ``window_bytes``: the most to have under way; ``patience``:
    after how many seconds without a new byte the first missing range is asked for again, doubled each fruitless time.

    Send what `pulls` returns, at once and whenever `next_timer` is due; hand each chunk to `take` and append what that
    returns, until `state` is WHOLE or ALTERED. Call `resume` when the link was broken, or another sender takes over.
    """

    def __init__(
        self,
        digest: bytes,
        size: int,
        *,
        chunk: int = CHUNK_BYTES,
        window_bytes: int = MAX_WINDOW,
        offset: int = 0,
        patience: float = 10.0,
    ) -> None:
        if not 0 <= offset <= size:
            raise ValueError(f"expected an offset within the blob's {size} bytes, got {offset}")
        if chunk < 1 or window_bytes < 1:
            raise ValueError(f"expected a chunk and a window of at least 1 byte, got {chunk} and {window_bytes}")
        self.digest = digest
        self.size = size
        self.chunk = chunk
        self.window_bytes = window_bytes
        self.patience = patience
        self.state = TransferState.READING_BACK
        self.position = offset
        """How many bytes are there, from the blob's beginning without a gap."""
        self.fruitless = 0
        """How many times in a row patience has run out."""
        self._absorbed = 0
        self._hash = hashlib.sha256()
        self._story: deque[str] = deque([f"offset {offset} of {size}"], maxlen=8)
        self._asked: list[_Asked] = []  # sorted; exactly the bytes between position and _frontier that are missing
        self._frontier = offset  # where the next new range starts
        self._highest = offset  # the end of all that was ever asked for
        self._early: dict[int, bytes] = {}  # pieces beyond a gap: offset to bytes, none overlaps another
        self._delivered = 0
        self._link = _Link()
        self._last_byte = 0.0  # when the last new byte came, or when asking began
        self._last_asked = 0.0  # when that byte was asked for
        self._asked_again_at = 0.0
        self._longest_gap = 0.0  # between two bytes, of late
        if offset == 0:
            self._enter(TransferState.PULLING)
            self._check_whole()

    # ------------------------------------------------------------------------------------------ what is there

    @property
    def to_absorb(self) -> int:
        """How many bytes of the part that was there already `absorb` still waits for."""
        return self.position - self._absorbed if self.state is TransferState.READING_BACK else 0

    @property
    def window(self) -> int:
        """How many bytes may be under way, by what is known of the link."""
        return min(self.window_bytes, self._link.window())

    def absorb(self, data: Frame) -> None:
        """Hash the next bytes of the part that was there already."""
        if self.state is not TransferState.READING_BACK or len(data) > self.to_absorb:
            raise ValueError(f"expected at most {self.to_absorb} bytes to absorb, got {len(data)}")
        self._hash.update(data)
        self._absorbed += len(data)
        if not self.to_absorb:
            if self.position < self.size:
                self._enter(TransferState.PULLING)
            self._check_whole()

    # ------------------------------------------------------------------------------------------ what to ask for

    def pulls(self, now: float) -> list[Pull]:
        """What to ask for now: new ranges within the window; if patience has run out, the first missing one again."""
        if self.state is not TransferState.PULLING:
            return []
        due: list[Pull] = []
        if self._asked and now >= self._patience_ends():
            self.fruitless += 1
            self._asked_again_at = now
            first = self._asked[0]
            first.again = True
            due.append(self._pull(first.start, min(first.end, first.start + SMALLEST_PULL)))
        window = self.window
        # A quarter of the window, so that the link never runs dry; and no more than comes in a second.
        length = min(self.chunk, max(SMALLEST_PULL, min(window // 4, int(self._link.bandwidth))), window)
        while self._frontier < self.size:
            end = min(self._frontier + length, self.size)
            if end - self.position > window:  # early pieces count too: they are held in memory
                break
            if not self._asked:
                self._last_byte = self._last_asked = now
            self._asked.append(_Asked(self._frontier, end, now, self._delivered, self._last_byte, self._last_asked))
            due.append(self._pull(self._frontier, end))
            self._frontier = end
        self._highest = max(self._highest, self._frontier)
        return due

    def next_timer(self) -> float | None:
        """When `pulls` may next return something by the passing of time alone; None: never."""
        if self.state is not TransferState.PULLING or not self._asked:
            return None
        return self._patience_ends()

    def resume(self) -> None:
        """The link was broken, or another sender takes over: nothing is under way, and nothing known of the link."""
        self._asked.clear()
        self._early.clear()
        self._frontier = self.position
        self._link = _Link()
        self._longest_gap = 0.0
        self.fruitless = 0

    def restart(self) -> None:
        """What was there turned out to be something else: begin again at byte 0."""
        self.position = self._absorbed = 0
        self._hash = hashlib.sha256()
        self.resume()
        self._enter(TransferState.PULLING)
        self._check_whole()

    # ------------------------------------------------------------------------------------------ what comes

    def take(self, chunk: Chunk, frame: Frame, now: float) -> list[Write]:
        """What to append, now that this chunk has come. Nothing for what is there already, or comes early.

        Raises `ChunkRefused` for a chunk that no honest sender sends.
        """
        start, end = chunk.offset, chunk.offset + len(frame)
        self._judge(chunk, start, end)
        if self.state is not TransferState.PULLING:
            return []
        writes: list[Write] = []
        asked, k = self._asked, 0
        while k < len(asked) and asked[k].start < end:
            gap = asked[k]
            left, right = max(gap.start, start), min(gap.end, end)
            if left >= right:
                k += 1
                continue
            piece = frame if right - left == len(frame) else memoryview(frame)[left - start : right - start]
            if left > self.position and not self._hold(left, piece):
                k += 1
                continue
            rest = [part for part in ((gap.start, left), (right, gap.end)) if part[0] < part[1]]
            asked[k : k + 1] = [replace(gap, start=s, end=e) for s, e in rest]
            k += len(rest)
            self._arrived(gap, right - left, now, ended=not rest)
            if left == self.position:
                self._append(piece, writes)
        self._check_whole()
        return writes

    def _judge(self, chunk: Chunk, start: int, end: int) -> None:
        if chunk.digest != self.digest or chunk.size != self.size:
            raise ChunkRefused(
                f"expected a chunk of {self.digest.hex()} with {self.size} bytes, "
                f"got one of {chunk.digest.hex()} with {chunk.size} bytes"
            )
        if start == end:
            raise ChunkRefused(f"expected a chunk of at least 1 byte, got none at {start} of {self.size}")
        if end > self._highest or end - start > self.chunk:
            raise ChunkRefused(
                f"expected at most {self.chunk} bytes, asked for and within {self._highest}, got {start} to {end}"
            )

    def _hold(self, offset: int, piece: Frame) -> bool:
        """Keep an early piece. False: too many are kept; this one will be asked for again."""
        if len(self._early) >= 4 * self.window_bytes // SMALLEST_PULL + 64:  # a sender of crumbs
            return False
        self._early[offset] = bytes(piece)
        return True

    def _arrived(self, gap: _Asked, nbytes: int, now: float, *, ended: bool) -> None:
        self._delivered += nbytes
        # A wait that a second question ended was, most likely, for something lost: only what came after it counts.
        self._longest_gap = max(0.9 * self._longest_gap, now - self._waited_since())
        self._last_byte, self._last_asked = now, gap.sent
        self.fruitless = 0
        if ended and not gap.again:  # an answer to a question put twice tells nothing of the time it took (Karn)
            self._link.sample(gap, now, self._delivered)

    def _append(self, piece: Frame | None, writes: list[Write]) -> None:
        while piece is not None:
            self._hash.update(piece)
            writes.append(Write(self.position, piece))
            self.position += len(piece)
            piece = self._early.pop(self.position, None)

    def _pull(self, start: int, end: int) -> Pull:
        return Pull(digest=self.digest, offset=start, length=end - start)

    def _waited_since(self) -> float:
        return self._asked_again_at if self.fruitless else self._last_byte

    def _patience_ends(self) -> float:
        # On a slow link a chunk may take longer than anybody's patience; asking again would make it slower still.
        factor = max(1.0, 4 * self._longest_gap / self.patience) * (1 << min(self.fruitless, 5))
        return self._waited_since() + self.patience * min(factor, 32.0)

    def _check_whole(self) -> None:
        if self.position == self.size and self.to_absorb == 0:
            right = self._hash.digest() == self.digest
            self._enter(TransferState.WHOLE if right else TransferState.ALTERED)

    def _enter(self, state: TransferState) -> None:
        if state not in TRANSITIONS[self.state]:
            subject = f"the receiver of blob {self.digest.hex()}"
            raise InvalidTransition(subject, self.state.value, state.value, self._story)
        self._story.append(f"{self.state.value} to {state.value} at {self.position}")
        self.state = state


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk to read and send."""

    digest: bytes
    offset: int
    length: int
    size: int


class Sender:
    """The sending end of one link: what was asked for and is not sent yet, and whose turn it is.

    Blobs take turns, a chunk each, so that a small one isn't stuck behind a large one. ``backlog``: the most bytes to
    have waiting; what is asked beyond that is dropped, and a receiver asks again when its patience has run out.
    """

    def __init__(self, *, chunk: int = CHUNK_BYTES, backlog: int = 2 * MAX_WINDOW, ranges: int = 4096) -> None:
        self.chunk = chunk
        self.backlog = backlog
        self.waiting = 0
        """How many bytes are asked for and not sent yet."""
        self._ranges = 0
        self._most_ranges = ranges
        self._asked: OrderedDict[bytes, deque[tuple[int, int]]] = OrderedDict()
        self._sizes: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, pull: Pull, size: int) -> bool:
        """Take up a pull from a blob of ``size`` bytes; False: too much is waiting. Raises `PullRefused`."""
        start, end = pull.offset, pull.offset + pull.length
        if start >= end or end > size:
            raise PullRefused(f"expected a range within the blob's {size} bytes, got {start} to {end}")
        queue = self._asked.get(pull.digest)
        if queue is not None and (start, end) in queue:
            return True  # asked again out of impatience; it is on its way
        if self.waiting + pull.length > self.backlog or self._ranges >= self._most_ranges:
            return False
        if queue is None:
            queue = self._asked[pull.digest] = deque()
            self._sizes[pull.digest] = size
        queue.append((start, end))
        self._ranges += 1
        self.waiting += pull.length
        return True

    def turn(self) -> Piece | None:
        """The next chunk to read and send; None: nothing waits."""
        if not self._asked:
            return None
        digest, queue = next(iter(self._asked.items()))
        start, end = queue.popleft()
        self._ranges -= 1
        piece = Piece(digest, start, min(end - start, self.chunk), self._sizes[digest])
        self.waiting -= piece.length
        if start + piece.length < end:
            queue.appendleft((start + piece.length, end))
            self._ranges += 1
        if queue:
            self._asked.move_to_end(digest)
        else:
            del self._asked[digest], self._sizes[digest]
        return piece

    def give_back(self, piece: Piece) -> None:
        """The link is full: ``piece`` was not sent, and stays the first in line."""
        self._sizes[piece.digest] = piece.size
        self._asked.setdefault(piece.digest, deque()).appendleft((piece.offset, piece.offset + piece.length))
        self._asked.move_to_end(piece.digest, last=False)
        self._ranges += 1
        self.waiting += piece.length

    def drop(self, digest: bytes) -> None:
        """Forget what was asked of this blob."""
        for start, end in self._asked.pop(digest, ()):
            self.waiting -= end - start
            self._ranges -= 1
        self._sizes.pop(digest, None)
