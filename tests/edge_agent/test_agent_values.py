"""Values between devices: arguments that live elsewhere, and values that the broker fetches."""

from __future__ import annotations

import hashlib

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown
from broker.protocol.framing import encode, size_of
from edge_agent import effects as e
from edge_agent.catalog import Held
from edge_agent.core import AgentConfig
from edge_agent.jobs import File
from edge_agent.tensor_format import header_of
from tests.edge_agent.device import DemoPlan, Device, own_value, result_id, tensor_frame

PLAN = DemoPlan()
ELSEWHERE = result_id(1, b"elsewhre")
FULL = m.Failure(code="StoreFull", message="the disk is full")


def value_in_file(counter: int, path: str) -> Held:
    """A large result."""
    return Held(id=result_id(counter), dtype="float32", shape=(50_000,), nbytes=200_000, source=path)


# ------------------------------------------------------------------------------------------------- arguments


def test_an_argument_that_is_not_here_is_asked_for() -> None:
    """Once for all who wait for it, in one message with the others; again after some seconds, ever more seldom."""
    device = Device(AgentConfig(idle_seconds=1000))
    device.ready(PLAN)
    other = result_id(2, b"elsewhre")
    device.invoke(PLAN, ELSEWHERE, ELSEWHERE, other, counter=1)
    device.invoke(PLAN, ELSEWHERE, counter=2)
    assert device.take_sent(m.NeedValues) == [m.NeedValues(ids=[ELSEWHERE, other])]
    device.receive(m.Supply(outcomes=[m.Outcome(id=other)]), tensor_frame(5))
    device.wait(100)
    asked = device.take_sent(m.NeedValues)
    assert 2 <= len(asked) <= 6
    assert asked[-1] == m.NeedValues(ids=[ELSEWHERE])
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE)]), tensor_frame(6))
    assert [job.args for job in device.jobs()] == [
        [tensor_frame(6), tensor_frame(6), tensor_frame(5)],
        [tensor_frame(6)],
    ]


def test_many_arguments_are_asked_for_in_parts() -> None:
    """No more in one message than the broker looks at: the last would be asked for in vain."""
    device = Device()
    device.ready(PLAN)
    ids = [result_id(k, b"elsewhre") for k in range(1, 10_001)]
    device.invoke(PLAN, *ids, counter=1)
    asked = device.take_sent(m.NeedValues)
    assert [len(message.ids) for message in asked] == [4096, 4096, 1808]
    assert [id for message in asked for id in message.ids] == ids


def test_a_reconnected_device_asks_at_once() -> None:
    """The answer may have been lost with the link."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    device.feed(LinkDown())
    device.take_sent(m.NeedValues)
    device.register(first=3)
    assert device.take_sent(m.NeedValues) == [m.NeedValues(ids=[ELSEWHERE])]


def test_an_argument_that_could_not_be_written_is_had_from_the_broker() -> None:
    """It was here when the command was taken, and rode in its announcement: the full disk has cost it here alone."""
    device = Device()
    device.ready(PLAN)
    argument = device.invoke(PLAN, counter=1, inline=True)
    device.finish_all()
    device.kill_worker()
    device.invoke(PLAN, argument.id, counter=2)
    del device.shelf.values[argument.id], device.shelf.commands[argument.id]
    device.feed(e.KeepFailed(ids=(), failure=FULL))
    device.start_worker()
    device.load()
    assert device.jobs() == []
    assert device.take_sent(m.NeedValues) == [m.NeedValues(ids=[argument.id])]
    device.receive(m.Supply(outcomes=[m.Outcome(id=argument.id)]), tensor_frame(6))
    assert [job.args for job in device.jobs()] == [[tensor_frame(6)]]


def test_an_argument_that_ended_without_a_value_fails_the_command() -> None:
    """With its id and its own failure in the details."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    why = m.Failure(code="ResultLost", message="the device has lost it")
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, failure=why)]))
    failure = device.failure_of(result_id(1))
    assert (failure.code, failure.details["code"], failure.details["argument"]) == (
        "ArgumentFailed",
        "ResultLost",
        ELSEWHERE.hex(),
    )


def test_a_supplied_value_serves_later_commands_too() -> None:
    """Within limits: what was used least recently goes first, and what is in use stays."""
    device = Device(AgentConfig(borrowed_count=2))
    device.ready(PLAN)
    ids = [result_id(k, b"elsewhre") for k in range(1, 4)]
    for counter, argument in enumerate(ids, 1):
        device.invoke(PLAN, argument, counter=counter)
        device.receive(m.Supply(outcomes=[m.Outcome(id=argument)]), tensor_frame(counter))
        device.finish_all()
    device.take_sent(m.NeedValues)
    device.invoke(PLAN, ids[2], counter=4)
    assert device.jobs()[0].args == [tensor_frame(3)]
    device.invoke(PLAN, ids[0], counter=5)
    assert device.take_sent(m.NeedValues) == [m.NeedValues(ids=[ids[0]])]


def test_a_large_argument_comes_as_a_blob() -> None:
    """Fetched, made a tensor file, given to the worker as a file; not asked for again meanwhile."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    device.take_sent(m.NeedValues)
    digest = hashlib.sha256(b"large").digest()
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, blob=digest, size=5)]))
    assert device.take(e.FetchBlob) == [e.FetchBlob(digest=digest, size=5)]
    device.wait(30)
    assert device.take_sent(m.NeedValues) == []
    device.feed(e.BlobArrived(digest=digest, path="incoming/large"))
    assert device.take(e.AdoptTensor) == [e.AdoptTensor(id=ELSEWHERE, source="incoming/large")]
    held = Held(id=ELSEWHERE, dtype="float32", shape=(1,), nbytes=4, source="tensors/large")
    device.feed(e.TensorAdopted(held=held))
    assert device.jobs()[0].args == [File("tensors/large")]


def with_large_argument() -> Device:
    """A device with a command whose argument has just come in as a blob."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    digest = hashlib.sha256(b"large").digest()
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, blob=digest, size=5)]))
    device.feed(e.BlobArrived(digest=digest, path="incoming/large"))
    return device


def test_a_large_argument_that_is_no_tensor_fails_the_command() -> None:
    """What came under its digest is not a tensor file."""
    device = with_large_argument()
    device.feed(e.TensorUnfit(id=ELSEWHERE, failure=m.Failure(code="TensorRefused", message="no header")))
    assert device.failure_of(result_id(1)).details["code"] == "TensorRefused"


def test_a_value_that_nobody_waits_for_any_more_is_left() -> None:
    """The command was cancelled: nothing is asked for, and what still comes changes nothing."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, ELSEWHERE, counter=1)
    device.deliver(m.Cancel(id=command.id))
    device.take_sent(m.NeedValues)
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE)]), tensor_frame(1))
    device.wait(60)
    assert device.take_sent(m.NeedValues) == []
    assert device.jobs() == []


def test_a_supply_without_its_frame_is_left() -> None:
    """Asked for again later, like one that was lost."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE)]))
    device.take_sent(m.NeedValues)
    device.wait(4)
    assert device.take_sent(m.NeedValues) == [m.NeedValues(ids=[ELSEWHERE])]


def test_an_argument_whose_blob_the_broker_has_dropped_is_asked_for_again() -> None:
    """A device that was away for a while finds that it is not there any more, and the value's owner has it still."""
    device = Device(AgentConfig(idle_seconds=1000))
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    digest = hashlib.sha256(b"large").digest()
    for _ in range(4):
        assert m.NeedValues(ids=[ELSEWHERE]) in device.take_sent(m.NeedValues)
        device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, blob=digest, size=5)]))
        assert device.take(e.FetchBlob) == [e.FetchBlob(digest=digest, size=5)]
        device.feed(e.BlobFailed(digest=digest, reason="the broker does not have it"))
        device.wait(4)
        assert device.announced() == []
        assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[digest])]
        device.receive(m.Blobs(none=[digest]))
        device.wait(10)
    assert device.failure_of(result_id(1)).details["code"] == "ResultLost"


def test_an_argument_for_which_the_disk_has_no_room() -> None:
    """It is tried for a while: there may be room again. Then the command fails by what stood in the way."""
    device = Device(AgentConfig(idle_seconds=1000))
    device.ready(PLAN)
    device.invoke(PLAN, ELSEWHERE, counter=1)
    digest = hashlib.sha256(b"large").digest()
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, blob=digest, size=5)]))
    for _ in range(7):
        assert device.take(e.FetchBlob) == [e.FetchBlob(digest=digest, size=5)]
        device.feed(e.BlobFailed(digest=digest, reason="this side could not write: No space left", full=True))
        device.wait(60)
        assert device.announced() == []
        device.receive(m.Blobs(pull={digest: 5}))
    device.feed(e.BlobFailed(digest=digest, reason="this side could not write: No space left", full=True))
    failure = device.failure_of(result_id(1))
    assert (failure.code, failure.details["code"]) == ("ArgumentFailed", "StoreFull")
    assert "No space left" in failure.message


def test_an_argument_that_comes_twice_into_the_same_file_is_kept() -> None:
    """The first command that wanted it was cancelled; another one has it of the first copy when the second comes."""
    device = with_large_argument()
    device.deliver(m.Cancel(id=result_id(1)))
    device.invoke(PLAN, ELSEWHERE, counter=2)
    digest = hashlib.sha256(b"large").digest()
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE, blob=digest, size=5)]))
    device.feed(e.BlobArrived(digest=digest, path="incoming/large.1"))
    assert len(device.take(e.AdoptTensor)) == 2
    device.take(e.DropFiles)
    held = Held(id=ELSEWHERE, dtype="float32", shape=(1,), nbytes=4, source="tensors/large")
    device.feed(e.TensorAdopted(held=held))
    device.feed(e.TensorAdopted(held=held))
    assert device.take(e.DropFiles) == []
    assert device.jobs()[0].args == [File("tensors/large")]


def test_a_blob_that_is_put_becomes_a_tensor_of_the_store() -> None:
    """Its size is asked for, it is fetched, adopted, kept, and only then announced."""
    device = Device()
    device.ready(PLAN)
    digest = hashlib.sha256(b"large").digest()
    device.deliver(m.Put(id=result_id(1), blob=digest, tags=["big"], description="d"))
    device.invoke(PLAN, result_id(1), counter=2)
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[digest])]
    device.receive(m.Blobs(pull={digest: 5}))
    device.feed(e.BlobArrived(digest=digest, path="incoming/large"))
    [adopt] = device.take(e.AdoptTensor)
    assert (adopt.id, adopt.tags, adopt.description, adopt.blob) == (result_id(1), ("big",), "d", digest)
    held = Held(id=result_id(1), dtype="float32", shape=(1,), nbytes=4, source="tensors/1", tags=("big",))
    device.feed(e.TensorAdopted(held=held))
    [event] = device.announced()
    assert isinstance(event, m.ResultReady)
    assert event.infos == [m.ResultInfo(dtype="float32", shape=[1], nbytes=4)]
    assert device.jobs()[0].args == [File("tensors/1")]


def test_a_blob_that_cannot_be_had_fails_the_put() -> None:
    """Nobody has it, or it is no tensor."""
    device = Device()
    device.ready(PLAN)
    digest = hashlib.sha256(b"large").digest()
    device.deliver(m.Put(id=result_id(1), blob=digest))
    device.receive(m.Blobs(none=[digest]))
    assert device.failure_of(result_id(1)).code == "ResultLost"
    device.deliver(m.Put(id=result_id(2), blob=digest))
    device.receive(m.Blobs(pull={digest: 5}))
    device.feed(e.BlobArrived(digest=digest, path="incoming/large"))
    device.feed(e.TensorUnfit(id=result_id(2), failure=m.Failure(code="TensorRefused", message="no header")))
    assert device.failure_of(result_id(2)).code == "TensorRefused"


GONE = m.Failure(code="StoreFull", message="No such file or directory")


def test_a_blob_that_was_dropped_before_it_was_kept_is_fetched_again() -> None:
    """A part of a plan that had to make room, with the content that is put."""
    device = Device()
    device.register()
    digest = hashlib.sha256(b"large").digest()
    device.shelf.keep_blob(digest, "blobs/large", manifest=False)
    device.deliver(m.Put(id=result_id(1), blob=digest))
    assert [adopt.source for adopt in device.take(e.AdoptTensor)] == ["blobs/large"]
    device.feed(e.TensorUnfit(id=result_id(1), failure=GONE, gone=True))
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[digest])]
    device.receive(m.Blobs(pull={digest: 5}))
    device.feed(e.BlobArrived(digest=digest, path="incoming/large"))
    assert [adopt.source for adopt in device.take(e.AdoptTensor)] == ["incoming/large"]
    held = Held(id=result_id(1), dtype="float32", shape=(1,), nbytes=4, source="tensors/1")
    device.feed(e.TensorAdopted(held=held))
    [event] = device.announced()
    assert isinstance(event, m.ResultReady)


def test_an_argument_that_was_dropped_before_it_was_kept_is_asked_for_again() -> None:
    """As if it had not come."""
    device = with_large_argument()
    device.take_sent(m.NeedValues)
    device.feed(e.TensorUnfit(id=ELSEWHERE, failure=GONE, gone=True))
    device.wait(4)
    assert device.take_sent(m.NeedValues)[0] == m.NeedValues(ids=[ELSEWHERE])
    device.receive(m.Supply(outcomes=[m.Outcome(id=ELSEWHERE)]), tensor_frame(1))
    assert device.jobs()[0].args == [tensor_frame(1)]


# ------------------------------------------------------------------------------------------------- fetch


def test_small_values_are_fetched_in_one_message() -> None:
    """In the order asked for, each its own frame; what does not exist is a failure in its place."""
    device = Device()
    device.shelf.keep(None, [own_value(1, source=tensor_frame(1)), own_value(2, source=tensor_frame(2))], durable=True)
    device.register()
    ids = [own_value(2).id, result_id(9), own_value(1).id]
    device.receive(m.Fetch(r=7, ids=ids))
    [(message, frames)] = [one for one in device.sent if isinstance(one[0], m.Values)]
    assert isinstance(message, m.Values)
    assert (message.r, [outcome.id for outcome in message.outcomes]) == (7, ids)
    assert frames == (tensor_frame(2), tensor_frame(1))
    assert message.outcomes[1].failure is not None
    assert message.outcomes[1].failure.code == "UnknownResult"


def test_a_value_that_is_on_its_way_is_waited_for() -> None:
    """Answered when its command has ended, with a value or without."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    device.receive(m.Fetch(r=1, ids=[result_id(1), result_id(2)]))
    device.finish(device.jobs()[0])
    assert device.take_sent(m.Values) == []
    device.fail(device.jobs()[0], m.Failure(code="ExecutionFailed", message="boom"))
    [values] = device.take_sent(m.Values)
    assert [outcome.failure and outcome.failure.code for outcome in values.outcomes] == [None, "ExecutionFailed"]


def test_a_large_value_is_offered_as_a_blob_before_it_is_answered() -> None:
    """Hashed, offered, and named once the broker has it; a second fetch needs no second hash."""
    device = Device()
    device.shelf.keep(None, [value_in_file(1, "tensors/1")], durable=True)
    device.register()
    for r in (1, 2):
        device.receive(m.Fetch(r=r, ids=[result_id(1)]))
        assert device.take(e.HashFile) == ([e.HashFile(id=result_id(1), path="tensors/1")] if r == 1 else [])
        if r == 1:
            device.feed(e.FileHashed(id=result_id(1), digest=b"d" * 32, size=200_064))
        assert device.take(e.OfferBlob) == [e.OfferBlob(digest=b"d" * 32, source="tensors/1")]
        assert device.take_sent(m.Values) == []
        device.feed(e.BlobOffered(digest=b"d" * 32))
        outcome = m.Outcome(id=result_id(1), blob=b"d" * 32, size=200_064)
        assert device.take_sent(m.Values) == [m.Values(r=r, outcomes=[outcome])]


def test_small_values_ride_beside_large_ones() -> None:
    """Whatever the order, and however many they are: only what is large takes a transfer of its own."""
    device = Device()
    large = tensor_frame(*[1.0] * 16_000)
    sizes = {1: (large, 64_000), 2: (large, 64_000)} | {k: (tensor_frame(k), 4) for k in range(3, 20_003)}
    for k, (frame, nbytes) in sizes.items():
        device.shelf.keep(
            None, [Held(id=result_id(k), dtype="float32", shape=(1,), nbytes=nbytes, source=frame)], durable=True
        )
    device.register()
    device.receive(m.Fetch(r=1, ids=[result_id(k) for k in sizes]))
    offers = device.take(e.OfferBlob)
    for digest in {offer.digest for offer in offers}:
        device.feed(e.BlobOffered(digest=digest))
    [answer] = device.take_sent(m.Values)
    blobs = [outcome.id for outcome in answer.outcomes if outcome.blob is not None]
    assert blobs == [result_id(1), result_id(2)]


def test_values_beyond_what_the_broker_takes_are_blobs() -> None:
    """It may take less than the room that values have in a message otherwise, and less than many small ones need."""
    device = Device()
    frame = tensor_frame(*[1.0] * 256)
    ids = [result_id(k) for k in range(1, 101)]
    values = [Held(id=id, dtype="float32", shape=(256,), nbytes=1024, source=frame) for id in ids]
    device.shelf.keep(None, values, durable=True)
    device.register(max_message=65_536)
    device.receive(m.Fetch(r=1, ids=ids))
    for digest in {offer.digest for offer in device.take(e.OfferBlob)}:
        device.feed(e.BlobOffered(digest=digest))
    [(answer, frames)] = [one for one in device.sent if isinstance(one[0], m.Values)]
    assert 50_000 < size_of((encode(answer), *frames)) <= 65_536
    assert isinstance(answer, m.Values)
    assert len(frames) == sum(1 for outcome in answer.outcomes if outcome.blob is None) < len(ids)


def test_waiting_for_many_values_looks_at_each_once() -> None:
    """Ten thousand results that end one by one, all wanted in one message: the work grows with their number, not with
    its square.
    """
    device = Device(AgentConfig(runtimes=("torch",), window=20_000))
    device.ready(PLAN)
    count = 2000
    looked = 0
    find = device.shelf.find

    def counting(id: bytes) -> Held | None:
        nonlocal looked
        looked += 1
        return find(id)

    device.shelf.find = counting  # type: ignore[method-assign]
    for counter in range(1, count + 1):
        device.invoke(PLAN, counter=counter)
    device.receive(m.Fetch(r=1, ids=[result_id(counter) for counter in range(1, count + 1)]))
    looked = 0
    device.finish_all()
    assert len(device.take_sent(m.Values)) == 1
    assert looked < 10 * count


def test_values_beyond_the_room_of_a_message_are_blobs() -> None:
    """Small ones that would make the message too large in all: each becomes a tensor file for the wire."""
    device = Device()
    frame = tensor_frame(*[1.0] * 10_000)
    values = [Held(id=result_id(k), dtype="float32", shape=(10_000,), nbytes=40_000, source=frame) for k in (1, 2)]
    device.shelf.keep(None, values, durable=True)
    device.register()
    device.receive(m.Fetch(r=1, ids=[result_id(1), result_id(2)]))
    [offer] = device.take(e.OfferBlob)
    assert isinstance(offer.source, bytes)
    assert offer.digest == hashlib.sha256(offer.source).digest()
    header = header_of(offer.source, len(offer.source))
    assert (header.dtype, header.shape, len(offer.source) - header.offset) == ("float32", (10_000,), 40_000)
    device.feed(e.BlobOffered(digest=offer.digest))
    [values_message] = device.take_sent(m.Values)
    assert [outcome.blob for outcome in values_message.outcomes] == [None, offer.digest]


def test_an_offer_that_failed_is_made_again_when_the_broker_asks_again() -> None:
    """The fetch is dropped; the broker's own retry starts afresh."""
    device = Device()
    device.shelf.keep(None, [value_in_file(1, "tensors/1")], durable=True)
    device.register()
    for _ in range(2):
        device.receive(m.Fetch(r=1, ids=[result_id(1)]))
        device.feed(e.FileHashed(id=result_id(1), digest=b"d" * 32, size=200_064))
        assert len(device.take(e.OfferBlob)) == 1
        device.feed(e.BlobFailed(digest=b"d" * 32, reason="cut"))
    assert device.take_sent(m.Values) == []


def test_a_file_that_cannot_be_read_is_a_lost_result() -> None:
    """Somebody has removed it from the folder."""
    device = Device()
    device.shelf.keep(None, [value_in_file(1, "tensors/1")], durable=True)
    device.register()
    device.receive(m.Fetch(r=1, ids=[result_id(1)]))
    device.feed(e.FileHashed(id=result_id(1), digest=b"", size=0))
    [values] = device.take_sent(m.Values)
    assert values.outcomes[0].failure is not None
    assert values.outcomes[0].failure.code == "ResultLost"


def test_a_released_value_is_fetched_as_a_failure() -> None:
    """ResultReleased, and not unknown."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    device.deliver(m.Release(ids=[result_id(1)]))
    device.receive(m.Fetch(r=1, ids=[result_id(1)]))
    [values] = device.take_sent(m.Values)
    assert values.outcomes[0].failure is not None
    assert values.outcomes[0].failure.code == "ResultReleased"
