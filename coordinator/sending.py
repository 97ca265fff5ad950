"""Tensors from here to devices: small ones in the message, large ones as blobs, written and uploaded in the
background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from broker.protocol.errors import EdgePlanError, TensorRefused
from broker.protocol.messages import INLINE_TENSORS_BYTES, Put
from broker.protocol.tensors import DTYPES, MAX_DIMS
from coordinator.core_events import SubmitCommand
from coordinator.pointers import PointerTensor
from coordinator.transfers import Source
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, encode_tensor
from edge_agent.tensor_format import pack

if TYPE_CHECKING:
    from coordinator.fleet import Fleet

__all__ = ["check_tensor", "nbytes_of", "put"]


def check_tensor(tensor: torch.Tensor) -> None:
    """Raises `TensorRefused`, if ``tensor`` can't travel."""
    if not isinstance(tensor, torch.Tensor):
        raise TensorRefused(f"expected a torch tensor, got a {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TensorRefused(
            f"expected a dense tensor with values, got {tensor.layout} of {tensor.dtype} on {tensor.device}"
        )
    if tensor.dtype not in DTYPE_NAMES:
        raise TensorRefused(f"expected a dtype of {', '.join(DTYPES)}, got {tensor.dtype}")
    if tensor.dim() > MAX_DIMS:
        raise TensorRefused(f"expected at most {MAX_DIMS} dims, got {tensor.dim()}")


def nbytes_of(tensor: torch.Tensor) -> int:
    """The bytes of its elements."""
    return tensor.numel() * tensor.element_size()


def put(
    fleet: Fleet, devices: Sequence[str], tensor: torch.Tensor, *, tags: Sequence[str] = (), description: str = ""
) -> list[PointerTensor]:
    """Send a tensor to each of the devices, by one command; a pointer for each, at once. Raises `TensorRefused`."""
    check_tensor(tensor)
    small = nbytes_of(tensor) <= INLINE_TENSORS_BYTES
    frames = (encode_tensor(tensor),) if small else ()
    source = None if small else _source_of(tensor)
    driver = fleet.driver
    driver.check()
    with driver.lock:
        first = driver.core.take_ids(len(devices))
        if source is not None:
            fleet.blobs.keep(first, source)
        command = Put(id=first, tags=list(tags), description=description)
        upload = first if source is not None else None
        try:
            results = driver.submit(
                SubmitCommand(
                    devices=tuple(devices),
                    command=command,
                    frames=frames,
                    upload=upload,
                    upload_size=0 if small else nbytes_of(tensor),
                )
            )
        except EdgePlanError:
            fleet.blobs.discard(first)
            raise
        driver.flush()
    dtype, shape = DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)
    return [
        PointerTensor(fleet, result, dtype=dtype, shape=shape, tags=tuple(command.tags), description=description)
        for result in results
    ]


def _source_of(tensor: torch.Tensor) -> Source:
    """What writes the tensor, as it is now, to a file. The copy is made here: later changes by the user don't
    matter.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    snapshot = torch.empty(plain.shape, dtype=plain.dtype).copy_(plain)
    dtype = DTYPE_NAMES[tensor.dtype]

    def write(path: Path) -> None:
        data = snapshot.reshape(-1).view(torch.uint8).numpy()
        with path.open("wb") as file:
            file.write(pack(dtype, tuple(snapshot.shape)))
            file.write(data.data)

    return write
