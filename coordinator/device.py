"""`Device`: what a coordinator can do with one device."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from broker.protocol.messages import DeviceInfo, Failure
from coordinator.checks import checked_description, checked_tags
from coordinator.errors import error_from_failure
from coordinator.pointers import PointerTensor

if TYPE_CHECKING:
    import torch  # an operator has none

    from coordinator.fleet import Fleet

__all__ = ["Device"]


class Device:
    """A device of a fleet, by its id. Made by `Fleet.device` and `Fleet.devices`, and, as a `VirtualWorker`, here.

    What is known of it (`online`, ...) is what the broker said when the object was made by `Fleet.devices`, or when
    one of these was asked for first; `refresh` asks again.
    """

    def __init__(self, fleet: Fleet, id: str, *, info: DeviceInfo | None = None) -> None:
        self.fleet = fleet
        self.id = id
        self._info = info

    # --------------------------------------------------------------------------------------------- what is known

    def refresh(self) -> DeviceInfo:
        """Ask the broker what it knows. Raises `UnknownDevice`."""
        for info in self.fleet.device_infos():
            if info.device == self.id:
                self._info = info
                return info
        failure = Failure(code="UnknownDevice", message="the broker has never met a device of this name")
        raise error_from_failure(failure, device=self.id)

    @property
    def info(self) -> DeviceInfo:
        """All that the broker has said of it. Raises `UnknownDevice`, if it has never met it."""
        return self._info or self.refresh()

    @property
    def online(self) -> bool:
        """Whether it is connected to the broker."""
        return self.info.online

    @property
    def last_seen(self) -> datetime:
        """When the broker heard from it last, by the broker's clock, in UTC."""
        return datetime.fromtimestamp(self.info.last_seen / 1000, UTC)

    @property
    def labels(self) -> dict[str, str]:
        """What its owner says of it."""
        return dict(self.info.labels)

    @property
    def runtimes(self) -> list[str]:
        """With what it runs plans: ``torch``, ``onnx``."""
        return list(self.info.runtimes)

    @property
    def version(self) -> tuple[int, int]:
        """The version of the protocol that it speaks."""
        return self.info.version

    # --------------------------------------------------------------------------------------------- its tensors

    def search(self, *tags: str) -> list[PointerTensor]:
        """Pointers to its tensors that carry all of ``tags``; without tags, to everything tagged. `[]`, if there are
        none.

        One round trip to the broker, which answers from its index, also while the device sleeps.
        """
        return self.fleet.search(*tags, devices=[self.id]).get(self.id, [])

    def send(self, tensor: torch.Tensor, tags: Sequence[str] = (), description: str = "") -> PointerTensor:
        """Send a tensor; its pointer, at once. What is sent is the tensor as it is now, whatever becomes of it here.

        ``tags`` and ``description`` are added to those that `tagged` gave it. Raises `TensorRefused` for what can't
        travel, ValueError for what is no tag or no description.
        """
        from coordinator.scopes import note
        from coordinator.sending import put
        from coordinator.tagging import description_of, tags_of

        all_tags = (*tags_of(tensor), *checked_tags(tags))
        made = put(
            self.fleet,
            [self.id],
            tensor,
            tags=checked_tags(all_tags),
            description=checked_description(description) or description_of(tensor),
        )
        note(made)
        return made[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.fleet.endpoint}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Device):
            return NotImplemented
        return self.fleet is other.fleet and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)
