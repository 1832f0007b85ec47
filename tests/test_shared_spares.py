"""Spares that the volumes of a pool share, on real mounts: who gets them, and what is never touched."""

import errno
import json
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import MIB, MountedPool, Volume, cli, cli_ok, examine, run, wait_for

from mirrorfs import limits
from mirrorfs.leg.opening import read_mark, read_super
from mirrorfs.metadata import spare as marks
from mirrorfs.metadata import wibm
from mirrorfs.mirror.sparelist import Claim, SpareList, decode, encode

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
DATA = random.Random(11).randbytes(2 * MIB)
SIZE = 8 * MIB


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as mounted:
        yield mounted.start()


@pytest.fixture
def volume(pool: MountedPool) -> Volume:
    return make(pool, 'disk')


def make(pool: MountedPool, name: str, delay: str = '0') -> Volume:
    made = pool.volume(name, size=SIZE)
    made.write('spare_delay', delay)
    made.put(MIB // 2, DATA)
    return made


def give(pool: MountedPool, name: str = 'spare', size: int = 16 * MIB) -> Path:
    """Give the pool a new spare; return where it is."""
    path = pool.legs / name
    pool.write('spares', f'add {path} {size}')
    return path


def shared(pool: MountedPool) -> dict[str, str]:
    """Return the states of the shared spares, by the names of their files."""
    return {Path(spare['path']).name: spare['state'] for spare in pool.status()['spares']}


def in_sync(volume: Volume) -> set[str]:
    """Return the paths of the legs in sync."""
    return {leg['path'] for leg in volume.status()['legs'] if leg['state'] == 'in_sync'}


def whole(volume: Volume, *paths: Path) -> None:
    """Wait until a volume is whole, with just these legs in sync."""
    wait_for(lambda: in_sync(volume) == {str(path) for path in paths}, f'{volume.name} whole')
    assert volume.read('degraded') == '0\n'


def assert_equal(volume: Volume, *legs: Path) -> None:
    volume.pool.stop()
    volume.legs = list(legs)
    assert volume.assert_legs_equal()[MIB // 2 :][: len(DATA)] == DATA


def said(pool: MountedPool, word: str) -> list[str]:
    """Return the lines of an event."""
    return [line for line in pool.events() if line.split()[1] == word]


def listed(pool: MountedPool) -> SpareList:
    """Return the list of spares as it is on disk."""
    return decode((pool.directory / 'spares.json').read_text())


def error_of(pool: MountedPool, text: str) -> int:
    """Write to `spares` what must be refused and change nothing; return the errno."""
    before = pool.status()['spares']
    with pytest.raises(OSError) as error:
        pool.write('spares', text)
    assert pool.status()['spares'] == before
    return error.value.errno or 0


# Who gets them


def test_a_shared_spare_takes_the_place_of_a_leg_that_fails(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    assert shared(pool) == {'spare': 'spare'}
    volume.write('fail', '0')
    whole(volume, volume.legs[1], spare)
    assert shared(pool) == {} == dict(listed(pool).spares)
    assert said(pool, 'MoveSpare')[0].split()[2:] == ['disk', str(spare)]
    with pytest.raises(OSError):
        pool.write('spares', f'add {volume.legs[1]} force')  # a leg
    assert_equal(volume, volume.legs[1], spare)
    with open(spare, 'rb') as file, pytest.raises(Exception, match='no mark'):
        read_mark(file.fileno())


def test_a_leg_has_its_time_to_come_back_first(pool: MountedPool) -> None:
    volume = make(pool, 'disk', delay='3600')
    give(pool)
    volume.write('fail', '0')
    volume.write('re-add', '0')
    whole(volume, *volume.legs)
    assert shared(pool) == {'spare': 'spare'}


def test_of_two_volumes_one_gets_the_only_spare(pool: MountedPool) -> None:
    volumes = [make(pool, name) for name in ('one', 'two')]
    for volume in volumes:
        volume.write('fail', '1')
    spare = give(pool)
    wait_for(lambda: any(str(spare) in in_sync(volume) for volume in volumes), 'somebody has it')
    other = give(pool, 'second')
    for volume in volumes:
        wait_for(lambda volume=volume: volume.read('degraded') == '0\n', 'whole')
    taken = [in_sync(volume) & {str(spare), str(other)} for volume in volumes]
    assert all(len(some) == 1 for some in taken) and taken[0] != taken[1]
    assert shared(pool) == {}
    pool.stop()
    for volume, some in zip(volumes, taken, strict=True):
        volume.legs = [volume.legs[0], *map(Path, some)]
        volume.assert_legs_equal()


def test_one_that_is_too_small_is_not_taken(volume: Volume) -> None:
    pool = volume.pool
    give(pool, 'small', 4 * MIB)
    volume.write('fail', '0')
    middle = give(pool, 'middle', 24 * MIB)
    whole(volume, volume.legs[1], middle)
    assert shared(pool) == {'small': 'spare'}


def test_the_smallest_of_several(pool: MountedPool) -> None:
    volume = make(pool, 'disk')
    give(pool, 'large', 64 * MIB)
    middle = give(pool, 'middle', 24 * MIB)
    give(pool, 'huge', 128 * MIB)
    volume.write('fail', '0')
    whole(volume, volume.legs[1], middle)
    assert shared(pool) == {'large': 'spare', 'huge': 'spare'}


def test_a_spare_of_its_own_comes_first(volume: Volume) -> None:
    pool, own = volume.pool, volume.pool.legs / 'own'
    give(pool)
    volume.write('add', f'{own} spare')
    volume.write('fail', '0')
    whole(volume, volume.legs[1], own)
    assert shared(pool) == {'spare': 'spare'}


def test_a_leg_that_is_not_there_at_a_start_is_replaced_though_nothing_is_written(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    pool.stop()
    volume.legs[0].rename(volume.legs[0].with_suffix('.away'))
    pool.start()
    whole(volume, volume.legs[1], spare)
    assert_equal(volume, volume.legs[1], spare)


def test_an_ousted_leg_does_not_come_back_over_the_spare_that_took_its_place(volume: Volume) -> None:
    pool, away = volume.pool, volume.legs[0].with_suffix('.away')
    spare = give(pool)
    os.link(volume.legs[0], away)
    volume.legs[0].unlink()
    whole(volume, volume.legs[1], spare)
    away.rename(volume.legs[0])
    pool.stop()
    pool.start()
    whole(volume, volume.legs[1], spare)


def test_a_leg_is_replaced_by_a_shared_spare(volume: Volume) -> None:
    pool = volume.pool
    with pytest.raises(OSError) as error:
        volume.write('replace', '0 spare')
    assert error.value.errno == errno.ENOENT
    first = give(pool, 'first')
    volume.write('replace', '0 spare')
    whole(volume, first, volume.legs[1])
    volume.write('legs/1/state', 'want_replacement')
    second = give(pool, 'second')
    whole(volume, first, second)
    assert_equal(volume, first, second)


# What is never touched


def test_another_disk_at_the_path_is_not_touched_and_the_spare_is_taken_when_it_is_back(
    volume: Volume,
) -> None:
    pool = volume.pool
    spare = give(pool)
    pool.stop()
    ours = spare.rename(spare.with_suffix('.ours'))
    foreign = random.Random(3).randbytes(16 * MIB)
    spare.write_bytes(foreign)
    pool.start()
    assert shared(pool) == {'spare': 'missing'}
    assert str(spare) in said(pool, 'SparesMissing')[0]
    volume.write('fail', '0')
    other = make(pool, 'other')
    other.write('fail', '0')
    last = give(pool, 'last')  # shows that spares have been looked for
    wait_for(lambda: str(last) in in_sync(volume) | in_sync(other), 'the other spare is taken')
    assert spare.read_bytes() == foreign
    ours.replace(spare)
    for one in (volume, other):
        wait_for(lambda one=one: one.read('degraded') == '0\n', 'whole')
    assert shared(pool) == {}


def test_what_was_put_at_the_path_of_a_spare_in_use_is_not_touched(volume: Volume) -> None:
    pool = volume.pool
    spare, other = give(pool), volume.pool.legs / 'other'
    other.write_bytes(DATA)
    other.replace(spare)
    volume.write('fail', '0')
    wait_for(lambda: shared(pool) == {'spare': 'missing'}, 'noticed')
    assert spare.read_bytes() == DATA
    assert volume.read('degraded') == '1\n'
    pool.write('spares', f'remove {spare}')
    assert spare.read_bytes() == DATA


def test_a_leg_of_another_pool_with_our_mark_is_not_touched(volume: Volume) -> None:
    """Whoever used it as a leg has left our mark: it is a leg all the same."""
    pool = volume.pool
    spare = give(pool)
    pool.stop()
    with MountedPool() as theirs:
        other = theirs.start().volume('other', size=SIZE)
        theirs.stop()
        with open(other.legs[0], 'rb') as leg, open(spare, 'r+b') as file:
            leg.seek(limits.PAGE)
            file.seek(limits.PAGE)
            file.write(leg.read())
    before = spare.read_bytes()
    pool.start()
    assert shared(pool) == {'spare': 'missing'}
    assert 'leg' in pool.status()['spares'][0]['why']
    volume.write('fail', '0')
    last = give(pool, 'last')
    whole(volume, volume.legs[1], last)
    assert spare.read_bytes() == before


def test_spares_are_locked_while_the_pool_is_mounted(volume: Volume) -> None:
    spare = give(volume.pool)
    for file, text in (('add', f'{spare} force'), ('bitmap/location', f'{spare} force')):
        with pytest.raises(OSError) as error:
            volume.write(file, text)
        assert error.value.errno == errno.EBUSY
    with MountedPool() as other:
        assert error_of(other.start(), f'add {spare} force') == errno.EBUSY
    volume.pool.stop()
    volume.pool.start()
    with pytest.raises(OSError) as error:
        volume.write('add', f'{spare} force')
    assert error.value.errno == errno.EBUSY


def test_what_is_no_spare_is_refused(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    used, small = pool.legs / 'used', pool.legs / 'small'
    used.write_bytes(b'')
    os.truncate(used, 16 * MIB)
    pool_of_others = pool.legs / 'theirs'
    with MountedPool() as other:
        give(other.start(), 'theirs').rename(pool_of_others)
        other.stop()
    assert cli('examine', pool_of_others).returncode == 0
    with open(used, 'r+b') as file:
        file.seek(1080)
        file.write(b'\x53\xef')  # ext2's magic, and no more
    small.write_bytes(bytes(MIB))
    assert error_of(pool, f'add {pool.legs}/nothing') == errno.ENOENT
    assert error_of(pool, f'add {spare}') == errno.EEXIST
    assert error_of(pool, f'add {small}') == errno.ENOSPC
    assert error_of(pool, f'add {volume.legs[0]}') == errno.EBUSY
    assert error_of(pool, f'add {pool_of_others}') == errno.EEXIST
    assert error_of(pool, f'add {pool.mountpoint}/disk') == errno.EINVAL
    volume.write('fail', '0')
    whole(volume, volume.legs[1], spare)
    assert error_of(pool, f'add {volume.legs[0]} force') == errno.EBUSY  # it failed, and is a leg still
    os.link(volume.legs[0], pool.legs / 'another')
    assert error_of(pool, f'add {pool.legs}/another force') == errno.EBUSY
    volume.write('remove', '0')
    assert error_of(pool, f'add {volume.legs[0]}') == errno.EEXIST
    assert error_of(pool, f'remove {spare}') == errno.ENOENT
    pool.write('spares', f'add {pool_of_others} force')
    pool.write('spares', f'add {volume.legs[0]} force')
    assert shared(pool) == {'theirs': 'spare', 'disk.0': 'spare'}
    volume.write('fail', '1')
    wait_for(lambda: len(shared(pool)) == 1 and volume.read('degraded') == '0\n', 'whole again')
    legs = [path for path in (spare, pool_of_others, volume.legs[0]) if str(path) in in_sync(volume)]
    assert len(legs) == 2
    assert_equal(volume, *legs)


def test_a_spare_that_is_removed_is_nobodys(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    identity = pool.status()['spares'][0]['uuid']
    assert (pool.control / 'spares').read_text() == f'{spare} {identity} {16 * MIB} spare\n'
    pool.write('spares', f'remove {identity}')
    assert shared(pool) == {}
    volume.write('fail', '0')
    assert 'error' in examine(spare)[0]
    pool.write('spares', f'add {spare}')
    whole(volume, volume.legs[1], spare)


# Claims that were cut short


def claimed(pool: MountedPool, volume: uuid.UUID, leg: uuid.UUID) -> None:
    """Have the only spare listed as claimed."""
    spares = listed(pool)
    claim = Claim(volume, 'disk', leg)
    (pool.directory / 'spares.json').write_text(encode(spares.put(spares.spares[0].claimed(claim))))


def superblock(path: Path) -> wibm.LegSuper:
    with open(path, 'rb') as file:
        return read_super(file.fileno())[0]


def test_a_claim_is_undone_whose_spare_did_not_become_a_leg(volume: Volume) -> None:
    pool, leg = volume.pool, uuid.uuid4()
    spare = give(pool)
    pool.stop()
    sup = superblock(volume.legs[0])
    claimed(pool, sup.record.uuid, leg)
    stub = wibm.LegSuper(sup.record, leg, 5, sup.layout, 7)
    with open(spare, 'r+b') as file:
        file.seek(wibm.SUPER_OFFSETS[0])
        file.write(wibm.encode_super(stub))
    pool.start()
    assert shared(pool) == {'spare': 'spare'}
    assert listed(pool).spares[0].claim is None
    assert examine(spare)[0]['format'] == 'wibm-spare'
    volume.write('fail', '0')
    whole(volume, volume.legs[1], spare)
    assert_equal(volume, volume.legs[1], spare)


def test_a_claim_is_not_undone_over_somebodys_leg(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    pool.stop()
    sup = superblock(volume.legs[0])
    claimed(pool, sup.record.uuid, uuid.uuid4())
    with open(spare, 'r+b') as file:
        file.seek(wibm.SUPER_OFFSETS[1])
        file.write(wibm.encode_super(sup))
    before = spare.read_bytes()
    pool.start()
    assert shared(pool) == {'spare': 'missing'}
    assert spare.read_bytes() == before


def test_a_claim_is_ended_whose_spare_is_a_leg(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    before = listed(pool)
    with open(spare, 'rb') as file:
        mark = file.read(limits.PAGE)
    volume.write('fail', '0')
    whole(volume, volume.legs[1], spare)
    pool.stop()
    (pool.directory / 'spares.json').write_text(encode(before))
    sup = superblock(spare)
    claimed(pool, sup.record.uuid, sup.leg)
    with open(spare, 'r+b') as file:
        file.write(mark)
    pool.start()
    assert listed(pool).spares == ()
    whole(volume, volume.legs[1], spare)
    assert spare.open('rb').read(8) != marks.MAGIC
    assert_equal(volume, volume.legs[1], spare)


def test_a_claim_of_a_volume_that_cannot_be_read_is_left_alone(volume: Volume) -> None:
    pool = volume.pool
    give(pool)
    pool.stop()
    claimed(pool, superblock(volume.legs[0]).record.uuid, uuid.uuid4())
    before = (pool.directory / 'spares.json').read_text()
    definition = pool.directory / 'volumes' / 'disk.json'
    text = definition.read_text()
    definition.write_text('{')
    pool.start()
    assert shared(pool) == {'spare': 'claimed'}
    assert error_of(pool, f'remove {pool.legs}/spare') == errno.EBUSY
    pool.stop()
    assert (pool.directory / 'spares.json').read_text() == before
    definition.write_text(text)
    pool.start()
    assert shared(pool) == {'spare': 'spare'}


def test_a_damaged_list_is_left_alone(volume: Volume) -> None:
    pool = volume.pool
    spare = give(pool)
    pool.stop()
    (pool.directory / 'spares.json').write_text('{')
    assert 'damaged' in cli_ok('status', pool.directory)
    pool.start()
    assert shared(pool) == {}
    assert error_of(pool, f'add {spare} force') == errno.EIO
    assert (pool.directory / 'spares.json').read_text() == '{'


@pytest.mark.parametrize('moment', ['claimed', 'joined', 'gone'])
def test_a_daemon_that_is_killed_in_a_claim(volume: Volume, moment: str) -> None:
    pool = volume.pool
    spare = give(pool)

    def reached() -> bool:
        spares = listed(pool).spares
        if moment == 'claimed':
            return not spares or spares[0].claim is not None
        if moment == 'joined':
            return str(spare) in (pool.directory / 'volumes' / 'disk.json').read_text()
        return not spares

    volume.write('fail', '0')
    wait_for(reached, moment)
    pool.kill()
    run('umount', '-l', pool.mountpoint)
    pool.start()
    whole(volume, volume.legs[1], spare)
    assert listed(pool).spares == ()
    assert_equal(volume, volume.legs[1], spare)


# Spares that fail


def test_a_spare_that_fails_is_given_up_and_the_next_is_taken(volume: Volume) -> None:
    pool, tight = volume.pool, volume.pool.base / 'tight'
    tight.mkdir()
    assert run('mount', '-t', 'tmpfs', '-o', 'size=1M', 'tmpfs', tight).returncode == 0
    first = tight / 'first'
    pool.write('spares', f'add {first} 16M')
    second = give(pool, 'second', 24 * MIB)
    with pytest.raises(OSError, match='space'):
        (tight / 'full').write_bytes(bytes(MIB))
    volume.write('fail', '0')
    whole(volume, volume.legs[1], second)
    assert shared(pool) == {'first': 'faulty'}
    assert str(first) in said(pool, 'FailSpare')[0]
    pool.write('spares', f'remove {first}')
    assert shared(pool) == {}
    assert_equal(volume, volume.legs[1], second)


def test_a_spare_that_was_overwritten_is_none(volume: Volume) -> None:
    pool = volume.pool
    first, second = give(pool, 'first'), give(pool, 'second', 24 * MIB)
    first.write_bytes(DATA * 8)
    volume.write('fail', '0')
    whole(volume, volume.legs[1], second)
    assert shared(pool) == {'first': 'missing'}
    assert first.read_bytes() == DATA * 8


# The command line


def test_the_command_line(volume: Volume) -> None:
    pool, spare = volume.pool, volume.pool.legs / 'spare'
    cli_ok('spare', pool.mountpoint, 'add', spare, '--size', '16M')
    said_so = f'{spare}: spare, 16 MiB'
    assert said_so in cli_ok('spare', pool.directory)
    assert said_so in cli_ok('status', pool.directory)
    facts: list[dict[str, Any]] = json.loads(cli_ok('spare', pool.directory, '--json'))
    assert facts[0]['state'] == 'spare' and facts[0]['path'] == str(spare)
    assert 'mark of a shared spare' in cli_ok('examine', spare)
    assert examine(spare)[0]['spare_uuid'] == facts[0]['uuid']
    pool.stop()
    assert said_so in cli_ok('spare', pool.directory)
    assert json.loads(cli_ok('spare', pool.directory, '--json'))[0]['uuid'] == facts[0]['uuid']
    (pool.directory / 'volumes' / 'disk.json').unlink()
    done = cli('assemble', pool.directory, *volume.legs, spare)
    assert done.returncode == 0 and 'shared spare' in done.stderr
    assert cli('spare', pool.directory, 'remove', spare).returncode == 1
    pool.start()
    assert cli('spare', pool.directory, 'add').returncode == 1
    cli_ok('spare', pool.directory, 'remove', spare)
    assert cli_ok('spare', pool.directory) == ''
