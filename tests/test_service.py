"""What the service manager is told, and the units in examples/systemd, run by hand as it runs them."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from mounts import CLI, MIB, PROJECT, MountedPool, mountpoints, run, wait_for

from mirrorfs import limits
from mirrorfs.definitions import PoolDirectory
from mirrorfs.fs import daemon
from mirrorfs.fs.notify import ServiceManager
from mirrorfs.fs.options import Options
from mirrorfs.fs.reporting import Glance, report, summary

UNITS = PROJECT / 'examples/systemd'


class Manager:
    """A service manager's socket; `told` is all that has come."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace('@', '\0', 1))
        self.socket.setblocking(False)

    def take(self) -> list[str]:
        while True:
            try:
                self.told += self.socket.recv(1 << 16).decode().split('\n')
            except BlockingIOError:
                return self.told

    def wait(self, pattern: str) -> str:
        """Return the first note that matches a pattern, among all so far and to come."""

        def found() -> str | None:
            return next((note for note in self.take() if re.fullmatch(pattern, note)), None)

        note: str = wait_for(found, f'{pattern} (told: {self.told})')
        return note


@pytest.fixture(params=['file', 'abstract'])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / 'notify') if request.param == 'file' else f'@mirrorfs-test-{os.getpid()}')
    yield made
    made.socket.close()


# Notes


def test_without_a_manager_all_notes_are_for_nothing() -> None:
    for address in ('', 'vsock:2:1', 'relative'):
        manager = ServiceManager({'NOTIFY_SOCKET': address})
        assert not manager and manager.tell('READY=1') is False and manager.watchdog is None


def test_a_manager_who_does_not_listen_holds_nobody_up(manager: Manager) -> None:
    ours = ServiceManager({'NOTIFY_SOCKET': manager.address})
    began = time.monotonic()
    sent = 0
    while ours.tell(f'STATUS={sent}'):
        sent += 1
        assert sent < 100_000
    assert time.monotonic() - began < 10
    assert len(manager.take()) == sent
    assert ours.tell('READY=1')


@pytest.mark.parametrize(
    ('microseconds', 'pid', 'seconds'),
    [('4000000', None, 2), ('4000000', os.getpid(), 2), ('4000000', 1, None), ('0', 0, None), ('', 0, None)],
)  # fmt: skip
def test_the_watchdog_wants_a_sign_of_life_at_half_its_time(
    microseconds: str, pid: int | None, seconds: float | None
) -> None:
    environment = {'WATCHDOG_USEC': microseconds} | ({'WATCHDOG_PID': str(pid)} if pid else {})
    assert ServiceManager(environment).watchdog == seconds


SUMMARIES = {
    '0 volumes': [],
    '1 volume, all legs in sync': [Glance('a')],
    '2 volumes, all legs in sync': [Glance('a'), Glance('b')],
    '3 volumes; 1 not running (a); 1 degraded (b)': [
        Glance('a', runs=False), Glance('b', missing=1), Glance('c')
    ],
    '1 volume; 1 degraded (a); a: recover 45%, 3s left': [
        Glance('a', missing=1, pass_='recover 45%, 3s left')
    ],
    '5 volumes; 5 degraded (v0, v1, v2, 2 more)': [Glance(f'v{n}', missing=1) for n in range(5)],
}  # fmt: skip


@pytest.mark.parametrize('line', SUMMARIES)
def test_one_line_says_how_the_volumes_are(line: str) -> None:
    assert summary(SUMMARIES[line]) == line


def test_the_line_is_never_too_long() -> None:
    assert len(summary([Glance('x' * 128, False, 1, 'check 1%')] * 1024)) <= 512


async def test_signs_of_life_come_in_time_and_only_while_requests_are_taken(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    ours = ServiceManager({'NOTIFY_SOCKET': manager.address, 'WATCHDOG_USEC': '1000000'})
    alive = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report, ours, list, lambda: alive)
        await trio.sleep(0.1)
        for half_seconds in range(1, 20):
            assert manager.take().count('WATCHDOG=1') == half_seconds
            await trio.sleep(0.5)
        assert manager.told.count('STATUS=0 volumes') == 1, 'it is said when it has changed'
        before = manager.take().count('WATCHDOG=1')
        alive = False
        await trio.sleep(4)
        assert manager.take().count('WATCHDOG=1') == before
        nursery.cancel_scope.cancel()


async def test_a_signal_that_comes_after_the_unmount_is_no_wish_to_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, '_exit', codes.append)
    ours = daemon.Daemon(PoolDirectory(str(tmp_path)), '/nowhere', Options())
    ours._stop.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours._signals)
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert codes == []
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert codes == [daemon.EXIT_SYSTEM]
        nursery.cancel_scope.cancel()


# Real mounts


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.make()


@pytest.mark.mount
def test_a_service_says_ready_degraded_progress_and_stopping(pool: MountedPool, manager: Manager) -> None:
    volume = pool.volume_at_rest('disk', 16 * MIB)
    pool.start(env={'NOTIFY_SOCKET': manager.address, 'WATCHDOG_USEC': '400000'})
    manager.wait('READY=1')
    assert manager.told[0] == 'STATUS=starting'
    manager.wait('STATUS=1 volume, all legs in sync')
    volume.put(0, os.urandom(8 * MIB))
    volume.write('fail', '1')
    manager.wait(r'STATUS=1 volume; 1 degraded \(disk\)')
    (pool.control / 'volumes/disk/sync_speed_max').write_text('1000')
    volume.write('re-add', '1')
    manager.wait(r'STATUS=1 volume; 1 degraded \(disk\); disk: recover \d+%.*')
    began, before = time.monotonic(), manager.take().count('WATCHDOG=1')
    wait_for(lambda: manager.take().count('WATCHDOG=1') >= before + 5, 'signs of life')
    assert time.monotonic() - began > 0.5, 'they come at half of the time that is left, not all at once'
    assert 'STOPPING=1' not in manager.told
    pool.signal(signal.SIGTERM)
    assert pool.wait() == 0
    manager.wait('STOPPING=1')


@pytest.mark.mount
@pytest.mark.parametrize('manager', ['file'], indirect=True)
def test_a_service_whose_mount_does_not_answer_is_never_ready_and_ends(
    pool: MountedPool, manager: Manager
) -> None:
    done = run(
        sys.executable, PROJECT / 'mount.py', pool.directory, pool.mountpoint, '-f', timeout=30,
        env={**os.environ, 'MIRRORFS_TEST_FAULT': 'getattr', 'NOTIFY_SOCKET': manager.address},
    )  # fmt: skip
    assert done.returncode == daemon.EXIT_MOUNT and 'does not answer: Input/output error' in done.stderr
    assert 'READY=1' not in manager.take() and 'STOPPING=1' in manager.told
    assert mountpoints(pool.base) == []


@pytest.mark.mount
@pytest.mark.parametrize('manager', ['file'], indirect=True)
def test_a_daemon_in_the_background_names_itself_and_logs_to_the_journal(
    pool: MountedPool, manager: Manager
) -> None:
    """Its standard error is the journal's stream: it is kept, and each line begins with a level."""
    pool.volume_at_rest('disk', 4 * MIB)
    ours, theirs = socket.socketpair()
    info = os.fstat(theirs.fileno())
    stream = f'{info.st_dev}:{info.st_ino}'
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, PROJECT / 'mount.py', pool.directory, pool.mountpoint],
            stderr=theirs, stdin=subprocess.DEVNULL, timeout=30, check=False,
            env={**os.environ, 'NOTIFY_SOCKET': manager.address, 'JOURNAL_STREAM': stream},
        )  # fmt: skip
        assert done.returncode == 0
        pid = pool.status()['pid']
        assert f'MAINPID={pid}' in manager.take() and 'READY=1' in manager.told
        pool.write('volumes/disk/fail', '1')
        ours.settimeout(10)
        said = b''
        while b'DegradedArray' not in said:
            said += ours.recv(1 << 16)
        assert re.search(rf'(?m)^<3>Fail disk {pool.legs}/disk.1 ', said.decode())
        assert '\n<4>DegradedArray disk\n' in said.decode()
    assert not (pool.directory / 'log').exists()
    assert run('umount', pool.mountpoint).returncode == 0


# The units


def setting(unit: str, name: str) -> list[str]:
    """Return all values of a setting in a unit of ours."""
    return re.findall(rf'(?m)^{name}=(.*)$', (UNITS / unit).read_text())


class Service:
    """mirrorfs@.service as systemd runs it: environment file, commands, what it takes away from root."""

    def __init__(self, pool: MountedPool, manager: Manager) -> None:
        self.env = {**os.environ, 'NOTIFY_SOCKET': manager.address, 'WATCHDOG_USEC': '30000000'}
        self.variables = {'POOL': str(pool.directory), 'MOUNTPOINT': str(pool.mountpoint), 'OPTIONS': ''}

    def filled_in(self, word: str) -> str:
        return re.sub(r'\$\{(\w+)\}', lambda found: self.variables[found[1]], word)

    def command(self, name: str) -> list[str]:
        (line,) = setting('mirrorfs@.service', name)
        words = [self.filled_in(word) for word in shlex.split(line)]
        assert words[0].lstrip('-') == '/usr/local/bin/mirrorfs'
        (kept,) = setting('mirrorfs@.service', 'CapabilityBoundingSet')
        bounds = ','.join(['-all', *(f'+{cap.removeprefix("CAP_").lower()}' for cap in kept.split())])
        assert setting('mirrorfs@.service', 'NoNewPrivileges') == ['yes']
        return ['setpriv', '--no-new-privs', f'--bounding-set={bounds}', '--', *CLI, *words[1:]]

    def start(self, log: Path) -> 'subprocess.Popen[bytes]':
        with open(log, 'ab') as into:
            return subprocess.Popen(self.command('ExecStart'), env=self.env, stdout=into, stderr=into)


@pytest.mark.mount
@pytest.mark.parametrize('manager', ['file'], indirect=True)
def test_the_service_starts_is_killed_is_cleared_starts_again_and_stops_cleanly(
    pool: MountedPool, manager: Manager
) -> None:
    volume = pool.volume_at_rest('disk', 4 * MIB)
    service = Service(pool, manager)
    for how in ('killed', 'stopped'):
        manager.told.clear()
        with service.start(pool.log_file) as process:
            try:
                manager.wait('READY=1')
                post = run(*service.command('ExecStopPost'))
                assert post.returncode == 0 and mountpoints(pool.base), 'a mount that lives is left alone'
                volume.put(0, how.encode())
                process.send_signal(signal.SIGKILL if how == 'killed' else signal.SIGTERM)
                assert process.wait(30) == (-signal.SIGKILL if how == 'killed' else 0), pool.log()
            finally:
                process.kill()
        assert bool(mountpoints(pool.base)) == (how == 'killed')
        post = run(*service.command('ExecStopPost'))
        assert post.returncode == 0 and mountpoints(pool.base) == []
        assert ('had died' in post.stderr) == (how == 'killed')
    assert volume.assert_legs_equal()[:7] == b'stopped'


def test_the_units_are_what_systemd_understands(tmp_path: Path) -> None:
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd-analyze is not there')
    there = []
    for name, file in (
        ('mirrorfs@vm1.service', 'mirrorfs@.service'),
        ('srv-images.mount', 'srv-images.mount'),
    ):
        text = (UNITS / file).read_text().replace('/usr/local/bin/mirrorfs', sys.executable)
        (tmp_path / name).write_text(text)
        there.append(tmp_path / name)
    done = run(
        'systemd-analyze',
        'verify',
        '--man=no',
        *there,
        env={**os.environ, 'SYSTEMD_UNIT_PATH': f'{tmp_path}:'},
    )
    ours = [line for line in done.stderr.splitlines() if 'mirrorfs' in line or 'srv-images' in line]
    assert ours == [] and done.returncode == 0, done.stderr


def test_the_units_wait_as_long_as_the_daemon_may_take() -> None:
    assert (
        float(setting('mirrorfs@.service', 'TimeoutStopSec')[0]) > limits.STOP_PATIENCE + limits.LEG_TIMEOUT
    )
    start = limits.START_FLUSH_PATIENCE + limits.LEG_TIMEOUT + limits.ANSWER_PATIENCE
    assert float(setting('mirrorfs@.service', 'TimeoutStartSec')[0]) > start
    hiding = re.compile(
        r'(?m)^(Protect(System|Home|Proc|Kernel|Control)|Private|Read|Inaccessible|Bind|Root|Temporary)'
    )
    assert not hiding.search((UNITS / 'mirrorfs@.service').read_text()), (
        'that hides the mount from all others'
    )
