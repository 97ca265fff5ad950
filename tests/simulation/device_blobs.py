"""What a simulated device does beside its core: it fetches and offers blobs, and reads, links and removes large files.

As `edge_agent.agent_blobs` and `edge_agent.agent_chores`: each takes a while, chores one after the other, and messages
come in between. What is not done when the agent ends is not done.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from broker.protocol.messages import Failure
from edge_agent import effects as e
from tests.simulation.broker_node import BrokerNode
from tests.simulation.disks import ShelfDisk
from tests.simulation.world import World

__all__ = ["DeviceBlobs"]


class Machine(Protocol):
    """What it needs of the device."""

    world: World
    shelf: ShelfDisk

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen after ``delay`` seconds, unless the program has ended by then."""

    def feed(self, event: object) -> None:
        """Hand an event to the core."""


class DeviceBlobs:
    """Of one life of a device's agent."""

    def __init__(self, machine: Machine, broker: BrokerNode) -> None:
        self._machine = machine
        self._broker = broker
        self._arrivals: Iterator[int] = itertools.count()
        self._todo: deque[Callable[[], None]] = deque()
        self._has_thread = False
        self.instructions: dict[type, Callable[..., None]] = {
            e.FetchBlob: self._fetch,
            e.OfferBlob: self._offer,
            e.AdoptTensor: lambda one: self._later(lambda: self._adopt(one)),
            e.HashFile: lambda one: self._later(lambda: self._hash(one)),
            e.DropFiles: self._drop_files,
        }

    def _seconds(self) -> float:
        """How long something takes: seldom as long as a slow link, or a slow card."""
        random = self._machine.world.random
        return random.choice((0.01, 0.01, 0.1, 0.1, 8.0)) * random.random()

    # ------------------------------------------------------------------------------------------- the blob channel

    def _fetch(self, fetch: e.FetchBlob) -> None:
        self._machine.later(self._seconds(), lambda: self._fetched(fetch))

    def _fetched(self, fetch: e.FetchBlob) -> None:
        machine, digest = self._machine, fetch.digest
        if not self._broker.reachable:
            machine.later(0.5 + self._seconds(), lambda: self._fetched(fetch))
            return
        content = self._broker.disk.blobs.get(digest)
        if content is None:
            machine.feed(e.BlobFailed(digest=digest, reason="the broker does not have it"))
        elif machine.shelf.fails():
            machine.feed(e.BlobFailed(digest=digest, reason="this side could not write: no space left", full=True))
        else:
            path = f"incoming/{digest.hex()}.{next(self._arrivals)}"
            machine.shelf.files[path] = content
            machine.feed(e.BlobArrived(digest=digest, path=path))

    def _offer(self, offer: e.OfferBlob) -> None:
        source = offer.source
        content = source if isinstance(source, bytes) else self._machine.shelf.files.get(source)
        self._machine.later(self._seconds(), lambda: self._offered(offer.digest, content))

    def _offered(self, digest: bytes, content: bytes | None) -> None:
        machine = self._machine
        if content is None:
            machine.feed(e.BlobFailed(digest=digest, reason="this side could not open it: no such file"))
        elif self._broker.keep_blob(digest, content):
            machine.feed(e.BlobOffered(digest=digest))
        else:
            machine.later(0.5 + self._seconds(), lambda: self._offered(digest, content))

    # ------------------------------------------------------------------------------------------- chores

    def _later(self, chore: Callable[[], None]) -> None:
        self._has_thread = True
        self._todo.append(chore)
        if len(self._todo) == 1:
            self._machine.later(self._seconds(), self._do)

    def _do(self) -> None:
        self._todo[0]()
        self._todo.popleft()
        if self._todo:
            self._machine.later(self._seconds(), self._do)

    def _say(self, event: object) -> None:
        """The driver hears of it a moment later."""
        self._machine.later(0.001 * self._machine.world.random.random(), lambda: self._machine.feed(event))

    def _adopt(self, adopt: e.AdoptTensor) -> None:
        try:
            held = self._machine.shelf.adopt(adopt.id, adopt.source)
        except OSError as error:
            gone = isinstance(adopt.source, str) and adopt.source not in self._machine.shelf.files
            why = Failure(code="StoreFull", message=f"the tensor could not be kept: {error.strerror}")
            self._say(e.TensorUnfit(id=adopt.id, failure=why, gone=gone))
        else:
            held = msgspec.structs.replace(held, tags=adopt.tags, description=adopt.description, blob=adopt.blob)
            self._say(e.TensorAdopted(held=held))

    def _hash(self, hash_file: e.HashFile) -> None:
        content = self._machine.shelf.files.get(hash_file.path)
        digest = b"" if content is None else hashlib.sha256(content).digest()
        self._say(e.FileHashed(id=hash_file.id, digest=digest, size=0 if content is None else len(content)))

    def _drop_files(self, drop: e.DropFiles) -> None:
        remove = self._machine.shelf.remove
        if self._has_thread:
            self._later(lambda: remove(drop.paths))
        else:
            remove(drop.paths)
