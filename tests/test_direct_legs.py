"""Mounts with direct_legs: legs stay out of the page cache, and nothing else is different."""

import ctypes
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from killloop import Options, play
from looptools import Field, field
from mounts import MIB, MountedPool, Volume, examine, run, wait_for
from test_loop_ext4 import Author, Disk, at_rest, come_back, killed

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]
SIZE = 16 * MIB
DATA = random.Random(3).randbytes(SIZE)
DIRECT = 'direct_legs'

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made


def cached(path: Path, offset: int, length: int) -> int:
    """Return how many bytes of a range of a file are in the page cache."""
    with open(path, 'r+b') as file, mmap.mmap(file.fileno(), length, offset=offset) as pages:
        first = ctypes.c_char.from_buffer(pages)
        found = ctypes.create_string_buffer(length // mmap.PAGESIZE)
        code = _libc.mincore(ctypes.addressof(first), length, found)
        del first
    assert code == 0, os.strerror(ctypes.get_errno())
    return sum(byte & 1 for byte in found.raw) * mmap.PAGESIZE


def cached_data(volume: Volume) -> list[int]:
    """Return how many bytes of the image the page cache holds for each leg."""
    return [
        cached(leg, facts['data_offset'], volume.size)
        for leg, facts in zip(volume.legs, examine(*volume.legs), strict=True)
    ]


def fill(volume: Volume, length: int = SIZE, skip: int = 0) -> None:
    """Write DATA by requests of 1 MiB, durably, from memory that is `skip` bytes past a page's start."""
    with volume.open() as fd, mmap.mmap(-1, MIB + 4096) as memory, memoryview(memory) as view:
        for at in range(0, length, MIB):
            with view[skip : skip + MIB] as part:
                part[:] = DATA[at : at + MIB]
                assert os.pwrite(fd, part, at) == MIB
        os.fsync(fd)


@pytest.mark.parametrize('options', [(DIRECT,), ()], ids=['direct', 'cached'])
def test_what_an_image_holds_is_in_the_page_cache_only_without_direct_legs(
    pool: MountedPool, options: tuple[str, ...]
) -> None:
    volume = pool.start(*options).volume('disk', SIZE)
    fill(volume)
    with volume.open() as fd:
        for at in random.Random(1).sample(range(0, SIZE, 4096), 100):
            assert os.pwrite(fd, DATA[at : at + 4096], at) == 4096
            assert os.pread(fd, 4096, at) == DATA[at : at + 4096]
        os.fsync(fd)
    assert volume.image.read_bytes() == DATA
    found = cached_data(volume)
    assert found == [0, 0] if options else min(found) > 0.9 * SIZE
    assert not any('Warning' in event and 'direct I/O' in event for event in pool.events())
    pool.stop()
    assert volume.assert_legs_equal() == DATA


def test_recovery_and_scrubs_leave_the_page_cache_alone_too(pool: MountedPool) -> None:
    volume = pool.start(DIRECT).volume('disk', SIZE)
    fill(volume, MIB)
    volume.write('fail', '1')
    fill(volume)
    volume.write('re-add', '1')
    status = volume.settled()
    assert status['recovered_bytes'] >= SIZE - MIB and status['degraded'] == 0
    volume.write('sync_action', 'check')
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'the check is over')
    assert volume.read('mismatch_cnt') == '0\n'
    assert cached_data(volume) == [0, 0]
    pool.stop()
    assert volume.assert_legs_equal() == DATA


def test_of_requests_that_are_cut_in_the_midst_of_blocks_only_the_ends_are_cached(pool: MountedPool) -> None:
    """The kernel cuts them so where the caller's memory is not at a page's start."""
    volume = pool.start(DIRECT).volume('disk', SIZE)
    fill(volume, skip=13)
    assert volume.image.read_bytes() == DATA
    requests = 2 * SIZE // MIB
    assert 0 < max(cached_data(volume)) <= requests * 2 * 4096
    pool.stop()
    assert volume.assert_legs_equal() == DATA


def test_unaligned_requests_of_many_at_once_are_right(pool: MountedPool) -> None:
    """Each writer has bytes of its own in the same blocks, beside one that writes whole blocks."""
    volume = pool.start(DIRECT).volume('disk', 4 * MIB)
    volume.put(7, b'z' * 100)
    assert volume.get(0, 110) == bytes(7) + b'z' * 100 + bytes(3)
    writers, stride, blocks = 6, 600, 64
    model = bytearray(4 * MIB)
    model[7:107] = b'z' * 100
    failures: list[BaseException] = []

    def write(number: int) -> None:
        dice = random.Random(number)
        try:
            with volume.open() as fd:
                for block in dice.sample(range(blocks), blocks) * 3:
                    length = dice.randrange(1, stride)
                    at, data = block * 4096 + 107 + number * stride, dice.randbytes(length)
                    assert os.pwrite(fd, data, at) == length
                    model[at : at + length] = data
                    assert os.pread(fd, length, at) == data
                    if number == 0:  # whole blocks, next to those of the others
                        at, data = (blocks + block) * 4096, dice.randbytes(4096)
                        assert os.pwrite(fd, data, at) == 4096
                        model[at : at + 4096] = data
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures
    for at in random.Random(9).sample(range(len(model) - 9000), 50):
        assert volume.get(at, 8999) == model[at : at + 8999]
    assert volume.image.read_bytes() == model
    assert volume.status()['degraded'] == 0
    pool.stop()
    assert volume.assert_legs_equal() == model


@pytest.mark.loop
def test_sectors_smaller_than_those_of_the_disks_go_beside_whole_ones(
    ground: Field, pool: MountedPool
) -> None:
    """On devices, where nothing but our own order keeps cached writes from direct ones in the same page."""
    ground.later(pool.clean)
    devices = []
    for number in range(2):
        medium = ground.path(f'medium{number}')
        medium.touch()
        os.truncate(medium, SIZE + 16 * MIB)
        devices.append(Path(ground.loop(medium, '--sector-size', '4096')))
    pool.start(DIRECT).write('create', f'disk {SIZE} {devices[0]} {devices[1]} chunk=64K force')
    volume = Volume(pool, 'disk', SIZE, devices)
    words = '--ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bsrange=512-16k --blockalign=512'
    more = '--size=4M --io_size=16M --fsync=64 --verify=crc32c --verify_fatal=1 --serialize_overlap=1'
    done = run(
        'fio', '--name=mixed', f'--filename={volume.image}', *words.split(), *more.split(), cwd=pool.base
    )
    assert done.returncode == 0 and 'verify:' not in done.stderr, done.stderr
    assert volume.status()['degraded'] == 0, pool.events()
    pool.stop()
    volume.assert_legs_equal()


def test_nothing_promised_is_lost_however_often_the_daemon_is_killed_and_the_power_cut() -> None:
    seed = random.randrange(1 << 32)
    rounds, counts = play(Options(seed, power=True, mount=DIRECT), rounds=12)
    assert rounds == 12 and counts['power cuts'] > 0 and counts['legs compared'] > 0


@pytest.mark.loop
@pytest.mark.parametrize('fail_first', [False, True])
def test_an_ext4_on_it_survives_that_the_daemon_is_killed(ground: Field, fail_first: bool) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', 192 * MIB, *legs))
    pool.mount(DIRECT)
    disk.make()
    disk.put_real('first')
    author = Author(disk, 'under')
    author.write_more(30)
    if fail_first:
        pool.command('x', 'fail', 0)
        author.write_more(2)
    killed(disk, pool, author)
    pool.mount(DIRECT)
    if fail_first:
        assert pool.states('x') == ['faulty', 'in_sync']
        pool.command('x', 're-add', 0)
    status = pool.settled('x', 2)
    assert 0 < status['resynced_bytes'] + status['recovered_bytes'] < 192 * MIB
    come_back(disk)
    author = Author(disk, 'later')
    author.write_more(5)
    author.stop()
    at_rest(disk, pool, *legs)


@pytest.mark.parametrize('mixed', [False, True])
def test_a_filesystem_without_direct_io_is_told_of_and_serves(pool: MountedPool, mixed: bool) -> None:
    """With a leg that has it beside one that has not, the lane serves neither."""
    done = run('mount', '-t', 'ramfs', 'ramfs', pool.legs)
    assert done.returncode == 0, done.stderr
    legs = [pool.legs / 'a', (pool.base if mixed else pool.legs) / 'b']
    pool.start(DIRECT).write('create', f'disk {SIZE} {legs[0]} {legs[1]}')
    volume = Volume(pool, 'disk', SIZE, legs)
    told = {event.partition('Warning - ')[2] for event in pool.events() if 'direct I/O' in event}
    text = 'has no direct I/O; it is read and written through the page cache'
    assert told == {f'{leg} {text}' for leg in legs[: 1 if mixed else 2]}
    fill(volume)
    volume.put(7, b'z' * 100)
    assert volume.image.read_bytes() == DATA[:7] + b'z' * 100 + DATA[107:]
    assert bool(volume.status()['io']['lane_writes']) != mixed
    pool.stop()
    volume.assert_legs_equal()
