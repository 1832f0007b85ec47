"""The scripts in examples/ on real mounts: what they do, run again, cut short, and refused.

quickstart.sh is run by .ci/run; the systemd units have tests of their own.
"""

import os
import random
import re
import shlex
import shutil
import subprocess
import time
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mounts import MIB, PROJECT, MountedPool, Volume, cli_ok, run, wait_for

from mirrorfs.leg.opening import read_super

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]
EXAMPLES = PROJECT / 'examples'
SIZE = 8 * MIB
DATA = random.Random(1).randbytes(6 * MIB)
ENV = {**os.environ, 'POLL': '0.05', 'STALL': '20'}


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as mounted:
        yield mounted.start()


@pytest.fixture
def volume(pool: MountedPool) -> Volume:
    """Two legs, 6 of 8 MiB written."""
    made = pool.volume('disk', SIZE, 2, 'chunk=64K')
    made.put(0, DATA)
    return made


@pytest.fixture
def triple(pool: MountedPool) -> Volume:
    """As `volume`, with a third leg that goes off-site."""
    made = pool.volume('disk', SIZE, 3, 'chunk=64K')
    made.write('bitmap/time_base', '0.05')
    made.put(0, DATA)
    clean(made)
    return made


def clean(volume: Volume) -> None:
    """Wait until no chunk is dirty: what is dirty when a leg leaves counts as changed."""
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'no chunk dirty')


Done = subprocess.CompletedProcess[str]


def script(name: str, *words: str | Path, env: dict[str, str] | None = None, timeout: float = 60) -> Done:
    return run(EXAMPLES / name, *words, env={**ENV, **(env or {})}, timeout=timeout)


def succeeds(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def refuses(done: Done, *texts: str) -> None:
    """It failed, said why, and nothing but that."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    for text in texts:
        assert text in done.stderr


def legs(volume: Volume) -> list[tuple[str, str]]:
    """Return (path, state) of all legs."""
    return [(leg['path'], leg['state']) for leg in volume.status()['legs']]


def in_sync(volume: Volume) -> set[str]:
    return {path for path, state in legs(volume) if state == 'in_sync'}


def assert_equal(volume: Volume, *paths: Path) -> bytes:
    """Stop the pool and compare these legs with one another."""
    volume.pool.stop()
    volume.legs = list(paths)
    return volume.assert_legs_equal()


def spoil(leg: Path, at: int) -> None:
    """Have a leg hold something else than was written at byte `at` of the image."""
    with open(leg, 'r+b', buffering=0) as file:
        sup, _ = read_super(file.fileno())
        os.pwrite(file.fileno(), b'decay', sup.layout.data_offset + at)
        os.fsync(file.fileno())


# What they share

SCRIPTS = ['replace-disk.sh', 'rotate-offsite.sh', 'scrub-window.sh', 'vm/run.sh', 'vm/initramfs.sh']


@pytest.mark.parametrize('name', SCRIPTS)
def test_usage_is_the_head_of_the_script(name: str) -> None:
    wrong = script(name, '--wrong')
    assert (wrong.returncode, wrong.stdout) == (2, '')
    told = succeeds(script(name, '--help'))
    assert told == wrong.stderr
    assert f'examples/{name}' in told and 'Exit codes: 0 ' in told and 'set -e' not in told


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('replace-disk.sh', ['{}', 'disk', '/old', '/new']),
        ('rotate-offsite.sh', ['cycle', '{}', 'disk', '/leg']),
        ('scrub-window.sh', ['--until', 'now + 1 min', '--state', '{}', '{}', 'disk']),
        ('vm/run.sh', ['{}', 'disk', '/leg']),
    ],
)
def test_without_a_mount_or_volume_they_say_so(
    pool: MountedPool, tmp_path: Path, name: str, words: list[str]
) -> None:
    pool.volume('other', SIZE)
    refuses(script(name, *(word.format(tmp_path) for word in words)), f'mounted on {tmp_path}')
    refuses(script(name, *(word.format(pool.mountpoint) for word in words)), 'no volume disk', 'other')


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=['C', 'Zl', 'Zp'])), min_size=1))
def test_words_reach_the_daemon_as_they_were(words: list[str]) -> None:
    script = f'. {shlex.quote(str(EXAMPLES))}/control.sh; volume=/dev; try stdout "$@"'
    assert shlex.split(run('bash', '-c', script, 'bash', *words).stdout) == words


# replace-disk.sh


def test_a_disk_is_replaced_while_the_volume_is_in_use_and_again_does_nothing(volume: Volume) -> None:
    old, new = volume.legs[1], volume.pool.legs / 'it\'s a new "disk"'
    told = succeeds(script('replace-disk.sh', volume.pool.mountpoint, 'disk', old, new))
    assert f'recovery, {6 * MIB} bytes copied' in told and 'lacks 0 legs' in told
    assert legs(volume) == [(str(volume.legs[0]), 'in_sync'), (str(new), 'in_sync'), (str(old), 'removed')]
    before = volume.read('events')
    assert 'going on' in succeeds(script('replace-disk.sh', volume.pool.mountpoint, 'disk', old, new))
    assert volume.read('events') == before
    assert assert_equal(volume, volume.legs[0], new).startswith(DATA)


@pytest.mark.parametrize('gone', [False, True])
def test_a_disk_that_failed_or_is_gone_is_replaced(volume: Volume, gone: bool) -> None:
    old, new = volume.legs[1], volume.pool.legs / 'new'
    volume.write('fail', str(old))
    if gone:
        old.unlink()
    succeeds(script('replace-disk.sh', volume.pool.mountpoint, 'disk', old, new))
    assert in_sync(volume) == {str(volume.legs[0]), str(new)}
    assert volume.read('degraded') == '0\n'
    assert assert_equal(volume, volume.legs[0], new).startswith(DATA)


def test_what_was_cut_short_goes_on(volume: Volume) -> None:
    old, new = volume.legs[1], volume.pool.legs / 'new'
    words = ('replace-disk.sh', volume.pool.mountpoint, 'disk', old, new)
    volume.write('sync_action', 'frozen')
    refuses(script(*words, env={'STALL': '1'}), 'no progress for 1 s', 'frozen', 'run me again')
    assert in_sync(volume) == {str(path) for path in volume.legs}
    volume.write('sync_action', 'idle')
    succeeds(script(*words))
    assert in_sync(volume) == {str(volume.legs[0]), str(new)}


def test_a_wrong_leg_is_refused_and_nothing_changes(volume: Volume) -> None:
    new = volume.pool.legs / 'new'
    before = legs(volume)

    def replace(old: str | Path, new: Path) -> Done:
        return script('replace-disk.sh', volume.pool.mountpoint, 'disk', old, new)

    refuses(replace('/no/such.leg', new), 'disk has no leg /no/such.leg', *map(str, volume.legs))
    refuses(replace('1', new), "a leg's number", 'path or UUID')
    refuses(replace(volume.legs[1], volume.legs[1]), 'the same leg')
    refuses(replace(volume.legs[1], volume.legs[0]), 'a leg beside it', 'nothing was taken out')
    assert legs(volume) == before and not new.exists()


def test_a_new_disk_with_something_on_it_needs_force(volume: Volume) -> None:
    new = volume.pool.legs / 'new'
    new.write_bytes(bytes(2 * SIZE))
    run('mke2fs', '-q', '-F', new)
    words = (volume.pool.mountpoint, 'disk', volume.legs[1], new)
    refuses(script('replace-disk.sh', *words), str(new), 'ext')
    assert in_sync(volume) == {str(path) for path in volume.legs}
    succeeds(script('replace-disk.sh', '--force', *words))
    assert in_sync(volume) == {str(volume.legs[0]), str(new)}


@pytest.mark.loop
def test_a_new_disk_that_is_too_small_is_refused(volume: Volume) -> None:
    file = volume.pool.base / 'small'
    with open(file, 'wb') as disk:
        disk.truncate(4 * MIB)
    device = run('losetup', '--find', '--show', file).stdout.strip()
    before = legs(volume)
    refuses(
        script('replace-disk.sh', volume.pool.mountpoint, 'disk', volume.legs[1], device),
        device,
        str(4 * MIB),
        'are needed',
    )
    assert legs(volume) == before


# rotate-offsite.sh


def rotate(verb: str, volume: Volume, *options: str, leg: str | Path = '') -> Done:
    return script(
        'rotate-offsite.sh', verb, *options, volume.pool.mountpoint, volume.name, leg or volume.legs[2]
    )


def test_a_leg_goes_comes_back_with_what_changed_and_goes_again(triple: Volume) -> None:
    away = triple.legs[2]
    assert 'its disk may be unmounted' in succeeds(rotate('out', triple))
    assert legs(triple)[2] == (str(away), 'removed')
    triple.put(MIB, bytes(MIB))
    assert triple.leg_data(2).startswith(DATA)
    before = triple.status()['recovered_bytes']
    told = succeeds(rotate('cycle', triple))
    assert triple.status()['recovered_bytes'] - before == MIB
    assert f'recovery, {MIB} bytes copied' in told
    assert legs(triple)[2] == (str(away), 'removed')
    triple.put(2 * MIB, bytes(MIB))
    assert triple.leg_data(2)[:SIZE] == DATA[:MIB] + bytes(MIB) + DATA[2 * MIB :] + bytes(2 * MIB)


def test_both_verbs_may_be_said_twice_and_the_legs_are_equal(triple: Volume) -> None:
    succeeds(rotate('out', triple))
    assert 'is out already' in succeeds(rotate('out', triple))
    triple.put(0, bytes(MIB))
    succeeds(rotate('in', triple, leg='2'))
    assert 'in sync already' in succeeds(rotate('in', triple))
    assert assert_equal(triple, *triple.legs).startswith(bytes(MIB) + DATA[MIB:])


def test_what_changed_is_known_over_a_restart_of_the_daemon(triple: Volume) -> None:
    succeeds(rotate('out', triple))
    triple.put(MIB, bytes(MIB))
    triple.pool.stop()
    triple.pool.start()
    assert f'recovery, {MIB} bytes copied' in succeeds(rotate('in', triple))


def test_hooks_run_around_the_moment_and_thaw_even_if_the_leg_stays(triple: Volume) -> None:
    said = triple.pool.base / 'said'
    state = shlex.quote(str(triple.control / 'legs/2/state'))
    hooks = (
        '--freeze',
        f'echo freeze $(cat {state}) >>{said}',
        '--thaw',
        f'echo thaw $(cat {state}) >>{said}',
    )
    succeeds(rotate('out', triple, *hooks))
    assert said.read_text() == 'freeze in_sync\nthaw faulty\n'
    succeeds(rotate('in', triple))
    said.unlink()
    # The leg leaves by another hand, so `fail` is refused between the two.
    fail = f'echo 2 >{shlex.quote(str(triple.control / "fail"))}'
    refuses(rotate('out', triple, '--freeze', fail, *hooks[2:]), 'faulty already')
    assert said.read_text() == 'thaw faulty\n'
    refuses(rotate('out', triple, *hooks[:2]), 'go together')


def test_a_leg_is_not_let_go_where_that_would_be_unwise(volume: Volume) -> None:
    def out() -> Done:
        return rotate('out', volume, leg=volume.legs[1])

    refuses(out(), 'would be left with 1 legs in sync; wanted are 2')
    for number in range(2):
        volume.write('add', str(volume.pool.legs / f'more{number}'))
    volume.settled()
    volume.write('add', f'{volume.pool.legs}/spare spare')
    refuses(out(), 'legs/spare', 'hot spare')
    volume.write('remove', f'{volume.pool.legs}/spare')
    volume.pool.write('spares', f'add {volume.pool.legs}/shared {64 * MIB}')
    refuses(out(), 'shared spares')
    volume.pool.write('spares', f'remove {volume.pool.legs}/shared')
    assert len(in_sync(volume)) == 4
    succeeds(out())


def test_a_leg_that_is_not_there_or_unknown_is_refused(triple: Volume) -> None:
    away, home = triple.legs[2], triple.pool.base / 'elsewhere'
    succeeds(rotate('out', triple))
    away.rename(home)
    refuses(rotate('in', triple), f'{away} is not there', 'disk mounted?')
    refuses(rotate('in', triple, leg=home), f'disk has no leg {home}', 'add')
    shutil.copy(triple.legs[0], away)
    refuses(rotate('cycle', triple), f'{away} is leg')  # another one
    home.rename(away)
    succeeds(rotate('in', triple))


@pytest.mark.loop
def test_its_disk_can_be_unmounted_and_read_elsewhere(volume: Volume) -> None:
    disk, media = volume.pool.base / 'disk.img', volume.pool.base / 'media'
    media.mkdir()
    with open(disk, 'wb') as file:
        file.truncate(32 * MIB)
    run('mke2fs', '-q', '-F', '-t', 'ext4', disk)
    assert run('mount', '-o', 'loop', disk, media).returncode == 0
    leg = media / 'disk.leg'
    volume.write('add', str(leg))
    assert 'may be unmounted' in succeeds(rotate('cycle', volume, leg=leg))
    wait_for(lambda: run('umount', media).returncode == 0, 'the disk is let go of')
    volume.put(0, bytes(MIB))
    assert run('mount', '-o', 'ro,loop', disk, media).returncode == 0
    # As the head of the script says: by a loop device at the data offset.
    words = ('losetup', '--find', '--show', '--read-only', '--offset', '1048576', leg)
    device = Path(run(*words).stdout.strip())
    assert device.read_bytes().startswith(DATA)
    run('losetup', '-d', device)


# scrub-window.sh


def scrub(volume: Volume, *options: str, until: str = 'now + 1 hour') -> Done:
    state = volume.pool.base / 'state'
    words = ('--until', until, '--state', state, *options, volume.pool.mountpoint, volume.name)
    return script('scrub-window.sh', *words)


def test_a_check_runs_once_in_a_while(volume: Volume) -> None:
    assert 'is checked, all equal' in succeeds(scrub(volume))
    assert volume.read('last_sync_action') == 'check\n'
    (stamp,) = (volume.pool.base / 'state').iterdir()
    assert stamp.name == volume.read('uuid').strip()

    def checks() -> int:
        return sum('RebuildStarted disk check' in line for line in volume.pool.events())

    assert 'was checked on' in succeeds(scrub(volume))
    assert checks() == 1
    long_ago = time.time() - 28.5 * 86400
    os.utime(stamp, (long_ago, long_ago))
    assert 'was checked on' in succeeds(scrub(volume, '--every', '29'))
    assert 'is checked, all equal' in succeeds(scrub(volume))
    assert checks() == 2


def test_at_the_end_of_the_night_it_stops_and_goes_on_in_the_next_one(volume: Volume) -> None:
    volume.write('sync_speed_max', '1024')
    told = succeeds(scrub(volume, until='now + 2 seconds'))
    stopped_at = int(volume.read('sync_min'))
    assert 0 < stopped_at < SIZE // 512
    assert f'up to sector {stopped_at} of {SIZE // 512}' in told
    assert volume.read('sync_action') == 'idle\n'
    volume.write('sync_speed_max', 'system')
    told = succeeds(scrub(volume))
    assert f'from sector {stopped_at} of' in told and 'is checked, all equal' in told
    assert f'check from byte {stopped_at * 512} on' in '\n'.join(volume.pool.events())
    assert volume.read('sync_min') == '0\n'


def test_legs_that_differ_are_reported_until_they_are_repaired(volume: Volume) -> None:
    spoil(volume.legs[1], 3 * MIB)
    for _ in range(2):  # found, and remembered
        found = scrub(volume)
        assert found.returncode == 4
        assert f'{3 * MIB} 65536 0=' in found.stderr and 'repair N' in found.stderr
    assert volume.leg_data(1)[3 * MIB :].startswith(b'decay')
    volume.write('sync_action', 'repair 0')
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'repaired')
    assert 'all equal' in succeeds(scrub(volume, '--every', '0'))


def test_a_script_that_is_ended_ends_its_check(volume: Volume) -> None:
    volume.write('sync_speed_max', '1024')
    words = [str(EXAMPLES / 'scrub-window.sh'), '--until', 'now + 1 hour', '--state', str(volume.pool.base)]
    running = subprocess.Popen(
        [*words, str(volume.pool.mountpoint), 'disk'], env=ENV, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: volume.read('sync_action') == 'check\n', 'a check')
        running.terminate()
        assert running.wait(30) != 0
    finally:
        running.kill()
        running.wait()
    assert volume.read('sync_action') == 'idle\n'


def test_a_check_waits_for_its_turn_and_respects_a_freeze(volume: Volume) -> None:
    volume.write('sync_speed_max', '4096')
    volume.write('sync_action', 'repair 0')
    assert 'is checked, all equal' in succeeds(scrub(volume))
    volume.write('sync_action', 'frozen')
    refuses(scrub(volume, '--every', '0'), 'disk is frozen')
    assert volume.read('sync_action') == 'frozen\n'


def test_a_volume_with_one_leg_has_nothing_to_compare(volume: Volume) -> None:
    volume.write('fail', '1')
    refuses(scrub(volume), 'nothing to compare')


# fstab


@dataclass
class Entry:
    """A line of an fstab."""

    source: str
    target: str
    kind: str
    options: str


def fstab(below: Path) -> tuple[Path, list[Entry]]:
    """Return a copy of examples/fstab whose paths lie in another folder, and its lines."""
    copy = below / 'fstab'
    copy.write_text(re.sub(r'(?<![\w/])/srv/', f'{below}/', (EXAMPLES / 'fstab').read_text()))
    lines = [line.split() for line in copy.read_text().splitlines() if line and not line.startswith('#')]
    return copy, [Entry(*line[:4]) for line in lines]


def made_once(copy: Path) -> list[list[str]]:
    """Return the commands in the head of a fstab that prepare for it."""
    text = copy.read_text().split('Made once:')[1].split('\n\n')[0].replace('#', '')
    return [shlex.split(command) for line in text.splitlines() for command in line.split('&&')]


@pytest.mark.loop
def test_the_lines_of_fstab_mount_an_ext4_in_an_image(pool: MountedPool) -> None:
    pool.stop()
    copy, (images, data) = fstab(pool.base)
    for name in ('disk1', 'disk2', 'images', 'data'):
        (pool.base / name).mkdir()
    shutil.rmtree(pool.directory)
    create, mount, mkfs = made_once(copy)
    cli_ok(*create[1:])
    cli_ok(*mount[1:])
    assert run(*mkfs).returncode == 0
    cli_ok('umount', images.source)

    for _ in range(2):
        cli_ok('mount', images.source, images.target, '-o', images.options)
        done = run('mount', '--fstab', copy, data.target)
        assert done.returncode == 0, done.stderr
        (Path(data.target) / 'file').write_bytes(DATA)
        assert run('umount', data.target).returncode == 0
        cli_ok('umount', images.source)


GENERATOR = Path('/usr/lib/systemd/system-generators/systemd-fstab-generator')


@pytest.mark.skipif(not GENERATOR.exists(), reason='systemd is not there')
def test_systemd_orders_what_fstab_names(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ('normal', 'early', 'late')]
    for folder in folders:
        folder.mkdir()
    env = {**os.environ, 'SYSTEMD_FSTAB': str(EXAMPLES / 'fstab')}
    done = run(GENERATOR, *folders, env=env)
    assert done.returncode == 0, done.stderr
    images, data = ((folders[0] / f'srv-{name}.mount').read_text() for name in ('images', 'data'))
    # A pool waits for its disks, and does without.
    assert 'After=srv-disk1.mount srv-disk2.mount\n' in images
    assert 'Requires' not in images and 'Type=fuse.mirrorfs' in images
    assert 'RequiresMountsFor=/srv/images' in data


# The virtual machine


@pytest.mark.loop
@pytest.mark.skipif(not os.environ.get('CI') and not shutil.which('qemu-system-x86_64'), reason='needs qemu')
def test_a_guest_goes_on_while_its_disk_loses_a_leg(pool: MountedPool) -> None:
    volume = pool.volume('vm1', 96 * MIB, 2)
    log = pool.base / 'console'
    words = ('vm/run.sh', '--log', log, pool.mountpoint, 'vm1')
    told = succeeds(script(*words, volume.legs[1], env={'ACCEL': 'tcg'}, timeout=180))
    assert 'powered off' in told and 'compared: all equal' in told
    assert in_sync(volume) == {str(path) for path in volume.legs}
    assert volume.status()['recovered_bytes'] > 0
    refuses(script(*words, volume.legs[1]), 'vm1 has', 'bytes of something')  # it would be overwritten

    written = dict(re.findall(r'^guest: wrote (\d+) (\w{64})\r?$', log.read_text(), re.MULTILINE))
    assert list(written) == [str(number) for number in range(1, 61)]
    assert run('e2fsck', '-f', '-n', volume.image).returncode == 0
    root = pool.base / 'root'
    root.mkdir()
    assert run('mount', '-o', 'ro,loop', volume.image, root).returncode == 0
    files = {file.name: file.read_bytes() for file in root.iterdir() if file.is_file()}
    assert {name: sha256(data).hexdigest() for name, data in files.items()} == written
    assert run('umount', root).returncode == 0
    pool.stop()
    volume.assert_legs_equal()


def test_run_sh_refuses_a_leg_that_is_unknown_or_not_in_sync(pool: MountedPool) -> None:
    volume = pool.volume('vm1', 96 * MIB, 2)
    refuses(script('vm/run.sh', pool.mountpoint, 'vm1', '7'), 'vm1 has no leg 7')
    volume.write('fail', '1')
    refuses(script('vm/run.sh', pool.mountpoint, 'vm1', '1'), 'leg 1 is faulty')


def test_the_disk_of_a_libvirt_domain_has_the_words_of_run_sh(tmp_path: Path) -> None:
    disk = xml.parse(EXAMPLES / 'vm' / 'libvirt-disk.xml').getroot()
    driver = disk.find('driver')
    assert driver is not None
    drive = re.search(r'-drive "file=[^"]*,(format=\S+)"', (EXAMPLES / 'vm' / 'run.sh').read_text())
    assert drive
    words = dict(word.split('=') for word in drive[1].split(','))
    for theirs, ours in {'type': 'format', 'cache': 'cache', 'io': 'aio', 'discard': 'discard'}.items():
        assert driver.get(theirs) == words[ours]

    schema = Path('/usr/share/libvirt/schemas/domain.rng')
    if schema.exists() and shutil.which('xmllint'):
        domain = xml.fromstring(
            '<domain type="qemu"><name>vm1</name><memory>262144</memory>'
            '<os><type>hvm</type></os><devices/></domain>'
        )
        devices = domain.find('devices')
        assert devices is not None
        devices.append(disk)
        xml.ElementTree(domain).write(tmp_path / 'domain.xml')
        done = run('xmllint', '--noout', '--relaxng', schema, tmp_path / 'domain.xml')
        assert done.returncode == 0, done.stderr
