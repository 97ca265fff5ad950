"""Random numbers that are the same on every runtime and machine: a counter-based generator.

The generator is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC
2011): a function of a key and a counter, without a state. The key is the seed of an invocation. The counter is the
number of the block of four words (two words), the number of the draw in its plan, and the step: so no two draws share
numbers, and each can be made alone. numpy is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from edge_agent.plan.errors import ConditionFailed
from edge_agent.plan.expressions import evaluate

if TYPE_CHECKING:
    import numpy as np

    from edge_agent.plan.format import Input

__all__ = ["draw", "drawn", "philox", "seed_of"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counter: Sequence[Any], key: Sequence[int]) -> list[Any]:
    """Four words of 32 bits for each counter: ``counter`` has four uint64 arrays (or numbers) of words, ``key`` two
    words.
    """
    import numpy as np

    words = [np.asarray(word, dtype=np.uint64) for word in counter]
    shift, mask = np.uint64(32), np.uint64(_WORD)
    first, second = (np.uint64(multiplier) for multiplier in _MULTIPLIERS)
    for number in range(_ROUNDS):
        keys = [np.uint64((key[place] + number * _WEYL[place]) & _WORD) for place in (0, 1)]
        a, b = words[0] * first, words[2] * second
        words = [
            (b >> shift) ^ words[1] ^ keys[0],
            b & mask,
            (a >> shift) ^ words[3] ^ keys[1],
            a & mask,
        ]
    return words


def _words(count: int, seed: int, number: int, step: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    import numpy as np

    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    low, high = blocks & np.uint64(_WORD), blocks >> np.uint64(32)
    made = philox((low, high, number & _WORD, step & _WORD), (seed & _WORD, (seed >> 32) & _WORD))
    found: np.ndarray[Any, np.dtype[np.uint64]] = np.stack(np.broadcast_arrays(*made), axis=-1).reshape(-1)[:count]
    return found


def _uniform(count: int, dtype: str, *where: int) -> Any:
    """In [0, 1): as many bits as the dtype has between 1/2 and 1."""
    import numpy as np

    if dtype == "float32":
        return ((_words(count, *where) >> np.uint64(8)).astype(np.float64) * 2.0**-24).astype(np.float32)
    pairs = _words(2 * count, *where).reshape(-1, 2)
    high, low = pairs[:, 0] >> np.uint64(5), pairs[:, 1] >> np.uint64(6)
    return (high.astype(np.float64) * 2.0**26 + low.astype(np.float64)) * 2.0**-53


def _normal(count: int, dtype: str, *where: int) -> Any:
    """Of mean 0 and variance 1, after Box and Muller, in double precision whatever the dtype."""
    import numpy as np

    pairs = (count + 1) // 2
    words = _words(2 * pairs, *where).reshape(-1, 2).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 1.0) * 2.0**-32))
    angle = words[:, 1] * (2.0**-32 * 2.0 * np.pi)
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:count]
    return values.astype(dtype)


def _permutation(count: int, dtype: str, *where: int) -> Any:
    """The numbers from 0 on in the order of 64 random bits each."""
    import numpy as np

    pairs = _words(2 * count, *where).reshape(-1, 2)
    return np.argsort((pairs[:, 0] << np.uint64(32)) | pairs[:, 1], kind="stable").astype(dtype)


_DISTRIBUTIONS: dict[str, Callable[..., Any]] = {"uniform": _uniform, "normal": _normal, "permutation": _permutation}


def draw(
    distribution: str, dtype: str, shape: Sequence[int], *, seed: int, number: int, step: int = 0
) -> np.ndarray[Any, Any]:
    """What an input of kind ``random`` is filled with: see `edge_agent.plan.format.Draw`. ``seed`` has 64 bits."""
    count = 1
    for size in shape:
        count *= size
    found: np.ndarray[Any, Any] = _DISTRIBUTIONS[distribution](count, dtype, seed, number, step).reshape(shape)
    return found


def drawn(one: Input, sizes: Mapping[str, int], seed: int, step: int = 0) -> np.ndarray[Any, Any]:
    """What an input of kind ``random`` is filled with, for these sizes. Raises `ConditionFailed` for a size below 0."""
    shape = [int(evaluate(dim, sizes)) for dim in one.shape]
    if min(shape, default=0) < 0:
        raise ConditionFailed(f"sizes of 0 or more for {one.name}", dict(sizes))
    assert one.draw is not None  # the checker has seen to that
    return draw(one.draw.distribution, one.dtype, shape, seed=seed, number=one.draw.number, step=step)


def seed_of(result: bytes) -> int:
    """The seed of an invocation that names none: made of its result id, so that it is the same when it is repeated."""
    return int.from_bytes(sha256(b"edgeplan seed" + result).digest()[:8], "little")
