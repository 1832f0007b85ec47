"""The checkers are checked: each bug planted here must be found by exploring crashes, and within bounds.

A plant switches one rule of the core off.  Those that need a failing disk or a missing leg bring the history
that shows them; all others must be found by the scenarios of `crashtools` as they are.
"""

import errno
import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio
from crashtools import SCENARIOS, B, Explorer, Failed, World, perform, recover, simulate, w

from mirrorfs.intent.log import Batch, IntentLog
from mirrorfs.intent.states import DIRTY, NEEDS_RESYNC, UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Leg
from mirrorfs.locks import ChunkLocks, Hold
from mirrorfs.mirror import assembly, formatting, keeper, membership
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.fanout import fan_out
from mirrorfs.mirror.keeper import Keeper
from mirrorfs.mirror.member import Member
from mirrorfs.model import VolumeRecord
from mirrorfs.sim.crashleg import CrashLeg
from mirrorfs.sim.violation import CHECKERS, Violation
from mirrorfs.volume import doubt, joining, lifecycle
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.clearing import Clearer
from mirrorfs.volume.lifecycle import Started
from mirrorfs.volume.reading import Reader
from mirrorfs.volume.rebuild import Rebuilder
from mirrorfs.volume.space import Space
from mirrorfs.volume.volume import Volume

STATES_MAX = 700
Patch = pytest.MonkeyPatch
PLANTS: dict[str, tuple[str, Callable[[Patch], None], Callable[[], None]]] = {}
"""Name of each bug to the checker that must find it, how it is planted, and the search."""
ALSO = {
    'recovery_marks_what_it_did_not_copy': ('clearing-last',),
    'the_mark_moves_before_the_target_was_flushed': ('clearing-last',),
}
"""Who could rightly see a bug first."""


def explore(*names: str, first: int = 0) -> None:
    """Explore scenarios, from a seed on, until one fails or the states are used up."""
    used = 0
    for seed in range(first, first + 4):
        for name in names:
            explorer = Explorer(seed)
            explorer.explore(name, each=2, nested=0.1)
            used += explorer.states
            if used > STATES_MAX:
                return


def plant(
    checker: str, *scenarios: str, by: Callable[[], None] | None = None, first: int = 0
) -> Callable[[Callable[[Patch], None]], None]:
    """Register a planted bug: which checker must find it, and where."""
    assert bool(scenarios) != bool(by) and set(scenarios) <= SCENARIOS.keys()
    assert checker in CHECKERS

    def register(sow: Callable[[Patch], None]) -> None:
        PLANTS[sow.__name__] = (checker, sow, by or functools.partial(explore, *scenarios, first=first))

    return register


# Intent


@plant('intent-first', 'write')
def pages_are_written_but_not_durably(patch: Patch) -> None:
    async def store(self: Member, batch: Batch) -> None:
        for page in sorted(batch.states):
            copy = 1 - int(self.page_copies[page])
            await self.leg.write(self.layout.page_offset(page, copy), batch.encode(page, copy))
            self.page_copies[page] = copy

    patch.setattr(Member, 'store_pages', store)


@plant('intent-first', 'write')
def the_keeper_does_not_wait(patch: Patch) -> None:
    async def commit(self: Keeper) -> None:
        self._wake.set()
        await trio.lowlevel.checkpoint()

    async def open_session(self: Keeper) -> None:
        if not self.session:
            self._session_wanted = True
            await commit(self)

    def is_durable(self: IntentLog, first: int, last: int, set_: int = 0, clear: int = 0) -> bool:
        return bool(np.all((self.states[first : last + 1] & np.uint8(set_ | clear)) == set_))

    patch.setattr(Keeper, 'commit', commit)
    patch.setattr(Keeper, 'open_session', open_session)
    patch.setattr(IntentLog, 'is_durable', is_durable)


@plant('intent-first', 'write')
def a_mark_counts_as_durable_when_it_is_only_wanted(patch: Patch) -> None:
    def is_durable(self: IntentLog, first: int, last: int, set_: int = 0, clear: int = 0) -> bool:
        self.update(first, last, set_=set_, clear=clear)
        return True

    patch.setattr(IntentLog, 'is_durable', is_durable)


@plant('intent-first', 'write')
def data_go_before_their_mark(patch: Patch) -> None:
    async def write(self: Volume, offset: int, data: bytes, *, durable: bool = False) -> None:
        first, last = self.chunks_of(offset, len(data))
        async with self.exclusive(first, last):
            await self.keeper.open_session()
            await self.write_members(first, last, Change(offset, len(data), data))
            await self.prepare(first, last)

    patch.setattr(Volume, 'write', write)


@plant('clearing-last', 'sweep-race', 'write')
def chunks_are_cleared_without_a_flush(patch: Patch) -> None:
    sweep = Clearer.sweep

    async def careless(self: Clearer) -> int:
        async def nothing() -> None:
            await trio.lowlevel.checkpoint()

        self._volume.flush = nothing  # type: ignore[method-assign]
        try:
            return await sweep(self)
        finally:
            del self._volume.flush

    patch.setattr(Clearer, 'sweep', careless)


@plant('clearing-last', 'sweep-race', first=2)
def a_chunk_is_cleared_that_is_being_written(patch: Patch) -> None:
    async def sweep(self: Clearer) -> int:
        volume = self._volume
        dirty = volume.log.where(DIRTY, NEEDS_RESYNC)
        await volume.flush()
        volume.log.update_chunks(dirty, clear=DIRTY)
        await volume.keeper.commit()
        return len(dirty)

    patch.setattr(Clearer, 'sweep', sweep)


@plant('fsync-durable', 'write', 'overlap')
def a_flush_flushes_one_leg_only(patch: Patch) -> None:
    async def flush(self: Volume) -> None:
        await self.members[0].leg.flush()

    patch.setattr(Volume, 'flush', flush)


@plant('intent-first', 'write', 'discard')
def unwritten_is_cleared_in_memory_only(patch: Patch) -> None:
    encode = Batch.encode

    def keep_unwritten(self: Batch, page: int, copy: int) -> bytes:
        stored = self.states[page].copy()
        stored[(stored & DIRTY) != 0] |= UNWRITTEN
        return encode(Batch(self.volume, self.serial, {page: stored}), page, copy)

    patch.setattr(Batch, 'encode', keep_unwritten)


@plant('clearing-last', 'write')
def a_clean_stop_forgets_to_flush(patch: Patch) -> None:
    async def stop(self: Started) -> None:
        await self.rebuilder.freeze()
        keeper = self.volume.keeper
        self.volume.log.update_chunks(self.volume.log.where(DIRTY, NEEDS_RESYNC), clear=DIRTY)
        keeper.record = keeper.record.but(active=False)
        await keeper.commit()

    patch.setattr(Started, 'stop', stop)


# Metadata copies


@plant('whole-copy', 'write')
def the_superblock_is_written_over_the_current_copy(patch: Patch) -> None:
    async def store(self: Member, record: VolumeRecord, serial: int) -> None:
        self.super_copy = 1 - self.super_copy
        await original(self, record, serial)

    original = Member.store_super
    patch.setattr(Member, 'store_super', store)


@plant('whole-copy', 'write')
def a_log_page_is_written_over_the_current_copy(patch: Patch) -> None:
    async def store(self: Member, batch: Batch) -> None:
        await original(self, batch)
        self.page_copies[list(batch.states)] ^= 1

    original = Member.store_pages
    patch.setattr(Member, 'store_pages', store)


@plant('whole-copy', 'write', 'overlap', 'wide')
def a_killed_process_left_metadata_in_the_page_cache_and_the_start_trusts_it(patch: Patch) -> None:
    original = Member.from_super.__func__  # type: ignore[attr-defined]

    def from_super(cls: type[Member], leg: Leg, *rest: Any) -> Member:
        assert isinstance(leg, CrashLeg)
        flush = leg.flush

        async def not_the_first() -> None:
            leg.flush = flush  # type: ignore[method-assign]

        leg.flush = not_the_first  # type: ignore[method-assign]
        leg.read_medium = leg.read  # type: ignore[method-assign]
        member: Member = original(cls, leg, *rest)
        return member

    patch.setattr(Member, 'from_super', classmethod(from_super))


# Expulsion


@plant('expulsion-first', 'fail', 'fail-first')
def the_pool_is_not_told_of_an_expulsion(patch: Patch) -> None:
    patch.setattr(keeper, '_definition', lambda record: record.size)


@plant('expulsion-first', 'fail', 'fail-first')
def the_legs_are_not_told_of_an_expulsion(patch: Patch) -> None:
    async def store(self: Member, record: VolumeRecord, serial: int) -> None:
        stale = [n for n, slot in enumerate(record.slots) if slot.state.is_stale]
        for number in stale:
            record = record.with_slot(number, record.slots[number].but(state=1))
        await original(self, record, serial)

    original = Member.store_super
    patch.setattr(Member, 'store_super', store)


@plant('log-covers', 'fail-dirty', 'fail')
def dirty_chunks_are_not_modified_when_a_leg_leaves(patch: Patch) -> None:
    patch.setattr(Keeper, 'mark_missed', lambda self: None)


@plant('log-covers', 'fail', 'fail-first')
def writes_without_a_leg_are_not_marked_modified(patch: Patch) -> None:
    patch.setattr(Keeper, 'marks', DIRTY)


def _a_write_fails_on_one_leg() -> None:
    history = [w(0), w(B), w(0), ('read', 0), ('flush',)]
    for nth in range(1, 40):
        world = World(faults={('d1', 'write', n): errno.ENXIO for n in range(nth, nth + 99)})
        perform(world, history, f'write {nth} of d1 fails')
        recover(world.freeze(), 'all', f'write {nth} of d1 fails')


@plant('acknowledged-everywhere', by=_a_write_fails_on_one_leg)
def a_leg_that_failed_a_write_stays(patch: Patch) -> None:
    patch.setattr(Keeper, 'expel', lambda self, failures, state=None: None)


@plant('expulsion-first', by=_a_write_fails_on_one_leg)
def a_leg_that_left_is_not_recorded_before_the_answer(patch: Patch) -> None:
    async def settle(self: Keeper) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Keeper, 'settle', settle)


def _a_shared_filesystem_is_full() -> None:
    for nth in range(1, 40):
        world = World(sharing=1, faults={('d1', 'write', nth): errno.ENOSPC})
        perform(world, [w(0), w(0), ('read', 0), w(B), ('read', B), ('quiet',)], f'ENOSPC {nth}')


@plant('clearing-last', by=_a_shared_filesystem_is_full)
def a_write_that_failed_half_way_is_not_made_equal(patch: Patch) -> None:
    patch.setattr(Volume, '_failed_half_way', lambda *arguments: None)


# Starting


@plant('log-covers', 'write', 'overlap')
def the_start_does_not_doubt_dirty_chunks(patch: Patch) -> None:
    def prepare(record: VolumeRecord, log: IntentLog, *, several: bool, **more: bool) -> bool:
        return original(record, log, several=False, **more)

    original = doubt.prepare
    patch.setattr(doubt, 'prepare', prepare)


@plant('equal', 'no-log-fail')
def an_unclean_stop_without_a_log_doubts_nothing_of_a_recovering_leg(patch: Patch) -> None:
    def prepare(record: VolumeRecord, log: IntentLog, **more: bool) -> bool:
        before = log.states & 2
        result = original(record, log, **more)
        log.states[:] = (log.states & ~np.uint8(2)) | before
        return result

    original = doubt.prepare
    patch.setattr(doubt, 'prepare', prepare)


def _only_the_stale_leg_is_left() -> None:
    world = perform(World(), [w(0), ('fail', 1), w(0), ('flush',)], 'stale')
    alone = world.freeze().restart('all', {'d0'})

    async def main() -> None:
        async with alone.running():
            await alone.check_recovery()

    simulate(main, 0, 'stale alone')


@plant('promise', by=_only_the_stale_leg_is_left)
def the_pool_is_no_witness(patch: Patch) -> None:
    def assemble(pool: VolumeRecord, *more: Any) -> assembly.Plan:
        return original(pool.but(events=1), *more)

    original = lifecycle.assemble
    patch.setattr(lifecycle, 'assemble', assemble)


@plant('clearing-last', 'old-copy', 'fail-first')
def any_leg_that_returns_is_taken_for_nearly_up_to_date(patch: Patch) -> None:
    patch.setattr(membership, 'can_catch_up', lambda record, number, leg: True)


# Making equal and recovery


@plant('log-covers', 'fail', 'fail-first')
def recovery_marks_what_it_did_not_copy(patch: Patch) -> None:
    async def copy_to(
        self: Volume, offset: int, length: int, preferred: int | None, target: int | None
    ) -> int:
        if target is None:
            return await original(self, offset, length, preferred, target)
        await trio.lowlevel.checkpoint()
        return length

    original = Volume.copy_to
    patch.setattr(Volume, 'copy_to', copy_to)


@plant('equal', 'write', 'overlap')
def a_resync_forgets_to_copy(patch: Patch) -> None:
    async def equalise(self: Volume, first: int, last: int) -> None:
        await trio.lowlevel.checkpoint()
        self.log.update(first, last, clear=NEEDS_RESYNC)

    patch.setattr(Volume, '_equalise', equalise)


@plant('log-covers', 'fail', 'fail-first', 'grow-legs')
def the_mark_moves_before_the_target_was_flushed(patch: Patch) -> None:
    async def flush_target(self: Rebuilder, slot: int) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    patch.setattr(Rebuilder, '_flush_target', flush_target)


@plant('one-order', 'fail-race', 'fail-first', 'grow-legs')
def nobody_excludes_anybody(patch: Patch) -> None:
    @asynccontextmanager
    async def hold(
        self: ChunkLocks, first: int, last: int, *, shared: bool = False
    ) -> AsyncGenerator[Hold, None]:
        await trio.lowlevel.checkpoint()
        yield Hold(first, last, shared)

    patch.setattr(ChunkLocks, 'hold', hold)


@plant('never-stale', 'grow-legs')
def reads_are_served_from_a_spare(patch: Patch) -> None:
    async def read_chunk(self: Reader, chunk: int, offset: int, length: int) -> bytes:
        keeper = self._volume.keeper
        if self._volume.log.states[chunk] & UNWRITTEN:
            return bytes(length)
        last = keeper.members[max(keeper.members)]
        return bytes(await last.read(offset, length))

    patch.setattr(Reader, '_read_chunk', read_chunk)


@plant('whole-copy', 'grow-legs', first=3)
def a_joining_leg_keeps_its_old_log(patch: Patch) -> None:
    async def format_leg(*arguments: Any, **_: Any) -> Member:
        leg, identity, slot, layout, log, record, serial = arguments[:7]
        member = Member(slot, leg, identity, layout, log.pages)
        await member.store_bad(record.uuid)
        await member.store_super_anew(record, serial)
        return member

    assert formatting.format_leg is joining.format_leg
    patch.setattr(joining, 'format_leg', format_leg)


# Space


@plant('intent-first', 'discard', 'discard-race')
def space_is_punched_before_the_state_says_so(patch: Patch) -> None:
    async def forget(self: Space, chunks: Any) -> None:
        volume = self._volume
        for low, high in runs(chunks):
            offset, length = volume.bytes_of(low, high)

            async def erase(member: Member, offset: int = offset, length: int = length) -> None:
                await member.leg.erase(member.layout.data_offset + offset, length)

            await fan_out(volume.members, volume.keeper.in_sync, erase, 3.0)
        await original(self, chunks)

    original = Space._forget
    patch.setattr(Space, '_forget', forget)


@plant('fsync-durable', 'discard')
def a_discarded_chunk_is_not_zeroed_at_its_next_write(patch: Patch) -> None:
    async def nothing(self: Volume, first: int, last: int) -> None:
        self.log.update(first, last, clear=UNZEROED)

    async def no_hole(self: CrashLeg, offset: int, length: int) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    patch.setattr(Volume, '_zero_garbage', nothing)
    patch.setattr(CrashLeg, 'erase', no_hole)


@pytest.mark.parametrize('name', PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: Patch) -> None:
    checker, sow, search = PLANTS[name]
    sow(monkeypatch)
    with pytest.raises(Failed) as found:
        search()
    violation = found.value.__cause__
    assert isinstance(violation, Violation), repr(violation)
    assert violation.checker in (checker, *ALSO.get(name, ())), repr(violation)


def test_the_searches_find_nothing_where_nothing_is_planted() -> None:
    for search in (_a_write_fails_on_one_leg, _a_shared_filesystem_is_full):
        search()
    with pytest.raises(Failed, match='no up-to-date leg is at hand'):
        _only_the_stale_leg_is_left()
