"""Look-ahead: a sequential writer finds the next chunks already marked.

A writer whose chunk follows what was marked for another is taken for the same one, and twice as many chunks
are marked ahead as last time, up to a limit.  A few such streams are followed at once.  The requests of one
stream may come many at a time, before any of them is marked.

Chunks that were never written, and hold zeros, are made ready as well; those that no write comes to are to
be never written again, once they are clean.  Pure; no clock.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mirrorfs import limits

STREAMS = 8
_NONE: npt.NDArray[np.intp] = np.empty(0, np.intp)


@dataclass(slots=True)
class _Stream:
    """Chunks: where its last writer ended, how far it is marked, and how many were marked ahead last time."""

    at: int
    marked: int
    reach: int = 0


class Lookahead:
    """Says how many chunks to mark beyond those a writer needs now."""

    def __init__(self, limit: int = limits.LOOKAHEAD_MAX_CHUNKS) -> None:
        self._limit = limit
        self._streams: list[_Stream] = []
        """The least recently used first."""
        self._expected = _NONE

    def ahead(self, first: int, last: int, chunks: int) -> int:
        """Return the last chunk to mark for a writer of chunks first..last in a volume of `chunks`."""
        for stream in self._streams:
            if stream.at < first <= stream.marked + 1:
                self._streams.remove(stream)
                if last + stream.reach >= stream.marked:
                    stream.reach = min(self._limit, max(1, stream.reach * 2))
                    stream.marked = min(chunks - 1, last + stream.reach)
                break
        else:
            stream = _Stream(last, last)
            if len(self._streams) == STREAMS:
                del self._streams[0]
        stream.at = last
        self._streams.append(stream)
        return max(last, stream.marked)

    def expect(self, chunks: npt.NDArray[np.intp]) -> None:
        """Chunks (intp [n]) that were never written count as written from now on, before any write."""
        self._expected = np.union1d(self._expected, chunks)

    def meet(self, touched: npt.NDArray[np.intp]) -> None:
        """Forget those that a write has come to, or may have come to (intp [n], ascending)."""
        self._expected = np.setdiff1d(self._expected, touched, assume_unique=True)

    def give_up(self, quiet: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return, and forget, those of the chunks (intp [n], ascending) that no write has come to."""
        unmet = np.intersect1d(self._expected, quiet, assume_unique=True)
        self._expected = np.setdiff1d(self._expected, unmet, assume_unique=True)
        return unmet
