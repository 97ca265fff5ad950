"""The blob client against a real server: up and down, broken links, restarts, idle times."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

from broker.blob_server import BlobServer
from broker.ledger.blobs import BlobStore, DirectoryBlobs, MemoryBlobs
from broker.protocol import messages as m
from broker.protocol.framing import decode, encode
from edge_agent.blobs import BlobClient, BlobEvent, BlobFailed, BlobFetched, BlobOffered, BlobSettings

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

MB = 1 << 20
WITHIN = 60.0


def digest_of(data: bytes) -> bytes:
    """The name of a blob."""
    return hashlib.sha256(data).digest()


def opening(name: str = "device_1") -> m.OpenBlobChannel:
    """How the client introduces itself."""
    return m.OpenBlobChannel(version=m.PROTOCOL_VERSION, role="device", name=name)


def eventually(true: Callable[[], bool]) -> bool:
    """Does it become true in time? For what no event tells."""
    end = time.monotonic() + WITHIN
    waiting = threading.Event()
    while not true():
        if time.monotonic() > end:
            return False
        waiting.wait(0.005)
    return True


class Relay:
    """Passes TCP on, and cuts each connection after so many bytes in one direction, or holds it up (0: never)."""

    def __init__(self, target: str) -> None:
        self.cut_after = 0
        self.hold_after = 0
        self.held = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.cuts = 0
        self.passed = [0, 0]  # bytes down, and up
        self.lead_to(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._run(self._accept)

    def lead_to(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._pairs.append((near, far))
            self._run(self._pass, near, far, 1)
            self._run(self._pass, far, near, 0)

    def _pass(self, source: socket.socket, target: socket.socket, up: int) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                passed += len(data)
                self.passed[up] += len(data)
                if self.hold_after and passed >= self.hold_after and not self.go_on.is_set():
                    self.held.release()
                    self.go_on.wait(WITHIN)
                if self.cut_after and passed >= self.cut_after:
                    self.cuts += 1
                    break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WITHIN)
        for pair in self._pairs:
            for each in pair:
                each.close()


class Fleet:
    """A server, relays and clients, closed at the end of a test."""

    def __init__(self, context: Context, store: BlobStore) -> None:
        self.context = context
        self.store = store
        self.server = BlobServer("tcp://127.0.0.1:*", store, context=context, on_event=lambda _: None)
        self.server.start()
        self._closing = contextlib.ExitStack()

    def relay(self) -> Relay:
        relay = Relay(self.server.endpoint)
        self._closing.callback(relay.close)
        return relay

    def client(
        self, name: str = "device_1", *, endpoint: str = "", config: BlobSettings | None = None
    ) -> tuple[BlobClient, queue.Queue[BlobEvent]]:
        events: queue.Queue[BlobEvent] = queue.Queue()
        client = BlobClient(self.context, endpoint or self.server.endpoint, opening(name), events.put, config=config)
        self._closing.callback(client.close)
        return client, events

    def restart(self, store: BlobStore, relay: Relay) -> None:
        """The broker ends, and another one comes up behind the relay."""
        self.server.stop()
        self.store = store
        self.server = BlobServer("tcp://127.0.0.1:*", store, context=self.context, on_event=lambda _: None)
        self.server.start()
        relay.lead_to(self.server.endpoint)

    def close(self) -> None:
        self._closing.close()
        self.server.stop()


@pytest.fixture
def fleet(context: Context, tmp_path: Path) -> Iterator[Fleet]:
    """A server with its blobs in files."""
    made = Fleet(context, DirectoryBlobs(tmp_path / "broker"))
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 100 * MB])
def test_a_blob_goes_up_and_down_equal_to_the_bit(fleet: Fleet, tmp_path: Path, size: int) -> None:
    """From memory, from a file, into a file and into memory."""
    data = os.urandom(size)
    digest = digest_of(data)
    client, events = fleet.client()
    (tmp_path / "source").write_bytes(data)
    client.offer(digest, tmp_path / "source")
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest)
    assert fleet.store.read(digest) == data
    client.fetch(digest, size, tmp_path / "copy")
    assert events.get(timeout=WITHIN) == BlobFetched(digest=digest, path=tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    client.fetch(digest, size)
    assert events.get(timeout=WITHIN) == BlobFetched(digest=digest, data=data)
    client.offer(digest, data)
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest)
    assert fleet.server.total().bytes_in == size


def test_blobs_move_inside_one_process_too(context: Context) -> None:
    """The embedded broker's channel is inproc, where links have no events."""
    server = BlobServer("inproc://blobs", MemoryBlobs(), context=context, on_event=lambda _: None)
    events: queue.Queue[BlobEvent] = queue.Queue()
    client = BlobClient(context, "inproc://blobs", opening(), events.put)
    data = os.urandom(3 * MB)
    client.offer(digest_of(data), data)
    server.start()
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest_of(data))
    client.fetch(digest_of(data), len(data))
    assert events.get(timeout=WITHIN) == BlobFetched(digest=digest_of(data), data=data)
    client.close()
    server.stop()


@pytest.mark.alone
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_link_that_is_cut_again_and_again_costs_little(fleet: Fleet, tmp_path: Path, direction: str) -> None:
    """64 MB over a link cut every 5 MB: arrives whole, and at most 3 % is sent twice."""
    data = os.urandom(64 * MB)
    digest = digest_of(data)
    relay = fleet.relay()
    relay.cut_after = 5 * MB
    client, events = fleet.client(endpoint=relay.endpoint)
    if direction == "up":
        client.offer(digest, data)
        assert events.get(timeout=WITHIN) == BlobOffered(digest=digest)
        assert fleet.store.read(digest) == data
        moved = relay.passed[1]
    else:
        fleet.store.put_bytes(data)
        client.fetch(digest, len(data), tmp_path / "copy")
        assert events.get(timeout=WITHIN) == BlobFetched(digest=digest, path=tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        moved = fleet.server.total().bytes_out
    assert relay.cuts >= 12
    assert moved <= 1.03 * len(data)


def test_a_server_that_restarts_goes_on_with_what_it_had(fleet: Fleet, tmp_path: Path) -> None:
    """A broker that ends in the middle of an upload keeps what came, and pulls only the rest when it is back."""
    data = os.urandom(40 * MB)
    digest = digest_of(data)
    relay = fleet.relay()
    relay.cut_after = 10 * MB
    client, events = fleet.client(endpoint=relay.endpoint, config=BlobSettings(reconnect=0.5))
    client.offer(digest, data)
    assert eventually(lambda: relay.cuts >= 1)
    before = fleet.server.total().bytes_in
    fleet.restart(DirectoryBlobs(tmp_path / "broker"), relay)
    relay.cut_after = 0
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest)
    assert fleet.store.read(digest) == data
    assert fleet.server.total().bytes_in <= len(data) - before + MB


def test_a_client_that_restarts_goes_on_with_its_file(fleet: Fleet, tmp_path: Path) -> None:
    """What a client had fetched when it ended is on disk, and a new one pulls only the rest."""
    data = os.urandom(40 * MB)
    digest = fleet.store.put_bytes(data)
    relay = fleet.relay()
    relay.cut_after = 10 * MB
    first, _ = fleet.client(endpoint=relay.endpoint, config=BlobSettings(reconnect=60.0))
    first.fetch(digest, len(data), tmp_path / "copy")
    assert eventually(lambda: not first.connected and relay.cuts == 1)
    first.close()
    held = (tmp_path / "copy.part").stat().st_size
    assert held > 9 * MB
    before = fleet.server.total().bytes_out
    second, events = fleet.client()
    second.fetch(digest, len(data), tmp_path / "copy")
    assert events.get(timeout=WITHIN) == BlobFetched(digest=digest, path=tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert fleet.server.total().bytes_out - before <= len(data) - held + MB


def test_transfers_run_side_by_side(fleet: Fleet, tmp_path: Path) -> None:
    """While two peers are stuck in the middle of large blobs others go up and down; then all end, equal to the bit."""
    large = [os.urandom(20 * MB) for _ in range(2)]
    fleet.store.put_bytes(large[0])
    relay = fleet.relay()
    relay.hold_after = 5 * MB
    down, down_events = fleet.client("down", endpoint=relay.endpoint)
    up, up_events = fleet.client("up", endpoint=relay.endpoint)
    down.fetch(digest_of(large[0]), len(large[0]), tmp_path / "copy")
    up.offer(digest_of(large[1]), large[1])
    assert relay.held.acquire(timeout=WITHIN)
    assert relay.held.acquire(timeout=WITHIN)
    other, events = fleet.client("other")
    blobs = [os.urandom(1000 * (n + 1)) for n in range(9)]
    for data in blobs:
        other.offer(digest_of(data), data)
    assert {events.get(timeout=WITHIN).digest for _ in blobs} == set(map(digest_of, blobs))
    other.fetch(digest_of(large[0]), len(large[0]))
    for data in blobs:
        other.fetch(digest_of(data), len(data))
    got = [events.get(timeout=WITHIN) for _ in range(len(blobs) + 1)]
    assert {event.data for event in got if isinstance(event, BlobFetched)} == {large[0], *blobs}
    assert down_events.empty()
    assert up_events.empty()
    relay.go_on.set()
    assert down_events.get(timeout=WITHIN) == BlobFetched(digest=digest_of(large[0]), path=tmp_path / "copy")
    assert up_events.get(timeout=WITHIN) == BlobOffered(digest=digest_of(large[1]))
    assert (tmp_path / "copy").read_bytes() == large[0]
    assert fleet.store.read(digest_of(large[1])) == large[1]


def test_an_idle_client_holds_no_connection(fleet: Fleet) -> None:
    """It connects at the first use, lets go when idle, and connects again."""
    client, events = fleet.client(config=BlobSettings(idle=0.05))
    assert not client.connected
    for data in (b"first", b"second"):
        client.offer(digest_of(data), data)
        assert events.get(timeout=WITHIN) == BlobOffered(digest=digest_of(data))
        assert eventually(lambda: not client.connected)


def test_a_broker_that_comes_later_is_waited_for(fleet: Fleet, context: Context) -> None:
    """What is asked for while no broker listens is done when one does, at another endpoint if need be."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    client, events = fleet.client(endpoint=nowhere)
    client.offer(digest_of(b"x"), b"x")
    assert eventually(lambda: client.connected)
    client.retarget(fleet.server.endpoint)
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest_of(b"x"))


def test_what_cannot_be_had_fails_by_name(fleet: Fleet, tmp_path: Path) -> None:
    """An unknown blob, and a source that does not have the digest it is offered under."""
    client, events = fleet.client()
    client.fetch(bytes(32), 10)
    assert events.get(timeout=WITHIN) == BlobFailed(
        digest=bytes(32), reason="the broker does not have it", fetching=True
    )
    client.offer(bytes(32), b"something else")
    assert events.get(timeout=WITHIN) == BlobFailed(
        digest=bytes(32), reason="expected bytes with the digest offered, got others", fetching=False
    )
    client.offer(digest_of(b"x"), b"x")
    assert events.get(timeout=WITHIN) == BlobOffered(digest=digest_of(b"x"))


def test_a_broker_that_alters_a_chunk_is_found_out(context: Context, tmp_path: Path) -> None:
    """A blob altered on its way is refused, the broker is told, and no file is left."""
    data = os.urandom(1000)
    with context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, int(WITHIN * 1000))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        events: queue.Queue[BlobEvent] = queue.Queue()
        client = BlobClient(context, f"tcp://127.0.0.1:{port}", opening(), events.put)
        client.fetch(digest_of(data), len(data), tmp_path / "copy")
        peer, header = router.recv_multipart()
        assert decode(header) == opening()
        router.send_multipart((peer, b"\xc1 not a message"))
        router.send_multipart((peer, encode(m.BlobChannelOpened(version=(1, 9), chunk=65536, limit=MB))))
        assert decode(router.recv_multipart()[1]) == m.Pull(digest=digest_of(data), offset=0, length=1000)
        chunk = m.Chunk(digest=digest_of(data), offset=0, size=1000)
        router.send_multipart((peer, encode(chunk), data[:-1] + b"?"))
        failed = events.get(timeout=WITHIN)
        assert isinstance(failed, BlobFailed)
        assert failed.reason == "expected bytes with the digest asked for, got others"
        told = decode(router.recv_multipart()[1])
        assert isinstance(told, m.NoBlob)
        client.close()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_client_says_so(fleet: Fleet) -> None:
    """Closing twice is fine, also before the first use; asking a closed client is an error."""
    client, _ = fleet.client()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="expected an open blob client"):
        client.offer(bytes(32), b"")


def test_an_event_may_ask_for_more(fleet: Fleet, context: Context) -> None:
    """What is called from within an event, on the client's own thread, may use the client, and close it."""
    done = threading.Event()
    seen: list[BlobEvent] = []

    def on_event(event: BlobEvent) -> None:
        seen.append(event)
        if isinstance(event, BlobOffered):
            client.fetch(event.digest, 1)
        else:
            client.close()
            done.set()

    client = BlobClient(context, fleet.server.endpoint, opening(), on_event)
    client.offer(digest_of(b"x"), b"x")
    assert done.wait(WITHIN)
    assert seen == [BlobOffered(digest=digest_of(b"x")), BlobFetched(digest=digest_of(b"x"), data=b"x")]


def test_the_client_loads_neither_torch_nor_numpy() -> None:
    """An agent's process stays small."""
    code = "import sys, edge_agent.blobs; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
