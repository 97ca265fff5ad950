"""What became of each invocation, as far as the session knows.

The core's table holds what has not ended. An ended `Result` leaves it at once and lives on in the pointers that refer
to it, so memory is bounded by what is under way and by what the user holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.protocol.errors import InvalidTransition
from broker.protocol.ids import nth
from broker.protocol.messages import Failure, Frame, ResultInfo
from coordinator.core_tables import RESULT, ResultInput, ResultState

if TYPE_CHECKING:
    from coordinator.build_errors import SourceLine
    from coordinator.core_events import SubmitCommand
    from coordinator.core_outgoing import Outgoing

__all__ = ["Result"]


_PENDING = ResultState.PENDING


class Result:
    """The outputs of one command on one device: ids ``id``, ``id + 1``, ... Only the core changes it; anybody may read.

    ``plan``: the id of the plan that it comes from, empty for anything else. ``frames``: the values in
    `ResultState.INLINE`, None for one that was released. ``infos``: dtype, shape and size of each output, in
    `ResultState.REMOTE`. ``made``: a command is known to have made it; else it may be a tensor of the device's own,
    which stays when it is released. ``asked_at``: of an operator on a pointer the user's line, which its plan doesn't
    know; set by whoever submits the command.
    """

    __slots__ = (
        "asked_at",
        "command",
        "device",
        "digest",
        "failure",
        "first",
        "frames",
        "id",
        "infos",
        "made",
        "outputs",
        "plan",
        "released",
        "state",
        "then",
    )

    def __init__(
        self,
        id: bytes,
        device: str,
        outputs: int = 1,
        plan: bytes = b"",
        command: Outgoing | None = None,
        first: bytes | None = None,
    ) -> None:
        self.id = id
        self.first = first or id
        self.device = device
        self.outputs = outputs
        self.plan = plan
        self.command = command
        self.digest = b""
        self.state = _PENDING
        self.frames: Sequence[Frame | None] = ()
        self.infos: Sequence[ResultInfo] = ()
        self.failure: Failure | None = None
        self.made = True
        self.released: set[int] | None = None
        self.asked_at: SourceLine | None = None
        self.then: SubmitCommand | None = None  # what to submit when there is a value

    @classmethod
    def known(cls, id: bytes, *, device: str, infos: Sequence[ResultInfo], plan: bytes = b"") -> Result:
        """One that is on its device already: found by its tags, or by asking."""
        result = cls(id, device=device, outputs=len(infos), plan=plan)
        result.made = False
        result.end(ResultInput.READY_REMOTE, infos=infos)
        return result

    @property
    def ended(self) -> bool:
        """Whether it has a value, or never will have."""
        return self.state is not _PENDING

    @property
    def ids(self) -> list[bytes]:
        """The id of each output."""
        return [nth(self.id, k) for k in range(self.outputs)]

    def end(
        self,
        step: ResultInput,
        frames: Sequence[Frame] = (),
        infos: Sequence[ResultInfo] = (),
        failure: Failure | None = None,
    ) -> None:
        """Take the one step that the table has. Raises `InvalidTransition` if it was taken before."""
        after = RESULT.get((self.state, step))
        if after is None:
            raise InvalidTransition(f"result {self.id.hex()} on {self.device}", self.state.value, step.value, ())
        self.frames = frames
        if self.released:
            for k in self.released:
                self._drop_frame(k)
        self.infos = infos
        self.failure = failure
        self.command = None
        self.state = after  # last: who sees the new state without the lock finds the rest in place

    def release(self, k: int) -> None:
        """Output ``k`` was released by this session: its value is not handed out any more."""
        if self.released is None:
            self.released = set()
        self.released.add(k)
        self._drop_frame(k)

    def _drop_frame(self, k: int) -> None:
        if self.frames:
            self.frames = [None if j == k else frame for j, frame in enumerate(self.frames)]
