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
