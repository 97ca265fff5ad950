"""Structured events of every component: as JSON lines, as coloured text on a terminal, and as records for the stream.

A program calls `configure` once; every driver holds a logger of its own::

    sink = StreamSink(waiting.append)     # sent as one `LogRecords` when the batch ends
    log = get_logger("agent", sink=sink, device="pi-kitchen")
    log.info("plan_loaded", plan=plan.hex())
    emit(log, instruction)                # a `Log` instruction of a core
    core.log_level = log.level            # the lowest level that anybody wants; again when `sink.level` is set

An event has a name, not a sentence; ids are bound once, as hex. Never tensor contents, never keys. Where nobody has
called `configure` (a library inside somebody's program), warnings and errors go to stderr as JSON lines or text.

A call below the level costs under half a microsecond. A logger may be used from any thread.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Self, TextIO

import msgspec
import structlog
from structlog.processors import format_exc_info

from broker.protocol.effects import Log
from broker.protocol.messages import LogValue

__all__ = [
    "DEBUG",
    "ERROR",
    "INFO",
    "LEVELS",
    "WARNING",
    "Logger",
    "Record",
    "StreamSink",
    "configure",
    "emit",
    "get_logger",
    "render_text",
]

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40

LEVELS: Final[dict[str, int]] = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
"""Level name to number."""

_NAMES: Final = {number: name for name, number in LEVELS.items()}

Record = dict[str, LogValue]
"""What an output gets: ``timestamp`` (ISO 8601, UTC, microseconds), ``level`` (a name of `LEVELS`), ``event``,
``component``, then whatever was bound, then the event's own fields."""


class StreamSink:
    """Hands a logger's records of ``level`` and above to ``send``; at level 0 nobody follows, and none is handed on.

    ``send`` is called on the thread that logs, so it should only append. ``level`` may be set at any time
    (`SetLogLevel`).
    """

    __slots__ = ("level", "send")

    def __init__(self, send: Callable[[Record], None], level: int = 0) -> None:
        self.send = send
        self.level = level


class _Lines:
    """The lines that this process writes, and from which level on. One per process: see `configure`."""

    def __init__(self) -> None:
        self.level = WARNING
        self._lock = threading.Lock()
        self._stream: TextIO | None = None  # None: what sys.stderr is at that moment
        self._render: Callable[[Record], str] | None = None

    def configure(self, level: int, render: Callable[[Record], str], stream: TextIO | None) -> None:
        with self._lock:
            self.level, self._render, self._stream = level, render, stream

    def write(self, record: Record) -> None:
        with self._lock:
            stream = self._stream or sys.stderr
            if self._render is None:
                self._render = _renderer(None, stream)
            try:
                stream.write(self._render(record))
                stream.flush()
            except (OSError, ValueError):
                # Whoever read the log has gone, or its disk is full: a fleet does not stop for that.
                return


_lines = _Lines()


class _Output:
    """What a `Logger` wraps: the lines of the process, and a sink of its own."""

    __slots__ = ("sink",)

    def __init__(self, sink: StreamSink | None) -> None:
        self.sink = sink

    @property
    def level(self) -> int:
        sink = self.sink
        return min(_lines.level, sink.level) if sink is not None and sink.level else _lines.level

    def put(self, level: int, record: Record) -> None:
        sink = self.sink
        if sink is not None and 0 < sink.level <= level:
            sink.send(record)
        if level >= _lines.level:
            _lines.write(record)


class Logger(structlog.BoundLoggerBase):
    """A structlog logger with the levels of `LEVELS`. Make one with `get_logger`."""

    _logger: _Output

    @property
    def level(self) -> int:
        """The lowest level that anybody wants to have: this process' lines, or the sink."""
        return self._logger.level

    def bind(self, **new_values: LogValue) -> Self:
        """A logger that adds these to every event."""
        return super().bind(**new_values)

    def debug(self, event: str, **fields: LogValue) -> None:
        """The hops of an invocation."""
        if self._logger.level <= DEBUG:
            self.put(DEBUG, event, fields)

    def info(self, event: str, **fields: LogValue) -> None:
        """What begins and ends: devices, sessions, workers, plans."""
        if self._logger.level <= INFO:
            self.put(INFO, event, fields)

    def warning(self, event: str, **fields: LogValue) -> None:
        """Refusals and failures."""
        if self._logger.level <= WARNING:
            self.put(WARNING, event, fields)

    def error(self, event: str, **fields: LogValue) -> None:
        """What an operator must look at."""
        if self._logger.level <= ERROR:
            self.put(ERROR, event, fields)

    def exception(self, event: str, **fields: LogValue) -> None:
        """As `error`, with the traceback of the exception being handled in the field ``exception``."""
        if self._logger.level <= ERROR:
            self.put(ERROR, event, {**fields, "exc_info": True})

    def log(self, level: int, event: str, **fields: LogValue) -> None:
        """As the method of that level; ``level`` is one of the numbers of `LEVELS`."""
        if self._logger.level <= level:
            self.put(level, event, fields)

    def put(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        """Log with the fields as a mapping; the caller has compared the levels."""
        name = _NAMES.get(level, "error")
        record: MutableMapping[str, Any] = {"timestamp": _now(), "level": name, "event": event, **self._context}
        for key, value in fields.items():
            # What the record says of itself is not an event's to change.
            record[f"{key}_" if key in _RESERVED else key] = value
        for processor in self._processors:
            record = processor(self._logger, name, record)  # type: ignore[assignment]  # ours return mappings, no bytes
        self._logger.put(level, dict(record))


_RESERVED: Final = frozenset({"timestamp", "level", "event", "component"})


def configure(*, level: int = INFO, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Say what this process writes of its own events: from ``level`` on, to ``stream`` (None: stderr).

    ``json``: True for JSON lines, False for text, None for text on a terminal and JSON lines elsewhere. Text is
    coloured on a terminal, unless NO_COLOR is set. May be called again; it holds for loggers made before, too.
    """
    _lines.configure(level, _renderer(json, stream or sys.stderr), stream)


def get_logger(component: str, *, sink: StreamSink | None = None, **bound: LogValue) -> Logger:
    """A logger for ``component`` (``broker``, ``agent``, ``session``, ``worker``), with ``bound`` in every event."""
    return Logger(_Output(sink), _PROCESSORS, {"component": component, **bound})


def emit(logger: Logger, log: Log) -> None:
    """Execute a core's `Log` instruction."""
    if logger.level <= log.level:
        logger.put(log.level, log.event, log.fields)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain(_logger: Any, _name: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Bytes as hex, and anything else that is no `LogValue` as text: every reader of the stream can take the record."""
    for key, value in record.items():
        if value is not None and type(value) not in _SCALARS:
            record[key] = bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)
    return record


_SCALARS: Final = frozenset({str, int, float, bool})
_PROCESSORS: Final = (format_exc_info, _plain)


def _renderer(json: bool | None, stream: TextIO) -> Callable[[Record], str]:
    terminal = stream.isatty()
    if json or (json is None and not terminal):
        return _render_json
    colours = terminal and "NO_COLOR" not in os.environ
    return lambda record: render_text(record, colours=colours)


def _render_json(record: Record) -> str:
    return msgspec.json.encode(record).decode() + "\n"


def render_text(record: Record, *, colours: bool) -> str:
    """A record as one line for people (more, with an ``exception``), ending in a newline."""
    return f"{_console(colours)(None, '', dict(record))}\n"


_consoles: dict[bool, structlog.dev.ConsoleRenderer] = {}


def _console(colours: bool) -> structlog.dev.ConsoleRenderer:
    if colours not in _consoles:
        _consoles[colours] = structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False, pad_event_to=28)
    return _consoles[colours]
