"""The generator against its published vectors, and the distributions made of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edge_agent.runtimes.random import draw, philox, seed_of

ONES = 0xFFFFFFFF

UNIFORM = [0.0796012282371521, 0.7656230330467224, 0.42085838317871094]
NORMAL = [0.22048832293112894, -2.2389361565349786, -0.11010547407669652]
PERMUTATION = [0, 1, 5, 3, 2, 4]
SEED = 2952708443464751826


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    """philox4x32-10's lines in kat_vectors of Random123, by the authors of the paper; the same in arrays."""
    assert tuple(int(word) for word in philox(counter, key)) == words
    arrays = philox([np.full(3, word, np.uint64) for word in counter], key)
    assert [list(array) for array in arrays] == [[word] * 3 for word in words]


def test_values_stay_what_they_are() -> None:
    """Plans give the same under a seed in every later version: some values, written down."""
    assert draw("uniform", "float32", (3,), seed=7, number=1, step=2).tolist() == pytest.approx(UNIFORM, abs=0)
    assert draw("normal", "float64", (3,), seed=7, number=1, step=2).tolist() == pytest.approx(NORMAL, rel=1e-14)
    assert draw("permutation", "int64", (6,), seed=7, number=1, step=2).tolist() == PERMUTATION
    assert seed_of(bytes(16)) == SEED


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distributions(dtype: str) -> None:
    """Mean and variance of many numbers are those of the distribution; uniform numbers lie in [0, 1)."""
    uniform = draw("uniform", dtype, (200, 500), seed=1, number=0)
    normal = draw("normal", dtype, (200, 500), seed=1, number=1)
    assert uniform.dtype == normal.dtype == dtype
    assert uniform.shape == (200, 500)
    assert 0 <= uniform.min() <= uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.005)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.002)
    assert normal.mean() == pytest.approx(0, abs=0.015)
    assert normal.var() == pytest.approx(1, abs=0.02)
    assert (normal**3).mean() == pytest.approx(0, abs=0.05)


def test_draws_differ_by_seed_number_and_step() -> None:
    """Each of the three gives other numbers, and the same ones again; 64 bits of the seed count."""
    where = [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [
        draw("uniform", "float64", (4,), seed=seed, number=number, step=step).tolist() for seed, number, step in where
    ]
    assert all(one != other for k, one in enumerate(drawn) for other in drawn[k + 1 :])
    assert drawn[0] == draw("uniform", "float64", (4,), seed=0, number=0).tolist()


def test_a_prefix_is_a_prefix() -> None:
    """A longer draw begins as the shorter one: what a row gets does not hang on the rows after it."""
    draws = [draw("uniform", "float32", (size, 3), seed=3, number=0) for size in (1, 2, 5)]
    assert all(np.array_equal(short, long[: len(short)]) for short, long in pairwise(draws))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    """No dims, and no elements."""
    for distribution in ("uniform", "normal"):
        assert draw(distribution, "float32", shape, seed=0, number=0).shape == shape


def test_permutations() -> None:
    """Every number once, in another order under another seed."""
    orders = [draw("permutation", "int64", (50,), seed=seed, number=0).tolist() for seed in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert draw("permutation", "int64", (0,), seed=0, number=0).tolist() == []
