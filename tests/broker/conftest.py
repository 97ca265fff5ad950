"""What several tests of the broker use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from broker.server import BrokerServer
from tests.broker.served import CONFIG, Served


@pytest.fixture
def served(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Served]:
    """A broker on loopback."""
    with BrokerServer("tcp://127.0.0.1:*", context=context, config=CONFIG) as server:
        assert server.wait_until_listening(0)
        served = Served(context, server)
        yield served
        for peer in served.peers:
            peer.close()
