"""What followers of the log and notification stream have subscribed to, and so what is worth sending.

Topics are ``l.`` + level + ``.`` + component + ``.`` + device for logs, and ``n.`` + result id for notifications. A
subscription is a prefix of a topic, so one of ``l.`` asks for all levels.
"""

from __future__ import annotations

from broker.effects import Subscriptions

__all__ = ["Topics"]

_LEVELS = (10, 20, 30, 40, 50)
_MOST = 100_000


class Topics:
    """The subscriptions that an XPUB socket tells of: each topic once, and its end when the last follower has gone."""

    def __init__(self) -> None:
        self._topics: dict[bytes, None] = {}

    def heard(self, message: bytes) -> bool:
        """Take in a message of the socket; whether it was a subscription or the end of one."""
        topic = message[1:]
        if message[:1] == b"\x01" and len(self._topics) < _MOST:
            self._topics[topic] = None
            return True
        return message[:1] == b"\x00" and self._topics.pop(topic, b"") is None

    def demand(self) -> Subscriptions:
        """What they come to."""
        levels = [level for level in _LEVELS if any(_meets(topic, b"l.%d." % level) for topic in self._topics)]
        notifications = any(_meets(topic, b"n.") for topic in self._topics)
        return Subscriptions(log_level=min(levels, default=0), notifications=notifications)


def _meets(topic: bytes, start: bytes) -> bool:
    """Whether something that begins with ``start`` may be of ``topic``."""
    return topic.startswith(start) or start.startswith(topic)
