"""What scenarios of LVM's test suite prove, written anew on real mounts.

lvchange-syncaction-raid: 1 KiB that decays beneath a leg is 128 sectors of mismatches; mended, it is none.
lvcreate-raid1-inconsistent-metadata: three of four legs that were away do not speak for the volume until what
they say agrees with the one that stayed.  lvchange-raid-transient-failures is in test_transient_failures,
lvcreate-raid1-read-error in test_read_errors.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from looptools import Field, examine, field
from mounts import MIB, MountedPool, Volume, cli, cli_ok, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]
SIZE = 16 * MIB
DATA = random.Random(3).randbytes(SIZE)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def fill(volume: Volume) -> None:
    for at in range(0, SIZE, MIB):
        volume.put(at, DATA[at : at + MIB])


@pytest.mark.loop
@pytest.mark.parametrize('wrong', [0, 1])
def test_a_kib_that_decays_beneath_a_leg_counts_as_128_is_mended_and_counts_no_more(
    ground: Field, pool: MountedPool, wrong: int
) -> None:
    ground.later(pool.clean)
    media = [ground.path(f'medium{number}') for number in range(2)]
    for medium in media:
        medium.touch()
        os.truncate(medium, SIZE + 16 * MIB)
    devices = [Path(ground.loop(medium)) for medium in media]
    pool.write('create', f'disk {SIZE} {devices[0]} {devices[1]} force')
    volume = Volume(pool, 'disk', SIZE, devices)
    fill(volume)
    base = examine(devices[wrong])[0]['data_offset']
    with open(media[wrong], 'r+b', buffering=0) as medium:
        os.pwrite(medium.fileno(), b'\xff\x00' * 512, base + 5 * MIB)
        os.fsync(medium.fileno())

    def scrub(*words: str) -> str:
        cli_ok(words[0], pool.directory, 'disk', *words[1:])
        cli_ok('wait', pool.directory, 'disk')
        return volume.read('mismatch_cnt').strip()

    assert scrub('check') == '128'
    assert scrub('check') == '128', 'a check mends nothing'
    assert 'differ: 1 places' in cli_ok('status', pool.directory, 'disk')
    scrub('repair', '--source', str(1 - wrong))
    assert scrub('check') == '0'
    assert 'differ' not in cli_ok('status', pool.directory, 'disk')
    with open(media[wrong], 'rb', buffering=0) as medium:
        assert os.pread(medium.fileno(), 1024, base + 5 * MIB) == DATA[5 * MIB : 5 * MIB + 1024]
    assert volume.image.read_bytes() == DATA


def away(*legs: Path) -> None:
    """Take legs out of their folder, where they would be found under any name."""
    for leg in legs:
        (leg.parent.parent / 'away').mkdir(exist_ok=True)
        leg.rename(leg.parent.parent / 'away' / leg.name)


def back(*legs: Path) -> None:
    for leg in legs:
        (leg.parent.parent / 'away' / leg.name).rename(leg)


def test_three_of_four_legs_that_were_away_say_nothing_until_they_agree_with_the_one_that_stayed(
    pool: MountedPool,
) -> None:
    volume = pool.volume('disk', SIZE, legs=4)
    fill(volume)
    pool.stop()
    stayed, *others = volume.legs
    away(*others)
    pool.start()
    assert volume.read('degraded') == '3\n'
    volume.put(3 * MIB, b'what only one leg has' * 1000)
    expected = volume.image.read_bytes()
    pool.stop()
    away(stayed)
    back(*others)
    before = [examine(leg)[0] for leg in others]
    pool.start()
    assert 'no up-to-date leg is at hand' in volume.status()['refusal']
    with pytest.raises(OSError):
        volume.image.read_bytes()
    pool.stop()
    shutil.move(pool.directory, pool.base / 'lost')
    refused = cli('assemble', pool.directory, pool.legs)
    assert refused.returncode == 1 and 'disk' in refused.stderr + refused.stdout
    assert not (pool.directory / 'volumes/disk.json').exists()
    assert [examine(leg)[0] for leg in others] == before, 'to be refused changes nothing'
    shutil.rmtree(pool.directory, ignore_errors=True)
    shutil.move(pool.base / 'lost', pool.directory)
    back(stayed)
    pool.start()
    wait_for(lambda: volume.read('degraded') == '0\n', 'the three are caught up')
    assert volume.status()['recovered_bytes'] == 3 * MIB, 'a chunk for each'
    assert volume.image.read_bytes() == expected
    pool.stop()
    assert volume.assert_legs_equal() == expected
