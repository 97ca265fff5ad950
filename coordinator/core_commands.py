"""The session's outgoing commands: from the user's call to the broker's acknowledgement, and again after a lost ledger.

A command goes through up to four stations::

    parked     it names a blob that is still being uploaded, or a command that is parked: nobody else waits for it
    numbered   in the outbox: sent, and kept until the broker has accepted it
    accepted   in the broker's ledger; kept until all its results have ended, since a new ledger may need it again
    gone

A command that can do nothing any more (rejected, or its blob is gone) keeps its number, with a command without effect
in its place: the broker takes only the next number, so a number that was given out must be used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from broker.protocol.effects import Log, Send
from broker.protocol.errors import MessageTooLarge
from broker.protocol.framing import HEADER_LIMIT, MESSAGE_LIMIT, command_digest, size_of
from broker.protocol.ids import nth
from broker.protocol.messages import (
    INLINE_TENSORS_BYTES,
    Busy,
    Failure,
    Frame,
    Invoke,
    Lacking,
    Put,
    Rejected,
    ResultInfo,
    SessionOpened,
    StorePlan,
    Submit,
)
from broker.protocol.streams import Outbox
from coordinator.core_barriers import Barriers
from coordinator.core_events import (
    AwaitAccepted,
    PlanParts,
    ResultEnded,
    SubmitCommand,
    Submitted,
    Upload,
    UploadEnded,
)
from coordinator.core_outgoing import NO_KEYS, NOTHING, Outgoing
from coordinator.core_results import Result
from coordinator.core_tables import ResultInput
from coordinator.core_unmade import Unmade

__all__ = ["Commands"]

_encode = msgspec.msgpack.Encoder().encode
_FAILED = ResultInput.FAILED
_LACKING_LIMIT = 5
"""How often the broker may say that it lacks what was uploaded, before the command is given up."""


class Commands:
    """All commands that have not come to their end. ``results`` is the core's table of results that have not ended."""

    def __init__(self, results: dict[bytes, Result], *, window: int, patience: float) -> None:
        self.ledger = b""
        self.max_message = MESSAGE_LIMIT
        self.log_level = math.inf
        self.bytes = 0
        """How large the tensors are of commands that the broker has not accepted."""
        self.busy_reason = ""
        """Why the broker took nothing when it was asked last; empty: it takes what it is sent."""
        self._results = results
        self._window = window
        self._patience = patience
        self._outbox: Outbox[Outgoing] = Outbox(window=window, patience=patience)
        self._kept: dict[Outgoing, None] = {}  # in the order of submission
        self._barriers = Barriers(self._kept)
        self._accepted: dict[int, Outgoing] = {}  # by number: accepted, with results that have not ended
        self._parked: list[Outgoing] = []
        self._parked_names: set[bytes] = set()
        # Plans that this ledger has, or that are on their way to it, before anything that runs them.
        self._stored: set[bytes] = set()
        self._uploaded: set[bytes] = set()  # keys of what this ledger has
        self._lacking: set[bytes] = set()  # keys of what the broker lacks for a command, ...
        self._lacking_for: Outgoing | None = None  # ... this one: nothing is sent before it has come
        self._refused_plans: dict[bytes, Failure] = {}
        self._unmade = Unmade()

    def __len__(self) -> int:
        """How many commands the broker has not accepted."""
        return len(self._outbox.items) + len(self._parked)

    # --------------------------------------------------------------------------------------------- from the user

    def submit(self, event: SubmitCommand, out: list[object]) -> list[Result]:
        """Take a command; its results, one a device. Raises `MessageTooLarge`; then nothing has happened."""
        command, devices = event.command, event.devices
        outgoing = Outgoing(devices, command, event.frames)
        outgoing.size = self._checked_size(outgoing) + event.upload_size
        self.bytes += outgoing.size
        out.append(Submitted(outgoing.results))
        outgoing.plan = event.plan
        if event.upload is None:
            outgoing.digest = command_digest(command, event.frames)
        else:
            outgoing.upload = event.upload
            outgoing.missing = {event.upload}
        kind = type(command)
        if kind is Invoke or kind is Put:
            outputs, plan = (command.outputs, command.plan) if kind is Invoke else (1, b"")  # type: ignore[union-attr]  # told by kind
            first: bytes = command.id  # type: ignore[union-attr]
            for k, device in enumerate(devices):
                id = nth(first, k * outputs) if k else first
                result = Result(id, device, outputs, plan, outgoing)
                result.digest = outgoing.digest
                self._results[id] = result
                outgoing.results.append(result)
            outgoing.open = len(devices)
            if event.then is not None:
                outgoing.results[0].then = event.then
            if self.log_level <= 10:
                fields = {"result": first.hex(), "devices": ",".join(devices)}
                out.append(Log(level=10, event="invocation_submitted", fields=fields))
        if self._unmade and self._ends_unmade(outgoing, out):
            self._discount(outgoing)
            return outgoing.results
        self._kept[outgoing] = None
        self._admit(outgoing, out)
        return outgoing.results

    def send_plan(self, plan: PlanParts, out: list[object]) -> None:
        """See that this ledger has, or gets, the plan."""
        if self._lacks(plan):
            self._store(plan, out)

    def await_accepted(self, event: AwaitAccepted, out: list[object]) -> None:
        """Say when all that was submitted so far is accepted."""
        if event.give_up:
            self._barriers.give_up(event.key)
        else:
            self._barriers.raise_(event.key, self._kept, out)

    def _checked_size(self, outgoing: Outgoing) -> int:
        """The bytes of its frames. Raises `MessageTooLarge`."""
        # The digest's encoding and this one are two; this one takes an eighth of a microsecond, and nothing too large
        # is ever queued.
        header = len(_encode(outgoing.command)) + 32
        if len(outgoing.devices) > 1:
            header += sum(map(len, outgoing.devices)) + 3 * len(outgoing.devices)
        if header > HEADER_LIMIT:
            raise MessageTooLarge(header, HEADER_LIMIT)
        size = size_of(outgoing.frames) if outgoing.frames else 0
        if header + size > self.max_message:
            raise MessageTooLarge(header + size, self.max_message)
        return size

    # --------------------------------------------------------------------------------------------- parked or numbered

    def _admit(self, outgoing: Outgoing, out: list[object]) -> None:
        plan = outgoing.plan
        if plan is not None and self._lacks(plan):
            self._store(plan, out)
        if outgoing.missing or (self._parked and outgoing.refers_to(self._parked_names)):
            self._parked.append(outgoing)
            self._parked_names.update(outgoing.names())
            self._ask_for(outgoing, outgoing.missing, out)
        else:
            self._outbox.push(outgoing)

    def _lacks(self, plan: PlanParts) -> bool:
        """Whether this ledger was not sent the plan yet, or not with this variant."""
        return plan.plan not in self._stored or (bool(plan.variant) and plan.variant not in self._stored)

    def _store(self, plan: PlanParts, out: list[object]) -> None:
        self._stored.add(plan.plan)
        if plan.variant:
            self._stored.add(plan.variant)
        self._refused_plans.pop(plan.plan, None)
        absent = [digest for digest in plan.blobs if digest not in self._uploaded]
        attached: list[bytes] = []
        room = INLINE_TENSORS_BYTES
        for digest in sorted(absent, key=lambda digest: len(plan.blobs[digest])):
            room -= len(plan.blobs[digest])
            if room < 0:
                break
            attached.append(digest)
        beside = set(plan.beside.values())
        command = StorePlan(
            plan=plan.plan,
            parts=[digest for digest in plan.blobs if digest != plan.plan and digest not in beside],
            beside=dict(plan.beside),
        )
        outgoing = Outgoing((), command, tuple(plan.blobs[digest] for digest in attached))
        outgoing.plan = plan
        outgoing.attached = attached
        outgoing.missing = set(absent).difference(attached)
        self._uploaded.update(attached)
        self._kept[outgoing] = None
        self._admit(outgoing, out)

    def _ask_for(self, outgoing: Outgoing, keys: Iterable[bytes], out: list[object]) -> None:
        if not self.ledger:
            return  # nobody to upload to yet: `start_over` asks
        for key in keys:
            content = outgoing.plan.blobs[key] if outgoing.plan is not None else None
            out.append(Upload(key=key, ledger=self.ledger, content=content))

    def _unpark(self) -> None:
        """Number what waits for nothing any more, in order."""
        still: list[Outgoing] = []
        names: set[bytes] = set()
        for outgoing in self._parked:
            if outgoing.missing or (still and outgoing.refers_to(names)):
                still.append(outgoing)
                names.update(outgoing.names())
            else:
                self._outbox.push(outgoing)
        self._parked, self._parked_names = still, names

    def uploaded(self, key: bytes, digest: bytes) -> None:
        """The ledger has now what ``key`` names."""
        self._uploaded.add(key)
        for outgoing in self._parked:
            if key not in outgoing.missing:
                continue
            outgoing.missing -= {key}
            if isinstance(outgoing.command, Put) and outgoing.command.blob != digest:
                outgoing.command = msgspec.structs.replace(outgoing.command, blob=digest)
                outgoing.digest = command_digest(outgoing.command)
                for result in outgoing.results:
                    result.digest = outgoing.digest
        self._unpark()
        if key in self._lacking and self._lacking_for is not None:
            self._lacking.discard(key)
            if not self._lacking:
                self._lacking_for.lacked += 1
                self._send_again()

    def upload_failed(self, key: bytes, failure: Failure, out: list[object]) -> None:
        """What needs the blob that ``key`` names ends with ``failure``, and what needs that, with ArgumentFailed."""
        for outgoing in [outgoing for outgoing in self._parked if key in outgoing.missing]:
            self._fail_parked(outgoing, failure, out)
        self._unpark()
        if key in self._lacking and self._lacking_for is not None:
            self._give_up(self._lacking_for, failure, out)
        self._barriers.look(out)

    def _send_again(self) -> None:
        """The broker lacks nothing any more, as far as is known here: what it has not accepted goes again."""
        self._lacking, self._lacking_for = set(), None
        self._outbox.rewind()

    def _fail_parked(self, outgoing: Outgoing, failure: Failure, out: list[object]) -> None:
        """A parked command can't be sent: what has not ended of it ends with ``failure``, and so on with what needs
        it.
        """
        self._parked.remove(outgoing)
        names = set(outgoing.names())
        self._end_all(outgoing, failure, out)
        self._drop(outgoing, out)
        command = outgoing.command
        if isinstance(command, StorePlan):
            self._stored.discard(command.plan)
            self._uploaded.difference_update(outgoing.attached)
        for other in list(self._parked):
            needs = isinstance(other.command, Invoke) and other in self._kept and other.refers_to(names)
            if needs and (isinstance(command, StorePlan) or self._ends_unmade(other, out)):
                self._fail_parked(other, failure, out)

    def _ends_unmade(self, outgoing: Outgoing, out: list[object]) -> bool:
        """End what is to run on a value that the broker will never know. Whether nothing of the command is left."""
        command = outgoing.command
        if not isinstance(command, Invoke):
            return False
        for k, result in enumerate(outgoing.results):
            failure = None if result.ended else self._unmade.failure_of(command, k)
            if failure is not None:
                self._unmade.add(result, failure)
                self.end(result, _FAILED, out, failure=failure)
        return bool(outgoing.results) and not outgoing.open

    # --------------------------------------------------------------------------------------------- from the broker

    def knows_more(self, message: SessionOpened) -> bool:
        """Whether the same ledger has said since that it has taken more than ``message`` says."""
        return message.ledger == self.ledger and message.accepted < self._outbox.acknowledged

    def opened(self, message: SessionOpened, now: float, out: list[object]) -> None:
        """The broker has taken ``accepted`` commands of this session: go on from there, or start over where that is
        not our past.
        """
        self.max_message = message.max_message
        ledger, accepted = message.ledger, message.accepted
        if ledger != self.ledger or not self._outbox.acknowledged <= accepted <= self._outbox.last:
            if self.ledger:
                out.append(Log(level=30, event="ledger_changed", fields={"unended": len(self._kept)}))
            self.ledger = ledger
            self._start_over(accepted, out)
            return
        for n, failure in message.rejected.items():
            self.rejected(Rejected(n=n, failure=failure), out)
        self.accepted(accepted, now, out)
        self._send_again()
        for outgoing in self._parked:
            self._ask_for(outgoing, outgoing.missing, out)

    def _start_over(self, accepted: int, out: list[object]) -> None:
        """A ledger that knows nothing of us: what has not ended goes again, with the plans that it needs, numbered
        anew.
        """
        kept = list(self._kept)
        self._kept.clear()
        self._stored.clear()
        self._uploaded.clear()
        self._lacking, self._lacking_for = set(), None
        self._accepted.clear()
        self._parked, self._parked_names = [], set()
        self._outbox = Outbox(window=self._window, patience=self._patience, first=accepted + 1)
        for outgoing in kept:
            if isinstance(outgoing.command, StorePlan):
                # Goes again before whatever runs the plan. One that nobody runs yet must go too: its owner may wait
                # for nothing else.
                if outgoing.plan is not None and self._lacks(outgoing.plan):
                    self._store(outgoing.plan, out)
            elif outgoing.open or not (outgoing.results or outgoing.accepted or outgoing.command is NOTHING):
                outgoing.accepted, outgoing.n = False, 0
                outgoing.lacked = 0
                outgoing.missing = NO_KEYS if outgoing.upload is None else {outgoing.upload}
                self._kept[outgoing] = None
                self._admit(outgoing, out)
            else:
                self._discount(outgoing)
        self._barriers.start_over(self._kept)

    def accepted(self, n: int, now: float, out: list[object]) -> None:
        """All up to number ``n`` are in the ledger."""
        before = self._outbox.acknowledged
        self.busy_reason = ""
        for number, outgoing in enumerate(self._outbox.acknowledge(n, now), before + 1):
            outgoing.accepted = True
            self.bytes -= outgoing.size
            outgoing.size = 0
            if outgoing.open:
                outgoing.n = number
                self._accepted[number] = outgoing
            else:
                self._drop(outgoing, out)
            if outgoing is self._lacking_for:  # what the broker said was late, or somebody else has uploaded it
                self._send_again()
        if self._barriers:
            self._barriers.look(out)

    def busy(self, message: Busy, now: float) -> None:
        """The broker takes nothing for a while."""
        if message.n > self._outbox.acknowledged:
            self._outbox.hold(now + message.retry_ms / 1000)
            self.busy_reason = message.reason

    def lacking(self, message: Lacking, out: list[object]) -> None:
        """Upload what the broker named, then go on from that command."""
        outgoing = self._outbox.item(message.n)
        if outgoing is None or self._lacking:
            return  # an old one; or said again, while the upload is under way
        known: set[bytes] = set()
        if outgoing.upload is not None:
            known = {outgoing.upload}
        elif outgoing.plan is not None:
            known = {digest for digest in message.digests if digest in outgoing.plan.blobs}
            if isinstance(outgoing.command, Invoke) and outgoing.plan.plan in known:
                # The plan itself was dropped: whatever it consists of may be gone as well.
                known = set(outgoing.plan.blobs)
        if not known or outgoing.lacked >= _LACKING_LIMIT:
            names = ", ".join(digest.hex()[:12] for digest in message.digests)
            failure = Failure(code="LedgerLost", message=f"the broker lacks {names}, which can't be sent again")
            self._give_up(outgoing, failure, out)
            self._outbox.rewind()
            return
        self._lacking, self._lacking_for = known, outgoing
        self._uploaded.difference_update(known)
        self._outbox.hold(math.inf)
        self._ask_for(outgoing, known, out)

    def rejected(self, message: Rejected, out: list[object]) -> None:
        """Command ``message.n`` is taken and does nothing."""
        # On a new connection the broker says first up to where it has taken, and then which of these it has rejected.
        outgoing = self._outbox.item(message.n) or self._accepted.get(message.n)
        if outgoing is None or outgoing.command is NOTHING:
            return  # it was said before
        failure = message.failure
        command = outgoing.command
        if isinstance(command, StorePlan):
            self._stored.discard(command.plan)
            self._refused_plans[command.plan] = failure
        elif isinstance(command, Invoke) and failure.code == "PlanNotFound":
            failure = self._refused_plans.get(command.plan, failure)
        out.append(Log(level=30, event="command_rejected", fields={"code": failure.code, "reason": failure.message}))
        self._give_up(outgoing, failure, out)

    def link_lost(self) -> None:
        """What was sent and not acknowledged may be lost."""
        self._send_again()

    def due(self, now: float, out: list[object]) -> None:
        """Send what may be sent now."""
        if self._lacking:
            return
        for n, outgoing in self._outbox.due(now):
            message = Submit(n=n, devices=list(outgoing.devices), command=outgoing.command)
            out.append(Send(message=message, frames=outgoing.frames))

    def next_due(self) -> float | None:
        """When `due` may next send something by the passing of time alone."""
        return None if self._lacking else self._outbox.next_due()

    # --------------------------------------------------------------------------------------------- the end

    def end(
        self,
        result: Result,
        step: ResultInput,
        out: list[object],
        frames: Sequence[Frame] = (),
        infos: Sequence[ResultInfo] = (),
        failure: Failure | None = None,
    ) -> None:
        """One device's part of a command has ended; how, as `Result.end` takes it."""
        outgoing = result.command
        result.end(step, frames, infos, failure)
        del self._results[result.id]
        out.append(ResultEnded(result.id))
        if result.then is not None:
            self._follow(result, step, out)
        if outgoing is not None:
            outgoing.open -= 1
            if not outgoing.open and outgoing.accepted:
                self._drop(outgoing, out)

    def _follow(self, result: Result, step: ResultInput, out: list[object]) -> None:
        then, result.then = result.then, None
        if then is not None and step is not _FAILED:
            for released, k in then.released:
                released.release(k)
            self.submit(then, out)

    def fail_everything(self, failure: Failure, out: list[object]) -> None:
        """The session is over."""
        for result in list(self._results.values()):
            self.end(result, _FAILED, out, failure=failure)
        for outgoing in list(self._kept):
            self._drop(outgoing, out)
        self._barriers.look(out)
        self._parked, self._parked_names = [], set()
        self._outbox = Outbox(window=self._window, patience=self._patience)

    def _end_all(self, outgoing: Outgoing, failure: Failure, out: list[object]) -> None:
        for result in outgoing.results:
            if not result.ended:
                if failure.code != "IdConflict":  # else the broker knows the id, for another command
                    self._unmade.add(result, failure)
                self.end(result, _FAILED, out, failure=failure)

    def _give_up(self, outgoing: Outgoing, failure: Failure, out: list[object]) -> None:
        """End the results of a numbered command, and let its number carry nothing."""
        if outgoing is self._lacking_for:
            self._send_again()
        self._discount(outgoing)
        if outgoing.upload is not None:
            out.append(UploadEnded(outgoing.upload))
        outgoing.upload = None
        self._end_all(outgoing, failure, out)
        outgoing.empty()

    def _discount(self, outgoing: Outgoing) -> None:
        self.bytes -= outgoing.size
        outgoing.size = 0

    def _drop(self, outgoing: Outgoing, out: list[object]) -> None:
        del self._kept[outgoing]
        if outgoing.size:
            self._discount(outgoing)
        self._accepted.pop(outgoing.n, None)
        if outgoing.upload is not None:
            out.append(UploadEnded(outgoing.upload))
