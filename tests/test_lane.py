"""The data lane against a pretended kernel: what it serves, hands over and forwards; grace and replacement.

The kernel is the other end of a socket pair that keeps message boundaries, as /dev/fuse does.
"""

import errno
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import hot, limits
from mirrorfs.fs import lane, wire
from mirrorfs.fs.fetching import Fetching
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.lane import Request

CHUNK = 64 << 10
SIZE = 8 * CHUNK
NODE = 5


class Kernel:
    """Sends requests, receives replies, and holds what the gateway handed over."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.handed: list[Request] = []
        self.taken: list[tuple[int, int, trio.Event]] = []
        self.arrived = trio.Event()
        self._unique = 0

    def request(self, opcode: int, body: bytes, node: int = NODE) -> int:
        self._unique += 2
        length = wire.IN_HEADER.size + len(body)
        header = wire.IN_HEADER.pack(length, opcode, self._unique, node, 0, 0, 0, 0, 0)
        self.near.send(header + body)
        return self._unique

    def write(self, offset: int, data: bytes, flags: int = 0, node: int = NODE) -> int:
        body = wire.WRITE_IN.pack(1, offset, len(data), 0, 0, flags, 0) + data
        return self.request(wire.FUSE_WRITE, body, node)

    def read(self, offset: int, size: int) -> int:
        return self.request(wire.FUSE_READ, wire.READ_IN.pack(1, offset, size, 0, 0, 0, 0))

    async def reply(self) -> tuple[int, int, bytes]:
        """Return (unique, errno, body) of the next reply."""
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(self.near)
        message = self.near.recv(2 << 20)
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[wire.OUT_HEADER.size :]

    def handle(self, request: Request) -> None:
        self.handed.append(request)
        self.arrived.set()

    async def next_handed(self) -> Request:
        with trio.fail_after(10):
            while not self.handed:
                self.arrived = trio.Event()
                await self.arrived.wait()
        return self.handed.pop(0)


@asynccontextmanager
async def serving(table: hot.HotTable, **options: float) -> AsyncIterator[tuple[Kernel, Gateway]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        end.setblocking(False)
    kernel = Kernel(near)
    gateway = Gateway(
        far.fileno(), kernel.handle, lambda *stuck: kernel.taken.append(stuck), lambda: None, **options
    )
    gateway.attach(NODE, table)
    gateway.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.watch)
            yield kernel, gateway
            nursery.cancel_scope.cancel()
    finally:
        gateway.close()
        far.close()


@pytest.fixture
def legs(tmp_path: Path) -> list[int]:
    descriptors = []
    for name in ('a', 'b'):
        fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, SIZE)
        descriptors.append(fd)
    return descriptors


def table_over(legs: list[int], flags: int = hot.READ | hot.WRITE) -> hot.HotTable:
    table = hot.HotTable(SIZE, CHUNK)
    table.targets = tuple((fd, 0, slot) for slot, fd in enumerate(legs))
    busy = SimpleNamespace(calls=limits.LEG_CALLS)  # what is not in the cache goes to trio
    table.homes = tuple((fd, 0, slot, 0, busy) for slot, fd in enumerate(legs))
    table.view()[:] = flags
    return table


async def test_a_hot_write_reaches_all_legs_and_is_answered_at_once(legs: list[int]) -> None:
    table = table_over(legs)
    async with serving(table) as (kernel, _):
        unique = kernel.write(CHUNK + 5, b'hello')
        assert await kernel.reply() == (unique, 0, wire.WRITE_REPLY.pack(0, 0, 0, 5, 0)[16:])
        assert not kernel.handed
    assert [os.pread(fd, 5, CHUNK + 5) for fd in legs] == [b'hello'] * 2
    assert list(table.touched) == [0, 1, 0, 0, 0, 0, 0, 0]
    assert table.unflushed == 5


async def test_a_hot_write_over_a_chunk_border_touches_both_chunks(legs: list[int]) -> None:
    table = table_over(legs)
    async with serving(table) as (kernel, _):
        kernel.write(2 * CHUNK - 1, b'ab')
        await kernel.reply()
    assert list(table.touched) == [0, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ('offset', 'size', 'flags', 'permission', 'why'),
    [
        (0, 10, 0, hot.READ, 'not marked'),
        (0, 10, os.O_DSYNC, hot.READ | hot.WRITE, 'to be durable'),
        (SIZE - 5, 10, 0, hot.READ | hot.WRITE, 'beyond the end'),
        (1 << 62, 10, 0, hot.READ | hot.WRITE, 'far beyond the end'),
        (0, 10, 0, hot.ZEROS, 'never written'),
    ],
)
async def test_other_writes_are_handed_over_with_their_data(
    legs: list[int], offset: int, size: int, flags: int, permission: int, why: str
) -> None:
    async with serving(table_over(legs, permission)) as (kernel, _):
        unique = kernel.write(offset, b'x' * size, flags)
        request = await kernel.next_handed()
        assert (request.unique, request.opcode, request.offset) == (unique, wire.FUSE_WRITE, offset), why
        assert bytes(request.data) == b'x' * size
    assert os.pread(legs[0], 10, 0) == bytes(10)


async def test_a_write_over_one_cold_chunk_is_handed_over_whole(legs: list[int]) -> None:
    table = table_over(legs)
    table.withdraw(1, 1)
    async with serving(table) as (kernel, _):
        kernel.write(CHUNK - 1, b'ab')
        assert (await kernel.next_handed()).size == 2
    assert os.pread(legs[0], 2, CHUNK - 1) == bytes(2)


async def test_a_large_write_that_is_handed_over_keeps_its_data_while_others_come(legs: list[int]) -> None:
    table = table_over(legs)
    table.withdraw(0, 0)
    async with serving(table) as (kernel, gateway):
        large = os.urandom(CHUNK + 4096)
        kernel.write(0, large)
        request = await kernel.next_handed()
        for _ in range(20):
            kernel.write(3 * CHUNK, os.urandom(CHUNK))
            await kernel.reply()
        assert bytes(request.data) == large
        gateway.give_back(request)


async def test_reads_come_from_the_home_leg_and_from_nothing_where_never_written(legs: list[int]) -> None:
    table = table_over(legs)
    table.home_shift = 0
    os.pwrite(legs[0], b'A' * SIZE, 0)
    os.pwrite(legs[1], b'B' * SIZE, 0)
    table.flags[3] = hot.ZEROS
    async with serving(table) as (kernel, _):
        for chunk, wanted in enumerate((b'A', b'B', b'A', b'\0', b'A')):
            unique = kernel.read(chunk * CHUNK + 9, 100)
            assert await kernel.reply() == (unique, 0, wanted * 100)
        unique = kernel.read(CHUNK - 1, 2)  # two homes
        assert (await kernel.next_handed()).unique == unique
        unique = kernel.read(SIZE - 1, 2)  # short
        assert (await kernel.next_handed()).unique == unique


async def test_a_failing_leg_sends_the_request_to_trio_unanswered(legs: list[int]) -> None:
    table = table_over(legs)
    table.targets = (table.targets[0], (9999, 0, 1))
    async with serving(table) as (kernel, _):
        unique = kernel.write(0, b'data')
        assert (await kernel.next_handed()).unique == unique


async def test_fallocate_lseek_and_fsync_are_handed_over_with_their_fields(legs: list[int]) -> None:
    async with serving(table_over(legs)) as (kernel, _):
        kernel.request(wire.FUSE_FALLOCATE, wire.FALLOCATE_IN.pack(1, 4096, 8192, 3, 0) + bytes(16))
        request = await kernel.next_handed()
        assert (request.offset, request.size, request.flags) == (4096, 8192, 3)
        kernel.request(wire.FUSE_LSEEK, wire.LSEEK_IN.pack(1, 777, os.SEEK_HOLE, 0) + bytes(16))
        request = await kernel.next_handed()
        assert (request.offset, request.flags) == (777, os.SEEK_HOLE)
        kernel.request(wire.FUSE_FSYNC, wire.FSYNC_IN.pack(1, 1, 0) + bytes(24))
        assert (await kernel.next_handed()).opcode == wire.FUSE_FSYNC


async def test_everything_else_goes_whole_to_pyfuse3_and_its_reply_back(legs: list[int]) -> None:
    async with serving(table_over(legs)) as (kernel, gateway):
        unique = kernel.request(3, b'getattr body', node=1)
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(gateway.far)
        message = gateway.far.recv(1 << 20)
        assert message.endswith(b'getattr body')
        gateway.far.send(wire.OUT_HEADER.pack(16, 0, unique))
        assert await kernel.reply() == (unique, 0, b'')
        kernel.request(wire.FUSE_INTERRUPT, bytes(8), node=0)
        too_long = lane.limits.CONTROL_WRITE_MAX + 1
        kernel.write(0, bytes(too_long + 5000), node=1)
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(gateway.far)
        assert len(gateway.far.recv(1 << 20)) == wire.WRITE_DATA + too_long, 'not cut, or INTERRUPT passed on'


async def test_an_unexpected_error_answers_eio_and_the_lane_lives(
    legs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(table_over(legs)) as (kernel, gateway):

        def fault(opcode: int) -> None:
            raise ZeroDivisionError('planted')

        gateway.fault = fault
        unique = kernel.write(0, b'x')
        assert (await kernel.reply())[:2] == (unique, errno.EIO)
        gateway.fault = None
        unique = kernel.write(0, b'x')
        assert (await kernel.reply())[:2] == (unique, 0)
    assert 'unexpected error in the data lane' in caplog.text


class Stall:
    """Makes os.pwrite to one descriptor wait until released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
        self.inside, self.release = threading.Event(), threading.Event()
        real = os.pwrite

        def pwrite(to: int, data: memoryview, offset: int) -> int:
            if to == fd and not self.release.is_set():
                self.inside.set()
                assert self.release.wait(20)
            return real(to, data, offset)

        monkeypatch.setattr(os, 'pwrite', pwrite)

    async def entered(self) -> None:
        assert await trio.to_thread.run_sync(self.inside.wait, 10)


async def test_settle_waits_for_the_request_under_way(
    legs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_over(legs)
    stall = Stall(monkeypatch, legs[1])
    async with serving(table, stuck_seconds=60) as (kernel, _):
        kernel.write(0, b'first')
        await stall.entered()
        table.withdraw(0, 7)
        with trio.move_on_after(0.2) as early:
            await table.settle()
        assert early.cancelled_caught, 'settled while the lane was between two legs'
        stall.release.set()
        with trio.fail_after(10):
            await table.settle()
        assert os.pread(legs[1], 5, 0) == b'first'


async def test_a_stuck_lane_is_replaced_and_its_request_taken_over(
    legs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, other = table_over(legs), table_over([legs[0]])
    stall = Stall(monkeypatch, legs[1])
    async with serving(table, stuck_seconds=0.2) as (kernel, gateway):
        gateway.attach(NODE + 1, other)
        unique = kernel.write(0, b'stuck')
        await stall.entered()
        request = await kernel.next_handed()
        assert (request.unique, request.stuck, bytes(request.data)) == (unique, 1, b'stuck')
        (node, slot, returned) = kernel.taken[0]
        assert (node, slot) == (NODE, 1)
        for turn in range(5):  # another volume goes on meanwhile
            unique = kernel.write(CHUNK * turn, b'other', node=NODE + 1)
            assert (await kernel.reply())[:2] == (unique, 0)
        assert not returned.is_set()
        stall.release.set()
        with trio.fail_after(10):
            await returned.wait()
        assert gateway.superseded == 1
        assert bytes(request.data) == b'stuck'
        gateway.give_back(request)
        fresh = gateway.fresh_buffer().obj
        assert fresh is not request.data.obj, 'a buffer that a stuck lane used was given out'  # type: ignore[union-attr]


async def test_a_superseded_lane_writes_to_no_further_leg(
    legs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_over(legs)
    stall = Stall(monkeypatch, legs[0])
    async with serving(table, stuck_seconds=0.2) as (kernel, _):
        kernel.write(0, b'late')
        await stall.entered()
        request = await kernel.next_handed()
        assert request.stuck == 0
        stall.release.set()
        with trio.fail_after(10):
            assert request.returned is not None
            await request.returned.wait()
        assert os.pread(legs[1], 4, 0) == bytes(4)


# Reads of what is not in the page cache


class SlowLeg:
    """A leg that gives a byte, once it is let."""

    def __init__(self, *, fails: bool = False) -> None:
        self.calls = 0
        self.asked, self.let = threading.Event(), threading.Event()
        self._fails = fails

    def fetch(self, offset: int, view: memoryview, *, direct: bool = False) -> None:
        self.asked.set()
        assert self.let.wait(10)
        if self._fails:
            raise OSError(errno.EIO, 'bad')
        view[:] = b'm' * len(view)


def cold(legs: list[int], leg: SlowLeg) -> hot.HotTable:
    """A table of a volume none of which is in the page cache: the lane's own reads fail."""
    table = table_over(legs)
    table.homes = ((-1, 0, 0, 0, leg),)
    return table


async def test_what_is_not_in_the_cache_is_read_beside_the_lane_and_answered(legs: list[int]) -> None:
    leg = SlowLeg()
    table = cold(legs, leg)
    async with serving(table) as (kernel, _):
        slow = kernel.read(5, 3)
        assert await trio.to_thread.run_sync(leg.asked.wait, 10)
        quick = kernel.write(CHUNK, b'x')
        assert (await kernel.reply())[0] == quick
        leg.let.set()
        assert await kernel.reply() == (slow, 0, b'mmm')
        assert not kernel.handed
    assert (table.reads, table.read_bytes) == (1, 3)


def _withdraw(table: hot.HotTable) -> None:
    table.withdraw(0, 0)
    table.view()[0] = hot.READ | hot.WRITE  # and given again meanwhile


def _other_legs(table: hot.HotTable) -> None:
    table.homes = (*table.homes,)


@pytest.mark.parametrize('change', [_withdraw, _other_legs, None])
async def test_a_read_beside_the_lane_that_may_be_wrong_by_now_is_done_anew_by_trio(
    legs: list[int], change: Callable[[hot.HotTable], None] | None
) -> None:
    leg = SlowLeg(fails=change is None)
    table = cold(legs, leg)
    async with serving(table) as (kernel, _):
        unique = kernel.read(0, 3)
        assert await trio.to_thread.run_sync(leg.asked.wait, 10)
        if change:
            change(table)
        leg.let.set()
        assert (await kernel.next_handed()).unique == unique


async def test_a_read_that_hangs_beside_the_lane_goes_to_trio_and_is_answered_once(
    legs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fetching, 'patience', 0.0)
    leg = SlowLeg()
    async with serving(cold(legs, leg), stuck_seconds=0.05) as (kernel, gateway):
        unique = kernel.read(0, 3)
        request = await kernel.next_handed()
        assert request.unique == unique
        gateway.reply(unique, 0, b'abc')
        assert await kernel.reply() == (unique, 0, b'abc')
        leg.let.set()
        other = kernel.write(0, b'x')
        assert (await kernel.reply())[0] == other
        assert not kernel.handed


def test_a_long_stream_of_what_is_not_in_the_cache_goes_past_it_and_looks_again_at_times() -> None:
    stream, block = hot.Stream(), 128 << 10
    direct = looked = 0
    for offset in range(0, 64 << 20, block):
        looked += not stream.past_cache(offset, block)
        direct += stream.missed(offset, block) * block
    assert direct == (64 << 20) - limits.STREAM_CACHED
    assert looked == limits.STREAM_CACHED // block + (64 << 20) // limits.STREAM_PAST_CACHE


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.booleans()), max_size=50))
def test_reads_that_do_not_follow_each_other_never_go_past_the_cache(reads: list[tuple[int, bool]]) -> None:
    stream, end = hot.Stream(), -(1 << 40)
    for offset, missed in reads:
        if abs(offset - end) <= limits.STREAM_SLACK:
            continue
        assert not stream.past_cache(offset, limits.STREAM_READ)
        assert not (missed and stream.missed(offset, limits.STREAM_READ))
        end = offset + limits.STREAM_READ


def test_a_stream_whose_pages_are_in_the_cache_stays_there() -> None:
    stream, block = hot.Stream(), 1 << 20
    for offset in range(0, 256 << 20, block):
        assert not stream.past_cache(offset, block)


# Write-back before the next FSYNC


async def test_large_writes_are_written_back_while_they_come_once_there_was_an_fsync(legs: list[int]) -> None:
    begun: list[int] = []
    table = table_over(legs)
    table.syncable = tuple(
        SimpleNamespace(sync=lambda: None, write_back=functools.partial(begun.append, leg)) for leg in legs
    )
    async with serving(table) as (kernel, _):
        kernel_writes = functools.partial(_large_writes, kernel, limits.EAGER_BYTES)
        await kernel_writes()
        assert not begun
        kernel.request(wire.FUSE_FSYNC, wire.FSYNC_IN.pack(1, 0, 0))
        assert (await kernel.reply())[1] == 0
        for count in (1, 2):
            await kernel_writes()
            with trio.fail_after(10):
                while len(begun) < count * len(legs) or table.eager:
                    await trio.sleep(0.001)
        assert sorted(begun) == sorted([*legs, *legs])
        table.eager_until = 0.0  # long ago
        await kernel_writes()
        assert len(begun) == 2 * len(legs)
        assert not kernel.handed


async def _large_writes(kernel: Kernel, size: int) -> None:
    block = bytes(2 * CHUNK)
    for _ in range(size // len(block)):
        kernel.write(0, block)
        assert (await kernel.reply())[1] == 0


# Samples of how long it takes


async def test_one_request_in_64_is_timed(legs: list[int]) -> None:
    table = table_over(legs)
    async with serving(table) as (kernel, _):
        for turn in range(256):
            if turn % 2:
                kernel.write(0, b'x')
            else:
                kernel.read(0, 1)
            assert (await kernel.reply())[1] == 0
    assert sum(table.lane_reads.counts) + sum(table.lane_writes.counts) in (2, 3, 4, 5)
    assert table.reads + table.writes == 256
