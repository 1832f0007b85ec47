#!/usr/bin/env python3
"""How costs grow with the size of a volume, the number of volumes, of legs, and of writers.

    .venv/bin/python benchmarks/scale.py [--folder /dev/shm] [--only size|volumes|legs|writers] [--json FILE]

Legs are sparse files on tmpfs, so that 64 TiB fit.  For each point a pool is made and mounted, and measured
from outside:

  mount, memory      seconds of the mount command; what the daemon has resident
  first, hot write   medians of 4 KiB writes: the first one to a chunk, and to chunks that are dirty
  clear, sweep       processor time of the daemon: to clear a chunk, and to look for some where there are none
  status, …          milliseconds to read the file
  …, longest         hot writes alone, while the file is read a hundred times a second, and while some
                     thousand chunks are cleared at once: what 99.9 % of them stay below, and the longest

Then it prints how each grows, and whether anything holds up writes to a volume of 64 TiB too long.  Needs a
machine that does nothing else: the turns of others on the processors count as held up.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import host
import workloads
from contenders import background
from host import Progress, install, workspace
from pools import Pool, for_seconds, timed_writes

GIB, TIB = 1 << 30, 1 << 40
SIZES = {'1 GiB': GIB, '32 GiB': 32 * GIB, '1 TiB': TIB, '8 TiB': 8 * TIB, '64 TiB': 64 * TIB}
FINE = '64 TiB, 1M'
"""64 TiB again, in chunks of 1 MiB: as many chunks as a volume can have."""
VOLUMES, LEGS, WRITERS = (1, 4, 16, 64, 256), (2, 3, 4, 6, 8), (1, 2, 4, 8, 16, 32, 64)
HOT = 64
"""Chunks that hot writes go to; so few that none of them is ever quiet."""
QUIET = 4096
"""Chunks that are made dirty and cleared, at most half of the volume's."""
WINDOW = 2.0
"""Seconds that writes are timed, each time."""
TIME_BASE = 0.2
"""Quiet seconds until a chunk is cleared, where clearing is measured."""
HELD_UP = 5.0
"""Milliseconds that nothing may hold up a write."""
TOLERANCE = 1.5
"""What noise may add to a growth."""
FILES = ('status.json', 'mdstat', 'metrics')
READER = """
import sys, time
while True:
    open(sys.argv[1]).read()
    print(file=sys.stderr)
    time.sleep(0.01)
"""
Point = dict[str, float]
Curve = list[tuple[float, str, Point]]


class Volume:
    """The first volume of a pool, and what is measured of it."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._image = pool, pool.images[0]
        chunk = int(pool.status()['chunk_size'])
        count = pool.size // chunk
        chance = random.Random(1)
        chosen = chance.sample(range(count), min(HOT + QUIET, count // 2 + HOT))
        self._hot = [number * chunk for number in chosen[:HOT]]
        self._quiet = [number * chunk for number in chosen[HOT:]]
        self._chance = chance

    def point(self) -> Point:
        """Measure everything."""
        files = [name for name in FILES if (self._pool.mountpoint / '.mirrorfs' / name).exists()]
        found = {'mount, s': self._pool.mount_seconds}
        self._clear_after(3600)
        found['first write, us'] = statistics.median(self._dirty()) * 1e6
        found['memory, MiB'] = self._pool.memory
        for name in files:
            found[f'{name}, ms'] = self._seconds_to_read(name) * 1e3
        alone = self._hot_writes()
        found['hot write, us'] = statistics.median(alone) * 1e6
        found |= longest('alone', alone)
        for name in files:
            with self._reading(name):
                found |= longest(f'beside {name}', self._hot_writes())
        self._clear_after(TIME_BASE)
        found |= longest('beside clearing', self._hot_writes())
        return found | self._cost_of_clearing()

    def _clear_after(self, seconds: float) -> None:
        self._pool.control('volumes/v0/bitmap/time_base', str(seconds))

    def _dirty(self) -> list[float]:
        """Write to each of the chunks that are to be cleared."""
        left = list(self._quiet)
        return timed_writes(self._image, left.pop, lambda: bool(left))

    def _hot_writes(self) -> list[float]:
        left = list(self._hot)
        timed_writes(self._image, left.pop, lambda: bool(left))

        def place() -> int:
            return self._chance.choice(self._hot) + self._chance.randrange(16) * 4096

        return timed_writes(self._image, place, for_seconds(WINDOW))

    def _seconds_to_read(self, name: str) -> float:
        took = []
        for _ in range(9):
            began = time.perf_counter()
            self._pool.read(name)
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Have another process read a file again and again."""
        file = self._pool.mountpoint / '.mirrorfs' / name
        with background(sys.executable, '-c', READER, str(file)) as reader:
            assert reader.stderr
            reader.stderr.readline()  # starting a program is no part of it
            yield

    def _cost_of_clearing(self) -> Point:
        """Return processor time: of sweeps that find nothing, and of clearing on top of that."""
        self._clear_after(3600)
        self._dirty()
        before = self._pool.processor_seconds()
        self._clear_after(TIME_BASE)
        time.sleep(WINDOW)
        cleared = self._pool.processor_seconds()
        time.sleep(WINDOW)
        swept = self._pool.processor_seconds() - cleared
        if dirty := self._pool.status()['chunks']['dirty']:
            raise RuntimeError(f'{dirty} chunks are still dirty {2 * WINDOW} s after the last write')
        each = max(0.0, cleared - before - swept) / len(self._quiet)
        return {'clear a chunk, us': each * 1e6, 'sweep, ms': swept / (WINDOW / TIME_BASE) * 1e3}


def longest(what: str, took: Sequence[float]) -> Point:
    ranked = sorted(took)
    return {
        f'write {what}, 99.9 %, ms': ranked[int(len(ranked) * 0.999)] * 1e3,
        f'write {what}, longest, ms': ranked[-1] * 1e3,
    }


def writers(pool: Pool, count: int) -> Point:
    """Return how many 4 KiB writes a second so many writers get together, each one at a time."""
    cell = workloads.Cell('randwrite', '4k', 1)
    workloads.touch(pool.images, pool.size)
    rate = sum(workloads.fio(pool.images * count, *cell.options(pool.size, WINDOW)))
    return {'writes a second': rate, 'us a write, for all': 1e6 / rate}


def curves(folder: str, only: str | None) -> Iterator[tuple[str, Curve]]:
    """Measure; yield each curve with what it goes over."""
    points: list[tuple[str, float, str, dict[str, Any]]] = [
        *(('size of the volume', size, name, {'size': size}) for name, size in SIZES.items()),
        ('size of the volume', 64 * TIB, FINE, {'size': 64 * TIB, 'create': ['--chunk=1M']}),
        *(('volumes, 1 GiB each', n, str(n), {'size': GIB, 'volumes': n}) for n in VOLUMES),
        *(('legs', n, str(n), {'size': GIB, 'legs': n}) for n in LEGS),
    ]
    chosen = [point for point in points if only is None or point[0].startswith(only)]
    progress = Progress(len(chosen) + (only in (None, 'writers')))
    for title in dict.fromkeys(point[0] for point in chosen):
        curve: Curve = []
        for _, at, name, what in (point for point in chosen if point[0] == title):
            progress.say(f'{title}: {name}')
            with new(folder, **what) as pool:
                curve.append((at, name, Volume(pool).point()))
            progress.step()
        yield title, curve
    if only in (None, 'writers'):
        progress.say('parallel writers')
        with new(folder, size=GIB) as pool:
            yield 'parallel writers', [(n, str(n), writers(pool, n)) for n in WRITERS]


@contextlib.contextmanager
def new(folder: str, **what: Any) -> Iterator[Pool]:
    with workspace(folder, 'scale') as place, Pool(place, **what) as pool:
        yield pool


def show(title: str, curve: Curve) -> str:
    """Return what was measured as curves on their side, with how each grows."""
    lines = []
    for column in curve[0][2]:
        values = [point[column] for _, _, point in curve]
        lines += ['', f'{column}, by {title}']
        for (_, name, _), value in zip(curve, values, strict=True):
            lines.append(f'{name:>10}{value:>13.2f}  {"#" * round(value / (max(values) or 1) * 50)}')
    return '\n'.join(lines)


def judge(title: str, curve: Curve) -> Iterator[str]:
    """Yield how much more each costs at the end than at the beginning, and what must not be."""
    first, last = curve[0], curve[-1]
    times = last[0] / first[0]
    yield f'\n{title}: {first[1]} to {last[1]}, {times:g} times as much'
    for column in first[2]:
        if 'longest' in column or '99.9' in column or column == 'writes a second':
            continue
        growth = last[2][column] / first[2][column] if first[2][column] else 0.0
        word = 'faster than linearly: MISSED' if faster(curve, column) else 'not faster than linearly'
        if title.startswith('size') and 'write, us' in column:
            word = 'does not grow' if growth <= TOLERANCE else 'GROWS, which it must not: MISSED'
        yield f'  {column:<24}{growth:9.2f} times  {word}'


def faster(curve: Curve, column: str) -> bool:
    """Return whether a cost has grown by more than what it goes over, at any point."""
    begin, _, first = curve[0]
    return any(point[column] > first[column] * at / begin * TOLERANCE for at, _, point in curve[1:])


def held_up(curve: Curve) -> Iterator[str]:
    """Yield whether anything holds up writes to the largest volumes."""
    for _, name, point in curve[-2:]:
        yield from _held_up(name, point)


def _held_up(name: str, point: Point) -> Iterator[str]:
    noisy = point['write alone, longest, ms'] > HELD_UP
    yield f'\n{name}: writes must not be held up for more than {HELD_UP:g} ms'
    for column, value in point.items():
        if 'longest' in column:
            usual = point[column.replace('longest', '99.9 %')]
            word = 'met' if value <= HELD_UP else 'unclear, as alone' if noisy else 'MISSED'
            yield f'  {column:<42}{value:8.2f}   (99.9 %: {usual:.2f})  {word}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/dev/shm', help='where the legs go')
    parser.add_argument('--only', choices=['size', 'volumes', 'legs', 'writers'])
    parser.add_argument('--json', help='write all numbers here')
    asked = parser.parse_args()
    install({'fio': 'fio', 'losetup': 'mount'})
    machine = host.facts({'fio': ('fio',)})
    for key, value in machine.items():
        print(f'{key}: {value}')
    measured: dict[str, Curve] = {}
    for title, curve in curves(asked.folder, asked.only):
        measured[title] = curve
        print(show(title, curve), flush=True)
    for title, curve in measured.items():
        print('\n'.join(judge(title, curve)))
        if title.startswith('size'):
            print('\n'.join(held_up(curve)))
    if asked.json:
        facts = {'machine': machine, 'curves': measured}
        Path(asked.json).write_text(json.dumps(facts, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(host.finish(main))
