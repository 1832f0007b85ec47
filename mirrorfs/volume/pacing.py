"""How fast background copying may go: md's floor and ceiling, and a mode that yields to foreground I/O.

    nobody else uses the volume     as fast as it can; a ceiling that the admin has set holds
    somebody does, mode ``fixed``   up to the ceiling (md's, or the admin's)
    somebody does, mode ``yield``   the same, and after each step a rest, so long that callers hardly notice
    below the floor                 the foreground is ignored

What callers notice is measured by counters that are there anyway, so that it costs the data lane nothing.
Those who wait for each answer get fewer while a step is under way than in the rests between: how many fewer
is how much longer they wait.  Of requests that take the slow path it is known how long they take, and how
long they took before the pass.
"""

from collections.abc import Callable

import trio

from mirrorfs import limits
from mirrorfs.volume.volume import Volume

ACTIVE_FOR = 0.5
"""Seconds after its last request during which the foreground counts as active."""
ADAPT_EVERY = 0.2
SLICE = 0.25
"""A rest is cut into such pieces, between which it can be ended."""
NOTICED = 1.5
"""How much longer than undisturbed requests may take, on average, before the rests become longer."""
REST_MIN = 0.002


class Pacer:
    """Paces the passes of one volume, which go one at a time."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.enabled = True
        self.mode = 'yield'
        self.backoff = 4.0
        """How long a rest is, in times that the step before took."""
        self._active_until = 0.0
        self._owed = 0.0
        """When the ceiling allows the next step."""
        self._usual: float | None = None
        """Seconds that a request of the slow path took while no pass was under way."""
        self._mark = self._slow_mark = (0.0, 0)
        self._requests = 0
        self._step_began = 0.0
        self._forget()

    def _forget(self) -> None:
        self._step_time = self._rest_time = 0.0
        self._step_requests = self._rest_requests = 0
        self._slow_mark = self._slow

    @property
    def _slow(self) -> tuple[float, int]:
        counters = self._volume.counters
        return counters.waited, counters.waits

    def begin(self) -> None:
        """A pass begins."""
        seconds, count = (now - then for now, then in zip(self._slow, self._mark, strict=True))
        if count:
            self._usual = seconds / count
        self._requests = self._seen()
        self._step_began = self._owed = trio.current_time()
        self._forget()

    def end(self) -> None:
        """The pass is over: what requests take from now on is usual."""
        self._mark = self._slow

    @property
    def _yields(self) -> bool:
        return self.enabled and self.mode == 'yield' and trio.current_time() < self._active_until

    @property
    def width(self) -> int:
        """How many steps may be under way side by side."""
        return 1 if self._yields else limits.WINDOWS_IN_FLIGHT

    @property
    def stride(self) -> int:
        """How many windows that lie side by side a step may take; large ones overshoot a ceiling."""
        return 1 if self._yields or self._volume.record.speed_max else limits.STRIDE

    @property
    def floor(self) -> int:
        """Bytes a second."""
        return (self._volume.record.speed_min or limits.SPEED_MIN) * 1024

    async def pace(self, moved: int, ended: Callable[[], bool]) -> None:
        """Rest after a step that moved so many bytes, as long as it should be; less once `ended`."""
        if not self.enabled:
            return
        now = trio.current_time()
        took = now - self._step_began
        during = self._count()
        if during:
            self._active_until = now + ACTIVE_FOR
        active = now < self._active_until
        until = self._rest_until(now, took, moved, active)
        while (left := until - trio.current_time()) > 0 and not ended():
            await trio.sleep(min(left, SLICE))
        self._step_began = trio.current_time()
        rested = self._count()
        if rested:
            self._active_until = self._step_began + ACTIVE_FOR
        self._learn(took, during, self._step_began - now, rested)

    def _rest_until(self, now: float, took: float, moved: int, active: bool) -> float:
        """Return when the next step may begin."""
        record = self._volume.record
        ceiling = (record.speed_max or (limits.SPEED_MAX if active else 0)) * 1024
        until = now
        if active and self.mode == 'yield':
            until = now + max(REST_MIN, took * self.backoff)
        if active:  # not so slow that the floor is missed
            until = min(until, max(now, self._step_began + moved / self.floor))
        if ceiling:
            self._owed = max(self._owed, self._step_began) + moved / ceiling
            until = max(until, self._owed)
        return until

    def _seen(self) -> int:
        hot, counters = self._volume.hot, self._volume.counters
        return hot.reads + hot.writes + counters.reads + counters.writes

    def _count(self) -> int:
        """Return how many requests were served since the last call."""
        before, self._requests = self._requests, self._seen()
        return self._requests - before

    def _learn(self, took: float, during: int, rest: float, rested: int) -> None:
        self._step_time += took
        self._step_requests += during
        self._rest_time += rest
        self._rest_requests += rested
        if self._step_time + self._rest_time < ADAPT_EVERY or not self._rest_time:
            return
        slower = max(self._fewer(), self._longer())
        change = 1.5 if slower > NOTICED else 0.9
        self.backoff = min(limits.BACKOFF_MAX, max(limits.BACKOFF_MIN, self.backoff * change))
        self._forget()

    def _fewer(self) -> float:
        """Return how many times more requests there would have been with nothing but rests."""
        requests = self._step_requests + self._rest_requests
        if not requests:
            return 1.0
        return (self._rest_requests / self._rest_time) * (self._step_time + self._rest_time) / requests

    def _longer(self) -> float:
        """Return how many times longer than usual requests of the slow path take."""
        seconds, count = (now - then for now, then in zip(self._slow, self._slow_mark, strict=True))
        return seconds / count / self._usual if count and self._usual else 1.0
