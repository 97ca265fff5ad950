"""A coordinator for the network tests: does what the lines on its standard input say, and answers each with JSON.

::

    invoke N DEVICE...    N invocations on each, some at a time; how many gave the right value, and which errors
    put BYTES DEVICE      a tensor of so many bytes; the seconds until it is there, and whether it is equal there
    begin BYTES DEVICE    as ``put``, but answered at once; ``end`` waits for it
    trip DEVICE           one invocation and its value: seconds
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from coordinator import connect, func2plan
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from tests.network.hosts import PORTS

PATIENCE = 240.0
WINDOW = 64


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """What is invoked."""
    return x + x


@func2plan(args_shape=[(-1,)], args_dtype=[torch.uint8])
def checksum(x: torch.Tensor) -> torch.Tensor:
    """Whether a large tensor has arrived as it was sent, without sending it back."""
    return (x.to(torch.int64) * (torch.arange(x.shape[0]) % 251 + 1)).sum()


class Load:
    """What the lines do."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.begun: list[tuple[float, torch.Tensor, PointerTensor]] = []

    def invoke(self, count: str, *devices: str) -> Any:
        """See the module."""
        plans = {name: double.send(self.fleet.device(name)) for name in devices}
        right, errors = 0, dict[str, int]()
        for start in range(0, int(count), WINDOW):
            numbers = range(start, min(int(count), start + WINDOW))
            asked = [(k, plan(torch.tensor([float(k)]))) for k in numbers for plan in plans.values()]
            values = self.fleet.get([pointer for _, pointer in asked], timeout=PATIENCE, errors="return")
            for (k, _), value in zip(asked, values, strict=True):
                if isinstance(value, Exception):
                    name = type(value).__name__
                    errors[name] = errors.get(name, 0) + 1
                else:
                    right += value.tolist() == [2.0 * k]
        return {"right": right, "errors": errors}

    def begin(self, size: str, device: str) -> Any:
        """See the module."""
        tensor = torch.randint(0, 256, (int(size),), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        on_device = checksum.send(self.fleet.device(device))
        self.begun.append((time.monotonic(), tensor, on_device(self.fleet.device(device).send(tensor))))
        return {}

    def end(self) -> Any:
        """See the module."""
        began, tensor, pointer = self.begun.pop(0)
        equal = pointer.get(PATIENCE).item() == checksum(tensor).item()
        return {"seconds": time.monotonic() - began, "equal": equal}

    def put(self, size: str, device: str) -> Any:
        """See the module."""
        self.begin(size, device)
        return self.end()

    def trip(self, device: str) -> Any:
        """See the module."""
        began = time.monotonic()
        double.send(self.fleet.device(device))(torch.ones(2)).get(PATIENCE)
        return {"seconds": time.monotonic() - began, "under_way": [not one.ready for _, _, one in self.begun]}


def main() -> None:
    """See the module."""
    with connect(f"tcp://127.0.0.1:{PORTS[0]}", insecure=True, timeout=PATIENCE) as fleet:
        load = Load(fleet)
        does: dict[str, Callable[..., Any]] = {
            name: getattr(load, name) for name in ("invoke", "put", "begin", "end", "trip")
        }
        print(json.dumps({"connected": True}), flush=True)
        for line in sys.stdin:
            name, *arguments = line.split()
            print(json.dumps(does[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
