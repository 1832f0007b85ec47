"""Scrubs: `check` compares all legs on their media, `repair` also rewrites what differs.

A pass goes window by window over what was ever written.  A window is held exclusively, so that a busy volume
gives no false alarm, made equal where a resync is due, then read from the medium of every leg in sync, past
the page cache; what waits there to be written is written first.  Nothing is written unless legs differ and
are to be repaired.

A repair writes like any other write: DIRTY first.  But a crash would let the resync of a dirty chunk copy
from any leg, also from the wrong one; so whose copy is right is durable before that (`Scrub.mending`), and
`Volume.trusted` has it from there.
"""

import errno
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import trio

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, LegTimeout, Refused
from mirrorfs.intent.states import UNWRITTEN
from mirrorfs.mirror import comparing
from mirrorfs.mirror.comparing import UNIT_SECTORS, Mismatch, Scrub, compare
from mirrorfs.mirror.fanout import Failures, fan_out
from mirrorfs.mirror.member import Member
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.pacing import Pacer
from mirrorfs.volume.passes import Progress, announced, run_all
from mirrorfs.volume.volume import Volume

MARK_BYTES = 256 << 20
_AHEAD = 1 << 12
"""Chunks that are looked at in one go for those that were written."""
_MENDING_MAX = 256
"""Units that a repair may have rewritten before they are flushed and it is stored how far it is."""
_POLL = 1.0
"""Seconds after which a pass that pauses at sync_max looks whether something else is to be done."""


class ScrubStore(Protocol):
    """Where a scrub's state is kept."""

    async def load_scrub(self, name: str) -> str:
        """Return the text that was saved last, empty if there is none.  Raises OSError."""
        ...

    async def save_scrub(self, name: str, text: str) -> None:
        """Make a text durable, whole or not at all.  Raises OSError."""
        ...


class Scrubber:
    """The scrub of one volume.  Its `Rebuilder` decides when it runs."""

    def __init__(self, volume: Volume, pacer: Pacer) -> None:
        self._volume = volume
        self._pacer = pacer
        self._store: ScrubStore | None = None
        self._saving = trio.Lock()
        self._changed = trio.Event()
        self._unreadable: Counter[int] = Counter()
        """Reads that failed in this pass, by slot."""
        self.state = self._stored = Scrub()

    async def load(self, store: ScrubStore) -> None:
        """Take up what was stored, and store what changes from now on."""
        self._store = store
        name = self._volume.name
        try:
            text = await store.load_scrub(name)
            if text:
                self.state = self._stored = comparing.decode(text, self._volume.record.uuid)
        except (BadMetadata, OSError) as error:
            self._volume.emit('Warning', name, '', f'what scrubs have found is lost: {error}')
        self._pacer.mode = self.state.mode
        self._volume.trusted = self.state.trusted()

    async def _alter(self, change: Callable[[Scrub], Scrub]) -> None:
        """Change the state, once the changed one is durable.  Raises OSError, and what `change` raises."""
        async with self._saving:
            await self._store_state(change(self.state))
            self.state = change(self.state)  # a pass may have moved on meanwhile
        self._volume.trusted = self.state.trusted()

    async def _save(self) -> None:
        """Make the state durable.  Raises OSError."""
        async with self._saving:
            await self._store_state(self.state)
        self._volume.trusted = self.state.trusted()

    async def _store_state(self, state: Scrub) -> None:
        if self._store:
            text = comparing.encode(state, self._volume.record.uuid)
            await self._store.save_scrub(self._volume.name, text)
        self._stored = state

    # What an admin says

    @property
    def ready(self) -> bool:
        """Whether a pass is wanted and there are legs to compare."""
        return bool(self.state.action) and len(self._volume.keeper.in_sync) > 1

    async def begin(self, action: str, source: int | None = None) -> None:
        """Ask for a pass of `check` or `repair`; `source` is the slot that a repair takes for right.

        Raises Refused: EBUSY while one is wanted, EINVAL where there is nothing to compare or to go by.
        """
        volume = self._volume
        in_sync = volume.keeper.in_sync
        if len(in_sync) < 2:
            raise Refused(errno.EINVAL, f'{volume.name} has {len(in_sync)} leg in sync: nothing to compare')
        if source is not None and source not in in_sync:
            what = f'leg {source} of {volume.name} is not in sync'
            raise Refused(errno.EINVAL, f'{what}; it cannot be what others are made equal to')
        if action == 'repair' and source is None and len(in_sync) < 3:
            legs = ' or '.join(f'repair {volume.record.place(slot)}' for slot in in_sync)
            why = 'has two legs in sync, and where they differ no majority tells which is right'
            raise Refused(errno.EINVAL, f'{volume.name} {why}; choose: {legs}')
        leg = None if source is None else volume.record.slots[source].leg
        await self._alter(lambda state: state.begin(action, leg))

    async def give_up(self) -> None:
        """No pass is wanted any more; the next one begins where this one was.  Raises OSError."""
        if self.state.action:
            self.state = self.state.give_up()
            self.poke()
            await self._save()

    def poke(self) -> None:
        """Something has changed that a pass which pauses may wait for."""
        self._changed.set()

    async def set_sync_min(self, sectors: int) -> None:
        """Set where the next pass begins.  Raises Refused."""
        await self._alter(lambda state: state.set_sync_min(sectors))

    async def set_sync_max(self, sectors: int | None) -> None:
        """Set where passes pause; None: nowhere.  Raises Refused."""
        await self._alter(lambda state: state.set_sync_max(sectors))
        self.poke()

    async def set_mode(self, mode: str) -> None:
        """Set how background copying treats the foreground.  Raises Refused."""
        await self._alter(lambda state: state.set_mode(mode))
        self._pacer.mode = mode

    # The pass

    async def run(self, ended: Callable[[], bool], show: Callable[[Progress], None]) -> None:
        """Go on with the pass that is wanted, to its end or until `ended`.  An OSError ends it for good."""
        volume, action = self._volume, self.state.action
        progress = self._progress()
        show(progress)
        self._unreadable.clear()
        self._pacer.begin()
        with announced(volume, progress, action, f'from byte {self.state.position} on') as ending:
            try:
                await self._go(progress, ended)
                await self._mark()
                if self.state.action and self._at_end():
                    self.state = self.state.finish()
                    await self._mark()
                    progress.done = progress.total
                    ending.done = True
                ending.result = self._found
            except OSError:
                self.state = self.state.give_up()
                await self._save_if_possible()
                raise

    @property
    def _found(self) -> str:
        sectors = self.state.differing * UNIT_SECTORS
        return f'{sectors} sectors differ' if sectors else 'all equal'

    def _at_end(self) -> bool:
        return self.state.position >= self._volume.record.size

    def _limit(self) -> int:
        """Return the byte at which the pass ends, or pauses."""
        size, sync_max = self._volume.record.size, self.state.sync_max
        return size if sync_max is None else min(size, sync_max * limits.SECTOR)

    def _progress(self) -> Progress:
        start, position = self.state.sync_min * limits.SECTOR, self.state.position
        size = self._volume.record.size
        before = self._amount(start, position)
        total = before + self._amount(position, size)
        now = trio.current_time()
        return Progress(self.state.action, None, before, total, now, position, size)

    async def _go(self, progress: Progress, ended: Callable[[], bool]) -> None:
        marked_at, marked = trio.current_time(), progress.done
        while self.ready and not ended() and not self._at_end():
            self._changed = trio.Event()
            limit = self._limit()
            if self.state.position >= limit:
                await self._mark()
                with trio.move_on_after(_POLL):
                    await self._changed.wait()
                continue
            windows, end = self._ahead(limit)
            await self._compare_all(windows, end)
            moved = sum(stop - start for start, stop in windows)
            now = trio.current_time()
            progress.advance(moved, now)
            progress.position, progress.end = end, self._volume.record.size
            for step in progress.steps():
                self._volume.emit(f'Rebuild{step}', self._volume.name)
            if self._is_due(now - marked_at, progress.done - marked):
                await self._mark()
                marked_at, marked = now, progress.done
            await self._pacer.pace(moved, ended)

    def _is_due(self, seconds: float, moved: int) -> bool:
        long_ago = seconds >= limits.MARK_INTERVAL or moved >= MARK_BYTES
        return long_ago or len(self.state.mending) >= _MENDING_MAX

    def _ahead(self, limit: int) -> tuple[list[tuple[int, int]], int]:
        """Return the next windows, (start, end) in bytes, and up to where nothing else is to be compared."""
        position, chunk = self.state.position, self._volume.record.chunk_size
        end = min(limit, (position // chunk + _AHEAD) * chunk)
        found: list[tuple[int, int]] = []
        for start, length in self._written(position, end):
            stop = start + length
            while start < stop:
                if len(found) == self._pacer.width:
                    return found, start
                border = min(stop, (start // limits.WINDOW + 1) * limits.WINDOW)
                found.append((start, border))
                start = border
        return found, end

    def _written(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (offset, length) of the parts of a range that were ever written."""
        if start >= end:
            return []
        first, last = self._volume.chunks_of(start, end - start)
        states = self._volume.log.states[first : last + 1]
        parts = []
        for low, high in runs(first + np.flatnonzero((states & np.uint8(UNWRITTEN)) == 0)):
            offset, length = self._volume.bytes_of(low, high)
            low_byte, high_byte = max(start, offset), min(end, offset + length)
            parts.append((low_byte, high_byte - low_byte))
        return parts

    def _amount(self, start: int, end: int) -> int:
        """Return how many bytes of a range were ever written."""
        if start >= end:
            return 0
        first, last = self._volume.chunks_of(start, end - start)
        chunk = self._volume.record.chunk_size
        written = (self._volume.log.states[first : last + 1] & np.uint8(UNWRITTEN)) == 0
        head, tail = start - first * chunk, (last + 1) * chunk - end
        return int(np.count_nonzero(written)) * chunk - head * bool(written[0]) - tail * bool(written[-1])

    async def _mark(self) -> None:
        """Have durable how far the pass is, after what it has rewritten."""
        if self.state.mending:
            await self._volume.flush()
            await self._volume.cache.settled()
            self.state = self.state.but(mending=())
        if self.state is not self._stored:
            await self._save()

    async def _save_if_possible(self) -> None:
        try:
            await self._save()
        except OSError as error:
            self._volume.emit('Error', self._volume.name, '', f'where the scrub is cannot be stored: {error}')

    # Windows

    async def _compare_all(self, windows: list[tuple[int, int]], end: int) -> None:
        """Compare some windows side by side; then the pass is at `end`."""
        source = self._source()
        found: list[Mismatch] = []
        left: list[Mismatch] = []
        jobs = [functools.partial(self._window, start, stop, source, found, left) for start, stop in windows]
        await run_all(jobs) if jobs else await trio.lowlevel.checkpoint()
        if self.state.action:
            self.state = self.state.seen(self.state.position, end, len(found), left)

    def _source(self) -> int | None:
        """Return the slot that is taken for right; None for the majority.  Raises OSError if it has left."""
        if self.state.source is None:
            return None
        slot = self._volume.record.slot_of(self.state.source)
        if slot not in self._volume.keeper.in_sync:
            raise OSError(errno.EIO, 'the leg that a repair was to copy from is not in sync any more')
        return slot

    async def _window(
        self, start: int, end: int, source: int | None, found: list[Mismatch], left: list[Mismatch]
    ) -> None:
        volume = self._volume
        first, last = volume.chunks_of(start, end - start)
        async with volume.exclusive(first, last):
            if volume.broken:
                raise OSError(errno.EIO, volume.broken)
            await volume.make_equal(first, last)
            for offset, length in self._written(start, end):
                pieces = await self._read(offset, length)
                differing = compare(offset, pieces)
                found += differing
                if differing and self.state.action == 'repair':
                    differing = await self._mend(offset, pieces, differing, source)
                left += differing

    async def _read(self, offset: int, length: int) -> dict[int, bytes]:
        """Return what each leg in sync has on its medium.  Raises OSError where none can be read.

        A leg with listed bad blocks in the range does not count there, so it has no say.
        """
        volume, keeper = self._volume, self._volume.keeper
        there = (keeper.members[slot] for slot in keeper.in_sync)
        members = {member.slot: member for member in there if not member.bad.touches(offset, length)}
        if len(members) < 2:
            return {}
        pieces: dict[int, bytes] = {}

        async def read(member: Member) -> None:
            pieces[member.slot] = bytes(await member.read_medium(offset, length))

        failures = await fan_out(list(members.values()), keeper.in_sync, read, keeper.leg_timeout)
        for slot, failure in failures.items():
            self._unreadable[slot] += 1
            volume.reader.failed(members[slot], offset, length, failure)
        if len(failures) == len(members):
            raise next(iter(failures.values()))
        keeper.expel(self._hopeless(failures))
        await keeper.settle()
        return {slot: piece for slot, piece in pieces.items() if slot in keeper.in_sync}

    def _hopeless(self, failures: Failures) -> Failures:
        """Return those that did not answer, or could not be read too often."""
        most = self._volume.record.max_read_errors
        return {
            slot: failure
            for slot, failure in failures.items()
            if isinstance(failure, LegTimeout) or self._unreadable[slot] > most
        }

    async def _mend(
        self, offset: int, pieces: Mapping[int, bytes], differing: list[Mismatch], source: int | None
    ) -> list[Mismatch]:
        """Rewrite what differs from what is right, where that is known; return what differs then."""
        plan: list[tuple[Mismatch, int, frozenset[int]]] = []
        for place in differing:
            right = place.majority if source is None else source
            wrong = None if right is None else place.others(right)
            if right is not None and wrong:
                plan.append((place, right, wrong))
        if not plan:
            return differing
        mending = [(place.offset, place.length, right) for place, right, _ in plan]
        self.state = self.state.but(mending=(*self.state.mending, *mending))
        await self._save()
        for place, right, wrong in plan:
            at = place.offset - offset
            await self._volume.rewrite(place.offset, pieces[right][at : at + place.length], wrong)
        return compare(offset, await self._read(offset, len(pieces[plan[0][1]])))
