"""One suite for everything that is a Leg: files, block devices, and the simulator's disks.

Then what only real legs have: threads that a hang keeps, locks that name who holds them, kinds and signatures
that are refused.
"""

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs import limits
from mirrorfs.errors import LegError, Refused
from mirrorfs.leg.base import Buffer, LaneLeg, Leg
from mirrorfs.leg.direct import DirectLeg, DirectLegs
from mirrorfs.leg.file import FileLeg, LaneFileLeg, closing
from mirrorfs.leg.opening import FileOpener, open_leg
from mirrorfs.leg.workers import Workers
from mirrorfs.metadata import wibm
from mirrorfs.model import Generation, LegState, Slot, VolumeRecord
from mirrorfs.sim.crashleg import CrashDisk, CrashLeg

SIZE = 4 << 20
DEVICES = ('device', 'direct device')


# Block devices


@contextlib.contextmanager
def loop_device(folder: Path) -> Iterator[str]:
    image = folder / 'disk'
    image.touch()
    os.truncate(image, SIZE)
    command = ['losetup', '--find', '--show', str(image)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(['losetup', '--detach', device], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    with loop_device(tmp_path) as path:
        yield path


def refused(path: str, why: str) -> None:
    raise AssertionError(f'{path} {why}')


KINDS = ['file', 'direct file', 'crash', *(pytest.param(k, marks=pytest.mark.loop) for k in DEVICES)]


@pytest.fixture(params=KINDS)
def leg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Leg]:
    """A leg of 4 MiB, all zeros."""
    if request.param == 'crash':
        yield CrashLeg(CrashDisk('d', SIZE))
        return
    path = request.getfixturevalue('device') if 'device' in request.param else str(tmp_path / 'leg')
    make = DirectLegs(refused) if 'direct' in request.param else LaneFileLeg
    opened, _ = open_leg(path, create_size=SIZE, make=make)
    yield opened
    opened.close()


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


# The suite


async def test_a_fresh_leg_is_idle_has_its_size_and_reads_zeros(leg: Leg) -> None:
    assert leg.size == SIZE
    assert leg.calls == 0
    assert bytes(await leg.read(SIZE - 4096, 4096)) == bytes(4096)
    assert leg.calls == 0


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview])
async def test_what_was_written_is_read_whatever_the_buffer(
    leg: Leg, kind: Callable[[bytes], Buffer]
) -> None:
    data = noise(8192)
    await leg.write(4096, kind(data))
    assert bytes(await leg.read(4096, 8192)) == data
    assert bytes(await leg.read(0, 4096)) == bytes(4096)
    assert bytes(await leg.read(12288, 4096)) == bytes(4096)


@pytest.mark.parametrize(
    ('offset', 'length'), [(0, 1), (511, 2), (4095, 4098), (12345, 3 << 20), (SIZE - 7, 7)]
)
async def test_any_offset_and_length_will_do(leg: Leg, offset: int, length: int) -> None:
    data = noise(length)
    await leg.write(offset, data)
    before, after = max(0, offset - 9), min(SIZE, offset + length + 9)
    expected = bytes(offset - before) + data + bytes(after - offset - length)
    assert bytes(await leg.read(before, after - before)) == expected


@pytest.mark.parametrize('skip', [0, 512, 1])
@pytest.mark.parametrize(('offset', 'length'), [(4096, 1 << 20), (4096, 512), (512, 4096), (77, 99)])
async def test_bulk_writes_from_and_reads_into_any_memory_are_as_others(
    leg: Leg, offset: int, length: int, skip: int
) -> None:
    data = noise(length)
    await leg.write(0, noise(2 << 20, 1))
    expected = bytearray(await leg.read(0, 2 << 20))
    expected[offset : offset + length] = data
    with mmap.mmap(-1, 2 << 20) as memory:
        memory[skip : skip + length] = data
        with memoryview(memory) as view, view[skip : skip + length] as part:
            await leg.write_bulk(offset, part)
    assert bytes(await leg.read(0, 2 << 20)) == expected
    assert bytes(await leg.read_medium(offset, length)) == data
    seen = bytearray(length)
    await leg.read_into(offset, memoryview(seen))
    assert seen == data


async def test_durable_writes_and_flushes_return_and_change_nothing_else(leg: Leg) -> None:
    await leg.write(0, noise(4096))
    await leg.write(4096, noise(4096, 1), durable=True)
    await leg.flush()
    assert bytes(await leg.read(0, 8192)) == noise(4096) + noise(4096, 1)


async def test_the_medium_holds_what_was_written_at_any_offset_and_length(leg: Leg) -> None:
    data = random.Random(1).randbytes(20_000)
    await leg.write(5_000, data)
    assert bytes(await leg.read_medium(5_000, len(data))) == data
    assert bytes(await leg.read_medium(7_001, 3)) == data[2_001:2_004]
    assert bytes(await leg.read_medium(SIZE - 4096, 4096)) == bytes(4096)
    with pytest.raises(OSError, match=r'ends at byte|Input/output|Invalid'):
        await leg.read_medium(SIZE - 4096, 8192)


@pytest.mark.parametrize(
    ('offset', 'length'), [(4096, 4096), (8192, 12288), (512, 1024), (SIZE - 512, 512), (5, 3), (4095, 4098)]
)
async def test_what_is_written_past_the_cache_is_seen_through_it_and_on_the_medium(
    leg: Leg, offset: int, length: int
) -> None:
    await leg.write(0, noise(1 << 16, 1))  # cached, and not flushed
    data = noise(length, 2)
    await leg.write_medium(offset, data)
    assert bytes(await leg.read(offset, length)) == bytes(await leg.read_medium(offset, length)) == data
    if offset + length < 1 << 16:
        expected = bytearray(noise(1 << 16, 1))
        expected[offset : offset + length] = data
        assert bytes(await leg.read(0, 1 << 16)) == expected


async def test_a_leg_that_stays_as_it_was_has_not_departed_and_a_short_one_has(leg: Leg) -> None:
    assert await leg.departed(SIZE) == ''
    assert 'cut' in await leg.departed(SIZE + 1)


async def test_reading_past_the_end_is_an_i_o_error(leg: Leg) -> None:
    for offset, length in ((SIZE - 100, 200), (SIZE, 1), (SIZE + 4096, 4096)):
        with pytest.raises(OSError, match=r'ends at byte') as error:
            await leg.read(offset, length)
        assert error.value.errno == errno.EIO


async def test_writes_in_flight_at_once_do_not_mix(leg: Leg) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(32):
            nursery.start_soon(leg.write, n * 65536, noise(65536, n))
        await trio.lowlevel.checkpoint()
    assert leg.calls == 0
    for n in range(32):
        assert bytes(await leg.read(n * 65536, 65536)) == noise(65536, n)


@pytest.mark.parametrize('keep', [False, True])
@pytest.mark.parametrize(('offset', 'length'), [(65536, 65536), (4096, 3 << 20), (512, 1024), (100, 5000)])
async def test_a_zeroed_range_reads_zeros_and_its_neighbours_stay(
    leg: Leg, offset: int, length: int, keep: bool
) -> None:
    data = noise(SIZE)
    await leg.write(0, data)
    await leg.zero(offset, length, keep=keep)
    assert bytes(await leg.read(0, SIZE)) == data[:offset] + bytes(length) + data[offset + length :]
    assert leg.size == SIZE


@pytest.mark.parametrize(('offset', 'length'), [(1 << 20, 1 << 20), (512, 4096), (100, 5000)])
async def test_discarding_leaves_the_neighbours_and_later_writes(
    leg: Leg, offset: int, length: int
) -> None:
    data = noise(SIZE)
    await leg.write(0, data)
    await leg.discard(offset, length)
    await leg.write(offset + 8, b'new')
    found = bytes(await leg.read(0, SIZE))
    assert found[:offset] == data[:offset]
    assert found[offset + 8 : offset + 11] == b'new'
    assert found[offset + length :] == data[offset + length :]
    assert leg.size == SIZE


async def test_erasing_says_whether_it_zeroed_and_leaves_the_neighbours(leg: Leg) -> None:
    data = noise(SIZE)
    await leg.write(0, data)
    zeroed = await leg.erase(1 << 20, 1 << 20)
    found = bytes(await leg.read(0, SIZE))
    assert found[: 1 << 20] == data[: 1 << 20]
    assert found[2 << 20 :] == data[2 << 20 :]
    if zeroed:
        assert found[1 << 20 : 2 << 20] == bytes(1 << 20)
    assert leg.size == SIZE


async def test_allocating_keeps_contents_and_size(leg: Leg) -> None:
    await leg.write(4096, noise(4096))
    await leg.allocate(0, 1 << 20)
    assert bytes(await leg.read(0, 12288)) == bytes(4096) + noise(4096) + bytes(4096)
    assert leg.size == SIZE


async def test_extents_ascend_stay_in_the_range_and_leave_out_nothing_but_zeros(leg: Leg) -> None:
    written = [(65536, 4096), (1 << 20, 65536), (SIZE - 4096, 4096)]
    for offset, length in written:
        await leg.write(offset, noise(length))
    for low, high in ((0, SIZE), (65536 + 1024, (1 << 20) + 1024), (2 << 20, SIZE), (200_000, 300_000)):
        found = list(await leg.extents(low, high - low))
        at = low
        held = bytes(await leg.read(low, high - low))
        for start, length in found:
            assert length > 0
            assert not any(held[at - low : start - low]), 'data outside of the extents'
            assert start >= at
            at = start + length
        assert at <= high
        assert not any(held[at - low :])


async def test_extending_to_what_it_has_changes_nothing(leg: Leg) -> None:
    await leg.write(SIZE - 4096, noise(4096))
    await leg.extend(SIZE - 8192)
    await leg.extend(SIZE)
    assert leg.size == SIZE
    assert bytes(await leg.read(SIZE - 4096, 4096)) == noise(4096)


async def test_extending_gives_zeros_if_it_says_so_or_is_enospc(leg: Leg) -> None:
    try:
        zeroed = await leg.extend(SIZE + (1 << 20))
    except OSError as error:
        assert error.errno == errno.ENOSPC
        assert leg.size == SIZE
        return
    assert leg.size == SIZE + (1 << 20)
    found = bytes(await leg.read(SIZE, 1 << 20))
    assert not zeroed or not any(found)


async def test_a_closed_leg_refuses_every_call_and_closing_twice_is_harmless(leg: Leg) -> None:
    leg.close()
    leg.close()
    for call in (
        lambda: leg.read(0, 512),
        lambda: leg.write(0, bytes(512)),
        lambda: leg.write(0, bytes(512), durable=True),
        leg.flush,
        lambda: leg.zero(0, 512),
    ):
        with pytest.raises(OSError, match='is closed') as error:
            await call()
        assert error.value.errno == errno.ECANCELED
    assert leg.calls == 0


async def test_random_calls_do_what_they_do_to_an_array(leg: Leg) -> None:
    rng = random.Random(5)
    mirror = bytearray(SIZE)
    for _ in range(60):
        offset = rng.randrange(SIZE)
        length = min(SIZE - offset, rng.choice((1, 512, 4096, 100_000)))
        if rng.random() < 0.6:
            data = rng.randbytes(length)
            await leg.write(offset, data, durable=rng.random() < 0.1)
        else:
            data = bytes(length)
            await leg.zero(offset, length)
        mirror[offset : offset + length] = data
    assert bytes(await leg.read(0, SIZE)) == mirror


# Cancelled calls


class Blocked:
    """A real blocking call: a read of a pipe that ends when told."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.begun = threading.Event()

    def __call__(self) -> bytes:
        self.begun.set()
        return os.read(self._read, 1)

    def end(self) -> None:
        os.write(self._write, b'x')

    async def wait_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.begun.wait, 10)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    call = Blocked()
    yield call
    call.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition with a deadline."""
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.002)


async def cancelled_call(workers: Workers, blocked: Blocked) -> None:
    """Begin a call, and cancel it while it is in the kernel."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, blocked)
        await blocked.wait_begun()
        nursery.cancel_scope.cancel()


async def test_a_cancelled_call_stays_counted_until_it_has_returned(blocked: Blocked) -> None:
    workers = Workers('t', 2)
    await cancelled_call(workers, blocked)
    assert workers.calls == 1
    assert await workers.run(lambda: 5) == 5, 'a hung call must not stop the others'
    assert workers.calls == 1
    blocked.end()
    await until(lambda: workers.calls == 0)
    workers.close(lambda: None)


async def test_close_refuses_queued_and_new_calls_and_reports_idle_after_the_last_one(
    blocked: Blocked,
) -> None:
    workers = Workers('t', 1)
    refused: list[int | None] = []
    idle: list[int] = []
    ran: list[int] = []

    async def queued() -> None:
        with pytest.raises(LegError) as error:
            await workers.run(ran.append, 1)
        refused.append(error.value.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, blocked)
        await blocked.wait_begun()
        nursery.start_soon(queued)
        await until(lambda: workers.calls == 2)
        workers.close(lambda: idle.append(workers.calls))
        with pytest.raises(LegError, match='is closed'):
            await workers.run(ran.append, 2)
        assert not refused
        assert not idle
        blocked.end()
    assert refused == [errno.ECANCELED]
    assert ran == [], 'a call that had not begun was made after the close'
    assert idle == [0]


async def test_a_call_raises_what_its_function_raises() -> None:
    workers = Workers('t', 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0)
    assert workers.calls == 0
    workers.close(lambda: None)


async def test_no_more_calls_run_at_once_than_allowed(blocked: Blocked) -> None:
    workers = Workers('t', 3)
    others = [Blocked() for _ in range(2)]
    last: list[int] = []
    async with trio.open_nursery() as nursery:
        for call in (blocked, *others):
            nursery.start_soon(workers.run, call)
            await call.wait_begun()
        nursery.start_soon(workers.run, last.append, 1)
        await until(lambda: workers.calls == 4)
        await trio.testing.wait_all_tasks_blocked()
        assert not last
        for call in (blocked, *others):
            call.end()
    assert last == [1]
    workers.close(lambda: None)
    for call in others:
        call.close()


async def test_threads_end_when_the_workers_are_closed() -> None:
    workers = Workers('endingleg', 4)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(workers.run, bool)
    mine = [thread for thread in threading.enumerate() if 'endingleg' in thread.name]
    assert mine
    workers.close(lambda: None)
    for thread in mine:
        await trio.to_thread.run_sync(thread.join, 10)
        assert not thread.is_alive()


async def test_the_descriptor_is_closed_only_when_the_last_call_has_returned(
    tmp_path: Path, blocked: Blocked
) -> None:
    leg, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE)
    await cancelled_call(leg._workers, blocked)
    leg.close()
    assert leg.calls == 1
    os.fstat(leg.fd)
    with pytest.raises(Refused, match='in use'):
        open_leg(leg.path)
    blocked.end()
    await until(lambda: leg.calls == 0)
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(leg.fd)
    again, _ = open_leg(leg.path)
    again.close()


async def test_a_superseded_lanes_call_keeps_the_descriptor_open(tmp_path: Path) -> None:
    leg, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE)
    leg.lane_calls += 1
    leg.close()
    assert leg.calls == 1
    os.fstat(leg.fd)
    leg.lane_returned()
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(leg.fd)


@pytest.mark.parametrize('direct', [False, True])
@pytest.mark.parametrize(('offset', 'length'), [(0, 1 << 16), (4096, 4096), (100, 8192), (8192, 100)])
async def test_what_was_written_is_fetched_at_once_through_the_cache_and_past_it(
    tmp_path: Path, offset: int, length: int, direct: bool
) -> None:
    leg = LaneFileLeg(str(tmp_path / 'leg'), os.open(tmp_path / 'leg', os.O_RDWR | os.O_CREAT))
    os.ftruncate(leg.fd, 1 << 20)
    data = os.urandom(length)
    await leg.write(offset, data)
    with mmap.mmap(-1, 1 << 20) as memory, memoryview(memory)[:length] as view:
        leg.fetch(offset, view, direct=direct)
        assert bytes(view) == data
        leg.write_back()
        assert leg.calls == 0
        with pytest.raises(LegError, match='ends at byte'):
            leg.fetch(1 << 20, view, direct=direct)
        leg.close()
        for call in (functools.partial(leg.fetch, 0, view, direct=direct), leg.write_back, leg.sync):
            with pytest.raises(LegError, match='is closed'):
                call()


async def test_a_descriptor_past_the_cache_is_closed_with_its_leg(tmp_path: Path) -> None:
    leg = LaneFileLeg(str(tmp_path / 'leg'), os.open(tmp_path / 'leg', os.O_RDWR | os.O_CREAT))
    os.ftruncate(leg.fd, 1 << 16)
    with mmap.mmap(-1, 4096) as memory, memoryview(memory) as view:
        leg.fetch(0, view, direct=True)
    there = len(_open_to(tmp_path / 'leg'))
    leg.close()
    assert there == 3
    assert not _open_to(tmp_path / 'leg')


def _open_to(path: Path) -> list[str]:
    """Return the descriptors of this process that are open on a file."""
    found = []
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            if os.readlink(f'/proc/self/fd/{name}') == str(path):
                found.append(name)
    return found


async def test_an_abandoned_call_of_the_simulator_stays_counted_and_lands_later() -> None:
    disk = CrashDisk('d', SIZE)
    never = trio.Event()

    async def hang(call: object) -> None:
        await never.wait()

    leg = CrashLeg(disk, hang)
    with trio.move_on_after(0.01):
        await leg.write(0, b'late')
    assert leg.calls == 1
    assert disk.visible.read(0, 4) == bytes(4)
    disk.release()
    assert leg.calls == 0
    assert disk.visible.read(0, 4) == b'late'


# Legs past the cache


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[DirectLeg]:
    opened, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE, make=DirectLegs(refused))
    assert isinstance(opened, DirectLeg)
    yield opened
    opened.close()


def test_the_lane_may_use_legs_through_the_cache_only(direct: DirectLeg, tmp_path: Path) -> None:
    assert not isinstance(direct, LaneLeg)
    other, _ = open_leg(str(tmp_path / 'other'), create_size=SIZE)
    assert isinstance(other, LaneLeg)
    other.close()


async def test_reads_and_writes_longer_than_the_memory_kept_for_them(direct: DirectLeg) -> None:
    data = noise(3 * limits.REQUEST_MAX + 4096)
    await direct.write(4096, data)
    assert bytes(await direct.read(4096, len(data))) == data
    await direct.write(77, data)
    assert bytes(await direct.read(77, len(data))) == data
    seen = bytearray(len(data))
    await direct.read_into(77, memoryview(seen))
    assert seen == data


async def test_whole_blocks_go_past_the_cache_and_the_ends_of_others_through_it(
    direct: DirectLeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[tuple[bool, int, int]] = []
    pwritev = os.pwritev

    def seen(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        went.append((fd == direct._direct, offset, len(buffers[0])))
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, 'pwritev', seen)
    unit = direct._unit
    for offset, length in ((0, unit), (unit - 3, 2 * unit + 5), (7, 9), (8, unit), (unit, 3 * unit + 1)):
        await direct.write(offset, noise(length))
    assert went == [
        (True, 0, unit),
        *((False, unit - 3, 3), (True, unit, 2 * unit), (False, 3 * unit, 2)),
        (False, 7, 9),
        *((False, 8, unit - 8), (False, unit, 8)),
        *((True, unit, 3 * unit), (False, 4 * unit, 1)),
    ]


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EOPNOTSUPP])
async def test_a_leg_whose_direct_io_is_refused_later_goes_on_through_the_cache_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    said: list[str] = []
    make = DirectLegs(lambda path, why: said.append(f'{path} {why}'))
    leg, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE, make=make)
    assert isinstance(leg, DirectLeg)
    await leg.write(0, noise(8192))

    def refuses(real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, *arguments: object) -> int:
            if fd == leg._direct:
                raise OSError(code, os.strerror(code))
            return real(fd, *arguments)

        return call

    for name in ('preadv', 'pwritev'):
        monkeypatch.setattr(os, name, refuses(getattr(os, name)))
    assert bytes(await leg.read(0, 8192)) == noise(8192)
    await leg.write(4096, noise(4096, 1))
    await leg.write(100, noise(5000, 2), durable=True)
    assert bytes(await leg.read(0, 8192)) == noise(100) + noise(5000, 2) + noise(4096, 1)[1004:]
    assert said == [f'{leg.path} refuses direct I/O; it is read and written through the page cache']
    leg.close()


async def test_errors_of_the_medium_are_no_refusal(
    direct: DirectLeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, 'the medium')

    for name in ('preadv', 'pwritev'):
        monkeypatch.setattr(os, name, fails)
    for call in (lambda: direct.read(0, 512), lambda: direct.write(0, bytes(4096))):
        with pytest.raises(OSError, match='the medium'):
            await call()


async def test_the_second_descriptor_is_closed_with_the_first(direct: DirectLeg) -> None:
    os.fstat(direct._direct)
    direct.close()
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(direct._direct)


# The simulator's disk forgets as it should


async def test_a_power_cut_keeps_what_was_flushed_and_what_it_chooses_of_the_rest() -> None:
    disk = CrashDisk('d', SIZE)
    leg = CrashLeg(disk)
    await leg.write(0, b'a' * 4096)
    await leg.flush()
    await leg.write(0, b'b' * 4096)
    await leg.write(4096, b'c' * 4096, durable=True)
    assert bytes(await leg.read(0, 4096)) == b'b' * 4096
    dropped = disk.cut(lambda write: [])
    assert dropped.visible.read(0, 8192) == b'a' * 4096 + b'c' * 4096
    kept = disk.cut(lambda write: [(0, len(write.data))])
    assert kept.visible.read(0, 8192) == b'b' * 4096 + b'c' * 4096
    torn = disk.cut(lambda write: [(512, 1024)])
    assert torn.visible.read(0, 2048) == b'a' * 512 + b'b' * 512 + b'a' * 1024
    assert not torn.pending


async def test_a_durable_write_is_not_undone_by_an_older_volatile_one() -> None:
    disk = CrashDisk('d', SIZE)
    leg = CrashLeg(disk)
    await leg.write(0, b'o' * 8192)
    await leg.write(2048, b'n' * 1024, durable=True)
    for keep in (lambda write: [], lambda write: [(0, len(write.data))]):
        assert disk.cut(keep).visible.read(2048, 1024) == b'n' * 1024
    assert disk.cut(lambda write: [(0, len(write.data))]).visible.read(0, 2048) == b'o' * 2048


# Opening: kinds and locks


def test_a_missing_path_is_refused_or_created_with_its_size(tmp_path: Path) -> None:
    path = str(tmp_path / 'leg')
    with pytest.raises(Refused, match='is not there') as refusal:
        open_leg(path)
    assert refusal.value.errno == errno.ENOENT
    leg, created = open_leg(path, create_size=SIZE)
    assert created
    assert leg.size == SIZE
    assert os.stat(path).st_blocks == 0, 'a new leg is sparse'
    assert os.stat(path).st_mode & 0o777 == 0o600
    leg.close()
    leg, created = open_leg(path, create_size=2 * SIZE)
    assert not created
    assert leg.size == SIZE, 'only an empty file is extended'
    leg.close()


def test_an_empty_file_is_extended_but_not_called_created(tmp_path: Path) -> None:
    (tmp_path / 'leg').touch()
    leg, created = open_leg(str(tmp_path / 'leg'), create_size=SIZE)
    assert (leg.size, created) == (SIZE, False)
    leg.close()


def test_a_leg_that_cannot_be_made_so_long_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / 'leg'
    with pytest.raises(Refused, match='cannot be made'):
        open_leg(str(path), create_size=1 << 62)
    assert not path.exists()


def test_wrong_kinds_are_refused_without_opening_them(tmp_path: Path) -> None:
    fifo = tmp_path / 'fifo'
    os.mkfifo(fifo)
    for path in (str(tmp_path), str(fifo), '/dev/zero', '/dev/null'):
        with pytest.raises(Refused, match='neither a regular file nor a block device') as refusal:
            open_leg(path, create_size=SIZE)
        assert refusal.value.errno == errno.EINVAL
        assert path in str(refusal.value)


def test_a_path_below_a_missing_folder_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(Refused, match='cannot be created: No such file') as refusal:
        open_leg(str(tmp_path / 'no' / 'leg'), create_size=SIZE)
    assert refusal.value.errno == errno.ENOENT
    (tmp_path / 'plain').touch()
    with pytest.raises(Refused) as refusal:
        open_leg(str(tmp_path / 'plain' / 'leg'), create_size=SIZE)
    assert refusal.value.errno == errno.ENOTDIR


def test_a_second_open_is_refused_and_names_this_process(tmp_path: Path) -> None:
    path = str(tmp_path / 'leg')
    leg, _ = open_leg(path, create_size=SIZE)
    with pytest.raises(Refused) as refusal:
        open_leg(path)
    assert refusal.value.errno == errno.EBUSY
    assert f'process {os.getpid()} (' in str(refusal.value)
    leg.close()
    open_leg(path)[0].close()


HOLD = """
import sys, fcntl, os
flags = os.O_RDWR | (os.O_EXCL if sys.argv[2] == 'exclusive' else 0)
fd = os.open(sys.argv[1], flags)
fcntl.flock(fd, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: str, how: str) -> Iterator[int]:
    """Another process that holds a leg; yields its pid."""
    command = [sys.executable, '-c', HOLD, path, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == 'held\n'
        yield process.pid
        process.communicate()


def test_a_leg_that_another_process_holds_is_refused_and_that_process_named(tmp_path: Path) -> None:
    path = tmp_path / 'leg'
    path.write_bytes(bytes(SIZE))
    with holder(str(path), 'plain') as pid, pytest.raises(Refused, match=rf'process {pid} \(.*python'):
        open_leg(str(path))


def test_a_refused_open_does_not_leak_a_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / 'leg')
    leg, _ = open_leg(path, create_size=SIZE)
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(5):
        with pytest.raises(Refused):
            open_leg(path, create_size=SIZE)
    assert len(os.listdir('/proc/self/fd')) == before
    assert fcntl.fcntl(leg.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    leg.close()


@pytest.mark.loop
def test_a_block_device_in_use_is_refused_and_its_holder_named(device: str) -> None:
    leg, created = open_leg(device, create_size=SIZE)
    assert not created
    with pytest.raises(Refused, match=rf'this process \({os.getpid()}\)') as refusal:
        open_leg(device)
    assert refusal.value.errno == errno.EBUSY
    leg.close()
    deadline = time.monotonic() + 10
    while device in closing:  # a device is closed in a thread
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with holder(device, 'exclusive') as pid, pytest.raises(Refused, match=rf'process {pid} \('):
        open_leg(device)
    with holder(device, 'plain') as pid, pytest.raises(Refused, match=rf'process {pid} \('):
        open_leg(device)


async def test_a_created_leg_that_is_not_wanted_is_gone(tmp_path: Path) -> None:
    path = tmp_path / 'leg'
    opener = FileOpener()
    leg, created = await opener.open(str(path), create_size=SIZE)
    assert created
    await opener.discard_new(leg)
    leg.close()
    assert not path.exists()


# Signatures


def wibm_leg(path: Path) -> None:
    """Write the superblock of a volume named ``archive`` to a file."""
    slots = (Slot(LegState.IN_SYNC, uuid.UUID(int=4)), *[Slot()] * 15)
    lineage = (Generation(uuid.UUID(int=1), 1, 1),)
    record = VolumeRecord(uuid.UUID(int=3), 'archive', 1 << 20, 1 << 20, 1, slots, lineage)
    sup = wibm.LegSuper(record, uuid.UUID(int=4), 0, wibm.new_layout(1 << 20, 1 << 20), 1)
    with path.open('r+b') as file:
        file.seek(wibm.SUPER_OFFSETS[1])
        file.write(wibm.encode_super(sup))


def ext4(path: Path) -> None:
    subprocess.run(
        ['mkfs.ext4', '-q', '-F', str(path)], check=True, env={'PATH': '/usr/sbin:/sbin:/usr/bin:/bin'}
    )


def partition_table(path: Path) -> None:
    with path.open('r+b') as file:
        file.seek(446)
        file.write(
            struct.pack('<B3sB3sII', 0, b'\0\2\0', 0x83, b'\0\3\0', 2048, 2048) + bytes(48) + b'\x55\xaa'
        )


def luks(path: Path) -> None:
    with path.open('r+b') as file:
        file.write(
            b'LUKS\xba\xbe\0\1' + bytes(160) + b'11111111-2222-3333-4444-555555555555'.ljust(40, b'\0')
        )


@pytest.mark.parametrize(
    ('write', 'words'),
    [
        (wibm_leg, ['slot 0', 'volume archive', str(uuid.UUID(int=3))]),
        (ext4, ['ext4']),
        (partition_table, ['dos']),
        (luks, ['crypto_LUKS']),
    ],
    ids=['wibm', 'ext4', 'partitions', 'luks'],
)
async def test_a_leg_with_a_signature_is_refused_and_the_signature_named(
    tmp_path: Path, write: Callable[[Path], None], words: list[str]
) -> None:
    if write is ext4 and not shutil.which('mkfs.ext4', path='/usr/sbin:/sbin:/usr/bin:/bin'):
        pytest.skip('mkfs.ext4 (e2fsprogs) is not installed')
    path = tmp_path / 'leg'
    path.write_bytes(bytes(SIZE))
    opener = FileOpener()
    leg, _ = await opener.open(str(path))
    await opener.require_blank(leg)
    write(path)
    with pytest.raises(Refused) as refusal:
        await opener.require_blank(leg)
    assert refusal.value.errno == errno.EEXIST
    for word in [*words, str(path), '--force']:
        assert word in str(refusal.value)
    leg.close()


async def test_zeros_and_emptiness_are_blank(tmp_path: Path) -> None:
    opener = FileOpener()
    for number, content in enumerate((b'', bytes(SIZE))):
        path = tmp_path / f'leg{number}'
        path.write_bytes(content)
        leg, _ = await opener.open(str(path))
        await opener.require_blank(leg)
        assert path.read_bytes() == content
        leg.close()


@pytest.mark.loop
async def test_the_medium_is_read_past_a_page_that_is_cached(device: str) -> None:
    """Somebody corrupts the file beneath a loop device whose page is cached: `read` cannot see it."""
    leg, _ = open_leg(device)
    try:
        await leg.write(8192, b'good' * 1024)
        await leg.flush()
        assert bytes(await leg.read(8192, 4)) == b'good'
        backing = Path(f'/sys/block/{Path(device).name}/loop/backing_file').read_text().strip()
        with open(backing, 'r+b') as file:
            file.seek(8192)
            file.write(b'evil')
        assert bytes(await leg.read(8192, 4)) == b'good'
        assert bytes(await leg.read_medium(8192, 4)) == b'evil'
    finally:
        leg.close()


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (lambda path: path.unlink(), 'was removed'),
        (lambda path: os.truncate(path, 4096), 'was cut'),
        (lambda path: (os.link(path, f'{path}.x'), path.unlink()), ''),
        (lambda path: (path.rename(f'{path}.x'), path.touch()), 'something else'),
    ],
    ids=['removed', 'truncated', 'linked', 'replaced'],
)
async def test_a_file_that_is_not_what_was_opened_has_departed(
    change: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    path = tmp_path / 'leg'
    leg, _ = open_leg(str(path), create_size=SIZE)
    try:
        change(path)
        assert why in await leg.departed(SIZE)
    finally:
        leg.close()


async def test_a_file_that_was_renamed_is_followed(tmp_path: Path) -> None:
    leg, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE)
    try:
        (tmp_path / 'leg').rename(tmp_path / 'other')
        assert await leg.departed(SIZE) == ''
        assert leg.path == str(tmp_path / 'other')
    finally:
        leg.close()


async def test_a_leg_moves_in_two_steps_and_is_at_both_paths_between(tmp_path: Path) -> None:
    old, new = tmp_path / 'leg', tmp_path / 'new'
    leg, _ = open_leg(str(old), create_size=SIZE)
    try:
        before = await leg.move(str(new))
        assert (before, leg.path) == (str(old), str(new))
        assert old.samefile(new)
        await leg.moved(before)
        assert not old.exists()
        assert await leg.departed(SIZE) == ''
        old.touch()
        with pytest.raises(Refused, match='something else') as refused:
            await leg.move(str(old))
        assert refused.value.errno == errno.EEXIST
        with pytest.raises(Refused) as refused:
            await leg.move('/proc/leg')
        assert leg.path == str(new)
    finally:
        leg.close()


def test_a_file_leg_knows_its_file(tmp_path: Path) -> None:
    leg, _ = open_leg(str(tmp_path / 'leg'), create_size=SIZE)
    assert isinstance(leg, FileLeg)
    info = os.stat(leg.path)
    assert leg.identity == (info.st_dev, info.st_ino)
    assert leg.sharing == info.st_dev
    assert not leg.is_device
    leg.close()
