"""Files in the store's folder that its index does not know."""

from __future__ import annotations

import time
from pathlib import Path

from edge_agent.store_database import Database
from edge_agent.store_disk import Disk
from edge_agent.tensor_files import tensor_path

__all__ = ["remove_orphans"]

_PART_SECONDS = 7 * 86_400
"""How long the beginning of a blob is kept for whoever wants the rest."""


def remove_orphans(database: Database, disk: Disk, store_id: bytes) -> None:
    """Remove files that no row names: of writes that a crash has cut off. Not while one of the device's programs is
    just writing, and never what looks like the owner's, whose row may have been lost.
    """
    with database.writing(alone=True) as alone:
        if not alone:
            return
        with database.read() as connection:
            run = connection.execute
            named = {
                tensor_path(database.folder, id).name for (id,) in run("SELECT id FROM tensors WHERE file").fetchall()
            }
            named |= {digest.hex() for (digest,) in run("SELECT digest FROM blobs WHERE data IS NULL").fetchall()}
        own = store_id.hex()
        for folder in (database.folder / "tensors", database.folder / "blobs"):
            for path in folder.iterdir():
                part = path.name.endswith(".part")
                if path.name not in named and (part or not path.name.startswith(own)):
                    disk.remove(path)
        for path in (database.folder / "incoming").iterdir():
            if not (path.name.endswith(".part") and _is_young(path)):
                disk.remove(path)


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < _PART_SECONDS
