"""The broker's blob channel on real sockets: who may speak, who is refused, and what its memory does."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

from broker.blob_server import BlobArrived, BlobEvent, BlobLimits, BlobPeerRefused, BlobServer
from broker.ledger.blobs import BlobStore, DirectoryBlobs, MemoryBlobs
from broker.protocol import messages as m
from broker.protocol.framing import decode, encode
from edge_agent.blobs import BlobClient, BlobFetched, BlobOffered
from edge_agent.blobs import BlobEvent as ClientEvent
from tests.processes import started

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

WITHIN_MS = 60_000
OPENING = m.OpenBlobChannel(version=m.PROTOCOL_VERSION, role="device", name="device_1")


class Served:
    """A server over a store, and its events."""

    def __init__(self, context: Context, store: BlobStore, limits: BlobLimits | None = None) -> None:
        self.context = context
        self.store = store
        self.events: queue.Queue[BlobEvent] = queue.Queue()
        self.server = BlobServer("tcp://127.0.0.1:*", store, context=context, limits=limits, on_event=self.events.put)
        self.server.start()

    def connect(self, *, opened: bool = True) -> Socket:
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        dealer.connect(self.server.endpoint)
        if opened:
            dealer.send(encode(OPENING))
            assert isinstance(hear(dealer), m.BlobChannelOpened)
        return dealer


def hear(dealer: Socket) -> m.Message:
    """The next message, its frames aside."""
    return decode(dealer.recv_multipart()[0])


@pytest.fixture
def served(context: Context, tmp_path: Path) -> Iterator[Served]:
    """A server with blobs in files."""
    made = Served(context, DirectoryBlobs(tmp_path / "blobs"))
    yield made
    made.server.stop()


def upload(served: Served, data: bytes) -> None:
    """An honest peer's blob goes up: the server works."""
    digest = hashlib.sha256(data).digest()
    with served.connect() as dealer:
        dealer.send(encode(m.Offer(digest=digest, size=len(data))))
        while not isinstance(message := hear(dealer), m.Stored):
            assert isinstance(message, m.Pull)
            chunk = m.Chunk(digest=digest, offset=message.offset, size=len(data))
            dealer.send_multipart((encode(chunk), data[message.offset : message.offset + message.length]))
    assert served.store.read(digest) == data


def test_the_first_message_tells_version_and_limits(served: Served) -> None:
    """The broker answers with its version, its largest chunk and its largest blob."""
    with served.connect(opened=False) as dealer:
        dealer.send(encode(OPENING))
        opened = hear(dealer)
        assert opened == m.BlobChannelOpened(
            version=m.PROTOCOL_VERSION, chunk=served.server.limits.chunk, limit=served.server.limits.blob
        )


def test_another_major_version_is_refused(served: Served) -> None:
    """A peer of another major version is told the broker's own."""
    with served.connect(opened=False) as dealer:
        dealer.send(encode(m.OpenBlobChannel(version=(2, 0), role="device", name="device_1")))
        refused = hear(dealer)
        assert isinstance(refused, m.Refused)
        assert (refused.code, refused.version) == ("version", m.PROTOCOL_VERSION)


def test_a_stranger_is_told_so(served: Served) -> None:
    """A pull before the introduction is answered with `Stranger`."""
    with served.connect(opened=False) as dealer:
        dealer.send(encode(m.Pull(digest=bytes(32), offset=0, length=1)))
        assert hear(dealer) == m.Stranger()


def test_random_bytes_do_no_harm(served: Served) -> None:
    """Bytes that aren't ZeroMQ, messages that mean nothing, and none at all: the server goes on serving."""
    host, port = served.server.endpoint.removeprefix("tcp://").split(":")
    for n in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(os.urandom(200 * (n + 1)))
    with served.connect() as dealer:
        for frames in ((os.urandom(50),), (b"",), (b"", b""), (encode(OPENING)[:-1],), (b"\xc1" * 40, b"x")):
            dealer.send_multipart(frames)
            dealer.send(encode(OPENING))
            heard = [hear(dealer)]
            while not isinstance(heard[-1], m.BlobChannelOpened):
                heard.append(hear(dealer))
    refusals = [event for event in served.events.queue if isinstance(event, BlobPeerRefused)]
    assert refusals
    upload(served, os.urandom(300_000))


def test_a_message_over_the_limit_ends_its_connection(served: Served) -> None:
    """A frame larger than a chunk isn't even read: the connection ends, others don't notice."""
    with served.connect() as dealer:
        watched = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.send(bytes(1 << 20))
        assert watched.poll(WITHIN_MS)
        dealer.disable_monitor()
        watched.close()
    upload(served, os.urandom(300_000))


def test_a_peer_that_vanishes_leaves_its_blob_to_the_next(served: Served) -> None:
    """A peer that is gone in the middle of an upload: another one brings the rest, and the blob is stored once."""
    data = os.urandom(2_000_000)
    digest = hashlib.sha256(data).digest()
    with served.connect() as dealer:
        dealer.send(encode(m.Offer(digest=digest, size=len(data))))
        pull = hear(dealer)
        assert isinstance(pull, m.Pull)
        chunk = m.Chunk(digest=digest, offset=0, size=len(data))
        dealer.send_multipart((encode(chunk), data[: pull.length]))
        assert isinstance(hear(dealer), m.Pull)
    upload(served, data)
    event = served.events.get(timeout=WITHIN_MS / 1000)
    assert event == BlobArrived(digest=digest, size=len(data), role="device", name="device_1")
    assert len(data) <= served.server.total().bytes_in < 1.2 * len(data)


def test_a_peer_that_pulls_without_reading_is_held_back(served: Served) -> None:
    """What a peer pulls and doesn't take waits for it, no more than its link holds; others are served meanwhile."""
    data = os.urandom(60 << 20)
    digest = served.store.put_bytes(data)
    with served.connect(opened=False) as deaf:
        deaf.setsockopt(zmq.RCVHWM, 1)
        deaf.send(encode(OPENING))
        for at in range(0, len(data), 1 << 20):
            deaf.send(encode(m.Pull(digest=digest, offset=at, length=1 << 20)))
        upload(served, os.urandom(300_000))
        assert served.server.total().bytes_out < len(data) // 2
        upload(served, os.urandom(300_000))


def test_small_limits_are_kept(context: Context) -> None:
    """A blob over the limit is refused with both sizes."""
    served = Served(context, MemoryBlobs(), BlobLimits(blob=1000))
    try:
        with served.connect() as dealer:
            dealer.send(encode(m.Offer(digest=bytes(32), size=1001)))
            assert hear(dealer) == m.NoBlob(digest=bytes(32), reason="expected at most 1000 bytes, got 1001")
    finally:
        served.server.stop()
        served.server.stop()


def test_an_endpoint_that_is_taken_is_an_error_at_the_start(served: Served, context: Context) -> None:
    """Binding fails in `start`, where its owner can say so."""
    second = BlobServer(served.server.endpoint, MemoryBlobs(), context=context, on_event=lambda _: None)
    with pytest.raises(zmq.ZMQError, match="Address already in use"):
        second.start()
    second.stop()


MEASURE = """
import hashlib, queue, sys
from pathlib import Path
import zmq
from broker.blob_server import BlobServer
from broker.ledger.blobs import DirectoryBlobs

context = zmq.Context()
server = BlobServer("tcp://127.0.0.1:*", DirectoryBlobs(Path(sys.argv[1])), context=context, on_event=lambda _: None)
server.start()
print(server.endpoint, flush=True)
sys.stdin.readline()
server.stop()
context.term()
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
        print(line.split()[1])
"""


@pytest.mark.alone
def test_memory_does_not_grow_with_the_blob(tmp_path: Path, context: Context) -> None:
    """A server process that takes in 100 MB and gives them out again never held more than a few MB of them."""

    def peak(sizes: list[int], folder: Path) -> int:
        command = [sys.executable, "-c", MEASURE, str(folder / "broker")]
        with started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            events: queue.Queue[ClientEvent] = queue.Queue()
            client = BlobClient(context, process.stdout.readline().strip(), OPENING, events.put)
            for size in sizes:
                source = folder / str(size)
                source.write_bytes(os.urandom(size))
                digest = hashlib.sha256(source.read_bytes()).digest()
                client.offer(digest, source)
                assert events.get(timeout=60) == BlobOffered(digest=digest)
                client.fetch(digest, size, folder / "back")
                assert events.get(timeout=60) == BlobFetched(digest=digest, path=folder / "back")
                assert (folder / "back").read_bytes() == source.read_bytes()
            client.close()
            printed, _ = process.communicate("\n", timeout=60)
        assert process.returncode == 0
        return int(printed) * 1024

    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small = peak([1 << 20], tmp_path / "small")
    large = peak([100 << 20], tmp_path / "large")
    assert large - small < 16 << 20
