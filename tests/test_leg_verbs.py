"""What an admin does with legs, on real mounts: spares, replacing, words on legs, moving, legs that vanish.

Some cases prove what tests of mdadm prove (01replace, 02r1add, 02r1grow, 05r1-failfast, 06wrmostly), written
anew.
"""

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import MIB, MountedPool, Volume, cli, cli_ok, wait_for

pytestmark = pytest.mark.mount
DATA = random.Random(7).randbytes(3 * MIB)


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as mounted:
        yield mounted.start()


@pytest.fixture
def volume(pool: MountedPool) -> Volume:
    made = pool.volume('disk', size=8 * MIB)
    made.write('bitmap/time_base', '0.1')
    fill(made)
    return made


def fill(volume: Volume, data: bytes = DATA, at: int = MIB // 2) -> None:
    volume.put(at, data)


def content(volume: Volume) -> bytes:
    return volume.get(0, volume.size)


def new_leg(volume: Volume, name: str = 'new') -> Path:
    return volume.pool.legs / f'{volume.name}.{name}'


def states(volume: Volume) -> dict[int, str]:
    """Return the words for each leg, by number."""
    return {leg['slot']: ','.join([leg['state'], *leg['flags']]) for leg in volume.status()['legs']}


def refused(volume: Volume, file: str, text: str | Path) -> int:
    """Write a control file, which must be refused and change nothing; return the errno."""
    before = volume.status()
    with pytest.raises(OSError) as error:
        volume.write(file, str(text))
    after = volume.status()
    assert after['legs'] == before['legs']
    assert after['raid_disks'] == before['raid_disks']
    return error.value.errno or 0


def events(pool: MountedPool) -> str:
    return (pool.control / 'events').read_text()


def assert_equal(volume: Volume, *legs: Path) -> None:
    """Stop the mount; these legs hold the same."""
    volume.pool.stop()
    volume.legs = list(legs)
    volume.assert_legs_equal()


# Spares


def test_a_spare_waits_and_takes_the_place_of_a_leg_that_fails(volume: Volume) -> None:
    volume.write('spare_delay', '0')
    spare = new_leg(volume)
    volume.write('add', f'{spare} spare')
    assert states(volume) == {0: 'in_sync', 1: 'in_sync', 2: 'spare'}
    assert volume.read('raid_disks') == '2\n'
    assert volume.read('legs/2/state') == 'spare\n'
    assert volume.read('legs/2/recovery_start') == 'none\n'
    assert f'{spare}[2](S)' in (volume.pool.control / 'mdstat').read_text()
    assert volume.status()['sync'] is None
    volume.write('fail', '0')
    wait_for(lambda: states(volume)[2] == 'in_sync', 'the spare in sync')
    assert states(volume) == {0: 'faulty', 1: 'in_sync', 2: 'in_sync'}
    assert volume.read('degraded') == '0\n'
    assert_equal(volume, volume.legs[1], spare)


def test_a_spare_gives_a_leg_that_went_away_time_to_come_back(volume: Volume) -> None:
    volume.write('spare_delay', '3600')
    volume.write('add', f'{new_leg(volume)} spare')
    volume.write('fail', '0')
    volume.write('re-add', '0')
    volume.settled()
    assert states(volume) == {0: 'in_sync', 1: 'in_sync', 2: 'spare'}
    volume.write('fail', '0')
    wait_for(lambda: 'faulty' in states(volume)[0], 'failed')
    volume.write('spare_delay', '0')
    wait_for(lambda: states(volume)[2] == 'in_sync', 'the spare in sync')


def test_spares_survive_a_remount_and_are_locked_meanwhile(volume: Volume) -> None:
    spare = new_leg(volume)
    volume.write('add', f'{spare} spare')
    volume.pool.stop()
    volume.pool.start()
    assert states(volume)[2] == 'spare'
    other = volume.pool.volume('other', size=MIB)
    assert refused(other, 'add', f'{spare} force') == errno.EBUSY
    volume.write('spare_delay', '0')
    volume.write('fail', '1')
    wait_for(lambda: states(volume)[2] == 'in_sync', 'the spare in sync')
    assert_equal(volume, volume.legs[0], spare)


def test_a_spare_can_be_removed_and_its_number_is_free_again(volume: Volume) -> None:
    spare = new_leg(volume)
    volume.write('add', f'{spare} spare')
    volume.write('remove', str(spare))
    assert set(states(volume)) == {0, 1}
    shutil.move(spare, f'{spare}.away')  # nobody holds it
    volume.write('add', f'{new_leg(volume, "second")} spare')
    assert states(volume)[2] == 'spare'


def test_a_spare_that_does_not_answer_is_given_up_and_said_so(volume: Volume) -> None:
    volume.write('spare_delay', '0')
    spare = new_leg(volume)
    volume.write('add', f'{spare} spare')
    os.truncate(spare, MIB)
    volume.write('fail', '0')
    wait_for(lambda: 'FailSpare' in events(volume.pool), 'the spare failed')
    assert states(volume) == {0: 'faulty', 1: 'in_sync', 2: 'faulty'}
    assert content(volume)[MIB // 2 :][: len(DATA)] == DATA


def test_an_ousted_leg_does_not_come_back_over_the_spare_that_took_its_place(volume: Volume) -> None:
    spare, away = new_leg(volume), volume.legs[0].with_suffix('.away')
    volume.write('spare_delay', '0')
    volume.write('add', f'{spare} spare')
    other = volume.legs[0].with_suffix('.other')
    shutil.copy(volume.legs[0], other)
    os.link(volume.legs[0], away)
    other.replace(volume.legs[0])  # something else is at its path
    wait_for(lambda: states(volume)[2] == 'in_sync', 'the spare in sync')
    away.replace(volume.legs[0])
    volume.pool.stop()
    volume.pool.start()
    assert {slot: word for slot, word in states(volume).items() if word == 'in_sync'} == {
        1: 'in_sync',
        2: 'in_sync',
    }
    assert volume.read('degraded') == '0\n'


def test_a_leg_does_not_come_back_while_a_spare_is_on_its_way_to_its_place(volume: Volume) -> None:
    away = volume.legs[0].with_suffix('.away')
    volume.write('spare_delay', '0')
    volume.write('sync_action', 'frozen')
    volume.write('add', f'{new_leg(volume)} spare')
    os.link(volume.legs[0], away)
    volume.legs[0].unlink()
    volume.legs[0].touch()
    wait_for(lambda: volume.read('legs/2/recovery_start') != 'none\n', 'the spare takes its place')
    away.replace(volume.legs[0])
    other = volume.pool.volume('other', size=MIB)  # shows that watchers have been round
    for leg in (1, 0):
        moved = other.legs[leg].with_suffix('.moved')
        other.legs[leg].rename(moved)
        followed = f'{moved}\n'
        wait_for(lambda leg=leg, path=followed: other.read(f'legs/{leg}/path') == path, 'a round of looking')
    assert states(volume)[0] == 'missing'
    volume.write('sync_action', 'idle')
    volume.settled()
    assert states(volume) == {1: 'in_sync', 2: 'in_sync'}


# Replacing (mdadm: 01replace)


def test_a_replaced_leg_serves_until_the_new_one_has_its_place(volume: Volume) -> None:
    replacement = new_leg(volume)
    volume.write('sync_action', 'frozen')
    volume.write('replace', f'0 {replacement}')
    assert states(volume) == {0: 'in_sync', 1: 'in_sync', 2: 'spare,replacement'}
    assert volume.read('degraded') == '0\n'
    assert volume.read('raid_disks') == '2\n'
    assert '[2/2] [UU]' in (volume.pool.control / 'mdstat').read_text()
    assert f'{replacement}[2](R)' in (volume.pool.control / 'mdstat').read_text()
    fill(volume, b'meanwhile' * 1000, 5 * MIB)
    assert refused(volume, 'remove', '2') == errno.EBUSY
    assert refused(volume, 'replace', f'0 {new_leg(volume, "third")}') == errno.EBUSY
    volume.write('sync_action', 'idle')
    wait_for(lambda: states(volume)[0] == 'in_sync' and states(volume)[2] == 'faulty', 'replaced')
    assert volume.read('legs/0/path').strip() == str(replacement)
    assert volume.read('legs/2/path').strip() == str(volume.legs[0])
    assert volume.read('degraded') == '0\n'
    assert 'Replaced' in events(volume.pool)
    expected = content(volume)
    assert expected[MIB // 2 :][: len(DATA)] == DATA
    volume.pool.stop()
    volume.pool.start()
    assert volume.read('legs/0/path').strip() == str(replacement)
    assert content(volume) == expected
    assert_equal(volume, replacement, volume.legs[1])


def test_a_replacement_survives_that_another_leg_fails_meanwhile(volume: Volume) -> None:
    replacement = new_leg(volume)
    volume.write('sync_action', 'frozen')
    volume.write('replace', f'0 {replacement}')
    volume.write('fail', '1')
    assert refused(volume, 'fail', '0') == errno.EBUSY
    volume.write('sync_action', 'idle')
    wait_for(lambda: volume.read('legs/0/path').strip() == str(replacement), 'replaced')
    volume.write('re-add', '1')
    volume.settled()
    assert_equal(volume, replacement, volume.legs[1])


def test_a_leg_that_fails_while_it_is_replaced_gives_up_its_place_all_the_same(volume: Volume) -> None:
    replacement = new_leg(volume)
    volume.write('sync_action', 'frozen')
    volume.write('replace', f'0 {replacement}')
    volume.write('fail', '0')
    assert volume.read('degraded') == '1\n'
    volume.write('sync_action', 'idle')
    wait_for(lambda: volume.read('degraded') == '0\n', 'whole')
    assert volume.read('legs/0/path').strip() == str(replacement)
    assert_equal(volume, replacement, volume.legs[1])


def test_a_leg_that_wants_a_replacement_gets_the_first_spare(volume: Volume) -> None:
    volume.write('legs/1/state', 'want_replacement')
    assert states(volume)[1] == 'in_sync,want_replacement'
    spare = new_leg(volume)
    volume.write('add', f'{spare} spare')
    wait_for(lambda: volume.read('legs/1/path').strip() == str(spare), 'replaced')
    assert states(volume) == {0: 'in_sync', 1: 'in_sync', 2: 'faulty'}
    assert_equal(volume, volume.legs[0], spare)


def test_replacing_is_interrupted_by_a_remount_and_goes_on(volume: Volume) -> None:
    replacement = new_leg(volume)
    volume.write('sync_action', 'frozen')
    volume.write('replace', f'1 {replacement}')
    volume.pool.stop()
    volume.pool.start()
    wait_for(lambda: volume.read('legs/1/path').strip() == str(replacement), 'replaced')
    assert_equal(volume, volume.legs[0], replacement)


# Numbers of legs (mdadm: 02r1add, 02r1grow)


def test_more_legs_are_wanted_then_fewer(volume: Volume) -> None:
    volume.write('add', f'{new_leg(volume)} spare')
    volume.write('raid_disks', '3')
    wait_for(lambda: volume.read('degraded') == '0\n', 'three legs')
    assert '[3/3] [UUU]' in (volume.pool.control / 'mdstat').read_text()
    assert refused(volume, 'raid_disks', '2') == errno.EBUSY
    volume.write('fail', '2')
    assert '[3/2] [UU_]' in (volume.pool.control / 'mdstat').read_text()
    volume.write('raid_disks', '2')
    assert '[2/2] [UU]' in (volume.pool.control / 'mdstat').read_text()
    volume.write('remove', 'failed')
    for bad, code in (('0', errno.EINVAL), ('9', errno.EINVAL), ('two', errno.EINVAL), ('1', errno.EBUSY)):
        assert refused(volume, 'raid_disks', bad) == code
    assert_equal(volume, *volume.legs)


def test_legs_are_removed_by_what_they_are(volume: Volume) -> None:
    for word in ('failed', 'detached'):
        assert refused(volume, 'remove', word) == errno.ENOENT
    volume.write('fail', '1')
    volume.write('remove', 'failed')
    assert states(volume)[1] == 'removed'
    volume.write('re-add', '1')
    volume.settled()
    volume.legs[1].unlink()
    wait_for(lambda: states(volume)[1] == 'missing', 'seen to be gone')
    volume.write('remove', 'detached')
    assert states(volume)[1] == 'removed'


# Words on legs (mdadm: 05r1-failfast, 06wrmostly)


@pytest.mark.parametrize('flag', ['failfast', 'write_mostly'])
def test_a_word_on_a_leg_stays_while_it_is_away_and_over_a_remount_until_it_is_taken_back(
    flag: str, volume: Volume
) -> None:
    volume.write('legs/1/state', flag.replace('_', ''))
    assert states(volume)[1] == f'in_sync,{flag}'
    volume.write('fail', '1')
    volume.write('remove', '1')
    volume.write('re-add', '1')
    volume.settled()
    assert states(volume)[1] == f'in_sync,{flag}'
    volume.pool.stop()
    volume.pool.start()
    assert states(volume)[1] == f'in_sync,{flag}'
    volume.write('legs/1/state', f'-{flag}')
    assert states(volume)[1] == 'in_sync'
    added = new_leg(volume)
    volume.write('add', f'{added} {flag}')
    volume.settled()
    assert states(volume)[2] == f'in_sync,{flag}'


def test_a_write_mostly_leg_is_written_and_not_read(volume: Volume) -> None:
    volume.write('legs/0/state', 'writemostly')
    assert '[0](W)' in (volume.pool.control / 'mdstat').read_text()
    with open(volume.legs[0], 'r+b') as leg:  # what nobody reads, nobody sees
        leg.seek(os.path.getsize(leg.name) - volume.size + MIB)
        leg.write(b'x' * 4096)
    assert content(volume)[MIB // 2 :][: len(DATA)] == DATA
    fill(volume)
    volume.write('fail', '1')
    assert content(volume)[MIB // 2 :][: len(DATA)] == DATA, 'it is read where there is no other'
    volume.write('re-add', '1')
    volume.settled()
    assert_equal(volume, *volume.legs)


def test_a_blocked_leg_holds_up_writes_and_nothing_else(volume: Volume) -> None:
    volume.write('legs/1/state', 'blocked')
    assert states(volume)[1] == 'in_sync,blocked'
    pid = os.fork()
    if not pid:
        try:
            fill(volume, b'held up' * 100)
        finally:
            os._exit(0)
    try:
        assert content(volume)[MIB // 2 :][: len(DATA)] == DATA
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        volume.write('legs/1/state', '-blocked')
    finally:
        os.waitpid(pid, 0)
    assert content(volume)[MIB // 2 :][:7] == b'held up'
    assert states(volume)[1] == 'in_sync'


def test_a_blocked_volume_stops_cleanly(volume: Volume) -> None:
    volume.write('legs/1/state', 'blocked')
    assert_equal(volume, *volume.legs)


@pytest.mark.parametrize('word', ['nonsense', '-faulty', 'in_sync', 'Faulty', '- failfast', '-'])
def test_other_words_are_refused(word: str, volume: Volume) -> None:
    assert refused(volume, 'legs/1/state', word) == errno.EINVAL


def test_a_leg_is_failed_removed_and_re_added_by_its_state_file(volume: Volume) -> None:
    volume.write('legs/1/state', 'faulty')
    assert states(volume)[1] == 'faulty'
    volume.write('legs/1/state', 'remove')
    assert states(volume)[1] == 'removed'
    volume.write('legs/1/state', 're-add')
    volume.settled()
    assert refused(volume, 'legs/1/state', 'remove') == errno.EBUSY
    assert_equal(volume, *volume.legs)


# Paths


def test_a_leg_is_moved_while_it_is_in_use(volume: Volume) -> None:
    new = new_leg(volume, 'elsewhere')
    volume.write('legs/1/path', str(new))
    assert not volume.legs[1].exists()
    assert volume.read('legs/1/path').strip() == str(new)
    fill(volume, b'after' * 100)
    volume.pool.stop()
    volume.pool.start()
    assert states(volume) == {0: 'in_sync', 1: 'in_sync'}
    assert refused(volume, 'legs/1/path', volume.legs[0]) == errno.EEXIST
    assert refused(volume, 'legs/1/path', '/proc/leg') in (errno.EXDEV, errno.ENOENT, errno.EPERM)
    assert_equal(volume, volume.legs[0], new)


def test_a_leg_that_somebody_renames_is_followed(volume: Volume) -> None:
    new = new_leg(volume, 'renamed')
    volume.legs[1].rename(new)
    wait_for(lambda: volume.read('legs/1/path').strip() == str(new), 'followed')
    assert states(volume) == {0: 'in_sync', 1: 'in_sync'}
    volume.pool.stop()
    volume.pool.start()
    assert states(volume) == {0: 'in_sync', 1: 'in_sync'}


def test_a_leg_that_was_moved_while_it_was_away_is_found_when_its_path_is_set(volume: Volume) -> None:
    volume.write('fail', '1')
    new = new_leg(volume, 'elsewhere')
    volume.legs[1].rename(new)
    assert refused(volume, 'legs/1/path', volume.legs[0]) == errno.EBUSY
    assert refused(volume, 'legs/1/path', new_leg(volume, 'nothing')) == errno.ENOENT
    volume.write('legs/1/path', str(new))
    volume.write('re-add', '1')
    volume.settled()
    assert_equal(volume, volume.legs[0], new)


# Legs that vanish, and come back


def _remove(leg: Path) -> None:
    leg.unlink()


def _truncate(leg: Path) -> None:
    os.truncate(leg, 2 * MIB)


def _replace(leg: Path) -> None:
    Path(f'{leg}.other').write_bytes(b'something else')
    Path(f'{leg}.other').replace(leg)


@pytest.mark.parametrize('harm', [_remove, _truncate, _replace], ids=['removed', 'truncated', 'replaced'])
def test_a_leg_that_is_taken_away_beneath_us_fails_within_seconds_without_a_write(
    harm: Any, volume: Volume
) -> None:
    harm(volume.legs[1])
    wait_for(lambda: states(volume)[1] == 'missing', 'seen', 8)
    assert content(volume)[MIB // 2 :][: len(DATA)] == DATA
    assert volume.read('degraded') == '1\n'


def test_the_last_leg_stays_when_it_is_taken_away_and_that_is_critical(volume: Volume) -> None:
    volume.write('fail', '1')
    volume.legs[0].unlink()
    wait_for(lambda: 'Critical' in events(volume.pool), 'said')
    assert states(volume)[0] == 'in_sync'
    assert content(volume)[MIB // 2 :][: len(DATA)] == DATA
    fill(volume, b'still', 0)


@pytest.mark.parametrize('policy', ['partial', 'full', 'none'])
def test_a_leg_that_comes_back_is_taken_back_by_the_volumes_policy(policy: str, volume: Volume) -> None:
    volume.write('re_add_policy', policy)
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'clean')
    away = Path(f'{volume.legs[1]}.away')
    os.link(volume.legs[1], away)
    volume.legs[1].unlink()
    volume.legs[1].touch()
    wait_for(lambda: states(volume)[1] == 'missing', 'seen to be gone')
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'clean')
    fill(volume, b'meanwhile' * 1000, 6 * MIB)
    before = volume.status()['recovered_bytes']
    away.replace(volume.legs[1])
    if policy == 'none':
        volume.write('re-add', 'missing')
    wait_for(lambda: states(volume)[1] == 'in_sync', 'back')
    assert volume.status()['recovered_bytes'] - before <= 2 * MIB, 'only what was written is copied'
    assert_equal(volume, *volume.legs)


def test_a_copy_of_a_leg_does_not_come_back_by_itself_and_lacks_what_it_lacks(volume: Volume) -> None:
    """A copy has the same superblock as the leg; what was written since, and is clean again, it has not."""
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'clean')
    copy = new_leg(volume, 'copy')
    shutil.copy(volume.legs[1], copy)
    fill(volume, b'since the copy' * 1000, 6 * MIB)
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'clean')
    copy.replace(volume.legs[1])
    wait_for(lambda: 'is not the leg that was there' in events(volume.pool), 'seen')
    assert states(volume)[1] == 'missing'
    volume.write('re-add', '1')
    volume.settled()
    assert_equal(volume, *volume.legs)


def test_a_leg_the_admin_failed_does_not_come_back_by_itself(volume: Volume) -> None:
    volume.write('fail', '1')
    away = Path(f'{volume.legs[1]}.away')
    volume.legs[1].rename(away)
    volume.write('bitmap/time_base', '0.2')
    away.rename(volume.legs[1])
    other = volume.pool.volume('other', size=MIB)  # shows that its watcher has been round
    other.legs[1].unlink()
    wait_for(lambda: 'missing' in states(other)[1], 'a round of looking')
    assert states(volume)[1] == 'faulty'


def test_a_leg_that_was_absent_at_the_mount_comes_back_when_it_appears(volume: Volume) -> None:
    volume.pool.stop()
    away = Path(f'{volume.legs[1]}.away')
    volume.legs[1].rename(away)
    volume.pool.start()
    assert states(volume)[1] == 'missing'
    fill(volume, b'meanwhile' * 1000, 6 * MIB)
    away.rename(volume.legs[1])
    wait_for(lambda: states(volume)[1] == 'in_sync', 'back')
    assert_equal(volume, *volume.legs)


# The command line


def test_the_command_line_has_all_of_these(volume: Volume) -> None:
    pool, new = volume.pool.mountpoint, new_leg(volume)
    cli_ok('add', pool, 'disk', new, '--spare')
    cli_ok('set', pool, 'disk', 'spare_delay', '60')
    cli_ok('mark', pool, 'disk', '1', 'write_mostly', 'failfast')
    cli_ok('mark', pool, 'disk', volume.legs[1], 'no-failfast')
    assert states(volume)[1] == 'in_sync,write_mostly'
    cli_ok('replace', pool, 'disk', '0', 'spare')
    cli_ok('wait', pool, 'disk')
    assert volume.read('legs/0/path').strip() == str(new)
    cli_ok('move', pool, 'disk', '0', new_leg(volume, 'moved'))
    shown = json.loads(cli_ok('status', '--json', pool, 'disk'))[0]
    assert next(leg['path'] for leg in shown['legs']) == str(new_leg(volume, 'moved'))
    assert 'write_mostly' in cli_ok('status', pool, 'disk')
    refused = cli('mark', pool, 'disk', '7', 'failfast')
    assert refused.returncode == 1
    assert 'has no leg' in refused.stderr
    refused = cli('replace', pool, 'disk', '1', 'spare')
    assert refused.returncode == 1
    assert 'no spare' in refused.stderr


# Write-behind (mdadm: 06wrmostly)


def behind(volume: Volume) -> dict[int, bool]:
    return {leg['slot']: 'behind' in leg['flags'] for leg in volume.status()['legs']}


@pytest.fixture
def lagging(volume: Volume) -> Volume:
    """A volume whose second leg may be behind."""
    assert refused(volume, 'bitmap/backlog', '100') == errno.EINVAL
    volume.write('legs/1/state', 'writemostly')
    for bad in ('16384', '-1', 'many'):
        assert refused(volume, 'bitmap/backlog', bad) == errno.EINVAL
    volume.write('bitmap/backlog', '100')
    assert volume.read('bitmap/backlog') == '100\n'
    wait_for(lambda: behind(volume)[1], 'recorded that it may be behind')
    return volume


def test_a_leg_behind_has_everything_after_fsync_and_after_a_stop(lagging: Volume) -> None:
    wait_for(lambda: fill(lagging) or int(lagging.read('bitmap/max_backlog_used')), 'writes behind')
    lagging.write('bitmap/max_backlog_used', '0')
    assert lagging.status()['legs'][1]['writes_behind'] == 0
    assert refused(lagging, 'fail', '0') == errno.EBUSY, 'the other one may lack what was acknowledged'
    assert_equal(lagging, *lagging.legs)
    lagging.pool.start()
    assert behind(lagging) == {0: False, 1: False}
    assert states(lagging)[1] == 'in_sync,write_mostly'
    lagging.write('fail', '0')


def test_a_killed_daemon_leaves_a_leg_behind_that_is_recovered_and_does_not_start_alone(
    lagging: Volume,
) -> None:
    with lagging.open() as fd:
        os.pwrite(fd, b'last word' * 1000, 6 * MIB)
    lagging.pool.kill()
    good = lagging.legs[0]
    good.rename(f'{good}.away')
    lagging.pool.start()
    assert 'no up-to-date leg' in lagging.status()['refusal']
    lagging.pool.stop()
    Path(f'{good}.away').rename(good)
    lagging.pool.start()
    lagging.settled()
    assert states(lagging)[1].startswith('in_sync,write_mostly')
    assert content(lagging)[6 * MIB :][:9] == b'last word'
    assert_equal(lagging, *lagging.legs)


def test_no_backlog_means_that_nobody_is_behind(lagging: Volume) -> None:
    fill(lagging)
    lagging.write('bitmap/backlog', '0')
    assert behind(lagging) == {0: False, 1: False}
    lagging.write('fail', '0')
    assert content(lagging)[MIB // 2 :][: len(DATA)] == DATA
