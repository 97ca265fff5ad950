"""What the parts of the agent's core share: the settings, the time, and the instructions made so far."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from broker.protocol.effects import Log, Send
from broker.protocol.messages import Failure, Frame, LogValue, Message
from edge_agent.effects import AgentInstruction
from edge_agent.jobs import CHECKPOINT_SECONDS
from edge_agent.plan.format import OPS_VERSION

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "AgentConfig", "Desk", "failure"]

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class AgentConfig(Struct, frozen=True, kw_only=True):
    """What may be set about an agent; times in seconds, sizes in bytes."""

    runtimes: tuple[str, ...] = ()
    """What can run plans here: ``torch``, ``onnx``."""
    ops: int = OPS_VERSION
    """The version of the op registry that plans are checked with here."""
    labels: Mapping[str, str] = {}
    """What the owner says of the device."""
    idle_seconds: float = 60.0
    """After how long without work the worker is ended."""
    window: int = 64
    """How many jobs the worker may have in its pipe."""
    worker_deaths: int = 2
    """After how many deaths of the worker, while it ran a command, that command has failed."""
    start_failures: int = 3
    """After how many workers in a row that did not start the commands that wait for one have failed."""
    retry_seconds: float = 3.0
    """After how long a question without an answer is asked again; doubled each time, up to 20 times as long."""
    heartbeat_seconds: float = 10.0
    """How often to send a heartbeat, where the broker says nothing."""
    plan_count: int = 128
    """How many plans are kept at most."""
    plan_bytes: int = 256 << 20
    """How many bytes the parts of the plans kept may have in all."""
    store_quota: int = 4 << 30
    """How many bytes the plans and values of coordinators may have in the store; 0: as many as the disk takes. The
    owner's own data does not count."""
    max_memory: int = 0
    """How many bytes one run of a plan may take for its values; 0: no limit."""
    max_ops: int = 0
    """How many operations on numbers it may take; 0: no limit."""
    max_seconds: float = 0.0
    """How long it may take, or one step of a fold; 0: no limit."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """How much work of a fold the death of its worker costs at most."""
    cancel_grace: float = 5.0
    """How long a cancelled plan may take to come to the end of an op, before the worker is ended."""
    borrowed_count: int = 256
    """How many values of other devices are kept at most, for further commands that name them."""
    borrowed_bytes: int = 16 << 20
    """How many bytes these may have in all."""


class Desk:
    """Where the parts of the core put their instructions while one event is handled. ``now`` is that event's time."""

    __slots__ = ("instructions", "log_level", "now")

    def __init__(self, now: float, log_level: int) -> None:
        self.instructions: list[AgentInstruction] = []
        self.log_level = log_level
        self.now = now

    def do(self, instruction: AgentInstruction) -> None:
        """Tell the driver to do this, after what it was told before."""
        self.instructions.append(instruction)

    def send(self, message: Message, frames: tuple[Frame, ...] = ()) -> None:
        """Tell the driver to send this to the broker."""
        self.instructions.append(Send(message=message, frames=frames))

    def log(self, level: int, event: str, **fields: LogValue) -> None:
        """Log, if anybody wants to have this level. On the fast path, compare ``log_level`` first."""
        if level >= self.log_level:
            self.instructions.append(Log(level=level, event=event, fields=fields))


def failure(code: str, message: str, **details: LogValue) -> Failure:
    """A `Failure` with ``details`` by keyword."""
    return Failure(code=code, message=message, details=details)
