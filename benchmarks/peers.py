#!/usr/bin/env python3
"""mirrorfs against those that do the same job, on the same disk, in the same run.

    .venv/bin/python benchmarks/peers.py [--folder DIR] [--out DIR] [--repeats 3] [--all] [--quick]

Installs what it needs (as root, from Debian's packages; matplotlib into the environment that runs this), sets
all contenders up beside each other, runs every job of all contenders in turn, in an order that changes, again
and again, and takes medians.  Writes peers.txt, peers.json and peers.png, with the machine, all versions, and
what is wanted of the figures.  A run that fails is said to have failed, and is not left out.  Needs root, for
loop devices.  Takes half an hour; with --quick five minutes.
"""

import argparse
import contextlib
import json
import os
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import contenders
import host
import jobs
import report
import targets
import workloads
from contenders import ASIDE, FIELD, ON_LOOP, PEERS
from jobs import Job
from results import Results

TOOLS = {
    'fio': 'fio',
    'qemu-storage-daemon': 'qemu-system-common',
    'qemu-img': 'qemu-utils',
    'mkfs.btrfs': 'btrfs-progs',
    'mkfs.ext4': 'e2fsprogs',
    'losetup': 'mount',
    'git': 'git',
}
GLUSTER_TOOLS = {'glusterd': 'glusterfs-server', 'mount.glusterfs': 'glusterfs-client', 'getfattr': 'attr'}
VERSIONED = {'fio': ('fio',), 'qemu': ('qemu-storage-daemon',), 'btrfs': ('btrfs',)}
NOTES = """\
All images were filled with random bytes first, 1 MiB at a time.  Before every run the disk was synced.
Before every fio run that reads an image, all of it was read once; before every one that writes, 4 KiB
were written to each MiB of it, so that the chunks of an intent log are dirty already, as they are in
use: for all contenders alike.  What making chunks dirty costs is measured by "first sequential
write", on a new volume each time, not filled.  Jobs on ext4 begin on a new filesystem, with nothing
touched first; it is on a direct loop, but for qemu's export on a buffered one, since a direct one
corrupts there."""


class Course:
    """All contenders that could be set up, and what came out."""

    def __init__(self, asked: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> None:
        self.results = Results()
        self._asked, self._folder, self._stack = asked, folder, stack
        self._size = asked.size_mib * host.MIB
        self._disk, self._chance = host.Disk(folder), random.Random(asked.seed)
        self._images: dict[str, Path] = {}

    def run(self) -> None:
        """Set all up, and measure: on the images first, since a filesystem overwrites them."""
        field = FIELD | ({contenders.GLUSTER: contenders.gluster} if self._asked.all else {}) | ASIDE
        for name, contender in field.items():
            print(f'setting up: {name}', file=sys.stderr)
            where = self._place(name)
            where.mkdir()
            self._enter(self._images, name, contender(where, self._size))
        on_images = self._chosen(jobs.on_images(self._images, self._folder, self._size, self._asked.seconds))
        later = [name for name in workloads.JOBS if self._asked.only in f'ext4: {name}']
        steps = sum(len(job.takers) * job.times for job in on_images) + len(later) * len(ON_LOOP)
        self._progress = host.Progress(steps * self._asked.repeats)
        self._rounds(on_images)
        if later:
            self._rounds(self._chosen(jobs.on_ext4(self._filesystems(), self._asked.seconds)))

    def _place(self, name: str) -> Path:
        return self._folder / name.replace(',', '').replace(' ', '-')

    def _enter(
        self, into: dict[str, Path], name: str, context: contextlib.AbstractContextManager[Path]
    ) -> None:
        try:
            into[name] = self._stack.enter_context(context)
        except Exception as error:
            self.results.absent[name] = str(error)
            print(f'{name} cannot take part: {error}', file=sys.stderr)

    def _filesystems(self) -> dict[str, Path]:
        """Return where an ext4 is mounted for each of those that have one."""
        places: dict[str, Path] = {}
        for name in ON_LOOP:
            if image := self._images.get(name):
                where = self._place(f'ext4 {name}')
                self._enter(places, name, workloads.filesystem(image, where, direct=name not in PEERS))
        return places

    def _chosen(self, all_jobs: Iterable[Job]) -> list[Job]:
        return [job for job in all_jobs if self._asked.only in job.name]

    def _rounds(self, chosen: Sequence[Job]) -> None:
        for turn in range(self._asked.repeats):
            for job in chosen:
                self.results.begin(job.name)
                self._progress.say(f'round {turn + 1} of {self._asked.repeats}, {job.name}')
                for _ in range(job.times):
                    self._in_turn(job)

    def _in_turn(self, job: Job) -> None:
        """Measure every taker once, in an order by chance."""
        for name in self._chance.sample(list(job.takers), len(job.takers)):
            take = job.takers[name]
            try:
                take.before()
                host.run('sync', '--file-system', self._folder)
                with self._disk.watched() as busy:
                    rate = take.rate()
                self.results.add(job.name, name, rate, busy())
            except Exception as error:
                self.results.fail(job.name, name, f'{type(error).__name__}: {error}')
                print(f'{job.name}: {name} failed: {error}', file=sys.stderr)
            self._progress.step()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--out', default='.', help='where peers.txt, peers.json and peers.png go')
    parser.add_argument('--seconds', type=float, default=1.3, help='of each fio run')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--size-mib', type=int, default=1024, help='of each image')
    parser.add_argument('--only', default='', help='just the jobs with this in their names')
    parser.add_argument('--all', action='store_true', help='GlusterFS, too')
    parser.add_argument('--quick', action='store_true', help='one short round, to see that all works')
    parser.add_argument('--seed', type=int, default=1, help='of the order of contenders')
    if parser.parse_args().quick:
        parser.set_defaults(seconds=0.5, repeats=1, size_mib=512)
    asked = parser.parse_args()
    if asked.size_mib < 384 or asked.size_mib % 8 or asked.seconds <= 0 or asked.repeats < 1:
        parser.error('images are of 384 MiB or more, a multiple of 8; seconds and repeats more than 0')
    if os.geteuid():
        parser.error('needs root, for loop devices and to drop caches')
    return asked


def main() -> int:
    asked = parse()
    Path(asked.out).mkdir(parents=True, exist_ok=True)
    host.install(TOOLS | (GLUSTER_TOOLS if asked.all else {}))
    host.install_modules()
    try:
        with host.workspace(asked.folder, 'peers') as folder, contextlib.ExitStack() as stack:
            course = Course(asked, folder, stack)
            course.run()
            return publish(asked, course.results)
    finally:
        workloads.archive_path().unlink(missing_ok=True)


def publish(asked: argparse.Namespace, results: Results) -> int:
    """Print and write what came out; return the exit code."""
    machine = host.facts(VERSIONED | ({'gluster': ('gluster',)} if asked.all else {}))
    machine['run'] = (
        f'{asked.repeats} rounds of {asked.seconds} s, images of {asked.size_mib} MiB, seed {asked.seed}'
    )
    verdicts, out = targets.verdicts(results), Path(asked.out)
    text = report.text(machine, NOTES, results, verdicts)
    print(text)
    (out / 'peers.txt').write_text(text)
    (out / 'peers.json').write_text(json.dumps(report.raw(machine, NOTES, results, verdicts), indent=1))
    return 0 if report.chart(machine, results, out / 'peers.png') else 1


if __name__ == '__main__':
    sys.exit(host.finish(main))
