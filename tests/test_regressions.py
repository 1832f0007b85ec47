"""What reviews against the invariants found, one test for each: it fails where the fix is taken out."""

import errno
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trio
from crashtools import B, World, simulate, w
from test_lane import CHUNK as LANE_CHUNK
from test_lane import legs, serving, table_over  # noqa: F401

from mirrorfs import hot, limits
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import LegError, LegTimeout, Refused
from mirrorfs.events import EventLog
from mirrorfs.hot import HotTable
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Leg
from mirrorfs.leg.file import FileLeg
from mirrorfs.leg.memory import Buffers
from mirrorfs.leg.opening import FileOpener
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.assembly import assemble
from mirrorfs.mirror.copying import copy_range
from mirrorfs.mirror.fanout import Failures
from mirrorfs.mirror.formatting import read_super
from mirrorfs.mirror.member import Member
from mirrorfs.model import Generation, LegState, Slot, VolumeRecord
from mirrorfs.pool import Pool
from mirrorfs.sim import verbs
from mirrorfs.sim.crashleg import Call, CrashDisk, CrashLeg, Hook
from mirrorfs.sim.world import CHUNK
from mirrorfs.volume.creation import Request, create
from mirrorfs.volume.lifecycle import Found, Settings, Started, start

MIB = 1 << 20
LONG = 600.0
"""Virtual seconds: far beyond every bound."""


# Tools


def simulated(main: Callable[[], Awaitable[None]]) -> None:
    """Run in virtual time, deterministically."""
    simulate(main, 0, 'a regression test')


def before_each_call(world: World, meddle: Callable[[Call], Awaitable[None]]) -> None:
    """Have `meddle` see, delay or fail every call before the world does."""
    real: Hook = world.hook

    async def hook(call: Call) -> None:
        await meddle(call)
        await real(call)

    world.hook = hook  # type: ignore[method-assign]


@dataclass
class Store:
    """A pool that keeps the last record in memory."""

    saved: list[VolumeRecord] = field(default_factory=list)

    async def save(self, record: VolumeRecord) -> None:
        self.saved.append(record)


@asynccontextmanager
async def on_files(a: Path, b: Path, size: int = 4 * MIB) -> AsyncIterator[Started]:
    """A volume with two legs that are files, running in real time."""
    opener, settings = FileOpener(), Settings(5.0)
    record = await create(Request('v', size, [str(a), str(b)], CHUNK, force=True), opener, settings)
    found = {}
    for number, path in enumerate((a, b)):
        leg, _ = await opener.open(str(path))
        sup, copy = await read_super(leg)
        found[number] = Found(leg, sup, copy)
    started = await start(record, found, Store(), lambda *words: None, settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(started.run)
        yield started
        nursery.cancel_scope.cancel()
    await started.close()


@pytest.fixture
async def leg(tmp_path: Path) -> AsyncIterator[FileLeg]:
    opened, _ = await FileOpener().open(str(tmp_path / 'leg'), create_size=MIB)
    assert isinstance(opened, FileLeg)
    yield opened
    opened.close()


@dataclass
class PoolAtWork:
    """A pool with one volume `v`, and room to watch what it saves."""

    pool: Pool
    directory: PoolDirectory
    path: Path

    def request(self, name: str) -> Request:
        return Request(name, 4 * MIB, [str(self.path / f'{name}{n}') for n in (0, 1)], CHUNK)


@pytest.fixture
async def work(tmp_path: Path) -> AsyncIterator[PoolAtWork]:
    directory = PoolDirectory(str(tmp_path / 'pool'))
    directory.make()
    pool = Pool(directory, FileOpener(), EventLog(), Settings(3.0))
    made = PoolAtWork(pool, directory, tmp_path)
    async with trio.open_nursery() as nursery:
        await pool.start(nursery)
        await pool.create(made.request('v'))
        yield made
        nursery.cancel_scope.cancel()


# The intent log grows while a round is being stored


@pytest.mark.parametrize('chunks', [1, 3])
def test_a_batch_that_began_before_a_growth_finishes_after_it(chunks: int) -> None:
    log = IntentLog(uuid.UUID(int=1), np.zeros(chunks, np.uint8), 0)
    log.update(0, 0, set_=DIRTY)
    batch = log.begin()
    log.grow(6, UNWRITTEN)
    log.finish(batch)
    assert log.durable.tolist() == [DIRTY] + [0] * (chunks - 1) + [UNWRITTEN] * (6 - chunks)


def test_a_growth_while_a_sweep_stores_its_round_succeeds() -> None:
    """The sweep's page write is slow; meanwhile the log gets longer than the page that was taken of it."""
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        armed, storing = trio.Event(), trio.Event()

        async def slow(call: Call) -> None:
            metadata = call.kind == 'write' and call.offset < world.layout.data_offset
            if armed.is_set() and metadata and not storing.is_set():
                storing.set()
                await trio.sleep(0.05)

        before_each_call(world, slow)
        async with world.running() as volume:
            await world.do(w(0))
            volume.hot.touched_view()[:] = 0
            armed.set()
            assert world.started
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.started.clearer.sweep)
                with trio.fail_after(LONG):
                    await storing.wait()
                    await world.do(('grow', 6))
            assert volume.record.chunks == len(volume.log) == 6
            await world.do(w(5 * B))
            await world.stop()

    simulated(main)


# A lost write-back


class Fdatasync:
    """Stands in for os.fdatasync: the n-th call for a descriptor fails or waits as planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[int, int] = {}
        self.plans: dict[tuple[int, int], Callable[[], None]] = {}
        real = os.fdatasync

        def fdatasync(fd: int) -> None:
            nth = self.calls[fd] = self.calls.get(fd, 0) + 1
            self.plans.get((fd, nth), lambda: None)()
            real(fd)

        monkeypatch.setattr(os, 'fdatasync', fdatasync)


def lose() -> None:
    raise OSError(errno.EIO, 'planned')


async def test_a_failed_flush_fails_the_concurrent_and_all_later_ones(
    leg: FileLeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost write-back to one fdatasync only; the next would say that all is well."""
    sync, inside, release = Fdatasync(monkeypatch), threading.Event(), threading.Event()

    def slowly_lose() -> None:
        inside.set()
        assert release.wait(10)
        lose()

    sync.plans[leg.fd, 1] = slowly_lose
    outcomes: list[int | None] = []

    async def flush() -> None:
        try:
            await leg.flush()
        except OSError as error:
            outcomes.append(error.errno)
        else:
            outcomes.append(None)

    await leg.write(0, b'lost')
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            assert await trio.to_thread.run_sync(inside.wait, 10)
            nursery.start_soon(flush)
            await trio.sleep(0.05)
            assert not outcomes, 'a flush succeeded while one that fails was under way'
            release.set()
        for _ in range(2):
            await flush()
    assert outcomes == [errno.EIO] * 4


async def test_a_simulated_disk_that_failed_a_flush_fails_all_later_ones() -> None:
    """The simulation keeps the contract of legs, or it could not find who relies on more."""
    kinds: list[str] = []

    async def hook(call: Call) -> None:
        kinds.append(call.kind)
        if kinds == ['flush']:
            lose()

    disk = CrashDisk('d0', MIB)
    simulated_leg = CrashLeg(disk, hook)
    for _ in range(3):
        with pytest.raises(OSError, match='planned'):
            await simulated_leg.flush()


async def test_a_simulated_disk_loses_nothing_when_a_closed_leg_refuses_to_flush() -> None:
    """The disk was not asked: what is volatile stays so, as on a real one."""
    disk = CrashDisk('d0', MIB)
    simulated_leg = CrashLeg(disk)
    await simulated_leg.write(0, b'volatile')
    simulated_leg.close()
    with pytest.raises(LegError):
        await simulated_leg.flush()
    assert len(disk.pending) == 1
    assert not disk.lost


async def test_durable_writes_use_a_file_description_of_their_own(
    leg: FileLeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync through the description that flush uses would take the report of a lost write from it."""
    written, real, sync = [], os.pwritev, Fdatasync(monkeypatch)

    def pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        written.append(fd)
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, 'pwritev', pwritev)
    await leg.write(0, b'plain')
    await leg.write(0, b'whole', durable=True)
    await leg.flush()
    plain, durable = written
    (flushed,) = sync.calls
    assert plain == flushed
    assert os.path.sameopenfile(durable, flushed)
    os.lseek(flushed, 4096, os.SEEK_SET)
    os.lseek(durable, 512, os.SEEK_SET)
    assert os.lseek(flushed, 0, os.SEEK_CUR) == 4096, 'one position, so one description'


async def test_a_lost_write_back_told_to_a_flush_is_not_cleared_by_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leg 0 loses a write; a user's flush is told, and waits for leg 1; a sweep meanwhile must not clear."""
    async with on_files(tmp_path / 'a', tmp_path / 'b') as started:
        volume = started.volume
        fds = [member.leg.fd for member in volume.members]  # type: ignore[attr-defined]
        await volume.write(0, b'x' * 512)
        volume.hot.touched_view()[:] = 0
        sync, failed, waits, release = (Fdatasync(monkeypatch), *(threading.Event() for _ in range(3)))

        def fail() -> None:
            failed.set()
            lose()

        def wait() -> None:
            waits.set()
            assert release.wait(3)

        sync.plans = {(fds[0], 1): fail, (fds[1], 1): wait}
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.flush)
                for event in (failed, waits):
                    assert await trio.to_thread.run_sync(event.wait, 3)
                swept = trio.Event()

                async def sweep() -> None:
                    await started.clearer.sweep()
                    swept.set()

                nursery.start_soon(sweep)
                with trio.move_on_after(0.2):
                    await swept.wait()
                release.set()
        assert volume.keeper.in_sync == [1]
        assert volume.log.states[0] & MODIFIED, 'a re-add would not copy what leg 0 lost'


# Legs that hang


def test_a_leg_that_hangs_while_it_joins_does_not_stop_the_volume() -> None:
    """The join writes the leg's metadata with no write in flight: reads, writes, growth wait for that."""
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        async with world.running():
            await world.do(w(0))
            await world.do(('fail', 1))

            async def hang(call: Call) -> None:
                if call.disk == 'd1' and call.kind == 'write' and 'd1' not in world.hung:
                    world.hang('d1')

            before_each_call(world, hang)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.do, ('readd', 1))
                await trio.sleep(1)
                assert 'd1' in world.hung
                with trio.fail_after(LONG):
                    await world.do(w(0))
                    await world.do(('read', 0))
                    await world.do(('grow', 4))
                    await world.do(w(3 * B))
            assert any('did not answer within' in event for event in world.events), world.events
            assert world.volume.keeper.in_sync == [0]

    simulated(main)


def test_a_start_goes_on_without_a_leg_whose_flush_hangs() -> None:
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        await world.run([w(0)])

        async def hang(call: Call) -> None:
            if call.disk == 'd1' and call.kind == 'flush' and 'd1' not in world.hung:
                world.hang('d1')

        before_each_call(world, hang)
        began = trio.current_time()
        with trio.fail_after(LONG):
            async with world.running() as volume:
                took = trio.current_time() - began
                assert volume.keeper.in_sync == [0]
                await world.do(w(0))
                await world.do(('read', 0))
        patience = world.settings.leg_timeout + limits.START_FLUSH_PATIENCE
        assert patience <= took < patience + 1

    simulated(main)


def test_a_growth_with_a_leg_that_hangs_ends_and_the_volume_goes_on() -> None:
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
            world.hang('d1')
            with trio.fail_after(LONG):
                try:
                    await volume.grow(6 * CHUNK)
                except OSError as error:
                    world.events.append(str(error))
                await world.do(w(0))
                await world.do(('read', 0))
            assert volume.keeper.in_sync == [0], 'a write was answered while a leg that hangs counts'

    simulated(main)


async def test_a_source_that_does_not_say_where_it_has_data_is_late(autojump_clock: trio.abc.Clock) -> None:
    """A copy asks its source for extents first: that is a call as any other, and bounded."""

    class Source:
        leg = CrashLeg(CrashDisk('d0', MIB))

        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            await trio.sleep_forever()
            raise AssertionError

    async def store(*_: object) -> Failures:
        raise AssertionError

    with trio.fail_after(LONG), pytest.raises(LegTimeout):
        await copy_range(cast(Member, Source()), [], 0, CHUNK, 3.0, store, Buffers(CHUNK, 1))


@pytest.mark.parametrize('failure', [None, LegTimeout('late')])
async def test_memory_is_used_again_unless_a_call_that_was_given_up_may_still_use_it(
    failure: OSError | None,
) -> None:
    disk = CrashDisk('d0', MIB)
    disk.write(0, b'x' * CHUNK)
    source = Member(0, CrashLeg(disk), uuid.uuid4(), wibm.new_layout(MIB, CHUNK), 1)
    source.layout = replace(source.layout, data_offset=0)

    async def store(*_: object) -> Failures:
        return {1: failure} if failure else {}

    buffers = Buffers(limits.COPY_MAX, 1)
    target = Member(1, CrashLeg(CrashDisk('d1', MIB)), uuid.uuid4(), source.layout, 1)
    buffers.give_back(before := buffers.take())
    copied, _ = await copy_range(source, [target], 0, CHUNK, 3.0, store, buffers)
    assert copied
    assert (buffers.take() is before) == (failure is None)


def test_a_late_leg_leaves_although_the_caller_gets_an_error() -> None:
    """Leg 1, on a filesystem shared with leg 0, is full: ENOSPC.  Leg 2's call may still land, later."""
    world = World(chunks=3, legs=3)

    async def main() -> None:
        await world.make()
        world.sharing = 7
        async with world.running() as volume:
            for member in volume.members:
                if member.slot == 2:
                    member.leg.sharing = None
            await world.do(w(0))
            world.hang('d2')
            world._calls.clear()
            world.go_wrong({('d1', 'write', 1): errno.ENOSPC})
            await world.do(w(0))
            assert any('Errno 28' in event for event in world.events)
            assert 2 not in volume.keeper.members
            world.go_wrong({})
            world.hung.pop('d2').set()
            for operation in (w(0), w(0), ('flush',)):
                await world.do(operation)
            world.disks['d2'].release()  # the abandoned call lands on newer data
            world.checkers.equal()

    simulated(main)


# Grown space


async def test_grown_space_reads_as_zeros_beside_a_first_write_on_a_leg_that_was_larger(
    tmp_path: Path,
) -> None:
    """Leg b was a larger file full of something; a write to a new chunk covers a part of it only."""
    (tmp_path / 'b').write_bytes(b'\xee' * (16 * MIB))
    async with on_files(tmp_path / 'a', tmp_path / 'b') as started:
        volume, at = started.volume, 5 * MIB + 4096
        await volume.write(0, b'x' * 512)
        await volume.grow(8 * MIB)
        await volume.write(at, b'y' * 512)
        chunk, length = at // CHUNK * CHUNK, CHUNK
        wanted = bytes(4096) + b'y' * 512
        wanted += bytes(length - len(wanted))
        for member in volume.members:
            assert bytes(await member.read(chunk, length)) == wanted, f'leg {member.slot}'
        await started.stop()


# A keeper that ends


def test_a_commit_after_the_keeper_ended_fails() -> None:
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            await world.do(w(0))
        with trio.fail_after(LONG), pytest.raises(OSError, match='has stopped'):
            await volume.keeper.commit()

    simulated(main)


def test_commits_that_wait_when_the_keeper_ends_fail() -> None:
    """One commit is being stored, one waits for the next round, when the volume's tasks are cancelled."""
    world = World(chunks=3)

    async def main() -> None:
        await world.make()
        errors: list[int | None] = []
        with trio.fail_after(LONG):
            async with trio.open_nursery() as outside:

                async def commit() -> None:
                    try:
                        await world_volume.keeper.commit()
                    except OSError as error:
                        errors.append(error.errno)

                async with world.running() as volume:
                    world_volume = volume
                    await world.do(w(0))
                    for name in world.disks:
                        world.hang(name)
                    volume.log.update(1, 1, set_=DIRTY)
                    outside.start_soon(commit)
                    await trio.sleep(0.1)
                    outside.start_soon(commit)
                    await trio.sleep(0.1)
                    assert not errors
        assert errors == [errno.EIO] * 2

    simulated(main)


# A start after an unclean moment


def test_a_write_that_only_a_recovering_leg_took_is_resynced_after_a_restart_without_a_log() -> None:
    """The leg in sync refuses a write, the spare takes it below its mark: they differ past a clean stop."""
    world = World(chunks=12, logged=False)

    async def main() -> None:
        await world.make()
        async with world.running() as volume:
            for chunk in range(12):
                await world.do(w(chunk * B))
            await world.do(('fail', 1))
            await world.do(('readd', 1))
            assert world.started
            while volume.record.slots[1].mark < 2 and volume.record.slots[1].state is LegState.SPARE:
                await trio.lowlevel.checkpoint()
            await world.started.rebuilder.freeze()
            assert volume.record.slots[1].state is LegState.SPARE
            world.go_wrong({('d0', 'write', 0): errno.EIO})
            await world.do(w(0))
            world.go_wrong({})
            assert volume.log.states[0] & NEEDS_RESYNC
            await world.stop()
        async with world.running() as volume:
            await world.do(('quiet',))
            assert volume.keeper.in_sync == [0, 1]
            world.checkers.equal()

    simulated(main)


# A volume that stops, a pool that stops


async def test_the_lane_is_given_nothing_once_a_volume_has_stopped(tmp_path: Path) -> None:
    """The end of the last exclusive hold offers chunks to the lane; by then the legs are being closed."""
    async with on_files(tmp_path / 'a', tmp_path / 'b') as started:
        volume = started.volume
        await volume.write(0, b'x' * 512)
        with trio.fail_after(10):
            while not any(flag & hot.WRITE for flag in volume.hot.flags):
                await trio.sleep(0.01)
        await started.stop()
        for _ in range(2):
            assert not any(volume.hot.flags)
            assert volume.hot.targets == volume.hot.homes == ()
            volume.gate.publish()  # neither does what comes late
            volume.gate.offer_all()


async def test_stopping_a_pool_under_writers_leaves_the_lane_nothing(work: PoolAtWork) -> None:
    entry = work.pool.entries['v']
    assert entry.started
    volume = entry.started.volume

    async def writer(chunk: int) -> None:
        try:
            while True:
                await volume.write(chunk * CHUNK, b'x' * CHUNK)
        except OSError:
            return

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for chunk in range(8):
                nursery.start_soon(writer, chunk)
            await trio.sleep(0.05)
            assert await work.pool.stop()
    assert not any(volume.hot.flags)
    assert volume.hot.targets == ()


async def test_a_volume_made_while_the_pool_stops_is_stopped_too(work: PoolAtWork) -> None:
    """The stop begins just before `create` enters its volume."""
    saving, go_on, real = trio.Event(), trio.Event(), work.directory.save

    async def save(record: VolumeRecord) -> None:
        if record.name == 'u' and not saving.is_set():
            saving.set()
            await go_on.wait()
        await real(record)

    work.directory.save = save  # type: ignore[method-assign]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.pool.create, work.request('u'))
            await saving.wait()
            clean: list[bool] = []

            async def stop() -> None:
                clean.append(await work.pool.stop())

            nursery.start_soon(stop)
            await trio.sleep(0.1)
            go_on.set()
    assert clean == [True]
    assert {name: entry.started for name, entry in work.pool.entries.items()} == {'v': None, 'u': None}


@pytest.mark.parametrize('same_task', [True, False])
async def test_a_create_after_the_pool_stopped_is_refused(work: PoolAtWork, same_task: bool) -> None:
    """Whoever asks is told at once: the task that stopped the pool, or another while that one goes on."""
    stopped = trio.Event()

    async def stop() -> None:
        assert await work.pool.stop()
        stopped.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(2):
            if same_task:
                assert await work.pool.stop()
            else:
                nursery.start_soon(stop)
                await stopped.wait()
            with pytest.raises(Refused) as refused:
                await work.pool.create(work.request('u'))
        nursery.cancel_scope.cancel()
    assert refused.value.errno == errno.ESHUTDOWN
    assert 'u' not in work.pool.entries


async def test_a_pool_starts_without_a_leg_that_does_not_open(work: PoolAtWork) -> None:
    assert await work.pool.stop()

    class Opener(FileOpener):
        async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
            if path.endswith('v1'):
                await trio.sleep_forever()
            return await super().open(path, create_size=create_size)

    again = Pool(work.directory, Opener(), EventLog(), Settings(0.5))
    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            await again.start(nursery)
        started = again.entries['v'].started
        assert started, again.entries['v'].refusal
        assert started.volume.keeper.in_sync == [0]
        await again.stop()
        nursery.cancel_scope.cancel()


# --force


def diverged() -> tuple[VolumeRecord, VolumeRecord, VolumeRecord]:
    """Return the pool's record and those of two legs that went on without each other."""
    ids = [uuid.UUID(int=n + 1) for n in range(6)]
    slots = [Slot(LegState.IN_SYNC, ids[n], path=f'/{n}') for n in (1, 2)]
    slots += [Slot()] * (limits.SLOTS - 2)
    lineage = (Generation(ids[3], 0, 1),)
    base = VolumeRecord(ids[0], 'v', MIB, CHUNK, 2, tuple(slots), lineage, events=5)
    apart = [membership.leave(base, [gone], LegState.MISSING, ids[4 + gone], 1) for gone in (1, 0)]
    return apart[0], apart[0], apart[1]


@pytest.mark.parametrize('removed', [False, True])
def test_a_start_after_a_forced_one_needs_no_force(removed: bool) -> None:
    """Split brain: refused, then forced.  What the leg left behind has of its own is no conflict again."""
    pool, first, second = diverged()
    with pytest.raises(Refused):
        assemble(pool, {0: first, 1: second})
    forced = assemble(pool, {0: first, 1: second}, 0, True)
    assert forced.members == (0,)
    record = membership.remove(forced.record, 1) if removed else forced.record
    plain = assemble(record, {0: record, 1: second})
    assert plain.members == (0,)
    assert not plain.returning
    assert 'was changed apart' in plain.stale[1]
    assert plain.record.slots[1].full


# The lane looks at the legs before its permission


class Meddled(bytearray):
    """Flags that let something happen right after the lane has read its permission."""

    meddle: Callable[[], None]

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = super().__getitem__(key)
        self.meddle()
        return found


def meddled(table: HotTable, meddle: Callable[[], None]) -> None:
    table.flags = Meddled(table.flags)
    table.flags.meddle = meddle


@pytest.mark.parametrize('offset', [5, LANE_CHUNK - 2], ids=['one chunk', 'two chunks'])
async def test_a_write_goes_to_all_legs_published_when_its_permission_was_given(
    legs: list[int],  # noqa: F811
    offset: int,
) -> None:
    """A leg leaves, or all do, between the lane's look at the permission and its writes."""
    for remaining in (1, 0):
        table = table_over(legs)
        seen: list[int] = []

        def leave(table: HotTable = table, remaining: int = remaining, seen: list[int] = seen) -> None:
            table.targets = table.targets[:remaining]
            seen.append(table.touched[0])

        meddled(table, leave)
        async with serving(table) as (kernel, _):
            data = b'hello' if remaining else b'world'
            unique = kernel.write(offset, data)
            assert (await kernel.reply())[:2] == (unique, 0)
        assert [os.pread(fd, 5, offset) for fd in legs] == [data] * 2
        assert seen
        assert all(seen), 'touched after the permission was looked at'


async def test_a_read_takes_the_leg_that_was_home_when_its_permission_was_given(
    legs: list[int],  # noqa: F811
) -> None:
    table = table_over(legs)
    for fd, letter in zip(legs, (b'A', b'B'), strict=True):
        os.pwrite(fd, letter * 8, 0)
    table.homes = table.homes[:1]
    other = ((legs[1], 0, 1, 0),)

    def move() -> None:
        table.homes = other

    meddled(table, move)
    async with serving(table) as (kernel, _):
        unique = kernel.read(0, 8)
        assert await kernel.reply() == (unique, 0, b'A' * 8)


def test_a_volume_that_lost_data_is_not_said_to_be_stopped_cleanly() -> None:
    """Found by seed 513925837893, after some 60,000 states."""
    world = World()

    async def main() -> None:
        await world.make()
        async with world.running():
            await world.do(w(0))
            world.go_wrong({(disk, 'flush', 0): errno.EIO for disk in ('d0', 'd1')})
            await world.do(('flush',))
            assert world.volume.broken
            assert not await world.running_pool.stop()

    simulated(main)


def test_a_copy_from_a_leg_that_has_begun_to_be_behind_waits_for_what_it_lacks() -> None:
    """Sources are chosen when a copy begins; one may be behind by the time it is its turn."""

    async def main() -> None:
        world = World(chunks=2)
        await world.make()
        async with world.running() as volume:
            base = volume.members[0].layout.data_offset
            for operation in (('write', 0), ('backlog', 1, 3), ('write', 0), ('quiet',)):
                await verbs.perform(world, operation)
            with trio.fail_after(60):
                while volume.keeper.members[1].backlog is None:
                    await trio.sleep(0.1)
            world.hang('d1', 2.0)
            await verbs.perform(world, ('write', 0))
            acknowledged = world.disks['d0'].visible.read(base, 4096)
            assert world.disks['d1'].visible.read(base, 4096) != acknowledged, 'it is behind'
            async with volume.exclusive(0, 0):
                await volume.copier._copy_from([1], 0, 4096, 0)
            assert world.disks['d0'].visible.read(base, 4096) == acknowledged

    simulate(main, 0, 'a copy from a leg that is behind')
