"""What becomes of the regions of a traced graph: which branches are ops of the plan, and which are computed on both
sides, of which one is selected.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet

from torch.fx import Node

from coordinator.capture.draws import DRAW
from coordinator.capture.regions import ENTER, LEAVE, Region, Run, parts_of, runs_of
from coordinator.errors import SourceLine, ValueLeftLoop
from edge_agent.plan.registry import REGISTRY

__all__ = ["Control"]

_FEW = 16
"""How many cheap ops each side of a branch may have for both to be computed."""

_CHEAP = frozenset(
    {
        "pointwise",
        "arithmetic",
        "comparison",
        "reduction",
        "views",
        "splits",
        "joining",
        "creation",
        "conversion",
    }
)
"""Families whose ops cost about what a branch itself does, and do not fail by what a tensor holds."""


class Control:
    """The branches and loops of a graph. ``same`` maps nodes to those whose value they give, and is added to: of a
    branch that is computed on both sides, the marks vanish.
    """

    def __init__(self, nodes: Sequence[Node], same: dict[Node, Node], known: Collection[str]) -> None:
        self._nodes = nodes
        self.runs: dict[Node, Run] = {}
        """Those that become ops with sub-graphs, by the node that stands for running them."""
        self.chosen: dict[Node, tuple[Node, Node, Node]] = {}
        """A result of a branch that does not: the predicate, and both sides' values."""
        self._regions: dict[Node, Region] = {}
        for run in runs_of(nodes):
            if run.kind == "cond" and ("control.cond.default" not in known or self._is_cheap(run)):
                self._select(run, same)
            else:
                self.runs[run.node] = run
                self._regions.update((region.enter, region) for region in run.regions)

    def _is_cheap(self, run: Run) -> bool:
        drawn = any(self._nodes[place].target is DRAW for region in run.regions for place in region.span)
        return drawn or all(self._costs_little(region) for region in run.regions)

    def _costs_little(self, region: Region) -> bool:
        count = 0
        for place in region.span:
            node = self._nodes[place]
            if node in self.runs:
                return False
            if node.op != "call_function" or node.target in (operator.getitem, ENTER, LEAVE):
                continue
            spec = REGISTRY.get(str(node.target))
            if spec is not None:
                count += 1
                if spec.family not in _CHEAP:
                    return False
        return count <= _FEW

    def _select(self, run: Run, same: dict[Node, Node]) -> None:
        predicate, *operands = run.given
        for region in run.regions:
            for place, node in parts_of(region.enter).items():
                same[node] = operands[place]
            for place, node in parts_of(region.leave).items():
                same[node] = region.results[place]
        yes, no = run.regions
        for place, node in parts_of(run.node).items():
            self.chosen[node] = (predicate, yes.results[place], no.results[place])

    def inside(self, places: range) -> AbstractSet[int]:
        """Which of these places lie in regions that are no larger than they are."""
        return {
            place
            for region in self._regions.values()
            if region.span.start > places.start and region.span.stop < places.stop
            for place in region.span
        }

    def refuse_what_leaves(
        self,
        live: Collection[Node],
        results: Sequence[Node],
        resolved: Callable[[Node], Node],
        line: Callable[[Node], SourceLine | None],
    ) -> None:
        """Raises `ValueLeftLoop` where something outside a region uses what was made inside, past its marks."""
        kinds = {one.enter: run.kind for run in self.runs.values() for one in run.regions}
        owner: dict[Node, Region] = {}
        for region in sorted(self._regions.values(), key=lambda one: -len(one.span)):  # what is inmost last
            owner.update((self._nodes[place], region) for place in region.span)
        uses = [
            (place, node, source)
            for place, node in enumerate(self._nodes)
            if node in live and node.target is not ENTER
            for source in self.chosen.get(node) or node.all_input_nodes
        ]
        for place, user, source in [*uses, *((len(self._nodes), None, node) for node in results)]:
            made = owner.get(resolved(source)) if resolved(source) in live else None  # else a size, known to all
            if made is not None and place not in made.span and user is not made.leave:
                raise ValueLeftLoop(f"torch.{kinds[made.enter]}", where=line(resolved(source)))
