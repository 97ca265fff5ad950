"""What a session is told of all its results, by which a coordinator that starts again takes them up."""

from __future__ import annotations

from broker.protocol.ids import nth
from broker.protocol.messages import AskStatus, Release, ResultStatus, StatusEntry, StatusReport
from tests.broker.bench import Bench, SessionPeer


def mine(session: SessionPeer) -> list[StatusEntry]:
    """All that the session is told of, page by page."""
    entries: list[StatusEntry] = []
    while True:
        session.tell(AskStatus(r=1, ids=[], mine=True, after=entries[-1].id if entries else None))
        page = session.take(StatusReport).entries
        if not page:
            return entries
        entries += page


def test_a_session_is_told_of_its_own_invocations() -> None:
    """Ended or not, one entry for each, in the order in which they came; nothing of other sessions."""
    bench = Bench()
    session, other, device = bench.session(), bench.session(), bench.device()
    ids = [session.invoke() for _ in range(3)]
    other.invoke()
    device.ready(device.take_all()[0])
    told = mine(session)
    assert [entry.id for entry in told] == ids
    assert told[0].status is ResultStatus.DONE
    assert all(entry.status is not ResultStatus.DONE for entry in told[1:])


def test_a_named_session_is_told_of_earlier_incarnations() -> None:
    """The newest incarnation has what the older ones have sent; whoever asks under another name has nothing."""
    bench = Bench()
    device = bench.device()
    session = bench.session("nightly")
    first = session.invoke()
    device.ready(device.take_one())
    session.start()
    session.connect()
    session.open()
    second = session.invoke()
    assert [entry.id for entry in mine(session)] == [first, second]
    assert mine(bench.session("daily")) == []


def test_what_was_released_is_not_listed() -> None:
    """A result that the session has given up, whether or not its device knows yet."""
    bench = Bench()
    session, device = bench.session(), bench.device()
    released, kept = session.invoke(), session.invoke()
    first, second = device.take_all()
    device.ready(first)
    session.submit(Release(ids=[released]))
    assert [entry.id for entry in mine(session)] == [kept]
    session.submit(Release(ids=[kept]))
    device.ready(second)
    assert mine(session) == []


def test_many_come_in_pages() -> None:
    """More than one message holds are told of by several, each once."""
    bench = Bench()
    session = bench.session()
    bench.device()
    first = session.invoke()
    for _ in range(2500):
        session.invoke()
    assert [entry.id for entry in mine(session)] == [nth(first, k) for k in range(2501)]


def test_a_broker_that_restarts_knows_whose_results_they_are() -> None:
    """What an earlier incarnation of a named session has sent belongs to the newest one also after a restart of the
    broker: it is listed, and told of when it ends.
    """
    bench = Bench()
    device = bench.device()
    session = bench.session("nightly")
    ended, waiting = session.invoke(), session.invoke()
    first, second = device.take_all()
    session.start()
    session.connect()
    session.open()
    device.ready(first)
    bench.restart()
    device.connect()
    device.register()
    session.connect()
    session.open()
    assert [entry.id for entry in mine(session)] == [ended, waiting]
    device.ready(second)
    assert {notify.event.id for notify in session.notified()} == {ended, waiting}  # type: ignore[union-attr]
