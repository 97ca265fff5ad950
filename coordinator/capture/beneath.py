"""Tracing beneath autograd: what torch's dispatcher is asked for while the user's code runs, derivatives included.

torch.export sees a function from above, before autograd does its work, so it can't capture what computes gradients
inside (`torch.func.grad`, ``loss.backward()`` with a `torch.optim` step). Here the function runs on fake tensors under
make_fx, with autograd at work, and what comes out beneath is noted: forward, backward and update as one list of ops.
All passes share one shape environment, so that every guard is there, whichever of them asked for it.

The passes: first the user's code; then what that gave, without in-place ops; then in ops of the registry, as far as
there are decompositions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
from torch.nn.utils.stateless import _reparametrize_module

from coordinator.capture import places
from coordinator.capture.arguments import Arguments
from coordinator.capture.derivatives import BENEATH
from coordinator.capture.draws import RANDOM, drawing
from coordinator.capture.environment import ALONE, Env, patched, replaced
from coordinator.capture.failures import explained_failure
from coordinator.capture.inline import while_inlining
from coordinator.capture.lowering import decompositions, further_decompositions
from coordinator.capture.python_numbers import Numbers
from coordinator.capture.tracing import Target, Traced, as_result, dynamic_dims, results_of
from coordinator.capture.watch import TraceWatch
from edge_agent.plan.format import Tree

__all__ = ["copies_of", "trace_beneath", "with_tensors"]


def trace_beneath(target: Target, arguments: Arguments) -> Traced:
    """As `coordinator.capture.tracing.trace`, for functions that need autograd. Raises the same."""
    with ALONE, patched(gradients=True), while_inlining():
        env = Env()
        try:
            program, tree = _Tracing(target, arguments, env).program()
        except Exception as error:  # noqa: BLE001 -- every way to fail is told apart by explained_failure
            explained = explained_failure(error, None)
            raise explained.with_traceback(places.user_traceback(error)) from explained.__cause__
    return Traced(program, env, env.told(), dynamic_dims(env, arguments), tree, tuple(target.modules), beneath=True)


@dataclass(frozen=True)
class _Program:
    graph: Graph
    graph_signature: ExportGraphSignature
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class _Given:
    """An input of the traced graph: ``fake`` stands for it, ``spec`` says what it is."""

    fake: torch.Tensor
    kind: InputKind
    target: str | None


class _Tracing:
    def __init__(self, target: Target, arguments: Arguments, env: Env) -> None:
        self.target = target
        self.arguments = arguments
        self.env = env
        # the tensors that the function finds outside are told from fakes, and become constants of the plan
        self.mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
        self.given: list[_Given] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.decomposed: set[Any] = set()
        self.tree: Tree = None
        self.swapped: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []
        self.state: list[torch.Tensor] = []
        self.leaves: list[torch.Tensor] = []

    def program(self) -> tuple[_Program, Tree]:
        """The graph in ops of the registry, and how its results nest."""
        self._give()
        with torch.enable_grad(), drawing(0):
            graph = self._traced(self._user, {**BENEATH.missing, **BENEATH.mutating, **RANDOM})
        graph = self._with_constants_given(graph)
        graph = self._functional(graph)
        while table := _table(graph, self.decomposed):
            self.decomposed |= table.keys()
            graph = self._traced(_interpreted(graph), table)
            if any(map(_writes, graph.graph.nodes)):
                graph = self._functional(graph)
            graph = self._with_constants_given(graph)
        graph.graph.eliminate_dead_code()
        return self._signed(graph), self.tree

    # --------------------------------------------------------------------------------------------- inputs

    def _give(self) -> None:
        for k, leaf in enumerate(self.arguments.leaves):
            dims = [
                DimDynamic.DYNAMIC if dim in leaf.dynamic else DimDynamic.STATIC for dim in range(leaf.example.dim())
            ]
            self.leaves.append(self._fake(leaf.example, f"L['leaves'][{k}]", dims, InputKind.USER_INPUT, None))
        for name, module in (("", None), *self.target.modules.items()):
            if module is not None:
                prefix = "user" if not name else f"outer.{[key for key in self.target.modules if key].index(name)}"
                self.swapped.append((module, self._fakes_of(module, prefix)))
        for k, tensor in enumerate(self.target.state):
            plain = tensor.detach().cpu().contiguous()
            self.state.append(self._static(plain, InputKind.BUFFER, f"state_{k}"))

    def _fakes_of(self, module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        fakes: dict[str, torch.Tensor] = {}
        same: dict[int, torch.Tensor] = {}
        for name, tensor in _tensors_of(module).items():
            if id(tensor) not in same:
                kind = InputKind.PARAMETER if isinstance(tensor, nn.Parameter) else InputKind.BUFFER
                same[id(tensor)] = self._static(tensor, kind, f"{prefix}.{name}")
            fakes[name] = same[id(tensor)]
        return fakes

    def _static(self, tensor: torch.Tensor, kind: InputKind, target: str) -> torch.Tensor:
        return self._fake(tensor, target, [DimDynamic.STATIC] * tensor.dim(), kind, target)

    def _fake(
        self, tensor: torch.Tensor, name: str, dims: Sequence[DimDynamic], kind: InputKind, target: str | None
    ) -> torch.Tensor:
        context: Any = StatelessSymbolicContext(dynamic_sizes=list(dims))
        fake: torch.Tensor = self.mode.from_tensor(tensor, source=ConstantSource(name), symbolic_context=context)
        self.given.append(_Given(fake, kind, target))
        return fake

    # --------------------------------------------------------------------------------------------- passes

    def _user(self, *_: torch.Tensor) -> list[torch.Tensor]:
        numbers = Numbers()
        for leaf, value in zip(self.arguments.leaves, self.leaves, strict=True):
            if leaf.number is not None:
                numbers.add(value)
        with contextlib.ExitStack() as stack:
            for module, fakes in self.swapped:
                stack.enter_context(with_tensors(module, fakes))
            with TraceWatch(numbers, gradients=True) as watch:
                result = self.target.run_alone(self.state, lambda: self.arguments.call(self.leaves))
            watch.finish()
        self.tree, found, paths = results_of(result)
        return [as_result(value, path) for value, path in zip(found, paths, strict=True)]

    def _traced(self, function: Callable[..., Any], table: Mapping[Any, Any]) -> GraphModule:
        traced = make_fx(function, decomposition_table=dict(table), record_stack_traces=True)
        # the dispatcher of Python has ways for recurrent layers and others to leave sizes symbols
        with self.mode, enable_python_dispatcher():
            graph: GraphModule = traced(*[one.fake for one in self.given])
        return graph

    def _functional(self, graph: GraphModule) -> GraphModule:
        return self._traced(torch.func.functionalize(_interpreted(graph)), {})

    def _with_constants_given(self, graph: GraphModule) -> GraphModule:
        """The graph with the tensors that it holds as inputs."""
        last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
        for node in list(graph.graph.nodes):
            if node.op != "get_attr":
                continue
            tensor = getattr(graph, str(node.target))
            if not isinstance(tensor, torch.Tensor):
                continue
            name = next((name for name, known in self.constants.items() if known is tensor), None)
            if name is None:
                name = f"constant_{len(self.constants)}"
                self.constants[name] = tensor
                self._static(tensor, InputKind.CONSTANT_TENSOR, name)
            with graph.graph.inserting_after(last[0]) if last else graph.graph.inserting_before():
                given = graph.graph.placeholder(name)
            last = [given]
            given.meta["val"] = self.given[-1].fake
            node.replace_all_uses_with(given)
            graph.graph.erase_node(node)
        graph.recompile()
        return graph

    # --------------------------------------------------------------------------------------------- what it is

    def _signed(self, graph: GraphModule) -> _Program:
        nodes = list(graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        output = next(node for node in nodes if node.op == "output")
        specs = [
            InputSpec(one.kind, TensorArgument(name=node.name), one.target, persistent=True)
            for node, one in zip(inputs, self.given, strict=True)
        ]
        by_node = dict(zip(inputs, self.given, strict=True))
        outputs: list[OutputSpec] = []
        values: list[Node] = []
        for node in nodes:
            if node.target is torch.ops.aten.copy_.default and node.args[0] in by_node:
                written = by_node[node.args[0]]
                kind = OutputKind.USER_INPUT_MUTATION if written.target is None else OutputKind.BUFFER_MUTATION
                target = written.target or node.args[0].name
                outputs.append(OutputSpec(kind, TensorArgument(name=node.args[1].name), target))
                values.append(node.args[1])
        outputs += [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in output.args[0]]
        output.args = ([*values, *output.args[0]],)
        return _Program(graph.graph, ExportGraphSignature(specs, outputs), self.constants)


def _interpreted(graph: GraphModule) -> Callable[..., Any]:
    """The graph as a function that keeps each op's line."""

    def run(*args: Any) -> Any:
        with fx_traceback.preserve_node_meta():
            return Interpreter(graph).run(*args)

    return run


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.target is not torch.ops.aten.copy_.default and schema is not None and bool(schema.is_mutable)


def _table(graph: GraphModule, done: AbstractSet[Any]) -> Mapping[Any, Any]:
    """The decompositions that the graph needs: torch's usual ones, and others for what has no place in the registry."""
    used = {node.target for node in graph.graph.nodes if node.op == "call_function"} - done
    table = {**further_decompositions(), **decompositions(), **BENEATH.missing}
    if not used & table.keys():
        return {}
    # what these bring up is decomposed in the same pass, except by those that torch would not use on its own
    return {**decompositions(), **BENEATH.missing, **{op: table[op] for op in used if op in table}}


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a module, those that it shares under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@contextlib.contextmanager
def with_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The module with these in place of its own parameters and buffers."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reparametrize_module(module, dict(tensors), tie_weights=True))
        for recurrent in module.modules():
            if isinstance(recurrent, nn.RNNBase):  # it keeps a list of its weights as well
                names: Any = vars(recurrent)["_flat_weights_names"]
                weights = [getattr(recurrent, name) for name in names]
                stack.enter_context(replaced(recurrent, "_flat_weights", weights))
        yield


def copies_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of each parameter and buffer of a module; what it shares is shared."""
    copies: dict[int, torch.Tensor] = {}
    for tensor in _tensors_of(module).values():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return {name: copies[id(tensor)] for name, tensor in _tensors_of(module).items()}
