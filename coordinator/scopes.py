"""`Scope`: results that are released together, when the block that made them is left."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Self, TypeVar

from broker.protocol.batches import batches
from broker.protocol.errors import EdgePlanError
from broker.protocol.messages import Release
from coordinator.core_events import SubmitCommand
from coordinator.values import check_nesting
from edge_agent.plan.trees import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from coordinator.fleet import Fleet
    from coordinator.pointers import PointerTensor

__all__ = ["Scope", "note"]

T = TypeVar("T")

RELEASES_A_COMMAND = 10_000
"""How many ids one command releases at most."""

_current: ContextVar[Scope | None] = ContextVar("edgeplan_scope", default=None)


def note(pointers: Iterable[PointerTensor]) -> None:
    """These were made just now, by a command of this thread or task."""
    scope = _current.get()
    if scope is not None:
        scope.add(pointers)


class Scope:
    """Releases, when it is left, every result that a command inside it made: by a value or by an exception. Made by
    `Fleet.scope`.

    What was found or taken up by its id was not made inside, and stays; so does what `keep` was given. Scopes nest: a
    result belongs to the innermost scope of its fleet. A scope is of the thread, or of the asyncio task, that entered
    it; tasks that are started inside belong to it until it is left, threads do not.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._made: dict[bytes, PointerTensor] = {}
        self._outer: Scope | None = None
        self._token: Token[Scope | None] | None = None
        self._left = False

    def __repr__(self) -> str:
        return f"<Scope of {self._fleet!r}, {'left' if self._left else f'{len(self._made)} made inside'}>"

    def add(self, pointers: Iterable[PointerTensor]) -> None:
        """These were made inside. Those of another fleet, and all once it was left, are for the scope around it."""
        others: list[PointerTensor] = []
        for pointer in pointers:
            if self._left or pointer.fleet is not self._fleet:
                others.append(pointer)
            else:
                self._made[pointer.result_id] = pointer
        if others and self._outer is not None:
            self._outer.add(others)

    def keep(self, nest: T) -> T:
        """Don't release the pointers in ``nest`` (a pointer, or any nesting of them), and give it back.

        They belong to the scope around this one then, if there is one. Raises TypeError for pointers in a set, a
        generator, ``results.values()``.
        """
        _, leaves = spec_of(nest, name="nest")
        check_nesting(leaves)
        for leaf in leaves:
            kept = self._made.pop(getattr(leaf, "result_id", b""), None)
            if kept is not None and self._outer is not None:
                self._outer.add([kept])
        return nest

    def __enter__(self) -> Self:
        if self._token is not None or self._left:
            raise RuntimeError("expected a new scope, got one that was entered before: call fleet.scope() again")
        self._outer = _current.get()
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        assert token is not None
        _current.reset(token)
        self._left = True
        made, self._made = list(self._made.values()), {}
        try:
            self._release([pointer for pointer in made if not pointer.released])
        except EdgePlanError:
            if error is None:
                raise
            # What went wrong inside, most likely the same, is what the caller must hear of.

    def _release(self, pointers: list[PointerTensor]) -> None:
        by_device: dict[str, list[PointerTensor]] = {}
        for pointer in pointers:
            by_device.setdefault(pointer.result.device, []).append(pointer)
        for device, group in by_device.items():
            for some in batches(group, RELEASES_A_COMMAND):
                command = Release(ids=[pointer.result_id for pointer in some])
                released = tuple([(pointer.result, pointer.index) for pointer in some])
                self._fleet.submit(SubmitCommand(devices=(device,), command=command, released=released))
