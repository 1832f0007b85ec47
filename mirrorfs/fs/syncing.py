"""FSYNCs straight from the lane: each leg is synced in a thread, and the last one to succeed answers.

That trio may do one anew is safe, since a leg whose sync has failed once fails all later ones
(`mirrorfs.leg.base.LaneLeg.sync`).  Legs may come and go meanwhile: what was acknowledged before the FSYNC is
on the legs that there were, and comes to a new one by a copy, which is flushed before the leg counts.

Whoever syncs a volume is likely to do so again: for some seconds after that, large writes are written back
while more of them come, so that the next FSYNC finds less to do.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mirrorfs import limits
from mirrorfs.fs.beside import Beside, Open
from mirrorfs.hot import HotTable
from mirrorfs.leg.base import LaneLeg

if TYPE_CHECKING:
    from mirrorfs.fs.lane import Request
    from mirrorfs.fs.system import System


class Syncing(Beside):
    """Threads that sync legs.  `reply` answers a request."""

    name = 'sync'

    def __init__(
        self, system: 'System', reply: Callable[[int, int], None], redo: Callable[['Request'], None]
    ) -> None:
        super().__init__(system, limits.SYNC_THREADS, redo)
        self._reply = reply
        self._clock = system.clock

    def begin(self, table: HotTable, request: 'Request') -> bool:
        """Begin an FSYNC, on the lane's thread; return False where that is trio's."""
        legs = table.syncable
        if not legs:
            return False
        table.unflushed = table.unflushed_by_trio = 0
        table.flushes += 1
        began = self._clock()
        table.eager_until = began + limits.EAGER_SECONDS
        self._begin(Open(request, len(legs), (table, began)), [leg.sync for leg in legs])
        return True

    def _finish(self, opened: Open) -> None:
        table, began = opened.facts
        table.lane_flushes.add(self._clock() - began)
        self._reply(opened.request.unique, 0)

    def write_back(self, table: HotTable) -> None:
        """Have what was written to a volume begin to go to the media, if the next FSYNC is near.

        On the lane's thread, or its mate's.
        """
        legs = table.syncable
        if not legs or table.eager or self._clock() >= table.eager_until:
            return
        table.eager.extend([None] * len(legs))
        self._want(len(legs))
        for leg in legs:
            self._jobs.put((None, functools.partial(_write_back, table, leg)))


def _write_back(table: HotTable, leg: LaneLeg) -> None:
    try:
        leg.write_back()
    finally:
        table.eager.pop()
