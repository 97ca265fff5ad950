"""Commands on their way: acknowledged, held, lacking a blob, rejected, parked behind uploads, and after a lost
ledger.
"""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown, Send
from broker.protocol.errors import MessageTooLarge
from broker.protocol.framing import command_digest
from broker.protocol.ids import nth
from coordinator.core_events import ResultEnded, SendPlan, SubmitCommand, Upload, Uploaded, UploadEnded, UploadFailed
from coordinator.core_tables import ResultState
from tests.coordinator.session import LEDGER, PLAN, Session, parts

FAILURE = m.Failure(code="StoreFull", message="no room")


def opened() -> Session:
    """An open session whose plan is with the broker."""
    session = Session()
    session.open()
    session.with_plan()
    return session


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


# ------------------------------------------------------------------------------------------------------------- plans


def test_a_plan_is_sent_once_a_ledger() -> None:
    """The second use of a plan sends nothing but the command; so does the second sending."""
    session = Session()
    session.open()
    session.invoke(1.0)
    (store,) = [command for _, command in session.submits() if isinstance(command, m.StorePlan)]
    assert (store.plan, len(store.parts), store.attached) == (PLAN, 1, [])
    assert session.attached() == [[bytes(10), bytes(40)]]  # all of it, the smallest first, and told by their digests
    session.handle(SendPlan(plan=parts()))
    assert session.new == []
    session.invoke(2.0)
    assert [type(command) for _, command in session.submits()] == [m.Invoke]


def test_a_plan_with_one_changed_part_sends_that_part() -> None:
    """A second plan that shares a part attaches only what is new."""
    session = Session()
    session.open()
    one, two = parts(), parts(b"q" * 32)
    shared = dict(list(one.blobs.items())[1:])
    session.handle(SendPlan(plan=one))
    session.handle(SendPlan(plan=type(two)(plan=two.plan, blobs={two.plan: bytes(10), **shared})))
    ((_, store),) = session.submits()
    assert isinstance(store, m.StorePlan)
    assert session.attached() == [[bytes(10)]]  # the manifest
    assert store.parts == list(shared)


def test_a_large_part_goes_by_the_blob_channel_first() -> None:
    """A plan waits for its large parts, and invocations for the plan; other commands go on."""
    session = opened()
    large = parts(b"q" * 32, sizes=(40, 70_000))
    result = session.invoke(1.0, plan=large)
    (upload,) = session.of(Upload)
    assert upload.content is not None
    assert len(upload.content) == 70_000
    assert not session.submits()
    session.invoke(2.0)
    assert [n for n, _ in session.submits()] == [2]
    session.handle(Uploaded(key=upload.key, digest=upload.key, ledger=LEDGER))
    kinds = [type(command) for _, command in session.submits()]
    assert kinds == [m.StorePlan, m.Invoke]
    assert not result.ended


def test_lacking_uploads_and_goes_on() -> None:
    """When the broker lacks a part, that is uploaded, and the stream goes on from the command that named it."""
    session = Session()
    session.open()
    session.invoke(1.0)
    missing = list(parts().blobs)[1]
    session.told(m.Lacking(n=1, digests=[missing]))
    (upload,) = session.of(Upload)
    assert upload.key == missing
    session.invoke(2.0)
    session.told(m.Lacking(n=1, digests=[missing]))
    assert not session.of(Upload)
    assert not session.submits()
    session.handle(Uploaded(key=missing, digest=missing, ledger=LEDGER))
    assert [n for n, _ in session.submits()] == [1, 2, 3]


def test_an_invocation_whose_plan_was_dropped_uploads_all_of_it() -> None:
    """Lacking the plan itself means that its parts may be gone, too."""
    session = opened()
    session.invoke(1.0)
    session.told(m.Lacking(n=2, digests=[PLAN]))
    assert {upload.key for upload in session.of(Upload)} == set(parts().blobs)
    session.upload_all()
    assert [n for n, _ in session.submits(session.done)][-1] == 2


def test_lacking_for_ever_ends_the_command_alone() -> None:
    """A broker that lacks what it was sent again and again costs that command, not the session."""
    session = opened()
    result = session.invoke(1.0)
    other = session.invoke(2.0)
    for _ in range(20):
        session.told(m.Lacking(n=2, digests=[PLAN]))
        session.upload_all()
        if result.ended:
            break
    assert result.failure is not None
    assert result.failure.code == "LedgerLost"
    assert session.submits(session.done)[-2] == (2, m.Release(ids=[]))
    assert not other.ended


def test_lacking_what_nobody_has_ends_the_command() -> None:
    """A blob that the session does not have can't be sent: LedgerLost."""
    session = opened()
    first = session.core.take_ids(1)
    session.submit(m.Put(id=first), frames=(b"x",))
    result = session.core.result(first)
    session.told(m.Lacking(n=2, digests=[b"z" * 32]))
    assert result is not None
    assert result.failure is not None
    assert result.failure.code == "LedgerLost"


def test_an_upload_that_fails_while_the_broker_lacks_it() -> None:
    """The command ends with the upload's failure, and the stream goes on."""
    session = opened()
    result, other = session.invoke(1.0), session.invoke(2.0)
    session.told(m.Lacking(n=2, digests=[PLAN]))
    key = session.of(Upload)[0].key
    session.handle(UploadFailed(key=key, failure=FAILURE, ledger=LEDGER))
    assert result.failure == FAILURE
    assert [n for n, _ in session.submits()] == [2, 3]
    assert not other.ended


# ------------------------------------------------------------------------------------------------------- large tensors


def test_a_large_tensor_is_uploaded_before_its_command() -> None:
    """A Put waits for its blob and then names it; what needs the tensor waits as well, all else does not."""
    session = opened()
    put = session.put_blob()
    assert session.of(Upload) == [Upload(key=put.id, ledger=LEDGER)]
    user = session.invoke(put.id)
    follower = session.invoke(user.id)
    assert not session.submits()
    session.invoke(3.0)
    assert len(session.submits()) == 1
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=LEDGER))
    (_, first), (_, second), (_, third) = session.submits()
    assert first == m.Put(id=put.id, blob=b"d" * 32)
    assert put.digest == command_digest(first)
    assert [second.id, third.id] == [user.id, follower.id]  # type: ignore[union-attr]


def test_releases_and_cancels_stay_behind_what_is_parked() -> None:
    """A release acts after all earlier commands, so it waits while one of them does."""
    session = opened()
    put = session.put_blob()
    session.submit(m.Release(ids=[put.id]))
    session.submit(m.Cancel(id=put.id))
    assert not session.submits(session.new)
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=LEDGER))
    assert [type(command) for _, command in session.submits()] == [m.Put, m.Release, m.Cancel]


def test_an_upload_that_fails_ends_what_depends_on_it() -> None:
    """The Put ends with the reason, what needs its tensor with ArgumentFailed, down the chain; others don't care."""
    session = opened()
    put = session.put_blob()
    user = session.invoke(put.id)
    follower = session.invoke(user.id)
    other = session.put_blob()
    session.handle(UploadFailed(key=put.id, failure=FAILURE, ledger=LEDGER))
    assert put.failure == FAILURE
    assert user.failure is not None
    assert (user.failure.code, user.failure.details["argument"]) == ("ArgumentFailed", put.id.hex())
    assert follower.failure is not None
    assert (follower.failure.code, follower.failure.details["argument"]) == ("ArgumentFailed", user.id.hex())
    assert not other.ended
    assert session.of(UploadEnded) == [UploadEnded(put.id)]


def test_a_plan_whose_upload_fails_ends_its_invocations_and_may_be_sent_again() -> None:
    """The invocations end with the upload's reason; the next use of the plan tries again."""
    session = opened()
    large = parts(b"q" * 32, sizes=(70_000,))
    result = session.invoke(1.0, plan=large)
    key = session.of(Upload)[0].key
    session.handle(UploadFailed(key=key, failure=FAILURE, ledger=LEDGER))
    assert result.failure == FAILURE
    session.invoke(2.0, plan=large)
    assert [upload.key for upload in session.of(Upload)] == [key]


def test_an_upload_is_given_up_when_nobody_can_need_it() -> None:
    """The driver is told to drop its copy when the Put is accepted and the device has the tensor, not before."""
    session = opened()
    put = session.put_blob()
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=LEDGER))
    session.told(m.Accepted(n=2))
    assert not session.of(UploadEnded)
    session.notify(m.ResultReady(id=put.id, digest=put.digest, infos=[m.ResultInfo(dtype="int8", shape=[1], nbytes=1)]))
    assert session.of(UploadEnded) == [UploadEnded(put.id)]


def test_uploads_wait_for_the_first_connection() -> None:
    """What must be uploaded is asked for once the broker is there, and again after a reconnection."""
    session = Session()
    put = session.put_blob()
    assert not session.of(Upload)
    session.open()
    assert [upload.key for upload in session.of(Upload)] == [put.id]
    session.open()
    assert [upload.key for upload in session.of(Upload)] == [put.id]


# -------------------------------------------------------------------------------------------------------- a new ledger


def test_a_new_ledger_gets_everything_that_has_not_ended() -> None:
    """Accepted or not, what has not ended goes again in its order, numbered anew, behind the plan that it needs."""
    session = opened()
    done, accepted, unaccepted = session.invoke(1.0), session.invoke(2.0), session.invoke(3.0)
    session.ready(done)
    session.told(m.Accepted(n=3))
    session.handle(LinkDown())
    session.open(ledger=b"ledger-2")
    assert [n for n, _ in session.submits()] == [1, 2, 3]
    (_, store), (_, first), (_, second) = session.submits()
    assert isinstance(store, m.StorePlan)
    assert [first.id, second.id] == [accepted.id, unaccepted.id]  # type: ignore[union-attr]


def test_a_new_ledger_gets_unaccepted_releases_but_no_accepted_ones() -> None:
    """A release that the lost ledger had accepted has acted; one that it had not goes again."""
    session = opened()
    session.submit(m.Release(ids=[b"a" * 16]))
    session.told(m.Accepted(n=2))
    session.submit(m.Release(ids=[b"b" * 16]))
    session.open(ledger=b"ledger-2")
    assert session.submits() == [(1, m.Release(ids=[b"b" * 16]))]


def test_a_new_ledger_needs_the_uploads_again() -> None:
    """Large tensors and plan parts are uploaded to the new ledger; the end of an upload to the old one is ignored."""
    session = opened()
    put = session.put_blob()
    session.open(ledger=b"ledger-2")
    assert [(upload.key, upload.ledger) for upload in session.of(Upload)] == [(put.id, b"ledger-2")]
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=LEDGER))
    assert not session.submits()
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=b"ledger-2"))
    assert session.submits() == [(1, m.Put(id=put.id, blob=b"d" * 32))]


def test_a_ledger_that_has_forgotten_the_session_counts_as_new() -> None:
    """The same ledger id with fewer commands than it had accepted: everything unended goes again from there."""
    session = opened()
    result = session.invoke(1.0)
    session.told(m.Accepted(n=2))
    session.open(accepted=0)
    assert [type(command) for _, command in session.submits()] == [m.StorePlan, m.Invoke]
    session.ready(result)
    assert result.ended


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
