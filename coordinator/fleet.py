"""`connect` and `Fleet`: the way to all devices of one broker.

A fleet is one session with the broker. Its methods may be called from any thread; those that ask the broker wait for
the answer, those that send something return at once. Close it, or use it in a ``with`` statement; a forgotten one is
closed at the end of the program.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self, TypeVar

import zmq

from broker.logs import LEVELS
from broker.protocol.errors import EdgePlanError
from broker.protocol.framing import is_text
from broker.protocol.ids import check_device_id, nth, parse_result_id
from broker.protocol.messages import (
    AskDeadLetters,
    AskStats,
    AskStatus,
    DeadLetters,
    DeviceInfo,
    DeviceList,
    Failure,
    Found,
    ListDevices,
    Message,
    ResultStatus,
    Search,
    Stats,
    StatusEntry,
    StatusReport,
    TagEntry,
)
from broker.settings import check_insecure
from coordinator.checks import (
    checked_devices,
    checked_limit,
    checked_outbox,
    checked_prefix,
    checked_result_id,
    checked_session_id,
    checked_session_name,
    checked_tags,
    checked_timeout,
)
from coordinator.core import SEEN_EVERY, SessionConfig
from coordinator.core_events import Answered, SubmitCommand
from coordinator.core_results import Result
from coordinator.device import Device
from coordinator.driver import SessionDriver
from coordinator.errors import ForeignPointer, ResultTimeout, error_from_failure
from coordinator.log_stream import LogStream
from coordinator.notifications import AsCompleted, Notifications
from coordinator.pointers import PointerTensor
from coordinator.recovery import take_up, take_up_session
from coordinator.scopes import Scope
from coordinator.session_errors import BrokerUnreachable, LedgerLost, session_error
from coordinator.session_socket import Context
from coordinator.subscriptions import Subscription
from coordinator.transfers import Blobs, endpoint_beside
from coordinator.values import Gathering, check_nesting, values_within
from coordinator.variants import Runtimes
from coordinator.waiting import Deadline, Signal, wait_for
from edge_agent.plan.trees import spec_of, unflatten

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Fleet", "connect"]

Answer = TypeVar("Answer", bound=Message)

REQUEST_TIMEOUT = 30.0
"""How long a question to the broker may take, in seconds."""
SOURCE_TABLES = 1000
"""How many plans' tables from op to source line are kept."""


class _Closable(Protocol):
    def close(self) -> None: ...


def connect(
    url: str | None = None,
    *,
    session: str = "",
    insecure: bool = False,
    timeout: float = 10.0,
    max_unaccepted: int = 100_000,
    max_unaccepted_bytes: int = 256 << 20,
) -> Fleet:
    """The fleet of the broker at ``url``, such as ``tcp://127.0.0.1:5750``; without one, of a broker inside this
    process.

    Waits until the broker has answered. ``insecure``: without encryption, which only a loopback address may be.

    ``session`` names the session, so that a coordinator that starts again under that name takes up its pointers: see
    `Fleet.pointers`. Whoever had the name before can't speak any more: its calls raise `SessionTakenOver`.

    ``max_unaccepted`` commands, or commands with ``max_unaccepted_bytes`` of tensors in all, may wait here while the
    broker is away or busy; a call beyond that raises `OutboxFull`, at once.

    Raises `BrokerUnreachable` when no broker answers within ``timeout`` seconds, `ConnectionRefused` (or
    `VersionRefused`) when it does not take this coordinator, `InsecureEndpoint` for an address that needs encryption,
    `EndpointMalformed` (a ValueError) for what is no address, ValueError for a limit below 1, for what is no name of at
    most 256 characters, or no timeout.
    """
    checked_outbox(max_unaccepted, max_unaccepted_bytes)
    checked_timeout(timeout)
    config = SessionConfig(
        session=checked_session_name(session),
        seen_every=SEEN_EVERY,
        max_unaccepted=max_unaccepted,
        max_unaccepted_bytes=max_unaccepted_bytes,
    )
    if url is None:
        from coordinator.embedded import Embedded  # the broker's code, which a fleet over TCP does without

        embedded = Embedded()
        try:
            return Fleet(embedded.endpoint, context=embedded.context, owned=[embedded], timeout=timeout, config=config)
        except BaseException:
            embedded.close()
            raise
    check_insecure(url, insecure=insecure, connecting=True)
    context: Context = zmq.Context()
    try:
        return Fleet(url, context=context, owned=[_Term(context)], timeout=timeout, config=config)
    except BaseException:
        context.term()
        raise


class _Term:
    """Ends a context with the fleet whose it is."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def close(self) -> None:
        self._context.term()


def _close(
    driver: SessionDriver,
    blobs: Blobs,
    streams: weakref.WeakSet[Subscription[Any]],
    owned: list[_Closable],
) -> None:
    """Close a fleet: also called when it was forgotten, so it may not refer to it."""
    if driver.on_own_thread:
        # Its last reference was in an answer that came too late. That thread can't wait for itself.
        threading.Thread(target=_close, args=(driver, blobs, streams, owned), name="edgeplan-closing").start()
        return
    driver.close()
    blobs.close()
    for stream in list(streams):
        stream.close()
    if driver.orphaned:
        return  # the child of a fork: all of this is its parent's
    while owned:
        owned.pop().close()


class Fleet:
    """See the module. Made by `connect`. ``owned`` is closed with it, the last first."""

    def __init__(
        self,
        endpoint: str,
        *,
        context: Context,
        config: SessionConfig,
        owned: Sequence[_Closable] = (),
        timeout: float = 10.0,
    ) -> None:
        self.endpoint = endpoint
        self.driver = SessionDriver(endpoint, config=config, context=context)
        self.blobs = Blobs(self.driver)
        self._owned: list[_Closable] = []
        self._streams: weakref.WeakSet[Subscription[Any]] = weakref.WeakSet()
        self.runtimes = Runtimes()
        self._sources: OrderedDict[bytes, Sequence[tuple[str, int, str] | None]] = OrderedDict()
        self._finalizer = weakref.finalize(self, _close, self.driver, self.blobs, self._streams, self._owned)
        try:
            if not self.driver.wait_settled(timeout):
                raise BrokerUnreachable(endpoint, timeout)
            if self.driver.failure is not None:
                raise session_error(self.driver.failure)
        except BaseException:
            self.close()
            raise
        self._owned.extend(owned)

    # --------------------------------------------------------------------------------------------- its life

    def close(self) -> None:
        """End the session. Waits a moment for the broker to accept what was sent. What runs on devices goes on.
        Idempotent.
        """
        self._finalizer()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has accepted all that was sent so far: it is in its ledger then, and on its disk, if
        it keeps its ledger there. What a coordinator that is killed had sent before is not lost any more.

        Raises `NotAccepted` (a TimeoutError) when that takes more than ``timeout`` seconds; it goes on being sent.
        """
        self.driver.wait_accepted(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(
            "a fleet, and what belongs to one, can't be pickled or copied, since it is a connection: connect again "
            "where it is needed; the ids of devices and pointers are good everywhere"
        )

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.driver.closed

    def own(self, thing: _Closable) -> None:
        """Close ``thing`` with the fleet, before anything that was there earlier."""
        self._owned.append(thing)

    @property
    def context(self) -> Context:
        """The ZeroMQ context of its sockets."""
        return self.driver.context

    @property
    def session_id(self) -> str:
        """The incarnation of its session: 16 hex digits, with which every id that it makes begins."""
        return self.driver.core.incarnation.hex()

    @property
    def session(self) -> str:
        """The session's name; empty: it has none."""
        return self.driver.core.config.session

    @property
    def short_id(self) -> str:
        """The first eight of them, for people."""
        return self.session_id[:8]

    def __repr__(self) -> str:
        return f"<Fleet {self.short_id} at {self.endpoint}{', closed' if self.closed else ''}>"

    # --------------------------------------------------------------------------------------------- devices

    def device(self, id: str) -> Device:
        """The device of that name. Nothing is asked: it may be one that the broker has yet to meet. Raises ValueError
        for no name.
        """
        return Device(self, check_device_id(id))

    def devices(self) -> list[Device]:
        """All devices that the broker knows, by name, each with what it knows of it."""
        return [Device(self, info.device, info=info) for info in self.device_infos()]

    def device_infos(self) -> list[DeviceInfo]:
        """What the broker knows of all devices."""
        return self.ask(DeviceList, lambda r: ListDevices(r=r)).devices

    def search(self, *tags: str, devices: Sequence[str] = ()) -> dict[str, list[PointerTensor]]:
        """Pointers to the tensors that carry all of ``tags``, device by device; devices without any are left out.

        Without tags, everything that is tagged; ``devices``: on these only. Raises ValueError for what is no
        tag, or no device's name.
        """
        wanted, where = list(checked_tags(tags)), checked_devices(devices)
        found = self.ask(Found, lambda r: Search(r=r, tags=wanted, devices=where))
        return {
            device: [self._pointer_to(device, entry) for entry in entries]
            for device, entries in found.entries.items()
            if entries
        }

    def _pointer_to(self, device: str, entry: TagEntry) -> PointerTensor:
        return PointerTensor(
            self,
            Result.known(entry.id, device=device, infos=[entry.info]),
            dtype=entry.info.dtype,
            shape=tuple(entry.info.shape),
            tags=tuple(entry.tags),
            description=entry.description,
        )

    def stats(self) -> Stats:
        """What the broker has counted since it started: ``total`` and ``devices`` by name (each `Counters`), and
        ``gauges``.
        """
        return self.ask(Stats, lambda r: AskStats(r=r))

    def dead_letters(self, limit: int = 100) -> DeadLetters:
        """The commands that were given up because workers died of them, or because they were delivered again and again
        without an end. ``entries``: the last ``limit`` of them (1,000 at most), the last first, each with its
        ``failure``; ``total``: how many the broker remembers. Raises ValueError for a limit below 0.
        """
        most = checked_limit(limit)
        return self.ask(DeadLetters, lambda r: AskDeadLetters(r=r, limit=most))

    # --------------------------------------------------------------------------------------------- results

    def status(self, id: str | bytes | PointerTensor) -> ResultStatus:
        """What became of a result. Any coordinator may ask, at any time. Raises ValueError for what is no id."""
        raw = _raw_id(id)
        status = self.status_entry(raw).status
        if status is ResultStatus.UNKNOWN and self.pending(raw) is not None:
            return ResultStatus.QUEUED  # here: the broker has yet to hear of it
        return status

    def pending(self, raw: bytes) -> tuple[Result, int] | None:
        """The result that has the id ``raw`` as its k-th output, and k, if its command is this session's and has not
        ended.
        """
        with self.driver.lock:
            return self.driver.core.output(raw)

    def status_entry(self, id: str | bytes | PointerTensor) -> StatusEntry:
        """All that the broker says of a result. Raises ValueError for what is no id."""
        raw = _raw_id(id)
        return self.ask(StatusReport, lambda r: AskStatus(r=r, ids=[raw])).entries[0]

    def pointer(self, id: str | bytes) -> PointerTensor:
        """Take up what an id names: a result of another session or an earlier one, ended or not, or a tensor found by
        its tags.

        Raises `UnknownResult`, if nobody knows it (any more), ValueError for what is no id.
        """
        raw = _raw_id(id)
        return take_up(self, raw, self.pending(raw))

    def pointers(self) -> list[PointerTensor]:
        """Pointers to all results of this session, of all its incarnations if it has a name: those that the broker
        remembers and that were not released, ended or not, with a value or without; those of one incarnation in the
        order in which they were sent.
        """
        return take_up_session(self)

    def get(self, nest: Any, timeout: float | None = None, errors: Literal["raise", "return"] = "raise") -> Any:
        """The values of all pointers in ``nest`` (lists, tuples and dicts), in the same nesting; what is no pointer
        stays as it is.

        Waits for all, then fetches what is remote in one request a device. Raises `ResultTimeout` when not all is there
        within ``timeout`` seconds, TypeError for pointers in a set, a generator, ``results.values()``.
        ``errors="return"`` puts an error in the place of its value: a `ResultTimeout` in that of each that is late, all
        else is given as it is. With a ``timeout``, it fetches what has ended while it waits for the rest.
        """
        if errors not in {"raise", "return"}:
            raise ValueError(f"expected errors to be 'raise' or 'return', got {errors!r}")
        tree, leaves = spec_of(nest, name="nest")
        check_nesting(leaves)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, PointerTensor)]
        pointers: list[PointerTensor] = [leaves[place] for place in places]
        self.check_own(pointers)
        if not self._all_ended(pointers):
            self.driver.check()
        deadline, outputs = Deadline(timeout), [(pointer.result, pointer.index) for pointer in pointers]
        if timeout is not None and errors == "return":
            values = values_within(self, outputs, deadline)
        else:
            late = wait_for(self.driver, [result for result, _ in outputs], deadline)
            if late is not None:
                raise ResultTimeout(late.id.hex(), timeout or 0.0, late.device)
            values = Gathering(self, outputs, Signal()).wait(deadline)
        for place, value in zip(places, values, strict=True):
            if isinstance(value, EdgePlanError) and errors == "raise":
                raise value
            leaves[place] = value
        return unflatten(tree, leaves)

    def _all_ended(self, pointers: Iterable[PointerTensor]) -> bool:
        return all(pointer.ready for pointer in pointers)

    def scope(self) -> Scope:
        """For a ``with`` statement: what is made inside is released when it is left. See `Scope`."""
        return Scope(self)

    def as_completed(self, pointers: Any, timeout: float | None = None) -> AsCompleted:
        """The pointers in the order in which their results end, with a value or without: for ``for`` and ``async for``.

        ``pointers``: any nesting of them. Raises `ResultTimeout` when the next does not end within ``timeout`` seconds
        of the start, TypeError for what are no pointers.
        """
        if not isinstance(pointers, dict | PointerTensor):
            if not isinstance(pointers, Iterable):
                raise TypeError(f"expected pointers, got a {type(pointers).__name__}")
            pointers = list(pointers)
        _, leaves = spec_of(pointers, name="pointers")
        self.check_own(leaves)
        return AsCompleted(self.driver, leaves, timeout)

    def notifications(self, prefix: str = "") -> Notifications:
        """Every result that ends from now on and whose id (hex digits) begins with ``prefix``: for ``for`` and ``async
        for``.

        At best effort: what an observer misses is not repeated. Close it, or leave it by its ``with`` statement. Raises
        ValueError for what is no such prefix.
        """
        stream = Notifications(self.context, self._published_at(), prefix)
        self._streams.add(stream)
        return stream

    def logs(
        self, level: str = "debug", *, device: str = "", component: str = "", session: str = "", result: str = ""
    ) -> LogStream:
        """The log events of all programs of the fleet from now on, of ``level`` and above: for ``for`` and ``async
        for``.

        See `LogStream` for what the others pick out. Raises ValueError for a level that there is none, and for what no
        event can name: it would be waited for in vain.
        """
        if level not in LEVELS:
            raise ValueError(f"expected a level of {', '.join(LEVELS)}, got {level!r}")
        if not is_text(component):
            raise ValueError(f"expected a component's name, got {component!r}")
        stream = LogStream(
            self.context,
            self._published_at(),
            level=LEVELS[level],
            device="" if device == "" else check_device_id(device),
            component=component,
            session="" if session == "" else checked_session_id(session),
            result=checked_prefix(result),
        )
        self._streams.add(stream)
        return stream

    def _published_at(self) -> str:
        self.driver.check()
        opened = self.driver.opened
        if opened is None or not opened.logs:
            failure = Failure(code="NotAllowed", message="this broker publishes neither logs nor notifications")
            raise error_from_failure(failure)
        return endpoint_beside(self.endpoint, opened.logs)

    # --------------------------------------------------------------------------------------------- for the rest of the

    def check_own(self, pointers: Iterable[object], argument: str = "") -> None:
        """Raises `ForeignPointer` for a pointer of another fleet, TypeError for what is none."""
        for pointer in pointers:
            if not isinstance(pointer, PointerTensor):
                raise TypeError(f"expected pointers, got a {type(pointer).__name__}")
            if pointer.fleet is not self:
                raise ForeignPointer(f"the pointer {pointer.id}", argument)

    def submit(self, event: SubmitCommand) -> list[Result]:
        """Send a command that makes no ids."""
        driver = self.driver
        driver.check()
        with driver.lock:
            results = driver.submit(event)
            driver.flush()
        return results

    def keep_source(self, plan: bytes, table: Sequence[tuple[str, int, str] | None]) -> None:
        """Keep a plan's table from op to source line, for the errors that come back."""
        self._sources[plan] = table
        self._sources.move_to_end(plan)
        while len(self._sources) > SOURCE_TABLES:
            self._sources.popitem(last=False)

    def error(self, failure: Failure, result: Result, k: int = 0) -> EdgePlanError:
        """The error to raise for a failure of a result's ``k``-th output."""
        if failure.code == "LedgerLost":
            return LedgerLost(nth(result.id, k).hex())
        if failure.code in {"FleetClosed", "ConnectionRefused"}:
            return session_error(failure)
        id, table = nth(result.id, k), self._sources.get(result.plan)
        return error_from_failure(failure, device=result.device, id=id, source_table=table, asked_at=result.asked_at)

    def ask(self, kind: type[Answer], make: Callable[[int], Message], timeout: float = REQUEST_TIMEOUT) -> Answer:
        """The broker's answer, of that ``kind``, to the request that ``make`` makes with its number.

        Raises `BrokerUnreachable`, if none comes within ``timeout`` seconds.
        """
        signal = Signal()
        answers: list[Answered] = []

        def on_answer(answered: Answered) -> None:
            answers.append(answered)
            signal.set()

        deadline = time.monotonic() + timeout
        r = self.driver.ask(make, on_answer)
        try:
            if not signal.wait(max(0.0, deadline - time.monotonic())):
                raise BrokerUnreachable(self.endpoint, timeout)
        finally:
            if not answers:
                self.driver.give_up(r)
        if answers[0].failure is not None:
            raise session_error(answers[0].failure)
        message = answers[0].message
        if not isinstance(message, kind):
            raise error_from_failure(
                Failure(code="ProtocolError", message=f"expected {kind.__name__} from the broker, got another answer")
            )
        return message


def _raw_id(id: str | bytes | PointerTensor) -> bytes:
    if isinstance(id, PointerTensor):
        return id.result_id
    return checked_result_id(id) if isinstance(id, bytes) else parse_result_id(id)
