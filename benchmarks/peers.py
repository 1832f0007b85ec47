#!/usr/bin/env python3
"""mirrorfs against those that do the same job, on the same disk, in the same run.

    .venv/bin/python benchmarks/peers.py [--folder DIR] [--out DIR] [--repeats 3] [--all] [--quick]

Installs what it needs (as root, from Debian's packages), sets all contenders up beside each other, runs every
job of every contender in turn, again and again, and takes medians.  Writes peers.txt, peers.json and
peers.png, with the machine and all versions.  A run that fails is said to have failed, and is not left out.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contenders
import workloads
from contenders import MIB, Contender, Unavailable, mirrorfs, quorum, run
from report import chart, ratios, table

PACKAGES = ['fio', 'qemu-system-common', 'btrfs-progs']
FULL: dict[str, Contender] = {
    'raw file': contenders.raw,
    'mirrorfs': mirrorfs(),
    'mirrorfs, no log': mirrorfs('--log', 'none'),
    'quorum, threads': quorum('threads'),
    'quorum, io_uring': quorum('io_uring'),
    'btrfs raid1': contenders.btrfs,
}
ON_LOOP = ['raw file', 'mirrorfs', 'quorum, threads', 'quorum, io_uring']
"""Those with an ext4 on a loop over the image: a direct one, but for qemu's export, which then corrupts."""


@dataclass
class Measured:
    """What came out: by job and contender the rates of all rounds, or why there is none."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    busy: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def take(self, job: str, name: str, disk: workloads.Disk, measure: Callable[[], float]) -> None:
        try:
            with disk.watched() as busy:
                rate = measure()
        except (Unavailable, OSError, KeyError, ValueError) as error:
            self.failed.setdefault(job, {})[name] = str(error)[-300:]
            print(f'  {job}: {name} failed: {error}', file=sys.stderr)
            return
        self.rates.setdefault(job, {}).setdefault(name, []).append(rate)
        self.busy.setdefault(job, {}).setdefault(name, []).append(busy())


def install(packages: list[str]) -> None:
    """Install what is missing; say so where that cannot be."""
    tools = {'fio': 'fio', 'qemu-storage-daemon': 'qemu-system-common', 'mkfs.btrfs': 'btrfs-progs'}
    missing = [package for tool, package in tools.items() if not shutil.which(tool, path=_path())]
    missing += [package for package in packages if package not in PACKAGES]
    if not missing:
        return
    if os.geteuid():
        print(f'missing, and only root can install it: {" ".join(missing)}', file=sys.stderr)
        return
    print(f'installing {" ".join(missing)}', file=sys.stderr)
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    subprocess.run(
        ['apt-get', '-qq', 'install', '--no-install-recommends', *missing],
        env=environment, stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def _path() -> str:
    return f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'


def machine() -> dict[str, str]:
    """Return what a reader must know of the machine."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    model = next((line.partition(':')[2].strip() for line in lines if 'model name' in line), 'unknown')
    facts = {
        'processor': f'{os.cpu_count()} x {model}',
        'kernel': platform.release(),
        'python': platform.python_version(),
    }
    commands = {'fio': ['fio', '--version'], 'qemu': ['qemu-storage-daemon', '--version'],
                'btrfs': ['btrfs', '--version'], 'mirrorfs': [*contenders.TOOL, '--version']}  # fmt: skip
    for name, command in commands.items():
        with contextlib.suppress(Unavailable):
            facts[name] = run(*command).splitlines()[0]
    return facts


def compete(asked: argparse.Namespace, folder: Path) -> Measured:
    """Set all up, and run all jobs of all contenders in turn."""
    measured, disk = Measured(), workloads.Disk(folder)
    size = asked.size_mib * MIB
    field_ = {**FULL, **({'GlusterFS replica 2': contenders.gluster} if asked.all else {})}
    with contextlib.ExitStack() as stack:
        images: dict[str, Path] = {}
        for name, contender in field_.items():
            try:
                images[name] = stack.enter_context(contender(folder, size))
            except (Unavailable, OSError) as error:
                print(f'{name} cannot take part: {error}', file=sys.stderr)
                measured.failed.setdefault('all', {})[name] = str(error)
        cells = [cell for cell in workloads.CELLS if asked.only in cell.name]
        for turn in range(asked.repeats):
            for cell in cells:
                for name, image in images.items():
                    measured.take(
                        cell.name, name, disk,
                        lambda image=image, cell=cell: workloads.cell_rate(image, cell, size, asked.seconds),
                    )  # type: ignore[misc]  # fmt: skip
            print(f'fio, round {turn + 1} of {asked.repeats} done', file=sys.stderr)
        jobs = {name: job for name, job in workloads.JOBS.items() if asked.only in name}
        if jobs:
            on_ext4(asked, folder, stack, {n: images[n] for n in ON_LOOP if n in images}, jobs, measured)
    return measured


def on_ext4(
    asked: argparse.Namespace,
    folder: Path,
    stack: contextlib.ExitStack,
    images: dict[str, Path],
    jobs: dict[str, Callable[[Path, float], float]],
    measured: Measured,
) -> None:
    """Run the jobs on an ext4 on a loop device over each image."""
    disk, places = workloads.Disk(folder), {}
    for name, image in images.items():
        where = folder / f'ext4 {name}'.replace(' ', '-')
        try:
            mounted = workloads.filesystem(image, where, direct=not name.startswith('quorum'))
            places[name] = stack.enter_context(mounted)
        except (Unavailable, OSError) as error:
            print(f'ext4 on {name}: {error}', file=sys.stderr)
            measured.failed.setdefault('ext4', {})[name] = str(error)
    for turn in range(asked.repeats):
        for job, work in jobs.items():
            for name, place in places.items():
                measured.take(
                    f'ext4: {job}', name, disk, lambda place=place, work=work: work(place, asked.seconds)
                )  # type: ignore[misc]
        print(f'ext4, round {turn + 1} of {asked.repeats} done', file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--out', default='.', help='where peers.txt, peers.json and peers.png go')
    parser.add_argument('--seconds', type=float, default=3.0, help='of each fio run')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--size-mib', type=int, default=1024, help='of each image')
    parser.add_argument('--only', default='', help='just the jobs with this in their names')
    parser.add_argument('--all', action='store_true', help='GlusterFS, too')
    parser.add_argument('--quick', action='store_true', help='one short round, to see that all works')
    asked = parser.parse_args()
    if asked.quick:
        asked.seconds, asked.repeats, asked.size_mib = 1.0, 1, 512
    os.environ['PATH'] = _path()
    install([*PACKAGES, *(['glusterfs-server', 'glusterfs-client', 'attr'] if asked.all else [])])
    folder = Path(tempfile.mkdtemp(prefix='mirrorfs-bench-', dir=asked.folder))
    try:
        measured = compete(asked, folder)
    finally:
        shutil.rmtree(folder)
        workloads.archive_path().unlink(missing_ok=True)
    facts: dict[str, Any] = {
        'machine': machine(), 'rates': measured.rates, 'failed': measured.failed, 'busy': measured.busy
    }  # fmt: skip
    medians = {job: {n: statistics.median(r) for n, r in by.items()} for job, by in measured.rates.items()}
    text = table(facts['machine'], measured.rates, measured.failed, measured.busy) + ratios(medians)
    print(text)
    out = Path(asked.out)
    (out / 'peers.txt').write_text(text)
    (out / 'peers.json').write_text(json.dumps(facts, indent=1))
    chart(medians, out / 'peers.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
