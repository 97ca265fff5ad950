"""The session's connection: introduction, loss, silence, refusal; every state against every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown, LinkUp, Send, Tick
from broker.protocol.errors import InvalidTransition
from coordinator.core_events import Answered, Ask, Close, Reconnect, SessionEnded, SessionReady, StreamLevel
from coordinator.core_results import Result
from coordinator.core_tables import LINK, RESULT, Link, LinkInput, LinkMachine, ResultInput, ResultState
from tests.coordinator.session import Session


def refused(code: str) -> m.Refused:
    """The broker's refusal."""
    return m.Refused(version=(1, 0), code=code, reason="because")


def test_it_introduces_itself_when_the_connection_stands() -> None:
    """A new connection makes an OpenSession with incarnation and the last notification seen."""
    session = Session(session="nightly")
    session.handle(LinkUp())
    (hello,) = session.sent(m.OpenSession)
    assert (hello.incarnation, hello.session, hello.seen, hello.ledger) == (b"incarnat", "nightly", 0, b"")
    assert session.core.link is Link.OPENING


def test_it_says_which_ledger_it_knows() -> None:
    """After the first answer an OpenSession names the ledger, so that a broker can tell what it has forgotten."""
    session = Session(session="nightly")
    session.open()
    session.told(m.Stranger())
    (hello,) = session.sent(m.OpenSession)
    assert hello.ledger == session.core._commands.ledger != b""


def test_nothing_is_sent_before_the_broker_has_answered() -> None:
    """Commands wait for SessionOpened, then go."""
    session = Session()
    session.invoke(1.0)
    assert not session.of(Send, session.done)
    session.handle(LinkUp())
    assert not session.submits()
    session.opened()
    assert [n for n, _ in session.submits()] == [1, 2]  # the plan, and its invocation
    assert session.of(SessionReady)


def test_an_unanswered_introduction_is_repeated() -> None:
    """OpenSession goes again after a while without an answer."""
    session = Session(open_patience=2.0)
    session.handle(LinkUp())
    assert session.core.next_timer() == session.now + 2.0
    session.tick()
    assert len(session.sent(m.OpenSession)) == 1


def test_a_stranger_introduces_itself_again() -> None:
    """A broker that has forgotten the session is told who speaks, once."""
    session = Session()
    session.open()
    session.told(m.Stranger())
    assert len(session.sent(m.OpenSession)) == 1
    session.told(m.Stranger())  # the answer to an earlier message: the introduction is under way
    assert session.new == []


def test_an_older_answer_to_the_introduction_changes_nothing() -> None:
    """It was asked twice, and the answer that says less comes last: numbers that were given out stay as they are."""
    session = Session()
    session.open()
    session.with_plan()
    first, second = session.invoke(1.0), session.invoke(2.0)
    n = session.last_n()
    session.told(m.Accepted(n=n - 1))
    session.opened(accepted=n - 2)
    assert session.new == []
    session.told(m.Accepted(n=n))
    assert session.core.unaccepted == 0
    session.ready(first)
    session.ready(second)
    assert session.core.pending == 0


def test_a_late_notification_does_not_count_on_the_next_connection() -> None:
    """A broker that was restarted may have given its number to another one, which would never be taken then."""
    session = Session()
    session.open()
    session.with_plan()
    first, second = session.invoke(1.0), session.invoke(2.0)
    session.handle(LinkDown())
    session.handle(LinkUp())
    session.ready(first)  # it was on its way from the broker that died, before that had it on disk
    session.opened(accepted=session.last_n())
    session.notify(m.ResultReady(id=second.id, digest=second.digest, inline=True), b"value", n=1)
    assert (first.ended, second.ended) == (False, True)
    session.notify(m.ResultReady(id=first.id, digest=first.digest, inline=True), b"value", n=2)
    assert first.ended


def test_heartbeats_follow_the_brokers_interval() -> None:
    """Heartbeats go at the interval that the broker gave, and change with it."""
    session = Session()
    session.open(heartbeat_ms=4000)
    assert session.core.next_timer() == session.now + 4.0
    session.tick()
    assert session.sent(m.Heartbeat) == [m.Heartbeat()]
    session.told(m.HeartbeatSeen(heartbeat_ms=1000))
    assert session.core.next_timer() == session.now + 1.0


def test_a_silent_broker_is_left_for_a_new_connection() -> None:
    """When nothing is heard for several intervals, the driver is told to reconnect, and nothing is sent until then."""
    session = Session(silence=3.0)
    session.open(heartbeat_ms=1000)
    start = session.now
    while not session.of(Reconnect):
        session.tick()
    assert session.now == start + 3.0
    assert session.core.link is Link.DOWN
    assert "broker_silent" in session.logged()
    session.invoke(1.0)
    assert not session.of(Send)


def test_any_word_of_the_broker_counts_against_silence() -> None:
    """A broker that sends notifications but no heartbeat is alive."""
    session = Session(silence=3.0)
    session.open(heartbeat_ms=1000)
    for _ in range(10):
        session.now += 1.0
        session.told(m.SetLogLevel(level=0))
        session.handle(Tick())
    assert session.core.link is Link.OPEN


@pytest.mark.parametrize("code", ["version", "fenced", "not_allowed", "something new"])
def test_a_refusal_ends_everything_that_waits(code: str) -> None:
    """A refusal at the introduction ends results and requests with a failure that carries its code."""
    session = Session(session="nightly")
    result = session.invoke(1.0)
    session.handle(Ask(request=m.AskStats(r=session.core.take_request())))
    session.handle(LinkUp())
    session.told(refused(code))
    assert result.failure is not None
    assert result.failure.code == "ConnectionRefused"
    assert result.failure.details == {"refusal": code, "session": "nightly"}
    (answered,) = session.of(Answered)
    assert answered.failure == result.failure
    assert session.of(SessionEnded)
    assert session.core.next_timer() is None


def test_after_a_refusal_new_calls_fail_at_once() -> None:
    """A command or a request made after the end of the session ends with the same failure, and nothing is sent."""
    session = Session()
    session.handle(LinkUp())
    session.told(refused("version"))
    first = session.core.take_ids(1)
    session.submit(m.Put(id=first), frames=(b"x",))
    assert session.core.result(first) is None
    session.handle(Ask(request=m.AskStats(r=session.core.take_request())))
    assert session.of(Answered)[0].failure == session.core.failure
    session.handle(LinkUp())
    assert not session.of(Send)


def test_a_full_broker_is_final_at_first_and_for_a_while_later() -> None:
    """`full` refuses the first introduction for good, but a session that was open tries again."""
    first = Session()
    first.handle(LinkUp())
    first.told(refused("full"))
    assert first.core.link is Link.REFUSED
    later = Session(open_patience=2.0)
    later.open()
    later.told(refused("full"))
    assert later.core.link is Link.WAITING
    later.tick()
    assert later.sent(m.OpenSession)
    assert later.opened()
    assert later.of(SessionReady)


def test_a_refused_message_does_not_end_an_open_session() -> None:
    """Once open, a refusal whose code is not about the peer is about one message."""
    session = Session()
    session.open()
    session.told(refused("too_large"))
    assert "refused" in session.logged()
    assert not session.of(SessionEnded)
    session.told(refused("fenced"))
    assert session.of(SessionEnded)


def test_a_late_refusal_of_a_message_does_not_end_a_session_that_introduces_itself_again() -> None:
    """A broker that was started anew knows nobody, and may be an older one: it answers each message that was under way
    to the one before, and of what it cannot read it says so.
    """
    session = Session()
    session.open()
    result = session.invoke(1.0)
    session.told(m.Stranger())
    assert session.sent(m.OpenSession)
    session.told(refused("malformed"))
    assert not session.of(SessionEnded)
    assert session.opened()
    session.ready(result)
    assert result.failure is None


def test_a_refusal_for_a_new_reason_ends_a_session_that_introduces_itself_again() -> None:
    """A newer broker has a code that is not known here: its user is told, and does not wait for ever."""
    session = Session()
    session.open()
    result = session.invoke(1.0)
    session.told(m.Stranger())
    session.told(refused("of tomorrow"))
    assert session.of(SessionEnded)
    assert result.failure is not None
    assert result.failure.details["refusal"] == "of tomorrow"


def test_close_says_goodbye_and_ends_what_waits() -> None:
    """Closing an open session says so to the broker; what waits ends as FleetClosed."""
    session = Session()
    session.open()
    result = session.invoke(1.0)
    session.handle(Close())
    assert session.sent(m.Goodbye)
    assert result.failure is not None
    assert result.failure.code == "FleetClosed"
    assert session.core.pending == 0
    session.handle(Close())
    assert session.new == []


def test_the_stream_level_is_handed_on() -> None:
    """SessionOpened and SetLogLevel tell the driver from which level on somebody follows the log."""
    session = Session()
    session.open()
    assert session.of(StreamLevel) == [StreamLevel(0)]
    session.told(m.SetLogLevel(level=10))
    assert session.of(StreamLevel) == [StreamLevel(10)]


def test_logs_are_made_only_where_somebody_wants_them() -> None:
    """The hops of an invocation are logged at the debug level, and not built above it."""
    session = Session()
    session.open()
    session.ready(session.invoke(1.0))
    assert "invocation_submitted" not in session.logged()
    session.core.log_level = 10
    session.ready(session.invoke(1.0))
    assert session.logged()[-2:] == ["invocation_submitted", "result_received"]


# ------------------------------------------------------------------------------------------ every state, every input

INPUTS: dict[LinkInput, Callable[[Session], object]] = {
    LinkInput.UP: lambda session: session.handle(LinkUp()),
    LinkInput.LOST: lambda session: session.handle(LinkDown()),
    LinkInput.SILENT: lambda session: after(session, 1000.0),
    LinkInput.RETRY: lambda session: after(session, 2.0),
    LinkInput.CLOSE: lambda session: session.handle(Close()),
    LinkInput.OPENED: lambda session: session.opened(),
    LinkInput.STRANGER: lambda session: session.told(m.Stranger()),
    LinkInput.REFUSED: lambda session: session.told(refused("fenced")),
    LinkInput.REFUSED_FOR_NOW: lambda session: session.told(refused("full")),
}


def after(session: Session, seconds: float) -> None:
    """Let time pass and tell the core."""
    session.now += seconds
    session.handle(Tick())


def in_state(state: Link) -> Session:
    """A session that was open once, and has come to ``state``."""
    session = Session()
    session.open()
    steps: dict[Link, list[LinkInput]] = {
        Link.OPEN: [],
        Link.DOWN: [LinkInput.LOST],
        Link.OPENING: [LinkInput.UP],
        Link.WAITING: [LinkInput.REFUSED_FOR_NOW],
        Link.REFUSED: [LinkInput.REFUSED],
        Link.CLOSED: [LinkInput.CLOSE],
    }
    for step in steps[state]:
        INPUTS[step](session)
    assert session.core.link is state
    return session


@pytest.mark.parametrize("step", LinkInput)
@pytest.mark.parametrize("state", Link)
def test_every_state_against_every_input(state: Link, step: LinkInput) -> None:
    """The core goes where the table says, and stays where the table has nothing; nothing is sent on a dead link."""
    session = in_state(state)
    expected = LINK.get((state, step), state)
    if (state, step) == (Link.WAITING, LinkInput.SILENT):
        expected = Link.OPENING  # as long as that, it has tried again
    INPUTS[step](session)
    assert session.core.link is expected
    if expected in {Link.DOWN, Link.REFUSED}:
        assert not session.of(Send)
    if expected not in {Link.CLOSED, Link.REFUSED}:  # whatever happened, the session recovers and the command goes out
        session.invoke(1.0)
        session.open()
        assert any(isinstance(command, m.Invoke) for _, command in session.submits(session.done))


@pytest.mark.parametrize("step", LinkInput)
@pytest.mark.parametrize("state", Link)
def test_the_link_table_alone(state: Link, step: LinkInput) -> None:
    """The machine follows its table, and a missing pair is an error that tells the story."""
    machine = LinkMachine()
    machine.go(LinkInput.UP)
    machine.state = state
    if (state, step) in LINK:
        assert machine.go(step) is state
        assert machine.state is LINK[state, step]
    else:
        with pytest.raises(InvalidTransition, match=r"cannot go from .*down -up-> opening"):
            machine.go(step)


@pytest.mark.parametrize("step", ResultInput)
@pytest.mark.parametrize("state", ResultState)
def test_a_result_ends_once(state: ResultState, step: ResultInput) -> None:
    """A pending result ends in any of the three ways; an ended one can't end again."""
    result = Result(bytes(16), device="d1")
    result.state = state
    if state is ResultState.PENDING:
        result.end(step)
        assert result.state is RESULT[state, step]
        assert result.ended
    else:
        with pytest.raises(InvalidTransition, match=f"from {state.value} to {step.value}"):
            result.end(step)


def test_the_first_ledger_is_no_change() -> None:
    """Only a second ledger id is logged as a change."""
    session = Session()
    session.open()
    assert "ledger_changed" not in session.logged()
    session.open(ledger=b"ledger-2")
    assert "ledger_changed" in session.logged()
