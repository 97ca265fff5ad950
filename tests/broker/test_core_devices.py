"""Devices: registration and its tokens, two agents of one id, presence, restarts, lost stores."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.ledger.interface import RecordErrand
from broker.protocol.messages import (
    Deliver,
    DeviceInfo,
    DeviceList,
    Fetch,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Invoke,
    ListDevices,
    OpenSession,
    Refused,
    Registered,
    Release,
    ResultFailed,
    ResultStatus,
    SessionOpened,
    Stranger,
    TagsChanged,
    Values,
)
from tests.broker.bench import WALL, Bench, DevicePeer, SessionPeer


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def info_of(session: SessionPeer, name: str = "device_1") -> DeviceInfo:
    """What the registry says of a device."""
    session.tell(ListDevices(r=3))
    (found,) = [info for info in session.take(DeviceList).devices if info.device == name]
    return found


# ------------------------------------------------------------------------------------------- registering


def test_welcome(bench: Bench) -> None:
    """A device is told all that it needs: numbers, limits, where blobs are, and the followed log level."""
    bench.core.endpoints(blobs="tcp://*:7", logs="tcp://*:8")
    device = DevicePeer(bench, "device_1")
    device.register()
    welcome = device.take(Registered)
    assert welcome == Registered(
        version=(1, 1),
        ledger=b"L" * 16,
        epoch=1,
        token=device.token,
        first=1,
        heartbeat_ms=5000,
        max_message=4 << 20,
        blobs="tcp://*:7",
        log_level=0,
    )
    assert len(device.token) == 16
    assert [log.fields["device"] for log in bench.events("device_joined")] == ["device_1"]


def test_token_changes_with_each_registration(bench: Bench) -> None:
    """Each registration that takes up the last token gives a new one."""
    device = bench.device()
    tokens = [device.token]
    for _ in range(3):
        device.tell(Heartbeat())
        device.come_back(restarted=True)
        tokens.append(device.token)
    assert len(set(tokens)) == 4


def test_lost_answers_lock_nobody_out(bench: Bench) -> None:
    """A device whose answers were lost registers with its old token as often as it takes."""
    device = bench.device()
    device.tell(Heartbeat())
    old = device.token
    for _ in range(4):
        device.token = old
        device.come_back(restarted=True)
        device.take(Registered)
    device.tell(Heartbeat())
    device.come_back(restarted=True)
    device.take(Registered)


def test_first_answer_lost(bench: Bench) -> None:
    """A device that never got its first token may come without one."""
    device = DevicePeer(bench, "device_1")
    device.register()
    device.token = b""
    device.come_back(restarted=True)
    assert device.all(Registered)


def test_stale_token(bench: Bench) -> None:
    """Once a device has spoken under a new token, an older one is a clone's or a backup's: refused and logged."""
    device = bench.device()
    old = device.token
    device.tell(Heartbeat())
    device.come_back(restarted=True)
    device.tell(Heartbeat())
    device.tell(Goodbye())
    clone = DevicePeer(bench, "device_1")
    clone.store = device.store
    clone.token = old
    clone.register()
    refused = clone.take(Refused)
    assert refused.code == "stale_token"
    assert refused.reason == "device device_1 presented an old registration token: a copy or a backup of its store?"
    clone.register()
    assert len(bench.events("device_quarantined")) == 1, "an operator hears of it once, however often it tries"
    assert bench.core.gauges()["devices_quarantined"] == 1
    device.come_back(restarted=True)
    assert device.all(Registered)


def test_clone_and_original_take_turns(bench: Bench) -> None:
    """Of two cards with one content, the second to come is found out at the latest when the first comes again."""
    device = bench.device()
    device.tell(Heartbeat())
    device.tell(Goodbye())
    clone = DevicePeer(bench, "device_1")
    clone.store, clone.token = device.store, device.token
    clone.register()
    clone.tell(Heartbeat())
    clone.tell(Goodbye())
    device.come_back(restarted=True)
    assert device.take(Refused).code == "stale_token"


def test_same_start_of_the_agent_needs_no_token(bench: Bench) -> None:
    """A process can't be a copy of itself: the same start is welcome with whatever token."""
    device = bench.device()
    device.tell(Heartbeat())
    device.come_back()
    device.tell(Heartbeat())
    device.token = b"long ago..."
    device.come_back()
    assert device.all(Registered)


def test_registry_is_bounded(bench: Bench) -> None:
    """More devices than may be known are refused, by code and in words."""
    bench.config = BrokerConfig(log_level=10, devices=2)
    bench.restart()
    bench.device("a")
    bench.device("b")
    third = DevicePeer(bench, "c")
    third.register()
    refused = third.take(Refused)
    assert (refused.code, refused.reason) == ("full", "this broker knows 2 devices, and may know no more")


# ------------------------------------------------------------------------------------------- two of one id


def test_two_agents_of_one_id(bench: Bench) -> None:
    """The second is refused when the first gives a sign of life, and the first goes on undisturbed."""
    session, first = bench.session(), bench.device()
    session.invoke()
    second = DevicePeer(bench, "device_1")
    second.register()
    assert second.messages == []
    challenge = first.take(Fetch)
    assert challenge.ids == []
    first.tell(Values(r=challenge.r, outcomes=[]))
    refused = second.take(Refused)
    assert refused.code == "duplicate_device"
    assert refused.reason == "another agent of device device_1 is connected"
    first.ready(first.take_one())
    assert len(session.notified()) == 1


def test_second_agent_and_a_heartbeat(bench: Bench) -> None:
    """Any word of the first that comes late enough is a sign of life; one that was under way already is not."""
    first = bench.device()
    second = DevicePeer(bench, "device_1")
    second.register()
    first.tell(Heartbeat())
    assert second.messages == []
    bench.pass_time(2.0)
    first.tell(Heartbeat())
    assert second.take(Refused).code == "duplicate_device"


def test_agent_that_was_killed_and_started_again(bench: Bench) -> None:
    """Where the old connection is found dead, the new agent is welcome at once."""
    device = bench.device()
    device.come_back(restarted=True)
    assert device.all(Registered)
    assert bench.events("device_lost")[0].fields["reason"] == "unreachable"


def test_agent_that_lost_power(bench: Bench) -> None:
    """Where the old connection is half open, the new agent is welcome when the old one has been silent for long
    enough.
    """
    device = bench.device()
    device.tell(Heartbeat())
    device.connect(half_open=True)
    device.start()
    device.register()
    assert device.messages == []
    bench.pass_time(16.0)
    assert device.all(Registered)


# ------------------------------------------------------------------------------------------- presence


def test_heartbeats(bench: Bench) -> None:
    """A device that is heard stays, and is told that the broker lives; three silent intervals, and it is lost."""
    session, device = bench.session(), bench.device()
    for _ in range(10):
        bench.pass_time(5.0)
        device.tell(Heartbeat())
        assert device.take(HeartbeatSeen).heartbeat_ms == 5000
    assert info_of(session).online
    bench.pass_time(14.0)
    assert info_of(session).online
    bench.pass_time(2.0)
    found = info_of(session)
    assert not found.online
    assert found.last_seen == round((WALL + 50.0) * 1000)
    assert bench.events("device_lost")[0].fields == {"device": "device_1", "reason": "silent"}
    device.tell(Heartbeat())
    device.take(Stranger)
    device.register()
    assert info_of(session).online


def test_goodbye(bench: Bench) -> None:
    """A device that says goodbye is offline at once, and its commands wait."""
    session, device = bench.session(), bench.device()
    device.tell(Goodbye())
    assert not info_of(session).online
    session.invoke()
    assert device.all(Deliver) == []
    assert info_of(session).queued == 1
    device.come_back(restarted=True)
    assert len(device.take_all()) == 1


def test_what_the_registry_says(bench: Bench) -> None:
    """All that a device said of itself is in the registry, with what waits for it and what it does."""
    session = bench.session()
    device = DevicePeer(bench, "pi")
    device.register(runtimes=["onnx"], labels={"room": "kitchen"}, version=(1, 3))
    bench.device("another")
    results = [session.invoke(device="pi") for _ in range(3)]
    device.take_all()
    session.invoke(device="pi")
    device.tell(Heartbeat(running={results[0]: 0.5}))
    found = info_of(session, "pi")
    assert (found.runtimes, found.labels, found.version) == (["onnx"], {"room": "kitchen"}, (1, 3))
    assert (found.online, found.queued, found.running, found.tensors) == (True, 1, 1, 0)
    session.tell(ListDevices(r=9))
    assert [info.device for info in session.take(DeviceList).devices] == ["another", "pi"]


def test_device_is_forgotten(bench: Bench) -> None:
    """A device that does not come back for long is forgotten, unless something still waits for it."""
    bench.config = BrokerConfig(log_level=10, device_retention=1000.0)
    bench.restart()
    session = bench.session()
    bench.device("gone").tell(Goodbye())
    bench.device("awaited").tell(Goodbye())
    session.invoke(device="awaited")
    bench.pass_time(1100.0)
    session.connect()
    session.open()
    session.tell(ListDevices(r=1))
    assert [info.device for info in session.take(DeviceList).devices] == ["awaited"]


def test_a_device_that_was_forgotten_has_taken_nothing(bench: Bench) -> None:
    """What its agent took of this broker before does not count for the commands of its new mailbox, though the answer
    to its first registration there was lost.
    """
    bench.config = BrokerConfig(log_level=10, device_retention=1000.0)
    bench.restart()
    session, device = bench.session(), bench.device()
    for _ in range(2):
        session.invoke()
        device.ready(device.take_one())
    device.connect()
    bench.pass_time(2500.0)
    assert bench.core.gauges()["devices"] == 0
    before = {"token": device.token, "ledger": device.ledger, "epoch": device.epoch, "taken": device.taken}
    session.connect()
    session.open()
    device.register(**before)
    results = [session.invoke(), session.invoke()]
    device.connect()
    device.clear()
    device.register(**before)
    for deliver in device.take_all():
        device.ready(deliver)
    assert [session.status(each) for each in results] == [ResultStatus.DONE] * 2


@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_was_forgotten_leaves_nothing_in_the_ledger(bench: Bench, restarted: bool) -> None:
    """Neither do the releases that waited for it, whether they were sent or not."""
    bench.config = BrokerConfig(log_level=10, device_retention=1000.0)
    bench.restart()
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one(), inline=False)
    device.connect()
    session.submit(Release(ids=[result]))
    assert len(bench.ledger.open().errands) == 1
    if restarted:
        bench.restart()
    bench.pass_time(2500.0)
    assert bench.core.gauges()["devices"] == 0
    assert bench.ledger.open().errands == []


def test_errands_of_devices_that_are_not_known_are_dropped_at_a_start(bench: Bench) -> None:
    """An earlier broker has left them: nobody else will."""
    bench.ledger.commit([RecordErrand(seq=1, device="gone", digest=bytes(16), command=Release(ids=[bytes(16)]))])
    bench.restart()
    assert bench.ledger.open().errands == []


def test_peers_that_change_their_role(bench: Bench) -> None:
    """Whoever introduces itself as somebody else on the same connection is that somebody from then on."""
    device = bench.device()
    device.tell(OpenSession(version=(1, 0), incarnation=b"12345678"))
    device.take(SessionOpened)
    session = bench.session()
    assert not info_of(session).online
    device.register()
    device.take(Registered)
    assert info_of(session).online


# ------------------------------------------------------------------------------------------- restarts and lost stores


def test_delivered_too_often(bench: Bench) -> None:
    """A command that five starts of the agent took and did not end is failed, with the number."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    for start in range(5):
        assert len(device.take_all()) == 1, start
        device.come_back(restarted=True)
    assert device.all(Deliver) == []
    assert session.notified() == [], "the agent that comes back may have ended it"
    device.catch_up()
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    failure = notify.event.failure
    assert failure.code == "WorkerDied"
    assert failure.message == "delivered 5 times, to as many starts of the agent, without an end"
    assert failure.details == {"device": "device_1", "deliveries": 5}
    assert session.status(result) is ResultStatus.FAILED


def test_reconnecting_is_no_delivery(bench: Bench) -> None:
    """The same start of the agent may lose its connection as often as it likes."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.take_all()
    for _ in range(20):
        device.come_back()
    assert session.status(result) is ResultStatus.DELIVERED


def test_untaken_is_no_delivery(bench: Bench) -> None:
    """A command that the device never acknowledged does not count as delivered."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    for _ in range(10):
        device.come_back(restarted=True)
    assert session.status(result) is ResultStatus.QUEUED


def test_lost_store(bench: Bench) -> None:
    """With a new store, recorded values are lost but those in the record, tags are gone, and unended commands go
    again.
    """
    session, device = bench.session(), bench.device()
    kept, inline, unended = (session.invoke() for _ in range(3))
    one, two, _ = device.take_all()
    device.ready(one, inline=False)
    device.ready(two)
    device.announce(TagsChanged(whole=True))
    device.store, device.token = b"a new card......", b""
    device.come_back(restarted=True)
    assert [deliver.command.id for deliver in device.take_all() if isinstance(deliver.command, Invoke)] == [unended]
    assert session.status(kept) is ResultStatus.LOST
    assert session.status(inline) is ResultStatus.DONE
    assert len(bench.events("store_changed")) == 1


def test_new_store_with_an_old_token(bench: Bench) -> None:
    """A store that the broker does not know, with a token that it does not accept, is a backup: refused."""
    device = bench.device()
    device.tell(Heartbeat())
    device.tell(Goodbye())
    device.store, device.token = b"restored........", b"an old token...."
    device.come_back(restarted=True)
    assert device.take(Refused).code == "stale_token"
