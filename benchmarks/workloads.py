"""What is measured: fio on an image, and what people do on an ext4 on a loop device over it.

Every measurement returns a rate, of which more is better: operations a second where nothing else is said.
"""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders import loop, mounted
from host import MIB, REPOSITORY, drop_caches, run, timed

MIXED_SIZE, FSYNC_SIZE = '64m', '32m'
BIG = 256
"""MiB of the file that is written and read in one go."""
ROWS = 200


@dataclass(frozen=True)
class Cell:
    """One fio job on an image, O_DIRECT unless `buffered`."""

    pattern: str
    block: str
    depth: int
    fdatasync: bool = False
    buffered: bool = False

    @property
    def writes(self) -> bool:
        return 'write' in self.pattern

    @property
    def name(self) -> str:
        kind = 'random' if 'rand' in self.pattern else 'sequential'
        words = f'{self.block} {kind} {self.pattern.removeprefix("rand")}'
        if self.fdatasync:
            return f'{words}, fdatasync each'
        return f'{words}, buffered' if self.buffered else f'{words}, depth {self.depth}'

    def options(self, size: int, seconds: float) -> list[str]:
        """Return fio's options.  Whole milliseconds: fio takes only whole seconds where no unit is said."""
        options = [f'--rw={self.pattern}', f'--bs={self.block}', f'--iodepth={self.depth}', f'--size={size}']
        options += ['--time_based', f'--runtime={seconds * 1000:.0f}ms', '--ramp_time=300ms']
        options += (
            ['--ioengine=psync', '--invalidate=0'] if self.buffered else ['--ioengine=libaio', '--direct=1']
        )
        return options + (['--fdatasync=1'] if self.fdatasync else [])


CELLS = [
    Cell(pattern, block, depth)
    for block in ('4k', '64k', '1m')
    for pattern in ('randwrite', 'randread', 'write', 'read')
    for depth in (1, 16)
]
SYNCED = Cell('randwrite', '4k', 1, fdatasync=True)
BUFFERED = Cell('randread', '4k', 1, buffered=True)
HOT = [Cell('randwrite', '4k', 1), Cell('randwrite', '4k', 16)]
DEEP = [Cell('randread', '4k', 16), Cell('randwrite', '4k', 16)]


def fio(targets: Sequence[Path], *options: str) -> list[float]:
    """Run fio, a job on each target, all at once; return the operations a second of each."""
    words = ['fio', '--name=global', '--output-format=json', '--randrepeat=0', '--thread', *options]
    for number, target in enumerate(targets):
        words += [f'--name={number}', f'--filename={target}']
    text = run(*words, patient=False)
    jobs = json.loads(text[text.index('{') :])['jobs']
    return [float(job['read']['iops']) + float(job['write']['iops']) for job in jobs]


def cell_rate(image: Path, cell: Cell, size: int, seconds: float) -> float:
    return fio([image], *cell.options(size, seconds))[0]


def touch(images: Sequence[Path], size: int) -> None:
    """Write 4 KiB to each MiB of images: where an intent log is kept, all of it is marked as dirty then."""
    count = size // MIB
    options = ['--rw=write:1020k', '--bs=4k', '--iodepth=16', '--ioengine=libaio', '--direct=1']
    fio(images, *options, f'--size={size}', f'--number_ios={count}')


def warm(images: Sequence[Path], size: int) -> None:
    """Read images as a whole: what a contender keeps in the page cache is there then."""
    for image in images:
        with open(image, 'rb', buffering=0) as file:
            for _ in range(0, size, MIB):
                file.read(MIB)


def side_by_side(folder: Path, size: int, seconds: float) -> float:
    """Two raw files written at the same time: the mean rate of the two."""
    return sum(fio([folder / '0', folder / '1'], *SYNCED.options(size, seconds))) / 2


def together(images: Sequence[Path], cell: Cell, size: int, seconds: float) -> float:
    """Return the sum of the rates of all images at once, each with its share of the cell's depth."""
    shared = Cell(cell.pattern, cell.block, cell.depth // len(images))
    return sum(fio(images, *shared.options(size, seconds)))


def first_write(image: Path, size: int) -> float:
    """Write a fresh volume from its start to its end: MiB a second."""
    options = ['--rw=write', '--bs=1m', '--iodepth=4', '--ioengine=libaio', '--direct=1', f'--size={size}']
    return fio([image], *options)[0]


# On an ext4 on a loop device over the image


@contextlib.contextmanager
def filesystem(image: Path, where: Path, *, direct: bool) -> Iterator[Path]:
    options = ['--sector-size', '4096', *(['--direct-io=on'] if direct else [])]
    with loop(image, *options) as device:
        run('mkfs.ext4', '-q', '-F', device)
        with mounted(device, where) as mountpoint:
            yield mountpoint


def fdatasync_write(where: Path, seconds: float) -> float:
    options = ['--rw=randwrite', '--bs=4k', f'--size={FSYNC_SIZE}', '--fdatasync=1', '--ioengine=psync']
    return fio([where / 'synced'], *options, '--time_based', f'--runtime={seconds * 1000:.0f}ms')[0]


def mixed(where: Path, seconds: float) -> float:
    """Half reads and half writes."""
    options = [
        '--rw=randrw',
        '--bs=8k',
        f'--size={MIXED_SIZE}',
        '--ioengine=libaio',
        '--direct=1',
        '--iodepth=16',
    ]
    return fio([where / 'mixed'], *options, '--time_based', f'--runtime={seconds * 1000:.0f}ms')[0]


def sequential_write(where: Path, seconds: float) -> float:
    """1 MiB after 1 MiB, and an fsync: MiB a second."""
    block = os.urandom(MIB)
    with timed(BIG) as rate, open(where / 'big', 'wb', buffering=0) as file:
        for _ in range(BIG):
            file.write(block)
        os.fsync(file.fileno())
    return rate()


def cold_read(where: Path, seconds: float) -> float:
    """A file that is in nobody's cache: MiB a second."""
    if not (where / 'big').exists():
        sequential_write(where, seconds)
    drop_caches()
    with timed(BIG) as rate, open(where / 'big', 'rb', buffering=0) as file:
        while file.read(MIB):
            pass
    return rate()


def untar(where: Path, seconds: float) -> float:
    """Some thousand small files, and a sync: archives a minute."""
    target, source = where / 'tree', archive()
    target.mkdir()
    try:
        with timed(60) as rate:
            run('tar', '-C', target, '-xf', source)
            run('sync', '-f', where)
    finally:
        shutil.rmtree(target)
    return rate()


def archive_path() -> Path:
    return Path('/dev/shm') / f'mirrorfs-bench-{os.getpid()}.tar'


def archive() -> Path:
    """Return a tar archive of Python's library, made once in the memory of this machine."""
    path = archive_path()
    if not path.exists():
        library, without = Path(os.__file__).parent, ('--exclude=__pycache__', '--exclude=*-packages')
        run('tar', '-C', library, *without, '-cf', path, '.')
    return path


def inserts(where: Path, seconds: float) -> float:
    """SQLite, a transaction for each row: rows a second."""
    with contextlib.closing(sqlite3.connect(where / 'rows.db')) as database:
        database.execute('create table if not exists rows (number integer primary key, text text)')
        with timed(ROWS) as rate:
            for _ in range(ROWS):
                database.execute('insert into rows (text) values (?)', ('x' * 100,))
                database.commit()
    return rate()


def clone(where: Path, seconds: float) -> float:
    """git clone of a local repository, all of it copied, and a sync: clones a minute."""
    target = where / 'clone'
    try:
        with timed(60) as rate:
            run('git', 'clone', '--quiet', '--no-local', f'file://{REPOSITORY}', target)
            run('sync', '-f', where)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return rate()


JOBS: dict[str, Callable[[Path, float], float]] = {
    'fdatasync random write': fdatasync_write,
    '8k mixed random': mixed,
    '1m sequential write, fsync': sequential_write,
    'cold sequential read': cold_read,
    'untar, sync': untar,
    'SQLite inserts': inserts,
    'git clone': clone,
}
