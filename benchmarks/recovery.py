#!/usr/bin/env python3
"""How fast a new leg is brought up to date, against a plain copy of the same file; and what callers notice.

    .venv/bin/python benchmarks/recovery.py [--folder DIR] [--size-mib 1024] [--repeats 9] [--json FILE]

A leg is added to a volume whose image is full; the time is the daemon's own, from RebuildStarted to
RebuildFinished, when the leg is flushed and counts.  The plain copy reads the old leg and writes a new file,
1 MiB at a time, and syncs it (dd, conv=fdatasync).  The two take turns, in an order that changes: on a
virtual machine the memory that the one before has freed can make all the difference.  Medians are compared.
Then 4 KiB writes at depth 1 are timed on the idle volume and while a leg is recovered in the yielding mode.
"""

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import host
from host import MIB, run, workspace
from pools import Pool, fill, for_seconds, timed_writes


class Mirror(Pool):
    """A pool with one volume, of one leg at first, to which another one is added and taken away again."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder, size, legs=1)

    @property
    def leg(self) -> Path:
        return self.leg_paths('v0')[0]

    def add(self, name: str) -> Path:
        """Add a leg; return at once."""
        path = self.folder / name
        self.control('volumes/v0/add', str(path))
        return path

    def finish(self) -> None:
        while (now := self.status())['degraded'] or now['sync']:
            time.sleep(0.01)

    def took(self) -> float:
        """Return the seconds of the last recovery, by the daemon's events."""
        times = {}
        for line in self.read('events').splitlines():
            stamp, word = line.split()[:2]
            times[word] = datetime.datetime.fromisoformat(stamp.replace('Z', '+00:00'))
        return float((times['RebuildFinished'] - times['RebuildStarted']).total_seconds())

    def drop(self, path: Path) -> None:
        """Take a leg out again: one leg is wanted, as before."""
        self.control('volumes/v0/fail', str(path))
        self.control('volumes/v0/remove', str(path))
        self.control('volumes/v0/raid_disks', '1')
        path.unlink()


def recovery(mirror: Mirror) -> float:
    """Return the seconds that a new leg takes."""
    path = mirror.add('new.leg')
    mirror.finish()
    mirror.drop(path)
    return mirror.took()


def plain(mirror: Mirror) -> float:
    """Return the seconds that a plain copy of the leg takes."""
    target = mirror.folder / 'copy'
    began = time.monotonic()
    run('dd', f'if={mirror.leg}', f'of={target}', 'bs=1M', 'conv=fdatasync')
    took = time.monotonic() - began
    target.unlink()
    return took


def take_turns(mirror: Mirror, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of plain copies and of recoveries, one each a turn; a first turn does not count."""
    copies, recoveries = list[float](), list[float]()
    for turn in range(repeats + 1):
        both = [(plain, copies), (recovery, recoveries)]
        random.Random(turn).shuffle(both)
        for measure, times in both:
            times.append(measure(mirror))
    return copies[1:], recoveries[1:]


def foreground(mirror: Mirror) -> tuple[list[float], list[float]]:
    """Return latencies on the idle volume, and while a leg is recovered."""

    def writes(wanted: Callable[[], bool]) -> list[float]:
        return timed_writes(mirror.images[0], lambda: random.randrange(mirror.size // 4096) * 4096, wanted)

    writes(for_seconds(2))  # chunks are dirty from here on
    idle = writes(for_seconds(3))
    path = mirror.add('new.leg')
    end = time.monotonic() + 10
    looked = [0.0, True]

    def recovering() -> bool:
        now = time.monotonic()
        if now - looked[0] > 0.5:
            looked[:] = [now, bool(mirror.status()['sync'])]
        return bool(looked[1]) and now < end

    during = writes(recovering)
    mirror.finish()
    mirror.drop(path)
    return idle, during


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--size-mib', type=int, default=1024)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--json', help='write all numbers here')
    asked = parser.parse_args()
    size = asked.size_mib * MIB
    for key, value in host.facts().items():
        print(f'{key}: {value}')
    with workspace(asked.folder, 'recovery') as folder, Mirror(folder, size) as mirror:
        fill(mirror.images[0], size)
        copies, recoveries = take_turns(mirror, asked.repeats)
        idle, during = foreground(mirror)
    ratio = statistics.median(copies) / statistics.median(recoveries)
    for word, times in (('plain copy', copies), ('recovery', recoveries)):
        speed = asked.size_mib / statistics.median(times)
        print(f'{word:<11}{speed:8.0f} MiB/s   seconds: {" ".join(f"{t:.2f}" for t in times)}')
    print(f'recovery goes at {ratio:.2f} of the speed of a plain copy')
    means = [statistics.mean(times) * 1e6 for times in (idle, during)]
    middles = [statistics.median(times) * 1e6 for times in (idle, during)]
    print('4 KiB writes, on the idle volume and during a recovery:')
    for word, (before, beside) in (('mean', means), ('median', middles)):
        print(f'{word:>8} {before:.0f} us, {beside:.0f} us ({beside / before:.2f})')
    if asked.json:
        facts = {'plain': copies, 'recovery': recoveries, 'ratio': ratio}
        facts |= {'mean_us': means, 'median_us': middles}
        Path(asked.json).write_text(json.dumps(facts, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(host.finish(main))
