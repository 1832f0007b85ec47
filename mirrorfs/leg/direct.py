"""Legs that are read and written past the page cache, so that what images hold is not cached twice.

Calls go through threads only, several at a time: the data lane, which does one call after another, would wait
for the disk at each.

Less than a block of the disk cannot be written so.  To read the rest of the block, change it and write all
would undo what others write there meanwhile.  So the ends of a write that is not aligned go through the page
cache, which the kernel keeps coherent with direct I/O: it writes dirty pages out before it reads or writes
past them, and forgets what is cached of a range that was written past it.

Ext4 and XFS hold the inode's lock meanwhile.  A block device has none: a page that was just written out may
be dirty again when a direct write to it ends, and then the next flush says that something was lost.  So no
two writes in flight may share a page: one writer holds a chunk, and with it all pages in it, and a backlog
(`mirrorfs.mirror.behind`) keeps to that.
"""

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator

import numpy as np

from mirrorfs import limits
from mirrorfs.errors import LegError
from mirrorfs.leg.base import Buffer
from mirrorfs.leg.file import FileLeg, LaneFileLeg
from mirrorfs.leg.memory import Buffers

_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
_AT_EMPTY_PATH, _STATX_DIOALIGN, _STATX_SIZE = 0x1000, 0x2000, 256
_STATUS = struct.Struct('=I148xII')
"""Of a struct statx: stx_mask, stx_dio_mem_align, stx_dio_offset_align."""
_INSTEAD = 'it is read and written through the page cache'
_libc = ctypes.CDLL(None, use_errno=True)

Warn = Callable[[str, str], None]
"""Told, in any thread, the path of a leg that is not read and written past the cache, and why."""


class DirectLegs:
    """Makes DirectLegs; of what refuses direct I/O it makes legs as without this, and says so.

    To be passed to `mirrorfs.leg.opening.FileOpener`.
    """

    def __init__(self, warn: Warn) -> None:
        self._buffers = Buffers(limits.REQUEST_MAX, limits.DIRECT_BUFFERS)
        self._warn = warn

    def __call__(self, path: str, fd: int) -> FileLeg:
        """Return a leg of an open file or device.  Raises OSError."""
        try:
            direct = open_direct(fd)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._warn(path, f'has no direct I/O; {_INSTEAD}')
            return LaneFileLeg(path, fd)
        return DirectLeg(path, fd, direct, self._buffers, self._warn)


def open_direct(fd: int) -> int:
    """Open what is behind a descriptor again, past the page cache.

    Raises OSError; EINVAL or EOPNOTSUPP where there is no such thing.
    """
    if not all(alignment(fd)):
        raise OSError(errno.EINVAL, 'no direct I/O')
    direct = os.open(f'/proc/self/fd/{fd}', os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    try:
        os.preadv(direct, [mmap.mmap(-1, limits.PAGE)], 0)
    except OSError as error:
        if error.errno in _REFUSED:  # other errors are the medium's, and met again where they matter
            os.close(direct)
            raise
    return direct


def alignment(fd: int) -> tuple[int, int]:
    """Return what offsets and lengths, and what addresses, must be multiples of in direct I/O, in bytes.

    Zeros where there is no direct I/O; a page where the kernel (before 6.1) or the filesystem does not say.
    """
    status = ctypes.create_string_buffer(_STATX_SIZE)
    if not hasattr(_libc, 'statx') or _libc.statx(fd, b'', _AT_EMPTY_PATH, _STATX_DIOALIGN, status):
        return limits.PAGE, limits.PAGE
    mask, memory, offset = _STATUS.unpack_from(status)
    return (offset, memory) if mask & _STATX_DIOALIGN else (limits.PAGE, limits.PAGE)


class DirectLeg(FileLeg):
    """A file or device that is read and written past the page cache.  See `mirrorfs.leg.base.Leg`.

    It is no `LaneLeg`.  `direct` is its second descriptor; `buffers` is shared with others.
    """

    def __init__(self, path: str, fd: int, direct: int, buffers: Buffers, warn: Warn) -> None:
        super().__init__(path, fd)
        self._direct = direct
        self._unit, self._memory_unit = alignment(fd)
        self._buffers = buffers
        self._warn = warn
        self._refused = False
        """Whether direct I/O was refused after all: then all goes through the cache."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what a mount without this left in the cache

    # Reading

    def _read(self, offset: int, length: int) -> Buffer:
        if not self._refused:
            try:
                return b''.join(map(bytes, self._pieces(offset, length)))
            except OSError as error:
                self._refuse(error)
        return super()._read(offset, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        if not self._refused:
            try:
                return self._direct_into(offset, view)
            except OSError as error:
                self._refuse(error)
        return super()._read_into(offset, view)

    def _direct_into(self, offset: int, view: memoryview) -> None:
        if self._is_aligned(offset, view):
            return self._fill(offset, view, len(view))
        for piece in self._pieces(offset, len(view)):
            view[: len(piece)] = piece
            view = view[len(piece) :]
        return None

    def _pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield what is in a range, piece after piece; each is there until the next one is asked for."""
        buffer = self._buffers.take()
        memory = memoryview(buffer)
        end = offset + length
        try:
            while offset < end:
                start = offset // self._unit * self._unit
                until = min(end, start + len(memory))
                whole = -(-(until - start) // self._unit) * self._unit
                self._fill(start, memory[:whole], until - start)
                yield memory[offset - start : until - start]
                offset = until
        finally:
            self._buffers.give_back(buffer)

    def _fill(self, start: int, memory: memoryview, needed: int) -> None:
        """Read into aligned memory, as much as is needed at least.  EIO where the leg ends before that."""
        done = 0
        while done < needed:
            got = os.preadv(self._direct, [memory[done:]], start + done)
            done += got
            if done < needed and (not got or got % self._unit):
                raise LegError(errno.EIO, f'{self.path} ends at byte {start + done}')

    # Writing

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        await self._workers.run(self._write_past, offset, data, durable)

    async def write_bulk(self, offset: int, data: Buffer) -> None:
        await self._workers.run(self._write_past, offset, data, False)

    def _write_past(self, offset: int, data: Buffer, durable: bool) -> None:
        """Write whole blocks past the cache, and what is left at both ends through it."""
        view = memoryview(data)
        low = min(-offset % self._unit, len(view))
        high = low + (len(view) - low) // self._unit * self._unit
        fd, flags = (self._durable_fd, os.RWF_DSYNC) if durable else (self.fd, 0)
        self._write(fd, offset, view[:low], flags)
        if low < high:
            self._write_blocks(fd, offset + low, view[low:high], flags)
        self._write(fd, offset + high, view[high:], flags)

    def _write_blocks(self, fd: int, offset: int, view: memoryview, flags: int) -> None:
        """Write past the cache, or where that is refused to `fd`."""
        if not self._refused:
            try:
                return self._write_direct(offset, view, flags)
            except OSError as error:
                self._refuse(error)
        return self._write(fd, offset, view, flags)

    def _write_direct(self, offset: int, view: memoryview, flags: int) -> None:
        if self._is_aligned(offset, view):
            return self._write(self._direct, offset, view, flags)
        buffer = self._buffers.take()
        memory = memoryview(buffer)
        try:
            for at in range(0, len(view), len(memory)):
                step = min(len(memory), len(view) - at)
                memory[:step] = view[at : at + step]
                self._write(self._direct, offset + at, memory[:step], flags)
        finally:
            self._buffers.give_back(buffer)
        return None

    def _is_aligned(self, offset: int, view: memoryview) -> bool:
        """Whether a range and memory for it are as direct I/O wants them."""
        if not view or offset % self._unit or len(view) % self._unit:
            return False
        address: int = np.frombuffer(view, np.uint8).ctypes.data
        return address % self._memory_unit == 0

    def _refuse(self, error: OSError) -> None:
        """Go through the cache from now on if that is what an error means; else raise it."""
        if error.errno not in _REFUSED:
            raise error
        if not self._refused:
            self._refused = True
            self._warn(self.path, f'refuses direct I/O; {_INSTEAD}')

    def _close(self) -> None:
        try:
            os.close(self._direct)
        finally:
            super()._close()
