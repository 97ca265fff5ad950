"""The numbered streams between sessions, broker and devices: lost, doubled and reordered messages, and who is
told what.
"""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.effects import PeerBusy, Persist, Persisted
from broker.protocol.effects import Received
from broker.protocol.framing import HEADER_LIMIT, command_digest, encode
from broker.protocol.ids import nth
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Announce,
    Busy,
    Cancel,
    Deliver,
    Heartbeat,
    Invoke,
    Lacking,
    Notify,
    OpenSession,
    Put,
    Recorded,
    Refused,
    Register,
    Registered,
    Rejected,
    Release,
    ResultReady,
    ResultStatus,
    Search,
    Seen,
    SessionOpened,
    Stranger,
    Submit,
    Taken,
)
from tests.broker.bench import VALUE, Bench


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


# ------------------------------------------------------------------------------------------- the way of one invocation


def test_one_invocation(bench: Bench) -> None:
    """A command goes to the device at once, is accepted when it is in the ledger, and its value comes back once."""
    session, device = bench.session(), bench.device()
    bench.holding = True
    command = Invoke(id=session.id_of(), plan=session.plan, args=[None, 3, 2.5])
    session.submit(command, b"a tensor")
    deliver = device.take(Deliver)
    assert (deliver.n, deliver.command, device.frames) == (1, command, (b"a tensor",))
    assert deliver.digest == command_digest(command, [b"a tensor"])
    assert session.all(Accepted) == []
    bench.persist()
    assert session.accepted() == 2
    device.tell(Taken(n=1))
    device.ready(deliver, b"the value")
    notify = session.take(Notify)
    assert notify == Notify(
        n=1, device="device_1", event=ResultReady(id=command.id, digest=deliver.digest, inline=True)
    )
    assert session.frames == (b"the value",)
    assert device.all(Recorded) == []
    bench.persist()
    assert device.take(Recorded).n == 1


def test_counters_tell_one_command_and_one_notification(bench: Bench) -> None:
    """What is promised can be read from the counters, in all and for the device."""
    session, device = bench.session(), bench.device()
    session.invoke()
    device.ready(device.take_one())
    session.notified()
    stats = session.stats()
    for counters in (stats.total, stats.devices["device_1"]):
        assert (counters.commands, counters.notifications, counters.resent) == (1, 1, 0)
    assert stats.total.bytes_in > stats.devices["device_1"].bytes_in > 0
    assert stats.total.bytes_out > stats.devices["device_1"].bytes_out > 0
    assert stats.gauges["unended"] == 0
    assert stats.gauges["results"] == 1


def test_relay_of_many(bench: Bench) -> None:
    """Commands of one session to one device arrive in the order sent, numbered without a gap."""
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(100)]
    delivered = device.take_all()
    assert [deliver.n for deliver in delivered] == list(range(1, 101))
    assert [deliver.command.id for deliver in delivered if isinstance(deliver.command, Invoke)] == ids


# ------------------------------------------------------------------------------------------- session to broker


def test_submit_twice(bench: Bench) -> None:
    """The same number again is acknowledged again, and does nothing."""
    session, device = bench.session(), bench.device()
    command = Invoke(id=session.id_of(), plan=session.plan, args=[])
    session.submit(command)
    session.clear()
    session.tell(Submit(n=session.n, devices=["device_1"], command=command))
    assert session.accepted() == session.n
    assert len(device.all(Deliver)) == 1


def test_submit_with_a_gap(bench: Bench) -> None:
    """A number that comes too early is dropped: the sender goes back to the one that is missing."""
    session, device = bench.session(), bench.device()
    first, second = (Invoke(id=session.id_of(), plan=session.plan, args=[]) for _ in range(2))
    session.tell(Submit(n=3, devices=["device_1"], command=second))
    assert device.all(Deliver) == []
    session.tell(Submit(n=2, devices=["device_1"], command=first))
    session.tell(Submit(n=3, devices=["device_1"], command=second))
    assert [deliver.command for deliver in device.all(Deliver)] == [first, second]


def test_a_batch_is_acknowledged_once(bench: Bench) -> None:
    """Acknowledgements are cumulative: one a batch."""
    session, device = bench.session(), bench.device()
    session.clear()
    for _ in range(10):
        session.n += 1
        command = Invoke(id=session.id_of(), plan=session.plan, args=[])
        session.say(Submit(n=session.n, devices=["device_1"], command=command))
    assert session.all(Accepted) == []
    bench.batch()
    assert session.all(Accepted) == [Accepted(n=11)]
    for deliver in device.all(Deliver):
        event = ResultReady(id=deliver.command.id, digest=deliver.digest, inline=True)  # type: ignore[union-attr]
        device.say(Announce(n=deliver.n, event=event), VALUE)
    bench.batch()
    assert device.all(Recorded) == [Recorded(n=10)]


def test_group_commit() -> None:
    """Batches that come within a moment are committed and acknowledged together; relaying waits for none of it."""
    bench = Bench(BrokerConfig(log_level=10, commit_within=0.01))
    session, device = bench.session(), bench.device()
    bench.pass_time(0.1)
    session.clear()
    commits = bench.ledger.commits
    for k in range(1, 11):
        session.invoke()
        assert len(device.all(Deliver)) == k
    for deliver in device.take_all():
        device.ready(deliver)
    assert len(session.all(Notify)) == 10
    assert session.all(Accepted) == []
    assert device.all(Recorded) == []
    bench.pass_time(0.01)
    assert bench.ledger.commits == commits + 1
    assert session.all(Accepted) == [Accepted(n=11)]
    assert device.all(Recorded) == [Recorded(n=10)]


def test_group_commit_has_a_limit() -> None:
    """Many writes don't wait for more."""
    bench = Bench(BrokerConfig(log_level=10, commit_within=10.0, commit_writes=50))
    session = bench.session()
    bench.device()
    for _ in range(60):
        session.invoke()
    assert 40 <= session.accepted() <= 60


def test_broker_that_ends_commits() -> None:
    """What waits to be committed when a broker ends is committed, and whoever is there is told."""
    bench = Bench(BrokerConfig(log_level=10, commit_within=10.0))
    session = bench.session()
    bench.device()
    result = session.invoke()
    for instruction in bench.core.flush(bench.now):
        if isinstance(instruction, Persist):
            bench.ledger.commit(instruction.writes)
            bench.feed(Persisted(ticket=instruction.ticket))
    assert session.accepted() == session.n
    assert [stored.command.id for stored in bench.ledger.open().results] == [result]


def test_acceptance_waits_for_what_was_written_before(bench: Bench) -> None:
    """A repeated number is not acknowledged beyond what is in the ledger."""
    session = bench.session()
    bench.device()
    bench.holding = True
    session.clear()
    command = Invoke(id=session.id_of(), plan=session.plan, args=[])
    session.submit(command)
    session.tell(Submit(n=session.n, devices=["device_1"], command=command))
    assert session.accepted() == session.n - 1
    bench.persist()
    assert session.accepted() == session.n


def test_same_id_with_another_digest(bench: Bench) -> None:
    """An id that names a command already is refused for another one, and the first goes on undisturbed."""
    session, device = bench.session(), bench.device()
    first = session.invoke(1)
    session.submit(Invoke(id=first, plan=session.plan, args=[2]))
    rejected = session.take(Rejected)
    assert rejected.n == session.n
    assert rejected.failure.code == "IdConflict"
    assert session.accepted() == session.n
    device.ready(device.take_one())
    assert session.status(first) is ResultStatus.DONE


def test_ids_that_overlap(bench: Bench) -> None:
    """Ids inside another command's range are refused as well, from either side."""
    session = bench.session()
    bench.device()
    session.id_of(3)
    first = session.invoke(outputs=3)
    for begin, outputs in ((nth(first, 2), 1), (nth(first, -1), 2), (nth(first, -1), 9)):
        session.submit(Invoke(id=begin, plan=session.plan, args=[], outputs=outputs))
        assert session.take(Rejected).failure.code == "IdConflict"


def test_same_id_same_command(bench: Bench) -> None:
    """The same command under a new number does nothing but tell again how it ended."""
    session, device = bench.session(), bench.device()
    command = Invoke(id=session.id_of(), plan=session.plan, args=[])
    session.submit(command)
    session.submit(command)
    assert session.all(Rejected) == []
    device.ready(device.take_one())
    assert len(session.notified()) == 1
    session.submit(command)
    assert [notify.n for notify in session.notified()] == [2]
    assert device.all(Deliver) == []


@pytest.mark.parametrize("name", ["", "-pi", "pi kitchen", "x" * 65, "pi\n", "x" * 100_000])
def test_a_command_for_what_is_no_device_id_is_rejected(bench: Bench, name: str) -> None:
    """Nobody will ever register under it. What the session sends behind it is done."""
    session, device = bench.session(), bench.device()
    for command in (Invoke(id=session.id_of(2), plan=session.plan, args=[]), Put(id=session.id_of(2))):
        session.submit(command, devices=("device_1", name))
        failure = session.take(Rejected).failure
        assert failure.code == "NotAllowed"
        assert "expected a device id of 1 to 64 letters" in failure.message
        assert len(failure.message) < 300
    id = session.invoke()
    assert [deliver.command for deliver in device.all(Deliver)] == [Invoke(id=id, plan=session.plan, args=[])]


def test_rejection_is_told_again(bench: Bench) -> None:
    """A session that missed a `Rejected` hears it again, for the number and after opening anew."""
    session = bench.session()
    command = Invoke(id=b"x" * 16, plan=session.plan, args=[])
    session.submit(command)
    assert session.take(Rejected).failure.code == "NotAllowed"
    session.tell(Submit(n=session.n, devices=["device_1"], command=command))
    assert session.take(Rejected).n == session.n
    session.connect()
    session.open()
    assert list(session.take(SessionOpened).rejected) == [session.n]


@pytest.mark.parametrize(
    ("changes", "devices", "words"),
    [
        ({}, (), "expected a device, got none"),
        ({"outputs": 5000}, ("device_1",), "at most 4096 outputs"),
        ({"outputs": 0}, ("device_1", "device_1"), "got none on 2 devices"),
        ({"each": {3: b"x" * 16}}, ("device_1",), "position of one of 1 arguments"),
        ({"each": {0: b"x" * 16}}, ("device_1", "device_2"), "expected 2 ids for argument 0, got 16 bytes"),
    ],
)
def test_unfit_commands(bench: Bench, changes: dict[str, object], devices: tuple[str, ...], words: str) -> None:
    """A command that can't be carried out on any fleet is rejected in words, and the stream goes on."""
    session, device = bench.session(), bench.device()
    fields = {"id": session.id_of(), "plan": session.plan, "args": [1]} | changes
    session.submit(Invoke(**fields), devices=devices)  # type: ignore[arg-type]
    rejected = session.take(Rejected)
    assert words in rejected.failure.message
    session.invoke()
    assert len(device.all(Deliver)) == 1


def test_an_id_without_room(bench: Bench) -> None:
    """Ids that would leave the incarnation are rejected."""
    session = bench.session()
    bench.device()
    session.submit(Invoke(id=session.incarnation + b"\xff" * 8, plan=session.plan, args=[], outputs=2))
    assert "room for 2 results" in session.take(Rejected).failure.message


# ------------------------------------------------------------------------------------------- broker to device


def test_device_misses_commands(bench: Bench) -> None:
    """What a device does not acknowledge goes again when patience has run out, from the first missing one."""
    session, device = bench.session(), bench.device()
    for _ in range(3):
        session.invoke()
    device.take_all(acknowledge=False)
    device.tell(Taken(n=1))
    bench.pass_time(6.0)
    assert [deliver.n for deliver in device.all(Deliver)] == [2, 3]
    assert session.stats().total.resent == 2


def test_same_agent_on_a_new_connection(bench: Bench) -> None:
    """A device that reconnects says what it has taken, and gets the rest."""
    session, device = bench.session(), bench.device()
    for _ in range(5):
        session.invoke()
    device.clear()
    device.taken = 2
    device.come_back()
    assert device.take(Registered).first == 3
    assert [deliver.n for deliver in device.all(Deliver)] == [3, 4, 5]


def test_another_start_of_the_agent(bench: Bench) -> None:
    """All that has not ended goes again in the old order, under new numbers, when the agent starts anew."""
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(5)]
    taken = device.take_all()
    device.ready(taken[1])
    device.come_back(restarted=True)
    again = device.take_all()
    assert [deliver.command.id for deliver in again if isinstance(deliver.command, Invoke)] == [
        ids[0],
        ids[2],
        ids[3],
        ids[4],
    ]
    assert [deliver.n for deliver in again] == [6, 7, 8, 9]
    total = session.stats().total
    assert (total.commands, total.resent) == (5, 4)


def test_time_left_goes_with_a_late_delivery(bench: Bench) -> None:
    """A command that waited is delivered with what is left of its deadline."""
    session, device = bench.session(), bench.device()
    device.tell(Heartbeat())
    bench.pass_time(20.0)
    session.invoke(deadline_ms=60_000)
    bench.pass_time(45.0)
    session.clear()
    device.come_back()
    (deliver,) = device.take_all()
    assert isinstance(deliver.command, Invoke)
    assert deliver.command.deadline_ms == 15_000


def test_what_came_together_is_sent_on_together(bench: Bench) -> None:
    """While another message follows at once, the streams wait; with the last they say all, in its order."""
    session, device = bench.session(), bench.device()
    commands = [Invoke(id=session.id_of(), plan=session.plan, args=[]) for _ in range(3)]
    submits = [Submit(n=session.n + k, devices=["device_1"], command=each) for k, each in enumerate(commands, 1)]
    *before, last = [Received(message=submit, peer=session.id) for submit in submits]
    for received in before:
        bench.feed(received, more=True)
    assert device.all(Deliver) == []
    bench.feed(last)
    assert [deliver.command for deliver in device.all(Deliver)] == commands


def test_window(bench: Bench) -> None:
    """No more than a window of commands is under way; the rest follows as they are acknowledged."""
    bench.config = BrokerConfig(log_level=10, window=4)
    bench.restart()
    session, device = bench.session(), bench.device()
    for _ in range(10):
        session.invoke()
    assert len(device.all(Deliver)) == 4
    assert len(device.take_all()) == 4
    assert [deliver.n for deliver in device.all(Deliver)] == [5, 6, 7, 8]


def test_window_of_bytes(bench: Bench) -> None:
    """Large commands come one after the other, whatever the window."""
    bench.config = BrokerConfig(log_level=10, window_bytes=1000)
    bench.restart()
    session, device = bench.session(), bench.device()
    for _ in range(4):
        session.submit(Put(id=session.id_of()), b"x" * 700)
    assert len(device.all(Deliver)) == 2
    assert len(device.take_all()) == 2
    assert len(device.all(Deliver)) == 2


def test_device_is_given_so_many_at_a_time(bench: Bench) -> None:
    """A device has no more unended commands than it may: the mailbox holds the others."""
    bench.config = BrokerConfig(log_level=10, device_commands=3)
    bench.restart()
    session, device = bench.session(), bench.device()
    for _ in range(5):
        session.invoke()
    taken = device.take_all()
    assert len(taken) == 3
    assert device.all(Deliver) == []
    device.ready(taken[0])
    assert len(device.take_all()) == 1


def test_cancel_passes_a_full_device() -> None:
    """A cancel does not wait behind what the device has no room for."""
    bench = Bench(BrokerConfig(log_level=10, device_commands=1))
    session, device = bench.session(), bench.device()
    first = session.invoke()
    session.invoke()
    device.take_all()
    session.submit(Cancel(id=first))
    assert [type(deliver.command) for deliver in device.take_all()] == [Invoke, Cancel]


def test_slow_reader(bench: Bench) -> None:
    """A peer that takes nothing is left alone for a moment; then everything not acknowledged goes again."""
    session, device = bench.session(), bench.device()
    session.invoke()
    device.clear()
    bench.feed(PeerBusy(peer=device.id))
    session.invoke()
    assert device.all(Deliver) == []
    bench.pass_time(0.2)
    assert [deliver.n for deliver in device.all(Deliver)] == [1, 2]
    device.ready(device.take_all()[0])
    session.clear()
    bench.feed(PeerBusy(peer=session.id))
    bench.pass_time(0.2)
    assert [notify.n for notify in session.all(Notify)] == [1]


# ------------------------------------------------------------------------------------------- device to broker


def test_announcement_twice(bench: Bench) -> None:
    """An announcement that comes twice is recorded once, and acknowledged twice."""
    session, device = bench.session(), bench.device()
    session.invoke()
    (deliver,) = device.take_all()
    event = ResultReady(id=deliver.command.id, digest=deliver.digest, inline=True)  # type: ignore[union-attr]
    device.tell(Announce(n=1, event=event), VALUE)
    device.tell(Announce(n=1, event=event), VALUE)
    assert device.all(Recorded) == [Recorded(n=1), Recorded(n=1)]
    assert len(session.all(Notify)) == 1


def test_announcement_with_a_gap(bench: Bench) -> None:
    """An announcement that comes too early is not acknowledged, and does nothing."""
    session, device = bench.session(), bench.device()
    session.invoke()
    (deliver,) = device.take_all()
    event = ResultReady(id=deliver.command.id, digest=deliver.digest, inline=True)  # type: ignore[union-attr]
    device.tell(Announce(n=2, event=event), VALUE)
    assert device.all(Recorded) == [Recorded(n=0)]
    assert session.all(Notify) == []


def test_numbering_goes_on_over_registrations(bench: Bench) -> None:
    """After a new registration announcements go on from the number that it names; a record of the old one
    acknowledges none of the new.
    """
    session, device = bench.session(), bench.device()
    first, second = session.invoke(), session.invoke()
    one, two = device.take_all()
    bench.holding = True
    device.ready(one)
    device.come_back()
    device.clear()
    bench.persist()
    assert device.all(Recorded) == []
    bench.holding = False
    device.ready(one)
    device.ready(two)
    assert device.all(Recorded)[-1] == Recorded(n=3)
    assert [session.status(each) for each in (first, second)] == [ResultStatus.DONE] * 2


def test_late_registration(bench: Bench) -> None:
    """A registration that was delayed, and overtaken by a later one of the same start, changes nothing."""
    session, device = bench.session(), bench.device()
    session.invoke()
    (deliver,) = device.take_all()
    late = Register(version=PROTOCOL_VERSION, device=device.name, store=device.store, boot=device.boot, first=1)
    old = device.id
    device.catch_up()
    device.come_back()
    device.clear()
    bench.feed(Received(message=late, peer=device.id))
    bench.feed(Received(message=late, peer=old))
    bench.batch()
    assert device.messages == []
    device.ready(deliver)
    assert device.all(Recorded) == [Recorded(n=2)]


def test_registering_twice_keeps_the_numbering(bench: Bench) -> None:
    """A `Register` that was sent again before its answer came gets the same answer, and resets nothing."""
    session = bench.session()
    device = bench.device()
    session.invoke()
    (deliver,) = device.take_all()
    bench.holding = True
    device.ready(deliver)
    before = device.token
    device.tell(
        Register(version=(1, 0), device="device_1", store=device.store, boot=device.boot, token=b"", epoch=0, taken=0)
    )
    assert device.take(Registered).token == before
    bench.persist()
    assert device.all(Recorded)[-1] == Recorded(n=1)


# ------------------------------------------------------------------------------------------- broker to session


def test_session_misses_notifications(bench: Bench) -> None:
    """A notification goes again until the session says that it has seen it, and no longer."""
    session, device = bench.session(), bench.device()
    session.invoke()
    device.ready(device.take_one())
    assert len(session.all(Notify)) == 1
    session.clear()
    bench.pass_time(6.0)
    assert [notify.n for notify in session.all(Notify)] == [1]
    session.tell(Seen(n=1))
    session.clear()
    bench.pass_time(60.0)
    assert session.all(Notify) == []


def test_session_on_a_new_connection(bench: Bench) -> None:
    """What a session has not seen comes to its new connection, in order; the old one hears nothing more."""
    session, device = bench.session(), bench.device()
    for _ in range(3):
        session.invoke()
    for deliver in device.take_all():
        device.ready(deliver)
    session.clear()
    session.seen = 1
    old = session.id
    session.connect(half_open=True)
    session.open()
    opened = session.take(SessionOpened)
    assert opened.accepted == 4
    assert [notify.n for notify in session.all(Notify)] == [2, 3]
    assert old not in bench.heard


def test_result_while_the_session_is_away(bench: Bench) -> None:
    """A result that comes while nobody is there waits for its session."""
    session, device = bench.session(), bench.device()
    first = session.invoke()
    session.connect()
    (deliver,) = device.take_all()
    device.ready(deliver)
    session.open()
    (notify,) = session.notified()
    assert notify.event.id == first  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------- strangers and others


def test_stranger(bench: Bench) -> None:
    """Whoever has not introduced itself is told so, once a batch; not for a goodbye."""
    peer = bench.peer()
    for _ in range(5):
        peer.say(Heartbeat())
    bench.batch()
    assert peer.messages == [Stranger()]
    peer.clear()
    peer.tell(Search(r=1, tags=[]))
    assert peer.messages == [Stranger()]


def test_messages_in_the_wrong_mouth(bench: Bench) -> None:
    """A device that speaks as a session is refused in words, and goes on as a device."""
    device = bench.device()
    device.tell(Submit(n=1, devices=["device_1"], command=Release(ids=[])))
    refused = device.take(Refused)
    assert refused.code == "malformed"
    assert refused.reason == "expected a message of a device, got Submit"
    device.tell(Heartbeat())
    assert device.messages


def test_nonsense(bench: Bench) -> None:
    """Bytes that are no message are refused with the reason, and change nothing, known sender or not."""
    device, stranger = bench.device(), bench.peer()
    for peer in (device, stranger):
        peer.babble("expected msgpack, got soup")
        refused = peer.take(Refused)
        assert (refused.code, refused.reason) == ("malformed", "expected msgpack, got soup")
    assert [log.fields["device"] for log in bench.events("message_refused")] == ["device_1", ""]
    device.tell(Heartbeat())
    assert device.messages


def test_message_over_the_limit(bench: Bench) -> None:
    """A message over the limit is refused, and hurts nobody; a command of that size is rejected under its number."""
    bench.config = BrokerConfig(log_level=10, max_message=1000)
    bench.restart()
    session, device = bench.session(), bench.device()
    session.submit(Put(id=session.id_of()), b"x" * 2000)
    assert session.take(Rejected).failure.code == "MessageTooLarge"
    device.tell(Announce(n=1, event=ResultReady(id=b"i" * 16, digest=b"d" * 16, inline=True)), b"x" * 2000)
    assert device.take(Refused).code == "too_large"
    session.invoke()
    assert len(device.take_all()) == 1


def test_header_that_no_device_would_take(bench: Bench) -> None:
    """On its way a command's header gets longer by some bytes: one that is so near to the limit goes to no device."""
    session, device = bench.session(), bench.device()
    empty = len(encode(Submit(n=1, devices=["device_1"], command=Put(id=b"i" * 16, description="d" * 70_000)))) - 70_000
    session.submit(Put(id=session.id_of(), description="d" * (HEADER_LIMIT - 64 - empty)), VALUE)
    (delivered,) = device.take_all()
    assert HEADER_LIMIT - 64 < len(encode(delivered)) <= HEADER_LIMIT
    session.submit(Put(id=session.id_of(), description="d" * (HEADER_LIMIT - 63 - empty)), VALUE)
    assert session.take(Rejected).failure.code == "MessageTooLarge"
    session.invoke()
    assert len(device.take_all()) == 1


@pytest.mark.parametrize("version", [(2, 0), (0, 9)])
def test_another_major_version(bench: Bench, version: tuple[int, int]) -> None:
    """A peer of another major version is told both versions, and refused; one of a later minor version is welcome."""
    peer = bench.peer()
    theirs = ".".join(map(str, version))
    peer.tell(OpenSession(version=version, incarnation=b"i" * 8))
    peer.tell(Register(version=version, device="d", store=b"s" * 16, boot=b"b" * 16))
    for _ in range(2):
        refused = peer.take(Refused)
        assert (refused.version, refused.code) == ((1, 1), "version")
        assert refused.reason == f"expected protocol 1.x, got {theirs}; this broker speaks 1.1"
    peer.tell(OpenSession(version=(1, 7), incarnation=b"i" * 8))
    assert peer.take(SessionOpened).version == (1, 1)


def test_lacking_stops_the_stream(bench: Bench) -> None:
    """A command that names an unknown plan or blob is not taken, and nothing overtakes it."""
    session, device = bench.session(), bench.device()
    session.submit(Invoke(id=session.id_of(), plan=b"p" * 32, args=[]))
    assert session.take(Lacking).digests == [b"p" * 32]
    session.submit(Put(id=session.id_of(), blob=b"b" * 32))
    assert session.all(Lacking) == []
    assert session.all(Accepted) == []
    assert device.all(Deliver) == []


def test_busy_stops_the_stream(bench: Bench) -> None:
    """A command that finds no room is not taken; it comes again, and then is."""
    bench.config = BrokerConfig(log_level=10, mailbox_commands=2, busy_ms=150)
    bench.restart()
    session, device = bench.session(), bench.device()
    for _ in range(3):
        session.invoke()
    busy = session.take(Busy)
    assert (busy.n, busy.retry_ms) == (4, 150)
    assert busy.reason == "the mailbox of device_1 is full: 2 commands, 0 bytes"
    device.ready(device.take_all()[0])
    command = Invoke(id=nth(session.id_of(), -1), plan=session.plan, args=[])
    session.tell(Submit(n=4, devices=["device_1"], command=command))
    assert session.accepted() == 4
    assert len(bench.events("session_told_busy")) == 1
