"""The hot table: what the data lane may do with a volume without asking.

trio's thread writes it, the lane only reads it (and sets `touched`).  Withdrawing is two steps: take the
permission out of the table, then wait for `settle` (the lane has passed between two requests), after which
nothing that relied on it is in flight.  The default `settle` returns at once: nobody serves the table.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrorfs import limits
from mirrorfs.histogram import Histogram

if TYPE_CHECKING:
    from mirrorfs.leg.base import LaneLeg

READ = 1
"""Read from the chunk's home leg."""
WRITE = 2
"""Write to all legs in `targets`: the chunk is durably marked and no window is over it."""
ZEROS = 4
"""Reads as zeros."""
NONZERO = 8
"""Write as by WRITE, but nothing that is all zeros: that is trio's."""
WRITES = WRITE | NONZERO


async def _nobody() -> None:
    return None


class Stream:
    """Large reads of one volume that follow each other.  Pure; offsets and sizes in bytes."""

    def __init__(self) -> None:
        self._end = self._missed = self._until = 0
        """Where the last one ended; how many bytes were not in the cache; up to where to go past it."""

    def past_cache(self, offset: int, size: int) -> bool:
        """A large read begins; return whether it is not even to be looked for in the page cache."""
        if abs(offset - self._end) > limits.STREAM_SLACK:
            self._missed = self._until = 0
        self._end = offset + size
        return offset < self._until

    def missed(self, offset: int, size: int) -> bool:
        """The same read was not in the cache, or not looked for; return whether to read past the cache."""
        if offset < self._until:
            return True
        self._missed += size
        if self._missed <= limits.STREAM_CACHED:
            return False
        self._until = offset + limits.STREAM_PAST_CACHE
        return True


class HotTable:
    """Permissions of one volume, a byte a chunk.

    `flags` and `touched` are bytearrays of [chunks]: plain indexing is what the lane does fastest.
    `targets` and `homes` are tuples of legs as the lane wants them, in the order of writing; the home of a
    chunk is ``homes[(chunk >> home_shift) % len(homes)]``, always the same leg, so that reads of one chunk
    never go back in time and sequential readers stay on one leg for a while.
    """

    def __init__(self, size: int, chunk_size: int) -> None:
        self.size = size
        self.shift = chunk_size.bit_length() - 1
        chunks = -(-size // chunk_size)
        self.flags = bytearray(chunks)
        self.touched = bytearray(chunks)
        self.fine = bytearray(chunks)
        """How much of a chunk the lane wrote in pieces, 255 for all; a guess.  See `limits.LANE_PIECE`."""
        self.targets: tuple[Any, ...] = ()
        self.homes: tuple[Any, ...] = ()
        self.syncable: tuple[LaneLeg, ...] = ()
        """The legs, if any thread may sync them; none where that is trio's."""
        self.generation = 0
        """Counts what was withdrawn.  Who reads without being waited for looks at it before and after."""
        self.home_shift = max(0, 24 - self.shift)
        self.unflushed = self.unflushed_by_trio = 0
        """Bytes that the lane, and trio, wrote to each leg since the last flush began.  Either sets both to
        zero; what gets lost where they do so at the same time does no harm."""
        self.unstarted = 0
        """Bytes of large writes since the last write-back was asked for (`mirrorfs.fs.syncing`)."""
        self.eager_until = 0.0
        """Time until which that is done, on the system's clock."""
        self.eager: list[None] = []
        """One for each leg that is at it."""
        self.stream = Stream()
        self.reads = self.writes = self.read_bytes = self.written_bytes = self.flushes = 0
        self.lane_reads, self.lane_writes = Histogram(), Histogram()
        """How long the lane took for some of its requests, samples alone."""
        self.lane_flushes = Histogram()
        """How long FSYNCs took that went from the lane straight to the legs."""
        self.settle: Callable[[], Awaitable[None]] = _nobody

    def view(self) -> npt.NDArray[np.uint8]:
        """Return `flags` as a writable uint8 [chunks] array over the same bytes."""
        return np.frombuffer(self.flags, np.uint8)

    def touched_view(self) -> npt.NDArray[np.uint8]:
        """Return `touched` as a writable uint8 [chunks] array over the same bytes."""
        return np.frombuffer(self.touched, np.uint8)

    def home(self, chunk: int) -> int:
        """Return which of `homes` serves reads of a chunk."""
        return (chunk >> self.home_shift) % len(self.homes)

    def home_of(self, offset: int, homes: int) -> int:
        """Return which of so many homes serves reads at a byte."""
        return ((offset >> self.shift) >> self.home_shift) % homes

    def home_end(self, offset: int) -> int:
        """Return up to which byte reads go to the same home."""
        shift = self.shift + self.home_shift
        return ((offset >> shift) + 1) << shift

    def allows(self, offset: int, size: int, permission: int) -> bool:
        """Whether all chunks of a range within the volume have a permission, and one home for reading."""
        shift = self.shift
        first, last = offset >> shift, (offset + size - 1) >> shift
        if first == last:
            return self.flags[first] & permission != 0
        if permission == READ and first >> self.home_shift != last >> self.home_shift:
            return False
        if permission & WRITES:
            self.touched[first : last + 1] = b'\1' * (last + 1 - first)
        return all(flag & permission for flag in self.flags[first : last + 1])

    def withdraw(self, first: int, last: int) -> bool:
        """Take all permission for chunks first..last; return whether any was given."""
        if first == last:
            had = self.flags[first] != 0
            self.flags[first] = 0
        else:
            part = self.view()[first : last + 1]
            had = bool(part.any())
            part[:] = 0
        self.generation += 1  # last: who finds the old number read under the permission
        return had

    def withdraw_writes(self) -> None:
        """Take the permission to write, and to sync, from the whole volume."""
        self.syncable = ()
        self.view()[:] &= np.uint8(0xFF & ~WRITES)

    def grow(self, size: int) -> None:
        """Make room for a larger volume.  New arrays: nothing may be in flight."""
        self.size = size
        more = bytes(-(-size // (1 << self.shift)) - len(self.flags))
        self.flags = self.flags + more
        self.touched = self.touched + more
        self.fine = self.fine + more
