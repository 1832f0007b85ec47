"""Pools really mounted, for tests: made in a folder of their own, and cleaned away whatever happened.

    with MountedPool() as pool:
        volume = pool.volume('disk')        # two legs, created by the control file
        volume.image.write_bytes(...)
        pool.stop()                         # umount, wait for the daemon, check its exit code
        assert volume.leg_data(0) == volume.leg_data(1)

Every wait here has a deadline (`wait_for`); nothing sleeps to "let things settle".
"""

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

import mirrorfs
import mirrorfs.cli
from mirrorfs.intent.states import UNWRITTEN
from mirrorfs.leg.opening import read_super
from mirrorfs.metadata.wibm import PAGE, decode_log, pages_for

HERE = Path(__file__).resolve().parent
PROJECT = Path(mirrorfs.__file__).resolve().parent.parent
MOUNT = [sys.executable, str(PROJECT / 'mount.py')]
CLI = [sys.executable, '-c', 'from mirrorfs.cli import main; main()']
MIB = 1 << 20
DEADLINE = 30.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10
_PR_SET_CHILD_SUBREAPER = 36


def why_not(loop: bool = False) -> str:
    """Return why tests with real mounts cannot run here; empty if they can."""
    if not os.path.exists('/dev/fuse'):
        return '/dev/fuse is not there'
    if os.geteuid() != 0:
        return 'needs root'
    if loop and not os.path.exists('/dev/loop-control'):
        return 'loop devices are not there'
    return ''


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Return the first true value of `condition`; AssertionError with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f'not within {seconds:g} s: {what}'
        time.sleep(0.005)
    return value


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes.  Raises OSError."""
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def run(*command: str | Path, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with its output captured, stdin closed."""
    options.setdefault('stdin', subprocess.DEVNULL)
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, errors='replace', timeout=timeout, check=False, **options
    )


def sh(command: str, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a shell command; `arguments` are $1, $2, …"""
    return run('sh', '-c', command, 'sh', *arguments, timeout=timeout)


def cli(*words: str | Path, timeout: float = 60, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: forked from this one, since starting Python is slow.

    A traceback is printed and exit code 255, as nothing else gives.
    """
    if threading.active_count() > 1:  # a fork of threads may inherit a lock that nobody will release
        return run(*CLI, *words, timeout=timeout, cwd=cwd)
    strings = [str(word) for word in words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with child(lambda: _be_cli(strings, cwd, out.fileno(), err.fileno())) as pid:
            code = exit_code(pid, timeout)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
    return subprocess.CompletedProcess(strings, code, *texts)


def _be_cli(words: list[str], cwd: Path, out: int, err: int) -> int:
    os.chdir(cwd)
    for fd, at in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(fd, at)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate('rww'))
    sys.argv = ['mirrorfs', *words]
    try:
        mirrorfs.cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 255


def cli_ok(*words: str | Path, **options: Any) -> str:
    """Run the command line, which must succeed; return what it printed."""
    done = cli(*words, **options)
    assert done.returncode == 0, f'{words}: {done.returncode}, {done.stderr}'
    return done.stdout


def examine(*legs: str | Path) -> list[dict[str, Any]]:
    """Return what legs say of themselves."""
    facts: list[dict[str, Any]] = json.loads(cli('examine', '--json', *legs).stdout)
    return facts


@contextmanager
def child(function: Callable[[], object], uid: int | None = None) -> Iterator[int]:
    """Fork and run `function` in the child, as another user if asked; kill it at the end if it still runs.

    The child exits with 0, with what it returned if that is a number, or with the errno of an OSError.
    """
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            result = function()
            code = result if isinstance(result, int) else 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        if pid not in _reaped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        _reaped.discard(pid)


_reaped: set[int] = set()


def exit_code(pid: int, seconds: float = DEADLINE) -> int:
    """Wait for a child of ours to end; return its exit code (minus the signal that killed it)."""
    await_end(pid, seconds)
    _, status = os.waitpid(pid, 0)
    _reaped.add(pid)
    return os.waitstatus_to_exitcode(status)


def in_child(function: Callable[[], object], uid: int | None = None, seconds: float = DEADLINE) -> int:
    """Run `function` in a child and return its exit code; see `child`."""
    with child(function, uid) as pid:
        return exit_code(pid, seconds)


def await_end(pid: int, seconds: float = DEADLINE) -> None:
    """Return when a process, not necessarily a child, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([fd], [], [], seconds)
        assert ready, f'process {pid} still runs after {seconds:g} s'
    finally:
        os.close(fd)


def adopt_orphans() -> None:
    """Become the parent of daemons that go to the background, so that their exit codes can be seen."""
    assert _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def mountpoints(below: Path) -> list[str]:
    """Return what is mounted below a folder, the innermost first."""
    found = []
    for line in Path('/proc/self/mountinfo').read_text().splitlines():
        where = line.split()[4].encode().decode('unicode_escape')
        if Path(where).is_relative_to(below):
            found.append(where)
    return sorted(found, reverse=True)


def loops(below: Path) -> list[str]:
    """Return the loop devices over files below a folder."""
    found = []
    for file in Path('/sys/block').glob('loop*/loop/backing_file'):
        try:
            backing = file.read_text().strip().removesuffix(' (deleted)')
        except OSError:
            continue
        if Path(backing).is_relative_to(below):
            found.append(f'/dev/{file.parts[3]}')
    return found


@dataclass
class Volume:
    """A volume of a mounted pool."""

    pool: 'MountedPool'
    name: str
    size: int
    legs: list[Path]

    @property
    def image(self) -> Path:
        return self.pool.mountpoint / self.name

    @property
    def control(self) -> Path:
        return self.pool.control / 'volumes' / self.name

    def write(self, file: str, text: str | bytes) -> None:
        """Write a control file of this volume."""
        write_control(self.control / file, text)

    def read(self, file: str) -> str:
        return (self.control / file).read_text()

    def status(self) -> dict[str, Any]:
        return self.pool.volume_status(self.name)

    @contextmanager
    def open(self, flags: int = os.O_RDWR) -> Iterator[int]:
        fd = os.open(self.image, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def put(self, at: int, data: bytes) -> None:
        """Write to the image, durably."""
        with self.open() as fd:
            os.pwrite(fd, data, at)
            os.fsync(fd)

    def get(self, at: int, length: int) -> bytes:
        with self.open(os.O_RDONLY) as fd:
            return os.pread(fd, length, at)

    def leg_data(self, number: int) -> bytes:
        """Return what a leg, at its path, holds of the image; never written (or discarded) means zeros.

        The mount must be stopped, or synced with nothing discarded: the log is read from the leg.
        """
        with open(self.legs[number], 'rb') as file:
            sup, _ = read_super(file.fileno())
            chunks, chunk = sup.record.chunks, sup.record.chunk_size
            length = pages_for(chunks) * PAGE
            log = decode_log(
                sup.record.uuid,
                chunks,
                lambda which: os.pread(file.fileno(), length, sup.layout.page_offset(0, which)),
            )
            data = bytearray(os.pread(file.fileno(), self.size, sup.layout.data_offset))
        for number in np.flatnonzero(log.states & UNWRITTEN).tolist():
            low, high = number * chunk, min((number + 1) * chunk, self.size)
            data[low:high] = bytes(high - low)
        return bytes(data)

    def assert_legs_equal(self) -> bytes:
        """Check that all legs hold the same wherever something was ever written; return it."""
        first = self.leg_data(0)
        assert len(first) == self.size
        for number in range(1, len(self.legs)):
            other = self.leg_data(number)
            if first != other:
                at = next(i for i in range(0, len(first), 512) if first[i : i + 512] != other[i : i + 512])
                raise AssertionError(f'leg 0 and leg {number} of {self.name} differ at byte {at}')
        return first

    def settled(self, seconds: float = DEADLINE) -> dict[str, Any]:
        """Wait until no recovery or resync is left to do."""

        def at_rest() -> dict[str, Any] | None:
            status = self.status()
            spare = any(leg['recovery_start'] is not None for leg in status['legs'])
            return None if spare or status['sync'] or status['chunks']['needs_resync'] else status

        found: dict[str, Any] = wait_for(at_rest, f'{self.name} at rest', seconds)
        return found

    def destroy(self) -> None:
        """Remove the volume and its legs."""
        self.pool.write('destroy', f'{self.name} force')
        for leg in self.legs:
            leg.unlink(missing_ok=True)


def write_control(path: Path, text: str | bytes) -> None:
    """Write one command; raises OSError with the errno of write(2)."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text if isinstance(text, bytes) else text.encode())
    finally:
        os.close(fd)


def new_folder() -> Path:
    """Return a new folder on a real disk, which other users may pass through."""
    folder = Path(tempfile.mkdtemp(prefix='mirrorfs-test-', dir='/var/tmp'))
    folder.chmod(0o755)
    return folder


@dataclass
class MountedPool:
    """A pool in a folder of its own, with the daemon that serves it."""

    options: str = ''
    env: dict[str, str] = field(default_factory=dict)
    base: Path = field(default_factory=new_folder)
    process: subprocess.Popen[bytes] | None = None
    _count: int = 0

    def __post_init__(self) -> None:
        self.directory = self.base / 'pool'
        self.mountpoint = self.base / 'mnt'
        self.legs = self.base / 'legs'
        self.log_file = self.base / 'stderr'
        for folder in (self.mountpoint, self.legs):
            folder.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clean()

    # The daemon

    @property
    def control(self) -> Path:
        return self.mountpoint / '.mirrorfs'

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def make(self) -> Self:
        """Make an empty pool without the cost of a process."""
        (self.directory / 'volumes').mkdir(parents=True, mode=0o700)
        (self.directory / 'mirrorfs.json').write_text('{"format": 1}')
        return self

    def start(self, *options: str, env: dict[str, str] | None = None) -> Self:
        """Mount in the foreground, log to `log_file`; return when the mount answers."""
        if not self.directory.exists():
            self.make()
        words = ','.join(filter(None, (self.options, *options)))
        with open(self.log_file, 'ab') as log:
            self.process = subprocess.Popen(
                [*MOUNT, str(self.directory), str(self.mountpoint), '-f', *(['-o', words] if words else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env, **(env or {})},
            )
        wait_for(self._answers, f'mount: {self.log()[-2000:]}')
        return self

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, f'the daemon ended: {self.log()[-2000:]}'
        try:
            return bool(self.status()['pid'] == self.pid)
        except (OSError, ValueError):
            return False

    def log(self) -> str:
        return self.log_file.read_text(errors='replace') if self.log_file.exists() else ''

    def stop(self, seconds: float = DEADLINE) -> None:
        """Unmount; the daemon must end with exit code 0."""
        done = run('umount', self.mountpoint)
        assert done.returncode == 0, done.stderr
        assert self.wait(seconds) == 0, self.log()[-2000:]

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for the daemon to end by itself; return its exit code."""
        assert self.process
        code = self.process.wait(seconds)
        self.process = None
        return code

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9: nothing is flushed, the mount point stays dead."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def clean(self) -> None:
        """End everything that was begun in this folder, and remove it."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        for _ in range(3):
            for where in mountpoints(self.base):
                run('umount', '-l', where)
            for device in loops(self.base):
                run('losetup', '-d', device)
        for pid in daemons_of(self.base):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            await_end(pid)
        for where in mountpoints(self.base):
            run('umount', '-l', where)
        shutil.rmtree(self.base, ignore_errors=True)

    # What it says

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.control / 'status.json').read_text())
        return status

    def volume_status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(v for v in self.status()['volumes'] if v['name'] == name)
        return found

    def events(self) -> list[str]:
        return (self.control / 'events').read_text().splitlines()

    def write(self, file: str, text: str | bytes) -> None:
        """Write a control file of the pool."""
        write_control(self.control / file, text)

    # Volumes

    def leg_paths(self, name: str, count: int) -> list[Path]:
        return [self.legs / f'{name}.{number}' for number in range(count)]

    def volume(
        self,
        name: str = '',
        size: int = 64 * MIB,
        legs: int = 2,
        options: str = '',
    ) -> Volume:
        """Create a volume in the running mount."""
        self._count += 1
        name = name or f'v{self._count}'
        paths = self.leg_paths(name, legs)
        self.write('create', f'{name} {size} {" ".join(map(str, paths))} {options}')
        return Volume(self, name, size, paths)

    def volume_at_rest(
        self, name: str, size: int = 64 * MIB, legs: int = 2, options: Sequence[str] = ()
    ) -> Volume:
        """Create a volume while the pool is not mounted."""
        paths = self.leg_paths(name, legs)
        named = [word for path in paths for word in ('--leg', str(path))]
        cli_ok('create', self.directory, name, '--size', str(size), *named, *options)
        return Volume(self, name, size, paths)


def daemons_of(base: Path) -> list[int]:
    """Return the processes, our own apart, whose command line names something in a folder."""
    found = []
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if os.fsencode(base) in file.read_bytes() and int(file.parts[2]) != os.getpid():
                found.append(int(file.parts[2]))
        except OSError:
            continue
    return found


MDSTAT_LINE = re.compile(r'^(\S+) : (active|inactive)( raid1)?((?: \S+\[\d+\](?:\([WJFSR]\))*)*)$')
MDSTAT_PROGRESS = re.compile(
    r'^      \[(=*)>(\.*)\]  (resync|recovery|check|reshape) = ?( ?\d+)\.(\d)% '
    r'\((\d+)/(\d+)\) finish=\d+\.\dmin speed=\d+K/sec$'
)
EVENT_LINE = re.compile(r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z][A-Za-z0-9]+ \S+( .*)?$')
