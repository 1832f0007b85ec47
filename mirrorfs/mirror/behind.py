"""Write-behind: what a write-mostly leg has still to get, in its order, while callers have their answers.

That a leg may be behind is durable on all legs before the first such write (`Slot.behind`): it is no source,
and does not start the volume alone after an unclean stop.  Whatever it lacks then lies in DIRTY chunks, since
these are cleared only after a flush, and a flush drains what is behind.
"""

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from mirrorfs import limits
from mirrorfs.leg.base import Buffer


class Backlog:
    """The writes that one leg is behind.  Offsets are bytes of the volume.

    At most `limit` writes, and BACKLOG_BYTES_MAX; who comes then waits.  Those that share a page keep their
    order (`mirrorfs.leg.direct` says why not only those that overlap); others go to the leg some at a time.
    """

    def __init__(self, write: Callable[[int, Buffer], Awaitable[None]], limit: int) -> None:
        self.limit = limit
        self.most = 0
        """The most writes that it has been behind."""
        self.error: OSError | None = None
        """Why the leg will not get the rest; raised to everybody from then on."""
        self._write = write
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._changed = trio.Event()

    @property
    def count(self) -> int:
        """How many writes it is behind."""
        return len(self._waiting)

    async def put(self, offset: int, data: Buffer) -> None:
        """Take a write over; waits for room.  Raises OSError once the leg has failed."""
        most = limits.BACKLOG_BYTES_MAX - len(data)
        while self.count >= self.limit or (self._bytes and self._bytes > most):
            self._refuse_if_failed()
            await self._changed.wait()
        self._refuse_if_failed()
        self._waiting.append((offset, bytes(data)))  # the caller's buffer is used again once it is answered
        self._bytes += len(data)
        self.most = max(self.most, self.count)
        self._wake()

    async def drained(self) -> None:
        """Return when nothing is behind.  Raises OSError where that will never be."""
        while self._waiting:
            self._refuse_if_failed()
            await self._changed.wait()
        self._refuse_if_failed()

    def drop(self, error: OSError) -> None:
        """Forget all: the leg gets no more."""
        self.error = self.error or error
        self._waiting.clear()
        self._bytes = 0
        self._wake()

    async def run(self) -> None:
        """Write what is behind until the leg fails, then raise its OSError; returns when dropped."""
        while self.error is None:
            if not self._waiting:
                await self._changed.wait()
                continue
            batch = self._next()
            errors: list[OSError] = []
            async with trio.open_nursery() as nursery:
                for offset, data in batch:
                    nursery.start_soon(self._write_one, offset, data, errors)
            if errors:
                self.drop(errors[0])
                raise errors[0]
            for _, data in batch:
                if self._waiting:
                    self._waiting.popleft()
                    self._bytes -= len(data)
            self._wake()

    def _next(self) -> list[tuple[int, bytes]]:
        """Return the oldest writes up to the first that shares a page with one of them."""
        batch: list[tuple[int, bytes]] = []
        pages: list[range] = []
        for offset, data in self._waiting:
            mine = range(offset // limits.PAGE, -(-(offset + len(data)) // limits.PAGE))
            shared = any(mine.start < other.stop and other.start < mine.stop for other in pages)
            if shared or len(batch) >= limits.LEG_CALLS:
                break
            batch.append((offset, data))
            pages.append(mine)
        return batch

    async def _write_one(self, offset: int, data: bytes, errors: list[OSError]) -> None:
        try:
            await self._write(offset, data)
        except OSError as error:
            errors.append(error)

    def _refuse_if_failed(self) -> None:
        if self.error:
            raise self.error

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
