"""Legs split off as points in time, on real mounts.

What LVM's lvconvert-raid1-split-trackchanges and lvconvert-raid prove, written anew: the leg is read alone
while the volume goes on, what would change its place is refused meanwhile, and a merge copies what changed.
"""

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from looptools import need_root
from mounts import (
    KEEP_SIZE,
    MIB,
    PUNCH_HOLE,
    MountedPool,
    Volume,
    child,
    cli,
    cli_ok,
    fallocate,
    run,
    wait_for,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
SIZE = 8 * MIB
CHUNK = 64 << 10
BEFORE = random.Random(1).randbytes(3 * MIB)
AFTER = random.Random(2).randbytes(MIB)


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as mounted:
        yield mounted.start()


@pytest.fixture
def volume(pool: MountedPool) -> Volume:
    made = pool.volume('disk', SIZE, 2, 'chunk=64K')
    made.put(MIB, BEFORE)
    return made


def image(volume: Volume) -> Path:
    return volume.pool.mountpoint / f'{volume.name}@split'


def refused(act: Callable[[], object]) -> int:
    with pytest.raises(OSError) as error:
        act()
    return error.value.errno or 0


def states(volume: Volume) -> list[str]:
    return [leg['state'] for leg in volume.status()['legs']]


def merge(volume: Volume) -> int:
    """Merge, and wait for it; return how many bytes were copied."""
    before = volume.status()['recovered_bytes']
    volume.write('merge', '1')
    settled = volume.settled()
    assert states(volume) == ['in_sync', 'in_sync']
    copied: int = settled['recovered_bytes'] - before
    return copied


def assert_equal(volume: Volume) -> bytes:
    volume.pool.stop()
    return volume.assert_legs_equal()


def test_a_split_leg_is_read_as_it_was_and_a_merge_copies_only_what_changed(volume: Volume) -> None:
    whole = volume.get(0, SIZE)
    volume.write('split', '1')
    assert states(volume) == ['in_sync', 'split']
    volume.put(2 * MIB, AFTER)
    volume.put(6 * MIB, AFTER)
    assert image(volume).read_bytes() == whole
    assert volume.get(2 * MIB, MIB) == AFTER
    assert merge(volume) == 2 * MIB
    assert not image(volume).exists()
    data = assert_equal(volume)
    assert data[2 * MIB : 3 * MIB] == AFTER == data[6 * MIB : 7 * MIB]


def test_a_merge_without_a_write_copies_nothing_however_dirty_the_chunks_were(volume: Volume) -> None:
    volume.write('bitmap/time_base', '3600')
    volume.put(MIB, BEFORE)
    assert volume.status()['chunks']['dirty']
    volume.write('split', '1')
    assert merge(volume) == 0
    assert_equal(volume)


def test_discards_and_growth_meanwhile_are_merged_and_not_seen_in_the_image(volume: Volume) -> None:
    whole = volume.get(0, SIZE)
    volume.write('split', '1')
    with volume.open() as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
    volume.write('size', str(2 * SIZE))
    volume.put(SIZE, AFTER)
    assert image(volume).read_bytes() == whole
    assert image(volume).stat().st_size == SIZE
    assert merge(volume) <= 2 * MIB
    volume.size = 2 * SIZE
    data = assert_equal(volume)
    assert data[MIB : 2 * MIB] == bytes(MIB)
    assert data[SIZE : SIZE + MIB] == AFTER


def test_the_image_is_only_read(volume: Volume) -> None:
    volume.write('split', '1')
    assert image(volume).stat().st_mode & 0o777 == volume.image.stat().st_mode & 0o555
    assert image(volume).stat().st_blocks * 512 == len(BEFORE)
    assert refused(lambda: os.open(image(volume), os.O_RDWR)) == errno.EROFS
    assert refused(lambda: os.truncate(image(volume), MIB)) == errno.EROFS
    assert refused(lambda: os.chmod(image(volume), 0o600)) == errno.EROFS
    assert refused(lambda: os.unlink(image(volume))) == errno.EPERM


def test_an_image_that_is_open_is_not_merged_nor_removed(volume: Volume) -> None:
    volume.write('split', '1')
    with open(image(volume), 'rb') as reader:
        assert refused(lambda: volume.write('merge', '1')) == errno.EBUSY
        assert refused(lambda: volume.write('remove', '1')) == errno.EBUSY
        assert refused(lambda: volume.pool.write('destroy', volume.name)) == errno.EBUSY
        reader.seek(MIB)
        assert reader.read(MIB) == BEFORE[:MIB]
    wait_for(lambda: not _refuses(volume), 'merged once it is closed')
    volume.settled()
    assert_equal(volume)


def _refuses(volume: Volume) -> bool:
    """The kernel closes a file a moment after its process has."""
    try:
        volume.write('merge', 'disk@split')
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    return False


@pytest.mark.parametrize('leg', [0, 1])
def test_what_would_change_its_place_is_refused_meanwhile(volume: Volume, leg: int) -> None:
    other_leg, new = 1 - leg, volume.pool.legs / 'new'
    volume.write('split', f'{leg}')
    busy = [('split', f'{other_leg}'), ('raid_disks', '3'), ('re-add', f'{leg}'), ('fail', f'{leg}')]
    busy += [('fail', f'{other_leg}'), ('replace', f'{leg} {new}'), (f'legs/{leg}/path', f'{new}')]
    for file, text in busy:
        assert refused(lambda file=file, text=text: volume.write(file, text)) == errno.EBUSY, (file, text)
    other = volume.pool.volume('other', MIB)
    assert refused(lambda: other.write('add', f'{volume.legs[leg]} force')) == errno.EBUSY
    assert refused(lambda: other.write('merge', '1')) == errno.EINVAL
    assert refused(lambda: other.write('merge', 'other@split')) == errno.ENOENT
    words = f'disk@split {MIB} {volume.pool.legs / "a"}'
    assert refused(lambda: volume.pool.write('create', words)) == errno.EINVAL
    assert states(volume)[leg] == 'split' and states(volume)[other_leg] == 'in_sync'


def test_one_leg_at_a_time_is_split_off(pool: MountedPool) -> None:
    three = pool.volume('three', MIB, 3)
    for leg in (0, 1, 2):
        three.write('split', f'{leg}')
        assert [refused(lambda n=n: three.write('split', f'{n}')) for n in range(3)] == [errno.EBUSY] * 3
        three.write('merge', f'{leg}')
        three.settled()


def test_legs_that_cannot_be_split_off(volume: Volume) -> None:
    volume.write('quorum', '2')
    assert refused(lambda: volume.write('split', '1')) == errno.EBUSY
    volume.write('quorum', '1')
    volume.write('legs/0/bad_blocks', '4096 8')
    assert refused(lambda: volume.write('split', '0')) == errno.EBUSY
    assert refused(lambda: volume.write('split', '1')) == errno.EBUSY
    assert refused(lambda: volume.write('split', '7')) == errno.ENOENT
    volume.write('fail', '0')
    assert refused(lambda: volume.write('split', '0')) == errno.EBUSY
    assert refused(lambda: volume.write('split', '1')) == errno.EBUSY
    assert states(volume) == ['faulty', 'in_sync']


@pytest.mark.parametrize('end', ['stop', 'kill'])
def test_a_split_leg_outlives_the_daemon(volume: Volume, end: str) -> None:
    whole = volume.get(0, SIZE)
    volume.write('split', '1')
    volume.put(2 * MIB, AFTER)
    volume.pool.stop() if end == 'stop' else volume.pool.kill()
    volume.pool.start()
    assert states(volume) == ['in_sync', 'split']
    assert image(volume).read_bytes() == whole
    volume.put(4 * MIB, AFTER)
    assert merge(volume) <= 2 * MIB + CHUNK
    assert_equal(volume)


def overwrite(leg: Path) -> None:
    with open(leg, 'r+b') as file:
        file.seek(-SIZE + MIB, os.SEEK_END)
        file.write(bytes(MIB))


def overwrite_and_hide_it(leg: Path) -> None:
    before = leg.stat()
    overwrite(leg)
    os.utime(leg, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(leg: Path) -> None:
    copy = leg.with_name('copy')
    shutil.copyfile(leg, copy)
    overwrite(copy)
    copy.rename(leg)


@pytest.mark.parametrize('when', ['mounted', 'stopped'])
@pytest.mark.parametrize('change', [overwrite, overwrite_and_hide_it, exchange])
def test_a_leg_that_somebody_changed_is_copied_whole(
    volume: Volume, change: Callable[[Path], None], when: str
) -> None:
    volume.write('split', '1')
    if when == 'stopped':
        volume.pool.stop()
    change(volume.legs[1])
    if when == 'stopped':
        volume.pool.start()
    elif change is exchange:
        assert refused(lambda: volume.write('merge', '1')) == errno.ENOENT  # it would be lost with its name
        assert states(volume) == ['in_sync', 'split']
        return
    assert merge(volume) == len(BEFORE)
    assert_equal(volume)


def test_a_device_that_somebody_wrote_to_is_copied_whole_and_so_it_is_after_a_restart() -> None:
    need_root()
    with MountedPool() as pool:
        backing = [pool.base / f'device.{n}' for n in (0, 1)]
        for file in backing:
            with open(file, 'wb') as made:
                made.truncate(24 * MIB)
        loops = [run('losetup', '--show', '-f', file).stdout.strip() for file in backing]
        pool.start()
        pool.write('create', f'dev {SIZE} {" ".join(loops)} chunk=64K')
        volume = Volume(pool, 'dev', SIZE, [Path(loop) for loop in loops])
        volume.put(MIB, BEFORE)
        volume.write('split', '1')
        assert merge(volume) == 0
        volume.write('split', '1')
        with open(loops[1], 'r+b', buffering=0) as device:
            device.seek(24 * MIB - SIZE)
            device.write(bytes(4096))
        assert merge(volume) == len(BEFORE)
        volume.write('split', '1')
        pool.stop()
        pool.start()
        assert (pool.mountpoint / 'dev@split').read_bytes()[MIB : 4 * MIB] == BEFORE
        assert merge(volume) == len(BEFORE)
        assert_equal(volume)


def test_a_leg_that_is_removed_may_be_written_to_and_comes_back_whole(volume: Volume) -> None:
    volume.write('split', '1')
    volume.write('remove', '1')
    assert not image(volume).exists()
    overwrite(volume.legs[1])
    volume.write('re-add', '1')
    assert volume.settled()['recovered_bytes'] == len(BEFORE)
    assert_equal(volume)


def test_a_write_behind_leg_is_split_off_with_all_that_was_written(pool: MountedPool) -> None:
    volume = pool.volume('mostly', SIZE, 2, 'chunk=64K')
    volume.write('legs/1/state', 'writemostly')
    volume.write('bitmap/backlog', '256')
    for at in range(0, SIZE, 4096):
        with volume.open() as fd:
            os.pwrite(fd, at.to_bytes(8, 'little') * 512, at)
    volume.write('split', '1')
    found = image(volume).read_bytes()
    assert found == volume.get(0, SIZE)
    assert merge(volume) == 0


def test_what_is_written_all_the_while_is_in_the_image_or_in_the_merge(volume: Volume) -> None:
    """Every block of the image is of one moment: who writes a number to two places finds them one apart."""

    def count_up() -> None:
        with volume.open() as fd:
            for number in itertools.count(1):
                os.pwrite(fd, number.to_bytes(8, 'little'), 0)
                os.pwrite(fd, number.to_bytes(8, 'little'), 5 * MIB)

    with child(count_up):
        wait_for(lambda: number_at(volume.image, 5 * MIB) > 50, 'numbers go up')
        for _ in range(5):
            volume.write('split', '1')
            first, second = number_at(image(volume), 0), number_at(image(volume), 5 * MIB)
            assert first - second in (0, 1)
            wait_for(lambda then=first: number_at(volume.image, 0) > then + 10, 'numbers go up')  # type: ignore[misc]
            assert (number_at(image(volume), 0), number_at(image(volume), 5 * MIB)) == (first, second)
            assert 0 < merge(volume) <= 4 * CHUNK  # the two, and again if they are written meanwhile
    assert_equal(volume)


def number_at(file: Path, at: int) -> int:
    with open(file, 'rb') as reader:
        reader.seek(at)
        return int.from_bytes(reader.read(8), 'little')


def test_the_filesystem_in_an_image_is_mounted_and_backed_up(pool: MountedPool, tmp_path: Path) -> None:
    need_root()
    volume = pool.volume('fs', 32 * MIB)
    assert run('mkfs.ext4', '-q', volume.image).returncode == 0
    where = pool.base / 'fs'
    where.mkdir()
    assert run('mount', '-o', 'loop', volume.image, where).returncode == 0
    (where / 'old').write_bytes(AFTER)
    run('sync', '-f', where)
    cli_ok('split', pool.directory, 'fs', '1')
    (where / 'old').write_bytes(BEFORE)
    run('sync', '-f', where)
    other = pool.base / 'then'
    other.mkdir()
    done = run('mount', '-o', 'ro,noload,loop', image(volume), other)
    assert done.returncode == 0, done.stderr
    assert (other / 'old').read_bytes() == AFTER
    assert 'is open in' in (cli('merge', pool.directory, 'fs').stderr)
    assert 'shown as fs@split' in cli_ok('status', pool.directory)
    assert run('umount', other).returncode == 0
    wait_for(lambda: cli('merge', pool.directory, 'fs').returncode == 0, 'merged')
    volume.settled()
    assert (where / 'old').read_bytes() == BEFORE
    assert run('umount', where).returncode == 0
    assert_equal(volume)
