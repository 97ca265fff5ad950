"""The stores of blobs: what they keep, what they let go, what a crash leaves behind, what is synced when."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.ledger.blobs import (
    PARTIAL_LIFE_SECONDS,
    BlobAltered,
    BlobMissing,
    BlobStore,
    BlobStoreFull,
    DirectoryBlobs,
    MemoryBlobs,
)


def digest_of(data: bytes) -> bytes:
    """The name of a blob."""
    return hashlib.sha256(data).digest()


Make = Callable[..., BlobStore]


@pytest.fixture(params=["directory", "memory", "memory that spills"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a store of each kind, with the quota given."""
    made: list[BlobStore] = []

    def build(**options: int) -> BlobStore:
        if request.param == "directory":
            made.append(DirectoryBlobs(tmp_path / "blobs", **options))  # type: ignore[arg-type]
        else:
            made.append(MemoryBlobs(spill=1 << 20 if request.param == "memory" else 10, **options))
        return made[-1]

    yield build
    for store in made:
        store.close()


def test_what_was_put_can_be_read(make: Make) -> None:
    """A blob is there under its digest, with its size, in whole and in parts, until it is deleted."""
    store = make()
    data = os.urandom(1000)
    digest = store.put_bytes(data)
    assert digest == digest_of(data)
    assert store.put_bytes(memoryview(data), digest) == digest
    assert (store.has(digest), store.size(digest), store.count, store.used) == (True, 1000, 1, 1000)
    assert store.read(digest) == data
    assert store.read(digest, 10, 20) == data[10:30]
    assert store.lacking([digest, bytes(32), bytes(32)]) == [bytes(32)]
    assert store.delete(digest)
    assert not store.delete(digest)
    assert store.size(digest) is None
    with pytest.raises(BlobMissing, match=digest.hex()):
        store.read(digest)


def test_an_empty_blob_is_a_blob(make: Make) -> None:
    """No bytes have a digest too."""
    store = make()
    digest = store.put_bytes(b"")
    assert store.has(digest)
    assert store.read(digest) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 11), (11, 0), (5, -1)])
def test_a_range_outside_the_blob_is_a_value_error(make: Make, offset: int, length: int) -> None:
    """Reading beyond a blob names its size."""
    store = make()
    digest = store.put_bytes(b"0123456789")
    with pytest.raises(ValueError, match="within the blob's 10 bytes"):
        store.read(digest, offset, length)


def test_bytes_of_another_digest_are_refused(make: Make) -> None:
    """What does not have the digest that names it is not stored, nor is anything beside it."""
    store = make()
    with pytest.raises(BlobAltered) as caught:
        store.put_many([b"right", b"wrong"], [digest_of(b"right"), digest_of(b"another")])
    assert caught.value.got == digest_of(b"wrong")
    assert digest_of(b"wrong").hex() in str(caught.value)
    assert store.count == 0


def test_those_not_read_for_longest_go_first(make: Make) -> None:
    """A full store makes room by dropping the least recently read blobs, and no more than it must."""
    store = make(quota=300)
    first, second, third = (store.put_bytes(bytes([n]) * 100) for n in range(3))
    store.read(first)
    fourth = store.put_bytes(b"4" * 100)
    assert [store.has(each) for each in (first, second, third, fourth)] == [True, False, True, True]
    assert store.used == 300


def test_a_pinned_blob_stays(make: Make) -> None:
    """A pin in any name keeps a blob from eviction, and a store full of pins says that it is full."""
    store = make(quota=300)
    digests = [store.put_bytes(bytes([n]) * 100) for n in range(3)]
    assert store.pin("one", [*digests, bytes(32)]) == [bytes(32)]
    assert store.pin("one", digests[:1]) == []
    store.pin("two", digests[:1])
    assert [store.pins(each) for each in digests] == [2, 1, 1]
    with pytest.raises(BlobStoreFull, match="room for a blob of 1 bytes, got a quota of 300 bytes with 300 bytes"):
        store.put_bytes(b"x")
    store.unpin("one")
    store.unpin("one", digests)
    store.put_bytes(b"x" * 200)
    assert [store.has(each) for each in digests] == [True, False, False]
    store.unpin("two", digests[:1])
    assert store.pins(digests[0]) == 0


def test_a_blob_that_is_kept_for_now_stays_until_it_is_let_go(make: Make) -> None:
    """Whoever decides to pin it finds it still there, whatever else comes in meanwhile."""
    store = make(quota=300)
    first, second = (store.put_bytes(bytes([n]) * 100) for n in range(2))
    assert (store.keep_for_now(first), store.keep_for_now(bytes(32))) == (100, None)
    third = store.put_bytes(b"3" * 200)
    assert [store.has(each) for each in (first, second, third)] == [True, False, True]
    with pytest.raises(BlobStoreFull, match="with 100 bytes pinned or coming in"):
        store.put_bytes(b"x" * 201)
    assert store.pin("one", [first]) == []
    store.let_go()
    store.put_bytes(b"4" * 200)
    assert [store.has(each) for each in (first, third)] == [True, False]
    store.unpin("one")
    store.put_bytes(b"5" * 300)
    assert not store.has(first)


def test_a_blob_that_is_kept_for_now_can_be_dropped(make: Make) -> None:
    """Its bytes were altered, say."""
    store = make(quota=300)
    digest = store.put_bytes(b"x" * 300)
    store.keep_for_now(digest)
    assert store.delete(digest)
    store.put_bytes(b"y" * 300)


def test_a_blob_larger_than_the_quota_evicts_nothing(make: Make) -> None:
    """What can't fit is refused before anything is dropped for it."""
    store = make(quota=300)
    digest = store.put_bytes(b"x" * 100)
    with pytest.raises(BlobStoreFull):
        store.begin(bytes(32), 301)
    assert store.has(digest)


def test_a_blob_that_came_in_pieces_is_a_blob(make: Make) -> None:
    """Written piece by piece and committed, it is there; before that it is not."""
    store = make()
    data = os.urandom(1000)
    partial = store.begin(digest_of(data), 1000)
    partial.write(data[:400])
    assert partial.read(100, 50) == data[100:150]
    assert not store.has(digest_of(data))
    with pytest.raises(ValueError, match="expected 1000 bytes"):
        partial.commit()
    partial.write(memoryview(data)[400:])
    partial.commit()
    assert store.read(digest_of(data)) == data
    assert store.used == 1000


def test_one_writer_at_a_time(make: Make) -> None:
    """A second partial of the same digest is the caller's mistake; the bytes put at once beside it are not."""
    store = make()
    data = b"0123456789abcdef"
    partial = store.begin(digest_of(data), len(data))
    with pytest.raises(ValueError, match="one writer"):
        store.begin(digest_of(data), len(data))
    store.put_bytes(data)
    partial.write(data)
    partial.commit()
    assert store.read(digest_of(data)) == data
    assert (store.count, store.used) == (1, len(data))


def test_what_comes_in_counts_against_the_quota(make: Make) -> None:
    """Room is kept for a blob from its first byte on, and given back when it is abandoned."""
    store = make(quota=300)
    partial = store.begin(bytes(32), 200)
    with pytest.raises(BlobStoreFull):
        store.put_bytes(b"x" * 101)
    partial.abandon()
    store.put_bytes(b"x" * 101)


def test_a_partial_can_begin_again(make: Make) -> None:
    """Truncated, it starts at byte 0; abandoned, nothing of it is left."""
    store = make()
    data = os.urandom(64)
    partial = store.begin(digest_of(data), 64)
    partial.write(b"wrong")
    partial.truncate()
    assert partial.offset == 0
    partial.write(data[:32])
    partial.abandon()
    again = store.begin(digest_of(data), 64)
    assert again.offset == 0
    again.write(data)
    again.commit()
    assert store.read(digest_of(data)) == data


def test_threads_may_share_a_store(make: Make) -> None:
    """Putting, reading, pinning and evicting from four threads at once keeps the accounts right."""
    store = make(quota=4000)
    blobs = [bytes([n]) * 500 for n in range(16)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for k in range(60):
                data = blobs[(k * (seed + 3)) % 16]
                digest = store.put_bytes(data)
                store.pin(f"thread {seed}", [digest])
                with contextlib.suppress(BlobMissing):  # evicted by another thread before it was pinned
                    assert store.read(digest) == data
                store.unpin(f"thread {seed}")
        except BaseException as error:  # noqa: BLE001  (told by the assertion below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert store.used == 500 * store.count <= 4000


# ------------------------------------------------------------------------------------------------ files


def test_blobs_survive_a_restart(tmp_path: Path) -> None:
    """A new store over the same folder has the same blobs, and goes on with what was coming in."""
    data = os.urandom(1000)
    store = DirectoryBlobs(tmp_path)
    small = store.put_bytes(b"small")
    partial = store.begin(digest_of(data), 1000)
    partial.write(data[:600])
    partial.close()
    again = DirectoryBlobs(tmp_path)
    assert again.read(small) == b"small"
    assert not again.has(digest_of(data))
    rest = again.begin(digest_of(data), 1000)
    assert rest.offset == 600
    assert rest.read(0, 600) == data[:600]
    rest.write(data[600:])
    rest.commit()
    assert again.read(digest_of(data)) == data
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([small.hex(), digest_of(data).hex()])


def test_a_start_clears_what_a_crash_left(tmp_path: Path) -> None:
    """Half-written files and parts of long ago are dropped at a start; what isn't ours is left alone."""
    name = bytes(32).hex()
    old = tmp_path / f"{name}.part"
    old.write_bytes(b"old")
    os.utime(old, (time.time() - PARTIAL_LIFE_SECONDS - 60,) * 2)
    (tmp_path / f"{name}.3.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / f"{name[:-1]}").write_bytes(b"not a digest")
    store = DirectoryBlobs(tmp_path)
    assert store.count == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes.txt", name[:-1]])


def test_kept_parts_go_before_blobs(tmp_path: Path) -> None:
    """When room is short, what came of an unfinished blob is dropped before a whole one."""
    store = DirectoryBlobs(tmp_path, quota=300)
    whole = store.put_bytes(b"x" * 100)
    partial = store.begin(bytes(32), 150)
    partial.write(b"y" * 150)
    partial.close()
    store.put_bytes(b"z" * 150)
    assert store.has(whole)
    assert not store.part(bytes(32)).exists()


def test_a_part_longer_than_the_blob_is_not_taken_up(tmp_path: Path) -> None:
    """A part that can't be the blob's beginning is dropped."""
    store = DirectoryBlobs(tmp_path)
    store.part(bytes(32)).write_bytes(b"0123456789")
    partial = store.begin(bytes(32), 5)
    assert partial.offset == 0
    partial.abandon()
    assert not store.part(bytes(32)).exists()


def test_a_blob_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, then name, then folder: a power cut at any point leaves the whole blob or none."""
    store = DirectoryBlobs(tmp_path)
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        steps.append("sync folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "sync file")
        fsync(descriptor)

    def note_name(path: Path, target: Path) -> Path:
        steps.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_name)
    store.put_many([b"one", b"two"])
    assert steps == ["sync file", "sync file", "name", "name", "sync folder"]
    steps.clear()
    partial = store.begin(digest_of(b"three"), 5)
    partial.write(b"three")
    partial.commit()
    assert steps == ["sync file", "name", "sync folder"]


def test_names_that_a_killed_store_gave_are_synced_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there, in the page cache: a commit that names one must not be on the disk before it."""
    DirectoryBlobs(tmp_path / "blobs").put_bytes(b"content")
    synced: list[Path] = []
    monkeypatch.setattr(DirectoryBlobs, "sync_folder", lambda self: synced.append(self.folder))
    DirectoryBlobs(tmp_path / "blobs")
    assert synced == [tmp_path / "blobs"]


def test_a_full_disk_leaves_the_part_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk refuses halfway is undone, so that what came before can be gone on from."""
    store = DirectoryBlobs(tmp_path)
    data = os.urandom(100)
    partial = store.begin(digest_of(data), 100)
    partial.write(data[:40])
    write = os.write

    def half(descriptor: int, view: memoryview) -> int:
        if len(view) > 30:
            return write(descriptor, view[:30])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        partial.write(data[40:])
    with pytest.raises(OSError, match="No space left"):
        store.put_bytes(b"x" * 40)
    monkeypatch.undo()
    assert partial.offset == 40
    partial.write(data[40:])
    partial.commit()
    assert store.read(digest_of(data)) == data
    assert [path.name for path in tmp_path.iterdir()] == [digest_of(data).hex()]


@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_a_file_harmed_behind_our_back_is_missing(tmp_path: Path, harm: str) -> None:
    """A blob whose file is gone or short is no longer here, and can be stored anew."""
    store = DirectoryBlobs(tmp_path)
    digest = store.put_bytes(b"0123456789")
    if harm == "deleted":
        store.path(digest).unlink()
    else:
        os.truncate(store.path(digest), 4)
    with pytest.raises(BlobMissing):
        store.read(digest)
    assert not store.has(digest)
    store.put_bytes(b"0123456789")
    assert store.read(digest) == b"0123456789"


def test_spilled_blobs_leave_with_the_store() -> None:
    """The temporary folder of a memory store goes when it is closed; a part of a large blob is taken up until then."""
    store = MemoryBlobs(spill=10)
    data = os.urandom(100)
    partial = store.begin(digest_of(data), 100)
    partial.write(data[:50])
    partial.close()
    again = store.begin(digest_of(data), 100)
    assert again.offset == 50
    again.write(data[50:])
    again.commit()
    assert store._files is not None
    folder = store._files.folder
    assert [path.name for path in folder.iterdir()] == [digest_of(data).hex()]
    store.close()
    assert not folder.exists()
    assert store.count == 0


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
@pytest.mark.parametrize("length", [None, 3])
def test_altered_bytes_are_never_served(tmp_path: Path, when: str, length: int | None) -> None:
    """A file with a flipped bit is named, and no longer here, whichever part of it is asked for; it can come anew."""
    store = DirectoryBlobs(tmp_path)
    data = os.urandom(3 << 20)
    digest = store.put_bytes(data)
    assert store.read(digest, 0, length) == data[:length]
    altered = bytearray(data)
    altered[-1] ^= 4
    store.path(digest).write_bytes(altered)
    if when == "before the start":
        store = DirectoryBlobs(tmp_path)
    told: list[bytes] = []
    store.on_altered = told.append
    with pytest.raises(BlobMissing):
        store.read(digest, 0, length)
    assert told == [digest]
    assert not store.has(digest)
    assert not store.path(digest).exists()
    store.put_bytes(data)
    assert store.read(digest, 0, length) == data[:length]
