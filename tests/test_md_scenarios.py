"""What scenarios of mdadm's test suite prove, written anew on real mounts; and how many bytes that costs.

01r1fail: legs fail during the first copy, and come back.  05r1-re-add: a leg that missed nothing copies
nothing, one that missed some copies that, one that missed all recovers.  05r1-re-add-nosuper: without a
superblock a leg is not taken back.  05r1-failfast: a word on a leg is kept until it is taken back.

Others are in test_leg_verbs (01replace, 02r1add, 02r1grow, 06wrmostly) and test_log_places
(05r1-*internalbitmap).
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import MIB, MountedPool, Volume, cli_ok, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(240)]
GIB, TIB = 1 << 30, 1 << 40


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as mounted:
        yield mounted.start()


def write(volume: Volume, at: int, length: int) -> None:
    block = random.Random(at).randbytes(MIB)
    with volume.open() as fd:
        for offset in range(at, at + length, MIB):
            os.pwrite(fd, block[: min(MIB, at + length - offset)], offset)
        os.fsync(fd)


def clean(volume: Volume) -> None:
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'no chunk dirty')


def recovered(volume: Volume) -> int:
    copied: int = volume.status()['recovered_bytes']
    return copied


def shape(volume: Volume) -> str:
    """Return md's map of the legs, as ``UU_``."""
    line = (volume.pool.control / 'mdstat').read_text().split(f'{volume.name} :')[1].splitlines()[1]
    return line.rsplit('[', 1)[1].rstrip(']')


def assert_equal(volume: Volume, *legs: Path) -> None:
    volume.pool.stop()
    volume.legs = list(legs)
    volume.assert_legs_equal()


def test_legs_that_fail_during_the_first_copy_come_back_until_all_are_up(pool: MountedPool) -> None:
    """01r1fail: U___, then UUU_, then UUUU."""
    volume = pool.volume('md', size=16 * MIB, legs=1)
    write(volume, 0, 12 * MIB)
    legs = [volume.legs[0], *(pool.legs / f'md.new{n}' for n in range(3))]
    volume.write('raid_disks', '4')
    volume.write('sync_action', 'frozen')
    for leg in legs[1:]:
        volume.write('add', str(leg))
    assert shape(volume) == 'U___'
    for number in ('1', '2', '3'):
        volume.write('fail', number)
        volume.write('remove', number)
    volume.write('sync_action', 'idle')
    for leg in legs[1:3]:
        volume.write('add', str(leg))
    volume.settled()
    assert shape(volume) == 'UUU_'
    with open(legs[3], 'r+b') as leg:  # its superblocks are zeroed: it is a stranger now
        leg.write(bytes(16384))
    volume.write('add', f'{legs[3]} force')
    volume.settled()
    assert shape(volume) == 'UUUU'
    assert_equal(volume, *legs)


def test_a_leg_that_is_re_added_copies_what_it_missed_and_nothing_else(pool: MountedPool) -> None:
    """05r1-re-add."""
    volume = pool.volume('md', size=64 * MIB, options='chunk=64K')
    volume.write('bitmap/time_base', '0.1')
    write(volume, 0, 64 * MIB)
    clean(volume)

    def away(missed: int) -> int:
        """Fail a leg, write so many bytes without it, take it back; return the bytes that were copied."""
        volume.write('fail', '1')
        volume.write('remove', '1')
        if missed:
            write(volume, 0, missed)
            clean(volume)
        before = recovered(volume)
        volume.write('re-add', '1')
        volume.settled()
        clean(volume)
        return recovered(volume) - before

    assert away(0) == 0
    assert away(640 << 10) == 640 << 10, 'one percent of the chunks'
    assert away(64 * MIB) == 64 * MIB
    assert_equal(volume, *volume.legs)


def test_a_leg_without_a_superblock_is_not_re_added(pool: MountedPool) -> None:
    """05r1-re-add-nosuper."""
    volume = pool.volume('md', size=8 * MIB)
    write(volume, 0, 4 * MIB)
    volume.write('fail', '1')
    volume.write('remove', '1')
    with open(volume.legs[1], 'r+b') as leg:
        leg.write(bytes(16384))
    with pytest.raises(OSError) as refused:
        volume.write('re-add', '1')
    assert refused.value.errno == errno.EINVAL
    assert 'use add' in (pool.control / 'events').read_text()
    volume.write('add', f'{volume.legs[1]} force')
    volume.settled()
    assert_equal(volume, *volume.legs)


@pytest.mark.parametrize('flag', ['failfast', 'write_mostly'])
def test_a_word_on_a_leg_is_kept_over_all_that_happens_to_it_until_it_is_taken_back(
    pool: MountedPool, flag: str
) -> None:
    """05r1-failfast: over remove, add, assemble and grow."""
    pool.write('create', f'md {8 * MIB} {pool.legs}/md.0 {pool.legs}/md.1')
    volume = Volume(pool, 'md', 8 * MIB, pool.leg_paths('md', 2))

    def flagged() -> list[int]:
        return [leg['slot'] for leg in volume.status()['legs'] if flag in leg['flags']]

    assert flagged() == []
    volume.write('legs/1/state', flag)
    assert flagged() == [1]
    write(volume, 0, 4 * MIB)
    for way_back in (f'add {volume.legs[1]}', 're-add 1'):
        volume.write('fail', '1')
        volume.write('remove', '1')
        verb, leg = way_back.split()
        volume.write(verb, leg)
        volume.settled()
        assert flagged() == [1], way_back
    volume.write('raid_disks', '3')
    volume.write('add', f'{pool.legs}/md.2 {flag}')
    volume.settled()
    volume.write('size', str(16 * MIB))
    assert flagged() == [1, 2] and volume.image.stat().st_size == 16 * MIB
    pool.stop()
    shutil.rmtree(pool.directory)
    cli_ok('assemble', pool.directory, pool.legs)
    pool.start()
    assert flagged() == [1, 2], 'the legs themselves know it'
    for number in ('1', '2'):
        volume.write(f'legs/{number}/state', f'-{flag}')
    assert flagged() == []
    pool.stop()
    pool.start()
    assert flagged() == [], 'taken back for good'


def test_a_leg_of_a_large_sparse_volume_costs_what_was_written_and_its_log(pool: MountedPool) -> None:
    """1 TiB with 1 GiB written: that is copied, and the new leg is as sparse as the old one."""
    volume = pool.volume('big', size=TIB, legs=1)
    for part in range(8):  # here and there
        write(volume, part * TIB // 8, GIB // 8)
    new = pool.legs / 'big.new'
    volume.write('add', str(new))
    volume.settled(120)
    assert recovered(volume) == GIB
    room = 512 * MIB // 8
    assert new.stat().st_blocks * 512 <= GIB + room
    assert volume.legs[0].stat().st_blocks * 512 <= GIB + room
    assert volume.read('degraded') == '0\n'
