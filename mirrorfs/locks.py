"""Locks on ranges of chunks: writers and recovery windows exclude each other, slow readers share.

First come, first served among those that overlap, so nobody starves; the number of waiters is bounded by
the requests that the kernel has in flight.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(eq=False, slots=True)
class Hold:
    """A range first..last of chunks, held or waited for."""

    first: int
    last: int
    shared: bool
    granted: trio.Event = field(default_factory=trio.Event)

    def conflicts(self, other: 'Hold') -> bool:
        apart = self.last < other.first or other.last < self.first
        return not apart and not (self.shared and other.shared)


class ChunkLocks:
    """Range locks in order of arrival."""

    def __init__(self) -> None:
        self._holds: list[Hold] = []
        """Granted and waiting ones alike, in order of arrival."""

    @asynccontextmanager
    async def hold(self, first: int, last: int, *, shared: bool = False) -> AsyncGenerator[Hold, None]:
        """Hold the chunks first..last; waits for every earlier conflicting hold."""
        mine = Hold(first, last, shared)
        self._holds.append(mine)
        try:
            if any(mine.conflicts(other) for other in self._holds[:-1]):
                await mine.granted.wait()
            else:
                mine.granted.set()
            yield mine
        finally:
            self._holds.remove(mine)
            self._grant()

    def is_exclusive(self, chunk: int) -> bool:
        """Whether someone holds, or waits for, the chunk exclusively."""
        return any(not hold.shared and hold.first <= chunk <= hold.last for hold in self._holds)

    def exclusive_ranges(self) -> list[tuple[int, int]]:
        return [(hold.first, hold.last) for hold in self._holds if not hold.shared]

    def _grant(self) -> None:
        for at, hold in enumerate(self._holds):
            if not hold.granted.is_set() and not any(hold.conflicts(o) for o in self._holds[:at]):
                hold.granted.set()
