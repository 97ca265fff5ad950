"""What a coordinator under chaos writes down: on disk before the next thing happens, so that an auditor can compare.

A line of JSON for each `Entry`. A line that was cut by a kill is dropped when the journal is opened again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct

__all__ = [
    "AcceptedEntry",
    "Argument",
    "CancelEntry",
    "EndedEntry",
    "Entry",
    "FetchedEntry",
    "Journal",
    "OpenedEntry",
    "ReleaseEntry",
    "SentEntry",
    "TroubleEntry",
    "UnknownEntry",
    "read_journal",
]


class Argument(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An argument of a command: an id, an id for each device, a literal, or the seed of a large literal."""

    id: str = ""
    each: list[str] = []
    values: list[int] = []
    seed: int = -1


class _Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    at: float = msgspec.field(default_factory=time.monotonic)


class OpenedEntry(_Entry, frozen=True, kw_only=True):
    """A process has opened its session, and takes ids from this incarnation."""

    incarnation: str


class SentEntry(_Entry, frozen=True, kw_only=True):
    """A command is about to be sent. ``id`` is its first; those of the k-th device start ``k * outputs`` later.
    ``deadline`` in seconds; 0: the default.
    """

    id: str
    op: str
    devices: list[str]
    outputs: int
    arguments: list[Argument]
    deadline: float = 0.0


class CancelEntry(_Entry, frozen=True, kw_only=True):
    """An invocation is about to be cancelled."""

    id: str


class ReleaseEntry(_Entry, frozen=True, kw_only=True):
    """A result is about to be released: any of its outputs."""

    id: str


class AcceptedEntry(_Entry, frozen=True, kw_only=True):
    """The broker has accepted these commands: a promise."""

    ids: list[str]


class EndedEntry(_Entry, frozen=True, kw_only=True):
    """One device's part of a command has ended: ``code`` is empty for a value. ``values``: a digest for each output,
    where the values came with the notification.
    """

    id: str
    code: str = ""
    argument: str = ""
    values: list[str] = []


class FetchedEntry(_Entry, frozen=True, kw_only=True):
    """The values of a result were fetched: a digest for each output; or why not."""

    id: str
    values: list[str] = []
    error: str = ""


class UnknownEntry(_Entry, frozen=True, kw_only=True):
    """The broker says, of a command that an earlier process was about to send, that it knows none."""

    id: str


class TroubleEntry(_Entry, frozen=True, kw_only=True):
    """Something that may not happen, chaos or not."""

    what: str


Entry: TypeAlias = (
    OpenedEntry
    | SentEntry
    | CancelEntry
    | ReleaseEntry
    | AcceptedEntry
    | EndedEntry
    | FetchedEntry
    | UnknownEntry
    | TroubleEntry
)

_decoder = msgspec.json.Decoder(Entry)


class Journal:
    """Appends to the file at ``path``. For any thread."""

    def __init__(self, path: Path) -> None:
        self.past: list[Entry] = []
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self.past.append(_decoder.decode(line))
                whole += len(line)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._file, whole)
        self._lock = threading.Lock()

    def write(self, *entries: Entry) -> None:
        """Write down, and be sure of it."""
        if entries:
            text = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
            with self._lock:
                os.write(self._file, text)
                os.fsync(self._file)


def read_journal(path: Path) -> Iterator[Entry]:
    """All entries of a journal whose writer is gone."""
    lines: Iterable[bytes] = path.read_bytes().splitlines(keepends=True) if path.exists() else ()
    for line in lines:
        if line.endswith(b"\n"):
            yield _decoder.decode(line)
