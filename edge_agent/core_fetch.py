"""Values that the broker fetches from the device: inline while they are small, as blobs otherwise."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from broker.protocol import messages as m
from broker.protocol.errors import TensorRefused
from broker.protocol.framing import MESSAGE_LIMIT
from broker.protocol.tensors import inspect
from edge_agent.catalog import Catalog, Held
from edge_agent.core_commands import Command
from edge_agent.core_desk import WARNING, Desk, failure
from edge_agent.effects import BlobFailed, BlobOffered, FileHashed, HashFile, OfferBlob
from edge_agent.tensor_format import pack

__all__ = ["Fetches"]

_HASHES = 1024
"""How many digests of files are remembered."""

_TINY = 1024
"""Up to how many bytes a value rides in the message, however many there are, if the message takes them."""

_OUTCOME_BYTES = 64
"""What an outcome adds to the message beside the frame, and its failure, at most."""

_encode = msgspec.msgpack.Encoder().encode


class _Request:
    """One `Fetch` that is not answered yet.

    ``found``: what was found for the first of its ids; the next is waited for, and so nothing is looked at twice.
    ``blobs``: the places whose values go as blobs, once all are found, until the broker has them.
    """

    __slots__ = ("blobs", "found", "ids", "offered", "outcomes", "r")

    def __init__(self, message: m.Fetch) -> None:
        self.r = message.r
        self.ids = message.ids
        self.found: list[Held | m.Failure] = []
        self.offered: set[bytes] = set()
        self.blobs: dict[int, Held] | None = None
        self.outcomes: dict[int, m.Outcome] = {}


class Fetches:
    """Answers each `Fetch` once everything for it is together; ids that have not ended are waited for.

    ``producing``: who will make which id on this device.
    """

    def __init__(self, desk: Desk, catalog: Catalog, producing: Mapping[bytes, Command]) -> None:
        self._desk = desk
        self._catalog = catalog
        self._producing = producing
        self._requests: dict[int, _Request] = {}
        self._blobs: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()  # id to digest and size of its file
        self._hashing: set[bytes] = set()
        self._offering: dict[bytes, int] = {}  # digest to the size of what the broker is pulling
        self.max_message = MESSAGE_LIMIT
        """The largest message that the broker takes, all frames; the core sets it."""

    def asked(self, message: m.Fetch) -> None:
        """The broker wants these."""
        if message.r not in self._requests:
            self._requests[message.r] = _Request(message)
            self._answer(self._requests[message.r])

    def ended(self) -> None:
        """Commands of this device may have ended: perhaps one that is waited for."""
        if self._requests:
            for request in list(self._requests.values()):
                if request.blobs is None:
                    self._answer(request)

    def hashed(self, event: FileHashed) -> None:
        """The digest of a file is known."""
        self._hashing.discard(event.id)
        if event.digest:
            self._blobs[event.id] = event.digest, event.size
            if len(self._blobs) > _HASHES:
                self._blobs.popitem(last=False)
        else:
            self._desk.log(WARNING, "tensor_file_lost", result=event.id.hex())
            self._blobs[event.id] = b"", 0
        for request in list(self._requests.values()):
            if request.blobs is not None and any(held.id == event.id for held in request.blobs.values()):
                self._answer(request)

    def offered(self, event: BlobOffered) -> None:
        """The broker has a blob now."""
        self._offering.pop(event.digest, None)
        for request in list(self._requests.values()):
            request.offered.add(event.digest)
            if request.blobs is not None:
                self._answer(request)

    def failed(self, event: BlobFailed) -> None:
        """The broker could not pull a blob: it will fetch again, if it still wants it."""
        if self._offering.pop(event.digest, None) is None:
            return
        self._desk.log(WARNING, "blob_offer_failed", blob=event.digest.hex(), reason=event.reason)
        for request in list(self._requests.values()):
            if any(self._blobs.get(id, (b"", 0))[0] == event.digest for id in request.ids):
                del self._requests[request.r]

    def down(self) -> None:
        """The connection is gone: the broker will ask again."""
        self._requests.clear()
        self._offering.clear()

    def _answer(self, request: _Request) -> None:
        """Go on with a request, as far as it goes now."""
        found, ids = request.found, request.ids
        while len(found) < len(ids):
            one = self._look(ids[len(found)])
            if one is None:
                return
            found.append(one)
        blobs = request.blobs
        if blobs is None:
            blobs = request.blobs = self._too_large(found)
        for place, held in list(blobs.items()):
            outcome = self._as_blob(request, held)
            if outcome is not None:
                request.outcomes[place] = outcome
                del blobs[place]
        if blobs:
            return
        outcomes: list[m.Outcome] = []
        frames: list[m.Frame] = []
        for place, (id, one) in enumerate(zip(ids, found, strict=True)):
            if (outcome := request.outcomes.get(place)) is not None:
                outcomes.append(outcome)
            elif isinstance(one, m.Failure):
                outcomes.append(m.Outcome(id=id, failure=one))
            elif isinstance(one.source, bytes):
                outcomes.append(m.Outcome(id=id))
                frames.append(one.source)
        del self._requests[request.r]
        self._desk.send(m.Values(r=request.r, outcomes=outcomes), tuple(frames))

    def _too_large(self, found: list[Held | m.Failure]) -> dict[int, Held]:
        """The places of the values that do not fit into the message: files, and the largest of the others.

        A blob takes a transfer of its own, so the small values have the room first.
        """
        room = m.INLINE_TENSORS_BYTES
        failures = sum(len(_encode(one)) for one in found if isinstance(one, m.Failure))
        left = self.max_message - failures - _OUTCOME_BYTES * len(found)
        blobs: dict[int, Held] = {}
        small: list[tuple[int, int]] = []
        for place, one in enumerate(found):
            if isinstance(one, Held):
                if isinstance(one.source, bytes):
                    small.append((one.nbytes, place))
                else:
                    blobs[place] = one
        for nbytes, place in sorted(small):
            held = found[place]
            # Those of a few hundred bytes always ride: a transfer would cost more than they do.
            if isinstance(held, Held):
                size = len(held.source)
                if size > left or (nbytes > room and nbytes > _TINY):
                    blobs[place] = held
                else:
                    left -= size
            room -= nbytes
        return blobs

    def _look(self, id: bytes) -> Held | m.Failure | None:
        held = self._catalog.find(id)
        if held is not None:
            return held
        if id in self._producing:
            return None
        ended = self._catalog.ended(id)
        if ended is None:
            return failure("UnknownResult", f"this device knows nothing of {id.hex()}")
        event = ended.event
        if isinstance(event, m.ResultFailed):
            return event.failure
        if isinstance(event, m.Cancelled):
            return failure("InvocationCancelled", f"{id.hex()} was cancelled")
        if isinstance(event, m.Expired):
            return failure("DeadlineExpired", f"{id.hex()} has expired")
        return failure("ResultReleased", f"{id.hex()} was released")

    def _as_blob(self, request: _Request, held: Held) -> m.Outcome | None:
        """The outcome, if the broker has the blob; otherwise what is still to be done for that is under way."""
        known = self._blobs.get(held.id)
        source: bytes | str = held.source
        if isinstance(source, bytes):
            try:
                header = inspect(source)
            except TensorRefused as error:
                return m.Outcome(id=held.id, failure=failure("TensorRefused", str(error)))
            source = pack(header.dtype, header.shape) + header.data
            known = hashlib.sha256(source).digest(), len(source)
        if known is None:
            if held.id not in self._hashing:
                self._hashing.add(held.id)
                self._desk.do(HashFile(id=held.id, path=str(source), check=held.check))
            return None
        digest, size = known
        if not digest:
            del self._blobs[held.id]
            said = f"the file of {held.id.hex()} cannot be read any more, or was altered"
            return m.Outcome(id=held.id, failure=failure("ResultLost", said))
        if digest in request.offered:
            return m.Outcome(id=held.id, blob=digest, size=size)
        if digest not in self._offering:
            self._offering[digest] = size
            self._desk.do(OfferBlob(digest=digest, source=source))
        return None
