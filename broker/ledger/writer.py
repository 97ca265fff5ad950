"""The thread that commits, so that relaying never waits for a disk.

What is handed in while a commit runs goes into the next one, all of it (group commit): one sync for as many as have
gathered. When the ledger cannot be written, what was handed in stays, and is tried again until it can.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from broker.ledger.errors import LedgerUnwritable
from broker.ledger.interface import Ledger, Write

__all__ = ["RETRY_SECONDS", "LedgerWriter"]

RETRY_SECONDS = 0.5
"""How often it is tried whether a ledger that could not be written can be again."""

_Given: TypeAlias = "tuple[int, Sequence[Write]] | None"


class LedgerWriter:
    """Commits to ``ledger`` what `add` gets. All four callbacks come on its thread.

    ``committed``: all up to the ticket are durable. ``unwritable``: why not, said once until ``writable``.
    ``broken``: an error after which nothing will be committed any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        committed: Callable[[int], None],
        unwritable: Callable[[str], None],
        writable: Callable[[], None],
        broken: Callable[[BaseException], None],
        retry: float = RETRY_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._committed = committed
        self._unwritable = unwritable
        self._writable = writable
        self._broken = broken
        self._retry = retry
        self._given: queue.SimpleQueue[_Given] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, ticket: int, writes: Sequence[Write]) -> None:
        """Commit these after all before them. Never waits."""
        self._given.put((ticket, writes))

    def stop(self, timeout: float) -> bool:
        """Commit what was given, once more if it could not be written, and end. Whether it has ended in time."""
        self._stopping.set()
        self._given.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001  (whoever owns the thread ends with it)
            self._broken(error)

    def _loop(self) -> None:
        stuck = ended = False
        last = 0
        while not ended:
            writes: list[Write] = []
            with contextlib.suppress(queue.Empty):
                if stuck:
                    self._stopping.wait(self._retry)
                    given = self._given.get_nowait()
                else:
                    given = self._given.get()
                while given is not None:
                    last = given[0]
                    writes += given[1]
                    given = self._given.get_nowait()
                ended = True
            if ended and not (writes or stuck):
                return
            try:
                self._ledger.commit(writes)
            except LedgerUnwritable as error:
                if not stuck:
                    stuck = True
                    self._unwritable(error.reason)
            else:
                if stuck:
                    stuck = False
                    self._writable()
                self._committed(last)
