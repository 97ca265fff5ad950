"""The floor that an invocation is measured against: raw pyzmq, a client, a Python ROUTER relay and an echo peer.

The same number of hops between processes that route (client, relay, peer, relay, client) and the same bytes as an
invocation and its notification, with nothing done at any of them. What edgeplan takes beyond this is its own.

Run as a program, this module is one of the two peers: ``python -m tests.benchmarks.floor relay|echo ENDPOINT``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import zmq

PATIENCE_MS = 20_000
"""How long any peer waits for the next message before it gives up, in milliseconds."""


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


def relay(endpoint: str) -> None:
    """A ROUTER that passes on what the client sends to the echo peer, and back. Prints its endpoint when it listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = _socket(context, zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(endpoint)
    print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    peers: dict[bytes, bytes] = {}
    while True:
        sender, *frames = socket.recv_multipart()
        if frames[0] in (b"client", b"echo"):
            peers[frames[0]] = sender
            if len(peers) == 2:
                for peer in peers.values():
                    socket.send_multipart([peer, b"ready"])
            continue
        socket.send_multipart([peers[b"echo" if sender == peers[b"client"] else b"client"], *frames])


def echo(endpoint: str, reply: list[bytes]) -> None:
    """A DEALER that answers every message with ``reply``."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = _socket(context, zmq.DEALER)
    socket.connect(endpoint)
    socket.send(b"echo")
    socket.recv_multipart()
    while True:
        socket.recv_multipart()
        socket.send_multipart(reply)


class Floor:
    """The client's end. ``request`` is a list of frames; ``pids`` are the relay's and the echo peer's."""

    def __init__(self, socket: zmq.Socket[bytes], request: list[bytes], pids: list[int]) -> None:
        self.pids = pids
        self._socket = socket
        self._request = request

    def latencies(self, count: int) -> list[float]:
        """Seconds of ``count`` round trips, one after the other."""
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            self._socket.send_multipart(self._request)
            self._receive()
            taken.append(time.perf_counter() - start)
        return taken

    def rate(self, count: int, window: int) -> float:
        """Round trips a second, with up to ``window`` under way at once."""
        start = time.perf_counter()
        sent = received = 0
        while received < count:
            while sent < count and sent - received < window:
                self._socket.send_multipart(self._request)
                sent += 1
            self._receive()
            received += 1
        return count / (time.perf_counter() - start)

    def _receive(self) -> None:
        if not self._socket.poll(PATIENCE_MS):
            raise TimeoutError(f"the floor's echo peer did not answer within {PATIENCE_MS} ms")
        self._socket.recv_multipart()


@contextlib.contextmanager
def running(request: list[bytes], reply: list[bytes]) -> Iterator[Floor]:
    """Start the relay and the echo peer as processes; ends them, also when the body fails."""
    processes: list[subprocess.Popen[str]] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.benchmarks.floor", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    try:
        relay_process = start("relay", "tcp://127.0.0.1:*")
        assert relay_process.stdout is not None
        endpoint = relay_process.stdout.readline().strip()
        start("echo", endpoint, *(frame.hex() for frame in reply))
        socket = _socket(context, zmq.DEALER)
        socket.connect(endpoint)
        socket.send(b"client")
        floor = Floor(socket, request, [process.pid for process in processes])
        floor._receive()
        yield floor
    finally:
        context.destroy(linger=0)
        for process in processes:
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        relay(sys.argv[2])
    else:
        echo(sys.argv[2], [bytes.fromhex(frame) for frame in sys.argv[3:]])
