"""What all benchmarks need of the machine that they run on: programs, a folder, the disk, and a clean end."""

import configparser
import contextlib
import importlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

MIB = 1 << 20
REPOSITORY = Path(__file__).resolve().parent.parent
TOOL = (sys.executable, '-c', 'from mirrorfs.cli import main; main()')
PATIENCE = 300.0
"""Seconds that a program may take."""


class Unavailable(Exception):
    """A program or a contender does not do what is asked, and why."""


class Stopped(BaseException):
    """A signal asks to stop: everything is undone on the way out."""


# Signals


class Stopper:
    """Turns the first signal into Stopped, where nothing is half done; those after it are ignored."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._waiting = 0
        self._busy = False

    def watch(self) -> None:
        """Have SIGINT, SIGTERM and SIGHUP raise Stopped from here on."""
        for number in self.SIGNALS:
            signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        for other in self.SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        self._waiting = number
        if not self._busy:
            self._stop()

    def _stop(self) -> None:
        number, self._waiting = self._waiting, 0
        raise Stopped(number)

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Keep a signal until the end of the block, so that what is begun in it is known to be."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before
            if self._waiting and not before:
                self._stop()


stopper = Stopper()


def finish(main: Callable[[], int]) -> int:
    """Run a benchmark to its exit code; a signal ends it as a signal would, but with everything undone."""
    stopper.watch()
    os.environ['PATH'] = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'
    try:
        return main()
    except Stopped as stopped:
        print(f'stopped by {signal.Signals(stopped.args[0]).name}', file=sys.stderr)
        return 128 + int(stopped.args[0])


# Programs


def run(*command: str | Path, patient: bool = True) -> str:
    """Run a program to its end; return what it printed.  Raises Unavailable with what it complained of.

    With `patient` a signal waits until it is done; without, it is killed.
    """
    words = [str(word) for word in command]
    with stopper.later() if patient else contextlib.nullcontext():
        try:
            # In a group of its own, so that Ctrl-C comes to us alone.
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
                timeout=PATIENCE, process_group=0,
            )  # fmt: skip
        except FileNotFoundError:
            raise Unavailable(f'{words[0]} is not installed') from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f'{words[0]} took more than {PATIENCE:.0f} s') from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip() or error.stdout.strip()
            raise Unavailable(
                f'{Path(words[0]).name}: {said[-500:] or f"exit code {error.returncode}"}'
            ) from None
    return done.stdout


def install(tools: Mapping[str, str]) -> None:
    """Install from Debian those packages whose tool is missing; say so where that cannot be."""
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    if not missing:
        return
    if os.geteuid() or not shutil.which('apt-get'):
        print(f'missing, and only root can install it: {" ".join(missing)}', file=sys.stderr)
        return
    print(f'installing {" ".join(missing)}', file=sys.stderr)
    os.environ['DEBIAN_FRONTEND'] = 'noninteractive'
    try:
        run('apt-get', '-qq', 'update')
        run('apt-get', '-qq', 'install', '--yes', '--no-install-recommends', *missing)
    except Unavailable as error:
        print(error, file=sys.stderr)


def install_modules() -> None:
    """Install what setup.cfg names as the extra `bench` into the environment that runs this."""
    if importlib.util.find_spec('matplotlib'):
        return
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / 'setup.cfg')
    wanted = [
        line.replace(' ', '') for line in settings['options.extras_require']['bench'].split('\n') if line
    ]
    print(f'installing {" ".join(wanted)}', file=sys.stderr)
    try:
        run(sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *wanted)
    except Unavailable as error:
        print(error, file=sys.stderr)
    importlib.invalidate_caches()


def facts(commands: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, str]:
    """Return what a reader must know of the machine, and what programs say to `--version`."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    model = next((line.partition(':')[2].strip() for line in lines if 'model name' in line), 'unknown')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30)
    found = {
        'processor': f'{os.cpu_count()} x {model}',
        'memory': f'{memory:.1f} GiB',
        'kernel': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
    }
    for name, command in {'mirrorfs': TOOL, **(commands or {})}.items():
        with contextlib.suppress(Unavailable):
            found[name] = run(*command, '--version').splitlines()[0]
    with contextlib.suppress(Unavailable):
        found['mirrorfs'] += ', ' + run('git', '-C', REPOSITORY, 'describe', '--always', '--dirty').strip()
    return found


# The folder


@contextlib.contextmanager
def workspace(parent: str | Path, name: str) -> Iterator[Path]:
    """Make a folder; at its end nothing is mounted in it or attached to its files, and it is gone."""
    folder = Path(tempfile.mkdtemp(prefix=f'mirrorfs-{name}-', dir=parent)).resolve()
    try:
        yield folder
    finally:
        with stopper.later():
            _sweep(folder)
            shutil.rmtree(folder)


def _sweep(folder: Path) -> None:
    """Undo what a contender that was stopped halfway has left.  Raises Unavailable if something stays."""
    for device, where in reversed(_mounts(folder)):
        print(f'still mounted: {where}', file=sys.stderr)
        run('umount', where)
        if device.startswith('/dev/loop'):
            with contextlib.suppress(Unavailable):  # it may be detached by that
                run('losetup', '--detach', device)
    for line in run('losetup', '--list', '--noheadings', '--output', 'NAME,BACK-FILE').splitlines():
        device, _, file = line.strip().partition(' ')
        if Path(file.strip()).is_relative_to(folder):
            print(f'still attached: {device}', file=sys.stderr)
            run('losetup', '--detach', device)


def _mounts(folder: Path) -> list[tuple[str, Path]]:
    """Return devices and mountpoints in a folder, in the order they were mounted."""
    found = []
    for line in Path('/proc/self/mountinfo').read_text().splitlines():
        where, device = Path(line.split()[4]), line.partition(' - ')[2].split()[1]
        if where.is_relative_to(folder):
            found.append((device, where))
    return found


def drop_caches() -> None:
    """Forget what is cached of files; needs root."""
    run('sync')
    Path('/proc/sys/vm/drop_caches').write_text('3')


# Clocks


@contextlib.contextmanager
def timed(amount: float) -> Iterator[Callable[[], float]]:
    """Time a block; what is yielded then returns amount a second."""
    began, took = time.monotonic(), 0.0
    yield lambda: amount / took
    took = time.monotonic() - began


class Disk:
    """How busy the disk under a folder is."""

    def __init__(self, folder: Path) -> None:
        device = os.stat(folder).st_dev
        self._stat = Path(f'/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat')

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], float]]:
        """Watch during a block; what is yielded then returns the share of the time that it was busy."""
        before, began, share = self._busy(), time.monotonic(), 0.0
        yield lambda: share
        share = (self._busy() - before) / 1000 / max(time.monotonic() - began, 1e-3)

    def _busy(self) -> int:
        """Return the milliseconds that the disk has been busy; 0 where that is not counted."""
        try:
            return int(self._stat.read_text().split()[9])
        except OSError:
            return 0


class Progress:
    """Says on stderr how far a benchmark is, and how long it will still take."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._began = steps, 0, time.monotonic()

    def step(self, count: int = 1) -> None:
        self._done += count

    def say(self, what: str) -> None:
        share = min(1.0, self._done / self._steps)
        left = (time.monotonic() - self._began) * (1 - share) / share if share else 0.0
        eta = f'{left / 60:.1f} min left' if share else 'begins'
        print(f'{share:4.0%}, {eta}: {what}', file=sys.stderr)
