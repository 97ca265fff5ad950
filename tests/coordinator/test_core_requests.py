"""Requests that are asked until answered, and ids of others that are watched until they end."""

from __future__ import annotations

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown
from coordinator.core_events import Answered, Ask, GiveUp, ResultEnded, Watch
from coordinator.core_tables import ResultState
from tests.coordinator.session import Session

ID = b"other-session-id"


def ask(session: Session) -> int:
    """Ask for the counters; the request's number."""
    r = session.core.take_request()
    session.handle(Ask(request=m.AskStats(r=r)))
    return r


def test_a_request_is_answered_once() -> None:
    """The answer is handed on with its frames; a second one is dropped."""
    session = Session()
    session.open()
    r = ask(session)
    assert session.sent(m.AskStats) == [m.AskStats(r=r)]
    answer = m.Stats(r=r, total=m.Counters(), devices={})
    session.told(answer)
    assert session.of(Answered) == [Answered(r=r, message=answer)]
    session.told(answer)
    assert session.new == []


def test_a_request_waits_for_the_connection_and_goes_again_on_the_next() -> None:
    """Asked before the connection, it goes when that stands; unanswered, again on the next one."""
    session = Session()
    r = ask(session)
    assert session.new == []
    session.open()
    assert session.sent(m.AskStats) == [m.AskStats(r=r)]
    session.handle(LinkDown())
    session.open()
    assert session.sent(m.AskStats) == [m.AskStats(r=r)]


def test_a_request_without_an_answer_goes_again_ever_more_slowly() -> None:
    """The pauses double."""
    session = Session(request_patience=1.0)
    session.open(heartbeat_ms=3_600_000)
    ask(session)
    times = []
    for _ in range(4):
        session.tick()
        assert session.sent(m.AskStats)
        times.append(session.now - 100.0)
    assert times == [1.0, 3.0, 7.0, 15.0]


def test_a_request_that_nobody_waits_for_is_forgotten() -> None:
    """After GiveUp it is not sent again, and its answer means nothing."""
    session = Session(request_patience=1.0)
    session.open(heartbeat_ms=3_600_000)
    r = ask(session)
    session.handle(GiveUp(r))
    session.tick()
    assert not session.sent(m.AskStats)
    session.told(m.Stats(r=r, total=m.Counters(), devices={}))
    assert not session.of(Answered)


def report(session: Session, status: m.ResultStatus, **fields: object) -> None:
    """Answer the question after the watched id."""
    (question,) = session.sent(m.AskStatus)
    assert question.ids == [ID]
    entry = m.StatusEntry(id=ID, status=status, **fields)  # type: ignore[arg-type]
    session.told(m.StatusReport(r=question.r, entries=[entry]))


def test_a_watched_id_is_asked_after_until_it_ends() -> None:
    """While it runs it is asked after again and again, ever more slowly; then its result says where it is."""
    session = Session()
    session.open(heartbeat_ms=3_600_000)
    session.handle(Watch(ID))
    result = session.core.result(ID)
    assert result is not None
    pauses = []
    for _ in range(8):
        before = session.now
        report(session, m.ResultStatus.RUNNING)
        session.tick()
        pauses.append(session.now - before)
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 2.0
    info = m.ResultInfo(dtype="int64", shape=[], nbytes=8)
    report(session, m.ResultStatus.DONE, device="d7", info=info)
    assert session.of(ResultEnded) == [ResultEnded(ID)]
    assert (result.state, result.device, list(result.infos)) == (ResultState.REMOTE, "d7", [info])
    assert session.core.result(ID) is None
    assert session.core.next_timer() is not None  # heartbeats; nothing else
    session.tick()
    assert not session.sent(m.AskStatus)


def test_all_watched_ids_are_asked_after_however_many() -> None:
    """Ten thousand at a time, in turn: those that do not end keep nobody else from being asked after."""
    session = Session()
    session.open(heartbeat_ms=3_600_000)
    ids = [b"another." + n.to_bytes(8, "big") for n in range(15_000)]
    for id in ids:
        session.handle(Watch(id))
    asked: list[list[bytes]] = []
    (question,) = session.sent(m.AskStatus, session.done)
    for _ in range(3):
        asked.append(question.ids)
        session.told(m.StatusReport(r=question.r, entries=[]))
        session.tick()
        (question,) = session.sent(m.AskStatus)
    assert [len(each) for each in asked] == [1, 10_000, 10_000]  # the first one was asked after at once
    assert {id for each in asked for id in each} == set(ids)


def test_a_watched_id_that_has_no_value_ends_with_the_reason() -> None:
    """Every status that is final and not done becomes a failure of that name."""
    expected = {
        m.ResultStatus.UNKNOWN: "UnknownResult",
        m.ResultStatus.FORGOTTEN: "UnknownResult",
        m.ResultStatus.RELEASED: "ResultReleased",
        m.ResultStatus.LOST: "ResultLost",
        m.ResultStatus.CANCELLED: "InvocationCancelled",
        m.ResultStatus.EXPIRED: "DeadlineExpired",
        m.ResultStatus.FAILED: "StoreFull",
    }
    for status, code in expected.items():
        session = Session()
        session.open()
        session.handle(Watch(ID))
        result = session.core.result(ID)
        fields = {"failure": m.Failure(code="StoreFull", message="")} if status is m.ResultStatus.FAILED else {}
        report(session, status, **fields)
        assert result is not None
        assert result.failure is not None
        assert result.failure.code == code, status


def test_watching_twice_is_watching_once() -> None:
    """A second Watch for the same id follows the same result."""
    session = Session()
    session.open()
    session.handle(Watch(ID))
    first = session.core.result(ID)
    session.handle(Watch(ID))
    assert session.core.result(ID) is first
    assert not session.sent(m.AskStatus)


def test_a_watched_id_ends_with_the_session() -> None:
    """A refusal ends it, too."""
    session = Session()
    session.open()
    session.handle(Watch(ID))
    result = session.core.result(ID)
    session.told(m.Refused(version=(1, 0), code="fenced", reason=""))
    assert result is not None
    assert result.ended
