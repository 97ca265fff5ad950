"""torch's random ops in terms of ours: each is made of numbers that a plan's random inputs bring.

While a plan is traced, and while its function runs beside it, a random op is replaced by ``edgeplan::draw``, which has
a number of its own for each call, and arithmetic on what that gives. In a plan the draw is an input of kind
``random``; called, it gives what `edge_agent.runtimes.random` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch._decomp.decompositions as torchs_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

from coordinator.errors import RandomOpNotSupported
from edge_agent.runtimes.random import draw
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES

__all__ = ["DRAW", "RANDOM", "Drawn", "drawing", "recurrent_layers"]

aten: Any = torch.ops.aten
_Library: Any = torch.library.Library
_params_hiddens: Any = torchs_decompositions.params_hiddens

_library: Any = _Library("edgeplan", "DEF")
# fake tensors take what has no tensor among its arguments for a maker of tensors, which has a device
_library.define("draw(SymInt[] size, str distribution, ScalarType dtype, int number, *, Device? device=None) -> Tensor")


class _Draws:
    """A seed, and how many draws there have been."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.count = 0


_draws: ContextVar[_Draws] = ContextVar("edgeplan_draws")


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Draw under this seed in this block, from the first number on."""
    token = _draws.set(_Draws(seed))
    try:
        yield
    finally:
        _draws.reset(token)


def _drawn_here(
    size: Sequence[int], distribution: str, dtype: torch.dtype, number: int, *, device: Any = None
) -> torch.Tensor:
    del device
    numbers = draw(distribution, DTYPE_NAMES[dtype], list(size), seed=_draws.get().seed, number=number)
    return torch.from_numpy(numbers)


def _drawn_nowhere(
    size: Sequence[int], distribution: str, dtype: torch.dtype, number: int, *, device: Any = None
) -> torch.Tensor:
    del distribution, number
    return torch.empty(size, dtype=dtype, device=device or "meta")


_library.impl("draw", _drawn_here, "CompositeExplicitAutograd")
_library.impl("draw", _drawn_nowhere, "Meta")

DRAW: Any = torch.ops.edgeplan.draw.default
"""``draw(size, distribution, dtype, number)``."""


class Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Eager code draws as its plan does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """torch calls this in place of ``func``."""
        return RANDOM.get(func, func)(*args, **(kwargs or {}))


def recurrent_layers(
    operand: torch.Tensor,
    hidden: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    layer: Callable[..., Any],
) -> tuple[torch.Tensor, list[Any]]:
    """Stands in for torch's ``_rnn_helper``, which forgets the dropout between layers (torch 2.13 compares the number
    of layers with the layer's the wrong way round).
    """
    operand = operand.transpose(0, 1) if batch_first else operand
    last: list[Any] = []
    for number in range(num_layers):
        own = _params_hiddens(params, hidden, number, bidirectional)
        there, after = layer(operand, own[1], own[0], has_biases)
        last.append(after)
        if bidirectional:
            back, after = layer(operand, own[3], own[2], has_biases, reverse=True)
            last.append(after)
            there = torch.cat([there, back], there.dim() - 1)
        operand = there
        if dropout and train and number < num_layers - 1:
            operand = torch.dropout(operand, dropout, train=True)
    return (operand.transpose(0, 1) if batch_first else operand), last


# ------------------------------------------------------------------------------------------------- distributions


def _next(size: Sequence[int], distribution: str, dtype: torch.dtype) -> Any:
    draws = _draws.get()
    draws.count += 1
    return DRAW(list(size), distribution, dtype, draws.count - 1)


_BITS = {torch.float16: 11, torch.bfloat16: 8}


def _uniform(size: Sequence[int], dtype: torch.dtype | None) -> Any:
    dtype = dtype or torch.get_default_dtype()
    if dtype in _BITS:  # rounded, a number just below 1 would become 1
        steps = 2.0 ** _BITS[dtype]
        return (torch.floor(_next(size, "uniform", torch.float32) * steps) / steps).to(dtype)
    if dtype.is_complex:
        part = torch.float64 if dtype is torch.complex128 else torch.float32
        return torch.complex(_next(size, "uniform", part), _next(size, "uniform", part))
    return _next(size, "uniform", dtype)


def _normal(size: Sequence[int], dtype: torch.dtype | None) -> Any:
    dtype = dtype or torch.get_default_dtype()
    if dtype.is_complex:
        part = torch.float64 if dtype is torch.complex128 else torch.float32
        return torch.complex(_next(size, "normal", part), _next(size, "normal", part)) * 0.5**0.5
    if dtype in _BITS:
        return _next(size, "normal", torch.float32).to(dtype)
    return _next(size, "normal", dtype)


def _integers(low: Any, high: Any, size: Sequence[int], dtype: torch.dtype | None) -> Any:
    share = _next(size, "uniform", torch.float64)
    return (torch.floor(share * (high - low)) + low).to(dtype or torch.int64)


def _exponential(size: Sequence[int], dtype: torch.dtype, rate: float = 1.0) -> Any:
    return -torch.log1p(-_uniform(size, dtype)) / rate


def _kept(size: Sequence[int], share: Any, dtype: torch.dtype) -> Any:
    """True with the probability ``share``: a number, or a tensor."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    return _next(size, "uniform", wide) < share


def _native_dropout(operand: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    if train is False or p == 0:
        return operand.clone(), torch.ones_like(operand, dtype=torch.bool)
    mask = _kept(operand.shape, 1 - p, operand.dtype)
    scale = 1.0 / (1 - p) if p < 1 else 0.0
    return operand * mask * scale, mask


def _multinomial(weights: torch.Tensor, count: int, replacement: bool = False, **_: Any) -> Any:
    """With replacement, where the sum passes a uniform number; else the largest of the weights, each over an
    exponential number (Efraimidis and Spirakis, 2006).
    """
    if replacement:
        sums = weights.cumsum(-1)
        at = _uniform([*weights.shape[:-1], count], weights.dtype) * sums[..., -1:]
        return torch.searchsorted(sums, at, right=True).clamp(max=weights.shape[-1] - 1)
    return torch.topk(weights / _exponential(weights.shape, weights.dtype), count).indices


def _like(made: Callable[..., Any]) -> Callable[..., Any]:
    def function(operand: torch.Tensor, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
        return made(operand.shape, *args, dtype=dtype or operand.dtype)

    return function


def _of(made: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a tensor's shape and dtype, and what a distribution takes."""

    def function(operand: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return made(operand, *args, **{key: value for key, value in kwargs.items() if key != "generator"})

    return function


def _written(made: Callable[..., Any]) -> Callable[..., Any]:
    """As ``made``, written into the tensor."""

    def function(operand: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return operand.copy_(_of(made)(operand, *args, **kwargs))

    return function


def _random_integers(operand: torch.Tensor, low: int = 0, high: int | None = None) -> Any:
    if high is None:
        most = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}.get(operand.dtype)
        high = 1 << most if most else min(torch.iinfo(operand.dtype).max, (1 << 53) - 1) + 1
    return _integers(low, high, operand.shape, operand.dtype)


_DISTRIBUTED: dict[str, Callable[..., Any]] = {
    "uniform": lambda x, low=0.0, high=1.0, **kw: (
        _uniform(x.shape, x.dtype) * (high - kw.get("from", low)) + kw.get("from", low)
    ),
    "normal": lambda x, mean=0.0, std=1.0: _normal(x.shape, x.dtype) * std + mean,
    "exponential": lambda x, lambd=1.0: _exponential(x.shape, x.dtype, lambd),
    "log_normal": lambda x, mean=1.0, std=2.0: torch.exp(_normal(x.shape, x.dtype) * std + mean),
    "cauchy": lambda x, median=0.0, sigma=1.0: (
        torch.tan((_uniform(x.shape, x.dtype) - 0.5) * torch.pi) * sigma + median
    ),
    "geometric": lambda x, p: torch.floor(
        torch.log1p(-_uniform(x.shape, torch.float64)) / torch.log1p(torch.tensor(-p, dtype=torch.float64)) + 1
    ).to(x.dtype),
}


def _generated(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """The table, with an error for generators of the user's own."""

    def guarded(op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("generator") is not None:
                from coordinator.capture import places

                raise RandomOpNotSupported(f"{op} with a generator of its own", where=places.here())
            return function(*args, **kwargs)

        return called

    return {op: guarded(op, function) for op, function in table.items()}


def _table() -> dict[Any, Callable[..., Any]]:
    plain: dict[Any, Callable[..., Any]] = {
        aten.native_dropout.default: _native_dropout,
        aten.multinomial.default: _multinomial,
        aten.bernoulli.default: _of(lambda x: _kept(x.shape, x, x.dtype).to(x.dtype)),
        aten.bernoulli.p: _of(lambda x, p=0.5: _kept(x.shape, p, x.dtype).to(x.dtype)),
        aten.bernoulli.Tensor: _of(lambda x, p: _kept(x.shape, p, p.dtype).to(x.dtype)),
        aten.bernoulli_.float: _written(lambda x, p=0.5: _kept(x.shape, p, x.dtype).to(x.dtype)),
        aten.bernoulli_.Tensor: _written(lambda x, p: _kept(x.shape, p, p.dtype).to(x.dtype)),
        aten.normal.Tensor_float: _of(lambda mean, std=1.0: _normal(mean.shape, mean.dtype) * std + mean),
        aten.normal.float_Tensor: lambda mean, std, **_: _normal(std.shape, std.dtype) * std + mean,
        aten.normal.Tensor_Tensor: _of(lambda mean, std: _normal(mean.shape, mean.dtype) * std + mean),
        aten.normal.float_float: lambda mean, std, size, dtype=None, **_: _normal(size, dtype) * std + mean,
        aten.normal_functional.default: _of(_DISTRIBUTED["normal"]),
        aten.random.default: _of(_random_integers),
        aten.random_.default: _written(_random_integers),
        aten.random_.to: _written(lambda x, high: _random_integers(x, 0, high)),
        aten.random_.__getattr__("from"): _written(_random_integers),
    }
    for suffix in ("default", "generator"):
        plain |= {
            getattr(aten.rand, suffix): lambda size, dtype=None, **_: _uniform(size, dtype),
            getattr(aten.randn, suffix): lambda size, dtype=None, **_: _normal(size, dtype),
            getattr(aten.rand_like, suffix): _like(_uniform),
            getattr(aten.randn_like, suffix): _like(_normal),
            getattr(aten.randint, suffix): lambda high, size, dtype=None, **_: _integers(0, high, size, dtype),
            getattr(aten.randperm, suffix): lambda n, dtype=None, **_: _next([n], "permutation", torch.int64).to(
                dtype or torch.int64
            ),
        }
    plain |= {
        aten.randint.low: lambda low, high, size, dtype=None, **_: _integers(low, high, size, dtype),
        aten.randint.low_generator: lambda low, high, size, dtype=None, **_: _integers(low, high, size, dtype),
        aten.randint_like.default: lambda x, high, dtype=None, **_: _integers(0, high, x.shape, dtype or x.dtype),
        aten.randint_like.low_dtype: lambda x, low, high, dtype=None, **_: _integers(
            low, high, x.shape, dtype or x.dtype
        ),
    }
    for name, made in _DISTRIBUTED.items():
        if name != "normal":
            plain[getattr(aten, name).default] = _of(made)
        plain[getattr(aten, f"{name}_").default] = _written(made)
    return _generated(plain)


RANDOM: Mapping[Any, Callable[..., Any]] = _table()
"""What to call in place of each random op."""
