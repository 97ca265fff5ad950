"""Compares what the checker says of an op with what torch does.

A case is a call of one op. It is run three times: by torch; as a plan of one op whose shapes are numbers; and as one
where every size above 1 is a symbol. The checker's types must be torch's, and the runtime's results must be torch's,
to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from broker.protocol.tensors import DTYPES
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedGraph, CheckedPlan, check_graph
from edge_agent.plan.errors import PlanError
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import (
    FORMAT_VERSION,
    Argument,
    Graph,
    Input,
    Manifest,
    Op,
    Special,
    Symbol,
    decode_graph,
    digest_of,
    encode_graph,
)
from edge_agent.plan.registry import lookup
from edge_agent.runtimes.torch import LoadedPlan, TorchRuntime, overload
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES, encode_tensor

ALL_DTYPES = tuple(DTYPES)

SOME_DTYPES = (
    "bool",
    "uint8",
    "int32",
    "int64",
    "uint16",
    "float16",
    "float32",
    "float64",
    "complex64",
)
"""One of each kind: for pairs, of which there are many. See test_dtypes for all of them."""

TORCH_REFUSALS = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
"""What torch raises for a call that it does not take."""


@dataclass(frozen=True)
class T:
    """A tensor of a case, made when the case is run: ``fill`` is rand, ones, zeros, index (0 and 1), sorted, spd
    (positive definite).
    """

    dtype: str
    shape: tuple[int, ...]
    fill: str = "rand"

    def make(self, generator: torch.Generator) -> torch.Tensor:
        """The tensor."""
        dtype = TORCH_DTYPES[self.dtype]
        if self.fill == "ones":
            return torch.ones(self.shape, dtype=dtype)
        if self.fill == "zeros":
            return torch.zeros(self.shape, dtype=dtype)
        if self.fill == "index":
            return torch.randint(0, 2, self.shape, generator=generator).to(dtype)
        values = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        if self.fill == "sorted":
            return values.sort().values.to(dtype)
        if self.fill == "spd":
            return (values @ values.mT + 4 * torch.eye(self.shape[-1])).to(dtype)
        if not (dtype.is_floating_point or dtype.is_complex):
            values = values * 4 + 1
        return values.to(dtype)


def f32(*shape: int) -> T:
    """A float32 tensor."""
    return T("float32", shape)


def i64(*shape: int) -> T:
    """An int64 tensor of zeros and ones: an index."""
    return T("int64", shape, "index")


def boolean(*shape: int) -> T:
    """A bool tensor."""
    return T("bool", shape, "index")


@dataclass(frozen=True)
class Call:
    """A call of an op."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}{self.args}{self.kwargs or ''}".replace("float32", "f32")


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    """A call of ``aten.<name>``; the overload is ``default`` where none is named."""
    full = f"aten.{name}" if "." in name else f"aten.{name}.default"
    return Call(full, args, kwargs)


def made(value: Any, generator: torch.Generator) -> Any:
    """A case's argument with its tensors made."""
    if isinstance(value, T):
        return value.make(generator)
    if isinstance(value, list | tuple):
        return [made(one, generator) for one in value]
    return value


class _Plan:
    """A plan of one op, as arguments are added to it."""

    def __init__(self, *, symbolic: bool) -> None:
        self.symbolic = symbolic
        self.inputs: list[Input] = []
        self.tensors: list[torch.Tensor] = []

    def argument(self, value: Any) -> Argument:
        if isinstance(value, torch.Tensor):
            shape = [f"n{size}" if self.symbolic and size > 1 else size for size in value.shape]
            self.inputs.append(Input(name=f"x{len(self.inputs)}", dtype=DTYPE_NAMES[value.dtype], shape=list(shape)))
            self.tensors.append(value)
            return Special(v=len(self.inputs) - 1)
        if isinstance(value, list | tuple):
            return Special(l=[self.argument(one) for one in value])
        if isinstance(value, torch.dtype):
            return Special(d=DTYPE_NAMES[value])
        if isinstance(value, torch.memory_format):
            return Special(o=f"memory_format:{str(value).removeprefix('torch.')}")
        if isinstance(value, complex):
            return Special(c=(value.real, value.imag))
        assert value is None or isinstance(value, bool | int | float | str)
        return value

    def graph(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], outputs: int) -> Graph:
        bound = [self.argument(one) for one in args]
        named = {key: self.argument(one) for key, one in kwargs.items()}
        symbols = sorted({dim for one in self.inputs for dim in one.shape if isinstance(dim, str)})
        graph = Graph(
            inputs=self.inputs,
            ops=[Op(name=name, args=bound, kwargs=named, outputs=outputs)],
            outputs=[len(self.inputs) + place for place in range(outputs)],
            signature=["t", ["t", *range(len(self.inputs))], ["d"]],
            tree=["t", *range(outputs)],
            symbols=[Symbol(name=symbol, low=2) for symbol in symbols],
        )
        return decode_graph(encode_graph(graph))


def loaded(checked: CheckedGraph, state: Sequence[torch.Tensor] = ()) -> LoadedPlan:
    """A graph ready to run."""
    manifest = Manifest(
        version=FORMAT_VERSION, graph=digest_of(encode_graph(checked.graph)), outputs=checked.output_types
    )
    return TorchRuntime().load(CheckedPlan(manifest, checked), state)


def refusal(case: Call) -> PlanError | None:
    """What the checker says of a call that it refuses, with its sizes known; None if it takes it."""
    generator = torch.Generator().manual_seed(0)
    args, kwargs = _arguments(case, generator)
    try:
        check_graph(_Plan(symbolic=False).graph(case.name, args, kwargs, lookup(case.name).outputs or 1))
    except PlanError as error:
        return error
    return None


def _arguments(case: Call, generator: torch.Generator) -> tuple[list[Any], dict[str, Any]]:
    return made(list(case.args), generator), {name: made(value, generator) for name, value in case.kwargs.items()}


def torch_results(case: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """What torch gives for the call."""
    with torch.no_grad():
        found = overload(case.name)(*args, **kwargs)
    return list(found) if isinstance(found, list | tuple) else [found]


def assert_agrees(case: Call, *, dynamic: bool = True) -> None:
    """The checker's types and the runtime's results are torch's. ``dynamic``: also with symbolic sizes."""
    args, kwargs = _arguments(case, torch.Generator().manual_seed(0))
    wanted = torch_results(case, args, kwargs)
    shares = any(
        one.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() and one.numel()
        for one in wanted
        for given in _tensors((args, kwargs))
    )
    assert lookup(case.name).views or not shares, f"{case} gives a view, and the registry does not say so"
    for symbolic in (False, True) if dynamic else (False,):
        plan = _Plan(symbolic=symbolic)
        checked = check_graph(plan.graph(case.name, args, kwargs, len(wanted)))
        shapes = [(DTYPE_NAMES[one.dtype], tuple(one.shape)) for one in plan.tensors]
        sizes = bind_sizes(checked.graph, shapes)
        predicted = [(one.dtype, [evaluate(dim, sizes) for dim in one.shape]) for one in checked.output_types]
        assert predicted == [(DTYPE_NAMES[one.dtype], list(one.shape)) for one in wanted], f"{case}, {symbolic=}"
        found = loaded(checked).run(plan.tensors, sizes)
        for own, other in zip(found, wanted, strict=True):
            assert encode_tensor(own) == encode_tensor(other), f"{case}, {symbolic=}"


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for one in value for found in _tensors(one)] if isinstance(value, list | tuple) else []


def assert_agrees_where_torch_runs(case: Call) -> bool:
    """As `assert_agrees`, for a call that torch may refuse; whether torch ran it."""
    try:
        args, kwargs = _arguments(case, torch.Generator().manual_seed(0))
        results = torch_results(case, args, kwargs)
    except TORCH_REFUSALS:
        return False
    if any(one.dtype not in DTYPE_NAMES for one in results):  # such as the complex numbers of two halves
        assert refusal(case) is not None
        return False
    assert_agrees(case)
    return True
