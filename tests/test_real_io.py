"""Programs that check their own data, block devices as legs, many legs, and filesystems that run full."""

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from looptools import (
    BLOCK,
    MIB,
    Direct,
    Field,
    Tagger,
    assert_legs_equal,
    differing,
    examine,
    field,
    mirrorfs,
    run,
    states_of,
    wait_for,
)

from mirrorfs.intent.states import UNWRITTEN

pytestmark = [pytest.mark.mount, pytest.mark.loop, pytest.mark.timeout(120)]

CHUNK = 64 << 10


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def assert_written_chunks_equal(first: Path | str, other: Path | str) -> int:
    """Fail unless all chunks that were ever written are the same on both legs; return how many those are."""
    mine, theirs = states_of(first), states_of(other)
    assert np.array_equal(mine & UNWRITTEN, theirs & UNWRITTEN)
    a, b = examine(first, other)
    bad = [at for at in differing(a, b, a['size']) if not mine[at // a['chunk_size']] & UNWRITTEN]
    assert not bad, f'{first} and {other} differ at {bad[:8]} …'
    return int(((mine & UNWRITTEN) == 0).sum())


def garbage(path: Path, size: int) -> bytes:
    """Fill a new file with noise; return its first MiB."""
    source = random.Random(3)
    with open(path, 'wb') as file:
        for _ in range(size // MIB):
            file.write(source.randbytes(MIB))
    return path.read_bytes()[:MIB]


@pytest.mark.skipif(shutil.which('fio') is None, reason='needs fio')
@pytest.mark.parametrize('bs', ['4k', '512-20k'])
def test_fio_verifies_while_legs_come_and_go(ground: Field, bs: str) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', 64 * MIB, *legs)
    pool.mount()
    sizes = f'--bs={bs}' if '-' not in bs else f'--bsrange={bs} --bs_unaligned=0 --blockalign=512'
    pool.command('x', 'sync_mode', 'fixed')  # not to yield to fio: legs are to come and go often
    fio = subprocess.Popen(
        f'fio --name=v --filename={image} --size=64M {sizes} --rw=randwrite --direct=1 --ioengine=libaio '
        '--iodepth=8 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --do_verify=1 --rate=24m '
        '--randseed=11 --output-format=terse'.split(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ground.where,
    )
    ground.later(fio.kill)
    wait_for(lambda: pool.status('x')['io']['writes'] > 200, 20, 'fio writes')
    changes = 0
    for slot in (1, 0, 1, 0, 1):
        if fio.poll() is not None:
            break
        pool.command('x', 'fail', slot)
        time.sleep(0.25)
        pool.command('x', 're-add', slot)
        pool.settled('x', 2)
        changes += 1
    said = fio.communicate(timeout=60)[0]
    assert fio.returncode == 0, said
    assert 'verify' not in said, said
    assert changes >= 2
    pool.umount()
    assert_legs_equal(*legs)


@pytest.mark.skipif(shutil.which('qemu-img') is None, reason='needs qemu-img')
def test_qemu_img_converts_into_a_volume(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', 48 * MIB, *legs)
    pool.mount()
    raw, cow = ground.path('raw'), ground.path('qcow2')
    with open(raw, 'wb') as file:
        file.truncate(48 * MIB)
        for at in (0, 5 * MIB + 512, 20 * MIB, 48 * MIB - 100_000):
            file.seek(at)
            file.write(random.Random(at).randbytes(99_999))
    run('qemu-img', 'convert', '-O', 'qcow2', raw, cow)
    image.write_bytes(random.Random(1).randbytes(8 * MIB))  # what was there before must go
    for cache in ('writeback', 'none'):
        run('qemu-img', 'convert', '-n', '-t', cache, '-O', 'raw', cow, image)
        assert 'identical' in run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', image, cow)
        assert image.stat().st_size == 48 * MIB
    pool.command('x', 'fail', 0)
    assert 'identical' in run('qemu-img', 'compare', image, cow, '-f', 'raw', '-F', 'qcow2', '-T', 'none')
    pool.command('x', 're-add', 0)
    pool.settled('x', 2)
    pool.umount()
    assert_legs_equal(*legs)


@pytest.mark.parametrize('device_first', [True, False])
def test_used_block_device_beside_a_file(ground: Field, device_first: bool) -> None:
    size = 24 * MIB
    backing = ground.path('backing')
    noise = garbage(backing, 40 * MIB)
    device, file = ground.loop(backing), ground.path('file')
    legs = [device, file] if device_first else [file, device]
    pool = ground.pool()
    image = pool.create('x', size, *legs)
    pool.mount()
    model = bytearray(size)
    assert image.read_bytes() == model
    direct = Direct(image)
    for at in range(0, size, MIB):
        assert direct.read(at, MIB) == bytes(MIB)

    def write(offset: int, data: bytes) -> None:
        with open(image, 'r+b', buffering=0) as out:
            assert os.pwrite(out.fileno(), data, offset) == len(data)
        model[offset : offset + len(data)] = data

    for offset, length in ((100, 7), (3 * CHUNK - 5, 10), (5 * MIB, BLOCK), (9 * MIB + 511, 200_001)):
        write(offset, random.Random(offset).randbytes(length))
        around = offset // CHUNK * CHUNK
        assert direct.read(around, 4 * CHUNK) == model[around : around + 4 * CHUNK]
    assert image.read_bytes() == model
    # Each leg alone has it so.
    for slot in (0, 1):
        pool.command('x', 'fail', slot)
        assert image.read_bytes() == model
        write(11 * MIB + slot * 5 * CHUNK + 77, b'while one is away')
        assert image.read_bytes() == model
        pool.command('x', 're-add', slot)
        pool.settled('x', 2)
        assert image.read_bytes() == model
    # Gone again by a hole, and written again in part.
    run('fallocate', '-p', '-n', '-o', 9 * MIB, '-l', 4 * CHUNK, image)
    model[9 * MIB : 9 * MIB + 4 * CHUNK] = bytes(4 * CHUNK)
    assert image.read_bytes() == model
    write(9 * MIB + CHUNK + 9, b'anew')
    assert image.read_bytes() == model
    direct.close()
    pool.umount()
    written = assert_written_chunks_equal(*legs)
    assert written == 7
    facts = examine(device)[0]
    if not noise.strip(b'\0'):
        pytest.fail('the noise is none')
    with open(device, 'rb') as raw:  # the test is worth something only if garbage is still under it
        raw.seek(facts['data_offset'] + size - MIB)
        assert raw.read(MIB).strip(b'\0')


def test_block_device_that_joins_later_is_not_believed(ground: Field) -> None:
    """A device full of noise added to a volume of which little was written."""
    size = 24 * MIB
    backing = ground.path('backing')
    garbage(backing, 40 * MIB)
    device, file = ground.loop(backing), ground.path('file')
    pool = ground.pool()
    image = pool.create('x', size, file, 'missing')
    pool.mount()
    direct = Direct(image)
    direct.write(2 * MIB, b'x' * BLOCK)
    pool.command('x', 'add', device)
    status = pool.settled('x', 2)
    assert status['recovered_bytes'] <= 2 * CHUNK
    pool.command('x', 'fail', 0)
    model = bytearray(size)
    model[2 * MIB : 2 * MIB + BLOCK] = b'x' * BLOCK
    assert image.read_bytes() == model
    direct.write(7 * MIB + BLOCK, b'y' * BLOCK)
    model[7 * MIB + BLOCK : 7 * MIB + 2 * BLOCK] = b'y' * BLOCK
    assert image.read_bytes() == model
    pool.command('x', 're-add', 0)
    pool.settled('x', 2)
    assert image.read_bytes() == model
    direct.close()
    pool.umount()
    assert_written_chunks_equal(file, device)


def test_device_in_use_is_refused_by_name(ground: Field) -> None:
    mountpoint = ground.small_fs('ours', 32 * MIB)
    device = run('findmnt', '-n', '-o', 'SOURCE', mountpoint).strip()
    pool = ground.pool()
    file = ground.path('file')
    refused = mirrorfs(
        'create', pool.directory, 'x', '--size', '8M', '--leg', file, '--leg', device, '--force', check=False
    )
    assert refused.returncode == 1
    assert str(mountpoint) in refused.stderr and device in refused.stderr
    assert not file.exists(), 'a refused command changes nothing'
    (mountpoint / 'alive').write_text('yes')
    run('sync', '-f', mountpoint)

    pool.create('x', 8 * MIB, file)
    pool.mount()
    with pytest.raises(OSError) as busy:
        pool.command('x', 'add', f'{device} force')
    assert busy.value.errno == errno.EBUSY
    assert str(mountpoint) in pool.events()
    assert (mountpoint / 'alive').read_text() == 'yes'
    # A device that carries a filesystem, not mounted: a stranger, unless forced.
    run('umount', mountpoint)
    with pytest.raises(OSError) as stranger:
        pool.command('x', 'add', device)
    assert stranger.value.errno == errno.EEXIST
    pool.command('x', 'add', f'{device} force')
    pool.settled('x', 2)
    # Nor can anyone else have a device that is a leg.
    assert subprocess.run(['mount', device, mountpoint], capture_output=True).returncode
    pool.umount()
    assert_written_chunks_equal(file, device)


def test_eight_legs(ground: Field) -> None:
    pool = ground.pool()
    legs = [ground.path(f'leg{number}') for number in range(8)]
    image = pool.create('x', 16 * MIB, *legs)
    pool.mount()
    tagger = Tagger(image, [0, 1, 16, 17, 40, 333, 1000, 4000])
    wait_for(lambda: tagger.count > 200, 20, 'writes on eight legs')
    for slot in (0, 3, 7):
        pool.command('x', 'fail', slot)
    count = tagger.count
    wait_for(lambda: tagger.count > count + 200, 20, 'writes on five legs')
    assert pool.status('x')['degraded'] == 3
    for slot in (0, 3, 7):
        pool.command('x', 're-add', slot)
    status = pool.settled('x', 8)
    assert status['recovered_bytes'] <= 3 * 10 * CHUNK
    count = tagger.count
    wait_for(lambda: tagger.count > count + 200, 20, 'writes on eight legs again')
    tagger.stop()
    assert tagger.failure is None
    tagger.check(image)
    for slot in range(7):
        pool.command('x', 'fail', slot)
        tagger.check(image)
    with pytest.raises(OSError) as last:
        pool.command('x', 'fail', 7)
    assert last.value.errno == errno.EBUSY
    pool.command('x', 're-add', 'missing')
    pool.settled('x', 8)
    pool.umount()
    assert_legs_equal(*legs)


def fill(directory: Path, leave: int) -> Path:
    """Fill a filesystem with one file until only `leave` bytes are left; return that file."""
    ballast = directory / 'ballast'
    info = os.statvfs(directory)
    run('fallocate', '-l', info.f_bavail * info.f_bsize - leave, ballast)
    run('sync', '-f', directory)
    return ballast


def test_full_filesystem_under_both_legs(ground: Field) -> None:
    small = ground.small_fs('small', 64 * MIB)
    pool, legs = ground.pool(), [small / 'a', small / 'b']
    image = pool.create('x', 64 * MIB, *legs)
    pool.mount()
    file = Direct(image)
    ballast = fill(small, 6 * MIB)
    acked: dict[int, bytes] = {}
    full = None
    for number in range(1000):
        data = random.Random(number).randbytes(BLOCK)
        at = number * 5 * BLOCK
        try:
            file.write(at, data)
            acked[at] = data
        except OSError as error:
            full = error
            break
    assert full is not None and full.errno == errno.ENOSPC
    assert len(acked) > 20
    assert pool.states('x') == ['in_sync', 'in_sync']
    # What is written already can be written again, and read.
    first = next(iter(acked))
    acked[first] = random.Random('again').randbytes(BLOCK)
    file.write(first, acked[first])
    for _ in range(5):
        with pytest.raises(OSError) as again:
            file.write(60 * MIB, b'f' * BLOCK)
        assert again.value.errno == errno.ENOSPC
    for at, data in acked.items():
        assert file.read(at, BLOCK) == data
    assert pool.states('x') == ['in_sync', 'in_sync']

    ballast.unlink()
    run('sync', '-f', small)
    for number in range(1000, 1100):
        data = random.Random(number).randbytes(BLOCK)
        file.write(number * 5 * BLOCK, data)
        acked[number * 5 * BLOCK] = data
    file.sync()
    pool.settled('x', 2)
    for at, data in acked.items():
        assert file.read(at, BLOCK) == data
    assert pool.states('x') == ['in_sync', 'in_sync']
    file.close()
    pool.umount()
    assert_legs_equal(*legs)


def test_full_filesystem_under_both_legs_with_many_writers(ground: Field) -> None:
    """It runs full for asynchronous writes, some of which only one leg has room for."""
    small = ground.small_fs('small', 64 * MIB)
    pool, legs = ground.pool(), [small / 'a', small / 'b']
    image = pool.create('x', 64 * MIB, *legs)
    pool.mount()
    ballast = fill(small, 5 * MIB + BLOCK * 3)
    fio = [
        *f'fio --name=w --filename={image} --size=64M --bs=16k --rw=randwrite --direct=1'.split(),
        *'--ioengine=libaio --iodepth=16 --refill_buffers --io_size=16M'.split(),
        *'--continue_on_error=all --error_dump=0'.split(),
    ]
    if shutil.which('fio') is None:
        pytest.skip('needs fio')
    subprocess.run(fio, capture_output=True, timeout=60, cwd=ground.where)
    assert pool.states('x') == ['in_sync', 'in_sync']
    assert 'WriteError' in pool.events()
    ballast.unlink()
    run('sync', '-f', small)
    pool.settled('x', 2)
    file = Direct(image)
    file.write(0, b'z' * BLOCK)
    file.sync()
    file.close()
    pool.umount()
    assert_legs_equal(*legs)


def test_full_filesystem_under_one_leg(ground: Field) -> None:
    small = ground.small_fs('small', 64 * MIB)
    pool, legs = ground.pool(), [ground.path('a'), small / 'b']
    image = pool.create('x', 64 * MIB, *legs)
    pool.mount()
    file = Direct(image)
    ballast = fill(small, 3 * MIB)
    acked: dict[int, bytes] = {}
    for number in range(400):
        data = random.Random(number).randbytes(4 * BLOCK)
        file.write(number * 5 * BLOCK, data)
        acked[number * 5 * BLOCK] = data
    assert pool.states('x') == ['in_sync', 'faulty']
    assert pool.status('x')['degraded'] == 1
    assert ' Fail x ' in pool.events()
    file.sync()
    # Without room it may come back, but does not stay in sync for long; nobody is told lies meanwhile.
    for at, data in acked.items():
        assert file.read(at, 4 * BLOCK) == data
    ballast.unlink()
    run('sync', '-f', small)
    pool.command('x', 're-add', 1)
    pool.settled('x', 2)
    for number in range(400, 450):
        data = random.Random(number).randbytes(4 * BLOCK)
        file.write(number * 5 * BLOCK, data)
        acked[number * 5 * BLOCK] = data
    pool.command('x', 'fail', 0)
    for at, data in acked.items():
        assert file.read(at, 4 * BLOCK) == data
    pool.command('x', 're-add', 0)
    pool.settled('x', 2)
    file.close()
    pool.umount()
    assert_legs_equal(*legs)
