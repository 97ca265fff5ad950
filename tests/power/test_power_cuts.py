"""Power cuts under the real ledger and the real store: what was said to be on the disk is there, whenever they come.

Each test has a twin whose disk only says that it has synced: the check must find that, or it would find nothing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.ledger.errors import LedgerError
from broker.ledger.interface import Snapshot
from broker.ledger.sqlite import SqliteLedger
from broker.protocol import messages as m
from broker.protocol.errors import TensorRefused
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import StoreError
from edge_agent.store_shelf import StoreShelf
from edge_agent.tensor_files import map_tensor, tensor_path
from edge_agent.tensor_format import pack
from tests.broker.ledger.ledger_story import Story, content
from tests.edge_agent.device import result_id, tensor_frame
from tests.power.disk import ForgetfulDisk

CUTS = 60
LARGE = 20_000  # elements


class Broken(Exception):
    """What was promised is not there."""


# ------------------------------------------------------------------------------------------------ the ledger


def ledger_cut(seed: int, folder: Path, *, lies: bool = False) -> None:
    """Commit until the power goes; what is left must be the state after the last commit that returned, or after the one
    that was under way. Raises `Broken`.
    """
    chance = random.Random(seed)
    (folder / "before").mkdir(parents=True)
    disk = ForgetfulDisk(chance, folder / "before", power_left=chance.randint(10, 400))
    story = Story(seed)
    states: list[Snapshot] = [copy.deepcopy(content(story.expected.open()))]
    returned = 0
    ledger = SqliteLedger(folder / "before" / "ledger.sqlite", connect=disk.connect)
    try:
        ledger.open()
        disk.lies = lies
        while not disk.dead:
            writes = story.commit()
            states.append(copy.deepcopy(content(story.expected.open())))
            ledger.commit(writes)
            returned += 1
    except LedgerError:
        if not disk.dead:
            raise
    ledger.close()
    opened = len(states) > 1 or returned
    after = SqliteLedger(disk.power_cut(folder / "after") / "ledger.sqlite")
    try:
        found = content(after.open())
    except LedgerError as error:
        if opened:
            raise Broken(f"seed {seed}: after {returned} commits: {error}") from error
        return
    finally:
        after.close()
    under_way = states[returned : returned + 2]
    if found not in under_way:
        which = [k for k, state in enumerate(states) if state == found]
        raise Broken(f"seed {seed}: expected the state after {returned} commits or one more, got that after {which}")


# ------------------------------------------------------------------------------------------------ the store


def held(counter: int, folder: Path, shelf: StoreShelf) -> Held:
    """A result: small ones in the index, every third as a file."""
    id = result_id(counter)
    if counter % 3:
        frame = tensor_frame(float(counter))
        return Held(id=id, dtype="float32", shape=(1,), nbytes=4, source=frame)
    data = pack("float32", (LARGE,)) + counter.to_bytes(4, "little") * LARGE
    return shelf.adopt(id, data)


def store_cut(seed: int, folder: Path, *, lies: bool = False) -> None:
    """Keep results until the power goes; each that was said to be kept must be there, with its value, or `Broken`."""
    chance = random.Random(seed)
    before = folder / "before"
    StoreShelf(before, direct=True).close()  # made with the real disk: the cut comes later
    disk = ForgetfulDisk(chance, before, power_left=chance.randint(10, 250))
    shelf = StoreShelf(before, disk=disk, direct=True)
    disk.lies = lies
    kept: list[int] = []
    tokens = [shelf.registration()]
    counter = 0
    try:
        while not disk.dead:
            counter += 1
            event = m.ResultReady(id=result_id(counter), digest=b"d" * 16, inline=False)
            ended = Ended(id=result_id(counter), event=event, outputs=1, recorded=False)
            shelf.keep(ended, [held(counter, before, shelf)], durable=True)
            for end in shelf.commit() + shelf.commit():
                if end.failure is None:
                    kept += [int.from_bytes(id[8:], "big") for id in end.batch.durable]
            if counter % 5 == 0:
                token = counter.to_bytes(16, "big")
                tokens.append((token, b"ledger"))
                shelf.save_registration(token, b"ledger")
    except (OSError, StoreError) as error:
        if not disk.dead:
            raise Broken(f"seed {seed}: {error}") from error
    except Exception as error:
        if not disk.dead or "power is gone" not in f"{error} {error.__cause__} {error.__context__}":
            raise
    shelf._lock.close()
    check_store(seed, disk.power_cut(folder / "after"), kept, tokens)


def check_store(seed: int, after: Path, kept: list[int], tokens: list[tuple[bytes, bytes]]) -> None:
    """All that was kept is there."""
    try:
        shelf = StoreShelf(after, direct=True)
    except StoreError as error:
        raise Broken(f"seed {seed}: after {len(kept)} results: {error}") from error
    try:
        if shelf.registration() not in tokens[-2:]:
            raise Broken(f"seed {seed}: the registration is an old one")
        for number in kept:
            found = shelf.find(result_id(number))
            if found is None or shelf.ended(result_id(number)) is None:
                raise Broken(f"seed {seed}: result {number} of {len(kept)} was kept, and is gone")
            if number % 3 == 0:
                try:
                    header = map_tensor(tensor_path(after, result_id(number)))
                except TensorRefused as error:
                    raise Broken(f"seed {seed}: the file of result {number}: {error}") from error
                if bytes(header.data) != number.to_bytes(4, "little") * LARGE:
                    raise Broken(f"seed {seed}: the file of result {number} is not what was kept")
    finally:
        shelf.close()


# ------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("cut", [ledger_cut, store_cut])
def test_what_was_said_to_be_on_the_disk_is_there(cut: Callable[..., None], tmp_path: Path) -> None:
    """Whenever the power goes, and whatever of the rest has reached the disk."""
    for seed in range(CUTS):
        cut(seed, tmp_path / str(seed))


@pytest.mark.parametrize("cut", [ledger_cut, store_cut])
def test_a_disk_that_is_not_synced_is_found_out(cut: Callable[..., None], tmp_path: Path) -> None:
    """The check of the check: without the syncs, few cuts go well."""
    found = 0
    for seed in range(CUTS):
        try:
            cut(seed, tmp_path / str(seed), lies=True)
        except Broken:
            found += 1
    assert found >= CUTS // 4


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cut", [ledger_cut, store_cut])
def test_thousands_of_power_cuts(cut: Callable[..., None], tmp_path: Path) -> None:
    """The same, for long."""
    for seed in range(1000, 4000):
        folder = tmp_path / "one"
        cut(seed, folder)
        for path in sorted(folder.rglob("*"), reverse=True):
            # SQLite removes its files when the connection of a store that is dead is collected: at any time
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        folder.rmdir()
