"""The pipe between agent and worker: batches whole, whatever the pieces in which they come."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from edge_agent.jobs import Answer, CancelJob, File, JobFinished, Order, Output, RunJob, UnloadPlan, WorkerReady
from edge_agent.pipe import Board, Pipe, agent_end, worker_end

Ends = tuple[Pipe[Order, Answer], Pipe[Answer, Order]]


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket pair."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def ends(sockets: tuple[socket.socket, socket.socket]) -> Ends:
    """The agent's end and the worker's."""
    return agent_end(sockets[0]), worker_end(sockets[1])


def job(n: int, size: int = 10) -> RunJob:
    """A job with arguments of every kind, about ``size`` bytes large."""
    return RunJob(n=n, plan=b"p" * 32, id=b"i" * 16, args=[bytes(size), File("tensors/x"), True, 3, 2.5], seed=n)


def test_what_is_said_is_heard(ends: Ends) -> None:
    """Orders one way, answers the other, batch by batch, arguments of every kind."""
    agent, worker = ends
    orders: list[Order] = [job(1), CancelJob(n=1), UnloadPlan(plan=b"p" * 32)]
    agent.say(orders)
    assert worker.hear() == orders
    output = Output(dtype="float32", shape=(2,), nbytes=8, source=File("tensors/y"))
    answers: list[Answer] = [WorkerReady(pid=1, runtime="torch"), JobFinished(n=1, outputs=[output])]
    worker.say(answers)
    assert agent.hear() == answers


def test_nothing_is_said(ends: Ends) -> None:
    """The agent never waits; a worker only when it wants to."""
    agent, worker = ends
    assert agent.hear() == []
    assert worker.hear(wait=False) == []


def test_several_batches_are_heard_together(ends: Ends) -> None:
    """In order."""
    agent, worker = ends
    for n in range(5):
        agent.say([job(n)])
    assert worker.hear() == [job(n) for n in range(5)]


def test_a_batch_that_comes_in_pieces(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Byte by byte, across the length too: nothing is heard until it is whole."""
    agent, worker = agent_end(sockets[0]), worker_end(sockets[1])
    agent.say([job(1)])
    whole = sockets[1].recv(1 << 16)
    for byte in whole[:-1]:
        sockets[0].send(bytes([byte]))
        assert worker.hear() == []
    sockets[0].send(whole[-1:] + whole)
    assert worker.hear() == [job(1), job(1)]


def test_what_does_not_fit_is_kept(ends: Ends) -> None:
    """The agent says more than the pipe takes and goes on; nothing is lost, doubled or torn."""
    agent, worker = ends
    orders = [job(n, size=50_000) for n in range(50)]
    for order in orders:
        agent.say([order])
    assert agent.clogged
    heard: list[Order] = []
    while len(heard) < 50:
        heard += worker.hear() or []
        agent.flush()
    assert heard == orders
    assert not agent.clogged


def test_the_end_is_heard(ends: Ends) -> None:
    """By either side; and whoever speaks to nobody is told."""
    agent, worker = ends
    worker.close()
    assert agent.hear() is None
    with pytest.raises(OSError, match="Broken pipe"):
        agent.say([job(1)])


def test_the_board_is_seen_by_both() -> None:
    """What is being done, and what is to be left."""
    memory = bytearray(Board.SIZE)
    worker, agent = Board(memoryview(memory)), Board(memoryview(memory))
    worker.doing = 1 << 40
    agent.leave = 7
    assert (agent.doing, worker.leave) == (1 << 40, 7)
