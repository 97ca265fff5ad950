"""Every network that plans must carry, by every way there is to run it; and that docs/coverage.md says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.coordinator.coverage import COLUMNS, Coverage, covering
from tests.coordinator.coverage_table import DOCUMENT, read_table
from tests.coordinator.networks import NETWORKS

TABLE = read_table(DOCUMENT.read_text())
LARGEST = 5e-2
"""What is allowed of the coarsest dtype; each cell's own tolerances are checked where it is made."""


@pytest.fixture(scope="module")
def coverage() -> Iterator[Coverage]:
    """A device of each runtime, for all networks."""
    with covering() as made:
        yield made


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", NETWORKS)
def test_a_network_gives_what_eager_torch_gives(coverage: Coverage, row: str, column: str) -> None:
    """At other sizes than the captured one, within its dtypes' tolerances; or it does not run, for the reason that
    the table has.
    """
    assert coverage.cell(row, column).reason == TABLE[row][column].reason


def test_the_table_has_these_rows_and_columns() -> None:
    """In this order, with errors that were allowed."""
    assert list(TABLE) == list(NETWORKS)
    for row in TABLE.values():
        assert list(row) == list(COLUMNS)
        assert all(0 <= cell.error <= LARGEST for cell in row.values())
