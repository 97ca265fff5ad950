"""Bad input ends in the error that was designed for it, and the fleet works on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
import torch
import zmq

from broker.protocol import messages as m
from broker.protocol.errors import ConnectionRefused, EdgePlanError, MessageTooLarge, TensorRefused
from broker.protocol.framing import MESSAGE_LIMIT, encode
from broker.settings import ExitCode
from coordinator import Plan, VirtualWorker, connect, func2plan
from coordinator.errors import (
    ArgumentFailed,
    DataDependentBranch,
    DimPinned,
    ForeignPointer,
    TagAmbiguous,
    TagNotFound,
    UnknownDevice,
    UnknownResult,
)
from edge_agent import Store
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed, PlanMalformed, UnknownOp
from edge_agent.plan.format import Graph, Input, Manifest, Op, Special, TensorType, digest_of, encode_graph
from edge_agent.runtimes.torch_tensors import encode_tensor
from tests.acceptance import plans
from tests.acceptance.wire import RawSession
from tests.acceptance.worlds import World, fresh_tag
from tests.processes import Program
from tests.waiting import PATIENCE


@pytest.fixture(autouse=True)
def works_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test here has done to its fleet, both devices still run plans."""
    name = next((name for name in ("world", "tcp") if name in request.fixturenames), None)
    world: World | None = request.getfixturevalue(name) if name else None
    yield
    if world is not None:
        world.still_works()


# ------------------------------------------------------------------------------------------------- calls


@func2plan(args_shape=[(-1, 3), (3,)], args_dtype=[torch.float32, torch.int64])
def plan_scale(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Any number of rows of three floats, and three ints."""
    return x * weights


ROWS, WEIGHTS = torch.ones(2, 3), torch.tensor([1, 2, 3])

BAD_CALLS: list[tuple[str, tuple[torch.Tensor, ...], dict[str, torch.Tensor], str, str, str]] = [
    ("too few", (ROWS,), {}, "weights", "a value", "nothing"),
    ("too many", (ROWS, WEIGHTS, ROWS), {}, "arguments", "at most 2", "3"),
    ("keyword", (ROWS,), {"weight": WEIGHTS}, "weight", "weights", "keyword"),
    ("given twice", (ROWS, WEIGHTS), {"x": ROWS}, "x", "one value", "two"),
    ("dtype", (ROWS.double(), WEIGHTS), {}, "x", "float32", "float64"),
    ("dtype by keyword", (), {"x": ROWS, "weights": WEIGHTS.float()}, "weights", "int64", "float32"),
    ("rank", (ROWS[0], WEIGHTS), {}, "x", "3", "[3]"),
    ("size of a fixed dim", (torch.ones(2, 4), WEIGHTS), {}, "x", "3", "4"),
]


@pytest.mark.parametrize("by_pointer", [False, True], ids=["tensors", "pointers"])
@pytest.mark.parametrize(
    ("args", "kwargs", "argument", "expected", "got"),
    [pytest.param(*row[1:], id=row[0]) for row in BAD_CALLS],
)
def test_a_bad_call_is_an_error_before_anything_is_sent(
    embedded: World,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    argument: str,
    expected: str,
    got: str,
    by_pointer: bool,
) -> None:
    """Arity, keyword, dtype, rank or size: the error says what was expected of which argument; nothing leaves."""
    world = embedded
    device = world.devices[0]
    on_device = plan_scale.send(device)
    send: Callable[[torch.Tensor], Any] = device.send if by_pointer else lambda tensor: tensor
    given, named = [send(tensor) for tensor in args], {name: send(tensor) for name, tensor in kwargs.items()}
    world.fleet.get([given, named], timeout=PATIENCE)
    before = world.counters(device)
    with pytest.raises(ArgumentMismatch) as caught:
        on_device(*given, **named)
    assert caught.value.argument == argument
    assert expected in caught.value.expected
    assert got in caught.value.got
    assert str(caught.value) == f"{argument}: expected {caught.value.expected}, got {caught.value.got}"
    assert world.counters(device).commands == before.commands


def test_a_bad_call_over_tcp(tcp: World) -> None:
    """Over TCP a bad call fails as it does on virtual devices, and the good call after it works."""
    device = tcp.devices[0]
    on_device = plan_scale.send(device)
    for args, kwargs, argument in (((ROWS,), {}, "weights"), ((ROWS.double(), WEIGHTS), {}, "x")):
        with pytest.raises(ArgumentMismatch) as caught:
            on_device(*args, **kwargs)
        assert caught.value.argument == argument
    assert torch.equal(on_device(ROWS, weights=WEIGHTS).get(timeout=PATIENCE), ROWS * WEIGHTS)


def test_a_dim_out_of_range(world: World) -> None:
    """A plan that was captured for some sizes says which, before anything is sent; within them it works."""

    @func2plan()
    def plan_of_some_sizes(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 3:
            return x + 1
        return x - 1

    plan_of_some_sizes.build(torch.ones(5), args_shape=[(-1,)])
    device = world.devices[0]
    on_device = plan_of_some_sizes.send(device)
    before = world.counters(device)
    with pytest.raises((ArgumentMismatch, ConditionFailed), match="4"):
        on_device(torch.ones(2))
    assert world.counters(device).commands == before.commands
    assert torch.equal(on_device(torch.ones(7)).get(timeout=PATIENCE), torch.full((7,), 2.0))


def test_the_device_checks_what_only_it_can_know(world: World) -> None:
    """An argument named by tags is checked on the device: its dtype, and that there is exactly one."""
    device = world.devices[0]
    wrong, twice = fresh_tag(), fresh_tag()
    for carried in ([wrong], [twice, "a"], [twice, "b"]):
        assert device.send(torch.ones(2, dtype=torch.int64), tags=carried).wait(PATIENCE)
    on_all = plans.double_abs().send(device, world.devices[1])
    for tags, error in ((wrong, ArgumentMismatch), (twice, TagAmbiguous), (fresh_tag(), TagNotFound)):
        with pytest.raises(error) as caught:
            on_all(tags)[device.id].get(timeout=PATIENCE)
        assert isinstance(caught.value, EdgePlanError)


def test_a_pointer_of_another_fleet(world: World) -> None:
    """A pointer, or a device, of another fleet is refused where it is used, by name."""
    mine = world.devices[0]
    with connect() as other:
        foreign_device = VirtualWorker(other, id="device_1")
        foreign = foreign_device.send(torch.ones(2))
        with pytest.raises(ForeignPointer, match=foreign.id) as caught:
            plans.double_abs().send(mine)(foreign)
        assert caught.value.argument == "x"
        with pytest.raises(ForeignPointer):
            world.fleet.get([foreign], timeout=PATIENCE)
        with pytest.raises(ForeignPointer):
            plans.double_abs().send(mine, foreign_device)


def test_an_unknown_id(world: World) -> None:
    """An id that nobody knows has the status unknown, and no pointer; what is no id is told so."""
    unknown = "ab" * 16
    assert world.fleet.status(unknown) == m.ResultStatus.UNKNOWN
    with pytest.raises(UnknownResult, match=unknown):
        world.fleet.pointer(unknown)
    with pytest.raises(ValueError, match="32 hex digits, got 'nonsense'"):
        world.fleet.pointer("nonsense")


def test_an_unknown_id_as_an_argument(tcp: World, raw: RawSession) -> None:
    """A command that builds on an id that nobody knows fails at once, and names it."""
    plan = plans.double_abs()
    device = tcp.devices[0]
    plan.send(device)(torch.ones(1)).get(timeout=PATIENCE)
    unknown, id = b"\xab" * 16, raw.take_id()
    raw.submit(m.Invoke(id=id, plan=bytes.fromhex(plan.id), args=[unknown]), devices=[device.id])
    failure = failure_of(raw, id)
    assert failure.code == ArgumentFailed.__name__
    assert failure.details["argument"] == unknown.hex()
    assert failure.details["code"] == UnknownResult.__name__


def test_an_unknown_device(world: World) -> None:
    """A device that the broker has never met fails the command, not the fleet."""
    with pytest.raises(UnknownDevice):
        plans.double_abs().send(world.fleet.device("nobody"))(torch.ones(1)).get(timeout=PATIENCE)


def failure_of(raw: RawSession, id: bytes) -> m.Failure:
    """How the command of that id has failed."""
    notify = raw.hear(m.Notify, lambda notify: not isinstance(notify.event, m.TagsChanged) and notify.event.id == id)
    assert isinstance(notify.event, m.ResultFailed)
    return notify.event.failure


# ------------------------------------------------------------------------------------------------- plans


def plan_with(op: str) -> PlanBundle:
    """A plan made by hand, of one op."""
    graph = encode_graph(
        Graph(
            inputs=[Input(name="x", dtype="float32", shape=[2])],
            ops=[Op(name=op, args=[Special(v=0)])],
            outputs=[1],
            signature=["t", ["t", 0], ["d"]],
            tree=0,
            name="by_hand",
        )
    )
    outputs = [TensorType(dtype="float32", shape=[2])]
    return PlanBundle(Manifest(version=1, graph=digest_of(graph), outputs=outputs), graph)


def test_a_plan_with_an_op_outside_the_registry_is_refused_by_the_coordinator(tmp_path: Path) -> None:
    """A plan file with an op that no registry has is not loaded, and the error names the op."""
    plan_with("aten.abs.default").save(tmp_path / "good.plan")
    assert torch.equal(Plan.load(tmp_path / "good.plan")(torch.tensor([-1.0, 2.0])), torch.tensor([1.0, 2.0]))
    plan_with("os.system.default").save(tmp_path / "bad.plan")
    with pytest.raises(UnknownOp, match=r"os\.system\.default") as caught:
        Plan.load(tmp_path / "bad.plan")
    assert caught.value.op == "os.system.default"


@pytest.mark.parametrize("op", ["os.system.default", "aten.set_.source_Storage", "aten.from_file.default"])
def test_a_plan_with_an_op_outside_the_registry_is_refused_by_the_device(tcp: World, raw: RawSession, op: str) -> None:
    """A device checks what it receives: a plan that no coordinator of ours would send fails there by its op."""
    device = tcp.devices[0]
    bundle = plan_with(op)
    raw.submit(
        m.StorePlan(plan=bundle.plan_id, parts=[bundle.manifest.graph], attached=list(bundle.parts)),
        *bundle.parts.values(),
    )
    id = raw.take_id()
    raw.submit(m.Invoke(id=id, plan=bundle.plan_id, args=[None]), encode_tensor(torch.ones(2)), devices=[device.id])
    failure = failure_of(raw, id)
    assert failure.code == UnknownOp.__name__
    assert op in failure.message


def test_a_plan_file_that_was_cut_or_altered(tmp_path: Path, world: World) -> None:
    """A plan file that lacks its end, or has any byte changed, is refused as malformed; the whole one runs."""
    path = tmp_path / "net.plan"
    net = plans.net()
    net.save(path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PlanMalformed):
            Plan.load(path)
    for place in range(0, len(whole), max(1, len(whole) // 64)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(PlanMalformed):
            Plan.load(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(PlanMalformed):
        Plan.load(path)
    path.write_bytes(whole)
    loaded = Plan.load(path)
    assert loaded.id == net.id
    data = torch.tensor([1.0, -2.0])
    assert torch.equal(loaded.send(world.devices[0])(data).get(timeout=PATIENCE), net.run_plan(data))


def test_a_data_dependent_if_is_refused_at_build() -> None:
    """An `if` on what a tensor holds is an error that names the line and points to torch.cond."""

    @func2plan()
    def plan_with_if(x: torch.Tensor) -> torch.Tensor:
        if x[0] > 0:
            return x
        return -x

    with pytest.raises(DataDependentBranch, match=r"torch\.cond") as caught:
        plan_with_if.build(torch.ones(2))
    assert caught.value.where is not None
    assert caught.value.where.text == "if x[0] > 0:"
    assert not plan_with_if.is_built


def test_a_python_loop_over_a_symbolic_dim_is_refused_at_build() -> None:
    """A loop as long as a dim that may vary would be unrolled at one size: it is an error that names the line."""

    @func2plan()
    def plan_with_loop(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for k in range(x.shape[0]):
            total = total + x[k]
        return total

    with pytest.raises(DimPinned) as caught:
        plan_with_loop.build(torch.ones(3), args_shape=[(-1,)])
    assert caught.value.where is not None
    assert caught.value.where.text == "for k in range(x.shape[0]):"
    assert caught.value.argument == "x"


# ------------------------------------------------------------------------------------------------- tensors


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_an_object_array_is_refused_by_the_coordinator_and_the_store(world: World, tmp_path: Path) -> None:
    """An object array goes nowhere: not by `send`, not in a call, not into a device's store."""
    device = world.devices[0]
    objects: Any = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    with pytest.raises(TensorRefused):
        device.send(objects)
    with pytest.raises(EdgePlanError):
        plans.double_abs().send(device)(objects)
    with Store.open(tmp_path / "store") as store, pytest.raises(TensorRefused):
        store.put(objects)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "put",
        str(tmp_path / "objects.npy"),
        "--store",
        str(tmp_path / "store"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == ExitCode.FAILED
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("way", ["put", "argument"])
def test_an_object_array_on_the_wire_is_never_unpickled(tcp: World, raw: RawSession, tmp_path: Path, way: str) -> None:
    """A frame that calls itself an object array fails its command; no pickle in it is ever loaded."""
    device = tcp.devices[0]
    plan = plans.double_abs()
    plan.send(device)(torch.ones(1)).get(timeout=PATIENCE)
    frame = msgpack.packb(msgpack_numpy.encode(np.array([Bomb(tmp_path / "exploded")], dtype=object)))
    id = raw.take_id()
    if way == "put":
        raw.submit(m.Put(id=id), frame, devices=[device.id])
    else:
        raw.submit(m.Invoke(id=id, plan=bytes.fromhex(plan.id), args=[None]), frame, devices=[device.id])
    assert failure_of(raw, id).code == TensorRefused.__name__
    assert not (tmp_path / "exploded").exists()


def test_nan_and_inf_are_data(world: World) -> None:
    """NaN and the infinities pass, as elements and as numbers."""

    @func2plan()
    def plan_times(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    plan_times.build(torch.ones(4), 2.0)
    device = world.devices[0]
    nan, inf = float("nan"), float("inf")
    odd = torch.tensor([nan, inf, -inf, -0.0])
    doubled = plans.double_abs().send(device)(device.send(odd)).get(timeout=PATIENCE)
    assert torch.equal(doubled.nan_to_num(7.0), torch.tensor([7.0, inf, inf, 0.0]).nan_to_num(7.0))
    on_device = plan_times.send(device)
    assert on_device(torch.ones(4), nan).get(timeout=PATIENCE).isnan().all()
    assert torch.equal(on_device(torch.ones(4), -inf).get(timeout=PATIENCE), torch.full((4,), -inf))


# ------------------------------------------------------------------------------------------------- peers


def port_of(endpoint: str) -> int:
    """The port of a TCP endpoint."""
    return int(endpoint.rpartition(":")[2])


def test_random_bytes_at_the_brokers_ports(tcp: World, broker: Program) -> None:
    """Bytes that are no ZeroMQ at any of the broker's ports harm nobody else."""
    opened = tcp.fleet.driver.opened
    assert opened is not None
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    noise = [os.urandom(3000), b"GET / HTTP/1.1\r\n\r\n", greeting + os.urandom(500), b"\xff" * 100, b""]
    for endpoint in (broker.endpoint, opened.logs, opened.blobs):
        for said in noise:
            with socket.create_connection(("127.0.0.1", port_of(endpoint)), timeout=PATIENCE) as peer:
                peer.sendall(said)
        tcp.still_works()


def test_random_messages_at_the_broker(tcp: World, raw: RawSession, broker: Program) -> None:
    """ZeroMQ messages that mean nothing, cut ones and ones of the wrong role harm nobody, not even their sender."""
    whole = m.Submit(n=1, devices=["device_1"], command=m.Cancel(id=bytes(16)))
    for frames in (
        [b""],
        [os.urandom(200)],
        [os.urandom(20), os.urandom(20), os.urandom(20)],
        [b"\x91" * 10_000],
        [encode(whole)[:-3]],
        [encode(whole), os.urandom(100)],
        [encode(m.Taken(n=77))],
        [encode(m.Announce(n=9, event=m.Cancelled(id=bytes(16), digest=bytes(16))))],
        [encode(m.Recorded(n=1 << 62))],
    ):
        raw.say_bytes(*frames)
    raw.say(m.AskStats(r=5))
    assert raw.hear(m.Stats, lambda stats: stats.r == 5).total.bytes_in > 10_000


def test_a_message_over_the_limit_from_a_peer(tcp: World, raw: RawSession, broker: Program) -> None:
    """A message over the limit is refused, one far over it ends the connection of its sender alone."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        sender = context.socket(zmq.DEALER)
        sender.setsockopt(zmq.LINGER, 0)
        monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        sender.connect(broker.endpoint)
        session = RawSession(sender)
        limit = session.open().max_message
        assert limit <= MESSAGE_LIMIT
        id = session.take_id()
        session.submit(m.Put(id=id), bytes(limit + 1), devices=[tcp.devices[0].id])
        session.hear(m.Refused | m.Rejected)  # type: ignore[arg-type]
        session.say_bytes(bytes(16 * limit))
        assert monitor.poll(int(1000 * PATIENCE)), "the sender of a message far over the limit should be disconnected"
        sender.disable_monitor()
        monitor.close(linger=0)
    finally:
        context.destroy(linger=0)


def test_a_message_over_the_limit_from_a_coordinator(world: World) -> None:
    """What can't be one message is refused in the call that makes it; what is large but can move as a blob does."""
    device = world.devices[0]
    tags = [f"{k:0250}" for k in range(6000)]
    with pytest.raises(MessageTooLarge) as caught:
        device.send(torch.ones(1), tags=tags)
    assert caught.value.size > caught.value.limit
    large = torch.ones(MESSAGE_LIMIT)
    value = plans.plus_one().send(device)(large).get(timeout=PATIENCE)
    assert torch.equal(value, large + 1)


def test_a_second_device_of_one_id_is_refused(world: World) -> None:
    """A device whose id is connected already is refused, with the reason; the first one works on."""
    device = world.devices[0]
    with pytest.raises(ConnectionRefused) as caught:
        VirtualWorker(world.fleet, id=device.id)
    assert caught.value.code == m.RefusalCode.DUPLICATE_DEVICE


def test_a_second_agent_process_of_one_id_ends(tcp: World, broker: Program, tmp_path: Path) -> None:
    """A second agent of one id ends with the exit code for a refusal, and says why; the first one works on."""
    command = [sys.executable, "-m", "edge_agent", "run", "--id", tcp.devices[0].id, "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "--broker", broker.endpoint, "--insecure"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == ExitCode.REFUSED
    assert m.RefusalCode.DUPLICATE_DEVICE in done.stderr
    assert "Traceback" not in done.stderr
