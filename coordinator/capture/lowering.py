"""Towards the ops of the registry: torch's graph without in-place ops, decomposed as far as need be."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edge_agent.plan.registry import registered

__all__ = ["decompositions", "for_device_with", "further_decompositions", "is_random", "known_ops", "lowered"]

aten = torch.ops.aten

_KNOWN: ContextVar[frozenset[str]] = ContextVar("_KNOWN", default=frozenset(registered()))


def known_ops() -> frozenset[str]:
    """The ops that a plan that is being captured may have."""
    return _KNOWN.get()


@contextlib.contextmanager
def for_device_with(ops: frozenset[str]) -> Iterator[None]:
    """Within it, plans are captured for a device that knows no other ops than these."""
    token = _KNOWN.set(ops)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def lowered(program: ExportedProgram) -> ExportedProgram:
    """Without in-place ops, and in ops of the registry, as far as torch has decompositions. What it has none for
    stays.
    """
    result: ExportedProgram = program.run_decompositions(dict(decompositions()))
    further = further_decompositions()
    unknown = {node.target for node in result.graph.nodes if node.op == "call_function" and node.target in further}
    if unknown:
        result = result.run_decompositions({**decompositions(), **{op: further[op] for op in unknown}})
    return result


def decompositions() -> Mapping[Any, Any]:
    """Those that torch.export uses, but for ops that a plan may have."""
    return _usual(known_ops())


def further_decompositions() -> Mapping[Any, Any]:
    """Those that torch would not use on its own: for training, or for backends that lack the op."""
    return _further(known_ops())


@functools.lru_cache(maxsize=4)
def _usual(known: frozenset[str]) -> Mapping[Any, Any]:
    table: Any = torch.export.default_decompositions()
    return _without(known, dict(table.items()) | _UNINITIALISED | _INTEGERS)


@functools.lru_cache(maxsize=4)
def _further(known: frozenset[str]) -> Mapping[Any, Any]:
    from torch._decomp import decomposition_table

    return _without(known, decomposition_table)


def _without(known: frozenset[str], table: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return {op: decomposition for op, decomposition in table.items() if str(op) not in known}


def _zeros(size: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype)


def _zeros_like(like: torch.Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return torch.zeros(like.shape, dtype=dtype or like.dtype)


def _new_zeros(like: torch.Tensor, size: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype or like.dtype)


_UNINITIALISED: dict[Any, Any] = {
    aten.empty.memory_format: _zeros,
    aten.empty_permuted.default: _zeros,
    aten.empty_strided.default: _zeros,
    aten.empty_like.default: _zeros_like,
    aten.new_empty.default: _new_zeros,
    aten.new_empty_strided.default: _new_zeros,
}
"""Memory of any content may have this one; a plan gives the same each time."""


def _int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a.to(torch.int32), b.to(torch.int32))


_INTEGERS: dict[Any, Any] = {aten._int_mm.default: _int_mm}  # noqa: SLF001 -- that is its name
"""What torch's own quantised layers multiply bytes with."""

_DROPOUT_ARGUMENT: Mapping[Any, tuple[int, str]] = {aten.scaled_dot_product_attention.default: (4, "dropout_p")}
"""Ops that are random only if this argument is not 0."""


def is_random(node: Node) -> bool:
    """Whether an op draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    place = _DROPOUT_ARGUMENT.get(node.target)
    if place is None:
        return True
    position, key = place
    return bool(node.args[position] if len(node.args) > position else node.kwargs.get(key, 0.0))
