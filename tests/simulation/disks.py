"""Disks that lose what was not synced.

A program's writes go through three places: its own memory, which a kill empties; the machine's page cache, which a
loss of power empties; and the disk. What is lost is always the end of what was written: a prefix survives. Where
exactly it ends, the seed decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from broker.ledger.interface import (
    DropResults,
    RecordCommand,
    RecordDevice,
    RecordSession,
    RecordTerminal,
    Snapshot,
    Write,
)
from broker.ledger.memory import MemoryLedger
from broker.protocol.messages import DEFAULT_DEADLINE_MS
from edge_agent.catalog import Ended, Held, MemoryShelf
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["LedgerDisk", "ShelfDisk"]


class LedgerDisk:
    """The broker's disk: its ledger, and the blobs beside it. `open`, `write` and `sync` are what a ledger makes of
    `broker.ledger.interface.Ledger`: each transaction is whole or not there.
    """

    def __init__(self, world: World, promises: Promises) -> None:
        self._world = world
        self._promises = promises
        self._written: list[Sequence[Write]] = []
        self._unsynced_blobs: list[bytes] = []
        self.erase()

    def erase(self) -> None:
        """The disk is replaced by an empty one."""
        self._written.clear()
        self._unsynced_blobs.clear()
        self._durable = MemoryLedger(self._world.random_bytes(16))
        self.blobs: dict[bytes, bytes] = {}
        self.commands: dict[bytes, RecordCommand] = {}
        self.terminals: dict[bytes, RecordTerminal] = {}
        self.devices: set[str] = set()
        self.sessions: set[bytes] = set()

    def open(self) -> Snapshot:
        """What a broker starts from: all that survived."""
        self.sync()
        return self._durable.open()

    def write(self, transaction: Sequence[Write]) -> None:
        """Commit, in the page cache."""
        self._written.append(transaction)

    def write_blob(self, digest: bytes, content: bytes) -> None:
        """Write a file, in the page cache."""
        self.blobs[digest] = content
        self._unsynced_blobs.append(digest)

    def drop_blob(self, digest: bytes) -> None:
        """Remove a file."""
        self.blobs.pop(digest, None)

    def sync_blobs(self) -> None:
        """From here on the blobs that were written are there for good."""
        self._unsynced_blobs.clear()

    def sync(self) -> None:
        """From here on what was committed is there for good."""
        written, self._written = self._written, []
        for transaction in written:
            self._keep(transaction)

    def lose_power(self) -> None:
        """Some of what was not synced is gone."""
        for digest in self._unsynced_blobs:
            if self._world.random.random() < 0.5:
                self.blobs.pop(digest, None)
        self._unsynced_blobs.clear()
        survive = self._world.random.randrange(len(self._written) + 1)
        if self._written:
            self._world.tell("broker", f"   of {len(self._written)} transactions not synced, {survive} survive")
        del self._written[survive:]
        self.sync()

    def _keep(self, transaction: Sequence[Write]) -> None:
        for write in transaction:
            if isinstance(write, RecordTerminal):
                self._promises.recorded(write)
                self.terminals[write.id] = write
            elif isinstance(write, RecordCommand):
                self.commands[write.id] = write
            elif isinstance(write, RecordDevice):
                self.devices.add(write.device)
            elif isinstance(write, RecordSession):
                self.sessions.add(write.incarnation)
            elif isinstance(write, DropResults):
                self._promises.dropped(write.ids)
        self._durable.commit(transaction)


class ShelfDisk(MemoryShelf):
    """The device's store: what the agent reads is at once what it wrote; what survives it is on the disk."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self._world = world
        self._name = name
        self.id = world.random_bytes(16)
        self._disk = MemoryShelf()
        self._gathered: list[Callable[[MemoryShelf], None]] = []
        self._written: list[list[Callable[[MemoryShelf], None]]] = []
        self.lost: list[bytes] = []
        """The ends that the last crash has taken."""

    def clone(self) -> ShelfDisk:
        """A copy of what is on the disk, as of an image of its card."""
        copy = ShelfDisk(self._world, self._name)
        copy.id = self.id
        copy.registration = self.registration
        _take_over(copy._disk, self._disk)
        _take_over(copy, self._disk)
        return copy

    def safe(self, id: bytes) -> bool:
        """Whether how this command ended would survive a loss of power."""
        return self._disk.ended(id) is not None

    # ------------------------------------------------------------------------------------------ what is lost

    @property
    def gathered(self) -> bool:
        """Whether anything waits for `write`."""
        return bool(self._gathered)

    def write(self) -> None:
        """Commit all that was gathered, in one transaction, in the page cache."""
        if self._gathered:
            self._written.append(self._gathered)
            self._gathered = []

    def sync(self) -> None:
        """From here on what was committed is there for good."""
        written, self._written = self._written, []
        for transaction in written:
            for act in transaction:
                act(self._disk)

    def kill(self) -> None:
        """The agent is gone, with what it had gathered."""
        self._gathered.clear()
        self._reopen()

    def lose_power(self) -> None:
        """The machine is off."""
        survive = self._world.random.randrange(len(self._written) + 1)
        if self._written or self._gathered:
            self._world.tell(self._name, f"   of {len(self._written)} transactions not synced, {survive} survive")
        del self._written[survive:]
        self.kill()

    def _reopen(self) -> None:
        """What the next agent finds. It may rely on all that it reads: opening syncs."""
        lost = [id for id in self.commands if self._disk.ended(id) is None]
        self.sync()
        _take_over(self, self._disk)
        self.lost = [id for id in lost if id not in self.commands]

    # ------------------------------------------------------------------------------------------ a Shelf's

    def keep(
        self, ended: Ended | None, values: Sequence[Held], *, durable: bool, left: float = DEFAULT_DEADLINE_MS / 1000
    ) -> None:
        """As `Shelf.keep`."""
        super().keep(ended, values, durable=durable, left=left)
        self._gathered.append(lambda disk: disk.keep(ended, values, durable=durable, left=left))

    def mark_death(self, id: bytes, deaths: int) -> None:
        """As `Shelf.mark_death`: on the disk at once."""
        super().mark_death(id, deaths)
        self._written.append([lambda disk: disk.mark_death(id, deaths)])
        self.sync()

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        ids = list(ids)
        super().mark_recorded(ids)
        self._gathered.append(lambda disk: disk.mark_recorded(ids))

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        ids = list(ids)
        super().drop(ids)
        self._gathered.append(lambda disk: disk.drop(ids))

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """As `Shelf.keep_blob`: a transaction of its own, which goes before what is gathered."""
        super().keep_blob(digest, source, manifest=manifest)
        self._written.append([lambda disk: disk.keep_blob(digest, source, manifest=manifest)])

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """As `Shelf.drop_blobs`."""
        digests = list(digests)
        super().drop_blobs(digests)
        self._written.append([lambda disk: disk.drop_blobs(digests)])

    def save_registration(self, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        """As `Shelf.save_registration`: on the disk at once, and with it all that was committed before."""
        super().save_registration(token, ledger, other=other)
        if other:
            self._gathered.append(lambda disk: disk.save_registration(token, ledger, other=True))
            self.write()
        self.sync()


def _take_over(shelf: MemoryShelf, other: MemoryShelf) -> None:
    shelf.values = dict(other.values)
    shelf.commands = dict(other.commands)
    shelf.blobs = dict(other.blobs)
    shelf.manifests = list(other.manifests)
    shelf.leases = dict(other.leases)
    shelf.dead = dict(other.dead)
