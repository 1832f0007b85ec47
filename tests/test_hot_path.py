"""What one hot request costs, counted: system calls, awaits, bytes copied.  No clock is looked at.

The numbers are those that docs/performance.md gives, and are read from there.  Whoever changes a cost changes
the page, too.
"""

import collections
import functools
import mmap
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from mounts import PROJECT, MountedPool, wait_for, why_not
from test_lane import Kernel, serving, table_over

from mirrorfs.fs import wire
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.system import System

MANY = 300
SIZE = 4096
KINDS = ('write', 'read', 'fdatasync')


def promised(kind: str) -> dict[str, int]:
    """Return the row of docs/performance.md for one kind of request."""
    text = (PROJECT / 'docs/performance.md').read_text()
    row = re.search(rf'^\| hot {kind}\b[^|]*\| (\d+) \| (\d+) \| ([\d,]+) \|', text, re.MULTILINE)
    assert row, f'docs/performance.md has no row for a hot {kind}'
    names = ('system calls', 'awaits', 'bytes copied')
    return dict(zip(names, (int(cell.replace(',', '')) for cell in row.groups()), strict=True))


# System calls, and the bytes that they copy: a real mount, watched from outside

_LINE = re.compile(r'^\d+ +(?:<\.\.\. )?(?P<call>\w+)(?:\(| resumed>).* = (?P<result>-?\d+)')
_WAITING = {'epoll_wait', 'futex', 'restart_syscall', 'clock_nanosleep', 'gettimeofday'}
"""Who waits, makes more or fewer of these: that is time, not cost."""


def traced(pool: MountedPool, log: Path, work: Callable[[], None]) -> tuple[collections.Counter[str], int]:
    """Return how often the daemon made each call that succeeded during `work`, and the bytes they moved."""
    command = ['strace', '-f', '-qq', '-s', '0', '-o', str(log), '-p', str(pool.pid)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: _is_traced(pool.pid), 'strace is attached to every thread')
        work()
    finally:
        tracer.terminate()
        tracer.wait(30)
    calls: collections.Counter[str] = collections.Counter()
    moved = 0
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if found is None or int(found['result']) < 0 or found['call'] in _WAITING:
            continue
        calls[found['call']] += 1
        if found['call'] in ('readv', 'preadv2', 'pwrite64', 'write', 'writev'):
            moved += int(found['result'])
    return calls, moved


def _is_traced(pid: int) -> bool:
    status = (Path(task, 'status').read_text() for task in Path(f'/proc/{pid}/task').iterdir())
    return all('TracerPid:\t0\n' not in text for text in status)


@pytest.mark.skipif(bool(why_not()) or not shutil.which('strace'), reason=why_not() or 'strace is missing')
@pytest.mark.parametrize('kind', KINDS)
def test_system_calls_and_bytes_of_a_hot_request(kind: str, tmp_path: Path) -> None:
    with MountedPool() as pool:
        pool.make().start()
        volume = pool.volume('disk', size=8 << 20)
        image = os.open(volume.image, os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, SIZE)
        block[:] = os.urandom(SIZE)
        try:
            os.pwritev(image, [block], 0)  # from now on the chunk is the lane's
            os.fdatasync(image)

            def work() -> None:
                for turn in range(MANY):
                    if kind == 'write':
                        os.pwritev(image, [block], turn % 16 * SIZE)
                    elif kind == 'read':
                        os.preadv(image, [block], turn % 16 * SIZE)
                    else:
                        os.fdatasync(image)

            os.pwritev(image, [mmap.mmap(-1, 16 * SIZE)], 0)
            calls, moved = traced(pool, tmp_path / 'trace', work)
        finally:
            os.close(image)
    wanted = promised(kind)
    # What else the daemon does meanwhile (looks at legs, clears chunks) is not done for each request.
    assert sum(calls.values()) / MANY == pytest.approx(wanted['system calls'], abs=0.5), calls
    assert moved / MANY == pytest.approx(wanted['bytes copied'], rel=0.02, abs=60), calls


# Awaits: the lane in this process, and trio's scheduler watched


class Steps(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@pytest.mark.parametrize('kind', KINDS)
async def test_trio_runs_no_task_for_a_hot_request(kind: str, tmp_path: Path) -> None:
    legs = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ('a', 'b')]
    for leg in legs:
        os.ftruncate(leg, 8 << 16)
    table = table_over(legs)
    table.syncable = tuple(SimpleNamespace(sync=functools.partial(os.fdatasync, leg)) for leg in legs)
    async with serving(table, stuck_seconds=60) as (kernel, _):
        assert await _ask(kernel, kind) == 0
        steps = Steps()
        kernel.near.setblocking(True)  # no await of the test's own between the requests
        trio.lowlevel.add_instrument(steps)
        for _ in range(MANY):
            assert _ask_at_once(kernel, kind) == 0
        trio.lowlevel.remove_instrument(steps)
        kernel.near.setblocking(False)
        await trio.testing.wait_all_tasks_blocked()
        assert not kernel.handed
    assert steps.count == promised(kind)['awaits'] * MANY


def _begin(kernel: Kernel, kind: str) -> int:
    if kind == 'write':
        return kernel.write(0, bytes(SIZE))
    if kind == 'read':
        return kernel.read(0, SIZE)
    return kernel.request(wire.FUSE_FSYNC, wire.FSYNC_IN.pack(1, 1, 0))


async def _ask(kernel: Kernel, kind: str) -> int:
    unique = _begin(kernel, kind)
    answered, error, _ = await kernel.reply()
    assert answered == unique
    return error


def _ask_at_once(kernel: Kernel, kind: str) -> int:
    unique = _begin(kernel, kind)
    _, error, answered = wire.OUT_HEADER.unpack_from(kernel.near.recv(2 << 20))
    assert answered == unique
    return -int(error)


# Copies in Python: none


class Watched(System):
    """Notes the buffers that its calls are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}
        for name in ('readv', 'write', 'pwrite', 'preadv'):
            setattr(self, name, self._noting(name, getattr(self, name)))

    def _noting(self, name: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, buffer: Any, *rest: int) -> int:
            part = buffer[0] if isinstance(buffer, (tuple, list)) else buffer
            if 'write' in name:
                self.seen[name] = part  # before: whoever waits for the reply looks at once
            result = real(fd, buffer, *rest)
            self.seen[name] = part
            return result

        return call


async def test_the_bytes_of_hot_requests_are_not_copied_in_python(tmp_path: Path) -> None:
    legs = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ('a', 'b')]
    for leg in legs:
        os.ftruncate(leg, 8 << 16)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    system, kernel = Watched(), Kernel(near)
    gateway = Gateway(far.fileno(), kernel.handle, lambda *stuck: None, lambda: None, system=system)
    gateway.attach(5, table_over(legs))
    gateway.start()
    try:
        assert await _ask(kernel, 'write') == 0
        read_into, written_from = system.seen['readv'], system.seen['pwrite']
        assert written_from.obj is read_into.obj, 'the data of a write went through another buffer'
        assert await _ask(kernel, 'read') == 0
        written_from, read_into = system.seen['write'], system.seen['preadv']
        assert written_from.obj is read_into.obj, 'the data of a read went through another buffer'
    finally:
        gateway.close()
        far.close()
        near.close()
