"""The intent log in all its places, on real mounts: on the legs, outside them, nowhere, and moving."""

import errno
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulttools import FaultPool
from mounts import MIB, MountedPool, Volume, cli, cli_ok, examine, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(150)]
CHUNK = 64 << 10
SIZE = 16 * MIB
CHUNKS = SIZE // CHUNK


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture
def faulty() -> Iterator[FaultPool]:
    """Two legs and a log, each on a filesystem that fails on purpose."""
    with FaultPool(legs=3) as made:
        yield made.start('leg_timeout=2')


def log_of(pool: MountedPool) -> Path:
    return pool.base / 'the log'


def outside(pool: MountedPool, log: Path | None = None, **options: object) -> Volume:
    """Return a volume whose log is in a file of its own."""
    return pool.volume('v', SIZE, options=f"chunk={CHUNK} log='{log or log_of(pool)}'", **options)  # type: ignore[arg-type]


def fill(volume: Volume, first: int, last: int, byte: bytes = b'x') -> None:
    """Write whole chunks, which are then dirty."""
    with volume.open() as fd:
        os.pwrite(fd, byte * ((last + 1 - first) * CHUNK), first * CHUNK)


def clean(volume: Volume) -> None:
    """Wait until everything was cleared; from then on nothing is."""
    volume.write('bitmap/can_clear', 'true')
    volume.write('bitmap/time_base', '0.1')
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'nothing dirty')
    volume.write('bitmap/can_clear', 'false')


def events(pool: MountedPool, word: str) -> list[str]:
    return [line for line in pool.events() if line.split()[1] == word]


def refused(volume: Volume, words: str) -> str:
    """Try to move the log; return the name of the errno."""
    with pytest.raises(OSError) as caught:
        volume.write('bitmap/location', words)
    return errno.errorcode[caught.value.errno or 0]


def move(volume: Volume, place: str | Path) -> None:
    volume.write('bitmap/location', f"'{place}'")
    assert volume.read('bitmap/location') == f'{place}\n'


# What is shown


def test_a_log_outside_is_shown_by_every_file_and_verb(pool: MountedPool) -> None:
    volume, log = outside(pool), log_of(pool)
    fill(volume, 3, 4)
    assert volume.read('bitmap/location') == f'{log}\n'
    assert volume.read('bitmap/metadata') == 'external\n'
    assert volume.status()['bitmap'] == 'external'
    assert volume.status()['bitmap_location'] == str(log)
    assert re.search(
        rf'^      bitmap: 1/1 pages \[4KB\], 64KB chunk, file: {log}$',
        (pool.control / 'mdstat').read_text(),
        re.MULTILINE,
    )
    shown = json.loads(cli_ok('log', pool.directory, 'v', '--json'))
    assert (shown['log'], shown['location'], shown['chunk_size']) == ('external', str(log), CHUNK)
    assert shown['chunks']['dirty'] == 2
    assert '2 dirty' in cli_ok('log', pool.directory, 'v')
    pool.kill()
    at_rest = json.loads(cli_ok('log', pool.directory, 'v', '--json'))
    assert (at_rest['location'], at_rest['chunks']['dirty']) == (str(log), 2)
    (facts,) = examine(log)
    assert (facts['format'], facts['volume'], facts['chunks']['dirty']) == ('wibm-log', 'v', 2)
    assert facts['events'] == examine(volume.legs[0])[0]['events']
    page = cli_ok('examine', log)
    assert 'wibm log 1' in page and '2 chunks' in page


def test_a_volume_is_created_with_a_log_in_each_place(pool: MountedPool) -> None:
    for place, name in ((log_of(pool), 'external'), ('internal', 'internal'), ('none', 'none')):
        size = ('--size', '1M')
        cli_ok('create', pool.directory, f'v-{name}', *size, '--leg', pool.legs / name, '--log', place)
        assert (pool.control / 'volumes' / f'v-{name}' / 'bitmap/metadata').read_text() == f'{name}\n'
    pool.stop()
    at_rest = pool.base / 'at rest'
    words = ('--size', '1M', '--leg', pool.legs / 'rest', '--log', at_rest, '--from', pool.log_file)
    pool.log_file.write_bytes(b'image' * 1000)
    cli_ok('create', pool.directory, 'rest', *words)
    assert examine(at_rest)[0]['chunks']['dirty'] == 0
    pool.start()
    assert not events(pool, 'LogLost')
    assert (pool.mountpoint / 'rest').read_bytes().startswith(b'image' * 1000)


def test_the_command_moves_the_log(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE)
    for place in (log_of(pool), 'none', log_of(pool), 'internal'):
        cli_ok('log', pool.directory, 'v', place)
        assert volume.read('bitmap/location') == f'{place}\n'
    assert len(events(pool, 'LogMoved')) == 4
    pool.stop()
    done = cli('log', pool.directory, 'v', 'none')
    assert done.returncode == 1 and 'not mounted' in done.stderr


def test_words_of_md_for_an_internal_bitmap_are_understood(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE)
    for word in ('+8', '-8', '8'):
        move(volume, 'none')
        volume.write('bitmap/location', word)
        assert volume.read('bitmap/location') == 'internal\n'


# What is refused


def test_nothing_becomes_a_log_that_must_not(pool: MountedPool) -> None:
    volume, other = pool.volume('v', SIZE), pool.volume('other', SIZE)
    full = pool.base / 'full'
    full.write_bytes(b'precious')
    os.mkfifo(pool.base / 'fifo')
    theirs = pool.base / 'theirs'
    move(other, theirs)
    unused = pool.legs / 'unused'
    shutil.copy(volume.legs[0], unused)
    answers = {
        f'{full}': 'EEXIST',
        f'{pool.base / "fifo"}': 'EINVAL',
        f'{pool.base}': 'EINVAL',
        f'{pool.base / "nowhere" / "log"}': 'ENOENT',
        f'{volume.legs[0]}': 'EBUSY',
        f'{theirs}': 'EBUSY',
        f'{theirs} force': 'EBUSY',
        f'{unused}': 'EEXIST',
        f'{pool.mountpoint / "other"}': 'EINVAL',
        f'{pool.base / "x"} fast': 'EINVAL',
        'somewhere': 'EINVAL',
        '+0': 'EINVAL',
    }
    assert {words: refused(volume, words) for words in answers} == answers
    assert full.read_bytes() == b'precious'
    assert not (pool.base / 'x').exists()
    assert volume.read('bitmap/location') == 'internal\n'
    assert len(events(pool, 'Refused')) == len(answers)
    volume.write('bitmap/location', f'{full} force')
    assert volume.read('bitmap/metadata') == 'external\n'


def test_a_log_is_not_taken_for_an_empty_leg(pool: MountedPool) -> None:
    volume, log = outside(pool), log_of(pool)
    other = pool.volume('other', MIB)
    copy = pool.base / 'copy'
    shutil.copy(log, copy)
    os.truncate(copy, 64 * MIB)
    for path, code in ((log, errno.EBUSY), (copy, errno.EEXIST)):
        with pytest.raises(OSError) as caught:
            other.write('add', f"'{path}'")
        assert caught.value.errno == code
    assert volume.status()['bitmap'] == 'external'


# Crashes


def test_after_a_kill_only_what_is_dirty_in_the_log_outside_is_made_equal(pool: MountedPool) -> None:
    volume = outside(pool)
    fill(volume, 0, CHUNKS - 1)
    clean(volume)
    fill(volume, 7, 9, b'y')
    pool.kill()
    assert all(leg['chunks']['dirty'] == 0 for leg in examine(*volume.legs)), 'legs have but the map'
    with open(volume.legs[1], 'r+b') as leg:  # as if only one of the legs had the last write
        leg.seek(examine(volume.legs[1])[0]['data_offset'] + 8 * CHUNK)
        leg.write(b'z' * CHUNK)
    pool.start()
    status = volume.settled()
    assert status['resynced_bytes'] == 3 * CHUNK
    pool.stop()
    volume.assert_legs_equal()


@pytest.mark.parametrize('stopped', [True, False], ids=['stopped', 'killed'])
def test_without_its_log_a_volume_starts_and_all_that_was_written_is_made_equal(
    pool: MountedPool, stopped: bool
) -> None:
    volume, log = outside(pool), log_of(pool)
    fill(volume, 0, 9)
    clean(volume)
    fill(volume, 3, 3, b'y')
    if stopped:
        pool.stop()
    else:
        pool.kill()
    log.rename(pool.base / 'elsewhere')
    pool.start()
    status = volume.settled()
    assert status['resynced_bytes'] == (0 if stopped else 10 * CHUNK)
    assert 'is not there' in events(pool, 'LogLost')[0]
    assert volume.read('bitmap/location') == 'none\n'
    fill(volume, 1, 1, b'w')
    pool.stop()
    data = volume.assert_legs_equal()
    assert data[3 * CHUNK : 4 * CHUNK] == b'y' * CHUNK
    (pool.base / 'elsewhere').rename(log)  # it comes back too late: nothing was told to it
    pool.start()
    assert volume.read('bitmap/location') == 'none\n'
    assert refused(volume, f"'{log}'") == 'EEXIST'
    volume.write('bitmap/location', f"'{log}' force")


def test_a_log_that_was_away_while_nothing_was_written_is_believed_again(pool: MountedPool) -> None:
    volume, log = outside(pool), log_of(pool)
    fill(volume, 0, 9)
    pool.stop()
    for _ in range(2):
        log.rename(pool.base / 'elsewhere')
        pool.start()
        assert events(pool, 'LogLost')
        pool.stop()
        (pool.base / 'elsewhere').rename(log)
        pool.start()
        assert not events(pool, 'LogLost')
        assert volume.status()['bitmap'] == 'external'
        pool.stop()


def overwrite(log: Path, at: int, data: bytes) -> None:
    with open(log, 'r+b') as file:
        file.seek(at)
        file.write(data)


HARM: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    'old copy': (lambda log, old: shutil.copy(old, log), 'old copy'),
    'headers gone': (lambda log, old: overwrite(log, 0, bytes(8192)), 'no log header'),
    'both copies of a page gone': (lambda log, old: overwrite(log, 8192, bytes(8192 * 2)), 'damaged'),
    'cut short': (lambda log, old: os.truncate(log, 12288), 'it had'),
    'a directory': (lambda log, old: (log.unlink(), log.mkdir()), 'neither'),
}


@pytest.mark.parametrize('harm', HARM)
def test_a_log_that_is_old_or_damaged_is_not_believed(pool: MountedPool, harm: str) -> None:
    volume, log, old = outside(pool), log_of(pool), pool.base / 'old'
    fill(volume, 0, 9)
    pool.stop()
    shutil.copy(log, old)
    pool.start()
    fill(volume, 4, 4, b'y')
    pool.kill()
    do, why = HARM[harm]
    do(log, old)
    pool.start()
    assert why in events(pool, 'LogLost')[0]
    assert volume.settled()['resynced_bytes'] == 10 * CHUNK
    pool.stop()
    volume.assert_legs_equal()


def test_a_leg_that_left_before_the_log_was_lost_gets_everything(pool: MountedPool) -> None:
    volume, log = outside(pool), log_of(pool)
    fill(volume, 0, 9)
    clean(volume)
    volume.write('fail', '1')
    fill(volume, 2, 2, b'y')
    volume.write('re-add', '1')
    assert volume.settled()['recovered_bytes'] == CHUNK, 'while there is a log, only what changed is copied'
    volume.write('fail', '1')
    fill(volume, 5, 5, b'z')
    pool.stop()
    log.unlink()
    pool.start()
    volume.write('re-add', '1')
    assert volume.settled()['recovered_bytes'] == 10 * CHUNK
    pool.stop()
    volume.assert_legs_equal()


# A log that fails


def log_fault(pool: FaultPool, do: str) -> None:
    pool.faults[2].rule('write', do, every=True)


@pytest.mark.parametrize('do', ['EIO', 'ENOSPC', 'hang'])
def test_a_log_that_fails_is_given_up_and_the_volume_goes_on(faulty: FaultPool, do: str) -> None:
    volume = outside(faulty, faulty.faults[2].path)
    fill(volume, 0, 3)
    log_fault(faulty, do)
    fill(volume, 8, 11, b'y')
    assert volume.read('bitmap/location') == 'none\n'
    assert len(events(faulty, 'LogLost')) == 1
    assert all(leg['bitmap'] == 'none' for leg in examine(*volume.legs))
    assert not json.loads((faulty.directory / 'volumes/v.json').read_text())['logged']
    faulty.clear()
    faulty.faults[2].release()  # what was given up lands now
    faulty.kill()
    faulty.start('leg_timeout=2')
    assert volume.settled()['resynced_bytes'] == 8 * CHUNK
    assert not events(faulty, 'LogLost'), 'once is enough'
    fill(volume, 1, 1, b'z')
    move(volume, 'internal')
    clean(volume)
    faulty.stop()
    data = volume.assert_legs_equal()
    assert data[8 * CHUNK : 12 * CHUNK] == b'y' * 4 * CHUNK


def _remove(log: Path) -> None:
    log.unlink()


def _truncate(log: Path) -> None:
    os.truncate(log, 4096)


def _replace(log: Path) -> None:
    shutil.copy(log, f'{log}.copy')
    Path(f'{log}.copy').replace(log)


@pytest.mark.parametrize('harm', [_remove, _truncate, _replace], ids=['removed', 'truncated', 'replaced'])
def test_a_log_that_is_taken_away_beneath_us_is_given_up_within_seconds_without_a_write(
    pool: MountedPool, harm: Callable[[Path], None]
) -> None:
    volume = outside(pool)
    fill(volume, 0, 3)
    clean(volume)
    harm(log_of(pool))
    wait_for(lambda: volume.read('bitmap/location') == 'none\n', 'seen', 8)
    (lost,) = events(pool, 'LogLost')
    assert str(log_of(pool)) in lost
    assert all(leg['bitmap'] == 'none' for leg in examine(*volume.legs))
    assert not json.loads((pool.directory / 'volumes/v.json').read_text())['logged']
    fill(volume, 8, 8, b'y')
    pool.kill()
    pool.start()
    assert volume.settled()['resynced_bytes'] == 5 * CHUNK, 'nobody knows any more what was clean'
    assert not events(pool, 'LogLost'), 'once is enough'
    move(volume, 'internal')
    clean(volume)
    pool.stop()
    assert volume.assert_legs_equal()[8 * CHUNK : 9 * CHUNK] == b'y' * CHUNK


def test_a_log_that_somebody_renames_is_followed(pool: MountedPool) -> None:
    volume = outside(pool)
    fill(volume, 0, 7)
    clean(volume)
    renamed = pool.base / 'another name'
    log_of(pool).rename(renamed)
    wait_for(lambda: volume.read('bitmap/location') == f'{renamed}\n', 'followed', 8)
    assert not events(pool, 'LogLost') and len(events(pool, 'LogMoved')) == 1
    fill(volume, 2, 3, b'y')
    pool.kill()
    pool.start()
    assert volume.settled()['resynced_bytes'] == 2 * CHUNK, 'it was found there'
    pool.stop()
    volume.assert_legs_equal()


def test_a_log_that_is_taken_away_while_writers_are_busy_costs_them_nothing(pool: MountedPool) -> None:
    volume = outside(pool)
    written = 0

    def busy() -> bool:
        nonlocal written
        fill(volume, written % CHUNKS, written % CHUNKS, bytes([written % 251 + 1]))
        written += 1
        return volume.read('bitmap/location') == 'none\n'

    busy()
    log_of(pool).unlink()
    wait_for(busy, 'seen', 8)
    for _ in range(5):
        busy()
    pool.kill()
    pool.start()
    volume.settled()
    newest = {number % CHUNKS: number for number in range(written)}
    for chunk, number in newest.items():
        assert volume.get(chunk * CHUNK, CHUNK) == bytes([number % 251 + 1]) * CHUNK
    pool.stop()
    volume.assert_legs_equal()


def test_a_log_that_fails_while_it_is_moved_to_stays_where_it_was(faulty: FaultPool) -> None:
    volume, log = faulty.volume('v', SIZE), faulty.faults[2].path
    fill(volume, 0, 3)
    for nth in range(1, 5):  # header, header, pages, header
        faulty.faults[2].rule('write', 'EIO', nth=nth)
        assert refused(volume, f'{log} force') == 'EIO'
        faulty.clear()
        assert volume.read('bitmap/location') == 'internal\n'
        assert not events(faulty, 'LogLost')
    log_fault(faulty, 'hang')
    assert refused(volume, f'{log} force') == 'ETIMEDOUT'
    faulty.faults[2].release()
    fill(volume, 1, 1)
    assert volume.read('bitmap/location') == 'internal\n'


@pytest.mark.loop
def test_a_small_device_serves_as_a_log_within_its_room(pool: MountedPool) -> None:
    backing = pool.base / 'device'
    backing.write_bytes(bytes(16 << 10))  # a page in two copies
    device = run('losetup', '--find', '--show', backing).stdout.strip()
    volume = outside(pool, Path(device))
    fill(volume, 0, 3)
    pool.kill()
    pool.start()
    assert volume.settled()['resynced_bytes'] == 4 * CHUNK
    assert not events(pool, 'LogLost')
    assert examine(device)[0]['chunks']['max'] == 4032
    with pytest.raises(OSError) as caught:
        volume.write('size', str(4033 * CHUNK))
    assert caught.value.errno == errno.EFBIG
    volume.write('size', str(4032 * CHUNK))
    pool.stop()


@pytest.mark.parametrize('seed', range(3))
def test_the_power_goes_while_the_log_is_outside_or_moves(faulty: FaultPool, seed: int) -> None:
    """Each disk, the log's too, loses what it likes of what was not synced."""
    rng = random.Random(seed)
    log = faulty.faults[2].path
    volume = outside(faulty, log)
    kept = bytearray(SIZE)
    for round_ in range(4):
        doubtful: set[int] = set()
        volume.write('bitmap/time_base', '0.05')
        with volume.open() as fd:
            for step in range(60):
                at = rng.randrange(SIZE // 4096) * 4096
                data = rng.randbytes(4096)
                os.pwrite(fd, data, at)
                kept[at : at + 4096] = data
                if step % 20 == 7:
                    place = rng.choice([f"'{log}'", 'internal', 'none'])
                    volume.write('bitmap/location', f'{place} force')
            os.fsync(fd)
            for _ in range(20):  # not synced: a leg may lose it, but then it is made equal
                at = rng.randrange(SIZE // 4096) * 4096
                doubtful.add(at)
                os.pwrite(fd, rng.randbytes(4096), at)
        place = volume.read('bitmap/location')
        faulty.kill()
        faulty.power_cut(f'{seed}/{round_}')
        faulty.start('leg_timeout=2')
        assert not events(faulty, 'LogLost')
        assert volume.read('bitmap/location') == place
        volume.settled()
        seen = volume.image.read_bytes()
        for at in doubtful:
            kept[at : at + 4096] = seen[at : at + 4096]
        assert seen == bytes(kept)
    faulty.stop()
    assert volume.assert_legs_equal() == bytes(kept)


# Moving


def test_moving_while_writers_are_busy_loses_no_mark(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE, options=f'chunk={CHUNK}')
    fill(volume, 0, CHUNKS - 1)
    rng = random.Random(5)
    places: list[str | Path] = ['none', 'internal', pool.base / 'one', pool.base / 'two']
    rng.shuffle(places)
    for round_ in range(3):
        stop = threading.Event()
        errors: list[OSError] = []

        def write(seed: int, stop: threading.Event = stop, errors: list[OSError] = errors) -> None:
            mine = random.Random(seed)
            try:
                with volume.open() as fd:
                    while not stop.is_set():
                        os.pwrite(fd, mine.randbytes(4096), mine.randrange(SIZE // 4096) * 4096)
            except OSError as error:
                if not stop.is_set():
                    errors.append(error)

        writers = [threading.Thread(target=write, args=(round_ * 2 + n,)) for n in range(2)]
        for writer in writers:
            writer.start()
        volume.write('bitmap/time_base', '0.05')
        for place in (*places, *reversed(places)):
            volume.write('bitmap/location', f"'{place}' force")
        last = places[round_ % len(places)]
        volume.write('bitmap/location', f"'{last}' force")
        stop.set()
        pool.kill()
        for writer in writers:
            writer.join()
        assert not errors
        pool.start()
        assert not events(pool, 'LogLost')
        assert volume.read('bitmap/location') == f'{last}\n'
        volume.settled()
    pool.stop()
    volume.assert_legs_equal()


def test_the_states_go_with_the_log(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE, options=f'chunk={CHUNK}')
    fill(volume, 0, 9)
    clean(volume)
    fill(volume, 3, 4)
    for place in (pool.base / 'one', pool.base / 'two', 'internal'):
        move(volume, place)
        assert volume.status()['chunks']['dirty'] == 2
    move(volume, 'none')
    move(volume, pool.base / 'one')
    assert volume.status()['chunks']['dirty'] == 10, 'what nobody tracked may be dirty'
    assert volume.status()['chunks']['unwritten'] == CHUNKS - 10
    clean(volume)
    assert 'no log header' not in cli('examine', pool.base / 'one').stdout
    assert cli('examine', pool.base / 'two').returncode == 1, 'the old log is void'


def test_a_growing_volume_takes_its_log_along(pool: MountedPool) -> None:
    volume = outside(pool)
    fill(volume, 0, 3)
    bigger = 16 * SIZE  # 4096 chunks: a second page
    volume.write('size', str(bigger))
    with volume.open() as fd:
        os.pwrite(fd, b'end', bigger - 4096)
    pool.kill()
    assert examine(log_of(pool))[0]['chunks']['total'] == bigger // CHUNK
    pool.start()
    assert not events(pool, 'LogLost')
    assert volume.settled()['resynced_bytes'] == 4 * CHUNK + 4096, 'holes are not copied'
    with pytest.raises(OSError) as caught:
        volume.write('size', str(64 * bigger))
    assert caught.value.errno == errno.EFBIG
    pool.stop()


def test_the_log_moves_during_a_recovery(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE, options=f'chunk={CHUNK}')
    fill(volume, 0, CHUNKS - 1)
    volume.write('add', str(pool.legs / 'third'))
    for place in (pool.base / 'one', 'none', 'internal'):
        move(volume, place)
    status = volume.settled()
    assert [leg['state'] for leg in status['legs']] == ['in_sync'] * 3
    volume.legs.append(pool.legs / 'third')
    pool.stop()
    volume.assert_legs_equal()


# Ported: mdadm's 05r1-internalbitmap, 05r1-add-internalbitmap, 05r1-remove-internalbitmap


@pytest.mark.parametrize('place', ['internal', 'external', 'added', 'removed and added'])
def test_six_seconds_after_the_last_write_nothing_is_dirty(pool: MountedPool, place: str) -> None:
    options = f'chunk={CHUNK} log=none' if place == 'added' else f'chunk={CHUNK}'
    volume = outside(pool) if place == 'external' else pool.volume('v', SIZE, options=options)
    if 'added' in place:
        fill(volume, 0, CHUNKS // 2)
        move(volume, 'none')
        fill(volume, 0, CHUNKS - 1)
        move(volume, 'internal')
    volume.write('bitmap/time_base', '1')
    fill(volume, 0, CHUNKS - 1)
    assert volume.status()['chunks']['dirty'] == CHUNKS
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'nothing dirty', 6)
    volume.write('fail', '1')
    fill(volume, 0, CHUNKS - 1, b'y')
    assert volume.status()['chunks']['dirty'] == CHUNKS
    shown = log_of(pool) if place == 'external' else volume.legs[0]
    assert examine(shown)[0]['chunks']['modified'] == CHUNKS, 'what the failed leg lacks is durably known'
    volume.write('remove', '1')
    volume.write('add', str(volume.legs[1]))
    status = volume.settled()
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'nothing dirty', 6)
    assert (status['degraded'], volume.status()['chunks']['modified']) == (0, 0)
    pool.stop()
    assert examine(shown)[0]['chunks']['dirty'] == 0
    volume.assert_legs_equal()


def test_a_log_that_was_added_while_in_use_serves_as_one_from_the_beginning(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE, options=f'chunk={CHUNK} log=none')
    volume.write('bitmap/time_base', '1')
    fill(volume, 0, CHUNKS - 1)
    assert volume.status()['chunks']['dirty'] == 0
    move(volume, 'internal')
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'nothing dirty', 6)
    volume.write('bitmap/can_clear', 'false')
    fill(volume, 1, 2)
    pool.kill()
    pool.start()
    assert volume.settled()['resynced_bytes'] == 2 * CHUNK
    pool.stop()


def test_a_log_that_was_removed_while_in_use_protects_no_more(pool: MountedPool) -> None:
    volume = pool.volume('v', SIZE, options=f'chunk={CHUNK}')
    fill(volume, 0, 9)
    clean(volume)
    move(volume, 'none')
    fill(volume, 1, 2)
    assert volume.status()['chunks']['dirty'] == 0
    pool.kill()
    pool.start()
    assert volume.settled()['resynced_bytes'] == 10 * CHUNK
    pool.stop()
    volume.assert_legs_equal()
