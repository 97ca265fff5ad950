"""Which attributes of which modules the user's code reads: their values are in a plan of it, as ops and numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx.experimental.proxy_tensor import _AttrProxy

from coordinator.capture.environment import ALONE, replaced

__all__ = ["HOOKS", "Read", "Reads"]

HOOKS = {"_forward_hooks": "forward hooks", "_forward_pre_hooks": "forward pre-hooks"}
"""Where a module has the hooks that run with its code, and what to call them."""

_TORCHS = (frozenset(vars(nn.Module)) | frozenset(vars(nn.Module()))) - frozenset(HOOKS) - {"forward"}
"""What every module has, and what torch asks of it for its own ends."""


@dataclass(frozen=True)
class Read:
    """A module that was looked into, and the names of the attributes that were read, in the order in which they were
    first.
    """

    module: nn.Module
    names: dict[str, None] = field(default_factory=dict)


class Reads:
    """Notes what is read of modules, also of those that are in lists or outside.

    A module that the code makes, and an attribute that it sets, as a cache of its own, are none that it depends on.
    """

    def __init__(self) -> None:
        # by the id of their dicts, which torch's tracer shares with what it puts in a module's place
        self._read: dict[int, Read] = {}
        self._made: dict[int, nn.Module] = {}
        self._written: set[tuple[int, str]] = set()

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note what this thread reads in this block."""
        thread = threading.get_ident()
        make: Any = nn.Module.__init__
        set_attribute: Any = nn.Module.__setattr__

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if threading.get_ident() == thread:
                self._made[_key(module)] = module
            make(module, *args, **kwargs)

        def read(module: nn.Module, name: str) -> Any:
            if threading.get_ident() == thread and not name.startswith("__"):
                self._note(module, name)
            return object.__getattribute__(module, name)

        def write(module: nn.Module, name: str, value: Any) -> None:
            if threading.get_ident() == thread:
                self._written.add((_key(module), name))
            set_attribute(module, name, value)

        with (
            ALONE,
            replaced(nn.Module, "__init__", init),
            replaced(nn.Module, "__getattribute__", read),
            replaced(nn.Module, "__setattr__", write),
        ):
            yield

    def _note(self, module: nn.Module, name: str) -> None:
        key = _key(module)
        if key not in self._read:
            # asked of the class: asked of the module, it would be noted
            kind: Any = type(module)
            self._read[key] = Read(kind.get_base(module) if issubclass(kind, _AttrProxy) else module)
        if name not in _TORCHS:
            self._read[key].names[name] = None

    def found(self) -> tuple[Read, ...]:
        """What was read, in the order in which it was first."""
        return tuple(
            Read(read.module, {name: None for name in read.names if (key, name) not in self._written})
            for key, read in self._read.items()
            if key not in self._made
        )


def _key(module: nn.Module) -> int:
    return id(object.__getattribute__(module, "__dict__"))
