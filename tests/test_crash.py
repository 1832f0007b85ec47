"""Power cuts, kills and failing disks at every step of short histories: nothing acknowledged is lost.

The real volume code runs on simulated disks (`mirrorfs.sim`); `crashtools` has the scenarios and says how to
replay a failure.  MIRRORFS_CRASH_EACH (default 1) is with how many fates of unflushed writes each step is
cut, MIRRORFS_CRASH_SEED the first seed, MIRRORFS_CRASH_SEEDS how many of them.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from crashtools import (
    FATES,
    SCENARIOS,
    B,
    Explorer,
    Failed,
    World,
    perform,
    play,
    recover,
    replay,
    simulate,
    w,
)

from mirrorfs.errors import Refused
from mirrorfs.intent.states import DIRTY, UNWRITTEN
from mirrorfs.mirror.membership import Kinship, kinship
from mirrorfs.model import LegState
from mirrorfs.sim.checkers import newest
from mirrorfs.sim.crash import Frozen
from mirrorfs.sim.crashleg import Call, Medium
from mirrorfs.sim.world import CHUNK

EACH = int(os.environ.get('MIRRORFS_CRASH_EACH', '1'))
SEED = int(os.environ.get('MIRRORFS_CRASH_SEED', '0'))
SEEDS = range(SEED, SEED + int(os.environ.get('MIRRORFS_CRASH_SEEDS', '1')))


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', SCENARIOS)
def test_every_crash_of_a_scenario_recovers_all_that_was_promised(name: str, seed: int) -> None:
    explorer = Explorer(seed)
    explorer.explore(name, each=EACH, nested=0.05)
    assert explorer.states >= 40, 'a scenario with so few states explores nothing'


# Repeatable


def test_one_seed_gives_one_trace_and_another_seed_another() -> None:
    first, again, other = (play('overlap', seed).trace for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_trace_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = 'import crashtools, zlib; print(zlib.crc32(repr(crashtools.play("fail", 5).trace).encode()))'
    here = Path(__file__).parent
    outputs = set()
    for hash_seed in ('1', '2'):
        env = {**os.environ, 'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': f'{here}:{here.parent}'}
        done = subprocess.run(
            [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_a_case_replays_to_the_very_same_steps() -> None:
    world = play('fail', 0, lambda step: step == 40)
    direct = recover(world.frozen[0], 'tear:1', 'fail/0/40:tear:1')
    assert replay('fail/0/40:tear:1').trace == direct.trace


def test_a_failure_names_the_case_that_replays_it() -> None:
    world = play('write', 0, lambda step: step == 30)
    frozen = world.frozen[0]
    for disk in frozen.disks.values():
        disk.durable = Medium(disk.size)  # as if both disks had been wiped
    with pytest.raises(Failed, match=r'crashtools.py write/0/30:none'):
        recover(frozen, 'none', 'write/0/30:none')


def saves(world: World) -> int:
    """Return how often the pool's definition was written."""
    return sum(isinstance(item, Call) and item.kind == 'create' for item in world.calls)


# Starting


def media(world: World) -> list[Medium]:
    return [medium for disk in world.disks.values() for medium in (disk.durable, disk.visible)]


@pytest.mark.parametrize('name', ['write', 'fail', 'three', 'no-log'])
def test_starting_twice_without_a_write_changes_nothing_on_any_disk(name: str) -> None:
    world = play(name, 0, lambda step: step % 40 == 39)
    for frozen in [*world.frozen, world.freeze()]:
        recovered = recover(frozen, 'all', name)
        before = [medium.copy() for medium in media(recovered)]
        pool = recovered.pool

        async def twice(recovered: World = recovered) -> None:
            for _ in range(2):
                async with recovered.running():
                    await recovered.stop()

        simulate(twice, 0, name)
        assert media(recovered) == before
        assert recovered.pool == pool


def lone(frozen: Frozen, keep: str, away: str, case: str, *, write: bool) -> World | None:
    """Start without one disk, check, perhaps write, stop.  None where the rest may not start, rightly."""
    world = frozen.restart(keep, {away})
    refused = False

    async def main() -> None:
        nonlocal refused
        try:
            async with world.running():
                await world.check_recovery()
                if write:
                    await world.do(w(5))
                    await world.do(w(B))
                await world.stop()
        except* Refused:
            refused = True

    simulate(main, world.seed, f'{case} without {away}')
    if not refused:
        return world
    assert world.pool
    for name, disk in world.disks.items():
        slot = world.slot_of(disk)
        if name == away or slot is None:
            continue
        events = newest(disk).record.events
        good = world.pool.slots[slot].state is LegState.IN_SYNC and events >= world.pool.events
        said = newest(disk).record.slots[slot].state is LegState.IN_SYNC
        assert not (good and said), f'{case} without {away}: refused, though {name} is good'
    return None


def everyone(world: World, case: str, away: str) -> None:
    """Start with the disk that was away back: all is well, unless both sides had gone on alone."""
    back, others = world.disks[away], [disk for name, disk in world.disks.items() if name != away]
    slot = world.slot_of(back)
    theirs = newest(back).record
    apart = any(kinship(theirs.lineage, newest(disk).record.lineage) is Kinship.CONFLICT for disk in others)
    together = world.freeze().restart('all')
    refused: list[BaseException] = []

    async def main() -> None:
        try:
            async with together.running():
                await together.check_recovery()
                await together.stop()
        except* Refused as refusal:
            refused.extend(refusal.exceptions)

    simulate(main, together.seed, f'{case} with {away} back')
    if refused:
        assert apart, f'{case}: refused without a conflict: {refused}'
        assert f'slot {slot}' in str(refused[0])


@pytest.mark.parametrize(
    'name', ['write', 'overlap', 'fail', 'fail-first', 'readd-fail', 'no-log', 'discard']
)
def test_a_leg_that_is_missing_at_a_restart_is_caught_up_when_it_returns(name: str) -> None:
    world = play(name, 1, lambda step: step % 3 == 0)
    started = 0
    for number, frozen in enumerate(world.frozen):
        away, keep = f'd{number % 2}', FATES[number % len(FATES)]
        case = f'{name}/1/{frozen.step}:{keep}'
        survivor = lone(frozen, keep, away, case, write=number % 4 < 2)
        if survivor:
            started += 1
            everyone(survivor, case, away)
    assert started > 5


def test_what_was_read_without_a_leg_is_still_read_when_that_leg_is_back() -> None:
    """The write that one leg alone got before the crash must not vanish between two starts."""
    seen = 0
    world = play('overlap', 2, lambda step: step < 60)
    for frozen in world.frozen:
        for away in ('d0', 'd1'):
            keep = 'd1' if away == 'd0' else 'd0'
            survivor = lone(frozen, keep, away, f'overlap/2/{frozen.step}', write=False)
            if survivor:
                seen += 1
                everyone(survivor, f'overlap/2/{frozen.step}:{keep}', away)
    assert seen > 50


def test_the_stale_leg_alone_is_refused_once_a_write_without_it_was_acknowledged() -> None:
    world = perform(World(), [w(0), ('fail', 1), w(0)], 'stale')
    alone = world.freeze().restart('all', {'d0'})

    async def main() -> None:
        async with alone.running():
            pass

    with pytest.raises(Failed, match=r'Refused: v: no up-to-date leg is at hand'):
        simulate(main, 0, 'stale alone')
    assert media(alone) == media(world.freeze().restart('all')), 'a refused start must write nothing'


def test_an_old_copy_of_a_leg_does_not_count_and_is_brought_up_to_date() -> None:
    world = World()

    async def main() -> None:
        await world.make()
        await world.run([w(0), ('copy', 1)])
        await world.run([w(0), w(B), ('flush',)])
        world.rest('old', 1)
        async with world.running():
            assert world.started
            assert world.started.plan.members == (0,)
            assert 'old copy' in world.started.plan.stale[1]
            await world.do(('read', 0))
            await world.do(w(1))
            await world.do(('readd', 1))
            await world.do(('quiet',))
            world.checkers.equal()
            assert world.volume.keeper.in_sync == [0, 1]
            await world.stop()

    simulate(main, 0, 'old-copy')


# Copying no more than needed


@pytest.mark.parametrize('name', ['write', 'wide', 'overlap', 'sweep-race', 'discard'])
def test_a_resync_reads_no_more_than_the_dirty_chunks(name: str) -> None:
    world = play(name, 0, lambda step: step % 4 == 0)
    total = 0
    for number, frozen in enumerate(world.frozen):
        after = frozen.restart(FATES[number % len(FATES)])
        dirty = set()
        for disk in after.disks.values():
            states = (
                after.checkers.durable_states(disk)
                if not disk.pending
                else after.checkers.durable_states(disk.cut(keep_it))
            )
            dirty |= {n for n, s in enumerate(states.tolist()) if s & DIRTY and not s & UNWRITTEN}

        async def main(after: World = after) -> None:
            async with after.running():
                await after.do(('quiet',))

        simulate(main, 0, f'{name}/0/{frozen.step}')
        assert after.data_reads() <= len(dirty) * CHUNK
        total += after.data_reads()
    assert total, 'nothing was ever resynced: this test would prove nothing'


def keep_it(write: object) -> list[tuple[int, int]]:
    return [(0, 1 << 30)]


def test_a_leg_that_was_away_gets_only_the_chunks_written_meanwhile() -> None:
    world = World(chunks=8)
    history = [w(n * B) for n in range(8)] + [
        ('sweep',),
        ('fail', 1),
        w(0),
        w(5 * B),
        ('readd', 1),
        ('quiet',),
    ]
    perform(world, history, 'partial')
    assert world.data_reads() == 2 * 4096, 'one block of each of two chunks; holes are not read'


# Failing disks

SMALL = [
    w(0),
    w(B, 2),
    ('flush',),
    w(0),
    ('discard', B, B),
    ('read', 0),
    ('sweep',),
    w(2 * B),
    ('read', 2 * B),
]


def complaints(world: World) -> list[str]:
    """Return the errors that callers got."""
    return [event for event in world.events if event.startswith(('write:', 'flush:', 'read:'))]


def calls(kind: str, disk: str) -> int:
    """Return how many calls of a kind the small history makes on a disk."""
    return sum(call.kind == kind and call.disk == disk for call in perform(World(), SMALL, 'small').calls)


@pytest.mark.parametrize('sticky', [False, True], ids=['once', 'from then on'])
@pytest.mark.parametrize('disk', ['d0', 'd1'])
@pytest.mark.parametrize('kind', ['write', 'flush'])
def test_a_leg_is_expelled_at_any_failed_write_or_flush_and_nothing_is_lost(
    kind: str, disk: str, sticky: bool
) -> None:
    total = calls(kind, disk)
    assert total > 3
    for nth in range(1, total + 1):
        plan = range(nth, nth + 1000) if sticky else [nth]
        # Not EIO, which may be that of a block: such a write is tried again, block by block.
        world = World(faults={(disk, kind, n): errno.ENXIO for n in plan})
        case = f'small, {kind} {nth} of {disk} fails'
        perform(world, SMALL, case)
        assert world.pool
        assert world.pool.slots[int(disk[1])].state is not LegState.IN_SYNC, f'{case}: not expelled'
        assert world.pool.slots[1 - int(disk[1])].state is LegState.IN_SYNC, case
        assert not complaints(world), case
        recover(world.freeze(), FATES[nth % len(FATES)], case)


@pytest.mark.parametrize('disk', ['d0', 'd1'])
def test_any_failed_read_is_served_by_the_other_leg_and_expels_none(disk: str) -> None:
    total = calls('read', disk)
    for nth in range(1, total + 1):
        case = f'small, read {nth} of {disk} fails'
        world = perform(World(faults={(disk, 'read', nth): errno.EIO}), SMALL, case)
        assert not [event for event in world.events if event.startswith('read:')], case
        recover(world.freeze(), 'all', case)
    assert total >= 4


def test_a_pool_that_fails_to_save_fails_the_caller_and_expels_none() -> None:
    total = saves(perform(World(), SMALL + [('fail', 1)], 'small'))
    assert total >= 2
    for nth in range(1, total + 1):
        case = f'small, save {nth} of the pool fails'
        world = perform(World(faults={('pool', 'create', nth): errno.EIO}), SMALL, case)
        assert not [event for event in world.events if event.startswith('Fail')], case
        recover(world.freeze(), 'none', case)


def test_a_growth_that_fails_half_way_can_be_tried_again_also_with_another_size() -> None:
    total = saves(perform(World(), [w(0), ('grow', 9)], 'grow'))
    for nth in range(1, total + 1):
        case = f'grow, save {nth} of the pool fails'
        world = World(faults={('pool', 'create', nth): errno.EIO})
        perform(world, [w(0), ('grow', 9), w(0), ('grow', 5), ('grow', 12), w(11 * B)], case)
        assert world.pool
        assert world.pool.chunks == 12, case
        recover(world.freeze(), 'none', case)


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO])
def test_when_all_disks_fail_a_write_the_caller_gets_the_error_and_no_leg_goes(code: int) -> None:
    world = World()

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
            world.go_wrong({('d0', 'write', 0): code, ('d1', 'write', 0): code})
            await world.do(w(0))
            await world.do(w(B))
            assert len([event for event in world.events if event.startswith('write:')]) == 2
            assert volume.keeper.in_sync == [0, 1]
            world.go_wrong({})
            await world.do(('read', 0))
            await world.do(('quiet',))
            world.checkers.equal()
            await world.do(w(B))
            await world.do(('read', B))
            await world.stop()

    simulate(main, 0, 'all fail')
    recover(world.freeze(), 'none', 'all fail')


def test_one_full_disk_of_a_shared_filesystem_fails_the_write_and_legs_end_equal() -> None:
    world = World(sharing=7)

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
            world.go_wrong({('d1', 'write', 0): errno.ENOSPC})
            await world.do(w(0))
            assert [event for event in world.events if event.startswith('write:')]
            assert volume.keeper.in_sync == [0, 1]
            world.go_wrong({})
            await world.do(('read', 0))
            world.checkers.equal()
            await world.stop()

    simulate(main, 0, 'shared full')


def test_when_all_disks_fail_a_flush_the_volume_refuses_writes_until_it_is_started_anew() -> None:
    world = World()

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
            world.go_wrong({('d0', 'flush', 0): errno.EIO, ('d1', 'flush', 0): errno.EIO})
            await world.do(('flush',))
            world.go_wrong({})
            assert volume.broken
            with pytest.raises(OSError, match='flush failed on the last leg'):
                await volume.write(0, bytes(512))
            with pytest.raises(OSError, match='flush failed on the last leg'):
                await volume.flush()
            await world.stop()

    simulate(main, 0, 'flush')
    recover(world.freeze(), 'none', 'flush')


@pytest.mark.parametrize('nth', range(1, 5))
def test_failing_a_leg_by_hand_while_the_other_one_fails_by_itself_keeps_the_last_copy(nth: int) -> None:
    for kind in ('write', 'flush'):
        world = World(faults={('d0', kind, n): errno.EIO for n in range(nth, nth + 1000)})
        perform(world, [('fail', 1), w(0), ('fail', 1), w(1)], f'last copy, {kind} {nth}')
        assert world.pool
        assert list(world.pool.where(LegState.IN_SYNC)), 'no leg is in sync'


def test_two_legs_that_fail_at_about_the_same_time_do_not_both_leave() -> None:
    """A resync whose source was expelled meanwhile must not expel its target, by then the last copy."""
    world = World()

    async def dirty() -> None:
        await world.make()
        async with world.running():
            for chunk in range(3):
                await world.do(w(chunk * B))
            world.frozen = [world.freeze()]

    simulate(dirty, 0, 'two legs')
    for first in range(1, 12):
        for second in range(1, 14):
            after = world.frozen[0].restart('all')

            async def main(after: World = after, first: int = first, second: int = second) -> None:
                async with after.running() as volume:
                    after.go_wrong({('d0', 'write', first): errno.EIO, ('d1', 'write', second): errno.EIO})
                    after._calls.clear()
                    await after.do(('both', w(2 * B), ('both', w(5), ('quiet',))))
                    assert volume.keeper.in_sync, 'no leg is in sync'

            simulate(main, 0, f'write {first} of d0 and {second} of d1 fail')
    recover(after.freeze(), 'all', 'two legs')


def test_a_leg_that_never_answers_is_expelled_and_writers_go_on_in_bounded_time() -> None:
    world = World()

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
            world.hang('d1')
            with trio.fail_after(30):
                await world.do(w(0))
            assert volume.keeper.in_sync == [0]
            await world.do(('readd', 1))
            assert 'calls under way' in world.events[-1], 'a leg in quarantine came back'
            world.release('d1')  # the old write reaches the disk only now
            await world.do(w(0))
            await world.do(('readd', 1))
            await world.do(('quiet',))
            world.checkers.equal()
            await world.do(('read', 0))
            await world.stop()

    simulate(main, 0, 'hang')
    recover(world.freeze(), 'all', 'hang')
