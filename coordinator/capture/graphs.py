"""From torch's graph to a graph of the plan format: fewer ops, numbers for names, and a source line for each op."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from coordinator.capture import places
from coordinator.capture.arguments import Arguments
from coordinator.capture.draws import DRAW
from coordinator.capture.lowering import is_random, known_ops
from coordinator.capture.symbols import Bounds, Sizes
from coordinator.capture.tracing import Traced
from coordinator.errors import (
    DataDependentSize,
    MutatedInput,
    MutatedState,
    OpNotSupported,
    PlanBuildError,
    RandomOpNotSupported,
    SourceLine,
)
from edge_agent.plan.format import Argument, Dim, Draw, Graph, Input, Op, Special
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES

__all__ = ["StateSource", "graph_of"]

aten = torch.ops.aten


@dataclass(frozen=True)
class StateSource:
    """Where a tensor of the plan's state comes from: a module's parameter or buffer ``name``, the function plan's
    own state (``index``), or a ``tensor`` that the function holds (a constant, or one from outside).
    """

    name: str
    index: int | None = None
    tensor: torch.Tensor | None = None


_PASSED_ON = {
    aten.detach.default,
    aten.alias.default,
    aten.lift.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
"""Ops that give their input: nothing in a plan is written to, so a value may have two names."""

_SAID_ELSEWHERE = {
    aten._assert_scalar.default,  # noqa: SLF001 -- an op's name
    aten._assert_tensor_metadata.default,  # noqa: SLF001 -- an op's name
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
"""Checks that the plan's ranges and conditions make."""

_VALUE_TO_NUMBER = {aten.item.default, aten._local_scalar_dense.default}  # noqa: SLF001 -- an op's name

_ENDLESS = (1 << 63) - 1

_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "pin_memory": (False, None),
    "layout": (torch.strided, None),
    "memory_format": (torch.preserve_format, None),
    "dtype": (None,),
}


def graph_of(
    traced: Traced, arguments: Arguments, *, name: str
) -> tuple[Graph, list[StateSource], list[SourceLine | None], Bounds]:
    """The graph (its symbols and conditions from what tracing assumed), where its state comes from, and the line of
    each op.

    Raises a `PlanBuildError` for what a plan can't carry: a write to an argument, a random op, an op outside the
    registry, a size made of data.
    """
    return _Translation(traced, arguments).graph(name)


class _Translation:
    def __init__(self, traced: Traced, arguments: Arguments) -> None:
        self.traced = traced
        self.arguments = arguments
        self.sizes = Sizes(traced.env, traced.dims, traced.guards)
        self.nodes: list[Node] = list(traced.program.graph.nodes)
        self.signature = traced.program.graph_signature
        self.known = known_ops()
        self.same: dict[Node, Node] = {}
        self.numbers: dict[Node, int] = {}
        self.ops: list[Op] = []
        self.lines: list[SourceLine | None] = []

    def graph(self, name: str) -> tuple[Graph, list[StateSource], list[SourceLine | None], Bounds]:
        self._refuse_writes()
        results = self._results()
        for node in self.nodes:
            self._find_same(node, results)
        live = self._live(results)
        inputs, state = self._inputs(live)
        count = len(inputs)
        for node in self.nodes:
            if node.op == "call_function" and node in live:
                count += self._emit(node, count)
        bounds = self.sizes.bounds()
        graph = Graph(
            inputs=inputs,
            ops=self.ops,
            outputs=[self.numbers[self._resolved(node)] for node in results],
            signature=self.arguments.tree,
            tree=self.traced.tree,
            symbols=list(bounds.symbols),
            conditions=list(bounds.conditions),
            name=name,
        )
        return graph, state, self.lines, bounds

    # --------------------------------------------------------------------------------------------- what is in it

    def _refuse_writes(self) -> None:
        by_name = {node.name: node for node in self.nodes}
        leaves = dict(zip(self.signature.user_inputs, self.arguments.leaves, strict=True))
        for spec in self.signature.output_specs:
            node = by_name.get(getattr(spec.arg, "name", ""))
            where = self._line(node) if node is not None else None
            if spec.kind is OutputKind.USER_INPUT_MUTATION:
                raise MutatedInput(leaves[spec.target].path, where=where)
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                raise MutatedState(self._called(str(spec.target)), where=where)

    def _results(self) -> list[Node]:
        outputs: Any = self.nodes[-1].args[0]
        results = []
        for spec, node in zip(self.signature.output_specs, outputs, strict=True):
            if spec.kind is not OutputKind.USER_OUTPUT or not isinstance(node, Node):
                raise PlanBuildError(f"a result of this function is of a kind that plans don't have: {spec.kind.name}")
            results.append(node)
        return results

    def _find_same(self, node: Node, results: Sequence[Node]) -> None:
        """Note that a node gives the value of another."""
        if node.op != "call_function":
            return
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return
        if node.target in _PASSED_ON or (node.target is aten.slice.Tensor and _takes_all(node)):
            self.same[node] = source
        elif (
            node.target is aten.clone.default
            and not node.kwargs
            and node not in results
            and source.meta["val"].is_contiguous()
        ):
            self.same[node] = source  # a copy in the same layout, made so that it could be written to

    def _resolved(self, node: Node) -> Node:
        while node in self.same:
            node = self.same[node]
        return node

    def _live(self, results: Sequence[Node]) -> set[Node]:
        pending = [self._resolved(node) for node in results]
        live: set[Node] = set()
        while pending:
            node = pending.pop()
            if node not in live:
                live.add(node)
                pending += [self._resolved(source) for source in node.all_input_nodes if _is_tensor(source)]
        return live

    def _inputs(self, live: set[Node]) -> tuple[list[Input], list[StateSource]]:
        by_name = {node.name: node for node in self.nodes if node.op == "placeholder"}
        inputs: list[Input] = []
        user = [spec for spec in self.signature.input_specs if spec.kind is InputKind.USER_INPUT]
        for k, (spec, leaf) in enumerate(zip(user, self.arguments.leaves, strict=True)):
            node = by_name[spec.arg.name]
            self.numbers[node] = len(inputs)
            inputs.append(
                Input(
                    name=leaf.path,
                    dtype=DTYPE_NAMES[leaf.example.dtype],
                    shape=[self.sizes.of_dim(k, dim, size) for dim, size in enumerate(leaf.example.shape)],
                    kind="user" if leaf.number is None else "number",
                )
            )
        state: list[StateSource] = []
        for spec in self.signature.input_specs:
            node = by_name[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT or node not in live:
                continue
            source = self._source(spec, len(state))
            value = node.meta["val"]
            self.numbers[node] = len(inputs)
            inputs.append(
                Input(
                    name=source.name,
                    dtype=DTYPE_NAMES[value.dtype],
                    shape=[int(size) for size in value.shape],
                    kind="state",
                )
            )
            state.append(source)
        for node in self.nodes:
            if node.target is DRAW and node in live:
                self.numbers[node] = len(inputs)
                inputs.append(self._random(node))
        return inputs, state

    def _random(self, node: Node) -> Input:
        arguments: Any = node.args
        size, distribution, dtype, number = arguments
        return Input(
            name=f"random[{number}]",
            dtype=DTYPE_NAMES[dtype],
            shape=[self._size(dim, self._line(node)) for dim in size],
            kind="random",
            draw=Draw(distribution=str(distribution), number=int(number)),
        )

    def _size(self, value: Any, where: SourceLine | None) -> Dim:
        found = self._argument(value, where)
        if isinstance(found, Special) and found.s is not None:
            return found.s
        return int(found)  # type: ignore[arg-type]

    def _called(self, target: str) -> str:
        """What the user calls a parameter or buffer: ``user.fc1.weight`` and ``outer.0.weight`` are names of ours."""
        owner, _, rest = target.partition(".")
        if owner != "outer":
            return rest or target
        number, _, name = rest.partition(".")
        return f"{self.traced.modules[int(number)]}.{name}"

    def _source(self, spec: Any, count: int) -> StateSource:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            if spec.target.startswith("state_"):
                index = int(spec.target.removeprefix("state_"))
                return StateSource(name=f"state[{index}]", index=index)
            return StateSource(name=self._called(spec.target))
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return StateSource(name=f"c{count}", tensor=self.traced.program.constants[spec.target])
        raise PlanBuildError(
            f"this function needs something that plans can't carry: {spec.kind.name.lower()} {spec.target}"
        )

    # --------------------------------------------------------------------------------------------- ops

    def _line(self, node: Node) -> SourceLine | None:
        return places.of_stack_trace(node.meta.get("stack_trace"))

    def _emit(self, node: Node, count: int) -> int:
        """Append a node's op, if it has one; how many values it binds from number ``count`` on."""
        value = node.meta.get("val")
        if node.target is operator.getitem:
            source: Any = node.args[0]
            position: Any = node.args[1]
            self.numbers[node] = self.numbers[self._resolved(source)] + position
            return 0
        if node.target in _SAID_ELSEWHERE or node.target is DRAW:
            return 0
        name, where = str(node.target), self._line(node)
        if node.target in _VALUE_TO_NUMBER or _has_unknown_size(value):
            raise DataDependentSize(name, where=where)
        if is_random(node):
            raise RandomOpNotSupported(name, where=where)
        if name not in self.known:
            raise OpNotSupported(name, where=where)
        outputs = len(value) if isinstance(value, list | tuple) else 1
        self.ops.append(
            Op(
                name=name,
                args=[self._argument(argument, where) for argument in node.args],
                kwargs={
                    key: self._argument(argument, where)
                    for key, argument in node.kwargs.items()
                    if not _is_default(key, argument)
                },
                outputs=outputs,
            )
        )
        self.lines.append(where)
        self.numbers[node] = count
        return outputs

    def _argument(self, value: Any, where: SourceLine | None) -> Argument:
        if isinstance(value, Node):
            if _is_tensor(value):
                return Special(v=self.numbers[self._resolved(value)])
            return self._scalar(value.meta["val"], where)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._scalar(value, where)
        if isinstance(value, complex):
            return Special(c=(value.real, value.imag))
        if isinstance(value, torch.dtype):
            return Special(d=DTYPE_NAMES[value]) if value in DTYPE_NAMES else self._refused(value, where)
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            kind = type(value).__name__
            return Special(o=f"{kind}:{str(value).removeprefix('torch.')}")
        if isinstance(value, list):
            return Special(l=[self._argument(item, where) for item in value])
        if isinstance(value, tuple):
            return Special(t=[self._argument(item, where) for item in value])
        return self._refused(value, where)

    def _refused(self, value: Any, where: SourceLine | None) -> Argument:
        raise PlanBuildError(f"an op of this function has an argument that plans can't carry: {value!r}", where=where)

    def _scalar(self, value: Any, where: SourceLine | None) -> Argument:
        if _is_unbacked(value):
            raise DataDependentSize(where=where)
        expression = self.sizes.expression(value)
        if isinstance(expression, bool | int | float):
            return expression
        return Special(s=expression)


def _is_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _takes_all(node: Node) -> bool:
    start, end, step = (*node.args[2:5], None, None, None)[:3]  # slice(self, dim, start, end, step)
    return start in (None, 0) and end in (None, _ENDLESS) and step in (None, 1) and not node.kwargs


def _is_default(key: str, value: Any) -> bool:
    if key == "device":
        return value is None or torch.device(value).type == "cpu"
    return value in _DEFAULTS.get(key, ())


def _is_unbacked(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) and bool(free_unbacked_symbols(value))


def _has_unknown_size(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.Tensor) and any(map(_is_unbacked, item.shape)) for item in values)
