"""The rows of a store's index: their tables, and the sum that each row carries so that an altered one is told from a
whole one.

A disk may give back other bits than it was given, and SQLite has no sums of its own outside its log. A row's ``sum``
is the CRC-32 of its other columns, as msgpack; that of a command, which changes when the broker has it on record, is
twice that plus its ``recorded``. Nobody's forgery is told by it: whoever can write the file can write the sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from broker.protocol.ids import counter_of
from broker.protocol.messages import Event
from edge_agent.catalog import Ended, Held
from edge_agent.store_disk import Connection

__all__ = [
    "CHUNK",
    "COMMAND",
    "MIGRATIONS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SHARED",
    "VALUE",
    "RowDamaged",
    "check_rows",
    "command_rows",
    "ended_of",
    "row_sum",
    "sum_all",
    "value_columns",
    "value_row",
    "value_runs",
]

SCHEMA_VERSION = 3

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tensors (
    id BLOB PRIMARY KEY,
    own INTEGER NOT NULL,           -- 1: put by the device's owner; 0: a result, or sent by a coordinator
    dtype TEXT NOT NULL,
    shape BLOB NOT NULL,            -- msgpack
    nbytes INTEGER NOT NULL,
    frame BLOB,                     -- a small tensor, or
    file INTEGER NOT NULL,          -- 1: a file in tensors/
    tags BLOB NOT NULL,             -- msgpack
    description TEXT NOT NULL,
    blob BLOB,                      -- the digest of the file, where known
    created REAL NOT NULL,          -- seconds since the Unix epoch, on the device's clock, right or wrong
    lease_until REAL,               -- in seconds of the store's own clock; NULL: for ever, it is the owner's
    file_sum INTEGER,               -- the CRC-32 of the file, where known
    sum INTEGER NOT NULL
);
CREATE TABLE tags (tag TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (tag, id)) WITHOUT ROWID;
CREATE TABLE commands (
    n INTEGER PRIMARY KEY,          -- in the order in which they ended
    id BLOB NOT NULL UNIQUE,
    event BLOB NOT NULL,            -- what was announced, without its frames
    outputs INTEGER NOT NULL,
    recorded INTEGER NOT NULL,      -- whether the broker has it on record
    ended REAL NOT NULL,            -- seconds since the Unix epoch, on the device's clock, right or wrong
    until REAL NOT NULL,            -- in seconds of the store's own clock: when its retention is over
    sum INTEGER NOT NULL
);
CREATE INDEX unrecorded ON commands (n) WHERE recorded = 0;
CREATE TABLE deaths (id BLOB PRIMARY KEY, deaths INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (
    n INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    data BLOB,                      -- a small one; NULL: a file in blobs/
    size INTEGER NOT NULL,
    manifest INTEGER NOT NULL
);
"""

_CHUNKS = """
CREATE TABLE chunks (               -- see edge_agent.data_sets
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,             -- of the data set
    id BLOB NOT NULL UNIQUE,        -- of its first column, as of this append; those of the others follow
    first INTEGER NOT NULL,         -- the chunk with which it began then,
    skipped INTEGER NOT NULL,       -- but for so many rows of that
    total INTEGER NOT NULL,         -- how many rows it had then
    rows INTEGER NOT NULL,          -- how many this append has
    columns BLOB NOT NULL,          -- msgpack: dtype and shape of a row, of each column
    data BLOB,                      -- the columns, one after another; NULL: they are in a file
    created REAL NOT NULL,          -- seconds since the Unix epoch, on the device's clock, right or wrong
    until REAL,                     -- on the same clock, when it is too old; NULL: never
    file TEXT,                      -- in chunks/
    file_sum INTEGER,               -- the CRC-32 of the file
    sum INTEGER NOT NULL
);
CREATE INDEX chunks_of ON chunks (name, n);
CREATE INDEX expiring ON chunks (until) WHERE until IS NOT NULL;
"""

SCHEMA += _CHUNKS.lstrip()

MIGRATIONS: dict[int, str] = {
    1: """
ALTER TABLE tensors ADD COLUMN file_sum INTEGER;
ALTER TABLE tensors ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE commands ADD COLUMN until REAL NOT NULL DEFAULT 1209600;
ALTER TABLE commands ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE tensors SET lease_until = 1209600 WHERE own = 0;
CREATE TABLE deaths (id BLOB PRIMARY KEY, deaths INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('clock', 0.0);
INSERT INTO meta VALUES ('generation', 0);
""",
    2: _CHUNKS,
}
"""What makes a store of the next version of one of this version. The sums of its rows come after that (`sum_all`)."""

VALUE = "id, own, dtype, shape, nbytes, frame, file, tags, description, blob, created, lease_until, file_sum, sum"
"""The columns of a value, as `value_row` makes them and `value_columns` takes them."""

SHARED = "own, dtype, shape, nbytes, file, tags, description, blob, created, file_sum"
"""What values have in common that stand in one of the `value_runs`."""

CHUNK = "n, name, id, first, skipped, total, rows, columns, data, created, until, file, file_sum, sum"
"""The columns of a chunk. Its sum is that of all but its number."""

COMMAND = "id, event, outputs, recorded, ended, until, sum"

_encode = msgspec.msgpack.Encoder().encode
_crc32 = zlib.crc32
_shapes = msgspec.msgpack.Decoder(tuple[int, ...])
_texts = msgspec.msgpack.Decoder(tuple[str, ...])
_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class RowDamaged(Exception):
    """A row is not what was written. Whoever asked for it says which store (`StoreDamaged`)."""


def row_sum(columns: tuple[Any, ...]) -> int:
    """The sum of a row of these columns."""
    return _crc32(_encode(columns))


def value_row(
    held: Held, shape: bytes, tags: bytes, *, own: bool, created: float, lease_until: float | None
) -> tuple[Any, ...]:
    """The row of a value."""
    frame = held.source if isinstance(held.source, bytes) else None
    columns = (
        held.id,
        int(own),
        held.dtype,
        shape,
        held.nbytes,
        frame,
        int(frame is None),
        tags,
        held.description,
        held.blob,
        created,
        lease_until,
        held.check,
    )
    return (*columns, row_sum(columns))


def value_runs(
    values: Iterable[Held], leases: Mapping[bytes, float], created: float
) -> list[tuple[tuple[Any, ...], list[tuple[Any, ...]]]]:
    """The rows of values that are not the device's own, in order and in runs, as the results of one plan often make
    them: what the rows of a run have in common (`SHARED`), and of each of them id, frame, end of the lease, and sum.
    """
    runs: list[tuple[tuple[Any, ...], list[tuple[Any, ...]]]] = []
    alike: tuple[Any, ...] | None = None
    dtype, shape, nbytes, check, file, tags, text, blob = "", b"", 0, None, 0, b"", "", None
    rows: list[tuple[Any, ...]] = []
    for held in values:
        id = held.id
        frame = held.source if isinstance(held.source, bytes) else None
        what = (held.dtype, held.shape, held.tags, held.nbytes, frame is None, held.description, held.blob, held.check)
        if what != alike:
            alike, rows = what, []
            dtype, shape, nbytes, check = held.dtype, _encode(held.shape), held.nbytes, held.check
            file, tags, text, blob = int(frame is None), _encode(held.tags), held.description, held.blob
            runs.append(((0, dtype, shape, nbytes, file, tags, text, blob, created, check), rows))
        lease = leases[id]
        columns = (id, 0, dtype, shape, nbytes, frame, file, tags, text, blob, created, lease, check)
        rows.append((id, frame, lease, _crc32(_encode(columns))))  # as `row_sum`, without the call
    return runs


def value_columns(row: tuple[Any, ...], path: str) -> Held:
    """The value of a row; ``path``: where its file is, if it has one. Raises `RowDamaged`."""
    if row_sum(tuple(row[:-1])) != row[-1]:
        raise RowDamaged(f"the row of value {_hex(row[0])} was altered")
    id, own, dtype, shape, nbytes, frame, _file, tags, description, blob, _created, _lease, check, _sum = row
    return Held(
        id=id,
        dtype=dtype,
        shape=_shapes.decode(shape),
        nbytes=nbytes,
        source=path if frame is None else frame,
        tags=_texts.decode(tags),
        description=description,
        own=bool(own),
        blob=blob,
        check=check,
    )


def command_rows(commands: Iterable[Ended], now: float, untils: Mapping[bytes, float]) -> list[tuple[Any, ...]]:
    """The rows of commands that have ended; ``untils``: when the retention of each is over."""
    rows: list[tuple[Any, ...]] = []
    for ended in commands:
        id, event, outputs, recorded = ended.id, _encode(ended.event), ended.outputs, int(ended.recorded)
        until = untils[id]
        check = 2 * _crc32(_encode((id, event, outputs, now, until))) + recorded  # as `row_sum`, without the call
        rows.append((id, event, outputs, recorded, now, until, check))
    return rows


def ended_of(row: tuple[Any, ...]) -> Ended:
    """The ended command of a row. Raises `RowDamaged`."""
    id, event, outputs, recorded, ended, until, sum = row
    # a changed bit may have made anything of the mark, also nothing
    if recorded not in (0, 1) or 2 * row_sum((id, event, outputs, ended, until)) + recorded != sum:
        raise RowDamaged(f"the row of command {_hex(id)} was altered")
    return Ended(id=id, event=_events.decode(event), outputs=outputs, recorded=bool(recorded))


def sum_all(connection: Connection) -> None:
    """Give all rows their sums: those of an older version have none."""
    values = connection.execute(f"SELECT {VALUE} FROM tensors").fetchall()  # noqa: S608 - names of columns only
    connection.executemany("UPDATE tensors SET sum = ? WHERE id = ?", [(row_sum(row[:-1]), row[0]) for row in values])
    commands = connection.execute(f"SELECT {COMMAND} FROM commands").fetchall()  # noqa: S608
    connection.executemany(
        "UPDATE commands SET sum = ? WHERE id = ?",
        [(2 * row_sum((*row[:3], *row[4:6])) + row[3], row[0]) for row in commands],
    )


def check_rows(connection: Connection, store_id: bytes) -> None:
    """Look at all there is. Raises `RowDamaged`, or what the connection raises."""
    [(said,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if said != "ok":
        raise RowDamaged(str(said))
    tagged: set[tuple[str, bytes]] = set()
    own = 0
    for row in _all(connection, f"SELECT {VALUE} FROM tensors"):  # noqa: S608
        held = value_columns(row, "")
        tagged.update((tag, held.id) for tag in held.tags)
        if held.own and held.id[:8] == store_id:
            own = max(own, counter_of(held.id))
    if {(tag, bytes(id)) for tag, id in connection.execute("SELECT tag, id FROM tags").fetchall()} != tagged:
        raise RowDamaged("the index of tags is not that of its values")
    for row in _all(connection, f"SELECT {COMMAND} FROM commands"):  # noqa: S608
        ended_of(row)
    for row in _all(connection, f"SELECT {CHUNK} FROM chunks"):  # noqa: S608
        if row_sum(tuple(row[1:-1])) != row[-1]:
            raise RowDamaged(f"the row of chunk {row[0]} was altered")
        own = max(own, counter_of(row[2]))
    (last,) = connection.execute("SELECT value FROM meta WHERE key = 'last_own'").fetchone()
    if not isinstance(last, int) or last < own:
        raise RowDamaged(f"the counter of its own ids is behind: {last!r}")


def _all(connection: Connection, statement: str) -> Any:
    """The rows of a statement, one at a time: a store may be larger than the memory."""
    rows = connection.execute(statement)
    while (row := rows.fetchone()) is not None:
        yield row


def _hex(id: object) -> str:
    return bytes(id).hex() if isinstance(id, bytes) else repr(id)
