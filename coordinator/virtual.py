"""`VirtualWorker`: a real agent in this process, for notebooks and tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Self

import torch

from coordinator.device import Device
from coordinator.errors import BrokerUnreachable
from coordinator.fleet import Fleet
from coordinator.tagging import description_of, tags_of
from coordinator.waiting import Deadline
from edge_agent.agent import Agent, AgentConfig
from edge_agent.limits import Limits
from edge_agent.store import Store

__all__ = ["VirtualWorker"]

_RUNTIMES = ("torch", "onnx")
_LOOK = 0.002
"""How often to ask whether the broker has the tags of a new device, in seconds; that takes a millisecond or two."""


class VirtualWorker(Device):
    """A device in this process: agent, store and runtime are the real ones, but plans run on a thread.

    ``data``: tensors that it owns from the start, with the tags that `tagged` gave them. ``store``: a folder for its
    store, which survives it; without one, a temporary one. ``runtime``: ``torch``, or ``onnx`` as on devices without
    it. ``limits``: what a run of a plan may take. Returns when the broker knows the device and its tags. It ends with
    its fleet, or by `close`.

    Raises `ConnectionRefused` when the broker does not take it (there is a device of that id), `BrokerUnreachable`
    when it is not taken within ``timeout`` seconds, `FleetClosed`, ValueError for an id, a runtime or a timeout that is
    none, TypeError for data that is one tensor, or has what is none, and for a fleet or limits that are none.
    """

    def __init__(
        self,
        fleet: Fleet,
        id: str,
        *,
        data: Iterable[torch.Tensor] = (),
        store: str | os.PathLike[str] | None = None,
        runtime: str = "torch",
        limits: Limits | None = None,
        timeout: float = 30.0,
    ) -> None:
        if not isinstance(fleet, Fleet):
            raise TypeError(f"expected a fleet, as of connect(), got a {type(fleet).__name__}")
        super().__init__(fleet, fleet.device(id).id)
        own = _checked_data(data)
        if runtime not in _RUNTIMES:
            raise ValueError(f"expected runtime to be 'torch' or 'onnx', got {runtime!r}")
        if not isinstance(limits, Limits | None):
            raise TypeError(f"expected limits to be edge_agent.limits.Limits, got a {type(limits).__name__}")
        deadline = Deadline(timeout)
        fleet.driver.check()
        self._store = Store.temporary() if store is None else Store.open(store)
        self._agent: Agent | None = None
        try:
            kept = [(self._keep(tensor), tags_of(tensor)) for tensor in own]
            expected = {id_ for id_, tags in kept if tags}
            limits = limits or Limits()
            config = AgentConfig(
                runtimes=(runtime,),
                max_memory=limits.memory_bytes,
                max_ops=limits.ops,
                max_seconds=limits.seconds,
            )
            self._agent = Agent(
                fleet.endpoint,
                id,
                self._store,
                context=fleet.context,
                worker="thread",
                runtime=runtime,
                config=config,
            )
            self._agent.start()
            fleet.own(self)
            fleet.runtimes.note(id, (runtime,))
            self._wait_until_known(expected, deadline)
        except BaseException:
            self.close()
            raise

    @property
    def store(self) -> Store:
        """What it owns and keeps: `Store.put` adds to it, as a device's own programs do."""
        return self._store

    @property
    def registered(self) -> bool:
        """Whether the broker knows it just now."""
        return self._agent is not None and self._agent.registered

    def _keep(self, tensor: torch.Tensor) -> str:
        return self._store.put(tensor, tags=tags_of(tensor), description=description_of(tensor))

    def _wait_until_known(self, expected: set[str], deadline: Deadline) -> None:
        assert self._agent is not None
        timeout = deadline.timeout or 0.0
        try:
            self._agent.wait_until_registered(deadline.left)
        except TimeoutError:
            raise BrokerUnreachable(self.fleet.endpoint, timeout) from None
        while not expected <= {pointer.id for pointer in self.search()}:
            if deadline.left == 0:
                raise BrokerUnreachable(self.fleet.endpoint, timeout)
            time.sleep(_LOOK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, and the store if it was a temporary one. Idempotent."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.stop()
        self._store.close()


def _checked_data(data: object) -> list[torch.Tensor]:
    """All of it, before any is stored."""
    if isinstance(data, torch.Tensor):  # which iterates, over its rows: those would have no tags
        raise TypeError("expected data to be a list or tuple of tensors, got one tensor")
    if not isinstance(data, Iterable):
        raise TypeError(f"expected data to be a list or tuple of tensors, got a {type(data).__name__}")
    tensors: list[torch.Tensor] = []
    for k, tensor in enumerate(data):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected data[{k}] to be a tensor, got a {type(tensor).__name__}")
        tensors.append(tensor)
    return tensors
