"""Sessions: how they come and go, named ones that are taken over, and what is kept of them; limits of every kind."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.protocol.messages import (
    Accepted,
    Busy,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Invoke,
    Notify,
    Put,
    Refused,
    Rejected,
    ResultStatus,
    SessionOpened,
    Stranger,
    Submit,
)
from broker.protocol.streams import WINDOW
from tests.broker.bench import Bench, SessionPeer


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def with_config(**settings: float) -> Bench:
    """A broker with limits of its own."""
    return Bench(BrokerConfig(log_level=10, **settings))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- coming and going


def test_welcome(bench: Bench) -> None:
    """A session is told all that it needs."""
    bench.core.endpoints(blobs="tcp://*:7", logs="tcp://*:8")
    session = SessionPeer(bench)
    session.open()
    assert session.take(SessionOpened) == SessionOpened(
        version=(1, 1),
        ledger=b"L" * 16,
        accepted=0,
        heartbeat_ms=5000,
        max_message=4 << 20,
        blobs="tcp://*:7",
        logs="tcp://*:8",
    )


def test_heartbeats(bench: Bench) -> None:
    """A session is answered, and one that is silent is asked, not dropped: it may have nothing to say."""
    session, device = bench.session(), bench.device()
    session.tell(Heartbeat())
    assert session.take(HeartbeatSeen).heartbeat_ms == 5000
    result = session.invoke()
    deliver = device.take_all()[0]
    for _ in range(20):
        bench.pass_time(10.0)
        device.tell(Heartbeat())
    assert session.all(HeartbeatSeen)
    device.ready(deliver)
    assert [notify.event.id for notify in session.notified()] == [result]  # type: ignore[union-attr]


def test_session_that_died(bench: Bench) -> None:
    """A session whose connection is gone is found out when something is sent to it, and its results wait."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    session.connect()
    device.ready(device.take_one())
    assert bench.events("session_lost")
    session.tell(Heartbeat())
    session.take(Stranger)
    session.open()
    assert [notify.event.id for notify in session.notified()] == [result]  # type: ignore[union-attr]


def test_goodbye_of_an_unnamed_session(bench: Bench) -> None:
    """Nobody comes back for an unnamed session that said goodbye: its commands go on, its notifications don't."""
    session, other, device = bench.session(), bench.session(), bench.device()
    seen, unseen = session.invoke(), session.invoke()
    first, second = device.take_all()
    device.ready(first)
    session.tell(Goodbye())
    assert other.status(seen) is ResultStatus.DONE
    assert bench.core.gauges()["sessions"] == 2
    device.ready(second)
    assert other.status(unseen) is ResultStatus.DONE
    assert bench.core.gauges()["sessions"] == 1


def test_goodbye_of_a_named_session(bench: Bench) -> None:
    """A named session that said goodbye is waited for."""
    session, device = bench.session("nightly"), bench.device()
    result = session.invoke()
    session.tell(Goodbye())
    device.ready(device.take_one())
    session.start()
    session.connect()
    session.open()
    assert [notify.event.id for notify in session.notified()] == [result]  # type: ignore[union-attr]


def test_session_is_taken_over(bench: Bench) -> None:
    """The newest incarnation of a named session gets what is unended and unseen; the older is told that it is
    fenced.
    """
    old, device = bench.session("nightly"), bench.device()
    done, running = old.invoke(), old.invoke()
    first, second = device.take_all()
    device.ready(first)
    assert old.all(Notify)
    new = SessionPeer(bench, "nightly")
    new.open()
    refused = old.take(Refused)
    assert refused.code == "fenced"
    assert refused.reason == "another coordinator has taken over session nightly"
    device.ready(second)
    assert [notify.event.id for notify in new.notified()] == [done, running]  # type: ignore[union-attr]
    old.tell(Heartbeat())
    old.take(Stranger)
    old.open()
    assert old.take(Refused).code == "fenced"
    assert new.status(new.invoke()) is ResultStatus.QUEUED
    assert len(bench.events("session_taken_over")) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_session_that_was_forgotten_takes_nothing_over(restarted: bool) -> None:
    """Whoever has the name now came later, though nobody was there to be fenced then."""
    bench = with_config(session_retention=1000.0)
    old = bench.session("nightly")
    old.connect()
    bench.pass_time(2500.0)
    assert bench.core.gauges()["sessions"] == 0
    new = bench.session("nightly")
    if restarted:
        bench.restart()
        new.connect()
        new.open()
        old.connect()
    old.open()
    assert old.take(Refused).code == "fenced"
    device = bench.device()
    result = new.invoke()
    device.ready(device.take_one())
    assert new.status(result) is ResultStatus.DONE


def test_a_session_that_was_forgotten_may_come_back() -> None:
    """Where nobody has its name."""
    bench = with_config(session_retention=1000.0)
    session = bench.session("nightly")
    session.connect()
    bench.pass_time(2500.0)
    session.open()
    assert session.take(SessionOpened).accepted == 0


def test_acceptance_of_a_fenced_incarnation(bench: Bench) -> None:
    """What an older incarnation sent is not acknowledged to the newer one."""
    old = bench.session("nightly")
    bench.device()
    bench.holding = True
    for _ in range(5):
        old.invoke()
    new = SessionPeer(bench, "nightly")
    new.open()
    bench.persist()
    assert new.accepted() == 1


def test_sessions_are_bounded() -> None:
    """More sessions than may be known are refused for now."""
    bench = with_config(sessions=2)
    bench.session()
    bench.session()
    third = SessionPeer(bench)
    third.open()
    refused = third.take(Refused)
    assert (refused.code, refused.reason) == ("full", "this broker knows 2 sessions, and may know no more")


def test_session_is_forgotten() -> None:
    """A session that does not come back is forgotten with its notifications, when its commands have ended."""
    bench = with_config(session_retention=1000.0, default_deadline_ms=1_500_000)
    session, device = bench.session(), bench.device()
    result = session.invoke()
    session.connect()
    bench.pass_time(1400.0)
    assert bench.core.gauges()["sessions"] == 1
    bench.pass_time(1400.0)
    assert bench.core.gauges()["sessions"] == 0
    device.come_back(restarted=True)
    assert bench.session().status(result) is ResultStatus.EXPIRED


def test_past_sessions_are_bounded() -> None:
    """Of sessions that are gone only so much is kept as is needed to tell forgotten from unknown."""
    bench = with_config(past_sessions=3, ended_results=0)
    device = bench.device()
    ids = []
    for _ in range(5):
        session = bench.session()
        ids.append(session.invoke())
        device.ready(device.take_one())
        session.notified()
        session.tell(Goodbye())
    asker = bench.session()
    assert [asker.status(each) for each in ids] == [ResultStatus.UNKNOWN] * 2 + [ResultStatus.FORGOTTEN] * 3


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"session_commands": 2}, "the session has 2 results that have not ended or that it has not seen"),
        ({"total_commands": 2}, "this broker has 2 commands that have not ended"),
        ({"mailbox_commands": 2}, "the mailbox of device_1 is full: 2 commands, 200 bytes"),
        ({"mailbox_bytes": 250}, "the mailbox of device_1 is full: 2 commands, 200 bytes"),
        ({"total_bytes": 250}, "this broker has 200 bytes of commands that have not ended"),
    ],
)
def test_busy(settings: dict[str, int], words: str) -> None:
    """Each limit makes the session wait, in words, and lets it go on when there is room again."""
    bench = with_config(**settings)
    session, device = bench.session(), bench.device()
    for _ in range(3):
        session.submit(Put(id=session.id_of()), b"x" * 100)
    busy = session.take(Busy)
    assert (busy.n, busy.reason) == (4, words)
    for deliver in device.take_all():
        device.ready(deliver)
    session.notified()
    session.tell(
        Submit(n=4, devices=["device_1"], command=Put(id=session.incarnation + bytes(7) + b"\x09")), b"x" * 100
    )
    assert session.accepted() == 4


def test_one_command_always_fits() -> None:
    """A command larger than a limit of bytes is taken when nothing else waits: else it could never be."""
    bench = with_config(mailbox_bytes=50, total_bytes=50)
    session, device = bench.session(), bench.device()
    session.submit(Put(id=session.id_of()), b"x" * 100)
    assert session.accepted() == session.n
    assert device.take_all()


def test_results_are_bounded_in_number() -> None:
    """Beyond the limit the oldest results that were seen are forgotten early, and no others."""
    bench = with_config(ended_results=10)
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(25)]
    delivered = device.take_all()
    for deliver in delivered[:20]:
        device.ready(deliver)
    assert bench.core.gauges()["results"] == 25
    session.notified()
    assert bench.core.gauges()["results"] == 15
    statuses = [session.status(each) for each in ids]
    assert statuses == ([ResultStatus.FORGOTTEN] * 10 + [ResultStatus.DONE] * 10 + [ResultStatus.DELIVERED] * 5)
    device.ready(delivered[20])
    assert session.status(ids[20]) is ResultStatus.DONE


def test_results_are_bounded_in_bytes() -> None:
    """Inline values count: beyond the limit the oldest that were seen go."""
    bench = with_config(value_bytes=1000)
    session, device = bench.session(), bench.device()
    for _ in range(10):
        session.invoke()
    for deliver in device.take_all():
        device.ready(deliver, b"x" * 300)
    assert bench.core.gauges()["value_bytes"] == 3000
    session.notified()
    assert bench.core.gauges()["value_bytes"] == 900
    assert bench.core.gauges()["results"] == 3


def test_retention() -> None:
    """A record is kept until its deadline and the retention after it are over, then it is forgotten."""
    bench = with_config(default_deadline_ms=10_000, retention_ms=20_000, silent_heartbeats=1000)
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    session.notified()
    bench.pass_time(29.0)
    assert session.status(result) is ResultStatus.DONE
    bench.pass_time(2.0)
    assert session.status(result) is ResultStatus.FORGOTTEN


@pytest.mark.parametrize("seen", ["before", "between", "not"])
def test_retention_of_a_result_that_was_asked_for_again(seen: str) -> None:
    """Whether it was seen once or twice, and when, it is forgotten once, when its time is over, and others with it."""
    bench = with_config(default_deadline_ms=10_000, retention_ms=20_000, silent_heartbeats=1000)
    session, device = bench.session(), bench.device()
    result = session.invoke()
    command = Invoke(id=result, plan=session.plan, args=[])
    device.ready(device.take_one())
    if seen == "before":
        session.notified()
    session.submit(command)
    if seen == "between":
        session.notified()
    session.submit(command)
    assert len(session.notified()) == {"before": 2, "between": 1, "not": 3}[seen]
    other = session.invoke()
    device.ready(device.take_one())
    session.notified()
    bench.pass_time(29.0)
    assert [session.status(each) for each in (result, other)] == [ResultStatus.DONE] * 2
    bench.pass_time(2.0)
    assert [session.status(each) for each in (result, other)] == [ResultStatus.FORGOTTEN] * 2
    assert bench.core.gauges()["results"] == 0


def test_what_is_to_be_notified_again_is_not_forgotten() -> None:
    """A result that was seen, and asked for again, is kept until it is seen once more, although its time is over."""
    bench = with_config(default_deadline_ms=10_000, retention_ms=20_000, silent_heartbeats=1000)
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    session.notified()
    session.submit(Invoke(id=result, plan=session.plan, args=[]))
    bench.pass_time(31.0)
    assert session.status(result) is ResultStatus.DONE
    assert [notify.event.id for notify in session.notified()] == [result]  # type: ignore[union-attr]
    bench.pass_time(1.0)
    assert session.status(result) is ResultStatus.FORGOTTEN


def test_a_forgotten_result_stays_forgotten_over_a_restart() -> None:
    """Also when its session has sent nothing since it was forgotten."""
    bench = with_config(default_deadline_ms=10_000, retention_ms=20_000, silent_heartbeats=1000)
    session, device = bench.session(), bench.device()
    results = [session.invoke(), session.invoke()]
    for deliver in device.take_all():
        device.ready(deliver)
    session.notified()
    bench.pass_time(31.0)
    bench.restart()
    asker = bench.session()
    assert [asker.status(each) for each in results] == [ResultStatus.FORGOTTEN] * 2


def test_the_id_of_a_forgotten_result_names_no_other_command() -> None:
    """Nor the same one once more: it would end a second time."""
    bench = with_config(ended_results=0)
    session, device = bench.session(), bench.device()
    first = session.invoke(outputs=2)
    device.ready(device.take_one(), outputs=2)
    session.notified()
    for id in (first, first[:15] + bytes([first[15] + 1])):
        session.submit(Invoke(id=id, plan=session.plan, args=[]))
        failure = session.take(Rejected).failure
        assert failure.code == "IdConflict"
        assert failure.message == f"the id {id.hex()} already named another command, or a part of one, and is forgotten"
    assert device.take_all() == []


def test_forgotten_result_that_is_announced() -> None:
    """A result that comes after it was forgotten stays so: its device may drop it."""
    bench = with_config(ended_results=0)
    session, device = bench.session(), bench.device()
    result = session.invoke(deadline_ms=1000)
    (deliver,) = device.take_all()
    bench.pass_time(2.0)
    session.notified()
    device.take_all()
    device.ready(deliver)
    assert session.status(result) is ResultStatus.FORGOTTEN
    (errand,) = device.take_all()
    assert errand.command.ids == [result]  # type: ignore[union-attr]


def test_result_of_a_ledger_that_was_lost_is_not_taken_for_forgotten(bench: Bench) -> None:
    """A value that only an earlier ledger knew is adopted, also when its session has gone on with later ids here."""
    session, device = bench.session(), bench.device()
    early = session.id_of()
    session.invoke()
    deliver = device.take_all()[0]
    device.ready(deliver)
    from broker.protocol.messages import ResultInfo, ResultReady

    info = ResultInfo(dtype="int8", shape=[], nbytes=1)
    device.announce(ResultReady(id=early, digest=b"d" * 16, infos=[info]))
    assert session.status(early) is ResultStatus.DONE
    assert device.take_all() == []


def test_mailboxes_of_ten_thousand_devices() -> None:
    """An idle broker with very many devices serves its timers without going through all of them."""
    bench = with_config()
    devices = [bench.device(f"d{k}") for k in range(10_000)]
    assert bench.core.gauges()["devices_online"] == 10_000
    bench.pass_time(7.0)
    for device in devices[:100]:
        device.tell(Heartbeat())
    calls = 0
    while (timer := bench.core.next_timer()) is not None and timer <= 15.0:
        bench.pass_time(timer - bench.now)
        calls += 1
    assert calls <= 2  # all were heard at the same moment
    assert bench.core.gauges()["devices_online"] == 100


def test_idle_session_is_forgotten_sooner() -> None:
    """A session that waits for nothing is not kept for long; one that has a name, or something to be told, is."""
    bench = with_config(idle_session_retention=100.0, session_retention=10_000.0)
    device = bench.device()
    idle, named, waiting = bench.session(), bench.session("nightly"), bench.session()
    result = waiting.invoke()
    deliver = device.take_one()
    for session in (idle, named, waiting):
        session.connect()
    device.ready(deliver)
    bench.pass_time(1000.0)
    assert bench.core.gauges()["sessions"] == 2
    waiting.open()
    assert [notify.event.id for notify in waiting.notified()] == [result]  # type: ignore[union-attr]
    idle.open()
    assert idle.take(SessionOpened).accepted == 0


def test_a_rejection_is_said_with_what_is_accepted(bench: Bench) -> None:
    """`Rejected` may be lost, and so may an `Accepted`: each `Accepted` says which commands up to there do nothing, and
    so does the answer to an introduction, also after a restart; until the session has certainly heard it.
    """
    session, device = bench.session(), bench.device()
    session.clear()
    session.submit(Invoke(id=b"another's id....", plan=session.plan, args=[]))
    failure = session.take(Rejected).failure
    assert session.take(Accepted) == Accepted(n=2, rejected={2: failure})
    session.invoke()
    assert session.take(Accepted) == Accepted(n=3, rejected={2: failure})
    bench.restart()
    session.connect()
    session.open()
    assert session.take(SessionOpened).rejected == {2: failure}
    device.come_back()
    for _ in range(bench.config.window):
        session.invoke()
    assert session.all(Accepted)[-1].rejected == {}
    session.submit(Invoke(id=b"another's id....", plan=session.plan, args=[]))
    assert list(session.all(Accepted)[-1].rejected) == [session.n]


def test_rejections_are_kept_for_the_window_of_the_session() -> None:
    """How many messages the broker itself sends without an acknowledgement has no part in it."""
    bench = Bench(BrokerConfig(log_level=10, window=3))
    session = bench.session()
    for _ in range(WINDOW - 1):
        session.submit(Invoke(id=b"another's id....", plan=session.plan, args=[]))
    session.connect()
    session.open()
    assert list(session.take(SessionOpened).rejected) == list(range(2, session.n + 1))
