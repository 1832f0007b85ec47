"""Writes of zeros: found at once, told to the legs, and what they leave of the space that legs take."""

import errno
import json
import mmap
import os
import random
import shutil
import struct
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looptools import Field, field
from mounts import KEEP_SIZE, MIB, PUNCH_HOLE, MountedPool, Volume, cli_ok, fallocate, run, wait_for
from test_lane import CHUNK as LANE_CHUNK
from test_lane import legs as legs
from test_lane import serving, table_over
from test_loop_ext4 import Disk

from mirrorfs import definitions, hot
from mirrorfs.errors import BadMetadata
from mirrorfs.fs import wire
from mirrorfs.leg.opening import read_super
from mirrorfs.metadata import wibm
from mirrorfs.model import DetectZeroes, Generation, LegState, Slot, VolumeRecord
from mirrorfs.sim.checkers import CHUNK_BLOCKS
from mirrorfs.sim.explore import simulate
from mirrorfs.sim.verbs import perform
from mirrorfs.sim.world import World
from mirrorfs.zeroes import ZEROS, all_zero

SIZE = 8 * MIB
NOISE = random.Random(5).randbytes(SIZE)
WORDS = ('off', 'on', 'unmap')
real = [pytest.mark.mount, pytest.mark.timeout(120)]


# Finding them


@given(st.integers(0, 200), st.integers(0, 1 << 40), st.sampled_from((bytes, bytearray, memoryview)))
def test_one_byte_anywhere_is_found(length: int, where: int, kind: type) -> None:
    data = bytearray(length)
    assert all_zero(kind(data))
    if length:
        data[where % length] = 1 + where % 255
        assert not all_zero(kind(data))


@pytest.mark.parametrize('length', [len(ZEROS) - 1, len(ZEROS), len(ZEROS) + 1, 2 * len(ZEROS) + 7])
def test_the_borders_of_pieces_are_looked_at(length: int) -> None:
    data = bytearray(length)
    assert all_zero(data)
    for at in (0, length // 2, len(ZEROS) - 2, length - 1):
        data[at] = 1
        assert not all_zero(memoryview(data)), at
        data[at] = 0


# In the lane


@pytest.mark.parametrize('size', [1, 4096, LANE_CHUNK + 512])
async def test_the_lane_writes_what_is_not_zeros_and_hands_over_what_is(legs: list[int], size: int) -> None:
    table = table_over(legs, hot.READ | hot.NONZERO)
    async with serving(table) as (kernel, _):
        data = bytes(size - 1) + b'x'
        unique = kernel.write(512, data)
        assert (await kernel.reply())[:2] == (unique, 0)
        assert not kernel.handed
        assert [os.pread(fd, size, 512) for fd in legs] == [data] * 2
        kernel.write(512, bytes(size))
        request = await kernel.next_handed()
        assert (request.opcode, request.offset, bytes(request.data)) == (wire.FUSE_WRITE, 512, bytes(size))
    assert [os.pread(fd, size, 512) for fd in legs] == [data] * 2
    assert table.writes == 1


async def test_the_lane_needs_the_permission_for_every_chunk(legs: list[int]) -> None:
    table = table_over(legs, hot.READ | hot.NONZERO)
    table.withdraw(1, 1)
    async with serving(table) as (kernel, _):
        kernel.write(LANE_CHUNK - 1, b'ab')
        assert (await kernel.next_handed()).size == 2
    assert os.pread(legs[0], 2, LANE_CHUNK - 1) == bytes(2)


# In a volume


def untouched(zeroes: DetectZeroes) -> tuple[bool, bool]:
    """Write zeros to parts and all of a new volume, and stop; return whether disks and pool are as before."""
    world = World(chunks=3, zeroes=zeroes)

    async def main() -> None:
        await world.make()
        before = {name: disk.durable.digest() for name, disk in world.disks.items()}
        record = world.pool
        async with world.running():
            await perform(world, ('zeroes', 0, CHUNK_BLOCKS))
            await perform(world, ('zeroes', CHUNK_BLOCKS + 1, CHUNK_BLOCKS))
            await perform(world, ('zeroes-sync', 3, 1))
            await perform(world, ('read', 0, 3))
            await world.stop()
        after = {name: disk.durable.digest() for name, disk in world.disks.items()}
        seen.append((before == after, world.pool == record))

    seen: list[tuple[bool, bool]] = []
    simulate(main, 0)
    return seen[0]


@pytest.mark.parametrize('zeroes', [DetectZeroes.ON, DetectZeroes.UNMAP])
def test_zeros_on_what_was_never_written_change_nothing_on_any_medium(zeroes: DetectZeroes) -> None:
    assert untouched(zeroes) == (True, True)


def test_where_nobody_looks_for_zeros_they_are_written() -> None:
    assert untouched(DetectZeroes.OFF) == (False, False)


# The record


def a_record(zeroes: DetectZeroes) -> VolumeRecord:
    slots = (Slot(LegState.IN_SYNC, uuid.UUID(int=7), path='/a'), *[Slot()] * 15)
    lineage = (Generation(uuid.UUID(int=9), 1, 1),)
    return VolumeRecord(uuid.UUID(int=8), 'v', MIB, 65536, 1, slots, lineage, detect_zeroes=zeroes)


@pytest.mark.parametrize('zeroes', DetectZeroes)
def test_a_definition_keeps_it_and_an_older_one_means_off(zeroes: DetectZeroes) -> None:
    record = a_record(zeroes)
    text = definitions.encode(record)
    assert definitions.decode(text).detect_zeroes is zeroes
    older = json.loads(text)
    del older['detect_zeroes']
    assert definitions.decode(json.dumps(older)) == definitions.decode(
        definitions.encode(record.but(detect_zeroes=DetectZeroes.OFF))
    )
    with pytest.raises(BadMetadata):
        definitions.decode(json.dumps({**older, 'detect_zeroes': 'maybe'}))


def test_a_superblock_with_another_value_is_refused() -> None:
    record = a_record(DetectZeroes.UNMAP)
    sup = wibm.LegSuper(record, uuid.UUID(int=7), 0, wibm.new_layout(record.size, record.chunk_size), 1)
    page = bytearray(wibm.encode_super(sup))
    assert page[200] == 2
    page[200] = 3
    struct.pack_into('<I', page, 4092, google_crc32c.value(bytes(page[:4092])))
    with pytest.raises(BadMetadata, match='detect_zeroes'):
        wibm.decode_super(bytes(page))


# On real legs


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture(scope='module')
def direct_pool() -> Iterator[MountedPool]:
    with MountedPool('direct_legs') as made:
        yield made.start()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def taken(paths: list[Path]) -> list[int]:
    """Return the bytes that files take."""
    return [path.stat().st_blocks * 512 for path in paths]


def about(size: int) -> object:
    """Equal to what each of two legs gives back if that is `size`, but for blocks of the filesystem's own."""
    return pytest.approx([size] * 2, abs=65536)


def put_zeros(fd: int, offset: int, length: int, step: int = MIB) -> None:
    """Write zeros from a page's start: else the kernel would cut a MiB in two."""
    with mmap.mmap(-1, step) as zeros:
        for at in range(offset, offset + length, step):
            assert os.pwritev(fd, [zeros], at) == step


def data_in(leg: Path, offset: int, length: int) -> int:
    """Return how many bytes of a range of the image a leg has as data, and not as a hole or reserved."""
    found, fd = 0, os.open(leg, os.O_RDONLY)
    try:
        base = read_super(fd)[0].layout.data_offset
        at, end = base + offset, base + offset + length
        while at < end:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            found += max(0, min(at, end) - min(start, end))
    finally:
        os.close(fd)
    return found


ZEROED = (MIB // 2, 5 * MIB)
"""Of 8 MiB: half of the first and sixth chunk, the four between them."""


@pytest.mark.mount
@pytest.mark.parametrize('fixture', ['pool', 'direct_pool'])
@pytest.mark.parametrize('word', WORDS)
def test_zeros_over_data(word: str, fixture: str, request: pytest.FixtureRequest) -> None:
    pool: MountedPool = request.getfixturevalue(fixture)
    volume = pool.volume(size=SIZE, options=f'detect_zeroes={word}')
    volume.put(0, NOISE)
    before = taken(volume.legs)
    assert [data_in(leg, 0, SIZE) for leg in volume.legs] == [SIZE] * 2
    offset, length = ZEROED
    with volume.open() as fd:
        put_zeros(fd, offset, length)
        put_zeros(fd, 7 * MIB, 65536, 4096)  # in a chunk that is the lane's
        os.fsync(fd)
    as_data = [data_in(leg, 0, SIZE) for leg in volume.legs]  # reserved space that is cached would count
    expected = bytearray(NOISE)
    expected[offset : offset + length] = bytes(length)
    expected[7 * MIB : 7 * MIB + 65536] = bytes(65536)
    assert volume.get(0, SIZE) == expected

    all_zeros = length + 65536
    freed = [was - now for was, now in zip(before, taken(volume.legs), strict=True)]
    status = volume.status()
    assert status['detect_zeroes'] == word
    assert status['io']['zeroed_bytes'] == (0 if word == 'off' else all_zeros)
    assert status['chunks']['unwritten'] == 0  # no request was for a whole chunk
    assert freed == about(all_zeros if word == 'unmap' else 0)
    assert as_data == [SIZE if word == 'off' else SIZE - all_zeros] * 2
    if fixture == 'pool':
        kept = volume.status()['io']['lane_writes']
        volume.put(7 * MIB, b'x' + bytes(4095))
        assert volume.status()['io']['lane_writes'] == kept + 1, "what is not zeros is the lane's"
    volume.destroy()


@pytest.mark.mount
def test_zeros_for_whole_chunks_make_them_never_written(pool: MountedPool) -> None:
    volume = pool.volume(size=SIZE, options='detect_zeroes=unmap')
    volume.put(0, NOISE)
    with volume.open(os.O_RDWR | os.O_DSYNC) as fd:
        put_zeros(fd, 0, SIZE)
    assert volume.status()['chunks']['unwritten'] == 8
    assert [data_in(leg, 0, SIZE) for leg in volume.legs] == [0, 0]
    volume.put(MIB + 5, b'new')
    assert volume.get(0, SIZE) == bytes(MIB + 5) + b'new' + bytes(SIZE - MIB - 8)
    volume.destroy()


@pytest.mark.mount
def test_an_image_that_is_copied_in_leaves_out_its_zeros(pool: MountedPool, tmp_path: Path) -> None:
    """By dd, which writes every zero, and by qemu-img, which is told to write them."""
    if not shutil.which('qemu-img'):
        pytest.skip('qemu-img is missing')
    source = tmp_path / 'image'
    with open(source, 'wb') as file:
        os.pwrite(file.fileno(), NOISE[:MIB], 3 * MIB)
        file.truncate(4 * SIZE)
    for copy in (
        partial(run, 'qemu-img', 'convert', '-n', '-t', 'none', '-S', '0', '-f', 'raw', '-O', 'raw', source),
        lambda image: run('dd', f'if={source}', f'of={image}', 'bs=1M', 'conv=notrunc,fsync'),
    ):
        volume = pool.volume(size=4 * SIZE, options='detect_zeroes=unmap')
        done = copy(volume.image)
        assert done.returncode == 0, done.stderr
        assert volume.get(0, 4 * SIZE) == bytes(3 * MIB) + NOISE[:MIB] + bytes(4 * SIZE - 4 * MIB)
        assert volume.status()['chunks']['unwritten'] == 31
        assert [data_in(leg, 0, 4 * SIZE) for leg in volume.legs] == [MIB] * 2
        volume.destroy()


@pytest.mark.mount
def test_it_is_set_while_in_use_and_kept(tmp_path: Path) -> None:
    with MountedPool() as pool:
        volume = pool.volume_at_rest('v', SIZE, options=['--detect-zeroes', 'unmap'])
        pool.start()
        assert volume.read('detect_zeroes') == 'unmap\n'
        volume.put(0, NOISE)  # the chunks are the lane's
        cli_ok('set', pool.directory, 'v', 'detect_zeroes', 'off')
        volume.put(0, bytes(65536))
        assert volume.status()['io']['zeroed_bytes'] == 0
        cli_ok('set', pool.directory, 'v', 'detect_zeroes', 'on')
        volume.put(MIB, bytes(65536))
        assert volume.status()['io']['zeroed_bytes'] == 65536
        assert 'zeroes: on' in cli_ok('status', pool.directory, 'v')
        with pytest.raises(OSError) as refused:
            volume.write('detect_zeroes', 'maybe')
        assert refused.value.errno == errno.EINVAL
        pool.stop()
        for leg in volume.legs:
            with open(leg, 'rb') as file:
                assert read_super(file.fileno())[0].record.detect_zeroes is DetectZeroes.ON
        (pool.directory / 'volumes' / 'v.json').unlink()
        cli_ok('assemble', pool.directory, *volume.legs)
        pool.start()
        assert volume.read('detect_zeroes') == 'on\n'
        assert volume.get(0, SIZE) == bytes(65536) + NOISE[65536:MIB] + bytes(65536) + NOISE[MIB + 65536 :]


@pytest.mark.mount
@pytest.mark.loop
@pytest.mark.parametrize('options', ['', 'direct_legs'])
def test_block_devices_give_space_back(ground: Field, options: str) -> None:
    """Loop devices over sparse files: thin, as a disk of a storage array or a thin logical volume is."""
    backing = [ground.path('a'), ground.path('b')]
    for path in backing:
        path.touch()
        os.truncate(path, SIZE + 4 * MIB)
    devices = [ground.loop(path) for path in backing]
    with MountedPool(options) as pool:
        pool.start()
        pool.write('create', f'v {SIZE} {" ".join(devices)} detect_zeroes=on')
        volume = Volume(pool, 'v', SIZE, [Path(device) for device in devices])
        volume.put(0, NOISE)
        full = taken(backing)

        def freed() -> list[int]:
            return [was - now for was, now in zip(full, taken(backing), strict=True)]

        half = MIB // 2
        with volume.open(os.O_RDWR | os.O_DSYNC) as fd:
            put_zeros(fd, 0, MIB + half, half)
            assert freed() == about(0)
            volume.write('detect_zeroes', 'unmap')
            put_zeros(fd, MIB, half, half)
            assert freed() == about(half)
            put_zeros(fd, 2 * MIB, MIB)
            assert freed() == about(half + MIB)
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4 * MIB, 2 * MIB + half)
            assert freed() == about(half + MIB + 2 * MIB + half)
        volume.put(4 * MIB + 10, b'new')
        expected = bytearray(NOISE)
        for low, high in ((0, MIB + half), (2 * MIB, 3 * MIB), (4 * MIB, 6 * MIB + half)):
            expected[low:high] = bytes(high - low)
        expected[4 * MIB + 10 : 4 * MIB + 13] = b'new'
        assert volume.get(0, SIZE) == expected
        pool.stop()
        assert volume.assert_legs_equal() == expected


@pytest.mark.mount
@pytest.mark.loop
def test_a_filesystem_mounted_with_discard_frees_space_on_all_legs(ground: Field) -> None:
    pool, files = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', 64 * MIB, *files))
    pool.mount()
    disk.attach()
    run('mkfs.ext4', '-q', '-E', 'nodiscard', disk.device)
    disk.mount('-o', 'discard')
    for name in ('kept', 'gone'):
        disk.put(name, random.Random(name).randbytes(8 * MIB))
    full = taken(files)
    (disk.root / 'gone').unlink()
    del disk.sums['gone']
    run('sync', '-f', disk.root)  # discards go out with the journal's commit
    wait_for(
        lambda: all(now <= was - 7 * MIB for now, was in zip(taken(files), full, strict=True)),
        'space of a file that was removed is given back',
    )
    disk.check()
    disk.leave()
    pool.umount()
