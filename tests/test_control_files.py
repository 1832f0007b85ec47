"""The control files: what they say, what they accept, and how they refuse."""

import errno
import os
import re
import select
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import (
    EVENT_LINE,
    MDSTAT_LINE,
    MDSTAT_PROGRESS,
    MIB,
    MountedPool,
    Volume,
    cli,
    in_child,
    run,
    wait_for,
    write_control,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]
NOBODY = 65534


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool('allow_other') as made:
        yield made.start()


@pytest.fixture
def volume(pool: MountedPool) -> Iterator[Volume]:
    made = pool.volume(size=16 * MIB)
    yield made
    made.destroy()


@pytest.fixture
def own() -> Iterator[MountedPool]:
    """A pool of the test's own."""
    with MountedPool() as made:
        yield made.start()


def error_of(operation: Callable[[], object]) -> int:
    """Return the errno that an operation fails with; 0 if it does not."""
    try:
        operation()
    except OSError as error:
        return error.errno or -1
    return 0


# What is there

POOL_FILES = ['mdstat', 'status.json', 'events', 'create', 'destroy', 'spares']  # metrics: test_metrics.py
VOLUME_FILES = [
    *('add', 'remove', 'fail', 're-add', 'array_state', 'degraded', 'raid_disks', 'size', 'uuid', 'events'),
    *('replace', 'spare_delay', 're_add_policy', 'quorum', 'quorum_policy', 'resolve', 'split', 'merge'),
    'detect_zeroes',
    *('sync_action', 'sync_completed', 'sync_speed', 'max_read_errors'),
    *'sync_speed_min sync_speed_max sync_mode sync_min sync_max last_sync_action'.split(),
    *('mismatch_cnt', 'mismatches', 'map.json'),
    *(f'bitmap/{name}' for name in 'metadata location chunksize time_base backlog can_clear states'.split()),
    *(f'legs/0/{name}' for name in 'state path uuid errors recovery_start'.split()),
    *(f'legs/0/{name}' for name in 'bad_blocks unacknowledged_bad_blocks'.split()),
]
WRITE_ONLY = {'create', 'destroy', 'add', 'remove', 'fail', 're-add', 'replace', 'split', 'merge'}


def check_file(path: Path) -> None:
    """A control file is a regular file; reading it works or is refused by its mode, and ends."""
    info = path.stat()
    assert stat.S_ISREG(info.st_mode)
    if path.name in WRITE_ONLY:
        assert stat.S_IMODE(info.st_mode) == 0o200
        return
    assert stat.S_IMODE(info.st_mode) in (0o444, 0o644)
    text = path.read_text()
    assert text == '' or text.endswith('\n')
    with open(path, 'rb', buffering=0) as file:  # as `read -n1` of a shell does it
        assert b''.join(iter(lambda: file.read(1), b'')).decode() == text


@pytest.mark.parametrize('name', POOL_FILES)
def test_every_pool_file_of_the_contract_is_there(pool: MountedPool, name: str) -> None:
    check_file(pool.control / name)


@pytest.fixture(scope='module')
def still(pool: MountedPool) -> Iterator[Volume]:
    """A volume to look at only."""
    made = pool.volume('still', 16 * MIB)
    yield made
    made.destroy()


@pytest.mark.parametrize('name', VOLUME_FILES)
def test_every_volume_file_of_the_contract_is_there(still: Volume, name: str) -> None:
    check_file(still.control / name)


def test_values_are_printed_in_the_form_of_md(volume: Volume) -> None:
    values = {
        'array_state': 'clean',
        'degraded': '0',
        'raid_disks': '2',
        'size': str(16 * MIB),
        'events': '1',
        'sync_action': 'idle',
        'sync_completed': 'none',
        'sync_speed': 'none',
        'sync_speed_min': '1000 (system)',
        'sync_speed_max': '200000 (system)',
        'sync_mode': 'yield',
        'sync_min': '0',
        'sync_max': 'max',
        'last_sync_action': 'idle',
        'mismatch_cnt': '0',
        'quorum': '1',
        'quorum_policy': 'error',
        'detect_zeroes': 'off',
        'resolve': 'none',
        'bitmap/metadata': 'internal',
        'bitmap/location': 'internal',
        'bitmap/chunksize': str(MIB),
        'bitmap/time_base': '5',
        'bitmap/backlog': '0',
        'bitmap/can_clear': 'true',
        'legs/0/state': 'in_sync',
        'legs/1/path': str(volume.legs[1]),
        'legs/1/errors': '0',
        'legs/1/recovery_start': 'none',
    }
    assert {name: volume.read(name) for name in values} == {n: f'{v}\n' for n, v in values.items()}
    assert str(uuid.UUID(volume.read('uuid').strip())) == volume.status()['uuid']
    assert str(uuid.UUID(volume.read('legs/0/uuid').strip())) == volume.status()['legs'][0]['uuid']
    volume.image.write_bytes(b'x')
    assert volume.read('array_state') == 'active\n'
    states = dict(line.split() for line in volume.read('bitmap/states').splitlines())
    assert set(states) == {'clean', 'dirty', 'modified', 'needs_resync', 'unwritten', 'unzeroed'}
    assert int(states['dirty']) >= 1 and int(states['unwritten']) == 15
    volume.write('fail', '1')
    assert (volume.read('degraded'), volume.read('legs/1/state')) == ('1\n', 'faulty\n')


def test_status_json_says_what_programs_need(pool: MountedPool, volume: Volume) -> None:
    status = pool.status()
    assert status['pid'] == pool.pid
    assert re.fullmatch(r'\d+\.\d+\.\d+.*', status['version'])
    assert status['pool'] == str(pool.directory) and status['mountpoint'] == str(pool.mountpoint)
    facts = volume.status()
    assert facts['size'] == 16 * MIB and facts['chunks']['total'] == 16
    assert [leg['path'] for leg in facts['legs']] == [str(leg) for leg in volume.legs]


def mdstat_of(pool: MountedPool, name: str) -> list[str]:
    """Return a volume's paragraph of mdstat."""
    text = (pool.control / 'mdstat').read_text()
    assert text.startswith('Personalities : [raid1] \n')
    assert text.endswith('unused devices: <none>\n')
    paragraphs = [part.splitlines() for part in text.split('\n', 1)[1].split('\n\n')]
    return next(part for part in paragraphs if part[0].startswith(f'{name} : '))


def test_mdstat_is_what_scripts_for_md_match(pool: MountedPool, volume: Volume) -> None:
    first, second, bitmap = mdstat_of(pool, volume.name)
    assert 'active raid1 ' in first
    found = MDSTAT_LINE.match(first)
    assert found and found[1] == volume.name
    assert re.findall(r'\S+\[(\d+)\]', found[4]) == ['1', '0']
    assert re.search(r'^      16384 blocks .*\[2/2\] \[UU\]$', second)
    assert re.fullmatch(r'      bitmap: \d+/\d+ pages \[\d+KB\], 1024KB chunk', bitmap)
    volume.write('fail', '0')
    first, second, _ = mdstat_of(pool, volume.name)
    assert re.search(r'\.0\[0\]\(F\)$', first), first
    assert re.search(r'blocks.*\[2/1\] \[_U\]$', second), second
    volume.write('re-add', '0')
    volume.settled()
    assert re.search(r'blocks.*\[2/2\] \[UU\]$', mdstat_of(pool, volume.name)[1])


def test_recovery_shows_a_progress_line_and_its_figures(pool: MountedPool) -> None:
    volume = pool.volume('slow', 192 * MIB, options='chunk=64K')
    try:
        with volume.open() as fd:
            for at in range(0, volume.size, MIB):
                os.pwrite(fd, os.urandom(4096) * 256, at)
        volume.write('fail', '1')
        volume.write('remove', '1')
        leg = pool.legs / 'slow.new'
        seen: list[str] = []
        actions: set[str] = set()
        volume.write('add', str(leg))
        volume.legs.append(leg)

        def over() -> bool:
            lines = [line for line in mdstat_of(pool, 'slow') if '=' in line and '>' in line]
            seen.extend(lines)
            actions.add(volume.read('sync_action').strip())
            done = volume.read('sync_completed').strip()
            assert done == 'none' or re.fullmatch(r'\d+ / 393216', done)
            return any(s['state'] == 'in_sync' for s in volume.status()['legs'] if s['path'] == str(leg))

        wait_for(over, 'the new leg in sync')
        assert seen, 'no progress line was ever seen'
        positions = []
        for line in seen:
            found = MDSTAT_PROGRESS.match(line)
            assert found and found[3] == 'recovery' and int(found[7]) == 192 * 1024, line
            assert len(found[1]) + len(found[2]) == 20
            positions.append(int(found[6]))
        assert positions == sorted(positions)
        assert 'recover' in actions and actions <= {'recover', 'idle'}
    finally:
        volume.destroy()


# What is refused


def without_counts(status: dict[str, Any]) -> dict[str, Any]:
    """Drop what changes by itself."""
    for volume in status['volumes']:
        for key in ('io', 'log', 'chunks'):
            volume.pop(key, None)
        for leg in volume.get('legs', []):
            for key in ('occupied', 'free'):
                leg.pop(key, None)
    return status


REFUSALS: list[tuple[str, str | bytes, tuple[int, ...]]] = [
    # a volume's files
    ('volumes/V/fail', '\n', (errno.EINVAL,)),
    ('volumes/V/fail', '   ', (errno.EINVAL,)),
    ('volumes/V/fail', '9', (errno.ENOENT,)),
    ('volumes/V/fail', '/nowhere/leg', (errno.ENOENT,)),
    ('volumes/V/fail', '0 1', (errno.EINVAL,)),
    ('volumes/V/fail', '0\n1\n', (errno.EINVAL,)),
    ('volumes/V/fail', b'\xff\xfe\x00\x01', (errno.EINVAL,)),
    ('volumes/V/fail', b'0\x00', (errno.EINVAL,)),
    ('volumes/V/fail', "'0", (errno.EINVAL,)),
    ('volumes/V/fail', b'x' * (64 << 10), (errno.ENOENT,)),
    ('volumes/V/fail', b'x' * ((64 << 10) + 1), (errno.E2BIG, errno.EFBIG)),
    ('volumes/V/fail', b'x' * MIB, (errno.E2BIG, errno.EFBIG)),
    ('volumes/V/remove', '0', (errno.EBUSY,)),
    ('volumes/V/remove', 'nonsense', (errno.ENOENT,)),
    ('volumes/V/re-add', '1', (errno.EBUSY,)),
    ('volumes/V/re-add', 'missing', (errno.ENOENT,)),
    ('volumes/V/re-add', '7', (errno.ENOENT,)),
    ('volumes/V/add', 'relative/path', (errno.EINVAL,)),
    ('volumes/V/add', '/nonexistent/folder/leg', (errno.ENOENT,)),
    ('volumes/V/add', '/dev/null', (errno.EINVAL,)),
    ('volumes/V/add', '/', (errno.EINVAL, errno.EISDIR)),
    ('volumes/V/add', '/some/leg nonsense', (errno.EINVAL,)),
    ('volumes/V/size', '-1', (errno.EINVAL,)),
    ('volumes/V/size', '1M', (errno.EINVAL,)),
    ('volumes/V/size', '16777217', (errno.EINVAL,)),
    ('volumes/V/size', '99999T', (errno.EFBIG, errno.EINVAL)),
    ('volumes/V/sync_action', 'dance', (errno.EINVAL,)),
    ('volumes/V/sync_action', 'check 0', (errno.EINVAL,)),
    ('volumes/V/sync_action', 'repair', (errno.EINVAL,)),
    ('volumes/V/sync_action', 'repair 7', (errno.ENOENT,)),
    ('volumes/V/sync_min', '-8', (errno.EINVAL,)),
    ('volumes/V/sync_min', 'max', (errno.EINVAL,)),
    ('volumes/V/sync_min', '9' * 30, (errno.EINVAL,)),
    ('volumes/V/sync_max', 'most', (errno.EINVAL,)),
    ('volumes/V/sync_speed_min', '0', (errno.EINVAL,)),
    ('volumes/V/sync_speed_max', '1.5', (errno.EINVAL,)),
    ('volumes/V/sync_mode', 'gentle', (errno.EINVAL,)),
    ('volumes/V/detect_zeroes', 'maybe', (errno.EINVAL,)),
    ('volumes/V/bitmap/time_base', 'soon', (errno.EINVAL,)),
    ('volumes/V/bitmap/time_base', '0', (errno.EINVAL,)),
    ('volumes/V/bitmap/time_base', 'nan', (errno.EINVAL,)),
    ('volumes/V/bitmap/time_base', '1e9', (errno.EINVAL,)),
    ('volumes/V/bitmap/can_clear', 'maybe', (errno.EINVAL,)),
    # the pool's files
    ('create', 'V 1M L', (errno.EEXIST,)),
    ('create', 'new', (errno.EINVAL,)),
    ('create', 'new 1M', (errno.EINVAL,)),
    ('create', 'new huge L', (errno.EINVAL,)),
    ('create', 'new 1000 L', (errno.EINVAL,)),
    ('create', 'new 1M missing', (errno.EINVAL,)),
    ('create', 'new 1M relative', (errno.EINVAL,)),
    ('create', 'new 1M L L', (errno.EINVAL,)),
    ('create', 'new 1M L colour=red', (errno.EINVAL,)),
    ('create', 'new 1M L chunk=3M', (errno.EINVAL,)),
    ('create', 'new 1M L chunk=1K', (errno.EINVAL,)),
    ('create', 'new 1M L log=magic', (errno.EINVAL,)),
    ('create', 'new 1M L detect_zeroes=maybe', (errno.EINVAL,)),
    ('create', '.hidden 1M L', (errno.EINVAL,)),
    ('create', '.mirrorfs 1M L', (errno.EINVAL,)),
    ('create', 'a/b 1M L', (errno.EINVAL,)),
    ('create', '-x 1M L', (errno.EINVAL,)),
    ('create', 'n' * 129 + ' 1M L', (errno.EINVAL,)),
    ('create', 'new 1M ' + ' '.join(f'L{n}' for n in range(9)), (errno.EINVAL,)),
    ('create', 'new 1M /nonexistent/folder/leg', (errno.ENOENT,)),
    ('create', 'new 1M L /nonexistent/folder/leg', (errno.ENOENT,)),
    ('create', 'new 1M USED', (errno.EBUSY,)),
    ('create', 'new 8191P L', (errno.EINVAL, errno.EFBIG, errno.ENOSPC)),
    ('create', 'new 64T L chunk=64K', (errno.EINVAL,)),
    ('destroy', 'nothing', (errno.ENOENT,)),
    ('destroy', 'V V', (errno.EINVAL,)),
    ('spares', 'add', (errno.EINVAL,)),
    ('spares', 'give L', (errno.EINVAL,)),
    ('spares', 'add relative', (errno.EINVAL,)),
    ('spares', 'add L', (errno.ENOENT,)),
    ('spares', 'add L 1M 2M', (errno.EINVAL,)),
    ('spares', 'add L 1K', (errno.ENOSPC,)),
    ('spares', 'add L huge', (errno.EINVAL,)),
    ('spares', 'add /dev/null', (errno.EINVAL,)),
    ('spares', 'add USED force', (errno.EBUSY,)),
    ('spares', 'remove', (errno.EINVAL,)),
    ('spares', 'remove L', (errno.ENOENT,)),
]


@pytest.mark.parametrize(
    ('file', 'text', 'expected'),
    REFUSALS,
    ids=[f'{n}-{file.split("/")[-1]}' for n, (file, *_) in enumerate(REFUSALS)],
)
def test_a_refused_command_fails_in_write_changes_nothing_and_leaves_one_line(
    pool: MountedPool, still: Volume, file: str, text: str | bytes, expected: tuple[int, ...]
) -> None:
    if isinstance(text, str):
        text = re.sub(r'\bV\b', 'still', text)
        text = re.sub(r'\bL(\d?)\b', rf'{pool.legs}/fresh\1', text).replace('USED', str(still.legs[0]))
    path = pool.control / file.replace('V', 'still')
    before, events, legs = without_counts(pool.status()), pool.events(), sorted(pool.legs.iterdir())
    code = error_of(lambda: write_control(path, text))
    after, new = without_counts(pool.status()), pool.events()
    assert code in expected, f'{errno.errorcode.get(code, code)}: {new[len(events) :]}'
    assert after == before
    assert sorted(pool.legs.iterdir()) == legs, 'a leg was left behind'
    added = new[new.index(events[-1]) + 1 :]
    assert len(added) == 1, added
    assert EVENT_LINE.match(added[0]) and ' Refused ' in added[0]
    assert len(added[0]) < 1500


def test_failing_the_last_leg_in_sync_is_busy_and_it_goes_on(volume: Volume) -> None:
    volume.write('fail', '0')
    for word in ('1', str(volume.legs[1]), volume.read('legs/1/uuid').strip()):
        assert error_of(lambda word=word: volume.write('fail', word)) == errno.EBUSY
        assert error_of(lambda word=word: volume.write('remove', word)) == errno.EBUSY
    volume.image.write_bytes(b'alive')
    assert volume.image.read_bytes()[:5] == b'alive'
    assert 'last in-sync leg' in volume.pool.events()[-6]


@pytest.mark.parametrize('how', ['number', 'path', 'uuid', 'beginning', 'no newline', 'blanks'])
def test_a_leg_is_named_by_slot_path_or_uuid(volume: Volume, how: str) -> None:
    identity = volume.read('legs/1/uuid').strip()
    word = {
        'number': '1\n',
        'path': f'{volume.legs[1]}\n',
        'uuid': f'{identity}\n',
        'beginning': f'{identity[:8]}\n',
        'no newline': '1',
        'blanks': '  1  \n\n',
    }[how]
    volume.write('fail', word)
    assert [leg['state'] for leg in volume.status()['legs']] == ['in_sync', 'faulty']


def test_shells_see_refusals_and_append_works_like_write(volume: Volume) -> None:
    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return run('bash', '-c', command, cwd=volume.control, timeout=20)

    done = shell('echo nonsense > fail')
    assert done.returncode != 0 and 'No such file or directory' in done.stderr
    done = shell('echo dance > sync_action')
    assert done.returncode != 0 and 'Invalid argument' in done.stderr
    assert shell('echo frozen >> sync_action && cat sync_action').stdout == 'frozen\n'
    assert shell('echo idle >> sync_action && cat sync_action').stdout == 'idle\n'
    assert shell('echo 1 >> fail').returncode == 0
    assert shell('cat legs/1/state').stdout == 'faulty\n'
    assert shell('echo x > degraded').returncode != 0
    assert shell('echo 1 | tee re-add').returncode == 0
    volume.settled()


# What is accepted


def test_volumes_come_and_go_by_control_files(own: MountedPool) -> None:
    legs = own.leg_paths('disk', 2)
    own.write('create', f'disk 8M {legs[0]} {legs[1]} chunk=128K\n')
    assert (own.mountpoint / 'disk').stat().st_size == 8 * MIB
    assert (own.control / 'volumes/disk/bitmap/chunksize').read_text() == f'{128 << 10}\n'
    (own.mountpoint / 'disk').write_bytes(b'kept')
    own.write('create', f'bare 8M {own.legs}/bare missing log=none')
    assert (own.control / 'volumes/bare/bitmap/metadata').read_text() == 'none\n'
    assert (own.control / 'volumes/bare/degraded').read_text() == '1\n'
    with open(own.mountpoint / 'disk'):
        assert error_of(lambda: own.write('destroy', 'disk')) == errno.EBUSY
    first = (own.mountpoint / 'disk').stat().st_ino
    wait_for(lambda: error_of(lambda: own.write('destroy', 'disk')) == 0, 'destroyed after close')
    assert not (own.mountpoint / 'disk').exists()
    assert not (own.control / 'volumes/disk').exists()
    assert all(leg.exists() for leg in legs), 'legs keep their content'
    assert error_of(lambda: own.write('create', f'disk 8M {legs[0]}')) == errno.EEXIST
    own.write('create', f'disk 8M {legs[0]} {legs[1]} force')
    assert (own.mountpoint / 'disk').stat().st_ino != first, 'a new file needs a new inode number'
    assert (own.mountpoint / 'disk').read_bytes() == bytes(8 * MIB)
    names = [event.split()[1:3] for event in own.events()]
    assert ['NewArray', 'disk'] in names and ['DeviceDisappeared', 'disk'] in names
    own.stop()
    own.start()
    assert {v['name'] for v in own.status()['volumes']} == {'disk', 'bare'}


def test_frozen_holds_recovery_back_and_idle_and_recover_let_it_go(volume: Volume) -> None:
    for release in ('idle', 'recover'):
        volume.write('sync_action', 'frozen')
        assert volume.read('sync_action') == 'frozen\n'
        volume.write('fail', '1')
        volume.image.write_bytes(os.urandom(MIB))
        volume.write('re-add', '1')
        assert volume.status()['legs'][1]['state'] == 'spare'
        assert volume.read('sync_completed') == 'none\n'
        assert volume.read('degraded') == '1\n'
        volume.write('sync_action', release)
        status = volume.settled()
        assert status['degraded'] == 0
        assert volume.read('sync_action') == 'idle\n'
    volume.assert_legs_equal()


def test_time_base_lasts_over_a_remount_and_decides_when_chunks_are_cleared(own: MountedPool) -> None:
    volume = own.volume('disk', 8 * MIB)
    volume.write('bitmap/time_base', '0.125')
    assert volume.read('bitmap/time_base') == '0.125\n'
    own.stop()
    own.start()
    assert volume.read('bitmap/time_base') == '0.125\n'
    volume.write('bitmap/can_clear', 'false')
    volume.image.write_bytes(b'x')
    cleared = volume.status()['log']['commits']
    assert volume.status()['chunks']['dirty'] > 0
    volume.write('bitmap/can_clear', 'true')
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'all chunks clean')
    wait_for(lambda: volume.status()['log']['commits'] > cleared, 'that is durable, too')


def test_size_grows_by_its_control_file(volume: Volume) -> None:
    volume.write('size', '24M')
    assert volume.image.stat().st_size == 24 * MIB
    assert volume.read('size') == f'{24 * MIB}\n'
    assert any(f' Grow {volume.name} ' in event for event in volume.pool.events())


def test_control_files_are_never_cached(volume: Volume) -> None:
    """Neither bytes nor sizes nor names may be old: also not for a file that stays open."""
    with open(volume.control / 'degraded', 'rb', buffering=0) as held:
        assert held.read() == b'0\n'
        before = sorted(os.listdir(volume.control / 'legs'))
        volume.write('fail', '1')
        assert volume.read('degraded') == '1\n'
        assert held.read() == b'', 'one open serves one text'
    volume.write('add', str(volume.legs[0].with_name(f'{volume.name}.new')))
    volume.legs.append(volume.legs[0].with_name(f'{volume.name}.new'))
    assert sorted(os.listdir(volume.control / 'legs')) != before
    sizes = []
    for _ in range(2):
        with volume.open() as fd:
            sizes.append(os.fstat(fd).st_size)
        os.truncate(volume.image, 20 * MIB)
    assert sizes == [16 * MIB, 20 * MIB]
    assert volume.read('size') == f'{20 * MIB}\n'


def test_a_text_is_of_one_moment_however_slowly_it_is_read(pool: MountedPool, volume: Volume) -> None:
    with open(pool.control / 'status.json', 'rb', buffering=0) as slow:
        text = slow.read(100)
        volume.write('fail', '1')
        while part := slow.read(97):
            text += part
    assert b'faulty' not in text and text.endswith(b'}\n')


# Who may


def as_nobody(operation: Callable[[], object]) -> int:
    return in_child(operation, uid=NOBODY)


def test_without_allow_other_nobody_else_gets_in(own: MountedPool) -> None:
    assert as_nobody(lambda: os.listdir(own.mountpoint)) == errno.EACCES
    assert as_nobody(lambda: own.write('create', 'x')) == errno.EACCES


# Events


def test_events_are_lines_in_order_with_times_and_md_names(volume: Volume) -> None:
    volume.write('fail', '1')
    volume.write('re-add', '1')
    volume.settled()
    lines = volume.pool.events()
    assert all(EVENT_LINE.match(line) for line in lines)
    times = [line.split()[0] for line in lines]
    assert times == sorted(times)
    words = [line.split()[1] for line in lines if f' {volume.name}' in line]
    expected = ['NewArray', 'Fail', 'DegradedArray', 'RebuildStarted', 'RebuildFinished', 'SpareActive']
    assert [word for word in words if not re.fullmatch(r'Rebuild\d\d+|Warning', word)] == expected


def test_a_line_break_in_a_command_makes_no_second_event(pool: MountedPool, volume: Volume) -> None:
    before = pool.events()
    assert error_of(lambda: volume.write('fail', '"a\nDegradedArray\tfake\x1b[2J"')) == errno.EINVAL
    new = pool.events()[len(before) :]
    assert len(new) == 1 and '\x1b' not in new[0] and ' Refused ' in new[0]


class Follower:
    """Reads `events` as a monitor does: wait, read to the end, wait again."""

    def __init__(self, path: Path, kind: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.text = b''
        self.wakes = 0
        self.read_all()
        self.skip = len(self.text)
        self._epoll = select.epoll() if kind == 'epoll' else None
        if self._epoll:
            self._epoll.register(self.fd, select.EPOLLIN)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def read_all(self) -> None:
        while part := os.read(self.fd, 1 << 16):
            self.text += part

    def wait(self, seconds: float) -> bool:
        """Return whether there is something to read."""
        return bool(self._epoll.poll(seconds) if self._epoll else self._poll.poll(seconds * 1000))

    def follow(self, until: bytes, seconds: float) -> None:
        """Read on until a text has come."""
        deadline = time.monotonic() + seconds
        while until not in self.text[self.skip :] and time.monotonic() < deadline:
            if self.wait(deadline - time.monotonic()):
                self.wakes += 1
                self.read_all()

    @property
    def lines(self) -> list[str]:
        return self.text[self.skip :].decode().splitlines()

    def close(self) -> None:
        os.close(self.fd)
        if self._epoll:
            self._epoll.close()


def test_poll_and_epoll_wake_every_waiter_and_lose_no_line(pool: MountedPool, volume: Volume) -> None:
    followers = [Follower(pool.control / 'events', kind) for kind in ('poll', 'epoll') * 4]
    try:
        assert not any(follower.wait(0) for follower in followers), 'nothing new: must not be ready'
        threads = [threading.Thread(target=each.follow, args=(b'the-last', 30)) for each in followers]
        for thread in threads:
            thread.start()
        for number in range(300):
            error_of(lambda number=number: volume.write('fail', f'no-{number}'))
        error_of(lambda: volume.write('fail', 'the-last'))
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()
        expected = [f'no-{number}' for number in range(300)] + ['the-last']
        for follower in followers:
            found = [re.search(r"Refused \S+ '(\S+)'", line) for line in follower.lines]
            assert [match[1] for match in found if match] == expected
            assert follower.wakes >= 1
            assert not follower.wait(0)
    finally:
        for follower in followers:
            follower.close()


def test_a_single_event_wakes_a_waiter_that_sleeps(pool: MountedPool, volume: Volume) -> None:
    follower = Follower(pool.control / 'events', 'epoll')
    try:
        thread = threading.Thread(target=follower.follow, args=(b'wake-up', 20))
        thread.start()
        stat_file = Path(f'/proc/self/task/{thread.native_id}/stat')
        wait_for(lambda: stat_file.read_text().rpartition(')')[2].split()[0] == 'S', 'the waiter asleep')
        began = time.monotonic()
        error_of(lambda: volume.write('fail', 'wake-up'))
        thread.join(20)
        assert not thread.is_alive() and time.monotonic() - began < 5
        assert len(follower.lines) == 1
    finally:
        follower.close()


def test_a_waiter_that_is_killed_or_closes_harms_no_one(pool: MountedPool, volume: Volume) -> None:
    code = (
        'import os, select, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.read(fd, 1 << 20)\n'
        'p = select.poll(); p.register(fd, select.POLLIN); p.poll(0); print("ready", flush=True); p.poll()'
    )
    victims = [
        subprocess.Popen(
            [sys.executable, '-c', code, str(pool.control / 'events')], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    survivor = Follower(pool.control / 'events', 'poll')
    try:
        for victim in victims:
            assert victim.stdout and victim.stdout.readline() == 'ready\n'
            victim.kill()
            victim.wait(20)
            victim.stdout.close()
        survivor.wait(0)
        error_of(lambda: volume.write('fail', 'after-the-kill'))
        survivor.follow(b'after-the-kill', 20)
        assert len(survivor.lines) == 1
        assert 'CRITICAL' not in pool.log()
    finally:
        survivor.close()
        for victim in victims:
            victim.kill()
            victim.wait(20)


def test_a_reader_too_slow_gets_whole_lines_none_twice(own: MountedPool) -> None:
    """Only the last 1000 lines are kept: who comes later misses some, but gets no garbage."""
    volume = own.volume('disk', 4 * MIB)
    slow = Follower(own.control / 'events', 'poll')
    try:
        error_of(lambda: volume.write('fail', 'early'))
        assert slow.wait(20)
        assert os.read(slow.fd, 64), 'begin to read, then fall behind'
        for number in range(2500):
            error_of(lambda number=number: volume.write('fail', f'no-{number}-' + 'x' * (number % 50)))
        slow.text, slow.skip = b'', 0
        slow.read_all()
        lines = slow.lines
        assert len(lines) <= 1001
        tail = lines[-999:]
        assert all(EVENT_LINE.match(line) for line in tail)
        numbers = [int(match[1]) for line in tail if (match := re.search(r"'no-(\d+)-", line))]
        assert numbers == list(range(2500 - 999, 2500))
        error_of(lambda: volume.write('fail', 'late'))
        assert slow.wait(20)
        slow.read_all()
        assert " Refused disk 'late': " in slow.lines[-1] and len(slow.lines) == len(lines) + 1
        # The command line finds its reason, too, when old lines are dropped meanwhile.
        for _ in range(3):
            done = cli('fail', own.directory, 'disk', '9')
            assert done.returncode == 1 and done.stderr.startswith('mirrorfs: disk has no leg'), done.stderr
    finally:
        slow.close()
