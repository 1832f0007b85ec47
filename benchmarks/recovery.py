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
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
TOOL = [sys.executable, '-c', 'from mirrorfs.cli import main; main()']


def run(*command: str | Path) -> str:
    return subprocess.run([str(w) for w in command], check=True, capture_output=True, text=True).stdout


class Mount:
    """A mounted pool with one volume, of one leg at first."""

    def __init__(self, folder: Path, size: int) -> None:
        self.pool, self.mountpoint, self.folder = folder / 'pool', folder / 'mnt', folder
        self.mountpoint.mkdir()
        self.leg = folder / 'v.leg'
        run(*TOOL, 'create', self.pool, 'v', f'--size={size}', f'--leg={self.leg}')
        run(*TOOL, 'mount', self.pool, self.mountpoint)
        self.image = self.mountpoint / 'v'
        block = os.urandom(MIB)
        with open(self.image, 'r+b', buffering=0) as image:
            for at in range(0, size, MIB):
                image.write(at.to_bytes(8, 'little') + block[8:])
            os.fsync(image.fileno())

    def control(self, file: str, text: str) -> None:
        (self.mountpoint / '.mirrorfs/volumes/v' / file).write_text(text)

    def status(self) -> dict[str, Any]:
        status = json.loads((self.mountpoint / '.mirrorfs/status.json').read_text())
        return dict(status['volumes'][0])

    def add(self, name: str) -> Path:
        """Add a leg; return at once."""
        path = self.folder / name
        self.control('add', f'{path}\n')
        return path

    def finish(self) -> None:
        while self.status()['degraded'] or self.status()['sync']:
            time.sleep(0.01)

    def took(self) -> float:
        """Return the seconds of the last recovery, by the daemon's events."""
        times = {}
        for line in (self.mountpoint / '.mirrorfs/events').read_text().splitlines():
            stamp, word = line.split()[:2]
            times[word] = datetime.datetime.fromisoformat(stamp.replace('Z', '+00:00'))
        return float((times['RebuildFinished'] - times['RebuildStarted']).total_seconds())

    def drop(self, path: Path) -> None:
        """Take a leg out again: one leg is wanted, as before."""
        self.control('fail', f'{path}\n')
        self.control('remove', f'{path}\n')
        self.control('raid_disks', '1\n')
        path.unlink()

    def close(self) -> None:
        run(*TOOL, 'umount', self.pool)


def recovery(mount: Mount) -> float:
    """Return the seconds that a new leg takes."""
    path = mount.add('new.leg')
    mount.finish()
    mount.drop(path)
    return mount.took()


def plain(mount: Mount) -> float:
    """Return the seconds that a plain copy of the leg takes."""
    target = mount.folder / 'copy'
    began = time.monotonic()
    run('dd', f'if={mount.leg}', f'of={target}', 'bs=1M', 'conv=fdatasync')
    took = time.monotonic() - began
    target.unlink()
    return took


def take_turns(mount: Mount, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of plain copies and of recoveries, one each a turn; a first turn does not count."""
    copies, recoveries = [], []
    for turn in range(repeats + 1):
        both = [(plain, copies), (recovery, recoveries)]
        random.Random(turn).shuffle(both)
        for measure, times in both:
            times.append(measure(mount))
    return copies[1:], recoveries[1:]


def latencies(image: Path, size: int, wanted: Any) -> list[float]:
    """Return the seconds of 4 KiB writes, one after the other, while `wanted()`."""
    data, took = os.urandom(4096), []
    file = os.open(image, os.O_RDWR)
    try:
        while wanted():
            at = random.randrange(size // 4096) * 4096
            began = time.perf_counter()
            os.pwrite(file, data, at)
            took.append(time.perf_counter() - began)
    finally:
        os.close(file)
    return took


def for_seconds(seconds: float) -> Any:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def foreground(mount: Mount, size: int) -> tuple[list[float], list[float]]:
    """Return latencies on the idle volume, and while a leg is recovered."""
    latencies(mount.image, size, for_seconds(2))  # chunks are dirty from here on
    idle = latencies(mount.image, size, for_seconds(3))
    path = mount.add('new.leg')
    end = time.monotonic() + 10
    looked = [0.0, True]

    def recovering() -> bool:
        now = time.monotonic()
        if now - looked[0] > 0.5:
            looked[:] = [now, bool(mount.status()['sync'])]
        return bool(looked[1]) and now < end

    during = latencies(mount.image, size, recovering)
    mount.finish()
    mount.drop(path)
    return idle, during


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--size-mib', type=int, default=1024)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--json', help='write all numbers here')
    asked = parser.parse_args()
    size = asked.size_mib * MIB
    print(f'{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}')
    with tempfile.TemporaryDirectory(prefix='mirrorfs-recovery-', dir=asked.folder) as folder:
        mount = Mount(Path(folder), size)
        try:
            copies, recoveries = take_turns(mount, asked.repeats)
            idle, during = foreground(mount, size)
        finally:
            mount.close()
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
    sys.exit(main())
