"""What running a plan costs: floating point operations and peak memory, as formulas in its symbolic dims.

Derived from a checked graph by whoever needs it; it is no part of the plan. Counted as `torch.utils.flop_counter` does
for products of matrices and convolutions, 2 operations for a multiplication and its addition; beside these, one for
each element that an op gives, or that a reduction takes. Matrix decompositions count n³ times the factor of the
textbook algorithm (Golub and Van Loan, "Matrix Computations", 4th ed.), a sort 32 for each element (log2 of 2^32), a
Fourier transform 5 * 32. A branch counts as the dearer of its sides, a loop as often as `edge_agent.plan.trips` says.

Memory is that of all values that are needed at one time, those of inputs and state included; views take none. What an
op needs inside itself is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.expressions import evaluate, render, symbols_of
from edge_agent.plan.format import Dim, Graph, Op, TensorType
from edge_agent.plan.nesting import all_ops, argument_of, uses_of
from edge_agent.plan.polynomials import Poly, add, freeze, parse, to_expression
from edge_agent.plan.sizes import Sizes
from edge_agent.plan.trips import Trips

__all__ = ["Cost", "CostModel", "cost_of"]

_PEAKS = 16
"""Formulas of which the greatest is the peak; what would be one more is added to the last, as an upper bound."""

_SORT, _FOURIER = 32, 160

_ITEM = {"bfloat16": 2, "bool": 1, "complex64": 8, "complex128": 16}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run costs. ``flops``: operations on numbers; ``peak_bytes``: memory for values, state included;
    ``state_bytes``: of that, the plan's own. ``bounded`` False: it has a loop of which nobody can say how often it
    runs; then the others count it once.
    """

    flops: int
    peak_bytes: int
    state_bytes: int
    bounded: bool = True

    def __str__(self) -> str:
        more = "" if self.bounded else ", and as often as its loops run"
        return f"{_short(self.flops, 1000)} operations, {_short(self.peak_bytes, 1024)}B at most{more}"


@dataclass(frozen=True)
class CostModel:
    """The formulas: expressions in the graph's symbols. The peak is the greatest of ``peaks``."""

    graph: Graph
    flops: Dim
    peaks: tuple[Dim, ...]
    state_bytes: int
    bounded: bool

    def at(self, sizes: Mapping[str, int]) -> Cost:
        """The cost where the symbols have these sizes. A symbol that only running can tell counts with its upper
        bound.

        Raises `ArgumentMismatch` for a symbol that is missing or unknown, or can't have that size, `ConditionFailed`
        beyond 64 bits.
        """
        known = {symbol.name: symbol for symbol in self.graph.symbols}
        for name, size in sizes.items():
            if name not in known:
                raise ArgumentMismatch(name, f"one of the sizes {', '.join(known) or '(none)'}", "this name")
            if not _is_size(size, known[name].low):
                raise ArgumentMismatch(name, f"a size of {known[name].low} or more", repr(size))
        full = dict(sizes)
        for name, symbol in known.items():
            if name not in full:
                if symbol.high is None or self._told(name):
                    raise ArgumentMismatch(name, "a size", "nothing")
                full[name] = symbol.high
        flops, *peaks = (int(evaluate(one, full)) for one in (self.flops, *self.peaks))
        return Cost(flops=flops, peak_bytes=max(peaks), state_bytes=self.state_bytes, bounded=self.bounded)

    def _told(self, name: str) -> bool:
        return any(name in symbols_of(dim) for one in self.graph.inputs for dim in one.shape)

    def __repr__(self) -> str:
        return f"<CostModel {'; '.join(str(self).splitlines())}>"

    def __str__(self) -> str:
        peak = " or ".join(render(one) for one in self.peaks)
        lines = [f"operations: {render(self.flops)}", f"peak bytes: {peak}", f"state bytes: {self.state_bytes}"]
        return "\n".join([*lines, *([] if self.bounded else ["without a bound: it has a loop that decides by itself"])])


def _is_size(size: object, low: int) -> bool:
    return isinstance(size, int) and size >= low


def cost_of(checked: CheckedGraph) -> CostModel:
    """The formulas of a checked graph."""
    graph = checked.graph
    sizes = Sizes(ops=sum(1 for _ in all_ops(graph)))
    counter = _Counter(sizes, Trips(sizes))
    flops = counter.total(checked)
    state = sum(_fixed_bytes(one) for one in graph.inputs if one.kind == "state")
    peaks = _peaks(checked, sizes, range(len(graph.inputs)))
    return CostModel(graph, flops, tuple(to_expression(one) for one in peaks), state, counter.bounded)


# ------------------------------------------------------------------------------------------------ operations


@dataclass
class _Counter:
    sizes: Sizes
    trips: Trips
    bounded: bool = True
    rules: Mapping[str, Callable[..., Dim]] = field(default_factory=lambda: _RULES)

    def total(self, checked: CheckedGraph) -> Dim:
        """All ops of a graph, once."""
        flops: Dim = 0
        for index, (op, spec, results) in enumerate(
            zip(checked.graph.ops, checked.specs, _results(checked), strict=True)
        ):
            if index in checked.inner:
                flops = self.sizes.add(flops, self._nested(checked, index))
                continue
            arguments = [checked.types[value] for one in (*op.args, *op.kwargs.values()) for value in uses_of(one)]
            flops = self.sizes.add(flops, self._count(op, spec.family, spec.views, arguments, results))
        return flops

    def _count(
        self, op: Op, family: str, views: bool, arguments: Sequence[TensorType], results: Sequence[TensorType]
    ) -> Dim:
        name = op.name.split(".")[1]
        rule = self.rules.get(name)
        if rule is not None:
            return rule(self.sizes, arguments, results)
        if views:
            return 0
        if "fft" in name:
            return self.sizes.mul(_FOURIER, self._elements(results))
        if family == "sorting":
            return self.sizes.mul(_SORT, self._elements(arguments))
        if family == "reduction":
            return self._elements(arguments)
        return self._elements(results)

    def _elements(self, types: Sequence[TensorType]) -> Dim:
        return self.sizes.add(0, *(self.sizes.mul(1, *one.shape) for one in types))

    def _nested(self, checked: CheckedGraph, index: int) -> Dim:
        """A branch costs what the dearer of its sides does; a loop as often as it runs at most, or, where nobody can
        say that, once.
        """
        inner = {name: self.total(one) for name, one in checked.inner[index].items()}
        if "if_true" in inner:
            return self.sizes.max(*inner.values())
        steps = self.trips.most(checked, index)
        if steps is None:
            self.bounded = False
            steps = 1
        asked = inner.pop("condition", 0)  # once more than the body runs
        (body,) = inner.values()
        return self.sizes.add(self.sizes.mul(steps, self.sizes.add(body, asked)), asked)


def _product(sizes: Sizes, arguments: Sequence[TensorType], results: Sequence[TensorType]) -> Dim:
    """A product of matrices: every element of the result sums over the last dim of the left one."""
    return sizes.mul(2, *results[0].shape, *arguments[0].shape[-1:])


def _product_added(sizes: Sizes, arguments: Sequence[TensorType], results: Sequence[TensorType]) -> Dim:
    """As `_product`, the left one being the second argument, and one addition more."""
    product = sizes.mul(2, *results[0].shape, arguments[1].shape[-1])
    return sizes.add(product, sizes.mul(1, *results[0].shape))


def _linear(sizes: Sizes, arguments: Sequence[TensorType], results: Sequence[TensorType]) -> Dim:
    product = _product(sizes, arguments, results)
    return sizes.add(product, sizes.mul(1, *results[0].shape)) if len(arguments) > 2 else product


def _convolution(sizes: Sizes, arguments: Sequence[TensorType], results: Sequence[TensorType]) -> Dim:
    return sizes.mul(2, *results[0].shape, *arguments[1].shape[1:])


def _transposed_convolution(sizes: Sizes, arguments: Sequence[TensorType], _: Sequence[TensorType]) -> Dim:
    return sizes.mul(2, *arguments[0].shape, *arguments[1].shape[1:])


def _outer(sizes: Sizes, _: Sequence[TensorType], results: Sequence[TensorType]) -> Dim:
    return sizes.mul(2, *results[0].shape)


def _cubic(factor: int) -> Callable[..., Dim]:
    def rule(sizes: Sizes, arguments: Sequence[TensorType], _: Sequence[TensorType]) -> Dim:
        return sizes.mul(factor, *arguments[0].shape, arguments[0].shape[-1])

    return rule


def _nothing(_sizes: Sizes, _arguments: Sequence[TensorType], _results: Sequence[TensorType]) -> Dim:
    return 0


_RULES: dict[str, Callable[..., Dim]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "matmul", "tensordot"), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), _product_added),
    **dict.fromkeys(("ger", "outer", "addr", "kron"), _outer),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("linalg_cholesky", "linalg_cholesky_ex", "linalg_det", "_linalg_det"), _cubic(1)),
    **dict.fromkeys(("linalg_inv", "linalg_inv_ex", "linalg_solve", "_linalg_solve_ex", "linalg_qr"), _cubic(2)),
    **dict.fromkeys(("linalg_eigh", "_linalg_eigh"), _cubic(9)),
    **dict.fromkeys(("linalg_svd", "_linalg_svd"), _cubic(22)),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach"), _nothing),
    "linear": _linear,
}


# ------------------------------------------------------------------------------------------------ memory


def _peaks(checked: CheckedGraph, sizes: Sizes, owned: Iterable[int]) -> list[Poly]:
    """Formulas of the memory in use while each op runs, without those that another one never falls below. ``owned``:
    the inputs that count; those of a sub-graph are somebody else's, but for what a loop carries.
    """
    graph = checked.graph
    never = len(graph.ops)
    root, last = _lives(checked)
    polys = [parse(freeze(_nbytes(one, sizes))) for one in checked.types]
    live: Poly = {}
    for value in owned:
        live = add(live, polys[value], 1)
    peaks: list[Poly] = [live]
    free_after: dict[int, list[int]] = {}
    for value, until in enumerate(last):
        if root[value] == value and 0 <= until < never:
            free_after.setdefault(until, []).append(value)
    first = len(graph.inputs)
    for index, op in enumerate(graph.ops):
        made = range(first, first + op.outputs)
        if index in checked.inner:
            for peak in _inner_peaks(checked, index, sizes, [polys[value] for value in made]):
                _keep_greatest(peaks, add(live, peak, 1))
        for value in made:
            if root[value] == value:
                live = add(live, polys[value], 1)
        first += op.outputs
        _keep_greatest(peaks, live)
        for value in free_after.get(index, ()):
            live = add(live, polys[value], -1)
    return peaks


def _lives(checked: CheckedGraph) -> tuple[list[int], list[int]]:
    """For each value, whose memory it is, and the op after which that is free."""
    graph = checked.graph
    root = list(range(len(checked.types)))
    last = [-1] * len(checked.types)
    never = len(graph.ops)
    first = len(graph.inputs)
    for index, (op, spec) in enumerate(zip(graph.ops, checked.specs, strict=True)):
        used = [root[value] for one in (*op.args, *op.kwargs.values()) for value in uses_of(one)]
        for value in used:
            last[value] = index
        for value in range(first, first + op.outputs):
            if spec.views and used and index not in checked.inner:
                root[value] = used[0]
            if root[value] == value:
                last[value] = max(last[value], index)
        first += op.outputs
    for value in (*range(len(graph.inputs)), *graph.outputs):
        last[root[value]] = never  # the caller's own, and what is given back
    for index in reversed(range(len(graph.ops)) if checked.inner else ()):
        op = graph.ops[index]
        first -= op.outputs
        if index in checked.inner:  # what a branch or a loop gives may be a view of what it was given
            until = max((last[root[value]] for value in range(first, first + op.outputs)), default=index)
            for one in (*op.args, *op.kwargs.values()):
                for value in uses_of(one):
                    last[root[value]] = max(last[root[value]], until)
    return root, last


def _inner_peaks(checked: CheckedGraph, index: int, sizes: Sizes, made: Sequence[Poly]) -> list[Poly]:
    """What a branch or a loop needs while it runs, beside what it is given: a scan also its rows so far."""
    peaks: list[Poly] = []
    carried = 0
    if "if_true" not in checked.inner[index]:
        place = 1 if "step" in checked.inner[index] else 2
        carried = len(uses_of(argument_of(checked.graph.ops[index], place, "carried")))
    rows: Poly = {}
    for poly in made[carried:] if carried else ():
        rows = add(rows, poly, 1)
    for one in checked.inner[index].values():
        for peak in _peaks(one, sizes, range(carried)):
            _keep_greatest(peaks, add(rows, peak, 1))
    return peaks


def _keep_greatest(peaks: list[Poly], new: Poly) -> None:
    if any(_covers(one, new) for one in peaks):
        return
    peaks[:] = [one for one in peaks if not _covers(new, one)]
    if len(peaks) < _PEAKS:
        peaks.append(dict(new))
        return
    peaks[-1] = {term: max(new.get(term, 0), peaks[-1].get(term, 0)) for term in {**new, **peaks[-1]}}


def _covers(greater: Poly, lesser: Poly) -> bool:
    """Whether one is never below the other, by every term: sizes are never negative."""
    return all(greater.get(term, 0) >= lesser.get(term, 0) for term in {**greater, **lesser})


def _nbytes(one: TensorType, sizes: Sizes) -> Dim:
    return sizes.mul(_item(one.dtype), *one.shape)


def _fixed_bytes(one: Any) -> int:
    return _item(one.dtype) * math.prod(int(dim) for dim in one.shape)


def _item(dtype: str) -> int:
    """Bytes an element."""
    if dtype in _ITEM:
        return _ITEM[dtype]
    return int("".join(filter(str.isdigit, dtype))) // 8


# ------------------------------------------------------------------------------------------------ small things


def _results(checked: CheckedGraph) -> list[list[TensorType]]:
    results, first = [], len(checked.graph.inputs)
    for op in checked.graph.ops:
        results.append(checked.types[first : first + op.outputs])
        first += op.outputs
    return results


def _short(number: int, step: int) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < step or unit == "T":
            return f"{number} " if not unit else f"{number:.3g} {unit}"
        number = number / step  # type: ignore[assignment]
    raise AssertionError
