"""The values behind pointers: decoded where they came with the notification, fetched from their devices otherwise.

All that is remote and of one device is fetched by one request; large values follow on the blob channel, into files
that are mapped.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from broker.protocol.batches import batches
from broker.protocol.errors import EdgePlanError, TensorRefused
from broker.protocol.ids import nth
from broker.protocol.messages import INLINE_TENSORS_BYTES, Failure, Fetch, Frame, Values
from coordinator.core_events import Answered
from coordinator.core_results import Result
from coordinator.core_tables import ResultState
from coordinator.errors import FleetClosed, ResultTimeout
from coordinator.waiting import AsyncSignal, Deadline, Signal
from edge_agent.plan.trees import spec_of
from edge_agent.tensor_files import map_tensor

if TYPE_CHECKING:
    import torch  # when the first value comes: an operator has no torch

    from coordinator.fleet import Fleet

__all__ = [
    "FETCH_IDS",
    "Gathering",
    "Output",
    "Value",
    "check_nesting",
    "read_tensor",
    "value_at_hand",
    "values_within",
]

FETCH_IDS = 1024
"""The most ids that one request asks for."""
FETCH_BLOBS = 16
"""... where their values are large."""
_UNKNOWN_SIZE = 1024

Output: TypeAlias = tuple[Result, int]
"""One output of an invocation."""
Value: TypeAlias = "torch.Tensor | EdgePlanError"
"""What an output gives: its value, or why it has none."""
_Raw: TypeAlias = Frame | Path | Failure

_FAILED, _INLINE = ResultState.FAILED, ResultState.INLINE
_RELEASED = Failure(code="ResultReleased", message="the result was released")
_MISSING = Failure(code="ResultLost", message="the device's answer does not have this value")
_CLOSED = Failure(code="FleetClosed", message="the fleet was closed")


def _raw_at_hand(output: Output) -> Frame | Failure | None:
    result, k = output
    state = result.state
    if state is _FAILED:
        return result.failure
    if result.released is not None and k in result.released:
        return _RELEASED
    return result.frames[k] if state is _INLINE else None


def _size_of(output: Output) -> int:
    result, k = output
    return result.infos[k].nbytes if result.infos else _UNKNOWN_SIZE


def value_at_hand(fleet: Fleet, output: Output) -> Value | None:
    """The value of an output that has ended, if it is in this process already."""
    raw = _raw_at_hand(output)
    return None if raw is None else _value(fleet, output, raw)


def _value(fleet: Fleet, output: Output, raw: _Raw) -> Value:
    if isinstance(raw, Failure):
        return fleet.error(raw, *output)
    try:
        return read_tensor(raw) if isinstance(raw, Path) else _decoder()(raw)
    except (TensorRefused, OSError) as error:
        return fleet.error(Failure(code="TensorRefused", message=str(error)), *output)
    finally:
        if isinstance(raw, Path):
            raw.unlink(missing_ok=True)


@functools.cache
def _decoder() -> Callable[[Frame], torch.Tensor]:
    """`decode_tensor`, imported when the first value comes, and not looked up for each."""
    from edge_agent.runtimes.torch_tensors import decode_tensor

    return decode_tensor


def read_tensor(path: Path) -> torch.Tensor:
    """The tensor in a tensor file, mapped: the file may be deleted, and changes never reach it. Raises
    `TensorRefused`.
    """
    import torch

    from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

    header = map_tensor(path)
    dtype = TORCH_DTYPES[header.dtype]
    if header.nbytes == 0:
        return torch.empty(header.shape, dtype=dtype)
    return torch.frombuffer(header.data, dtype=dtype).reshape(header.shape)


def check_nesting(leaves: Iterable[object]) -> None:
    """Raises TypeError for what may have pointers in it, or has, and is no list, tuple or dict: a generator, a set,
    ``results.values()``. It would come back as it is.
    """
    from coordinator.pointers import PointerTensor

    for leaf in leaves:
        if isinstance(leaf, PointerTensor):  # most are
            continue
        hides = isinstance(leaf, AbstractSet | ValuesView | deque)
        inside = spec_of(list(leaf), name="nest")[1] if hides else ()  # type: ignore[call-overload]
        if isinstance(leaf, Iterator) or any(isinstance(each, PointerTensor) for each in inside):
            kind = type(leaf).__name__
            raise TypeError(f"expected pointers in lists, tuples and dicts, got a {kind}: make a list of it")


class Gathering:
    """The values of outputs that have all ended: made at once, waited for once."""

    def __init__(self, fleet: Fleet, outputs: Sequence[Output], signal: Signal | AsyncSignal) -> None:
        self._fleet = fleet
        self._outputs = outputs
        self._signal = signal
        self._lock = threading.Lock()
        self._raw: list[_Raw | None] = [_raw_at_hand(output) for output in outputs]
        self._requests: list[int] = []
        self._abandoned = False
        groups: dict[str, dict[bytes, list[int]]] = {}  # positions by id, by device
        for position, raw in enumerate(self._raw):
            if raw is None:
                result, k = outputs[position]
                groups.setdefault(result.device, {}).setdefault(nth(result.id, k), []).append(position)
        self._left = self._raw.count(None)
        for wanted in groups.values():
            for batch in self._batches(wanted):
                self._fetch({each: wanted[each] for each in batch})

    def _batches(self, wanted: Mapping[bytes, Sequence[int]]) -> Iterator[list[bytes]]:
        """The ids, as many at a time as a device answers in one message; large ones, which come as blobs, apart."""
        small: list[bytes] = []
        large: list[bytes] = []
        room = INLINE_TENSORS_BYTES
        for id_, positions in wanted.items():
            size = _size_of(self._outputs[positions[0]])
            if size > INLINE_TENSORS_BYTES:
                large.append(id_)
                continue
            if size > room or len(small) == FETCH_IDS:
                yield small
                small, room = [], INLINE_TENSORS_BYTES
            small.append(id_)
            room -= size
        if small:
            yield small
        yield from batches(large, FETCH_BLOBS)

    # --------------------------------------------------------------------------------------------- on other threads

    def _fetch(self, wanted: dict[bytes, list[int]]) -> None:
        def on_answer(answered: Answered) -> None:
            self._take(answered, wanted)

        self._requests.append(self._fleet.driver.ask(lambda r: Fetch(r=r, ids=list(wanted)), on_answer))

    def _take(self, answered: Answered, wanted: dict[bytes, list[int]]) -> None:
        message, frames = answered.message, iter(answered.frames)
        outcomes = message.outcomes if isinstance(message, Values) else []
        left = dict(wanted)
        for outcome in outcomes:
            positions = left.pop(outcome.id, [])
            if outcome.failure is not None:
                self._put(positions, outcome.failure)
            elif outcome.blob is not None:
                self._fetch_blob(positions, outcome.blob, outcome.size)
            else:
                self._put(positions, next(frames, _MISSING))
        for positions in left.values():
            self._put(positions, answered.failure or _MISSING)

    def _fetch_blob(self, positions: list[int], digest: bytes, size: int) -> None:
        for position in positions:

            def on_file(file: Path | Failure, position: int = position) -> None:
                self._put([position], file)

            try:
                self._fleet.blobs.fetch(digest, size, on_file)
            except FleetClosed:
                self._put([position], _CLOSED)

    def _put(self, positions: list[int], raw: _Raw) -> None:
        with self._lock:
            for position in positions:
                if self._raw[position] is None:
                    self._raw[position] = raw
                    self._left -= 1
            complete, abandoned = not self._left, self._abandoned
        if abandoned and isinstance(raw, Path):
            raw.unlink(missing_ok=True)
        elif complete:
            self._signal.set()

    # --------------------------------------------------------------------------------------------- waiting

    def wait(self, deadline: Deadline) -> list[Value]:
        """The value of each output; ResultTimeout when time is up."""
        assert isinstance(self._signal, Signal)
        try:
            while self._left:
                if not self._signal.wait(deadline.left) and self._left:
                    raise self._timed_out(deadline)
        finally:
            self.end()
        return self._values()

    async def wait_async(self, deadline: Deadline) -> list[Value]:
        """As `wait`, for a coroutine."""
        assert isinstance(self._signal, AsyncSignal)
        try:
            while self._left:
                if not await self._signal.wait(deadline.left) and self._left:
                    raise self._timed_out(deadline)
        finally:
            self.end()
        return self._values()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._left

    def so_far(self, deadline: Deadline) -> list[Value]:
        """Of each output what has come; of what has not, and will not be waited for any more, a `ResultTimeout`."""
        with self._lock:
            self._abandoned = True
            came = list(self._raw)
        self._give_up()
        return [
            _late(output, deadline) if raw is None else _value(self._fleet, output, raw)
            for output, raw in zip(self._outputs, came, strict=True)
        ]

    def _values(self) -> list[Value]:
        pairs = zip(self._outputs, self._raw, strict=True)
        return [_value(self._fleet, output, raw) for output, raw in pairs if raw is not None]

    def _timed_out(self, deadline: Deadline) -> ResultTimeout:
        return _late(self._outputs[self._raw.index(None)], deadline)

    def _give_up(self) -> None:
        for r in self._requests if self._left else ():
            self._fleet.driver.give_up(r)

    def end(self) -> None:
        """Nobody waits any more: if not all has come, nobody wants what has. Idempotent."""
        with self._lock:
            if not self._left:
                return
            self._abandoned = True
            came = [raw for raw in self._raw if isinstance(raw, Path)]
        self._give_up()
        for path in came:
            path.unlink(missing_ok=True)


def _late(output: Output, deadline: Deadline) -> ResultTimeout:
    result, k = output
    return ResultTimeout(nth(result.id, k).hex(), deadline.timeout or 0.0, result.device)


def values_within(fleet: Fleet, outputs: Sequence[Output], deadline: Deadline) -> list[Value]:
    """The value of each output, or why it has none: a `ResultTimeout` for what is not here when time is up.

    What has ended is fetched while the rest is waited for: at any time, all of it by one request a device.
    """
    signal = Signal()
    found: dict[int, Value] = {}
    waiting = dict(enumerate(outputs))
    coming: list[int] = []
    gathering: Gathering | None = None
    results = dict.fromkeys(result for result, _ in outputs)
    for result in results:
        fleet.driver.when_ended(result, signal.set)
    try:
        while waiting or gathering:
            if gathering is None:
                coming = [place for place, (result, _) in waiting.items() if result.ended]
                if coming:
                    gathering = Gathering(fleet, [waiting.pop(place) for place in coming], signal)
            if gathering is not None and (gathering.complete or deadline.left == 0.0):
                found.update(zip(coming, gathering.so_far(deadline), strict=True))
                gathering = None
            elif not signal.wait(deadline.left) and gathering is None:
                break
    finally:
        if gathering is not None:
            gathering.end()
        for result in results:
            fleet.driver.forget(result, signal.set)
    return [found[place] if place in found else _late(output, deadline) for place, output in enumerate(outputs)]
