"""One simulated fleet under one seed: coordinators, devices, a broker, a bad network; then calm, then judgement."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from broker.protocol.ids import nth
from broker.protocol.messages import AskStatus
from coordinator.core_events import Ask
from tests.simulation.broker_node import BrokerNode
from tests.simulation.device_node import DeviceNode
from tests.simulation.fakes import fake_plans
from tests.simulation.network import Faults, Network
from tests.simulation.promises import Promises, Submitted
from tests.simulation.session_node import SessionNode
from tests.simulation.users import User
from tests.simulation.world import World

__all__ = ["Outcome", "Scenario", "run"]

AT_MOST = 60_000
"""How many things may happen in one simulation before it counts as going in circles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What befalls a fleet, drawn from the seed."""

    sessions: int
    devices: int
    actions: int
    seconds: float
    faults: Faults
    disconnections: int
    partitions: int
    worker_deaths: int
    device_restarts: int
    broker_restarts: int

    @classmethod
    def draw(cls, world: World, *, broker_restarts: bool = False) -> Scenario:
        """One of many: from a calm network to a terrible one.

        With ``broker_restarts``, brokers are killed, too, and started again over the same ledger: for the ledger on a
        disk that is to come. Seeds 433 and 759 show what a broker tells before it is committed, and forgets.
        """
        random = world.random
        bad = random.choice((0.0, 0.3, 1.0))
        return cls(
            sessions=random.choice((1, 1, 2)),
            devices=random.choice((1, 2, 3)),
            actions=random.choice((10, 20, 40)),
            seconds=random.choice((0.2, 5.0, 30.0)),
            faults=Faults(
                drop=bad * random.choice((0.0, 0.05, 0.2)),
                repeat=bad * random.choice((0.0, 0.1)),
                jitter=random.choice((0.0, 0.01, 1.0)),
                reorder=random.random() < 0.5 * bad,
            ),
            disconnections=random.choice((0, 0, 2, 6)) if bad else 0,
            partitions=random.choice((0, 0, 1, 2)) if bad else 0,
            worker_deaths=random.choice((0, 0, 1, 2)),
            device_restarts=random.choice((0, 0, 1, 2)),
            broker_restarts=random.choice((0, 0, 0, 1, 2)) * broker_restarts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulation came to, for the table and for telling whether it tried anything."""

    seed: int
    scenario: Scenario
    commands: int
    values: int
    failures: int
    messages: int
    lost: int
    happened: int
    seconds: float


class Fleet:
    """All nodes of one simulation."""

    def __init__(self, seed: int, *, broker_restarts: bool = False) -> None:
        world = self.world = World(seed)
        scenario = self.scenario = Scenario.draw(world, broker_restarts=broker_restarts)
        self.promises = Promises(world)
        self.network = Network(world, scenario.faults)
        self.broker = BrokerNode(world, self.promises)
        plans = {plan.id: plan for plan in fake_plans()}
        self.devices = [
            DeviceNode(world, f"device_{k}", self.network, self.broker, self.promises, plans)
            for k in range(scenario.devices)
        ]
        self.sessions = [
            SessionNode(world, f"session_{k}", self.network, self.broker, self.promises)
            for k in range(scenario.sessions)
        ]
        self._everything: list[Submitted] = []
        self._order = itertools.count(1)

    def begin(self) -> None:
        """All programs start, in any order; devices register once, so that they are known when they are named."""
        self.broker.begin()
        for device in self.devices:
            device.begin()
        self.world.run(until=60.0, at_most=AT_MOST)
        for session in self.sessions:
            session.begin()

    def trouble(self) -> None:
        """Let users act, and things go wrong, from now on for a while."""
        world, scenario = self.world, self.scenario
        start = world.now
        names = tuple(device.name for device in self.devices)
        for session in self.sessions:
            user = User(
                world,
                self.promises,
                names,
                submit=session.submit,
                take_ids=session.session.take_ids,
                results=session.results,
                everything=self._everything,
                order=self._order,
            )
            user.act(scenario.actions, scenario.seconds)
        clients = [*self.devices, *self.sessions]
        mishaps = [
            *((world.random.choice(clients).disconnect,) * scenario.disconnections),
            *((world.random.choice(self.devices).kill_worker,) * scenario.worker_deaths),
            *((world.random.choice(self.devices).restart,) * scenario.device_restarts),
            *((self.broker.restart,) * scenario.broker_restarts),
            *((self._partition,) * scenario.partitions),
        ]
        for mishap in mishaps:
            world.at(start + 1.5 * scenario.seconds * world.random.random(), mishap)
        world.run(until=start + 2 * scenario.seconds + 5, at_most=AT_MOST)

    def _partition(self) -> None:
        """A client is cut off, in one direction or both, for a while; nobody is told."""
        world = self.world
        client = world.random.choice([*self.devices, *self.sessions])
        connection = client.connection
        if connection is None:
            return
        ways = world.random.choice(((True,), (False,), (True, False)))
        world.tell(client.name, f"   partition, {'up' if True in ways else ''} {'down' if False in ways else ''}")
        for up in ways:
            connection.deaf[up] = True

        def heal() -> None:
            connection.deaf = {True: False, False: False}

        world.after(world.random.choice((1.0, 20.0, 60.0)) * world.random.random(), heal)

    def calm(self) -> None:
        """Nothing goes wrong any more: whatever is promised must come true, within minutes."""
        self.network.calm()
        for client in (*self.devices, *self.sessions):
            if client.connection is not None:
                client.connection.deaf = {True: False, False: False}
        self.world.run(until=self.world.now + 400, at_most=AT_MOST)

    def judge(self) -> None:
        """Compare what came of everything with what was promised."""
        self.promises.judge()
        for session in self.sessions:
            mine = [command for command in self._everything if command.id in session.results]
            if not mine:
                continue
            request = AskStatus(r=session.session.take_request(), ids=[command.id for command in mine])
            session.feed(Ask(request=request))
            reads = [
                session.fetch([nth(one.id, k) for k in range(one.outputs)]) for one in mine if one.ended == "value"
            ]
            self.world.run(until=self.world.now + 60, at_most=AT_MOST)
            for r in (request.r, *reads):
                if r not in session.answers:
                    self.promises.broken("every request is answered", f"request {r} of {session.name}")


def run(seed: int, *, broker_restarts: bool = False) -> Outcome:
    """Simulate one fleet. Raises `BrokenPromise`, or whatever a core raises, which is a bug, too."""
    fleet = Fleet(seed, broker_restarts=broker_restarts)
    try:
        fleet.begin()
        fleet.trouble()
        fleet.calm()
        fleet.judge()
    except AssertionError:
        raise
    except Exception as error:
        error.add_note(f"seed {seed}\n" + "\n".join(fleet.world.story))
        raise
    ends = [command.ended for command in fleet.promises.submitted.values()]
    return Outcome(
        seed=seed,
        scenario=fleet.scenario,
        commands=len(ends),
        values=ends.count("value"),
        failures=len(ends) - ends.count("value"),
        messages=fleet.network.sent,
        lost=fleet.network.lost,
        happened=fleet.world.happened,
        seconds=fleet.world.now,
    )
