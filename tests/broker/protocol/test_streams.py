"""Numbered streams: every item once and in order, over a network that loses, repeats and reorders."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol.streams import Inbox, Outbox, Verdict

# ------------------------------------------------------------------------------------------------- the receiver


@pytest.mark.parametrize(
    ("taken", "n", "verdict", "after"),
    [
        (0, 1, Verdict.NEXT, 1),
        (0, 2, Verdict.GAP, 0),
        (0, 0, Verdict.DUPLICATE, 0),
        (5, 6, Verdict.NEXT, 6),
        (5, 5, Verdict.DUPLICATE, 5),
        (5, 1, Verdict.DUPLICATE, 5),
        (5, 7, Verdict.GAP, 5),
        (5, 1 << 63, Verdict.GAP, 5),
    ],
)
def test_an_inbox_takes_only_the_next_number(taken: int, n: int, verdict: Verdict, after: int) -> None:
    """Every verdict, and that only the next number counts as taken."""
    inbox = Inbox(taken)
    assert inbox.offer(n) is verdict
    assert inbox.taken == after


# ------------------------------------------------------------------------------------------------- the sender


def filled(count: int, *, window: int = 1024, first: int = 1) -> Outbox[str]:
    """An outbox with ``count`` items, none of them sent."""
    outbox: Outbox[str] = Outbox(window=window, patience=5.0, first=first)
    for k in range(count):
        outbox.push(f"item {first + k}")
    return outbox


def numbers(due: list[tuple[int, str]]) -> list[int]:
    """The numbers of what is due, each with the item that belongs to it."""
    assert all(item == f"item {n}" for n, item in due)
    return [n for n, _ in due]


def test_items_are_numbered_from_one_and_due_once() -> None:
    """What is under way is not due again while the sender is patient."""
    outbox = filled(3)
    assert numbers(outbox.due(0.0)) == [1, 2, 3]
    assert outbox.due(4.9) == []
    assert (len(outbox), outbox.acknowledged, outbox.last) == (3, 0, 3)


def test_numbering_may_start_elsewhere() -> None:
    """A session that takes up an older stream goes on with its numbers."""
    outbox = filled(2, first=41)
    assert numbers(outbox.due(0.0)) == [41, 42]
    assert outbox.acknowledge(41, 0.0) == ["item 41"]
    assert outbox.acknowledged == 41


def test_the_window_limits_what_is_under_way() -> None:
    """The rest becomes due as the window moves on."""
    outbox = filled(5, window=2)
    assert numbers(outbox.due(0.0)) == [1, 2]
    assert outbox.due(0.0) == []
    outbox.acknowledge(1, 0.0)
    assert numbers(outbox.due(0.0)) == [3]
    outbox.acknowledge(3, 0.0)
    assert numbers(outbox.due(0.0)) == [4, 5]


def test_an_acknowledgement_is_cumulative() -> None:
    """One number frees all items up to it."""
    outbox = filled(4)
    outbox.due(0.0)
    assert outbox.acknowledge(3, 0.0) == ["item 1", "item 2", "item 3"]
    assert outbox.unacknowledged() == [(4, "item 4")]


@pytest.mark.parametrize("n", [0, 4, -1, 1 << 62])
def test_an_acknowledgement_of_what_was_never_given_out_is_ignored(n: int) -> None:
    """A peer cannot make the sender drop what it has not taken."""
    outbox = filled(3)
    outbox.due(0.0)
    assert outbox.acknowledge(n, 0.0) == []
    assert len(outbox) == 3


def test_an_acknowledgement_seen_before_is_ignored() -> None:
    """Acknowledgements may be repeated, too."""
    outbox = filled(3)
    outbox.due(0.0)
    outbox.acknowledge(2, 0.0)
    assert outbox.acknowledge(1, 0.0) == []
    assert len(outbox) == 1


def test_without_an_acknowledgement_the_sender_goes_back_and_waits_longer_each_time() -> None:
    """Patience doubles up to 32 times, and an acknowledgement restores it."""
    outbox = filled(2)
    outbox.due(0.0)
    now, waits = 0.0, []
    for _ in range(7):
        due = outbox.next_due()
        assert due is not None
        waits.append(due - now)
        now = due
        assert numbers(outbox.due(now)) == [1, 2]
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 160.0]
    outbox.acknowledge(1, now)
    assert outbox.next_due() == now + 5.0
    assert numbers(outbox.due(now + 5.0)) == [2]


def test_a_new_connection_makes_everything_due_again() -> None:
    """What was under way may have been lost with the old connection."""
    outbox = filled(3)
    outbox.due(0.0)
    outbox.acknowledge(1, 0.0)
    outbox.rewind()
    assert numbers(outbox.due(0.0)) == [2, 3]


def test_a_busy_receiver_is_left_alone_for_a_while_and_then_gets_everything() -> None:
    """`hold` stops the stream rather than tear a hole into it."""
    outbox = filled(2)
    outbox.due(0.0)
    outbox.hold(3.0)
    outbox.push("item 3")
    assert outbox.due(2.9) == []
    assert outbox.next_due() == 3.0
    assert numbers(outbox.due(3.0)) == [1, 2, 3]


def test_a_new_connection_ends_a_hold() -> None:
    """The receiver behind it may not be busy."""
    outbox = filled(1)
    outbox.hold(100.0)
    outbox.rewind()
    assert numbers(outbox.due(0.0)) == [1]


def test_nothing_is_due_from_an_empty_outbox() -> None:
    """No timer runs when there is nothing to send or nothing under way."""
    outbox = filled(1)
    assert outbox.next_due() is None
    outbox.due(0.0)
    outbox.acknowledge(1, 0.0)
    assert outbox.next_due() is None
    assert outbox.due(1e9) == []


def test_an_item_can_be_asked_for_while_it_is_kept() -> None:
    """By its number; acknowledged ones and ones never given out are not there."""
    outbox = filled(3)
    outbox.acknowledge(1, 0.0)
    assert [outbox.item(n) for n in (0, 1, 2, 3, 4)] == [None, None, "item 2", "item 3", None]


# ------------------------------------------------------------------------------------------------- both, over a network


class LossyNetwork(RuleBasedStateMachine):
    """A sender and a receiver, and between them a network that does what it wants.

    Whatever it does, the receiver has a beginning of what was pushed, in order and without repeats; and once the
    network is kind, it gets all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pushed = 0
        self.received: list[int] = []
        self.forward: list[tuple[int, int]] = []
        self.backward: list[int] = []

    @initialize(window=st.integers(1, 6))
    def connect(self, window: int) -> None:
        self.outbox: Outbox[int] = Outbox(window=window, patience=1.0)
        self.inbox = Inbox()

    @rule(count=st.integers(1, 4))
    def push(self, count: int) -> None:
        for _ in range(count):
            self.pushed += 1
            assert self.outbox.push(self.pushed) == self.pushed

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 40.0]))
    def send(self, seconds: float) -> None:
        self.now += seconds
        self.forward += self.outbox.due(self.now)

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def hold(self, seconds: float) -> None:
        self.outbox.hold(self.now + seconds)

    @precondition(lambda self: self.forward)
    @rule(data=st.data(), fate=st.sampled_from(["arrives", "arrives", "arrives", "is lost", "arrives twice"]))
    def carry(self, data: st.DataObject, fate: str) -> None:
        n, item = self.forward.pop(data.draw(st.integers(0, len(self.forward) - 1)))
        for _ in range({"is lost": 0, "arrives": 1, "arrives twice": 2}[fate]):
            self.arrive(n, item)

    def arrive(self, n: int, item: int) -> None:
        verdict = self.inbox.offer(n)
        if verdict is Verdict.NEXT:
            self.received.append(item)
        if verdict is not Verdict.GAP:
            self.backward.append(self.inbox.taken)

    @precondition(lambda self: self.backward)
    @rule(data=st.data(), fate=st.sampled_from(["arrives", "is lost", "arrives later, too"]))
    def answer(self, data: st.DataObject, fate: str) -> None:
        n = self.backward.pop(data.draw(st.integers(0, len(self.backward) - 1)))
        if fate != "is lost":
            self.outbox.acknowledge(n, self.now)
        if fate == "arrives later, too":
            self.backward.append(n)

    @rule(lost=st.booleans())
    def reconnect(self, lost: bool) -> None:
        """Messages of the old connection may still be about."""
        if lost:
            self.forward.clear()
            self.backward.clear()
        self.outbox.rewind()

    @invariant()
    def the_receiver_has_a_beginning_of_what_was_pushed(self) -> None:
        assert self.received == list(range(1, len(self.received) + 1))
        assert len(self.received) <= self.pushed

    @invariant()
    def nothing_is_forgotten_before_it_has_arrived(self) -> None:
        assert self.outbox.acknowledged <= len(self.received)
        assert self.outbox.acknowledged + len(self.outbox) == self.pushed

    @invariant()
    def no_timer_is_missing(self) -> None:
        """Whenever something is kept and nothing can be sent now, time alone brings the next attempt."""
        if len(self.outbox) and self.outbox.next_due() is None:
            assert self.outbox.due(self.now), "items are kept, none is due, and no timer runs"
            self.outbox.rewind()  # due() has counted them as sent

    def teardown(self) -> None:
        """A network that loses nothing any more delivers all, within as many rounds as there are windows to send."""
        for _ in range(2 * self.pushed + 2):
            self.now = max(self.now, self.outbox.next_due() or self.now)
            for n, item in self.outbox.due(self.now):
                self.arrive(n, item)
            self.outbox.acknowledge(self.inbox.taken, self.now)
        assert self.received == list(range(1, self.pushed + 1))
        assert len(self.outbox) == 0


TestLossyNetwork = LossyNetwork.TestCase
