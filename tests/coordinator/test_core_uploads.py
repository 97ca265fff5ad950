"""Plans and large tensors on their way: what the broker lacks is uploaded, and what needs it waits."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.framing import command_digest
from coordinator.core_events import SendPlan, Upload, Uploaded, UploadEnded, UploadFailed
from tests.coordinator.session import FAILURE, LEDGER, PLAN, Session, opened, parts

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


@pytest.mark.parametrize("taken", [m.Accepted(n=2), m.Rejected(n=2, failure=FAILURE)])
def test_a_command_that_is_taken_while_the_broker_is_said_to_lack_something(taken: m.Message) -> None:
    """What the broker said was late: the stream goes on at once, and the upload, when it has ended, changes nothing."""
    session = opened()
    session.invoke(1.0)
    other = session.invoke(2.0)
    session.told(m.Lacking(n=2, digests=[PLAN]))
    uploads = session.of(Upload)
    assert uploads
    session.told(taken)
    session.batch()
    assert [n for n, command in session.submits(session.done) if getattr(command, "id", b"") == other.id][1:] == [3]
    session.told(m.Accepted(n=3))
    for upload in uploads:
        session.handle(Uploaded(key=upload.key, digest=upload.key, ledger=LEDGER))
    third = session.invoke(3.0)
    assert [command.id for _, command in session.submits() if isinstance(command, m.Invoke)] == [third.id]


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
