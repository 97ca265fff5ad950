"""Commands on their way: sent, acknowledged, held, rejected, released."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown, Send
from broker.protocol.errors import MessageTooLarge
from broker.protocol.framing import command_digest
from broker.protocol.ids import nth
from coordinator.core_events import ResultEnded, SubmitCommand
from coordinator.core_tables import ResultState
from tests.coordinator.session import FAILURE, PLAN, Session, opened, parts

# ---------------------------------------------------------------------------------------------------- the usual way


def test_an_invocation_is_one_message() -> None:
    """Invoking sends one Submit with the next number, and the result waits."""
    session = opened()
    result = session.invoke(1.0, None)
    ((n, command),) = session.submits()
    assert n == 2
    assert command == m.Invoke(id=result.id, plan=PLAN, args=[1.0, None])
    assert result.digest == command_digest(command)
    assert not result.ended


def test_an_inline_value_ends_the_result() -> None:
    """ResultReady with the value ends the result, tells whoever waits, and leaves the table."""
    session = opened()
    result = session.invoke(1.0)
    session.ready(result, b"four")
    assert session.of(ResultEnded) == [ResultEnded(result.id)]
    assert (result.state, list(result.frames)) == (ResultState.INLINE, [b"four"])
    assert session.core.result(result.id) is None


def test_a_value_on_the_device_ends_the_result() -> None:
    """ResultReady without the value says what it is."""
    session = opened()
    result = session.invoke(1.0)
    info = m.ResultInfo(dtype="float32", shape=[2], nbytes=8)
    session.notify(m.ResultReady(id=result.id, digest=result.digest, infos=[info]))
    assert (result.state, list(result.infos)) == (ResultState.REMOTE, [info])


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (lambda r: m.ResultFailed(id=r.id, digest=r.digest, failure=FAILURE), "StoreFull"),
        (lambda r: m.Cancelled(id=r.id, digest=r.digest), "InvocationCancelled"),
        (lambda r: m.Expired(id=r.id, digest=r.digest), "DeadlineExpired"),
        (lambda r: m.ResultReady(id=r.id, digest=bytes(16), inline=True), "IdConflict"),
        (lambda r: m.ResultReady(id=r.id, digest=r.digest, infos=[]), "ExecutionFailed"),
    ],
)
def test_an_end_without_a_value(event: object, code: str) -> None:
    """Each end without a value, another command's digest and a wrong number of outputs end the result with a code."""
    session = opened()
    result = session.invoke(1.0)
    session.notify(event(result))  # type: ignore[operator]
    assert result.state is ResultState.FAILED
    assert result.failure is not None
    assert result.failure.code == code


def test_many_devices_are_one_command() -> None:
    """One Submit names all devices; each has a result of its own, with ids in the order of the devices."""
    session = opened()
    first = session.core.take_ids(3)
    command = m.Invoke(id=first, plan=PLAN, args=[1.0])
    session.submit(command, "a", "b", "c", plan=parts())
    assert [(s.devices, s.command) for s in session.sent(m.Submit)] == [(["a", "b", "c"], command)]
    results = [session.core.result(nth(first, k)) for k in range(3)]
    assert [r.device for r in results if r] == ["a", "b", "c"]
    second = results[1]
    assert second is not None
    session.ready(second)
    assert session.core.pending == 2


def test_notifications_are_acknowledged_once_a_batch() -> None:
    """All notifications of a batch are acknowledged by one Seen; a repeated one is acknowledged again."""
    session = opened()
    results = [session.invoke(float(k)) for k in range(3)]
    for result in results:
        session.ready(result)
    session.batch()
    assert session.sent(m.Seen) == [m.Seen(n=3)]
    session.batch()
    assert session.new == []
    session.notify(m.ResultReady(id=results[0].id, digest=results[0].digest, inline=True), b"other", n=1)
    assert list(results[0].frames) == [b"value"]
    session.batch()
    assert session.sent(m.Seen) == [m.Seen(n=3)]


def test_a_notification_out_of_turn_waits() -> None:
    """A gap is dropped: the broker sends both again."""
    session = opened()
    first, second = session.invoke(1.0), session.invoke(2.0)
    session.notify(m.ResultReady(id=second.id, digest=second.digest, inline=True), b"v", n=2)
    assert not second.ended
    session.ready(first)
    session.ready(second)
    assert second.ended


def test_nothing_is_kept_once_accepted_and_ended() -> None:
    """A command is forgotten when it is accepted and its result is there, in either order."""
    session = opened()
    first, second = session.invoke(1.0), session.invoke(2.0)
    session.ready(first)
    session.told(m.Accepted(n=3))
    session.ready(second)
    assert (session.core.unaccepted, session.core.pending) == (0, 0)
    session.open(ledger=b"ledger-2")
    assert not session.submits()


def test_a_call_that_is_too_large_leaves_no_trace() -> None:
    """A command that no broker would take raises at the call, and later commands go on."""
    session = opened()
    first = session.core.take_ids(1)
    with pytest.raises(MessageTooLarge, match="at most 4194304 bytes"):
        session.submit(m.Put(id=first), frames=(bytes(5 << 20),))
    with pytest.raises(MessageTooLarge, match="at most 1048576 bytes"):
        session.submit(m.Put(id=first, description="x" * (1 << 20)))
    assert session.core.pending == 0
    session.invoke(1.0)
    assert [n for n, _ in session.submits()] == [2]


# ------------------------------------------------------------------------------------------------- a lossy connection


def test_lost_acknowledgements_make_it_send_again() -> None:
    """Without an acknowledgement all unaccepted commands go again, with the same numbers."""
    session = opened()
    session.invoke(1.0)
    session.invoke(2.0)
    session.new = []
    while not session.submits():
        session.tick()
    assert [n for n, _ in session.submits()] == [2, 3]


def test_after_a_reconnection_only_unaccepted_commands_go_again() -> None:
    """SessionOpened says what was taken; the rest goes again under its numbers."""
    session = opened()
    session.invoke(1.0)
    session.invoke(2.0)
    session.handle(LinkDown())
    session.invoke(3.0)
    assert not session.of(Send)
    session.open(accepted=2)
    assert [n for n, _ in session.submits()] == [3, 4]


def test_the_window_bounds_what_is_under_way() -> None:
    """No more than the window is sent before an acknowledgement."""
    session = Session(window=4)
    session.open()
    for k in range(10):
        session.invoke(float(k))
    assert session.last_n() == 4
    session.told(m.Accepted(n=4))
    assert session.last_n() == 8


def test_a_core_with_too_much_waiting_says_so() -> None:
    """`full` is true once the limit of unaccepted commands is reached."""
    session = Session(max_unaccepted=3)
    for k in range(2):
        session.invoke(float(k))
    assert session.core.full


def test_busy_holds_the_stream() -> None:
    """After Busy nothing is sent before its time, then everything from that command on."""
    session = opened()
    session.invoke(1.0)
    session.told(m.Busy(n=2, retry_ms=500))
    session.invoke(2.0)
    assert not session.submits()
    session.tick()
    assert session.now == 100.5
    assert [n for n, _ in session.submits()] == [2, 3]


def test_an_old_busy_means_nothing() -> None:
    """A Busy for a command that was taken since is ignored."""
    session = opened()
    session.told(m.Busy(n=1, retry_ms=500))
    session.invoke(2.0)
    assert [n for n, _ in session.submits()] == [2]


def test_rejected_ends_the_command_and_keeps_its_number() -> None:
    """A rejected command's results end with the reason; if it must be sent again, its number carries nothing."""
    session = opened()
    result = session.invoke(1.0)
    session.told(m.Rejected(n=2, failure=FAILURE))
    assert result.failure == FAILURE
    session.open(accepted=1)
    assert session.submits() == [(2, m.Release(ids=[]))]
    session.told(m.Rejected(n=2, failure=FAILURE))
    session.told(m.Accepted(n=2))
    assert session.core.unaccepted == 0


def test_a_rejection_that_was_lost_with_the_connection_is_told_again() -> None:
    """A rejection that comes after the number was acknowledged, on a new connection, still ends the command."""
    session = opened()
    result, other = session.invoke(1.0), session.invoke(2.0)
    session.open(accepted=3)
    session.told(m.Rejected(n=2, failure=FAILURE))
    assert result.failure == FAILURE
    assert not other.ended
    session.ready(other)
    assert session.core.pending == 0
    session.told(m.Rejected(n=3, failure=FAILURE))
    assert other.failure is None


def test_a_rejected_plan_is_the_reason_of_its_invocations() -> None:
    """When the broker refuses a plan, an invocation of it that is rejected for the lack of it says why."""
    session = Session()
    session.open()
    result = session.invoke(1.0)
    session.told(m.Rejected(n=1, failure=FAILURE))
    session.told(m.Rejected(n=2, failure=m.Failure(code="PlanNotFound", message="?")))
    assert result.failure == FAILURE


def test_a_released_inline_value_is_dropped() -> None:
    """Releasing an output drops its value here as well, also when it comes after the release."""
    session = opened()
    done, pending = session.invoke(1.0), session.invoke(2.0)
    session.ready(done)
    for result in (done, pending):
        release = m.Release(ids=[result.id])
        session.handle(SubmitCommand(devices=("d1",), command=release, released=((result, 0),)))
    session.ready(pending)
    assert done.frames == [None]
    assert pending.frames == [None]
