"""What a submission becomes: fanned out, failed for one device alone, cancelled, expired, or told apart from
another.
"""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.effects import Persisted
from broker.protocol.framing import command_digest
from broker.protocol.ids import nth
from broker.protocol.messages import (
    Announce,
    AskStatus,
    Busy,
    Cancel,
    Cancelled,
    Deliver,
    Expired,
    Failure,
    Goodbye,
    Invoke,
    Put,
    ResultFailed,
    ResultInfo,
    ResultReady,
    ResultStatus,
    StatusEntry,
    StatusReport,
)
from tests.broker.bench import WALL, Bench


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


# ------------------------------------------------------------------------------------------- many devices


def test_fan_out(bench: Bench) -> None:
    """One command for three devices: consecutive ids in the order named, own arguments, one digest, one acceptance."""
    session = bench.session()
    devices = [bench.device(f"d{k}") for k in range(3)]
    first = session.id_of(6)
    tensors = [bytes([k]) * 16 for k in range(3)]
    command = Invoke(
        id=first, plan=session.plan, args=[b"-" * 16, 5, None], outputs=2, each={0: b"".join(reversed(tensors))}
    )
    session.submit(command, b"shared", devices=("d2", "d0", "d1"))
    digest = command_digest(command, [b"shared"])
    for k, device in enumerate([devices[2], devices[0], devices[1]]):
        deliver = device.take(Deliver)
        mine = Invoke(id=nth(first, 2 * k), plan=session.plan, args=[tensors[2 - k], 5, None], outputs=2, each={})
        assert deliver == Deliver(n=1, digest=digest, command=mine)
        assert device.frames == (b"shared",)
        device.ready(deliver, b"a", b"b")
    notified = session.notified()
    assert [(notify.device, notify.event.id) for notify in notified] == [  # type: ignore[union-attr]
        ("d2", first),
        ("d0", nth(first, 2)),
        ("d1", nth(first, 4)),
    ]
    stats = session.stats()
    assert (stats.total.commands, stats.total.notifications) == (3, 3)


def test_put_on_many_devices(bench: Bench) -> None:
    """A tensor sent to two devices has an id on each."""
    session = bench.session()
    one, two = bench.device("one"), bench.device("two")
    first = session.id_of(2)
    session.submit(Put(id=first, tags=["x"]), b"tensor", devices=("one", "two"))
    assert one.take(Deliver).command == Put(id=first, tags=["x"])
    assert two.take(Deliver).command == Put(id=nth(first, 1), tags=["x"])


def test_unknown_device_among_others(bench: Bench) -> None:
    """A device that is not known fails alone, by a record and a notification like any other."""
    session, device = bench.session(), bench.device()
    first = session.id_of(2)
    session.submit(Invoke(id=first, plan=session.plan, args=[]), devices=("nobody", "device_1"))
    assert session.accepted() == session.n
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    assert (notify.device, notify.event.id) == ("nobody", first)
    assert notify.event.failure.code == "UnknownDevice"
    assert notify.event.failure.message == "no device 'nobody' is known here"
    assert session.status(first) is ResultStatus.FAILED
    assert len(device.take_all()) == 1


def test_full_mailbox_among_others(bench: Bench) -> None:
    """Where one of many devices has no room, it fails there alone; one device alone makes the session wait."""
    bench.config = BrokerConfig(log_level=10, mailbox_commands=1)
    bench.restart()
    session = bench.session()
    asleep = bench.device("asleep")
    awake = bench.device("awake")
    asleep.tell(Goodbye())
    session.invoke(device="asleep")
    first = session.id_of(2)
    session.submit(Invoke(id=first, plan=session.plan, args=[]), devices=("asleep", "awake"))
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    assert notify.event.failure.code == "QueueFull"
    assert len(awake.take_all()) == 1
    session.invoke(device="asleep")
    assert "mailbox of asleep is full" in session.take(Busy).reason


def test_part_of_a_fan_out_is_known(bench: Bench) -> None:
    """After a lost ledger a device may announce before its session submits again: that part is told, the rest
    goes out.
    """
    session = bench.session()
    one, two = bench.device("one"), bench.device("two")
    first = session.id_of(2)
    command = Invoke(id=first, plan=session.plan, args=[])
    one.announce(ResultReady(id=first, digest=command_digest(command), inline=True), b"v")
    session.submit(command, devices=("one", "two"))
    assert one.all(Deliver) == []
    assert len(two.take_all()) == 1
    assert {notify.event.id for notify in session.notified()} == {first}  # type: ignore[union-attr]
    session.tell(AskStatus(r=1, ids=[first]))
    assert session.take(StatusReport).entries[0].plan == session.plan


# ------------------------------------------------------------------------------------------- the first end wins


def test_late_result_is_dropped(bench: Bench) -> None:
    """A value for what has ended otherwise is dropped and logged, acknowledged, and the device told to drop it, too."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    (deliver,) = device.take_all()
    session.submit(Cancel(id=result))
    device.take_all()
    device.ready(deliver)
    assert session.status(result) is ResultStatus.CANCELLED
    assert len(session.notified()) == 1
    assert bench.events("result_dropped")[0].fields["status"] == "cancelled"
    (errand,) = device.take_all()
    assert errand.command.ids == [result]  # type: ignore[union-attr]


def test_announced_by_another_device(bench: Bench) -> None:
    """A device can't end what another one was given, nor under another digest, nor in the middle of a command's ids."""
    session, device, thief = bench.session(), bench.device(), bench.device("thief")
    result = session.invoke(outputs=2)
    (deliver,) = device.take_all()
    thief.announce(ResultReady(id=result, digest=deliver.digest, inline=True), b"a", b"b")
    device.announce(ResultReady(id=result, digest=b"?" * 16, inline=True), b"a", b"b")
    device.announce(ResultReady(id=nth(result, 1), digest=deliver.digest, inline=True), b"b")
    assert session.status(result) is ResultStatus.DELIVERED
    assert len(bench.events("announcement_refused")) == 3


@pytest.mark.parametrize("inline", [True, False])
def test_wrong_number_of_values(bench: Bench, *, inline: bool) -> None:
    """A device that makes another number of values than it should has failed."""
    session, device = bench.session(), bench.device()
    result = session.invoke(outputs=2)
    (deliver,) = device.take_all()
    device.ready(deliver, inline=inline, outputs=3)
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    assert notify.event.failure.code == "ExecutionFailed"
    assert "expected 2 results of device device_1, got 3" in notify.event.failure.message
    assert session.status(nth(result, 1)) is ResultStatus.FAILED


# ------------------------------------------------------------------------------------------- cancel


def test_cancel_before_delivery(bench: Bench) -> None:
    """What is cancelled while its device sleeps never goes to it."""
    session, device = bench.session(), bench.device()
    device.tell(Goodbye())
    cancelled, kept = session.invoke(), session.invoke()
    session.submit(Cancel(id=cancelled))
    (notify,) = session.notified()
    assert isinstance(notify.event, Cancelled)
    device.come_back(restarted=True)
    assert [deliver.command.id for deliver in device.take_all() if isinstance(deliver.command, Invoke)] == [kept]


def test_what_is_behind_a_cancelled_command_waits_for_the_ledger() -> None:
    """Else a broker that dies before the cancel is in the ledger leaves a later command on the device, and the next one
    delivers the earlier behind it.
    """
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device = bench.session(), bench.device()
    commands = [session.invoke() for _ in range(3)]
    running = device.take_one()
    bench.holding = True
    session.submit(Cancel(id=commands[1]))
    device.ready(running)
    assert device.take_all() == []
    bench.holding = False
    bench.restart()
    device.come_back()
    came = []
    for _ in commands:
        deliver = device.take_one()
        assert isinstance(deliver.command, Invoke)
        came.append(deliver.command.id)
        device.ready(deliver)
    assert came == commands


def test_what_is_behind_a_cancelled_command_follows_when_that_is_in_the_ledger() -> None:
    """It needs no other event."""
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device = bench.session(), bench.device()
    _, cancelled, later = session.invoke(), session.invoke(), session.invoke()
    running = device.take_one()
    bench.holding = True
    session.submit(Cancel(id=cancelled))
    device.ready(running)
    assert device.take_all() == []
    bench.persist()
    assert [deliver.command.id for deliver in device.take_all() if isinstance(deliver.command, Invoke)] == [later]


def test_what_is_behind_a_cancelled_command_waits_for_no_later_one() -> None:
    """However many of those end meanwhile: a session that cancels without end holds up nobody."""
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device = bench.session(), bench.device()
    _, cancelled, between, cancelled_later = (session.invoke() for _ in range(4))
    running = device.take_one()
    bench.holding = True
    session.submit(Cancel(id=cancelled))
    device.ready(running)
    decided = list(bench.held)
    session.submit(Cancel(id=cancelled_later))
    for persist in decided:
        bench.ledger.commit(persist.writes)
        bench.feed(Persisted(ticket=persist.ticket))
    assert [deliver.command.id for deliver in device.take_all() if isinstance(deliver.command, Invoke)] == [between]


def test_cancel_after_delivery(bench: Bench) -> None:
    """What has gone to the device is cancelled there by a command of the same stream."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.take_all()
    session.submit(Cancel(id=result))
    (deliver,) = device.take_all()
    assert (deliver.n, deliver.command) == (2, Cancel(id=result))


def test_cancel_on_the_way(bench: Bench) -> None:
    """A delivery that was lost, and has been cancelled since, goes again as a cancel under its number."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.clear()
    session.submit(Cancel(id=result))
    device.clear()
    bench.pass_time(6.0)
    assert [deliver.command for deliver in device.take_all()] == [Cancel(id=result)] * 2


def test_cancel_is_idempotent(bench: Bench) -> None:
    """Cancelling again, or what has ended, or what nobody knows, does nothing."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    for target in (result, result, b"?" * 16):
        session.submit(Cancel(id=target))
    assert session.accepted() == session.n
    assert session.status(result) is ResultStatus.DONE
    assert len(session.notified()) == 1


def test_any_id_of_an_invocation_cancels_it(bench: Bench) -> None:
    """A later output's id names its invocation, too."""
    session = bench.session()
    bench.device()
    result = session.invoke(outputs=3)
    session.submit(Cancel(id=nth(result, 2)))
    assert session.status(result) is ResultStatus.CANCELLED


def test_many_cancelled_commands_leave_the_mailbox(bench: Bench) -> None:
    """A sleeping device's mailbox does not grow by what was cancelled."""
    session, device = bench.session(), bench.device()
    device.tell(Goodbye())
    for _ in range(3000):
        result = session.invoke()
        session.submit(Cancel(id=result))
    kept = session.invoke()
    mailbox = bench.core.devices.by_name["device_1"].mailbox
    assert mailbox.commands == 1
    assert len(mailbox._waiting) < 1500
    device.come_back(restarted=True)
    assert [deliver.command.id for deliver in device.take_all() if isinstance(deliver.command, Invoke)] == [kept]


# ------------------------------------------------------------------------------------------- deadlines


def test_deadline(bench: Bench) -> None:
    """An invocation past its deadline has expired, whether its device has it or not; the device is told to stop."""
    session, device = bench.session(), bench.device()
    result = session.invoke(deadline_ms=2000)
    device.take_all()
    bench.pass_time(1.9)
    assert session.status(result) is ResultStatus.DELIVERED
    bench.pass_time(0.2)
    assert session.status(result) is ResultStatus.EXPIRED
    (notify,) = session.notified()
    assert isinstance(notify.event, Expired)
    assert [deliver.command for deliver in device.take_all()] == [Cancel(id=result, expired=True)]


def test_deadlines_in_any_order(bench: Bench) -> None:
    """Each expires at its own time, the later submitted perhaps first."""
    session = bench.session()
    bench.device().tell(Goodbye())
    times = [7000, 3000, 5000, 1000, 9000]
    results = [session.invoke(deadline_ms=ms) for ms in times]
    for passed in range(1, 10):
        bench.pass_time(1.0)
        session.clear()
        for ms, result in zip(times, results, strict=True):
            expected = ResultStatus.EXPIRED if ms <= passed * 1000 else ResultStatus.QUEUED
            assert session.status(result) is expected, (passed, ms)


def test_default_and_largest_deadline() -> None:
    """Where the session sets none the broker's default holds, and nobody may wait for longer than the broker's
    limit.
    """
    bench = Bench(BrokerConfig(log_level=10, default_deadline_ms=1000, max_deadline_ms=5000))
    session, device = bench.session(), bench.device()
    default = session.invoke()
    long = session.invoke(deadline_ms=1_000_000)
    device.tell(Goodbye())
    bench.pass_time(1.5)
    assert session.status(default) is ResultStatus.EXPIRED
    assert session.status(long) is ResultStatus.QUEUED
    bench.pass_time(4.0)
    assert session.status(long) is ResultStatus.EXPIRED


@pytest.mark.parametrize("step", [0, -10])
def test_ended_deadlines_are_not_kept(bench: Bench, step: int) -> None:
    """The deadlines of a steady flow of short commands take no memory, whether or not they come in order."""
    session, device = bench.session(), bench.device()
    for k in range(12_000):
        session.invoke(deadline_ms=1_000_000 + step * k)
        device.ready(device.take_one())
        session.notified()
        session.clear()
        device.clear()
    assert len(bench.core.results._deadlines) < 10_000


# ------------------------------------------------------------------------------------------- arguments that fail


def test_argument_that_failed(bench: Bench) -> None:
    """A command whose argument has no value fails at once, and so does what needs it, along the chain, also asleep."""
    session, device, asleep = bench.session(), bench.device(), bench.device("asleep")
    asleep.tell(Goodbye())
    first = session.invoke()
    chain = [session.invoke(first, device="asleep")]
    for _ in range(3000):
        chain.append(session.invoke(chain[-1], 7, device="asleep"))
    device.failed(device.take_one())
    assert session.status(chain[0]) is ResultStatus.FAILED
    assert session.status(chain[-1]) is ResultStatus.FAILED
    for one, argument in ((chain[0], first), (chain[-1], chain[-2])):
        session.tell(AskStatus(r=1, ids=[one]))
        failure = session.take(StatusReport).entries[0].failure
        assert failure is not None
        assert failure.code == "ArgumentFailed"
        assert failure.details == {"argument": argument.hex(), "code": "ExecutionFailed", "message": "it broke"}
    late = session.invoke(chain[-1], device="asleep")
    assert session.status(late) is ResultStatus.FAILED


def test_failure_that_says_too_much(bench: Bench) -> None:
    """What a device says of a failure is shortened: it goes on to other devices, which take no longer headers."""
    session, device = bench.session(), bench.device()
    first = session.invoke()
    failure = Failure(code="ExecutionFailed", message="m" * 900_000)
    deliver = device.take_one()
    device.announce(ResultFailed(id=first, digest=deliver.digest, failure=failure))
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    assert len(notify.event.failure.message) == 4096


def test_argument_that_failed_after_delivery(bench: Bench) -> None:
    """What the device has already is left to the device: it asks for the argument, and is told."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    first = session.invoke()
    second = session.invoke(first, device="other")
    other.take_all()
    session.submit(Cancel(id=first))
    assert session.status(second) is ResultStatus.DELIVERED
    device.take_all()


def test_argument_named_by_its_own_id(bench: Bench) -> None:
    """The failure names the output that was needed, not the invocation's first."""
    session, device, asleep = bench.session(), bench.device(), bench.device("asleep")
    asleep.tell(Goodbye())
    first = session.invoke(outputs=3)
    needs = session.invoke(nth(first, 2), device="asleep")
    device.failed(device.take_one())
    session.tell(AskStatus(r=1, ids=[needs]))
    failure = session.take(StatusReport).entries[0].failure
    assert failure is not None
    assert failure.details["argument"] == nth(first, 2).hex()


# ------------------------------------------------------------------------------------------- status


def test_status_tells_all(bench: Bench) -> None:
    """An entry says where a result is, what it came of, and what is known of its value."""
    session, device = bench.session(), bench.device()
    first = session.id_of(2)
    session.submit(Invoke(id=first, plan=session.plan, args=[], outputs=2, tags=["a", "b"], description="both"))
    (deliver,) = device.take_all()
    infos = [ResultInfo(dtype="float32", shape=[k], nbytes=4 * k) for k in (1, 2)]
    device.announce(ResultReady(id=first, digest=deliver.digest, infos=infos))
    session.tell(AskStatus(r=5, ids=[nth(first, 1)]))
    assert session.take(StatusReport).entries == [
        StatusEntry(
            id=nth(first, 1),
            status=ResultStatus.DONE,
            device="device_1",
            info=infos[1],
            plan=session.plan,
            command=first,
            outputs=2,
            tags=["a", "b"],
            description="both",
            until=round((WALL + 14 * 24 * 3600) * 1000),
        )
    ]


def test_status_of_an_inline_value(bench: Bench) -> None:
    """The shape of an inline value is read from its frame; a frame that is no tensor has none."""
    numpy = pytest.importorskip("numpy")
    from broker.protocol.tensors import encode_array

    session, device = bench.session(), bench.device()
    first = session.invoke(outputs=2)
    (deliver,) = device.take_all()
    device.ready(deliver, encode_array(numpy.zeros((2, 3), "float32")), b"no tensor")
    session.tell(AskStatus(r=5, ids=[first, nth(first, 1)]))
    entries = session.take(StatusReport).entries
    assert entries[0].info == ResultInfo(dtype="float32", shape=[2, 3], nbytes=24)
    assert entries[1].info is None


def test_status_from_anywhere(bench: Bench) -> None:
    """Another session may ask after an id."""
    session, other = bench.session(), bench.session()
    bench.device()
    assert other.status(session.invoke()) is ResultStatus.QUEUED


def test_adopted_after_a_lost_ledger(bench: Bench) -> None:
    """What a device announces that this ledger never knew is recorded: values, failures, and the ends of others."""
    session, device = bench.session(), bench.device()
    ids = [session.incarnation + (100 + k).to_bytes(8, "big") for k in range(3)]
    device.announce(ResultReady(id=ids[0], digest=b"d" * 16, infos=[ResultInfo(dtype="int8", shape=[], nbytes=1)]))
    device.announce(Cancelled(id=ids[1], digest=b"d" * 16))
    device.tell(Announce(n=3, event=Expired(id=ids[2], digest=b"d" * 16)))
    assert [session.status(each) for each in ids] == [
        ResultStatus.DONE,
        ResultStatus.CANCELLED,
        ResultStatus.EXPIRED,
    ]
    assert len(bench.events("result_adopted")) == 3
    assert bench.core.results.unended == 0
    device.come_back(restarted=True)
    assert device.take_all() == []


def test_invented_announcements(bench: Bench) -> None:
    """A device can't make the broker fail, or fill another's notifications, by results that nobody ordered."""
    bench.config = BrokerConfig(log_level=10, session_commands=5)
    bench.restart()
    session, device = bench.session(), bench.device()
    infos = [ResultInfo(dtype="int8", shape=[], nbytes=1)] * 3
    device.announce(ResultReady(id=session.incarnation + b"\xff" * 8, digest=b"d" * 16, infos=infos))
    device.announce(ResultReady(id=session.incarnation + bytes(8), digest=b"d" * 16, infos=infos * 2000))
    assert len(bench.events("announcement_refused")) == 2
    for k in range(20):
        device.announce(Cancelled(id=session.incarnation + (100 + k).to_bytes(8, "big"), digest=b"d" * 16))
    assert len(session.notified()) == 5
