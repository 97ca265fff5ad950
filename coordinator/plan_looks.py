"""What the modules of a plan looked like when it was built, to be compared with what they look like when it is sent.

Of a module's attributes those count that its code read while it was captured (`coordinator.capture.reads`): they are in
the plan, as numbers, ops and constants. What else a module has, such as a count of epochs, may change.
"""

from __future__ import annotations

import argparse
import enum
import functools
import types
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from coordinator.capture.effects import is_users
from coordinator.capture.reads import HOOKS, Read
from coordinator.plan_state import brief

__all__ = ["Looks", "Place", "looks_of", "places_of"]

_DEEPEST = 4
"""How far into containers and attributes."""
_LONGEST = 60
"""Characters of a value in an error."""
_INNER = ("_parameters", "_buffers", "_modules")
_BY_NAME = {"_flat_weights"}
"""A recurrent layer's list of its parameters, which a plan looks up by their names."""
_PLAIN = (
    *(int, float, complex, str, bytes, type(None), enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_MISSING: Any = object()


@dataclass(frozen=True)
class Place:
    """A module that was read. ``at`` is its name among those whose tensors the plan carries, where another may come to
    stand, or, of one outside, the module; ``names`` are the attributes.
    """

    at: str | nn.Module
    called: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """How a value looks: in words, and what tells it from another."""

    text: str = field(compare=False)
    key: Any

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Looks:
    """What must not change between `coordinator.plan.Plan.build` and ``send``.

    ``parts``: by what it is called, how it looks. ``tied``: the names that were one tensor, of which a plan carries
    one. ``memory``: where the values of each named tensor are; equal for two that always have the same. ``kinds`` and
    ``attributes``: the class of the module at each of ``places``, and how what was read of it looks.
    """

    parts: Mapping[str, str]
    tied: tuple[tuple[str, ...], ...] = ()
    memory: Mapping[str, Hashable] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    kinds: Mapping[str, type] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Look]] = field(default_factory=dict)

    def changes(self, now: Looks) -> list[str]:
        """What is not as it was, in words. Tensors that have been tied since are as good as before."""
        changed = _differences(self.parts, now.parts)
        for names in self.tied:
            apart = {now.memory[name] for name in names if name in now.memory}
            if len(apart) > 1:
                changed.append(f"{' and '.join(names)}: one tensor became {len(apart)}")
        for called, kind in self.kinds.items():
            other = now.kinds.get(called)
            if other is kind:
                changed += _differences(self.attributes[called], now.attributes[called])
            elif other is not None and other.__name__ == kind.__name__:  # other names are among the parts
                changed.append(f"class of {called or 'the module'}: {kind.__name__} became another {kind.__name__}")
        return changed

    def copied(self, memo: Mapping[int, Any]) -> Looks:
        """The looks of a deep copy of the modules, which left this memo."""
        attributes = {
            called: {what: replace(look, key=_copied(look.key, memo)) for what, look in looks.items()}
            for called, looks in self.attributes.items()
        }
        places = tuple(replace(place, at=memo.get(id(place.at), place.at)) for place in self.places)
        return replace(self, places=places, attributes=attributes)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled with a plan: not what is outside."""
        inside = {place.called for place in self.places if isinstance(place.at, str)}
        return {
            **vars(self),
            "places": tuple(place for place in self.places if place.called in inside),
            "kinds": {called: kind for called, kind in self.kinds.items() if called in inside},
            "attributes": {called: looks for called, looks in self.attributes.items() if called in inside},
        }


def places_of(modules: Mapping[str, nn.Module], reads: Sequence[Read]) -> tuple[Place, ...]:
    """Where the modules are that were read, and what to call them. ``modules`` are those whose tensors the plan
    carries, by the name that these begin with.
    """
    paths = _paths(_named(modules))
    called = {key: min(names, key=len) for key, names in paths.items()}
    for read in reads:
        for name in read.names:
            start = _dotted(called.get(id(read.module), type(read.module).__name__), name)
            for what, value in _leaves(start, _value(read.module, name)):
                if isinstance(value, nn.Module):
                    for inner, module in value.named_modules(prefix=what):
                        called.setdefault(id(module), inner)
    places: dict[str, Place] = {}
    for read in reads:
        if type(read.module) is nn.Module and id(read.module) not in called:
            continue  # where torch's tracer keeps its constants
        name = first = called.get(id(read.module), type(read.module).__name__)
        while name in places:  # of two that are nowhere
            name = f"{first} ({len(places)})"
        places[name] = Place(name if id(read.module) in paths else read.module, name, tuple(read.names))
    return tuple(places.values())


def looks_of(modules: Mapping[str, nn.Module], places: tuple[Place, ...] = ()) -> Looks:
    """How these look now, and what was read at these places."""
    named = _named(modules)
    paths = _paths(named)
    parts = {f"mode of {names[0] or 'the module'}": _mode(named[names[0]]) for names in paths.values()}
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in modules.items():
        for kind, found in _tensors_of(prefix, module):
            parts |= {f"{kind} {name}": brief(tensor) for name, tensor in found.items()}
            tensors |= found
    same: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), []).append(name)  # torch chooses the name, also one that the code does not read
    found_at = {place: named.get(place.at) if isinstance(place.at, str) else place.at for place in places}
    return Looks(
        parts,
        tied=tuple(tuple(names) for names in same.values() if len(names) > 1),
        memory={name: _memory(tensor) for name, tensor in tensors.items()},
        places=places,
        kinds={place.called: type(module) for place, module in found_at.items() if module is not None},
        attributes={
            place.called: _attributes(module, place, paths) for place, module in found_at.items() if module is not None
        },
    )


def _differences(was: Mapping[str, str | Look], now: Mapping[str, str | Look]) -> list[str]:
    found = []
    for what in dict.fromkeys([*was, *now]):
        before, after = was.get(what, "none"), now.get(what, "none")
        if before != after:
            found.append(f"{what}: {before} became {'another ' if str(before) == str(after) else ''}{after}")
    return found


# ------------------------------------------------------------------------------------------------- modules and tensors


def _named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {
        name: found
        for prefix, module in modules.items()
        for name, found in module.named_modules(prefix=prefix, remove_duplicate=False)
    }


def _paths(named: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """The names of each module, by its id."""
    paths: dict[int, list[str]] = {}
    for name, module in named.items():
        paths.setdefault(id(module), []).append(name)
    return paths


def _dotted(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


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


# ------------------------------------------------------------------------------------------------- attributes


def _attributes(module: nn.Module, place: Place, paths: Mapping[int, list[str]]) -> dict[str, Look]:
    looks: dict[str, Look] = {}
    outside = not isinstance(place.at, str)
    if outside:
        looks[f"mode of {place.called}"] = Look(_mode(module), module.training)
    for name in place.names:
        if name in _BY_NAME or (not outside and any(name in vars(module)[inner] for inner in _INNER)):
            continue  # what the plan carries is compared by its name
        value = _value(module, name)
        if name in HOOKS:
            hooks = list(value.values())
            if hooks:
                what = f"{HOOKS[name]} of {place.called or 'the module'}"
                looks[what] = Look(", ".join(map(_called, hooks)), [_Object(hook) for hook in hooks])
        elif value is not _MISSING:
            for what, leaf in _leaves(_dotted(place.called, name), value):
                looks[f"attribute {what}"] = _look(leaf, paths)
    return looks


def _value(module: nn.Module, name: str) -> Any:
    """An attribute's value; no method and no property, whose code is the class's."""
    for space in (vars(module), *(vars(module)[inner] for inner in _INNER)):
        if name in space:
            return space[name]
    for kind in type(module).__mro__:
        if name in vars(kind):
            value = vars(kind)[name]
            return _MISSING if hasattr(type(value), "__get__") else value
    return _MISSING


def _leaves(what: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A value and what is in it, each with what to call it."""
    yield what, value
    if depth < _DEEPEST and not _is_plain(value):
        for suffix, part in _parts(value):
            yield from _leaves(what + suffix, part, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if issubclass(kind, dict):
        yield from ((f"[{_short(key)}]", part) for key, part in value.items())
    elif issubclass(kind, list | tuple | deque):
        yield from ((f"[{k}]", part) for k, part in enumerate(value))
    elif issubclass(kind, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif _is_open(value):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, dict):
        return all(isinstance(part, _PLAIN) for part in value.values())
    if issubclass(kind, list | tuple | deque | set | frozenset):
        return all(isinstance(part, _PLAIN) for part in value)
    return issubclass(kind, (*_PLAIN, range, slice))


def _is_open(value: Any) -> bool:
    """Whether its attributes are looked at: the user's own objects; those of packages have caches of their own."""
    kind = type(value)
    if issubclass(kind, nn.Module | torch.Tensor | type) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return issubclass(kind, types.SimpleNamespace | argparse.Namespace) or is_users(kind)


def _look(value: Any, paths: Mapping[int, list[str]]) -> Look:
    kind = type(value)
    if issubclass(kind, torch.Tensor):
        return Look(brief(value), _Elements(value))
    if issubclass(kind, nn.Module):
        return Look(kind.__name__, paths.get(id(value)) or _Object(value))
    if issubclass(kind, set | frozenset):
        return Look(_short(value), (kind, frozenset(value)))
    if _is_plain(value):
        return Look(_short(value), (kind, repr(value)))
    if issubclass(kind, dict):
        return Look(f"a {kind.__name__} of {len(value)}", (kind, list(value)))
    if issubclass(kind, list | tuple | deque):
        return Look(f"a {kind.__name__} of {len(value)}", (kind, len(value)))
    if issubclass(kind, functools.partial) or _is_open(value):
        return Look(f"a {kind.__name__}", kind)
    return Look(_called(value), _Object(value))


def _called(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or f"a {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class _Object:
    """Equal for the same object, or for an equal one that can't change. Keeps it: an id is one object's only as long as
    that lives.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Object) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (_is_hashable(self.value) and bool(self.value == other.value))

    __hash__ = None  # type: ignore[assignment]


def _is_hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None


class _Elements:
    """Equal for the same tensor, or for one of the same elements. Of a parameter the elements count: a plan that holds
    one as a constant holds these, and ``.data`` exchanges them.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.elements = tensor.detach()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Elements):
            return False
        if self.tensor is other.tensor and not isinstance(self.tensor, nn.Parameter):
            return True
        return _memory(self.elements) == _memory(other.elements)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Elements, (self.tensor,)


def _copied(key: Any, memo: Mapping[int, Any]) -> Any:
    if isinstance(key, _Object):
        return _Object(memo.get(id(key.value), key.value))
    if isinstance(key, _Elements) and not isinstance(key.tensor, nn.Parameter):  # a constant made of one is not copied
        return _Elements(memo.get(id(key.tensor), key.tensor))
    if isinstance(key, list):
        return [_copied(part, memo) for part in key]
    return key
