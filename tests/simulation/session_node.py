"""A simulated coordinator: the real session core, and a driver that uploads by magic.

A `SessionNode` is one incarnation. Of a named session another one may take its place.
"""

from __future__ import annotations

import hashlib

from broker.protocol.bundles import reads_bundles
from broker.protocol.effects import Send
from broker.protocol.messages import AskStatus, Fetch, Frame, StatusReport, Submit, Values
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
    Watch,
)
from coordinator.core_results import Result
from tests.simulation.broker_node import BrokerNode
from tests.simulation.fakes import frame_of
from tests.simulation.network import Connection, Network
from tests.simulation.nodes import READS_BUNDLES, READS_NO_BUNDLES, Client
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["SessionNode"]


class SessionNode(Client):
    """A coordinator. ``session``: its name, perhaps empty. ``results`` are all that its user has pointers to."""

    # None says `NEWS`: what a session makes of a late refusal of such a message, the tests of its core say.
    versions = (READS_NO_BUNDLES, *(READS_BUNDLES,) * 5)

    def __init__(
        self, world: World, name: str, network: Network, broker: BrokerNode, promises: Promises, *, session: str = ""
    ) -> None:
        super().__init__(world, name, network, broker, promises)
        self._broker_node = broker
        self.session_name = session
        self.opened = False
        self.fenced = False  # whether another incarnation may have taken its place
        self.session = SessionCore(SessionConfig(session=session), incarnation=world.random_bytes(8))
        self.results: dict[bytes, Result] = {}
        self._again: dict[bytes, Result] = {}  # of commands whose ids were taken
        self.answers: dict[int, Answered] = {}
        self.contents: dict[bytes, bytes] = {}
        """The files of large tensors that its user sends, by the ids of the commands."""
        self._asked_at: dict[int, float] = {}
        self._execute |= {
            Submitted: self._submitted,
            ResultEnded: self._ended,
            Answered: self._answered,
            Upload: self._upload,
            UploadEnded: lambda _: None,
            Reconnect: lambda _: self.disconnect(),
            SessionReady: self._ready,
            StreamLevel: lambda _: None,
            SessionEnded: self._session_ended,
        }
        self.session.log_level = 10
        promises.session(self.session.incarnation, session)

    def begin(self) -> None:
        """The coordinator starts."""
        self.start(self.session)
        self.connect()

    @property
    def living(self) -> bool:
        """Whether its process runs, and its session is its own."""
        return self.core is not None and self.session.failure is None

    def kill(self) -> None:
        """The coordinator is killed."""
        if self.living:
            self.world.tell(self.name, "   killed")
            self.crash()
            self._promises.session_over(self.session.incarnation)

    def _present(self, connection: Connection) -> None:
        connection.incarnation = self.session.incarnation

    def _send(self, send: Send) -> None:
        if type(send.message) is Submit:
            self._promises.numbered(self.session.incarnation, send.message)
        super()._send(send)

    # ------------------------------------------------------------------------------------------ what its user does

    def submit(self, event: SubmitCommand | SendPlan) -> None:
        """Its user does something."""
        if isinstance(event, SubmitCommand):
            self.world.tell(self.name, f"   user, on {event.devices}: ", event.command)
        self.feed(event)

    def take_up(self, id: bytes, device: str, first: bytes) -> None:
        """Learn what becomes of an output of an earlier incarnation's, or of another session's, command."""
        self.feed(Watch(id=id, device=device, command=first))
        result = self.session.result(id)
        assert result is not None
        self.results[id] = result

    def fetch(self, ids: list[bytes]) -> int:
        """Ask for the values of ``ids``, all on one device; the number of the request."""
        r = self.session.take_request()
        self.feed(Ask(request=Fetch(r=r, ids=ids)))
        return r

    def ask(self, ids: list[bytes]) -> int:
        """Ask for the status of ``ids``; the number of the request."""
        r = self.session.take_request()
        self._asked_at[r] = self.world.now
        self.feed(Ask(request=AskStatus(r=r, ids=ids)))
        return r

    # ------------------------------------------------------------------------------------------ what it learns

    def _ready(self, ready: SessionReady) -> None:
        self.opened = True
        self.out.bundling = reads_bundles(ready.opened.version)

    def _submitted(self, submitted: Submitted) -> None:
        for result in submitted.results:
            mine = self._again if result.id in self.results else self.results
            mine[result.id] = result

    def _ended(self, ended: ResultEnded) -> None:
        result = self._again.pop(ended.id, None) or self.results.get(ended.id)
        if result is None or (self.session.failure is not None and result.failure == self.session.failure):
            return  # its session is over: whoever took it up learns what became of the rest
        self._promises.ended(ended.id, frames=result.frames, failure=result.failure)

    def _answered(self, answered: Answered) -> None:
        self.answers[answered.r] = answered
        message = answered.message
        if isinstance(message, StatusReport):
            self._promises.status(message.entries, asked_at=self._asked_at[answered.r])
        elif isinstance(message, Values):
            self._values(message, answered.frames)

    def _values(self, message: Values, frames: tuple[Frame, ...]) -> None:
        rest = iter(frames)
        for outcome in message.outcomes:
            if outcome.failure is None and outcome.blob is None:
                self._promises.output(outcome.id, next(rest))
            elif outcome.blob is not None:
                self._fetch_blob(outcome.id, outcome.blob)
            else:
                self._promises.no_output(outcome.id, outcome.failure)

    def _fetch_blob(self, id: bytes, blob: bytes) -> None:
        """A value has come to the broker as a blob. It may have gone again: then its user would ask once more."""
        content = self._broker_node.disk.blobs.get(blob)
        if content is not None:
            self._promises.output(id, frame_of(content))
        elif self.network.is_calm:
            self._promises.broken("a value is kept until it is released", f"{id.hex()} is no blob at the broker")

    def _upload(self, upload: Upload) -> None:
        content = self.contents[upload.key] if upload.content is None else upload.content
        digest = hashlib.sha256(content).digest()

        def done() -> None:
            if self._broker_node.keep_blob(digest, bytes(content)):
                self.feed(Uploaded(key=upload.key, digest=digest, ledger=upload.ledger))
            else:
                self.later(0.5, done)

        self.later(0.05 * self.world.random.random(), done)

    def _session_ended(self, ended: SessionEnded) -> None:
        if not self.fenced or ended.failure.code != "ConnectionRefused":
            self._promises.broken("a session lives", f"{self.name} ended with {ended.failure}")
        self.world.tell(self.name, "   fenced")
        self.crash()
        self._promises.session_over(self.session.incarnation)
