"""Images and the control tree as programs see them: every operation that FUSE can bring."""

import errno
import mmap
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import (
    COLLAPSE_RANGE,
    KEEP_SIZE,
    MIB,
    PUNCH_HOLE,
    ZERO_RANGE,
    MountedPool,
    Volume,
    child,
    exit_code,
    fallocate,
    sh,
    wait_for,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]
CHUNK = 64 << 10
PAGE = 4096


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture
def volume(pool: MountedPool) -> Iterator[Volume]:
    made = pool.volume(size=16 * MIB)
    yield made
    made.destroy()


@pytest.fixture
def restartable() -> Iterator[MountedPool]:
    """A pool that a test may stop and start."""
    with MountedPool() as made:
        yield made.start()


def refused(expected: int | tuple[int, ...], operation: Callable[[], object]) -> None:
    """Check that an operation fails with one of the expected errnos."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    with pytest.raises(OSError) as caught:
        operation()
    assert caught.value.errno in wanted, caught.value


def aligned(data: bytes) -> mmap.mmap:
    """Return a page-aligned buffer with `data`, as O_DIRECT callers have."""
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


def blocks(volume: Volume) -> list[int]:
    """Return the bytes that each leg takes on its filesystem."""
    return [leg.stat().st_blocks * 512 for leg in volume.legs]


# Attributes


def test_mode_owner_and_times_of_an_image_can_be_set_and_mode_and_owner_last(
    restartable: MountedPool,
) -> None:
    volume = restartable.volume('disk', 4 * MIB)
    assert stat.S_ISREG(volume.image.stat().st_mode)
    assert stat.S_IMODE(volume.image.stat().st_mode) == 0o600
    volume.image.chmod(0o640)
    os.chown(volume.image, 65534, 65533)
    os.utime(volume.image, ns=(1_000_000_001, 2_000_000_002))
    info = volume.image.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, 65534, 65533)
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    os.utime(volume.image)
    assert volume.image.stat().st_mtime_ns > 1_600_000_000 * 10**9
    restartable.stop()
    restartable.start()
    info = volume.image.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, 65534, 65533)


def test_chown_of_the_group_alone_keeps_the_user(volume: Volume) -> None:
    os.chown(volume.image, -1, 1234)
    info = volume.image.stat()
    assert (info.st_uid, info.st_gid) == (os.getuid(), 1234)


def test_mode_and_owner_of_control_files_are_fixed(volume: Volume) -> None:
    file = volume.control / 'add'
    before = file.stat()
    refused(errno.EPERM, lambda: file.chmod(0o666))
    refused(errno.EPERM, lambda: os.chown(file, 1000, 1000))
    after = file.stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


def test_access_follows_the_modes(volume: Volume) -> None:
    assert os.access(volume.image, os.R_OK | os.W_OK)
    assert not os.access(volume.image, os.X_OK)
    assert os.access(volume.control, os.X_OK)


def test_statfs_tells_the_size_of_all_volumes(pool: MountedPool, volume: Volume) -> None:
    known = sum(v['size'] for v in pool.status()['volumes'])
    for path in (pool.mountpoint, volume.image, volume.control / 'size'):
        info = os.statvfs(path)
        assert info.f_blocks * info.f_frsize == known
        assert info.f_bavail == 0
        assert info.f_namemax >= 128


def test_extended_attributes_are_not_supported_and_say_so(volume: Volume) -> None:
    for path in (volume.image, volume.control / 'size', volume.pool.mountpoint):
        refused((errno.EOPNOTSUPP, errno.ENOSYS), lambda path=path: os.setxattr(path, 'user.a', b'b'))
        refused((errno.EOPNOTSUPP, errno.ENODATA), lambda path=path: os.getxattr(path, 'user.a'))
        try:
            assert os.listxattr(path) == []
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP


def test_names_cannot_be_made_moved_or_removed(pool: MountedPool, volume: Volume) -> None:
    root, control = pool.mountpoint, volume.control
    image, file = volume.image, volume.control / 'size'
    outside = pool.base / 'outside'
    for directory in (root, pool.control, control, control / 'legs'):
        new = directory / 'new'
        refused(errno.EPERM, lambda new=new: os.open(new, os.O_CREAT | os.O_RDWR))
        refused(errno.EPERM, lambda new=new: new.mkdir())
        refused(errno.EPERM, lambda new=new: new.symlink_to('x'))
        refused(errno.EPERM, lambda new=new: os.mknod(new))
        refused(errno.EPERM, lambda new=new: os.mkfifo(new))
        refused(errno.EPERM, lambda new=new: os.link(image, new))
        refused(errno.EPERM, lambda new=new: os.rename(image, new))
        refused(errno.EPERM, lambda new=new: os.rename(file, new))
    refused(errno.EPERM, image.unlink)
    refused(errno.EPERM, file.unlink)
    refused(errno.EPERM, (control / 'legs').rmdir)
    refused(errno.EISDIR, lambda: os.rename(image, pool.control))
    refused(errno.EXDEV, lambda: os.rename(image, outside))
    refused(errno.ENOENT, lambda: os.stat(root / 'new'))
    assert sorted(os.listdir(root)).count(volume.name) == 1


def test_many_names_are_listed_whole_with_their_kinds(pool: MountedPool, volume: Volume) -> None:
    with os.scandir(pool.mountpoint) as entries:
        kinds = {entry.name: entry.is_dir() for entry in entries}
    assert kinds['.mirrorfs'] is True
    assert kinds[volume.name] is False
    assert set(os.listdir(volume.control / 'legs')) == {'0', '1'}
    refused(errno.ENOENT, lambda: os.stat(volume.control / 'legs' / '2'))
    refused(errno.ENOENT, lambda: os.stat(pool.mountpoint / 'ü\udcff'))
    refused(errno.ENOENT, lambda: os.stat(pool.mountpoint / ('n' * 250)))
    refused(errno.ENOTDIR, lambda: os.stat(volume.image / 'below'))


# Size


def test_truncate_grows_at_once_and_for_good(restartable: MountedPool) -> None:
    volume = restartable.volume('disk', 4 * MIB)
    volume.image.write_bytes(b'a' * 100)
    with volume.open() as fd:
        os.truncate(volume.image, 9 * MIB + 512)
        assert volume.image.stat().st_size == os.fstat(fd).st_size == 9 * MIB + 512
        assert os.lseek(fd, 0, os.SEEK_END) == 9 * MIB + 512
        os.ftruncate(fd, 10 * MIB)
        assert os.pwrite(fd, b'end', 10 * MIB - 3) == 3
        assert os.pread(fd, 100, 10 * MIB - 5) == b'\0\0end'
        assert os.pread(fd, PAGE, 4 * MIB - 10) == bytes(PAGE)
    assert volume.read('size').strip() == str(10 * MIB)
    restartable.stop()
    restartable.start()
    assert volume.image.stat().st_size == 10 * MIB
    data = volume.image.read_bytes()
    assert data[:101] == b'a' * 100 + b'\0' and data[-4:] == b'\0end'
    volume.size = 10 * MIB
    assert volume.assert_legs_equal() == data


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        (0, errno.EINVAL),
        (MIB, errno.EINVAL),
        (16 * MIB - 512, errno.EINVAL),
        (16 * MIB + 100, errno.EINVAL),
        (1 << 50, errno.EFBIG),
    ],
)
def test_shrinking_and_impossible_sizes_are_refused_with_one_event(
    volume: Volume, size: int, expected: int
) -> None:
    volume.image.write_bytes(b'kept')
    legs = [leg.stat().st_size for leg in volume.legs]
    before = len(volume.pool.events())
    refused(expected, lambda: os.truncate(volume.image, size))
    new = volume.pool.events()[before:]
    assert len(new) == 1 and f' Refused {volume.name} ' in new[0], new
    assert volume.image.stat().st_size == 16 * MIB
    assert volume.image.read_bytes()[:5] == b'kept\0'
    assert legs == [leg.stat().st_size for leg in volume.legs]


@pytest.mark.parametrize(
    'command',
    [
        'dd if="$1" of="$2" bs=64K status=none',
        'cp "$1" "$2"',
        'cp --sparse=always "$1" "$2"',
        'cat "$1" > "$2"',
    ],
)
def test_overwriting_by_shell_tools_keeps_what_lies_beyond(volume: Volume, command: str) -> None:
    old, new = os.urandom(2 * MIB), os.urandom(MIB)
    volume.image.write_bytes(old)
    source = volume.pool.base / 'source'
    source.write_bytes(new)
    done = sh(command, source, volume.image)
    assert done.returncode == 0, done.stderr
    content = volume.image.read_bytes()
    assert len(content) == volume.size
    assert content[:MIB] == new and content[MIB : 2 * MIB] == old[MIB:]


def test_a_sparse_image_is_copied_in_and_out_equal(volume: Volume) -> None:
    source, back = volume.pool.base / 'source', volume.pool.base / 'back'
    with open(source, 'wb') as file:
        file.truncate(volume.size)
        os.pwrite(file.fileno(), os.urandom(MIB), 3 * MIB + 4096)
    command = 'cp --sparse=always "$1" "$2" && cp --sparse=auto "$2" "$3" && cmp "$1" "$3" && cmp "$1" "$2"'
    done = sh(command, source, volume.image, back)
    assert done.returncode == 0, done.stderr
    assert back.stat().st_blocks * 512 <= 3 * MIB, 'holes were copied out as data'
    assert all(size <= 4 * MIB for size in blocks(volume))
    volume.assert_legs_equal()


# Bytes


def test_never_written_reads_as_zeros_and_takes_no_space(volume: Volume) -> None:
    with volume.open() as fd:
        assert os.pread(fd, MIB, 5) == bytes(MIB)
        os.pwrite(fd, b'x', 8 * MIB + 77)
        assert os.pread(fd, 10, 8 * MIB + 70) == bytes(7) + b'x' + bytes(2)
    assert all(size < 2 * MIB for size in blocks(volume))


def test_reads_at_the_end_are_short(volume: Volume) -> None:
    end = volume.size
    with volume.open() as fd:
        os.pwrite(fd, b'end', end - 3)
        assert os.pread(fd, 100, end - 10) == bytes(7) + b'end'
        assert os.pread(fd, 100, end) == b''
        assert os.pread(fd, 100, end + MIB) == b''
        assert os.pread(fd, 2 * MIB, end - MIB - 1) == bytes(MIB - 2) + b'end'


def test_writes_past_the_end_fail_without_growth(volume: Volume) -> None:
    full = (errno.ENOSPC, errno.EFBIG)
    with volume.open() as fd:
        refused(full, lambda: os.pwrite(fd, b'x', volume.size))
        refused(full, lambda: os.pwrite(fd, b'xy', volume.size - 1))
        refused(full, lambda: os.pwrite(fd, bytes(MIB), volume.size - 512))
        refused(full, lambda: os.pwrite(fd, b'x', 1 << 40))
        assert os.pread(fd, 512, volume.size - 512) == bytes(512)
    with open(volume.image, 'ab', buffering=0) as appended:
        refused(full, lambda: appended.write(b'x'))
    assert volume.image.stat().st_size == volume.size
    assert [leg.stat().st_size - volume.size for leg in volume.legs] == [MIB, MIB]


def test_direct_and_unaligned_io(volume: Volume) -> None:
    data = os.urandom(MIB)
    buffer = aligned(data)
    with volume.open(os.O_RDWR | os.O_DIRECT) as fd:
        assert os.pwrite(fd, buffer, 4 * MIB) == MIB
        assert os.preadv(fd, [into := aligned(bytes(MIB))], 4 * MIB) == MIB
        assert into[:] == data
        assert os.pwrite(fd, b'z' * 100, 7) == 100
    with volume.open() as fd:
        assert os.pread(fd, 110, 0) == bytes(7) + b'z' * 100 + bytes(3)
        # 4 MiB from a buffer that is one byte off: the kernel cuts it at odd offsets
        odd = memoryview(aligned(os.urandom(4 * MIB + PAGE)))[1 : 4 * MIB + 1]
        assert os.pwrite(fd, odd, 3 * MIB + 13) == 4 * MIB
        assert os.pread(fd, 4 * MIB, 3 * MIB + 13) == odd
    volume.assert_legs_equal()


def overlapping_writes(path: Path, seed: int, flags: int, count: int) -> None:
    """Write tagged ranges at random places of the first 256 KiB, over and over."""
    dice = random.Random(seed)
    fd = os.open(path, os.O_RDWR | flags)
    for number in range(count):
        length = dice.choice((512, PAGE, 3 * PAGE, 16 * PAGE))
        unit = PAGE if flags & os.O_DIRECT else 1
        at = dice.randrange(0, 256 * 1024 - length, unit)
        os.pwrite(fd, aligned(bytes([seed]) * 4 + bytes([number % 256]) * (length - 4)), at)
    os.close(fd)


def test_overlapping_writes_of_many_threads_and_processes_leave_legs_identical(volume: Volume) -> None:
    threads = [
        threading.Thread(target=overlapping_writes, args=(volume.image, seed, flags, 150))
        for seed, flags in enumerate([0] * 8 + [os.O_DIRECT] * 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    volume.assert_legs_equal()
    children = [
        child(lambda seed=seed: overlapping_writes(volume.image, seed, os.O_DIRECT, 150))
        for seed in range(100, 116)
    ]
    pids = [each.__enter__() for each in children]
    try:
        assert [exit_code(pid, 60) for pid in pids] == [0] * len(pids)
    finally:
        for each in children:
            each.__exit__(None, None, None)
    data = volume.assert_legs_equal()
    assert set(data[:200_000]) & set(range(100, 116)), 'the processes wrote nothing'


def test_private_maps_read_the_image_and_shared_ones_are_refused(volume: Volume) -> None:
    volume.image.write_bytes(b'mapped')
    with volume.open() as fd:
        with mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
            assert view[:7] == b'mapped\0'
            view[:3] = b'own'
        assert os.pread(fd, 6, 0) == b'mapped'
        refused(errno.ENODEV, lambda: mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ))


# Durability


def test_every_way_to_ask_for_durable_writes_flushes_the_legs(volume: Volume) -> None:
    volume.write('bitmap/can_clear', 'false')  # else sweeps flush, too

    def flushes() -> int:
        return int(volume.status()['io']['flushes'])

    with volume.open() as plain:
        os.pwrite(plain, b'first', 0)  # marks the chunk
        before = flushes()
        for number in range(5):
            os.pwrite(plain, b'data', number * 512)
        assert flushes() == before, 'plain writes are not to flush'
        ways: dict[str, Callable[[], object]] = {
            'fsync': lambda: os.fsync(plain),
            'fdatasync': lambda: os.fdatasync(plain),
            'RWF_DSYNC': lambda: os.pwritev(plain, [b'dsync'], 0, os.RWF_DSYNC),
            'RWF_SYNC': lambda: os.pwritev(plain, [b'sync'], 0, os.RWF_SYNC),
        }
        for name, way in ways.items():
            before = flushes()
            for _ in range(3):
                way()
            assert flushes() >= before + 3, name
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_DSYNC | os.O_DIRECT):
        with volume.open(os.O_RDWR | flags) as fd:
            before = flushes()
            for number in range(3):
                os.pwrite(fd, aligned(bytes([number]) * PAGE), number * PAGE)
            assert flushes() >= before + 3, flags
    volume.assert_legs_equal()


# Space


def test_data_and_holes_are_found_by_chunks(volume: Volume) -> None:
    with volume.open() as fd:
        refused(errno.ENXIO, lambda: os.lseek(fd, 0, os.SEEK_DATA))
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        os.pwrite(fd, b'x', 4 * MIB)  # not in order: who goes on in order has the next chunks made ready
        os.pwrite(fd, b'x', 3 * MIB + 5)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 3 * MIB
        assert os.lseek(fd, 3 * MIB + 9, os.SEEK_DATA) == 3 * MIB + 9
        assert os.lseek(fd, 3 * MIB, os.SEEK_HOLE) == 5 * MIB
        assert os.lseek(fd, 15 * MIB, os.SEEK_HOLE) == 15 * MIB
        os.pwrite(fd, b'x', volume.size - 1)
        assert os.lseek(fd, volume.size - 1, os.SEEK_HOLE) == volume.size
        refused(errno.ENXIO, lambda: os.lseek(fd, volume.size, os.SEEK_DATA))
        refused(errno.ENXIO, lambda: os.lseek(fd, volume.size + 1, os.SEEK_HOLE))


def test_punching_frees_space_on_the_legs_reads_zeros_and_can_be_rewritten(volume: Volume) -> None:
    data = os.urandom(8 * MIB)
    with volume.open() as fd:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        full = blocks(volume)
        assert all(size >= 8 * MIB for size in full)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 2 * MIB + 100, 4 * MIB)
        expected = bytearray(data)
        expected[2 * MIB + 100 : 6 * MIB + 100] = bytes(4 * MIB)
        assert os.pread(fd, 8 * MIB, 0) == expected
        shrunk = blocks(volume)
        assert all(after <= before - 3 * MIB for before, after in zip(full, shrunk, strict=True))
        assert os.lseek(fd, 3 * MIB, os.SEEK_DATA) == 6 * MIB
        new = os.urandom(MIB)
        os.pwrite(fd, new, 3 * MIB + 7)
        expected[3 * MIB + 7 : 4 * MIB + 7] = new
        assert os.pread(fd, 8 * MIB, 0) == expected
    assert volume.assert_legs_equal()[: 8 * MIB] == expected


def test_zero_range_makes_zeros(volume: Volume) -> None:
    with volume.open() as fd:
        os.pwrite(fd, b'\xff' * (4 * MIB), 0)
        fallocate(fd, ZERO_RANGE, 1000, 2 * MIB)
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, 3 * MIB, MIB)
        expected = b'\xff' * 1000 + bytes(2 * MIB) + b'\xff' * (MIB - 1000) + bytes(MIB)
        assert os.pread(fd, 4 * MIB, 0) == expected
    assert volume.assert_legs_equal()[: 4 * MIB] == expected


def test_allocation_takes_space_and_changes_no_byte(volume: Volume) -> None:
    with volume.open() as fd:
        os.pwrite(fd, b'kept', 0)
        os.posix_fallocate(fd, 0, 4 * MIB)
        fallocate(fd, KEEP_SIZE, 8 * MIB, MIB)
        assert all(size >= 5 * MIB for size in blocks(volume))
        assert os.pread(fd, 5, 0) == b'kept\0'
        assert os.pread(fd, MIB, MIB) == bytes(MIB)


def test_allocation_beyond_the_end_and_other_modes_are_refused_without_growth(volume: Volume) -> None:
    with volume.open() as fd:
        refused((errno.ENOSPC, errno.EFBIG), lambda: fallocate(fd, 0, volume.size - 512, PAGE))
        refused(errno.EOPNOTSUPP, lambda: fallocate(fd, COLLAPSE_RANGE, 0, MIB))
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, volume.size - 512, MIB)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, volume.size + MIB, MIB)
    assert volume.image.stat().st_size == volume.size


# A volume that is not served


def test_a_refused_volume_answers_eio_and_says_why(restartable: MountedPool) -> None:
    volume = restartable.volume('disk', 4 * MIB)
    other = restartable.volume('other', 4 * MIB)
    volume.image.write_bytes(b'some')
    restartable.stop()
    for leg in volume.legs:
        leg.rename(f'{leg}.gone')
    restartable.start()
    status = volume.status()
    assert status['state'] == 'inactive'
    assert 'no up-to-date leg is at hand' in status['refusal']
    assert str(volume.legs[0]) in status['refusal']
    refused(errno.EIO, lambda: os.open(volume.image, os.O_RDONLY))
    refused(errno.EIO, lambda: os.truncate(volume.image, 8 * MIB))
    refused(errno.EIO, lambda: volume.write('fail', '0'))
    assert volume.image.stat().st_size == 4 * MIB
    other.image.write_bytes(b'works')
    restartable.stop()
    for leg in volume.legs:
        Path(f'{leg}.gone').rename(leg)
    restartable.start()
    assert volume.image.read_bytes()[:5] == b'some\0'


# Anything, in any order


class Model:
    """Does random things to an image and to a bytearray, and compares what is read."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self.volume = volume
        self.dice = random.Random(seed)
        self.content = bytearray(volume.size)
        self.done: list[str] = []
        self.fd = os.open(volume.image, os.O_RDWR)

    def range(self) -> tuple[int, int]:
        """Return an offset and a length, often at the edge of a chunk."""
        length = self.dice.choice((1, 511, 512, 4096, 70_000, self.dice.randrange(1, 300_000)))
        at = self.dice.randrange(0, len(self.content))
        if self.dice.random() < 0.3:
            at = at // CHUNK * CHUNK
        return at, min(length, len(self.content) - at)

    def write(self) -> None:
        at, length = self.range()
        data = self.dice.randbytes(length)
        if self.dice.random() < 0.1:
            assert os.pwritev(self.fd, [data], at, os.RWF_DSYNC) == length
        else:
            assert os.pwrite(self.fd, data, at) == length
        self.content[at : at + length] = data

    def read(self) -> None:
        at, length = self.range()
        assert os.pread(self.fd, length, at) == self.content[at : at + length], f'read {at}+{length}'

    def punch(self) -> None:
        at, length = self.range()
        mode = self.dice.choice((PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE))
        fallocate(self.fd, mode, at, length)
        self.content[at : at + length] = bytes(length)

    def flush(self) -> None:
        os.fsync(self.fd)

    def grow(self) -> None:
        if len(self.content) < 4 * self.volume.size:
            more = self.dice.randrange(1, 200) * 512
            os.ftruncate(self.fd, len(self.content) + more)
            self.content += bytes(more)

    def seek(self) -> None:
        """A hole must read as zeros in the model."""
        at = self.dice.randrange(0, len(self.content))
        hole = os.lseek(self.fd, at, os.SEEK_HOLE)
        if hole < len(self.content):
            try:
                end = os.lseek(self.fd, hole, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                end = len(self.content)
            assert not any(self.content[hole:end])

    def step(self) -> None:
        name = self.dice.choices(('write', 'read', 'punch', 'flush', 'grow', 'seek'), (45, 35, 8, 4, 2, 6))[0]
        self.done.append(name)
        getattr(self, name)()

    def finish(self) -> None:
        assert os.pread(self.fd, len(self.content), 0) == self.content
        os.close(self.fd)
        self.volume.size = len(self.content)


def test_random_operations_agree_with_a_model_and_legs_are_equal(restartable: MountedPool) -> None:
    volume = restartable.volume('disk', 4 * MIB, options='chunk=64K')
    volume.write('bitmap/time_base', '0.05')  # chunks are cleared and marked again all the time
    model = Model(volume, seed=int(os.environ.get('MIRRORFS_TEST_SEED', '1')))
    for _ in range(6000):
        model.step()
    model.finish()
    assert {'write', 'read', 'punch', 'flush', 'grow', 'seek'} == set(model.done)
    restartable.stop()
    assert volume.assert_legs_equal() == model.content
    restartable.start()
    assert volume.image.read_bytes() == model.content


def test_random_operations_while_legs_come_and_go_agree_with_a_model(restartable: MountedPool) -> None:
    volume = restartable.volume('disk', 4 * MIB, legs=3, options='chunk=64K')
    volume.write('bitmap/time_base', '0.05')
    model = Model(volume, seed=2)
    model.grow = lambda: None  # type: ignore[method-assign]
    dice = random.Random(3)
    away: list[str] = []
    for number in range(1500):
        model.step()
        if number % 40 == 39:
            if away:
                volume.write('re-add', away.pop())
                wait_for(lambda: volume.status()['degraded'] == 0, 'the leg back in sync')
            else:
                away.append(str(dice.randrange(3)))
                volume.write('fail', away[0])
    for slot in away:
        volume.write('re-add', slot)
    volume.settled()
    model.finish()
    restartable.stop()
    assert volume.assert_legs_equal() == model.content
