"""Lazy clearing: chunks that were quiet for a while, and flushed on every leg, become clean in batches.

Also bounds how much acknowledged data may wait to be flushed, so that no flush takes for ever.
"""

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs import hot, limits
from mirrorfs.intent.states import DIRTY, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.volume import Volume


class Clearer:
    """Sweeps one volume every `time_base` seconds."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.allowed = True

    async def run(self) -> None:
        """Sweep for ever.  A chunk is cleared one to two time_bases after its last write."""
        while True:
            await self._pause()
            if self.allowed and not self._volume.broken:
                try:
                    await self.sweep()
                except OSError as error:
                    self._volume.emit('Error', self._volume.name, '', f'clearing: {error.strerror or error}')

    async def _pause(self) -> None:
        """Wait for one time_base, which may be changed meanwhile."""
        began = trio.current_time()
        while (left := began + self._volume.record.time_base_ms / 1000 - trio.current_time()) > 0:
            await trio.sleep(min(left, 1.0))

    async def sweep(self) -> int:
        """Clear what has been quiet since the last sweep; return how many chunks.  Raises OSError."""
        volume = self._volume
        touched = volume.hot.touched_view()
        dirty = volume.log.where(DIRTY, NEEDS_RESYNC)
        quiet = dirty[touched[dirty] == 0]
        seen = np.flatnonzero(touched)
        volume.lookahead.meet(seen)
        touched[seen] = 0  # and no others: the lane may just now have touched one
        quiet = self._unheld(quiet)
        if not len(quiet):
            return 0
        volume.hot.view()[quiet] &= np.uint8(0xFF & ~hot.WRITES)
        await volume.hot.settle()
        await volume.flush()
        quiet = self._still_quiet(quiet)
        volume.log.update_chunks(quiet, clear=DIRTY)
        unmet = volume.lookahead.give_up(quiet)
        volume.log.update_chunks(unmet, set_=UNWRITTEN)
        for low, high in runs(unmet):
            volume.gate.offer(low, high)
        await volume.keeper.commit()
        return len(quiet)

    def _still_quiet(self, quiet: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return those of the chunks that nobody wrote, or may be writing, since the flush began."""
        volume = self._volume
        quiet = quiet[(volume.log.states[quiet] & np.uint8(DIRTY | NEEDS_RESYNC)) == DIRTY]
        quiet = quiet[volume.hot.touched_view()[quiet] == 0]
        quiet = quiet[(volume.hot.view()[quiet] & np.uint8(hot.WRITES)) == 0]
        return self._unheld(quiet)

    def _unheld(self, chunks: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        for low, high in self._volume.locks.exclusive_ranges():
            chunks = chunks[(chunks < low) | (chunks > high)]
        return chunks

    async def bound_unflushed(self) -> None:
        """Flush in the background when much has been written since the last flush."""
        while True:
            await trio.sleep(1)
            if self._volume.unflushed > limits.UNFLUSHED_MAX and not self._volume.broken:
                try:
                    await self._volume.flush()
                except OSError as error:
                    self._volume.emit('Error', self._volume.name, '', f'flush: {error.strerror or error}')
