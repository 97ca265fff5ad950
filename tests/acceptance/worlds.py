"""Fleets to run the same test on: real processes over TCP, or virtual devices in this process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from broker.protocol.messages import Counters
from coordinator.device import Device
from coordinator.fleet import Fleet
from tests.waiting import PATIENCE

__all__ = ["KINDS", "World", "fresh_tag"]

KINDS = ("tcp", "embedded")

_tags = itertools.count()


def fresh_tag() -> str:
    """A tag that no other test uses: the devices are shared."""
    return f"tag-{next(_tags)}"


@dataclass(frozen=True, slots=True)
class World:
    """A fleet of two devices, over ``tcp`` or ``embedded``."""

    kind: str
    fleet: Fleet
    devices: tuple[Device, Device]

    def counters(self, device: Device | None = None) -> Counters:
        """What the broker has counted for one device, or in all."""
        stats = self.fleet.stats()
        return stats.total if device is None else stats.devices[device.id]

    @contextlib.contextmanager
    def without_repetition(self) -> Iterator[None]:
        """Fail if anything had to be sent again: on a whole network that hides a message, or a wake, that was lost."""
        before = [self.counters(device).resent for device in self.devices]
        yield
        assert [self.counters(device).resent for device in self.devices] == before

    def still_works(self) -> None:
        """Fail unless both devices run a plan."""
        import torch

        from tests.acceptance import plans

        for device in self.devices:
            value = plans.double_abs().send(device)(device.send(torch.tensor([-1.0, 2.0]))).get(timeout=PATIENCE)
            assert torch.equal(value, torch.tensor([2.0, 4.0]))
