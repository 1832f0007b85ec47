"""FSYNCs straight from the lane: each leg is synced in a thread, and the last one to succeed answers.

This is only the short way: where a leg fails, or takes long, the request goes to trio, which flushes anew and
decides what that means.  That is safe, since a leg whose sync has failed once fails all later ones
(`mirrorfs.leg.base.LaneLeg.sync`).  Legs may come and go meanwhile: what was acknowledged before the FSYNC is
on the legs that there were, and comes to a new one by a copy, which is flushed before the leg counts.

An open FSYNC belongs to whoever takes it out of `_open`: the thread that finishes it, or the watchdog.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mirrorfs import limits
from mirrorfs.hot import HotTable

if TYPE_CHECKING:
    from mirrorfs.fs.lane import Request
    from mirrorfs.fs.system import System

log = logging.getLogger(__name__)


class _Open:
    """An FSYNC under way, with a token for each leg that is not done."""

    __slots__ = ('began', 'failed', 'left', 'request', 'seen', 'table')

    def __init__(self, request: 'Request', legs: int, table: HotTable, began: float) -> None:
        self.request = request
        self.table = table
        self.began = began
        self.left = [None] * legs
        self.failed = False
        self.seen: float | None = None
        """When the watchdog saw it first."""


class Syncing:
    """Threads that sync legs.  `reply` answers a request; `redo` has trio do it instead."""

    def __init__(
        self, system: 'System', reply: Callable[[int, int], None], redo: Callable[['Request'], None]
    ) -> None:
        self._system = system
        self._reply = reply
        self._redo = redo
        self._jobs = system.queue()
        self._threads = 0
        self._open: dict[int, _Open] = {}

    def begin(self, table: HotTable, request: 'Request') -> bool:
        """Begin an FSYNC, on the lane's thread; return False where that is trio's."""
        syncs = table.syncs
        if not syncs:
            return False
        table.unflushed = table.unflushed_by_trio = 0
        table.flushes += 1
        self._open[request.unique] = flush = _Open(request, len(syncs), table, self._system.clock())
        while self._threads < min(limits.SYNC_THREADS, len(syncs) * len(self._open)):
            self._threads += 1
            self._system.start('sync', self._serve)
        for sync in syncs:
            self._jobs.put((flush, sync))
        return True

    def late(self, before: float, now: float) -> list['Request']:
        """Take those that were under way at time `before`, in seconds, and still are: they are trio's."""
        late = []
        for unique, flush in list(self._open.items()):
            if flush.seen is None:
                flush.seen = now
            elif flush.seen <= before and self._open.pop(unique, None) is not None:
                late.append(flush.request)
        return late

    def close(self) -> None:
        """Let the threads end, each when the sync that it may be in has returned."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            flush, sync = job
            try:
                sync()
            except OSError:
                flush.failed = True
            except Exception:
                log.critical('unexpected error in a sync', exc_info=True)
                flush.failed = True
            flush.left.pop()
            if not flush.left and self._open.pop(flush.request.unique, None) is not None:
                self._finish(flush)

    def _finish(self, flush: _Open) -> None:
        """All legs are through."""
        if flush.failed:
            self._redo(flush.request)
            return
        flush.table.lane_flushes.add(self._system.clock() - flush.began)
        try:
            self._reply(flush.request.unique, 0)
        except OSError:
            log.critical('an FSYNC cannot be answered', exc_info=True)
