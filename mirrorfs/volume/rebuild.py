"""Background copying: resync makes doubtful chunks equal, recovery brings one leg up to date, then scrubs.

Both go window by window, each held exclusively while it is copied, so that they exclude writers from it and
from nothing else.  The durable mark of a recovery moves only after the target was flushed.
"""

import errno
import functools
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.intent.states import MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.mirror import membership
from mirrorfs.mirror.fanout import fan_out
from mirrorfs.model import LegState
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.pacing import Pacer
from mirrorfs.volume.passes import Progress, SideBySide, announced
from mirrorfs.volume.scrub import MARK_BYTES, Scrubber
from mirrorfs.volume.volume import Volume

RETRY = 5.0
"""Seconds to wait after a pass that failed."""


class Rebuilder:
    """Does what there is to do for one volume: resync, recovery, then scrub, one pass at a time."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.pacer = Pacer(volume)
        self.scrub = Scrubber(volume, self.pacer)
        self.progress: Progress | None = None
        self.last: Progress | None = None
        """The pass before, as far as it came."""
        self.frozen = False
        self._interrupted = False
        self._idle = trio.Event()
        self._idle.set()

    @property
    def action(self) -> str:
        """The word for sync_action."""
        if self.progress:
            return self.progress.action
        if self.frozen:
            return 'frozen'
        return self.scrub.state.action if self.scrub.ready else 'idle'

    def wake(self) -> None:
        """Look again for something to do."""
        self._volume.work.set()

    async def interrupt(self) -> None:
        """End the pass under way after its present windows."""
        self._interrupted = True
        self.scrub.poke()
        await self._idle.wait()

    async def freeze(self) -> None:
        """End the pass under way and begin no other until `thaw`."""
        self.frozen = True
        await self.interrupt()

    async def cancel(self) -> None:
        """End the pass under way; a scrub does not go on after that.  Raises OSError."""
        await self.scrub.give_up()
        await self.interrupt()

    async def begin_scrub(self, action: str, source: int | None = None) -> None:
        """Ask for a `check` or `repair`; see `Scrubber.begin`.  Refused(EBUSY) during another pass."""
        if self.progress:
            raise Refused(errno.EBUSY, f'{self.progress.action} is under way')
        await self.scrub.begin(action, source)
        self.thaw()

    def thaw(self) -> None:
        self.frozen = False
        self.wake()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            self._volume.work = trio.Event()
            self._interrupted = False
            if not self.frozen:
                self._idle = trio.Event()
                try:
                    await self._work()
                except OSError:  # which was said
                    with trio.move_on_after(RETRY):
                        await self._volume.work.wait()
                    continue
                finally:
                    self.last, self.progress = self.progress or self.last, None
                    self.pacer.end()
                    self._volume.copier.buffers.forget()
                    self._idle.set()
            await self._volume.work.wait()

    async def _work(self) -> None:
        while not self._interrupted:
            spare = self._spare()
            if self.doubtful():
                await self._resync()
            elif spare is not None:
                await self._recover(spare)
            elif self.scrub.ready:
                await self.scrub.run(self._is_needed_elsewhere, self._show)
            else:
                return

    def doubtful(self) -> bool:
        """Whether legs are to be made equal."""
        volume = self._volume
        return len(volume.keeper.counting) > 1 and volume.log.count(NEEDS_RESYNC) > 0

    def _spare(self) -> int | None:
        """Return a slot that is to be recovered."""
        volume = self._volume
        return next((s for s in volume.record.where(LegState.SPARE) if s in volume.keeper.members), None)

    def _is_needed_elsewhere(self) -> bool:
        """Whether a scrub must make way."""
        news = self._volume.work.is_set()  # to look is not cheap on a large volume
        return self._interrupted or (news and (self._spare() is not None or self.doubtful()))

    def _show(self, progress: Progress) -> None:
        self.progress = progress

    # Resync

    async def _resync(self) -> None:
        volume = self._volume
        todo = volume.log.where(NEEDS_RESYNC)
        before = volume.counters.resynced

        async def window(first: int, last: int) -> None:
            async with volume.exclusive(first, last):
                await volume.make_equal(first, last)

        progress = self._begin('resync', None, 0, len(todo))
        with announced(volume, progress, 'resync', f'of {len(todo)} chunks') as ending:
            ending.done = await self._pass(progress, todo, window, self._nothing)
            ending.result = f'{volume.counters.resynced - before} bytes copied'

    async def _nothing(self, position: int) -> None:
        pass

    # Recovery

    async def _recover(self, slot: int) -> None:
        volume = self._volume
        todo = self._needed(slot)
        path = volume.keeper.members[slot].leg.path
        before = volume.counters.recovered

        async def window(first: int, last: int) -> None:
            async with volume.exclusive(first, last):
                await volume.make_equal(first, last)
                if not self._still(slot):
                    return
                written = first + np.flatnonzero(~volume.log.states[first : last + 1] & np.uint8(UNWRITTEN))
                for low, high in runs(written):
                    copied = await volume.copy_to(*volume.bytes_of(low, high), None, slot)
                    volume.counters.recovered += copied  # not in one line: windows run side by side

        async def mark(position: int) -> None:
            await self._mark(slot, todo[todo < position], position)

        progress = self._begin('recover', slot, self._recovered(slot), len(todo))
        with announced(volume, progress, 'recovery', f'of {len(todo)} chunks', path) as ending:
            done = await self._pass(progress, todo, window, mark, lambda: self._still(slot))
            if done and self._still(slot) and await self._flush_target(slot):
                await self._complete(slot)
                ending.done = True
            ending.result = f'{volume.counters.recovered - before} bytes copied'
        if ending.done:
            volume.emit('SpareActive', volume.name, path)

    def _needed(self, slot: int) -> npt.NDArray[np.intp]:
        """Return the chunks (intp [n], ascending) that a recovering leg needs.

        Writes from now on reach it by themselves, so one pass over these is enough.
        """
        record, states = self._volume.record.slots[slot], self._volume.log.states
        needed = (states & np.uint8(MODIFIED)) != 0
        if record.full:
            needed[record.mark :] = True
        return np.flatnonzero(needed & ((states & np.uint8(UNWRITTEN)) == 0))

    def _recovered(self, slot: int) -> int:
        """Return how many chunks of a full recovery were copied before, up to its durable mark."""
        record, states = self._volume.record.slots[slot], self._volume.log.states
        below = states[: record.mark] if record.full else states[:0]
        return int(np.count_nonzero((below & np.uint8(UNWRITTEN | MODIFIED)) == 0))

    def _still(self, slot: int) -> bool:
        return slot in self._volume.keeper.members

    async def _flush_target(self, slot: int) -> bool:
        """Flush a recovering leg; expel it and return False if it cannot."""
        volume = self._volume
        members = [volume.keeper.members[slot]]
        waiting = volume.unflushed + MARK_BYTES
        patience = volume.keeper.leg_timeout + waiting / limits.FLUSH_RATE_MIN
        failures = await fan_out(members, None, lambda m: m.flush(), patience)
        volume.keeper.expel(failures)
        await volume.keeper.settle()
        return not failures and self._still(slot)

    async def _mark(self, slot: int, copied: npt.NDArray[np.intp], position: int) -> None:
        """Have durably recorded that the target has all that it needs below chunk `position`."""
        volume, keeper = self._volume, self._volume.keeper
        if not self._still(slot) or not await self._flush_target(slot):
            return
        if volume.record.slots[slot].full and position > volume.record.slots[slot].mark:
            keeper.record = membership.advance(volume.record, slot, position)
        if not membership.absentees_tracked(volume.record) and self._only_spare(slot):
            volume.log.update_chunks(copied, clear=MODIFIED)
        await keeper.commit()

    def _only_spare(self, slot: int) -> bool:
        return list(self._volume.record.where(LegState.SPARE)) == [slot]

    async def _complete(self, slot: int) -> None:
        volume, keeper = self._volume, self._volume.keeper
        replaced = volume.record.slots[slot].replaces
        if replaced >= 0:
            keeper.take_over(slot)
        else:
            keeper.record = membership.complete(volume.record, slot)
            volume.legs_changing()
        await keeper.settle()
        await volume.forget_modified()

    # Both

    def _begin(self, action: str, slot: int | None, before: int, todo: int) -> Progress:
        """A pass over `todo` chunks begins, with `before` of the same done earlier."""
        chunk = self._volume.record.chunk_size
        total = (before + todo) * chunk
        self.progress = Progress(action, slot, before * chunk, total, trio.current_time())
        return self.progress

    async def _pass(
        self,
        progress: Progress,
        todo: npt.NDArray[np.intp],
        window: Callable[[int, int], Awaitable[None]],
        mark: Callable[[int], Awaitable[None]],
        wanted: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Run `window` over all of `todo`, some at a time; return whether the pass came to its end."""
        chunk = self._volume.record.chunk_size
        pieces = windows(todo, max(1, limits.WINDOW // chunk))
        self.pacer.begin()
        async with trio.open_nursery() as nursery:
            steps, marks = SideBySide(nursery), SideBySide(nursery)
            marked, marked_at = progress.done, progress.began
            ends = [0]  # how many pieces there are up to each step

            def stopped() -> bool:
                return bool(self._interrupted or steps.error or marks.error or not wanted())

            while ends[steps.settled] < len(pieces) and not (stopped() and not steps.under_way):
                if ends[-1] < len(pieces) and not stopped():
                    end = stretch(pieces, ends[-1], self.pacer.stride)
                    steps.begin(functools.partial(window, pieces[ends[-1]][0], pieces[end - 1][1]))
                    ends.append(end)
                    await steps.fewer_than(self.pacer.width)
                else:
                    await steps.fewer_than(steps.under_way)
                moved = self._advance(progress, pieces, ends[steps.settled], chunk)
                now = trio.current_time()
                due = now - marked_at >= limits.MARK_INTERVAL or progress.done - marked >= MARK_BYTES
                if due and not marks.under_way and progress.done > marked:
                    # Beside the next windows: a flush takes long, and they need not be in it.
                    marks.begin(functools.partial(mark, pieces[ends[steps.settled] - 1][1] + 1))
                    marked, marked_at = progress.done, now
                await self.pacer.pace(moved, lambda: self._interrupted)
        settled = ends[steps.settled]
        self._advance(progress, pieces, settled, chunk)
        if error := steps.error or marks.error:
            raise error
        if settled < len(pieces):
            if marked < progress.done:
                await mark(pieces[settled][0])
            return False
        return True

    def _advance(self, progress: Progress, pieces: list[tuple[int, int]], settled: int, chunk: int) -> int:
        """Say how far a pass is, of which so many pieces are done; return the bytes since the last time."""
        moved = sum(last - first + 1 for first, last in pieces[progress.settled : settled]) * chunk
        progress.settled = settled
        if settled:
            progress.reached = pieces[settled - 1][1] + 1
        progress.advance(moved, trio.current_time())
        for step in progress.steps():
            self._volume.emit(f'Rebuild{step}', self._volume.name)
        return moved


def stretch(pieces: list[tuple[int, int]], at: int, most: int) -> int:
    """Return the end of the pieces from number `at` on that lie side by side, `most` of them."""
    end = at + 1
    while end < min(len(pieces), at + most) and pieces[end][0] == pieces[end - 1][1] + 1:
        end += 1
    return end


def windows(chunks: npt.NDArray[np.intp], most: int) -> list[tuple[int, int]]:
    """Cut ascending chunk numbers (intp [n]) into (first, last) windows of at most `most` chunks."""
    cut: list[tuple[int, int]] = []
    for first, last in runs(chunks):
        cut.extend((at, min(last, at + most - 1)) for at in range(first, last + 1, most))
    return cut
