"""Side effects of Python that a plan would lose, found while the user's code is traced: printing, writing files, and
changes to what lives outside the function.

What the function's own code names (globals, variables of functions around it, defaults, attributes of its module), and
what the functions of the user's that it names name in turn, is noted before and compared afterwards, by identity. A
change is undone, since what was put there is only tracing's; then the function runs once more, line by line, to see
which line it was. Objects of installed packages and of Python's library are not looked into: they have caches of their
own.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import io
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coordinator.capture import places
from coordinator.errors import LostSideEffect, SourceLine

__all__ = ["is_users", "run_without_effects"]

_MOST = 5_000
"""How many objects are looked at."""
_DEEPEST = 4
"""How far into containers and attributes."""
_INNER = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_flat_weights"}
"""What of a module tracing itself exchanges."""
_PLAIN = (int, float, complex, str, bytes, type(None))
_MISSING: Any = object()


def run_without_effects(call: Callable[[], Any], *roots: object) -> Any:
    """What ``call`` gives. ``roots``: the user's function, and the modules that it uses.

    Raises `LostSideEffect`, with the line, for a side effect; what it changed is put back, whatever is raised.
    """
    outside = _Outside()
    for root in roots:
        outside.visit(root, "", 0)
    try:
        with _no_writing():
            result = call()
    except BaseException:
        outside.restore(outside.changed())
        raise
    changed = outside.changed()
    if not changed:
        return result
    name = changed[0].told()
    outside.restore(changed)
    try:
        where = _line_of_change(call, changed)
    finally:
        outside.restore(outside.changed())
    if where is None:
        return result  # somebody else's change
    raise LostSideEffect(name, where=where)


# ------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def _no_writing() -> Iterator[None]:
    """print, open for writing, and sys.stdout refuse in this block, in this thread and for the user's lines."""
    thread = threading.get_ident()
    real_print, real_open, streams = builtins.print, builtins.open, (sys.stdout, sys.stderr)

    def refuse(what: str) -> None:
        if threading.get_ident() == thread and (where := _asked_by_user(sys._getframe(2))) is not None:  # noqa: SLF001
            raise LostSideEffect(what, where=where)

    def watched_print(*args: Any, file: Any = None, **kwargs: Any) -> None:
        if not isinstance(file, io.StringIO):
            refuse("print")
        real_print(*args, file=file, **kwargs)

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse("open")
        return real_open(file, mode, *args, **kwargs)

    class Stream:
        """A standard stream that knows who writes to it."""

        def __init__(self, stream: Any, name: str) -> None:
            self._stream = stream
            self._name = name

        def write(self, text: str) -> int:
            refuse(self._name)
            return int(self._stream.write(text))

        def writelines(self, lines: Any) -> None:
            refuse(self._name)
            self._stream.writelines(lines)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    watched: Any = (Stream(streams[0], "sys.stdout.write"), Stream(streams[1], "sys.stderr.write"))
    builtins.print, builtins.open = watched_print, watched_open
    sys.stdout, sys.stderr = watched
    try:
        yield
    finally:
        builtins.print, builtins.open = real_print, real_open
        if sys.stdout is watched[0]:
            sys.stdout = streams[0]
        if sys.stderr is watched[1]:
            sys.stderr = streams[1]


def _asked_by_user(frame: types.FrameType | None) -> SourceLine | None:
    """The user's line that asks for this itself, or through Python's library; not what is logged or warned of."""
    while frame is not None and places.is_stdlib(frame.f_code.co_filename):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("logging", "warnings"):
            return None
        frame = frame.f_back
    if frame is None or not places.is_user(frame.f_code.co_filename) or places.interrupts(frame):
        return None
    return places.of_frame(frame)


# ------------------------------------------------------------------------------------------------- changes


@dataclass
class _Watched:
    """Something that can change: what it held, how to read what it holds now, and to put it back. ``attributes``: it
    is the names of those that an object has gained.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    before: Any
    attributes: bool = False

    def told(self) -> str:
        """What to call that which has changed."""
        return f"{self.name}.{min(self.read())}" if self.attributes else self.name

    def has_changed(self) -> bool:
        return not _same(self.before, self.read())


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, dict):
        return len(before) == len(now) and all(
            key in now and _same_value(value, now[key]) for key, value in before.items()
        )
    if isinstance(before, list):
        return len(before) == len(now) and all(map(_same_value, before, now))
    if isinstance(before, frozenset):
        return bool(before == now)
    return _same_value(before, now)


def _same_value(before: Any, now: Any) -> bool:
    return before is now or (type(before) is type(now) and isinstance(before, _PLAIN) and before == now)


class _Outside:
    """All that lives outside the function and that its code can change."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._seen: set[tuple[int, str]] = set()
        self._kept: list[object] = []  # an id is one object's only as long as that lives

    def changed(self) -> list[_Watched]:
        """What is not as it was, what was noted first first."""
        return [one for one in self._watched if one.has_changed()]

    def restore(self, changed: list[_Watched]) -> None:
        """Put it back."""
        for one in changed:
            one.write(one.before)

    def _watch(self, name: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._watched.append(_Watched(name, read, write, read()))

    def _is_new(self, value: object, part: str = "") -> bool:
        key = (id(value), part)
        if key in self._seen or len(self._seen) >= _MOST:
            return False
        self._seen.add(key)
        self._kept.append(value)
        return True

    # --------------------------------------------------------------------------------------------- what there is

    def visit(self, value: Any, name: str, depth: int) -> None:
        """Note a value, and what it leads to."""
        kind = type(value)  # isinstance would ask a proxy what it is
        if issubclass(kind, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.visit(part, name, depth)
        elif issubclass(kind, types.MethodType):
            self.visit(value.__self__, "self", depth)
            self.visit(value.__func__, name, depth)
        elif issubclass(kind, types.FunctionType):
            self._function(value)
        elif issubclass(kind, functools._lru_cache_wrapper):  # noqa: SLF001 -- it has no other name
            self.visit(value.__wrapped__, name, depth)
        elif issubclass(kind, list | dict | set | deque | bytearray):
            self._container(value, name, depth)
        elif issubclass(kind, tuple):
            if depth < _DEEPEST and self._is_new(value):
                for k, part in enumerate(value):
                    self.visit(part, f"{name}[{k}]", depth + 1)
        elif issubclass(kind, nn.Module):
            for path, module in value.named_modules():
                self._instance(module, f"{name or 'self'}.{path}".rstrip("."), depth)
        elif issubclass(kind, type):
            self._class(value, depth)
        elif not issubclass(kind, types.ModuleType | torch.Tensor):
            self._instance(value, name, depth)

    def _container(self, value: Any, name: str, depth: int) -> None:
        if depth > _DEEPEST or not self._is_new(value):
            return
        if isinstance(value, dict):
            self._watch(name, lambda: dict(value), lambda before: _refill(value, before))
            parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
        elif isinstance(value, set):
            self._watch(name, lambda: frozenset(value), lambda before: _refill(value, before))
            parts = []
        else:
            self._watch(name, lambda: list(value), lambda before: _extended(value, before))
            parts = [] if isinstance(value, bytearray) else [(f"{name}[{k}]", part) for k, part in enumerate(value)]
        for called, part in parts:
            if not isinstance(part, _PLAIN):
                self.visit(part, called, depth + 1)

    def _instance(self, value: Any, name: str, depth: int) -> None:
        kind = type(value)
        if depth > _DEEPEST or not (is_users(kind) or kind is types.SimpleNamespace):
            return
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict) or not self._is_new(value):
            return
        cached = {key for one in kind.__mro__ for key, own in vars(one).items() if _caches(own)}
        for key, part in list(attributes.items()):
            if key not in cached and key not in _INNER:
                self.visit(part, f"{name}.{key}", depth + 1)
        self._attributes(attributes, name, lambda: {*_INNER, *cached})
        for key in ("forward", "__call__"):
            if isinstance(own := getattr(kind, key, None), types.FunctionType):
                self._function(own, owner=kind)

    def _attributes(self, attributes: dict[str, Any], name: str, but: Callable[[], set[str]]) -> None:
        for key in [*attributes, _MISSING]:
            if key is not _MISSING and key not in but():
                self._watch(
                    f"{name}.{key}",
                    lambda key=key: attributes.get(key, _MISSING),  # type: ignore[misc]
                    lambda before, key=key: attributes.__setitem__(key, before),  # type: ignore[misc]
                )
        known = frozenset(attributes) | but()

        def forget(_: Any) -> None:
            for key in [key for key in attributes if key not in known]:
                del attributes[key]

        self._watched.append(_Watched(name, lambda: frozenset(attributes) - known, forget, frozenset(), True))

    def _class(self, kind: type, depth: int) -> None:
        if not is_users(kind) or not self._is_new(kind):
            return
        for key, part in list(vars(kind).items()):
            if key.startswith("__") or isinstance(part, types.FunctionType | property | staticmethod | classmethod):
                continue
            self._watch(
                f"{kind.__name__}.{key}",
                lambda key=key: vars(kind).get(key, _MISSING),  # type: ignore[misc]
                lambda before, key=key: setattr(kind, key, before),  # type: ignore[misc]
            )
            self.visit(part, f"{kind.__name__}.{key}", depth + 1)
        if isinstance(own := vars(kind).get("__init__"), types.FunctionType):
            self._function(own, owner=kind)

    # --------------------------------------------------------------------------------------------- what code names

    def _function(self, function: types.FunctionType, owner: type | None = None) -> None:
        users = _is_own(function.__code__.co_filename)
        if not (users or _is_ours(function)) or not self._is_new(function):
            return
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
            value = _content(cell)
            if users:
                self._watch(name, functools.partial(_content, cell), functools.partial(_fill, cell))
            if users or callable(value):  # this package's own functions change their own
                self.visit(value, name, 0)
                self._methods(type(value), _names(function.__code__)[0])
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if users and not isinstance(default, _PLAIN):
                self.visit(default, f"a default of {function.__name__}", 0)
        if not users:
            return
        names, assigned = _names(function.__code__)
        space = function.__globals__
        for name in sorted(assigned):
            self._watch(name, functools.partial(space.get, name, _MISSING), functools.partial(_assign, space, name))
        for name in sorted(names):
            value = space.get(name, _MISSING)
            if type(value) is types.ModuleType:
                self._module(value, names)
            elif value is not _MISSING:
                self.visit(value, name, 0)
            if value is not _MISSING:
                self._methods(value if issubclass(type(value), type) else type(value), names)
            if owner is not None:
                self._methods(owner, {name})

    def _module(self, module: types.ModuleType, names: Mapping[str, None]) -> None:
        if not _is_own(getattr(module, "__file__", None) or "<built in>"):
            return
        for name in names:
            value = vars(module).get(name, _MISSING)
            if value is _MISSING or isinstance(value, types.ModuleType) or not self._is_new(module, name):
                continue
            called = f"{module.__name__}.{name}"
            self._watch(
                called,
                functools.partial(vars(module).get, name, _MISSING),
                functools.partial(_assign, vars(module), name),
            )
            self.visit(value, called, 0)

    def _methods(self, kind: type, names: Any) -> None:
        for one in kind.__mro__:
            if not is_users(one):
                continue
            for name in names:
                own = vars(one).get(name)
                own = own.__func__ if isinstance(own, staticmethod | classmethod) else own
                own = own.fget if isinstance(own, property) else own
                if isinstance(own, types.FunctionType):
                    self._function(own, owner=kind)


@functools.cache
def _names(code: types.CodeType) -> tuple[Mapping[str, None], frozenset[str]]:
    """All names that a function's code looks up outside it, those of functions inside it included; and those of them
    that it assigns to as globals.
    """
    names = dict.fromkeys(name for name in code.co_names if name.isidentifier())  # pytest adds others
    assigned = {one.argval for one in dis.get_instructions(code) if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, inner_assigned = _names(constant)
            names.update(inner)
            assigned |= inner_assigned
    return names, frozenset(assigned)


def is_users(kind: type) -> bool:
    """Whether a class is the user's own, and no installed package's."""
    if kind.__module__ == "builtins":
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return _is_own(file) if file else kind.__module__ == "__main__"


def _is_own(filename: str) -> bool:
    """Whether a file is the user's own, and no installed package's."""
    return places.is_user(filename) and "-packages/" not in filename


def _is_ours(function: types.FunctionType) -> bool:
    return function.__module__.partition(".")[0] == "coordinator"


def _caches(attribute: Any) -> bool:
    return isinstance(attribute, functools.cached_property)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been assigned yet
        return _MISSING


def _fill(cell: types.CellType, before: Any) -> None:
    if before is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = before


def _assign(space: dict[str, Any], name: str, before: Any) -> None:
    if before is _MISSING:
        space.pop(name, None)
    else:
        space[name] = before


def _refill(value: Any, before: Any) -> None:
    value.clear()
    value.update(before)


def _extended(value: Any, before: list[Any]) -> None:
    value.clear()
    value.extend(before)


# ------------------------------------------------------------------------------------------------- which line


def _line_of_change(call: Callable[[], Any], changed: list[_Watched]) -> SourceLine | None:
    """The user's line that changes the first of these: the code runs once more, line by line."""
    last: SourceLine | None = None
    found: SourceLine | None = None
    thread = threading.get_ident()

    def trace(frame: types.FrameType, event: str, _argument: object) -> Any:
        nonlocal last, found
        if found is not None or threading.get_ident() != thread or not places.is_user(frame.f_code.co_filename):
            return None
        if changed[0].has_changed():
            found = last
            return None
        if event in ("line", "call"):
            last = places.of_frame(frame)
        return trace

    # what it raises now is not what is told: the change is
    with places.line_by_line(trace), contextlib.suppress(Exception):
        call()
    return found
