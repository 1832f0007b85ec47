"""The daemon: one pool, one mount, from start to clean stop.

It stops when the file system is unmounted, and on SIGTERM or SIGINT (a second one aborts).  Stopping means:
no more requests, everything flushed, the logs clean, exit code 0.  SIGUSR1 has it say where its threads are.

It never asks its own mount anything.  A thread that waits for an answer of the mount cannot be killed while
the FUSE descriptor is open, which it is until all threads have ended: SIGKILL would leave a daemon that never
ends, and a mount that hangs.  So whether the mount answers is found out by another process: the one that
forked us, or, for the service manager, one that we fork and that keeps nothing open.
"""

import argparse
import contextlib
import errno
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyfuse3
import trio

import mirrorfs
from mirrorfs import limits
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.events import EventLog
from mirrorfs.fs import logs, mounting
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.images import Images
from mirrorfs.fs.names import Names
from mirrorfs.fs.notify import ServiceManager
from mirrorfs.fs.options import Options, OptionWords, parse_options
from mirrorfs.fs.pagecache import PageCaches
from mirrorfs.fs.reporting import report
from mirrorfs.fs.tree import Tree
from mirrorfs.leg.direct import DirectLegs
from mirrorfs.leg.opening import FileOpener
from mirrorfs.pool import Entry, Pool
from mirrorfs.volume.lifecycle import Settings

log = logging.getLogger('mirrorfs')

EXIT_OK, EXIT_USAGE, EXIT_SYSTEM, EXIT_MOUNT = 0, 1, 2, 32
_WORKERS = 16
"""pyfuse3's tasks: commands that take long must not keep names from being served."""


class Daemon:
    """Runs one mounted pool under trio."""

    def __init__(self, directory: PoolDirectory, mountpoint: str, options: Options) -> None:
        self._directory = directory
        self._mountpoint = mountpoint
        self._options = options
        self._manager = ServiceManager()
        self._stop = trio.Event()
        self._unmounted = False
        self.clean = True
        self.failure: Refused | None = None
        """Why it stopped by itself, if it did."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount and serve; `ready` is called when requests begin to be answered.  Raises Refused."""
        events = EventLog()
        settings = Settings(self._options.leg_timeout)
        self._manager.tell('STATUS=starting')
        pool = Pool(self._directory, self._opener(events), events, settings)
        fuse = mounting.mount(str(self._directory.path), self._mountpoint, self._options)
        try:
            async with trio.open_nursery() as nursery:
                images = Images(nursery)
                gateway = images.gateway = Gateway(
                    fuse,
                    images.handle,
                    images.lane_stuck,
                    self._on_unmount,
                    poll_seconds=self._options.lane_poll,
                    cached=self._options.cached,
                )
                tree = Tree(pool, self._mountpoint, gateway)
                if self._options.cached:
                    images.caches = PageCaches(fuse, mounting.mounted_at(self._mountpoint))
                    nursery.start_soon(images.caches.run)
                names = Names(pool, tree, events, images.caches)
                _plant_faults(names, gateway)

                def begin(entry: Entry) -> None:
                    images.attach(entry, tree.number((entry.name,)))

                def forget(name: str) -> None:
                    images.forget(name)
                    tree.forget(name)

                pool.on_start, pool.on_stop, pool.on_destroy = begin, images.detach, forget
                pyfuse3.init(names, f'/dev/fd/{gateway.far.fileno()}', set(pyfuse3.default_options))
                nursery.start_soon(self._main)
                nursery.start_soon(gateway.watch)
                nursery.start_soon(self._signals)
                await pool.start(nursery, self._options.force)
                _let_the_lane_run()
                gateway.start()
                nursery.start_soon(self._announce, gateway, ready)
                if self._manager:
                    nursery.start_soon(self._report, gateway, pool)
                await self._stop.wait()
                self._manager.tell('STOPPING=1')
                self.clean = await pool.stop()
                self._unmount()
                gateway.close()
                nursery.cancel_scope.cancel()
        finally:
            self._unmount()
            pyfuse3.close(unmount=False)

    def _opener(self, events: EventLog) -> FileOpener:
        if not self._options.direct_legs:
            return FileOpener(is_own=self._is_own)
        token = trio.lowlevel.current_trio_token()

        def warn(path: str, why: str) -> None:
            token.run_sync_soon(events.emit, 'Warning', '', path, why)

        return FileOpener(DirectLegs(warn), self._is_own)

    def _is_own(self, path: str) -> bool:
        return mounting.leads_into(path, self._mountpoint)

    async def _main(self) -> None:
        await pyfuse3.main(min_tasks=_WORKERS)
        self._stop.set()

    async def _announce(self, gateway: Gateway, ready: Callable[[], None]) -> None:
        await gateway.initialised.wait()
        ready()
        if self._manager:
            await self._tell_manager()

    async def _tell_manager(self) -> None:
        """Say that we are ready once the mount answers; stop if it does not."""
        try:
            with trio.fail_after(limits.ANSWER_PATIENCE):
                while code := await trio.to_thread.run_sync(
                    mounting.ask, self._mountpoint, abandon_on_cancel=True
                ):
                    if code != errno.ETIMEDOUT:
                        raise Refused(code, f'{self._mountpoint} does not answer: {os.strerror(code)}')
            while not self._manager.tell('READY=1'):
                await trio.sleep(0.1)
        except trio.TooSlowError:
            self.failure = Refused(errno.ETIMEDOUT, f'{self._mountpoint} does not answer')
        except Refused as refusal:
            self.failure = refusal
        if self.failure:
            self._stop.set()

    async def _report(self, gateway: Gateway, pool: Pool) -> None:
        await report(self._manager, pool.entries.values, gateway.is_serving)

    def _on_unmount(self) -> None:
        self._unmounted = True
        self._stop.set()

    def _unmount(self) -> None:
        if not self._unmounted:
            self._unmounted = True
            try:
                mounting.unmount(self._mountpoint, lazy=True)
            except Refused as refusal:
                log.warning('%s', refusal)

    async def _signals(self) -> None:
        """Stop on the first signal, abort on the second.

        One that comes while we stop after an unmount is a first one: the machine goes down, for example.
        """
        asked = False
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if asked:
                    log.error('second signal: stopping at once, legs will be resynced')
                    os._exit(EXIT_SYSTEM)
                asked = True
                log.info('stopping on %s', signal.Signals(number).name)
                self._stop.set()


def _let_the_lane_run() -> None:
    """Keep trio's thread from holding the interpreter while the lane has a request.

    A full garbage collection takes 10 ms and more with all that was imported, which never is garbage; and a
    thread that computes gives way after the switch interval, by default 5 ms.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(limits.SWITCH_INTERVAL)


def _plant_faults(names: Names, gateway: Gateway) -> None:
    """For tests of the mount's robustness: MIRRORFS_TEST_FAULT breaks a handler or the lane, every time."""
    wanted = os.environ.get('MIRRORFS_TEST_FAULT', '')

    def raise_in_handler(handler: str) -> None:
        if handler == wanted:
            raise ZeroDivisionError(f'planted in {handler}')

    def raise_in_lane(opcode: int) -> None:
        if wanted == f'lane{opcode}':
            raise ZeroDivisionError(f'planted in the lane, opcode {opcode}')

    if wanted:
        names.fault = raise_in_handler
        gateway.fault = raise_in_lane


def serve(pool: str, mountpoint: str, options: Options, ready: Callable[[], None]) -> int:
    """Run the daemon in this process until it is unmounted or told to stop; return the exit code."""
    os.umask(limits.UMASK)
    directory = PoolDirectory(pool)
    directory.require()
    real = mounting.check_mountpoint(mountpoint)
    if Path(real) == directory.path or Path(real) in directory.path.parents:
        raise Refused(errno.EINVAL, f'{mountpoint} would hide the pool itself; mount elsewhere')
    _hold(directory)
    daemon = Daemon(directory, real, options)

    try:
        trio.run(daemon.run, ready)
    except BaseExceptionGroup as group:
        refusal = group.subgroup(Refused)
        if refusal is None:
            raise
        raise _first(refusal) from None
    finally:
        directory.unlock()
    if daemon.failure:
        raise daemon.failure
    return EXIT_OK if daemon.clean else EXIT_SYSTEM


def _hold(directory: PoolDirectory) -> None:
    """Lock a pool.  Raises Refused: EBUSY with who has it, and where it is mounted."""
    try:
        directory.lock()
    except Refused as refusal:
        where = [mount.mountpoint for mount in mounting.mounts() if mount.pool == str(directory.path)]
        if refusal.errno != errno.EBUSY or not where:
            raise
        raise Refused(errno.EBUSY, f'{refusal}; it is mounted already, on {where[-1]}') from None


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _show_threads_when_asked() -> None:
    """Have SIGUSR1 say where each thread is, and the SIGABRT of a watchdog, too."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def run_in_foreground(pool: str, mountpoint: str, options: Options) -> int:
    """Serve until stopped, logging to stderr; return the exit code."""
    logs.log_to(logs.in_foreground(), debug=options.debug)
    _show_threads_when_asked()
    try:
        return serve(pool, mountpoint, options, lambda: log.info('%s is mounted on %s', pool, mountpoint))
    except Refused as refusal:
        print(f'mirrorfs: {refusal}', file=sys.stderr)
        return EXIT_MOUNT


def run_in_background(
    pool: str,
    mountpoint: str,
    options: Options,
    waiting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> int:
    """Serve in a child; return 0 when its mount answers, else its exit code after its message.

    `waiting` makes what is entered while that takes; after the fork, so that it may have threads.
    """
    ours, theirs = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        with waiting():
            return _await_child(pid, ours, mountpoint)
    os.close(ours)
    os.setsid()
    code = EXIT_SYSTEM
    try:
        os.umask(limits.UMASK)
        PoolDirectory(pool).require()  # before a log is begun in what is none
        logs.log_to(logs.in_background(pool), debug=options.debug)
        _show_threads_when_asked()
        null = os.open(os.devnull, os.O_RDWR)
        left = (0, 1) if logs.stderr_is_the_journal() else (0, 1, 2)

        def ready() -> None:
            for fd in left:
                os.dup2(null, fd)
            os.write(theirs, b'\0')
            os.close(theirs)

        code = serve(os.path.abspath(pool), os.path.abspath(mountpoint), options, ready)
    except Refused as refusal:
        _say(theirs, str(refusal))
        code = EXIT_MOUNT
    except Exception as error:
        log.critical('the daemon ends by an unexpected error', exc_info=True)
        _say(theirs, f'unexpected error: {error!r}')
    finally:
        logging.shutdown()
        os._exit(code)


def _say(pipe: int, text: str) -> None:
    try:
        os.write(pipe, text.encode())
    except OSError:
        log.error('%s', text)


def _await_child(pid: int, pipe: int, mountpoint: str) -> int:
    """Return 0 if a daemon's mount answers; else say why not and return its exit code."""
    with open(pipe, 'rb') as stream:
        said = stream.read(1)
        if said == b'\0':
            try:
                os.stat(mountpoint)
                ServiceManager().tell(f'MAINPID={pid}', 'READY=1')
                return EXIT_OK
            except OSError as error:
                said = f'{mountpoint} is mounted but does not answer: {error.strerror}'.encode()
                os.kill(pid, signal.SIGTERM)
        said += stream.read()
    _, status = os.waitpid(pid, 0)
    message = said.decode(errors='replace') or 'the daemon ended without a word; see its log'
    print(f'mirrorfs: {message}', file=sys.stderr)
    return os.waitstatus_to_exitcode(status) or EXIT_SYSTEM


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of mount.py.  Exit codes are mount(8)'s: 0, 1 usage, 2 system, 32 mount failure."""
    parser = argparse.ArgumentParser(
        prog='mount.py', description='Mount a pool of mirrored volume images.', exit_on_error=False
    )
    parser.add_argument('pool', help='the pool: a directory')
    parser.add_argument('mountpoint', help='the directory to mount on')
    parser.add_argument('-f', '--foreground', action='store_true', help='stay in the foreground')
    parser.add_argument('-o', dest='options', action=OptionWords, default=[], help='mount options; or help')
    parser.add_argument('--version', action='version', version=f'mirrorfs {mirrorfs.__version__}')
    try:
        asked = parser.parse_args(arguments)
        options = parse_options(','.join(asked.options))
    except argparse.ArgumentError as error:
        print(f'mount.py: {error}', file=sys.stderr)
        return EXIT_USAGE
    except SystemExit as end:
        return EXIT_USAGE if end.code else EXIT_OK
    except Refused as refusal:
        print(f'mirrorfs: {refusal}', file=sys.stderr)
        return EXIT_USAGE
    run = run_in_foreground if asked.foreground else run_in_background
    return run(asked.pool, asked.mountpoint, options)
