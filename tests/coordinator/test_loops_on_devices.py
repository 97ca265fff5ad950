"""Plans with loops and branches on devices, with torch and without: results, limits, cancels, and what fails inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._higher_order_ops as torchs_operators
from torch import nn

from coordinator import Plan, VirtualWorker, connect, func2plan
from coordinator.errors import ExecutionFailed, InvocationCancelled, PlanOverQuota
from coordinator.fleet import Fleet
from coordinator.older_devices import OpTooNew
from coordinator.translation.errors import TranslationUnsupported
from edge_agent.limits import Limits
from edge_agent.plan.format import OPS_VERSION
from edge_agent.plan.nesting import all_ops
from edge_agent.plan.registry import REGISTRY, known_to

WITHIN = 60.0
operators: Any = torchs_operators


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An embedded fleet of this module's own."""
    with connect() as made:
        yield made


@pytest.fixture(scope="module", params=["torch", "onnx"])
def device(request: pytest.FixtureRequest, fleet: Fleet) -> VirtualWorker:
    """A device of either runtime."""
    return VirtualWorker(fleet, id=f"of-{request.param}", runtime=request.param)


def got(fleet: Fleet, pointers: Any) -> Any:
    """What pointers point to."""
    return fleet.get(pointers, timeout=WITHIN)


@func2plan(args_shape=[("n",)])
def plan_roots(a: torch.Tensor) -> Any:
    """Square roots by Newton's iteration, until they are right."""
    return operators.while_loop(
        lambda x, steps: ((x * x - a).abs().max() > 1e-4) & (steps < 60),
        lambda x, steps: (0.5 * (x + a / x), steps + 1),
        (torch.ones_like(a), 0),
    )


class Reader(Plan):
    """A recurrent network that reads rows of any number, for any number of readers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.take, self.keep, self.say = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """What it says at the end, and how large its state was."""

        def step(state: torch.Tensor, row: torch.Tensor) -> Any:
            state = torch.tanh(self.take(row) + self.keep(state))
            return state, state.norm()

        state, sizes = operators.scan(step, torch.zeros(x.shape[0], 4), x, dim=1)
        return self.say(state), sizes


@func2plan(args_shape=[("n", 3), (3, 3)])
def plan_settle(x: torch.Tensor, w: torch.Tensor) -> Any:
    """Where x is large, mixed until it is small, each time as often as its rows say; else as it is."""

    def settle(x: torch.Tensor) -> Any:
        def mix(y: torch.Tensor, steps: torch.Tensor) -> Any:
            (y,) = operators.while_loop(lambda z: z.abs().max() > 0.5, lambda z: (z * 0.5,), (torch.tanh(y @ w),))
            return y, steps + 1

        return operators.while_loop(lambda y, steps: (y.norm() > 0.3) & (steps < 9), mix, (x, 0))

    return torch.cond(x.abs().sum() > 1, settle, lambda x: (x * 1.0, torch.full((), -1)), (x,))


def test_a_loop_until_it_converges(fleet: Fleet, device: VirtualWorker) -> None:
    """One command, however often it goes round; each call as often as it needs."""
    roots = plan_roots.send(device)
    counts = []
    for values in ([1.0], [4.0, 9.0, 2.0], [1e4, 0.25]):
        a = torch.tensor(values)
        found, steps = got(fleet, roots(a))
        torch.testing.assert_close(found, a.sqrt())
        assert int(steps) == int(plan_roots.run_plan(a)[1])
        counts.append(int(steps))
    assert counts[0] == 0 < counts[1] < counts[2]


def test_a_recurrent_network_over_a_varying_length(fleet: Fleet, device: VirtualWorker) -> None:
    """Its weights are the plan's state: new ones need no new graph, nor a new variant."""
    net = Reader()
    net.build(torch.randn(2, 5, 3), args_shape=[("batch", "length", 3)])
    for _ in range(2):
        sent = net.send(device)
        for batch, length in ((2, 5), (1, 1), (3, 11)):
            x = torch.randn(batch, length, 3)
            said, sizes = got(fleet, sent(x))
            state, norms = torch.zeros(batch, 4), []
            for k in range(length):
                state = torch.tanh(net.take(x[:, k]) + net.keep(state))
                norms.append(state.norm())
            torch.testing.assert_close(said, net.say(state).detach())
            torch.testing.assert_close(sizes, torch.stack(norms).detach())
        with torch.no_grad():
            net.take.weight *= 2


def test_a_loop_in_a_loop_in_a_branch(fleet: Fleet, device: VirtualWorker) -> None:
    """Three deep, and either side of it."""
    settle = plan_settle.send(device)
    depths = {own.ops[place].name for own, place in all_ops(plan_settle.graph)}
    assert {"control.cond.default", "control.while_loop.default"} <= depths
    w = torch.tensor([[0.9, 0.2, 0.0], [0.1, 0.8, 0.3], [0.0, 0.1, 0.7]])
    for x in (torch.full((4, 3), 2.0), torch.full((2, 3), 0.1)):
        wanted, count = x, 0 if float(x.abs().sum()) > 1 else -1
        while count >= 0 and float(wanted.norm()) > 0.3 and count < 9:
            wanted, count = torch.tanh(wanted @ w), count + 1
            while float(wanted.abs().max()) > 0.5:
                wanted = wanted * 0.5
        found, steps = got(fleet, settle(x, w))
        torch.testing.assert_close(found, wanted)
        assert int(steps) == count


@pytest.fixture(scope="module")
def endless() -> Plan:
    """It goes on as long as its start is 1 or more; built with one at which it does not."""

    def function(start: torch.Tensor) -> Any:
        return operators.while_loop(lambda x, _: x >= 0, lambda x, n: (x * 1.0, n + 1), (start - 1, 0))

    plan = func2plan()(function)
    plan.build(torch.tensor(0.5))
    return plan


def test_an_endless_loop_can_be_cancelled(fleet: Fleet, device: VirtualWorker, endless: Plan) -> None:
    """Between its steps; the device goes on with other work."""
    sent = endless.send(device)
    pointer = sent(torch.tensor(5.0))[1]
    pointer.cancel()
    with pytest.raises(InvocationCancelled):
        pointer.get(timeout=WITHIN)
    assert int(got(fleet, sent(torch.tensor(0.0))[1])) == 0


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_an_endless_loop_ends_by_the_devices_limit(fleet: Fleet, runtime: str, endless: Plan) -> None:
    """Of time: nobody knows how many operations it takes, while a loop with a bound is refused before it runs."""
    device = VirtualWorker(fleet, id=f"limited-{runtime}", runtime=runtime, limits=Limits(seconds=0.3, ops=10_000))
    assert not endless.cost().bounded
    with pytest.raises(PlanOverQuota, match="seconds or more"):
        endless.send(device)(torch.tensor(5.0))[1].get(timeout=WITHIN)
    roots = plan_roots.send(device)
    assert got(fleet, roots(torch.tensor([4.0]))[0]).item() == pytest.approx(2.0, rel=1e-4)
    with pytest.raises(PlanOverQuota, match="operations"):
        roots(torch.ones(1000))[0].get(timeout=WITHIN)


@func2plan(args_shape=[(4,), ()])
def plan_walk(x: torch.Tensor, steps: torch.Tensor) -> Any:
    """Looks at one element after the other, in a loop."""

    def step(at: torch.Tensor, total: torch.Tensor) -> Any:
        seen = x.index_select(0, at.reshape(1))
        return at + 1, total + seen.sum()

    return operators.while_loop(lambda at, _: at < steps, step, (0, torch.zeros(())))


def test_what_fails_inside_names_its_line(fleet: Fleet, device: VirtualWorker) -> None:
    """The op inside the loop, and the user's line of it."""
    plan_walk.build(torch.ones(4), torch.tensor(3), args_shape=[(4,), ()])
    walk = plan_walk.send(device)
    assert got(fleet, walk(torch.ones(4), torch.tensor(4))[1]).item() == 4
    with pytest.raises(ExecutionFailed) as caught:
        walk(torch.ones(4), torch.tensor(6))[1].get(timeout=WITHIN)
    error = caught.value
    assert error.op == "aten.index_select.default"
    assert error.source is not None
    assert error.source.endswith(": seen = x.index_select(0, at.reshape(1))")


def test_what_cannot_be_translated_inside_a_loop(fleet: Fleet) -> None:
    """`send` to a light device says which op, and where."""

    @func2plan
    def plan_inverses(x: torch.Tensor) -> Any:
        return operators.while_loop(
            lambda y: y.norm() > 2,
            lambda y: (torch.linalg.inv(y),),
            (x,),
        )

    plan_inverses.build(torch.eye(3))
    light = VirtualWorker(fleet, id="light", runtime="onnx")
    with pytest.raises(TranslationUnsupported) as caught:
        plan_inverses.send(light)
    assert caught.value.where is not None
    assert caught.value.where.text == "lambda y: (torch.linalg.inv(y),),"


def test_devices_with_older_ops(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused a loop by its name, and get both sides of a branch."""
    assert all(REGISTRY[f"control.{name}.default"].since == 2 for name in ("cond", "scan", "while_loop"))
    assert not any(name.startswith("control.") for name in known_to(1))

    @func2plan(args_shape=[("n", 3), (3, 3)])
    def plan_either(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x @ w, lambda x: x - w.sum(), (x,))

    old = VirtualWorker(fleet, id="old")
    monkeypatch.setattr("coordinator.variants.Runtimes.older", lambda _, names: dict.fromkeys(names, 1))
    with pytest.raises(OpTooNew) as caught:
        plan_roots.send(old)
    assert (caught.value.op, caught.value.version) == ("control.while_loop.default", 1)
    assert OPS_VERSION > 1
    x, w = torch.ones(2, 3), torch.eye(3)
    assert {own.ops[place].name for own, place in all_ops(plan_either.graph)} >= {"control.cond.default"}
    sent = plan_either.send(old)
    assert sent._parts.plan.hex() != plan_either.id
    for sign in (1, -1):
        torch.testing.assert_close(got(fleet, sent(sign * x, w)), plan_either.run_plan(sign * x, w))
