"""`PointerTensor`: a name for a tensor on a device, held before the tensor exists."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from broker.protocol.errors import EdgePlanError
from broker.protocol.ids import nth, short
from broker.protocol.messages import Cancel, Release, ResultStatus
from broker.protocol.tensors import inspect
from coordinator.core_events import SubmitCommand
from coordinator.core_results import Result
from coordinator.core_tables import ResultState
from coordinator.errors import PointerError, ResultTimeout
from coordinator.operators import RemoteOperators, remote_call, remote_method
from coordinator.values import Gathering, value_at_hand
from coordinator.waiting import AsyncSignal, Deadline, Signal, wait_async, wait_for

if TYPE_CHECKING:
    import torch  # an operator has none

    from coordinator.device import Device
    from coordinator.fleet import Fleet

__all__ = ["PointerTensor"]

_NUMBERS = (int, float, complex)
_PENDING = ResultState.PENDING


class PointerTensor(RemoteOperators):
    """A tensor on a device: one that is there, or the result of a command that may not have run yet.

    Made by `Device.search`, `Device.send`, `Fleet.pointer`, and by calling a `PointerPlan`. It stands wherever a plan
    takes a tensor. Dropping the object does nothing to the tensor: see `release`.
    """

    __slots__ = ("__weakref__", "_description", "_dtype", "_fleet", "_index", "_rank", "_result", "_shape", "_tags")

    def __init__(
        self,
        fleet: Fleet,
        result: Result,
        index: int = 0,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
        rank: int | None = None,
        tags: tuple[str, ...] = (),
        description: str = "",
    ) -> None:
        self._fleet = fleet
        self._result = result
        self._index = index
        self._dtype = dtype
        self._shape = shape
        self._rank = rank
        self._tags = tags
        self._description = description

    # --------------------------------------------------------------------------------------------- what it is

    @property
    def result(self) -> Result:
        """What the session knows of its invocation."""
        return self._result

    @property
    def index(self) -> int:
        """Which of the invocation's outputs it is."""
        return self._index

    @property
    def result_id(self) -> bytes:
        """The id as it travels: 16 bytes."""
        result, index = self._result, self._index
        return nth(result.id, index) if index else result.id

    @property
    def id(self) -> str:
        """The id: 32 hex digits, good in any process, also after a restart: see `Fleet.pointer`."""
        return self.result_id.hex()

    @property
    def fleet(self) -> Fleet:
        """The fleet that it belongs to."""
        return self._fleet

    @property
    def device(self) -> Device:
        """The device that has the tensor, or will have it."""
        return self._fleet.device(self._result.device)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype, if it is known yet: where the plan fixes it, at once."""
        from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

        self._learn()
        return None if self._dtype is None else TORCH_DTYPES[self._dtype]

    @property
    def shape(self) -> torch.Size | None:
        """The shape, if it is known yet: where the plan fixes it, at once."""
        import torch

        self._learn()
        return None if self._shape is None else torch.Size(self._shape)

    @property
    def known_type(self) -> tuple[str, tuple[int, ...]] | None:
        """Dtype name and shape, if both are known yet."""
        dtype, shape = self._dtype, self._shape
        if dtype is None or shape is None:
            self._learn()
            dtype, shape = self._dtype, self._shape
        return None if dtype is None or shape is None else (dtype, shape)

    @property
    def known_rank(self) -> tuple[str, int] | None:
        """Dtype name and number of dims, if both are known yet."""
        self._learn()
        if self._dtype is None:
            return None
        rank = self._rank if self._shape is None else len(self._shape)
        return None if rank is None else (self._dtype, rank)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the tensor carries on its device."""
        return self._tags

    @property
    def description(self) -> str:
        """What whoever tagged it says of it."""
        return self._description

    def _learn(self) -> None:
        if self._dtype is not None and self._shape is not None:
            return
        result = self._result
        if result.infos:
            info = result.infos[self._index]
            self._dtype, self._shape = info.dtype, tuple(info.shape)
        elif result.frames and (frame := result.frames[self._index]) is not None:
            header = inspect(frame)
            self._dtype, self._shape = header.dtype, header.shape

    # --------------------------------------------------------------------------------------------- its value

    @property
    def ready(self) -> bool:
        """Whether `get` would not have to wait for the device's work: there is a value, or an error says why not."""
        return self._result.ended

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the invocation has ended, with a value or without; False, if it has not within ``timeout``
        seconds.
        """
        self._fleet.driver.check()
        return wait_for(self._fleet.driver, [self._result], Deadline(timeout)) is None

    def get(self, timeout: float | None = None) -> torch.Tensor:
        """A copy of the value; waits until it is there, for ``timeout`` seconds at most (None: without end).

        Raises `ResultTimeout` (a TimeoutError), after which the pointer is as good as before, or the error that the
        invocation ended with.
        """
        fleet, result = self._fleet, self._result
        deadline = Deadline(timeout)
        if result.state is _PENDING:
            fleet.driver.check()
            if wait_for(fleet.driver, [result], deadline) is not None:
                raise ResultTimeout(self.id, timeout or 0.0, result.device)
        output = (result, self._index)
        value = value_at_hand(fleet, output)
        if value is None:
            value = Gathering(fleet, [output], Signal()).wait(deadline)[0]
        if isinstance(value, EdgePlanError):
            raise value
        return value

    def __await__(self) -> Generator[Any, None, torch.Tensor]:
        """As `get`, without a timeout: use ``asyncio.timeout``."""
        return self._get_async().__await__()

    async def _get_async(self) -> torch.Tensor:
        fleet, result = self._fleet, self._result
        deadline = Deadline(None)
        if not result.ended:
            fleet.driver.check()
            await wait_async(fleet.driver, [result], deadline)
        output = (result, self._index)
        value = value_at_hand(fleet, output)
        if value is None:
            value = (await Gathering(fleet, [output], AsyncSignal()).wait_async(deadline))[0]
        if isinstance(value, EdgePlanError):
            raise value
        return value

    # --------------------------------------------------------------------------------------------- what becomes of it

    def status(self) -> ResultStatus:
        """What became of it, by the broker's record: see `ResultStatus`."""
        return self._fleet.status(self.result_id)

    def cancel(self) -> None:
        """End the whole invocation as cancelled, unless it has ended already. Returns at once."""
        result = self._result
        if not result.ended:
            self._fleet.submit(SubmitCommand(devices=(result.device,), command=Cancel(id=result.first)))

    @property
    def released(self) -> bool:
        """Whether it was released, moved away, or left by its scope, here. A device's own tensor never is: it stays."""
        released = self._result.released
        return released is not None and self._index in released

    def release(self) -> None:
        """Let the device drop the tensor, after all that was asked for before. Idempotent; returns at once.

        A device's own tensor stays, since nothing but its owner deletes it, and the pointer is as good as before.
        """
        if self.released:
            self._fleet.driver.check()
            return
        command = Release(ids=[self.result_id])
        self._fleet.submit(SubmitCommand(devices=(self._result.device,), command=command, released=self.given_up))

    @property
    def given_up(self) -> tuple[tuple[Result, int], ...]:
        """The output whose value a release gives up for certain: itself. None where it may be the device's own tensor,
        which was found by its tags: then the broker says whether there is a value, as it says the status.
        """
        result = self._result
        certain = result.made or result.id.startswith(self._fleet.driver.core.incarnation)
        return ((result, self._index),) if certain else ()

    def move(self, device: Device) -> PointerTensor:
        """Move the tensor to another device, through the broker; its pointer there, at once, also if it is not ready.

        It is copied when it is there, with its tags, and released where it was once the copy has been made: if the
        copy fails, it stays. A device's own tensor is copied, and stays. On the device that has it already, it is the
        pointer itself. Of a pointer that was taken up by its id before it was ready neither dtype nor dims are known:
        then this waits until it is. Raises `ForeignPointer` for a device of another fleet, TypeError for what is no
        device, and for a device without torch what `coordinator.variants.variant_of` raises: onnx has no complex
        numbers.
        """
        from coordinator.moving import move

        return move(self, device)

    # --------------------------------------------------------------------------------------------- Python's protocols

    def __repr__(self) -> str:
        lines = [f"[PointerTensor | me:{self._fleet.short_id} -> {self._result.device}:{short(self.result_id)}]"]
        if self._tags:
            lines.append(f"\tTags: {' '.join(sorted(self._tags))}")
        if self.shape is not None:
            lines.append(f"\tShape: {self.shape}")
        if self._description:
            lines.append(f"\tDescription: {self._description}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> Any:
        """Whether both point to the same; with a number, elements are compared where they are. With a tensor, too:
        torch sees to that.
        """
        if isinstance(other, PointerTensor):
            return self._fleet is other._fleet and self.result_id == other.result_id
        return remote_call("eq", operator.eq, (self, other), {}) if isinstance(other, _NUMBERS) else NotImplemented

    def __ne__(self, other: object) -> Any:
        if isinstance(other, PointerTensor):
            return not self == other
        return remote_call("ne", operator.ne, (self, other), {}) if isinstance(other, _NUMBERS) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.result_id)

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._refused("formatting")
        return str(self)

    def _refused(self, operation: str) -> PointerError:
        return PointerError(operation, self.id)

    def __bool__(self) -> bool:
        raise self._refused("bool()")

    def __float__(self) -> float:
        raise self._refused("float()")

    def __int__(self) -> int:
        raise self._refused("int()")

    def __index__(self) -> int:
        raise self._refused("using it as an index")

    def __complex__(self) -> complex:
        raise self._refused("complex()")

    def __len__(self) -> int:
        raise self._refused("len()")

    def __iter__(self) -> Iterator[Any]:
        raise self._refused("iterating")

    def __contains__(self, _item: object) -> bool:
        raise self._refused("in")

    def __array__(self, *_args: object, **_kwargs: object) -> Any:
        raise self._refused("making an array")

    # --------------------------------------------------------------------------------------------- torch's ops

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``torch.abs(pointer)``: see `coordinator.operators`."""
        return remote_call(str(getattr(function, "__name__", function)), function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """``pointer.sum()``: see `coordinator.operators`."""
        return remote_method(self, name)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise self._refused("pickling or copying")
