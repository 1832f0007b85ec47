"""A disk that forgets: writes stay volatile until flushed, and a power cut keeps, drops or tears them.

The model (facts of storage, not of any device): a write is volatile until a flush of its disk returns, or
until it returns itself if it was durable; volatile writes are unordered; reads see them at once.  A power
cut decides for each one: kept, dropped, or torn at sectors of 512 bytes.  Killing the process keeps all of
them visible, still volatile.
"""

import errno
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from mirrorfs.errors import LegError, Refused
from mirrorfs.leg.base import Buffer, Room
from mirrorfs.limits import PAGE, SECTOR
from mirrorfs.sim.violation import Violation

_ZEROS = bytes(PAGE)


class Medium:
    """Bytes at offsets, kept as pages so that a copy costs next to nothing."""

    __slots__ = ('_pages', 'size')

    def __init__(self, size: int, pages: dict[int, bytes] | None = None) -> None:
        self.size = size
        self._pages = {} if pages is None else pages

    def copy(self) -> 'Medium':
        return Medium(self.size, dict(self._pages))

    def page(self, number: int) -> bytes:
        """Return the 4096 bytes of one page: the very object written, where it was written whole."""
        return self._pages.get(number, _ZEROS)

    def read(self, offset: int, length: int) -> bytes:
        first, skip = divmod(offset, PAGE)
        if not skip and length == PAGE:
            return self.page(first)
        last = (offset + length - 1) // PAGE
        return b''.join(self.page(n) for n in range(first, last + 1))[skip : skip + length]

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, skip = divmod(offset + at, PAGE)
            step = min(PAGE - skip, len(data) - at)
            part = data[at : at + step]
            if step < PAGE:
                old = self.page(number)
                part = old[:skip] + part + old[skip + step :]
            self._pages[number] = part
            at += step

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the (offset, length) parts of a range that lie in pages with anything but zeros."""
        found: list[tuple[int, int]] = []
        for number in range(offset // PAGE, -(-(offset + length) // PAGE)):
            start, end = max(offset, number * PAGE), min(offset + length, (number + 1) * PAGE)
            if self.page(number) == _ZEROS:
                continue
            if found and sum(found[-1]) == start:
                start = found.pop()[0]
            found.append((start, end - start))
        return found

    def digest(self) -> int:
        """Return a number that is equal for equal content."""
        return hash(frozenset((at, page) for at, page in self._pages.items() if page != _ZEROS))

    def same(self, other: 'Medium', offset: int, length: int) -> bool:
        """Whether two media hold the same in a range of whole pages."""
        pages = range(offset // PAGE, (offset + length) // PAGE)
        mine, theirs = self._pages.get, other._pages.get
        return [mine(n, _ZEROS) for n in pages] == [theirs(n, _ZEROS) for n in pages]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Medium):
            return NotImplemented
        return self.size == other.size and self.same(other, 0, self.size + PAGE - 1)

    __hash__ = None  # type: ignore[assignment]


@dataclass(eq=False, slots=True)
class Pending:
    """A write that a power cut may undo.  `number` counts the writes to its disk."""

    offset: int
    data: bytes
    number: int

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
    zeros: bool = False
    """A write of nothing but zeros."""
    medium: bool = False
    """A read past the cache, which no caller is waiting for: it looks what is there."""


Hook = Callable[[Call], Awaitable[None]]
"""Called at every leg call, and again when a write is volatile; may pause, raise OSError or never return."""


async def _no_hook(call: Call) -> None:
    pass


@dataclass(eq=False)
class CrashDisk:
    """The medium: `durable` survives for sure, `visible` is what reads see, `pending` the difference."""

    name: str
    size: int
    durable: Medium = field(init=False)
    visible: Medium = field(init=False)
    pending: list[Pending] = field(default_factory=list)
    in_flight: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of the writes under way, which must never overlap."""
    writes: int = 0
    late: list[tuple['CrashLeg', int, bytes]] = field(default_factory=list)
    """Abandoned calls, which stay counted and may reach the disk after all: (leg, offset, data)."""
    unconfirmed: set[int] = field(default_factory=set)
    """Offsets of writes whose issuer was not told that they are durable."""
    lost: bool = False
    """Whether a failed flush lost something."""
    holder: 'CrashLeg | None' = None
    """Who has it open."""
    changes: int = 0
    """Grows with every change of the other fields."""
    erasable: bool = True
    """Whether it can forget its content quickly; else that stays, and is seen."""
    departed: str = ''
    """Why it is no longer what was opened, if it is not."""
    unreadable: set[int] = field(default_factory=set)
    """Pages that cannot be read until they are written."""
    unwritable: set[int] = field(default_factory=set)
    """Pages that cannot be written, but can be read as they are."""
    spoiled: set[int] = field(default_factory=set)
    """Pages that ever were one or the other."""

    def __post_init__(self) -> None:
        self.durable = Medium(self.size)
        self.visible = Medium(self.size)

    def enter(self, span: tuple[int, int]) -> None:
        """A write of (start, end) is under way from now until `leave`; invariant 5 is that none overlap."""
        if any(start < span[1] and span[0] < end for start, end in self.in_flight):
            raise Violation('one-order', f'two writes in flight overlap on {self.name} at {span[0]}')
        self.in_flight.append(span)

    def leave(self, span: tuple[int, int]) -> None:
        self.in_flight.remove(span)

    def spoil(self, kind: str, pages: Iterable[int]) -> None:
        """From now on pages cannot be read, or cannot be written."""
        (self.unreadable if kind == 'read' else self.unwritable).update(pages)
        self.spoiled.update(pages)

    def refuse_bad(self, bad: set[int], offset: int, length: int) -> None:
        """Raise LegError(EIO) if a range is in any of some pages."""
        if bad and not bad.isdisjoint(range(offset // PAGE, -(-(offset + length) // PAGE))):
            raise LegError(errno.EIO, f'{self.name} has bad blocks there')

    def write(self, offset: int, data: bytes) -> Pending:
        self.refuse_bad(self.unwritable, offset, len(data))
        self.unreadable.difference_update(range(-(-offset // PAGE), (offset + len(data)) // PAGE))
        if offset + len(data) > self.visible.size:
            raise LegError(errno.ENOSPC, f'{self.name} has {self.visible.size} bytes')
        self.writes += 1
        self.changes += 1
        write = Pending(offset, data, self.writes)
        self.visible.write(offset, data)
        self.pending.append(write)
        return write

    def settle(self, write: Pending) -> None:
        """The write has become durable by itself: earlier volatile ones can no longer undo it."""
        if write not in self.pending:
            return
        self.changes += 1
        at = self.pending.index(write)
        later = self.pending[at + 1 :]
        earlier = [part for old in self.pending[:at] for part in _without(old, write.offset, write.end)]
        self.pending = earlier + later
        self.durable.write(write.offset, write.data)

    def lose(self) -> None:
        """A flush has failed: what it should have written looks clean, and will never be durable."""
        self.changes += 1
        self.lost |= bool(self.pending)
        self.pending.clear()

    def drop_cache(self) -> None:
        """What is visible is what the medium holds, and what still waits to be written to it."""
        self.changes += 1
        self.visible = self.durable.copy()
        for write in self.pending:
            self.visible.write(write.offset, write.data)

    def read_medium(self, offset: int, length: int) -> bytes:
        """Return what is on the medium, after what waits to be written to that place."""
        for write in [w for w in self.pending if w.offset < offset + length and offset < w.end]:
            self.settle(write)
        return self.durable.read(offset, length)

    def flush(self, last: int) -> None:
        """Writes up to number `last`, the newest when the flush began, are durable."""
        self.changes += 1
        for write in self.pending:
            if write.number <= last:
                self.durable.write(write.offset, write.data)
        self.pending = [write for write in self.pending if write.number > last]

    def release(self) -> None:
        """Abandoned calls end at last: what they had to write is written."""
        for leg, offset, data in self.late:
            if data:
                with suppress(LegError):
                    self.write(offset, data)
            leg._ended()
        self.late.clear()

    def copy(self) -> 'CrashDisk':
        """Return the disk as it is: what a process that was killed leaves behind."""
        after = CrashDisk(self.name, self.size)
        after.durable, after.visible = self.durable.copy(), self.visible.copy()
        after.pending, after.writes, after.lost = list(self.pending), self.writes, self.lost
        self._leave_bad(after)
        return after

    def _leave_bad(self, after: 'CrashDisk') -> None:
        """What no crash changes."""
        after.erasable = self.erasable
        after.unreadable, after.unwritable = set(self.unreadable), set(self.unwritable)
        after.spoiled = set(self.spoiled)

    def digest(self) -> int:
        """Return a number that is equal for media of equal content."""
        return self.durable.digest()

    def cut(self, choose: 'Chooser') -> 'CrashDisk':
        """Return the disk after a power cut; `choose` gives the (start, end) parts that each write keeps."""
        after = CrashDisk(self.name, self.size)
        after.durable = self.durable.copy()
        for write in self.pending:
            for start, end in choose(write):
                after.durable.write(write.offset + start, write.data[start:end])
        after.visible = after.durable.copy()
        self._leave_bad(after)
        return after


Chooser = Callable[[Pending], Sequence[tuple[int, int]]]


def _without(write: Pending, start: int, end: int) -> list[Pending]:
    """Return the parts of a write outside start..end."""
    if write.end <= start or end <= write.offset:
        return [write]
    parts = []
    if write.offset < start:
        parts.append(Pending(write.offset, write.data[: start - write.offset], write.number))
    if write.end > end:
        parts.append(Pending(end, write.data[end - write.offset :], write.number))
    return parts


def keep_all(write: Pending) -> list[tuple[int, int]]:
    return [(0, len(write.data))]


def keep_none(write: Pending) -> list[tuple[int, int]]:
    return []


def keep_some(rng: random.Random) -> Chooser:
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
        self.identity: object = disk
        self.sharing = sharing
        self.room: Room | None = None
        self.calls = 0
        self.closed = False
        self._hook = hook
        self._flushing = trio.Lock()
        self._lost: OSError | None = None

    @property
    def size(self) -> int:
        return self.disk.visible.size

    async def read(self, offset: int, length: int) -> Buffer:
        await self._step(Call(self.disk.name, 'read', offset, length))
        if offset + length > self.size:
            raise LegError(errno.EIO, f'{self.path} ends at byte {self.size}')
        self.disk.refuse_bad(self.disk.unreadable, offset, length)
        return self.disk.visible.read(offset, length)

    async def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = await self.read(offset, len(view))

    async def read_medium(self, offset: int, length: int) -> Buffer:
        await self._step(Call(self.disk.name, 'read', offset, length, medium=True))
        if offset + length > self.size:
            raise LegError(errno.EIO, f'{self.path} ends at byte {self.size}')
        self.disk.refuse_bad(self.disk.unreadable, offset, length)
        return self.disk.read_medium(offset, length)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        call = Call(self.disk.name, 'write', offset, len(data), durable, bytes(data) == bytes(len(data)))
        span = (offset, offset + len(data))
        self.disk.enter(span)
        try:
            try:
                await self._step(call, bytes(data))
            except OSError as error:
                done = getattr(error, 'done', 0)  # of a short write
                if done:
                    self.disk.write(offset, bytes(data[:done]))
                    self.disk.unconfirmed.add(offset)
                raise
            write = self.disk.write(offset, bytes(data))
            self.disk.unconfirmed.add(offset)
            await self._step(call)
            if durable:
                self.disk.settle(write)
                self.disk.unconfirmed.discard(offset)
        finally:
            self.disk.leave(span)

    async def write_medium(self, offset: int, data: Buffer) -> None:
        await self.write(offset, data, durable=True)

    async def flush(self) -> None:
        call = Call(self.disk.name, 'flush')
        async with self._flushing:
            if self._lost:
                raise self._lost
            try:
                await self._step(call)
                covered = self.disk.writes
                await self._step(call)
            except OSError as error:
                if not self.closed:  # then the disk was not even asked
                    self._lost = error
                    self.disk.lose()
                raise
            self.disk.flush(covered)

    async def write_bulk(self, offset: int, data: Buffer) -> None:
        await self.write(offset, data)

    async def drop_cache(self) -> None:
        await self._step(Call(self.disk.name, 'drop-cache'))
        self.disk.drop_cache()

    async def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        await self.write(offset, bytes(length))

    async def discard(self, offset: int, length: int) -> bool:
        return await self.erase(offset, length)

    async def allocate(self, offset: int, length: int) -> None:
        pass

    def is_found(self, found: object) -> bool:
        return True

    async def move(self, path: str) -> str:
        raise Refused(errno.EXDEV, 'simulated legs stay where they are')

    async def moved(self, old: str) -> None:
        pass

    async def departed(self, needed: int) -> str:
        if self.disk.departed:
            return self.disk.departed
        return f'was cut to {self.size} bytes' if self.size < needed else ''

    async def stamp(self) -> str:
        await self._step(Call(self.disk.name, 'stamp'))
        return f'{self.disk.visible.digest()}'

    async def extents(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        await self._step(Call(self.disk.name, 'extents', offset, length))
        return self.disk.visible.extents(offset, length)

    async def erase(self, offset: int, length: int) -> bool:
        if not self.disk.erasable:
            return False
        await self.write(offset, bytes(length))
        return True

    async def extend(self, size: int) -> bool:
        if self.size < size:
            self.disk.durable.size = self.disk.visible.size = self.disk.size = size
        return True

    def close(self) -> None:
        self.closed = True
        self._let_go()

    def _let_go(self) -> None:
        """Free the disk for others once it is closed and no call on it is under way."""
        if self.closed and not self.calls:
            self.disk.holder = None if self.disk.holder is self else self.disk.holder

    async def _step(self, call: Call, data: bytes = b'') -> None:
        if self.closed:
            raise LegError(errno.ECANCELED, f'{self.path} is closed')
        self.calls += 1
        try:
            await self._hook(call)
        except trio.Cancelled:
            self.disk.late.append((self, call.offset, data))
            raise
        except BaseException:
            self._ended()
            raise
        self._ended()

    def _ended(self) -> None:
        self.calls -= 1
        self._let_go()
