"""torch.cond, while_loop, map and scan in plans.

``while_loop``, and ``scan`` over a size that varies, become ops with sub-graphs, and so does ``cond`` where a side of
it costs something. A ``cond`` whose sides are cheap computes both and selects, as it always does where gradients or
`torch.func.vmap` are at work; ``map`` runs all rows side by side (`torch.func.vmap`); a ``scan`` over a fixed size is
unrolled, as Python's own loops are. Beside the plan, Python's ``if``, ``while`` and ``for`` run in their place, so that
the two are compared.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._C._functorch as functorch
import torch._higher_order_ops as torchs_operators
import torch.autograd.forward_ad as forward_ad
from torch.utils import _pytree as pytree

from coordinator.capture import places
from coordinator.capture.patience import Patience
from coordinator.capture.python_numbers import NUMBER_DTYPES, kind_of_number
from coordinator.capture.regions import ENTER, LEAVE, RUN, new_region
from coordinator.capture.watch import TraceWatch
from coordinator.errors import (
    BranchesDiffer,
    GradientThroughLoop,
    LoopMismatch,
    LoopNotSupported,
    SourceLine,
)

__all__ = ["control_flow"]

_pytree: Any = pytree

_UNROLLED = 64
"""A scan over so many rows of a fixed size is unrolled; beyond, where no gradient is wanted, it is a loop."""


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


def _kind(one: Any) -> Any:
    return (one.dtype, tuple(one.shape)) if isinstance(one, torch.Tensor) else type(one).__name__


def _brief(leaves: Sequence[Any]) -> str:
    texts = [
        f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}"
        if isinstance(one, torch.Tensor)
        else f"a {type(one).__name__}"
        for one in leaves
    ]
    return ", ".join(texts) or "no tensor"


class _Text(str):
    """A leaf of a nest that is written without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _nested_brief(leaves: Sequence[Any], tree: Any) -> str:
    return str(_pytree.tree_unflatten([_Text(_brief([one])) for one in leaves], tree))


def _under_vmap() -> bool:
    layers: Any = functorch.get_interpreter_stack()
    return any(layer.key() == functorch.TransformType.Vmap for layer in layers or ())


# ------------------------------------------------------------------------------------------------- regions


@dataclass(frozen=True)
class _Traced:
    """A region that was traced: its number, what its function gave, how that nests, and that past the region's end."""

    number: int
    own: list[torch.Tensor]
    nest: Any
    left: list[torch.Tensor]


def _region(
    function: Callable[..., Any],
    values: Sequence[torch.Tensor],
    nests: Sequence[Any],
    tensors: Callable[[list[Any]], list[Any]],
    *,
    contiguous: bool = True,
) -> _Traced:
    """Trace a function of these values, which nest so, in a region. ``tensors`` makes tensors of what it gives;
    ``contiguous``: what the function is given is, and nothing of it a Python number any more.
    """
    number = new_region()
    names = _names(function, [nest.num_leaves for nest in nests])
    entered = ENTER(number, names, _plain(values), contiguous)
    if not contiguous:
        _stay_numbers(values, entered)
    left = iter(entered)
    given = [_pytree.tree_unflatten(list(itertools.islice(left, nest.num_leaves)), nest) for nest in nests]
    results, nest = _leaves(function(*given))
    own = tensors(results)
    return _Traced(number, own, nest, LEAVE(number, entered, _plain(own)))


def _stay_numbers(values: Sequence[torch.Tensor], entered: Sequence[torch.Tensor]) -> None:
    """What stands for a Python number of the call stands for one inside."""
    stack: Any = torch.overrides._get_current_function_mode_stack  # noqa: SLF001 -- as torch's own tracers ask
    for numbers in [mode.numbers for mode in stack() if isinstance(mode, TraceWatch)]:
        for value, inside in zip(values, entered, strict=True):
            if value in numbers:
                numbers.add(inside)


def _plain(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same without gradients, for which the marks have no way."""
    return [one.detach() if one.requires_grad else one for one in values]


def _names(function: Callable[..., Any], leaves: Sequence[int]) -> list[str]:
    """What the function calls its arguments, of which each has so many tensors."""
    parameters: Iterable[inspect.Parameter] = ()
    with contextlib.suppress(TypeError, ValueError):
        parameters = inspect.signature(function).parameters.values()
    called = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    called += [f"input_{place}" for place in range(len(called), len(leaves))]
    return [
        name if count == 1 else f"{name}_{place}"
        for name, count in zip(called, leaves, strict=False)
        for place in range(count)
    ]


def _ran(
    kind: str,
    regions: Sequence[_Traced],
    given: Sequence[torch.Tensor],
    *,
    carried: int = 0,
    reverse: bool = False,
) -> list[torch.Tensor]:
    """What running the regions gives."""
    results = [one for region in regions for one in region.left]
    made: list[torch.Tensor] = RUN(
        kind, [region.number for region in regions], _plain(given), results, carried, reverse
    )
    sources = [*given, *(one for region in regions for one in region.own)]
    unpacked: Any = forward_ad.unpack_dual
    if any(unpacked(one).tangent is not None for one in sources):
        raise GradientThroughLoop(f"torch.{kind}", where=places.here())
    if torch.is_grad_enabled() and any(one.requires_grad for one in sources):
        back: Any = _NoWayBack.apply
        return list(back(f"torch.{kind}", places.here(), len(made), *made, *sources))
    return made


class _NoWayBack(torch.autograd.Function):
    """Passes on what a loop gives; a gradient that comes back this way is refused."""

    @staticmethod
    def forward(_loop: str, _where: SourceLine | None, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(one.detach() for one in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.loop, ctx.where = inputs[:2]
        ctx.mark_non_differentiable(*(one for one in output if not (one.is_floating_point() or one.is_complex())))

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise GradientThroughLoop(ctx.loop, where=ctx.where)


# ------------------------------------------------------------------------------------------------- cond


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    if not isinstance(pred, torch.Tensor):  # a size's: a guard
        return (true_fn if pred else false_fn)(*operands)
    given, tree = _leaves(tuple(operands))
    if torch.is_grad_enabled() or _under_vmap() or not all(isinstance(one, torch.Tensor) for one in given):
        yes, nest = _leaves(true_fn(*operands))
        no, other = _leaves(false_fn(*operands))
        _expect_alike(yes, no, nest, other)
        chosen = [torch.where(pred.reshape(()), one, two) for one, two in zip(yes, no, strict=True)]
        return _pytree.tree_unflatten(chosen, nest)
    first, second = (
        _region(function, given, tree.children(), _only_tensors, contiguous=False) for function in (true_fn, false_fn)
    )
    _expect_alike(first.own, second.own, first.nest, second.nest)
    made = _ran("cond", [first, second], [pred.reshape(()), *given])
    return _pytree.tree_unflatten(made, first.nest)


def _only_tensors(leaves: list[Any]) -> list[Any]:
    if not all(isinstance(one, torch.Tensor) for one in leaves):
        raise BranchesDiffer(_brief(leaves), "something that is no tensor", where=places.here())
    return leaves


def _expect_alike(yes: Sequence[Any], no: Sequence[Any], nest: Any, other: Any) -> None:
    kinds = [list(map(_kind, found)) for found in (yes, no)]
    if nest != other or kinds[0] != kinds[1] or not all(isinstance(one, torch.Tensor) for one in yes):
        raise BranchesDiffer(_brief(yes), _brief(no), where=places.here())


def _cond_eager(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    return (true_fn if pred else false_fn)(*operands)


# ------------------------------------------------------------------------------------------------- while_loop


def _while_loop(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried_inputs: Any) -> Any:
    _expect_no_vmap("torch.while_loop")
    leaves, tree = _leaves(tuple(carried_inputs))
    given = _as_tensors(leaves, "torch.while_loop")
    if not given:
        raise LoopMismatch("torch.while_loop", "something to carry", "nothing", where=places.here())
    asked = _region(cond_fn, given, tree.children(), _truth)
    done = _region(body_fn, given, tree.children(), lambda found: _as_tensors(found, "torch.while_loop"))
    _expect_carried("torch.while_loop", given, done.own, tree, done.nest)
    return _pytree.tree_unflatten(_ran("while_loop", [asked, done], given), tree)


def _while_eager(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried_inputs: Any) -> Any:
    leaves, tree = _leaves(tuple(carried_inputs))
    held = _as_tensors(leaves, "torch.while_loop")
    patience = Patience("torch.while_loop")
    while bool(cond_fn(*_pytree.tree_unflatten(held, tree))):
        patience.spend(places.here)
        held = _as_tensors(_leaves(body_fn(*_pytree.tree_unflatten(held, tree)))[0], "torch.while_loop")
    return _pytree.tree_unflatten(held, tree)


def _truth(leaves: list[Any]) -> list[torch.Tensor]:
    (found, *others) = leaves or [None]
    if isinstance(found, bool):
        found = torch.full((), found, dtype=torch.bool)
    if others or not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise LoopMismatch("torch.while_loop", "a condition that gives one bool", _brief(leaves), where=places.here())
    single = found.reshape(()) if found.dim() else found
    return [single if single.dtype is torch.bool else single != 0]


def _as_tensors(leaves: Sequence[Any], loop: str) -> list[torch.Tensor]:
    """What a loop carries: a number is a tensor without dims."""
    found = []
    for one in leaves:
        kind = kind_of_number(one)
        if isinstance(one, torch.Tensor):
            found.append(_counter(one))
        elif kind is not None:
            found.append(torch.full((), one, dtype=NUMBER_DTYPES[kind]))
        elif isinstance(one, torch.SymInt | torch.SymFloat):  # a size, or what is computed of some
            size: Any = one
            found.append(torch.full((), size, dtype=NUMBER_DTYPES[int if isinstance(one, torch.SymInt) else float]))
        else:
            raise LoopMismatch(loop, "tensors and numbers to carry", f"a {type(one).__name__}", where=places.here())
    return found


def _counter(one: torch.Tensor) -> torch.Tensor:
    """``torch.tensor(0)`` as an op: so that what counts steps is seen to begin there, and is no part of the state."""
    constant = getattr(one, "constant", None)
    if constant is not None and constant.dim() == 0 and constant.dtype in (torch.int64, torch.int32):
        return torch.full((), int(constant), dtype=constant.dtype)
    return one


def _expect_carried(loop: str, given: Sequence[Any], made: Sequence[Any], tree: Any, nest: Any) -> None:
    if tree != nest or list(map(_kind, given)) != list(map(_kind, made)):
        expected, got = _nested_brief(given, tree), _nested_brief(made, nest)
        said = f"each step to give what the next one takes, in the same dtypes, shapes and nesting: {expected}"
        raise LoopMismatch(loop, said, got, where=places.here())


def _expect_no_vmap(loop: str) -> None:
    if _under_vmap():
        raise LoopNotSupported(
            loop,
            "inside torch.func.vmap, or torch's map: each row would go round as often as it likes",
            "write the loop for all rows at once, around what is done to each, and go on as long as any row needs it",
            where=places.here(),
        )


# ------------------------------------------------------------------------------------------------- map and scan


def _map(f: Callable[..., Any], xs: Any, *args: Any) -> Any:
    return torch.func.vmap(lambda row: f(row, *args))(xs)


def _map_eager(f: Callable[..., Any], xs: Any, *args: Any) -> Any:
    found, tree = _leaves(xs)
    made = [f(_pytree.tree_unflatten([one[k] for one in found], tree), *args) for k in range(found[0].shape[0])]
    return _stacked(made)


def _stacked(results: Sequence[Any]) -> Any:
    parts = [_leaves(one)[0] for one in results]
    return _pytree.tree_unflatten([torch.stack(part) for part in zip(*parts, strict=True)], _leaves(results[0])[1])


def _scan(combine_fn: Callable[..., Any], init: Any, xs: Any, *, dim: int = 0, reverse: bool = False) -> Any:
    found, tree = _leaves(xs)
    size = found[0].shape[dim]
    if isinstance(size, int) and (size <= _UNROLLED or torch.is_grad_enabled() or _under_vmap()):
        return _scan_unrolled(combine_fn, init, xs, dim=dim, reverse=reverse)
    _expect_no_vmap("torch.scan")
    if any(one.shape[dim] != size for one in found):
        raise LoopMismatch("torch.scan", "rows of one number", _brief(found), where=places.here())
    leaves, nest = _leaves(init)
    given = _as_tensors(leaves, "torch.scan")
    rows = [one.movedim(dim, 0) if dim % one.dim() else one for one in found]
    # a row of a varying number of them: any will do to trace with
    inputs = [*given, *(one.select(0, 0) for one in rows)]
    done = _region(combine_fn, inputs, [nest, tree], lambda leaves: _as_tensors(leaves, "torch.scan"))
    if done.nest.num_children != 2:
        raise LoopMismatch("torch.scan", "a step that gives (carry, output)", _brief(done.own), where=places.here())
    after, out = done.nest.children()
    _expect_carried("torch.scan", given, done.own[: after.num_leaves], nest, after)
    made = _ran("scan", [done], [*given, *rows], carried=len(given), reverse=reverse)
    return _pytree.tree_unflatten(made[: len(given)], nest), _pytree.tree_unflatten(made[len(given) :], out)


def _scan_unrolled(combine_fn: Callable[..., Any], init: Any, xs: Any, *, dim: int = 0, reverse: bool = False) -> Any:
    found, tree = _leaves(xs)
    size = found[0].shape[dim]
    if not size:
        raise ValueError("expected at least one row to scan over, got none")
    carry, made = init, []
    for k in reversed(range(size)) if reverse else range(size):
        carry, out = combine_fn(carry, _pytree.tree_unflatten([one.select(dim, k) for one in found], tree))
        made.append(out)
    return carry, _stacked(made[::-1] if reverse else made)


def _associative_scan(*_: Any, **__: Any) -> Any:
    raise LoopNotSupported(
        "associative_scan",
        "in plans",
        "write it with torch's scan, or cumsum and cumprod",
        where=places.here(),
    )


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
    "scan": _scan_unrolled,
    "while_loop": _while_eager,
}
