"""Pools whose legs are on fault filesystems (`faultfs`): started, steered, and always cleaned away.

    with FaultPool() as pool:
        pool.start()
        volume = pool.volume('disk', size=8 * MIB)
        pool.faults[1].rule('write', 'EIO', nth=3)
        ...
        pool.kill()
        pool.power_cut(seed=7)      # each leg loses what it likes of what it had not synced
        pool.start()

Daemons are forked from the test's process, which has everything imported: starting one is then so cheap that
hundreds can be killed in a minute.  So nothing here may run while the test has threads.
"""

import contextlib
import ctypes
import gc
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from mounts import (
    DEADLINE,
    HERE,
    MIB,
    PROJECT,
    MountedPool,
    Volume,
    await_end,
    mountpoints,
    run,
    wait_for,
    write_control,
)

from mirrorfs.fs import daemon
from mirrorfs.leg.opening import read_super

FAULTFS = [sys.executable, str(HERE / 'faultfs.py')]
_PATH = os.pathsep.join([str(PROJECT), os.environ.get('PYTHONPATH', '')])


class FaultLeg:
    """One fault filesystem with its process."""

    def __init__(self, base: Path, number: int) -> None:
        self.backing = base / f'backing.{number}'
        self.mountpoint = base / f'fault.{number}'
        self.path = self.mountpoint / 'leg'
        self.control = self.mountpoint / '.control'
        self._log = base / f'fault.{number}.log'
        self._process: subprocess.Popen[bytes] | None = None
        self.mountpoint.mkdir()
        self.backing.touch()

    def start(self, wait: bool = True) -> Self:
        """Mount; with `wait`, return when the mount answers."""
        with open(self._log, 'ab') as log:
            self._process = subprocess.Popen(
                [*FAULTFS, str(self.backing), str(self.mountpoint)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, 'PYTHONPATH': _PATH},
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        if wait:
            self.await_mount()
        return self

    def await_mount(self) -> None:
        wait_for(self._answers, f'fault filesystem on {self.mountpoint}')

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, self._log.read_text()
        return os.path.ismount(self.mountpoint) and bool(self.facts())

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def order(self, command: str) -> None:
        """Write a command.  Raises OSError(EINVAL) for one that makes no sense."""
        write_control(self.control, command)

    def rule(self, kind: str, do: str, *, every: bool = False, **options: float) -> None:
        """Have something go wrong; see `faultfs` for the words."""
        words = [f'{name}={value}' for name, value in options.items()]
        self.order(' '.join(['rule', kind, f'do={do}', *words, *(['every'] if every else [])]))

    def bad(self, kind: str, offset: int, length: int) -> None:
        """Make bytes of the leg's data bad: for `read` until they are written, for `write` until `good`."""
        with open(self.backing, 'rb') as file:
            base = read_super(file.fileno())[0].layout.data_offset
        self.order(f'bad {kind} {base + offset} {length}')

    def good(self) -> None:
        self.order('good')

    def clear(self) -> None:
        self.order('clear')

    def release(self) -> None:
        self.order('release')

    def power_cut(self, seed: object, fate: str = 'random') -> None:
        """Lose what was not synced.  Whoever used the leg must be dead."""
        self.order(f'cut {seed} {fate}')

    def facts(self) -> dict[str, Any]:
        """Return the counters."""
        facts: dict[str, Any] = json.loads(self.control.read_text())
        return facts

    def durable(self) -> bytes:
        """Return what a power cut now would leave at least."""
        return self.backing.read_bytes()

    def kill(self) -> None:
        """SIGKILL: every call under way fails, the mount is dead until it is cleaned away."""
        if self._process:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def stop(self) -> None:
        """Unmount, whatever hangs; the process is gone afterwards, and it must not have complained."""
        process = self._process
        self.kill()
        if os.geteuid() == 0:
            run('umount', '-l', self.mountpoint)
        else:
            run('fusermount3', '-u', '-z', self.mountpoint)
        said = self._log.read_text()
        assert process is None or 'Traceback' not in said, said


class Daemon:
    """A forked daemon.  As far as tests use it, like a Popen."""

    def __init__(self, arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        """`prepare` is called in the daemon before it begins."""
        # A fork of threads may inherit a lock that nobody will release.  Those of trio end by themselves.
        wait_for(lambda: threading.active_count() == 1, 'the threads of this process to end')
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 255
            try:
                die_with_parent(signal.SIGKILL)
                prepare()
                code = _be_daemon(arguments, log)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = DEADLINE) -> int:
        if self.poll() is None:
            await_end(self.pid, timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _be_daemon(arguments: list[str], log: Path) -> int:
    gc.freeze()  # what has a descriptor in the parent must not close its number here
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, at in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, at)
    os.closerange(3, 4096)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate('rww'))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    try:
        return daemon.main(arguments)
    finally:
        sys.stderr.flush()


class FaultPool(MountedPool):
    """A MountedPool with one volume at most, whose legs are on fault filesystems."""

    def __init__(self, legs: int = 2, options: str = '') -> None:
        super().__init__(options)
        self.faults = [FaultLeg(self.base, number) for number in range(legs)]
        try:
            for leg in self.faults:
                leg.start(wait=False)
            for leg in self.faults:
                leg.await_mount()
        except BaseException:
            self.clean()
            raise

    def leg_paths(self, name: str, count: int) -> list[Path]:
        return [leg.path for leg in self.faults[:count]]

    def spawn(self, *options: str, prepare: Callable[[], None] = lambda: None) -> Self:
        """Start a daemon; do not wait for the mount."""
        if not self.directory.exists():
            self.make()
        words = ','.join(filter(None, (self.options, *options)))
        arguments = [str(self.directory), str(self.mountpoint), '-f', *(['-o', words] if words else [])]
        self.process = Daemon(arguments, self.log_file, prepare)  # type: ignore[assignment]
        return self

    def start(self, *options: str, env: dict[str, str] | None = None) -> Self:
        assert env is None
        self.spawn(*options)
        self.await_answer()
        return self

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.reap()

    def reap(self) -> None:
        """Wait for a killed daemon to be gone.

        One that waits for an answer of its own mount would never end: then the mount is aborted, and it is an
        error all the same.
        """
        assert self.process
        try:
            code = self.process.wait()
        except AssertionError:
            abort_mount(self.mountpoint)
            self.process.wait()
            raise
        self.process = None
        assert code == -signal.SIGKILL, f'the daemon ended by itself, {code}: {self.log()[-3000:]}'

    def await_answer(self) -> None:
        """Return when the mount of a spawned daemon answers."""
        wait_for(self._answers, f'mount: {self.log()[-2000:]}')

    def durable_twin(self, volume: Volume) -> Volume:
        """Return the volume as the backing files have it: what is durable on the legs."""
        return Volume(self, volume.name, volume.size, [leg.backing for leg in self.faults])

    def power_cut(self, seed: object, fate: str = 'random') -> None:
        """Cut every leg's power; each by itself decides what it keeps.  The daemon must be dead."""
        assert self.process is None or self.process.poll() is not None
        for number, leg in enumerate(self.faults):
            leg.power_cut(f'{seed}/{number}', fate)

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        for leg in self.faults:
            leg.clear()

    def clean(self) -> None:
        """End everything; the legs first, so that no call hangs in them."""
        if self.process:
            self.process.kill()
        for leg in self.faults:
            leg.kill()
        if self.process:
            with contextlib.suppress(AssertionError):  # it had ended by itself
                self.reap()
        if os.geteuid():
            for where in mountpoints(self.base):
                run('fusermount3', '-u', '-z', where)
        super().clean()


def die_with_parent(number: int) -> None:
    """Be sent a signal when the parent ends, however it does."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def abort_mount(mountpoint: Path) -> None:
    """Have every request of a FUSE mount fail, and its daemon lose it."""
    _libc.umount2(os.fsencode(mountpoint), _MNT_FORCE)


_libc = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE = 1
_PR_SET_PDEATHSIG = 1


class Watchdog:
    """A process that ends another one which keeps us waiting: a call into a mount cannot be given up.

    It prints the stacks of the daemon to its log, then kills it.  `barked` tells whether it did.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 4096)
        self._state = memoryview(self._shared).cast('d')
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._watch(parent)
            finally:
                os._exit(0)

    def guard(self, pid: int, seconds: float) -> None:
        """From now on: kill `pid` unless told otherwise within some seconds."""
        self._state[1] = pid
        self._state[0] = time.monotonic() + seconds

    def rest(self) -> None:
        self._state[0] = 0

    @property
    def barked(self) -> bool:
        return bool(self._state[2])

    def _watch(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
            if self._state[0] and time.monotonic() > self._state[0]:
                self._state[0], self._state[2] = 0, 1
                pid = int(self._state[1])
                for number, pause in ((signal.SIGUSR1, 1.0), (signal.SIGKILL, 0.0)):
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        break
                    time.sleep(pause)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def have_fio() -> bool:
    return shutil.which('fio') is not None


__all__ = ['MIB', 'Daemon', 'FaultLeg', 'FaultPool', 'Watchdog', 'have_fio']
