"""The hot table: what the data lane may do with a volume without asking.

trio's thread writes it, the lane only reads it (and sets `touched`).  Withdrawing is two steps: take the
permission out of the table, then wait for `settle` (the lane has passed between two requests), after which
nothing that relied on it is in flight.  The default `settle` returns at once: nobody serves the table.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrorfs.histogram import Histogram

READ = 1
"""Read from the chunk's home leg."""
WRITE = 2
"""Write to all legs in `targets`: the chunk is durably marked and no window is over it."""
ZEROS = 4
"""Reads as zeros."""


async def _nobody() -> None:
    return None


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
        """Chunks that the lane has written whole, in pieces, see `limits.LANE_PIECE`; a guess."""
        self.targets: tuple[Any, ...] = ()
        self.homes: tuple[Any, ...] = ()
        self.syncs: tuple[Callable[[], None], ...] = ()
        """What syncs each leg, from any thread; none where that is trio's."""
        self.home_shift = max(0, 24 - self.shift)
        self.unflushed = self.unflushed_by_trio = 0
        """Bytes that the lane, and trio, wrote to each leg since the last flush began.  Either sets both to
        zero; what gets lost where they do so at the same time does no harm."""
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

    def withdraw(self, first: int, last: int) -> bool:
        """Take all permission for chunks first..last; return whether any was given."""
        if first == last:
            had = self.flags[first] != 0
            self.flags[first] = 0
            return had
        part = self.view()[first : last + 1]
        had = bool(part.any())
        part[:] = 0
        return had

    def withdraw_writes(self) -> None:
        """Take the permission to write, and to sync, from the whole volume."""
        self.syncs = ()
        self.view()[:] &= np.uint8(0xFF & ~WRITE)

    def grow(self, size: int) -> None:
        """Make room for a larger volume.  New arrays: nothing may be in flight."""
        self.size = size
        more = bytes(-(-size // (1 << self.shift)) - len(self.flags))
        self.flags = self.flags + more
        self.touched = self.touched + more
        self.fine = self.fine + more
