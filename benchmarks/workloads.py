"""What is measured: fio on an image, and what people do on an ext4 on a loop device over it.

Every measurement returns a rate, of which more is better.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contenders import MIB, loop, mounted, run

FSYNC = '4k random write, fdatasync each'


@dataclass(frozen=True)
class Cell:
    """One fio job on the image itself, O_DIRECT."""

    pattern: str
    block: str
    depth: int
    fdatasync: bool = False

    @property
    def name(self) -> str:
        if self.fdatasync:
            return FSYNC
        kind = 'random' if 'rand' in self.pattern else 'sequential'
        return f'{self.block} {kind} {self.pattern.removeprefix("rand")}, depth {self.depth}'


CELLS = [
    *(
        Cell(pattern, block, depth)
        for block in ('4k', '64k', '1m')
        for pattern in ('randwrite', 'randread', 'write', 'read')
        for depth in (1, 16)
    ),
    Cell('randwrite', '4k', 1, fdatasync=True),
]


def fio(target: Path, *options: str) -> dict[str, float]:
    """Run one fio job; return operations a second of reads and writes."""
    words = ['fio', '--name=run', f'--filename={target}', '--output-format=json', '--randrepeat=0']
    text = run(*words, *options)
    job = json.loads(text[text.index('{') :])['jobs'][0]
    return {'read': float(job['read']['iops']), 'write': float(job['write']['iops'])}


def cell_rate(image: Path, cell: Cell, size: int, seconds: float) -> float:
    """Return a cell's operations a second."""
    options = [f'--rw={cell.pattern}', f'--bs={cell.block}', f'--iodepth={cell.depth}', f'--size={size}']
    options += ['--ioengine=libaio', '--direct=1', '--time_based', f'--runtime={seconds}', '--ramp_time=0.5']
    options += ['--fdatasync=1'] if cell.fdatasync else []
    return fio(image, *options)['read' if 'read' in cell.pattern else 'write']


@contextlib.contextmanager
def filesystem(image: Path, where: Path, *, direct: bool) -> Iterator[Path]:
    """ext4 on a loop device over the image."""
    options = ['--sector-size', '4096', *(['--direct-io=on'] if direct else [])]
    with loop(image, *options) as device:
        run('mkfs.ext4', '-q', '-F', device)
        with mounted(device, where) as mountpoint:
            yield mountpoint


def drop_caches() -> None:
    run('sync')
    Path('/proc/sys/vm/drop_caches').write_text('3')


def fdatasync_write(where: Path, seconds: float) -> float:
    options = ('--rw=randwrite', '--bs=4k', '--size=64m', '--fdatasync=1', '--time_based')
    return fio(where / 'fio', *options, f'--runtime={seconds}', '--ramp_time=0.5')['write']


def mixed(where: Path, seconds: float) -> float:
    options = ('--rw=randrw', '--bs=8k', '--size=128m', '--ioengine=libaio', '--direct=1', '--iodepth=16')
    rates = fio(where / 'fio', *options, '--time_based', f'--runtime={seconds}', '--ramp_time=0.5')
    return rates['read'] + rates['write']


def sequential_write(where: Path, seconds: float) -> float:
    """1 MiB after 1 MiB, and an fsync: MiB a second."""
    with timed(256) as rate, open(where / 'big', 'wb', buffering=0) as file:
        block = os.urandom(MIB)
        for _ in range(256):
            file.write(block)
        os.fsync(file.fileno())
    return rate()


def cold_read(where: Path, seconds: float) -> float:
    """A file that is in nobody's cache: MiB a second."""
    if not (where / 'big').exists():
        sequential_write(where, seconds)
    drop_caches()
    with timed(256) as rate, open(where / 'big', 'rb', buffering=0) as file:
        while file.read(MIB):
            pass
    return rate()


def untar(where: Path, seconds: float) -> float:
    """Some thousand small files, and a sync: archives a minute."""
    target = where / 'tree'
    target.mkdir()
    with timed(60) as rate:
        run('tar', '-C', target, '-xf', archive())
        run('sync', '-f', where)
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
    database = sqlite3.connect(where / 'rows.db')
    database.execute('create table if not exists rows (number integer primary key, text text)')
    count = 200
    with timed(count) as rate:
        for _ in range(count):
            database.execute('insert into rows (text) values (?)', ('x' * 100,))
            database.commit()
    database.close()
    return rate()


def clone(where: Path, seconds: float) -> float:
    """git clone of a local repository, all of it copied, and a sync: clones a minute."""
    target, source = where / 'clone', Path(__file__).resolve().parent.parent
    with timed(60) as rate:
        run('git', 'clone', '--quiet', '--no-local', f'file://{source}', target)
        run('sync', '-f', where)
    shutil.rmtree(target)
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


@contextlib.contextmanager
def timed(amount: float) -> Iterator[Callable[[], float]]:
    """Time a block; what is yielded then returns amount a second."""
    began, took = time.monotonic(), 0.0
    yield lambda: amount / took
    took = time.monotonic() - began


class Disk:
    """How busy the disk under a folder is."""

    def __init__(self, folder: Path) -> None:
        device = os.stat(folder).st_dev
        self._stat = Path(f'/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat')

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], float]]:
        """Watch during a block; what is yielded then returns the share of the time that it was busy."""
        before, began, share = self._busy(), time.monotonic(), 0.0
        yield lambda: share
        share = (self._busy() - before) / 1000 / max(time.monotonic() - began, 1e-3)

    def _busy(self) -> int:
        """Return the milliseconds that the disk has been busy; 0 where that is not counted."""
        try:
            return int(self._stat.read_text().split()[9])
        except OSError:
            return 0


__all__ = ['CELLS', 'JOBS', 'Cell', 'Disk', 'cell_rate', 'filesystem']
