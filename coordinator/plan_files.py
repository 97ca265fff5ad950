"""What a plan file has beside the plan itself: further methods of it, each a plan of its own. See `Plan.save`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_agent.plan.bundle import PlanBundle

__all__ = ["parted", "with_methods"]

_METHOD = "method:"


def with_methods(bundle: PlanBundle, methods: Mapping[str, PlanBundle]) -> PlanBundle:
    """The bundle with these beside it, by name: of their weights only those that it has not itself."""
    beside = {_METHOD + name: one.to_bytes(without=bundle.state) for name, one in methods.items()}
    return replace(bundle, beside={**bundle.beside, **beside})


def parted(bundle: PlanBundle) -> tuple[PlanBundle, dict[str, PlanBundle]]:
    """What `with_methods` has put together. Raises `PlanMalformed`, if a method was cut or altered; a tensor that it
    lacks is found by `PlanBundle.verify`.
    """
    methods = {}
    for name, content in bundle.beside.items():
        if name.startswith(_METHOD):
            one = PlanBundle.from_bytes(content)
            found = {**bundle.state, **one.state}
            state = {digest: found[digest] for digest in one.manifest.state if digest in found}
            methods[name.removeprefix(_METHOD)] = replace(one, state=state)
    beside = {name: content for name, content in bundle.beside.items() if not name.startswith(_METHOD)}
    return replace(bundle, beside=beside), methods
