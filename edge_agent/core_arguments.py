"""The arguments of commands: who waits for which value, which values of other devices are at hand, what may be
dropped when.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from broker.protocol import messages as m
from broker.protocol.batches import batches
from broker.protocol.failures import argument_failed
from edge_agent.catalog import Catalog, Held
from edge_agent.core_blobs import BlobWants
from edge_agent.core_commands import Command
from edge_agent.core_desk import WARNING, AgentConfig, Desk, failure
from edge_agent.effects import AdoptTensor, DropFiles
from edge_agent.jobs import File, Operand, Source, as_source

__all__ = ["Arguments"]


_SUPPLIES = 4
"""How often a value may be supplied as a blob that can't be had, before it counts as lost."""


class _Need:
    """A value that must come from elsewhere."""

    __slots__ = ("again_at", "asked", "coming", "failures")

    def __init__(self, now: float) -> None:
        self.again_at = now
        self.asked = 0
        self.coming = False
        self.failures = 0


class Arguments:
    """Values by id, for commands that name them.

    ``arrived(command)`` is called when nothing of a command is missing any more; ``failed(command, failure)`` when
    one of its arguments has ended without a value.
    """

    def __init__(
        self,
        desk: Desk,
        catalog: Catalog,
        blobs: BlobWants,
        config: AgentConfig,
        arrived: Callable[[Command], None],
        failed: Callable[[Command, m.Failure], None],
    ) -> None:
        self._desk = desk
        self._catalog = catalog
        self._blobs = blobs
        self._config = config
        self._arrived = arrived
        self._failed = failed
        self._waiting: dict[bytes, list[Command]] = {}
        self._needs: dict[bytes, _Need] = {}
        self._uses: dict[bytes, int] = {}
        self._releasing: set[bytes] = set()
        self._borrowed: OrderedDict[bytes, tuple[Source, int]] = OrderedDict()  # and its size
        self._borrowed_bytes = 0

    # ------------------------------------------------------------------------------------------- taking a command

    def take(self, command: Command, producing: Mapping[bytes, Command]) -> m.Failure | None:
        """Look for what ``command`` names; `Command.missing` says how many are not here. ``producing``: who will make
        which id on this device. A failure: it can never run.
        """
        body = command.body
        assert isinstance(body, m.Invoke)
        frames, uses, releasing, find = 0, self._uses, self._releasing, self._catalog.find
        for place, argument in enumerate(body.args):
            if type(argument) is bytes:
                uses[argument] = uses.get(argument, 0) + 1
                if argument in releasing or ((maker := producing.get(argument)) and argument in (maker.dropped or ())):
                    self._forget_uses(body.args[place + 1 :])
                    return _argument_failed(argument, failure("ResultReleased", f"{argument.hex()} was released"))
                if find(argument) is None and argument not in self._borrowed:
                    self._wait(command, argument, here=argument in producing)
            elif argument is None:
                frames += 1
        if frames != len(command.frames):
            said = f"expected {frames} tensors with the command, got {len(command.frames)}"
            return failure("ArgumentMismatch", said)
        return None

    def _forget_uses(self, arguments: Iterable[m.Argument]) -> None:
        """Count arguments that were not looked at, so that `leave` may count all of them down."""
        for argument in arguments:
            if type(argument) is bytes:
                self._uses[argument] = self._uses.get(argument, 0) + 1

    def _wait(self, command: Command, id: bytes, *, here: bool) -> None:
        waiting = self._waiting.setdefault(id, [])
        if command in waiting:
            return  # the same value stands in two places
        waiting.append(command)
        command.missing += 1
        if not here and id not in self._needs:
            self._needs[id] = _Need(self._desk.now)

    def look_again(self, command: Command, producing: Mapping[bytes, Command]) -> None:
        """A value was here when ``command`` was taken, and is not any more: its owner has deleted it, or it could not
        be written. Wait for it as for one of another device: the broker may have it, or knows why there is none.
        """
        body = command.body
        assert isinstance(body, m.Invoke)
        for argument in body.args:
            if type(argument) is bytes and self.source(argument) is None:
                self._wait(command, argument, here=argument in producing)

    def operands(self, command: Command) -> tuple[list[Operand], list[bytes]] | m.Failure | None:
        """What to run the command on; and, of a fold, the names of it, as in `RunJob.names`. A failure: a tag matches
        none or several. None: what was here is not any more, see `look_again`.
        """
        body = command.body
        assert isinstance(body, m.Invoke)
        operands: list[Operand] = []
        names: list[bytes] = []
        begun: dict[int, list[Held]] = {}
        frames = iter(command.frames)
        if body.fold is not None:
            names = [argument if type(argument) is bytes else b"" for argument in body.args]
            begun = self._begun(body)
        for place, argument in enumerate(body.args):
            if type(argument) is bytes:
                source = self.source(argument)
                if source is None:
                    return None
                operands.append(source)
            elif argument is None:
                operands.append(bytes(next(frames)))
            elif isinstance(argument, list):
                found = begun.get(place) or self._catalog.with_tags(argument)
                if len(found) != 1:
                    return _tag_failure(argument, len(found))
                operands.append(as_source(found[0].source, found[0].check))
                if names:
                    names[place] = found[0].id
            else:
                operands.append(argument)
        return operands, names

    def _begun(self, body: m.Invoke) -> dict[int, list[Held]]:
        """What the tags among the arguments of a fold meant when it began, if it may go on from there: since then a
        data set may have grown. All of them, or none.
        """
        names = self._catalog.folded(body.id)
        if names is None or len(names) != len(body.args):
            return {}
        tagged = [place for place, argument in enumerate(body.args) if isinstance(argument, list)]
        found = {place: self._catalog.find(names[place]) for place in tagged}
        return {place: [held] for place, held in found.items() if held is not None and None not in found.values()}

    def uses(self, id: bytes) -> bool:
        """Whether a command that has not ended names ``id``."""
        return id in self._uses

    def source(self, id: bytes) -> Source | None:
        """Where the value of ``id`` is."""
        held = self._catalog.find(id)
        if held is not None:
            where = held.source
            return where if type(where) is bytes else as_source(where, held.check)
        borrowed = self._borrowed.get(id)
        if borrowed is None:
            return None
        self._borrowed.move_to_end(id)
        return borrowed[0]

    def leave(self, command: Command) -> list[bytes]:
        """The command has ended: it waits for nothing, and uses nothing. Returns released values that nobody uses
        now.
        """
        body = command.body
        if not isinstance(body, m.Invoke):
            return []
        free: list[bytes] = []
        used = self._uses
        for argument in body.args:
            if type(argument) is not bytes:
                continue
            uses = used[argument] - 1
            if uses:
                used[argument] = uses
            else:
                del used[argument]
                if argument in self._releasing:
                    self._releasing.discard(argument)
                    free.append(argument)
        if command.missing:
            command.missing = 0
            for argument in body.args:
                if type(argument) is bytes and command in self._waiting.get(argument, ()):
                    self._waiting[argument].remove(command)
                    if not self._waiting[argument]:
                        del self._waiting[argument]
                        self._needs.pop(argument, None)
        return free

    # ------------------------------------------------------------------------------------------- values come, or don't

    def here(self, id: bytes) -> None:
        """``id`` has a value now."""
        if id not in self._waiting:
            return
        self._needs.pop(id, None)
        for command in self._waiting.pop(id):
            command.missing -= 1
            if not command.missing:
                self._arrived(command)

    def without_value(self, id: bytes, why: m.Failure) -> None:
        """``id`` has ended, and will never have a value here."""
        self._needs.pop(id, None)
        for command in self._waiting.pop(id, ()):
            self._failed(command, _argument_failed(id, why))

    def supplied(self, message: m.Supply, frames: tuple[m.Frame, ...]) -> None:
        """The broker's answer to `NeedValues`."""
        values = iter(frames)
        for outcome in message.outcomes:
            id = outcome.id
            if outcome.failure is not None:
                self.without_value(id, outcome.failure)
            elif outcome.blob is not None:
                need = self._needs.get(id)
                if need is not None and not need.coming:
                    need.coming = True
                    self._blobs.want(outcome.blob, partial(self._blob_arrived, id), size=outcome.size)
            elif (frame := next(values, None)) is None:
                self._desk.log(WARNING, "supply_incomplete", result=id.hex())
            elif id in self._needs:
                self._borrow(id, bytes(frame), len(frame))

    def _blob_arrived(self, id: bytes, _digest: bytes, result: bytes | str | m.Failure) -> None:
        need = self._needs.get(id)
        if need is None:
            return
        if not isinstance(result, m.Failure):
            self._desk.do(AdoptTensor(id=id, source=result))
            return
        need.failures += 1
        if result.code == "StoreFull" or need.failures >= _SUPPLIES:
            self.without_value(id, result)
        else:  # the broker has dropped it since, and gets it anew from whoever has the value
            need.coming = False
            need.again_at = self._desk.now + self._config.retry_seconds * (need.failures - 1)

    def adopted(self, held: Held) -> bool:
        """A value of another device is here as a file. False: nobody waits for it, or has it."""
        if held.id not in self._needs:
            return held.id in self._borrowed  # it came twice, into the same file
        self._borrow(held.id, as_source(held.source, held.check), held.nbytes)
        return True

    def unfit(self, id: bytes, why: m.Failure, *, gone: bool) -> None:
        """What came for ``id`` is no tensor. ``gone``: it may be one, and was dropped too early."""
        need = self._needs.get(id)
        if need is not None and gone:
            need.coming = False  # ask again
        else:
            self.without_value(id, why)

    def _borrow(self, id: bytes, source: Source, size: int) -> None:
        self._borrowed[id] = source, size
        self._borrowed_bytes += size
        self.here(id)
        config = self._config
        if len(self._borrowed) > config.borrowed_count or self._borrowed_bytes > config.borrowed_bytes:
            for old in [old for old in self._borrowed if old not in self._uses]:
                self._return(old)
                if len(self._borrowed) <= config.borrowed_count and self._borrowed_bytes <= config.borrowed_bytes:
                    break

    def _return(self, id: bytes) -> None:
        source, size = self._borrowed.pop(id)
        self._borrowed_bytes -= size
        if isinstance(source, File):
            self._desk.do(DropFiles(paths=[source.path]))

    # ------------------------------------------------------------------------------------------- release

    def release(self, id: bytes) -> bool:
        """``id`` may be dropped: True if now, False if a command taken before still uses it, or if it is not here."""
        held = self._catalog.find(id)
        if held is None:
            if id in self._borrowed and id not in self._uses:
                self._return(id)
            return False
        if held.own:
            self._desk.log(WARNING, "release_refused", result=id.hex(), reason="it is the device's own")
            return False
        return self.let_go(id)

    def let_go(self, id: bytes) -> bool:
        """``id``, which is a result of this device, may be dropped: True if now, False if a command still uses it."""
        if id in self._uses:
            self._releasing.add(id)
            return False
        return True

    # ------------------------------------------------------------------------------------------- time

    def registered(self) -> None:
        """There is a broker to be asked (again): at once."""
        for need in self._needs.values():
            need.again_at, need.asked = self._desk.now, 0

    def flush(self, *, registered: bool) -> None:
        """Ask for what is due."""
        if not self._needs or not registered:
            return
        now = self._desk.now
        due = [id for id, need in self._needs.items() if not need.coming and now >= need.again_at]
        for id in due:
            need = self._needs[id]
            need.again_at = now + self._config.retry_seconds * (1 << min(need.asked, 4))
            need.asked += 1
        for some in batches(due):
            self._desk.send(m.NeedValues(ids=some))

    def next_timer(self) -> float | None:
        """When something is due to be asked for again."""
        return min((need.again_at for need in self._needs.values() if not need.coming), default=None)


def _argument_failed(id: bytes, why: m.Failure) -> m.Failure:
    """The failure of a command whose argument ``id`` has ended without a value, with the details of what began it."""
    named = argument_failed(id, why)  # its own details first: where there are too many, the last are cut
    return m.Failure(code=named.code, message=named.message, details={**named.details, **why.details, **named.details})


def _tag_failure(tags: list[str], count: int) -> m.Failure:
    named = ", ".join(tags)
    if count == 0:
        return failure("TagNotFound", f"no tensor on this device carries {named}", tags=named)
    said = f"expected one tensor on this device that carries {named}, got {count}"
    return failure("TagAmbiguous", said, tags=named, count=count)
