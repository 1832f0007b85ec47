"""Split brain: told by lineage, refused with both histories named, resolved by choice; the loser stays."""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import MIB, MountedPool, Volume, cli, cli_ok, examine, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
TIME = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ'


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def two_hosts(pool: MountedPool, legs: int = 2) -> Volume:
    """A volume used by two hosts, each with a copy of the pool and one leg, the same number of times.

    Host A has slot 0, host B the last slot.  The pool that is left is that of host B.
    """
    volume = pool.volume_at_rest('vm', legs=legs, size=16 * MIB)
    pool.volume_at_rest('other', size=16 * MIB)
    pool.start()
    volume.put(0, b'both')
    pool.stop()
    shutil.copytree(pool.directory, pool.base / 'pool.b')
    for away, word in ((volume.legs[1:], b'host A'), (volume.legs[:-1], b'host B')):
        for leg in away:
            leg.rename(f'{leg}.away')
        pool.start()
        volume.put(0, word)
        if word == b'host B':
            volume.put(3 * MIB, word)
        pool.stop()
        for leg in away:
            Path(f'{leg}.away').rename(leg)
        if word == b'host A':
            shutil.rmtree(pool.directory)
            (pool.base / 'pool.b').rename(pool.directory)
    return volume


def refused(operation: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        operation()
    return caught.value.errno or -1


def test_equal_events_are_told_apart_by_lineage_and_the_refusal_names_both_histories(
    pool: MountedPool,
) -> None:
    volume = two_hosts(pool)
    facts = examine(*volume.legs)
    assert facts[0]['events'] == facts[1]['events'], 'each went on alone as long as the other'
    before = [digest(leg) for leg in volume.legs]
    pool.start()
    why = volume.status()['refusal']
    assert volume.status()['state'] == 'inactive'
    for number in (0, 1):
        generation = facts[number]['lineage'][-1]
        assert f'slot {number} ({volume.legs[number]}) went on alone since {generation["time"]}' in why
        assert f'generation {generation["uuid"][:8]}, events {facts[number]["events"]}' in why
    assert f'after generation {facts[0]["lineage"][0]["uuid"][:8]}' in why
    assert '1 chunks (1 MiB at most) written since; slot 1' in why
    assert '2 chunks (2 MiB at most) written since.' in why
    assert 'mirrorfs resolve POOL vm --keep LEG' in why
    assert refused(lambda: volume.get(0, 4)) == errno.EIO
    other = Volume(pool, 'other', 16 * MIB, pool.leg_paths('other', 2))
    other.put(0, b'goes on')
    assert cli_ok('resolve', pool.directory, 'vm') == volume.read('resolve')
    assert volume.read('resolve').count('went on alone') == 2
    pool.stop()
    assert [digest(leg) for leg in volume.legs] == before


@pytest.mark.parametrize('where', ['mounted', 'at rest'])
@pytest.mark.parametrize('keep', [0, 1])
def test_resolve_goes_on_from_the_chosen_leg_and_leaves_the_loser_as_it_was(
    pool: MountedPool, keep: int, where: str
) -> None:
    volume = two_hosts(pool)
    loser = volume.legs[1 - keep]
    before = digest(loser)
    if where == 'mounted':
        pool.start()
        shown = cli_ok('resolve', pool.mountpoint, 'vm', '--keep', str(volume.legs[keep]))
        assert ' Resolved vm ' in '\n'.join(pool.events())
    else:
        assert cli_ok('resolve', pool.directory, 'vm').count('went on alone') == 2
        shown = cli_ok('resolve', pool.directory, 'vm', '--keep', str(volume.legs[keep]))
        pool.start()
    assert 'goes on from leg' in shown
    assert volume.status()['state'] in ('clean', 'active')
    assert volume.get(0, 6) == (b'host A', b'host B')[keep]
    assert volume.get(3 * MIB, 6) == (bytes(6), b'host B')[keep]
    volume.put(MIB, b'after')
    assert volume.read(f'legs/{1 - keep}/state') == 'faulty\n'
    pool.stop()
    assert digest(loser) == before
    pool.start()  # and needs no choice again
    assert volume.get(MIB, 5) == b'after'
    assert volume.read('resolve') == 'none\n'
    assert refused(lambda: volume.write('re-add', str(1 - keep))) == errno.EINVAL
    assert digest(loser) == before
    volume.write('remove', str(1 - keep))
    volume.write('add', f'{loser} force')
    wait_for(lambda: volume.read('degraded') == '0\n', 'the loser is overwritten')
    pool.stop()
    volume.assert_legs_equal()


def test_a_side_of_two_legs_goes_on_with_both(pool: MountedPool) -> None:
    volume = pool.volume_at_rest('vm', legs=3, size=16 * MIB)
    shutil.copytree(pool.directory, pool.base / 'pool.b')
    for away in (volume.legs[2:], volume.legs[:2]):
        for leg in away:
            leg.rename(f'{leg}.away')
        pool.start()
        volume.put(0, b'legs %d' % (3 - len(away)))
        pool.stop()
        for leg in away:
            Path(f'{leg}.away').rename(leg)
        if len(away) == 1:
            shutil.rmtree(pool.directory)
            (pool.base / 'pool.b').rename(pool.directory)
    pool.start()
    assert refused(lambda: volume.get(0, 6)) == errno.EIO
    volume.write('resolve', 'keep 1')
    assert [volume.read(f'legs/{n}/state') for n in range(3)] == ['in_sync\n', 'in_sync\n', 'faulty\n']
    assert volume.get(0, 6) == b'legs 2'
    pool.stop()


def test_what_cannot_be_resolved_is_refused_and_changes_nothing(pool: MountedPool) -> None:
    volume = two_hosts(pool, legs=3)
    before = [digest(leg) for leg in volume.legs]
    assert cli('resolve', pool.directory, 'nosuch', '--keep', '0').returncode == 1
    assert 'no split brain' in cli('resolve', pool.directory, 'other', '--keep', '0').stderr
    pool.start()
    why = volume.status()['refusal']
    for words, code in (
        ('keep', errno.EINVAL),
        ('keep 0 1', errno.EINVAL),
        ('drop 0', errno.EINVAL),
        ('keep 7', errno.ENOENT),
        ('keep /no/such/leg', errno.ENOENT),
        ('keep 1', errno.EINVAL),  # stale: it has no history of its own
    ):
        assert refused(lambda words=words: volume.write('resolve', words)) == code, words
        assert pool.events()[-1].split()[1] == 'Refused'
        assert volume.status()['refusal'] == why
        assert volume.read('resolve').count('went on alone') == 2
    other = Volume(pool, 'other', 16 * MIB, [])
    assert refused(lambda: other.write('resolve', 'keep 0')) == errno.EINVAL
    assert 'not split' in cli('resolve', pool.directory, 'other', '--keep', '0').stderr
    pool.stop()
    assert [digest(leg) for leg in volume.legs] == before


def test_the_leg_left_alone_is_the_other_side_of_the_pool(pool: MountedPool) -> None:
    """Host A's leg comes to host B, whose own leg is away: the pool itself is a side."""
    volume = two_hosts(pool)
    volume.legs[1].rename(f'{volume.legs[1]}.away')
    pool.start()
    assert 'the pool, of which no leg is at hand, went on alone' in volume.status()['refusal']
    volume.write('resolve', 'keep 0')
    assert volume.get(0, 6) == b'host A'
    volume.put(0, b'host C')
    pool.stop()
    Path(f'{volume.legs[1]}.away').rename(volume.legs[1])
    before = digest(volume.legs[1])
    pool.start()
    assert volume.get(0, 6) == b'host C'
    assert volume.read('legs/1/state') == 'faulty\n'
    pool.stop()
    assert digest(volume.legs[1]) == before


def test_three_of_four_legs_away_and_back_are_stale_and_never_read(pool: MountedPool) -> None:
    """After LVM's lvcreate-raid1-inconsistent-metadata: nothing is served from copies that were away."""
    volume = pool.volume_at_rest('vm', legs=4, size=16 * MIB)
    pool.start()
    volume.put(0, b'old' * 1000)
    pool.stop()
    for leg in volume.legs[1:]:
        leg.rename(f'{leg}.away')
    pool.start()
    volume.put(0, b'new' * 1000)
    pool.stop()
    volume.legs[0].rename(f'{volume.legs[0]}.away')
    for leg in volume.legs[1:]:
        Path(f'{leg}.away').rename(leg)
    before = [digest(leg) for leg in volume.legs[1:]]
    pool.start()
    assert 'no up-to-date leg is at hand' in volume.status()['refusal']
    assert refused(lambda: volume.get(0, 3)) == errno.EIO
    assert refused(lambda: volume.write('resolve', 'keep 1')) == errno.EINVAL  # no split: they are stale
    pool.stop()
    assert [digest(leg) for leg in volume.legs[1:]] == before
    Path(f'{volume.legs[0]}.away').rename(volume.legs[0])
    pool.start()
    wait_for(lambda: volume.get(0, 3000) == b'new' * 1000 and volume.read('degraded') == '0\n', 'caught up')
    pool.stop()
    assert volume.assert_legs_equal()[:3000] == b'new' * 1000
