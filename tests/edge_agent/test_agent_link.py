"""The agent's link to the broker: registration, announcements until they are recorded, heartbeats, silence."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown, LinkUp, Received
from broker.protocol.framing import HEADER_LIMIT, encode
from edge_agent import effects as e
from edge_agent.core import AgentConfig
from tests.edge_agent.device import LEDGER, STORE, DemoPlan, Device, own_value, result_id

PLAN = DemoPlan()


def test_a_device_introduces_itself_on_every_connection() -> None:
    """With its id, store, boot, what it runs plans with, and the token, the ledger and the epoch of the last time."""
    device = Device(AgentConfig(runtimes=("torch",), labels={"room": "kitchen"}))
    device.register()
    device.feed(LinkDown())
    device.feed(LinkUp())
    first, second = device.take_sent(m.Register)
    assert (first.device, first.store, first.boot, first.token) == ("device_1", STORE, b"boot-001", b"")
    assert (first.ledger, second.ledger) == (b"", LEDGER)
    assert (first.runtimes, first.labels) == (["torch"], {"room": "kitchen"})
    assert (second.token, second.epoch, second.boot) == (b"token-01", 1, b"boot-001")


def test_a_broker_that_cannot_be_reached_is_told_once() -> None:
    """At each absence that lasts, of which else nobody would know: neither of a short one, nor at the end."""
    device = Device()
    for _ in range(2):
        device.wait(9.9)
        assert device.logs == []
        device.wait(1000.0)
        [told] = device.logs
        assert (told.level, told.event, told.fields) == (30, "broker_unreachable", {"seconds": 10.0})
        device.register()
        device.wait(5.0)
        device.feed(LinkDown())
        device.logs.clear()
    device.feed(e.Stopping())
    assert device.core.next_timer() is None


def test_a_device_that_is_not_registered_answers_nothing() -> None:
    """An answer would tell the broker that the token of a `Registered` that was lost has come."""
    device = Device()
    device.feed(LinkUp())
    device.receive(m.Fetch(r=1, ids=[]))
    assert device.take_sent(m.Values) == []
    device.welcome()
    device.receive(m.Fetch(r=1, ids=[]))
    assert [values.r for values in device.take_sent(m.Values)] == [1]


def test_what_the_broker_gave_is_kept_for_the_next_start() -> None:
    """Token and ledger id, to be written down by the driver; and where blobs are to be had."""
    device = Device()
    device.register(blobs="tcp://*:5752")
    assert device.take(e.SaveRegistration) == [e.SaveRegistration(token=b"token-01", ledger=LEDGER)]
    assert device.take(e.OpenBlobs) == [e.OpenBlobs(endpoint="tcp://*:5752")]


def test_a_registration_that_could_not_be_written_counts_as_lost() -> None:
    """The next one presents what the store has: another token would be confirmed by that, and be unknown to the next
    start of this agent. The answer after that is written again.
    """
    device = Device()
    device.register()
    device.feed(LinkDown())
    device.feed(LinkUp())
    device.welcome(token=b"token-02", ledger=b"ledger-2", first=3)
    device.take(e.SaveRegistration)
    device.feed(e.RegistrationUnsaved(), LinkDown())
    device.feed(LinkUp())
    last = device.take_sent(m.Register)[-1]
    assert (last.token, last.ledger, last.epoch, last.taken) == (b"token-01", LEDGER, 0, 0)
    device.welcome(token=b"token-02", ledger=b"ledger-2", first=3)
    assert device.take(e.SaveRegistration) == [e.SaveRegistration(token=b"token-02", ledger=b"ledger-2", other=True)]


def test_the_whole_tag_index_is_announced_at_each_registration() -> None:
    """Last of all that was not recorded; numbers go on."""
    device = Device()
    device.shelf.keep(None, [own_value(1, "a"), own_value(2)], durable=True)
    for n in (1, 2):
        device.register()
        [announce] = device.take_sent(m.Announce)
        assert announce == m.Announce(n=n, event=m.TagsChanged(entries=[own_value(1, "a").entry], whole=True))
        device.feed(LinkDown())


def test_later_changes_of_the_store_are_announced_alone() -> None:
    """What another program has put or deleted; nothing, if nothing tagged has changed."""
    device = Device()
    device.shelf.keep(None, [own_value(1, "a")], durable=True)
    device.register()
    device.acknowledge()
    device.shelf.keep(None, [own_value(2, "b"), own_value(3)], durable=True)
    device.feed(e.StoreChanged())
    del device.shelf.values[own_value(1).id]
    device.feed(e.StoreChanged())
    device.feed(e.StoreChanged())
    assert [message.event for message in device.take_sent(m.Announce)] == [
        m.TagsChanged(entries=[own_value(2, "b").entry]),
        m.TagsChanged(gone=[own_value(1).id]),
    ]


def test_many_tags_are_announced_in_parts() -> None:
    """Each of which the broker takes; the first begins the index anew, and nothing is announced twice."""
    device = Device()
    tags = [f"sensor-{k:05}-" + "x" * 100 for k in range(10_000)]
    values = {own_value(k).id: own_value(k, tag) for k, tag in enumerate(tags, 1)}
    device.shelf.keep(None, list(values.values()), durable=True)
    device.register()
    announced = device.take_sent(m.Announce)
    assert len(announced) > 4
    assert max(len(encode(message)) for message in announced) <= HEADER_LIMIT
    changes = [message.event for message in announced if isinstance(message.event, m.TagsChanged)]
    assert [change.whole for change in changes] == [True] + [False] * (len(announced) - 1)
    assert [entry for change in changes for entry in change.entries] == [held.entry for held in values.values()]


def test_many_tags_that_are_gone_are_announced_in_parts() -> None:
    """An owner who empties a large store says it all."""
    device = Device()
    ids = [own_value(k).id for k in range(1, 60_001)]
    device.shelf.keep(None, [own_value(k, "t") for k in range(1, 60_001)], durable=True)
    device.register()
    device.acknowledge()
    device.shelf.values.clear()
    device.feed(e.StoreChanged())
    announced = device.take_sent(m.Announce)
    assert max(len(encode(message)) for message in announced) <= HEADER_LIMIT
    assert [id for message in announced if isinstance(message.event, m.TagsChanged) for id in message.event.gone] == ids


def test_what_no_announcement_has_room_for_holds_up_nothing() -> None:
    """A description of a megabyte: that tensor is not in the index, which the log says, and the others are."""
    device = Device()
    device.shelf.keep(
        None, [replace(own_value(1, "a"), description="d" * HEADER_LIMIT), own_value(2, "b")], durable=True
    )
    device.register()
    [announce] = device.take_sent(m.Announce)
    assert announce.event == m.TagsChanged(entries=[own_value(2, "b").entry], whole=True)
    [log] = [log for log in device.logs if log.event == "tags_too_large"]
    assert log.fields["result"] == own_value(1).id.hex()


def test_an_announcement_is_repeated_until_it_is_recorded() -> None:
    """After some seconds without a record, and then no more."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    first = device.take_sent(m.Announce)
    device.wait(6)
    assert device.take_sent(m.Announce) == first
    device.receive(m.Recorded(n=first[0].n))
    device.wait(9)
    assert device.take_sent(m.Announce) == []


def test_what_ended_while_the_link_was_down_is_announced_after_it() -> None:
    """Also what was announced and not recorded; under new numbers, the tag index last."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    device.finish(device.jobs()[0])
    device.feed(LinkDown())
    device.sent.clear()
    device.finish_all()
    assert device.sent == []
    device.register(epoch=1, first=4)
    announced = device.take_sent(m.Announce)
    first = announced[0].n
    assert [message.n for message in announced] == [first, first + 1, first + 2]
    assert isinstance(announced[2].event, m.TagsChanged)
    assert [message.event.id for message in announced[:2] if not isinstance(message.event, m.TagsChanged)] == [
        result_id(1),
        result_id(2),
    ]


def test_what_is_not_on_the_disk_yet_is_not_announced_at_registration_either() -> None:
    """A value that must be kept first is announced when it is."""
    device = Device()
    device.ready(PLAN)
    device.hold_commits = True
    device.invoke(PLAN, counter=1, inline=False)
    device.finish_all()
    device.feed(LinkDown())
    device.register(first=3)
    assert device.announced() == []
    device.commit()
    assert len(device.announced()) == 1


def test_an_end_that_could_not_be_written_is_not_kept_from_the_broker() -> None:
    """On a full disk: what was announced in vain has failed at the next registration, and is not waited for."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    device.feed(LinkDown())
    device.finish_all()
    del device.shelf.commands[result_id(1)]  # the writer could not write it
    device.sent.clear()
    device.register(epoch=1, first=4)
    assert [type(event).__name__ for event in device.announced()] == ["ResultReady", "ResultFailed"]
    assert device.failure_of(result_id(1)).code == "StoreFull"
    device.acknowledge()
    device.feed(LinkDown())
    device.register(epoch=1, first=4)
    assert device.announced() == []


def test_a_failure_that_could_not_be_written_is_told_again_as_it_was() -> None:
    """When the device registers, and when the command comes again, which is not run then: later ones may have been."""
    device = Device()
    device.ready(PLAN)
    why = m.Failure(code="ExecutionFailed", message="this plan always fails")
    command = device.invoke(PLAN, counter=1)
    device.fail(device.jobs()[0], why)
    told = device.announced()[-1]
    assert isinstance(told, m.ResultFailed)
    del device.shelf.commands[command.id]  # the writer could not write it
    device.feed(LinkDown())
    device.sent.clear()
    device.register(epoch=1, first=3)
    assert device.announced() == [told]
    del device.shelf.commands[command.id]
    device.deliver(command)
    assert device.announced() == [told, told]
    assert device.jobs() == []
    ended = device.shelf.ended(command.id)
    assert ended is not None
    assert ended.event == told


def test_a_value_that_could_not_be_written_is_made_again() -> None:
    """When its command comes again; another one under its id does not take its place."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    device.finish_all()
    del device.shelf.commands[command.id], device.shelf.values[command.id]  # the writer could not write them
    device.deliver(command, digest=bytes(32))
    assert device.failure_of(command.id).code == "IdConflict"
    assert device.jobs() == []
    device.deliver(command)
    assert [job.id for job in device.jobs()] == [command.id]


def test_what_fails_while_the_device_registers_has_one_end() -> None:
    """In the same batch, for what became of another command: it is announced once, as what it is."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, result_id(9), counter=1)
    device.invoke(PLAN, result_id(1), counter=2)
    device.feed(LinkDown())
    device.feed(LinkUp())
    device.sent.clear()
    registered = m.Registered(
        version=m.PROTOCOL_VERSION,
        ledger=LEDGER,
        epoch=1,
        token=b"token-01",
        first=4,
        heartbeat_ms=10_000,
        max_message=4 << 20,
    )
    cancel = m.Deliver(n=4, digest=bytes(16), command=m.Cancel(id=result_id(1)))
    device.feed(Received(message=registered), Received(message=cancel))
    assert device.failure_of(result_id(2)).code == "ArgumentFailed"
    ended = device.shelf.ended(result_id(2))
    assert ended is not None
    assert [event for event in device.announced() if event.id == result_id(2)] == [ended.event]
    assert [log.event for log in device.logs if log.event == "end_lost"] == []


def test_another_ledger_is_told_everything() -> None:
    """The broker has lost what it had: what was recorded there is announced again."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    device.acknowledge()
    device.feed(LinkDown())
    device.register(first=3)
    assert device.announced() == []
    device.feed(LinkDown())
    device.register(ledger=b"ledger-2", epoch=1)
    assert len(device.announced()) == 2


def test_a_stranger_introduces_itself_again() -> None:
    """On the same connection."""
    device = Device()
    device.register()
    device.take_sent(m.Register)
    device.receive(m.Stranger())
    assert len(device.take_sent(m.Register)) == 1
    assert not device.core.registered
    device.welcome()
    assert device.core.registered


def test_a_second_welcome_changes_nothing() -> None:
    """Register was sent twice, since the first answer was slow: what is announced already keeps its numbers."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    [announce] = device.take_sent(m.Announce)
    delivered = device.delivered
    device.welcome()
    device.delivered = delivered
    device.invoke(PLAN, counter=2)
    device.finish_all()
    assert [message.n for message in device.take_sent(m.Announce)] == [announce.n + 1]


def test_registration_is_repeated_and_a_dead_connection_given_up() -> None:
    """Nobody answers: asked a few times, then the driver is to make a new connection."""
    device = Device()
    device.feed(LinkUp())
    device.wait(60)
    assert 2 <= len(device.take_sent(m.Register)) <= 8
    assert device.take(e.Reconnect)


def test_a_silent_broker_is_given_up() -> None:
    """A half-open link looks alive: after three intervals without a word it is replaced."""
    device = Device()
    device.register()
    device.wait(25)
    assert device.take(e.Reconnect) == []
    device.wait(10)
    assert len(device.take(e.Reconnect)) == 1


def test_heartbeats_name_what_runs() -> None:
    """At the interval that the broker gives, and at another one when it says so."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.invoke(DemoPlan("waiting"), counter=2)
    device.take_sent(m.Heartbeat)
    device.wait(11.1)
    assert device.take_sent(m.Heartbeat) == [m.Heartbeat(running={result_id(1): -1.0})]
    device.receive(m.HeartbeatSeen(heartbeat_ms=1000))
    device.wait(2.5)
    assert len(device.take_sent(m.Heartbeat)) == 2


@pytest.mark.parametrize("code", [m.RefusalCode.VERSION, m.RefusalCode.FENCED, m.RefusalCode.NOT_ALLOWED])
def test_a_refusal_for_good_ends_the_agent(code: m.RefusalCode) -> None:
    """Another version, another incarnation, a policy."""
    device = Device()
    device.feed(LinkUp())
    device.receive(m.Refused(version=(2, 0), code=code, reason="no"))
    assert device.take(e.GiveUp) == [e.GiveUp(code=code, reason="no")]


def test_a_cloned_store_is_quarantined_and_does_not_flap() -> None:
    """It says so once, and asks again after a minute, two, four, up to an hour: also when the link comes and goes."""
    device = Device()
    device.feed(LinkUp())
    refusal = m.Refused(version=(1, 0), code=m.RefusalCode.STALE_TOKEN, reason="a copy")
    waits = []
    for _ in range(9):
        assert len(device.take_sent(m.Register)) == 1
        device.receive(refusal)
        device.feed(LinkDown(), LinkUp())
        assert device.take_sent(m.Register) == []
        since = device.now
        while not any(isinstance(message, m.Register) for message, _ in device.sent):
            device.wait(1)
        waits.append(device.now - since)
    assert device.take(e.GiveUp) == []
    assert device.take(e.Reconnect) == []
    assert device.take(e.Quarantined) == [e.Quarantined(reason="a copy")] * 9
    logged = [log for log in device.logs if log.event == "device_quarantined"]
    assert [(log.level, log.fields["reason"]) for log in logged] == [(40, "a copy")] * 9
    expected = [min(60 * 2**k, 3600) for k in range(9)]
    assert all(0.9 * want <= wait <= 1.1 * want + 1 for want, wait in zip(expected, waits, strict=True))


def test_a_device_that_is_let_out_of_quarantine_works() -> None:
    """The broker's operator has decided: the next time it is taken, without a restart of the agent."""
    device = Device()
    device.feed(LinkUp())
    device.receive(m.Refused(version=(1, 0), code=m.RefusalCode.STALE_TOKEN, reason="a copy"))
    device.wait(70)
    device.welcome()
    assert device.core.registered


def test_two_devices_of_one_id() -> None:
    """The second one gives up; but one that was in before may be held off by its own dead connection, and comes
    again.
    """
    refusal = m.Refused(version=(1, 0), code=m.RefusalCode.DUPLICATE_DEVICE, reason="it is connected")
    second = Device()
    second.feed(LinkUp())
    second.receive(refusal)
    assert len(second.take(e.GiveUp)) == 1
    first = Device()
    first.register()
    first.feed(LinkDown(), LinkUp())
    first.take_sent(m.Register)
    first.receive(refusal)
    assert first.take(e.GiveUp) == []
    first.wait(12)
    assert first.take_sent(m.Register)


def test_the_agent_says_goodbye() -> None:
    """At its end, and ends the worker."""
    device = Device()
    device.ready(PLAN)
    device.feed(e.Stopping())
    assert device.take_sent(m.Goodbye) == [m.Goodbye()]
    assert len(device.take(e.StopWorker)) == 1


def test_the_stream_of_logs_sets_the_level() -> None:
    """Debug events are made only while somebody follows, here or at the broker."""
    device = Device(log_level=30)
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    assert device.logs == []
    device.receive(m.SetLogLevel(level=10))
    assert (device.core.log_level, device.core.stream_level) == (10, 10)
    device.invoke(PLAN, counter=2)
    device.finish_all()
    of_command = [log.event for log in device.logs if log.fields.get("result") == result_id(2).hex()]
    assert of_command == ["invocation_taken", "invocation_started", "invocation_finished", "result_announced"]
    device.receive(m.SetLogLevel(level=0))
    assert (device.core.log_level, device.core.stream_level) == (30, 0)


def test_a_message_that_is_not_for_a_device_is_logged_and_left() -> None:
    """A broker of a newer minor version may say more."""
    device = Device()
    device.register()
    device.receive(m.Seen(n=1))
    assert [log.event for log in device.logs] == ["message_unexpected"]
