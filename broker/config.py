"""How a broker behaves: intervals, windows, limits and retention, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.framing import MESSAGE_LIMIT
from broker.protocol.messages import DEFAULT_DEADLINE_MS

__all__ = ["GROUP_COMMIT", "BrokerConfig"]

GROUP_COMMIT = 0.01
"""`BrokerConfig.commit_within` of a server: relaying waits for no commit, and each acknowledgement wakes a process."""

_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Times in seconds unless the name says ``ms``, sizes in bytes. Every table of the broker is bounded by one
    of these.
    """

    max_message: int = MESSAGE_LIMIT
    """The largest message, all frames. A larger one is refused."""

    # presence
    heartbeat_ms: int = 5000
    """How often peers say that they live, at most ..."""
    heartbeats_per_second: int = 2000
    """... and how many devices in all may say so in a second: the more there are, the longer each may wait."""
    silent_heartbeats: int = 3
    """A device that is silent for so many heartbeats is offline."""

    # numbered streams
    window: int = 1024
    """How many numbered messages to one peer may be without acknowledgement."""
    window_bytes: int = 8 << 20
    """... and how many bytes of payload, the first message always allowed."""
    patience: float = 5.0
    """After how long without an acknowledgement a stream goes back."""
    commit_within: float = 0.0
    """How long writes may wait for others, so that one commit and one acknowledgement serve many; the server sets
    `GROUP_COMMIT` ..."""
    commit_writes: int = 512
    """... and how many of them don't wait any longer."""
    busy_peer_pause: float = 0.1
    """How long a stream rests whose peer reads too slowly."""
    device_commands: int = 1024
    """How many commands that have not ended a device is given at a time; the others wait in its mailbox."""
    max_deliveries: int = 5
    """A command that was delivered so often, to as many starts of the agent, and did not end, is failed."""

    # what waits
    mailbox_commands: int = 20_000
    """Unended commands of one device."""
    mailbox_bytes: int = 256 << 20
    """... and their payload."""
    session_commands: int = 100_000
    """Results of one session that have not ended, or that it has not seen."""
    total_commands: int = 500_000
    """The same of all sessions."""
    total_bytes: int = 1 << 30
    """Payload of all unended commands."""
    fan_out: int = 20_000
    """Devices of one command."""
    outputs: int = 4096
    """Results of one invocation."""
    busy_ms: int = 200
    """When a session may come again that was told `Busy`."""

    # what is kept
    default_deadline_ms: int = DEFAULT_DEADLINE_MS
    max_deadline_ms: int = 90 * _DAY_MS
    retention_ms: int = 7 * _DAY_MS
    """How long after its deadline the record of a result is kept."""
    ended_results: int = 250_000
    """The most records of ended results; beyond it the oldest that their sessions have seen are forgotten early."""
    value_bytes: int = 256 << 20
    """The most bytes of inline values in those records; beyond it as above."""
    restart_grace: float = 60.0
    """After a restart nothing expires for so long: its device may have ended it, and have had nobody to tell."""
    session_retention: float = 14 * 24 * 3600.0
    """How long a session is kept that does not come back and has results that it has not seen, or a name ..."""
    idle_session_retention: float = 3600.0
    """... and any other: should it come back after all, it is taken for a new one."""
    device_retention: float = 90 * 24 * 3600.0
    """How long a device is known that does not come back."""
    sessions: int = 20_000
    devices: int = 20_000
    past_sessions: int = 100_000
    """Of how many sessions that are gone the broker still tells forgotten results from unknown ones."""
    plans: int = 10_000
    """Plans kept; beyond it the least recently used go. Their bytes are bounded by the blob store's quota."""
    tags_per_device: int = 20_000
    """Tagged tensors of one device in the index."""

    # values and blobs on their way
    fetch_patience: float = 2.0
    """A value that a device was asked for is asked for again only after so long."""
    fetch_life: float = 120.0
    """A value that nobody has asked for again for so long is not waited for any more."""
    fetches: int = 4096
    """Values that one peer may wait for."""
    blob_linger: float = 600.0
    """How long a blob stays that no command names any more."""
    log_level: int = 100
    """The lowest level of `Log` instructions that are wanted locally; the log stream may ask for lower ones."""
