"""Look-ahead: a sequential writer finds the next chunks already marked.

A writer whose chunk follows one that was just marked is taken for sequential, and twice as many chunks are
marked ahead as last time, up to a limit.  A few streams are followed at once.  Pure; no clock.
"""

from mirrorfs import limits

STREAMS = 8


class Lookahead:
    """Says how many chunks to mark beyond those a writer needs now."""

    def __init__(self, limit: int = limits.LOOKAHEAD_MAX_CHUNKS) -> None:
        self._limit = limit
        self._next: dict[int, int] = {}
        """Chunk at which a stream is expected to come back, and how far it was marked ahead."""

    def ahead(self, first: int, last: int, chunks: int) -> int:
        """Return the last chunk to mark for a writer of chunks first..last in a volume of `chunks`."""
        run = self._next.pop(first, None)
        reach = 0 if run is None else min(self._limit, max(1, run * 2))
        end = min(chunks - 1, last + reach)
        if len(self._next) >= STREAMS:
            del self._next[next(iter(self._next))]
        self._next[end + 1] = reach
        return end
