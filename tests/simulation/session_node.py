"""A simulated coordinator: the real session core, and a driver that uploads by magic."""

from __future__ import annotations

import hashlib

from broker.protocol.messages import Fetch, Frame, StatusReport, Values
from coordinator.core import SessionConfig, SessionCore
from coordinator.core_events import (
    Answered,
    Ask,
    Reconnect,
    ResultEnded,
    SendPlan,
    SessionEnded,
    SessionReady,
    StreamLevel,
    SubmitCommand,
    Submitted,
    Upload,
    Uploaded,
    UploadEnded,
)
from coordinator.core_results import Result
from tests.simulation.broker_node import BrokerNode
from tests.simulation.network import Network
from tests.simulation.nodes import Client
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["SessionNode"]


class SessionNode(Client):
    """A coordinator. ``results`` are all that its user has pointers to."""

    def __init__(self, world: World, name: str, network: Network, broker: BrokerNode, promises: Promises) -> None:
        super().__init__(world, name, network, broker)
        self._broker_node = broker
        self._promises = promises
        self.session = SessionCore(SessionConfig(), incarnation=world.random_bytes(8))
        self.results: dict[bytes, Result] = {}
        self.answers: dict[int, Answered] = {}
        self._execute |= {
            Submitted: self._submitted,
            ResultEnded: self._ended,
            Answered: self._answered,
            Upload: self._upload,
            UploadEnded: lambda _: None,
            Reconnect: lambda _: self.disconnect(),
            SessionReady: lambda _: None,
            StreamLevel: lambda _: None,
            SessionEnded: self._session_ended,
        }
        self.session.log_level = 10

    def begin(self) -> None:
        """The coordinator starts."""
        self.start(self.session)
        self.connect()

    def submit(self, event: SubmitCommand | SendPlan) -> None:
        """Its user does something."""
        if isinstance(event, SubmitCommand):
            self.world.tell(self.name, f"   user: {event.command!r} on {event.devices}"[:300])
        self.feed(event)

    def _submitted(self, submitted: Submitted) -> None:
        for result in submitted.results:
            self.results[result.id] = result

    def fetch(self, ids: list[bytes]) -> int:
        """Ask for the values of ``ids``, all on one device; the number of the request."""
        r = self.session.take_request()
        self.feed(Ask(request=Fetch(r=r, ids=ids)))
        return r

    def _ended(self, ended: ResultEnded) -> None:
        result = self.results.get(ended.id)
        if result is not None:
            self._promises.end(ended.id, frames=result.frames, failure=result.failure)

    def _answered(self, answered: Answered) -> None:
        self.answers[answered.r] = answered
        message = answered.message
        if isinstance(message, StatusReport):
            self._promises.status(message.entries)
        elif isinstance(message, Values):
            self._values(message, answered.frames)

    def _values(self, message: Values, frames: tuple[Frame, ...]) -> None:
        rest = iter(frames)
        for outcome in message.outcomes:
            if outcome.failure is None and outcome.blob is None:
                self._promises.output(outcome.id, next(rest))
            else:
                self._promises.no_output(outcome.id, outcome.failure)

    def _upload(self, upload: Upload) -> None:
        content = upload.content
        assert content is not None, "no user of a simulation sends a tensor by blob"

        def done() -> None:
            digest = hashlib.sha256(content).digest()
            self._broker_node.keep_blob(digest, bytes(content))
            self.feed(Uploaded(key=upload.key, digest=digest, ledger=upload.ledger))

        self.later(0.05 * self.world.random.random(), done)

    def _session_ended(self, ended: SessionEnded) -> None:
        self._promises.broken("a session lives", f"{self.name} ended with {ended.failure}")
