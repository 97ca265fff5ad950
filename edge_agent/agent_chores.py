"""What takes long and needs no answer at once: reading large files. On a thread of its own, so that heartbeats don't
wait.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.messages import Failure
from edge_agent.effects import (
    AdoptTensor,
    AgentEvent,
    DropFiles,
    FileHashed,
    HashFile,
    TensorAdopted,
    TensorUnfit,
)
from edge_agent.store_shelf import StoreShelf

__all__ = ["Chores"]

_PIECE = 1 << 20


class Chores:
    """Does one after the other, in order; ``say`` gets the events. The thread starts with the first chore."""

    def __init__(self, shelf: StoreShelf, say: Callable[[AgentEvent], None]) -> None:
        self._shelf = shelf
        self._say = say
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def adopt(self, instruction: AdoptTensor) -> None:
        """See `AdoptTensor`."""
        self._later(lambda: self._adopt(instruction))

    def hash(self, instruction: HashFile) -> None:
        """See `HashFile`."""
        self._later(lambda: self._hash(instruction))

    def drop_files(self, instruction: DropFiles) -> None:
        """See `DropFiles`: after the chores that were there before, which may need the files."""
        if self._thread is None:
            self._shelf.drop_files(instruction.paths)
        else:
            self._later(lambda: self._shelf.drop_files(instruction.paths))

    def close(self) -> None:
        """Do what is left, and end."""
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join()
            self._thread = None

    def _later(self, chore: Callable[[], None]) -> None:
        self._todo.put(chore)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="agent-chores", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (chore := self._todo.get()) is not None:
            chore()

    def _adopt(self, instruction: AdoptTensor) -> None:
        try:
            held = self._shelf.adopt(instruction.id, instruction.source)
        except TensorRefused as error:
            self._say(TensorUnfit(id=instruction.id, failure=Failure(code="TensorRefused", message=str(error))))
        except OSError as error:
            said = f"the tensor could not be kept: {error.strerror}"
            source = instruction.source
            gone = isinstance(source, str) and not Path(source).exists()
            self._say(TensorUnfit(id=instruction.id, failure=Failure(code="StoreFull", message=said), gone=gone))
        else:
            held = msgspec.structs.replace(
                held, tags=instruction.tags, description=instruction.description, blob=instruction.blob
            )
            self._say(TensorAdopted(held=held))

    def _hash(self, instruction: HashFile) -> None:
        digest, size, check = hashlib.sha256(), 0, 0
        try:
            with Path(instruction.path).open("rb", buffering=0) as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    check = zlib.crc32(piece, check)
                    size += len(piece)
        except OSError:
            whole = False
        else:
            whole = instruction.check is None or check == instruction.check
        self._say(FileHashed(id=instruction.id, digest=digest.digest() if whole else b"", size=size if whole else 0))
