"""How commands end: with values that are kept and announced, or without; and the release of what they left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from broker.protocol import messages as m
from broker.protocol.failures import shortened
from edge_agent import effects as e
from edge_agent.catalog import Ended, Held
from edge_agent.core_arguments import Arguments
from edge_agent.core_commands import Command, StartQueue
from edge_agent.core_desk import DEBUG, WARNING, Desk, failure
from edge_agent.core_link import Link
from edge_agent.core_plans import Plans
from edge_agent.core_quota import Quota
from edge_agent.core_tags import TagIndex
from edge_agent.transitions import ANNOUNCED, RUNNING, STORING, WAITING_PLAN

__all__ = ["Ends"]


class Ends:
    """``commands`` and ``producing`` belong to `edge_agent.core_runs.Runs`; ``failing`` are commands that fail for
    what became of others.
    """

    def __init__(
        self,
        desk: Desk,
        link: Link,
        tags: TagIndex,
        quota: Quota,
        arguments: Arguments,
        plans: Plans,
        queue: StartQueue,
        *,
        commands: dict[bytes, Command],
        producing: dict[bytes, Command],
        failing: deque[tuple[Command, m.Failure]],
    ) -> None:
        self._desk = desk
        self._link = link
        self._tags = tags
        self._quota = quota
        self._arguments = arguments
        self._plans = plans
        self._queue = queue
        self._commands = commands
        self._producing = producing
        self._failing = failing

    # ------------------------------------------------------------------------------------------- with values

    def store(self, command: Command, values: tuple[Held, ...], *, inline: bool = False) -> None:
        """The command has values: keep them, and announce them; at once, if they ride in the announcement."""
        nbytes, found = 0, []
        for held in values:
            nbytes += held.nbytes
            if isinstance(held.source, bytes):
                found.append(held.source)
        why = self._quota.room_for(nbytes, len(values))
        if why is not None:
            files = [held.source for held in values if isinstance(held.source, str)]
            if files:
                self._desk.do(e.DropFiles(paths=files))
            self.fail(command, why)
            return
        inline = inline and nbytes <= m.INLINE_RESULT_BYTES
        frames: tuple[m.Frame, ...] = ()
        tags = command.body.tags
        if inline:
            event = m.ResultReady(id=command.id, digest=command.digest, inline=True)
            frames = tuple(found)
        else:
            event = m.ResultReady(id=command.id, digest=command.digest, infos=[held.info for held in values])
        durable = not inline or bool(tags)
        ended = Ended(id=command.id, event=event, outputs=command.outputs)
        left = command.deadline - self._desk.now
        self._desk.do(e.KeepResult(ended=ended, values=values, durable=durable, left=left))
        if tags:
            for changed in self._tags.added(values):
                self._link.announce(changed)
        if durable:
            command.event = event
            command.move(STORING)
        else:
            command.move(ANNOUNCED)
            self._announce(event, frames)
        self._leave(command)
        if durable:
            command.frames = frames  # to be announced with the event, once that is on the disk
        producing, arguments = self._producing, self._arguments
        for held in values:
            producing.pop(held.id, None)
            arguments.here(held.id)
        if command.dropped:
            self.drop([id for id in command.dropped if self._arguments.let_go(id)])

    def kept(self, event: e.Kept) -> None:
        """Values are on the disk: announce them."""
        for id in event.ids:
            command = self._commands.get(id)
            if command is not None and command.step is STORING and command.event is not None:
                command.move(ANNOUNCED)
                frames, command.frames = command.frames, ()
                self._announce(command.event, frames)

    def keep_failed(self, event: e.KeepFailed) -> None:
        """Values could not be kept: the command has failed after all."""
        for id in event.ids:
            command = self._commands.get(id)
            if command is not None and command.step is STORING:
                self._untag(command.ids or (id,))
                self._record_end(command, m.ResultFailed(id=id, digest=command.digest, failure=event.failure))

    def tell_unwritten(self, command: Command) -> None:
        """How it ended could be neither written nor told: an end without a value is remembered, a value is gone."""
        if not self.tell_again(command):
            said = f"how {command.id.hex()} ended could not be written on the device, and the broker was away"
            event = m.ResultFailed(id=command.id, digest=command.digest, failure=failure("StoreFull", said))
            self._desk.log(WARNING, "end_lost", result=command.id.hex())
            self._keep_end(command, event)

    def tell_again(self, command: Command) -> bool:
        """The end of a command could not be written: write and announce it anew. False: it had a value."""
        event = command.event
        if event is None or isinstance(event, m.ResultReady):
            return False
        self._keep_end(command, event)
        return True

    # ------------------------------------------------------------------------------------------- without

    def fail(self, command: Command, why: m.Failure) -> None:
        """It has failed."""
        why = shortened(why)
        if self._desk.log_level <= WARNING:
            self._desk.log(WARNING, "invocation_failed", result=command.id.hex(), code=why.code, reason=why.message)
        self._end(command, m.ResultFailed(id=command.id, digest=command.digest, failure=why), why)

    def fail_all(self) -> None:
        """One failure after another: a chain of ten thousand commands must not be ten thousand calls deep."""
        while self._failing:
            command, why = self._failing.popleft()
            if not command.ended:
                self.fail(command, why)

    def expire(self, command: Command) -> None:
        """Its time is over."""
        when = "while it ran" if command.step is RUNNING else "before it was run"
        why = failure("DeadlineExpired", f"{command.id.hex()} has expired {when}")
        self._end(command, m.Expired(id=command.id, digest=command.digest), why)

    def cancel(self, command: Command) -> None:
        """Nobody wants it any more."""
        why = failure("InvocationCancelled", f"{command.id.hex()} was cancelled")
        self._end(command, m.Cancelled(id=command.id, digest=command.digest), why)

    def _end(self, command: Command, event: m.Event, why: m.Failure) -> None:
        """The command ends without a value."""
        if command.step is WAITING_PLAN:
            self._queue.unpark()  # what came later in its session waits behind it no longer
        self._record_end(command, event)
        self._leave(command)
        for id in command.ids or (command.id,):
            if self._producing.get(id) is command:
                del self._producing[id]
                self._arguments.without_value(id, why)

    def _record_end(self, command: Command, event: m.Event) -> None:
        command.move(ANNOUNCED)
        self._keep_end(command, event)

    def _keep_end(self, command: Command, event: m.Event) -> None:
        command.event = event
        left = command.deadline - self._desk.now
        self._desk.do(e.KeepResult(ended=Ended(id=command.id, event=event, outputs=command.outputs), left=left))
        self._announce(event)

    def _announce(self, event: m.Event, frames: tuple[m.Frame, ...] = ()) -> None:
        self._link.announce(event, frames)
        if self._desk.log_level <= DEBUG and not isinstance(event, m.TagsChanged):
            self._desk.log(
                DEBUG, "result_announced", result=event.id.hex(), kind=type(event).__name__, inline=bool(frames)
            )

    def _leave(self, command: Command) -> None:
        """It needs neither arguments nor plan any more."""
        free = self._arguments.leave(command)
        if free:
            self.drop(free)
        command.frames = ()
        if command.plan is not None:
            self._plans.release(command.plan)

    # ------------------------------------------------------------------------------------------- release

    def release(self, ids: Iterable[bytes]) -> None:
        """These may be dropped: now, or when what uses them or makes them has ended."""
        free: list[bytes] = []
        for id in ids:
            maker = self._producing.get(id)
            if maker is not None:
                maker.dropped = {*(maker.dropped or ()), id}
            elif self._arguments.release(id):
                free.append(id)
        self.drop(free)

    def drop(self, ids: list[bytes]) -> None:
        """Drop values, which nobody uses, and tell the broker if they were tagged."""
        if not ids:
            return
        self._desk.do(e.DropValues(ids=ids))
        self._untag(ids)

    def _untag(self, ids: Iterable[bytes]) -> None:
        for gone in self._tags.dropped(ids):
            self._link.announce(gone)
