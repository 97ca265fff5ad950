"""Disks that lose what was not synced.

A program's writes go through three places: its own memory, which a kill empties; the machine's page cache, which a
loss of power empties; and the disk. What is lost is always the end of what was written: a prefix survives. Where
exactly it ends, the seed decides. A device's disk may be full for a while, too: then what was to be written is not.
"""

from __future__ import annotations

import errno
import os
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
from broker.protocol.messages import DEFAULT_DEADLINE_MS, TagEntry
from edge_agent.catalog import Ended, Held, MemoryShelf
from tests.simulation.fakes import LARGE_BYTES
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["Batch", "LedgerDisk", "ShelfDisk", "value_path"]


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


class Batch:
    """Writes of a device that belong together, as `edge_agent.store_writes.Batch`: all of them reach the disk, or none.

    ``durable``: the commands whose ends are announced when it is on the disk; ``ended``: all whose ends are in it.
    ``obsolete``: files that are removed then.
    """

    __slots__ = ("acts", "blobs", "dropped_blobs", "durable", "ended", "obsolete", "tags_changed", "values")

    def __init__(self) -> None:
        self.acts: list[Callable[[MemoryShelf], None]] = []
        self.durable: list[bytes] = []
        self.ended: list[bytes] = []
        self.values: dict[bytes, Held] = {}
        self.obsolete: list[str] = []
        self.blobs: dict[bytes, None] = {}
        self.dropped_blobs: set[bytes] = set()
        self.tags_changed = False


class ShelfDisk(MemoryShelf):
    """The device's store: what the agent reads is at once what it wrote; what survives it is on the disk.

    As `edge_agent.store_shelf.StoreShelf` it gathers what is written, and hands it to a writer, a batch at a time; a
    batch that cannot be written is gone, and so is what was read of it before. Its owner sets ``fails`` (whether a
    write fails just now), ``settled`` (batches are over, though nobody asked for it: ``ends`` has them) and
    ``forgotten`` (the ends of these commands could not be written).
    """

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self._world = world
        self._name = name
        self.id = world.random_bytes(16)
        self._disk = MemoryShelf()
        self.files: dict[str, bytes] = {}
        """Files by their paths. What writes one syncs it."""
        self.fails: Callable[[], bool] = lambda: False
        self.settled: Callable[[], None] = lambda: None
        self.forgotten: Callable[[list[bytes]], None] = lambda _ids: None
        self._gathered = Batch()
        self._writing: Batch | None = None
        self._written: list[list[Callable[[MemoryShelf], None]]] = []
        self.ends: list[tuple[Batch, bool]] = []
        """Batches that are over, and whether they are written; for whoever tells the agent."""
        self.lost: list[bytes] = []
        """The ends that the last crash has taken."""

    def clone(self) -> ShelfDisk:
        """A copy of what is on the disk, as of an image of its card."""
        copy = ShelfDisk(self._world, self._name)
        copy.id = self.id
        copy.registration = self.registration
        copy.files = dict(self.files)
        _take_over(copy._disk, self._disk)
        _take_over(copy, self._disk)
        return copy

    def safe(self, id: bytes) -> bool:
        """Whether how this command ended would survive a loss of power."""
        return self._disk.ended(id) is not None

    # ------------------------------------------------------------------------------------------ what is lost

    def hand_over(self) -> bool:
        """Give the writer what was gathered. False: it is busy."""
        if self._writing is not None:
            return False
        if self._gathered.acts:
            self._writing, self._gathered = self._gathered, Batch()
        return True

    def finish(self) -> None:
        """The writer is done with its batch: it is on the disk, or nowhere."""
        batch, self._writing = self._writing, None
        if batch is None:
            return
        failed = self.fails()
        self.ends.append((batch, not failed))
        if failed:
            self._forget(batch)
            return
        self._written.append(batch.acts)
        if batch.durable:
            self.sync()
        self.remove(batch.obsolete)

    def _forget(self, batch: Batch) -> None:
        """What is there without a batch that could not be written. That workers died is remembered all the same."""
        there, dead = MemoryShelf(), self.dead
        _take_over(there, self._disk)
        for acts in (*self._written, self._gathered.acts):
            for act in acts:
                act(there)
        _take_over(self, there)
        self.dead = dead
        self.remove(held.source for held in batch.values.values() if isinstance(held.source, str))
        self.remove(_part_path(digest) for digest in batch.blobs)
        self.forgotten([id for id in batch.ended if id not in self.commands])

    def _settle(self) -> None:
        """Wait until all that is gathered is written: for a question that only the disk can answer."""
        self.finish()
        self.hand_over()
        self.finish()
        if self.ends:
            self.settled()

    def sync(self) -> None:
        """From here on what was committed is there for good."""
        written, self._written = self._written, []
        for transaction in written:
            for act in transaction:
                act(self._disk)

    def kill(self) -> None:
        """The agent is gone, with what it had gathered; what it was writing may be committed, or not."""
        writing, self._writing = self._writing, None
        if writing is not None and self._world.random.random() < 0.5 and not self.fails():
            self._written.append(writing.acts)
        self._reopen()

    def lose_power(self) -> None:
        """The machine is off."""
        survive = self._world.random.randrange(len(self._written) + 1)
        if self._written or self._writing is not None or self._gathered.acts:
            self._world.tell(self._name, f"   of {len(self._written)} transactions not synced, {survive} survive")
        if survive < len(self._written):
            self._writing = None
        del self._written[survive:]
        self.kill()

    def _reopen(self) -> None:
        """What the next agent finds. It may rely on all that it reads: opening syncs."""
        self._gathered = Batch()
        self.ends.clear()
        self.sync()
        lost = [id for id in self.commands if self._disk.ended(id) is None]
        _take_over(self, self._disk)
        self.lost = lost
        named = {source for source in self.blobs.values() if isinstance(source, str)}
        named |= {held.source for held in self.values.values() if isinstance(held.source, str)}
        self.files = {path: content for path, content in self.files.items() if path in named}

    # ------------------------------------------------------------------------------------------ files

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files."""
        for path in paths:
            self.files.pop(path, None)

    def write_file(self, path: str, content: bytes) -> None:
        """Write a file. Raises OSError."""
        if self.fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.files[path] = content

    def link(self, source: str, target: str) -> None:
        """Give a file a second name. Raises OSError."""
        if source not in self.files:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.write_file(target, self.files[source])

    def adopt(self, id: bytes, source: bytes | str) -> Held:
        """As `edge_agent.store_shelf.StoreShelf.adopt`. Raises OSError."""
        path = value_path(id)
        if isinstance(source, bytes):
            self.write_file(path, source)
        else:
            self.link(source, path)
        return Held(id=id, dtype="int64", shape=(), nbytes=LARGE_BYTES, source=path)

    # ------------------------------------------------------------------------------------------ a Shelf's

    def unrecorded(self) -> list[Ended]:
        """As `Catalog.unrecorded`."""
        self._settle()
        return super().unrecorded()

    def tagged(self) -> list[TagEntry]:
        """As `Catalog.tagged`."""
        if self._gathered.tags_changed or (self._writing is not None and self._writing.tags_changed):
            self._settle()
        return super().tagged()

    def keep(
        self, ended: Ended | None, values: Sequence[Held], *, durable: bool, left: float = DEFAULT_DEADLINE_MS / 1000
    ) -> None:
        """As `Shelf.keep`."""
        super().keep(ended, values, durable=durable, left=left)
        batch = self._gathered
        batch.acts.append(lambda disk: disk.keep(ended, values, durable=durable, left=left))
        if ended is not None:
            batch.ended.append(ended.id)
            if durable:
                batch.durable.append(ended.id)
        for held in values:
            batch.values[held.id] = held
            batch.tags_changed = batch.tags_changed or bool(held.tags)

    def mark_death(self, id: bytes, deaths: int) -> None:
        """As `Shelf.mark_death`: on the disk at once."""
        super().mark_death(id, deaths)
        self._write([lambda disk: disk.mark_death(id, deaths)])

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        ids = list(ids)
        super().mark_recorded(ids)
        self._gathered.acts.append(lambda disk: disk.mark_recorded(ids))

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        ids = list(ids)
        batch = self._gathered
        for held in [self.values[id] for id in ids if id in self.values]:
            batch.tags_changed = batch.tags_changed or bool(held.tags)
            waited = batch.values.pop(held.id, None) is not None
            if isinstance(held.source, str):
                if waited:
                    self.remove([held.source])
                else:
                    batch.obsolete.append(held.source)
        super().drop(ids)
        batch.acts.append(lambda disk: disk.drop(ids))

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """As `Shelf.keep_blob`. Raises OSError."""
        if any(digest in batch.dropped_blobs for batch in (self._gathered, self._writing) if batch is not None):
            self._settle()
        if isinstance(source, str):
            self.link(source, _part_path(digest))
            source = _part_path(digest)
        if digest in self.blobs:
            return
        super().keep_blob(digest, source, manifest=manifest)
        batch = self._gathered
        batch.blobs[digest] = None
        batch.acts.append(lambda disk: disk.keep_blob(digest, source, manifest=manifest))

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """As `Shelf.drop_blobs`."""
        digests = list(digests)
        super().drop_blobs(digests)
        batch = self._gathered
        for digest in digests:
            batch.blobs.pop(digest, None)
            batch.dropped_blobs.add(digest)
            batch.obsolete.append(_part_path(digest))
        batch.acts.append(lambda disk: disk.drop_blobs(digests))

    def save_registration(self, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        """As `Shelf.save_registration`: on the disk at once, and with it all that was committed before."""
        if other:
            self._settle()
        self._write([lambda disk: disk.save_registration(token, ledger, other=other)])
        super().save_registration(token, ledger, other=other)

    def _write(self, transaction: list[Callable[[MemoryShelf], None]]) -> None:
        """Commit and sync a transaction of its own. Raises OSError."""
        if self.fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written.append(transaction)
        self.sync()


def value_path(id: bytes) -> str:
    """Where a device has the file of a large value."""
    return f"tensors/{id.hex()}"


def _part_path(digest: bytes) -> str:
    return f"blobs/{digest.hex()}"


def _take_over(shelf: MemoryShelf, other: MemoryShelf) -> None:
    shelf.values = dict(other.values)
    shelf.commands = dict(other.commands)
    shelf.blobs = dict(other.blobs)
    shelf.manifests = list(other.manifests)
    shelf.leases = dict(other.leases)
    shelf.dead = dict(other.dead)
