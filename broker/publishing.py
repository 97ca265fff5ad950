"""The stream of logs and notifications: one XPUB socket, and what those who follow it ask for.

At best effort: a follower who is too slow misses some, and nobody waits for him.
"""

from __future__ import annotations

import contextlib

import msgspec
import zmq

from broker.effects import PublishLogs, PublishNotification, Subscriptions
from broker.logs import LEVELS, WARNING, Record, StreamSink
from broker.protocol.framing import encode
from broker.protocol.messages import Frame
from broker.subscriptions import Topics

__all__ = ["Publisher"]


class Publisher:
    """Publishes on ``socket``, once that is set. ``sink`` takes the log records of this process; its level is what
    followers want.
    """

    def __init__(self) -> None:
        self.socket: zmq.Socket[bytes] | None = None
        self.sink = StreamSink(self.record)
        self._topics = Topics()

    def hear(self) -> Subscriptions | None:
        """Take in what followers have subscribed to; what that comes to, if it has changed."""
        changed = False
        with contextlib.suppress(zmq.Again):
            while self.socket is not None:
                changed |= self._topics.heard(self.socket.recv(zmq.NOBLOCK))
        if not changed:
            return None
        demand = self._topics.demand()
        self.sink.level = demand.log_level
        return demand

    def record(self, record: Record) -> None:
        """Publish a log record, if somebody wants its level."""
        level = record.get("level")
        number = level if isinstance(level, int) else LEVELS.get(str(level), WARNING)
        if number >= self.sink.level:
            topic = f"l.{number}.{record.get('component', '')}.{record.get('device', '')}".encode()
            self._publish([topic, msgspec.msgpack.encode(record)])

    def logs(self, publish: PublishLogs) -> None:
        """Publish log records of a peer."""
        for record in publish.records:
            if publish.device:
                record["device"] = publish.device  # nobody logs in another's name
            self.record(record)

    def notification(self, publish: PublishNotification) -> None:
        """Publish how a result has ended, under its id."""
        topic = f"n.{publish.id.hex()}".encode()
        self._publish([topic, encode(publish.notify), *publish.frames])

    def _publish(self, parts: list[Frame]) -> None:
        if self.socket is not None:
            with contextlib.suppress(zmq.Again):
                self.socket.send_multipart(parts, zmq.NOBLOCK)
