"""What the broker says while its ledger cannot be written, and of blobs that turn out not to be there."""

from __future__ import annotations

import pytest

from broker.effects import BlobUnavailable, LedgerUnwritable, LedgerWritable
from broker.protocol.messages import Busy, Cancel, Deliver, Invoke, Lacking, Release, StorePlan
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
    bench.restart()
    assert PLAN not in {plan.plan for plan in bench.ledger.open().plans}
