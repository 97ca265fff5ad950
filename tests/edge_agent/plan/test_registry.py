"""The registry against torch's own schemas, and what it keeps out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edge_agent.plan.errors import UnknownOp
from edge_agent.plan.ops import pointwise
from edge_agent.plan.registry import FAMILIES, MISSING, REGISTRY, lookup, registered
from edge_agent.plan.spec import Number, define
from edge_agent.runtimes.torch import overload

OF_TORCH = [name for name in registered() if name.startswith("aten.")]


def test_ops_with_sub_graphs_are_our_own() -> None:
    """They are run by the runtime, and torch has no overload for them."""
    own = set(registered()) - set(OF_TORCH)
    assert own == {f"control.{name}.default" for name in ("cond", "scan", "while_loop")}
    for name in own:
        assert "Graph " in REGISTRY[name].schema
        with pytest.raises(KeyError):
            overload(name)


def test_schemas_are_those_of_torch() -> None:
    """Names, order, kinds and defaults of every op's arguments are torch's, with int for SymInt."""
    for name in OF_TORCH:
        spec = REGISTRY[name]
        schema = str(overload(name)._schema).removeprefix("aten::").replace("SymInt", "int")
        assert spec.schema == schema


def test_no_op_mutates_and_none_is_random() -> None:
    """Judged by torch's own marks: an op without an underscore may mutate, and one without a generator may draw."""
    for name in OF_TORCH:
        found = overload(name)
        assert not found._schema.is_mutable, name
        assert torch.Tag.nondeterministic_seeded not in found.tags, name
        assert torch.Tag.data_dependent_output not in found.tags, name
        assert "Generator" not in str(found._schema), name


@pytest.mark.parametrize(
    "name",
    [
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.rand.default",
        "aten.bernoulli.default",
        "aten.nonzero.default",
        "aten.masked_select.default",
        "aten._local_scalar_dense.default",
        "aten.empty.memory_format",
        "aten._native_batch_norm_legit.default",
        "aten.mkldnn_rnn_layer.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten.add",
        "add.Tensor",
        "",
        "prims.add.default",
        "aten.__class__.default",
    ],
)
def test_what_is_not_registered_is_refused_by_name(name: str) -> None:
    """An op that mutates, draws, depends on the data or on a backend, and anything that is no op at all."""
    with pytest.raises(UnknownOp) as caught:
        lookup(name, 3)
    assert (caught.value.op, caught.value.index) == (name, 3)
    assert str(caught.value) == f"expected an op of the registry, got {name!r} (op 3 of the plan)"
    with pytest.raises(KeyError):
        overload(name)


def test_ops_are_registered_once() -> None:
    """Each op stands in one family."""
    assert len(registered()) == len(REGISTRY) == sum(len(family.OPS) for family in FAMILIES)
    assert registered() == tuple(sorted(REGISTRY))
    assert str(UnknownOp("aten.x.default")) == "expected an op of the registry, got 'aten.x.default'"


def test_a_schema_is_read() -> None:
    """Kinds, lengths, defaults, views and outputs come from the schema's text."""
    (spec,) = define(
        "family",
        pointwise.OPS[0].rule,
        'op.over(Tensor(a) self, Tensor?[] many, int[2] size=[1, 2], *, Scalar? by=None, float eps=1e-05, str how="a", '
        "ScalarType? dtype=4, MemoryFormat form=0, Scalar one=1, Scalar part=0.5, int[2] pad=0, bool on=True) "
        "-> (Tensor(a), Tensor)",
    )
    assert (spec.name, spec.outputs, spec.views, spec.positional) == ("aten.op.over", 2, True, 3)
    assert [(one.name, one.kind, one.default, one.length) for one in spec.parameters] == [
        ("self", "Tensor", MISSING, 0),
        ("many", "Tensor?[]", MISSING, 0),
        ("size", "int[]", [1, 2], 2),
        ("by", "Scalar?", None, 0),
        ("eps", "float", 1e-05, 0),
        ("how", "str", "a", 0),
        ("dtype", "ScalarType?", "int64", 0),
        ("form", "MemoryFormat", "contiguous_format", 0),
        ("one", "Scalar", Number("int", 1), 0),
        ("part", "Scalar", Number("float", 0.5), 0),
        ("pad", "int[]", [0, 0], 2),
        ("on", "bool", True, 0),
    ]
    with pytest.raises(ValueError, match="expected an op that does not mutate"):
        define("family", spec.rule, "op_(Tensor(a!) self) -> Tensor(a!)")
    with pytest.raises(ValueError, match="expected a schema, got 'op'"):
        define("family", spec.rule, "op")


def test_the_plan_package_needs_neither_torch_nor_numpy() -> None:
    """A device that cannot carry torch reads and checks plans, and an agent's process stays small."""
    script = (
        "import sys\n"
        "from edge_agent.plan import bundle, calls, checker, expressions, format, readable, registry, trees\n"
        "print(sorted({'torch', 'numpy', 'zmq', 'asyncio'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
