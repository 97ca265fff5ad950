"""What a broker does not say, and does not decide, while its peers may know more than its ledger."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.protocol.framing import command_digest
from broker.protocol.messages import (
    AskDeadLetters,
    AskStatus,
    Cancel,
    Cancelled,
    DeadLetters,
    Deliver,
    Expired,
    Fetch,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Invoke,
    NeedValues,
    Notify,
    OpenSession,
    Refused,
    Registered,
    ResultReady,
    ResultStatus,
    StatusReport,
    Supply,
    Values,
)
from tests.broker.bench import VALUE, Bench, DevicePeer, SessionPeer


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def kill(bench: Bench, *peers: DevicePeer | SessionPeer) -> None:
    """The broker is killed with all that it has not written, and another starts; everybody connects anew."""
    bench.holding = False
    bench.restart()
    for peer in peers:
        peer.connect()
        if isinstance(peer, DevicePeer):
            peer.register()
        else:
            peer.open()


# ------------------------------------------------------------------------------------------------- told too early


def test_a_cancel_is_told_when_it_is_in_the_ledger(bench: Bench) -> None:
    """Neither the session, nor the device, nor whoever asks or waits hears of it before."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    result = session.invoke()
    device.take_all()
    other.tell(NeedValues(ids=[result]))
    bench.holding = True
    session.submit(Cancel(id=result))
    session.tell(AskStatus(r=1, ids=[result]))
    session.tell(Fetch(r=2, ids=[result]))
    outcome = session.take(Values).outcomes[0]
    assert outcome.failure is not None
    assert outcome.failure.code == "NotReady"
    assert (session.all(Notify), session.all(StatusReport), device.all(Deliver), other.all(Supply)) == ([], [], [], [])
    bench.holding = False
    bench.persist()
    assert isinstance(session.take(Notify).event, Cancelled)
    assert session.take(StatusReport).entries[0].status is ResultStatus.CANCELLED
    assert isinstance(device.take(Deliver).command, Cancel)
    assert other.take(Supply).outcomes[0].failure is not None


def test_a_value_is_told_at_once(bench: Bench) -> None:
    """Its device announces it again if this broker dies."""
    session, device = bench.session(), bench.device()
    session.invoke()
    (deliver,) = device.take_all()
    bench.holding = True
    device.ready(deliver)
    assert isinstance(session.take(Notify).event, ResultReady)


def test_a_token_is_given_when_it_is_in_the_ledger(bench: Bench) -> None:
    """Else the next broker would take the device for a copy of itself; nothing is delivered before."""
    session, device = bench.session(), bench.device()
    device.tell(Heartbeat())
    bench.holding = True
    device.come_back(restarted=True)
    session.invoke()
    assert device.messages == []
    kill(bench, device, session)
    assert device.all(Registered)
    assert device.all(Refused) == []
    bench.holding = True
    device.come_back(restarted=True)
    assert device.messages == []
    bench.persist()
    assert device.all(Registered)


# ------------------------------------------------------------------------------------------------- decided too early


def test_nothing_is_cancelled_that_a_device_may_have_ended(bench: Bench) -> None:
    """A session that was told of a value by a broker that died, and then cancels, still has that value."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    (deliver,) = device.take_all()
    bench.holding = True
    device.ready(deliver)
    kill(bench, session)
    session.submit(Cancel(id=result))
    assert session.status(result) is ResultStatus.QUEUED
    device.connect()
    device.register()
    device.ready(deliver)
    device.catch_up()
    assert session.status(result) is ResultStatus.DONE
    assert [type(notify.event) for notify in session.notified()] == [ResultReady]


@pytest.mark.parametrize("how", ["caught up", "grace", "killed again"])
def test_a_cancel_that_waits_comes(bench: Bench, how: str) -> None:
    """When the device has announced all that it has, or the grace is over; it survives another restart."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.take_all()
    kill(bench, session)
    session.submit(Cancel(id=result))
    assert session.status(result) is ResultStatus.QUEUED
    if how == "killed again":
        kill(bench, session)
    if how == "grace":
        bench.pass_time(bench.config.restart_grace)
        session.connect()
        session.open()
    else:
        device.connect()
        device.register()
        device.catch_up()
    assert session.status(result) is ResultStatus.CANCELLED
    kill(bench)
    assert bench.core.results.entry(result).status is ResultStatus.CANCELLED


def test_a_deadline_that_is_over_waits_too(bench: Bench) -> None:
    """Also that of a command which came after the restart: it may have been sent before."""
    session, device = bench.session(), bench.device()
    kill(bench, session)
    result = session.invoke(deadline_ms=1000)
    bench.pass_time(2.0)
    assert session.status(result) is ResultStatus.QUEUED
    device.connect()
    device.register()
    device.catch_up()
    assert session.status(result) is ResultStatus.EXPIRED
    assert isinstance(session.take(Notify).event, Expired)


def test_an_argument_of_a_session_that_is_gone_may_be_known_soon(bench: Bench) -> None:
    """Its device has it of a broker that died, its session is fenced since, and later commands of it were known: a
    large tensor is uploaded first, and comes after commands with larger ids.
    """
    session, device, other = bench.session("nightly"), bench.device(), bench.device("other")
    session.counter = 7
    session.invoke()
    device.ready(device.take_one())
    session.counter = 0
    bench.holding = True
    lost = session.invoke()
    deliver = device.take_one()
    kill(bench, other)
    bench.session("nightly")
    other.tell(NeedValues(ids=[lost]))
    assert other.all(Supply) == []
    device.connect()
    device.register()
    device.ready(deliver)
    other.tell(NeedValues(ids=[lost]))
    assert other.take(Supply).outcomes[0].failure is None
    assert other.frames == (VALUE,)


def test_an_unknown_argument_may_be_known_soon(bench: Bench) -> None:
    """After a restart whoever asks for it hears nothing until its command has come again, or the grace is over."""
    session, device = bench.session(), bench.device()
    bench.holding = True
    lost = session.invoke()
    device.take_all()
    kill(bench, device)
    never = b"n" * 16
    device.tell(NeedValues(ids=[lost, never]))
    assert device.all(Supply) == []
    session.connect()
    session.open()
    session.counter -= 1
    session.n -= 1
    assert session.invoke() == lost
    device.ready(device.take_one())
    device.tell(NeedValues(ids=[lost]))
    assert device.take(Supply).outcomes[0].failure is None
    assert device.frames == (VALUE,)
    bench.pass_time(bench.config.restart_grace)
    device.come_back()
    device.tell(NeedValues(ids=[never]))
    failure = device.take(Supply).outcomes[0].failure
    assert failure is not None
    assert failure.code == "UnknownResult"


# ------------------------------------------------------------------------------------------------- another ledger


def lost_ledger(bench: Bench) -> SessionPeer:
    """A session that knew another ledger than the one of this new broker."""
    session = SessionPeer(bench)
    session.open(ledger=b"another ledger..")
    session.clear()
    return session


def test_a_command_waits_for_a_device_that_has_yet_to_register(bench: Bench) -> None:
    """Under a new ledger a session may be back before the device; it is told of no failure."""
    session = lost_ledger(bench)
    result = session.invoke()
    assert session.status(result) is ResultStatus.QUEUED
    device = DevicePeer(bench, "device_1")
    device.register()
    device.ready(device.take_one())
    assert session.status(result) is ResultStatus.DONE


def test_an_end_that_was_adopted_is_told_to_the_session_that_comes_for_it() -> None:
    """Also by the next broker: the command is accepted, so its session does not send it again. It is kept as long as
    any other then.
    """
    bench = Bench(BrokerConfig(log_level=10, default_deadline_ms=10_000, retention_ms=20_000))
    device = bench.device()
    session = SessionPeer(bench)
    command = Invoke(id=session.id_of(), plan=session.plan, args=[])
    digest = command_digest(command, ())
    device.announce(ResultReady(id=command.id, digest=digest, inline=True), VALUE)
    bench.restart()  # nobody was to come for it
    session.connect()
    session.open(ledger=b"another ledger..")
    bench.blobs[session.plan] = b"plan"
    assert session.submit(command) == session.accepted()
    bench.restart()
    session.connect()
    session.open()
    assert [notify.event.id for notify in session.notified()] == [command.id]  # type: ignore[union-attr]
    bench.restart()
    session.connect()
    session.open()
    assert session.notified() == []
    assert session.status(command.id) is ResultStatus.DONE
    bench.pass_time(31.0)
    session.open()
    assert session.status(command.id) is ResultStatus.FORGOTTEN


def test_what_was_taken_of_another_ledger_counts_for_nothing(bench: Bench) -> None:
    """A device that has not heard of this ledger, since the answer was lost, tells of the other one's first epoch."""
    session = bench.session()
    device = DevicePeer(bench, "device_1")
    before = {"token": b"token of another", "ledger": b"another ledger..", "epoch": 1, "taken": 1}
    device.register(**before)
    result = session.invoke()
    assert device.take(Deliver).n == 1  # and it is lost, with the answer to `Register`
    device.connect()
    device.clear()
    device.register(**before)
    device.ready(device.take_one())
    assert session.status(result) is ResultStatus.DONE


def test_a_device_that_does_not_come_is_unknown(bench: Bench) -> None:
    """When the grace is over; later ones fail at once, as under a ledger that replaces none. A restart begins anew."""
    session = lost_ledger(bench)
    result = session.invoke()
    kill(bench, session)
    assert session.status(result) is ResultStatus.QUEUED
    bench.pass_time(bench.config.restart_grace)
    session.connect()
    session.open()
    later = session.invoke()
    assert [session.status(each) for each in (result, later)] == [ResultStatus.FAILED] * 2
    fresh = Bench()
    other = fresh.session()
    assert other.status(other.invoke()) is ResultStatus.FAILED


# ------------------------------------------------------------------------------------------------- who may come back


def test_fenced_incarnations_stay_fenced(bench: Bench) -> None:
    """A coordinator that was taken over is refused, by the next broker too; the one that took over is not."""
    session = bench.session("nightly")
    old = session.incarnation
    session.start()
    session.connect()
    session.open()
    kill(bench)
    peer = bench.peer()
    peer.tell(OpenSession(version=(1, 0), incarnation=old, session="nightly"))
    assert peer.take(Refused).code == "fenced"
    session.connect()
    session.open()
    assert session.all(Refused) == []


def test_an_incarnation_has_one_name(bench: Bench) -> None:
    """Who comes with an incarnation that another session has is refused."""
    session = bench.session("nightly")
    peer = bench.peer()
    peer.tell(OpenSession(version=(1, 0), incarnation=session.incarnation, session="daily"))
    assert peer.take(Refused).code == "not_allowed"
    assert session.status(b"x" * 16) is ResultStatus.UNKNOWN


# ------------------------------------------------------------------------------------------------- presence, operators


def test_more_devices_are_heard_less_often() -> None:
    """The broker gives the interval, and waits for three of those that it gave."""
    bench = Bench(BrokerConfig(log_level=10, heartbeat_ms=1000, heartbeats_per_second=2))
    first = bench.device()
    for k in range(5):
        bench.device(f"d{k}")
    first.tell(Heartbeat())
    assert first.take(HeartbeatSeen).heartbeat_ms == 3000
    bench.pass_time(8.9)
    assert [info.device for info in bench.core.devices.infos() if info.online][-1] == "device_1"
    bench.pass_time(0.2)
    assert not any(info.online for info in bench.core.devices.infos())


def test_dead_letters_are_listed(bench: Bench) -> None:
    """Commands that killed their workers, the last first, each with its reason; also after a restart."""
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(3)]
    good, *bad = device.take_all()
    device.ready(good)
    for deliver in bad:
        device.failed(deliver, "WorkerDied")
    kill(bench, session)
    session.tell(AskDeadLetters(r=1, limit=1))
    letters = session.take(DeadLetters)
    assert (letters.total, [entry.id for entry in letters.entries]) == (2, [ids[2]])
    failure = letters.entries[0].failure
    assert failure is not None
    assert failure.code == "WorkerDied"


def test_worn_out_after_a_restart_of_the_broker() -> None:
    """A command that was delivered too often before the broker was killed is not delivered again by the next one."""
    bench = Bench(BrokerConfig(log_level=10, max_deliveries=2))
    session, device = bench.session(), bench.device()
    result = session.invoke()
    for _ in range(2):
        assert len(device.take_all()) == 1
        device.tell(Goodbye())
        device.come_back(restarted=True)
    device.tell(Goodbye())
    kill(bench, session)
    device.come_back(restarted=True)
    assert device.take_all() == []
    device.catch_up()
    assert session.status(result) is ResultStatus.FAILED
