"""Remote code that reads like local code: ``p + q``, ``torch.abs(p)`` and ``p.sum()`` on pointers.

Each is a plan of one op, built once for these types and sent, and one command; the result is a pointer, at once. A plan
does the same for many ops in one message.
"""

from __future__ import annotations

import functools
import logging
import operator
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coordinator.errors import (
    ForeignPointer,
    IndexMismatch,
    MutatedInput,
    OperandsMismatch,
    PlanBuildError,
    PointerError,
)
from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.trees import spec_of

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from coordinator.errors import SourceLine
    from coordinator.function_plan import OpPlan
    from coordinator.pointers import PointerTensor

__all__ = ["RemoteOperators", "remote_call", "remote_method"]

_PLANS = 512
"""How many one-op plans are kept built."""

_ATTRIBUTES: dict[str, Callable[[Any], Any]] = {name: operator.attrgetter(name) for name in ("T", "mT", "H", "mH")}
"""Attributes of a tensor that are tensors, computed from it; always the same getters, by which plans are kept."""

_OF_TYPE = frozenset(
    {
        *("dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "is_same_size", "is_signed"),
        *("nbytes", "ndim", "numel", "size", "storage_offset", "stride"),
    }
)
"""What follows from a tensor's dtype and shape alone, and needs no device. Devices keep tensors in C order."""

_LOCAL = frozenset({"item", "tolist", "numpy", "cpu", "cuda", "backward", "data_ptr", "storage", "untyped_storage"})
"""Methods of a tensor that give, or need, its value here."""

_KINDS = (TypeError, ValueError, RuntimeError, IndexError)
"""What torch raises for operands that it does not take."""

_LONG = 60

_plans: OrderedDict[Any, OpPlan] = OrderedDict()


class _Slot:
    """Where a pointer stood among the arguments."""

    __slots__ = ("k",)

    def __init__(self, k: int) -> None:
        self.k = k


def remote_call(name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a torch function, named ``name`` for errors, where its pointers are: on the device of the first.

    What follows from types alone is computed here. Raises `PointerError` for what cannot be done with pointers: a
    pointer whose type is not known yet, a function that writes into its argument; `ForeignPointer`; `OperandsMismatch`
    for what torch does not take; and what building a plan raises.
    """
    from coordinator.function_plan import OpPlan

    pointers: list[PointerTensor] = []
    slots = _slots((tuple(args), dict(kwargs)), pointers)
    first = pointers[0]
    if name.endswith("_") and not name.endswith("__"):
        raise PointerError(f"{name}, which writes into its argument,", first.id)
    types = []
    for pointer in pointers:
        if pointer.fleet is not first.fleet:
            raise ForeignPointer(f"the pointer {pointer.id}", f"an argument of {name}")
        types.append(_known(pointer, name))
    if name in _OF_TYPE:
        here, by_name = _filled(slots, [_without_values(one) for one in types])
        return function(*here, **by_name)
    key = (name, function, tuple(types), _key(slots))
    plan = _plans.pop(key, None)
    if plan is None:
        try:
            plan = _built(OpPlan, name, function, slots, types)
        except MutatedInput as error:
            raise PointerError(f"{name}, which writes into its argument,", first.id) from error
    _plans[key] = plan  # the last to be dropped; two threads may build the same one
    if len(_plans) > _PLANS:
        _plans.popitem(last=False)
    results = plan.send(first.device)(*pointers)
    line = _called_at()
    for pointer in spec_of(results, name=name)[1]:
        pointer.result.asked_at = line
    return _named(name, results)


def remote_method(pointer: PointerTensor, name: str) -> Any:
    """The method ``name`` of the tensor that ``pointer`` points to; of a few attributes the value, remote (``T``) or
    from what is known of its type (``ndim``). Raises AttributeError where tensors have none that can be had so.
    """
    import torch

    if name in _ATTRIBUTES:
        return remote_call(name, _ATTRIBUTES[name], (pointer,), {})
    if name in _OF_TYPE:
        return getattr(_without_values(_known(pointer, name)), name)
    method = getattr(torch.Tensor, name, None)
    if method is None or name.startswith("_") or not callable(method):
        raise AttributeError(f"a pointer has no {name!r}: fetch the tensor with .get(), or use a method of it")
    if name in _LOCAL:
        raise PointerError(f"{name}()", pointer.id)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return remote_call(name, method, (pointer, *args), kwargs)

    return call


def _without_values(known: tuple[str, tuple[int, ...]]) -> torch.Tensor:
    """A tensor of that dtype and shape that holds nothing."""
    import torch

    from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

    dtype, shape = known
    return torch.empty(shape, dtype=TORCH_DTYPES[dtype], device="meta")


def _known(pointer: PointerTensor, name: str) -> tuple[str, tuple[int, ...]]:
    known = pointer.known_type
    if known is None:
        raise PointerError(f"{name} before its dtype and shape are known (wait(), or use a plan)", pointer.id)
    return known


def _built(kind: type[OpPlan], name: str, function: Callable[..., Any], slots: Any, types: Sequence[Any]) -> OpPlan:
    from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

    def op(*tensors: Any) -> Any:
        args, kwargs = _filled(slots, tensors)
        return function(*args, **kwargs)

    op.__name__ = op.__qualname__ = name.strip("_")
    plan = kind(op)
    shapes, dtypes = [shape for _, shape in types], [TORCH_DTYPES[dtype] for dtype, _ in types]
    try:
        with _unlogged():
            plan.build(args_shape=shapes, args_dtype=dtypes)
    except PlanBuildError as error:
        if isinstance(error.__cause__, PlanTypeError):  # torch takes it here, and on no device
            raise OperandsMismatch(op.__name__, _operands(slots, types), error.__cause__.reason) from error
        error.where = _called_at()  # not the line above
        raise
    except _KINDS as error:
        mismatch = IndexMismatch if isinstance(error, IndexError) else OperandsMismatch
        reason = str(error).strip().replace("FakeTensor", "Tensor")
        raise mismatch(op.__name__, _operands(slots, types), reason) from error
    return plan


def _named(name: str, results: Any) -> Any:
    """The results, where torch gives several, in its named tuple: ``torch.max(p, 0).values``."""
    import torch

    kind = getattr(torch.return_types, name, None) if isinstance(results, tuple) else None
    return results if kind is None or kind.n_fields != len(results) else kind(results)


@contextmanager
def _unlogged() -> Iterator[None]:
    """What fails is raised; torch logs it, with its stack, as well."""
    thread = threading.get_ident()

    def of_another(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(of_another)
    try:
        yield
    finally:
        logger.removeFilter(of_another)


def _called_at() -> SourceLine | None:
    """The user's line with the operator or function."""
    from coordinator import pointers
    from coordinator.capture.places import of_frame

    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- inspect.currentframe, without its two calls
    while frame is not None and frame.f_code.co_filename in (__file__, pointers.__file__):
        frame = frame.f_back
    return of_frame(frame)


def _operands(slots: Any, types: Sequence[Any]) -> list[str]:
    """The operands to be read: of a pointer and of a tensor its type."""
    args, kwargs = slots
    return [*(_told(one, types) for one in args), *(f"{key}={_told(one, types)}" for key, one in kwargs.items())]


def _told(nest: Any, types: Sequence[Any]) -> str:
    import torch

    from coordinator.plan_state import brief

    if isinstance(nest, _Slot):
        dtype, shape = types[nest.k]
        return f"{dtype}{list(shape)}"
    if isinstance(nest, torch.Tensor):
        return brief(nest)
    if isinstance(nest, tuple | list):
        inner = ", ".join(_told(one, types) for one in nest)
        return f"[{inner}]" if isinstance(nest, list) else f"({inner})"
    text = repr(nest)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _slots(nest: Any, pointers: list[PointerTensor]) -> Any:
    from coordinator.pointers import PointerTensor

    if isinstance(nest, PointerTensor):
        pointers.append(nest)
        return _Slot(len(pointers) - 1)
    if isinstance(nest, tuple | list):
        inside = [_slots(one, pointers) for one in nest]
        return inside if isinstance(nest, list) else tuple(inside)
    if isinstance(nest, dict):
        return {key: _slots(one, pointers) for key, one in nest.items()}
    return nest


def _filled(nest: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(nest, _Slot):
        return tensors[nest.k]
    if isinstance(nest, tuple | list):
        inside = [_filled(one, tensors) for one in nest]
        return inside if isinstance(nest, list) else tuple(inside)
    if isinstance(nest, dict):
        return {key: _filled(one, tensors) for key, one in nest.items()}
    return nest


def _key(nest: Any) -> Any:
    """Something hashable that is equal for equal arguments only: 1, 1.0 and True are three."""
    import torch

    from edge_agent.runtimes.torch_tensors import encode_tensor

    if isinstance(nest, _Slot):
        return ("slot", nest.k)
    if isinstance(nest, tuple | list):
        return (type(nest).__name__, tuple(_key(one) for one in nest))
    if isinstance(nest, dict):
        return ("dict", tuple((key, _key(one)) for key, one in nest.items()))
    if isinstance(nest, torch.Tensor):
        return ("tensor", nest.dtype, tuple(nest.shape), bytes(encode_tensor(nest)))
    return (type(nest).__name__, nest if isinstance(nest, str | int | bool) or nest is None else repr(nest))


def _forward(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(self: Any, other: Any) -> Any:
        return remote_call(function.__name__.strip("_"), function, (self, other), {})

    return call


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(self: Any, other: Any) -> Any:
        return remote_call(function.__name__.strip("_"), function, (other, self), {})

    return call


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(self: Any) -> Any:
        return remote_call(function.__name__.strip("_"), function, (self,), {})

    return call


class RemoteOperators:
    """The operators of a tensor, done where it is. Between two pointers ``==`` stays Python's: whether both point to
    the same; ``p.eq(q)`` compares elements.
    """

    __slots__ = ()

    __pos__ = _unary(operator.pos)
    __neg__ = _unary(operator.neg)
    __abs__ = _unary(abs)
    __invert__ = _unary(operator.invert)
    __getitem__ = _forward(operator.getitem)
    __add__, __radd__ = _forward(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _forward(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _forward(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _forward(operator.truediv), _reflected(operator.truediv)
    __floordiv__, __rfloordiv__ = _forward(operator.floordiv), _reflected(operator.floordiv)
    __mod__, __rmod__ = _forward(operator.mod), _reflected(operator.mod)
    __pow__, __rpow__ = _forward(operator.pow), _reflected(operator.pow)
    __matmul__, __rmatmul__ = _forward(operator.matmul), _reflected(operator.matmul)
    __and__, __rand__ = _forward(operator.and_), _reflected(operator.and_)
    __or__, __ror__ = _forward(operator.or_), _reflected(operator.or_)
    __xor__, __rxor__ = _forward(operator.xor), _reflected(operator.xor)
    __lshift__, __rlshift__ = _forward(operator.lshift), _reflected(operator.lshift)
    __rshift__, __rrshift__ = _forward(operator.rshift), _reflected(operator.rshift)
    __lt__ = _forward(operator.lt)
    __le__ = _forward(operator.le)
    __gt__ = _forward(operator.gt)
    __ge__ = _forward(operator.ge)
