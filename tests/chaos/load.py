"""A coordinator under chaos: sends commands, writes down what it sends and sees, and takes up its results after a kill.

``python -m tests.chaos.load --broker URL --session NAME --journal FILE --plans DIR --device A --device B``. It sends
until SIGTERM; then it waits for everything to end, and ends itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from broker.protocol.errors import EdgePlanError
from coordinator import Plan, connect
from coordinator.core_outgoing import Outgoing
from coordinator.core_tables import ResultState
from coordinator.errors import BrokerUnreachable, RemoteError, UnknownResult
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from edge_agent.plan.trees import spec_of
from tests.chaos.journal import (
    AcceptedEntry,
    Argument,
    CancelEntry,
    EndedEntry,
    Entry,
    FetchedEntry,
    Journal,
    OpenedEntry,
    ReleaseEntry,
    SentEntry,
    TroubleEntry,
    UnknownEntry,
)
from tests.chaos.plans import OPS, PUT, SMALL, digest, literal

if TYPE_CHECKING:
    from coordinator.pointer_plan import PointerPlan

CONNECT_WITHIN = 120.0
"""Seconds that the broker may be away at the start."""
ASK_WITHIN = 120.0
"""Seconds that a question may take, with the broker killed and killed again."""
END_WITHIN = 180.0
"""Seconds until everything has ended, once nothing more is sent."""
TURN = 0.02
POOL = 40
"""Results that are kept as arguments of later commands; older ones are released."""

_WEIGHTS = {
    "literal": 4,
    "step": 6,
    "add": 4,
    "pair": 2,
    "chain": 3,
    "fan": 2,
    "put": 1,
    "put_large": 0.5,
    "grow": 1,
    "shrink": 1,
    "slow": 2,
    "expiring": 0.5,
}


@dataclass(slots=True)
class Kept:
    """A result that has not ended, or that later commands may use."""

    id: bytes
    device: str
    large: bool
    pointers: list[PointerTensor]
    outgoing: Outgoing | None = None
    ended: bool = False
    good: bool = True
    cancelled: bool = field(default=False)


def _nth(first: bytes, k: int) -> bytes:
    return first[:8] + (int.from_bytes(first[8:], "big") + k).to_bytes(8, "big")


class Load:
    """See the module."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.journal = Journal(options.journal)
        self.devices: list[str] = options.device
        self.stopping = threading.Event()
        self._fetching: queue.SimpleQueue[Kept | None] = queue.SimpleQueue()
        self._kept: dict[bytes, Kept] = {}
        self._pool: deque[bytes] = deque()
        self._unended: dict[bytes, Kept] = {}
        self._unaccepted: dict[bytes, Outgoing] = {}
        self.sent = 0

    # --------------------------------------------------------------------------------------------- beginning

    def run(self) -> int:
        """The whole life of the process; its exit code."""
        try:
            self.fleet = self._connect()
            with self.fleet:
                self.rng = random.Random(f"{self.options.seed} {self.fleet.session_id}")
                self._next = 1
                self.journal.write(OpenedEntry(incarnation=self.fleet.session_id))
                self._take_up()
                self._plans: dict[str, PointerPlan] = {}
                self._fans: dict[str, PointerPlan] = {}
                self._loaded = {name: Plan.load(self.options.plans / name) for name in OPS}
                fetcher = threading.Thread(target=self._fetch, name="fetcher", daemon=True)
                fetcher.start()
                _say("load_connected", incarnation=self.fleet.session_id, unended=len(self._unended))
                self._send_until_stopped()
                left = self._drain()
                self._fetching.put(None)
                fetcher.join(ASK_WITHIN)
                if left:
                    self.journal.write(TroubleEntry(what=f"{left} results have not ended"))
                _say("load_drained", left=left)
                return 1 if left else 0
        except EdgePlanError as error:
            self.journal.write(TroubleEntry(what=f"{type(error).__name__}: {error}"))
            raise

    def _connect(self) -> Fleet:
        until = time.monotonic() + CONNECT_WITHIN
        while True:
            try:
                return connect(self.options.broker, insecure=True, session=self.options.session, timeout=10)
            except BrokerUnreachable:
                if time.monotonic() > until or self.stopping.is_set():
                    raise

    def _take_up(self) -> None:
        """Find again what earlier processes of this session have sent."""
        sent: dict[str, tuple[SentEntry, int]] = {}
        gone: set[str] = set()
        for entry in self.journal.past:
            if isinstance(entry, SentEntry):
                first = bytes.fromhex(entry.id)
                for k in range(len(entry.devices)):
                    sent[_nth(first, k * entry.outputs).hex()] = (entry, k)
            elif isinstance(entry, EndedEntry | UnknownEntry | ReleaseEntry):
                gone.add(entry.id)
        for id, (entry, k) in sent.items():
            if id in gone:
                continue
            first = bytes.fromhex(id)
            try:
                pointers = [self._asking(self.fleet.pointer, _nth(first, n)) for n in range(entry.outputs)]
            except UnknownResult:
                self.journal.write(UnknownEntry(id=id))
            except RemoteError as error:  # it has ended, without a value
                self.journal.write(EndedEntry(id=id, code=error.code, argument=str(error.details.get("argument", ""))))
            else:
                large = _large(entry.op) or any(argument.seed >= 0 for argument in entry.arguments)
                self._keep(Kept(first, entry.devices[k], large, pointers))

    def _asking(self, ask: Callable[[bytes], PointerTensor], id: bytes) -> PointerTensor:
        until = time.monotonic() + ASK_WITHIN
        while True:
            try:
                return ask(id)
            except TimeoutError:
                if time.monotonic() > until:
                    raise

    # --------------------------------------------------------------------------------------------- sending

    def _send_until_stopped(self) -> None:
        began = time.monotonic()
        while not self.stopping.is_set():
            room = self.options.outstanding - len(self._unended)
            if self.options.rate:
                room = min(room, int((time.monotonic() - began) * self.options.rate) - self.sent)
            for _ in range(min(room, 8)):
                self._send_something()
            self._reap()
            self.stopping.wait(TURN)

    def _drain(self) -> int:
        until = time.monotonic() + END_WITHIN
        while (self._unended or self._unaccepted) and time.monotonic() < until:
            self._reap()
            for kept in self._unended.values():
                with contextlib.suppress(TimeoutError):
                    kept.pointers[0].wait(TURN)
                break
        return len(self._unended) + len(self._unaccepted)

    def _send_something(self) -> None:
        kind = self.rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if kind == "literal":
            self._invoke("step", [Argument(values=self._values())])
        elif kind in {"step", "pair", "slow", "grow"}:
            self._invoke(kind, [self._some(large=False)])
        elif kind == "shrink":
            self._invoke("shrink", [self._some(large=True)])
        elif kind == "add":
            self._invoke("add", [self._some(large=False), self._some(large=False)])
        elif kind == "chain":
            link = self._some(large=False)
            for _ in range(self.rng.randrange(3, 7)):
                link = Argument(id=self._invoke("step", [link])[0].hex())
        elif kind == "fan":
            self._fan()
        elif kind == "expiring":
            self._invoke("step", [self._some(large=False)], deadline=self.rng.uniform(0.5, 4))
        else:
            argument = Argument(seed=self.rng.randrange(1 << 30)) if kind == "put_large" else None
            self._put(argument or Argument(values=self._values()))
        if self.rng.random() < self.options.cancels and self._unended:
            self._cancel(self.rng.choice(list(self._unended.values())))
        while len(self._pool) > POOL:
            self._release(self._kept[self._pool.popleft()])

    def _values(self) -> list[int]:
        return [self.rng.randrange(1000) for _ in range(SMALL)]

    def _some(self, *, large: bool) -> Argument:
        """A pointer of the pool, on any device, ended or not; or a literal, if there is none."""
        fitting = [id for id in self._pool if self._kept[id].large is large and self._kept[id].good]
        if fitting and (large or self.rng.random() < 0.9):
            kept = self._kept[self.rng.choice(fitting)]
            return Argument(id=self.rng.choice(kept.pointers).id)
        return self._put(Argument(seed=self.rng.randrange(1 << 30))) if large else Argument(values=self._values())

    def _argument(self, argument: Argument) -> Any:
        if argument.id:
            return self._pointer(argument.id)
        if argument.each:
            return dict(zip(self.devices, map(self._pointer, argument.each), strict=True))
        return torch.tensor(argument.values) if argument.values else torch.from_numpy(literal(argument.seed))

    def _pointer(self, id: str) -> PointerTensor:
        raw = bytes.fromhex(id)
        for k in range(2):
            kept = self._kept.get(_nth(raw, -k)) if int.from_bytes(raw[8:], "big") > k else None
            if kept is not None and k < len(kept.pointers):
                return kept.pointers[k]
        raise AssertionError(f"{id} was released, and is used")

    def _take(self, count: int) -> bytes:
        """The first of the ids that the next command will get: known before it is sent, so that it is written down."""
        first = bytes.fromhex(self.fleet.session_id) + self._next.to_bytes(8, "big")
        self._next += count
        return first

    def _invoke(self, op: str, arguments: list[Argument], deadline: float = 0.0) -> list[bytes]:
        device = self.rng.choice(self.devices)
        outputs = 2 if op == "pair" else 1
        id = self._take(outputs)
        self.journal.write(
            SentEntry(id=id.hex(), op=op, devices=[device], outputs=outputs, arguments=arguments, deadline=deadline)
        )
        plan = self._plan_on(op, device)
        if deadline or self.rng.random() < 0.2:
            plan = plan.options(deadline=deadline or None, inline=self.rng.random() < 0.5)
        made = plan(*map(self._argument, arguments))
        return self._sent(id, [device], op, [made])

    def _fan(self) -> None:
        """One command to all devices: with one argument for all, or another for each."""
        outputs, op = (2, "pair") if self.rng.random() < 0.3 else (1, "step")
        argument = self._some(large=False)
        fitting = [id for id in self._pool if not self._kept[id].large and self._kept[id].good]
        if fitting and len(self.devices) > 1 and self.rng.random() < 0.5:
            argument = Argument(each=[self._kept[self.rng.choice(fitting)].pointers[0].id for _ in self.devices])
        id = self._take(outputs * len(self.devices))
        self.journal.write(SentEntry(id=id.hex(), op=op, devices=self.devices, outputs=outputs, arguments=[argument]))
        if op not in self._fans:
            self._fans[op] = self._loaded[op].send(*map(self.fleet.device, self.devices))
        made = self._fans[op](self._argument(argument))
        if len(self.devices) == 1:
            made = {self.devices[0]: made}
        self._sent(id, self.devices, op, [made[device] for device in self.devices])

    def _put(self, argument: Argument) -> Argument:
        device = self.rng.choice(self.devices)
        id = self._take(1)
        self.journal.write(SentEntry(id=id.hex(), op=PUT, devices=[device], outputs=1, arguments=[argument]))
        pointer = self.fleet.device(device).send(self._argument(argument))
        large = argument.seed >= 0
        [first] = self._sent(id, [device], "grow" if large else PUT, [pointer])
        return Argument(id=first.hex())

    def _plan_on(self, op: str, device: str) -> PointerPlan:
        key = f"{op} {device}"
        if key not in self._plans:
            self._plans[key] = self._loaded[op].send(self.fleet.device(device))
        return self._plans[key]

    def _sent(self, id: bytes, devices: list[str], op: str, made: list[Any]) -> list[bytes]:
        """A command was sent: keep its pointers, device by device; the first id of each."""
        self.sent += 1
        ids = []
        for k, (device, nest) in enumerate(zip(devices, made, strict=True)):
            pointers: list[PointerTensor] = spec_of(nest, name="made")[1]
            first = _nth(id, k * len(pointers))
            if pointers[0].result_id != first:
                self.journal.write(TroubleEntry(what=f"expected the id {first.hex()}, got {pointers[0].id}"))
            outgoing = pointers[0].result.command
            self._keep(Kept(first, device, _large(op), pointers, outgoing))
            if outgoing is not None:
                self._unaccepted[id] = outgoing
            ids.append(first)
        return ids

    def _keep(self, kept: Kept) -> None:
        self._kept[kept.id] = self._unended[kept.id] = kept
        self._pool.append(kept.id)

    def _cancel(self, kept: Kept) -> None:
        kept.good = False  # what uses it may fail: let most commands be useful
        self.journal.write(CancelEntry(id=kept.id.hex()))
        kept.pointers[0].cancel()

    def _release(self, kept: Kept) -> None:
        self.journal.write(ReleaseEntry(id=kept.id.hex()))
        for pointer in kept.pointers:
            pointer.release()
        del self._kept[kept.id]

    # --------------------------------------------------------------------------------------------- seeing

    def _reap(self) -> None:
        """Write down what was accepted, and what has ended."""
        entries: list[Entry] = []
        accepted = [id for id, outgoing in self._unaccepted.items() if outgoing.accepted]
        if accepted:
            entries.append(AcceptedEntry(ids=[id.hex() for id in accepted]))
        for id in accepted:
            del self._unaccepted[id]
        for kept in [kept for kept in self._unended.values() if kept.pointers[0].ready]:
            del self._unended[kept.id]
            entries.append(self._ended(kept))
        self.journal.write(*entries)

    def _ended(self, kept: Kept) -> EndedEntry:
        kept.ended = True
        result = kept.pointers[0].result
        id = kept.id.hex()
        if result.state is ResultState.FAILED:
            assert result.failure is not None
            kept.good = False
            with contextlib.suppress(ValueError):
                self._pool.remove(kept.id)
            if kept.id in self._kept:
                del self._kept[kept.id]
            return EndedEntry(id=id, code=result.failure.code, argument=str(result.failure.details.get("argument", "")))
        if result.state is ResultState.INLINE and kept.id in self._kept:
            return EndedEntry(id=id, values=[digest(pointer.get(timeout=ASK_WITHIN)) for pointer in kept.pointers])
        if kept.id in self._kept and self.rng.random() < self.options.fetches:
            self._fetching.put(kept)
        return EndedEntry(id=id)

    def _fetch(self) -> None:
        """Get values that stayed on their devices, while everything else goes on."""
        while (kept := self._fetching.get()) is not None:
            if kept.id not in self._kept:
                continue  # released
            try:
                values = self.fleet.get(kept.pointers, timeout=ASK_WITHIN)
            except (EdgePlanError, TimeoutError) as error:
                if not self.fleet.closed:
                    self.journal.write(FetchedEntry(id=kept.id.hex(), error=f"{type(error).__name__}: {error}"))
            else:
                self.journal.write(FetchedEntry(id=kept.id.hex(), values=[digest(value) for value in values]))


def _large(op: str) -> bool:
    return op == "grow"


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="tests.chaos.load", description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--device", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outstanding", type=int, default=96, help="how many results may be under way")
    parser.add_argument("--rate", type=float, default=0.0, help="commands a second; 0: as many as go")
    parser.add_argument("--cancels", type=float, default=0.05, help="how many commands are followed by a cancel")
    parser.add_argument("--fetches", type=float, default=0.2, help="how many values on devices are fetched at once")
    load = Load(parser.parse_args(arguments))
    signal.signal(signal.SIGTERM, lambda *_: load.stopping.set())
    return load.run()


if __name__ == "__main__":
    sys.exit(main())
