#!/usr/bin/env python3
"""A first comparison: fio on the raw file, on qemu's quorum driver over FUSE, and on mirrorfs.

    .venv/bin/python benchmarks/first.py [--folder DIR] [--seconds 5] [--repeats 5] [--json FILE]

All contenders have two legs (the raw file one) on the same disk, filled before; runs are interleaved and the
medians compared.  Needs fio and qemu-storage-daemon; as root it mounts by mount(2), else by fusermount3.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SIZE = 512 << 20
JOBS = {
    '4k random write, depth 1': ('randwrite', '4k', 1),
    '4k random write, depth 16': ('randwrite', '4k', 16),
    '4k random read, depth 1': ('randread', '4k', 1),
    '4k random read, depth 16': ('randread', '4k', 16),
    '1m write, depth 4': ('write', '1m', 4),
    '1m read, depth 4': ('read', '1m', 4),
}
REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_file(path: Path) -> str:
    with open(path, 'wb') as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    return str(path)


@contextlib.contextmanager
def raw(folder: Path) -> Iterator[Path]:
    yield Path(make_file(folder / 'raw.img'))


@contextlib.contextmanager
def quorum(folder: Path, aio: str) -> Iterator[Path]:
    """qemu-storage-daemon: quorum of two raw files, reading from the first (fifo), exported by FUSE."""
    image = folder / f'quorum-{aio}'
    image.touch()
    command = ['qemu-storage-daemon']
    for leg in (0, 1):
        path = make_file(folder / f'q{aio}{leg}.img')
        command += ['--blockdev', f'driver=file,node-name=f{leg},filename={path},aio={aio}']
    command += [
        '--blockdev',
        'driver=quorum,node-name=q,children.0=f0,children.1=f1,vote-threshold=2,read-pattern=fifo',
        '--export', f'type=fuse,id=e,node-name=q,mountpoint={image},writable=on',
    ]  # fmt: skip
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 10
        while image.stat().st_size != SIZE:
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.kill()
                raise RuntimeError(f'qemu-storage-daemon: {daemon.communicate()[1].strip()}')
            time.sleep(0.05)
        yield image
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


@contextlib.contextmanager
def mirrorfs(folder: Path, log: str) -> Iterator[Path]:
    pool, mountpoint = folder / f'pool-{log}', folder / f'mnt-{log}'
    mountpoint.mkdir()
    legs = [f'--leg={folder}/m{log}{leg}.leg' for leg in (0, 1)]
    tool = [sys.executable, '-c', 'from mirrorfs.cli import main; main()']
    run(*tool, 'create', str(pool), 'v', f'--size={SIZE}', '--log', log, *legs)
    run(*tool, 'mount', str(pool), str(mountpoint))
    try:
        image = mountpoint / 'v'
        run('dd', 'if=/dev/urandom', f'of={image}', 'bs=1M', f'count={SIZE >> 20}', 'conv=notrunc')
        yield image
    finally:
        run(*tool, 'umount', str(pool))


def measure(image: Path, job: str, seconds: float) -> float:
    """Return a run's operations a second."""
    pattern, block, depth = JOBS[job]
    text = run(
        'fio', '--name=run', f'--filename={image}', f'--rw={pattern}', f'--bs={block}', f'--iodepth={depth}',
        '--ioengine=libaio', '--direct=1', f'--size={SIZE}', '--time_based', f'--runtime={seconds}',
        '--ramp_time=1', '--output-format=json', '--randrepeat=0',
    )  # fmt: skip
    text = text[text.index('{') :]
    result = json.loads(text)['jobs'][0]
    return float(result['read' if 'read' in pattern else 'write']['iops'])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--folder', default='/var/tmp', help='where the legs go (a disk, not tmpfs)')
    parser.add_argument('--seconds', type=float, default=4)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--json', help='write all numbers here')
    asked = parser.parse_args()
    for tool in ('fio', 'qemu-storage-daemon'):
        if not shutil.which(tool):
            print(f'{tool} is missing: apt-get install fio qemu-system-common', file=sys.stderr)
            return 2
    folder = Path(tempfile.mkdtemp(prefix='mirrorfs-bench-', dir=asked.folder))
    numbers: dict[str, dict[str, list[float]]] = {job: {} for job in JOBS}
    makers = {
        'raw file': lambda: raw(folder),
        'quorum (threads)': lambda: quorum(folder, 'threads'),
        'quorum (io_uring)': lambda: quorum(folder, 'io_uring'),
        'mirrorfs, no log': lambda: mirrorfs(folder, 'none'),
        'mirrorfs': lambda: mirrorfs(folder, 'internal'),
    }
    try:
        with contextlib.ExitStack() as stack:
            images = {}
            for name, make in makers.items():
                try:
                    images[name] = stack.enter_context(make())
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f'{name}: failed to start: {error}', file=sys.stderr)
            for repeat in range(asked.repeats):
                for job in JOBS:
                    for name, image in images.items():
                        numbers[job].setdefault(name, []).append(measure(image, job, asked.seconds))
                print(f'round {repeat + 1} of {asked.repeats} done', file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    report(numbers, asked.repeats)
    if asked.json:
        Path(asked.json).write_text(json.dumps({'machine': machine(), 'iops': numbers}, indent=1))
    return 0


def machine() -> dict[str, str]:
    cpu = next(line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line)
    return {
        'cpu': f'{os.cpu_count()} x {cpu.partition(":")[2].strip()}',
        'kernel': platform.release(),
        'python': platform.python_version(),
        'fio': run('fio', '--version').strip(),
        'qemu': run('qemu-storage-daemon', '--version').split('\n')[0],
    }


def report(numbers: dict[str, dict[str, list[float]]], repeats: int) -> None:
    for key, value in machine().items():
        print(f'{key}: {value}')
    names = list(numbers[next(iter(numbers))])
    print(f'\nIOPS, medians of {repeats} (lowest-highest)')
    for job, by_name in numbers.items():
        print(f'\n{job}')
        peer = max((statistics.median(v) for n, v in by_name.items() if n.startswith('quorum')), default=0)
        for name in names:
            values = by_name[name]
            median = statistics.median(values)
            ratio = f'{median / peer:5.2f} x the better quorum' if peer else ''
            print(f'  {name:<18}{median:>9.0f}  ({min(values):.0f}-{max(values):.0f})  {ratio}')


if __name__ == '__main__':
    sys.exit(main())
