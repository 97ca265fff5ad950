"""The broker's side and a peer's side of the blob channel, wired together in memory under a virtual clock."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections import deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.blob_effects import BlobArrived, BlobDelivered, BlobEvent, BlobLimits, BlobPeerRefused, Commit, Instruction
from broker.blob_exchange import BlobExchange
from broker.ledger.blobs import BlobStore, DirectoryBlobs, MemoryBlobs
from broker.protocol import messages as m
from broker.protocol.effects import Send
from broker.protocol.errors import ProtocolError
from edge_agent import blob_transfers as peer_side
from edge_agent.blob_transfers import BlobFailed, BlobFetched, BlobOffered, BlobSettings, BlobTransfers

KB = 1024
LIMITS = BlobLimits(chunk=16 * KB, window=64 * KB, patience=1.0, blob=1 << 20, transfers=3, incoming=4)


def digest_of(data: bytes) -> bytes:
    """The name of a blob."""
    return hashlib.sha256(data).digest()


def opening(name: str = "device_1", role: str = "device", version: tuple[int, int] = (1, 0)) -> m.OpenBlobChannel:
    """How a peer introduces itself."""
    return m.OpenBlobChannel(version=version, role=role, name=name)


class Broker:
    """An exchange with its events and what it has sent to whom; commits are made when the test says so, or at once."""

    def __init__(self, store: BlobStore | None = None, *, limits: BlobLimits = LIMITS, commit: bool = True) -> None:
        self.store = MemoryBlobs() if store is None else store
        self.events: list[BlobEvent] = []
        self.exchange = BlobExchange(self.store, limits=limits, on_event=self.events.append)
        self.sent: dict[bytes, deque[tuple[m.Message, tuple[m.Frame, ...]]]] = {}
        self.commits: list[Commit] = []
        self.commit = commit
        self.now = 0.0

    def do(self, instructions: list[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Commit):
                self.commits.append(each)
                if self.commit:
                    self.make_durable()
            else:
                self.sent.setdefault(each.peer, deque()).append((each.message, ()))

    def make_durable(self, error: OSError | None = None) -> None:
        commit = self.commits.pop(0)
        if error is None:
            commit.partial.commit()
        self.do(self.exchange.committed(commit.partial.digest, error, self.now))

    def say(self, peer: bytes, message: m.Message, *frames: bytes) -> list[m.Message]:
        """``message`` comes from ``peer``; all that was sent to that peer until now."""
        self.do(self.exchange.received(peer, message, frames, self.now))
        return self.take(peer)

    def take(self, peer: bytes) -> list[m.Message]:
        return [message for message, _ in self.sent.pop(peer, ())]

    def chunks(self) -> None:
        while (chunk := self.exchange.next_chunk()) is not None:
            if isinstance(chunk, Send):
                self.do([chunk])
            else:
                self.sent.setdefault(chunk.peer, deque()).append((chunk.message, (chunk.data,)))

    def open(self, peer: bytes, name: str = "device_1", role: str = "device") -> None:
        assert isinstance(self.say(peer, opening(name, role))[0], m.BlobChannelOpened)

    def offered(self, peer: bytes, data: bytes) -> list[m.Pull]:
        pulls = self.say(peer, m.Offer(digest=digest_of(data), size=len(data)))
        assert all(isinstance(each, m.Pull) for each in pulls)
        return [each for each in pulls if isinstance(each, m.Pull)]

    def answer(self, peer: bytes, data: bytes, pulls: list[m.Pull], *, digest: bytes | None = None) -> list[m.Message]:
        """Answer pulls until there are none; what came last."""
        digest = digest or digest_of(data)
        last: list[m.Message] = list(pulls)
        queue = deque(pulls)
        while queue:
            pull = queue.popleft()
            chunk = m.Chunk(digest=digest, offset=pull.offset, size=len(data))
            last = self.say(peer, chunk, data[pull.offset : pull.offset + pull.length])
            queue.extend(each for each in last if isinstance(each, m.Pull))
        return last


class Peer:
    """A peer's transfers, on a link of its own to the broker, which may break."""

    def __init__(self, name: str, role: str = "device", **options: float) -> None:
        self.events: list[peer_side.BlobEvent] = []
        config = BlobSettings(patience=1.0, chunk=16 * KB, window=64 * KB, **options)  # type: ignore[arg-type]
        self.transfers = BlobTransfers(config, introduce=opening(name, role), on_event=self.events.append)
        self.out: deque[tuple[m.Message, tuple[m.Frame, ...]]] = deque()
        self.routing_id = b""
        self.links = 0

    def put(self, messages: list[m.Message]) -> None:
        if self.routing_id:
            self.out.extend((each, ()) for each in messages)


class Net:
    """One broker, some peers, a virtual clock. Each `step` moves one message on one link, or lets time pass."""

    def __init__(self, broker: Broker, peers: list[Peer], seed: int = 0) -> None:
        self.broker = broker
        self.peers = peers
        self.rng = random.Random(seed)
        for peer in peers:
            self.connect(peer)

    def connect(self, peer: Peer) -> None:
        peer.links += 1
        peer.routing_id = f"{id(peer)}/{peer.links}".encode()
        peer.put(peer.transfers.link_up())

    def cut(self, peer: Peer, *, noticed: bool = True) -> None:
        """Everything under way on the peer's link is gone; the broker notices when it next sends, or not at all."""
        old, peer.routing_id = peer.routing_id, b""
        peer.out.clear()
        peer.transfers.link_down()
        self.broker.sent.pop(old, None)
        if noticed:
            self.broker.do(self.broker.exchange.gone(old, self.broker.now))

    def step(self) -> bool:
        """False: nothing is left to do but to wait for the clock, which is moved."""
        broker, now = self.broker, self.broker.now
        choices: list[tuple[str, Peer]] = []
        for peer in self.peers:
            if peer.out:
                choices.append(("up", peer))
            if broker.sent.get(peer.routing_id):
                choices.append(("down", peer))
            if peer.transfers.busy and peer.routing_id:
                choices.append(("chunk", peer))
        if choices:
            what, peer = self.rng.choice(choices)
            if what == "up":
                message, frames = peer.out.popleft()
                broker.do(broker.exchange.received(peer.routing_id, message, frames, now))
            elif what == "down":
                message, frames = broker.sent[peer.routing_id].popleft()
                peer.put(peer.transfers.received(message, frames, now))
            else:
                peer.put(peer.transfers.work(now))
                chunk = peer.transfers.next_chunk(now)
                if isinstance(chunk, list):
                    peer.put(chunk)
                else:
                    piece, data = chunk
                    message = m.Chunk(digest=piece.digest, offset=piece.offset, size=piece.size)
                    peer.out.append((message, (bytes(data),)))
            broker.now += 1e-5
            return True
        if broker.exchange.busy:
            broker.do(broker.exchange.work(now))
            broker.chunks()
            return True
        timers = [
            broker.exchange.next_timer(),
            *(each.transfers.next_timer() for each in self.peers if each.routing_id),
        ]
        due = [each for each in timers if each is not None]
        if not due:
            return False
        broker.now = max(now, min(due))
        broker.do(broker.exchange.tick(broker.now))
        for each in self.peers:
            each.put(each.transfers.tick(broker.now))
        return False

    def settle(self, *, steps: int = 50_000) -> None:
        """Until no peer has anything left to move."""
        for _ in range(steps):
            if not any(peer.transfers.wanted for peer in self.peers):
                return
            self.step()
        raise AssertionError(f"still wanted after {steps} steps")


# ------------------------------------------------------------------------------------------------ both sides


def test_up_and_down() -> None:
    """A blob that one peer offers is stored, announced and had by another; both ways are counted by peer."""
    broker, giver, taker = Broker(), Peer("giver"), Peer("taker", role="session")
    net = Net(broker, [giver, taker])
    data = os.urandom(200 * KB)
    digest = digest_of(data)
    giver.put(giver.transfers.offer(digest, data, 0.0))
    net.settle()
    assert giver.events == [BlobOffered(digest=digest)]
    taker.put(taker.transfers.fetch(digest, len(data), None, 0.0))
    net.settle()
    assert taker.events == [BlobFetched(digest=digest, data=data)]
    while net.step():
        pass
    assert broker.events == [
        BlobArrived(digest=digest, size=len(data), role="device", name="giver"),
        BlobDelivered(digest=digest, role="session", name="taker"),
    ]
    counts = broker.exchange.counts()
    assert (counts["device", "giver"].blobs_in, counts["device", "giver"].bytes_in) == (1, len(data))
    assert (counts["session", "taker"].blobs_out, counts["session", "taker"].bytes_out) == (1, len(data))
    total = broker.exchange.total()
    assert (total.blobs_in, total.blobs_out, total.bytes_in, total.bytes_out) == (1, 1, len(data), len(data))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(0, 150 * KB), min_size=1, max_size=7),
    cuts=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 2), st.booleans()), max_size=8),
)
def test_whatever_links_break_every_blob_arrives(
    seed: int, sizes: list[int], cuts: list[tuple[int, int, bool]]
) -> None:
    """Three peers offer the same blobs, and fetch them, over links that break at any time: all end whole."""
    broker = Broker()
    peers = [Peer("a"), Peer("b"), Peer("c")]
    net = Net(broker, peers, seed)
    blobs = {digest_of(data): data for data in (random.Random(n).randbytes(n) for n in sizes)}
    for peer in peers:
        for digest, data in blobs.items():
            peer.put(peer.transfers.offer(digest, data, broker.now))
    for after, who, noticed in cuts:
        for _ in range(after):
            net.step()
        net.cut(peers[who], noticed=noticed)
        net.connect(peers[who])
    net.settle()
    for peer in peers:
        assert sorted(event.digest for event in peer.events) == sorted(blobs)
        assert all(isinstance(event, BlobOffered) for event in peer.events)
        peer.events.clear()
        for digest, data in blobs.items():
            peer.put(peer.transfers.fetch(digest, len(data), None, broker.now))
    for after, who, noticed in cuts:
        for _ in range(after):
            net.step()
        net.cut(peers[who], noticed=noticed)
        net.connect(peers[who])
    net.settle()
    for peer in peers:
        got = {event.digest: event.data for event in peer.events if isinstance(event, BlobFetched)}
        assert got == blobs
    assert sum(isinstance(event, BlobArrived) for event in broker.events) == len(blobs)
    assert broker.exchange._incoming == {}
    assert all(peer.incoming == 0 for peer in broker.exchange._peers.values())


def test_a_file_that_broke_off_is_taken_up(tmp_path: Path) -> None:
    """A part that an earlier process left is hashed, and only the rest is pulled; then the file has its name."""
    broker, peer = Broker(), Peer("device_1")
    net = Net(broker, [peer])
    data = os.urandom(300 * KB)
    digest = broker.store.put_bytes(data)
    (tmp_path / "weights.part").write_bytes(data[: 250 * KB])
    peer.put(peer.transfers.fetch(digest, len(data), tmp_path / "weights", 0.0))
    net.settle()
    assert peer.events == [BlobFetched(digest=digest, path=tmp_path / "weights")]
    assert (tmp_path / "weights").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert broker.exchange.total().bytes_out == 50 * KB


def test_a_wrong_part_is_dropped_and_the_blob_had_from_the_start(tmp_path: Path) -> None:
    """A part of something else costs a second try, not the blob."""
    broker, peer = Broker(), Peer("device_1")
    net = Net(broker, [peer])
    data = os.urandom(100 * KB)
    digest = broker.store.put_bytes(data)
    (tmp_path / "weights.part").write_bytes(b"something else")
    peer.put(peer.transfers.fetch(digest, len(data), tmp_path / "weights", 0.0))
    net.settle()
    assert peer.events == [BlobFetched(digest=digest, path=tmp_path / "weights")]
    assert (tmp_path / "weights").read_bytes() == data


def test_an_altered_blob_is_refused_and_nothing_of_it_kept(tmp_path: Path) -> None:
    """A file at the broker that a disk has altered is not taken, and leaves no part behind."""
    store = DirectoryBlobs(tmp_path / "broker", sync=False)  # this one does not look at what it serves
    broker, peer = Broker(store), Peer("device_1")
    net = Net(broker, [peer])
    data = os.urandom(100 * KB)
    digest = store.put_bytes(data)
    store.path(digest).write_bytes(data[:-1] + b"?")
    (tmp_path / "device").mkdir()
    peer.put(peer.transfers.fetch(digest, len(data), tmp_path / "device" / "weights", 0.0))
    net.settle()
    (failed,) = peer.events
    assert isinstance(failed, BlobFailed)
    assert failed.reason == "expected bytes with the digest asked for, got others"
    assert list((tmp_path / "device").iterdir()) == []


def test_more_than_fits_at_once_waits_its_turn() -> None:
    """Blobs beyond what a peer moves at once follow when others are done; beyond what the broker takes, later."""
    broker = Broker(limits=BlobLimits(chunk=16 * KB, window=64 * KB, transfers=1, patience=1.0))
    peer = Peer("device_1", parallel=3)
    net = Net(broker, [peer])
    blobs = [os.urandom(40 * KB) for _ in range(8)]
    for data in blobs:
        peer.put(peer.transfers.offer(digest_of(data), data, 0.0))
        peer.put(peer.transfers.offer(digest_of(data), data, 0.0))
    assert len(peer.transfers._offering) == 3
    net.settle()
    assert {event.digest for event in peer.events} == {digest_of(data) for data in blobs}
    assert all(isinstance(event, BlobOffered) for event in peer.events)


def test_cancelled_transfers_say_nothing_more() -> None:
    """A cancelled offer and a cancelled fetch give no event, and the broker stops asking and sending."""
    broker, peer = Broker(), Peer("device_1")
    net = Net(broker, [peer])
    up, down = os.urandom(500 * KB), os.urandom(500 * KB)
    broker.store.put_bytes(down)
    peer.put(peer.transfers.offer(digest_of(up), up, 0.0))
    peer.put(peer.transfers.fetch(digest_of(down), len(down), None, 0.0))
    for _ in range(40):
        net.step()
    peer.put(peer.transfers.cancel(digest_of(up), broker.now))
    peer.put(peer.transfers.cancel(digest_of(down), broker.now))
    assert not peer.transfers.wanted
    while net.step():
        pass
    assert peer.events == []
    total = broker.exchange.total()
    assert total.bytes_in + total.bytes_out < 400 * KB


def test_a_file_that_cannot_be_opened_fails_by_name(tmp_path: Path) -> None:
    """A source that isn't there, and a folder that isn't there, end in events that say so."""
    peer = Peer("device_1")
    peer.transfers.offer(bytes(32), tmp_path / "none", 0.0)
    peer.transfers.fetch(bytes(32), 10, tmp_path / "none" / "file", 0.0)
    offered, fetched = peer.events
    assert isinstance(offered, BlobFailed)
    assert isinstance(fetched, BlobFailed)
    assert (offered.fetching, fetched.fetching) == (False, True)
    assert offered.reason == fetched.reason == "this side could not open it: No such file or directory"
    assert not fetched.full


def test_a_refused_peer_hears_why(tmp_path: Path) -> None:
    """A peer of another major version is refused with both versions; all that it wanted fails with the reason."""
    broker, peer = Broker(), Peer("device_1")
    peer.transfers._introduce = opening(version=(2, 0))
    net = Net(broker, [peer])
    peer.put(peer.transfers.offer(digest_of(b"x"), b"x", 0.0))
    peer.put(peer.transfers.fetch(bytes(32), 10, tmp_path / "file", 0.0))
    net.settle()
    reasons = {event.reason for event in peer.events if isinstance(event, BlobFailed)}
    assert reasons == {"the broker refused this connection (version): expected protocol version 1, got 2"}
    assert len(peer.events) == 2
    assert peer.transfers.refused


# ------------------------------------------------------------------------------------------------ the broker alone


def test_a_stranger_must_introduce_itself() -> None:
    """Whoever speaks before introducing itself, or after it was forgotten, is told so."""
    broker = Broker()
    assert broker.say(b"p", m.Offer(digest=bytes(32), size=1)) == [m.Stranger()]
    broker.open(b"p")
    broker.now = LIMITS.idle + 1
    broker.do(broker.exchange.tick(broker.now))
    assert broker.say(b"p", m.Pull(digest=bytes(32), offset=0, length=1)) == [m.Stranger()]


@pytest.mark.parametrize(("role", "name"), [("observer", "x"), ("device", ""), ("device", "x" * 65)])
def test_a_peer_without_a_role_is_refused(role: str, name: str) -> None:
    """Roles are device and session, and a name is short."""
    (refused,) = Broker().say(b"p", opening(name, role))
    assert isinstance(refused, m.Refused)
    assert refused.code == m.RefusalCode.NOT_ALLOWED


def test_a_known_blob_is_not_pulled_again() -> None:
    """The broker has a blob once: whoever offers it hears at once that it is stored."""
    broker = Broker()
    digest = broker.store.put_bytes(b"known")
    broker.open(b"p")
    assert broker.say(b"p", m.Offer(digest=digest, size=5)) == [m.Stored(digest=digest)]
    assert broker.exchange.total().bytes_in == 0


def test_limits_are_kept() -> None:
    """Too large, too many from one peer or in all, a full store: each is answered, what passes with a time."""
    broker = Broker(MemoryBlobs(quota=900 * KB))
    for peer in (b"p", b"q"):
        broker.open(peer, peer.decode())
    (no,) = broker.say(b"p", m.Offer(digest=bytes(32), size=LIMITS.blob + 1))
    assert isinstance(no, m.NoBlob)
    assert (no.retry_ms, no.full, no.reason) == (
        0,
        False,
        f"expected at most {LIMITS.blob} bytes, got {LIMITS.blob + 1}",
    )
    (no,) = broker.say(b"p", m.Offer(digest=bytes(32), size=1000 * KB))
    assert isinstance(no, m.NoBlob)
    assert "got a quota of" in no.reason
    assert no.full
    blobs = [os.urandom(100 * KB) for _ in range(6)]
    for data in blobs[:3]:
        assert broker.offered(b"p", data)
    (no,) = broker.say(b"p", m.Offer(digest=digest_of(blobs[3]), size=100 * KB))
    assert isinstance(no, m.NoBlob)
    assert no.retry_ms > 0
    assert broker.offered(b"q", blobs[4])
    (no,) = broker.say(b"q", m.Offer(digest=digest_of(blobs[5]), size=100 * KB))
    assert isinstance(no, m.NoBlob)
    assert no.retry_ms > 0


def test_room_is_made_from_transfers_that_were_left() -> None:
    """A transfer whose peer is gone gives its place to a new one; what came of it is taken up when its peer returns."""
    broker = Broker(MemoryBlobs(spill=0))
    blobs = [os.urandom(200 * KB) for _ in range(5)]
    for n, data in enumerate(blobs[:4]):
        broker.open(b"%d" % n, f"device_{n}")
        (first, *_) = broker.offered(b"%d" % n, data)
        broker.say(b"%d" % n, m.Chunk(digest=first.digest, offset=0, size=len(data)), data[: first.length])
    broker.do(broker.exchange.gone(b"2", 1.0))
    broker.open(b"4", "device_4")
    assert broker.offered(b"4", blobs[4])
    broker.do(broker.exchange.gone(b"0", 1.0))
    broker.open(b"2'", "device_2")
    assert broker.say(b"2'", m.Offer(digest=digest_of(blobs[2]), size=len(blobs[2]))) == []
    assert broker.exchange.busy
    broker.do(broker.exchange.work(1.0))
    pulls = [each for each in broker.take(b"2'") if isinstance(each, m.Pull)]
    assert pulls[0].offset == 16 * KB
    broker.exchange.close()


def test_a_peer_that_returns_goes_on_where_it_stood() -> None:
    """The same device on a new connection takes over its own transfer at once, though the old link looks alive."""
    broker = Broker()
    data = os.urandom(200 * KB)
    broker.open(b"old")
    first = broker.offered(b"old", data)[0]
    broker.say(b"old", m.Chunk(digest=first.digest, offset=0, size=len(data)), data[: first.length])
    broker.open(b"new")
    pulls = broker.offered(b"new", data)
    assert pulls[0].offset == first.length
    assert broker.say(b"old", m.Chunk(digest=first.digest, offset=first.length, size=len(data)), b"!") == []
    assert broker.answer(b"new", data, pulls) == [m.Stored(digest=first.digest)]
    assert broker.store.read(first.digest) == data


def test_a_second_giver_takes_over() -> None:
    """Of two peers with the same blob one is asked; when it is gone, the other is, from where the first left off."""
    broker = Broker()
    data = os.urandom(200 * KB)
    broker.open(b"p", "p")
    broker.open(b"q", "q")
    first = broker.offered(b"p", data)[0]
    assert broker.offered(b"q", data) == []
    broker.say(b"p", m.Chunk(digest=first.digest, offset=0, size=len(data)), data[: first.length])
    broker.say(b"p", m.Goodbye())
    pulls = [each for each in broker.take(b"q") if isinstance(each, m.Pull)]
    assert pulls[0].offset == first.length
    assert broker.answer(b"q", data, pulls) == [m.Stored(digest=first.digest)]
    assert broker.events == [BlobArrived(digest=first.digest, size=len(data), role="device", name="q")]


def test_a_silent_giver_makes_way() -> None:
    """A giver that doesn't answer is asked again, then another one is; with no other it counts as gone in the end."""
    broker = Broker()
    data = os.urandom(200 * KB)
    broker.open(b"p", "p")
    broker.open(b"q", "q")
    broker.offered(b"p", data)
    broker.offered(b"q", data)
    asked = []
    for _ in range(4):
        timer = broker.exchange.next_timer()
        assert timer is not None
        broker.now = timer
        broker.do(broker.exchange.tick(timer))
        asked.append(["pq"[each == b"q"] for each in (b"p", b"q") for _ in broker.take(each)][:1])
    assert asked == [["p"], ["q"], ["q"], ["p"]]
    broker.say(b"q", m.Goodbye())
    for _ in range(6):
        timer = broker.exchange.next_timer()
        assert timer is not None
        broker.now = timer
        broker.do(broker.exchange.tick(timer))
    assert not broker.exchange._incoming[digest_of(data)].sources


def test_altered_bytes_are_refused_and_dropped() -> None:
    """A giver of wrong bytes is told and reported; the next giver starts from byte 0 and succeeds."""
    broker = Broker()
    data = os.urandom(100 * KB)
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    digest = digest_of(data)
    for peer in ("p", "q"):
        broker.open(peer.encode(), peer)
    pulls = broker.offered(b"p", data)
    broker.offered(b"q", data)
    last = broker.answer(b"p", wrong, pulls, digest=digest)
    assert last == [m.NoBlob(digest=digest, reason="expected bytes with the digest offered, got others")]
    assert not broker.store.has(digest)
    assert isinstance(broker.events[0], BlobPeerRefused)
    assert (broker.events[0].name, broker.events[0].digest) == ("p", digest)
    pulls = [each for each in broker.take(b"q") if isinstance(each, m.Pull)]
    assert pulls[0].offset == 0
    assert broker.answer(b"q", data, pulls) == [m.Stored(digest=digest)]
    assert broker.store.read(digest) == data


def test_wrong_bytes_of_one_giver_do_not_condemn_the_next() -> None:
    """Where the beginning came from another giver, the one that brought the end may begin again."""
    broker = Broker()
    data = os.urandom(100 * KB)
    digest = digest_of(data)
    for peer in ("p", "q"):
        broker.open(peer.encode(), peer)
    first = broker.offered(b"p", data)[0]
    broker.offered(b"q", data)
    broker.say(b"p", m.Chunk(digest=digest, offset=0, size=len(data)), bytes(first.length))
    broker.say(b"p", m.Goodbye())
    pulls = [each for each in broker.take(b"q") if isinstance(each, m.Pull)]
    assert broker.answer(b"q", data, pulls) == [m.Stored(digest=digest)]
    assert broker.store.read(digest) == data


def test_a_size_that_disagrees_waits_for_the_other() -> None:
    """Two sizes for one digest: one is wrong, and the digest will tell which."""
    broker = Broker()
    data = os.urandom(100 * KB)
    for peer in ("p", "q"):
        broker.open(peer.encode(), peer)
    pulls = broker.say(b"p", m.Offer(digest=digest_of(data), size=10 * KB))
    (later,) = broker.say(b"q", m.Offer(digest=digest_of(data), size=len(data)))
    assert isinstance(later, m.NoBlob)
    assert later.retry_ms > 0
    asked = [each for each in pulls if isinstance(each, m.Pull)]
    (no,) = broker.answer(b"p", data[: 10 * KB], asked, digest=digest_of(data))
    assert isinstance(no, m.NoBlob)
    assert broker.answer(b"q", data, broker.offered(b"q", data)) == [m.Stored(digest=digest_of(data))]


@pytest.mark.parametrize("size", [0, 10])
def test_an_offer_under_the_wrong_name_ends(size: int) -> None:
    """Also an empty blob has to have the digest that it is offered under, whoever offers it."""
    broker = Broker()
    broker.open(b"p", "p")
    pulls = [each for each in broker.say(b"p", m.Offer(digest=bytes(32), size=size)) if isinstance(each, m.Pull)]
    if size:
        broker.answer(b"p", bytes(size), pulls, digest=bytes(32))
    assert broker.store.count == 0
    assert broker.exchange._incoming == {}


def test_stored_is_said_after_the_sync() -> None:
    """Nobody hears that a blob is stored before it is durable; whoever offers it meanwhile hears it then, too."""
    broker = Broker(commit=False)
    data = os.urandom(1000)
    broker.open(b"p", "p")
    broker.open(b"q", "q")
    assert broker.answer(b"p", data, broker.offered(b"p", data)) == []
    assert broker.offered(b"q", data) == []
    broker.say(b"p", m.Goodbye())
    broker.make_durable()
    assert broker.take(b"p") == []
    assert broker.take(b"q") == [m.Stored(digest=digest_of(data))]
    assert broker.events == [BlobArrived(digest=digest_of(data), size=1000, role="device", name="p")]


def test_a_disk_that_fails_is_told() -> None:
    """When a blob can't be made durable its giver hears why, and may offer it again."""
    broker = Broker(commit=False)
    data = os.urandom(1000)
    broker.open(b"p", "p")
    broker.answer(b"p", data, broker.offered(b"p", data))
    broker.make_durable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert broker.take(b"p") == [
        m.NoBlob(digest=digest_of(data), reason="the broker could not keep it: No space left on device", full=True)
    ]
    assert broker.answer(b"p", data, broker.offered(b"p", data)) == []
    broker.make_durable()
    assert broker.store.read(digest_of(data)) == data


def test_a_full_disk_is_told_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that a disk refuses ends that transfer with the disk's own words, and nothing else."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    broker, peer = Broker(), Peer("device_1")
    net = Net(broker, [peer])
    up, down = os.urandom(1000), os.urandom(1000)
    broker.store.put_bytes(down)
    with monkeypatch.context() as patched:
        patched.setattr("broker.ledger.blobs._HeldPartial.write", full)
        patched.setattr("edge_agent.blob_files.MemorySink.write", full)
        peer.put(peer.transfers.offer(digest_of(up), up, 0.0))
        peer.put(peer.transfers.fetch(digest_of(down), len(down), None, 0.0))
        net.settle()
    told = {event.fetching: (event.reason, event.full) for event in peer.events if isinstance(event, BlobFailed)}
    assert told == {
        False: ("the broker could not write: No space left on device", True),
        True: ("this side could not write: No space left on device", True),
    }
    peer.put(peer.transfers.offer(digest_of(up), up, broker.now))
    net.settle()
    assert peer.events[-1] == BlobOffered(digest=digest_of(up))


def test_what_is_pulled_and_not_there_is_said() -> None:
    """An unknown blob, a range outside it, and a blob evicted in the middle each have their answer."""
    broker = Broker()
    broker.open(b"p")
    (no,) = broker.say(b"p", m.Pull(digest=bytes(32), offset=0, length=1))
    assert no == m.NoBlob(digest=bytes(32), reason="the broker does not have it")
    digest = broker.store.put_bytes(b"0123456789")
    (no,) = broker.say(b"p", m.Pull(digest=digest, offset=5, length=6))
    assert no == m.NoBlob(digest=digest, reason="expected a range within the blob's 10 bytes, got 5 to 11")
    broker.say(b"p", m.Pull(digest=digest, offset=0, length=5))
    broker.store.delete(digest)
    broker.chunks()
    assert broker.take(b"p") == [m.NoBlob(digest=digest, reason=f"there is no blob {digest.hex()}")]


def test_peers_take_turns_and_a_full_link_holds_up_nobody_else() -> None:
    """Chunks go to each peer in turn; one whose link is full keeps its place, and the others go on."""
    broker = Broker()
    data = os.urandom(64 * KB)
    digest = broker.store.put_bytes(data)
    for peer in (b"p", b"q"):
        broker.open(peer, peer.decode())
        broker.say(peer, m.Pull(digest=digest, offset=0, length=64 * KB))
    order = []
    for _ in range(4):
        chunk = broker.exchange.next_chunk()
        assert chunk is not None
        assert not isinstance(chunk, Send)
        order.append((chunk.peer, chunk.piece.offset))
    assert order == [(b"p", 0), (b"q", 0), (b"p", 16 * KB), (b"q", 16 * KB)]
    full = broker.exchange.next_chunk()
    assert full is not None
    assert not isinstance(full, Send)
    broker.exchange.give_back(full)
    assert broker.exchange.held_up
    broker.chunks()
    assert len(broker.take(b"q")) == 2
    assert b"p" not in broker.sent
    broker.exchange.unblock()
    assert broker.exchange.next_chunk() == full
    assert broker.exchange.total().bytes_out == 7 * 16 * KB


def test_a_transfer_that_nobody_returns_to_is_closed() -> None:
    """After a while what came of it is the store's alone, ready for another time."""
    broker = Broker(MemoryBlobs(spill=0))
    data = os.urandom(100 * KB)
    broker.open(b"p", "p")
    first = broker.offered(b"p", data)[0]
    broker.say(b"p", m.Chunk(digest=first.digest, offset=0, size=len(data)), data[: first.length])
    broker.say(b"p", m.Goodbye())
    assert broker.exchange.next_timer() == LIMITS.keep
    broker.do(broker.exchange.tick(LIMITS.keep))
    assert broker.exchange._incoming == {}
    assert broker.exchange.next_timer() is None
    partial = broker.store.begin(first.digest, len(data))
    assert partial.offset == first.length
    partial.abandon()


def test_refusals_are_reported_once_a_second() -> None:
    """A peer that sends rubbish fills no log: one report a second, which says how many it stands for."""
    broker = Broker()
    for n in range(100):
        broker.now = n * 0.025
        broker.open(b"p")
        broker.do(broker.exchange.malformed(b"p", ProtocolError("rubbish"), broker.now))
        assert isinstance(broker.take(b"p")[0], m.Refused)
    assert [event.unreported for event in broker.events if isinstance(event, BlobPeerRefused)] == [0, 39, 39]


def test_messages_that_do_not_belong_here_are_refused() -> None:
    """A message of another conversation, and a chunk without its frame, end the peer's introduction, nothing else."""
    broker = Broker()
    for message in (m.Heartbeat(), m.Chunk(digest=bytes(32), offset=0, size=1)):
        broker.open(b"p")
        (refused,) = broker.say(b"p", message)
        assert isinstance(refused, m.Refused)
        assert refused.code == "malformed"
        assert broker.say(b"p", m.Goodbye()) == [m.Stranger()]


MESSAGES = st.one_of(
    st.builds(m.Offer, digest=st.sampled_from([bytes(32), b"1" * 32]), size=st.integers(0, 100 * KB)),
    st.builds(
        m.Pull,
        digest=st.sampled_from([bytes(32), b"1" * 32, digest_of(b"known")]),
        offset=st.integers(0, 10),
        length=st.integers(0, 10),
    ),
    st.builds(
        m.Chunk,
        digest=st.sampled_from([bytes(32), b"1" * 32]),
        offset=st.integers(0, 100 * KB),
        size=st.sampled_from([10, 100 * KB]),
    ),
    st.builds(m.Stored, digest=st.sampled_from([bytes(32), digest_of(b"known")])),
    st.builds(m.NoBlob, digest=st.sampled_from([bytes(32), digest_of(b"known")])),
    st.just(m.Goodbye()),
    st.just(m.Stranger()),
    st.just(opening()),
    st.just(opening(version=(9, 9))),
)


@settings(max_examples=80, deadline=None)
@given(
    script=st.lists(
        st.tuples(st.sampled_from([b"p", b"q"]), MESSAGES, st.lists(st.binary(max_size=40), max_size=2)), max_size=60
    ),
    honest=st.integers(1, 60 * KB),
)
def test_no_order_of_messages_harms_the_broker(script: list[tuple[bytes, m.Message, list[bytes]]], honest: int) -> None:
    """After any messages from two peers in any order, a third one's blob still goes up, and down again."""
    broker = Broker()
    broker.store.put_bytes(b"known")
    for peer in (b"p", b"q"):
        broker.open(peer, peer.decode())
    for n, (peer, message, frames) in enumerate(script):
        broker.now = n * 0.3
        broker.do(broker.exchange.received(peer, message, frames, broker.now))
        broker.do(broker.exchange.tick(broker.now))
        broker.chunks()
    data = os.urandom(honest)
    third = Peer("third")
    net = Net(broker, [third])
    third.put(third.transfers.offer(digest_of(data), data, broker.now))
    net.settle()
    third.put(third.transfers.fetch(digest_of(data), len(data), None, broker.now))
    net.settle()
    assert [type(event) for event in third.events] == [BlobOffered, BlobFetched]
