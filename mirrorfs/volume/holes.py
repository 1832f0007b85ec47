"""Holes: which discarded chunks are known to read as zeros on every leg, so that they need no zeroing.

A discard leaves its chunks UNZEROED: what gives their space back may fail, or be lost with the power.  Once
every leg has punched them and was flushed after that, they hold zeros for good, and the flag goes; else the
first write to each would have to zero it and to flush.
"""

from typing import TYPE_CHECKING

import numpy as np
import trio

from mirrorfs import limits
from mirrorfs.intent.states import UNWRITTEN, UNZEROED

if TYPE_CHECKING:
    from mirrorfs.mirror.member import Member
    from mirrorfs.volume.volume import Volume

Runs = list[tuple[int, int]]


class Holes:
    """The holes of one volume.  `run` must be running for them to become known."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume
        self._punched: Runs = []
        """Runs of chunks that every leg has punched."""
        self._flushing: Runs = []
        """The same, as they were when the flush that is under way began."""
        self._legs: list[Member] = []
        """Who has punched them."""
        self._news = trio.Event()

    def punched(self, first: int, last: int, legs: list['Member']) -> None:
        """Chunks first..last, which are held exclusively, have become holes on these legs."""
        if legs != self._legs:
            self.forget_all()
            self._legs = legs
        self._punched.append((first, last))
        del self._punched[: -limits.HOLES_MAX]
        self._news.set()

    def forget(self, first: int, last: int) -> None:
        """Chunks first..last may hold anything from now on, if it is not known otherwise by then."""
        for known in (self._punched, self._flushing):
            known[:] = [run for run in known if run[1] < first or last < run[0]]

    def forget_all(self) -> None:
        """The same of all chunks."""
        self._punched.clear()
        self._flushing.clear()

    async def run(self) -> None:
        """Have holes flushed, some while after they were punched, for ever."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await trio.sleep(limits.HOLES_DELAY)
            try:
                await self.flush()
            except OSError as error:
                self.forget_all()
                self._volume.emit('Error', self._volume.name, '', f'discard: {error.strerror or error}')

    async def flush(self) -> None:
        """Flush, and have it known what are zeros then.  Raises OSError."""
        volume = self._volume
        if not self._punched:
            return
        self._flushing, self._punched = self._punched, []
        await volume.flush()
        if volume.members != self._legs:
            self.forget_all()
        both = np.uint8(UNWRITTEN | UNZEROED)
        for first, last in self._flushing:
            holes = first + np.flatnonzero((volume.log.states[first : last + 1] & both) == both)
            volume.log.update_chunks(holes, clear=UNZEROED)  # the next commit says so
        self._flushing = []
