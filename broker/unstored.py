"""Blobs that came with a command and could not be stored: the disk is full, say.

The driver keeps those of one such command, and tries them again until the disk takes them. Meanwhile sessions that
bring blobs, or whose commands name some that are not here, are told to wait, since what they would send could not be
kept either.
"""

from __future__ import annotations

from broker.context import ERROR, INFO, Context
from broker.effects import BlobsUnwritable, BlobsWritable, StoreAgain

__all__ = ["Unstored"]

_AGAIN = 0.5
"""Seconds between two tries: as often as the ledger's writer tries again."""


class Unstored:
    """See the module. ``reason``: why blobs cannot be stored now; empty: they can."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.reason = ""

    def unwritable(self, event: BlobsUnwritable) -> None:
        """The driver could not store blobs, and keeps them."""
        if not self.reason:
            self._context.log(ERROR, "blobs_full", reason=event.reason)
            self._context.at(self._context.now + _AGAIN, self._again)
        self.reason = event.reason

    def writable(self, _event: BlobsWritable) -> None:
        """They are stored."""
        self.reason = ""
        self._context.log(INFO, "blobs_recovered")

    def _again(self, now: float) -> None:
        if self.reason:
            self._context.out.append(StoreAgain())
            self._context.at(now + _AGAIN, self._again)
