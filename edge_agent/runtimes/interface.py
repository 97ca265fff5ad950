"""What a worker's bench needs of a runtime. Imports none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from broker.protocol.tensors import TensorHeader
from edge_agent.frames import Form
from edge_agent.plan.checker import CheckedPlan

__all__ = ["Provable", "Runnable", "Runtime", "Watchable"]


class Runnable(Protocol):
    """A loaded plan."""

    between_ops: Callable[[int], None] | None
    """Called with an op's index before it runs; what it raises ends the run."""

    def run(self, user_inputs: Sequence[Any], sizes: dict[str, int]) -> list[Any]:
        """Its outputs. Of a plan that draws random numbers, it takes ``seed`` and ``step`` as well. Raises
        `OpFailed`.
        """


@runtime_checkable
class Watchable(Protocol):
    """A loaded plan that is run in one piece."""

    while_running: Callable[[], object] | None
    """Called on another thread now and then while it runs; what it raises ends the run."""


@runtime_checkable
class Provable(Protocol):
    """A loaded variant."""

    def prove(self) -> float:
        """The largest difference to its goldens. Raises `VariantRefused` if it is too large."""


class Runtime(Protocol):
    """What runs plans, and knows its own tensors."""

    name: str
    version: str

    def load(self, checked: CheckedPlan, state: Sequence[TensorHeader], variant: bytes | None = None) -> Runnable:
        """A plan, ready to run: its graph, or the variant of it."""

    def tensor(self, header: TensorHeader) -> Any:
        """A tensor of the runtime over the elements that ``header`` describes: a view where they are writable."""

    def number(self, value: float, dtype: str) -> Any:
        """A 0-d tensor."""

    def describe(self, tensor: Any) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype name and shape."""

    def form(self, tensor: Any) -> Form:
        """A tensor's dtype and shape, and what follows from them. Raises `TensorRefused`."""

    def content(self, tensor: Any) -> bytes:
        """A copy of a tensor's elements, C order, little-endian. Raises `TensorRefused`."""

    def frame(self, tensor: Any) -> bytes:
        """A tensor as a frame: of its form, with its content. Raises `TensorRefused`."""

    def elements(self, tensor: Any) -> memoryview:
        """A tensor's elements, C order, little-endian."""

    def rows(self, tensor: Any, where: Any) -> Any:
        """Rows of a tensor: ``where`` is a slice, or their numbers as a numpy array of int64."""
