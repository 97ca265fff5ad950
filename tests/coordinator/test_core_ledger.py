"""A broker that comes back with another ledger; and when all that was sent is in one."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown
from broker.protocol.ids import nth
from coordinator.core_events import (
    AllAccepted,
    AwaitAccepted,
    Close,
    ResultEnded,
    SubmitCommand,
    Upload,
    Uploaded,
    UploadFailed,
    Watch,
)
from coordinator.core_tables import ResultState
from tests.coordinator.session import FAILURE, LEDGER, PLAN, Session, opened, parts


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


def test_what_was_taken_up_by_its_id_and_is_in_no_ledger_any_more_ends() -> None:
    """Nobody can send an earlier incarnation's command again: after a time for devices to announce it, LedgerLost."""
    session = opened()
    taken_up = b"earlier!" + bytes(7) + b"\1"
    session.handle(Watch(taken_up, "d1", taken_up))
    result = session.core.result(taken_up)
    assert result is not None
    session.open(ledger=b"ledger-2")
    began = session.now
    while not result.ended:
        for asked in session.sent(m.AskStatus):
            entries = [m.StatusEntry(id=taken_up, status=m.ResultStatus.UNKNOWN)]
            session.told(m.StatusReport(r=asked.r, entries=entries))
        session.told(m.HeartbeatSeen(heartbeat_ms=10_000))
        if not result.ended:
            session.tick()
    assert result.failure is not None
    assert result.failure.code == "LedgerLost"
    assert 60.0 <= session.now - began < 70.0


def test_a_device_that_announces_it_to_the_new_ledger_in_time_saves_it() -> None:
    """Within that time an id that the new ledger does not know yet goes on being asked after."""
    session = opened()
    taken_up = b"earlier!" + bytes(7) + b"\1"
    session.handle(Watch(taken_up, "d1", taken_up))
    result = session.core.result(taken_up)
    assert result is not None
    session.open(ledger=b"ledger-2")
    statuses = iter([m.ResultStatus.UNKNOWN, m.ResultStatus.UNKNOWN, m.ResultStatus.DONE])
    while not result.ended:
        for asked in session.sent(m.AskStatus):
            entries = [m.StatusEntry(id=taken_up, status=next(statuses), device="d1")]
            session.told(m.StatusReport(r=asked.r, entries=entries))
        if not result.ended:
            session.tick()
    assert result.state is ResultState.REMOTE


# -------------------------------------------------------------------------------------------------- all in the ledger


def test_all_accepted_comes_after_the_last_acknowledgement() -> None:
    """A barrier waits for what was submitted before it, parked or sent, and for nothing that came later."""
    session = opened()
    session.invoke(1.0)
    put = session.put_blob()
    session.handle(AwaitAccepted(7))
    assert not session.of(AllAccepted)
    session.invoke(2.0)
    session.told(m.Accepted(n=3))
    assert not session.of(AllAccepted)  # the tensor is still on its way
    session.handle(Uploaded(key=put.id, digest=b"d" * 32, ledger=LEDGER))
    assert not session.of(AllAccepted)
    session.invoke(3.0)
    session.told(m.Accepted(n=4))
    assert session.of(AllAccepted) == [AllAccepted(7)]
    assert session.core.unaccepted == 1


def test_a_barrier_with_nothing_before_it_is_reached_at_once() -> None:
    """Everything is accepted already, though a result has not ended."""
    session = opened()
    session.invoke(1.0)
    session.told(m.Accepted(n=2))
    assert session.handle(AwaitAccepted(1)) == [AllAccepted(1)]


def test_a_new_ledger_must_accept_it_again() -> None:
    """A barrier that was not reached waits for the new ledger to have everything."""
    session = opened()
    session.invoke(1.0)
    session.invoke(2.0)
    session.handle(AwaitAccepted(1))
    session.told(m.Accepted(n=2))
    session.open(ledger=b"ledger-2")
    session.told(m.Accepted(n=2))  # the plan, and the first
    assert not session.of(AllAccepted)
    session.told(m.Accepted(n=3))
    assert session.of(AllAccepted) == [AllAccepted(1)]


def test_what_ends_without_the_ledger_is_not_waited_for() -> None:
    """A failed upload, a rejected command and a session that is over hold no barrier up; one that was given up is."""
    session = opened()
    put = session.put_blob()
    session.handle(AwaitAccepted(1))
    session.handle(UploadFailed(key=put.id, failure=FAILURE, ledger=LEDGER))
    assert session.of(AllAccepted) == [AllAccepted(1)]
    session.invoke(1.0)
    session.handle(AwaitAccepted(2))
    session.handle(AwaitAccepted(3))
    session.handle(AwaitAccepted(3, give_up=True))
    session.handle(Close())
    assert session.of(AllAccepted) == [AllAccepted(2)]


# ------------------------------------------------------------------------------------------------------------ its room


def test_bytes_that_the_broker_has_not_accepted_are_counted() -> None:
    """Frames and large tensors count from their submission until they are accepted, or given up."""
    session = Session(max_unaccepted_bytes=100)
    session.open()
    session.with_plan()
    first = session.core.take_ids(1)
    session.submit(m.Put(id=first), frames=(bytes(60),))
    assert (session.core.unaccepted_bytes, session.core.full) == (60, False)
    large = session.core.take_ids(1)
    put = SubmitCommand(devices=("d1",), command=m.Put(id=large), upload=large, upload_size=1000)
    session.handle(put)
    assert (session.core.unaccepted_bytes, session.core.full) == (1060, True)
    session.handle(UploadFailed(key=large, failure=FAILURE, ledger=LEDGER))
    assert session.core.unaccepted_bytes == 60
    session.told(m.Rejected(n=2, failure=FAILURE))
    assert session.core.unaccepted_bytes == 0
    again = session.core.take_ids(1)
    session.submit(m.Put(id=again), frames=(bytes(60),))
    session.open(ledger=b"ledger-2")
    assert session.core.unaccepted_bytes == 60
    session.told(m.Accepted(n=1))
    assert session.core.unaccepted_bytes == 0


def test_a_busy_broker_says_why() -> None:
    """The reason of the last Busy is kept until something is accepted, or the link is lost."""
    session = opened()
    session.invoke(1.0)
    session.told(m.Busy(n=2, retry_ms=500, reason="the mailbox of d1 is full"))
    assert session.core.busy_reason == "the mailbox of d1 is full"
    session.told(m.Accepted(n=2))
    assert session.core.busy_reason == ""


# ------------------------------------------------------------------------------------------------ what follows a value


@pytest.mark.parametrize("value", [True, False])
def test_what_follows_a_result_follows_a_value_only(value: bool) -> None:
    """A command that waits for another's result is sent when that has a value, and never when it has none."""
    session = opened()
    source = session.invoke(1.0)
    session.ready(source)
    first = session.core.take_ids(1)
    release = SubmitCommand(devices=("d1",), command=m.Release(ids=[source.id]), released=((source, 0),))
    session.handle(
        SubmitCommand(
            devices=("d2",), command=m.Invoke(id=first, plan=PLAN, args=[source.id]), plan=parts(), then=release
        )
    )
    copy = session.core.result(first)
    assert copy is not None
    assert list(source.frames) == [b"value"]
    if value:
        session.ready(copy)
        assert [command for _, command in session.submits()] == [m.Release(ids=[source.id])]
        assert list(source.frames) == [None]
    else:
        session.notify(m.ResultFailed(id=copy.id, digest=copy.digest, failure=FAILURE))
        assert not session.submits()
        assert list(source.frames) == [b"value"]


# ----------------------------------------------------------------------------------------------- earlier incarnations


def test_a_notification_for_an_earlier_incarnation_ends_what_was_taken_up() -> None:
    """The broker tells the newest incarnation what the older one has not seen: each output that is watched has its
    own of the values.
    """
    session = opened()
    first = b"earlier!" + bytes(7) + b"\5"
    second, other = nth(first, 1), nth(first, 9)
    for each in (second, other):
        session.handle(Watch(each, "d1", first if each is second else other))
    watched = [session.core.result(each) for each in (second, other)]
    session.notify(m.ResultReady(id=first, digest=bytes(16), inline=True), b"one", b"two")
    assert [result.ended for result in watched if result] == [True, False]
    assert watched[0] is not None
    assert list(watched[0].frames) == [b"two"]
    assert session.of(ResultEnded) == [ResultEnded(second)]
    session.notify(m.ResultFailed(id=other, digest=bytes(16), failure=FAILURE))
    assert watched[1] is not None
    assert watched[1].failure == FAILURE


def test_a_notification_for_what_nobody_took_up_is_acknowledged() -> None:
    """Its value stays with the broker and the device: whoever asks for the id later gets it from there."""
    session = opened()
    session.notify(m.ResultReady(id=b"earlier!" + bytes(8), digest=bytes(16), inline=True), b"one")
    session.batch()
    assert session.sent(m.Seen) == [m.Seen(n=1)]
