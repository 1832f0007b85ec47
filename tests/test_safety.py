"""What would lose data is refused, says what would be lost, and changes nothing; most is done with force.

The rows are those of docs/safety.md.  Besides: who may do what in a mount, and modes of what is made.
"""

import errno
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from mounts import CLI, MIB, MountedPool, Volume, cli, cli_ok, in_child, run, wait_for

from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.events import EventLog
from mirrorfs.fs.names import Names
from mirrorfs.fs.tree import ROOT, Tree
from mirrorfs.leg.opening import FileOpener, read_super
from mirrorfs.mirror.comparing import Mismatch, Scrub
from mirrorfs.pool import Pool
from mirrorfs.volume.lifecycle import Settings

NOBODY = 65534
DOC = Path(__file__).parent.parent / 'docs' / 'safety.md'


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool('allow_other') as made:
        yield made.start()


# Refused without force


@dataclass(frozen=True)
class Row:
    """A command that would lose something.  `arrange` makes it so, and returns what {…} in it are."""

    does: str
    """As docs/safety.md names it."""
    arrange: Callable[[Volume], dict[str, Any]]
    file: str
    text: str
    errno: int
    says: str
    never: bool = False
    """Whether force does not help."""


def nothing(volume: Volume) -> dict[str, Any]:
    return {}


def failed(volume: Volume) -> dict[str, Any]:
    """Leg 1 is away, and something was written since."""
    volume.put(0, b'x' * MIB)
    volume.write('fail', '1')
    volume.put(MIB, b'y' * MIB)
    return {}


def removed(volume: Volume) -> dict[str, Any]:
    failed(volume)
    volume.write('remove', '1')
    return {}


def splits(volume: Volume) -> dict[str, Any]:
    volume.put(0, b'x')
    volume.write('split', '1')
    return {}


def archive(volume: Volume) -> dict[str, Any]:
    """A file of data that bears no signature."""
    path = volume.pool.legs / f'{volume.name}.tar'
    path.write_bytes(b'somebody' * (32 * MIB // 8))
    return {'path': path}


def ext4(volume: Volume) -> dict[str, Any]:
    path = volume.pool.legs / f'{volume.name}.ext4'
    assert run('mkfs.ext4', '-q', '-L', 'home', path, '32M').returncode == 0
    return {'path': path}


def of_another(volume: Volume) -> dict[str, Any]:
    """A leg of another volume, which the pool has forgotten."""
    other = volume.pool.volume(f'{volume.name}-other', 16 * MIB)
    volume.pool.write('destroy', other.name)
    return {'path': other.legs[1], 'other': other.name}


def missing_too(volume: Volume) -> dict[str, Any]:
    removed(volume)
    return ext4(volume)


def outvoted(volume: Volume) -> dict[str, Any]:
    """Leg 2 holds something else than the two others, and a check has found that."""
    volume.put(0, b'right' * MIB)
    with open(volume.legs[2], 'r+b') as leg:
        base = read_super(leg.fileno())[0].layout.data_offset
        os.pwrite(leg.fileno(), b'wrong', base)
        os.fsync(leg.fileno())
    volume.write('sync_action', 'check')
    wait_for(lambda: volume.read('mismatch_cnt') == '128\n', 'the difference found')
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'the check over')
    return {}


NEVER = {'never': True}
# fmt: off
ROWS = [
    Row('fail', failed, 'V/fail', '0', errno.EBUSY, 'the last in-sync leg of {v}; add', **NEVER),
    Row('remove', nothing, 'V/remove', '0', errno.EBUSY, 'in_sync; fail it before removing it', **NEVER),
    Row('split', failed, 'V/split', '0', errno.EBUSY, 'the last in-sync leg of {v}', **NEVER),
    Row('size', nothing, 'V/size', '8M', errno.EINVAL, 'shrink', **NEVER),
    Row('raid_disks', nothing, 'V/raid_disks', '1', errno.EBUSY, 'has 3 legs; fail and remove some', **NEVER),
    Row('bad_blocks', removed, 'V/legs/0/bad_blocks', '0 8', errno.EBUSY, 'no other leg of {v}', **NEVER),
    Row('path', ext4, 'V/legs/0/path', '{path}', errno.EEXIST, 'something else is at {path}', **NEVER),
    Row('add', ext4, 'V/add', '{path}', errno.EEXIST, "is ext4 'home', by its signature; that would be lost"),
    Row('add', archive, 'V/add', '{path}', errno.EEXIST, 'a file with 32 MiB of data; that would be lost'),
    Row('add', of_another, 'V/add', '{path}', errno.EEXIST, 'slot 1 of mirrorfs volume {other} .*16 MiB'),
    Row('replace', ext4, 'V/replace', '0 {path}', errno.EEXIST, "is ext4 'home'"),
    Row('create', ext4, 'create', '{v}-new 16M {path}', errno.EEXIST, "is ext4 'home'"),
    Row('spares add', ext4, 'spares', 'add {path}', errno.EEXIST, "is ext4 'home'"),
    Row('location PATH', archive, 'V/bitmap/location', '{path}', errno.EEXIST, 'is not empty'),
    Row('location none', failed, 'V/bitmap/location', 'none', errno.EBUSY,
        'with no log all 2 MiB would be copied when they are back, not the [12] MiB that changed'),
    Row('repair LEG', outvoted, 'V/sync_action', 'repair 2', errno.EBUSY,
        'differs from what most legs hold in 1 places; their 64 KiB would be lost'),
    Row('destroy', splits, 'destroy', '{v}', errno.EBUSY, 'is split off, and it could be merged no more but'),
]
# fmt: on


def legs_of(row: Row) -> int:
    return 3 if row.arrange is outvoted or row.does == 'raid_disks' else 2


def everything(volume: Volume, *others: Path) -> object:
    """Return what a refused command must leave alone: files, names, and what is said of the volume."""
    by_themselves = ('io', 'log', 'chunks', 'last_sync')
    status = {key: value for key, value in volume.status().items() if key not in by_themselves}
    pool = volume.pool
    definitions = {path: path.read_bytes() for path in pool.directory.rglob('*') if path.is_file()}
    legs = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*volume.legs, *others)]
    return status, definitions, legs, sorted(os.listdir(pool.legs)), sorted(os.listdir(pool.mountpoint))


def command(pool: MountedPool, row: Row, text: str, name: str) -> int:
    """Write a command; return its errno, 0 if it was accepted."""
    file = row.file.replace('V', f'volumes/{name}')
    try:
        pool.write(file, text)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.mount
@pytest.mark.timeout(90)
@pytest.mark.parametrize('row', ROWS, ids=[f'{row.does}-{row.arrange.__name__}' for row in ROWS])
def test_what_would_lose_something_says_what_and_is_done_with_force_alone(
    pool: MountedPool, row: Row
) -> None:
    volume = pool.volume(size=16 * MIB, legs=legs_of(row))
    volume.write('bitmap/can_clear', 'false')
    words = {**row.arrange(volume), 'v': volume.name}
    text, others = row.text.format(**words), [words['path']] if 'path' in words else []
    before = everything(volume, *others)
    assert command(pool, row, text, volume.name) == row.errno, pool.events()[-1]
    refusal = pool.events()[-1]
    assert ' Refused ' in refusal and re.search(row.says.format(**words), refusal), refusal
    assert everything(volume, *others) == before
    if row.never:
        assert command(pool, row, f'{text} force', volume.name) != 0
        return
    assert 'force' in refusal
    assert command(pool, row, f'{text} force', volume.name) == 0, pool.events()[-1]


@pytest.mark.mount
def test_a_volume_that_does_not_run_is_destroyed_by_force_alone() -> None:
    with MountedPool() as pool:
        volume = pool.start().volume('disk', 4 * MIB)
        volume.put(0, b'x')
        pool.stop()
        away = [leg.rename(leg.with_suffix('.away')) for leg in volume.legs]
        pool.start()
        row = Row('destroy', nothing, 'destroy', '', errno.EBUSY, '')
        assert command(pool, row, 'disk', 'disk') == errno.EBUSY
        assert 'does not run' in pool.events()[-1] and 'would be lost' in pool.events()[-1]
        assert cli('destroy', pool.directory, 'disk', '--yes').returncode == 1
        cli_ok('destroy', pool.directory, 'disk', '--yes', '--force')
        assert all(leg.exists() for leg in away)


def test_every_row_is_in_the_document() -> None:
    text = DOC.read_text()
    rows = [line for line in text.splitlines() if line.startswith('| `')]
    for row in ROWS:
        assert any(line.startswith(f'| `{row.does}') for line in rows), row.does


def test_who_is_outvoted_is_told_by_what_most_legs_hold() -> None:
    found = Scrub(listed=(
        Mismatch(0, 65536, (((0, 1), 'a'), ((2,), 'b'))),
        Mismatch(65536, 512, (((0, 2), 'a'), ((1,), 'b'))),
        Mismatch(1 << 20, 65536, (((0,), 'a'), ((1,), 'b'), ((2,), 'c'))),
    ))  # fmt: skip
    assert [found.outvoted(slot) for slot in (0, 1, 2, 5)] == [(0, 0), (1, 512), (1, 65536), (0, 0)]


# Others on the same machine


def as_nobody(operation: Callable[[], object]) -> int:
    return in_child(operation, uid=NOBODY)


@pytest.fixture(scope='module')
def shared(pool: MountedPool) -> Volume:
    """A volume in a mount that others may look into."""
    return pool.volume('shared', 16 * MIB)


@pytest.mark.mount
def test_others_read_what_control_files_say_and_write_none(pool: MountedPool, shared: Volume) -> None:
    assert stat.S_IMODE(pool.mountpoint.stat().st_mode) == 0o755
    found = [*pool.control.iterdir(), shared.control, *shared.control.rglob('*')]
    files = [path for path in found if path.is_file()]
    folders = [pool.control, *(path for path in found if path.is_dir())]
    assert len(files) > 50 and len(folders) > 5
    for path in folders:
        info = path.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o755, os.getuid())
    for path in files:
        info = path.stat()
        assert stat.S_IMODE(info.st_mode) & 0o133 == 0 and info.st_uid == os.getuid(), path
    written = [pool.control / name for name in ('create', 'destroy')]
    written += [shared.control / name for name in ('add', 'size')]
    for path in written:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            opens = lambda path=path, flags=flags: os.open(path, flags)  # noqa: E731
            assert as_nobody(opens) == errno.EACCES
    assert as_nobody(lambda: None if b'"pid"' in (pool.control / 'status.json').read_bytes() else 1) == 0
    assert as_nobody(lambda: None if b'UU' in (pool.control / 'mdstat').read_bytes() else 1) == 0
    assert as_nobody(lambda: os.listdir(pool.mountpoint)) == 0


@pytest.mark.mount
def test_others_make_move_and_remove_nothing(pool: MountedPool, shared: Volume) -> None:
    root, image = pool.mountpoint, shared.image
    before = everything(shared)
    for operation in (
        lambda: os.open(root / 'new', os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(root / 'new'),
        lambda: os.symlink('/etc/passwd', root / 'new'),
        lambda: os.link(image, root / 'new'),
        lambda: os.rename(image, root / 'new'),
        lambda: os.unlink(image),
        lambda: os.open(image, os.O_RDONLY),
        lambda: os.truncate(image, 32 * MIB),
        lambda: os.chmod(image, 0o666),
        lambda: os.chown(image, NOBODY, NOBODY),
    ):
        assert as_nobody(operation) in (errno.EACCES, errno.EPERM)
    assert everything(shared) == before


@pytest.mark.mount
def test_an_image_is_for_whom_its_mode_says(shared: Volume) -> None:
    read = lambda: os.pread(os.open(shared.image, os.O_RDONLY), 1, 0)  # noqa: E731
    write = lambda: os.pwrite(os.open(shared.image, os.O_WRONLY), b'x', 0)  # noqa: E731
    shared.image.chmod(0o644)
    assert (as_nobody(lambda: read() and 0), as_nobody(write)) == (0, errno.EACCES)
    assert as_nobody(lambda: os.truncate(shared.image, 32 * MIB)) == errno.EACCES
    shared.image.chmod(0o600)
    os.chown(shared.image, NOBODY, NOBODY)
    assert as_nobody(lambda: write() and 0) == 0
    assert as_nobody(lambda: os.open(shared.control / 'size', os.O_WRONLY)) == errno.EACCES, 'not the pool'
    os.chown(shared.image, os.getuid(), os.getgid())


@pytest.mark.mount
def test_who_gets_past_the_kernel_is_refused_by_the_daemon(pool: MountedPool, shared: Volume) -> None:
    """Another user with CAP_DAC_OVERRIDE: modes do not stop it."""
    over = ['setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups']
    over += ['--inh-caps=+dac_override', '--ambient-caps=+dac_override']
    probe = run(*over, 'cat', shared.legs[0])
    assert probe.returncode == 0, f'the capability is not there: {probe.stderr}'
    done = run(*over, 'sh', '-c', 'echo 1 > "$1"/fail', 'sh', shared.control)
    assert 'Permission denied' in done.stderr
    assert [leg['state'] for leg in shared.status()['legs']] == ['in_sync', 'in_sync']


async def test_handlers_ask_who_calls(tmp_path: Path) -> None:
    """Each that opens or changes something of the control tree, without a kernel before it."""
    directory = PoolDirectory(str(tmp_path / 'pool'))
    directory.make()
    pool = Pool(directory, FileOpener(), EventLog(), Settings())
    tree = Tree(pool, '/mnt')
    names = Names(pool, tree, EventLog())
    folder, file, events = (tree.number(('.mirrorfs', *path)) for path in ((), ('create',), ('events',)))
    stranger, owner = SimpleNamespace(uid=NOBODY), SimpleNamespace(uid=os.getuid())
    times = SimpleNamespace(**dict.fromkeys(
        ('update_size', 'update_mode', 'update_uid', 'update_gid', 'update_atime', 'update_mtime'), False
    ))  # fmt: skip
    calls: list[Callable[[Any], Any]] = [
        lambda ctx: names.open(file, os.O_WRONLY, ctx),
        lambda ctx: names.open(file, os.O_RDWR, ctx),
        lambda ctx: names.setattr(file, None, times, None, ctx),
    ]
    for call in calls:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call(stranger)
        assert caught.value.errno == errno.EACCES
        await call(owner)
    await names.opendir(ROOT, stranger)
    await names.opendir(folder, stranger)
    await names.open(events, os.O_RDONLY, stranger)
    await names.lookup(ROOT, b'.mirrorfs', stranger)


# Modes of what is made


def modes(folder: Path) -> dict[str, int]:
    """Return the permission bits of all files below a folder that any but their owner could use."""
    files = [path for path in folder.rglob('*') if not path.is_dir()]
    found = {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in files}
    return {name: mode for name, mode in found.items() if mode & 0o177}


@pytest.mark.mount
@pytest.mark.timeout(90)
@pytest.mark.parametrize('umask', ['000', '077'])
def test_what_is_made_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    """The pool, definitions, legs, logs, spares; made by the command line, and by a daemon."""
    with MountedPool() as pool:
        leg, kept = pool.legs / 'a', pool.legs / 'kept'
        kept.touch(mode=0o640)
        kept.chmod(0o640)
        script = f"""
            umask {umask} && cd {pool.base} && m() {{ {' '.join(CLI[:2])} '{CLI[2]}' "$@"; }} &&
            m create pool disk --size 4M --leg {leg} --leg {kept} --log {pool.legs}/log &&
            m mount pool mnt && m add pool disk {pool.legs}/new &&
            m spare add pool {pool.legs}/spare --size 8M;
            echo "new 4M {pool.legs}/b log={pool.legs}/log2" > mnt/.mirrorfs/create &&
            echo check > mnt/.mirrorfs/volumes/disk/sync_action && m umount pool
        """
        done = subprocess.run(['sh', '-c', script], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE(pool.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((pool.directory / 'volumes').stat().st_mode) == 0o700
        assert modes(pool.directory) == {}
        assert modes(pool.legs) == {'kept': 0o640}, 'what was there keeps its mode'
        made = [*pool.directory.rglob('*'), *pool.legs.iterdir()]
        assert len(made) > 8 and {path.stat().st_uid for path in made} == {os.getuid()}


def test_a_file_that_a_crash_or_a_stranger_left_for_a_definition_is_not_followed(tmp_path: Path) -> None:
    directory = PoolDirectory(str(tmp_path / 'pool'))
    directory.make()
    mark = directory.path / 'mirrorfs.json'
    left = directory.path / '.mirrorfs.json.new'
    left.touch(mode=0o666)
    left.chmod(0o666)
    directory.make()
    assert stat.S_IMODE(mark.stat().st_mode) == 0o600
    target = tmp_path / 'precious'
    target.write_text('precious')
    left.symlink_to(target)
    with pytest.raises(Refused):
        directory.make()
    assert target.read_text() == 'precious'


@pytest.mark.parametrize('folder', ['.', 'volumes'])
def test_a_pool_that_anybody_can_write_to_is_refused(tmp_path: Path, folder: str) -> None:
    directory = PoolDirectory(str(tmp_path / 'pool'))
    directory.make()
    directory.require()
    (directory.path / folder).chmod(0o777)
    with pytest.raises(Refused, match=r'can be written by everybody \(mode 0777\).*chmod o-w') as caught:
        directory.require()
    assert caught.value.errno == errno.EPERM
