"""What a disk says that takes nothing more."""

from __future__ import annotations

import errno
from typing import TypeGuard

__all__ = ["is_full"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether something could not be written for want of room: on the disk, or in somebody's share of it."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM
