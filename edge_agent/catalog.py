"""What the core knows of the device's store: which values it has, which commands have ended, which plans are there.

The core reads through `Catalog` and writes by instructions; `Shelf` is both, the face of a store towards the agent.
`edge_agent.store_shelf.StoreShelf` is the one on disk. `MemoryShelf` keeps all in dicts: for tests and simulations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from broker.protocol.ids import nth
from broker.protocol.messages import DEFAULT_DEADLINE_MS, Event, Frame, ResultInfo, ResultReady, TagEntry

__all__ = ["Catalog", "Ended", "Held", "MemoryShelf", "Shelf", "announcement", "column_tag", "size_of"]


class Held(Struct, frozen=True, kw_only=True, gc=False):
    """A value on the device.

    ``source`` is its tensor frame (bytes) or the path of its tensor file; ``nbytes`` the size of its elements.
    ``own``: it is the device's own, put there by its owner, and nobody else may delete it. ``blob`` is the digest of
    its file, where known, and ``check`` the CRC-32 of it.
    """

    id: bytes
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: bytes | str
    tags: tuple[str, ...] = ()
    description: str = ""
    own: bool = False
    blob: bytes | None = None
    check: int | None = None

    @property
    def info(self) -> ResultInfo:
        """What is told of it without its value."""
        return ResultInfo(dtype=self.dtype, shape=list(self.shape), nbytes=self.nbytes)

    @property
    def entry(self) -> TagEntry:
        """It in the tag index."""
        return TagEntry(id=self.id, tags=list(self.tags), description=self.description, info=self.info)


class Ended(Struct, frozen=True, kw_only=True, gc=False):
    """A command that has ended on this device: what was announced, and whether the broker has it on record.

    The frames of an inline announcement are not in it: they are the values (see `announcement`).
    """

    id: bytes
    event: Event
    outputs: int = 1
    recorded: bool = False


def column_tag(name: str, column: int) -> str:
    """The tag of one column of a data set (see `edge_agent.Store.append`)."""
    return f"{name}#{column}"


_ROW_BYTES = 512


def size_of(nbytes: int, count: int = 1) -> int:
    """What ``count`` values of ``nbytes`` in all count for in the store: their rows too, so that a million numbers are
    not nothing.
    """
    return nbytes + count * _ROW_BYTES


class Catalog(Protocol):
    """What can be asked of a store, without waiting."""

    @property
    def used(self) -> int:
        """How many bytes the values and plans of coordinators have here; the owner's own do not count."""

    def evictable(self, count: int) -> list[tuple[bytes, int]]:
        """Values that may be dropped when room is needed, and what each counts for: those whose lease is over, oldest
        first, at most ``count``. An untagged inline value is the broker's to keep, once that has it on record.
        """

    def deaths(self, id: bytes) -> int:
        """How many workers have died of this command."""

    def folded(self, id: bytes) -> list[bytes] | None:
        """The tensors on which the folding of ``id`` began, by argument (see `edge_agent.jobs.RunJob.names`), if it may
        go on from a checkpoint.
        """

    def find(self, id: bytes) -> Held | None:
        """The value of this id."""

    def ended(self, id: bytes) -> Ended | None:
        """The ended command whose first id this is."""

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """The values that carry all of ``tags``."""

    def tagged(self) -> list[TagEntry]:
        """All values that carry any tag."""

    def unrecorded(self) -> list[Ended]:
        """The ended commands that the broker has not on record yet, in the order in which they ended."""

    def blob(self, digest: bytes) -> bytes | str | None:
        """A part of a plan: its bytes, or the path of the file that holds it."""

    def plans(self) -> list[tuple[bytes, bytes]]:
        """The manifests that are there, by their digests, in the order of their arrival."""

    def parts(self) -> list[bytes]:
        """The digests of all parts of plans but manifests."""

    def blob_size(self, digest: bytes) -> int:
        """The size of a part of a plan, in bytes; 0 if it is not there."""


class Shelf(Catalog, Protocol):
    """A store as the agent uses it. What is written can be read at once; it is on disk when `commit` has returned."""

    def keep(
        self, ended: Ended | None, values: Sequence[Held], *, durable: bool, left: float = DEFAULT_DEADLINE_MS / 1000
    ) -> None:
        """Keep what a command has ended with. With ``durable``, the next `commit` must reach the disk. ``left``: the
        seconds to its deadline; until seven days after that its record is kept, and its values are leased.
        """

    def mark_death(self, id: bytes, deaths: int) -> None:
        """A worker has died of this command, the ``deaths``-th. On the disk when this returns, until it ends."""

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """The broker has these commands on record."""

    def save_registration(self, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        """Keep what the broker gave; with ``other`` it is another ledger now, where nothing is on record. All of it is
        on the disk when this returns, or nothing.
        """

    def drop(self, ids: Iterable[bytes]) -> None:
        """Forget these values, and remove their files. Never the device's own."""

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """Keep a part of a plan: its bytes, or the path of a file, which is moved."""

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """Forget these parts of plans."""


def announcement(catalog: Catalog, ended: Ended) -> tuple[Event, tuple[Frame, ...]]:
    """What was announced for a command, with the frames, to announce it again.

    An inline value that was released meanwhile is not there any more: then it is announced without.
    """
    event = ended.event
    if not isinstance(event, ResultReady) or not event.inline:
        return event, ()
    held = [catalog.find(nth(ended.id, k)) for k in range(ended.outputs)]
    frames = tuple(value.source for value in held if value is not None and isinstance(value.source, bytes))
    if len(frames) == ended.outputs:
        return event, frames
    return ResultReady(id=event.id, digest=event.digest), ()


class MemoryShelf:
    """A `Shelf` of dicts: nothing is written anywhere, so a crash loses nothing of it."""

    def __init__(self) -> None:
        self.values: dict[bytes, Held] = {}
        self.commands: dict[bytes, Ended] = {}
        self.blobs: dict[bytes, bytes | str] = {}
        self.manifests: list[bytes] = []
        self.leases: dict[bytes, float] = {}
        self.dead: dict[bytes, int] = {}
        self.registration = (b"", b"")
        self.foldings: dict[bytes, list[bytes]] = {}
        """On what the foldings with a checkpoint began: workers write these."""
        self.expired: list[bytes] = []
        """Values whose lease a test has ended."""

    @property
    def used(self) -> int:
        """As `Catalog.used`."""
        values = sum(size_of(held.nbytes) for held in self.values.values() if not held.own)
        return values + sum(self.blob_size(digest) for digest in self.blobs)

    def evictable(self, count: int) -> list[tuple[bytes, int]]:
        """As `Catalog.evictable`."""
        here = [id for id in self.expired if id in self.values and not self.values[id].own]
        return [(id, size_of(self.values[id].nbytes)) for id in here[:count]]

    def deaths(self, id: bytes) -> int:
        """As `Catalog.deaths`."""
        return self.dead.get(id, 0)

    def folded(self, id: bytes) -> list[bytes] | None:
        """As `Catalog.folded`."""
        return self.foldings.get(id)

    def mark_death(self, id: bytes, deaths: int) -> None:
        """As `Shelf.mark_death`."""
        self.dead[id] = deaths

    def find(self, id: bytes) -> Held | None:
        """As `Catalog.find`."""
        return self.values.get(id)

    def ended(self, id: bytes) -> Ended | None:
        """As `Catalog.ended`."""
        return self.commands.get(id)

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """As `Catalog.with_tags`."""
        return [held for held in self.values.values() if set(tags) <= set(held.tags)]

    def tagged(self) -> list[TagEntry]:
        """As `Catalog.tagged`."""
        return [held.entry for held in self.values.values() if held.tags]

    def unrecorded(self) -> list[Ended]:
        """As `Catalog.unrecorded`."""
        return [ended for ended in self.commands.values() if not ended.recorded]

    def blob(self, digest: bytes) -> bytes | str | None:
        """As `Catalog.blob`."""
        return self.blobs.get(digest)

    def plans(self) -> list[tuple[bytes, bytes]]:
        """As `Catalog.plans`."""
        found = [(digest, self.blobs.get(digest)) for digest in self.manifests]
        return [(digest, data) for digest, data in found if isinstance(data, bytes)]

    def parts(self) -> list[bytes]:
        """As `Catalog.parts`."""
        return [digest for digest in self.blobs if digest not in self.manifests]

    def blob_size(self, digest: bytes) -> int:
        """As `Catalog.blob_size`. A file counts as 0 bytes: nothing here looks at the disk."""
        source = self.blobs.get(digest)
        return len(source) if isinstance(source, bytes) else 0

    def keep(
        self,
        ended: Ended | None,
        values: Sequence[Held],
        *,
        durable: bool,  # noqa: ARG002 - a Shelf's
        left: float = DEFAULT_DEADLINE_MS / 1000,
    ) -> None:
        """As `Shelf.keep`."""
        if ended is not None:
            self.commands[ended.id] = ended
            self.dead.pop(ended.id, None)
        for held in values:
            self.values[held.id] = held
            self.leases[held.id] = left

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        for id in ids:
            if (ended := self.commands.get(id)) is not None:
                self.commands[id] = Ended(id=id, event=ended.event, outputs=ended.outputs, recorded=True)

    def save_registration(self, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        """As `Shelf.save_registration`."""
        self.registration = token, ledger
        if other:
            for id, ended in self.commands.items():
                self.commands[id] = Ended(id=id, event=ended.event, outputs=ended.outputs)

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        for id in ids:
            held = self.values.get(id)
            if held is not None and not held.own:
                del self.values[id]

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """As `Shelf.keep_blob`."""
        if manifest and digest not in self.blobs:
            self.manifests.append(digest)
        self.blobs[digest] = source

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """As `Shelf.drop_blobs`."""
        for digest in digests:
            self.blobs.pop(digest, None)
            if digest in self.manifests:
                self.manifests.remove(digest)
