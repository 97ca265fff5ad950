"""Values on their way: fetched by sessions, and supplied to devices that need them as arguments."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.effects import BlobStored, BlobUnavailable
from broker.protocol.framing import HEADER_LIMIT, encode
from broker.protocol.messages import (
    Cancel,
    Deliver,
    Failure,
    Fetch,
    Goodbye,
    Invoke,
    NeedValues,
    Outcome,
    ResultFailed,
    ResultInfo,
    Supply,
    TagEntry,
    TagsChanged,
    Values,
)
from tests.broker.bench import VALUE, Bench, DevicePeer, SessionPeer, digest_of

INFO = ResultInfo(dtype="float32", shape=[2], nbytes=8)


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def remote_result(session: SessionPeer, device: DevicePeer) -> bytes:
    """A result whose value is on the device."""
    result = session.invoke(device=device.name)
    device.ready(device.take_one(), inline=False)
    return result


def answer(device: DevicePeer, *frames: bytes) -> Fetch:
    """The device answers the fetch that has come to it."""
    fetch = device.take(Fetch)
    device.tell(Values(r=fetch.r, outcomes=[Outcome(id=each) for each in fetch.ids]), *frames)
    return fetch


def ids_of(delivered: list[Deliver]) -> list[bytes]:
    """The ids of the commands."""
    return [deliver.command.id for deliver in delivered if isinstance(deliver.command, Invoke)]


# ------------------------------------------------------------------------------------------- to sessions


def test_fetch_of_an_inline_value(bench: Bench) -> None:
    """What is in its record is answered at once, also while its device sleeps, and as often as asked."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    device.tell(Goodbye())
    for r in (8, 9):
        session.tell(Fetch(r=r, ids=[result]))
        assert session.take(Values) == Values(r=r, outcomes=[Outcome(id=result)])
        assert session.frames == (VALUE,)


def test_fetch_from_the_device(bench: Bench) -> None:
    """What is on the device is asked for there, in one message, and comes back under the session's number, in its
    order.
    """
    session, device = bench.session(), bench.device()
    one = remote_result(session, device)
    inline = session.invoke()
    device.ready(device.take_one())
    two = remote_result(session, device)
    session.tell(Fetch(r=5, ids=[two, inline, one, two]))
    assert session.all(Values) == []
    fetch = answer(device, b"second", b"first")
    assert fetch.ids == [two, one]
    assert session.take(Values).outcomes == [Outcome(id=each) for each in (two, inline, one, two)]
    assert session.frames == (b"second", VALUE, b"first", b"second")


def test_one_question_for_many_askers(bench: Bench) -> None:
    """The device is asked once for a value that several want at once; each gets it."""
    session, other, device, third = bench.session(), bench.session(), bench.device(), bench.device("third")
    result = remote_result(session, device)
    session.tell(Fetch(r=1, ids=[result]))
    session.tell(Fetch(r=1, ids=[result]))
    other.tell(Fetch(r=2, ids=[result]))
    third.tell(NeedValues(ids=[result]))
    assert len(device.all(Fetch)) == 1
    answer(device, b"v")
    assert session.take(Values).r == 1
    assert session.all(Values) == []
    assert other.take(Values).r == 2
    assert third.take(Supply).outcomes == [Outcome(id=result)]
    assert bench.core.gauges()["values_wanted"] == 0


def test_fetch_while_the_device_sleeps(bench: Bench) -> None:
    """A fetch waits for its device as long as its session asks again, and is forgotten when it does not."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    device.tell(Goodbye())
    session.tell(Fetch(r=1, ids=[result]))
    for _ in range(10):
        bench.pass_time(60.0)
        session.tell(Fetch(r=1, ids=[result]))
    device.come_back(restarted=True)
    answer(device, b"v")
    assert session.take(Values).r == 1
    device.tell(Goodbye())
    session.tell(Fetch(r=2, ids=[result]))
    bench.pass_time(130.0)
    assert bench.core.gauges()["values_wanted"] == 0
    device.come_back(restarted=True)
    assert device.all(Fetch) == []


def test_device_is_not_pestered(bench: Bench) -> None:
    """Asked again and again, the broker asks the device again only when it had time to answer."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    for _ in range(5):
        session.tell(Fetch(r=1, ids=[result]))
        bench.pass_time(1.0)
    assert len(device.all(Fetch)) == 3


@pytest.mark.parametrize("case", ["unended", "failed", "cancelled", "unknown"])
def test_fetch_of_what_has_no_value(bench: Bench, case: str) -> None:
    """Each id without a value has its own failure, and the others come all the same."""
    session, device = bench.session(), bench.device()
    good = session.invoke()
    device.ready(device.take_one())
    bad = session.invoke()
    (deliver,) = device.take_all()
    codes = {"unended": "NotReady", "failed": "ExecutionFailed", "cancelled": "InvocationCancelled"}
    if case == "failed":
        device.failed(deliver)
    elif case == "cancelled":
        session.submit(Cancel(id=bad))
    elif case == "unknown":
        bad = b"?" * 16
    session.tell(Fetch(r=1, ids=[bad, good]))
    failed, fine = session.take(Values).outcomes
    assert failed.failure is not None
    assert failed.failure.code == codes.get(case, "UnknownResult")
    assert fine == Outcome(id=good)
    assert session.frames == (VALUE,)


def test_fetch_of_the_devices_own_tensor(bench: Bench) -> None:
    """A tensor that was found by its tag has no record: the index says who has it."""
    session, device = bench.session(), bench.device()
    own = b"a device's own.."
    device.announce(TagsChanged(entries=[TagEntry(id=own, tags=["x"], description="", info=INFO)]))
    session.tell(Fetch(r=1, ids=[own]))
    answer(device, b"data")
    session.take(Values)
    assert session.frames == (b"data",)


def test_answers_that_do_not_add_up(bench: Bench) -> None:
    """Values without their frames are dropped and logged; whoever waits asks again."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    session.tell(Fetch(r=1, ids=[result]))
    answer(device)
    assert session.all(Values) == []
    assert len(bench.events("values_malformed")) == 1
    bench.pass_time(3.0)
    session.tell(Fetch(r=1, ids=[result]))
    answer(device, b"v")
    session.take(Values)


def test_answers_that_nobody_asked_for(bench: Bench) -> None:
    """Values of another device's results, or of nobody's, go nowhere."""
    session, device, thief = bench.session(), bench.device(), bench.device("thief")
    result = remote_result(session, device)
    session.tell(Fetch(r=1, ids=[result]))
    thief.tell(Values(r=1, outcomes=[Outcome(id=result)]), b"false")
    device.tell(Values(r=1, outcomes=[Outcome(id=b"?" * 16)]), b"v")
    assert session.all(Values) == []


def test_too_many_fetches(bench: Bench) -> None:
    """A fetch beyond the limit fails by name, id by id; answered ones make room."""
    bench.config = BrokerConfig(log_level=10, fetches=3)
    bench.restart()
    session, device = bench.session(), bench.device()
    results = [remote_result(session, device) for _ in range(4)]
    session.tell(Fetch(r=1, ids=results))
    outcomes = session.take(Values).outcomes
    assert {outcome.failure.code for outcome in outcomes if outcome.failure} == {"QueueFull"}
    for r in (2, 3, 4):
        session.tell(Fetch(r=r, ids=[results[r - 1]]))
    assert session.all(Values) == []
    session.tell(Fetch(r=5, ids=results[:1]))
    assert session.take(Values).outcomes[0].failure is not None
    session.tell(Fetch(r=4, ids=results[:1]))  # under the same number, for something else
    answer(device, b"v")
    assert session.take(Values).r == 2
    session.tell(Fetch(r=6, ids=results[1:2]))
    assert session.all(Values) == []


# ------------------------------------------------------------------------------------------- blobs


def test_large_value(bench: Bench) -> None:
    """A value that comes as a blob is passed on when the broker has it whole."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    blob = b"large" * 1000
    outcome = Outcome(id=result, blob=digest_of(blob), size=len(blob))
    session.tell(Fetch(r=1, ids=[result]))
    device.tell(Values(r=device.take(Fetch).r, outcomes=[outcome]))
    assert session.all(Values) == []
    bench.blobs[digest_of(blob)] = blob
    bench.feed(BlobStored(digest=digest_of(blob)))
    assert session.take(Values).outcomes == [outcome]
    bench.pass_time(700.0)
    assert digest_of(blob) not in bench.blobs
    session.connect()
    session.open()
    session.tell(Fetch(r=2, ids=[result]))
    device.come_back()
    bench.blobs[digest_of(blob)] = blob
    device.tell(Values(r=device.take(Fetch).r, outcomes=[outcome]))
    assert session.take(Values).outcomes == [outcome]


def test_blob_that_does_not_come(bench: Bench) -> None:
    """Where a blob can't be had the device is asked again when the session asks again."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    outcome = Outcome(id=result, blob=digest_of(b"large"), size=5)
    session.tell(Fetch(r=1, ids=[result]))
    device.tell(Values(r=device.take(Fetch).r, outcomes=[outcome]))
    bench.feed(BlobUnavailable(digest=digest_of(b"large")))
    bench.pass_time(3.0)
    session.tell(Fetch(r=1, ids=[result]))
    assert device.take(Fetch).ids == [result]


def test_blob_that_has_gone_before_its_answer(bench: Bench) -> None:
    """A device offers first and answers then: where the blob has been dropped in between, it is asked again."""
    session, device = bench.session(), bench.device()
    result = remote_result(session, device)
    outcome = Outcome(id=result, blob=digest_of(b"large"), size=5)
    session.tell(Fetch(r=1, ids=[result]))
    device.tell(Values(r=device.take(Fetch).r, outcomes=[outcome]))
    bench.pass_time(3.0)
    session.tell(Fetch(r=1, ids=[result]))
    assert device.take(Fetch).ids == [result]


def test_blobs_stay_while_others_are_gathered(bench: Bench) -> None:
    """A blob that its session has asked for stays from then on; one that has gone is asked for anew."""
    session, device = bench.session(), bench.device()
    results = [remote_result(session, device) for _ in range(2)]
    blobs = [b"large", b"larger"]
    outcomes = [Outcome(id=id, blob=digest_of(blob), size=len(blob)) for id, blob in zip(results, blobs, strict=True)]
    bench.blobs |= {digest_of(blob): blob for blob in blobs}
    session.tell(Fetch(r=1, ids=results))
    r = device.take(Fetch).r
    device.tell(Values(r=r, outcomes=outcomes[:1]))
    for _ in range(10):
        bench.pass_time(100.0)
        session.tell(Fetch(r=1, ids=results))
    device.come_back()
    device.clear()
    del bench.blobs[digest_of(blobs[0])]  # evicted: the disk was full; and not before
    device.tell(Values(r=r, outcomes=outcomes[1:]))
    assert session.all(Values) == []
    bench.pass_time(3.0)
    session.tell(Fetch(r=1, ids=results))
    assert device.take(Fetch).ids == results[:1]
    bench.blobs[digest_of(blobs[0])] = blobs[0]
    device.tell(Values(r=r, outcomes=outcomes[:1]))
    assert session.take(Values).outcomes == outcomes


# ------------------------------------------------------------------------------------------- to devices


def test_argument_from_elsewhere(bench: Bench) -> None:
    """A value that another device has is fetched there and supplied."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    result = remote_result(session, device)
    other.tell(NeedValues(ids=[result]))
    answer(device, b"v")
    assert other.take(Supply) == Supply(outcomes=[Outcome(id=result)])
    assert other.frames == (b"v",)


def test_argument_that_has_not_ended(bench: Bench) -> None:
    """A value that does not exist yet is supplied when it does."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    result = session.invoke()
    other.tell(NeedValues(ids=[result]))
    other.tell(NeedValues(ids=[result]))
    assert other.all(Supply) == []
    device.ready(device.take_one())
    assert other.take(Supply) == Supply(outcomes=[Outcome(id=result)])
    assert other.all(Supply) == []


def test_argument_behind_a_full_device() -> None:
    """What a device needs is delivered although the device has as many commands as it may: they may be those that need
    it. What was sent before it goes before it, and what comes after it waits.
    """
    bench = Bench(BrokerConfig(log_level=10, device_commands=2))
    one, two, device = bench.session(), bench.session(), bench.device()
    needed = two.id_of()
    waiting = [one.invoke(needed) for _ in range(2)]
    before = [two.id_of(), two.id_of()]
    for each in (*before, needed):
        two.submit(Invoke(id=each, plan=two.plan, args=[]))
    after = two.invoke()
    delivered = device.take_all()
    assert ids_of(delivered) == waiting
    device.tell(NeedValues(ids=[needed]))
    more = device.take_all()
    assert ids_of(more) == [*before, needed]
    for deliver in more:
        device.ready(deliver)
    assert device.take(Supply) == Supply(outcomes=[Outcome(id=needed)])
    assert device.take_all() == []
    device.ready(delivered[0])
    assert ids_of(device.take_all()) == [after]


def test_what_was_needed_and_has_ended_opens_no_door() -> None:
    """A needed command that was cancelled in the mailbox lets no other in."""
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device = bench.session(), bench.device()
    session.invoke()
    device.take_one()
    device.tell(Goodbye())
    needed = session.invoke()
    session.invoke()
    other = bench.device("other")
    other.tell(NeedValues(ids=[needed]))
    session.submit(Cancel(id=needed))
    assert other.take(Supply).outcomes[0].failure is not None
    device.come_back()
    assert device.take_all() == []


def test_an_end_that_is_not_told_yet_opens_no_door() -> None:
    """Nor does a needed command that has left the mailbox already, while the ledger has yet to hear how it ended."""
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device, other = bench.session(), bench.device(), bench.device("other")
    needed = session.invoke()
    device.take_one()
    second, _third = session.invoke(), session.invoke()
    bench.holding = True
    session.submit(Cancel(id=needed))
    other.tell(NeedValues(ids=[needed]))
    bench.holding = False
    bench.persist()
    assert other.take(Supply).outcomes[0].failure is not None
    assert ids_of(device.take_all()) == [second]


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("failed", "ExecutionFailed"),
        ("cancelled", "InvocationCancelled"),
        ("expired", "DeadlineExpired"),
        ("unknown", "UnknownResult"),
        ("lost", "ResultLost"),
    ],
)
def test_argument_without_a_value(bench: Bench, case: str, code: str) -> None:
    """A device that waits for a value which will never be is told why, at once."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    result = session.invoke(deadline_ms=3000)
    (deliver,) = device.take_all()
    other.tell(NeedValues(ids=[b"?" * 16 if case == "unknown" else result]))
    match case:
        case "failed":
            device.failed(deliver)
        case "cancelled":
            session.submit(Cancel(id=result))
        case "expired":
            bench.pass_time(4.0)
        case "lost":
            device.ready(deliver, inline=False)
            device.store, device.token = b"a new card......", b""
            device.come_back(restarted=True)
    (outcome,) = other.take(Supply).outcomes
    assert outcome.failure is not None
    assert outcome.failure.code == code


def test_a_devices_own_result(bench: Bench) -> None:
    """A device that asks for what is its own, inline, gets it from the record."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    device.tell(NeedValues(ids=[result]))
    assert device.take(Supply) == Supply(outcomes=[Outcome(id=result)])
    assert device.frames == (VALUE,)


def test_many_arguments_come_in_pieces(bench: Bench) -> None:
    """What is supplied at once is bounded: large values come in several messages."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    results = [session.invoke() for _ in range(5)]
    for deliver in device.take_all():
        device.ready(deliver, b"x" * 600_000)
    other.tell(NeedValues(ids=results))
    assert [len(supply.outcomes) for supply in other.all(Supply)] == [2, 2, 1]


def test_failure_from_the_device(bench: Bench) -> None:
    """What the device says of a value that it has not is passed on as it is."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    result = remote_result(session, device)
    other.tell(NeedValues(ids=[result]))
    session.tell(Fetch(r=1, ids=[result]))
    gone = Outcome(id=result, failure=Failure(code="UnknownResult", message="its file is gone"))
    device.tell(Values(r=device.take(Fetch).r, outcomes=[gone]))
    assert other.take(Supply).outcomes == [gone]
    assert session.take(Values).outcomes == [gone]


def test_many_failures_are_supplied_in_parts(bench: Bench) -> None:
    """Each with its sentence: all in one message would be too long for the device that asks."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    ids = []
    for _ in range(300):
        ids.append(session.invoke())
        deliver = device.take_one()
        failure = Failure(code="ExecutionFailed", message="m" * 4000)
        device.announce(ResultFailed(id=ids[-1], digest=deliver.digest, failure=failure))
    other.tell(NeedValues(ids=ids))
    supplies = []
    while other.all(Supply):
        supplies.append(other.take(Supply))
    assert [outcome.id for supply in supplies for outcome in supply.outcomes] == ids
    assert max(len(encode(supply)) for supply in supplies) < HEADER_LIMIT // 2
