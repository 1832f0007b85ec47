"""After LVM's lvchange-raid-transient-failures: two of four legs away and back, an ext4 clean throughout."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from looptools import MIB, Field, assert_legs_equal, field
from test_loop_ext4 import Disk

pytestmark = [pytest.mark.mount, pytest.mark.loop, pytest.mark.timeout(180)]
ALL = ['in_sync'] * 4


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def test_two_of_four_legs_away_and_re_added_missing_leave_the_file_system_clean(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path(name) for name in 'abcd']
    disk = Disk(ground, pool.create('x', 96 * MIB, *legs))
    pool.mount()
    pool.command('x', 'quorum', 2)
    disk.make()
    disk.put('before', b'all four legs' * 1000)
    disk.check()
    for slot in (1, 3):
        pool.command('x', 'fail', slot)
    assert pool.states('x') == ['in_sync', 'faulty', 'in_sync', 'faulty']  # ADAD
    disk.put('meanwhile', b'two legs' * 100_000)
    disk.check()
    disk.leave()
    pool.umount()
    for leg in (legs[1], legs[3]):
        leg.rename(ground.path(f'{leg.name}.away'))
    pool.mount()
    disk.attach()
    disk.mount()
    disk.check()
    disk.put('away', b'their files are gone' * 1000)
    for leg in (legs[1], legs[3]):
        ground.path(f'{leg.name}.away').rename(leg)
    pool.command('x', 're-add', 'missing')
    pool.settled('x', 4)
    assert pool.states('x') == ALL  # AAAA
    disk.check()
    disk.leave()
    pool.umount()
    for leg in legs[1:]:
        assert_legs_equal(legs[0], leg)
