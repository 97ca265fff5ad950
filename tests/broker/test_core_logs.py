"""What the core logs, whom it tells the followed level, and what it publishes."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.effects import PublishLogs, PublishNotification, Subscriptions
from broker.protocol.messages import LogRecords, Notify, Registered, SessionOpened, SetLogLevel
from tests.broker.bench import VALUE, Bench, DevicePeer, SessionPeer


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def run_one(bench: Bench) -> bytes:
    """One invocation from start to end."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    session.notified()
    return result


def test_a_result_can_be_followed_hop_by_hop(bench: Bench) -> None:
    """At the debug level each hop through the broker is an event with the result's id."""
    result = run_one(bench)
    hops = [log.event for log in bench.logs if log.fields.get("result") == result.hex()]
    assert hops == [
        "invocation_accepted",
        "invocation_relayed",
        "invocation_taken",
        "result_announced",
        "result_recorded",
        "result_notified",
    ]


def test_nothing_is_made_that_nobody_wants() -> None:
    """Below the wanted level no event is made."""
    bench = Bench(BrokerConfig(log_level=30))
    run_one(bench)
    assert bench.logs == []


def test_lifecycle_is_logged_at_info() -> None:
    """Devices and sessions coming and plans being stored are what an operator reads."""
    bench = Bench(BrokerConfig(log_level=20))
    run_one(bench)
    assert [log.event for log in bench.logs] == ["session_opened", "plan_stored", "device_joined"]
    assert {log.level for log in bench.logs} == {20}


def test_no_event_carries_contents(bench: Bench) -> None:
    """No value, no token: an event has names, numbers and ids."""
    run_one(bench)
    device = bench.core.devices.by_name["device_1"]
    for log in bench.logs:
        text = repr(log)
        assert VALUE.decode() not in text
        assert device.issued.hex() not in text
        assert all(isinstance(value, str | int | float | bool | None) for value in log.fields.values())


def test_followers_lower_the_level() -> None:
    """Whoever follows the stream at a lower level gets more events, from everybody, until they go."""
    bench = Bench(BrokerConfig(log_level=30))
    session, device = bench.session(), bench.device()
    bench.feed(Subscriptions(log_level=10))
    assert session.take(SetLogLevel).level == device.take(SetLogLevel).level == 10
    late_device, late_session = DevicePeer(bench, "late"), SessionPeer(bench)
    late_device.register()
    late_session.open()
    assert late_device.take(Registered).log_level == late_session.take(SessionOpened).log_level == 10
    bench.logs.clear()
    session.invoke()
    assert bench.events("invocation_relayed")
    bench.feed(Subscriptions(log_level=10))
    assert session.all(SetLogLevel) == []
    bench.feed(Subscriptions())
    assert session.take(SetLogLevel).level == 0
    bench.logs.clear()
    session.invoke()
    assert bench.logs == []


def test_lower_local_level_stays() -> None:
    """A follower of warnings does not raise the level of who wants all."""
    bench = Bench(BrokerConfig(log_level=10))
    bench.feed(Subscriptions(log_level=30))
    run_one(bench)
    assert bench.events("invocation_relayed")
    bench.core.log_level = 40
    bench.logs.clear()
    bench.session().babble()
    assert [log.event for log in bench.logs] == ["message_refused"]


def test_records_of_peers_are_published(bench: Bench) -> None:
    """Records of devices and sessions go to followers under the name of who sent them, and nowhere without
    followers.
    """
    session, device = bench.session(), bench.device()
    records: list[dict[str, str | int | float | bool | None]] = [{"event": "x", "level": "info", "timestamp": "now"}]
    device.tell(LogRecords(records=records))
    assert bench.published == []
    bench.feed(Subscriptions(log_level=20))
    device.tell(LogRecords(records=records))
    session.tell(LogRecords(records=records))
    assert bench.published == [
        PublishLogs(device="device_1", records=records),
        PublishLogs(device="", records=records),
    ]


@pytest.mark.parametrize("followed", [True, False])
def test_notifications_are_published(bench: Bench, *, followed: bool) -> None:
    """A notification is published under its id when anybody follows, also when its session is gone."""
    bench.feed(Subscriptions(notifications=followed))
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    (notify,) = session.all(Notify)
    expected = PublishNotification(
        id=result, notify=Notify(n=0, device="device_1", event=notify.event), frames=(VALUE,)
    )
    assert bench.published == ([expected] if followed else [])


def test_refusals_are_warnings(bench: Bench) -> None:
    """What was refused or failed is at the warning level."""
    device = bench.device()
    device.babble()
    assert [log.level for log in bench.events("message_refused")] == [30]
    levels = {log.event: log.level for log in bench.logs}
    assert all(level in (10, 20, 30, 40) for level in levels.values())
