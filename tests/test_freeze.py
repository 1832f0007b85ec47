"""Legs that hang in the kernel: a frozen filesystem under the data lane's inline writes."""

import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from looptools import (
    MIB,
    Field,
    Heartbeat,
    Pool,
    Tagger,
    assert_legs_equal,
    examine,
    field,
    wait_for,
)

from mirrorfs import hot
from mirrorfs.fs.images import Images
from mirrorfs.leg.opening import FileOpener
from mirrorfs.mirror.formatting import read_super
from mirrorfs.model import VolumeRecord
from mirrorfs.pool import Entry
from mirrorfs.volume.creation import Request, create
from mirrorfs.volume.lifecycle import Found, Settings, start

pytestmark = [pytest.mark.mount, pytest.mark.loop, pytest.mark.timeout(120)]

PATIENCE = 3
SIZE = 32 * MIB
BLOCKS = [0, 1, 2, 3, 17, 18, 100, 101, 0, 1]
"""Some in one chunk, some far away; written round and round, some twice a round."""


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def warm_up(tagger: Tagger, pool: Pool, name: str) -> None:
    """Return when the writes go through the lane."""
    wait_for(lambda: tagger.count > 50, 20, 'some writes')
    before = pool.status(name)['io']['lane_writes']
    wait_for(lambda: pool.status(name)['io']['lane_writes'] > before + 20, 20, 'writes through the lane')


def finish(tagger: Tagger, pool: Pool, *legs: Path) -> None:
    """Stop all; what was acknowledged is there and the legs are equal."""
    tagger.stop()
    assert tagger.failure is None
    tagger.check(pool.image('x'))
    pool.umount()
    assert_legs_equal(*legs)
    for leg in examine(*legs):
        tagger.check(leg['path'], leg['data_offset'])
        assert not leg['active']
        assert leg['chunks']['dirty'] == leg['chunks']['needs_resync'] == 0


@pytest.mark.parametrize('frozen_slot', [1, 0])
def test_frozen_leg_is_failed_and_nothing_else_stops(ground: Field, frozen_slot: int) -> None:
    ice = ground.small_fs('ice', 96 * MIB)
    pool = ground.pool()
    good, bad = ground.path('good'), ice / 'bad'
    legs = [bad, good] if frozen_slot == 0 else [good, bad]
    image = pool.create('x', SIZE, *legs)
    other = pool.create('y', SIZE, ground.path('y0'), ground.path('y1'))
    pool.mount(f'leg_timeout={PATIENCE}')
    tagger = Tagger(image, BLOCKS)
    heart = Heartbeat(other)
    warm_up(tagger, pool, 'x')
    wait_for(lambda: heart.beats > 10, 10, 'a heartbeat')
    with ground.frozen(ice):
        began = time.monotonic()
        wait_for(lambda: pool.states('x')[frozen_slot] == 'faulty', PATIENCE * 3 + 5, 'leg faulty', 0.02)
        took = time.monotonic() - began
        assert PATIENCE - 0.5 < took < PATIENCE + 3, took
        count = tagger.count
        wait_for(lambda: tagger.count > count + 100, 5, 'writes on the leg that is left')
        assert pool.status('x')['degraded'] == 1
        began = time.monotonic()
        with pytest.raises(OSError) as refused:
            pool.command('x', 're-add', frozen_slot)
        assert refused.value.errno == errno.EBUSY
        assert time.monotonic() - began < 12
        assert pool.states('x')[frozen_slot] == 'faulty'
        count = tagger.count
        wait_for(lambda: tagger.count > count + 100, 5, 'writes after the refused re-add')
        assert heart.failure is None and heart.worst < 1
    assert len(tagger.pauses) <= 3 and max(length for _, length in tagger.pauses) < PATIENCE + 3
    pool.command('x', 're-add', frozen_slot)
    status = pool.settled('x', 2, 30)
    assert 0 < status['recovered_bytes'] <= 4 * status['chunk_size'], 'only what was written meanwhile'
    count = tagger.count
    wait_for(lambda: tagger.count > count + 100, 5, 'writes on both legs')
    assert heart.stop() < 1
    finish(tagger, pool, *legs)


def test_freeze_shorter_than_the_timeout_harms_nobody(ground: Field) -> None:
    """The stuck call of the old lane must not land after a newer write to the same block."""
    ice = ground.small_fs('ice', 96 * MIB)
    pool = ground.pool()
    legs = [ground.path('good'), ice / 'bad']
    image = pool.create('x', SIZE, *legs)
    pool.mount(f'leg_timeout={PATIENCE}')
    tagger = Tagger(image, BLOCKS)
    warm_up(tagger, pool, 'x')
    for seconds in (1.0, 0.3, 0.6, 0.27, 1.0):
        with ground.frozen(ice):
            time.sleep(seconds)
        count = tagger.count
        wait_for(lambda count=count: tagger.count > count + 200, 10, 'writes after the thaw')
        assert pool.states('x') == ['in_sync', 'in_sync']
    warm_up(tagger, pool, 'x')  # the lane has its permissions back
    assert 'Fail ' not in pool.events()
    assert max(length for _, length in tagger.pauses) < PATIENCE
    finish(tagger, pool, *legs)


@pytest.mark.skipif(shutil.which('fio') is None, reason='needs fio')
@pytest.mark.parametrize('depth', [1, 16])
def test_overlapping_writes_in_flight_through_freezes(ground: Field, depth: int) -> None:
    """Many asynchronous writes to few blocks: whatever order is chosen, both legs have the same."""
    ice = ground.small_fs('ice', 96 * MIB)
    pool = ground.pool()
    legs = [ice / 'bad', ground.path('good')]
    image = pool.create('x', SIZE, *legs)
    pool.mount(f'leg_timeout={PATIENCE}')
    fio = subprocess.Popen(
        f'fio --name=w --filename={image} --size=192k --bs=4k --rw=randwrite --norandommap --direct=1 '
        f'--ioengine=libaio --iodepth={depth} --refill_buffers --time_based --runtime=4'.split(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    ground.later(fio.kill)
    wait_for(lambda: pool.status('x')['io']['lane_writes'] > 50, 20, 'writes through the lane')
    for seconds in (0.5, 0.3, 0.9):
        with ground.frozen(ice):
            time.sleep(seconds)
        time.sleep(0.3)
    said = fio.communicate(timeout=40)[0]
    assert fio.returncode == 0, said
    assert pool.states('x') == ['in_sync', 'in_sync']
    pool.umount()
    assert_legs_equal(*legs)


def test_both_legs_frozen_expel_nobody(ground: Field) -> None:
    ice = ground.small_fs('ice', 192 * MIB)
    pool = ground.pool()
    legs = [ice / 'a', ice / 'b']
    image = pool.create('x', SIZE, *legs)
    other = pool.create('y', SIZE, ground.path('y0'), ground.path('y1'))
    pool.mount(f'leg_timeout={PATIENCE}')
    tagger = Tagger(image, BLOCKS)
    heart = Heartbeat(other)
    warm_up(tagger, pool, 'x')
    with ground.frozen(ice):
        time.sleep(0.5)
        count = tagger.count
        time.sleep(4.5)
        assert tagger.count <= count + 1
        assert pool.states('x') == ['in_sync', 'in_sync']
    count = tagger.count
    wait_for(lambda: tagger.count > count + 200, 10, 'writes after the thaw')
    assert pool.states('x') == ['in_sync', 'in_sync']
    assert heart.stop() < 1
    assert 'Fail ' not in pool.events()
    finish(tagger, pool, *legs)


def test_two_lanes_stuck_on_one_leg(tmp_path: Path) -> None:
    """A fresh lane may get stuck, too, before the first one is out: data waits for both of their calls."""
    legs = [str(tmp_path / 'a'), str(tmp_path / 'b')]
    settings = Settings()

    class Nowhere:
        async def save(self, record: VolumeRecord) -> None:
            await trio.lowlevel.checkpoint()

    async def body() -> None:
        record = await create(Request('x', SIZE, legs, 1 << 16), FileOpener(), settings)
        found = {}
        for path in legs:
            leg, _ = await FileOpener().open(path)
            sup, copy = await read_super(leg)
            found[sup.slot] = Found(leg, sup, copy)
        started = await start(record, found, Nowhere(), lambda *words: None, settings)
        volume = started.volume
        async with trio.open_nursery() as nursery:
            await nursery.start(started.run)
            await volume.write(0, b'1' * 4096)
            assert volume.hot.flags[0] & hot.WRITE
            first, second = trio.Event(), trio.Event()
            images = Images(nursery)
            images.gateway = SimpleNamespace(attach=lambda node, table: None)  # type: ignore[assignment]
            images.attach(Entry(record, 'x', started), 7)
            images.lane_stuck(7, 1, first)
            volume.gate.offer(0, 1)  # as a write that ends just now does
            assert not volume.hot.flags[0] & hot.WRITE
            images.lane_stuck(7, 1, second)
            await trio.testing.wait_all_tasks_blocked()
            first.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not volume.hot.flags[0] & hot.WRITE
            with trio.move_on_after(0.5) as waited:
                await volume.write(0, b'2' * 4096)
            assert waited.cancelled_caught, 'a write overtook the call of the second lane'
            assert found[1].leg.calls
            second.set()
            with trio.fail_after(5):
                await volume.write(0, b'3' * 4096)
            assert volume.hot.flags[0] & hot.WRITE
            await started.stop()
            assert not found[1].leg.calls
            nursery.cancel_scope.cancel()
        await started.close()

    trio.run(body)
    assert_legs_equal(*legs)
