"""The paths of data: write, flush, discard, grow; `reading` has the other one.  Owned by trio's thread.

The life of a write that takes the slow path (the data lane serves the others by the hot table):

1. hold its chunks exclusively; take them from the lane and wait until the lane has passed;
2. make equal what may differ (NEEDS_RESYNC), zero what was never written and holds garbage;
3. have DIRTY durable, UNWRITTEN durably gone (one commit serves all who wait);
4. write to all members; expel those that fail and have that durable before going on;
5. give the chunks to the lane.

Between two awaits the world stands still; after each, what was checked before is checked again or is held
by the lock.  A chunk that is held exclusively is never in the hot table.
"""

import errno
from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np
import trio

from mirrorfs import limits
from mirrorfs.errors import LegError, Refused
from mirrorfs.hot import HotTable
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.lookahead import Lookahead
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Buffer
from mirrorfs.locks import ChunkLocks
from mirrorfs.mirror import membership
from mirrorfs.mirror.behind import Backlog
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.comparing import UNIT
from mirrorfs.mirror.fanout import Failures, Verdict, fan_out, judge
from mirrorfs.mirror.keeper import Keeper
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume.cached import Cache, NoCache
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.copies import Copier
from mirrorfs.volume.counters import Counters
from mirrorfs.volume.gate import LaneGate
from mirrorfs.volume.narrowing import Narrower
from mirrorfs.volume.quorum import Quorum
from mirrorfs.volume.reading import Reader
from mirrorfs.volume.space import Space

Emit = Callable[..., None]
"""Says an event: emit(word, volume, device='', text='')."""


class Volume:
    """A started volume.  `mirrorfs.volume.start` makes one; `run` must be running while it is used."""

    keeper: Keeper

    def __init__(self, record: VolumeRecord, log: IntentLog, emit: Emit) -> None:
        self.log = log
        self.locks = ChunkLocks()
        self.hot = HotTable(record.size, record.chunk_size)
        self.quorum = Quorum(self)
        self.gate = LaneGate(self.hot, log, self.locks, self._takes_writes)
        self.lookahead = Lookahead()
        self.counters = Counters()
        self.narrower = Narrower(self)
        self.reader = Reader(self)
        self.space = Space(self)
        self.copier = Copier(self)
        self.cache: Cache = NoCache()
        """Whoever keeps what was read; told what changes otherwise than by a write that succeeds."""
        self.emit = emit
        self.broken = ''
        """Why writes and flushes answer EIO until the volume is started anew; empty while all is well."""
        self.lost_log = ''
        """Why the log outside the legs was given up, until somebody says where it is to be."""
        self.work = trio.Event()
        """Set when resync or recovery may have something to do."""
        self.shift = record.chunk_size.bit_length() - 1
        self._full_source: dict[int, int] = {}
        """Chunks of which a full filesystem kept a write from this slot, whose copy is the cheaper one."""
        self.trusted: dict[int, int] = {}
        """Slots whose copies of some units (64 KiB) are the right ones, by the word of a scrub."""
        self._blocked: set[int] = set()
        self._unblocked = trio.Event()
        self._unblocked.set()

    # What the volume is

    @property
    def record(self) -> VolumeRecord:
        return self.keeper.record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def members(self) -> list[Member]:
        return list(self.keeper.members.values())

    def bytes_of(self, first: int, last: int) -> tuple[int, int]:
        """Return offset and length, in bytes, of the chunks first..last (the last one may be short)."""
        offset = first << self.shift
        return offset, min((last + 1) << self.shift, self.record.size) - offset

    def chunks_of(self, offset: int, length: int) -> tuple[int, int]:
        return offset >> self.shift, (offset + length - 1) >> self.shift

    # Holding chunks, and the lane

    @asynccontextmanager
    async def exclusive(self, first: int, last: int) -> AsyncGenerator[None, None]:
        """Hold chunks first..last against every writer, the lane and recovery."""
        try:
            async with self.locks.hold(first, last):
                self.hot.withdraw(first, last)
                await self.hot.settle()
                yield
        finally:
            self.gate.offer(first, last)

    def retire(self) -> None:
        """Nothing is served any more, by the lane neither: its legs are about to be closed."""
        self.broken = self.broken or f'{self.name} is stopped'
        self.quorum.look()
        self.gate.close()
        self._unblocked.set()

    def legs_changing(self) -> None:
        """The members changed (see `Keeper`): no writes around the slow path until that is durable."""
        if self.gate.legs_changing():
            self.cache.changed(0, self.record.size)  # one of the legs may have decayed
        self.quorum.look()
        self.work.set()

    async def forget_modified(self) -> None:
        """Forget what absent legs lacked, once none is left that is tracked.

        In a commit of its own: pages become durable before superblocks, and a superblock that still promises
        to catch up a leg must find what that leg lacks.
        """
        if not membership.needs_tracking(self.record):
            self.log.update_chunks(self.log.where(MODIFIED), clear=MODIFIED)
            await self.keeper.commit()

    def leg_expelled(self, slot: int, path: str, reason: str, was: LegState) -> None:
        self.unblock(slot)
        word = 'FailSpare' if was is LegState.SPARE else 'Fail'
        self.emit(word, self.name, path, f'slot {self.record.place(slot)}: {reason}')
        if self.record.degraded and was is LegState.IN_SYNC:
            self.emit('DegradedArray', self.name)

    def leg_replaced(self, old: str, new: str) -> None:
        self.emit('Replaced', self.name, old, f'by {new}')

    # Legs that may be behind

    def start_falling_behind(self, nursery: trio.Nursery) -> None:
        """Members and record are durable: legs that it says may be behind, may; others are said to be."""
        record = membership.fall_behind(self.record) if self.keeper.session else self.record
        if record is not self.record:
            self.keeper.record = record
            self.legs_changing()
            return
        for slot, member in self.keeper.members.items():
            if self.record.slots[slot].behind and member.backlog is None:
                nursery.start_soon(self._run_backlog, member, member.fall_behind(self.record.backlog))

    async def _run_backlog(self, member: Member, backlog: Backlog) -> None:
        try:
            await backlog.run()
        except OSError as error:
            member.write_errors += 1
            if self.keeper.members.get(member.slot) is member:
                self.keeper.expel({member.slot: error})

    async def catch_up(self, slots: Sequence[int]) -> None:
        """Have legs behind no more; while all chunks are held.  One that fails, or is late, is expelled."""
        members = [m for m in self.members if m.slot in slots and m.backlog]
        patience = self.keeper.leg_timeout + limits.BACKLOG_BYTES_MAX / limits.FLUSH_RATE_MIN
        self.keeper.expel(await fan_out(members, None, lambda m: m.flush(), patience))
        for member in members:
            if member.backlog:
                member.backlog.drop(LegError(errno.ECANCELED, 'not behind any more'))
                member.backlog = None

    # Legs that must not be written for now

    async def block(self, slot: int) -> None:
        """Hold up all writes until `unblock`, or until the leg leaves."""
        self._blocked.add(slot)
        self._unblocked = trio.Event()
        self.hot.withdraw_writes()
        await self.hot.settle()

    def unblock(self, slot: int) -> None:
        self._blocked.discard(slot)
        if not self._blocked and not self._unblocked.is_set():
            self._unblocked.set()
            self.gate.offer_all()

    @property
    def blocked(self) -> frozenset[int]:
        """The slots of legs that hold up writes."""
        return frozenset(self._blocked)

    def log_lost(self, path: str, reason: str) -> None:
        self.lost_log = reason
        self.emit('LogLost', self.name, path, f'{reason}; all that was ever written counts as dirty now')

    def warn_of_shared_filesystem(self) -> None:
        """Say so if one dead disk would take several legs."""
        shared = [member for member in self.members if member.leg.sharing is not None]
        if len({member.leg.sharing for member in shared}) < len(shared):
            self.emit('Warning', self.name, '', 'legs are on the same filesystem; one dead disk takes both')

    # Writing

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """Write all of `data`; with `durable`, have it on stable storage on every leg that counts.

        Raises Refused(ENOSPC) beyond the end, OSError where no leg could take it.
        """
        length = len(data)
        if offset < 0 or offset + length > self.record.size:
            raise Refused(errno.ENOSPC, f'{self.name} ends at byte {self.record.size}')
        if length:
            first, last = self.chunks_of(offset, length)
            async with self.writing(first, last):
                await self.prepare(first, last)
                await self.write_members(first, last, Change(offset, length, data))
            self.counters.writes += 1
            self.counters.written_bytes += length
            self.hot.unflushed_by_trio += length
        if durable:
            await self.flush()
        if length:
            await self.quorum.assure()

    @asynccontextmanager
    async def writing(self, first: int, last: int) -> AsyncGenerator[None, None]:
        """Hold chunks first..last for a write, once writes are taken; nobody who waits for that holds any."""
        while True:
            self.refuse_if_broken()
            if self._blocked:
                await self._unblocked.wait()
                continue
            await self.quorum.assure()
            async with self.exclusive(first, last):
                if self.quorum.lost or self._blocked:
                    continue
                yield
                return

    def _takes_writes(self) -> bool:
        return not (self.broken or self._blocked or self.quorum.lost or self.cache.kept)

    async def prepare(self, first: int, last: int) -> None:
        """Make chunks that are held exclusively ready for a write to some of their bytes."""
        self.refuse_if_broken()
        await self.keeper.open_session()
        await self.make_equal(first, last)
        await self._zero_garbage(first, last)
        end = last
        while not self.log.is_durable(first, last, set_=self.keeper.marks, clear=UNWRITTEN):
            marks = self.keeper.marks
            self.log.update(first, last, set_=marks, clear=UNWRITTEN | UNZEROED)
            if marks == DIRTY and end == last:
                end = self.lookahead.ahead(first, last, len(self.log))
                if end > last:
                    self.log.update(last + 1, end, set_=DIRTY)
            await self.keeper.commit()
        if end > last:
            self.gate.offer(last + 1, end)

    async def _zero_garbage(self, first: int, last: int) -> None:
        """First write to chunks whose medium may hold anything: zeros, durably, before they count."""
        garbage = first + np.flatnonzero(self.log.states[first : last + 1] & np.uint8(UNZEROED))
        for low, high in runs(garbage):
            offset, length = self.bytes_of(low, high)
            await self.write_members(low, high, Change(offset, length))
        if len(garbage):
            await self.flush()

    async def write_members(self, first: int, last: int, change: Change) -> None:
        """Do a write on all members; return when every leg that counts has it."""
        members = self.members
        self.hot.touched_view()[first : last + 1] = 1
        failures = await self.narrower.write(members, change, self.keeper.in_sync)
        verdict = self._judge(members, failures)
        if verdict.error:
            self._failed_half_way(first, last, failures, verdict.error)
        self.keeper.expel(verdict.expel)
        if verdict.error:
            raise verdict.error
        await self.keeper.settle()
        if self.narrower.unheld(change):  # the leg that had what is bad on others has just failed
            error = LegError(errno.EIO, 'some blocks are bad on every leg')
            self._failed_half_way(first, last, {}, error)
            raise error

    def _judge(self, members: list[Member], failures: Failures, *, shared_full: bool = True) -> Verdict:
        for member in members:
            member.write_errors += member.slot in failures
        return judge(members, self.keeper.in_sync, failures, shared_full=shared_full)

    def _failed_half_way(self, first: int, last: int, failures: Failures, error: OSError) -> None:
        """Some legs may have taken a write that fails to the caller: equal again before the next read."""
        if len(self.keeper.members) > 1:
            self.log.update(first, last, set_=NEEDS_RESYNC)
            full = [slot for slot, failure in failures.items() if failure.errno == error.errno]
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._full_source.update(dict.fromkeys(range(first, last + 1), full[0]))
            self.work.set()
        self.emit('WriteError', self.name, '', f'chunks {first}-{last}: {error.strerror or error}')

    def refuse_if_broken(self) -> None:
        if self.broken:
            raise OSError(errno.EIO, self.broken)

    async def flush(self) -> None:
        """Put all acknowledged writes on stable storage on every leg that counts.

        A leg that fails is expelled.  When all fail, what they lost is unknown: the volume answers EIO
        from then on, since a second fsync that succeeds would prove nothing.
        """
        self.refuse_if_broken()
        members = self.members
        patience = self.keeper.leg_timeout + self.unflushed / limits.FLUSH_RATE_MIN
        self.hot.unflushed = self.hot.unflushed_by_trio = 0
        failures = await fan_out(members, self.keeper.in_sync, lambda m: m.flush(), patience)
        verdict = self._judge(members, failures, shared_full=False)
        if verdict.error:
            self.broken = f'flush failed on the last leg ({verdict.error.strerror}); mount the pool again'
            self.hot.withdraw_writes()
            self.quorum.look()
            self.emit('Critical', self.name, '', self.broken)
            raise OSError(errno.EIO, self.broken)
        self.keeper.expel(verdict.expel)
        await self.keeper.settle()
        self.counters.flushes += 1

    @property
    def unflushed(self) -> int:
        """Bytes written to each leg since the last flush began."""
        return self.hot.unflushed + self.hot.unflushed_by_trio

    # Making equal

    async def make_equal(self, first: int, last: int) -> None:
        """Make the legs equal in those of the chunks, held exclusively, that may differ."""
        doubtful = self.log.states[first : last + 1] & np.uint8(NEEDS_RESYNC)
        if not doubtful.any():
            return
        await self.keeper.open_session()
        for low, high in runs(first + np.flatnonzero(doubtful)):
            if not any(chunk in self._full_source for chunk in range(low, high + 1)):
                await self._equalise(low, high)
                continue
            for chunk in range(low, high + 1):
                await self._equalise(chunk, chunk)

    async def _equalise(self, first: int, last: int) -> None:
        written = first + np.flatnonzero(~self.log.states[first : last + 1] & np.uint8(UNWRITTEN))
        for low, high in runs(written):
            offset, length = self.bytes_of(low, high)
            copied = await self.copy_to(offset, length, self._full_source.pop(low, None), None)
            self.counters.resynced += copied
            self.cache.changed(offset, length)
        self.log.update(first, last, clear=NEEDS_RESYNC)

    async def copy_to(self, offset: int, length: int, preferred: int | None, target: int | None) -> int:
        """Copy a range, held exclusively, from an in-sync leg to `target`, or to all others for None.

        Returns the bytes copied.  Targets that fail are expelled, durably.  Raises OSError where no in-sync
        leg can be read, or where there is no room to make them equal from any of them.
        """
        copied = 0
        for start, end, slot in _by_source(offset, offset + length, self.trusted):
            source = preferred if slot is None else slot
            copied += await self.copier.copy(start, end - start, source, target)
        return copied

    async def rewrite(self, offset: int, data: Buffer, slots: Container[int]) -> None:
        """Write a range, whose chunks are held exclusively, to some legs: the others in sync have it already.

        Where that cannot be, the legs differ as before, and nothing else is done about it: to make them equal
        from just any leg could spread the wrong copy.
        """
        first, last = self.chunks_of(offset, len(data))
        await self.prepare(first, last)
        members, in_sync = self.members, self.keeper.in_sync
        self.hot.touched_view()[first : last + 1] = 1
        lacking = [member for member in members if member.slot in slots or member.slot not in in_sync]
        failures = await self.narrower.write(lacking, Change(offset, len(data), data), None)
        self.cache.changed(offset, len(data))
        self.hot.unflushed_by_trio += len(data)
        verdict = self._judge(members, failures)
        self.keeper.expel(verdict.expel)
        await self.keeper.settle()
        if verdict.error:
            raise verdict.error

    # Reading

    async def read(self, offset: int, length: int) -> Buffer:
        """Return the bytes there are in the range; fewer than `length` at the volume's end."""
        return await self.reader.read(offset, length)

    # Space

    async def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros and give its space back."""
        await self.space.discard(offset, length)

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space on all legs for a range; contents stay.  ENOSPC where one of them has none."""
        await self.space.allocate(offset, length)

    def seek(self, offset: int, *, data: bool) -> int:
        """Return where the next data, or the next hole, begins; see `Space.seek`."""
        return self.space.seek(offset, data=data)

    async def grow(self, size: int) -> None:
        """Make the volume larger while it is in use.  Raises Refused (EINVAL, ENOSPC), OSError."""
        await self.space.grow(size)


def _by_source(start: int, end: int, trusted: Mapping[int, int]) -> Iterator[tuple[int, int, int | None]]:
    """Cut a range of bytes into (start, end, slot) by whose copy is trusted; None: anybody's."""
    for unit in sorted(unit for unit in trusted if start < (unit + 1) * UNIT and unit * UNIT < end):
        low, high = max(start, unit * UNIT), min(end, (unit + 1) * UNIT)
        if start < low:
            yield start, low, None
        yield low, high, trusted[unit]
        start = high
    if start < end:
        yield start, end, None
