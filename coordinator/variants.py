"""Which devices need a variant of a plan, and where it comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from broker.protocol.messages import DeviceInfo
from coordinator.errors import SourceLine
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.format import OPS_VERSION
from edge_agent.plan.variants import decode_variant

if TYPE_CHECKING:
    from coordinator.device import Device

__all__ = ["Runtimes", "variant_name", "variant_of"]

_REMEMBERED_SECONDS = 30.0
"""How long what a device runs is taken for known: it changes only when its owner starts it anew."""


class Runtimes:
    """What devices run plans with, as far as it was heard: so that sending a plan seldom has to ask.

    ``lowered`` keeps what `coordinator.older_devices.bundle_for` has made.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}
        self._ops: dict[str, int] = {}
        self.lowered: dict[tuple[bytes, int], bytes] = {}

    def note(self, device: str, runtimes: Iterable[str], ops: int = OPS_VERSION) -> None:
        """A device has said what it runs, and the version of its op registry."""
        self._known[device] = (tuple(runtimes), time.monotonic() + _REMEMBERED_SECONDS)
        self._ops[device] = ops

    def older(self, devices: Iterable[str], version: int = OPS_VERSION) -> dict[str, int]:
        """Those of the devices whose op registry is older than ``version``, as `without_torch` has heard, and how old:
        the oldest first.
        """
        found = {name: self._ops.get(name, version) for name in devices}
        return dict(sorted(((name, ops) for name, ops in found.items() if ops < version), key=lambda one: one[1]))

    def without_torch(self, devices: Iterable[Device], ask: Callable[[], Sequence[DeviceInfo]]) -> list[str]:
        """Which of the devices run onnx and no torch. ``ask``, for those not known: what the broker knows of all.

        One that the broker has yet to meet counts as one with torch.
        """
        now = time.monotonic()
        names = [device.id for device in devices]
        if any(self._known.get(name, ((), 0.0))[1] < now for name in names):
            for info in ask():
                self.note(info.device, info.runtimes, max(info.ops, 1))
        known = {name: self._known.get(name, ((), 0.0))[0] for name in names}
        return [name for name, runtimes in known.items() if "onnx" in runtimes and "torch" not in runtimes]


def variant_name(precision: str) -> str:
    """Under which name a variant stands beside its plan."""
    return f"onnx-{precision}" if precision else "onnx"


def variant_of(
    bundle: PlanBundle, lines: Sequence[SourceLine | None], precision: str, made: dict[tuple[bytes, str], bytes]
) -> bytes:
    """The onnx variant of a plan: one that came with it, one of ``made`` (which a new one joins), or a new one.

    Raises `coordinator.translation.errors.TranslationUnsupported` or `VariantUnsound`.
    """
    key = (bundle.manifest.graph, precision)
    if key not in made:
        beside = bundle.beside.get(variant_name(precision))
        if beside is not None and decode_variant(beside).graph == bundle.manifest.graph:
            made[key] = beside
        else:
            from coordinator.translation.variants import make_variant  # it needs onnx, which not everybody has

            made[key] = make_variant(bundle.graph, lines, precision)
    return made[key]
