"""Tensors that coordinators send (`Put`), from the message or the blob to the store."""

from __future__ import annotations

from collections.abc import Callable

from broker.protocol import messages as m
from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import inspect
from edge_agent.catalog import Held
from edge_agent.core_blobs import BlobWants
from edge_agent.core_commands import Command
from edge_agent.core_desk import Desk, failure
from edge_agent.effects import AdoptTensor
from edge_agent.transitions import Step

__all__ = ["Puts"]


class Puts:
    """``store`` and ``fail`` end a command with its value or without."""

    def __init__(
        self,
        desk: Desk,
        blobs: BlobWants,
        store: Callable[[Command, tuple[Held, ...]], None],
        fail: Callable[[Command, m.Failure], None],
    ) -> None:
        self._desk = desk
        self._blobs = blobs
        self._store = store
        self._fail = fail

    def take(self, command: Command, body: m.Put) -> None:
        """A `Put` has come."""
        if body.blob is not None:
            command.move(Step.WAITING_ARGUMENTS)
            self._want(command, body.blob)
            return
        if len(command.frames) != 1:
            said = f"expected one tensor with the command, got {len(command.frames)}"
            self._fail(command, failure("ArgumentMismatch", said))
            return
        try:
            header = inspect(command.frames[0])
        except TensorRefused as error:
            self._fail(command, failure("TensorRefused", str(error)))
            return
        held = Held(
            id=body.id,
            dtype=header.dtype,
            shape=header.shape,
            nbytes=header.nbytes,
            source=bytes(command.frames[0]),
            tags=tuple(body.tags),
            description=body.description,
        )
        self._store(command, (held,))

    def again(self, command: Command) -> None:
        """The blob of a `Put` was dropped before it could be kept: a part of a plan, say, that had to make room."""
        body = command.body
        assert isinstance(body, m.Put)
        assert body.blob is not None  # what came with the message is here
        self._want(command, body.blob, anew=True)

    def _want(self, command: Command, blob: bytes, *, anew: bool = False) -> None:
        self._blobs.want(blob, lambda _digest, result: self._arrived(command, result), anew=anew)

    def _arrived(self, command: Command, result: bytes | str | m.Failure) -> None:
        if command.step is not Step.WAITING_ARGUMENTS:
            return
        if isinstance(result, m.Failure):
            self._fail(command, result)
            return
        body = command.body
        assert isinstance(body, m.Put)
        tags, description = tuple(body.tags), body.description
        self._desk.do(AdoptTensor(id=body.id, source=result, tags=tags, description=description, blob=body.blob))
