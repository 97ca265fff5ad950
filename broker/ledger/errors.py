"""What a ledger on disk can have.

::

    EdgePlanError
    └── LedgerError             names the file, as ``path``
        ├── LedgerInUse         another broker has it open
        ├── LedgerUnusable      it cannot be opened: no such folder, not ours to write
        ├── LedgerDamaged       it is cut or altered
        ├── LedgerTooNew        a later version of this program wrote it
        └── LedgerUnwritable    it cannot be written now: the disk is full, or fails
"""

from __future__ import annotations

from broker.protocol.errors import EdgePlanError

__all__ = ["LedgerDamaged", "LedgerError", "LedgerInUse", "LedgerTooNew", "LedgerUnusable", "LedgerUnwritable"]


class LedgerError(EdgePlanError):
    """Something is wrong with the ledger in the file ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"the ledger {self.path} cannot be used"


class LedgerInUse(LedgerError):
    """Another broker has it open."""

    def __str__(self) -> str:
        return f"the ledger {self.path} is in use by another broker"


class LedgerUnusable(LedgerError):
    """It cannot be opened, for a ``reason`` that is the system's."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"the ledger {self.path} cannot be opened: {self.reason}"


class LedgerDamaged(LedgerError):
    """It is cut or altered: ``what`` names the table and the row, where one can be named. Nothing of it is served."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path)
        self.what = what

    def __str__(self) -> str:
        return f"the ledger {self.path} is damaged: {self.what}"


class LedgerTooNew(LedgerError):
    """Its schema has ``version``, and this program knows those up to ``known``."""

    def __init__(self, path: str, version: int, known: int) -> None:
        super().__init__(path)
        self.version = version
        self.known = known

    def __str__(self) -> str:
        return f"expected a ledger of version {self.known} or older, got version {self.version} in {self.path}"


class LedgerUnwritable(LedgerError):
    """It cannot be written now, for a ``reason`` that may go away: the disk is full, say."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"the ledger {self.path} cannot be written: {self.reason}"
