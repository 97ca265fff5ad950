"""Whole plans, and the files that hold them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from edge_agent.plan.bundle import MAGIC, PlanBundle
from edge_agent.plan.errors import PlanError, PlanMalformed, PlanTypeError
from edge_agent.plan.format import (
    Input,
    TensorType,
    decode_graph,
    decode_manifest,
    digest_of,
    encode_graph,
    encode_manifest,
)
from edge_agent.runtimes.torch_tensors import encode_tensor
from tests.edge_agent.plan.graphs import bundle_of, double_abs, graph_of, net, op, value


@pytest.fixture
def bundle() -> PlanBundle:
    """The tutorial's network, with something beside it."""
    return bundle_of(*net(), beside={"source": b"\x93\xc0\xc0\xc0"})


def test_the_tutorials_plans_are_small() -> None:
    """What a device pulls for the two-op plan and for the network stays within what issue 2 allows."""
    assert bundle_of(double_abs()).wire_size <= 400
    assert bundle_of(*net()).wire_size <= 1000


def test_parts_are_named_by_their_digests(bundle: PlanBundle) -> None:
    """Each part can be found, and verified, by its name alone; what stands beside the plan is no part of it."""
    assert all(digest_of(part) == digest for digest, part in bundle.parts.items())
    assert len(bundle.parts) == 2 + 4
    assert bundle.parts[bundle.plan_id] == bundle.manifest_bytes
    assert bundle.plan_id == bundle_of(*net()).plan_id


def test_tensors_that_are_equal_travel_once() -> None:
    """Two weights with one content are one part."""
    inputs = [Input(name=name, dtype="float32", shape=[3], kind="state") for name in ("a", "b")]
    bundle = bundle_of(graph_of(inputs, [op("add.Tensor", value(0), value(1))], [2]), [torch.ones(3), torch.ones(3)])
    assert len(bundle.parts) == 2 + 1
    assert (
        PlanBundle.from_bytes(bundle.to_bytes()).verify().manifest.state
        == [digest_of(encode_tensor(torch.ones(3)))] * 2
    )


def test_a_whole_plan_verifies(bundle: PlanBundle) -> None:
    """Digests, frames, ops and types of a plan as it was made are right."""
    assert bundle.verify().checked.output_types == [TensorType(dtype="float32", shape=["s0", 2])]


def test_a_new_weight_changes_the_id_and_one_part(bundle: PlanBundle) -> None:
    """A changed weight makes a new manifest; graph and other weights keep their names."""
    graph, state = net()
    state[0] = state[0] + 1
    changed = bundle_of(graph, state)
    assert changed.plan_id != bundle.plan_id
    assert len(changed.parts.keys() - bundle.parts.keys()) == 2


def test_a_file_comes_back_as_it_was(bundle: PlanBundle, tmp_path: Path) -> None:
    """Saved and loaded, a plan is equal, with what stands beside it."""
    path = tmp_path / "net.plan"
    bundle.save(path)
    again = PlanBundle.load(path)
    assert again == bundle
    assert again.plan_id == bundle.plan_id
    again.verify()
    assert [one.name for one in tmp_path.iterdir()] == ["net.plan"]


def test_a_file_is_replaced_whole(bundle: PlanBundle, tmp_path: Path) -> None:
    """Saving over an older plan leaves no trace of it, and one that fails leaves it as it was."""
    path = tmp_path / "net.plan"
    bundle_of(double_abs()).save(path)
    bundle.save(path)
    assert PlanBundle.load(path) == bundle
    with pytest.raises(KeyError):
        PlanBundle(bundle.manifest, bundle.graph_bytes, {}).save(path)
    assert PlanBundle.load(path) == bundle
    assert [one.name for one in tmp_path.iterdir()] == ["net.plan"]


def test_a_file_cut_anywhere_is_refused(bundle: PlanBundle) -> None:
    """Whatever is missing at the end, the file is not taken for a plan."""
    data = bundle.to_bytes()
    for size in range(len(data)):
        with pytest.raises(PlanMalformed):
            PlanBundle.from_bytes(data[:size])


def test_a_file_altered_anywhere_is_refused(bundle: PlanBundle) -> None:
    """A flipped bit in any byte is noticed."""
    data = bytearray(bundle.to_bytes())
    for place in range(len(data)):
        data[place] ^= 1 << (place % 8)
        with pytest.raises(PlanMalformed):
            PlanBundle.from_bytes(bytes(data))
        data[place] ^= 1 << (place % 8)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "expected a plan file, got another: it does not start with 'edgeplan'"),
        (b"PK\x03\x04", "expected a plan file, got another: it does not start with 'edgeplan'"),
        (MAGIC, "expected a table of sections first in the plan file, got another section"),
    ],
)
def test_other_files_are_told(data: bytes, sentence: str) -> None:
    """A file of another kind, or an empty one, is named as such."""
    with pytest.raises(PlanMalformed) as caught:
        PlanBundle.from_bytes(data)
    assert str(caught.value).startswith(sentence)


def sectioned(*contents: bytes) -> bytes:
    """A file with these sections, each with the digest that it should have."""
    return MAGIC + b"".join(len(one).to_bytes(8, "little") + digest_of(one) + one for one in contents)


def test_a_file_with_other_sections_is_told(bundle: PlanBundle) -> None:
    """A table that does not fit what follows, or a later version, is refused with its reason."""

    def table(*rows: tuple[str, bytes], version: int = 1) -> bytes:
        return msgspec.msgpack.encode([version, [[name, digest_of(content), len(content)] for name, content in rows]])

    manifest, graph = ("manifest", bundle.manifest_bytes), ("graph", bundle.graph_bytes)
    cases = {
        sectioned(
            table(manifest, graph), manifest[1], graph[1], b"more"
        ): "expected the plan file's end, got more bytes",
        sectioned(table(manifest), manifest[1]): "expected one manifest and one graph in the plan file, got others",
        sectioned(table(manifest, graph), graph[1], manifest[1]): "expected the section 'manifest' of",
        sectioned(table(manifest, graph, version=2)): "expected a plan file of version 1 to 1, got version 2",
        sectioned(table(("manifest", b"\xc0"), graph), b"\xc0", graph[1]): "expected a manifest of plan format 3",
        sectioned(b"\xc1"): "expected a table of sections first in the plan file, got another section",
    }
    for data, sentence in cases.items():
        with pytest.raises(PlanMalformed) as caught:
            PlanBundle.from_bytes(data)
        assert str(caught.value).startswith(sentence)


def test_a_manifest_in_other_bytes_is_refused(bundle: PlanBundle) -> None:
    """A plan has one encoding, so that its id is the same everywhere."""
    fields = msgspec.msgpack.decode(bundle.manifest_bytes)
    loose = msgspec.msgpack.encode(fields)[:1] + b"\xcc" + msgspec.msgpack.encode(fields)[1:]
    assert decode_manifest(loose) == bundle.manifest
    rows = [
        ["manifest", digest_of(loose), len(loose)],
        ["graph", digest_of(bundle.graph_bytes), len(bundle.graph_bytes)],
    ]
    with pytest.raises(PlanMalformed, match="expected the manifest in its canonical bytes, got others"):
        PlanBundle.from_bytes(sectioned(msgspec.msgpack.encode([1, rows]), loose, bundle.graph_bytes))


def test_a_plan_whose_parts_do_not_fit_is_refused(bundle: PlanBundle) -> None:
    """A part that is missing or under another name, a frame that is none, and promises that the graph does not keep."""
    digests = bundle.manifest.state
    lost = {digest: frame for digest, frame in bundle.state.items() if digest != digests[0]}
    with pytest.raises(PlanMalformed, match=r"expected the state tensor \w+, got a plan without it"):
        PlanBundle(bundle.manifest, bundle.graph_bytes, lost).verify()
    with pytest.raises(PlanMalformed, match=r"expected the state tensor \w+, got bytes of another digest"):
        PlanBundle(bundle.manifest, bundle.graph_bytes, {**lost, digests[0]: b"other"}).verify()
    with pytest.raises(PlanMalformed, match=r"expected the graph \w+, got bytes of another digest"):
        PlanBundle(bundle.manifest, encode_graph(double_abs()), bundle.state).verify()
    no_frame = b"no frame"
    manifest = msgspec.structs.replace(bundle.manifest, state=[digest_of(no_frame), *digests[1:]])
    with pytest.raises(PlanMalformed, match="expected a tensor frame as state 0, got another"):
        PlanBundle(manifest, bundle.graph_bytes, {**lost, digest_of(no_frame): no_frame}).verify()
    manifest = msgspec.structs.replace(bundle.manifest, outputs=[TensorType(dtype="float64", shape=["s0", 2])])
    with pytest.raises(PlanTypeError, match=r"expected float32\[s0, 2\] for output 0 in the manifest"):
        PlanBundle(manifest, bundle.graph_bytes, bundle.state).verify()


def test_bytes_and_ids_are_the_same_in_every_process() -> None:
    """Another process, with another hash seed, makes the same bytes of the same plan."""
    script = (
        "from tests.edge_agent.plan.graphs import bundle_of, double_abs, net\n"
        "print(bundle_of(double_abs()).plan_id.hex(), bundle_of(*net()).plan_id.hex())\n"
    )
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        found.add(done.stdout.strip())
    assert found == {f"{bundle_of(double_abs()).plan_id.hex()} {bundle_of(*net()).plan_id.hex()}"}


def test_equal_graphs_have_equal_bytes() -> None:
    """Keyword arguments in another order, and a graph that was decoded, encode alike."""
    graph = double_abs()
    assert encode_graph(decode_graph(encode_graph(graph))) == encode_graph(graph)
    one = msgspec.structs.replace(graph.ops[0], kwargs={"alpha": 1, "other": 2})
    two = msgspec.structs.replace(graph.ops[0], kwargs={"other": 2, "alpha": 1})
    assert encode_graph(msgspec.structs.replace(graph, ops=[one])) == encode_graph(
        msgspec.structs.replace(graph, ops=[two])
    )


def test_every_refusal_is_a_plan_error() -> None:
    """Whoever loads a plan catches one kind of error."""
    assert issubclass(PlanMalformed, PlanError)
    manifest = bundle_of(double_abs()).manifest
    later = msgspec.structs.replace(manifest, version=4)
    with pytest.raises(PlanMalformed, match="expected a plan of format 1 to 3, got format 4"):
        decode_manifest(encode_manifest(later))
