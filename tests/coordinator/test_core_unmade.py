"""Commands on values that the broker never knew: they end here, by the reason, and nothing is sent."""

from __future__ import annotations

from broker.protocol import messages as m
from broker.protocol.ids import nth
from coordinator.core_events import ResultEnded, Submitted, Upload, Uploaded, UploadFailed
from coordinator.core_results import Result
from tests.coordinator.session import FAILURE, LEDGER, PLAN, Session, opened, parts


def _called(session: Session, *args: m.Argument, devices: int = 1, each: bytes = b"") -> list[Result]:
    first = session.core.take_ids(devices)
    command = m.Invoke(id=first, plan=PLAN, args=list(args), each={0: each} if each else {})
    session.submit(command, *(f"d{k}" for k in range(devices)), plan=parts())
    (submitted,) = session.of(Submitted)
    return list(submitted.results)


def _failed_upload(session: Session) -> Result:
    put = session.put_blob()
    session.handle(UploadFailed(key=put.id, failure=FAILURE, ledger=LEDGER))
    return put


def test_a_call_on_what_was_never_uploaded_ends_at_once() -> None:
    """By the upload's reason, and a call on that in turn; they leave nothing behind."""
    session = opened()
    session.with_plan()
    put = _failed_upload(session)
    (user,) = _called(session, 1.0, put.id)
    assert session.of(ResultEnded) == [ResultEnded(user.id)]
    assert user.failure is not None
    assert (user.failure.code, user.failure.details["argument"]) == ("ArgumentFailed", put.id.hex())
    assert (user.failure.details["code"], user.failure.details["message"]) == ("StoreFull", "no room")
    (follower,) = _called(session, user.id)
    assert follower.failure is not None
    assert follower.failure.details["code"] == "StoreFull"  # what began it
    assert not session.submits()
    assert (session.core.unaccepted, session.core.unaccepted_bytes, session.core.pending) == (0, 0, 0)


def test_a_call_on_what_was_rejected_ends_at_once() -> None:
    """Any output of it; a release of it is the broker's to take."""
    session = opened()
    first = session.core.take_ids(2)
    session.submit(m.Invoke(id=first, plan=PLAN, args=[1.0], outputs=2), plan=parts())
    session.told(m.Rejected(n=2, failure=FAILURE))
    (user,) = _called(session, nth(first, 1))
    assert user.failure is not None
    assert user.failure.details["argument"] == nth(first, 1).hex()
    session.submit(m.Release(ids=[first]))
    assert len(session.submits()) == 1


def test_an_id_that_another_command_has_is_known() -> None:
    """A command that is rejected since its id is taken says nothing of the value that the id has."""
    session = opened()
    made = session.invoke(1.0)
    session.ready(made)
    session.submit(m.Put(id=made.id), frames=(b"another",))
    session.told(m.Rejected(n=3, failure=m.Failure(code="IdConflict", message="taken")))
    (user,) = _called(session, made.id)
    assert not user.ended


def test_only_the_devices_that_lack_their_own_value_fail() -> None:
    """A call on many devices, each on a value of its own: the others have it."""
    session = opened()
    session.with_plan()
    lost, good = _failed_upload(session), session.invoke(2.0)
    here, there = _called(session, b"?" * 16, devices=2, each=good.id + lost.id)
    assert not here.ended
    assert there.failure is not None
    assert there.failure.details["argument"] == lost.id.hex()
    ((_, sent),) = session.submits()
    assert isinstance(sent, m.Invoke)
    session.notify(
        m.ResultFailed(id=there.id, digest=there.digest, failure=m.Failure(code="UnknownResult", message=""))
    )
    assert there.failure.code == "ArgumentFailed"
    session.ready(here)
    assert here.failure is None


def test_an_upload_that_fails_takes_only_the_devices_that_wait_for_it() -> None:
    """Also where the call on many devices was parked before."""
    session = opened()
    session.with_plan()
    lost, good = session.put_blob(), session.put_blob()
    here, there = _called(session, b"?" * 16, devices=2, each=good.id + lost.id)
    (user,) = _called(session, there.id)
    session.handle(UploadFailed(key=lost.id, failure=FAILURE, ledger=LEDGER))
    assert there.failure is not None
    assert not here.ended
    assert not session.submits()
    session.handle(Uploaded(key=good.id, digest=b"d" * 32, ledger=LEDGER))
    assert [command.id for _, command in session.submits() if isinstance(command, m.Invoke)] == [here.id, user.id]


def test_a_value_that_could_be_uploaded_the_second_time_is_another_one() -> None:
    """What failed stays failed: the same tensor sent again has an id of its own."""
    session = opened()
    session.with_plan()
    _failed_upload(session)
    again = session.put_blob()
    assert session.of(Upload) == [Upload(key=again.id, ledger=LEDGER)]
    (user,) = _called(session, again.id)
    session.handle(Uploaded(key=again.id, digest=b"d" * 32, ledger=LEDGER))
    assert not user.ended
    assert len(session.submits()) == 2
