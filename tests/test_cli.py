"""The command line: what it makes, refuses and prints.  Nothing is left behind by what it refuses."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounts import (
    CLI,
    MIB,
    MountedPool,
    cli,
    cli_ok,
    examine,
    new_folder,
    run,
    sh,
    wait_for,
)

from mirrorfs.metadata import wibm

pytestmark = pytest.mark.timeout(120)
needs_mount = pytest.mark.mount


@pytest.fixture
def folder() -> Iterator[Path]:
    made = new_folder()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return what is in a folder: contents of files (their beginning), None for directories.

    Apart from what changes by itself; of a mount just the names.
    """
    found: dict[str, bytes | None] = {}
    for where, folders, files in os.walk(folder):
        found |= {os.path.join(where, name): None for name in folders}
        if os.path.ismount(where):
            found |= {os.path.join(where, name): None for name in files}
            folders.clear()
            continue
        for name in set(files) - {'lock', 'log', 'stderr'}:
            with open(os.path.join(where, name), 'rb') as file:
                found[os.path.join(where, name)] = file.read(4 * MIB)
    return found


# create


@dataclass(frozen=True)
class Bad:
    """A create that is refused: its words after the pool, and what it says."""

    words: str
    says: str


BAD_CREATES = {
    'too small': Bad('new --size 2M --leg SMALL', 'are needed'),
    'too small, second': Bad('new --size 2M --leg fresh --leg SMALL', 'are needed'),
    'too small, forced': Bad('new --size 2M --leg SMALL --force', 'are needed'),
    'a filesystem': Bad('new --size 2M --leg fresh --leg EXT4', 'ext4'),
    'leg of another': Bad('new --size 2M --leg fresh --leg USED', 'slot 1 of mirrorfs volume there'),
    'same path twice': Bad('new --size 2M --leg fresh --leg fresh', 'named twice'),
    'same file by two names': Bad('new --size 2M --leg BLANK --leg HARD', 'in use by'),
    'symbolic link': Bad('new --size 2M --leg LINK', 'name the file itself'),
    'exists': Bad('there --size 2M --leg fresh', 'a volume there already'),
    'no size': Bad('new --leg fresh', 'say how large'),
    'no leg': Bad('new --size 2M', '--leg'),
    'only missing': Bad('new --size 2M --leg missing', 'at least one leg'),
    'size 0': Bad('new --size 0 --leg fresh', 'at least'),
    'size of a fraction': Bad('new --size 0.3 --leg fresh', 'not a whole number'),
    'size odd': Bad('new --size 1000001 --leg fresh', 'multiple of 512'),
    'size a word': Bad('new --size huge --leg fresh', 'not a size'),
    'size negative': Bad('new --size=-1M --leg fresh', 'not a size'),
    'size with two suffixes': Bad('new --size 1MG --leg fresh', 'not a size'),
    'size too large': Bad('new --size 9000P --leg fresh', 'larger chunks'),
    'size of many digits': Bad(f'new --size {"9" * 50} --leg fresh', 'not a size'),
    'chunk no power of two': Bad('new --size 2M --leg fresh --chunk 3M', 'power of two'),
    'chunk too small': Bad('new --size 2M --leg fresh --chunk 32K', 'power of two'),
    'chunk too large': Bad('new --size 2M --leg fresh --chunk 128M', 'power of two'),
    'too many chunks': Bad('new --size 64T --leg fresh --chunk 64K', 'larger chunks'),
    'log unknown': Bad('new --size 2M --leg fresh --log magic', 'magic'),
    'name with slash': Bad('a/b --size 2M --leg fresh', 'cannot be a volume name'),
    'name hidden': Bad('.new --size 2M --leg fresh', 'cannot be a volume name'),
    'name with blank': Bad("'a b' --size 2M --leg fresh", 'cannot be a volume name'),
    'name with newline': Bad("'a\nb' --size 2M --leg fresh", 'cannot be a volume name'),
    'name empty': Bad("'' --size 2M --leg fresh", 'cannot be a volume name'),
    'name long': Bad(f'{"n" * 129} --size 2M --leg fresh', 'cannot be a volume name'),
    'name not UTF-8': Bad('NOTUTF8 --size 2M --leg fresh', 'cannot be a volume name'),
    'nine legs': Bad('new --size 2M ' + ' '.join(f'--leg f{n}' for n in range(9)), '8 at most'),
    'leg a directory': Bad('new --size 2M --leg fresh --leg DIR', 'neither a regular file nor'),
    'leg a character device': Bad('new --size 2M --leg fresh --leg /dev/null', 'neither a regular file'),
    'leg in no folder': Bad('new --size 2M --leg fresh --leg nowhere/leg', 'cannot be created'),
    'leg on a full filesystem': Bad('new --size 2M --leg fresh --leg /proc/leg', 'cannot be created'),
    'image missing': Bad('new --from nowhere.img --leg fresh', 'nowhere.img'),
    'image larger than size': Bad('new --from IMAGE --size 64K --leg fresh', 'more than --size'),
    'image empty': Bad('new --from EMPTY --leg fresh', 'at least'),
    'image and small leg': Bad('new --from IMAGE --leg fresh --leg SMALL', 'are needed'),
}


@pytest.fixture(scope='module')
def at_rest() -> Iterator[Path]:
    """A folder with a pool that is not mounted, and things that legs are taken for."""
    folder = new_folder()
    cli_ok('create', 'pool', 'there', '--size', '2M', '--leg', 'used0', '--leg', 'used', cwd=folder)
    make_things(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope='module')
def mounted(pool: MountedPool) -> Path:
    """The same with a mounted pool."""
    cli_ok('create', 'pool', 'there', '--size', '2M', '--leg', 'used0', '--leg', 'used', cwd=pool.base)
    cli_ok('destroy', 'pool', 'there', '--yes', cwd=pool.base)
    cli_ok('create', 'pool', 'there', '--size', '2M', '--leg', 'else0', cwd=pool.base)
    make_things(pool.base)
    return pool.base


def make_things(folder: Path) -> None:
    (folder / 'dir').mkdir()
    (folder / 'small').write_bytes(b'\0' * MIB)
    (folder / 'image').write_bytes(b'image' * (MIB // 5))
    (folder / 'empty').write_bytes(b'')
    for name in ('blank', 'ext4'):
        with open(folder / name, 'wb') as file:
            file.truncate(8 * MIB)
    (folder / 'link').symlink_to('blank')
    (folder / 'hard').hardlink_to(folder / 'blank')
    assert run('mkfs.ext4', '-q', folder / 'ext4').returncode == 0


def refuse_to_create(folder: Path, bad: Bad) -> None:
    words = bad.words
    for name in ('SMALL', 'EXT4', 'USED', 'BLANK', 'LINK', 'HARD', 'DIR', 'IMAGE', 'EMPTY'):
        words = re.sub(rf'\b{name}\b', str(folder / name.lower()), words)
    before = everything(folder)
    split = [os.fsdecode(b'\xff\xfe') if w == 'NOTUTF8' else w for w in shlex.split(words)]
    done = cli('create', 'pool', *split, cwd=folder)
    assert done.returncode == 1, done.stderr
    assert bad.says in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr and not done.stdout
    after = everything(folder)
    assert after.keys() == before.keys(), 'something was left behind'
    assert after == before, 'something was changed'


@pytest.mark.parametrize('case', BAD_CREATES)
def test_a_refused_create_says_why_and_leaves_nothing(at_rest: Path, case: str) -> None:
    refuse_to_create(at_rest, BAD_CREATES[case])


@needs_mount
@pytest.mark.parametrize('case', BAD_CREATES)
def test_a_refused_create_in_a_mounted_pool_says_why_and_leaves_nothing(mounted: Path, case: str) -> None:
    refuse_to_create(mounted, BAD_CREATES[case])


@needs_mount
@pytest.mark.loop
def test_a_device_that_is_too_small_mounted_or_used_by_another_is_refused(pool: MountedPool) -> None:
    backing, point = pool.base / 'backing', pool.base / 'point'
    point.mkdir()
    with open(backing, 'wb') as file:
        file.truncate(16 * MIB)
    device = run('losetup', '-f', '--show', backing).stdout.strip()

    def create(size: str, *more: str) -> tuple[int, str]:
        done = cli('create', pool.directory, 'dev', '--size', size, '--leg', device, *more)
        assert 'Traceback' not in done.stderr
        return done.returncode, done.stderr

    try:
        code, said = create('16M')
        assert code == 1 and f'{device} has {16 * MIB} bytes' in said
        assert backing.read_bytes() == bytes(16 * MIB), 'a refused device must stay as it is'
        assert run('mkfs.ext4', '-q', device).returncode == 0
        code, said = create('8M')
        assert code == 1 and 'ext4' in said and '--force' in said
        assert run('mount', device, point).returncode == 0
        code, said = create('8M', '--force')
        assert code == 1 and f'the filesystem mounted at {point}' in said
        assert run('umount', point).returncode == 0
        assert create('8M', '--force')[0] == 0
        image = pool.mountpoint / 'dev'
        assert image.read_bytes() == bytes(8 * MIB), 'old content must not shine through'
        with open(image, 'r+b', buffering=0) as file:
            file.write(b'x')
        assert image.read_bytes() == b'x' + bytes(8 * MIB - 1)
        cli_ok('destroy', pool.directory, 'dev', '--yes')
        assert create('8M')[0] == 1, 'it is a leg now'
    finally:
        run('umount', point)
        run('losetup', '-d', device)


@pytest.mark.parametrize('where', ['at rest', pytest.param('mounted', marks=needs_mount)])
def test_force_takes_a_leg_with_a_signature(where: str) -> None:
    with MountedPool() as pool:
        if where == 'mounted':
            pool.start()
        leg = pool.legs / 'leg'
        with open(leg, 'wb') as file:
            file.truncate(8 * MIB)
        assert run('mkfs.ext4', '-q', leg).returncode == 0
        words = ['create', pool.directory, 'disk', '--size', '4M', '--leg', leg]
        done = cli(*words)
        assert done.returncode == 1 and 'ext4' in done.stderr
        assert cli_ok(*words, '--force') == 'disk: 4 MiB, 1 legs\n'
        if where != 'mounted':
            assert examine(leg)[0]['volume'] == 'disk'
            return
        assert (pool.mountpoint / 'disk').read_bytes() == bytes(4 * MIB)
        pool.stop()


def test_a_folder_with_other_things_in_it_does_not_become_a_pool(folder: Path) -> None:
    (folder / 'precious').write_text('mine')
    done = cli('create', folder, 'disk', '--size', '1M', '--leg', '/tmp/never-made')
    assert done.returncode == 1 and 'not empty and no pool' in done.stderr
    assert os.listdir(folder) == ['precious'] and not os.path.exists('/tmp/never-made')


def test_a_leg_may_be_missing_and_come_later(folder: Path) -> None:
    done = cli_ok('create', 'pool', 'disk', '--size', '4M', '--leg', 'a', '--leg', 'missing', cwd=folder)
    assert done == 'disk: 4 MiB, 2 legs\n'
    facts = examine(folder / 'a')[0]
    assert facts['raid_disks'] == 2 and list(facts['slots']) == ['0']
    assert not (folder / 'missing').exists()


@needs_mount
def test_a_missing_leg_is_added_while_mounted(pool: MountedPool) -> None:
    cli_ok('create', pool.directory, 'half', '--size', '4M', '--leg', pool.legs / 'a', '--leg', 'missing')
    assert pool.volume_status('half')['degraded'] == 1
    (pool.mountpoint / 'half').write_bytes(b'content')
    cli_ok('add', pool.mountpoint, 'half', pool.legs / 'b')
    cli_ok('wait', pool.mountpoint, 'half', '--timeout', '30')
    assert pool.volume_status('half')['degraded'] == 0
    done = cli('wait', pool.mountpoint, 'nothing')
    assert done.returncode == 1 and 'no volume' in done.stderr
    cli_ok('destroy', pool.directory, 'half', '--yes')


# --from


def make_image(path: Path, size: int) -> None:
    """A sparse file with some data, at odd places too."""
    with open(path, 'wb') as file:
        file.truncate(size)
        for at, length in ((0, 5000), (3 * MIB + 100, MIB), (20 * MIB, 512), (size - 300, 300)):
            os.pwrite(file.fileno(), random.Random(at).randbytes(length), at)


@pytest.mark.parametrize('where', ['at rest', pytest.param('mounted', marks=needs_mount)])
@pytest.mark.parametrize('size', [32 * MIB, 32 * MIB + 4711])
def test_an_image_is_copied_in_equal_and_stays_sparse(where: str, size: int) -> None:
    with MountedPool() as pool:
        if where == 'mounted':
            pool.start()
        image = pool.base / 'image'
        make_image(image, size)
        legs = pool.leg_paths('disk', 3)
        words = [word for leg in legs for word in ('--leg', str(leg))]
        cli_ok('create', pool.directory, 'disk', '--from', image, *words)
        if where != 'mounted':
            assert not any(leg['active'] or leg['chunks']['dirty'] for leg in examine(*legs))
            if os.geteuid() or not os.path.exists('/dev/fuse'):
                return
            pool.start()
        padded = image.read_bytes() + bytes(-size % 512)
        assert (pool.mountpoint / 'disk').read_bytes() == padded
        pool.stop()
        offset = examine(legs[0])[0]['data_offset']
        for leg in legs:
            assert leg.read_bytes()[offset : offset + len(padded)] == padded
            assert leg.stat().st_blocks * 512 < 10 * MIB, 'the leg is not sparse'


def test_an_image_goes_into_a_larger_volume(folder: Path) -> None:
    make_image(folder / 'image', 32 * MIB)
    cli_ok('create', 'pool', 'disk', '--from', 'image', '--size', '64M', '--leg', 'a', cwd=folder)
    facts = examine(folder / 'a')[0]
    assert facts['size'] == 64 * MIB
    data = (folder / 'a').read_bytes()[facts['data_offset'] :]
    assert data[: 32 * MIB] == (folder / 'image').read_bytes() and not any(data[32 * MIB : 64 * MIB])


def test_an_interrupted_copy_leaves_nothing(folder: Path) -> None:
    """The legs' filesystem is full before the image is in."""
    small = folder / 'small'
    small.mkdir()
    if run('mount', '-t', 'tmpfs', '-o', 'size=8M', 'none', small).returncode:
        pytest.skip('cannot mount a tmpfs')
    try:
        (folder / 'image').write_bytes(os.urandom(16 * MIB))
        words = ['--from', 'image', '--leg', 'other', '--leg', 'small/leg']
        done = cli('create', 'pool', 'disk', *words, cwd=folder)
        assert done.returncode in (1, 2) and 'Traceback' not in done.stderr
        assert 'o space left' in done.stderr
        assert not (small / 'leg').exists() and not (folder / 'other').exists()
        assert not (folder / 'pool').exists()
    finally:
        run('umount', small)


# examine


def make_leg(folder: Path) -> Path:
    cli_ok('create', 'pool', 'disk', '--size', '4M', '--leg', 'a', '--leg', 'b', cwd=folder)
    return folder / 'a'


def test_examine_tells_all_of_a_good_leg_in_text_and_json(folder: Path) -> None:
    leg = make_leg(folder)
    facts = examine(leg)[0]
    assert facts['format'] == 'wibm' and facts['volume'] == 'disk' and facts['slot'] == 0
    assert facts['size'] == 4 * MIB and facts['chunk_size'] == MIB and facts['state'] == 'in_sync'
    assert facts['leg_size'] == facts['needed_size'] == leg.stat().st_size
    assert facts['active'] is False and facts['log'] == {'pages': 1, 'damaged_pages': 0, 'serial': 1}
    text = cli_ok('examine', leg, folder / 'b')
    assert re.search(r'Volume : disk \([0-9a-f-]{36}\)', text)
    assert re.search(r'Dirty : 0 chunks', text)
    assert 'slot 0 of 2' in text and 'slot 1 of 2' in text
    columns = {line.index(' : ') for line in text.splitlines() if ' : ' in line}
    assert len(columns) == 1, 'colons in one column'


def flip(path: Path, at: int) -> None:
    with open(path, 'r+b') as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_examine_uses_the_other_copy_of_a_damaged_superblock_and_log(folder: Path) -> None:
    leg = make_leg(folder)
    first, second = wibm.SUPER_OFFSETS
    flip(leg, first + 100)
    facts = examine(leg)[0]
    assert facts['superblock'] == 'secondary' and facts['volume'] == 'disk'
    flip(leg, second + 200)
    done = cli('examine', leg, folder / 'b')
    assert done.returncode == 1
    assert done.stdout.startswith(f'{leg}: ') and 'Volume : disk' in done.stdout, 'the good leg is shown'
    assert 'Traceback' not in done.stderr


def test_examine_of_any_flipped_bit_never_lies_nor_breaks(folder: Path) -> None:
    leg = make_leg(folder)
    original = leg.read_bytes()
    good = examine(leg)[0]
    dice = random.Random(7)
    legs = []
    first, second = wibm.SUPER_OFFSETS
    for number in range(40):
        data = bytearray(original[:MIB])
        data[second : second + 4096] = bytes(4096)
        data[dice.randrange(first, first + 4096)] ^= 1 << dice.randrange(8)
        (folder / f'flipped{number}').write_bytes(data)
        legs.append(folder / f'flipped{number}')
    for facts in examine(*legs):
        if 'error' not in facts:
            assert {k: v for k, v in facts.items() if k not in ('path', 'leg_size')} == {
                k: v for k, v in good.items() if k not in ('path', 'leg_size')
            }


def test_examine_of_truncated_foreign_and_missing_files_is_readable(folder: Path) -> None:
    leg = make_leg(folder)
    names = ['cut0', 'cut512', 'cut5000', 'cut70000', 'zeros', 'noise', 'text', 'missing', 'pool', 'fifo']
    for name in names[:4]:
        (folder / name).write_bytes(leg.read_bytes()[: int(name[3:])])
    (folder / 'zeros').write_bytes(bytes(2 * MIB))
    (folder / 'noise').write_bytes(random.Random(1).randbytes(2 * MIB))
    (folder / 'text').write_text('hello\n' * 1000)
    os.mkfifo(folder / 'fifo')
    done = cli('examine', *names, 'b', cwd=folder, timeout=20)
    assert done.returncode == 1 and 'Traceback' not in done.stderr and not done.stderr
    paragraphs = done.stdout.strip().split('\n\n')
    assert [part.split(':')[0] for part in paragraphs] == [*names, 'b']
    # A leg cut after its superblocks still says whose it is; the log counts as damaged.
    assert [len(part.splitlines()) == 1 for part in paragraphs] == [
        *(name != 'cut70000' for name in names),
        False,
    ]
    answers = json.loads(cli('examine', '--json', *names, cwd=folder).stdout)
    assert [answer['path'] for answer in answers] == names
    assert answers[7]['error'] == 'No such file or directory'
    assert all(answer['error'] for answer in answers if answer['path'] != 'cut70000')


@needs_mount
def test_examine_of_a_leg_in_use_disturbs_nobody(pool: MountedPool) -> None:
    volume = pool.volume('busy', 8 * MIB)
    volume.image.write_bytes(b'x')
    facts = examine(*volume.legs)
    assert all(leg['active'] and leg['chunks']['dirty'] >= 1 for leg in facts)
    assert volume.status()['degraded'] == 0
    volume.image.write_bytes(b'y')
    volume.destroy()


# A very large volume


MEASURE = (
    'import os, sys\n'
    'pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])\n'
    '_, status, usage = os.wait4(pid, 0)\n'
    'print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)\n'
)


def measured(*words: str | Path) -> tuple[float, float]:
    """Run the command line; return the seconds and the MiB of memory that it took."""
    began = time.monotonic()
    done = run(sys.executable, '-c', MEASURE, *CLI, *words)
    seconds = time.monotonic() - began
    code, rss = done.stdout.split()[-2:]
    assert code == '0', done.stderr
    return seconds, int(rss) / 1024


@needs_mount
def test_64_tib_are_created_mounted_and_examined_in_little_time_and_memory() -> None:
    with MountedPool() as pool:
        tmpfs = pool.base / 'tmpfs'
        tmpfs.mkdir()
        if run('mount', '-t', 'tmpfs', '-o', 'size=2G', 'none', tmpfs).returncode:
            pytest.skip('cannot mount a tmpfs')
        legs = [tmpfs / 'a', tmpfs / 'b']
        words = [word for leg in legs for word in ('--leg', str(leg))]
        figures = {
            'create': measured('create', pool.directory, 'huge', '--size', '64T', *words),
            'examine': measured('examine', *legs),
            'examine --json': measured('examine', '--json', *legs),
        }
        facts = examine(legs[0])[0]
        assert facts['size'] == 64 << 40 and facts['chunk_size'] == 64 * MIB
        began = time.monotonic()
        pool.start()
        figures['mount'] = time.monotonic() - began, 0
        image = pool.mountpoint / 'huge'
        assert image.stat().st_size == 64 << 40
        with open(image, 'r+b', buffering=0) as file:
            for at in (0, (64 << 40) - 5, 33 << 40):
                assert os.pread(file.fileno(), 5, at) == bytes(5)
                assert os.pwrite(file.fileno(), b'there', at) == 5
                assert os.pread(file.fileno(), 5, at) == b'there'
            os.fsync(file.fileno())
        began = time.monotonic()
        cli_ok('status', pool.directory)
        figures['status'] = time.monotonic() - began, 0
        status = Path(f'/proc/{pool.pid}/status').read_text()
        figures['daemon'] = 0, int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024  # type: ignore[index]
        began = time.monotonic()
        pool.stop()
        figures['umount'] = time.monotonic() - began, 0
        text = ', '.join(f'{what} {s:.2f} s {m:.0f} MiB' for what, (s, m) in figures.items())
        assert all(seconds < 10 and memory < 300 for seconds, memory in figures.values()), text
        assert sum(leg.stat().st_blocks * 512 for leg in legs) < 400 * MIB, text


# status, list, wait, events


@needs_mount
def test_list_and_status_agree_at_rest_and_mounted(pool: MountedPool) -> None:
    with MountedPool() as other:
        disk = other.volume_at_rest('disk', 4 * MIB)
        other.volume_at_rest('zwei', 4 * MIB, legs=3)
        (other.directory / 'volumes/bad.json').write_text('nonsense')
        assert set(cli_ok('list', other.directory).split()) == {'disk', 'zwei', 'bad'}
        text = cli_ok('status', other.directory)
        assert text.startswith(f'pool {other.directory}, not mounted\n')
        assert 'bad.json' in text
        other.start()
        assert set(cli_ok('list', other.mountpoint).split()) == {'disk', 'zwei', 'bad'}
        assert set(json.loads(cli_ok('list', other.directory, '--json'))) == {'disk', 'zwei', 'bad'}
        text = cli_ok('status', other.directory)
        assert f'mounted on {other.mountpoint}' in text and 'bad.json' in text
        text = cli_ok('status', other.mountpoint, 'disk')
        assert text.count('volume: ') == 1 and 'state: clean' in text
        assert re.search(rf'^ +0  in_sync .*  {disk.legs[0]}$', text, re.MULTILINE)
        cli_ok('fail', other.directory, 'disk', disk.legs[1])
        text = cli_ok('status', other.directory, 'disk')
        assert 'degraded (1 of 2 legs missing)' in text and 'mirrorfs re-add' in text
        assert 'faulty' in text
        facts = json.loads(cli_ok('status', other.directory, 'disk', '--json'))
        assert [leg['state'] for leg in facts[0]['legs']] == ['in_sync', 'faulty']
        done = cli('wait', other.directory, 'disk', '--timeout', '1')
        assert done.returncode == 1 and 'still degraded' in done.stderr
        cli_ok('re-add', other.directory, 'disk', 'missing')
        cli_ok('wait', other.directory, 'disk', '--timeout', '30')
        assert 'SpareActive disk' in cli_ok('events', other.directory)
        cli_ok('grow', other.directory, 'disk', '6M')
        assert (other.mountpoint / 'disk').stat().st_size == 6 * MIB
        other.stop()


@needs_mount
def test_wait_gives_up_after_its_timeout_and_says_so(pool: MountedPool) -> None:
    volume = pool.volume('waiting', 8 * MIB)
    volume.write('sync_action', 'frozen')
    volume.write('fail', '1')
    volume.image.write_bytes(b'x' * MIB)
    volume.write('re-add', '1')
    done = cli('wait', pool.directory, 'waiting', '--timeout', '0.5', timeout=20)
    assert done.returncode == 1 and done.stderr.startswith('mirrorfs: ')
    volume.write('sync_action', 'idle')
    cli_ok('wait', pool.directory, 'waiting', '--timeout', '30')
    volume.destroy()


@needs_mount
def test_output_into_a_closed_pipe_is_no_defect(pool: MountedPool) -> None:
    done = sh('"$@" | :', *CLI, 'status', pool.directory)
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr


@needs_mount
def test_events_follow_shows_what_happens_next(pool: MountedPool) -> None:
    volume = pool.volume('followed', 4 * MIB)
    command = [*CLI, 'events', pool.directory, '--follow']
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background may have them ignore it, and what they start, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as follower:
        try:
            assert follower.stdout
            os.set_blocking(follower.stdout.fileno(), False)
            seen = ''

            def shown(word: str) -> bool:
                nonlocal seen
                assert follower.stdout
                try:
                    seen += os.read(follower.stdout.fileno(), 1 << 16).decode()
                except BlockingIOError:
                    pass
                return word in seen

            wait_for(lambda: shown('NewArray followed'), 'old events')
            volume.write('fail', '1')
            wait_for(lambda: shown('Fail followed'), 'the new event')
        finally:
            follower.send_signal(2)
            _, errors = follower.communicate(timeout=20)
        assert follower.returncode == 130 and 'Traceback' not in errors
    volume.destroy()


# Wrong command lines


WRONG: Sequence[str] = (
    '',
    'nonsense',
    '--nonsense',
    'create',
    'create POOL',
    'create POOL x --colour red',
    'destroy',
    'destroy POOL',
    'destroy POOL nothing --yes',
    'destroy /nowhere x --yes',
    'destroy POOL disk',
    'mount',
    'mount POOL',
    'mount /nowhere MNT',
    'mount POOL /nowhere',
    'mount POOL POOL/mirrorfs.json',
    'mount POOL MNT -o colour',
    'mount POOL MNT -o leg_timeout=0',
    'mount POOL MNT --force nothing',
    'umount',
    'umount POOL',
    'umount /nowhere',
    'list',
    'list /nowhere',
    'list /etc/passwd',
    'status /nowhere',
    'status POOL nothing',
    'status POOL disk more',
    'wait POOL',
    'wait POOL --timeout soon',
    'events POOL',
    'add POOL disk',
    'add POOL disk /leg',
    'remove POOL disk 0',
    'fail POOL disk 0',
    'fail /nowhere disk 0',
    're-add POOL disk 0',
    're-add POOL',
    'grow POOL disk',
    'grow POOL disk huge',
    'grow POOL disk 1G',
    'set POOL disk time_base',
    'set POOL disk time_base 3',
    'set POOL disk colour red',
    'spare POOL add',
    'spare POOL add /leg',
    'spare POOL give /leg',
    'spare POOL --force',
    'examine',
    'examine /nowhere',
    'examine /',
    'examine /proc/self/mem',
    'examine --colour',
    "list 'a\nb'",
    "status ''",
)
RIGHT_AFTER_ALL = ('', 'list POOL')


@pytest.mark.parametrize('words', WRONG)
def test_a_wrong_command_line_gets_a_message_and_no_traceback(at_rest: Path, words: str) -> None:
    mountpoint = at_rest / 'point'
    mountpoint.mkdir(exist_ok=True)
    split = shlex.split(words.replace('POOL', str(at_rest / 'pool')).replace('MNT', str(mountpoint)))
    before = everything(at_rest / 'pool')
    done = cli(*split, cwd=at_rest, timeout=30)
    assert done.returncode in ((0, 1, 2) if words in RIGHT_AFTER_ALL else (1, 2, 32, 130)), done.stdout
    assert 'Traceback' not in done.stderr and 'unexpected error' not in done.stderr
    assert (done.stderr + done.stdout).strip()
    assert everything(at_rest / 'pool') == before


def test_set_changes_what_can_be_set_and_refuses_the_rest(pool: MountedPool) -> None:
    volume = pool.volume('disk')
    cli_ok('set', pool.directory, 'disk', 'time_base', '0.5')
    assert volume.read('bitmap/time_base') == '0.500\n'
    cli_ok('set', pool.directory, 'disk', 'sync_action', 'frozen')
    assert volume.read('sync_action') == 'frozen\n'
    for key, value in (('time_base', 'never'), ('sync_action', 'dance'), ('colour', 'red')):
        assert cli('set', pool.directory, 'disk', key, value).returncode == 1
    assert volume.read('bitmap/time_base') == '0.500\n'


@pytest.mark.parametrize('verb', ['', *'create destroy mount umount list status wait events set'.split(),
                                  *'add remove fail re-add grow check repair examine monitor'.split(),
                                  *'assemble resolve replace move mark'.split()])  # fmt: skip
def test_every_verb_has_help(verb: str) -> None:
    text = cli_ok(*filter(None, [verb]), '--help')
    assert text.startswith('Usage: ') and len(text.splitlines()) > 4


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name('mirrorfs')
    assert script.exists(), 'the package is not installed: pip install -e .'
    assert run(script, '--version').stdout.strip().endswith('0.1.0')
