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
from mirrorfs.leg.base import Leg
from mirrorfs.leg.file import FileLeg, LaneFileLeg, closing
from mirrorfs.metadata import logfile, spare, wibm

Make = Callable[[str, int], FileLeg]
"""Makes a leg of a path and a descriptor, which it owns from then on."""


def open_leg(path: str, *, create_size: int = 0, make: Make = LaneFileLeg) -> tuple[FileLeg, bool]:
    """Open and lock the leg at `path`; return it and whether it was created.

    With `create_size` (bytes) a path that is not there becomes a sparse file of that size, and an empty
    file is extended to it.  Raises Refused: ENOENT, EBUSY with the holder's name, EINVAL for a wrong kind.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
    created = False
    try:
        info = os.stat(path)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise Refused(errno.EINVAL, f'{path} is neither a regular file nor a block device')
        fd = os.open(path, flags | (os.O_EXCL if stat.S_ISBLK(info.st_mode) else 0))
    except FileNotFoundError:
        if not create_size:
            raise Refused(errno.ENOENT, f'{path} is not there') from None
        fd, created = _create(path, flags), True
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refused(errno.EBUSY, f'{path} is in use by {device_holder(path)}') from None
        raise Refused(error.errno or errno.EIO, f'{path} cannot be opened: {error.strerror}') from None
    try:
        _lock(fd, path)
        if create_size and stat.S_ISREG(os.fstat(fd).st_mode) and os.fstat(fd).st_size == 0:
            os.ftruncate(fd, create_size)
    except BaseException as error:
        os.close(fd)
        if created:
            os.unlink(path)
        if isinstance(error, OSError):
            message = f'{path} cannot be made {create_size} bytes long: {error.strerror}'
            raise Refused(error.errno or errno.EIO, message) from None
        raise
    return make(path, fd), created


class FileOpener:
    """Opens files and block devices, as what `make` makes of them.  See `mirrorfs.leg.base.Opener`."""

    def __init__(self, make: Make = LaneFileLeg) -> None:
        self._make = make
        self._probing = trio.CapacityLimiter(limits.PROBES)
        """Of its own: paths that hang must not keep other work from getting a thread."""

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        with trio.move_on_after(limits.QUARANTINE_PATIENCE):
            while path in closing:
                await trio.sleep(0.02)
        opening = functools.partial(open_leg, path, create_size=create_size, make=self._make)
        return await trio.to_thread.run_sync(opening, abandon_on_cancel=True)

    async def probe(self, path: str) -> object:
        return await trio.to_thread.run_sync(_probe, path, abandon_on_cancel=True, limiter=self._probing)

    async def require_blank(self, leg: Leg) -> None:
        assert isinstance(leg, FileLeg)
        await trio.to_thread.run_sync(require_blank, leg)

    async def discard_new(self, leg: Leg) -> None:
        os.unlink(leg.path)


def _probe(path: str) -> object:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_rdev, info.st_size, info.st_mtime_ns


def _create(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
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
    for line in Path('/proc/self/mountinfo').read_text().splitlines():
        words = line.split()
        if words[2] == f'{os.major(device)}:{os.minor(device)}':
            return f'the filesystem mounted at {words[4]}'
    holders = Path(f'/sys/dev/block/{os.major(device)}:{os.minor(device)}/holders')
    names = sorted(entry.name for entry in holders.iterdir()) if holders.is_dir() else []
    if names:
        return f'the device {", ".join(names)}'
    for link in Path('/proc').glob('[0-9]*/fd/*'):
        try:
            if link.stat().st_rdev == device and link.parts[2] != str(os.getpid()):
                return _process(int(link.parts[2]))
        except OSError:
            continue
    if any(_own_device(fd, device) for fd in Path('/proc/self/fd').iterdir()):
        return f'this process ({os.getpid()})'
    return 'another process'


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
    """Raise Refused(EEXIST) if the leg bears anyone's signature: ours, a filesystem, partitions, LUKS, md."""
    if what := _ours(leg.fd):
        raise Refused(errno.EEXIST, f'{leg.path} is {what}; use --force to overwrite it, or another path')
    if leg.size and (found := signature(leg.path)):
        raise Refused(errno.EEXIST, f'{leg.path} has a {found} signature; use --force to overwrite it')


def _ours(fd: int) -> str:
    """Return what of mirrorfs a file or device is; nothing if it is none."""
    with contextlib.suppress(BadMetadata):
        sup, _ = read_super(fd)
        return f'slot {sup.slot} of mirrorfs volume {sup.record.name} ({sup.record.uuid})'
    with contextlib.suppress(BadMetadata):
        header = read_log_header(fd)
        return f'the log of mirrorfs volume {header.name} ({header.volume})'
    with contextlib.suppress(BadMetadata):
        mark = read_mark(fd)
        return f'shared spare {mark.spare} of mirrorfs pool {mark.pool}'
    return ''


def signature(path: str) -> str:
    """Return what blkid finds on a file or device: ``ext4``, ``crypto_LUKS``, ``gpt``, … or nothing."""
    try:
        found = subprocess.run(
            ['blkid', '--probe', '--output', 'export', '--', path],
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
        return 'more than one'
    return words.get('TYPE') or words.get('PTTYPE') or ''
