"""The embedded fleet's broker: a real one, on threads of this process, reached over ``inproc://``."""

from __future__ import annotations

import os

import zmq

from broker.server import BrokerServer
from coordinator.session_socket import Context

__all__ = ["Embedded"]


class Embedded:
    """A broker in this process, with everything in memory. Ends with its fleet."""

    def __init__(self) -> None:
        self.endpoint = f"inproc://edgeplan-{os.urandom(8).hex()}"
        self.context: Context = zmq.Context()
        self._server = BrokerServer(self.endpoint, context=self.context)
        try:
            self._server.start()
        except BaseException:
            self.context.term()
            raise

    def close(self) -> None:
        """End the broker, and all that it knew. Idempotent."""
        self._server.stop()
        self.context.term()
