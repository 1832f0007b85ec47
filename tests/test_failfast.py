"""What failfast does, on real mounts: a leg has a second and no second try; the last one has its time.

mdadm's 05r1-failfast, which is about the word alone, is in test_md_scenarios.
"""

import os
import time
from collections.abc import Iterator

import pytest
from faulttools import FaultPool
from mounts import MIB, Volume, child, exit_code, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
SIZE = 4 * MIB
DATA = os.urandom(SIZE)
PATIENCE = 30.0
"""`leg_timeout`: what a leg without the word has."""


@pytest.fixture
def pool() -> Iterator[FaultPool]:
    with FaultPool(2) as made:
        yield made.start(f'leg_timeout={PATIENCE:g}')


@pytest.fixture
def volume(pool: FaultPool) -> Volume:
    made = pool.volume('disk', SIZE)
    for at in range(0, SIZE, MIB):
        made.put(at, DATA[at : at + MIB])
    return made


def state(volume: Volume, number: int) -> str:
    return volume.read(f'legs/{number}/state').strip()


def all_read(volume: Volume) -> bytes:
    with volume.open(os.O_RDONLY | os.O_DIRECT) as fd:
        return b''.join(os.pread(fd, MIB, at) for at in range(0, SIZE, MIB))


@pytest.mark.parametrize('call', ['write', 'fsync', 'read'])
def test_a_failfast_leg_that_hangs_is_given_up_long_before_others_would_be(
    pool: FaultPool, volume: Volume, call: str
) -> None:
    volume.write('legs/0/state', 'failfast')
    pool.faults[0].rule(call, 'hang', every=True)
    began = time.monotonic()
    if call == 'read':
        assert all_read(volume) == DATA
    else:
        volume.put(MIB, b'x' * MIB)
    wait_for(lambda: 'faulty' in state(volume, 0), 'given up', PATIENCE / 2)
    assert time.monotonic() - began < PATIENCE / 2
    assert state(volume, 1) == 'in_sync'


@pytest.mark.parametrize('call', ['write', 'read'])
def test_a_failfast_leg_with_a_bad_block_gets_no_second_try(
    pool: FaultPool, volume: Volume, call: str
) -> None:
    volume.write('legs/0/state', 'failfast')
    pool.faults[0].bad(call, MIB, 4096)
    if call == 'read':
        assert all_read(volume) == DATA
    else:
        volume.put(MIB, b'x' * MIB)
    wait_for(lambda: 'faulty' in state(volume, 0), 'given up')
    assert state(volume, 1) == 'in_sync' and volume.read('degraded') == '1\n'


@pytest.mark.parametrize('call', ['write', 'read'])
def test_without_the_word_a_bad_block_is_mended_or_listed_and_the_leg_stays(
    pool: FaultPool, volume: Volume, call: str
) -> None:
    pool.faults[0].bad(call, MIB, 4096)
    if call == 'read':
        assert all_read(volume) == DATA
        wait_for(lambda: volume.read('legs/0/errors') == '1\n', 'mended')
    else:
        volume.put(MIB, b'x' * MIB)
        assert volume.read('legs/0/bad_blocks') == f'{MIB // 512} 8\n'
    assert [state(volume, number) for number in (0, 1)] == ['in_sync', 'in_sync']


def test_the_last_leg_has_its_time_though_it_is_failfast(pool: FaultPool, volume: Volume) -> None:
    volume.write('legs/0/state', 'failfast')
    volume.write('fail', '1')
    pool.faults[0].rule('write', 'hang')

    def write() -> None:
        volume.put(MIB, b'x' * MIB)

    with child(write) as pid:
        wait_for(lambda: pool.faults[0].facts()['hanging'], 'the write hangs')
        until = time.monotonic() + 3
        wait_for(lambda: time.monotonic() > until, 'thrice the time that failfast gives')
        assert state(volume, 0) == 'in_sync,failfast'
        pool.faults[0].release()
        assert exit_code(pid) == 0
    assert volume.get(MIB, MIB) == b'x' * MIB and state(volume, 0) == 'in_sync,failfast'
