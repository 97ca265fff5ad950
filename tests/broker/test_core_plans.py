"""Plans and blobs at the broker: stored once, pinned while needed, provided to devices, dropped when nobody names
them.
"""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.effects import BlobMoved, BlobStored
from broker.protocol.messages import (
    Accepted,
    Blobs,
    Counters,
    Deliver,
    Goodbye,
    Invoke,
    Lacking,
    NeedBlobs,
    Put,
    Rejected,
    StorePlan,
    Submit,
)
from tests.broker.bench import Bench, digest_of

MANIFEST, GRAPH, WEIGHT, LINES = b"manifest 2", b"graph", b"weight", b"source lines"
PLAN = digest_of(MANIFEST)
PARTS = [digest_of(GRAPH), digest_of(WEIGHT)]


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def upload(bench: Bench, content: bytes) -> bytes:
    """A blob comes by the blob channel."""
    bench.blobs[digest_of(content)] = content
    bench.feed(BlobStored(digest=digest_of(content)))
    return digest_of(content)


def test_plan_with_all_its_parts(bench: Bench) -> None:
    """A plan whose parts ride along is stored, pinned, and can be run at once."""
    session, device = bench.session(), bench.device()
    command = StorePlan(
        plan=PLAN, parts=PARTS, attached=[PLAN, *PARTS, digest_of(LINES)], beside={"source": digest_of(LINES)}
    )
    session.submit(command, MANIFEST, GRAPH, WEIGHT, LINES, devices=())
    assert session.accepted() == session.n
    for content in (MANIFEST, GRAPH, WEIGHT, LINES):
        assert bench.pins[digest_of(content)] == {f"plan:{PLAN.hex()}"}
    session.submit(Invoke(id=session.id_of(), plan=PLAN, args=[]))
    assert device.all(Deliver)


def test_what_another_session_put_beside_a_plan_stays(bench: Bench) -> None:
    """A variant is named by the commands of the session that made it, also when others store the plan without."""
    first, second = bench.session(), bench.session()
    variant = b"a model"
    for session, beside in ((first, {"source": LINES}), (second, {"onnx": variant}), (first, {"source": LINES})):
        names = {name: digest_of(content) for name, content in beside.items()}
        command = StorePlan(plan=PLAN, parts=PARTS, attached=[PLAN, *PARTS, *names.values()], beside=names)
        session.submit(command, MANIFEST, GRAPH, WEIGHT, *beside.values(), devices=())
    for content in (MANIFEST, GRAPH, WEIGHT, LINES, variant):
        assert bench.pins[digest_of(content)] == {f"plan:{PLAN.hex()}"}


def test_parts_that_are_lacking(bench: Bench) -> None:
    """The broker names what it lacks, keeps what came, and takes the plan when the rest has come."""
    session = bench.session()
    session.clear()
    command = StorePlan(plan=PLAN, parts=PARTS, attached=[PARTS[0]])
    number = session.submit(command, GRAPH, devices=())
    lacking = session.take(Lacking)
    assert (lacking.n, lacking.digests) == (number, [PLAN, PARTS[1]])
    upload(bench, MANIFEST)
    upload(bench, WEIGHT)
    session.tell(Submit(n=number, devices=[], command=command), GRAPH)
    assert session.all(Accepted) == [Accepted(n=number)]


def test_nothing_is_uploaded_twice(bench: Bench) -> None:
    """A second plan of the same graph with one new weight moves its manifest and the weight; the counters say so."""
    session = bench.session()
    attached = StorePlan(plan=PLAN, parts=PARTS, attached=[PLAN, *PARTS])
    session.submit(attached, MANIFEST, GRAPH, WEIGHT, devices=())
    before = session.stats().total
    new = [digest_of(b"manifest 3"), digest_of(b"new weight")]
    session.submit(
        StorePlan(plan=new[0], parts=[PARTS[0], new[1]], attached=new), b"manifest 3", b"new weight", devices=()
    )
    session.submit(attached, MANIFEST, GRAPH, WEIGHT, devices=())
    after = session.stats().total
    assert after.blobs_in - before.blobs_in == 2
    assert after.blob_bytes_in - before.blob_bytes_in == len(b"manifest 3new weight")
    assert session.accepted() == session.n


@pytest.mark.parametrize(
    ("attached", "frames", "words"),
    [
        ([PLAN], (), "expected 1 frames for the parts attached, got 0"),
        ([PLAN], (b"altered",), f"expected bytes with the SHA-256 {PLAN.hex()}, got 7 others"),
        ([digest_of(b"x")], (b"x",), "expected parts of the plan, got 2d711642"),
        ([], (MANIFEST, b"x"), "expected parts of the plan, got 2d711642"),
    ],
)
def test_malformed_plans(bench: Bench, attached: list[bytes], frames: tuple[bytes, ...], words: str) -> None:
    """A plan whose parts are not what they are called is rejected, and nothing of it is kept."""
    session = bench.session()
    session.submit(StorePlan(plan=PLAN, parts=PARTS, attached=attached), *frames, devices=())
    failure = session.take(Rejected).failure
    assert failure.code == "PlanMalformed"
    assert words in failure.message
    assert PLAN not in bench.blobs


def test_parts_are_told_by_their_digests(bench: Bench) -> None:
    """A session need not name what it attaches: 34 bytes a part, and the broker hashes them anyway."""
    session = bench.session()
    unnamed = StorePlan(plan=PLAN, parts=PARTS, beside={"source": digest_of(LINES)})
    session.submit(unnamed, WEIGHT, LINES, MANIFEST, GRAPH, devices=())
    assert session.accepted() == session.n
    assert {PLAN, *PARTS, digest_of(LINES)} <= set(bench.blobs)


def test_plan_by_its_blob_alone(bench: Bench) -> None:
    """A ledger that has never seen the plan's `StorePlan` runs it when its manifest has come by the blob channel."""
    session, device = bench.session(), bench.device()
    first = session.id_of()
    command = Invoke(id=first, plan=upload(bench, MANIFEST), args=[])
    session.submit(command)
    assert device.all(Deliver)
    session.submit(StorePlan(plan=PLAN, parts=PARTS, attached=PARTS), GRAPH, WEIGHT, devices=())
    assert bench.pins[PARTS[0]] == bench.pins[PLAN] == {f"plan:{PLAN.hex()}"}


def test_device_pulls_a_plan(bench: Bench) -> None:
    """Small blobs go with the answer, as many as fit into 64 KiB; larger ones are named with their size, others
    as unknown.
    """
    device = bench.device()
    small = [upload(bench, bytes([k]) * 30_000) for k in range(3)]
    large = upload(bench, b"x" * 100_000)
    device.tell(NeedBlobs(digests=[*small, large, b"?" * 32, small[0]]))
    assert device.take(Blobs) == Blobs(attached=small[:2], pull={small[2]: 30_000, large: 100_000}, none=[b"?" * 32])
    assert [len(frame) for frame in device.frames] == [30_000, 30_000]
    tally = bench.session().stats().devices["device_1"]
    assert (tally.blobs_out, tally.blob_bytes_out) == (2, 60_000)


def test_a_manifest_comes_in_the_answer() -> None:
    """Whatever small blobs were asked for before it: a device reads there what else it needs. Up to half a message."""
    bench = Bench(config=BrokerConfig(max_message=400_000))
    session, device = bench.session(), bench.device()
    manifests = [b"m" * 150_000, b"n" * 150_000, b"o" * 1000]
    for one in manifests:
        upload(bench, one)
        session.submit(StorePlan(plan=digest_of(one), parts=[]), devices=())
    small = upload(bench, b"s" * 65_000)
    device.tell(NeedBlobs(digests=[small, *map(digest_of, manifests)]))
    attached = [small, digest_of(manifests[0]), digest_of(manifests[2])]
    assert device.take(Blobs) == Blobs(attached=attached, pull={digest_of(manifests[1]): 150_000})
    assert [len(frame) for frame in device.frames] == [65_000, 150_000, 1000]


def test_blob_channel_is_counted(bench: Bench) -> None:
    """What moves on the blob channel is in the counters, and by device."""
    session = bench.session()
    bench.device()
    before = session.stats().total
    bench.feed(BlobMoved(device="device_1", bytes_out=10, whole_out=1))
    bench.feed(BlobMoved(bytes_in=7, whole_in=2))
    stats = session.stats()
    assert stats.devices["device_1"] == Counters(
        blobs_out=1,
        blob_bytes_out=10,
        bytes_out=stats.devices["device_1"].bytes_out,
        bytes_in=stats.devices["device_1"].bytes_in,
    )
    assert stats.total.blobs_in - before.blobs_in == 2
    assert stats.total.blob_bytes_in - before.blob_bytes_in == 7
    assert stats.total.blob_bytes_out - before.blob_bytes_out == 10


def test_value_as_a_blob(bench: Bench) -> None:
    """A tensor that is a blob is pinned until its command has ended, lingers, and is dropped."""
    session, device = bench.session(), bench.device()
    blob = upload(bench, b"tensor" * 1000)
    session.submit(Put(id=session.id_of(), blob=blob))
    assert len(bench.pins[blob]) == 1
    device.ready(device.take_one(), inline=False)
    assert not bench.pins[blob]
    bench.pass_time(500.0)
    assert blob in bench.blobs
    bench.pass_time(200.0)
    assert blob not in bench.blobs


def test_blob_that_is_used_again_stays(bench: Bench) -> None:
    """A blob whose time is nearly over stays when it is named again."""
    session, device = bench.session(), bench.device()
    blob = upload(bench, b"tensor" * 1000)
    device.tell(Goodbye())
    session.submit(Put(id=session.id_of(), blob=blob))
    bench.pass_time(700.0)
    assert blob in bench.blobs


def test_too_many_plans(bench: Bench) -> None:
    """Beyond the limit the plan that was not used for longest goes, never one that an unended command runs."""
    bench.config = BrokerConfig(log_level=10, plans=2)
    bench.restart()
    session, device = bench.session(), bench.device()
    session.invoke()
    device.take_all()
    for number in range(4):
        manifest = b"manifest %d" % number
        session.submit(
            StorePlan(plan=digest_of(manifest), parts=[], attached=[digest_of(manifest)]), manifest, devices=()
        )
    assert len(bench.core.plans) == 2
    assert bench.pins[session.plan]
    assert not bench.pins[digest_of(b"manifest 0")]
    session.submit(Invoke(id=session.id_of(), plan=digest_of(b"manifest 3"), args=[]))
    assert device.all(Deliver)
