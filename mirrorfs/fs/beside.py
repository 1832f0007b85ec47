"""Requests that threads do beside the lane: what may take long, and needs nothing but the legs.

This is only the short way.  Where a leg fails, or takes long, or what the request relied on has changed, the
request goes to trio, which does it anew and decides what that means.

An open request belongs to whoever takes it out of `_open`: the thread that finishes it, or the watchdog.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirrorfs.fs.lane import Request
    from mirrorfs.fs.system import System

log = logging.getLogger(__name__)


class Open:
    """A request under way, with a token for each part that is not done."""

    __slots__ = ('facts', 'failed', 'left', 'request', 'seen')

    def __init__(self, request: 'Request', parts: int, facts: Any = None) -> None:
        self.request = request
        self.left = [None] * parts
        self.facts = facts
        """What it relies on, as `_finish` wants it."""
        self.failed = False
        self.seen: float | None = None
        """When the watchdog saw it first."""


class Beside:
    """Threads called `name`, `limit` at most.  `redo` has trio do a request instead."""

    name = 'beside'
    patience = 0.0
    """Seconds that the watchdog leaves a request here beyond those that it leaves the lane."""

    def __init__(self, system: 'System', limit: int, redo: Callable[['Request'], None]) -> None:
        self._redo = redo
        self._system = system
        self._limit = limit
        self._jobs = system.queue()
        self._threads = 0
        self._open: dict[int, Open] = {}

    def late(self, before: float, now: float) -> list['Request']:
        """Take those that were under way at time `before`, in seconds, and still are: they are trio's."""
        late = []
        for unique, opened in list(self._open.items()):
            if opened.seen is None:
                opened.seen = now
            elif opened.seen <= before - self.patience and self._open.pop(unique, None) is not None:
                late.append(opened.request)
        return late

    def close(self) -> None:
        """Let the threads end, each when the call that it may be in has returned."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _begin(self, opened: Open, parts: list[Callable[[], None]]) -> None:
        """Have threads do the parts of a request, on the lane's thread."""
        self._open[opened.request.unique] = opened
        self._want(len(parts) * len(self._open))
        for part in parts:
            self._jobs.put((opened, part))

    def _want(self, threads: int) -> None:
        """See that there are so many threads, or as many as there may be."""
        while self._threads < min(self._limit, threads):
            self._threads += 1
            self._system.start(self.name, self._serve)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            opened, part = job
            failed = False
            try:
                part()
            except OSError:
                failed = True
            except Exception:
                log.critical('unexpected error beside the data lane', exc_info=True)
                failed = True
            if opened is None:
                continue
            opened.failed |= failed
            opened.left.pop()
            if not opened.left and self._open.pop(opened.request.unique, None) is not None:
                self._end(opened)

    def _end(self, opened: Open) -> None:
        """All parts are through."""
        if opened.failed or not self._holds(opened):
            self._redo(opened.request)
            return
        try:
            self._finish(opened)
        except OSError:
            log.critical('a request cannot be answered', exc_info=True)

    def _holds(self, opened: Open) -> bool:
        """Whether what the request relied on is still so."""
        return True

    def _finish(self, opened: Open) -> None:
        """Answer a request all parts of which were done."""
        raise NotImplementedError
