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
from coordinator.capture.branches import Control
from coordinator.capture.draws import DRAW
from coordinator.capture.lowering import is_random, known_ops
from coordinator.capture.regions import ENTER, LEAVE, Region, Run, parts_of
from coordinator.capture.symbols import Bounds, Sizes
from coordinator.capture.tracing import Traced
from coordinator.errors import (
    DataDependentSize,
    MutatedInput,
    MutatedState,
    OpNotSupported,
    PlanBuildError,
    RandomInLoop,
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


class _Block:
    """The ops of the plan, or of a sub-graph, as they are written: the number of each node's value, and their lines."""

    def __init__(self) -> None:
        self.numbers: dict[Node, int] = {}
        self.ops: list[Op] = []
        self.count = 0
        self._lines: list[SourceLine | None] = []
        self._inner: list[_Block] = []

    def append(self, node: Node, op: Op, where: SourceLine | None, inner: Sequence[_Block] = ()) -> None:
        """One op more, with the blocks of its sub-graphs."""
        self.numbers[node] = self.count
        self.ops.append(op)
        self.count += op.outputs
        self._lines.append(where)
        self._inner += inner

    def all_lines(self) -> list[SourceLine | None]:
        """The line of each op, in the order of `edge_agent.plan.nesting.all_ops`."""
        return [*self._lines, *(line for block in self._inner for line in block.all_lines())]


class _Translation:
    def __init__(self, traced: Traced, arguments: Arguments) -> None:
        self.traced = traced
        self.arguments = arguments
        self.sizes = Sizes(traced.env, traced.dims, traced.guards)
        self.nodes: list[Node] = list(traced.program.graph.nodes)
        self.signature = traced.program.graph_signature
        self.known = known_ops()
        self.same: dict[Node, Node] = {}
        self.names: dict[Node, str] = {}  # what people call the plan's own inputs
        self.chosen_before: set[Node] = set()  # branches computed on both sides, of which there is a result already

    def graph(self, name: str) -> tuple[Graph, list[StateSource], list[SourceLine | None], Bounds]:
        self._refuse_writes()
        results = self._results()
        for node in self.nodes:
            self._find_same(node, results)
        self.control = Control(self.nodes, self.same, self.known)
        live = self._live(results)
        self.control.refuse_what_leaves(live, results, self._resolved, self._line)
        block = _Block()
        inputs, state = self._inputs(live, block)
        block.count = len(inputs)
        self._emit_all(range(len(self.nodes)), live, block)
        bounds = self.sizes.bounds()
        graph = Graph(
            inputs=inputs,
            ops=block.ops,
            outputs=[block.numbers[self._resolved(node)] for node in results],
            signature=self.arguments.tree,
            tree=self.traced.tree,
            symbols=list(bounds.symbols),
            conditions=list(bounds.conditions),
            name=name,
        )
        return graph, state, block.all_lines(), bounds

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
                # a row that a scan is traced with is none that it runs with
                given = () if node.target is ENTER else node.all_input_nodes
                sources = self.control.chosen.get(node) or given
                pending += [self._resolved(source) for source in sources if _is_tensor(source)]
        return live

    def _inputs(self, live: set[Node], block: _Block) -> tuple[list[Input], list[StateSource]]:
        by_name = {node.name: node for node in self.nodes if node.op == "placeholder"}
        inputs: list[Input] = []
        user = [spec for spec in self.signature.input_specs if spec.kind is InputKind.USER_INPUT]
        for k, (spec, leaf) in enumerate(zip(user, self.arguments.leaves, strict=True)):
            node = by_name[spec.arg.name]
            block.numbers[node] = len(inputs)
            self.names[node] = leaf.path
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
            self.names[node] = source.name
            value = node.meta["val"]
            block.numbers[node] = len(inputs)
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
                block.numbers[node] = len(inputs)
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
        found = self._argument(value, where, _Block())
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

    def _emit_all(self, places: range, live: set[Node], block: _Block) -> None:
        """Append the ops of these nodes to a block; what lies in regions goes with the op that runs them."""
        inside = self.control.inside(places)
        for place in places:
            node = self.nodes[place]
            if node.op != "call_function" or node not in live or place in inside:
                continue
            if node in self.control.chosen:
                self._emit_choice(node, block)
            elif node in self.control.runs:
                self._emit_run(self.control.runs[node], live, block)
            else:
                self._emit(node, block)

    def _emit(self, node: Node, block: _Block) -> None:
        """Append a node's op, if it has one."""
        value = node.meta.get("val")
        if node.target is operator.getitem:
            source: Any = node.args[0]
            position: Any = node.args[1]
            if source.target not in (ENTER, LEAVE):
                block.numbers[node] = block.numbers[self._resolved(source)] + position
            return
        if node.target in _SAID_ELSEWHERE or node.target in (DRAW, ENTER, LEAVE):
            return
        name, where = str(node.target), self._line(node)
        if node.target in _VALUE_TO_NUMBER or _has_unknown_size(value):
            raise DataDependentSize(name, where=where)
        if is_random(node):
            raise RandomOpNotSupported(name, where=where)
        if name not in self.known:
            raise OpNotSupported(name, where=where)
        op = Op(
            name=name,
            args=[self._argument(argument, where, block) for argument in node.args],
            kwargs={
                key: self._argument(argument, where, block)
                for key, argument in node.kwargs.items()
                if not _is_default(key, argument)
            },
            outputs=len(value) if isinstance(value, list | tuple) else 1,
        )
        block.append(node, op, where)

    def _emit_choice(self, node: Node, block: _Block) -> None:
        """One result of a branch of which both sides are computed."""
        run: Any = node.args[0]
        predicate = self.control.chosen[node][0]
        if run in self.chosen_before and self._resolved(predicate) is predicate:
            self._emit(predicate, block)  # once for each result, as it always was: so that ids stay
        self.chosen_before.add(run)
        values = [Special(v=block.numbers[self._resolved(one)]) for one in self.control.chosen[node]]
        block.append(node, Op(name="aten.where.self", args=list(values)), self._line(run))

    def _emit_run(self, run: Run, live: set[Node], block: _Block) -> None:
        """A branch or a loop: the regions as sub-graphs, all with the same operands."""
        name, where = f"control.{run.kind}.default", self._line(run.node)
        if name not in self.known:
            raise OpNotSupported(name, where=where)
        for region in run.regions:
            self._refuse_draws(region, run.kind, live)
        operands = self._operands(run.regions, live)
        inner = [self._sub_graph(region, operands, live) for region in run.regions]
        graphs: list[Argument] = [Special(g=graph) for graph, _ in inner]
        given = [Special(v=block.numbers[self._resolved(node)]) for node in run.given]
        rest = [Special(v=block.numbers[node]) for node in operands]
        args: list[Argument]
        if run.kind == "cond":
            args = [given[0], *graphs, Special(l=[*given[1:], *rest])]
        elif run.kind == "while_loop":
            args = [*graphs, Special(l=list(given)), Special(l=list(rest))]
        else:
            held = run.carried
            args = [*graphs, Special(l=list(given[:held])), Special(l=list(given[held:])), Special(l=list(rest))]
        kwargs: dict[str, Argument] = {"reverse": True} if run.reverse else {}
        op = Op(name=name, args=args, kwargs=kwargs, outputs=len(run.node.meta["val"]))
        block.append(run.node, op, where, [lines for _, lines in inner])

    def _refuse_draws(self, region: Region, kind: str, live: set[Node]) -> None:
        for place in region.span:
            node = self.nodes[place]
            if node.target is DRAW and node in live:
                raise RandomInLoop(f"torch.{kind}", where=self._line(node))

    def _operands(self, regions: Sequence[Region], live: set[Node]) -> list[Node]:
        """What the regions use of what lies around them, in order."""
        found: dict[Node, None] = {}
        for region in regions:
            own = {self.nodes[place] for place in region.span} | {region.enter}
            users = [self.nodes[place] for place in region.span if self.nodes[place] in live]
            for node in (*users, region.leave):
                for source in self._sources(node):
                    resolved = self._resolved(source)
                    if _is_tensor(source) and resolved not in own:
                        found.setdefault(resolved)
        return list(found)

    def _sources(self, node: Node) -> Sequence[Node]:
        """What a node's op takes. The marks take nothing themselves: what is given to a region, its op takes."""
        if node in self.control.chosen:
            return self.control.chosen[node]
        if node.target is LEAVE:
            results: Any = node.args[2]
            return list(results)
        return () if node.target in (ENTER, operator.getitem) else node.all_input_nodes

    def _sub_graph(self, region: Region, operands: Sequence[Node], live: set[Node]) -> tuple[Graph, _Block]:
        block = _Block()
        inputs: list[Input] = []
        entered = parts_of(region.enter)
        values: Any = region.enter.meta["val"]
        taken: set[str] = set()
        for place, value in enumerate(values):
            name = _free(region.names[place], taken)
            if place in entered:
                block.numbers[entered[place]] = len(inputs)
                self.names[entered[place]] = name
            inputs.append(self._input(name, value, region.enter))
        for node in operands:
            block.numbers[node] = len(inputs)
            inputs.append(self._input(_free(self._name(node), taken), node.meta["val"], region.enter))
        block.count = len(inputs)
        self._emit_all(region.span, live, block)
        outputs = [block.numbers[self._resolved(node)] for node in region.results]
        return Graph(inputs=inputs, ops=block.ops, outputs=outputs, signature=None, tree=None), block

    def _name(self, node: Node) -> str:
        """What to call a value where it is an operand: by the plan's input that it is, or by the op that gives it."""
        if node in self.names:
            return self.names[node]
        source: Any = node.args[0] if node.target is operator.getitem else node
        return str(source.target).split(".")[1] if "." in str(source.target) else "operand"

    def _input(self, name: str, value: Any, node: Node) -> Input:
        return Input(
            name=name, dtype=DTYPE_NAMES[value.dtype], shape=[self._size(dim, self._line(node)) for dim in value.shape]
        )

    def _argument(self, value: Any, where: SourceLine | None, block: _Block) -> Argument:
        if isinstance(value, Node):
            if _is_tensor(value):
                return Special(v=block.numbers[self._resolved(value)])
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
            return Special(l=[self._argument(item, where, block) for item in value])
        if isinstance(value, tuple):
            return Special(t=[self._argument(item, where, block) for item in value])
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


def _free(name: str, taken: set[str]) -> str:
    """A name that no other input of the sub-graph has."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


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
