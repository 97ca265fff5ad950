"""Which devices need a variant of a plan, and where it comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from broker.protocol.messages import INLINE_TENSORS_BYTES, DeviceInfo
from broker.protocol.tensors import decode_array, encode_array
from coordinator.errors import SourceLine
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.format import OPS_VERSION, digest_of
from edge_agent.plan.quantised import (
    PackedState,
    axes_of,
    decode_quantised,
    encode_packed,
    quantised,
)
from edge_agent.plan.variants import decode_variant

if TYPE_CHECKING:
    from coordinator.device import Device

__all__ = ["Packed", "Runtimes", "packed_state", "variant_name", "variant_of"]

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


Packed: TypeAlias = dict[tuple[bytes, int], tuple[bytes, bytes]]
"""Frames of a weight's elements and scales, by the digest of its float32 frame and the dim of its channels."""


def packed_state(bundle: PlanBundle, variant: bytes, made: Packed) -> dict[str, bytes]:
    """What stands beside a plan for devices that run its variant of int8: blobs by name. The last is what a command
    names for them, an `edge_agent.plan.quantised.PackedState`, after the state that it names. Weights that are among
    ``made`` are not rounded again, and those that are not used any more leave it.

    Empty where there are so many tensors of state that naming them takes more than a message holds (some hundreds):
    then a command names the variant, and devices round the weights themselves.

    Raises `coordinator.translation.errors.WeightNotFinite`.
    """
    graph = bundle.graph
    axes = axes_of(decode_quantised(decode_variant(variant).content), graph)
    first = len(graph.given)
    state, scales, beside, used = list(bundle.manifest.state), [], {}, {}
    for place, axis in axes.items():
        key = bundle.manifest.state[place - first], axis
        used[key] = made.get(key) or _rounded(bundle.state[key[0]], axis, graph.inputs[place].name)
        name = f"{variant_name('int8')}:{graph.inputs[place].name}"
        beside[name], beside[f"{name}:scale"] = used[key]
        elements, scale = map(digest_of, used[key])
        state[place - first] = elements
        scales.append(scale)
    made.clear()
    made.update(used)
    packed = encode_packed(PackedState(variant=digest_of(variant), state=[*state, *scales]))
    if len(packed) + len(bundle.manifest_bytes) > INLINE_TENSORS_BYTES:
        return {}
    return {**beside, f"{variant_name('int8')}-state": packed}


def _rounded(frame: bytes, axis: int, name: str) -> tuple[bytes, bytes]:
    try:
        elements, scale = quantised(decode_array(frame), axis)
    except ValueError as error:
        from coordinator.translation.errors import WeightNotFinite

        raise WeightNotFinite(name) from error
    return encode_array(elements), encode_array(scale)
