"""One simulated fleet under one seed: coordinators, devices, a broker, a bad network; then calm, then judgement."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.simulation.broker_node import BrokerNode
from tests.simulation.device_node import DeviceNode
from tests.simulation.fakes import fake_plans, large_plans
from tests.simulation.network import Faults, Network
from tests.simulation.promises import Promises
from tests.simulation.session_node import SessionNode
from tests.simulation.submitted import Kind, Submitted
from tests.simulation.users import User
from tests.simulation.world import World

__all__ = ["Outcome", "Scenario", "run"]

AT_MOST = 60_000
"""How many things may happen in one simulation before it counts as going in circles."""
CALM_SECONDS = 400.0
"""By when everything must have come true, once nothing goes wrong any more ..."""
AFTERWARDS_SECONDS = 25.0
"""... and how long to watch whether it stays so: longer than the broker's grace after a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What befalls a fleet, drawn from the seed."""

    kind: Kind
    sessions: int
    named: int
    devices: int
    actions: int
    seconds: float
    tight: bool
    faults: Faults
    gather: float
    disconnections: int
    half_open: int
    partitions: int
    worker_deaths: int
    device_kills: int
    device_power_losses: int
    broker_kills: int
    broker_power_losses: int
    session_kills: int
    usurpations: int
    broker_crash_points: int
    device_crash_points: int
    full_disks: int
    large: bool
    evictions: int

    @classmethod
    def draw(cls, world: World) -> Scenario:
        """One of many: from a calm fleet to a terrible one."""
        random = world.random
        bad = random.choice((0.0, 0.3, 1.0))  # the network
        wild = random.choice((0, 0, 1, 2))  # the machines

        def some(*counts: int) -> int:
            return random.choice(counts) * wild

        return cls(
            kind=random.choices(list(Kind), (20, 1, 1, 1, 1))[0],
            sessions=random.choice((1, 1, 2)),
            named=random.choice((0, 1, 2)),
            devices=random.choice((1, 2, 3)),
            actions=random.choice((10, 20, 40)),
            seconds=random.choice((0.2, 5.0, 30.0)),
            tight=random.random() < 0.1,
            faults=Faults(
                drop=bad * random.choice((0.0, 0.05, 0.2)),
                repeat=bad * random.choice((0.0, 0.1)),
                jitter=random.choice((0.0, 0.01, 1.0)),
                reorder=random.random() < 0.5 * bad,
            ),
            gather=random.choice((0.0, 0.5, 0.9, 1.0)),
            disconnections=random.choice((0, 0, 2, 6)) if bad else 0,
            half_open=random.choice((0, 0, 0, 2)) if bad else 0,
            partitions=random.choice((0, 0, 1, 2)) if bad else 0,
            worker_deaths=some(0, 0, 1),
            device_kills=some(0, 0, 1),
            device_power_losses=some(0, 0, 1),
            broker_kills=some(0, 0, 1),
            broker_power_losses=some(0, 0, 1),
            session_kills=some(0, 0, 1),
            usurpations=some(0, 0, 0, 1),
            broker_crash_points=some(0, 1),
            device_crash_points=some(0, 0, 1),
            full_disks=random.choice((0, 0, 0, 0, 1, 3)),
            large=random.random() < 0.3,
            evictions=Random(world.seed).choice((0, 0, 1, 4)),  # apart: the draws of all else stay as they were
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulation came to, for the table and for telling whether it tried anything."""

    seed: int
    scenario: Scenario
    commands: int
    accepted: int
    values: int
    failures: int
    messages: int
    lost: int
    bundles: int
    crashes: int
    unwritten: int
    happened: int
    seconds: float


class Fleet:
    """All nodes of one simulation."""

    def __init__(self, seed: int) -> None:
        world = self.world = World(seed)
        scenario = self.scenario = Scenario.draw(world)
        self.promises = Promises(world, scenario.kind)
        self.network = Network(world, scenario.faults, gather=scenario.gather)
        self.crashes = 0
        self.broker = BrokerNode(world, self.promises, crash_points=scenario.broker_crash_points, tight=scenario.tight)
        plans = {plan.id: plan for plan in (*fake_plans(), *large_plans())}
        self.devices = [
            DeviceNode(
                world,
                f"device_{k}",
                self.network,
                self.broker,
                self.promises,
                plans,
                crash_points=scenario.device_crash_points,
            )
            for k in range(scenario.devices)
        ]
        self._plans = plans
        self._everything: list[Submitted] = []
        self._order = itertools.count(1)
        names = tuple(device.name for device in self.devices)
        self.users = [
            User(
                world,
                self.promises,
                names,
                self._session(k, f"nightly_{k}" if k < scenario.named else ""),
                everything=self._everything,
                order=self._order,
                large=scenario.large,
            )
            for k in range(scenario.sessions)
        ]

    def _session(self, k: object, name: str) -> SessionNode:
        return SessionNode(self.world, f"session_{k}", self.network, self.broker, self.promises, session=name)

    def begin(self) -> None:
        """All programs start, in any order; devices register once, so that they are known when they are named."""
        self.broker.begin()
        for device in self.devices:
            device.begin()
        self.world.run(until=300.0, at_most=AT_MOST, enough=self._all_registered)
        for user in self.users:
            user.node.begin()

    def _all_registered(self) -> bool:
        return len(self.broker.disk.devices) == len(self.devices) and self.broker.core is not None

    # ------------------------------------------------------------------------------------------- mishaps

    def trouble(self) -> None:
        """Let users act, and things go wrong, from now on for a while."""
        world, scenario = self.world, self.scenario
        start = world.now
        for user in self.users:
            user.act(scenario.actions, scenario.seconds)
        mishaps: list[Callable[[], None]] = [
            *((lambda: self._any_client().disconnect(),) * scenario.disconnections),
            *((lambda: self._any_client().half_open(),) * scenario.half_open),
            *((self._partition,) * scenario.partitions),
            *((lambda: self._any_device().kill_worker(),) * scenario.worker_deaths),
            *((lambda: self._crash(self._any_device().kill),) * scenario.device_kills),
            *((lambda: self._crash(self._any_device().lose_power),) * scenario.device_power_losses),
            *((lambda: self._crash(self.broker.kill),) * scenario.broker_kills),
            *((lambda: self._crash(self.broker.lose_power),) * scenario.broker_power_losses),
            *((lambda: self._any_device().fill_disk(),) * scenario.full_disks),
            *((self.broker.evict_blobs,) * scenario.evictions * scenario.large),
            *((self._kill_session,) * scenario.session_kills),
            # A ledger that is lost has forgotten who was fenced.
            *((self._usurp,) * scenario.usurpations * (scenario.kind is not Kind.LOST_LEDGER)),
        ]
        for mishap in mishaps:
            world.at(start + 1.5 * scenario.seconds * world.random.random(), mishap)
        self._special(start)
        world.run(until=start + 2 * scenario.seconds + 5, at_most=AT_MOST)

    def _special(self, start: float) -> None:
        """What only a fleet of its kind goes through."""
        world, seconds, kind = self.world, self.scenario.seconds, self.scenario.kind

        def at(mishap: Callable[[], None], first: float = 0.0, last: float = 1.5) -> None:
            world.at(start + seconds * (first + (last - first) * world.random.random()), mishap)

        device = self._any_device()
        if kind is Kind.LOST_LEDGER:
            at(self.broker.lose_ledger)
        elif kind is Kind.LOST_STORE:
            at(device.lose_store)
        elif kind is Kind.RESTORED_BACKUP:
            at(device.back_up, 0.0, 0.7)
            at(device.restore_backup, 0.7, 1.5)
        elif kind is Kind.CLONED_STORE:
            at(lambda: self._clone(device))

    def _clone(self, device: DeviceNode) -> None:
        clone = DeviceNode(self.world, device.name, self.network, self.broker, self.promises, self._plans)
        clone.shelf = device.shelf.clone()
        self.world.tell(device.name, "   cloned")
        self.devices.append(clone)
        clone.begin()

    def _crash(self, crash: Callable[[], None]) -> None:
        self.crashes += 1
        crash()

    def _any_device(self) -> DeviceNode:
        return self.world.random.choice(self.devices)

    def _any_client(self) -> DeviceNode | SessionNode:
        clients: list[DeviceNode | SessionNode] = [*self.devices, *(user.node for user in self.users)]
        return self.world.random.choice(clients)

    def _kill_session(self) -> None:
        """A coordinator is killed. If its session has a name, it comes back."""
        user = self.world.random.choice(self.users)
        if not user.node.living:
            return
        self.crashes += 1
        user.node.kill()
        self._succeed(user, 0.1 + self.world.random.choice((1.0, 20.0)) * self.world.random.random())

    def _usurp(self) -> None:
        """Another coordinator takes up a session whose coordinator lives, and is fenced."""
        user = self.world.random.choice(self.users)
        # What the ledger never saw is new to it whenever it comes.
        known = user.node.session.incarnation in self.broker.disk.sessions
        if user.node.living and user.node.session_name and user.node.opened and known:
            user.node.fenced = True
            self._succeed(user, 0.0)

    def _succeed(self, user: User, delay: float) -> None:
        name = user.node.session_name
        if not name:
            return
        self._promise_over(user.node)

        def begin() -> None:
            node = self._session(f"{user.node.name[8:]}'", name)
            node.begin()
            user.go_on(node)

        self.world.after(delay, begin)

    def _promise_over(self, node: SessionNode) -> None:
        self.promises.session_over(node.session.incarnation)

    def _partition(self) -> None:
        """A client is cut off, in one direction or both, for a while; nobody is told."""
        world = self.world
        client = self._any_client()
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

    # ------------------------------------------------------------------------------------------- the end

    def calm(self) -> None:
        """Nothing goes wrong any more: whatever is promised must come true, within minutes."""
        world = self.world
        self.network.calm()
        self.broker.crash_points = 0
        clients = [*self.devices, *(user.node for user in self.users)]
        for client in clients:
            if isinstance(client, DeviceNode):
                client.crash_points = 0
                client.free_disk()
            if client.connection is not None:
                client.connection.deaf = {True: False, False: False}
        restored = self.scenario.kind is Kind.RESTORED_BACKUP
        for _ in self.devices if restored else ():
            # Its owner does not let a device stay refused while the fleet's commands pile up for it.
            world.run(
                until=world.now + CALM_SECONDS,
                at_most=AT_MOST,
                enough=lambda: not self.promises.waiting() or any(device.refused for device in self.devices),
            )
            self._replace_refused()
        world.run(until=world.now + CALM_SECONDS, at_most=AT_MOST, enough=lambda: not self.promises.waiting())
        world.run(until=world.now + AFTERWARDS_SECONDS, at_most=AT_MOST)

    def _replace_refused(self) -> None:
        """The owner of a device that was refused for good sets it up anew."""
        for device in self.devices:
            if device.refused:
                device.refused = ""
                device.lose_store()
                device.begin()

    def judge(self) -> None:
        """Compare what came of everything with what was promised."""
        promises = self.promises
        promises.judge()
        auditor = self._session("auditor", "")
        auditor.begin()
        ids = list(promises.submitted)
        requests = [(auditor, auditor.ask(ids))]
        for user in self.users:
            node = user.node if user.node.living else auditor
            for device in self.devices:
                wanted = [
                    id
                    for one in self._everything
                    if one.ended == "value" and one.device == device.name and one.id in node.results
                    for id in one.ids
                ]
                if wanted:
                    requests.append((node, node.fetch(wanted)))
        # Large values come one after the other, some of them slowly; and sessions ask ever more seldom.
        seconds = 200.0 if self.scenario.large else 60.0
        self.world.run(
            until=self.world.now + seconds,
            at_most=AT_MOST,
            enough=lambda: all(r in node.answers for node, r in requests),
        )
        for node, r in requests:
            if r not in node.answers and not promises.refused:
                promises.broken("every request is answered", f"request {r} of {node.name}")
        report = auditor.answers[requests[0][1]].message
        promises.final_status(getattr(report, "entries", []))


def run(seed: int) -> Outcome:
    """Simulate one fleet.

    Raises `BrokenPromise`, or whatever a core raises, which is a bug, too.
    """
    fleet = Fleet(seed)
    try:
        fleet.begin()
        fleet.trouble()
        fleet.calm()
        fleet.judge()
    except AssertionError:
        raise
    except Exception as error:
        error.add_note("\n".join([f"to replay: python -m tests.simulation {seed}", *fleet.world.story]))
        raise
    ends = [command.ended for command in fleet.promises.submitted.values()]
    return Outcome(
        seed=seed,
        scenario=fleet.scenario,
        commands=len(ends),
        accepted=fleet.promises.accepted_commands,
        values=ends.count("value"),
        failures=len(ends) - ends.count("value"),
        messages=fleet.network.sent,
        lost=fleet.network.lost,
        bundles=fleet.network.bundles,
        crashes=fleet.crashes,
        unwritten=fleet.promises.unwritten_count,
        happened=fleet.world.happened,
        seconds=fleet.world.now,
    )
