"""What all passes over a volume share (resync, recovery, scrub): how far they are, and steps side by side."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio


@dataclass(slots=True)
class Progress:
    """How far a pass is.  Bytes; `began` in seconds of trio's clock.

    `done` of `total` is what there is to do.  `before` of it was done before `began`.  A scrub has a place in
    the volume, too: `position` of `end`, with what there is nothing to do for.
    """

    action: str
    slot: int | None
    done: int
    total: int
    began: float
    before: int = 0
    position: int | None = None
    end: int = 0
    settled: int = 0
    """How many windows `done` is of."""
    step: int = 20
    """The share, in percent, at which the next event is due."""

    def speed(self, now: float) -> float:
        """Bytes a second since the pass began."""
        return (self.done - self.before) / max(now - self.began, 1e-3)

    def steps(self) -> list[int]:
        """Return the multiples of 20 percent, below 100, that were reached since the last call."""
        reached = []
        while self.step < 100 and self.done * 100 >= self.step * self.total:
            reached.append(self.step)
            self.step += 20
        return reached


class SideBySide:
    """Steps of a pass that run side by side, begun in order.  The first OSError of one is kept in `error`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.begun = self.under_way = 0
        self.settled = 0
        """So many steps, counted from the first one, have all been done."""
        self.error: OSError | None = None
        self._done: set[int] = set()
        self._ended = trio.Event()

    def begin(self, step: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, self.begun, step)
        self.begun += 1
        self.under_way += 1

    async def _run(self, number: int, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
            self._done.add(number)
        except OSError as error:
            self.error = self.error or error
        while self.settled in self._done:
            self._done.remove(self.settled)
            self.settled += 1
        self.under_way -= 1
        self._ended.set()

    async def fewer_than(self, width: int) -> None:
        """Return when fewer steps than that are under way."""
        while self.under_way >= width:
            self._ended = trio.Event()
            await self._ended.wait()


async def run_all(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all jobs at once; raise the first OSError of one after all have ended."""
    errors: list[OSError] = []

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except OSError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(one, job)
    if errors:
        raise errors[0]
