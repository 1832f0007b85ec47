"""What all passes over a volume share (resync, recovery, scrub): how far they are, what is said of them, and
steps side by side.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from mirrorfs.volume.volume import Volume

EVENT_EVERY = 20
"""Percent."""
_MARKS = 10
_MARK_EVERY = 3.0
"""As with md, the speed is that of the last 27 to 30 seconds."""


@dataclass(slots=True)
class Progress:
    """How far a pass is.  Bytes; `began` in seconds of trio's clock.

    `done` of `total` is what there is to do; some of it may have been done before.  A scrub has a place in
    the volume, too: `position` of `end`, with what there is nothing to do for.
    """

    action: str
    slot: int | None
    done: int
    total: int
    began: float
    position: int | None = None
    end: int = 0
    settled: int = 0
    """How many windows `done` is of."""
    reached: int = 0
    """The chunk up to which this pass has done all that there was to do."""
    _step: int = field(init=False)
    """The share, in percent, at which the next event is due."""
    _marks: deque[tuple[float, int]] = field(init=False)
    """When so much was done."""

    def __post_init__(self) -> None:
        self._step = (self.percent // EVENT_EVERY + 1) * EVENT_EVERY
        self._marks = deque([(self.began, self.done)], maxlen=_MARKS)

    @property
    def percent(self) -> int:
        """The share that is done, rounded down; of nothing, all is."""
        return self.done * 100 // self.total if self.total else 100

    def advance(self, length: int, now: float) -> None:
        """So many bytes more are done."""
        self.done = min(self.total, self.done + length)
        if now - self._marks[-1][0] >= _MARK_EVERY:
            self._marks.append((now, self.done))

    def speed(self, now: float) -> float:
        """Bytes a second, lately."""
        since, done = self._marks[0]
        return (self.done - done) / max(now - since, 1e-3)

    def steps(self) -> list[int]:
        """Return the multiples of 20 percent, below 100, that were reached since the last call."""
        reached = []
        while self._step < 100 and self.percent >= self._step:
            reached.append(self._step)
            self._step += EVENT_EVERY
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


@dataclass(slots=True)
class Ending:
    """How a pass has ended, and with what."""

    done: bool = False
    result: str = ''


@contextmanager
def announced(volume: Volume, progress: Progress, what: str, todo: str, device: str = '') -> Iterator[Ending]:
    """Say that a pass begins and that it is over, as md does: also where it was interrupted, or failed.

    The body fills in the ending; an OSError is said, and goes on.
    """

    def say(word: str, text: str) -> None:
        volume.emit(word, volume.name, device, text)

    say('RebuildStarted', f'{what} {todo}')
    ending = Ending()
    try:
        yield ending
    except OSError as error:
        say('RebuildFinished', f'{what} failed: {error.strerror or error}')
        raise
    how = '' if ending.done else f' interrupted at {progress.percent}%'
    say('RebuildFinished', f'{what}{how}, {ending.result}')


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
