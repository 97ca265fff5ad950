"""torch.cond, map and scan in plans: said in ops that every runtime has, since a plan's functions have no side effects.

``cond`` computes both branches and selects; ``map`` runs all rows side by side (`torch.func.vmap`); ``scan`` over a
size that is fixed is unrolled, as Python's own loops are. What runs as often as data or a varying size say is refused.
Beside the plan, Python's ``if`` and ``for`` run in their place, so that the two are compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch._higher_order_ops as torchs_operators
from torch.utils import _pytree as pytree

from coordinator.capture import places
from coordinator.errors import BranchesDiffer, LoopNotSupported

__all__ = ["control_flow"]

_pytree: Any = pytree


@contextlib.contextmanager
def control_flow(*, traced: bool) -> Iterator[None]:
    """torch's control flow as ours in this block: for a trace, or for eager code."""
    functions = _TRACED if traced else _EAGER
    theirs: list[Any] = [getattr(torchs_operators, name) for name in functions]
    before = [(one.__code__, one.__defaults__, one.__kwdefaults__) for one in theirs]
    for one, ours in zip(theirs, functions.values(), strict=True):
        # its code is exchanged, not its name: the user may have imported it under another
        one.__code__, one.__defaults__, one.__kwdefaults__ = _stand_in.__code__, None, {"_ours": ours}
    try:
        yield
    finally:
        for one, (code, defaults, keywords) in zip(theirs, before, strict=True):
            one.__code__, one.__defaults__, one.__kwdefaults__ = code, defaults, keywords


def _stand_in(*args: Any, _ours: Callable[..., Any], **kwargs: Any) -> Any:
    """What the code of torch's functions is exchanged for."""
    return _ours(*args, **kwargs)


def _leaves(nest: Any) -> tuple[list[Any], Any]:
    found, spec = _pytree.tree_flatten(nest)
    return found, spec


# ------------------------------------------------------------------------------------------------- cond


def _cond(predicate: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], operands: Any = ()) -> Any:
    if not isinstance(predicate, torch.Tensor):  # a size's: a guard
        return (if_true if predicate else if_false)(*operands)
    yes, tree = _leaves(if_true(*operands))
    no, other = _leaves(if_false(*operands))
    kinds = [[(one.dtype, tuple(one.shape)) for one in found if isinstance(one, torch.Tensor)] for found in (yes, no)]
    if tree != other or kinds[0] != kinds[1] or len(kinds[0]) != len(yes):
        raise BranchesDiffer(_brief(kinds[0]), _brief(kinds[1]), where=places.here())
    chosen = [torch.where(predicate.reshape(()), one, two) for one, two in zip(yes, no, strict=True)]
    return _pytree.tree_unflatten(chosen, tree)


def _cond_eager(predicate: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], operands: Any = ()) -> Any:
    return (if_true if predicate else if_false)(*operands)


def _brief(kinds: Sequence[tuple[torch.dtype, tuple[Any, ...]]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')}{list(shape)}" for dtype, shape in kinds) or "no tensor"


# ------------------------------------------------------------------------------------------------- loops


def _map(function: Callable[..., Any], rows: Any, *args: Any) -> Any:
    return torch.func.vmap(lambda row: function(row, *args))(rows)


def _map_eager(function: Callable[..., Any], rows: Any, *args: Any) -> Any:
    found, tree = _leaves(rows)
    made = [function(_pytree.tree_unflatten([one[k] for one in found], tree), *args) for k in range(found[0].shape[0])]
    return _stacked(made, 0)


def _stacked(results: Sequence[Any], dim: int) -> Any:
    parts = [_leaves(one)[0] for one in results]
    return _pytree.tree_unflatten([torch.stack(part, dim) for part in zip(*parts, strict=True)], _leaves(results[0])[1])


def _scan(step: Callable[..., Any], init: Any, xs: Any, *, dim: int = 0, reverse: bool = False) -> Any:
    found, tree = _leaves(xs)
    size = found[0].shape[dim]
    if isinstance(size, torch.SymInt):
        raise LoopNotSupported("torch.scan", "a size that varies", where=places.here())
    carry, made = init, []
    for k in reversed(range(size)) if reverse else range(size):
        carry, out = step(carry, _pytree.tree_unflatten([one.select(dim, k) for one in found], tree))
        made.append(out)
    return carry, _stacked(made[::-1] if reverse else made, 0)


def _while_loop(*_: Any, **__: Any) -> Any:
    raise LoopNotSupported("torch.while_loop", "what a tensor holds", where=places.here())


def _associative_scan(*_: Any, **__: Any) -> Any:
    raise LoopNotSupported("associative_scan", "a size", where=places.here())


_TRACED: Mapping[str, Callable[..., Any]] = {
    "cond": _cond,
    "map": _map,
    "scan": _scan,
    "while_loop": _while_loop,
    "associative_scan": _associative_scan,
}
_EAGER: Mapping[str, Callable[..., Any]] = {
    **_TRACED,
    "cond": _cond_eager,
    "map": _map_eager,
}
