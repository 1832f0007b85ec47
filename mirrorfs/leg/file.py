"""Legs that are regular files or block devices."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from mirrorfs import limits
from mirrorfs.errors import LegError, Refused
from mirrorfs.leg.base import Buffer, Room
from mirrorfs.leg.workers import Workers
from mirrorfs.zeroes import ZEROS

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_BLKDISCARD = 0x1277
"""An ioctl of block devices; takes offset and length (Linux: include/uapi/linux/fs.h)."""
_PROCESS = uuid.uuid4()
_WRITTEN, _DISCARDED = 6, 13
"""Fields of a block device's ``stat``, in sectors (Linux: Documentation/block/stat.rst)."""
closing: set[str] = set()
"""Paths of devices that are being closed: until that is done they cannot be opened anew."""


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes, which the os module lacks.  Raises OSError."""
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class FileLeg:
    """A leg behind a file descriptor.  See `mirrorfs.leg.base`.

    All I/O of trio's goes through threads.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        info = os.fstat(fd)
        self.is_device = stat.S_ISBLK(info.st_mode)
        self.sharing = None if self.is_device else info.st_dev
        self.identity: object = (info.st_dev, info.st_ino)
        self._device = info.st_rdev
        self.room: Room | None = None
        self._look_at_room(info)
        self._workers = Workers(path, limits.LEG_CALLS)
        # The kernel reports a lost write once to each open file: a sync through one must not take the report
        # from another, so durable writes have a file of their own, and a flush that failed stays failed.
        self._durable_fd = os.open(f'/proc/self/fd/{fd}', os.O_RDWR | os.O_CLOEXEC)
        self._direct_fd: int | None = None
        """For reads past the cache, once there was one."""
        self._flushing = threading.Lock()
        self._lost: OSError | None = None
        self.lane_calls = 0
        """Calls of superseded lanes that have not returned."""
        self._elsewhere: list[None] = []
        """One for each call in a thread of others: to append and to pop is atomic, to count is not."""
        self._closed = False
        self._closing = threading.Lock()
        self._looking = False

    @property
    def calls(self) -> int:
        return self._workers.calls + self.lane_calls + len(self._elsewhere)

    @property
    def size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END) if self.is_device else os.fstat(self.fd).st_size

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._workers.run(self._read, offset, length)

    def _read(self, offset: int, length: int) -> Buffer:
        data = os.pread(self.fd, length, offset)
        if len(data) == length:
            return data
        whole = bytearray(data)
        while len(whole) < length:
            data = os.pread(self.fd, length - len(whole), offset + len(whole))
            if not data:
                raise LegError(errno.EIO, f'{self.path} ends at byte {offset + len(whole)}')
            whole += data
        return whole

    async def read_into(self, offset: int, view: memoryview) -> None:
        await self._workers.run(self._read_into, offset, view)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_fully(self.fd, offset, view)

    def _read_fully(self, fd: int, offset: int, view: memoryview) -> None:
        while view:
            got = os.preadv(fd, [view], offset)
            if not got:
                raise LegError(errno.EIO, f'{self.path} ends at byte {offset}')
            view, offset = view[got:], offset + got

    async def read_medium(self, offset: int, length: int) -> Buffer:
        return await self._workers.run(self._read_medium, offset, length)

    def _read_medium(self, offset: int, length: int) -> Buffer:
        """Read with O_DIRECT, for which the kernel writes dirty pages first; else without the cache."""
        start = offset // limits.PAGE * limits.PAGE
        end = -(-(offset + length) // limits.PAGE) * limits.PAGE
        with mmap.mmap(-1, end - start) as aligned:  # O_DIRECT wants memory at a page's start
            try:
                fd = os.open(f'/proc/self/fd/{self.fd}', os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                os.fdatasync(self._durable_fd)
                os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_DONTNEED)
                return self._read(offset, length)
            try:
                got = os.preadv(fd, [aligned], start)
            finally:
                os.close(fd)
            if start + got < offset + length:
                raise LegError(errno.EIO, f'{self.path} ends at byte {start + got}')
            return aligned[offset - start : offset - start + length]

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        if durable:
            await self._workers.run(self._write, self._durable_fd, offset, data, os.RWF_DSYNC)
        else:
            await self._workers.run(self._write, self.fd, offset, data, 0)

    async def write_bulk(self, offset: int, data: Buffer) -> None:
        await self._workers.run(self._write_bulk, offset, data)

    def _write_bulk(self, offset: int, data: Buffer) -> None:
        """Write with O_DIRECT, so that no cache is filled with it; else through the cache."""
        try:
            fd = os.open(f'/proc/self/fd/{self.fd}', os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            try:
                return self._write(fd, offset, data, 0)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        return self._write(self.fd, offset, data, 0)

    async def write_medium(self, offset: int, data: Buffer) -> None:
        await self._workers.run(self._write_medium, offset, data)

    def _write_medium(self, offset: int, data: Buffer) -> None:
        """Write with O_DIRECT, whose errors no other open file is told of; else durably through the cache."""
        if offset % limits.SECTOR or len(data) % limits.SECTOR:
            return self._write(self._durable_fd, offset, data, os.RWF_DSYNC)
        with mmap.mmap(-1, -(-len(data) // limits.PAGE) * limits.PAGE) as aligned:
            aligned[: len(data)] = bytes(data)
            try:
                fd = os.open(f'/proc/self/fd/{self.fd}', os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
                try:
                    view = memoryview(aligned)[: len(data)]
                    try:
                        done = os.pwritev(fd, [view], offset, os.RWF_DSYNC)
                    finally:
                        view.release()
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                done = 0
        if done < len(data):
            self._write(self._durable_fd, offset + done, memoryview(data)[done:], os.RWF_DSYNC)
        return None

    def _write(self, fd: int, offset: int, data: Buffer, flags: int) -> None:
        view = memoryview(data)
        while view:
            # RWF_DSYNC syncs just the bytes of this call, where fdatasync would flush the whole leg.
            done = os.pwritev(fd, [view], offset, flags)
            if not done:
                raise LegError(errno.EIO, f'{self.path} took no bytes at {offset}')
            view = view[done:]
            offset += done

    async def flush(self) -> None:
        await self._workers.run(self._flush)

    def _flush(self) -> None:
        """Sync, one at a time; what one caller was told of lost data is told to every later one."""
        with self._flushing:
            if self._lost is None:
                try:
                    os.fdatasync(self.fd)
                except OSError as error:
                    self._lost = error
            if self._lost is not None:
                raise self._lost

    def sync(self) -> None:
        with self._counted():
            self._flush()

    def fetch(self, offset: int, view: memoryview, *, direct: bool = False) -> None:
        with self._counted():
            aligned = not (offset | len(view)) % limits.PAGE
            fd = self._past_cache() if direct and aligned else self.fd
            self._read_fully(fd, offset, view)

    def _past_cache(self) -> int:
        """Return a descriptor for reads past the cache; the usual one where the leg has none."""
        if self._direct_fd is None:
            with self._closing:
                if self._direct_fd is None:
                    self._direct_fd = self._open_direct()
        return self._direct_fd

    def _open_direct(self) -> int:
        try:
            return os.open(f'/proc/self/fd/{self.fd}', os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            return self.fd

    def write_back(self) -> None:
        with self._counted():
            # No flag that waits: such a call would take the report of a lost write from `_flush`.
            _libc.sync_file_range(self.fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """One of `calls`, in whatever thread.  Raises LegError where the leg is closed."""
        self._elsewhere.append(None)  # first: who closes the leg either finds this, or is found here
        try:
            if self._workers.closed:
                raise LegError(errno.ECANCELED, f'{self.path} is closed')
            yield
        finally:
            self._elsewhere.pop()
            self._close_when_idle()

    async def drop_cache(self) -> None:
        await self._workers.run(os.posix_fadvise, self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    async def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        await self._workers.run(self._zero, offset, length, keep)

    def _zero(self, offset: int, length: int, keep: bool) -> None:
        for mode in (ZERO_RANGE,) if keep else (PUNCH_HOLE, ZERO_RANGE):
            try:
                return fallocate(self.fd, KEEP_SIZE | mode, offset, length)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
        for at in range(offset, offset + length, len(ZEROS)):
            self._write(self.fd, at, memoryview(ZEROS)[: min(len(ZEROS), offset + length - at)], 0)
        return None

    async def discard(self, offset: int, length: int) -> bool:
        return await self._workers.run(self._discard, offset, length)

    def _discard(self, offset: int, length: int) -> bool:
        if not self.is_device:
            return self._erase(offset, length)
        try:
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack('=QQ', offset, length))
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        return False  # devices differ in what they read as then

    async def allocate(self, offset: int, length: int) -> None:
        if not self.is_device:
            await self._workers.run(fallocate, self.fd, KEEP_SIZE, offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        if self.is_device:
            return [(offset, length)]
        return await self._workers.run(self._extents, offset, length)

    def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        found = []
        at, end = offset, offset + length
        try:
            while at < end:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
                if data >= end:
                    break
                at = min(end, os.lseek(self.fd, data, os.SEEK_HOLE))
                found.append((data, at - data))
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: nothing but a hole to the end of the file
                return [(offset, length)]
        return found

    async def erase(self, offset: int, length: int) -> bool:
        if self.is_device:
            return False
        return await self._workers.run(self._erase, offset, length)

    def _erase(self, offset: int, length: int) -> bool:
        try:
            fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise
        return True

    async def extend(self, size: int) -> bool:
        return await self._workers.run(self._extend, size)

    def _extend(self, size: int) -> bool:
        if self.size < size:
            if self.is_device:
                raise LegError(errno.ENOSPC, f'{self.path} has {self.size} bytes, {size} are needed')
            os.ftruncate(self.fd, size)
        return not self.is_device

    async def departed(self, needed: int) -> str:
        if self._looking:  # a call hangs: more of them would tell no more
            return ''
        self._looking = True
        return await self._workers.run(self._look, needed)

    def _look(self, needed: int) -> str:
        try:
            return self._departed(needed)
        finally:
            self._looking = False

    def _departed(self, needed: int) -> str:
        info = os.fstat(self.fd)
        self._look_at_room(info)
        if not self.is_device and not info.st_nlink:
            return 'was removed'
        if self.size < needed:
            return f'was cut to {self.size} bytes, {needed} are needed'
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return '' if self._follow() else 'is no longer at its path'
        return '' if self._is(there) else 'has something else at its path'

    def _look_at_room(self, info: os.stat_result) -> None:
        if self.is_device:
            return
        try:
            filesystem = os.fstatvfs(self.fd)
        except OSError:  # what was seen last is the best that is known
            return
        # st_blocks is in units of 512 bytes whatever the filesystem's are.
        self.room = Room(info.st_blocks * 512, filesystem.f_bavail * filesystem.f_frsize)

    def _follow(self) -> bool:
        """A file that somebody has renamed is known by its new path from now on."""
        try:
            path = os.readlink(f'/proc/self/fd/{self.fd}')
            if self.is_device or not self._is(os.stat(path)):
                return False
        except OSError:
            return False
        self.path = path
        return True

    async def stamp(self) -> str:
        return await self._workers.run(self._stamp)

    def _stamp(self) -> str:
        """A file's times and size; of a device what was written to it, which tells for this process alone."""
        info = os.fstat(self.fd)
        if not self.is_device:
            return f'{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}'
        os.fsync(self._durable_fd)  # what others have in the cache counts only then
        device = Path(f'/sys/dev/block/{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}')
        queue = device / 'queue' if (device / 'queue').is_dir() else device.resolve().parent / 'queue'
        if (queue / 'iostats').read_text().strip() != '1':
            return ''
        counts = (device / 'stat').read_text().split()
        return f'{_PROCESS}:{counts[_WRITTEN]}:{counts[_DISCARDED] if len(counts) > _DISCARDED else 0}'

    def is_found(self, found: object) -> bool:
        assert isinstance(found, tuple)
        if self.is_device:
            return bool(found[2] == self._device)
        return bool(found[:2] == self.identity)

    async def move(self, path: str) -> str:
        return await self._workers.run(self._move, path)

    def _move(self, path: str) -> str:
        old = self.path
        try:
            there = os.stat(path)
        except FileNotFoundError:
            if self.is_device:
                raise Refused(errno.ENOENT, f'{path} is not there') from None
            try:
                os.link(old, path)
            except OSError as error:
                hint = error.strerror
                if error.errno == errno.EXDEV:
                    hint = 'that is another filesystem; use replace'
                raise Refused(error.errno or errno.EIO, f'{old} cannot be at {path}: {hint}') from None
            self._sync_folder(path)  # the new name must not be lost where the old one is given up
        else:
            if not self._is(there):
                raise Refused(errno.EEXIST, f'something else is at {path}') from None
        self.path = path
        return old

    @staticmethod
    def _sync_folder(path: str) -> None:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    async def moved(self, old: str) -> None:
        await self._workers.run(self._moved, old)

    def _moved(self, old: str) -> None:
        try:
            if not self.is_device and old != self.path and self._is(os.stat(old)):
                os.unlink(old)
        except FileNotFoundError:
            pass

    def _is(self, there: os.stat_result) -> bool:
        """Whether a path's status is that of this leg."""
        if self.is_device:
            return there.st_rdev == self._device
        return self.identity == (there.st_dev, there.st_ino)

    def close(self) -> None:
        """Close the descriptor, at once or when the last call that uses it has returned."""
        self._workers.close(self._close_when_idle)
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self._workers.closed or self.calls:
            return
        with self._closing:  # the last call may end in any thread
            first, self._closed = not self._closed, True
        if first:
            if self.is_device:
                # The last close of a device writes back its cache: as slow as any call, so in a thread.
                closing.add(self.path)
                threading.Thread(target=self._close, name='leg close', daemon=True).start()
            else:
                self._close()

    def _close(self) -> None:
        try:
            if self._direct_fd not in (None, self.fd):
                os.close(self._direct_fd)
            os.close(self._durable_fd)
            os.close(self.fd)
        finally:
            closing.discard(self.path)


class LaneFileLeg(FileLeg):
    """A FileLeg that the data lane may read and write by itself.  See `mirrorfs.leg.base.LaneLeg`."""

    def nowait(self) -> int:
        """Return RWF_NOWAIT if the file can be read so (tmpfs cannot, but does not block either), else 0."""
        try:
            os.preadv(self.fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return 0
        return os.RWF_NOWAIT

    def lane_stays(self) -> None:
        self.lane_calls += 1

    def lane_returned(self) -> None:
        self.lane_calls -= 1
        self._close_when_idle()
