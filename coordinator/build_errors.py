"""Why a function can't become a plan. See `coordinator.errors` for the whole tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from broker.protocol.errors import EdgePlanError
from edge_agent.plan.errors import UnknownOp

__all__ = [
    "ArgumentNotSupported",
    "BranchesDiffer",
    "DataDependentBranch",
    "DataDependentSize",
    "DimPinned",
    "ExampleMismatch",
    "GradientThroughLoop",
    "GradientsNotSupported",
    "LoopEndless",
    "LoopMismatch",
    "LoopNotSupported",
    "LostSideEffect",
    "MutatedInput",
    "MutatedState",
    "NumpyInPlan",
    "OpNotSupported",
    "OptimizerNotSupported",
    "OutputNotSupported",
    "PlanBuildError",
    "PythonRandomness",
    "RandomInLoop",
    "RandomOpNotSupported",
    "ResultDiffers",
    "SourceLine",
    "ValueLeftLoop",
]


class SourceLine(NamedTuple):
    """A place in the user's code. ``text`` is the line itself, stripped."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class PlanBuildError(EdgePlanError):
    """The function can't become a plan. ``where`` is the line of the user's code, if it is known."""

    def __init__(self, reason: str, *, where: SourceLine | None = None) -> None:
        self.reason = reason
        self.where = where
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason if self.where is None else f"{self.reason}\n    {self.where}"


class ArgumentNotSupported(PlanBuildError):
    """An example argument is of a type that can't travel, or does not fit ``args_shape`` or ``args_dtype``."""

    def __init__(self, argument: str, expected: str, got: str) -> None:
        self.argument = argument
        self.expected = expected
        self.got = got
        super().__init__(f"{argument}: expected {expected}, got {got}")


class ExampleMismatch(PlanBuildError, TypeError):
    """What `build` was given is no call of the function. ``function`` has its parameters, too, as ``score(x, y)``."""

    def __init__(self, function: str, mismatch: str) -> None:
        self.function = function
        self.mismatch = mismatch
        super().__init__(
            f"to build {function}, expected an example of each argument, or args_shape with an entry for each: "
            f"{mismatch}"
        )


class OutputNotSupported(PlanBuildError):
    """A result of the function is not something that a plan can return."""

    def __init__(self, output: str, got: str, *, where: SourceLine | None = None) -> None:
        self.output = output
        self.got = got
        super().__init__(f"{output}: expected tensors and numbers in lists, tuples and dicts, got {got}", where=where)


def _fixed(number: bool) -> str:
    if not number:
        return ""
    return "; it is a number given to build, and so an argument of the plan: to fix it, leave it at its default"


class DataDependentBranch(PlanBuildError):
    """Python decides by what a tensor holds; a plan has no Python on the device. ``number``: the tensor stands for a
    number given to `build`. ``function``: what gives Python's True or False, such as ``torch.equal``; or empty.
    """

    def __init__(self, function: str = "", *, number: bool = False, where: SourceLine | None = None) -> None:
        self.function = function
        self.number = number
        if function:
            reason = (
                f"{function} gives Python's True or False by what tensors hold, which is not known when the plan is "
                "built: make the condition a tensor, such as (x == y).all() or torch.isclose(x, y).all(), and decide "
            )
        else:
            reason = "this line branches on what a tensor holds, which is not known when the plan is built: write it "
        super().__init__(
            f"{reason}with torch.cond(condition, if_true, if_false, operands), or with torch.where; a while with "
            f"torch.while_loop(condition, body, carried){_fixed(number)}",
            where=where,
        )


class BranchesDiffer(PlanBuildError):
    """The branches of a torch.cond give different types."""

    def __init__(self, if_true: str, if_false: str, *, where: SourceLine | None = None) -> None:
        self.if_true = if_true
        self.if_false = if_false
        super().__init__(
            f"the branches of torch.cond must give tensors of the same dtypes and shapes, and give {if_true} and "
            f"{if_false}: make them equal, with .to() and .expand()",
            where=where,
        )


class LoopNotSupported(PlanBuildError):
    """A loop that can't become a part of a plan where it stands. ``loop`` names it, ``instead`` is what to write."""

    def __init__(self, loop: str, because: str, instead: str, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        self.because = because
        self.instead = instead
        super().__init__(f"{loop} does not work {because}; {instead}", where=where)


class LoopMismatch(PlanBuildError):
    """The functions of a loop do not fit each other: a step gives other dtypes, shapes or nesting than the next takes,
    or a condition gives no bool.
    """

    def __init__(self, loop: str, expected: str, got: str, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        self.expected = expected
        self.got = got
        super().__init__(f"{loop}: expected {expected}, got {got}", where=where)


class GradientThroughLoop(PlanBuildError):
    """A gradient is asked for of what a loop without a fixed number of steps gives. ``loop`` names it."""

    def __init__(self, loop: str, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        super().__init__(
            f"a gradient goes through this {loop}, which plans can't: for a fixed number of steps, write a loop "
            "with a bound, for _ in range(n): state = torch.where(going, after(state), state), or scan over a fixed "
            "size; if no gradient is wanted, run the loop under torch.no_grad()",
            where=where,
        )


class RandomInLoop(PlanBuildError):
    """Random numbers are drawn inside a loop whose number of steps is not fixed, so that nobody knows how many."""

    def __init__(self, loop: str, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        super().__init__(
            f"this line draws random numbers inside {loop}, as often as that runs, which plans can't: draw them before "
            "the loop, in one tensor with a row for each step, and scan over that, or take its rows by index",
            where=where,
        )


class LoopEndless(PlanBuildError):
    """A loop did not end while the plan was built, beside it. ``steps``: how far it came."""

    def __init__(self, loop: str, steps: int, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        self.steps = steps
        super().__init__(
            f"{loop} had not ended after {steps:,} steps while the plan was built, which tries it with other values "
            "and sizes too: give it a bound as well, such as a carried count and (count < 1000) & going",
            where=where,
        )


class ValueLeftLoop(PlanBuildError):
    """What is made inside a loop or a branch is used outside without being returned."""

    def __init__(self, loop: str, *, where: SourceLine | None = None) -> None:
        self.loop = loop
        super().__init__(
            f"what this line makes inside {loop} is used outside of it: return it from the function that the loop or "
            "branch runs",
            where=where,
        )


class DataDependentSize(PlanBuildError):
    """A shape, or a number that Python sees, would be made of what a tensor holds."""

    def __init__(self, op: str = "", *, number: bool = False, where: SourceLine | None = None) -> None:
        self.op = op
        self.number = number
        by = f" ({op})" if op else ""
        super().__init__(
            f"this line makes a size or a Python number of what a tensor holds{by}, which is not known when the plan "
            "is built: keep it a tensor, or give the size a bound that the shapes fix (torch.where in place of a mask)"
            f"{_fixed(number)}",
            where=where,
        )


class DimPinned(PlanBuildError):
    """A dim declared dynamic works at one size only, or not at the example's. ``argument`` and ``dim`` name it,
    ``size`` is that one; ``others`` tells the sizes in words where they are others than the example's. ``by_torch``:
    no line of the user's asks for it.
    """

    def __init__(
        self,
        argument: str,
        dim: int | None,
        size: int | None,
        *,
        others: str = "",
        by_torch: bool = False,
        hint: str = "",
        where: SourceLine | None = None,
    ) -> None:
        self.argument = argument
        self.dim = dim
        self.size = size
        self.others = others
        self.by_torch = by_torch
        self.hint = hint
        what = "a dim" if dim is None else f"dim {dim}"
        at = f"for {others}" if others else "at one size" if size is None else f"at the size {size}"
        code = "a plan of this code" if others else "this code"
        reason = f"{what} of {argument} was declared dynamic, but {code} is right only {at}"
        super().__init__(f"{reason}: {hint}" if hint else reason, where=where)


class PythonRandomness(PlanBuildError):
    """Python's own randomness or clock: its value would be frozen into the plan. ``function`` is what was called."""

    def __init__(self, function: str, *, where: SourceLine | None = None) -> None:
        self.function = function
        super().__init__(
            f"{function} gives another value at each call, and a plan would freeze the one it gave at build: "
            "make it an argument of the plan",
            where=where,
        )


class RandomOpNotSupported(PlanBuildError):
    """A random torch op that plans have no numbers for."""

    def __init__(self, op: str, *, where: SourceLine | None = None) -> None:
        self.op = op
        super().__init__(
            f"{op} draws random numbers in a way that plans can't: make them of torch.rand, torch.randn or "
            "torch.randint, or an argument of the plan",
            where=where,
        )


class MutatedInput(PlanBuildError):
    """The function writes to one of its arguments; a device's tensors are never changed by a plan."""

    def __init__(self, argument: str, *, where: SourceLine | None = None) -> None:
        self.argument = argument
        super().__init__(
            f"{argument} is written to in place, and a plan doesn't change its arguments: work on {argument}.clone() "
            "and return it",
            where=where,
        )


class MutatedState(PlanBuildError):
    """The function writes to a buffer, a parameter or a tensor from outside, which stays behind on the coordinator."""

    def __init__(self, name: str, *, where: SourceLine | None = None) -> None:
        self.name = name
        super().__init__(
            f"{name} is written to in place, and a plan doesn't change what it carries: "
            "return the new value, or call eval() on the module if this is batch norm",
            where=where,
        )


class LostSideEffect(PlanBuildError):
    """Python does something besides computing, which a device that runs the plan does not. ``name``: what the line
    changes, or the function that writes: ``print``, ``open``, ``sys.stdout.write``, ``logging.info``.
    """

    def __init__(self, name: str, *, where: SourceLine | None = None) -> None:
        self.name = name
        if name in ("print", "open") or name.startswith(("sys.std", "logging.")):
            reason = (
                f"{name} writes while the plan is built, and would write nothing on a device: return the value, and "
                "print or log it outside, where the result arrives"
            )
        else:
            reason = (
                f"{name} lives outside the function and is changed here, which would be lost on a device: return the "
                f"value, and change {name} (or use logging) outside, where the result arrives; if it is a cache, fill "
                "it before build"
            )
        super().__init__(reason, where=where)


class NumpyInPlan(PlanBuildError):
    """The function needs the values themselves while it is traced: numpy, ``tolist``, a print of a tensor."""

    def __init__(self, function: str, *, where: SourceLine | None = None) -> None:
        self.function = function
        super().__init__(
            f"{function} needs a tensor's values, which are not known when the plan is built: "
            "use torch's functions instead",
            where=where,
        )


class GradientsNotSupported(PlanBuildError):
    """A gradient of something that does not require one."""

    def __init__(self, *, where: SourceLine | None = None) -> None:
        super().__init__(
            "this line computes a gradient, and nothing that it depends on requires one: use torch.func.grad, or call "
            "requires_grad_() on a clone of the argument first",
            where=where,
        )


class OptimizerNotSupported(PlanBuildError):
    """An optimiser whose step can't be made a plan. ``optimizer`` names it."""

    def __init__(self, optimizer: str, because: str, *, where: SourceLine | None = None) -> None:
        self.optimizer = optimizer
        self.because = because
        super().__init__(
            f"{optimizer} can't become a part of a plan: {because}; SGD, Adam, AdamW, RMSprop, Adagrad and others of "
            "torch.optim can",
            where=where,
        )


class OpNotSupported(PlanBuildError, UnknownOp):
    """An op that no device's registry has."""

    def __init__(self, op: str, *, where: SourceLine | None = None) -> None:
        PlanBuildError.__init__(self, f"{op} is not an op that plans can carry yet", where=where)
        self.op = op
        self.index = None

    __str__ = PlanBuildError.__str__


class ResultDiffers(PlanBuildError):
    """Run side by side, the plan and the function differ. ``output`` names the result, ``sizes`` the sizes tried."""

    def __init__(
        self, output: str, difference: str, sizes: Mapping[str, int], *, where: SourceLine | None = None
    ) -> None:
        self.output = output
        self.difference = difference
        self.sizes = dict(sizes)
        at = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "the example"
        super().__init__(
            f"the captured plan is not right: at {at}, its {output} differs from the function's: {difference}",
            where=where,
        )
