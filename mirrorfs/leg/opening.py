"""Opening legs: locks that say who holds them, kinds that are refused, signatures of others.

A leg in use is held by flock (files) or an exclusive open (block devices), which a second daemon, or mount
and mkfs for devices, run into.  All functions here block; call them from a thread.
"""

import contextlib
import errno
import fcntl
import functools
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import trio

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.leg.admission import IsOwn, below, look, loop_over, nowhere, refuse_on_own, refuse_own
from mirrorfs.leg.base import Leg
from mirrorfs.leg.file import FileLeg, LaneFileLeg, closing
from mirrorfs.metadata import logfile, spare, wibm
from mirrorfs.units import format_size

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
Make = Callable[[str, int], FileLeg]
"""Makes a leg of a path and a descriptor, which it owns from then on."""


def open_leg(
    path: str, *, create_size: int = 0, make: Make = LaneFileLeg, is_own: IsOwn = nowhere
) -> tuple[FileLeg, bool]:
    """Open and lock the leg at `path`; return it and whether it was created.

    With `create_size` (bytes) a path that is not there becomes a sparse file of that size, and an empty
    file is extended to it.  `is_own`: see `mirrorfs.leg.admission`.
    Raises Refused: ENOENT, EBUSY with the holder's name, EINVAL for what cannot be a leg.
    """
    refuse_own(path, is_own)
    created = False
    try:
        fd = _open_there(path, is_own)
    except FileNotFoundError:
        if not create_size:
            raise Refused(errno.ENOENT, f'{path} is not there') from None
        fd, created = _create(path, is_own), True
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refused(errno.EBUSY, f'{path} is in use by {device_holder(path)}') from None
        raise Refused(error.errno or errno.EIO, f'{path} cannot be opened: {error.strerror}') from None
    try:
        _lock(fd, path)
        if create_size and stat.S_ISREG(os.fstat(fd).st_mode):
            _make_ready(fd, path, create_size)
    except BaseException as error:
        if created:
            info = os.fstat(fd)
            _unlink_new(path, (info.st_dev, info.st_ino))
        os.close(fd)
        if isinstance(error, OSError):
            message = f'{path} cannot be made {create_size} bytes long: {error.strerror}'
            raise Refused(error.errno or errno.EIO, message) from None
        raise
    return make(path, fd), created


def _make_ready(fd: int, path: str, size: int) -> None:
    """Make a file that is to be a new leg so long if it is empty.  Raises Refused(EBUSY), OSError."""
    if loop := loop_over(fd):
        raise Refused(errno.EBUSY, f'{path} is in use by the device {loop}')
    if os.fstat(fd).st_size == 0:
        os.ftruncate(fd, size)


def _open_there(path: str, is_own: IsOwn) -> int:
    """Open the very file or device that was looked at, wherever its path may lead by now."""
    seen = look(path)
    try:
        exclusive = os.O_EXCL if stat.S_ISBLK(os.fstat(seen).st_mode) else 0
        refuse_on_own(seen, path, is_own)
        return os.open(f'/proc/self/fd/{seen}', _FLAGS | exclusive)
    finally:
        os.close(seen)


def _unlink_new(path: str, ours: object) -> None:
    """Remove a file that we have made, of which `ours` is (device, inode), if it still lies at its path."""
    with contextlib.suppress(FileNotFoundError):
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == ours:
            os.unlink(path)


class FileOpener:
    """Opens files and block devices, as what `make` makes of them.  See `mirrorfs.leg.base.Opener`."""

    def __init__(self, make: Make = LaneFileLeg, is_own: IsOwn = nowhere) -> None:
        self._make = make
        self._is_own = is_own
        self._probing = trio.CapacityLimiter(limits.PROBES)
        """Of its own: paths that hang must not keep other work from getting a thread."""

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        with trio.move_on_after(limits.QUARANTINE_PATIENCE):
            while path in closing:
                await trio.sleep(0.02)
        opening = functools.partial(
            open_leg, path, create_size=create_size, make=self._make, is_own=self._is_own
        )
        return await trio.to_thread.run_sync(opening, abandon_on_cancel=True)

    async def admit(self, path: str) -> None:
        await trio.to_thread.run_sync(refuse_own, path, self._is_own, abandon_on_cancel=True)

    async def probe(self, path: str) -> object:
        return await trio.to_thread.run_sync(
            _probe, path, self._is_own, abandon_on_cancel=True, limiter=self._probing
        )

    async def require_blank(self, leg: Leg) -> None:
        assert isinstance(leg, FileLeg)
        await trio.to_thread.run_sync(require_blank, leg)

    async def discard_new(self, leg: Leg) -> None:
        assert isinstance(leg, FileLeg)
        _unlink_new(leg.path, leg.identity)


def _probe(path: str, is_own: IsOwn) -> object:
    if is_own(path):
        return None
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_rdev, info.st_size, info.st_mtime_ns


def _create(path: str, is_own: IsOwn) -> int:
    try:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            refuse_on_own(folder, path, is_own)
            return os.open(os.path.basename(path), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f'{path} cannot be created: {error.strerror}') from None


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(errno.EBUSY, f'{path} is in use by {lock_holder(fd)}') from None


def lock_holder(fd: int) -> str:
    """Return who holds the flock on the file behind `fd`, for a message."""
    info = os.fstat(fd)
    wanted = f'{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}'
    for line in Path('/proc/locks').read_text().splitlines():
        words = line.split()
        if 'FLOCK' in words and wanted in words:
            return _process(int(words[words.index(wanted) - 1]))
    return 'another process'


def device_holder(path: str) -> str:
    """Return who holds a block device, for a message: a mount, another device, or a process."""
    device = os.stat(path).st_rdev
    numbers = _kin(device)
    for line in Path('/proc/self/mountinfo').read_text().splitlines():
        words = line.split()
        if words[2] in numbers:
            return f'the filesystem mounted at {words[4]}'
    holders = [folder for number in numbers for folder in Path(f'/sys/dev/block/{number}').glob('holders/*')]
    if holders:
        return f'the device {", ".join(sorted(holder.name for holder in holders))}'
    for link in Path('/proc').glob('[0-9]*/fd/*'):
        try:
            if link.stat().st_rdev == device and link.parts[2] != str(os.getpid()):
                return _process(int(link.parts[2]))
        except OSError:
            continue
    if any(_own_device(fd, device) for fd in Path('/proc/self/fd').iterdir()):
        return f'this process ({os.getpid()})'
    return 'another process'


def _kin(device: int) -> list[str]:
    """Return the numbers (major:minor) of a device, its partitions, and the disk that it is one of."""
    number = f'{os.major(device)}:{os.minor(device)}'
    folder = Path('/sys/dev/block') / number
    parts = [(file.parent / 'dev').read_text().strip() for file in folder.glob('*/partition')]
    return [number, *parts, *(below(folder) if (folder / 'partition').exists() else [])]


def _own_device(link: Path, device: int) -> bool:
    try:
        info = link.stat()
    except OSError:
        return False
    return stat.S_ISBLK(info.st_mode) and info.st_rdev == device


def _process(pid: int) -> str:
    try:
        name = Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
    except OSError:
        name = ''
    return f'process {pid} ({name.strip()[:120] or "name unknown"})'


def read_super(fd: int) -> tuple[wibm.LegSuper, int]:
    """Return the newest superblock on a leg and which copy it is.  Raises BadMetadata, OSError."""
    first, second = (os.pread(fd, limits.PAGE, offset) for offset in wibm.SUPER_OFFSETS)
    return wibm.newest_super(first, second)


def read_log_header(fd: int) -> logfile.LogHeader:
    """Return the newest header of a log file.  Raises BadMetadata, OSError."""
    first, second = (os.pread(fd, limits.PAGE, offset) for offset in logfile.HEADER_OFFSETS)
    return logfile.newest_header(first, second)[0]


def read_mark(fd: int) -> spare.SpareMark:
    """Return the mark that makes a file or device a shared spare.  Raises BadMetadata, OSError."""
    return spare.decode_mark(os.pread(fd, limits.PAGE, spare.OFFSET))


def require_blank(leg: FileLeg) -> None:
    """Raise Refused unless nothing is lost when a leg is overwritten.

    EEXIST for one that bears anyone's signature (ours, a filesystem, partitions, LUKS, md), or is a file with
    data in it: an archive has no signature, but was somebody's.  What lies on a device without one was left
    behind there.
    """
    what = _ours(leg.fd) or (leg.size and signature(leg.fd, leg.path))
    if not what and not leg.is_device and not _is_void_log(leg.fd) and (found := _data_in(leg.fd)):
        what = f'a file with {format_size(found)} of data'
    if what:
        raise Refused(errno.EEXIST, f'{leg.path} is {what}; that would be lost: use --force, or another path')


def _is_void_log(fd: int) -> bool:
    """Whether a file was the log of a volume that moved it away: its header is zeros, old pages are left."""
    first = os.pread(fd, logfile.PAGES_OFFSET + len(wibm.LOG_MAGIC), 0)
    return first == bytes(logfile.PAGES_OFFSET) + wibm.LOG_MAGIC


def _data_in(fd: int) -> int:
    """Return the bytes that a file takes on its filesystem if there is any but zeros; else 0."""
    with contextlib.suppress(OSError):  # ENXIO: nothing but a hole to the end
        at = 0
        for _ in range(limits.EXTENTS_LOOKED_AT):
            at = os.lseek(fd, at, os.SEEK_DATA)
            if os.pread(fd, limits.BYTES_LOOKED_AT, at).strip(b'\0'):
                return os.fstat(fd).st_blocks * limits.SECTOR
            at = os.lseek(fd, at, os.SEEK_HOLE)
    return 0


def _ours(fd: int) -> str:
    """Return what of mirrorfs a file or device is; nothing if it is none."""
    with contextlib.suppress(BadMetadata):
        sup, _ = read_super(fd)
        size = format_size(sup.record.size)
        return f'slot {sup.slot} of mirrorfs volume {sup.record.name} ({sup.record.uuid}, {size})'
    with contextlib.suppress(BadMetadata):
        header = read_log_header(fd)
        return f'the log of mirrorfs volume {header.name} ({header.volume})'
    with contextlib.suppress(BadMetadata):
        mark = read_mark(fd)
        return f'shared spare {mark.spare} of mirrorfs pool {mark.pool}'
    return ''


def signature(fd: int, path: str) -> str:
    """Return what blkid finds on a file or device: ``ext4``, ``crypto_LUKS``, ``gpt``, …, or nothing."""
    try:
        found = subprocess.run(
            ['blkid', '--probe', '--output', 'export', '--', f'/proc/self/fd/{fd}'],
            pass_fds=[fd],
            env={**os.environ, 'PATH': f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError:
        raise Refused(errno.ENOENT, 'blkid (util-linux) is needed to see what a leg holds') from None
    except subprocess.TimeoutExpired:
        raise Refused(errno.EIO, f'{path} did not answer blkid within 30 s') from None
    words = dict(line.split('=', 1) for line in found.stdout.splitlines() if '=' in line)
    if found.returncode == 8:  # ambivalent: several signatures at once
        return 'more than one filesystem or the like, by its signatures'
    kind = words.get('TYPE') or words.get('PTTYPE')
    if not kind:
        return ''
    label = f' {words["LABEL"]!r}' if 'LABEL' in words else ''
    return f'{kind}{label}, by its signature'
