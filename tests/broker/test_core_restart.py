"""A broker that starts over the ledger of one that was killed keeps its promises."""

from __future__ import annotations

import pytest

from broker.protocol.messages import (
    Blobs,
    Cancel,
    Fetch,
    Goodbye,
    Invoke,
    NeedBlobs,
    Put,
    Registered,
    Release,
    ResultStatus,
    Search,
    SessionOpened,
    StorePlan,
    Submit,
    TagEntry,
    TagsChanged,
    Values,
)
from broker.protocol.messages import Found as FoundMessage
from broker.protocol.messages import ResultInfo as Info
from tests.broker.bench import VALUE, Bench, DevicePeer, SessionPeer, digest_of


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def kill(bench: Bench, *peers: DevicePeer | SessionPeer) -> None:
    """The broker is killed and another starts; everybody connects anew."""
    bench.restart()
    for peer in peers:
        peer.connect()
        if isinstance(peer, DevicePeer):
            peer.register()
        else:
            peer.open()


def test_accepted_commands_are_delivered(bench: Bench) -> None:
    """What was accepted goes to its device after the restart, in order, with its tensors and what is left of its
    time.
    """
    session, device = bench.session(), bench.device()
    device.tell(Goodbye())
    ids = [session.invoke(k, deadline_ms=100_000) for k in range(3)]
    put = session.id_of()
    session.submit(Put(id=put), b"tensor")
    bench.pass_time(30.0)
    kill(bench, session, device)
    delivered = device.take_all()
    assert [deliver.command.id for deliver in delivered] == [*ids, put]  # type: ignore[union-attr]
    assert isinstance(delivered[0].command, Invoke)
    assert delivered[0].command.deadline_ms == 70_000
    assert device.epoch == 2
    for deliver in delivered:
        device.ready(deliver)
    assert len(session.notified()) == 4


def test_what_was_not_accepted_is_sent_again(bench: Bench) -> None:
    """A command that did not reach the ledger is unknown to the new broker, which takes the session's stream from
    there.
    """
    session, device = bench.session(), bench.device()
    first = session.invoke()
    bench.holding = True
    lost = session.invoke()
    bench.holding = False
    kill(bench, session, device)
    assert session.take(SessionOpened).accepted == session.n - 1
    assert session.status(lost) is ResultStatus.UNKNOWN
    command = Invoke(id=lost, plan=session.plan, args=[])
    session.tell(Submit(n=session.n, devices=["device_1"], command=command))
    assert session.status(lost) is ResultStatus.QUEUED
    assert [deliver.command.id for deliver in device.take_all()] == [first, lost]  # type: ignore[union-attr]


def test_results_and_notifications_survive(bench: Bench) -> None:
    """Recorded results answer, and notifications that were not seen come, each in its order."""
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(3)]
    delivered = device.take_all()
    device.ready(delivered[1])
    session.notified()
    device.ready(delivered[0])
    device.failed(delivered[2])
    kill(bench, session, device)
    assert [notify.event.id for notify in session.notified()] == [ids[0], ids[2]]  # type: ignore[union-attr]
    assert [session.status(each) for each in ids] == [ResultStatus.DONE, ResultStatus.DONE, ResultStatus.FAILED]
    session.tell(Fetch(r=1, ids=[ids[1]]))
    session.take(Values)
    assert session.frames == (VALUE,)


def test_notification_that_was_sent_before_its_commit(bench: Bench) -> None:
    """A notification that a session has seen, and the ledger has not, takes no number from a later one."""
    session, device = bench.session(), bench.device()
    one, two = session.invoke(), session.invoke()
    first, second = device.take_all()
    bench.holding = True
    device.ready(first)
    assert [notify.event.id for notify in session.notified()] == [one]  # type: ignore[union-attr]
    bench.holding = False
    kill(bench, session, device)
    device.take_all()
    device.ready(second)
    device.ready(first)
    assert [notify.event.id for notify in session.notified()] == [two, one]  # type: ignore[union-attr]


def test_same_agent_keeps_its_queue(bench: Bench) -> None:
    """The numbering of deliveries begins anew with the new epoch; the same start of the agent is not counted twice."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    for _ in range(4):
        assert len(device.take_all()) == 1
        kill(bench, session, device)
    assert session.status(result) is ResultStatus.QUEUED
    assert device.take(Registered).first == 1
    assert bench.core.results.by_id[result].deliveries == 1


def test_tokens_survive(bench: Bench) -> None:
    """A device is known by its token after a restart, and a clone is still found out."""
    device = bench.device()
    old = device.token
    device.come_back()
    bench.restart()
    device.connect()
    device.start()
    device.register()
    assert device.all(Registered)
    device.tell(Goodbye())
    bench.restart()
    clone = DevicePeer(bench, "device_1")
    clone.store, clone.token = device.store, old
    clone.register()
    assert clone.all(Registered) == []


def test_tags_and_plans_survive(bench: Bench) -> None:
    """The tag index and the plans are there after a restart, and what plans consist of is pinned again."""
    session, device = bench.session(), bench.device()
    entry = TagEntry(id=b"i" * 16, tags=["x"], description="", info=Info(dtype="int8", shape=[], nbytes=1))
    device.announce(TagsChanged(entries=[entry]))
    kill(bench, session)
    session.tell(Search(r=1, tags=["x"]))
    assert session.take(FoundMessage).entries == {"device_1": [entry]}
    assert bench.pins[session.plan]
    device.come_back(restarted=True)
    session.invoke()
    assert len(device.take_all()) == 1


def test_plan_whose_blob_is_gone(bench: Bench) -> None:
    """A plan whose blobs did not survive is not known any more, so its session sends it again."""
    session = bench.session()
    gone = digest_of(b"gone")
    session.submit(StorePlan(plan=gone, parts=[], attached=[gone]), b"gone", devices=())
    del bench.blobs[gone]
    kill(bench, session)
    assert len(bench.core.plans) == 1


def test_no_blob_is_denied_before_the_grace_is_over(bench: Bench) -> None:
    """A device may run a plan of a command that died with the broker before its commit, and that comes again: it is
    not told that a part does not exist.
    """
    device = bench.device()
    here, gone = digest_of(b"here"), digest_of(b"gone")
    bench.blobs[here] = b"here"
    kill(bench, device)
    device.clear()
    device.tell(NeedBlobs(digests=[gone]))
    assert device.all(Blobs) == []
    device.tell(NeedBlobs(digests=[here, gone]))
    assert device.take(Blobs) == Blobs(attached=[here])
    bench.pass_time(bench.config.restart_grace)
    device.come_back(restarted=False)
    device.tell(NeedBlobs(digests=[gone]))
    assert device.take(Blobs).none == [gone]


def test_releases_survive(bench: Bench) -> None:
    """A release that waits goes on waiting; one that has acted and not reached its device still does; none acts
    twice.
    """
    session, device = bench.session(), bench.device()
    waits, acts, argument = (session.invoke() for _ in range(3))
    one, two, three = device.take_all()
    device.ready(two, inline=False)
    device.ready(three, inline=False)
    device.tell(Goodbye())
    session.submit(Release(ids=[waits]))
    kill(bench, session)
    assert session.status(acts) is ResultStatus.DONE
    device.come_back(restarted=True)
    assert [deliver.command.id for deliver in device.take_all()] == [waits]  # type: ignore[union-attr]
    device.ready(one)
    assert [deliver.command for deliver in device.take_all()] == [Release(ids=[waits])]
    device.tell(Goodbye())
    session.submit(Release(ids=[acts]))
    kill(bench, session, device)
    assert [deliver.command for deliver in device.take_all()] == [Release(ids=[acts])]
    assert session.status(acts) is ResultStatus.RELEASED
    assert session.status(argument) is ResultStatus.DONE
    kill(bench, session, device)
    assert device.take_all() == []


def test_cancel_survives(bench: Bench) -> None:
    """A cancelled command does not come back, and its device is told when it does."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.take_all()
    device.tell(Goodbye())
    session.submit(Cancel(id=result))
    kill(bench, session, device)
    assert [deliver.command for deliver in device.take_all()] == [Cancel(id=result)]
    assert session.status(result) is ResultStatus.CANCELLED


def test_grace_after_a_restart(bench: Bench) -> None:
    """Nothing expires right after a restart: its device may have ended it while there was nobody to tell."""
    session, device = bench.session(), bench.device()
    result = session.invoke(deadline_ms=5000)
    (deliver,) = device.take_all()
    bench.now += 1000.0
    kill(bench, session, device)
    assert session.status(result) is ResultStatus.QUEUED
    device.ready(deliver)
    assert session.status(result) is ResultStatus.DONE
    other = session.invoke(deadline_ms=5000)
    bench.now += 10.0
    kill(bench, session)
    bench.pass_time(70.0)
    session.connect()
    session.open()
    assert session.status(other) is ResultStatus.EXPIRED


def test_dependents_survive(bench: Bench) -> None:
    """Who needs what is known after a restart: arguments that fail still fail what waits for them."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    other.tell(Goodbye())
    argument = session.invoke()
    needs = session.invoke(argument, device="other")
    device.take_all()
    kill(bench, session, device)
    (deliver,) = device.take_all()
    device.failed(deliver)
    assert session.status(needs) is ResultStatus.FAILED


def test_unended_of_unknown_device(bench: Bench) -> None:
    """A command that failed for an unknown device is still failed."""
    session = bench.session()
    result = session.invoke(device="nobody")
    kill(bench, session)
    assert session.status(result) is ResultStatus.FAILED
    assert len(session.notified()) == 1


def test_kept_values_can_be_lost_after_a_restart(bench: Bench) -> None:
    """The broker still knows which values a device keeps, so that a lost store is found out."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one(), inline=False)
    kill(bench, session)
    device.store, device.token = b"a new card......", b""
    device.come_back(restarted=True)
    assert session.status(result) is ResultStatus.LOST
    kill(bench, session)
    assert session.status(result) is ResultStatus.LOST


def test_forgotten_stays_forgotten(bench: Bench) -> None:
    """What was forgotten is told from what never was, also after a restart."""
    from broker.config import BrokerConfig

    bench.config = BrokerConfig(log_level=10, ended_results=1)
    bench.restart()
    session, device = bench.session(), bench.device()
    ids = [session.invoke() for _ in range(3)]
    for deliver in device.take_all():
        device.ready(deliver)
        session.notified()
    session.invoke()
    kill(bench, session)
    assert [session.status(each) for each in ids] == [
        ResultStatus.FORGOTTEN,
        ResultStatus.FORGOTTEN,
        ResultStatus.DONE,
    ]
