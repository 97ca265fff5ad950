"""Waking a thread that polls descriptors, from other threads: at most one byte a nap, and no wake is lost."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Wakeup"]


class Wakeup:
    """A pair of sockets. The thread polls `fileno`, then calls `take`, then looks at what is to be done.

    Whoever calls `wake` has left what is to be done before. A wake while another is under way costs one comparison.
    """

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.settimeout(0)
        self._out.settimeout(0)
        self._under_way = False

    def fileno(self) -> int:
        """Readable when somebody has called `wake` since the last `take`."""
        return self._out.fileno()

    def wake(self) -> None:
        """Wake the thread. Any thread may call; after `close` it does nothing."""
        if not self._under_way:
            self._under_way = True
            try:
                self._in.send(b"!")
            except OSError:
                pass  # closed, or full of such bytes
            except BaseException:  # ctrl-C, before the byte was there, or after: one too many does no harm
                self._under_way = False
                raise

    def take(self) -> None:
        """Be awake. What was left before a `wake` that finds another under way is there when this returns."""
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)
        # Only now: a wake between the two lines would set it again, and its byte be taken: nobody would wake any more.
        self._under_way = False

    def close(self) -> None:
        """Let go of the sockets."""
        self._in.close()
        self._out.close()
