"""What the modules of a plan looked like when it was built, to be compared with what they look like when it is sent."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from coordinator.plan_state import brief

__all__ = ["Looks", "looks_of"]


@dataclass(frozen=True)
class Looks:
    """What must not change between `coordinator.plan.Plan.build` and ``send``.

    ``parts``: by what it is called, how it looks. ``tied``: the names that were one tensor, of which a plan carries
    one. ``memory``: where the values of each named tensor are; equal for two that always have the same.
    """

    parts: Mapping[str, str]
    tied: tuple[tuple[str, ...], ...] = ()
    memory: Mapping[str, Hashable] | None = None

    def changes(self, now: Looks) -> list[str]:
        """What is not as it was, in words. Tensors that have been tied since are as good as before."""
        changed = [
            f"{what}: {self.parts.get(what, 'none')} became {now.parts.get(what, 'none')}"
            for what in dict.fromkeys([*self.parts, *now.parts])
            if self.parts.get(what) != now.parts.get(what)
        ]
        memory = now.memory or {}
        for names in self.tied:
            apart = {memory[name] for name in names if name in memory}
            if len(apart) > 1:
                changed.append(f"{' and '.join(names)}: one tensor became {len(apart)}")
        return changed


def looks_of(modules: Mapping[str, nn.Module]) -> Looks:
    """How these look now; ``modules`` are those whose tensors the plan carries, by the name that these begin with."""
    parts: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in modules.items():
        for name, found in module.named_modules(prefix=prefix):
            parts[f"mode of {name or 'the module'}"] = _mode(found)
        for kind, named in _tensors_of(prefix, module):
            parts |= {f"{kind} {name}": brief(tensor) for name, tensor in named.items()}
            tensors |= named
    same: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), []).append(name)
    return Looks(
        parts,
        tied=tuple(tuple(names) for names in same.values() if len(names) > 1),
        memory={name: _memory(tensor) for name, tensor in tensors.items()},
    )


def _mode(module: nn.Module) -> str:
    return f"{type(module).__name__}, {'train' if module.training else 'eval'}"


def _tensors_of(prefix: str, module: nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    yield "parameter", dict(module.named_parameters(prefix=prefix, remove_duplicate=False))
    yield "buffer", dict(module.named_buffers(prefix=prefix, remove_duplicate=False))


def _memory(tensor: torch.Tensor) -> Hashable:
    """Equal for two tensors that are the same, or views of the same elements in the same order: also what
    ``load_state_dict(assign=True)`` makes of tied weights.
    """
    if tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
