"""The torch runtime: a checked plan to a callable that runs it, op by op.

Loading does all that can be done once: it resolves the registry's overloads, and lays out a list of *slots*: the
plan's values first, then constants, symbolic numbers, and lists made of others. A step takes its arguments from slots
and puts its results into slots; running is a loop over steps. A sub-graph is laid out likewise, with slots of its own;
each run of the plan makes a function of it, in a slot from which its op takes it.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from edge_agent.plan.checker import CheckedGraph, CheckedPlan
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import Argument, Expression, Graph, Op, Special, TensorType
from edge_agent.plan.nesting import all_ops, uses_of
from edge_agent.plan.readable import step_text
from edge_agent.plan.registry import REGISTRY, OpSpec, Parameter
from edge_agent.runtimes.random import drawn
from edge_agent.runtimes.torch_bindings import binding
from edge_agent.runtimes.torch_control import CONTROL
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

__all__ = ["LoadedPlan", "OpFailed", "TorchRuntime", "overload"]

_MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_CPU = torch.device("cpu")

# bound once: what is asked at each run of a plan adds up to as much as a small op
_grad_enabled, _set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled  # noqa: SLF001
_default_dtype, _autocast_enabled = torch.get_default_dtype, torch.is_autocast_enabled


class _Step(NamedTuple):
    """``slots[target] = call(*gather(slots))``; then the slots in ``free`` are emptied. ``many``: how many slots from
    ``target`` on take the results, for an op with any other number of outputs than one. ``op``: which op of its graph
    it belongs to.
    """

    call: Callable[..., Any]
    gather: Callable[[list[Any]], Sequence[Any]]
    target: int
    many: int | None
    free: tuple[int, ...]
    op: int


def overload(name: str) -> torch._ops.OpOverload[..., Any]:
    """The torch overload of a registered op. Raises KeyError for any other name, and for one that takes sub-graphs:
    the registry decides what can be run.
    """
    if name in CONTROL:
        raise KeyError(name)
    _, packet, variant = REGISTRY[name].name.split(".")
    found: torch._ops.OpOverload[..., Any] = getattr(getattr(torch.ops.aten, packet), variant)
    return found


def _callable(name: str, arguments: Sequence[Argument]) -> Callable[..., Any]:
    """What is called for an op, without a frame of Python in between."""
    found: Callable[..., Any] = overload(name)._op  # noqa: SLF001
    if all(isinstance(one, Special) and one.v is not None for one in arguments):
        return binding(name, len(arguments)) or found
    return found


class _Ended(BaseException):
    """What `LoadedPlan.between_ops` raised inside a sub-graph, on its way out: no error of an op."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


class _Run:
    """One run of a plan with sub-graphs: its sizes, and which op of the plan itself is running, for ``between_ops``."""

    __slots__ = ("_between", "_op", "sizes", "watched")

    def __init__(self, sizes: Mapping[str, int], between: Callable[[int], None] | None) -> None:
        self.sizes = sizes
        self.watched = between is not None
        self._op = 0
        self._between = between

    def before(self, op: int) -> None:
        """Before each op of the plan itself."""
        assert self._between is not None  # else nobody watches
        self._op = op
        self._between(op)

    def inside(self, _op: int = 0) -> None:
        """Before each op of a sub-graph."""
        assert self._between is not None
        try:
            self._between(self._op)
        except BaseException as error:  # noqa: BLE001 -- it is raised again, as it was, at the end of the run
            raise _Ended(error) from None


class LoadedPlan:
    """A plan with its state, ready to run, as often as wanted, also from several threads at once.

    ``between_ops``, if set, is called with each op's index before that op runs, and with that of the op that takes it
    before each op of a sub-graph; what it raises ends the run, unchanged.
    """

    def __init__(self, graph: Graph, layout: _Layout) -> None:
        self.between_ops: Callable[[int], None] | None = None
        self._graph = graph
        self._layout = layout
        self._inner = layout.inner
        self._slots = layout.slots
        self._symbolic = layout.symbolic
        self._results = _gatherer([value for value, _ in layout.outputs])
        self._shared = [place for place, (_, shared) in enumerate(layout.outputs) if shared]
        self._deterministic = any(_needs_order(own.ops[place]) for own, place in all_ops(graph))
        self._inputs = len(graph.given)
        self._draws = [(slot, one) for slot, one in enumerate(graph.inputs) if one.kind == "random"]

    def run(
        self, user_inputs: Sequence[torch.Tensor], sizes: Mapping[str, int], *, seed: int = 0, step: int = 0
    ) -> list[torch.Tensor]:
        """The plan's outputs, one a leaf of its output tree, sharing no memory with each other, with the inputs or
        with the state.

        ``sizes`` comes from `edge_agent.plan.calls.bind_sizes`, which has checked the inputs. ``seed`` and ``step``
        decide what is drawn. Raises `OpFailed`, or `ConditionFailed` for a size that is not one.
        """
        slots = self._slots.copy()
        slots[: self._inputs] = user_inputs
        for slot, expression in self._symbolic:
            slots[slot] = evaluate(expression, sizes)
        between = self.between_ops
        if self._inner:
            run = _Run(sizes, between)
            between = run.before if run.watched else None
            for slot, inner in self._inner:
                slots[slot] = _Body(self._graph, inner, run)
        for slot, one in self._draws:
            slots[slot] = torch.from_numpy(drawn(one, sizes, seed, step))
        with_grad = _grad_enabled()
        if with_grad:
            _set_grad_enabled(False)  # what torch.no_grad() does; that itself costs as much as a small op
        try:
            if self._deterministic or _default_dtype() is not torch.float32 or _autocast_enabled("cpu"):
                with _settings(deterministic=self._deterministic):
                    _execute(self._graph, self._layout, slots, between)
            else:
                _execute(self._graph, self._layout, slots, between)
            results = list(self._results(slots))
            for place in self._shared:
                results[place] = results[place].clone()
        except _Ended as ended:
            raise ended.error from None
        finally:
            if with_grad:
                _set_grad_enabled(True)
        return results


def _execute(plan: Graph, layout: _Layout, slots: list[Any], between: Callable[[int], None] | None) -> None:
    """Run the plan, or a sub-graph of it, in its slots. ``between`` is called with each op's index before it runs, and
    what it raises passes. Raises `OpFailed`, with the op's number in the plan.
    """
    op = -1
    for call, gather, target, many, free, index in layout.steps:
        if index != op:
            op = index
            if between is not None:
                between(op)
        try:
            if many is None:
                slots[target] = call(*gather(slots))
            else:
                slots[target : target + many] = _as_many(call(*gather(slots)), many)
        except OpFailed:  # of an op inside
            raise
        except Exception as error:
            raise _failed(plan, layout, op, error) from error
        if free:
            for slot in free:
                slots[slot] = None


def _failed(plan: Graph, layout: _Layout, op: int, error: Exception) -> OpFailed:
    number = layout.first + op
    failed = OpFailed(layout.graph.ops[op].name, number, type(error).__name__, str(error))
    failed.add_note(f"while running {step_text(plan, number)}")
    return failed


class _Body:
    """A sub-graph in one run of a plan: see `edge_agent.runtimes.torch_control.Body`."""

    __slots__ = ("_layout", "_plan", "_run", "_slots", "outputs")

    def __init__(self, plan: Graph, layout: _Layout, run: _Run) -> None:
        self.outputs = len(layout.outputs)
        self._plan = plan
        self._layout = layout
        self._run = run
        self._slots = layout.slots.copy()
        for slot, expression in layout.symbolic:
            self._slots[slot] = evaluate(expression, run.sizes)
        for slot, inner in layout.inner:
            self._slots[slot] = _Body(plan, inner, run)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        layout = self._layout
        slots = self._slots.copy()
        slots[: len(inputs)] = inputs
        inside = self._run.inside if self._run.watched else None
        if inside is not None and not layout.steps:
            inside()
        _execute(self._plan, layout, slots, inside)
        return [slots[value] for value, _ in layout.outputs]

    def empty(self, place: int, count: int) -> torch.Tensor:
        kind = self._layout.output_types[place]
        shape = [int(evaluate(dim, self._run.sizes)) for dim in kind.shape]
        return torch.empty([count, *shape], dtype=TORCH_DTYPES[kind.dtype])


class TorchRuntime:
    """Loads plans for torch on the CPU."""

    name = "torch"

    def load(self, checked: CheckedPlan, state: Sequence[torch.Tensor]) -> LoadedPlan:
        """Resolve the plan's ops and bind their arguments, once. ``state`` is in the manifest's order."""
        return LoadedPlan(checked.graph, _Layout(checked.checked, state))


class _Layout:
    """Lays out the slots and steps of a plan, or of a sub-graph."""

    def __init__(self, checked: CheckedGraph, state: Sequence[torch.Tensor] = ()) -> None:
        graph = checked.graph
        self.graph = graph
        self.first = checked.first
        self.output_types: list[TensorType] = checked.output_types
        inputs = len(graph.inputs)
        self.slots: list[Any] = [None] * len(checked.types)
        user = len(graph.given)
        self.slots[user : user + len(state)] = state
        self.symbolic: list[tuple[int, Expression]] = []
        self.inner: list[tuple[int, _Layout]] = []
        """The sub-graphs, each with the slot that its op takes it from."""
        self._constants: dict[tuple[type, str], int] = {}
        self._expressions: dict[str, int] = {}
        self._roots = list(range(len(self.slots)))  # a value's root stands for all that may share its memory
        self._lists: set[int] = set()
        steps: list[_Step] = []
        uses: list[Sequence[int]] = []
        bound = inputs
        for index, (op, spec) in enumerate(zip(graph.ops, checked.specs, strict=True)):
            for step, slots in self._op(index, op, spec, bound, checked.inner.get(index, {})):
                steps.append(step)
                uses.append(slots)
            bound += op.outputs
        passing = {*range(user), *range(user + len(state), bound), *self._lists} - set(graph.outputs)
        self.steps = _freeing(steps, uses, passing)
        self.outputs = self._shared(graph, inputs)

    def _op(
        self, index: int, op: Op, spec: OpSpec, target: int, inner: Mapping[str, CheckedGraph]
    ) -> Iterator[tuple[_Step, tuple[int, ...]]]:
        uses: list[int] = []
        args, kwargs = _by_position(spec, op)
        call = CONTROL[spec.name] if inner else _callable(spec.name, [*args, *kwargs.values()])
        slots = []
        graphs = iter(inner.values())
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Special) and argument.g is not None:
                slots.append(self._new(None))
                self.inner.append((slots[-1], _Layout(next(graphs))))
                continue
            slot, parts = self._slot(argument)
            if parts is not None:  # a list whose elements are known only when the plan runs
                yield _Step(_as_list, _gatherer(parts), slot, None, (), index), tuple(parts)
            slots.append(slot)
            uses += uses_of(argument)
        if kwargs:
            call = _with_keywords(call, tuple(kwargs))
        if spec.views:
            for value in uses:
                for output in range(target, target + op.outputs):
                    self._roots[self._root(output)] = self._root(value)
        many = None if op.outputs == 1 and spec.outputs == 1 else op.outputs
        yield _Step(call, _gatherer(slots), target, many, (), index), tuple(slots)

    def _slot(self, argument: Argument) -> tuple[int, list[int] | None]:
        """The slot of an argument; for a list that must be made at every run, also the slots of its elements."""
        if isinstance(argument, Special):
            if argument.v is not None:
                return argument.v, None
            if argument.s is not None:
                return self._expression(argument.s), None
            elements = argument.l if argument.l is not None else argument.t
            if elements is not None and any(
                isinstance(one, Special) and (one.v, one.s) != (None, None) for one in elements
            ):
                made = self._new(None)
                self._lists.add(made)
                return made, [self._slot(one)[0] for one in elements]
        return self._constant(_constant(argument)), None

    def _expression(self, expression: Expression) -> int:
        key = repr(expression)
        if key not in self._expressions:
            self._expressions[key] = self._new(None)
            self.symbolic.append((self._expressions[key], expression))
        return self._expressions[key]

    def _constant(self, value: Any) -> int:
        if isinstance(value, list):
            return self._new(value)
        # repr tells 0.0 from -0.0, and 1 from 1.0 and True
        key = (type(value), repr(value))
        if key not in self._constants:
            self._constants[key] = self._new(value)
        return self._constants[key]

    def _new(self, value: Any) -> int:
        self.slots.append(value)
        return len(self.slots) - 1

    def _root(self, value: int) -> int:
        while self._roots[value] != value:
            self._roots[value] = self._roots[self._roots[value]]
            value = self._roots[value]
        return value

    def _shared(self, graph: Graph, inputs: int) -> list[tuple[int, bool]]:
        """For each output, its slot, and whether it may share memory with an input, the state or an earlier output."""
        taken = {self._root(value) for value in range(inputs)}
        outputs = []
        for value in graph.outputs:
            root = self._root(value)
            outputs.append((value, root in taken))
            taken.add(root)
        return outputs


def _freeing(steps: Sequence[_Step], uses: Sequence[Sequence[int]], passing: set[int]) -> list[_Step]:
    """The steps, each emptying those of the ``passing`` slots that no later one uses. All others belong to the plan,
    or are its outputs.
    """
    freeing: list[_Step] = []
    needed: set[int] = set()
    for step, used in zip(reversed(steps), reversed(uses), strict=True):
        touched = {*used, *range(step.target, step.target + (1 if step.many is None else step.many))}
        freeing.append(step._replace(free=tuple(sorted((touched & passing) - needed))))
        needed |= touched
    return freeing[::-1]


def _as_list(*elements: Any) -> list[Any]:
    return list(elements)


def _as_many(results: Any, count: int) -> Sequence[Any]:
    if len(results) != count:
        raise ValueError(f"expected {count} results, as the plan says, got {len(results)}")
    found: Sequence[Any] = results
    return found


def _gatherer(slots: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """What takes these slots, in order: in C, whatever their number."""
    if len(slots) > 1:
        return operator.itemgetter(*slots)
    start = slots[0] if slots else 0
    return operator.itemgetter(slice(start, start + len(slots)))


def _with_keywords(call: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    count = len(names)

    def called(*args: Any) -> Any:
        return call(*args[:-count], **dict(zip(names, args[-count:], strict=True)))

    return called


def _by_position(spec: OpSpec, op: Op) -> tuple[list[Argument], dict[str, Argument]]:
    """The arguments, with those by name moved to their position where the ones before them are given, and single
    integers that stand for lists made such.
    """
    args = [_as_declared(parameter, argument) for parameter, argument in zip(spec.parameters, op.args, strict=False)]
    kwargs = dict(op.kwargs)
    for parameter in spec.parameters[len(args) :]:
        if parameter.keyword_only or parameter.name not in kwargs:
            break
        args.append(_as_declared(parameter, kwargs.pop(parameter.name)))
    return args, kwargs


def _as_declared(parameter: Parameter, argument: Argument) -> Argument:
    single = type(argument) is int or (isinstance(argument, Special) and argument.s is not None)
    return Special(l=[argument] * parameter.length) if single and parameter.length else argument


def _constant(argument: Argument) -> Any:
    if not isinstance(argument, Special):
        return argument
    if argument.d is not None:
        return TORCH_DTYPES[argument.d]
    if argument.c is not None:
        return complex(*argument.c)
    elements = argument.l if argument.l is not None else argument.t
    if elements is not None:
        return [_constant(one) for one in elements]
    kind, _, name = (argument.o or "").partition(":")
    return {"memory_format": _MEMORY_FORMATS.get(name), "layout": torch.strided, "device": _CPU}[kind]


def _needs_order(op: Op) -> bool:
    # on the CPU, adding up in parallel into shared places is the one op here whose result depends on who comes first
    return op.name == "aten.index_put.default" and (True in op.args[3:4] or op.kwargs.get("accumulate") is True)


@contextlib.contextmanager
def _settings(*, deterministic: bool) -> Iterator[None]:
    """What a plan takes for granted of the process, and gives back as it was: a default dtype of float32;
    deterministic ops, where it matters.
    """
    dtype = torch.get_default_dtype()
    strict = torch.are_deterministic_algorithms_enabled()
    if dtype is not torch.float32:
        torch.set_default_dtype(torch.float32)
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)
        if deterministic:
            torch.use_deterministic_algorithms(strict)
