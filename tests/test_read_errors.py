"""Legs with bad blocks, on real mounts: read errors are mended, unwritable blocks listed, nobody notices.

What the legs do wrong is `faultfs`'s, which has no page cache: each read gets to the medium.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from faulttools import FaultPool
from mounts import MIB, Volume, examine, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
SIZE = 4 * MIB
BLOCK = 4096


@pytest.fixture
def pool() -> Iterator[FaultPool]:
    with FaultPool(2) as made:
        made.start()
        yield made


@pytest.fixture
def volume(pool: FaultPool) -> Volume:
    """A volume that is full of known bytes, flushed, and clean in its log."""
    made = pool.volume('disk', SIZE)
    write(made, 0, content(0, SIZE))
    return made


def content(first: int, length: int, salt: int = 1) -> bytes:
    """Bytes that tell where they belong."""
    return b''.join((at * 8 + salt).to_bytes(8, 'little') for at in range(first // 8, (first + length) // 8))


def write(volume: Volume, offset: int, data: bytes) -> None:
    with volume.open() as fd:
        for at in range(0, len(data), MIB):
            part = data[at : at + MIB]
            assert os.pwrite(fd, part, offset + at) == len(part)
        os.fsync(fd)


def read(volume: Volume, offset: int, length: int) -> bytes:
    """Read past the page cache, a MiB at a time."""
    end = offset + length
    with volume.open(os.O_RDONLY | os.O_DIRECT) as fd:
        return b''.join(os.pread(fd, min(MIB, end - at), at) for at in range(offset, end, MIB))


@contextmanager
def failing(code: int) -> Iterator[None]:
    """What is done here fails with an errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == code


def leg(volume: Volume, number: int) -> dict[str, object]:
    found: dict[str, object] = volume.status()['legs'][number]
    return found


def in_sync(volume: Volume) -> list[int]:
    return [leg['slot'] for leg in volume.status()['legs'] if leg['state'] == 'in_sync']


def mended(volume: Volume, number: int, count: int) -> None:
    """Wait until so many blocks of a leg were mended."""
    path = f'legs/{number}/errors'
    wait_for(lambda: int(volume.read(path)) >= count, f'{count} blocks of leg {number} to be mended')
    assert int(volume.read(path)) == count


def listed(volume: Volume, number: int) -> str:
    return volume.read(f'legs/{number}/bad_blocks')


def stored_list(volume: Volume, number: int) -> list[list[int]]:
    found: list[list[int]] = examine(volume.legs[number])[0]['bad_blocks']
    return found


# Read errors


def test_a_read_error_is_mended_and_the_caller_sees_nothing(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('read', 8 * BLOCK, 2 * BLOCK)
    assert read(volume, 0, SIZE) == content(0, SIZE)
    mended(volume, 0, 2)
    assert in_sync(volume) == [0, 1]
    assert listed(volume, 0) == volume.read('legs/0/unacknowledged_bad_blocks') == ''
    assert any(f'at byte {8 * BLOCK}: mended' in line for line in pool.events())
    rule_for_the_other_leg(pool, 1)
    assert read(volume, 0, SIZE) == content(0, SIZE), 'the blocks are back on the leg itself'
    pool.clear()
    assert leg(volume, 0)['errors'] == 2
    volume.write('legs/0/errors', '0')
    assert volume.read('legs/0/errors') == '0\n'
    pool.stop()
    assert volume.assert_legs_equal() == content(0, SIZE)


def rule_for_the_other_leg(pool: FaultPool, number: int) -> None:
    """From now on a leg cannot be read at all."""
    pool.faults[number].rule('read', 'ENXIO', every=True)


def test_a_mended_block_is_marked_before_it_is_written(pool: FaultPool, volume: Volume) -> None:
    """A power cut in the middle of it costs nothing: the chunk is made equal at the next start."""
    volume.write('bitmap/time_base', '0.01')
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'the log to be clean')
    volume.write('bitmap/can_clear', 'false')
    pool.faults[0].bad('read', 0, BLOCK)
    pool.faults[0].rule('dsync', 'kill', nth=2, pid=pool.pid)
    with suppress(OSError):  # answered from the other leg, or cut off
        read(volume, 0, BLOCK)
    pool.reap()
    pool.clear()
    pool.power_cut('seed', 'tear')
    pool.start()
    assert read(volume, 0, SIZE) == content(0, SIZE)
    volume.settled()
    pool.stop()
    assert volume.assert_legs_equal() == content(0, SIZE)


def test_over_the_limit_the_leg_is_failed(pool: FaultPool, volume: Volume) -> None:
    volume.write('max_read_errors', '2')
    assert volume.read('max_read_errors') == '2\n'
    for number in range(2):
        pool.faults[0].bad('read', number * MIB, BLOCK)
        assert read(volume, number * MIB, BLOCK) == content(number * MIB, BLOCK)
        mended(volume, 0, number + 1)
    pool.faults[0].bad('read', 2 * MIB, BLOCK)
    assert read(volume, 2 * MIB, BLOCK) == content(2 * MIB, BLOCK)
    wait_for(lambda: leg(volume, 0)['state'] == 'faulty', 'the leg to be failed')
    assert any('more than 2 read errors an hour' in line for line in pool.events())
    assert read(volume, 0, SIZE) == content(0, SIZE)
    pool.stop()
    pool.start()
    assert volume.read('max_read_errors') == '2\n'


def test_the_last_leg_gives_its_error_to_the_caller(pool: FaultPool, volume: Volume) -> None:
    volume.write('fail', '1')
    volume.write('max_read_errors', '0')
    pool.faults[0].bad('read', 0, BLOCK)
    for _ in range(3):
        with failing(errno.EIO):
            read(volume, 0, BLOCK)
    assert read(volume, MIB, MIB) == content(MIB, MIB)
    assert in_sync(volume) == [0] and listed(volume, 0) == ''
    write(volume, 0, content(0, BLOCK, 5))
    assert read(volume, 0, BLOCK) == content(0, BLOCK, 5), 'what was written can be read again'


# Blocks that cannot be written


def test_an_unwritable_block_is_listed_and_the_leg_stays(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('write', 8 * BLOCK, 2 * BLOCK)
    fresh = content(0, MIB, 3)
    write(volume, 0, fresh)
    assert in_sync(volume) == [0, 1]
    assert listed(volume, 0) == '64 16\n' and listed(volume, 1) == ''
    assert stored_list(volume, 0) == [[64, 16]]
    assert leg(volume, 0)['bad_blocks'] == 2
    assert volume.read('legs/0/unacknowledged_bad_blocks') == ''
    assert read(volume, 0, MIB) == fresh
    before = pool.faults[0].facts()['calls']['read']
    assert read(volume, 8 * BLOCK, BLOCK) == fresh[8 * BLOCK : 9 * BLOCK]
    assert pool.faults[0].facts()['calls']['read'] == before, 'a listed block is never read there'
    pool.stop()
    first, second = volume.leg_data(0), volume.leg_data(1)
    assert second[:MIB] == fresh
    assert first[8 * BLOCK : 10 * BLOCK] == content(8 * BLOCK, 2 * BLOCK), 'as it was'
    assert first[: 8 * BLOCK] + second[8 * BLOCK : 10 * BLOCK] + first[10 * BLOCK :] == second
    pool.start()
    assert in_sync(volume) == [0, 1] and listed(volume, 0) == '64 16\n'
    assert read(volume, 0, MIB) == fresh


def test_the_list_outlives_a_power_cut(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('write', 0, BLOCK)
    fresh = content(0, BLOCK, 3)
    write(volume, 0, fresh)
    pool.kill()
    pool.power_cut('seed')
    pool.start()
    assert listed(volume, 0) == '0 8\n'
    assert read(volume, 0, BLOCK) == fresh
    volume.settled()
    assert read(volume, 0, BLOCK) == fresh and in_sync(volume) == [0, 1]


def test_a_block_that_can_be_written_again_counts_again(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('write', BLOCK, BLOCK)
    write(volume, 0, content(0, 4 * BLOCK, 3))
    assert listed(volume, 0) == '8 8\n'
    write(volume, BLOCK + 512, content(BLOCK + 512, 512, 4))
    assert listed(volume, 0) == '8 8\n', 'a part of a block does not mend it'
    pool.faults[0].good()
    write(volume, BLOCK + 512, content(BLOCK + 512, 512, 5))
    assert listed(volume, 0) == '8 8\n'
    assert read(volume, BLOCK + 512, 512) == content(BLOCK + 512, 512, 5)
    write(volume, 0, content(0, 4 * BLOCK, 6))
    assert listed(volume, 0) == '' and stored_list(volume, 0) == []
    rule_for_the_other_leg(pool, 1)
    assert read(volume, 0, 4 * BLOCK) == content(0, 4 * BLOCK, 6)
    pool.clear()
    pool.stop()
    volume.assert_legs_equal()


def test_a_block_that_cannot_be_mended_is_listed(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('read', BLOCK, BLOCK)
    pool.faults[0].bad('write', BLOCK, BLOCK)
    assert read(volume, 0, SIZE) == content(0, SIZE)
    wait_for(lambda: listed(volume, 0) == '8 8\n', 'the block to be listed')
    assert in_sync(volume) == [0, 1] and volume.read('legs/0/errors') == '0\n'
    assert read(volume, 0, SIZE) == content(0, SIZE)


def test_a_leg_that_is_bad_all_over_is_failed(pool: FaultPool, volume: Volume) -> None:
    pool.faults[1].bad('write', 0, SIZE)
    write(volume, 0, content(0, MIB, 3))
    assert leg(volume, 1)['state'] == 'faulty'
    assert read(volume, 0, MIB) == content(0, MIB, 3)


def test_a_list_that_cannot_be_written_fails_the_leg(pool: FaultPool, volume: Volume) -> None:
    pool.faults[1].bad('write', BLOCK, BLOCK)
    pool.faults[1].bad('write', 12288 - MIB, 2 * BLOCK)
    write(volume, 0, content(0, 4 * BLOCK, 3))
    assert leg(volume, 1)['state'] == 'faulty'
    assert read(volume, 0, 4 * BLOCK) == content(0, 4 * BLOCK, 3)


def test_the_last_leg_that_can_be_written_is_never_listed(pool: FaultPool, volume: Volume) -> None:
    for number in (0, 1):
        pool.faults[number].bad('write', BLOCK, BLOCK)
    with failing(errno.EIO):
        write(volume, 0, content(0, 4 * BLOCK, 3))
    assert listed(volume, 0) == listed(volume, 1) == ''
    assert in_sync(volume) == [0, 1]


# Through the lane


def test_the_lane_keeps_off_chunks_with_listed_blocks(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('write', BLOCK, BLOCK)
    write(volume, 0, content(0, 4 * BLOCK, 3))
    before = volume.status()['io']
    for salt in range(4, 24):
        write(volume, 0, content(0, 4 * BLOCK, salt))
        assert read(volume, 0, 4 * BLOCK) == content(0, 4 * BLOCK, salt)
    after = volume.status()['io']
    assert after['lane_writes'] == before['lane_writes']
    for salt in range(4, 24):
        write(volume, 2 * MIB, content(2 * MIB, 4 * BLOCK, salt))
    assert volume.status()['io']['lane_writes'] > after['lane_writes'], "other chunks are the lane's"
    pool.faults[0].good()
    write(volume, 0, content(0, 4 * BLOCK, 30))
    between = volume.status()['io']['lane_writes']
    for salt in range(4, 24):
        write(volume, 0, content(0, 4 * BLOCK, salt))
    assert volume.status()['io']['lane_writes'] > between, 'and this one is again'


# Legs that come and go


def test_a_new_leg_joins_although_its_source_has_bad_blocks(pool: FaultPool, volume: Volume) -> None:
    """What no leg has is listed on the new one, too, and gives an error; all else is there."""
    pool.faults[0].bad('write', BLOCK, BLOCK)
    pool.faults[0].bad('read', BLOCK, BLOCK)
    write(volume, 0, content(0, 4 * BLOCK, 3))
    with failing(errno.EBUSY):  # leg 1 is the only one with that block
        volume.write('fail', '1')
    pool.faults[1].kill()
    with volume.open() as fd:
        os.pwrite(fd, content(MIB, BLOCK), MIB)
    wait_for(lambda: in_sync(volume) == [0], 'leg 1 to be failed')
    new = pool.base / 'new'
    volume.write('add', str(new))
    wait_for(lambda: len(in_sync(volume)) == 2, 'the new leg to be in sync')
    slot = in_sync(volume)[1]
    assert listed(volume, slot) == listed(volume, 0) == '8 8\n'
    for number in range(4):
        if number == 1:
            with failing(errno.EIO):
                read(volume, BLOCK, BLOCK)
        else:
            assert read(volume, number * BLOCK, BLOCK) == content(number * BLOCK, BLOCK, 3)
    assert read(volume, MIB, SIZE - MIB) == content(MIB, SIZE - MIB)
    write(volume, BLOCK, content(BLOCK, BLOCK, 7))
    assert listed(volume, slot) == '' and listed(volume, 0) == '8 8\n'
    assert read(volume, 0, 2 * BLOCK) == content(0, BLOCK, 3) + content(BLOCK, BLOCK, 7)


def test_a_new_leg_joins_although_its_source_cannot_be_read_everywhere(
    pool: FaultPool, volume: Volume
) -> None:
    volume.write('fail', '1')
    pool.faults[0].bad('read', 3 * BLOCK, BLOCK)
    volume.write('add', str(pool.base / 'new'))
    wait_for(lambda: len(in_sync(volume)) == 2, 'the new leg to be in sync')
    slot = in_sync(volume)[1]
    assert listed(volume, slot) == '24 8\n' and listed(volume, 0) == ''
    assert read(volume, MIB, MIB) == content(MIB, MIB)


def test_a_leg_that_comes_back_still_lacks_what_it_lacked(pool: FaultPool, volume: Volume) -> None:
    pool.faults[0].bad('write', BLOCK, BLOCK)
    write(volume, 0, content(0, 4 * BLOCK, 3))
    volume.write('fail', '0')
    volume.write('re-add', '0')
    volume.settled()
    assert in_sync(volume) == [0, 1] and listed(volume, 0) == '8 8\n'
    assert read(volume, 0, 4 * BLOCK) == content(0, 4 * BLOCK, 3)


# What an admin says


def test_an_admin_lists_a_range(pool: FaultPool, volume: Volume) -> None:
    volume.write('legs/0/bad_blocks', '11 2')
    assert listed(volume, 0) == '8 8\n', 'whole blocks of 4096 bytes'
    volume.write('legs/0/unacknowledged_bad_blocks', '16 16')
    assert listed(volume, 0) == '8 24\n'
    assert read(volume, 0, MIB) == content(0, MIB)
    assert any('BadBlocks' in line for line in pool.events())


REFUSED: dict[str, tuple[str, int]] = {
    'one word': ('5', errno.EINVAL),
    'three words': ('8 8 8', errno.EINVAL),
    'no number': ('eight 8', errno.EINVAL),
    'negative': ('-8 8', errno.EINVAL),
    'nothing': ('8 0', errno.EINVAL),
    'beyond the end': (f'{SIZE // 512 - 8} 16', errno.EINVAL),
    'the last copy': ('0 16', errno.EBUSY),
}


def test_what_cannot_be_listed_is_refused(pool: FaultPool, volume: Volume) -> None:
    volume.write('legs/1/bad_blocks', '0 8')
    for name, (words, code) in REFUSED.items():
        with failing(code):
            volume.write('legs/0/bad_blocks', words)
        assert listed(volume, 0) == '', name


def test_a_full_list_is_refused(pool: FaultPool, volume: Volume) -> None:
    for number in range(500):
        volume.write('legs/0/bad_blocks', f'{number * 16} 8')
    with failing(errno.ENOSPC):
        volume.write('legs/0/bad_blocks', '8080 8')
    assert leg(volume, 0)['bad_blocks'] == 500
    assert len(listed(volume, 0)) <= 4096
    assert read(volume, 0, SIZE) == content(0, SIZE)


@pytest.mark.parametrize('word', ['', 'x', '-1', '1 2', '99999999999'])
@pytest.mark.parametrize('file', ['max_read_errors', 'legs/0/errors'])
def test_counts_are_numbers(pool: FaultPool, volume: Volume, file: str, word: str) -> None:
    before = volume.read(file)
    with failing(errno.EINVAL):
        volume.write(file, word or '\n')
    assert volume.read(file) == before
