"""What the broker says while its ledger cannot be written, and of blobs that turn out not to be there."""

from __future__ import annotations

import pytest

from broker.effects import BlobStored, BlobsUnwritable, BlobsWritable, BlobUnavailable, LedgerUnwritable, LedgerWritable
from broker.protocol.messages import Busy, Cancel, Deliver, Invoke, Lacking, Put, Release, StorePlan, Submit
from tests.broker.bench import Bench, digest_of

MANIFEST, GRAPH = b"manifest 3", b"graph"
PLAN = digest_of(MANIFEST)


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def test_new_commands_wait_while_the_ledger_cannot_be_written(bench: Bench) -> None:
    """Commands of every kind are told to come again, and why; then they are taken as if nothing had been."""
    session, device = bench.session(), bench.device()
    session.invoke()
    before = session.n
    assert session.accepted() == before
    device.take_all()
    bench.feed(LedgerUnwritable(reason="disk full"))
    (full,) = bench.events("ledger_full")
    assert (full.level, full.fields) == (40, {"reason": "disk full"})
    for command in (Release(ids=[session.id_of()]), Cancel(id=session.id_of()), StorePlan(plan=PLAN, parts=[])):
        session.submit(command)
        busy = session.take(Busy)
        assert busy.n == session.n == before + 1
        assert busy.reason == "the broker's ledger cannot be written: disk full"
        assert busy.retry_ms
        session.n = before
    session.invoke()
    session.take(Busy)
    assert not device.all(Deliver)
    bench.feed(LedgerWritable())
    assert bench.events("ledger_recovered")
    session.n = before
    session.invoke()
    assert session.accepted() == session.n == before + 1
    assert len(device.take_all()) == 1


def test_a_plan_with_a_part_that_is_gone_comes_again(bench: Bench) -> None:
    """A part that could not be stored, or was altered on the disk: the next command that runs the plan lacks it."""
    session, device = bench.session(), bench.device()
    store = StorePlan(plan=PLAN, parts=[digest_of(GRAPH)], attached=[PLAN, digest_of(GRAPH)])
    session.submit(store, MANIFEST, GRAPH, devices=())
    assert session.accepted() == session.n
    del bench.blobs[digest_of(MANIFEST)]
    bench.feed(BlobUnavailable(digest=PLAN, reason="altered"))
    assert bench.events("plan_broken")[0].fields == {"plan": PLAN.hex(), "blob": PLAN.hex()}
    session.submit(Invoke(id=session.id_of(), plan=PLAN, args=[]))
    lacking = session.take(Lacking)
    assert (lacking.n, lacking.digests) == (session.n, [PLAN])
    assert not device.all(Deliver)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_manifest_alone_is_no_plan(bench: Bench, restarted: bool) -> None:
    """A plan of which another part has gone has to come again, too, however it comes: also after a restart."""
    session, device = bench.session(), bench.device()
    store = StorePlan(plan=PLAN, parts=[digest_of(GRAPH)], attached=[PLAN, digest_of(GRAPH)])
    session.submit(store, MANIFEST, GRAPH, devices=())
    del bench.blobs[digest_of(GRAPH)]
    if restarted:
        bench.restart()
        session.connect()
        session.open()
        device.come_back()
    else:
        bench.feed(BlobUnavailable(digest=digest_of(GRAPH)))
    invoke = Invoke(id=session.id_of(), plan=PLAN, args=[])
    session.submit(invoke)
    assert session.take(Lacking).digests == [PLAN]
    bench.blobs[digest_of(GRAPH)] = GRAPH
    bench.feed(BlobStored(digest=digest_of(GRAPH)))
    session.tell(Submit(n=session.n, devices=["device_1"], command=invoke))
    assert session.accepted() == session.n
    assert len(device.take_all()) == 1
    assert bench.pins[digest_of(GRAPH)]


def test_blobs_that_cannot_be_stored(bench: Bench) -> None:
    """Sessions that would send blobs wait, with the reason, until the disk takes them; others go on."""
    session, device = bench.session(), bench.device()
    store = StorePlan(plan=PLAN, parts=[], attached=[PLAN])
    session.submit(store, MANIFEST, devices=())
    del bench.blobs[PLAN]
    bench.feed(BlobUnavailable(digest=PLAN, reason="disk full"))
    bench.feed(BlobsUnwritable(reason="disk full"))
    assert [log.fields for log in bench.events("blobs_full")] == [{"reason": "disk full"}]
    other = bench.session()
    for peer, command, frames in (
        (session, Invoke(id=session.id_of(), plan=PLAN, args=[]), ()),
        (session, Put(id=session.id_of(), blob=digest_of(b"large")), ()),
        (session, StorePlan(plan=PLAN, parts=[]), ()),
        (other, store, (MANIFEST,)),
    ):
        peer.submit(command, *frames)
        assert peer.take(Busy).reason == "the broker cannot store blobs: disk full"
        peer.n -= 1
    assert not session.all(Lacking)
    assert PLAN not in bench.blobs
    session.invoke()
    assert len(device.take_all()) == 1
    bench.pass_time(2.0)
    assert bench.tries == 4
    bench.blobs[PLAN] = MANIFEST
    bench.feed(BlobsWritable())
    assert bench.events("blobs_recovered")
    session.submit(Invoke(id=session.id_of(), plan=PLAN, args=[]))
    assert len(device.take_all()) == 1
    bench.pass_time(2.0)
    assert bench.tries == 4
