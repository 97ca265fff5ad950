"""The plan format: what travels in place of code.

A plan is a `Manifest` (whose SHA-256 is the plan's id), the `Graph` that it names, and the tensors of its state, each
named by the SHA-256 of its frame (see `broker.protocol.tensors`). All are msgpack, encoded canonically: structures as
arrays with trailing defaults left out, map keys sorted, so that equal plans have equal bytes in every process.

Values are numbered, not named: the inputs are 0, 1, ...; then each op's outputs follow in order. So every value is
bound exactly once by construction, and a reference is in order when it is smaller than the number of the op's own
first output. The names that people read are made by `readable`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from edge_agent.plan.errors import PlanMalformed

__all__ = [
    "FORMAT_VERSION",
    "OPS_VERSION",
    "Argument",
    "Dim",
    "Draw",
    "Expression",
    "Graph",
    "Input",
    "Manifest",
    "Op",
    "Special",
    "Symbol",
    "TensorType",
    "Tree",
    "decode_graph",
    "decode_manifest",
    "digest_of",
    "encode_graph",
    "encode_manifest",
    "version_of",
]

FORMAT_VERSION = 3
"""The version of this format. A later version reads all earlier ones; a plan names the earliest that has all it needs
(`version_of`), so that its id stays what it was.
"""

OPS_VERSION = 2
"""The version of the op registry: the greatest `edge_agent.plan.spec.OpSpec.since`. A device tells the broker its own.
"""

Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]

Expression: TypeAlias = int | str | list[Any]
"""A symbolic integer: an int; a symbol's name; or ``[operator, operand, ...]`` with an operator of
`expressions.OPERATORS`."""

Dim: TypeAlias = Expression
"""A dim of a shape: an int, a symbol, or an expression of symbols."""

Tree: TypeAlias = int | str | list[Any] | None
"""How leaves nest: an int is the index of a leaf; None is Python's None; ``["l", ...]`` a list, ``["t", ...]`` a tuple,
``["d", key, subtree, key, subtree, ...]`` a dict in its order."""


class _Part(Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class Symbol(_Part, frozen=True, kw_only=True):
    """A size that is known only when the plan runs: at least ``low``, at most ``high`` (None: no limit)."""

    name: str
    low: Natural = 0
    high: int | None = None


class TensorType(_Part, frozen=True, kw_only=True):
    """A tensor's dtype name (``float32``) and shape."""

    dtype: str
    shape: list[Dim]


class Draw(_Part, frozen=True, kw_only=True):
    """How a random input is filled: ``uniform`` in [0, 1), ``normal`` of mean 0 and variance 1 (both float32 or
    float64), or a ``permutation`` (int64). ``number`` tells one draw of a plan from the others. See
    `edge_agent.runtimes.random`.
    """

    distribution: str
    number: Natural = 0


class Input(_Part, frozen=True, kw_only=True):
    """An input of the graph. The user's inputs come first, in the order of the leaves of `Graph.signature`; then the
    state's, in the order of `Manifest.state`; then those that the device draws. ``kind``: ``user``, ``number`` (a
    Python number, as a 0-d tensor), ``state`` or ``random``; only the last has a ``draw`` (since version 2).
    """

    name: str
    dtype: str
    shape: list[Dim] = []
    kind: str = "user"
    draw: Draw | None = None


Argument: TypeAlias = Union[None, bool, int, float, str, "Special"]
"""An op's argument: a plain scalar, string or None, or a `Special`."""


class Special(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An op's argument that msgpack has no type for; exactly one field is set.

    ``v``: the number of an earlier value. ``s``: a symbolic integer. ``d``: a dtype name. ``t``: a tuple. ``l``: a
    list. ``c``: a complex number's two parts. ``o``: another torch constant, by kind and name
    (``memory_format:contiguous_format``, ``layout:strided``, ``device:cpu``). ``g``: a sub-graph.
    """

    v: Natural | None = None
    s: Expression | None = None
    d: str | None = None
    l: list[Argument] | None = None
    t: list[Argument] | None = None
    c: tuple[float, float] | None = None
    o: str | None = None
    g: Graph | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of v, s, d, l, t, c, o, g, got {given}")


class Op(_Part, frozen=True, kw_only=True):
    """One call of the registry. ``outputs`` is how many values it binds."""

    name: str
    args: list[Argument]
    kwargs: dict[str, Argument] = {}
    outputs: Natural = 1


class Graph(_Part, frozen=True, kw_only=True):
    """A typed op graph.

    ``signature``: ``["t", args tree, kwargs tree]`` over the user's inputs. ``outputs``: the numbers of the values
    that it returns, one a leaf of ``tree``. ``symbols`` and ``conditions`` (expressions that must be true, that is:
    not 0) say for which sizes it was made; the device checks them.

    A sub-graph (`Special.g`, since version 3) has inputs, ops and outputs only: its values are its own, numbered from
    0, and what it needs of those around it are inputs of it; its symbols are the plan's. See `edge_agent.plan.nesting`.
    """

    inputs: list[Input]
    ops: list[Op]
    outputs: list[Natural]
    signature: Tree
    tree: Tree
    symbols: list[Symbol] = []
    conditions: list[Expression] = []
    name: str = ""

    @property
    def given(self) -> list[Input]:
        """The inputs that a call gives: the user's, with its numbers."""
        return [one for one in self.inputs if one.kind in ("user", "number")]

    @property
    def drawn(self) -> list[Input]:
        """The inputs that the device draws: the last ones."""
        return [one for one in self.inputs if one.kind == "random"]


class Manifest(_Part, frozen=True, kw_only=True):
    """What a plan consists of. ``outputs`` are the types of its results, in order: an invocation takes that many
    ids.
    """

    version: Natural
    graph: Digest
    outputs: list[TensorType]
    state: list[Digest] = []


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_defaults: dict[type[_Part], list[Any]] = {
    kind: [
        one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory()
        for one in msgspec.structs.fields(kind)
    ]
    for kind in (Symbol, TensorType, Draw, Input, Op, Graph, Manifest)
}
_graph_decoder = msgspec.msgpack.Decoder(Graph)
_manifest_decoder = msgspec.msgpack.Decoder(Manifest)


def digest_of(data: bytes | memoryview) -> bytes:
    """SHA-256, 32 bytes: the name of a graph, a manifest (the plan's id), or a state tensor's frame."""
    return hashlib.sha256(data).digest()


def version_of(graph: Graph) -> int:
    """The earliest version of the format that has all that a graph needs."""
    if any(
        isinstance(one, Special) and one.g is not None for op in graph.ops for one in (*op.args, *op.kwargs.values())
    ):
        return 3
    return 2 if any(one.kind == "random" for one in graph.inputs) else 1


def _plain(part: Any) -> Any:
    """A part as arrays and maps, without trailing defaults: a later version may add fields without changing the bytes,
    and so the names, of plans that do not use them. (msgspec itself leaves defaults out of maps only.)
    """
    if isinstance(part, Special):
        return {name: _plain(own) for name in part.__struct_fields__ if (own := getattr(part, name)) is not None}
    if isinstance(part, _Part):
        values = [getattr(part, name) for name in part.__struct_fields__]
        defaults = _defaults[type(part)]
        while values and values[-1] == defaults[len(values) - 1]:
            values.pop()
        return [_plain(own) for own in values]
    if isinstance(part, list):  # expressions and trees are plain already, however deep
        return [_plain(one) if isinstance(one, Struct) else one for one in part]
    if isinstance(part, dict):
        return {name: _plain(own) for name, own in part.items()}
    return part


def encode_graph(graph: Graph) -> bytes:
    """The canonical bytes of a graph."""
    return _encoder.encode(_plain(graph))


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest; `digest_of` them is the plan's id."""
    return _encoder.encode(_plain(manifest))


def decode_graph(data: bytes | memoryview) -> Graph:
    """The graph that the bytes hold, not yet checked: see `edge_agent.plan.checker`. Raises `PlanMalformed`."""
    try:
        return _graph_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(
            f"expected a graph of plan format {FORMAT_VERSION}, got {len(data)} other bytes: {error}"
        ) from None


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """The manifest that the bytes hold. Raises `PlanMalformed`, also for a later version of the format."""
    try:
        manifest = _manifest_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(
            f"expected a manifest of plan format {FORMAT_VERSION}, got {len(data)} other bytes: {error}"
        ) from None
    if not 1 <= manifest.version <= FORMAT_VERSION:
        raise PlanMalformed(f"expected a plan of format 1 to {FORMAT_VERSION}, got format {manifest.version}")
    return manifest
