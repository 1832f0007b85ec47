"""Threads for calls that can block, one small pool a leg, so that a hang stays one leg's.

A call that is cancelled is abandoned, not stopped: nothing can stop a thread in the kernel.  It stays
counted until it returns, which is what quarantine is built on.  Calls that still wait for a thread when the
pool is closed are refused, so that nothing starts after its leg was expelled.
"""

import errno
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import outcome
import trio

from mirrorfs.errors import LegError

T = TypeVar('T')


class _Call:
    __slots__ = ('abandoned', 'run', 'task', 'token')

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()
        self.abandoned = False


class Workers:
    """Runs blocking functions for one leg.  Used from trio's thread only."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = 0
        self.closed = False
        self._when_idle: Callable[[], None] | None = None
        self.calls = 0
        """Calls queued or running, abandoned ones included."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return function(*args), run in a thread.  Raises what it raises."""
        if self.closed:
            raise LegError(errno.ECANCELED, f'{self._name} is closed')
        call = _Call(lambda: function(*args))
        self.calls += 1
        if self._threads < min(self.calls, self._limit):
            self._threads += 1
            threading.Thread(target=self._serve, name=f'leg {self._name}'[-15:], daemon=True).start()
        self._queue.put(call)

        def abort(_: Any) -> trio.lowlevel.Abort:
            call.abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def close(self, when_idle: Callable[[], None]) -> None:
        """End the threads once the calls under way have returned; call `when_idle` after the last of them."""
        if not self.closed:
            self.closed = True
            self._when_idle = when_idle
            for _ in range(self._threads):
                self._queue.put(None)

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            result: outcome.Outcome[Any]
            if self.closed:
                result = outcome.Error(LegError(errno.ECANCELED, f'{self._name} is closed'))
            else:
                result = outcome.capture(call.run)
            try:
                call.token.run_sync_soon(self._finish, call, result)
            except trio.RunFinishedError:
                return

    def _finish(self, call: _Call, result: 'outcome.Outcome[Any]') -> None:
        self.calls -= 1
        if not call.abandoned:
            trio.lowlevel.reschedule(call.task, result)
        if not self.calls and self._when_idle:
            self._when_idle()
