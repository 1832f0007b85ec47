#!/usr/bin/env python3
"""Where the time of a hot 4 KiB request goes, step by step, and the floors below it.

    .venv/bin/python benchmarks/steps.py [--folder DIR] [--seconds 2]

As root.  A mount whose lane times its system calls (which costs 0.1 us each) serves fio at depth 1
and 16; printed are medians, in microseconds.  What is between them is Python.  The floors are FUSE mounts
that do nothing: qemu-storage-daemon with null-co, in C, and pyfuse3 with handlers that return at once.
"""

import argparse
import contextlib
import errno
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import host
from contenders import background, end, nothing, wait_for
from host import MIB, TOOL, run
from pools import fill
from workloads import CELLS, Cell, cell_rate

SIZE = 256 * MIB
HOT = [cell for cell in CELLS if cell.name.startswith('4k random') and not cell.fdatasync]
STEPS = {
    'readv': 'read the request from the kernel',
    'pwrite': 'write one leg',
    'preadv': 'read the home leg',
    'write': 'write the reply to the kernel',
    'python': 'Python between them, in all',
}


def serve(pool: str, mountpoint: str, out: str) -> int:
    """Be the daemon, in the foreground, with a System that notes how long calls take."""
    from mirrorfs.fs import daemon, gateway, mounting, system

    notes: dict[str, list[float]] = {name: [] for name in STEPS}
    clock = time.perf_counter

    class Timed(system.System):
        def __init__(self) -> None:
            super().__init__()
            self.last = 0.0
            """When the last call of the request under way returned; 0 between requests."""
            for name in ('readv', 'pwrite', 'preadv', 'write'):
                setattr(self, name, self._timed(name, getattr(self, name)))

        def _timed(self, name: str, real: Callable[..., int]) -> Callable[..., int]:
            note, between = notes[name].append, [0.0]

            def call(*arguments: object) -> int:
                began = clock()
                result = real(*arguments)
                over = clock()
                note(over - began)
                between[0] = self.gap = (0.0 if name == 'readv' else self.gap) + began - self.last
                if name == 'readv':
                    self.gap = 0.0
                if name == 'write':
                    notes['python'].append(self.gap)
                self.last = over
                return result

            return call

        gap = 0.0

    gateway.System = Timed  # type: ignore[misc]
    code = daemon.serve(pool, mountpoint, mounting.Options(), lambda: None)
    Path(out).write_text(json.dumps({name: took[-200_000:] for name, took in notes.items()}))
    return code


@contextlib.contextmanager
def watched(folder: Path, notes: Path) -> Iterator[Path]:
    """A volume of two legs, served by `serve`."""
    pool, mountpoint = folder / 'pool', folder / 'mnt'
    if not pool.exists():
        mountpoint.mkdir()
        legs = [f'--leg={folder / str(leg)}.leg' for leg in (0, 1)]
        run(*TOOL, 'create', pool, 'v', f'--size={SIZE}', *legs)
    script = str(Path(__file__).resolve())
    with background(sys.executable, script, '--serve', str(pool), str(mountpoint), str(notes)) as daemon:
        wait_for(lambda: (mountpoint / 'v').exists(), daemon, 'the watched mount')
        yield mountpoint / 'v'
        run('umount', mountpoint)
        daemon.wait(60)


PYFUSE3 = '''
import errno, os, stat, sys
import pyfuse3, trio
SIZE = {size}
class Nothing(pyfuse3.Operations):
    def _attr(self, inode):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = (stat.S_IFDIR | 0o755) if inode == 1 else (stat.S_IFREG | 0o644)
        entry.st_size = 0 if inode == 1 else SIZE
        return entry
    async def getattr(self, inode, ctx=None): return self._attr(inode)
    async def lookup(self, parent, name, ctx=None):
        if name != b'v': raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attr(2)
    async def open(self, inode, flags, ctx): return pyfuse3.FileInfo(fh=2, direct_io=True)
    async def read(self, fh, offset, size): return ZEROS[:size]
    async def write(self, fh, offset, data): return len(data)
ZEROS = memoryview(bytes(1 << 20))
pyfuse3.init(Nothing(), sys.argv[1], {{*pyfuse3.default_options, 'fsname=nothing'}})
try: trio.run(pyfuse3.main, 16)
finally: pyfuse3.close()
'''


@contextlib.contextmanager
def pyfuse3_nothing(folder: Path) -> Iterator[Path]:
    """A pyfuse3 mount whose handlers return at once."""
    mountpoint = folder / 'pyfuse3'
    mountpoint.mkdir()
    daemon = subprocess.Popen([sys.executable, '-c', PYFUSE3.format(size=SIZE), str(mountpoint)])
    try:
        deadline = time.monotonic() + 20
        while not mountpoint.is_mount() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield mountpoint / 'v'
    finally:
        with contextlib.suppress(host.Unavailable):
            run('umount', mountpoint)
        end(daemon)


def show(cell: Cell, image: Path, seconds: float, name: str) -> float:
    """Return, and print, the microseconds a request of a cell takes from outside."""
    rate = cell_rate(image, cell, SIZE, seconds)
    print(f'  {name:<34}{1e6 / rate:9.1f} us a request{rate:12.0f} a second')
    return rate


def steps(folder: Path, cell: Cell, seconds: float) -> None:
    notes = folder / 'notes.json'
    with watched(folder, notes) as image:
        fill(image, SIZE)
        cell_rate(image, cell, SIZE, 0.5)  # chunks are dirty, pages in the cache
        show(cell, image, seconds, 'mirrorfs, timed')
    for name, took in json.loads(notes.read_text()).items():
        if took:
            print(f'    {STEPS[name]:<32}{statistics.median(took) * 1e6:9.2f} us')


def main() -> int:
    if sys.argv[1:2] == ['--serve']:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--seconds', type=float, default=2.0, help='of each fio run')
    asked = parser.parse_args()
    if os.geteuid():
        print('steps.py mounts, and so must be run by root', file=sys.stderr)
        return errno.EPERM
    for name, fact in host.facts().items():
        print(f'{name}: {fact}')
    with host.workspace(asked.folder, 'steps') as folder:
        for cell in HOT:
            print(f'\n{cell.name}')
            steps(folder, cell, asked.seconds)
            with nothing(folder, SIZE) as image:
                show(cell, image, asked.seconds, 'null-co (C)')
            with pyfuse3_nothing(folder) as image:
                show(cell, image, asked.seconds, 'pyfuse3 that does nothing')
            (folder / 'pyfuse3').rmdir()
    return 0


if __name__ == '__main__':
    host.stopper.watch()
    sys.exit(host.finish(main))
