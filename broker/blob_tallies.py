"""What moved over the blob channel, in all and by peer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from broker.blob_effects import BlobCounts

__all__ = ["Tallies", "Tally"]


@dataclass(slots=True)
class Tally:
    """Counters that are being counted: see `broker.blob_effects.BlobCounts`."""

    blobs_in: int = 0
    blobs_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def counts(self) -> BlobCounts:
        """As they stand now."""
        return BlobCounts(self.blobs_in, self.blobs_out, self.bytes_in, self.bytes_out)


class Tallies:
    """A tally for each peer, by role and name; beyond ``limit``, those of long ago are left out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()

    def of(self, role: str, name: str) -> Tally:
        """The tally of one peer."""
        tally = self._tallies.setdefault((role, name), Tally())
        self._tallies.move_to_end((role, name))
        if len(self._tallies) > self._limit:
            self._tallies.popitem(last=False)
        return tally

    def counts(self) -> dict[tuple[str, str], BlobCounts]:
        """All of them; any thread may ask."""
        return {key: tally.counts() for key, tally in list(self._tallies.items())}
