"""What all tests share: how hypothesis searches, and that nothing is left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from broker import logs

if TYPE_CHECKING:
    import zmq

# A busy machine is slow, which is no counter-example; and one that was found is printed so that it can be replayed.
settings.register_profile("edgeplan", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeplan")

# A shell that runs the tests in the background lets them, and whatever they start, ignore ctrl-C, which some test.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLOSE_WITHIN = 10.0
"""Seconds that a context may take to end once its test is over."""


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A ZeroMQ context of the test's own; the test fails when it leaves a socket open."""
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    # term() waits for the sockets, for ever: so a thread of its own does, and is given up in the end.
    ending = threading.Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(CLOSE_WITHIN)
    if ending.is_alive():
        # Not destroy(): it ends with a second term(), which waits for ever, since only one is told of the last socket.
        for left in list(context._sockets):
            left.close(linger=0)
        ending.join(CLOSE_WITHIN)
        pytest.fail("the test left a socket of its context open")


@pytest.fixture(autouse=True)
def default_logs() -> Iterator[None]:
    """Log output is one per process: give each test that of a process which has configured nothing."""
    yield
    logs.configure(level=logs.WARNING)
