"""assemble: definitions from legs alone, by decision and on real pools; legs that come back after that."""

import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import MIB, MountedPool, Volume, cli, cli_ok, examine, wait_for
from test_membership import FAULTY, IN_SYNC, MISSING, SPARE, both, leave, leg_id, record

from mirrorfs.errors import Refused
from mirrorfs.mirror import membership
from mirrorfs.mirror.assembly import assemble
from mirrorfs.mirror.rebuilding import Claim, rebuild
from mirrorfs.mirror.splitbrain import SplitBrain
from mirrorfs.model import VolumeRecord

# The decision


def claim(number: int, said: VolumeRecord, path: str = '') -> Claim:
    slots = tuple(slot.but(path='') for slot in said.slots)
    return Claim(path or f'/found/{number}', number, leg_id(number), said.but(slots=slots))


def refusal(*claims: Claim, known: VolumeRecord | None = None, force: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        rebuild(claims, known, force=force)
    return caught.value


def test_legs_that_agree_are_believed() -> None:
    rebuilt = rebuild([claim(1, both()), claim(0, both())])
    assert rebuilt.legs == (0, 1)
    assert not rebuilt.given_up
    assert [slot.path for slot in rebuilt.record.slots[:2]] == ['/found/0', '/found/1']
    assert rebuilt.record.events == 10


def test_a_stale_leg_at_hand_is_found_and_stays_stale() -> None:
    rebuilt = rebuild([claim(0, leave(both(), 1)), claim(1, both())])
    assert rebuilt.legs == (0, 1)
    assert rebuilt.record.slots[1].state is FAULTY
    assert assemble(rebuilt.record, {0: leave(both(), 1), 1: both()}).members == (0,)


def test_the_stale_leg_alone_is_not_believed_without_force() -> None:
    text = str(refusal(claim(1, both())))
    for part in (str(leg_id(0)), 'slot 1 (/found/1)', 'may have gone on alone', '--force', 'events 10'):
        assert part in text, part
    rebuilt = rebuild([claim(1, both())], force=True)
    assert str(leg_id(0)) in rebuilt.given_up
    assert not rebuilt.forced
    assert rebuilt.record.slots[0].path == ''


def test_an_older_copy_does_not_vouch_for_a_newer_leg() -> None:
    assert '/found/1 is older' in str(refusal(claim(0, both()), claim(1, both(events=9))))


def test_a_newer_spare_that_calls_the_leg_stale_is_believed() -> None:
    base = record(IN_SYNC, IN_SYNC, SPARE, full=True)
    after = leave(base, 0)
    alone = leave(base, 1)  # slot 0 without slot 1, as far as that knows
    text = str(refusal(claim(0, alone.but(events=10)), claim(2, after)))
    assert 'which /found/2 calls stale' in text


def test_a_spare_that_is_not_at_hand_may_have_been_completed() -> None:
    said = record(IN_SYNC, SPARE, full=True)
    assert 'being recovered' in str(refusal(claim(0, said)))
    assert not rebuild([claim(0, said), claim(1, said)]).given_up


def test_only_legs_that_are_not_in_sync_need_force() -> None:
    said = record(MISSING, SPARE, full=True)
    assert 'no leg at hand is in sync' in str(refusal(claim(1, said)))
    assert rebuild([claim(1, said)], force=True).forced


@pytest.mark.parametrize('force', [False, True])
def test_legs_that_went_apart_are_refused_also_where_each_gave_the_other_up(force: bool) -> None:
    sides = []
    for mine, other in ((0, 1), (1, 0)):
        gone = membership.leave(both(), [other], FAULTY, uuid.UUID(int=(mine + 1) << 100), 5)
        slot = gone.slots[other].but(tracked_since=0, full=True)
        sides.append(claim(mine, gone.with_slot(other, slot)))
    text = str(refusal(*sides, force=force))
    assert 'split brain' in text
    assert text.count('went on alone') == 2
    assert rebuild(sides[:1]).record.slots[1].state is FAULTY


def test_a_pool_older_than_both_sides_of_a_split_brain_chooses_none() -> None:
    """Both hosts went on from this pool, which is a copy of before: neither conflicts with it."""
    sides = {
        mine: membership.leave(both(events=10 + mine), [other], MISSING, uuid.UUID(int=(mine + 1) << 100), 5)
        for mine, other in ((0, 1), (1, 0))
    }
    with pytest.raises(SplitBrain) as caught:
        assemble(both(), sides)
    assert [side.legs for side in caught.value.sides] == [(0,), (1,)]
    for keep in (0, 1):
        plan = assemble(both(), sides, 99, keep=keep)
        assert plan.members == (keep,)
        assert plan.record.events > max(side.events for side in sides.values())
        assert plan.record.lineage[-2] == sides[keep].lineage[-1]
        again = assemble(plan.record, {keep: plan.record, 1 - keep: sides[1 - keep]})
        assert again.members == (keep,)
        assert not again.returning
    with pytest.raises(Refused, match='no split brain'):
        assemble(both(), {0: both(), 1: both()}, 99, keep=0)


def test_a_spare_with_a_history_that_the_truth_lacks_is_copied_anew() -> None:
    """A round was cut short in which slot 0 was expelled: the spare may hold what slot 0 never got."""
    before = record(IN_SYNC, IN_SYNC, SPARE, full=True, mark=5)
    after = leave(before, 0)
    plan = assemble(before, {0: before, 2: after})
    assert plan.members == (0, 2)
    assert plan.absent == (1,)
    assert plan.record.slots[2].full
    assert plan.record.slots[2].mark == 0, 'what it has been given so far is not relied on'
    assert assemble(before, {0: before, 2: before}).record.slots[2].mark == 5


def test_a_spare_that_grew_apart_is_no_side() -> None:
    """It holds nothing whole: the volume starts without it."""
    base = record(IN_SYNC, SPARE, full=True)
    mine = membership.leave(record(IN_SYNC, IN_SYNC), [1], FAULTY, uuid.UUID(int=1 << 100), 5)
    theirs = membership.new_generation(base, uuid.UUID(int=2 << 100), 6)
    plan = assemble(mine, {0: mine, 1: theirs})
    assert plan.members == (0,)
    assert plan.record.slots[1].full


def test_two_copies_of_one_leg_are_refused() -> None:
    error = refusal(claim(0, both()), claim(0, both(), '/copy'))
    assert error.errno == errno.EEXIST
    assert '/copy' in str(error)


def test_a_definition_that_is_known_keeps_all_but_its_paths() -> None:
    known = leave(both(), 1).but(mode=0o640, name='renamed')
    moved = rebuild([claim(1, both())], known)
    assert moved.change == 'paths updated'
    assert moved.record == known.with_slot(1, known.slots[1].but(path='/found/1'))
    assert rebuild([claim(1, both())], moved.record).change == 'unchanged'
    swapped = rebuild([claim(1, both(), '/legs/0')], known)
    assert [slot.path for slot in swapped.record.slots[:2]] == ['', '/legs/0']


# On real pools


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made


def written(pool: MountedPool, name: str = 'vm', legs: int = 2) -> Volume:
    volume = pool.volume_at_rest(name, legs=legs, size=16 * MIB)
    pool.start()
    volume.put(0, b'all')
    pool.stop()
    return volume


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_a_lost_pool_is_rebuilt_from_folders_of_legs(pool: MountedPool) -> None:
    volumes = [written(pool, 'one'), written(pool, 'two', legs=3)]
    (pool.legs / 'other.txt').write_text('no leg')
    (pool.legs / 'link').symlink_to(volumes[0].legs[0])
    before = {v.name: json.loads((pool.directory / f'volumes/{v.name}.json').read_text()) for v in volumes}
    shutil.rmtree(pool.directory)
    shown = cli_ok('assemble', pool.directory, pool.legs, '--dry-run')
    assert not pool.directory.exists()
    assert cli_ok('assemble', pool.directory, pool.legs) == shown
    assert f'one: rebuilt, 16 MiB, events {before["one"]["events"]}' in shown
    assert f'  leg 2: in_sync  {volumes[1].legs[2]}' in shown
    for volume in volumes:
        text = (pool.directory / f'volumes/{volume.name}.json').read_text()
        assert json.loads(text) == before[volume.name]
    pool.start()
    for volume in volumes:
        assert volume.get(0, 3) == b'all'
        assert volume.read('degraded') == '0\n'
    pool.stop()
    facts = json.loads(cli_ok('assemble', pool.directory, pool.legs, '--json'))
    assert [fact['change'] for fact in facts] == ['unchanged', 'unchanged']


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_legs_that_moved_are_found_by_uuid(pool: MountedPool) -> None:
    volume = written(pool)
    deep = pool.base / 'new/deep'
    deep.mkdir(parents=True)
    volume.legs[1].rename(deep / 'moved')
    pool.start()
    assert volume.read('degraded') == '1\n'
    done = cli('assemble', pool.directory, deep)
    assert done.returncode == 1
    assert f'mounted on {pool.mountpoint}' in done.stderr
    volume.put(0, b'ALL')
    pool.stop()
    assert cli('assemble', pool.directory, pool.base / 'new').returncode == 1  # one level only
    assert 'paths updated' in cli_ok('assemble', pool.directory, pool.base / 'new', '--recursive')
    pool.start()
    wait_for(lambda: volume.read('degraded') == '0\n', 'the leg that moved is caught up')
    assert volume.read('legs/1/path') == f'{deep}/moved\n'
    pool.stop()


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_an_in_sync_leg_that_is_gone_needs_force_and_may_not_come_back_by_itself(pool: MountedPool) -> None:
    volume = written(pool)
    volume.legs[0].rename(f'{volume.legs[0]}.away')  # goes on without slot 0
    pool.start()
    volume.put(0, b'new')
    pool.stop()
    shutil.rmtree(pool.directory)
    gone, stale = volume.legs[1], Path(f'{volume.legs[0]}.away')
    before = stale.read_bytes()
    done = cli('assemble', pool.directory, stale)
    assert done.returncode == 1
    for part in ('not at hand', 'slot 1 (leg', '--force', 'events'):
        assert part in done.stderr, part
    assert not pool.directory.exists()
    assert stale.read_bytes() == before
    shown = cli_ok('assemble', pool.directory, stale, '--force')
    assert 'given up: slot 1 (leg' in shown
    assert 'is lost if it is only there' in shown
    lineage = examine(stale)[0]['lineage']
    assert len(lineage) == 2, 'a new lineage is durable at once'
    pool.start()
    assert volume.get(0, 3) == b'all'
    volume.put(0, b'ALL')
    with pytest.raises(OSError, match='Invalid argument'):
        volume.write('add', str(gone))  # it went on alone
    assert 'changed apart' in pool.events()[-1]
    volume.write('add', f'{gone} force')
    wait_for(lambda: volume.read('degraded') == '0\n', 'overwritten')
    pool.stop()


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_the_leg_that_was_gone_only_for_a_while_is_caught_up(pool: MountedPool) -> None:
    volume = written(pool)
    away = Path(f'{volume.legs[1]}.away')
    volume.legs[1].rename(away)
    shutil.rmtree(pool.directory)
    cli_ok('assemble', pool.directory, volume.legs[0], '--force')
    pool.start()
    volume.put(0, b'ALL')
    pool.stop()
    assert 'paths updated' in cli_ok('assemble', pool.directory, away)
    pool.start()
    wait_for(lambda: volume.read('degraded') == '0\n', 'caught up by itself')
    pool.stop()
    assert volume.leg_data(0)[:3] == b'ALL'


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_what_cannot_be_assembled_is_refused_and_changes_nothing(pool: MountedPool) -> None:
    volume = written(pool)
    copy = pool.base / 'copy'
    shutil.copy(volume.legs[0], copy)
    fresh = pool.base / 'fresh'
    clash = fresh / 'clash.leg'
    cli_ok('create', fresh, 'vm', '--size', '2M', '--leg', pool.base / 'clash.leg')
    (pool.base / 'clash.leg').rename(clash)
    before = sorted(p.read_bytes() for p in pool.directory.rglob('*.json'))
    for words, said in (
        ([copy, *volume.legs], 'copies of one leg'),
        ([clash], 'two volumes have this name'),
        ([pool.base / 'nosuch'], 'No such file'),
        ([pool.directory / 'mirrorfs.json'], 'is no leg'),
        (['/dev/null'], 'neither a regular file nor a block device'),
        ([pool.mountpoint], 'no leg was found'),
    ):
        done = cli('assemble', pool.directory, *words)
        assert done.returncode == 1, words
        assert said in done.stderr, done.stderr
        assert 'Traceback' not in done.stderr
    assert sorted(p.read_bytes() for p in pool.directory.rglob('*.json')) == before
    assert cli('assemble', pool.legs, *volume.legs).returncode == 1  # a folder with other things in it
    mixed = cli('assemble', pool.directory, clash, *volume.legs)
    assert mixed.returncode == 1
    assert 'vm: unchanged' in mixed.stdout


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_a_damaged_definition_is_rebuilt(pool: MountedPool) -> None:
    volume = written(pool)
    (pool.directory / 'volumes/vm.json').write_text('{')
    assert 'vm: rebuilt' in cli_ok('assemble', pool.directory, pool.legs)
    pool.start()
    assert volume.get(0, 3) == b'all'
    pool.stop()
