"""What one run of a plan may take of a device: memory, operations, time. Set by the device's owner, enforced by the
worker; without any, nothing is computed and nothing is looked at.

The cost is computed when a plan is loaded, as formulas (`edge_agent.plan.cost`), and compared before each run with
the sizes that its arguments have. What the formulas do not know (what an op needs inside itself, a loop that decides
by itself) runs under limits of time, looked at between ops, and of memory, which the kernel watches.
"""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_agent.limits import Limits
from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.cost import Cost, CostModel, cost_of
from edge_agent.plan.errors import OpFailed, PlanOverQuota

__all__ = ["RUNTIME_BYTES", "Admission", "as_over_quota", "ceiling"]

RUNTIME_BYTES = 32 << 20
"""What the runtime may take for itself beside the values of a plan: its threads' stacks, working memory of ops."""

_REMEMBERED = 64
"""For how many different sizes it is remembered what a plan costs."""

# How torch ("you tried to allocate 4000000000 bytes"), numpy ("Unable to allocate 7.45 GiB") and onnxruntime
# ("Failed to allocate memory for requested buffer of size 4000000000") say that there is no more.
_ASKED = re.compile(r"(?:tried to allocate|buffer of size) (\d+)")
_NO_MEMORY = re.compile(r"tried to allocate|not enough memory|Unable to allocate|Failed to allocate|bad_alloc")


class Admission:
    """Whether a loaded plan may run with certain sizes."""

    __slots__ = ("_admitted", "_limits", "_model")

    def __init__(self, limits: Limits, checked: CheckedGraph) -> None:
        self._limits = limits
        self._model: CostModel | None = cost_of(checked) if limits.memory_bytes or limits.ops else None
        self._admitted: set[tuple[int, ...]] = set()

    def admit(self, sizes: Mapping[str, int]) -> None:
        """Raises `PlanOverQuota`. Of a plan without a bound, nobody knows how many operations it takes before it runs;
        how much memory is known all the same.
        """
        model = self._model
        if model is None or (key := tuple(sizes.values())) in self._admitted:
            return
        self._check(model.at(sizes))
        if len(self._admitted) < _REMEMBERED:
            self._admitted.add(key)

    def _check(self, cost: Cost) -> None:
        if self._limits.memory_bytes and cost.peak_bytes > self._limits.memory_bytes:
            raise PlanOverQuota("memory", cost.peak_bytes, self._limits.memory_bytes)
        if self._limits.ops and cost.bounded and cost.flops > self._limits.ops:
            raise PlanOverQuota("operations", cost.flops, self._limits.ops)


@contextlib.contextmanager
def ceiling(memory_bytes: int) -> Iterator[None]:
    """Within it, this process gets ``memory_bytes`` and `RUNTIME_BYTES` more than it has now, and no more: then
    allocating fails (setrlimit(2), RLIMIT_DATA). 0: it gets what there is.
    """
    if not memory_bytes:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + memory_bytes + RUNTIME_BYTES
    known = [one for one in (soft, hard, wanted) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    pages = Path("/proc/self/statm").read_bytes().split()[5]
    return int(pages) * resource.getpagesize()


def as_over_quota(error: Exception, limits: Limits) -> PlanOverQuota | None:
    """What it is when an op, or what is made of its results, was refused memory: `PlanOverQuota`. None: it failed of
    something else.
    """
    if isinstance(error, OpFailed):
        kind, message = error.error_type, error.message
    else:
        kind, message = type(error).__name__, str(error)
    if not limits.memory_bytes or (_NO_MEMORY.search(message) is None and "MemoryError" not in kind):
        return None
    found = _ASKED.search(message)
    asked = int(found[1]) if found is not None else 0
    # Less than the limit at once is no contradiction: it is what came on top of all the rest.
    return PlanOverQuota("memory", max(asked, limits.memory_bytes + 1), limits.memory_bytes, at_least=True)
