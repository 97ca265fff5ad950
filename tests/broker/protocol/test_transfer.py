"""One blob over a link: in order, lossy, reordered, broken, slow, fast, hostile. All under a virtual clock."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.protocol.errors import InvalidTransition
from broker.protocol.messages import Chunk, Pull
from broker.protocol.transfer import (
    MIN_WINDOW,
    SMALLEST_PULL,
    TRANSITIONS,
    ChunkRefused,
    PullRefused,
    Receiver,
    Sender,
    TransferState,
)

KB = 1024


def blob(size: int, seed: int = 0) -> tuple[bytes, bytes]:
    """The digest and the bytes of a blob."""
    data = random.Random(seed).randbytes(size)
    return hashlib.sha256(data).digest(), data


class Link:
    """A receiver and a sender, and between them a link under a virtual clock.

    ``lose(rng)``, ``copies(rng)`` and ``extra(rng)`` decide for each message; ``breaks``: after how many chunks the
    link breaks, once each: everything under way is gone, and the receiver resumes.
    """

    def __init__(
        self,
        data: bytes,
        receiver: Receiver,
        *,
        rate: float = 1e9,
        delay: float = 1e-4,
        rng: random.Random | None = None,
        lose: Callable[[random.Random], bool] = lambda rng: False,  # noqa: ARG005
        copies: Callable[[random.Random], int] = lambda rng: 1,  # noqa: ARG005
        extra: Callable[[random.Random], float] = lambda rng: 0.0,  # noqa: ARG005
        breaks: tuple[int, ...] = (),
        sender_chunk: int = 128 * KB,
    ) -> None:
        self.data = data
        self.receiver = receiver
        self.sender = Sender(chunk=sender_chunk)
        self.file = bytearray(data[: receiver.position])
        self.now = 0.0
        self.sent = 0  # bytes of chunks
        self.chunks = 0
        self.most_window = 0
        self.most_held = 0
        self._rate, self._delay, self._rng = rate, delay, rng or random.Random(0)
        self._lose, self._copies, self._extra = lose, copies, extra
        self._breaks = list(breaks)
        self._wire_free = 0.0
        self._queue: list[tuple[float, int, Pull | tuple[Chunk, bytes]]] = []
        self._n = 0

    def _put(self, at: float, message: Pull | tuple[Chunk, bytes]) -> None:
        if self._lose(self._rng):
            return
        for _ in range(self._copies(self._rng)):
            self._n += 1
            heapq.heappush(self._queue, (at + self._extra(self._rng), self._n, message))

    def _ask(self) -> None:
        for pull in self.receiver.pulls(self.now):
            self._put(self.now + self._delay, pull)

    def _answer(self) -> None:
        while (piece := self.sender.turn()) is not None:
            frame = self.data[piece.offset : piece.offset + piece.length]
            self._wire_free = max(self._wire_free, self.now) + len(frame) / self._rate
            self.sent += len(frame)
            self._put(
                self._wire_free + self._delay,
                (Chunk(digest=piece.digest, offset=piece.offset, size=piece.size), frame),
            )

    def run(self, *, steps: int = 100_000) -> TransferState:
        """Until the receiver has ended."""
        self._ask()
        for _ in range(steps):
            if self.receiver.state in (TransferState.WHOLE, TransferState.ALTERED):
                return self.receiver.state
            timer = self.receiver.next_timer()
            if self._queue and (timer is None or self._queue[0][0] <= timer):
                at, _, message = heapq.heappop(self._queue)
                self.now = max(self.now, at)
                if isinstance(message, Pull):
                    self.sender.ask(message, len(self.data))
                    self._answer()
                    continue
                for write in self.receiver.take(*message, self.now):
                    assert write.offset == len(self.file)
                    self.file += write.data
                self.chunks += 1
                if self._breaks and self.chunks >= self._breaks[0]:
                    self._breaks.pop(0)
                    self._queue.clear()
                    self.receiver.resume()
            else:
                assert timer is not None, "nothing is under way, and nothing will happen"
                self.now = max(self.now, timer)
            self.most_window = max(self.most_window, self.receiver.window)
            self.most_held = max(self.most_held, sum(map(len, self.receiver._early.values())))
            assert self.receiver._frontier - self.receiver.position <= self.most_window
            self._ask()
        raise AssertionError(f"no end after {steps} steps at {self.receiver.position} of {self.receiver.size}")


# ------------------------------------------------------------------------------------------------ honest links


@pytest.mark.parametrize("size", [0, 1, SMALLEST_PULL - 1, SMALLEST_PULL, MIN_WINDOW, MIN_WINDOW + 1, 3_000_001])
def test_an_orderly_link_carries_every_byte_once(size: int) -> None:
    """A blob of any size arrives whole, and no byte is sent twice."""
    digest, data = blob(size)
    link = Link(data, Receiver(digest, size))
    assert link.run() is TransferState.WHOLE
    assert bytes(link.file) == data
    assert link.sent == size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.integers(1, 600 * KB),
    seed=st.integers(0, 2**32),
    chunk=st.integers(1 * KB, 128 * KB),
    sender_chunk=st.integers(1 * KB, 128 * KB),
    window=st.integers(4 * KB, 300 * KB),
    loss=st.floats(0, 0.3),
    doubled=st.floats(0, 0.3),
    late=st.floats(0, 0.3),
    breaks=st.lists(st.integers(1, 40), max_size=4),
    offset=st.floats(0, 1),
)
@example(  # patience that had reached its bound once asked again without end
    size=45015,
    seed=307199,
    chunk=1024,
    sender_chunk=1024,
    window=4096,
    loss=0.21875,
    doubled=0.0,
    late=0.0,
    breaks=[],
    offset=0.0,
)
def test_any_link_that_lets_something_through_ends_with_the_right_bytes(
    size: int,
    seed: int,
    chunk: int,
    sender_chunk: int,
    window: int,
    loss: float,
    doubled: float,
    late: float,
    breaks: list[int],
    offset: float,
) -> None:
    """Messages lost, doubled and reordered, broken links, an earlier part: the blob is whole in the end, to the bit."""
    digest, data = blob(size, seed % 7)
    start = int(size * offset)
    receiver = Receiver(digest, size, chunk=chunk, window_bytes=window, offset=start)
    receiver.absorb(data[:start]) if start else None
    link = Link(
        data,
        receiver,
        rng=random.Random(seed),
        lose=lambda rng: rng.random() < loss,
        copies=lambda rng: 2 if rng.random() < doubled else 1,
        extra=lambda rng: rng.random() * 0.01 if rng.random() < late else 0.0,
        breaks=tuple(sorted(breaks)),
        sender_chunk=sender_chunk,
    )
    assert link.run() is TransferState.WHOLE
    assert bytes(link.file) == data
    assert link.most_held <= max(window, MIN_WINDOW)


def test_a_broken_link_costs_one_window_at_most() -> None:
    """Each break of the link makes at most a window's bytes travel twice."""
    digest, data = blob(8 << 20)
    link = Link(data, Receiver(digest, len(data)), breaks=(20, 60, 100, 140))
    assert link.run() is TransferState.WHOLE
    assert bytes(link.file) == data
    assert len(data) < link.sent <= len(data) + 4 * link.most_window


def test_a_restart_goes_on_at_the_end_of_the_partial_file() -> None:
    """After a restart only the rest is asked for; the part that was there is hashed again."""
    digest, data = blob(1 << 20)
    receiver = Receiver(digest, len(data), offset=700_000)
    assert receiver.pulls(0.0) == []
    for at in range(0, 700_000, 300_000):
        receiver.absorb(data[at : min(at + 300_000, 700_000)])
    link = Link(data, receiver)
    assert link.run() is TransferState.WHOLE
    assert link.sent == len(data) - 700_000


def test_a_complete_partial_file_needs_no_pull() -> None:
    """Where all bytes are there already, hashing them ends the transfer."""
    digest, data = blob(1000)
    receiver = Receiver(digest, 1000, offset=1000)
    receiver.absorb(data)
    assert receiver.state is TransferState.WHOLE


def test_the_window_follows_a_long_fat_link() -> None:
    """100 Mbit/s over 100 ms: the window grows to what the link holds, and the link is used."""
    digest, data = blob(24 << 20)
    link = Link(data, Receiver(digest, len(data)), rate=12.5e6, delay=0.05)
    assert link.run() is TransferState.WHOLE
    product = 12.5e6 * 0.1
    assert product < link.most_window < 3 * product
    assert len(data) / link.now > 0.6 * 12.5e6


def test_the_window_stays_small_on_a_short_link() -> None:
    """Where a round trip is a tenth of a millisecond the least window does, so that a break costs little."""
    digest, data = blob(8 << 20)
    link = Link(data, Receiver(digest, len(data)), rate=4e8, delay=5e-5)
    link.run()
    assert link.most_window < 1.5 * MIN_WINDOW


def test_a_link_slower_than_patience_is_not_flooded() -> None:
    """At 1 KB/s a chunk takes longer than patience: asking again stays the exception."""
    digest, data = blob(256 * KB)
    link = Link(data, Receiver(digest, len(data), patience=5.0), rate=1000.0, delay=0.3)
    assert link.run() is TransferState.WHOLE
    assert link.sent < 1.3 * len(data)


def test_patience_doubles_while_nothing_comes() -> None:
    """A silent sender is asked again at growing intervals, for the first missing range only."""
    digest, data = blob(100 * KB)
    receiver = Receiver(digest, len(data), patience=1.0)
    first = receiver.pulls(0.0)[0]
    asked_at = []
    for _ in range(8):
        timer = receiver.next_timer()
        assert timer is not None
        assert receiver.pulls(timer) == [first]
        asked_at.append(timer)
    assert asked_at == [1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 95.0, 127.0]
    assert receiver.fruitless == 8


# ------------------------------------------------------------------------------------------------ wrong bytes


def test_an_altered_byte_is_found() -> None:
    """A blob that differs in one bit from what its digest names is never whole; a second try from byte 0 can be."""
    digest, data = blob(300 * KB)
    altered = data[:200_000] + bytes([data[200_000] ^ 1]) + data[200_001:]
    receiver = Receiver(digest, len(data))
    assert Link(altered, receiver).run() is TransferState.ALTERED
    receiver.restart()
    assert receiver.position == 0
    link = Link(data, receiver)
    assert link.run() is TransferState.WHOLE
    assert bytes(link.file) == data


def test_an_empty_blob_of_another_digest_is_found() -> None:
    """No bytes at all have one digest only."""
    assert Receiver(bytes(32), 0).state is TransferState.ALTERED


@pytest.mark.parametrize(
    ("fields", "length", "sentence"),
    [
        ({"size": 1001}, 10, "got one of"),
        ({"digest": bytes(32)}, 10, "got one of"),
        ({"offset": 995}, 10, "got 995 to 1005"),
        ({"offset": 2**62}, 10, "asked for"),
        ({}, 0, "at least 1 byte"),
        ({}, 101, "at most 100 bytes"),
        ({"offset": 250}, 100, "within 300"),
    ],
)
def test_a_chunk_that_no_honest_sender_sends_is_refused(fields: dict[str, int], length: int, sentence: str) -> None:
    """Of another blob, outside it, empty, longer than was asked for, never asked for: refused, and nothing is taken."""
    digest, _ = blob(1000)
    receiver = Receiver(digest, 1000, chunk=100, window_bytes=300)
    assert len(receiver.pulls(0.0)) == 3
    values = {"digest": digest, "offset": 0, "size": 1000} | fields
    with pytest.raises(ChunkRefused, match=sentence):
        receiver.take(Chunk(**values), bytes(length), 0.1)  # type: ignore[arg-type]
    assert receiver.position == 0


def test_shorter_chunks_than_asked_for_are_taken() -> None:
    """A sender may cut what was asked for into smaller chunks."""
    digest, data = blob(1000)
    receiver = Receiver(digest, 1000)
    receiver.pulls(0.0)
    for at in range(0, 1000, 7):
        receiver.take(Chunk(digest=digest, offset=at, size=1000), data[at : at + 7], 0.1)
    assert receiver.state is TransferState.WHOLE


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_overlaps_and_duplicates_are_taken_once(data: st.DataObject) -> None:
    """Right bytes in any cut and order, overlapping or twice, give right bytes, appended in order without a gap."""
    size = data.draw(st.integers(1, 400))
    digest, content = blob(size)
    receiver = Receiver(digest, size, chunk=size, window_bytes=size)
    receiver.pulls(0.0)
    file = b""
    cuts = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, size)), max_size=30))
    for start, length in [*cuts, (0, size)]:
        end = min(start + length, size)
        for write in receiver.take(Chunk(digest=digest, offset=start, size=size), content[start:end], 0.1):
            assert write.offset == len(file)
            file += write.data
    assert file == content
    assert receiver.state is TransferState.WHOLE


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from([999, 1000]), st.binary(max_size=300)), min_size=1, max_size=50
    )
)
def test_whatever_comes_is_taken_or_refused(chunks: list[tuple[int, int, bytes]]) -> None:
    """Arbitrary chunks lead to a designed error or to an orderly state, and never to more bytes than the blob has."""
    digest, _ = blob(1000)
    receiver = Receiver(digest, 1000, chunk=250, window_bytes=500)
    written = 0
    for offset, size, frame in chunks:
        receiver.pulls(0.0)
        try:
            writes = receiver.take(Chunk(digest=digest, offset=offset, size=size), frame, 0.1)
        except ChunkRefused:
            continue
        written += sum(len(write.data) for write in writes)
        assert written == receiver.position <= 1000
    assert (written == 1000) == (receiver.state is TransferState.ALTERED)


def test_crumbs_do_not_pile_up() -> None:
    """A sender of one-byte chunks beyond a gap can't make the receiver keep more than a bounded number of pieces."""
    digest, data = blob(1 << 20)
    receiver = Receiver(digest, len(data), window_bytes=MIN_WINDOW)
    receiver.pulls(0.0)
    for at in range(1, 8 * KB, 2):
        receiver.take(Chunk(digest=digest, offset=at, size=len(data)), data[at : at + 1], 0.1)
    assert len(receiver._early) < 200


def test_what_the_caller_gets_wrong_is_a_value_error() -> None:
    """Offsets outside the blob, a window of nothing, and absorbing more than was there are the caller's mistakes."""
    digest, data = blob(10)
    for wrong in ({"offset": 11}, {"offset": -1}, {"chunk": 0}, {"window_bytes": 0}):
        with pytest.raises(ValueError, match="expected"):
            Receiver(digest, 10, **wrong)
    receiver = Receiver(digest, 10, offset=5)
    with pytest.raises(ValueError, match="at most 5 bytes"):
        receiver.absorb(data[:6])


def test_every_state_has_its_way_on() -> None:
    """The table names every state; WHOLE is the end; what it lacks is refused with the receiver's story."""
    assert set(TRANSITIONS) == set(TransferState)
    digest, data = blob(10)
    receiver = Receiver(digest, 10)
    receiver.pulls(0.0)
    receiver.take(Chunk(digest=digest, offset=0, size=10), data, 0.1)
    assert receiver.take(Chunk(digest=digest, offset=0, size=10), data, 0.2) == []
    assert receiver.pulls(9.0) == []
    assert receiver.next_timer() is None
    with pytest.raises(InvalidTransition, match="cannot go from whole to pulling") as caught:
        receiver.restart()
    assert any("pulling to whole at 10" in each for each in caught.value.story)


# ------------------------------------------------------------------------------------------------ the sender


def test_blobs_take_turns() -> None:
    """A small blob isn't stuck behind a large one: each gets a chunk in turn."""
    sender = Sender(chunk=10)
    sender.ask(Pull(digest=b"L" * 32, offset=0, length=35), 100)
    sender.ask(Pull(digest=b"S" * 32, offset=5, length=12), 50)
    pieces = iter(sender.turn, None)
    got = [(piece.digest[:1], piece.offset, piece.length, piece.size) for piece in pieces]
    assert got == [
        (b"L", 0, 10, 100),
        (b"S", 5, 10, 50),
        (b"L", 10, 10, 100),
        (b"S", 15, 2, 50),
        (b"L", 20, 10, 100),
        (b"L", 30, 5, 100),
    ]
    assert not sender
    assert sender.waiting == 0


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 101), (100, 1), (2**62, 1)])
def test_a_pull_outside_the_blob_is_refused(offset: int, length: int) -> None:
    """Empty ranges, and those that leave the blob, are refused with the sizes in the sentence."""
    with pytest.raises(PullRefused, match="within the blob's 100 bytes"):
        Sender().ask(Pull(digest=bytes(32), offset=offset, length=length), 100)


def test_what_is_asked_beyond_the_backlog_is_dropped() -> None:
    """A receiver that asks without end doesn't fill the sender's memory; the same range twice counts once."""
    sender = Sender(chunk=10, backlog=100, ranges=3)
    assert sender.ask(Pull(digest=bytes(32), offset=0, length=60), 1000)
    assert sender.ask(Pull(digest=bytes(32), offset=0, length=60), 1000)
    assert sender.waiting == 60
    assert not sender.ask(Pull(digest=bytes(32), offset=60, length=41), 1000)
    assert sender.ask(Pull(digest=bytes(32), offset=60, length=1), 1000)
    assert sender.ask(Pull(digest=bytes(32), offset=61, length=1), 1000)
    assert not sender.ask(Pull(digest=bytes(32), offset=62, length=1), 1000)


def test_a_piece_given_back_is_the_next_again() -> None:
    """What a full link didn't take comes first when the link has room."""
    sender = Sender(chunk=10)
    sender.ask(Pull(digest=b"a" * 32, offset=0, length=15), 100)
    sender.ask(Pull(digest=b"b" * 32, offset=0, length=10), 100)
    piece = sender.turn()
    assert piece is not None
    sender.give_back(piece)
    assert sender.waiting == 25
    assert sender.turn() == piece
    sender.drop(b"a" * 32)
    assert sender.waiting == 10
    last = sender.turn()
    assert last is not None
    assert last.digest == b"b" * 32
    assert sender.turn() is None
