"""The data lane in the simulation: the real Gateway, Lane and Images between requests and a world's volume.

Only what is below them is simulated: the FUSE descriptor, the way to pyfuse3 and what answers there, the
descriptors of legs (on crash disks), the clock, and the threads, which are in lockstep with trio
(`mirrorfs.sim.lockstep`): a task of trio's, its *driver*, lets a lane pass some lines, waits a while, and so
on, as its `Pace` says.  While a lane has nothing to do, or is in a call that hangs, its driver waits, too.
"""

import errno
import logging
import os
import random
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, cast

import trio

from mirrorfs import limits
from mirrorfs.errors import LegError
from mirrorfs.fs import beside, fetching, gateway, lane, syncing, wire
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.images import Images
from mirrorfs.fs.system import Channel, Poller, Queue, Running, System
from mirrorfs.leg.base import Buffer, Leg
from mirrorfs.leg.file import KEEP_SIZE, PUNCH_HOLE
from mirrorfs.pool import Entry, Pool
from mirrorfs.sim import lockstep
from mirrorfs.sim.checkers import Checkers
from mirrorfs.sim.crashleg import Call, CrashDisk, CrashLeg, Hook
from mirrorfs.sim.lockstep import Lockstep, Work
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import ShortWrite, World
from mirrorfs.volume.volume import Volume

NODE = 5
"""The image's node number."""
TRACED = frozenset(str(module.__file__) for module in (lane, gateway, beside, syncing, fetching))
"""Files every line of which is an interleaving point, if a lane runs it."""
LANE_COUNTS = ('hot writes', 'hot reads', 'hot syncs', 'mates', 'lanes superseded')
"""What a world's tally says of lanes."""
_FUSE = 3
"""The mount's descriptor; those of legs are above it, and never used again."""
_GETATTR = 3
_TICK = 25e-6
"""What the lane's clock advances each time that somebody looks."""
_CHANNEL_ROOM = 2
_PIECE, _WIDE = 16 << 10, 8 << 10
"""As limits.LANE_PIECE and LANE_WIDE, for writes of the sizes that are simulated."""
_EAGER = 64 << 10
"""As limits.EAGER_BYTES."""
_LAST_REPLIES = 10.0
"""Seconds within which the requests under way are answered, some way, when a volume has stopped."""
_NOT_CACHED = 0.2


_fetches: ContextVar[bool] = ContextVar('fetches', default=False)
"""Whether a task reads for a thread that looks afterwards whether it might."""

_Start = Callable[[Callable[[], Awaitable[None]]], None]
"""Begins a task."""


class LaneCrashLeg(CrashLeg):
    """A leg on a crash disk with a descriptor for the lane.  See `mirrorfs.leg.base.LaneLeg`."""

    def __init__(
        self, disk: CrashDisk, hook: Hook, fd: int, start: '_Start', *, sharing: int | None = None
    ) -> None:
        super().__init__(disk, hook, sharing=sharing)
        self.fd = fd
        self.lane_calls = 0
        self._start = start

    def sync(self) -> None:
        lockstep.call(self._by_trio(self.flush))

    def fetch(self, offset: int, view: memoryview, *, direct: bool = False) -> None:
        async def read() -> None:
            _fetches.set(True)
            await self.read_into(offset, view)

        lockstep.call(self._by_trio(read))

    def write_back(self) -> None:
        pass  # what is not flushed is lost, or not, as it comes, at all times

    def _by_trio(self, operate: Callable[[], Awaitable[None]]) -> Work[None]:
        """A thread waits while a task of trio's does an operation."""
        over, failures = trio.Event(), []

        async def run() -> None:
            try:
                await operate()
            except OSError as error:
                failures.append(error)
            finally:
                over.set()

        yield None
        self._start(run)
        yield over
        for failure in failures:
            raise failure

    def nowait(self) -> int:
        return os.RWF_NOWAIT

    def lane_stays(self) -> None:
        self.calls += 1
        self.lane_calls += 1

    def lane_returned(self) -> None:
        self.lane_calls -= 1
        self._ended()


class Pace(Protocol):
    """How fast a thread goes."""

    async def turn(self) -> int:
        """Wait a while, or not; return how many points the thread may pass then."""
        ...


class RandomPace:
    """Line by line at one time, far at another; seldom so slow that the watchdog gives the lane up."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def turn(self) -> int:
        rng = self._rng
        kind = rng.random()
        if kind < 0.01:
            await trio.sleep(rng.choice((0.1, 0.2, 0.3, 0.7)))
        elif kind < 0.08:
            # Whoever looks again and again (`settle`) is woken only by time that passes.
            await trio.sleep(rng.choice((0.0001, 0.0003, 0.001)))
        elif kind < 0.5:
            for _ in range(rng.choice((1, 1, 2, 4, 10))):
                await trio.lowlevel.checkpoint()
        return rng.choice((1, 1, 1, 2, 3, 8, 40, 400))


class Freely:
    """As far as the thread comes, at once."""

    async def turn(self) -> int:
        return 1 << 30


class Held:
    """Not one point until released, but what somebody lets the thread pass by `advance`; then freely."""

    def __init__(self) -> None:
        self.released = trio.Event()

    async def turn(self) -> int:
        await self.released.wait()
        return 1 << 30


@dataclass(eq=False, slots=True)
class Asked:
    """A request that waits for its reply."""

    opcode: int
    done: trio.Event = field(default_factory=trio.Event)
    error: int = 0
    body: bytes = b''


class SimMount:
    """One mount of a world: a `mirrorfs.sim.world.Port` through the data lane."""

    def __init__(self, world: 'LaneWorld', nursery: trio.Nursery, pace: Pace | None = None) -> None:
        self.world = world
        self.nursery = nursery
        self.inbox: deque[bytes] = deque()
        """Requests that wait to be read from the descriptor."""
        self.asked: dict[int, Asked] = {}
        self.unmounted = False
        self.pace: Pace = pace or RandomPace(world.rng)
        self.paces: dict[Lockstep, Pace] = {}
        """Threads with a pace of their own."""
        self.named: dict[str, Pace] = {}
        """The same by the names of threads: lane, mate, sync, relay."""
        self.lanes: list[Lockstep] = []
        self.threads: list[Lockstep] = []
        self.late: set[Lockstep] = set()
        """Superseded lanes that took one more request."""
        self.complaints: list[str] = []
        """What the code under test called critical."""
        self.dead = False
        self._unique = 0
        self._idle: list[trio.Event] = []
        self._near, self._far = SimChannel(self), SimChannel(self)
        self._far.other, self._near.other = self._near, self._far
        self._log = _Listener(self)
        self.images = Images(nursery)
        system = SimSystem(self)
        self.gateway = self.images.gateway = Gateway(
            _FUSE, self.images.handle, self.images.lane_stuck, self._on_unmount, system=system
        )

    @property
    def superseded(self) -> int:
        """How many lanes were replaced."""
        return self.gateway.superseded

    @property
    def lane(self) -> Lockstep:
        """The lane that serves the descriptor."""
        return self.lanes[-1]

    @property
    def channel(self) -> tuple[Channel, Channel]:
        return self._near, self._far

    def start(self) -> None:
        """Begin to serve.  All ends with the nursery."""
        logging.getLogger('mirrorfs').addHandler(self._log)
        self.nursery.start_soon(self._guard)
        self.nursery.start_soon(self.gateway.watch)
        self.nursery.start_soon(self._answer_names)
        self.gateway.start()

    def close(self) -> None:
        """The volumes are stopped; now the mount goes."""
        self.unmounted = self.world.rng.random() < 0.5  # else the lane learns it from the gateway
        self.gateway.close()
        self.check()
        if self.asked:
            raise Violation('defect', f'requests were never answered: {sorted(self.asked)}')
        self.kill()

    def kill(self) -> None:
        """The process is gone, with all its threads."""
        if self.dead:
            return
        self.dead = True
        for table in self.gateway.tables.values():
            counts = {'hot writes': table.writes, 'hot reads': table.reads, 'hot syncs': table.flushes}
            self.world.tally.update(counts)
        self.world.tally['lanes superseded'] += self.superseded
        logging.getLogger('mirrorfs').removeHandler(self._log)
        for thread in self.threads:
            thread.kill()
        self.threads.clear()

    async def _guard(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.kill()

    def _on_unmount(self) -> None:
        self.world.trace.append('unmounted')

    def check(self) -> None:
        """Raise Violation for what the lane, or Images, survived but nobody planned."""
        if self.complaints:
            raise Violation('defect', self.complaints[0])

    # Threads

    def begin_thread(self, name: str, run: Callable[[], None]) -> 'SimThread':
        thread = Lockstep(run, TRACED)
        self.threads.append(thread)
        if name == 'lane':
            self.lanes.append(thread)
        self.world.tally['mates'] += name == 'mate'
        kind, name = name, f'{name}{len(self.threads)}'
        self.world.trace.append(f'thread {name}')
        self.nursery.start_soon(self._drive, thread, name, self.named.get(kind))
        return SimThread(self, thread)

    async def _drive(self, thread: Lockstep, name: str, pace: Pace | None) -> None:
        while not thread.done:
            points = await (self.paces.get(thread) or pace or self.pace).turn()
            passed = thread.advance(points)
            self.world.digest = zlib.crc32(f'{name} {passed} {thread.place}'.encode(), self.world.digest)
            self.check()
            if thread.blocked is not None:
                await thread.blocked.wait()

    def wake(self) -> None:
        """Whoever waits for the descriptor looks again."""
        idle, self._idle = self._idle, []
        for event in idle:
            event.set()

    def poll(self) -> Work[None]:
        if not self.inbox and not self.unmounted:
            event = trio.Event()
            self._idle.append(event)
            yield event

    # The descriptor, from the kernel's side

    async def ask(self, opcode: int, body: bytes, node: int = NODE) -> bytes:
        """Send a request; return the body of its reply.  Raises OSError."""
        self._unique += 2
        unique = self._unique
        length = wire.IN_HEADER.size + len(body)
        header = wire.IN_HEADER.pack(length, opcode, unique, node, 0, 0, 0, 0, 0)
        asked = self.asked[unique] = Asked(opcode)
        self.world.trace.append(f'fuse > {unique} opcode {opcode}, {length} bytes')
        self.inbox.append(header + body)
        self.wake()
        await asked.done.wait()
        if asked.error:
            raise OSError(asked.error, os.strerror(asked.error))
        return asked.body

    def replied(self, message: bytes) -> None:
        """Somebody writes a reply to the descriptor."""
        if self.dead:
            return
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        asked = self.asked.pop(unique, None)
        self.world.trace.append(f'fuse < {unique} error {-error}, {length} bytes')
        if asked is None:
            raise Violation('defect', f'request {unique} was answered that nobody waits for')
        if length != len(message):
            raise Violation('defect', f'a reply of {len(message)} bytes says that it has {length}')
        asked.error, asked.body = -error, message[wire.OUT_HEADER.size :]
        asked.done.set()

    # Requests

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        flags = os.O_DSYNC if durable else 0
        for at in range(0, len(data), limits.REQUEST_MAX):
            part = bytes(data[at : at + limits.REQUEST_MAX])
            body = wire.WRITE_IN.pack(1, offset + at, len(part), 0, 0, flags, 0) + part
            reply = await self.ask(wire.FUSE_WRITE, body)
            if reply != wire.WRITE_REPLY.pack(0, 0, 0, len(part), 0)[wire.OUT_HEADER.size :]:
                raise Violation('defect', f'a write of {len(part)} bytes was answered with {reply.hex()}')

    async def read(self, offset: int, length: int) -> Buffer:
        whole = b''
        for at in range(0, length, limits.REQUEST_MAX):
            size = min(limits.REQUEST_MAX, length - at)
            whole += await self.ask(wire.FUSE_READ, wire.READ_IN.pack(1, offset + at, size, 0, 0, 0, 0))
        return whole

    async def flush(self) -> None:
        await self.ask(wire.FUSE_FSYNC, wire.FSYNC_IN.pack(1, 0, 0))

    async def discard(self, offset: int, length: int) -> None:
        mode = PUNCH_HOLE | KEEP_SIZE
        await self.ask(wire.FUSE_FALLOCATE, wire.FALLOCATE_IN.pack(1, offset, length, mode, 0))

    async def names(self) -> None:
        """Two requests that are not for bytes: one passes just through, one has its reply changed."""
        await self.ask(_GETATTR, bytes(16), node=1)
        _, flags, _ = wire.OPEN_OUT.unpack(await self.ask(wire.FUSE_OPEN, bytes(8)))
        if flags != wire.FOPEN_DIRECT_IO | wire.FOPEN_PARALLEL_DIRECT_WRITES:
            raise Violation('defect', f'the reply to an OPEN has flags {flags:#x}')

    async def _answer_names(self) -> None:
        """Answer what the lane forwards, as pyfuse3 would: slowly."""
        while True:
            message = await self._far.receive()
            for _ in range(self.world.rng.choice((0, 1, 5, 30))):
                await trio.lowlevel.checkpoint()
            _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(message)
            body = wire.OPEN_OUT.pack(1, wire.FOPEN_DIRECT_IO, 0) if opcode == wire.FUSE_OPEN else bytes(104)
            self._far.put(wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, unique) + body)


class SimChannel:
    """One end of the way to pyfuse3, with little room."""

    other: 'SimChannel'

    def __init__(self, mount: SimMount) -> None:
        self._mount = mount
        self._inbox: deque[bytes] = deque()
        self._news = trio.Event()
        self._closed = False

    def fileno(self) -> int:
        return -1

    def send(self, message: bytes | memoryview, flags: int) -> int:
        return lockstep.call(self._send(bytes(message)))

    def _send(self, message: bytes) -> Work[int]:
        yield None
        if len(self.other._inbox) >= _CHANNEL_ROOM:
            raise BlockingIOError(errno.EAGAIN, 'no room')
        self.put(message)
        return len(message)

    def put(self, message: bytes) -> None:
        self.other._inbox.append(message)
        self.other._news.set()

    def recv_into(self, buffer: memoryview) -> int:
        return lockstep.call(self._recv_into(buffer))

    def _recv_into(self, buffer: memoryview) -> Work[int]:
        while not self._inbox and not self._closed:
            self._news = trio.Event()
            yield self._news
        if self._closed:
            return 0
        message = self._inbox.popleft()
        buffer[: len(message)] = message
        return len(message)

    async def receive(self) -> bytes:
        while not self._inbox:
            self._news = trio.Event()
            await self._news.wait()
        self._mount.wake()  # there is room: as a lane finds by itself within 100 ms
        return self._inbox.popleft()

    def shutdown(self, how: int) -> None:
        self._closed = True
        self._news.set()


class SimThread:
    """A started thread, as the gateway knows it."""

    def __init__(self, mount: SimMount, thread: Lockstep) -> None:
        self._mount = mount
        self._thread = thread

    def join(self, timeout: float | None = None) -> None:
        """Let the thread go on alone until it ends, or hangs."""
        self._mount.wake()
        while not self._thread.done and self._thread.blocked is None:
            self._thread.advance(100)

    def is_alive(self) -> bool:
        return not self._thread.done


class SimQueue:
    """Hands things from one thread in lockstep to another."""

    def __init__(self) -> None:
        self._items: deque[object] = deque()
        self._news = trio.Event()

    def put(self, item: object) -> None:
        lockstep.call(self._put(item))

    def _put(self, item: object) -> Work[None]:
        self._items.append(item)
        self._news.set()
        return
        yield

    def get(self) -> object:
        return lockstep.call(self._get())

    def _get(self) -> Work[object]:
        while not self._items:
            self._news = trio.Event()
            yield self._news
        return self._items.popleft()


class SimPoller:
    def __init__(self, mount: SimMount) -> None:
        self._mount = mount

    def poll(self, timeout: float) -> object:
        return lockstep.call(self._mount.poll())

    def close(self) -> None:
        pass


class SimSystem(System):
    """The system calls of a lane.  Each is a point before it takes effect, those on legs one after, too."""

    def __init__(self, mount: SimMount) -> None:
        super().__init__()
        self._mount = mount
        self._world = mount.world
        self._looked = 0
        self.readv = lambda fd, parts: lockstep.call(self._readv(parts, lockstep.current()))
        self.write = lambda fd, data: lockstep.call(self._reply(bytes(data)))
        self.writev = lambda fd, parts: lockstep.call(self._reply(b''.join(parts)))
        self.pwrite = lambda fd, data, offset: lockstep.call(self._pwrite(fd, data, offset))
        self.preadv = lambda fd, parts, offset, flags: lockstep.call(
            self._preadv(fd, parts[0], offset, flags, lockstep.current())
        )
        self.clock = self._clock
        self.piece, self.wide, self.eager = _PIECE, _WIDE, _EAGER

    def _clock(self) -> float:
        self._looked += 1
        return self._looked * _TICK

    def poller(self, fd: int) -> Poller:
        return SimPoller(self._mount)

    def channel(self) -> tuple[Channel, Channel]:
        return self._mount.channel

    def queue(self) -> Queue:
        return SimQueue()

    def start(self, name: str, run: Callable[[], None]) -> Running:
        return lockstep.call(self._start(name, run))

    def _start(self, name: str, run: Callable[[], None]) -> Work[Running]:
        return self._mount.begin_thread(name, run)
        yield

    def _readv(self, parts: list[memoryview], thread: Lockstep) -> Work[int]:
        yield None
        mount = self._mount
        if mount.unmounted:
            raise OSError(errno.ENODEV, 'unmounted')
        if not mount.inbox:
            raise BlockingIOError(errno.EAGAIN, 'no request')
        if thread is not mount.lane:
            if thread in mount.late:
                raise Violation('defect', 'a superseded lane takes another request')
            mount.late.add(thread)  # it may have looked just before; what it read is trio's
        if self._world.odd and self._world.rng.random() < 0.02:
            raise OSError(self._world.rng.choice((errno.EINTR, errno.ENOENT)), 'next, please')
        message = mount.inbox.popleft()
        parts[0][: len(message)] = message
        self._world.checkers.request_begins(thread)
        return len(message)

    def _reply(self, message: bytes) -> Work[int]:
        yield None
        self._mount.replied(message)
        return len(message)

    def _leg(self, fd: int) -> LaneCrashLeg:
        leg = self._world.descriptors[fd]
        if leg.closed and not leg.lane_calls:
            raise Violation('defect', f'the lane uses the closed descriptor of {leg.disk.name}')
        return leg

    def _pwrite(self, fd: int, data: memoryview, offset: int) -> Work[int]:
        leg = self._leg(fd)
        disk, length = leg.disk, len(data)
        call = Call(disk.name, 'write', offset, length, False, bytes(data) == bytes(length))
        span = (offset, offset + length)
        disk.enter(span)
        try:
            try:
                yield from self._world.lane_arrives(call)
            except ShortWrite as short:
                disk.write(offset, bytes(data[: short.done]))
                return short.done
            self._leg(fd)
            disk.write(offset, bytes(data))  # only now: its buffer must not have been given to another
            yield from self._world.lane_arrives(call)
            return length
        finally:
            disk.leave(span)

    def _preadv(self, fd: int, part: memoryview, offset: int, flags: int, thread: Lockstep) -> Work[int]:
        leg = self._leg(fd)
        yield from self._world.lane_arrives(Call(leg.disk.name, 'read', offset, len(part)), thread)
        if flags & os.RWF_NOWAIT and self._world.missing and self._world.rng.random() < self._world.missing:
            raise BlockingIOError(errno.EAGAIN, 'not in the page cache')
        if offset + len(part) > leg.size:
            raise LegError(errno.EIO, 'short')
        leg.disk.refuse_bad(leg.disk.unreadable, offset, len(part))
        part[:] = leg.disk.visible.read(offset, len(part))
        self._leg(fd)
        yield None
        return len(part)


class _Listener(logging.Handler):
    """Hears what the code under test calls critical.  Warnings are part of the plan."""

    def __init__(self, mount: SimMount) -> None:
        super().__init__()
        self._mount = mount

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL:
            error = record.exc_info[1] if record.exc_info else None
            self._mount.complaints.append(f'{record.getMessage()}: {error!r}')


class LaneCheckers(Checkers):
    """What is different with a lane.

    Stable reads: no write may have been under way since the first of two reads *began* for them to have to
    agree.  A lane answers while whoever asked is not running: a write may be acknowledged between the moment
    that a read looked and the moment that its caller learns of it.

    Never stale: a lane may read a leg that has just left, if that counted at some time since its request
    began.  Nothing is written there that it could miss: writers, and who closes the leg, await the lane.
    """

    late = True

    def __init__(self, world: 'LaneWorld') -> None:
        super().__init__(world)
        self._counting: set[str] = set()
        self._since: dict[Lockstep, set[str]] = {}
        self._reader: Lockstep | None = None

    def request_begins(self, thread: Lockstep) -> None:
        self._since[thread] = self._counting | self._now()

    def lane_reads(self, thread: Lockstep | None) -> None:
        """The read that arrives next is a lane's; None: no more."""
        self._reader = thread

    def step(self, call: Call) -> None:
        self._counting = self._now()
        for names in self._since.values():
            names |= self._counting
        super().step(call)

    def _now(self) -> set[str]:
        world = self._world
        running = world.started and hasattr(world.volume, 'keeper')
        return {disk.name for disk in self.in_sync()} if running else set()

    def _current(self, call: Call, disks: list[CrashDisk]) -> None:
        if _fetches.get():
            return  # what is answered in the end is checked as all reads are
        if self._reader is None or call.disk not in self._since[self._reader]:
            super()._current(call, disks)


@dataclass
class LaneWorld(World):
    """A world whose requests go through the data lane."""

    pace: Pace | None = None
    """Of lanes and relays; a random one where none is given."""
    odd: bool = True
    """Whether calls may be interrupted."""
    missing: float = _NOT_CACHED
    """How often a read that is not to wait finds its page not in the cache."""

    def __post_init__(self) -> None:
        self.lane = True
        self.mount: SimMount | None = None
        self.descriptors: dict[int, LaneCrashLeg] = {}
        self.digest = 0
        """A number that is equal for equal schedules of threads."""
        super().__post_init__()
        self.checkers: LaneCheckers = LaneCheckers(self)

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        plain, created = await super().open(path, create_size=create_size)
        disk = cast(CrashLeg, plain).disk
        fd = _FUSE + 1 + len(self.descriptors)
        leg = LaneCrashLeg(disk, self.hook, fd, self._begin_task, sharing=self.sharing)
        disk.holder = self.descriptors[fd] = leg
        return leg, created

    def _begin_task(self, run: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(run)

    @asynccontextmanager
    async def running(self, *, force: bool = False) -> AsyncGenerator[Volume, None]:
        with lockstep.one_cpu():
            async with super().running(force=force) as volume:
                yield volume

    async def begin(self, nursery: trio.Nursery, *, force: bool = False) -> Volume:
        self.mount = SimMount(self, nursery, self.pace)
        return await super().begin(nursery, force=force)

    def _new_pool(self) -> Pool:
        pool = super()._new_pool()
        if self.mount:
            images, told = self.mount.images, pool.on_start

            def on_start(entry: Entry) -> None:
                told(entry)
                images.attach(entry, NODE)

            pool.on_start, pool.on_stop, pool.on_destroy = on_start, images.detach, images.forget
        return pool

    async def attach_lane(self, nursery: trio.Nursery) -> None:
        assert self.mount
        self.mount.start()
        self.port = self.mount

    async def stop(self) -> None:
        await super().stop()
        if self.mount:
            with trio.move_on_after(_LAST_REPLIES):
                while self.mount.asked:
                    await trio.sleep(0.001)
            self.mount.close()
            self.mount = None

    def lane_arrives(self, call: Call, reader: Lockstep | None = None) -> Work[None]:
        """A lane's call arrives, as trio's do in `hook`; raises OSError for a planned error."""
        self.checkers.lane_reads(reader)
        try:
            fault = self.arrive(call)
        finally:
            self.checkers.lane_reads(None)
        if fault and fault.what == 'slow':
            over = trio.Event()
            self._nursery.start_soon(_set_after, over, fault.seconds)
            yield over
        elif fault and fault.what == 'hang' and call.disk not in self.hung:
            self.hang(call.disk)
            self._nursery.start_soon(self._release_later, call.disk, fault.seconds)
        yield None
        while call.disk in self.hung:
            yield self.hung[call.disk]


async def _set_after(event: trio.Event, seconds: float) -> None:
    await trio.sleep(seconds)
    event.set()
