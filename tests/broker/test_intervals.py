"""Intervals of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.intervals import Intervals

pieces = st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(pieces, max_size=20), pieces)
def test_intervals_meet_what_has_a_number_of_theirs(added: list[tuple[int, int]], piece: tuple[int, int]) -> None:
    """However they overlap."""
    first, last = piece
    intervals = Intervals(added)
    assert intervals.meets(first, last) is any(number in intervals for number in range(first, last + 1))


@given(st.lists(pieces, max_size=20))
def test_intervals_are_a_set(added: list[tuple[int, int]]) -> None:
    """They hold what was put in, whatever the order, with as few intervals as there are gaps."""
    intervals = Intervals(added)
    numbers = {number for first, last in added for number in range(first, last + 1)}
    assert {number for number in range(60) if number in intervals} == numbers
    begins = [number for number in sorted(numbers) if number - 1 not in numbers]
    assert [first for first, _ in intervals.pairs()] == begins
    assert len(intervals) == len(begins)
    assert Intervals(intervals.pairs()).pairs() == intervals.pairs()


def test_intervals_are_bounded() -> None:
    """Beyond the limit the smallest numbers are given up."""
    intervals = Intervals(limit=3)
    for number in range(0, 20, 2):
        intervals.add(number, number)
    assert intervals.pairs() == [(14, 14), (16, 16), (18, 18)]
