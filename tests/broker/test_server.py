"""A real broker on real sockets: whatever peers do to it, it goes on for the others, and ends cleanly."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import pytest
import zmq

from broker import logs
from broker.blob_server import BlobServer
from broker.config import BrokerConfig
from broker.ledger.blobs import MemoryBlobs
from broker.ledger.interface import RecordCommand, RecordDevice
from broker.ledger.memory import MemoryLedger
from broker.protocol.framing import decode
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Announce,
    AskStats,
    Blobs,
    Busy,
    Deliver,
    Failure,
    Frame,
    Heartbeat,
    HeartbeatSeen,
    Invoke,
    ListDevices,
    LogRecords,
    NeedBlobs,
    Notify,
    OpenBlobChannel,
    OpenSession,
    Put,
    Recorded,
    Refused,
    Register,
    Registered,
    Release,
    ResultFailed,
    ResultReady,
    SessionOpened,
    SetLogLevel,
    Stats,
    StorePlan,
    Stranger,
    Submit,
    Taken,
)
from broker.protocol.messages import DeviceList as DeviceListMessage
from broker.server import BrokerServer, CannotListen, neighbours
from tests.broker.raw_peer import WITHIN_MS
from tests.broker.served import CONFIG, MANIFEST, PLAN, Served, run_one
from tests.waiting import wait_until

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"


# ------------------------------------------------------------------------------------------- the work


AWAY = RecordDevice(
    device="device_1",
    store=b"store" * 3,
    boot=b"boot" * 4,
    confirmed=b"",
    issued=b"token" * 2,
    version=PROTOCOL_VERSION,
    runtimes=[],
    labels={},
    last_seen=0,
)
"""A device that is known, and away."""


def test_a_broker_whose_only_timer_is_months_away(context: Context) -> None:
    """A broker that was started with a device that is away, and nobody else, waits for somebody to come."""
    ledger = MemoryLedger()
    ledger.open()
    ledger.commit([AWAY])
    with BrokerServer("inproc://months", context=context, ledger=ledger, config=CONFIG) as server:
        served = Served(context, server)
        served.check()
        for peer in served.peers:
            peer.close()


def test_one_invocation(served: Served) -> None:
    """A command, its tensor and its value pass untouched between real sockets."""
    served.check()


@pytest.mark.parametrize("listen", ["inproc://a-broker", "ipc://{folder}/broker", "tcp://[::1]:*"])
def test_other_transports(context: Context, tmp_path_factory: pytest.TempPathFactory, listen: str) -> None:
    """A broker listens within its process, on a socket file, and on IPv6, and tells peers where blobs and logs are."""
    folder = tmp_path_factory.mktemp("s")
    with BrokerServer(listen.format(folder=folder), context=context, config=CONFIG) as server:
        served = Served(context, server)
        served.check()
        session = served.peer()
        session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=b"12345678"))
        opened = session.hear(SessionOpened)
        assert opened.blobs == server.endpoints.blobs
        assert opened.logs == server.endpoints.logs
        for peer in served.peers:
            peer.close()


def test_plan_parts_are_provided(served: Served) -> None:
    """A device gets the small blobs of a plan with the answer, byte by byte; others are named as unknown."""
    served.session()
    device = served.device()
    device.say(NeedBlobs(digests=[PLAN, b"?" * 32]))
    assert device.hear(Blobs) == Blobs(attached=[PLAN], none=[b"?" * 32])
    assert device.frames == [MANIFEST]


def test_store_that_refuses(context: Context) -> None:
    """Where the blob store has no room the broker says so, goes on, and asks for the plan again."""
    store = MemoryBlobs(quota=4)
    with BrokerServer("tcp://127.0.0.1:*", context=context, config=CONFIG, store=store) as server:
        served = Served(context, server)
        session = served.peer()
        session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=b"12345678"))
        session.say(Submit(n=1, devices=[], command=StorePlan(plan=PLAN, parts=[], attached=[PLAN])), MANIFEST)
        session.hear(SessionOpened)
        device = served.device()
        device.say(NeedBlobs(digests=[PLAN]))
        assert device.hear(Blobs).none == [PLAN]
        for peer in served.peers:
            peer.close()


def test_a_value_that_was_looked_for_stays_until_that_is_decided(context: Context) -> None:
    """And no longer: what nobody has pinned makes room again."""
    store = MemoryBlobs(quota=100)
    digest = store.put_bytes(bytes(100))
    with BrokerServer("tcp://127.0.0.1:*", context=context, config=CONFIG, store=store) as server:
        served = Served(context, server)
        device = served.device()
        device.say(NeedBlobs(digests=[digest]))
        assert device.hear(Blobs).attached == [digest]
        served.session()  # with a plan, for which there must be room
        device.say(NeedBlobs(digests=[digest]))
        assert device.hear(Blobs).none == [digest]
        for peer in served.peers:
            peer.close()


class FullDisk(MemoryBlobs):
    """A blob store whose disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True

    def put_many(self, blobs: Sequence[Frame], digests: Sequence[bytes] | None = None) -> list[bytes]:
        """As `BlobStore.put_many`, if there is room."""
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put_many(blobs, digests)


def test_session_waits_for_room_for_a_plan(context: Context) -> None:
    """While the disk does not take a plan, its session is told to come again, and why; then all goes on by itself."""
    store = FullDisk()
    with BrokerServer("tcp://127.0.0.1:*", context=context, config=BrokerConfig(), store=store) as server:
        served = Served(context, server)
        device, session = served.device("pi"), served.peer()
        session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=b"12345678"))
        session.say(Submit(n=1, devices=[], command=StorePlan(plan=PLAN, parts=[], attached=[PLAN])), MANIFEST)
        invoke = Submit(n=2, devices=["pi"], command=Invoke(id=b"12345678" + bytes(7) + b"\x01", plan=PLAN, args=[]))
        session.say(invoke)
        assert session.hear(Busy).reason == "the broker cannot store blobs: [Errno 28] No space left on device"
        store.full = False
        wait_until(lambda: store.has(PLAN))
        session.say(invoke)
        assert isinstance(device.hear(Deliver).command, Invoke)
        for peer in served.peers:
            peer.close()


def test_blob_channel_wakes_the_broker(served: Served) -> None:
    """A blob that came by the blob channel is known to commands at once, and counted."""
    from edge_agent.blobs import BlobClient, BlobOffered

    content = os.urandom(300_000)
    offered = threading.Event()

    def on_event(event: object) -> None:
        if isinstance(event, BlobOffered):
            offered.set()

    session, incarnation = served.session()
    opening = OpenBlobChannel(version=PROTOCOL_VERSION, role="session", name=incarnation.hex())
    client = BlobClient(served.context, served.server.endpoints.blobs, opening, on_event)
    digest = hashlib.sha256(content).digest()
    try:
        client.offer(digest, content)
        assert offered.wait(WITHIN_MS / 1000)
    finally:
        client.close()
    device = served.device()
    command = Put(id=incarnation + bytes(7) + b"\x09", blob=digest)
    session.say(Submit(n=2, devices=["device_1"], command=command))
    assert device.hear(Deliver).command == command
    session.say(AskStats(r=1))
    total = session.hear(Stats).total
    assert total.blobs_in == 2
    assert total.blob_bytes_in == len(content) + len(MANIFEST)


# ------------------------------------------------------------------------------------------- bad company


def test_random_bytes_over_a_plain_connection(served: Served) -> None:
    """Bytes that are not even ZeroMQ harm nobody."""
    host, port = served.server.endpoints.listen.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(os.urandom(4096))
        served.check()


def test_random_frames(served: Served) -> None:
    """Frames that are no messages are refused in words, and the peer may still introduce itself."""
    peer = served.peer()
    for frames in ([os.urandom(200)], [b""], [b"\xc1", b"x"], [b"\x91\x40" * 50]):
        peer.socket.send_multipart(frames)
        refused = peer.hear(Refused)
        assert refused.code == "malformed"
        assert refused.reason.startswith("expected ")
    served.check()
    peer.say(OpenSession(version=PROTOCOL_VERSION, incarnation=b"12345678"))
    peer.hear(SessionOpened)


def test_message_over_the_limit(served: Served) -> None:
    """A message somewhat over the limit is refused in words; far over it, the connection is dropped and made again."""
    device = served.device()
    large = ResultReady(id=b"i" * 16, digest=b"d" * 16, inline=True)
    device.say(Announce(n=1, event=large), bytes(CONFIG.max_message))
    refused = device.hear(Refused)
    assert refused.code == "too_large"
    assert refused.reason.startswith(f"expected a message of at most {CONFIG.max_message} bytes, got ")
    device.say(Announce(n=1, event=large), bytes(8 * CONFIG.max_message))
    served.check()
    device.say(Heartbeat())
    device.hear(Stranger)


def test_two_agents_of_one_id(served: Served) -> None:
    """The second is refused, and the first works on."""
    first = served.device("twin")
    second = served.peer()
    second.say(Register(version=PROTOCOL_VERSION, device="twin", store=b"store" * 3, boot=b"another boot...."))
    first.say(Heartbeat())
    end = time.monotonic() + WITHIN_MS / 1000
    while not second.socket.poll(100):
        first.say(Heartbeat())
        assert time.monotonic() < end
    assert second.hear(Refused).code == "duplicate_device"
    session, incarnation = served.session()
    run_one(session, incarnation, first, "twin", n=2)


def test_agent_that_was_killed(served: Served) -> None:
    """Where a connection is gone the next start of its agent is welcome within a moment."""
    served.device("phoenix").close()
    again = served.peer()
    end = time.monotonic() + WITHIN_MS / 1000
    while True:
        again.say(Register(version=PROTOCOL_VERSION, device="phoenix", store=b"store" * 3, boot=b"another boot...."))
        if again.socket.poll(200):
            break
        assert time.monotonic() < end
    again.hear(Registered)


def test_unknown_version(served: Served) -> None:
    """A peer of another major version is refused, with both versions."""
    peer = served.peer()
    peer.say(Register(version=(9, 1), device="d", store=b"s" * 16, boot=b"b" * 16))
    refused = peer.hear(Refused)
    assert refused.version == PROTOCOL_VERSION
    assert refused.reason == "expected protocol 1.x, got 9.1; this broker speaks 1.1"


def test_peer_that_never_reads(served: Served) -> None:
    """A peer that asks and never reads fills its own queue, and nobody else's: the broker drops nothing of others."""
    sloth = served.peer()
    sloth.socket.setsockopt(zmq.SNDHWM, 0)
    sloth.say(OpenSession(version=PROTOCOL_VERSION, incarnation=b"sleeping"))
    for r in range(20_000):
        sloth.say(ListDevices(r=r))
    served.check()
    sloth.hear(DeviceListMessage)


def test_slow_device(served: Served) -> None:
    """What a device does not read waits, in order, and comes when it reads."""
    device = served.device("slow")
    session, incarnation = served.session()
    count = 3000
    for k in range(count):
        command = Put(id=incarnation + (k + 1).to_bytes(8, "big"))
        session.say(Submit(n=k + 2, devices=["slow"], command=command), b"x" * 2000)
    served.check()
    seen = 0
    while seen < count:
        deliver = device.hear(Deliver)
        if deliver.n == seen + 1:
            seen += 1
            assert isinstance(deliver.command, Put)
            assert deliver.command.id == incarnation + seen.to_bytes(8, "big")
            done = ResultFailed(id=deliver.command.id, digest=deliver.digest, failure=Failure(code="x", message="x"))
            device.say(Announce(n=seen, event=done))
        if seen % 100 == 0:
            device.say(Taken(n=seen))


def test_session_that_vanishes(served: Served) -> None:
    """A session that goes without a word leaves its commands to be worked off."""
    device = served.device()
    session, incarnation = served.session()
    command = Invoke(id=incarnation + bytes(7) + b"\x01", plan=PLAN, args=[])
    session.say(Submit(n=2, devices=["device_1"], command=command))
    session.hear(Accepted)
    session.close()
    deliver = device.hear(Deliver)
    device.say(Announce(n=1, event=ResultReady(id=command.id, digest=deliver.digest, inline=True)), b"v")
    device.hear(Recorded)
    again = served.peer()
    again.say(OpenSession(version=PROTOCOL_VERSION, incarnation=incarnation))
    again.hear(SessionOpened)
    assert again.hear(Notify).event.id == command.id  # type: ignore[union-attr]


def test_silent_device_is_lost(context: Context) -> None:
    """A device that says nothing for three heartbeats is offline."""
    with BrokerServer("tcp://127.0.0.1:*", context=context, config=BrokerConfig(heartbeat_ms=500)) as server:
        served = Served(context, server)
        served.device("mute")
        session, _ = served.session()

        def offline() -> bool:
            session.say(ListDevices(r=1))
            return not session.hear(DeviceListMessage).devices[0].online

        wait_until(offline)
        for peer in served.peers:
            peer.close()


# ------------------------------------------------------------------------------------------- the stream


def test_notifications_are_published(served: Served) -> None:
    """Whoever follows an id gets its notification with the value, also without a session."""
    device = served.device()
    session, incarnation = served.session()
    result = incarnation + (2).to_bytes(8, "big")
    topic = b"n." + result.hex().encode()
    follower, other = served.follow(topic), served.follow(b"n.00")
    command = Invoke(id=result, plan=PLAN, args=[])
    session.say(Submit(n=2, devices=["device_1"], command=command))
    deliver = device.hear(Deliver)
    followed = served.server._publisher._topics
    wait_until(lambda: followed._topics.keys() == {topic, b"n.00"})  # a subscription arrives when it arrives
    device.say(Announce(n=1, event=ResultReady(id=result, digest=deliver.digest, inline=True)), b"v")
    published, header, value = follower.recv_multipart()
    assert published == topic
    notify = decode(header)
    assert isinstance(notify, Notify)
    assert (notify.device, value) == ("device_1", b"v")
    assert not other.poll(0)
    follower.close()
    other.close()


def test_logs_are_published_on_demand(served: Served) -> None:
    """Followers are what makes peers send their logs, and the broker its own; each under its level and its name."""
    device = served.device("pi")
    follower = served.follow(b"l.10.")
    assert device.hear(SetLogLevel).level == 10
    device.say(LogRecords(records=[{"event": "x", "level": "debug", "component": "agent", "device": "somebody else"}]))
    while True:
        topic, payload = follower.recv_multipart()
        record = msgspec.msgpack.decode(payload)
        if record["component"] == "agent":
            break
    assert topic == b"l.10.agent.pi"
    assert record == {"event": "x", "level": "debug", "component": "agent", "device": "pi"}
    session, incarnation = served.session()
    run_one(session, incarnation, device, "pi", n=2)
    events: list[str] = []
    while not events or events[-1] != "result_recorded":
        topic, payload = follower.recv_multipart()
        assert topic.startswith(b"l.10.broker.")
        events.append(msgspec.msgpack.decode(payload)["event"])
    assert "invocation_relayed" in events
    follower.close()
    assert device.hear(SetLogLevel).level == 0


def test_follower_that_speaks_nonsense(served: Served) -> None:
    """What a follower sends that is no subscription is ignored."""
    follower: Socket = served.context.socket(zmq.XSUB)
    follower.setsockopt(zmq.LINGER, 0)
    follower.connect(served.server.endpoints.logs)
    for message in (b"", b"\x07", b"\x00never subscribed", b"\x01" + b"x" * 2000):
        follower.send(message)
    served.check()
    follower.close()


# ------------------------------------------------------------------------------------------- beginning and end


def test_address_in_use(served: Served, context: Context) -> None:
    """A second broker on an endpoint can't listen, says why, and leaves nothing behind."""
    endpoint = served.server.endpoints.listen
    second = BrokerServer(endpoint, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", context=context)
    with pytest.raises(CannotListen) as caught:
        second.start()
    assert caught.value.endpoint == endpoint
    assert str(caught.value) == f"cannot listen on {endpoint}: Address already in use"
    with pytest.raises(CannotListen):
        BrokerServer("tcp://127.0.0.1:*", blobs=served.server.endpoints.blobs, context=context).start()


def test_restart_over_the_same_ledger(context: Context) -> None:
    """A broker that starts where another was takes up its ledger, under the next epoch."""
    ledger, store = MemoryLedger(), MemoryBlobs()
    listen = "inproc://the-same"
    incarnation = b"12345678"
    result = incarnation + bytes(7) + b"\x01"
    for epoch in (1, 2):
        with BrokerServer(listen, context=context, ledger=ledger, store=store, config=CONFIG) as server:
            served = Served(context, server)
            device = served.peer()
            device.say(Register(version=PROTOCOL_VERSION, device="d", store=b"store" * 3, boot=b"boot" * 4))
            welcome = device.hear(Registered)
            assert (welcome.epoch, welcome.ledger) == (epoch, ledger.id)
            session = served.peer()
            session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=incarnation))
            if epoch == 1:
                session.hear(SessionOpened)
                session.say(Submit(n=1, devices=["d"], command=Put(id=result)), b"x")
                session.hear(Accepted)
            else:
                assert session.hear(SessionOpened).accepted == 1
            assert device.hear(Deliver).command.id == result  # type: ignore[union-attr]
            for peer in served.peers:
                peer.close()


def test_what_unended_commands_name_is_pinned_before_blobs_come_in(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a start: a store that is full makes room for what comes in by dropping what nobody has pinned."""
    ledger, store = MemoryLedger(), MemoryBlobs()
    digest = store.put_bytes(b"a value")
    put = Put(id=b"session1" + (1).to_bytes(8, "big"), blob=digest)
    ledger.commit(
        [
            AWAY,
            RecordCommand(
                seq=1,
                id=put.id,
                outputs=1,
                device=AWAY.device,
                incarnation=b"session1",
                n=1,
                digest=bytes(16),
                command=put,
                frames=(),
                deadline_ms=1 << 42,
            ),
        ]
    )
    pins: list[int] = []
    start = BlobServer.start

    def started(self: BlobServer) -> None:
        pins.append(store.pins(digest))
        start(self)

    monkeypatch.setattr(BlobServer, "start", started)
    with BrokerServer("inproc://pinned", context=context, ledger=ledger, store=store):
        assert pins == [1]


def test_stopping_twice(context: Context) -> None:
    """Stopping is idempotent, and a broker that never started can be stopped."""
    server = BrokerServer("tcp://127.0.0.1:*", context=context)
    server.stop()
    server = BrokerServer("tcp://127.0.0.1:*", context=context)
    server.start()
    server.stop()
    server.stop()
    assert not server.wait_until_listening(0)


def test_own_context(capsys: pytest.CaptureFixture[str]) -> None:
    """A broker that was given no context makes one, and ends it; it logs when it can be connected to."""
    logs.configure(level=logs.INFO, json=True)
    with BrokerServer("tcp://127.0.0.1:*") as server:
        listen = server.endpoints.listen
    events = [msgspec.json.decode(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["broker_listening", "broker_stopped"]
    assert events[0]["listen"] == listen
    assert ":0" not in listen.rpartition(":")[2]


def test_heartbeats_are_answered(served: Served) -> None:
    """A heartbeat is answered with the interval."""
    device = served.device()
    device.say(Heartbeat())
    assert device.hear(HeartbeatSeen).heartbeat_ms == CONFIG.heartbeat_ms


@pytest.mark.parametrize(
    ("listen", "logs_endpoint", "blobs_endpoint"),
    [
        ("tcp://127.0.0.1:5750", "tcp://127.0.0.1:5751", "tcp://127.0.0.1:5752"),
        ("tcp://[::1]:5750", "tcp://[::1]:5751", "tcp://[::1]:5752"),
        ("tcp://*:5750", "tcp://*:5751", "tcp://*:5752"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("inproc://x", "inproc://x-logs", "inproc://x-blobs"),
        ("ipc:///run/x", "ipc:///run/x-logs", "ipc:///run/x-blobs"),
    ],
)
def test_neighbours(listen: str, logs_endpoint: str, blobs_endpoint: str) -> None:
    """Logs and blobs are on the next two ports, or on wildcards, or beside the name."""
    assert neighbours(listen) == (logs_endpoint, blobs_endpoint)


def test_release_of_nothing(served: Served) -> None:
    """An empty command does nothing and is accepted."""
    session, _ = served.session()
    session.say(Submit(n=2, devices=[], command=Release(ids=[])))
    assert session.hear(Accepted).n == 2


def test_an_endpoint_of_this_process_is_free_again_at_once(context: Context) -> None:
    """Of all three sockets, however busy ZeroMQ's own threads are."""
    for _ in range(30):
        with BrokerServer("inproc://again", context=context) as server:
            assert server.wait_until_listening(10)
