"""What tests on real mounts, loop devices and frozen filesystems share.

A `Field` owns everything that a test sets up outside its own process, and takes it down in the reverse order:
frozen filesystems are thawed first, daemons are killed by their pid.  Every wait has a deadline.
"""

import contextlib
import functools
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrorfs.leg.opening import read_super
from mirrorfs.metadata import wibm

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
BLOCK = 4096


def need_root() -> None:
    """Skip the test unless loop devices and mounts can be had."""
    if os.geteuid() or not os.path.exists('/dev/loop-control') or not os.path.exists('/dev/fuse'):
        pytest.skip('needs root, loop devices and /dev/fuse')


def run(*words: Any, seconds: float = 60, check: bool = True) -> str:
    """Run a program; return what it says.  Fails with all that it said."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    if check and done.returncode:
        raise AssertionError(f'{" ".join(map(str, words))}: exit {done.returncode}\n{done.stdout}')
    return done.stdout


def mirrorfs(*words: Any, seconds: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the mirrorfs command; return it with stdout and stderr apart."""
    done = subprocess.run(
        [sys.executable, '-c', 'from mirrorfs.cli import main; main()', *[str(word) for word in words]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if check and done.returncode:
        raise AssertionError(f'mirrorfs {words}: exit {done.returncode}\n{done.stdout}{done.stderr}')
    return done


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return function(), run in a thread of its own; TimeoutError if that does not end in time."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f'{function} did not end within {seconds:g} s')
    if failure:
        raise failure[0]
    return result[0]


def wait_for(condition: Callable[[], Any], seconds: float, what: str, step: float = 0.05) -> Any:
    """Poll until a condition is true; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f'not within {seconds:g} s: {what}'
        time.sleep(step)
    return value


class Field:
    """Mounts, loop devices and daemons of one test."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._undo: list[Callable[[], Any]] = []

    def close(self) -> None:
        """Take everything down, newest first."""
        while self._undo:
            undo = self._undo.pop()
            try:
                within(60, undo)
            except Exception as error:  # the rest must go, too
                print('cleaning up:', repr(error))

    def later(self, undo: Callable[[], Any]) -> None:
        """Do this, too, when the test ends; it must not mind if it was done already."""
        self._undo.append(undo)

    def path(self, name: str) -> Path:
        return self.where / name

    # Loop devices and filesystems

    def loop(self, path: Path | str, *options: str) -> str:
        """Return a loop device over a file."""
        device = run('losetup', '-f', '--show', *options, path).strip()
        self.later(functools.partial(detach, device))
        return device

    def mount_fs(self, device: str, name: str, *options: str) -> Path:
        """Mount a device under `name`."""
        target = self.path(name)
        target.mkdir(exist_ok=True)
        run('mount', *options, device, target)
        self.later(functools.partial(umount, target))
        return target

    def small_fs(self, name: str, size: int, *options: str) -> Path:
        """Return a new mounted ext4 of `size` bytes."""
        image = self.path(f'{name}.img')
        with open(image, 'wb') as file:
            file.truncate(size)
        run('mkfs.ext4', '-q', '-F', '-m', '0', *options, image)
        return self.mount_fs(self.loop(image), name)

    @contextlib.contextmanager
    def frozen(self, mountpoint: Path) -> Iterator[None]:
        """Keep a filesystem frozen; it is thawed whatever happens."""
        run('fsfreeze', '-f', mountpoint, seconds=30)
        thaw = functools.partial(run, 'fsfreeze', '-u', mountpoint, seconds=30, check=False)
        self.later(thaw)
        try:
            yield
        finally:
            thaw()

    def pool(self, name: str = 'pool') -> 'Pool':
        return Pool(self, name)


def umount(target: Path) -> None:
    """Unmount if mounted."""
    if os.path.ismount(target):
        run('umount', target, seconds=60)


def detach(device: str) -> None:
    """Detach a loop device if attached; return when it is."""
    number = Path(device).name
    backing = Path(f'/sys/block/{number}/loop/backing_file')
    if backing.exists():
        run('losetup', '-d', device, check=False)
        wait_for(lambda: not backing.exists(), 30, f'{device} detached')


class Pool:
    """A pool with its daemon and mount."""

    def __init__(self, field: Field, name: str) -> None:
        self.field = field
        self.directory = field.path(name)
        self.mountpoint = field.path(f'{name}.mnt')
        self.mountpoint.mkdir()
        self.log = field.path(f'{name}.log')
        self.daemon: subprocess.Popen[bytes] | None = None
        field.later(self._end)

    def create(self, name: str, size: int | str, *legs: Path | str, chunk: str = '64K', **more: Any) -> Path:
        """Make a volume; return where its image is."""
        words: list[Any] = ['create', self.directory, name, '--size', size, '--chunk', chunk]
        for leg in legs:
            words += ['--leg', leg]
        for option, value in more.items():
            words += [f'--{option}'] if value is True else [f'--{option}', value]
        mirrorfs(*words)
        return self.image(name)

    def image(self, name: str) -> Path:
        return self.mountpoint / name

    def mount(self, options: str = '', seconds: float = 30) -> None:
        """Start a daemon and return when its mount answers."""
        words = [sys.executable, str(ROOT / 'mount.py'), '-f', str(self.directory), str(self.mountpoint)]
        with open(self.log, 'ab') as log:
            self.daemon = subprocess.Popen(
                words + (['-o', options] if options else []), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        daemon = self.daemon

        def answers() -> bool:
            if daemon.poll() is not None:
                raise AssertionError(f'the daemon ended, exit {daemon.returncode}:\n{self.said()}')
            try:
                return json.loads(self.read('status.json'))['pid'] == daemon.pid
            except (OSError, ValueError):
                return False

        wait_for(answers, seconds, f'mount of {self.directory}')

    def said(self) -> str:
        """What the daemons logged."""
        return self.log.read_text(errors='replace') if self.log.exists() else ''

    def umount(self, seconds: float = 90) -> None:
        """Unmount; the daemon must stop cleanly."""
        assert self.daemon
        run('umount', self.mountpoint, seconds=seconds)
        assert self.daemon.wait(seconds) == 0, self.said()
        self.daemon = None

    def kill(self) -> None:
        """SIGKILL the daemon and clear its dead mount away."""
        assert self.daemon
        self.daemon.kill()
        self.daemon.wait(30)
        self.daemon = None
        run('umount', '-l', self.mountpoint, check=False)

    def _end(self) -> None:
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGKILL)
            self.daemon.wait(30)
        for _ in range(4):
            if subprocess.run(['umount', '-l', self.mountpoint], capture_output=True).returncode:
                break

    # Control files

    def read(self, file: str, seconds: float = 20) -> str:
        """Return what a control file says."""
        return within(seconds, (self.mountpoint / '.mirrorfs' / file).read_text)

    def write(self, file: str, words: str, seconds: float = 60) -> None:
        """Write one command.  Raises OSError as the daemon answers."""

        def body() -> None:
            fd = os.open(self.mountpoint / '.mirrorfs' / file, os.O_WRONLY)
            try:
                os.write(fd, f'{words}\n'.encode())
            finally:
                os.close(fd)

        within(seconds, body)

    def command(self, name: str, verb: str, words: Any, seconds: float = 60) -> None:
        """Write one command of a volume."""
        self.write(f'volumes/{name}/{verb}', str(words), seconds)

    def status(self, name: str) -> dict[str, Any]:
        """Return a volume's part of status.json."""
        volumes = json.loads(self.read('status.json'))['volumes']
        return next(volume for volume in volumes if volume['name'] == name)

    def states(self, name: str) -> list[str]:
        """Return the legs' states, by slot."""
        return [leg['state'] for leg in self.status(name)['legs']]

    def events(self) -> str:
        return self.read('events')

    def settled(self, name: str, legs: int, seconds: float = 60) -> dict[str, Any]:
        """Return the status when `legs` legs are in sync and nothing is left to copy."""

        def done() -> dict[str, Any] | None:
            status = self.status(name)
            good = [leg for leg in status['legs'] if leg['state'] == 'in_sync']
            busy = status['sync'] or status['chunks']['needs_resync']
            return status if len(good) == legs and not busy else None

        try:
            return wait_for(done, seconds, f'{legs} legs in sync')
        except AssertionError as late:
            raise AssertionError(f'{late}; {self.status(name)}\n{self.events()}\n{self.said()}') from None


def examine(*legs: Path | str) -> list[dict[str, Any]]:
    """Return what `mirrorfs examine --json` says of legs."""
    return json.loads(mirrorfs('examine', '--json', *legs).stdout)


def assert_legs_equal(*legs: Path | str) -> None:
    """Fail unless the data of all legs are the same, byte for byte; the volume must be at rest."""
    facts = examine(*legs)
    size = facts[0]['size']
    first = facts[0]
    for other in facts[1:]:
        for at in differing(first, other, size):
            pytest.fail(f'{first["path"]} and {other["path"]} differ at byte {at} of the volume')


def differing(first: dict[str, Any], other: dict[str, Any], size: int) -> Iterator[int]:
    """Yield the offsets of 4 KiB blocks in which two examined legs differ."""
    with open(first['path'], 'rb', buffering=0) as a, open(other['path'], 'rb', buffering=0) as b:
        for at in range(0, size, MIB):
            step = min(MIB, size - at)
            mine = os.pread(a.fileno(), step, first['data_offset'] + at)
            theirs = os.pread(b.fileno(), step, other['data_offset'] + at)
            if mine != theirs:
                for low in range(0, step, BLOCK):
                    if mine[low : low + BLOCK] != theirs[low : low + BLOCK]:
                        yield at + low


def states_of(path: Path | str) -> npt.NDArray[np.uint8]:
    """Return the flags of every chunk (uint8 [chunks]) as a leg at rest has them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sup, _ = read_super(fd)
        length = wibm.pages_for(sup.record.chunks) * wibm.PAGE
        image = wibm.decode_log(
            sup.record.uuid, sup.record.chunks, lambda c: os.pread(fd, length, sup.layout.page_offset(0, c))
        )
    finally:
        os.close(fd)
    return image.states


class Direct:
    """A file opened with O_DIRECT: aligned buffers, whole blocks."""

    def __init__(self, path: Path | str, flags: int = os.O_RDWR) -> None:
        self._fd = os.open(path, flags | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, MIB)

    def write(self, offset: int, data: bytes) -> None:
        self._buffer[: len(data)] = data
        with memoryview(self._buffer) as view, view[: len(data)] as part:
            assert os.pwrite(self._fd, part, offset) == len(data)

    def read(self, offset: int, length: int) -> bytes:
        with memoryview(self._buffer) as view, view[:length] as part:
            assert os.preadv(self._fd, [part], offset) == length
        return self._buffer[:length]

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def block_of(number: int, tag: int) -> bytes:
    """Return a block that says which it is and which version."""
    return (number.to_bytes(8, 'little') + tag.to_bytes(8, 'little')) * (BLOCK // 16)


class Tagger:
    """Writes blocks again and again, each time with a higher tag, in a thread, until stopped.

    `acked` holds the last tag that was acknowledged for each block, `begun` the last that was begun.
    """

    def __init__(self, image: Path, blocks: Sequence[int], pause: float = 0.0) -> None:
        self.blocks = list(blocks)
        self.acked: dict[int, int] = {}
        self.begun: dict[int, int] = {}
        self.failure: OSError | None = None
        self.pauses: list[tuple[float, float]] = []
        """(when it ended, how long it was) of each write that took more than 0.2 s."""
        self.count = 0
        self._file = Direct(image)
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        tag = 0
        try:
            while not self._stop.is_set():
                tag += 1
                for number in self.blocks:
                    if self._stop.is_set():
                        break
                    self.begun[number] = tag
                    start = time.monotonic()
                    self._file.write(number * BLOCK, block_of(number, tag))
                    now = time.monotonic()
                    self.acked[number] = tag
                    self.count += 1
                    if now - start > 0.2:
                        self.pauses.append((now, now - start))
                    if self._pause:
                        time.sleep(self._pause)
        except OSError as error:
            self.failure = error
        finally:
            self._file.close()

    def stop(self, seconds: float = 30) -> None:
        """End; a write under way is waited for."""
        self._stop.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), 'a write is still not answered'

    def check(self, path: Path | str, base: int = 0) -> None:
        """Fail unless every block has the tag that was acknowledged last, or one begun after it."""
        with open(path, 'rb', buffering=0) as file:
            for number, tag in self.acked.items():
                found = os.pread(file.fileno(), BLOCK, base + number * BLOCK)
                allowed = range(tag, self.begun[number] + 1)
                assert any(found == block_of(number, t) for t in allowed), (
                    f'block {number}: wanted {allowed}, has {int.from_bytes(found[8:16], "little")}'
                )


class Heartbeat:
    """Writes and reads a block every 20 ms in a thread; remembers the longest pause."""

    def __init__(self, image: Path, offset: int = 0, step: float = 0.02) -> None:
        self.worst = 0.0
        self.beats = 0
        self.failure: BaseException | None = None
        self._last = time.monotonic()
        self._file = Direct(image)
        self._offset = offset
        self._step = step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                data = block_of(self.beats, self.beats)
                self._file.write(self._offset, data)
                assert self._file.read(self._offset, BLOCK) == data
                now = time.monotonic()
                self.worst = max(self.worst, now - self._last)
                self._last = now
                self.beats += 1
                time.sleep(self._step)
        except BaseException as error:
            self.failure = error
        finally:
            self._file.close()

    def stop(self, seconds: float = 20) -> float:
        """End; return the longest pause, in seconds."""
        self._stop.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), 'the heartbeat has stopped'
        if self.failure:
            raise self.failure
        return self.worst


@contextlib.contextmanager
def field(where: Path) -> Iterator[Field]:
    """A Field for one test."""
    need_root()
    made = Field(where)
    try:
        yield made
    finally:
        made.close()
