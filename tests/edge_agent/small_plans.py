"""Plans made by hand, for workers that really run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.protocol.tensors import encode_array
from edge_agent.jobs import LoadPlan
from edge_agent.plan.format import (
    Graph,
    Input,
    Manifest,
    Op,
    Special,
    Symbol,
    TensorType,
    digest_of,
    encode_graph,
    encode_manifest,
)

__all__ = ["HandMade", "add_state", "double_abs", "long", "pick_one", "square", "summing", "two_results", "unknown_op"]


@dataclass(frozen=True)
class HandMade:
    """A graph with its state, as bytes and digests."""

    graph: Graph
    outputs: Sequence[TensorType]
    state: Sequence[bytes] = field(default=())

    @property
    def graph_bytes(self) -> bytes:
        """The graph as it travels."""
        return encode_graph(self.graph)

    @property
    def manifest(self) -> bytes:
        """The manifest as it travels."""
        state = [digest_of(part) for part in self.state]
        graph = digest_of(self.graph_bytes)
        return encode_manifest(Manifest(version=1, graph=graph, outputs=list(self.outputs), state=state))

    @property
    def id(self) -> bytes:
        """The plan's id."""
        return digest_of(self.manifest)

    @property
    def parts(self) -> dict[bytes, bytes]:
        """Everything that a device pulls, by digest."""
        parts = [self.manifest, self.graph_bytes, *self.state]
        return {digest_of(part): part for part in parts}

    def load(self, n: int = 1) -> LoadPlan:
        """The order to load it."""
        return LoadPlan(n=n, plan=self.id, manifest=self.manifest, graph=self.graph_bytes, state=list(self.state))


def _signature(count: int) -> list[object]:
    return ["t", ["t", *range(count)], ["d"]]


def double_abs() -> HandMade:
    """``abs(x + x)`` on a vector of any length."""
    vector = TensorType(dtype="float32", shape=["n"])
    graph = Graph(
        inputs=[Input(name="x", dtype="float32", shape=["n"])],
        ops=[
            Op(name="aten.add.Tensor", args=[Special(v=0), Special(v=0)]),
            Op(name="aten.abs.default", args=[Special(v=1)]),
        ],
        outputs=[2],
        signature=_signature(1),
        tree=0,
        symbols=[Symbol(name="n")],
        name="double_abs",
    )
    return HandMade(graph, [vector])


def add_state() -> HandMade:
    """``x + bias`` with a bias of its own, ``[10, 20]``."""
    import numpy as np

    pair = TensorType(dtype="float32", shape=[2])
    graph = Graph(
        inputs=[
            Input(name="x", dtype="float32", shape=[2]),
            Input(name="bias", dtype="float32", shape=[2], kind="state"),
        ],
        ops=[Op(name="aten.add.Tensor", args=[Special(v=0), Special(v=1)])],
        outputs=[2],
        signature=_signature(1),
        tree=0,
        name="add_state",
    )
    return HandMade(graph, [pair], [encode_array(np.array([10, 20], dtype=np.float32))])


def two_results() -> HandMade:
    """``(x + k, -x)`` with a number ``k``."""
    pair = TensorType(dtype="float32", shape=[2])
    graph = Graph(
        inputs=[Input(name="x", dtype="float32", shape=[2]), Input(name="k", dtype="float32", kind="number")],
        ops=[
            Op(name="aten.add.Tensor", args=[Special(v=0), Special(v=1)]),
            Op(name="aten.neg.default", args=[Special(v=0)]),
        ],
        outputs=[2, 3],
        signature=_signature(2),
        tree=["t", 0, 1],
        name="two_results",
    )
    return HandMade(graph, [pair, pair])


def summing() -> HandMade:
    """A plan to fold: ``(carry, batch) -> (carry + sum(batch), sum(batch))``."""
    scalar = TensorType(dtype="float32", shape=[])
    graph = Graph(
        inputs=[Input(name="carry", dtype="float32", shape=[]), Input(name="x", dtype="float32", shape=[3])],
        ops=[
            Op(name="aten.sum.default", args=[Special(v=1)]),
            Op(name="aten.add.Tensor", args=[Special(v=0), Special(v=2)]),
        ],
        outputs=[3, 2],
        signature=["t", ["t", 0, 1], ["d"]],
        tree=["t", 0, 1],
        name="summing",
    )
    return HandMade(graph, [scalar, scalar])


def long(ops: int = 5_000) -> HandMade:
    """Many seconds of work on `square`: a matrix multiplied with itself again and again."""
    square = TensorType(dtype="float32", shape=["n", "n"])
    graph = Graph(
        inputs=[Input(name="x", dtype="float32", shape=["n", "n"])],
        ops=[Op(name="aten.mm.default", args=[Special(v=k), Special(v=k)]) for k in range(ops)],
        outputs=[ops],
        signature=_signature(1),
        tree=0,
        symbols=[Symbol(name="n")],
        name="long",
    )
    return HandMade(graph, [square])


def square() -> bytes:
    """What `long` runs on."""
    import numpy as np

    return encode_array(np.eye(400, dtype=np.float32))


def pick_one() -> HandMade:
    """Takes a vector of any length and indexes beyond its end when that is short: an op that fails while it runs."""
    graph = Graph(
        inputs=[
            Input(name="x", dtype="float32", shape=["n"]),
            Input(name="where", dtype="int64", shape=[1]),
        ],
        ops=[Op(name="aten.index_select.default", args=[Special(v=0), 0, Special(v=1)])],
        outputs=[2],
        signature=_signature(2),
        tree=0,
        symbols=[Symbol(name="n")],
        name="pick",
    )
    return HandMade(graph, [TensorType(dtype="float32", shape=[1])])


def unknown_op() -> HandMade:
    """An op that is in no registry."""
    graph = Graph(
        inputs=[Input(name="x", dtype="float32", shape=[2])],
        ops=[Op(name="os.system", args=[Special(v=0)])],
        outputs=[1],
        signature=_signature(1),
        tree=0,
    )
    return HandMade(graph, [TensorType(dtype="float32", shape=[2])])
