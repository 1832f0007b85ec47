"""A disk that forgets: writes stay volatile until flushed, and a power cut keeps, drops or tears them.

The model (facts of storage, not of any device): a write is volatile until a flush of its disk returns, or
until it returns itself if it was durable; volatile writes are unordered; reads see them at once.  A power
cut decides for each one: kept, dropped, or torn at sectors of 512 bytes.  Killing the process keeps all of
them visible, still volatile.
"""

import errno
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mirrorfs.errors import LegError
from mirrorfs.leg.base import Buffer
from mirrorfs.limits import SECTOR


@dataclass(eq=False, slots=True)
class Pending:
    """A write that a power cut may undo."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Call:
    """One leg call, as the hook sees it before it takes effect."""

    disk: str
    kind: str
    offset: int = 0
    length: int = 0
    durable: bool = False


Hook = Callable[[Call], Awaitable[None]]
"""Called at every leg call, and again when a write is volatile; may pause, raise OSError or never return."""


async def _no_hook(call: Call) -> None:
    pass


@dataclass(eq=False)
class CrashDisk:
    """The medium: `durable` survives for sure, `visible` is what reads see, `pending` the difference."""

    name: str
    size: int
    durable: bytearray = field(init=False)
    visible: bytearray = field(init=False)
    pending: list[Pending] = field(default_factory=list)
    reads: int = 0
    read_bytes: int = 0

    def __post_init__(self) -> None:
        self.durable = bytearray(self.size)
        self.visible = bytearray(self.size)

    def write(self, offset: int, data: bytes) -> Pending:
        if offset + len(data) > len(self.visible):
            raise LegError(errno.ENOSPC, f'{self.name} has {len(self.visible)} bytes')
        write = Pending(offset, data)
        self.visible[offset : write.end] = data
        self.pending.append(write)
        return write

    def settle(self, write: Pending) -> None:
        """The write has become durable by itself: earlier volatile ones can no longer undo it."""
        if write not in self.pending:
            return
        at = self.pending.index(write)
        later = self.pending[at + 1 :]
        earlier = [part for old in self.pending[:at] for part in _without(old, write.offset, write.end)]
        self.pending = earlier + later
        self.durable[write.offset : write.end] = write.data

    def flush(self, writes: Sequence[Pending]) -> None:
        """What was pending when the flush began is durable."""
        for write in [write for write in self.pending if write in writes]:
            self.durable[write.offset : write.end] = write.data
        self.pending = [write for write in self.pending if write not in writes]

    def cut(self, choose: Callable[[Pending], Sequence[tuple[int, int]]]) -> 'CrashDisk':
        """Return the disk after a power cut; `choose` gives the (start, end) parts that each write keeps."""
        after = CrashDisk(self.name, 0)
        after.size = self.size
        after.durable = bytearray(self.durable)
        for write in self.pending:
            for start, end in choose(write):
                after.durable[write.offset + start : write.offset + end] = write.data[start:end]
        after.visible = bytearray(after.durable)
        return after


def _without(write: Pending, start: int, end: int) -> list[Pending]:
    """Return the parts of a write outside start..end."""
    if write.end <= start or end <= write.offset:
        return [write]
    parts = []
    if write.offset < start:
        parts.append(Pending(write.offset, write.data[: start - write.offset]))
    if write.end > end:
        parts.append(Pending(end, write.data[end - write.offset :]))
    return parts


def keep_all(write: Pending) -> list[tuple[int, int]]:
    return [(0, len(write.data))]


def keep_none(write: Pending) -> list[tuple[int, int]]:
    return []


def keep_some(rng: random.Random) -> Callable[[Pending], list[tuple[int, int]]]:
    """Return a chooser that keeps, drops or tears each write at random."""

    def choose(write: Pending) -> list[tuple[int, int]]:
        fate = rng.randrange(3)
        if fate < 2:
            return keep_all(write) if fate else []
        cuts = range(0, len(write.data), SECTOR)
        return [(at, min(at + SECTOR, len(write.data))) for at in cuts if rng.random() < 0.5]

    return choose


class CrashLeg:
    """A leg on a CrashDisk.  See `mirrorfs.leg.base.Leg`."""

    def __init__(self, disk: CrashDisk, hook: Hook = _no_hook, *, sharing: int | None = None) -> None:
        self.path = f'/sim/{disk.name}'
        self.disk = disk
        self.sharing = sharing
        self.calls = 0
        self.closed = False
        self._hook = hook

    @property
    def size(self) -> int:
        return len(self.disk.visible)

    async def read(self, offset: int, length: int) -> Buffer:
        await self._step(Call(self.disk.name, 'read', offset, length))
        if offset + length > self.size:
            raise LegError(errno.EIO, f'{self.path} ends at byte {self.size}')
        self.disk.reads += 1
        self.disk.read_bytes += length
        return bytes(self.disk.visible[offset : offset + length])

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        call = Call(self.disk.name, 'write', offset, len(data), durable)
        await self._step(call)
        write = self.disk.write(offset, bytes(data))
        await self._step(call)
        if durable:
            self.disk.settle(write)

    async def flush(self) -> None:
        call = Call(self.disk.name, 'flush')
        await self._step(call)
        covered = list(self.disk.pending)
        await self._step(call)
        self.disk.flush(covered)

    async def zero(self, offset: int, length: int) -> None:
        await self.write(offset, bytes(length))

    async def allocate(self, offset: int, length: int) -> None:
        pass

    async def extents(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        return [(offset, length)]

    async def erase(self, offset: int, length: int) -> bool:
        await self.write(offset, bytes(length))
        return True

    async def extend(self, size: int) -> bool:
        if self.size < size:
            for array in (self.disk.durable, self.disk.visible):
                array.extend(bytes(size - len(array)))
        return True

    def close(self) -> None:
        self.closed = True

    async def _step(self, call: Call) -> None:
        if self.closed:
            raise LegError(errno.ECANCELED, f'{self.path} is closed')
        self.calls += 1
        try:
            await self._hook(call)
        finally:
            self.calls -= 1
