"""Keeps a plan of every kind of op as a file, for later versions to load and run.

``python -m tests.edge_agent.plan.make_versions`` adds what is missing to the folder of the registry's version, and
touches nothing that is there: a file says what a plan was, and what torch gave for it, on the day that it was written.
What an earlier version wrote is not written again.

A file is a plan file (`edge_agent.plan.bundle`) of one op, with the arguments and torch's results of one call beside
it. The calls are those of the twin tests in ``ops``, which this program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from broker.protocol.tensors import inspect
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import PlanError
from edge_agent.plan.format import OPS_VERSION, Manifest, digest_of, encode_graph, version_of
from edge_agent.plan.registry import REGISTRY
from edge_agent.runtimes.torch_tensors import encode_tensor
from tests.edge_agent.plan import agreement
from tests.edge_agent.plan.agreement import Call

__all__ = ["FOLDER", "VERSIONS", "Example", "example_of", "kept", "main"]

VERSIONS = Path(__file__).parent / "versions"
FOLDER = VERSIONS / f"v{OPS_VERSION}"
"""Where the plans of this version of the registry are."""

_ENOUGH = 400
"""How many calls of each op to choose from."""

_BYTES = (4_096, 16_384, 262_144)
"""Of how many bytes of tensors a file would best be, may be, and may be if need be."""


class Example(msgspec.Struct, frozen=True, array_like=True):
    """One run of a plan: tensor frames. ``seed``: for a plan that draws random numbers."""

    arguments: list[bytes]
    results: list[bytes]
    seed: int = 0


def example_of(bundle: PlanBundle) -> Example:
    """What was kept with a plan."""
    return msgspec.msgpack.decode(bundle.beside["example"], type=Example)


def kept() -> Iterator[Path]:
    """The plans of all versions so far."""
    yield from sorted(VERSIONS.glob("v*/*/*.plan"))


def keep(folder: str, name: str, bundle: PlanBundle, example: Example) -> None:
    """Write a plan file, unless it is there."""
    path = FOLDER / folder / f"{name}.plan"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = {"example": msgspec.msgpack.encode(example)}
    if "source" in bundle.beside:
        lines = msgspec.msgpack.decode(bundle.beside["source"])
        named = [line and (Path(line[0]).name, *line[1:]) for line in lines]  # not where they were on this machine
        beside["source"] = msgspec.msgpack.encode(named)
    PlanBundle(bundle.manifest, bundle.graph_bytes, bundle.state, beside).save(path)


def keep_call(case: Call, most: int) -> bool:
    """Keep the plan of one op's call. False: the checker does not take it, or it is of more than ``most`` bytes."""
    args, kwargs = agreement._arguments(case, torch.Generator().manual_seed(0))
    wanted = agreement.torch_results(case, args, kwargs)
    for symbolic in (True, False):
        plan = agreement._Plan(symbolic=symbolic)
        try:
            checked = check_graph(plan.graph(case.name, args, kwargs, len(wanted)))
            bind_sizes(checked.graph, [_type_of(encode_tensor(one)) for one in plan.tensors])
        except PlanError:
            continue
        graph = encode_graph(checked.graph)
        manifest = Manifest(version=version_of(checked.graph), graph=digest_of(graph), outputs=checked.output_types)
        example = Example([encode_tensor(one) for one in plan.tensors], [encode_tensor(one) for one in wanted])
        if sum(map(len, example.arguments + example.results)) > most:
            return False
        keep(REGISTRY[case.name].family, case.name, PlanBundle(manifest, graph), example)
        return True
    return False


def _type_of(frame: bytes) -> tuple[str, tuple[int, ...]]:
    header = inspect(frame)
    return header.dtype, header.shape


def recorded_calls(names: set[str]) -> dict[str, list[Call]]:
    """The calls of these ops that the twin tests make, and torch takes."""
    found: dict[str, list[Call]] = {name: [] for name in names}
    plain: Callable[..., list[torch.Tensor]] = agreement.torch_results

    def recording(case: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        results = plain(case, args, kwargs)
        calls = found.get(case.name)
        if calls is not None and len(calls) < _ENOUGH:
            calls.append(case)
        return results

    agreement.torch_results = recording
    try:
        families = sorted({REGISTRY[name].family for name in names})
        twins = [str(Path(__file__).parent / "ops" / f"test_{family}.py") for family in families]
        code = pytest.main(["-q", "-p", "no:cacheprovider", *twins])
    finally:
        agreement.torch_results = plain
    if code != 0:
        raise SystemExit("the twin tests fail: a plan is kept only of what is right")
    return found


def preference(case: Call) -> tuple[bool, int, int]:
    """What is kept of several calls: of float32 where that can be, with many arguments, with values in them."""
    said = str(case)
    in_any_order = case.name == "aten.topk.default" and len(case.args) > 4 and not case.args[4]
    return "f32" in said and not in_any_order, len(case.args) + len(case.kwargs), -said.count("()") - said.count("(0")


def main() -> None:
    """Add what is missing."""
    from tests.edge_agent.plan import control_graphs, version_plans

    here = {path.stem for path in kept()}
    for written in control_graphs.EXAMPLES:  # no call of torch's tells what takes sub-graphs
        checked = check_graph(written.graph)
        graph = encode_graph(checked.graph)
        manifest = Manifest(version=version_of(checked.graph), graph=digest_of(graph), outputs=checked.output_types)
        example = Example(list(map(encode_tensor, written.args)), list(map(encode_tensor, written.results)))
        if written.name not in here:
            keep("control", written.name, PlanBundle(manifest, graph), example)
            here.add(written.name)
    missing = set(REGISTRY) - here
    calls = recorded_calls(missing) if missing else {}
    for name in sorted(missing):
        ordered = sorted(calls[name], key=preference, reverse=True)
        if not any(keep_call(case, most) for most in _BYTES for case in ordered):
            raise SystemExit(f"no call of {name} to keep: give its twin test one")
    known = {PlanBundle.load(path).plan_id for path in kept()}
    for one in version_plans.captured():
        if one.plan.bundle().plan_id in known:
            continue  # an earlier version wrote the same plan
        frames = [encode_tensor(tensor) for tensor in one.args]
        keep("captured", one.name, one.plan.bundle(), Example(frames, list(map(encode_tensor, one.results)), one.seed))


if __name__ == "__main__":
    main()
