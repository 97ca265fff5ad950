"""The plan and the function, run side by side: what was captured is believed only after that.

They run at the example's sizes and at others that meet the plan's conditions. The sizes 0 and 1 are left out by torch's
tracing (it assumes 2 or more); the plan takes them if, and only if, it is right there too.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, product
from typing import Any, NoReturn

import torch
from msgspec.structs import replace

from coordinator.capture import places
from coordinator.capture.arguments import Arguments, draw
from coordinator.capture.environment import ALONE
from coordinator.capture.patience import Patience
from coordinator.capture.symbols import Bounds
from coordinator.capture.tracing import results_of
from coordinator.errors import DimPinned, LoopEndless, ResultDiffers
from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.errors import ConditionFailed, OpFailed
from edge_agent.plan.expressions import evaluate, render, symbols_of
from edge_agent.plan.format import Expression, Symbol
from edge_agent.plan.nesting import has_loops
from edge_agent.plan.readable import range_text
from edge_agent.runtimes.torch import LoadedPlan
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES

__all__ = ["SEED", "SideBySide", "resized"]

_STEPS = 64
"""At how many sizes below those of tracing the plan is tried, to reach the example's."""

_FEWEST = 2
"""The smallest size that torch traces with."""

_TOLERANCE: dict[torch.dtype, float] = {
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float64: 1e-8,
    torch.complex128: 1e-8,
}
"""How far two results may lie apart, beside the largest of them: decompositions add up in another order."""

SEED = 1
"""Under which both draw their random numbers."""

_NUDGES = 12
"""How often a function is tried with arguments that differ by its dtype's precision."""

_NOISE = 32
"""How many times the dtype's precision, beside the largest of all results."""


class SideBySide:
    """Runs both. ``eager`` calls the user's code with concrete arguments; with ``gradients``, what its own rounding
    decides there is not held against the plan.
    """

    def __init__(
        self,
        arguments: Arguments,
        eager: Callable[[tuple[Any, ...], dict[str, Any]], Any],
        *,
        gradients: bool = False,
    ) -> None:
        self.arguments = arguments
        self.eager = eager
        self.gradients = gradients
        self._failures: list[Exception] = []

    def check(self, plan: CheckedPlan, loaded: LoadedPlan, bounds: Bounds) -> Bounds:
        """Compare at the example, or at values of ours if all its sizes are fixed; at another size, and at 0 and 1.
        Returns the bounds, wider by what held at 0 and 1.

        Raises `ResultDiffers`; `DimPinned` where no other size meets the conditions; what the function raises itself.
        """
        self._plan, self._graph, self._loaded = plan, plan.graph, loaded
        sizes = self._sizes_of_example()
        if not sizes or (self.arguments.given and all(size >= _FEWEST for size in sizes.values())):
            bounds = self._reaching(bounds, sizes)
            if not self._compare(sizes):
                raise self._own_failure()
        if not bounds.symbols:
            return bounds
        near = {name: max(size, _FEWEST) for name, size in sizes.items()}
        other = next((other for other in islice(bounds.search(near), 4) if self._runs_at(other)), None)
        if other is None:
            self._no_other_size(bounds)
        bounds = self._widened(self._relaxed(bounds, near), other)
        if self.arguments.given and not bounds.hold(sizes):
            raise ResultDiffers("result", "the plan is right only for larger sizes", sizes)
        return bounds

    def _runs_at(self, sizes: Mapping[str, int]) -> bool:
        """As `_compare`; where both fail, once more at the example's own values: changed ones may not suit the code."""
        return self._compare(sizes) or (self.arguments.given and self._compare(sizes, changed=False))

    def _no_other_size(self, bounds: Bounds) -> NoReturn:
        if self._failures and not self.arguments.given:
            raise self._own_failure()
        leaf, dim = next((leaf, dim) for leaf in self.arguments.leaves for dim in leaf.dynamic)
        if self._failures:
            error, where = self._failures[0], places.of_exception(self._failures[0])[0]
            hint = f"at the others that were tried it raises {type(error).__name__}: {error}"
            raise DimPinned(leaf.path, dim, None, hint=hint, where=where) from error
        asked = " and ".join(render(condition) for condition in bounds.conditions) or "its code"
        hint = f"no other size was found that {asked} lets run"
        raise DimPinned(leaf.path, dim, None, by_torch=not bounds.asked, hint=hint)

    def _own_failure(self) -> Exception:
        """What the function raised first, as it is, with its line as a note."""
        error = self._failures[0]
        where, _ = places.of_exception(error)
        if where is not None:
            error.add_note(f"while a plan was built, at {where}")
        if not self.arguments.given:
            what = "values and sizes" if any(leaf.dynamic for leaf in self.arguments.leaves) else "values"
            error.add_note(f"the {what} were made up, since no example was given: build with one if they don't fit")
        return error.with_traceback(places.user_traceback(error))

    # --------------------------------------------------------------------------------------------- the example

    def _reaching(self, bounds: Bounds, sizes: Mapping[str, int]) -> Bounds:
        """The bounds with the example's sizes let in, and those in between, where the plan is right at them and the
        user's own lines don't leave them out: torch assumes 2 or more also of what a slice or a window leaves.

        Raises `DimPinned` where they can't be.
        """
        if bounds.hold(sizes):
            return bounds
        low = {one.name: min(one.low, sizes[one.name]) for one in bounds.symbols}
        lower = dataclasses.replace(bounds, symbols=tuple(replace(one, low=low[one.name]) for one in bounds.symbols))
        between = product(*(range(low[one.name], max(one.low, sizes[one.name]) + 1) for one in bounds.symbols))
        steps = [dict(zip(low, step, strict=True)) for step in islice(between, _STEPS + 1)]
        allowed = [step for step in steps if lower.hold(step) and Bounds((), bounds.lines).hold(step)]
        if len(steps) > _STEPS or sizes not in allowed or not all(map(self._is_right, allowed)):
            self._leave_out(bounds, sizes)
        return lower

    def _leave_out(self, bounds: Bounds, sizes: Mapping[str, int]) -> NoReturn:
        leaf, dim = next((leaf, dim) for leaf in self.arguments.leaves for dim in leaf.dynamic)
        example = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        hint = f"the example has {example}; build with one that has other sizes, or leave them fixed"
        others = " and ".join([*map(range_text, bounds.symbols), *map(render, bounds.conditions)])
        raise DimPinned(leaf.path, dim, None, others=others, hint=hint)

    # --------------------------------------------------------------------------------------------- what torch assumed

    def _relaxed(self, bounds: Bounds, near: Mapping[str, int]) -> Bounds:
        """The bounds without what torch assumed of sizes being different (that a slice has not one row, say) where
        the plan is right also when they are equal. What the user's own lines ask stays.
        """
        assumed = list(bounds.assumed)
        for condition in bounds.assumed:
            if not isinstance(condition, list) or condition[0] != "ne":
                continue
            rest = tuple(other for other in assumed if other != condition)
            equal = Bounds(bounds.symbols, (*bounds.asked, ["eq", *condition[1:]]), rest)
            tried = list(islice(equal.search(dict.fromkeys(near, -1), tries=600), 3))
            if tried and all(self._is_right(sizes) for sizes in tried):
                assumed.remove(condition)
        return dataclasses.replace(bounds, assumed=tuple(assumed))

    # --------------------------------------------------------------------------------------------- 0 and 1

    def _widened(self, bounds: Bounds, near: Mapping[str, int]) -> Bounds:
        """The bounds with the sizes 1 and 0 let in, where the plan is right at them: alone, and all together."""
        for small in (1, 0):
            candidates = [symbol for symbol in bounds.symbols if symbol.low == small + 1]
            good = [symbol for symbol in candidates if self._right_at(bounds, near, [symbol], small)]
            if len(good) > 1 and not self._right_at(bounds, near, good, small, impossible=True):
                good = []
            bounds = _lowered(bounds, good, small)
        return bounds

    def _right_at(
        self,
        bounds: Bounds,
        near: Mapping[str, int],
        symbols: Sequence[Symbol],
        small: int,
        *,
        impossible: bool = False,
    ) -> bool:
        """Whether the plan is right where these symbols are ``small``; ``impossible``: the answer where no such sizes
        meet the conditions.
        """
        if any(_fails_alone(condition, {symbol.name: small for symbol in symbols}) for condition in bounds.conditions):
            return True  # a condition leaves it out, whatever the range says
        only = tuple(
            replace(symbol, low=small, high=small) if symbol in symbols else symbol for symbol in bounds.symbols
        )
        sizes = next(Bounds(only, bounds.asked, bounds.assumed).search(near), None)
        return impossible if sizes is None else self._is_right(sizes)

    def _is_right(self, sizes: Mapping[str, int]) -> bool:
        try:
            return self._compare(sizes)
        except (ResultDiffers, LoopEndless):
            return False

    # --------------------------------------------------------------------------------------------- comparing

    def _sizes_of_example(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for leaf, spec in zip(self.arguments.leaves, self._graph.inputs, strict=False):
            for size, dim in zip(leaf.example.shape, spec.shape, strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, size)
        return sizes

    def _resized(self, sizes: Mapping[str, int], *, changed: bool) -> Arguments:
        generator = torch.Generator().manual_seed(len(sizes)) if changed else None
        return self.arguments.with_examples(
            [
                resized(leaf.example, [int(evaluate(dim, sizes)) for dim in spec.shape], generator)
                for leaf, spec in zip(self.arguments.leaves, self._graph.inputs, strict=False)
            ]
        )

    def _compare(self, sizes: Mapping[str, int], *, changed: bool = True) -> bool:
        """Whether both ran at these sizes, and gave the same. False: neither runs at them. Raises `ResultDiffers`."""
        arguments = self._resized(sizes, changed=changed)
        values = [leaf.value() for leaf in arguments.leaves]
        inputs = [leaf.example.clone() for leaf in arguments.leaves]
        with ALONE, warnings.catch_warnings():
            if sizes != self._sizes_of_example():
                warnings.simplefilter("ignore")  # the sizes are ours: what they make torch warn of is not the user's
            wanted, failed = _outcome(lambda: self.eager(*arguments.call(values)))
            warnings.simplefilter("ignore")  # nor what is said for the second time
            if has_loops(self._graph):
                patience = Patience()
                self._loaded.between_ops = lambda _: patience.spend()
            got, refused = _outcome(lambda: self._loaded.run(inputs, dict(sizes), seed=SEED))
        if failed and refused:
            self._failures.append(failed)
            return False
        if failed or refused:
            who, error = ("function", failed) if failed else ("plan", refused)
            other = "plan" if failed else "function"
            raise ResultDiffers(
                "result", f"the {who} fails ({type(error).__name__}: {error}), the {other} does not", sizes
            )
        tree, leaves, paths = results_of(wanted)
        if tree != self._graph.tree:
            raise ResultDiffers(
                "output", f"the function's results nest as {tree}, the plan's as {self._graph.tree}", sizes
            )
        largest = max(map(_scale, leaves), default=0.0)
        spread: list[Any] | None = None
        for k, path in enumerate(paths):
            declared = self._plan.manifest.outputs[k]
            difference = _difference(leaves[k], got[k], largest)
            if difference and self.gradients:
                spread = spread or self._spread(arguments, leaves)
                difference = _difference(leaves[k], got[k], largest, spread[k])
            difference = difference or _undeclared(got[k], declared, sizes)
            if difference:
                raise ResultDiffers(path, difference, sizes)
        return True

    def _spread(self, arguments: Arguments, leaves: Sequence[Any]) -> list[Any]:
        """How far the function's own results move when its arguments do by next to nothing. An adaptive optimiser
        divides a gradient by its own size: where that is noise around 0, so is the sign of the step.
        """
        generator = torch.Generator().manual_seed(0)
        spread: list[Any] = [0.0] * len(leaves)
        for _ in range(_NUDGES):
            nudged = [
                leaf.example if leaf.number is not None else _nudged(leaf.example, generator)
                for leaf in arguments.leaves
            ]
            moved = arguments.with_examples(nudged)
            with ALONE, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = results_of(self.eager(*moved.call([leaf.value() for leaf in moved.leaves])))[1]
            for k, (before, after) in enumerate(zip(leaves, found, strict=True)):
                if isinstance(before, torch.Tensor) and before.dtype in _TOLERANCE and before.shape == after.shape:
                    spread[k] = torch.maximum(torch.as_tensor(spread[k]), (before - after).detach().abs())
        return spread


def _lowered(bounds: Bounds, symbols: Sequence[Symbol], low: int) -> Bounds:
    lowered = tuple(replace(symbol, low=low) if symbol in symbols else symbol for symbol in bounds.symbols)
    return dataclasses.replace(bounds, symbols=lowered)


def _fails_alone(condition: Expression, sizes: Mapping[str, int]) -> bool:
    return symbols_of(condition) <= sizes.keys() and not Bounds((), (condition,)).hold(sizes)


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except (ConditionFailed, OpFailed, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return None, error


def resized(tensor: torch.Tensor, shape: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
    """An example of another size, of the same sort: its own values over again, those of floats a little changed, if
    there is a generator to do so.
    """
    if list(tensor.shape) == list(shape):
        return tensor
    if tensor.numel() == 0:
        return draw(shape, tensor.dtype, generator or torch.Generator().manual_seed(0))
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size:
            # by an index: index_select has no unsigned integers but uint8
            tensor = tensor.transpose(0, dim)[torch.arange(size) % tensor.shape[dim]].transpose(0, dim)
    if generator is not None and (tensor.is_floating_point() or tensor.is_complex()):
        tensor = tensor * (1 + 0.1 * draw(shape, tensor.dtype, generator))
    return tensor.contiguous()


def _difference(wanted: Any, got: torch.Tensor, largest: float, spread: Any = 0.0) -> str:
    """What tells a result from the one wanted; empty if nothing does. ``largest``: of all results, the largest number.
    What should be 0, such as the gradient of a bias before a batch norm, is the noise of what it was computed of.
    ``spread``: how far each number moves by itself.
    """
    if not isinstance(wanted, torch.Tensor):
        wanted = torch.tensor(wanted, dtype=torch.float64 if isinstance(wanted, float) else None)
    wanted = wanted.detach().cpu()
    if wanted.dtype != got.dtype:
        return f"{wanted.dtype} became {got.dtype}"
    if wanted.shape != got.shape:
        return f"shape {tuple(wanted.shape)} became {tuple(got.shape)}"
    tolerance = _TOLERANCE.get(wanted.dtype, 0.0)
    noise = _NOISE * torch.finfo(wanted.dtype).eps * max(largest, 1.0) if tolerance else 0.0
    if not tolerance:
        same = torch.equal(wanted, got)
    else:
        within = torch.isclose(wanted, got, rtol=tolerance, atol=tolerance * _scale(wanted) + noise, equal_nan=True)
        same = bool((within | ((wanted - got).abs() <= 4 * torch.as_tensor(spread))).all())
    if same:
        return ""
    return f"its values differ by up to {_largest_gap(wanted, got)}"


def _nudged(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.dtype not in _TOLERANCE:
        return tensor
    return tensor * (1 + torch.finfo(tensor.dtype).eps * draw(tensor.shape, tensor.dtype, generator))


def _scale(result: Any) -> float:
    """The largest finite number in a result of floats."""
    if not isinstance(result, torch.Tensor) or result.dtype not in _TOLERANCE:
        return 0.0
    finite = result.detach()[torch.isfinite(result)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _largest_gap(wanted: torch.Tensor, got: torch.Tensor) -> str:
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    gap = (wanted.to(wide) - got.to(wide)).abs()
    return f"{float(gap.nan_to_num(float('inf')).max()):.3g}"


def _undeclared(got: torch.Tensor, declared: Any, sizes: Mapping[str, int]) -> str:
    shape = [evaluate(dim, sizes) for dim in declared.shape]
    if declared.dtype != DTYPE_NAMES[got.dtype] or shape != list(got.shape):
        return f"the plan declares {declared.dtype}{shape} and gives {DTYPE_NAMES[got.dtype]}{list(got.shape)}"
    return ""
