"""What becomes of the core's instructions about blobs, also where the store is not what it was a moment ago."""

from __future__ import annotations

from broker.blob_desk import BlobDesk
from broker.effects import (
    BlobsUnwritable,
    BlobsWritable,
    BlobUnavailable,
    Event,
    PinBlobs,
    SendBlobs,
    StoreAgain,
    StoreBlobs,
    UnpinBlobs,
)
from broker.ledger.blobs import MemoryBlobs
from broker.logs import get_logger
from broker.protocol.messages import Blobs
from tests.broker.bench import digest_of

HERE, OTHER, MORE = b"here", b"other", b"more of it"


class Desk:
    """A desk on a store in memory that has room for ``quota`` bytes; `events` is what it tells the core."""

    def __init__(self, quota: int = 100) -> None:
        self.events: list[Event] = []
        self.store = MemoryBlobs(quota=quota)
        log = get_logger("broker")
        self.desk = BlobDesk(self.store, log, log, follow_up=self.events.append, post=self.events.append)

    def do(self, *instructions: object) -> list[Event]:
        """Carry them out, in order; what the core is told."""
        self.events.clear()
        for instruction in instructions:
            self.desk.instructions[type(instruction)](instruction)
        return self.events[:]

    def keep(self, *contents: bytes) -> list[Event]:
        """Have blobs stored."""
        return self.do(StoreBlobs(digests=[digest_of(each) for each in contents], frames=contents))


def test_a_pinned_blob_is_not_evicted_and_an_unpinned_one_is() -> None:
    """And whoever asks for blobs is told which there are."""
    desk = Desk(quota=len(HERE) + len(OTHER))
    assert desk.keep(HERE, OTHER) == []
    assert desk.do(PinBlobs(name="plan", digests=[digest_of(HERE)])) == []
    assert desk.keep(b"third") == []  # OTHER makes room
    answer, frames = desk.desk.answer(
        SendBlobs(peer=b"peer", attached=[digest_of(HERE), digest_of(OTHER)], pull={digest_of(MORE): 10}, none=[])
    )
    assert answer == Blobs(attached=[digest_of(HERE)], pull={digest_of(MORE): 10}, none=[digest_of(OTHER)])
    assert frames == [HERE]
    desk.do(UnpinBlobs(name="plan", digests=[digest_of(HERE)]))
    assert desk.keep(b"all of it") == []
    assert desk.store.size(digest_of(HERE)) is None


def test_what_the_core_has_found_here_is_here_when_it_is_pinned() -> None:
    """The blob channel has a thread of its own, and makes room whenever something comes."""
    desk = Desk(quota=len(HERE) + len(OTHER))
    desk.keep(HERE, OTHER)
    assert desk.desk.size(digest_of(HERE)) == len(HERE)
    coming = desk.store.begin(digest_of(b"third"), len(b"third"))  # by that thread
    assert desk.do(PinBlobs(name="use", digests=[digest_of(HERE)])) == []
    coming.abandon()
    desk.do(UnpinBlobs(name="use", digests=[digest_of(HERE)]))
    desk.desk.decided()
    assert desk.keep(b"all of it") == []
    assert desk.desk.size(digest_of(HERE)) is None


def test_the_core_hears_of_a_blob_that_was_gone_before_it_was_pinned() -> None:
    """Its file was found altered in between."""
    desk = Desk()
    desk.keep(HERE, OTHER)
    assert desk.desk.size(digest_of(OTHER)) == len(OTHER)
    desk.store.delete(digest_of(OTHER))
    [told] = desk.do(PinBlobs(name="plan", digests=[digest_of(HERE), digest_of(OTHER)]))
    assert isinstance(told, BlobUnavailable)
    assert told.digest == digest_of(OTHER)
    assert desk.store.pins(digest_of(HERE)) == 1


def test_blobs_that_find_no_room_are_tried_again() -> None:
    """The core is told which are not here, and when the store takes some again."""
    desk = Desk(quota=len(MORE))
    desk.keep(HERE)
    desk.do(PinBlobs(name="plan", digests=[digest_of(HERE)]))
    lacking, unwritable = desk.keep(MORE)
    assert isinstance(lacking, BlobUnavailable)
    assert lacking.digest == digest_of(MORE)
    assert isinstance(unwritable, BlobsUnwritable)
    assert desk.do(StoreAgain()) == []  # there is no room yet
    desk.do(UnpinBlobs(name="plan", digests=[digest_of(HERE)]))
    assert desk.do(StoreAgain()) == [BlobsWritable()]
    assert desk.store.read(digest_of(MORE)) == MORE
