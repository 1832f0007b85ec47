"""Images in the kernel's page cache (-o cache=auto): what it gains, and that nobody reads what is no more."""

import ctypes
import errno
import mmap
import multiprocessing
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from faulttools import FaultPool, abort_mount
from mounts import (
    KEEP_SIZE,
    MIB,
    MOUNT,
    PUNCH_HOLE,
    MountedPool,
    Volume,
    await_end,
    child,
    daemons_of,
    examine,
    exit_code,
    fallocate,
    mountpoints,
    run,
    wait_for,
)
from test_mount_files import Model
from test_wire import NODE, Server

from mirrorfs.fs import mounting, wire
from mirrorfs.fs.images import Images
from mirrorfs.fs.lane import Request
from mirrorfs.fs.pagecache import Helper
from mirrorfs.volume.counters import Counters

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
PAGE = 4096
UNIT = 64 << 10


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool('cache=auto') as made:
        yield made.start()


def faulty(legs: int = 2, options: str = 'cache=auto') -> FaultPool:
    return FaultPool(legs, options)


def fill(volume: Volume, length: int = 0) -> bytes:
    """Fill the image, or its start, with random bytes past the cache, durably; return them."""
    data = random.Random(1).randbytes(length or volume.size)
    with volume.open(os.O_RDWR | os.O_DIRECT) as fd:
        for at in range(0, len(data), MIB):
            part = data[at : at + MIB]
            assert os.pwrite(fd, aligned(part), at) == len(part)
        os.fsync(fd)
    return data


def aligned(data: bytes) -> mmap.mmap:
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


def decay(volume: Volume, leg: int, offset: int, length: int = 512) -> bytes:
    """Change bytes of a leg behind the volume's back; return what it has now."""
    base = examine(volume.legs[leg])[0]['data_offset']
    fd = os.open(volume.legs[leg], os.O_RDWR)
    try:
        decayed = bytes(byte ^ 0x55 for byte in os.pread(fd, length, base + offset))
        os.pwrite(fd, decayed, base + offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    return decayed


def scrub(volume: Volume, action: str) -> None:
    """Run a check or repair to its end."""
    volume.write('sync_action', action)
    wait_for(lambda: volume.read('sync_action') == 'idle\n', f'the end of {action}')


def reads(volume: Volume) -> int:
    """How many reads have got to the daemon."""
    return int(volume.status()['io']['reads'])


# What it gains


def test_what_was_read_is_not_asked_for_again_also_by_a_later_open(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    assert volume.get(0, MIB) == data[:MIB]
    before = reads(volume)
    assert before > 0
    for _ in range(5):
        assert volume.get(0, MIB) == data[:MIB]
    assert reads(volume) == before
    os.utime(volume.image)
    os.stat(volume.image)
    assert volume.get(0, MIB) == data[:MIB]
    assert reads(volume) == before, 'times tell nothing of the content'


@pytest.mark.parametrize('options', ['', 'cache=none'])
def test_by_default_every_read_is_asked_for(options: str) -> None:
    with MountedPool(options) as pool:
        volume = pool.start().volume('disk', 4 * MIB)
        with volume.open() as fd:
            for number in range(1, 4):
                os.pread(fd, PAGE, 0)
                assert reads(volume) == number
            with pytest.raises(OSError) as caught:
                mmap.mmap(fd, PAGE)
            assert caught.value.errno == errno.ENODEV
        assert [pid for pid in daemons_of(pool.base) if pid != pool.pid] == [], 'no helper'


# Who writes beside a reader


def test_a_reader_sees_what_other_opens_write_in_every_way(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    model = bytearray(fill(volume))
    dice = random.Random(2)
    with (
        volume.open(os.O_RDONLY) as reader,
        volume.open() as writer,
        volume.open(os.O_RDWR | os.O_DIRECT) as direct,
        mmap.mmap(reader, 0, prot=mmap.PROT_READ) as view,
    ):
        for number in range(600):
            at, length = dice.randrange(0, 4 * MIB - 70_000), dice.randrange(1, 70_000)
            data = dice.randbytes(length)
            if number % 3 == 0:
                assert os.pwrite(writer, data, at) == length
            elif number % 3 == 1:
                at, length = at // PAGE * PAGE, -(-length // PAGE) * PAGE
                data = dice.randbytes(length)
                assert os.pwrite(direct, aligned(data), at) == length
            else:
                fallocate(writer, PUNCH_HOLE | KEEP_SIZE, at, length)
                data = bytes(length)
            model[at : at + length] = data
            low, high = max(0, at - 5000), at + length + 5000
            for fd in (reader, writer):
                assert os.pread(fd, high - low, low) == model[low:high]
            assert view[low:high] == model[low:high]
    pool.stop()
    assert volume.assert_legs_equal() == model


def test_maps_of_who_may_write_leave_nothing_old_to_readers(pool: MountedPool) -> None:
    """Such an open is past the cache, but its private maps are not; shared ones it cannot have."""
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    decayed = decay(volume, 0, 0)
    with volume.open() as writer:
        with pytest.raises(OSError) as caught:
            mmap.mmap(writer, PAGE)
        assert caught.value.errno == errno.ENODEV
        with mmap.mmap(writer, MIB, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
            assert private[:512] == decayed
            scrub(volume, 'repair 1')
            assert volume.get(0, MIB) == data[:MIB]


def test_writes_are_fast_again_when_nobody_reads_any_more(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    volume.write('bitmap/time_base', '100')
    fill(volume)

    def slow() -> int:
        """How many of ten writes did not take the short way."""
        before = fast()
        for number in range(10):
            os.pwrite(writer, bytes(PAGE), number * PAGE)
        return 10 - (fast() - before)

    def fast() -> int:
        return int(volume.status()['io']['lane_writes'])

    with volume.open() as writer:
        slow()
        assert slow() == 0
        with volume.open(os.O_RDONLY) as reader:
            os.pread(reader, PAGE, 0)
            assert slow() == 10
        assert slow() == 1
        assert slow() == 0


class Aio:
    """Asynchronous writes, one at a time, by the kernel's own interface."""

    _libc = ctypes.CDLL(None, use_errno=True)
    _SETUP, _SUBMIT, _GETEVENTS = 206, 209, 208

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        assert self._libc.syscall(self._SETUP, 8, ctypes.byref(self._context)) == 0

    def write(self, fd: int, buffer: mmap.mmap, offset: int) -> int:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        # iocb: data key rw_flags opcode (1: pwrite) reqprio fd buffer bytes offset reserved flags resfd
        fields = (1, 0, 0, 1, 0, fd, address, len(buffer), offset, 0, 0, 0)
        block = ctypes.create_string_buffer(struct.pack('<QIIHhIQQqQII', *fields))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        assert self._libc.syscall(self._SUBMIT, self._context, 1, pointers) == 1
        event = ctypes.create_string_buffer(32)
        assert self._libc.syscall(self._GETEVENTS, self._context, 1, 1, event, None) == 1
        return int(struct.unpack_from('<q', event, 16)[0])


@pytest.mark.skipif(os.uname().machine != 'x86_64', reason='the numbers of the system calls are those of x86')
@pytest.mark.parametrize('asynchronous', [False, True])
def test_a_reader_sees_a_write_once_it_is_done(pool: MountedPool, asynchronous: bool) -> None:
    """The kernel drops pages before such a write, and not those that somebody reads while it is under way."""
    volume = pool.volume('disk', 4 * MIB)
    fill(volume)
    stop = multiprocessing.Value('i', 0)

    def read_on() -> None:
        with volume.open(os.O_RDONLY) as fd:
            while not stop.value:
                for at in range(16):
                    os.pread(fd, PAGE, at * PAGE)

    with child(read_on), child(read_on):
        aio, buffer, until = Aio(), mmap.mmap(-1, PAGE), time.monotonic() + 3
        with volume.open(os.O_RDWR | os.O_DIRECT) as direct, volume.open(os.O_RDONLY) as fd:
            number = 0
            while time.monotonic() < until:
                number += 1
                at = number % 16 * PAGE
                buffer[:8] = number.to_bytes(8, 'little')
                write = aio.write if asynchronous else os.pwrite
                assert write(direct, buffer, at) == PAGE
                assert os.pread(fd, 8, at) == number.to_bytes(8, 'little'), f'write {number}'
        stop.value = 1
    assert number > 100


class ReaderModel(Model):
    """Reads through an open of its own, which goes through the cache."""

    def __init__(self, volume: Volume, seed: int) -> None:
        super().__init__(volume, seed)
        self.reader = os.open(volume.image, os.O_RDONLY)

    def read(self) -> None:
        at, length = self.range()
        assert os.pread(self.reader, length, at) == self.content[at : at + length], f'read {at}+{length}'

    def finish(self) -> None:
        assert os.pread(self.reader, len(self.content), 0) == self.content
        os.close(self.reader)
        super().finish()


def test_random_operations_agree_with_a_model(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB, options='chunk=64K')
    volume.write('bitmap/time_base', '0.05')
    model = ReaderModel(volume, seed=5)
    for _ in range(2000):
        model.step()
    model.finish()
    pool.stop()
    assert volume.assert_legs_equal() == model.content


# What changes without a write through the mount


@pytest.mark.parametrize('how', ['read', 'map'])
def test_a_repair_takes_decayed_bytes_out_of_the_cache(pool: MountedPool, how: str) -> None:
    volume = pool.volume('disk', 8 * MIB)
    data = fill(volume)
    places = [3 * UNIT, 2 * MIB + 4608, 7 * MIB]
    decayed = {at: decay(volume, 0, at) for at in places}
    with volume.open(os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:

        def seen(at: int) -> bytes:
            return view[at : at + 512] if how == 'map' else os.pread(fd, 512, at)

        for at in places:
            assert seen(at) == decayed[at], 'leg 0 is the home of the first chunks'
        scrub(volume, 'check')
        for at in places:
            assert seen(at) == decayed[at]
        scrub(volume, 'repair 1')
        for at in places:
            assert seen(at) == data[at : at + 512]
    pool.stop()
    assert volume.assert_legs_equal() == data


def test_a_leg_that_fails_takes_what_it_gave_with_it(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    decayed = decay(volume, 0, MIB)
    assert volume.get(MIB, 512) == decayed
    volume.write('fail', '0')
    assert volume.get(MIB, 512) == data[MIB : MIB + 512]
    volume.write('re-add', '0')
    volume.settled()
    assert volume.get(0, 4 * MIB) == data


def test_other_legs_to_read_from_are_seen_at_once(pool: MountedPool) -> None:
    """Also where no leg leaves: one is write-mostly from now on, or lacks a block."""
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    decayed = decay(volume, 0, MIB)
    assert volume.get(MIB, 512) == decayed
    volume.write('legs/0/state', 'writemostly')
    assert volume.get(MIB, 512) == data[MIB : MIB + 512]
    volume.write('legs/0/state', '-writemostly')
    assert volume.get(MIB, 512) == decayed
    volume.write('legs/0/bad_blocks', f'{MIB // 512} 8')
    assert volume.get(MIB, 512) == data[MIB : MIB + 512]


def test_growth_is_seen_with_the_page_that_the_old_end_was_in(pool: MountedPool) -> None:
    size = 4 * MIB + 512
    volume = pool.volume('disk', size)
    model = bytearray(fill(volume, 4 * MIB)) + bytes(512)
    with volume.open(os.O_RDONLY) as fd, volume.open() as writer:
        for number, grow in enumerate((volume.write, lambda _, size: os.truncate(volume.image, int(size)))):
            assert os.pread(fd, 2 * PAGE, size - 512) == model[size - 512 : size]
            before, size = size, size + 3 * MIB + 512
            grow('size', str(size))
            model += bytes(size - before)
            assert os.pread(fd, PAGE, before - 512) == model[before - 512 :][:PAGE], 'before anybody asks'
            assert os.fstat(fd).st_size == size
            at = before + number * 100 - 50
            assert os.pwrite(writer, b'grown' * 30, at) == 150
            model[at : at + 150] = b'grown' * 30
            assert os.pread(fd, size, 0) == model
    volume.size = size
    pool.stop()
    assert volume.assert_legs_equal() == model


def test_a_volume_made_anew_under_the_name_shows_nothing_of_the_old_one(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    assert volume.get(0, 4 * MIB) == data
    pool.write('destroy', 'disk')
    again = pool.leg_paths('again', 2)
    pool.write('create', f'disk {4 * MIB} {again[0]} {again[1]}')
    assert volume.get(0, 4 * MIB) == bytes(4 * MIB)


def test_a_leg_that_is_split_off_is_read_past_the_cache(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    image = pool.mountpoint / 'disk@split'
    for number in range(2):
        volume.write('split', '1')
        assert image.read_bytes() == data
        data = bytes([number]) * PAGE + data[PAGE:]
        volume.put(0, data[:PAGE])
        assert image.read_bytes() != data
        volume.write('merge', '1')
        volume.settled()
    assert volume.get(0, len(data)) == data


def test_mended_blocks_are_read_as_they_are_now() -> None:
    """A block that its home could not give came from a leg that has decayed; it is mended from another."""
    with faulty(3) as pool:
        volume = pool.start().volume('disk', 20 * MIB, legs=3)
        at = 17 * MIB  # leg 1 is the home; 2 is asked next, and the mending asks 0 first
        volume.put(at, b'good' * 1024)
        decayed = decay(volume, 2, at)
        pool.faults[1].bad('read', at, PAGE)
        with volume.open(os.O_RDONLY) as fd:
            assert os.pread(fd, 512, at) == decayed
            wait_for(lambda: volume.read('legs/1/errors') == '1\n', 'the block to be mended')
            wait_for(lambda: os.pread(fd, 512, at) == b'good' * 128, 'the mended bytes')


# Writes that fail


async def test_the_place_of_a_request_that_has_failed_is_forgotten() -> None:
    """It may be done in part, and somebody may have read there just before it was."""

    class Failing:
        def __init__(self) -> None:
            self.counters = Counters()
            self.cache = self
            self.dropped: list[tuple[int, int]] = []

        def changed(self, offset: int, length: int) -> None:
            self.dropped.append((offset, length))

        async def write(self, *args: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, 'full')

        read = discard = write

    volume: Any = Failing()
    started = SimpleNamespace(volume=volume)
    entry: Any = SimpleNamespace(name='disk', started=started, require=lambda: (started, None))
    answers = []
    async with trio.open_nursery() as nursery:
        images = Images(nursery)
        images.gateway = SimpleNamespace(  # type: ignore[assignment]
            attach=lambda *args: None,
            give_back=lambda request: None,
            reply=lambda unique, error, body: answers.append(error),
        )
        volume.hot = None
        images.attach(entry, NODE)
        for opcode in (wire.FUSE_WRITE, wire.FUSE_FALLOCATE, wire.FUSE_READ):
            images.handle(Request(opcode, 1, NODE, 512 * opcode, 100, PUNCH_HOLE | KEEP_SIZE))
    assert answers == [errno.ENOSPC] * 3
    assert sorted(volume.dropped) == [(512 * code, 100) for code in (wire.FUSE_WRITE, wire.FUSE_FALLOCATE)]


def test_chunks_made_equal_after_a_write_that_failed_are_read_anew() -> None:
    """The bytes beside what was written are copied from another leg than readers had them from."""
    with faulty(2) as pool:
        volume = pool.start().volume('disk', 20 * MIB)
        at = 17 * MIB  # leg 1 is the home, and leg 0 what is copied from
        volume.put(at, b'good' * 4096)
        decayed = decay(volume, 1, at + 2 * PAGE)
        with volume.open(os.O_RDONLY) as fd, volume.open() as writer:
            assert os.pread(fd, 512, at + 2 * PAGE) == decayed
            for leg in pool.faults:
                leg.rule('plain', 'EROFS', every=True)
            with pytest.raises(OSError) as caught:
                os.pwrite(writer, b'fails' * 100, at)
            assert caught.value.errno == errno.EROFS
            pool.clear()
            volume.settled()
            wait_for(lambda: os.pread(fd, 512, at + 2 * PAGE) == b'good' * 128, 'what both legs have')
            assert os.pread(fd, 512, at) == b'good' * 128


# Durability


def test_what_is_asked_to_be_durable_beside_a_reader_is() -> None:
    with faulty() as pool:
        volume = pool.start().volume('disk', 4 * MIB)
        volume.write('bitmap/can_clear', 'false')  # else sweeps flush, too
        twin = pool.durable_twin(volume)
        fill(volume)
        with volume.open(os.O_RDONLY) as reader, volume.open() as writer:

            def then(sync: Callable[[], object]) -> Callable[[bytes, int], None]:
                def write(data: bytes, at: int) -> None:
                    os.pwrite(writer, data, at)
                    assert twin.leg_data(0)[at : at + PAGE] != data, 'not before it is asked for'
                    sync()

                return write

            def opened(flags: int) -> Callable[[bytes, int], None]:
                def write(data: bytes, at: int) -> None:
                    with volume.open(os.O_RDWR | flags) as fd:
                        os.pwrite(fd, aligned(data), at)

                return write

            ways = [
                then(lambda: os.fsync(writer)),
                then(lambda: os.fdatasync(writer)),
                then(lambda: os.fsync(reader)),
                opened(os.O_SYNC),
                opened(os.O_DSYNC),
                opened(os.O_DSYNC | os.O_DIRECT),
                lambda data, at: os.pwritev(writer, [data], at, os.RWF_DSYNC),
            ]
            for number, way in enumerate(ways):
                data, at = bytes([number + 1]) * PAGE, number * 9 * PAGE
                assert os.pread(reader, PAGE, at) != data
                way(data, at)
                for leg in (0, 1):
                    assert twin.leg_data(leg)[at : at + PAGE] == data, number
                assert os.pread(reader, PAGE, at) == data


# Beside recovery and changes of legs


class Writer:
    """Writes blocks with ever higher numbers through two opens in turn, and reads them, until stopped."""

    def __init__(self, volume: Volume, blocks: list[int]) -> None:
        self.acked = dict.fromkeys(blocks, 0)
        self.begun = dict.fromkeys(blocks, 0)
        self._volume = volume
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._guard, args=(one,)) for one in (self.write, self.read)]

    def __enter__(self) -> 'Writer':
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert self.failure is None, self.failure

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.failure = error

    def write(self) -> None:
        number = 0
        buffer = mmap.mmap(-1, PAGE)
        with self._volume.open() as plain, self._volume.open(os.O_RDWR | os.O_DIRECT) as direct:
            while not self._stop.is_set():
                for block in self.acked:
                    number += 1
                    buffer[:] = number.to_bytes(8, 'little') * (PAGE // 8)
                    self.begun[block] = number
                    os.pwrite((plain, direct)[number % 2], buffer, block * PAGE)
                    self.acked[block] = number

    def read(self) -> None:
        """What is read is never older than what was acknowledged before."""
        self.rounds = 0
        with self._volume.open(os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            while not self._stop.is_set():
                self.rounds += 1
                for block in self.acked:
                    for mapped in (False, True):
                        least = self.acked[block]
                        at = block * PAGE
                        data = view[at : at + PAGE] if mapped else os.pread(fd, PAGE, at)
                        found = int.from_bytes(data[:8], 'little')
                        assert least <= found <= self.begun[block], f'block {block}, mapped: {mapped}'


def test_readers_see_every_write_beside_recovery_growth_and_changes_of_legs(pool: MountedPool) -> None:
    volume = pool.volume('disk', 24 * MIB, legs=3, options='chunk=64K')
    volume.write('bitmap/time_base', '0.05')
    blocks = [0, 1, 17, 300, 2000, 4096, 4097, 5000, 24 * 256 - 1]
    with volume.open() as fd:
        for block in blocks:
            os.pwrite(fd, bytes(PAGE), block * PAGE)
        os.fsync(fd)
    with Writer(volume, blocks) as writer:
        for number in range(9):
            slot = number % 3
            volume.write('fail', str(slot))
            time.sleep(0.1)
            volume.write('re-add', str(slot))
            volume.settled()
            scrub(volume, ('check', 'repair')[number % 2])
            if slot == 2:
                volume.write('size', str(24 * MIB + (number + 1) * 512))
            volume.write(f'legs/{slot}/state', 'writemostly')
            volume.write(f'legs/{slot}/state', '-writemostly')
        wait_for(lambda: writer.rounds > 20, 'some rounds of reading')
    assert volume.status()['mismatch_cnt'] == 0
    volume.size = volume.image.stat().st_size
    pool.stop()
    volume.assert_legs_equal()


# The kernel, and the process that tells it


def helper_of(pool: MountedPool) -> int:
    found: int = wait_for(lambda: [pid for pid in daemons_of(pool.base) if pid != pool.pid], 'a helper')[0]
    return found


def test_a_helper_of_a_daemon_in_the_background_keeps_nobody_waiting(tmp_path: Path) -> None:
    with MountedPool(base=tmp_path) as pool:
        pool.make()
        volume = pool.volume_at_rest('disk', 4 * MIB)
        done = run(*MOUNT, pool.directory, pool.mountpoint, '-o', 'cache=auto', timeout=30)
        assert done.returncode == 0, done.stderr
        daemon = pool.status()['pid']
        volume.put(0, b'old')
        assert volume.get(0, 3) == b'old'
        volume.put(0, b'new')
        assert volume.get(0, 3) == b'new'
        (helper,) = wait_for(lambda: [pid for pid in daemons_of(pool.base) if pid != daemon], 'a helper')
        opened = [os.readlink(fd) for fd in Path(f'/proc/{helper}/fd').iterdir()]
        assert sorted({name.split(':')[0] for name in opened}) == ['/dev/fuse', '/dev/null', 'socket']
        assert run('umount', pool.mountpoint).returncode == 0
        await_end(daemon)
        await_end(helper)


def test_who_changes_what_is_read_waits_until_the_pages_are_dropped(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    decayed = decay(volume, 0, MIB)
    assert volume.get(MIB, 512) == decayed
    helper = helper_of(pool)
    os.kill(helper, signal.SIGSTOP)
    volume.write('sync_action', 'repair 1')
    wait_for(lambda: volume.leg_data(0) == data, 'the repair to be done')
    time.sleep(0.3)
    assert volume.read('sync_action') == 'repair\n'
    os.kill(helper, signal.SIGCONT)
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'the end of the repair')
    assert volume.get(MIB, 512) == data[MIB : MIB + 512]


def test_a_helper_that_is_killed_is_replaced_and_the_other_does_what_it_was_at(pool: MountedPool) -> None:
    volume = pool.volume('disk', 4 * MIB)
    data = fill(volume)
    decayed = decay(volume, 0, MIB)
    assert volume.get(MIB, 512) == decayed
    first = helper_of(pool)
    os.kill(first, signal.SIGSTOP)
    with child(lambda: volume.write('fail', '0')) as failing:
        wait_for(lambda: volume.status()['degraded'], 'the leg to fail')
        time.sleep(0.3)
        assert os.waitpid(failing, os.WNOHANG) == (0, 0), 'it waits'
        os.kill(first, signal.SIGKILL)
        assert exit_code(failing) == 0
    assert volume.get(MIB, 512) == data[MIB : MIB + 512]
    wait_for(lambda: not Path(f'/proc/{first}').exists(), 'the helper to be reaped')
    assert helper_of(pool) != first
    pool.stop()
    wait_for(lambda: not daemons_of(pool.base), 'the helper to end with the daemon')


class Cached(Server):
    """Serves one file that is read through the page cache; `tuned` as a mount with that option is."""

    tuned = True

    def answer(self, opcode: int, node: int, message: bytes) -> tuple[int, bytes | None]:
        if opcode == wire.FUSE_OPEN:
            return 0, wire.OPEN_OUT.pack(99, 0, 0)
        error, body = super().answer(opcode, node, message)
        if opcode == wire.FUSE_INIT and body:
            reply = bytearray(bytes(wire.OUT_HEADER.size) + body)
            flags = 1 << 5 | wire.FUSE_AUTO_INVAL_DATA
            struct.pack_into('<I', reply, wire.OUT_HEADER.size + 12, flags)
            wire.tune_init(reply, 12, cached=self.tuned)
            body = bytes(reply[wire.OUT_HEADER.size :])
        return error, body


@pytest.mark.parametrize('tuned', [False, True])
def test_the_kernel_asks_for_no_attributes_before_it_reads_from_the_cache(
    tmp_path: Path, tuned: bool
) -> None:
    mountpoint = tmp_path / 'mnt'
    mountpoint.mkdir()
    server = Cached(mounting.mount('cached', str(mountpoint), mounting.Options()))
    server.tuned = tuned
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        with open(mountpoint / 'file', 'rb', buffering=0) as file:
            file.read(PAGE)
            before = len(server.seen)
            for _ in range(10):
                assert os.pread(file.fileno(), PAGE, 0) == b'r' * PAGE
            assert len(server.seen) == before + (0 if tuned else 10)
    finally:
        mounting.unmount(str(mountpoint), lazy=True)
        thread.join(10)
        os.close(server.fuse)


class Silent(Cached):
    """Answers no read."""

    def __init__(self, fuse: int) -> None:
        super().__init__(fuse)
        self.asked = threading.Event()

    def answer(self, opcode: int, node: int, message: bytes) -> tuple[int, bytes | None]:
        if opcode == wire.FUSE_READ:
            self.asked.set()
            return 0, None
        return super().answer(opcode, node, message)


def test_kill_9_while_a_call_waits_leaves_no_mount_that_hangs(tmp_path: Path) -> None:
    """The call waits for a read that nobody answers any more, and holds the descriptor."""
    mountpoint, told = tmp_path / 'mnt', tmp_path / 'told'
    mountpoint.mkdir()

    async def serve() -> None:
        fuse = mounting.mount('silent', str(mountpoint), mounting.Options())
        helper = Helper(fuse, mounting.mounted_at(str(mountpoint)))
        server = Silent(fuse)
        threading.Thread(target=server.serve, daemon=True).start()
        await trio.to_thread.run_sync(server.asked.wait)
        await helper.socket.send(wire.INVAL_INODE_OUT.pack(NODE, 0, 0))
        with trio.move_on_after(0.5) as scope:
            await helper.socket.recv(8)
        told.write_text('it waits' if scope.cancelled_caught else 'it came back')
        await trio.sleep_forever()

    def read() -> None:
        with open(mountpoint / 'file', 'rb', buffering=0) as file:
            file.read(PAGE)

    with child(lambda: trio.run(serve)) as daemon:
        wait_for(lambda: mountpoints(tmp_path), 'the mount')
        with child(read) as reader:
            try:
                wait_for(lambda: told.exists() and told.read_text(), 'the call to be made')
                assert told.read_text() == 'it waits'
                os.kill(daemon, signal.SIGKILL)
                assert exit_code(daemon, 5) == -signal.SIGKILL
                assert exit_code(reader, 5) in (errno.ECONNABORTED, errno.ENOTCONN)
            finally:
                abort_mount(mountpoint)
                run('umount', '-l', mountpoint)
