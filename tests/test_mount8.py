"""mount(8), umount(8), fstab and findmnt, with our helpers where they look for them.

That is /sbin and /usr/local/bin, which nobody but these tests is to see changed: all happens in a mount
namespace of its own, where layers lie over both.
"""

import configparser
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import MIB, PROJECT, MountedPool, Volume, run, wait_for

from mirrorfs.fs import mounting

pytestmark = pytest.mark.timeout(120)
NOBODY = 65534
HELPERS = {
    '/sbin/mount.mirrorfs': 'from mirrorfs.cli.mounthelpers import mount as main',
    '/sbin/mount.fuse.mirrorfs': 'from mirrorfs.cli.mounthelpers import mount as main',
    '/sbin/umount.fuse.mirrorfs': 'from mirrorfs.cli.mounthelpers import umount as main',
    '/usr/local/bin/mirrorfs': 'from mirrorfs.cli import main',
}
LAYERS = """
set -e
mount -t tmpfs none "$1"
for place in /usr/sbin /usr/local/bin; do
    mkdir -p "$1/upper$place" "$1/work$place"
    mount -t overlay none -o "lowerdir=$place,upperdir=$1/upper$place,workdir=$1/work$place" "$place"
done
echo ready
exec cat
"""
"""Ends when its standard input does."""


class Inside:
    """A pool and commands in a mount namespace of their own, where our helpers are installed."""

    def __init__(self, pool: MountedPool, holder: 'subprocess.Popen[bytes]') -> None:
        self.pool = pool
        self.holder = holder

    @property
    def enter(self) -> list[str]:
        """Begins a command line inside, in the pool's folder as it is there."""
        there = ['nsenter', f'--mount=/proc/{self.holder.pid}/ns/mnt']
        return [*there, 'sh', '-c', 'cd "$0" && exec "$@"', str(self.pool.base)]

    def run(self, *words: str | Path, **options: Any) -> 'subprocess.CompletedProcess[str]':
        return run(*self.enter, *words, **options)

    def ok(self, *words: str | Path, **options: Any) -> str:
        done = self.run(*words, **options)
        assert done.returncode == 0, f'{words}: {done.returncode}, {done.stdout}{done.stderr}'
        return done.stdout

    def install(self, *paths: str) -> None:
        for path in paths:
            start = f"exec {sys.executable} -c '{HELPERS[path]}\nimport sys\nsys.exit(main())'"
            text = f'#!/bin/sh\nPYTHONPATH={PROJECT} {start} "$@"\n'
            self.ok('sh', '-c', 'cat >"$1" && chmod 755 "$1"', 'sh', path, stdin=None, input=text)

    def mounted(self) -> list[str]:
        """Return type, source and options of what is mounted on the mount point; nothing if nothing is."""
        return self.run('findmnt', '-n', '-o', 'FSTYPE,SOURCE,OPTIONS', self.pool.mountpoint).stdout.split()


@pytest.fixture
def inside() -> Iterator[Inside]:
    with MountedPool() as pool:
        pool.make()
        (pool.base / 'layers').mkdir()
        command = [
            'unshare',
            '--mount',
            '--propagation=private',
            'sh',
            '-c',
            LAYERS,
            'sh',
            pool.base / 'layers',
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin and holder.stdout
            if holder.stdout.readline() != b'ready\n':
                pytest.skip('no overlay filesystem, or no mount namespaces')
            made = Inside(pool, holder)
            yield made
            for _ in range(2):
                made.run('umount', '-l', '-i', pool.mountpoint)
            holder.stdin.close()


def write_fstab(inside: Inside, text: str) -> Path:
    file = inside.pool.base / 'fstab'
    file.write_text(text.format(pool=inside.pool.directory, dir=inside.pool.mountpoint))
    return file


SPELLINGS = {
    'mirrorfs': ['/sbin/mount.mirrorfs', '/sbin/umount.fuse.mirrorfs'],
    'fuse.mirrorfs': ['/sbin/mount.fuse.mirrorfs', '/sbin/umount.fuse.mirrorfs'],
    'fuse.mirrorfs by fuse3': ['/usr/local/bin/mirrorfs'],
}


@pytest.mark.mount
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_mount_and_umount_serve_every_spelling_under_sensible_names(inside: Inside, spelling: str) -> None:
    pool = inside.pool
    inside.install(*SPELLINGS[spelling])
    kind = spelling.split()[0]
    inside.ok('mount', '-t', kind, 'pool', 'mnt', '-o', 'nofail,leg_timeout=5')
    assert inside.mounted()[:2] == ['fuse.mirrorfs', str(pool.directory)]
    assert inside.ok('df', '--output=source,fstype,target', 'mnt').split()[4:] == [
        str(pool.directory), 'fuse.mirrorfs', str(pool.mountpoint)
    ]  # fmt: skip
    assert f'{pool.directory} on {pool.mountpoint} type fuse.mirrorfs (rw,' in inside.ok('mount')
    again = inside.run('mount', '-t', kind, 'pool', 'mnt')
    assert again.returncode == 32 and 'mounted already' in again.stderr
    (pool.base / 'elsewhere').mkdir()
    elsewhere = inside.run('mount', '-t', kind, 'pool', 'elsewhere')
    assert elsewhere.returncode == 32 and f'it is mounted already, on {pool.mountpoint}' in elsewhere.stderr
    wrong = inside.run('mount', '-t', kind, 'pool', 'mnt', '-o', 'leg_timout=5')
    assert wrong.returncode == 1 and 'did you mean leg_timeout?' in wrong.stderr
    inside.ok('umount', 'mnt')
    if len(SPELLINGS[spelling]) > 1:  # ours waits
        assert mounting.is_unserved(str(pool.directory))
    wait_for(lambda: mounting.is_unserved(str(pool.directory)), 'the daemon ended')
    assert inside.mounted() == []


@pytest.mark.mount
def test_lines_of_fstab_are_mounted_by_mount_a_and_once(inside: Inside) -> None:
    inside.install('/sbin/mount.fuse.mirrorfs', '/sbin/umount.fuse.mirrorfs')
    words = 'ro,noexec,nofail,_netdev,x-systemd.requires=a.mount,comment=a=b,leg_timeout=5'
    fstab = write_fstab(inside, f'{{pool}} {{dir}} fuse.mirrorfs {words} 0 0\n')
    inside.ok('mount', '-T', fstab, '-a')
    options = inside.mounted()[2].split(',')
    assert {'ro', 'noexec', 'nosuid', 'nodev'} <= set(options)
    inside.ok('mount', '-T', fstab, '-a')
    assert inside.ok('mount').count(f'{inside.pool.directory} on ') == 1
    changed = inside.run('mount', '-T', fstab, '-o', 'remount,rw', 'mnt')
    assert changed.returncode == 1 and 'a mount cannot be changed; unmount it' in changed.stderr
    assert inside.run('mount', '-f', '-v', '-T', fstab, inside.pool.mountpoint).stdout.strip().endswith(
        f'would be mounted on {inside.pool.mountpoint}'
    )  # fmt: skip
    inside.ok('umount', inside.pool.mountpoint)
    assert mounting.is_unserved(str(inside.pool.directory))


@pytest.mark.mount
def test_nothing_can_be_written_through_a_mount_that_is_ro(inside: Inside) -> None:
    volume = inside.pool.volume_at_rest('disk', 4 * MIB)
    inside.install('/sbin/mount.mirrorfs')
    inside.ok('mount', '-r', '-t', 'mirrorfs', 'pool', 'mnt')
    before = [leg.read_bytes() for leg in volume.legs]
    for command in ('echo x >mnt/disk', 'echo 1 >mnt/.mirrorfs/volumes/disk/fail', 'rm mnt/disk'):
        done = inside.run('sh', '-c', command)
        assert done.returncode and 'Read-only file system' in done.stderr
    assert inside.ok('cat', 'mnt/.mirrorfs/volumes/disk/degraded') == '0\n'
    inside.ok('umount', 'mnt')
    wait_for(lambda: mounting.is_unserved(str(inside.pool.directory)), 'the daemon ended')
    assert [leg.read_bytes() for leg in volume.legs] == before


@pytest.mark.mount
def test_mount_and_umount_clear_a_dead_mount(inside: Inside) -> None:
    inside.install(*HELPERS)
    for verb in ('mount', 'umount'):
        inside.ok('mount', '-t', 'fuse.mirrorfs', 'pool', 'mnt')
        status = json.loads(inside.ok('cat', 'mnt/.mirrorfs/status.json'))
        os.kill(status['pid'], signal.SIGKILL)
        wait_for(lambda: inside.run('ls', 'mnt').returncode, 'the mount is dead')
        if verb == 'mount':
            inside.ok('mount', '-t', 'fuse.mirrorfs', inside.pool.directory, inside.pool.mountpoint)
            inside.ok('ls', 'mnt/.mirrorfs')
        inside.ok('umount', inside.pool.mountpoint)
        assert inside.mounted() == []


@pytest.mark.mount
def test_a_busy_mount_stays_and_a_lazy_unmount_does_not_wait(inside: Inside) -> None:
    volume: Volume = inside.pool.volume_at_rest('disk', 4 * MIB)
    inside.install('/sbin/mount.mirrorfs', '/sbin/umount.fuse.mirrorfs')
    inside.ok('mount', '-t', 'mirrorfs', 'pool', 'mnt')
    command = [*inside.enter, 'sh', '-c', 'exec 3<>"$0"; echo open; read x', str(volume.image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin and user.stdout and user.stdout.readline() == b'open\n'
        done = inside.run('umount', 'mnt')
        assert done.returncode == 32 and 'busy' in done.stderr
        inside.ok('ls', 'mnt/disk')
        inside.ok('umount', '-l', 'mnt')
        assert not mounting.is_unserved(str(inside.pool.directory)), 'an image is open yet'
        user.stdin.close()
    wait_for(lambda: mounting.is_unserved(str(inside.pool.directory)), 'the last close')


@pytest.mark.mount
def test_a_user_mounts_and_unmounts_by_a_line_of_fstab(inside: Inside) -> None:
    user: dict[str, Any] = {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}
    if run(sys.executable, '-c', 'import pyfuse3', **user).returncode or not os.access('/dev/fuse', os.R_OK):
        pytest.skip('this Python cannot be run by an ordinary user')
    if not os.stat('/dev/fuse').st_mode & 0o006:
        pytest.skip('/dev/fuse is for root alone here')
    inside.install('/sbin/mount.mirrorfs', '/sbin/umount.fuse.mirrorfs')
    for path in (inside.pool.directory, inside.pool.directory / 'volumes', inside.pool.mountpoint):
        os.chown(path, NOBODY, NOBODY)
    fstab = write_fstab(inside, '{pool} {dir} mirrorfs noauto,user 0 0\n')
    inside.ok('mount', '--bind', fstab, '/etc/fstab')
    own = ['setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups']
    inside.ok(*own, 'mount', inside.pool.mountpoint)
    assert {f'user_id={NOBODY}', 'noexec'} <= set(inside.mounted()[2].split(',')), 'user means noexec, too'
    inside.ok(*own, 'umount', inside.pool.mountpoint)
    wait_for(lambda: mounting.is_unserved(str(inside.pool.directory)), 'the daemon ended')


# Installing them


PROGRAMS = ('mirrorfs', 'mount.mirrorfs', 'umount.mirrorfs')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the installer looks at."""
    root = tmp_path / 'checkout'
    shutil.copytree(PROJECT / 'examples/systemd', root / 'examples/systemd')
    (root / 'tools').mkdir()
    shutil.copy(PROJECT / 'tools/install.sh', root / 'tools')
    (root / '.venv/bin').mkdir(parents=True)
    for name in PROGRAMS:
        (root / '.venv/bin' / name).touch(mode=0o755)
    return root


def installer(checkout: Path, *words: str) -> 'subprocess.CompletedProcess[str]':
    env = {**os.environ, 'DESTDIR': str(checkout.parent / 'machine')}
    return run(checkout / 'tools/install.sh', *words, env=env)


def test_the_installer_puts_all_in_place_and_takes_all_away(checkout: Path) -> None:
    machine = checkout.parent / 'machine'
    for _ in range(2):
        assert installer(checkout).returncode == 0
        for path, program in HELPERS.items():
            target = (machine / path[1:]).readlink()
            assert target.parent == checkout / '.venv/bin' and target.name in PROGRAMS
            assert target.name.startswith('umount') == ('umount' in path), program
        assert (
            'ExecStart=/usr/local/bin/mirrorfs'
            in (machine / 'etc/systemd/system/mirrorfs@.service').read_text()
        )
    (machine / 'etc/mirrorfs/vm1.conf').touch()
    assert installer(checkout, 'uninstall').returncode == 0
    assert [file.name for file in machine.rglob('*') if not file.is_dir()] == ['vm1.conf']


def test_the_installer_replaces_nothing_that_is_not_ours(checkout: Path) -> None:
    other = checkout.parent / 'machine/sbin/mount.mirrorfs'
    other.parent.mkdir(parents=True)
    other.write_text('other')
    done = installer(checkout)
    assert done.returncode == 2 and f'{other} is something else' in done.stderr
    assert [file for file in other.parents[1].rglob('*') if not file.is_dir()] == [other]
    assert installer(checkout, 'uninstall').returncode == 0 and other.read_text() == 'other'
    assert installer(checkout, 'help').returncode == 1


def test_the_installer_says_what_is_missing(checkout: Path) -> None:
    (checkout / '.venv/bin/umount.mirrorfs').unlink()
    done = installer(checkout)
    assert done.returncode == 2 and 'run tools/setup.sh first' in done.stderr
    assert not (checkout.parent / 'machine').exists()


def test_what_is_installed_is_what_the_package_has() -> None:
    config = configparser.ConfigParser()
    config.read(PROJECT / 'setup.cfg')
    for line in config['options.entry_points']['console_scripts'].split('\n'):
        if line:
            name, _, target = line.partition(' = ')
            module, _, function = target.partition(':')
            assert name in PROGRAMS and callable(getattr(importlib.import_module(module), function))
