"""A plan with all its parts, and the one file that holds it.

A plan file is data, never code or pickle: the 8 bytes of `MAGIC`, then sections. A section is its length (8 bytes,
little-endian), the SHA-256 of its content (32 bytes), and its content. The first is the table (msgpack: the format's
version, and a list of ``[name, digest, size]``, one for each section that follows, in order); then the manifest, the
graph, the state's tensor frames, and what stands beside the plan. A file that was cut or altered anywhere is
`PlanMalformed`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import inspect
from edge_agent.plan.checker import CheckedPlan, check_plan
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import Graph, Manifest, decode_graph, decode_manifest, digest_of, encode_manifest

__all__ = ["FILE_VERSION", "MAGIC", "PlanBundle"]

MAGIC = b"edgeplan"
FILE_VERSION = 1
_HEAD = 8 + 32
_BESIDE = "beside:"


class _Table(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    sections: list[tuple[str, bytes, int]]


_tables = msgspec.msgpack.Decoder(_Table)


@dataclass(frozen=True, slots=True)
class PlanBundle:
    """A plan as it travels: the manifest, the graph's bytes, and the state's frames by digest.

    ``beside`` holds what is no part of the plan, by name, such as ``source``: the table from op to source line.
    """

    manifest: Manifest
    graph_bytes: bytes
    state: Mapping[bytes, bytes] = field(default_factory=dict)
    beside: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def manifest_bytes(self) -> bytes:
        """The canonical bytes of the manifest."""
        return encode_manifest(self.manifest)

    @property
    def plan_id(self) -> bytes:
        """The plan's id: 32 bytes."""
        return digest_of(self.manifest_bytes)

    @property
    def graph(self) -> Graph:
        """The decoded graph, not checked. Raises `PlanMalformed`."""
        return decode_graph(self.graph_bytes)

    @property
    def parts(self) -> dict[bytes, bytes]:
        """Every blob of the plan by its digest: manifest, graph, state. What two state tensors share is there once."""
        return {self.plan_id: self.manifest_bytes, self.manifest.graph: self.graph_bytes, **self.state}

    @property
    def wire_size(self) -> int:
        """The bytes of all parts: what a device pulls."""
        return sum(map(len, self.parts.values()))

    def verify(self) -> CheckedPlan:
        """Check every digest, every tensor frame, and then the plan. Raises `PlanMalformed`, `UnknownOp` or
        `PlanTypeError`.
        """
        if digest_of(self.graph_bytes) != self.manifest.graph:
            raise PlanMalformed(f"expected the graph {self.manifest.graph.hex()[:16]}, got bytes of another digest")
        headers = []
        for place, digest in enumerate(self.manifest.state):
            frame = self.state.get(digest)
            if frame is None:
                raise PlanMalformed(f"expected the state tensor {digest.hex()[:16]}, got a plan without it")
            if digest_of(frame) != digest:
                raise PlanMalformed(f"expected the state tensor {digest.hex()[:16]}, got bytes of another digest")
            try:
                headers.append(inspect(frame))
            except TensorRefused as error:
                raise PlanMalformed(f"expected a tensor frame as state {place}, got another: {error}") from None
        return check_plan(self.manifest, self.graph, headers)

    def to_bytes(self, *, without: Container[bytes] = ()) -> bytes:
        """The content of a plan file. ``without``: digests of state tensors that are elsewhere."""
        wanted = [digest for digest in dict.fromkeys(self.manifest.state) if digest not in without]
        sections = [("manifest", self.manifest_bytes), ("graph", self.graph_bytes)]
        sections += [("state", self.state[digest]) for digest in wanted]
        sections += [(_BESIDE + name, content) for name, content in sorted(self.beside.items())]
        table = _Table(FILE_VERSION, [(name, digest_of(content), len(content)) for name, content in sections])
        contents = [msgspec.msgpack.encode(table), *(content for _, content in sections)]
        return MAGIC + b"".join(_section(content) for content in contents)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> PlanBundle:
        """The bundle that a plan file holds, with every digest checked; the plan itself is not, see `verify`.

        Raises `PlanMalformed` if it was cut or altered.
        """
        sections = _sections(memoryview(data))
        table = _table(next(sections, None))
        found: dict[str, list[bytes]] = {}
        for name, digest, size in table.sections:
            content = next(sections, None)
            if content is None or len(content) != size or digest_of(content) != digest:
                raise PlanMalformed(
                    f"expected the section {name[:64]!r} of {size} bytes in the plan file, got one cut or altered"
                )
            found.setdefault(name, []).append(content)
        if next(sections, None) is not None:
            raise PlanMalformed("expected the plan file's end, got more bytes")
        if len(found.get("manifest", ())) != 1 or len(found.get("graph", ())) != 1:
            raise PlanMalformed("expected one manifest and one graph in the plan file, got others")
        beside = {
            name.removeprefix(_BESIDE): contents[0] for name, contents in found.items() if name.startswith(_BESIDE)
        }
        state = {digest_of(frame): frame for frame in found.get("state", ())}
        bundle = cls(decode_manifest(found["manifest"][0]), found["graph"][0], state, beside)
        if bundle.manifest_bytes != found["manifest"][0]:
            raise PlanMalformed("expected the manifest in its canonical bytes, got others")
        return bundle

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a plan file: whole, or not at all. Raises OSError."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with part.open("xb") as file:
                file.write(self.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PlanBundle:
        """Read a plan file. Raises `PlanMalformed` if it was cut or altered, OSError if it cannot be read."""
        return cls.from_bytes(Path(path).read_bytes())


def _section(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + digest_of(content) + content


def _sections(data: memoryview) -> Iterator[bytes]:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise PlanMalformed("expected a plan file, got another: it does not start with 'edgeplan'")
    at = len(MAGIC)
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        content = bytes(data[at + _HEAD : at + _HEAD + size])
        if len(content) != size or digest_of(content) != bytes(data[at + 8 : at + _HEAD]):
            raise PlanMalformed(
                f"expected a whole section at byte {at} of the plan file, got one that was cut or altered"
            )
        yield content
        at += _HEAD + size


def _table(content: bytes | None) -> _Table:
    try:
        table = _tables.decode(content or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanMalformed(
            f"expected a table of sections first in the plan file, got another section: {error}"
        ) from None
    if not 1 <= table.version <= FILE_VERSION:
        raise PlanMalformed(f"expected a plan file of version 1 to {FILE_VERSION}, got version {table.version}")
    return table
