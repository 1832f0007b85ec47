#!/usr/bin/env python3
"""How costs grow with the size of a volume, the number of volumes, of legs, and of writers.

    .venv/bin/python benchmarks/scale.py [--folder /dev/shm] [--only size|volumes|legs|writers] [--json FILE]

Legs are sparse files on tmpfs, so that 64 TiB fit.  For each point a pool is made and mounted, and measured
from outside: seconds from the mount command to its end; resident memory of the daemon; microseconds of a hot
4 KiB write (the median of some thousand); milliseconds of a read of status.json and of mdstat; and the
longest (99.9 %) of those writes while status was read and chunks were cleared beside it.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from contenders import MIB, TOOL, run

GIB, TIB = 1 << 30, 1 << 40
HOT = 3000
"""Writes that are timed."""
SPREAD = 64
"""Chunks that they go to."""
COLUMNS = {
    'mount': 'mount s',
    'memory': 'memory MiB',
    'write': 'hot write us',
    'status': 'status ms',
    'mdstat': 'mdstat ms',
    'longest': 'longest beside ms',
}
Point = dict[str, float]


class Pool:
    """A mounted pool of volumes that are alike."""

    def __init__(self, folder: Path, size: int, volumes: int = 1, legs: int = 2) -> None:
        self.folder = folder
        self.pool, self.mountpoint = folder / 'pool', folder / 'mnt'
        self.mountpoint.mkdir()
        self.size, self.names = size, [f'v{number}' for number in range(volumes)]
        for name in self.names:
            paths = [f'--leg={folder / name}.{leg}.leg' for leg in range(legs)]
            run(*TOOL, 'create', self.pool, name, f'--size={size}', *paths)
        began = time.monotonic()
        run(*TOOL, 'mount', self.pool, self.mountpoint)
        self.mount_seconds = time.monotonic() - began

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, *exception: object) -> None:
        run(*TOOL, 'umount', self.pool)
        shutil.rmtree(self.folder)

    def read(self, file: str) -> str:
        return (self.mountpoint / '.mirrorfs' / file).read_text()

    @property
    def memory(self) -> float:
        """MiB that the daemon has resident."""
        pid = json.loads(self.read('status.json'))['pid']
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024

    def timed_writes(self, name: str, count: int, wanted: Callable[[], bool] = lambda: True) -> list[float]:
        """Return the seconds of 4 KiB writes to some chunks, one after the other, the first ones left out."""
        data, took = os.urandom(4096), []
        step = self.size // SPREAD // MIB * MIB
        file = os.open(self.mountpoint / name, os.O_RDWR)
        try:
            for at in range(SPREAD):
                os.pwrite(file, data, at * step)
            chance = random.Random(1)
            while len(took) < count and wanted():
                at = chance.randrange(SPREAD) * step + chance.randrange(16) * 4096
                began = time.perf_counter()
                os.pwrite(file, data, at)
                took.append(time.perf_counter() - began)
        finally:
            os.close(file)
        return took

    def seconds_to_read(self, file: str) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            self.read(file)
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    def longest_beside(self) -> float:
        """Return the longest write while status is read and chunks are cleared, again and again."""
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                self.read('status.json')

        (self.mountpoint / '.mirrorfs/volumes/v0/bitmap/time_base').write_text('0.2\n')
        reader = threading.Thread(target=look)
        reader.start()
        end = time.monotonic() + 3
        took = self.timed_writes('v0', 1 << 30, lambda: time.monotonic() < end)
        stop.set()
        reader.join()
        return sorted(took)[int(len(took) * 0.999)]


def measure(pool: Pool) -> Point:
    writes = pool.timed_writes('v0', HOT)
    return {
        'mount': pool.mount_seconds,
        'memory': pool.memory,
        'write': statistics.median(writes) * 1e6,
        'status': pool.seconds_to_read('status.json') * 1e3,
        'mdstat': pool.seconds_to_read('mdstat') * 1e3,
        'longest': pool.longest_beside() * 1e3,
    }


def writers(pool: Pool, count: int) -> Point:
    """Return how many writes a second so many processes get together."""
    script = f'{__file__} --write {pool.mountpoint / "v0"} {pool.size} 2'
    running = [
        subprocess.Popen([sys.executable, *script.split()], stdout=subprocess.PIPE) for _ in range(count)
    ]
    rates = [float(process.communicate()[0]) for process in running]
    return {'writers': float(count), 'writes a second': sum(rates)}


def write_for(image: str, size: int, seconds: float) -> None:
    """Be one of the writers: print how many writes a second it got."""
    data, chance, count = os.urandom(4096), random.Random(os.getpid()), 0
    file = os.open(image, os.O_RDWR | os.O_DIRECT)
    import mmap

    buffer = mmap.mmap(-1, 4096)
    buffer[:] = data
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.pwritev(file, [buffer], chance.randrange(size // 4096) * 4096)
        count += 1
    print(count / seconds)


def show(title: str, points: Sequence[tuple[str, Point]]) -> None:
    """Print a curve as a table, each number with a bar of its size in the column."""
    print(f'\n{title}')
    columns = list(points[0][1])
    print(f'{"":>10}' + ''.join(f'{COLUMNS.get(column, column):>20}' for column in columns))
    for name, point in points:
        cells = []
        for column in columns:
            most = max(other[column] for _, other in points) or 1.0
            cells.append(f'{"#" * round(point[column] / most * 8):>9}{point[column]:>11.2f}')
        print(f'{name:>10}' + ''.join(cells))


def main() -> int:
    if sys.argv[1:2] == ['--write']:
        write_for(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/dev/shm', help='where the legs go')
    parser.add_argument('--only', choices=['size', 'volumes', 'legs', 'writers'])
    parser.add_argument('--json', help='write all numbers here')
    asked = parser.parse_args()
    print(f'{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}')

    def new(**what: int) -> Pool:
        folder = Path(tempfile.mkdtemp(prefix='mirrorfs-scale-', dir=asked.folder))
        return Pool(folder, **what)

    curves: dict[str, list[tuple[str, Point]]] = {}
    if asked.only in (None, 'size'):
        sizes = {'1 GiB': GIB, '32 GiB': 32 * GIB, '1 TiB': TIB, '8 TiB': 8 * TIB, '64 TiB': 64 * TIB}
        curves['size of the volume'] = []
        for name, size in sizes.items():
            with new(size=size) as pool:
                curves['size of the volume'].append((name, measure(pool)))
    if asked.only in (None, 'volumes'):
        curves['volumes, 1 GiB each'] = []
        for count in (1, 4, 16, 64, 256):
            with new(size=GIB, volumes=count) as pool:
                curves['volumes, 1 GiB each'].append((str(count), measure(pool)))
    if asked.only in (None, 'legs'):
        curves['legs'] = []
        for count in (2, 3, 4, 6, 8):
            with new(size=GIB, legs=count) as pool:
                curves['legs'].append((str(count), measure(pool)))
    if asked.only in (None, 'writers'):
        curves['parallel writers'] = []
        with new(size=GIB) as pool:
            for count in (1, 2, 4, 8, 16, 32, 64):
                curves['parallel writers'].append((str(count), writers(pool, count)))
    for title, points in curves.items():
        show(title, points)
    if asked.json:
        Path(asked.json).write_text(json.dumps(curves, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
