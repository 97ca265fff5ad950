"""The thread that commits: in order, all that has gathered at once, again until it can, and to the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from broker.ledger.errors import LedgerUnwritable
from broker.ledger.interface import DropErrand, Snapshot, Write
from broker.ledger.writer import LedgerWriter

WITHIN = 60.0


class SlowLedger:
    """Each commit waits until it is let go, with an error or without."""

    waits = True

    def __init__(self) -> None:
        self.commits: list[list[int]] = []
        self.begun: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.verdicts: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.unwritten: list[int] = []

    def open(self) -> Snapshot:
        """Nothing is kept."""
        return Snapshot(ledger=b"", epoch=1)

    def commit(self, writes: Sequence[Write]) -> None:
        """See the class."""
        self.unwritten += [write.seq for write in writes if isinstance(write, DropErrand)]
        self.begun.put(list(self.unwritten))
        verdict = self.verdicts.get(timeout=WITHIN)
        if verdict is not None:
            raise verdict
        self.commits.append(self.unwritten)
        self.unwritten = []

    def close(self) -> None:
        """Nothing to close."""


class Said:
    """What a writer says, in order."""

    def __init__(self, ledger: SlowLedger) -> None:
        self.heard: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.writer = LedgerWriter(
            ledger,
            committed=self.heard.put,
            unwritable=self.heard.put,
            writable=lambda: self.heard.put("writable"),
            broken=self.heard.put,
            retry=0.001,
        )
        self.writer.start()

    def add(self, *numbers: int) -> None:
        """Hand in one write each."""
        for number in numbers:
            self.writer.add(number, [DropErrand(seq=number)])

    def next(self) -> object:
        """What it says next."""
        return self.heard.get(timeout=WITHIN)


def test_what_gathers_during_a_commit_is_the_next_one() -> None:
    """While the disk syncs, all that comes waits together; each is told once it is durable, in order."""
    ledger = SlowLedger()
    said = Said(ledger)
    said.add(1)
    assert ledger.begun.get(timeout=WITHIN) == [1]
    said.add(2, 3, 4)
    ledger.verdicts.put(None)
    assert said.next() == 1
    ledger.verdicts.put(None)
    assert said.next() == 4
    assert ledger.commits == [[1], [2, 3, 4]]
    assert said.writer.stop(WITHIN)


def test_a_ledger_that_cannot_be_written_is_tried_again() -> None:
    """The reason is told once; what came before and meanwhile is durable, and told, once it can be written again."""
    ledger = SlowLedger()
    said = Said(ledger)
    said.add(1)
    for _ in range(3):
        ledger.begun.get(timeout=WITHIN)
        ledger.verdicts.put(LedgerUnwritable("ledger", "disk full"))
    assert said.next() == "disk full"
    ledger.begun.get(timeout=WITHIN)
    said.add(2)
    ledger.verdicts.put(LedgerUnwritable("ledger", "still full"))
    assert ledger.begun.get(timeout=WITHIN) == [1, 2]
    ledger.verdicts.put(None)
    assert [said.next(), said.next()] == ["writable", 2]
    assert ledger.commits == [[1, 2]]
    assert said.writer.stop(WITHIN)


def test_the_end_comes_after_what_was_handed_in() -> None:
    """Stopped in the middle of a commit, it commits what waits as well."""
    ledger = SlowLedger()
    said = Said(ledger)
    said.add(1)
    ledger.begun.get(timeout=WITHIN)
    said.add(2, 3)
    stopping = threading.Thread(target=said.writer.stop, args=(WITHIN,))
    stopping.start()
    ledger.verdicts.put(None)
    ledger.verdicts.put(None)
    stopping.join(WITHIN)
    assert not stopping.is_alive()
    assert ledger.commits == [[1], [2, 3]]


def test_a_full_disk_does_not_keep_a_broker_from_ending() -> None:
    """Stopped while the ledger can't be written, it tries once more, and gives up."""
    ledger = SlowLedger()
    said = Said(ledger)
    said.add(1)
    ledger.verdicts.put(LedgerUnwritable("ledger", "disk full"))
    assert said.next() == "disk full"
    for _ in range(1000):
        ledger.verdicts.put(LedgerUnwritable("ledger", "disk full"))
    assert said.writer.stop(WITHIN)
    assert ledger.commits == []


def test_any_other_error_is_the_owners() -> None:
    """A ledger that breaks is told as it is, and nothing is committed after it."""
    ledger = SlowLedger()
    said = Said(ledger)
    broken = ValueError("no ledger any more")
    said.add(1)
    ledger.verdicts.put(broken)
    assert said.next() is broken
    assert said.writer.stop(WITHIN)
