"""What docs/runtimes.md says of int8: its rows, sizes and errors are those that come out here."""

from __future__ import annotations

import pytest

from tests.coordinator.translation.int8_table import DOCUMENT, ROWS, Measured, read_table, size

TABLE = read_table(DOCUMENT.read_text())
LARGEST = 0.03
"""Errors depend a little on the machine: on what adds up the weights that a plan begins with."""


def test_the_table_has_these_rows() -> None:
    """In this order."""
    assert list(TABLE) == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_travels_and_how_near_it_comes(name: str) -> None:
    """A byte an element and a float32 a channel: to the kilobyte; and errors of the size that is written."""
    plain, int8, error, *_ = TABLE[name]
    one = Measured(name)
    assert [size(nbytes) for nbytes in one.nbytes] == [plain, int8]
    assert one.nbytes[1] < 0.3 * one.nbytes[0]
    measured, told = one.error(), float(error.rstrip("%")) / 100
    assert 0 < measured < LARGEST
    assert 0.5 < measured / told < 2
