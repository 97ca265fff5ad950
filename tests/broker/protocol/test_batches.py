"""Many ids in several messages."""

from __future__ import annotations

import pytest

from broker.protocol.batches import IDS_A_MESSAGE, batches


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_all_items_come_once_and_in_order(count: int, sizes: list[int]) -> None:
    """As many at a time as were asked for, the last perhaps fewer; nothing comes of nothing."""
    found = list(batches(list(range(count)), 3))
    assert [len(some) for some in found] == sizes
    assert [item for some in found for item in some] == list(range(count))


def test_a_messages_worth_is_the_default() -> None:
    """That is what a broker looks at."""
    assert [len(some) for some in batches([bytes(16)] * (IDS_A_MESSAGE + 1))] == [IDS_A_MESSAGE, 1]
