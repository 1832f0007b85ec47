"""The data lane: the bytes of volumes, straight from the FUSE descriptor.

A lane is a thread that reads requests from our own FUSE descriptor.  What the hot table of a volume allows
(`mirrorfs.hot`) it does at once; other requests for bytes of a volume it hands to trio with their data; all
the rest (names, attributes, control files) it passes whole to pyfuse3 over a socket pair, from which a relay
thread copies the replies back.  `Gateway`, on trio's thread, owns lanes, relay and watchdog.

The rules that make it safe, each relied on elsewhere:

* **A ticket for each request.**  The lane puts the request in `ticket` before it looks at a hot table and
  takes it out when it is done.  So when trio has withdrawn a permission and then finds the ticket empty, or
  changed, nothing that relied on the permission is in flight: that is `settle`.  Appending to and popping
  from a list are atomic in CPython, and whoever pops the ticket owns the request.
* **A leg call is published first.**  Before each leg call the lane writes the leg's slot into the ticket and
  looks whether the ticket is still its own.  So the watchdog, which takes over the request of a lane that
  stays in one call, knows the one leg that the lane may still be writing to.
* **Lanes are disposable.**  A superseded lane touches nothing but the leg call it is in; when that returns
  it reports so and ends.  A fresh lane goes on with the descriptor meanwhile.

Cost of a hot 4 KiB write: three system calls and one for each leg after the first (read request, pwrite
per leg, write reply), no copy in Python, no lock, no allocation but the ticket and the reply.
"""

import errno
import functools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from mirrorfs import limits
from mirrorfs.fs import wire
from mirrorfs.hot import READ, WRITE, ZEROS, HotTable

log = logging.getLogger(__name__)

Ticket = list[Any]
"""[slot in a call or None, opcode, unique, node, offset, size, flags, the lane's buffer]"""
_SLOT, _OPCODE, _UNIQUE, _NODE, _OFFSET, _SIZE, _FLAGS, _BUFFER = range(8)
_BUFFER_SIZE = limits.REQUEST_MAX + limits.PAGE
_SMALL = 64 << 10
"""A handed-over write up to this size is copied; a larger one takes the buffer with it."""
_ZEROS = bytes(limits.REQUEST_MAX)
_NOT_READY = 100
"""Milliseconds after which a waiting lane looks around, whatever happens."""


@dataclass(slots=True)
class Request:
    """A request for bytes of a volume, handed to trio.  Offsets and sizes in bytes.

    `flags`: open flags of a READ or WRITE, mode of a FALLOCATE, whence of an LSEEK.  `stuck`: slot of the
    leg that the lane is still in a call on, if it had to be taken over; `returned` is set after that call.
    """

    opcode: int
    unique: int
    node: int
    offset: int = 0
    size: int = 0
    flags: int = 0
    data: memoryview | bytes = b''
    stuck: int | None = None
    returned: trio.Event | None = None


class Running(Protocol):
    """A thread that was started."""

    def join(self, timeout: float | None = None) -> None: ...


class Poller(Protocol):
    """Waits until a descriptor can be read."""

    def poll(self, timeout: float) -> object: ...

    def close(self) -> None: ...


class Channel(Protocol):
    """One end of the way to pyfuse3; message boundaries are kept."""

    def fileno(self) -> int: ...

    def send(self, message: bytes | memoryview, flags: int) -> int: ...

    def recv_into(self, buffer: memoryview) -> int: ...

    def shutdown(self, how: int) -> None: ...


class System:
    """System calls, clock and threads of lanes and relay; a simulation puts its own in their place.

    The calls are the os module's functions themselves: a lane binds them once and nothing is between.
    """

    def __init__(self) -> None:
        self.readv: Callable[[int, list[bytearray]], int] = os.readv
        self.write: Callable[[int, bytes | memoryview], int] = os.write
        self.writev: Callable[[int, tuple[bytes | bytearray | memoryview, ...]], int] = os.writev
        self.pwrite: Callable[[int, memoryview, int], int] = os.pwrite
        self.preadv: Callable[[int, tuple[memoryview, ...], int, int], int] = os.preadv
        self.clock: Callable[[], float] = time.perf_counter

    def poller(self, fd: int) -> Poller:
        epoll = select.epoll()
        epoll.register(fd, select.EPOLLIN)
        return epoll

    def channel(self) -> tuple[Channel, Channel]:
        """Return the two ends of the way to pyfuse3."""
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        return pair

    def start(self, name: str, run: Callable[[], None]) -> Running:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


class Lane:
    """One thread that serves the descriptor, until unmounted or superseded."""

    def __init__(self, gateway: 'Gateway') -> None:
        self.gateway = gateway
        self.ticket: list[Ticket] = []
        self.buffer = bytearray(_BUFFER_SIZE)
        self.out = memoryview(bytearray(wire.OUT_HEADER.size + limits.REQUEST_MAX))
        self.unique = 0
        """The request that is being looked at, for an answer if that goes wrong."""
        self._pwrite, self._preadv = gateway.system.pwrite, gateway.system.preadv
        self._poller = gateway.system.poller(gateway.fuse)
        self._thread: Running | None = None

    def start(self) -> None:
        self._thread = self.gateway.system.start('lane', self._run)

    def join(self, seconds: float) -> None:
        """Wait until the lane has ended, or it becomes clear that it hangs."""
        if self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._serve()
                    return
                except _Superseded:
                    raise
                except Exception:
                    # Whatever this is, the mount lives and this caller learns of it.
                    log.critical('unexpected error in the data lane', exc_info=True)
                    self.ticket.clear()
                    self.gateway.reply(self.unique, errno.EIO)
        except _Superseded as end:
            self.gateway.tell(self.gateway.lane_returned, end.ticket)
        finally:
            self._poller.close()

    def _serve(self) -> None:
        gateway, ticket = self.gateway, self.ticket
        fuse, tables = gateway.fuse, gateway.tables
        system = gateway.system
        readv, write, clock = system.readv, system.write, system.clock
        unpack_header = wire.IN_HEADER.unpack_from
        unpack_rw = wire.WRITE_IN.unpack_from
        pack_written = wire.WRITE_REPLY.pack
        buffer = self.buffer
        view, parts = memoryview(buffer), [buffer]
        until = 0.0
        while True:
            try:
                length = readv(fuse, parts)
            except BlockingIOError:
                if clock() >= until and not self._wait():
                    return
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    gateway.tell(gateway.unmounted)
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR):  # ENOENT: its caller was killed
                    raise
                continue
            until = clock() + gateway.poll_seconds
            _, opcode, unique, node, *_ = unpack_header(buffer)
            self.unique = unique
            table = tables.get(node)
            if table is None or opcode not in _OURS:
                self._forward(opcode, unique, table, view[:length])
                continue
            _, offset, size, _, _, flags, _ = unpack_rw(buffer, wire.BODY)
            call: Ticket = [None, opcode, unique, node, offset, size, flags, buffer]
            ticket.append(call)
            if gateway.fault is not None:
                gateway.fault(opcode)
            reply: bytes | memoryview | None = None
            if 0 < size <= table.size - offset:
                if opcode == wire.FUSE_WRITE:
                    # In this order: who withdraws a permission then changes the legs, or looks what was
                    # touched, must not find the lane between the two.
                    targets = table.targets
                    table.touched[offset >> table.shift] = 1
                    if not flags & os.O_DSYNC and _allowed(table, offset, size, WRITE):
                        data = view[wire.WRITE_DATA : wire.WRITE_DATA + size]
                        if self._write(table, targets, call, data):
                            reply = pack_written(24, 0, unique, size, 0)
                elif opcode == wire.FUSE_READ and size <= limits.REQUEST_MAX:
                    reply = self._read(table, call)
            try:
                ticket.pop()
            except IndexError:
                raise _Superseded(call) from None
            if reply is not None:
                try:
                    write(fuse, reply)
                except OSError as error:
                    if error.errno not in _GONE:
                        raise
                continue
            request = as_request(call)
            if isinstance(request.data, memoryview):
                if size <= _SMALL:
                    request.data = bytes(request.data)
                else:  # the buffer goes with the request
                    buffer = self.buffer = gateway.fresh_buffer()
                    view, parts = memoryview(buffer), [buffer]
            gateway.tell(gateway.handle, request)

    def _write(self, table: HotTable, targets: tuple[Any, ...], call: Ticket, data: memoryview) -> bool:
        """Write to all legs in order; False if one fails, which trio then deals with from the start."""
        offset, size, pwrite = call[_OFFSET], call[_SIZE], self._pwrite
        for fd, base, slot in targets:
            call[_SLOT] = slot
            if not self.ticket:
                raise _Superseded(call)
            try:
                if pwrite(fd, data, base + offset) != size:
                    return False
            except OSError:
                return False
        call[_SLOT] = None
        table.unflushed += size
        table.writes += 1
        table.written_bytes += size
        return True

    def _read(self, table: HotTable, call: Ticket) -> memoryview | None:
        """Return the reply for a read of what is never written or in the page cache; None for trio's."""
        offset, size = call[_OFFSET], call[_SIZE]
        reply = self.out[: wire.OUT_HEADER.size + size]
        homes = table.homes
        if homes and _allowed(table, offset, size, READ):
            fd, base, slot, flags = homes[((offset >> table.shift) >> table.home_shift) % len(homes)]
            call[_SLOT] = slot
            if not self.ticket:
                raise _Superseded(call)
            try:
                if self._preadv(fd, (reply[wire.OUT_HEADER.size :],), base + offset, flags) != size:
                    return None
            except OSError:
                return None
            call[_SLOT] = None
        elif _allowed(table, offset, size, ZEROS):
            reply[wire.OUT_HEADER.size :] = _ZEROS[:size]
        else:
            return None
        wire.OUT_HEADER.pack_into(reply, 0, len(reply), 0, call[_UNIQUE])
        table.reads += 1
        table.read_bytes += size
        return reply

    def _forward(self, opcode: int, unique: int, table: HotTable | None, message: memoryview) -> None:
        """Pass a request to pyfuse3.  INTERRUPT is dropped: nothing here can be interrupted."""
        if opcode == wire.FUSE_INTERRUPT:
            return
        if opcode == wire.FUSE_WRITE and len(message) > wire.WRITE_DATA + limits.CONTROL_WRITE_MAX:
            # Cut down to what is just too long: it is refused there, with an event, and fits the socket.
            message = wire.shorten_write(message, limits.CONTROL_WRITE_MAX + 1)
        if opcode == wire.FUSE_INIT:
            self.gateway.init_unique = unique
            self.gateway.tuning[unique] = self.gateway.tune_init
        elif opcode == wire.FUSE_OPEN and table is not None:
            self.gateway.tuning[unique] = wire.tune_open
        self.gateway.forward(message)

    def _wait(self) -> bool:
        """Sleep until there is a request; return False if this lane is no longer wanted."""
        self.gateway.flush_backlog()
        self._poller.poll(_NOT_READY / 1000)
        return self.gateway.lane is self


class _Superseded(Exception):
    """The watchdog has taken the ticket."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket


def as_request(call: Ticket) -> Request:
    """Return a ticket's request as trio wants it; data of a WRITE is a view of the lane's buffer."""
    slot, opcode, unique, node, offset, size, flags, buffer = call
    request = Request(opcode, unique, node, offset, size, flags, stuck=slot)
    if opcode == wire.FUSE_WRITE:
        request.data = memoryview(buffer)[wire.WRITE_DATA : wire.WRITE_DATA + size]
    elif opcode == wire.FUSE_FALLOCATE:
        _, request.offset, request.size, request.flags, _ = wire.FALLOCATE_IN.unpack_from(buffer, wire.BODY)
    elif opcode == wire.FUSE_LSEEK:
        _, request.offset, request.flags, _ = wire.LSEEK_IN.unpack_from(buffer, wire.BODY)
    return request


_GONE = (errno.ENOENT, errno.ENODEV)
"""A reply meets this when its caller was killed, or the mount is gone."""
_OURS = frozenset((wire.FUSE_READ, wire.FUSE_WRITE, wire.FUSE_FSYNC, wire.FUSE_FALLOCATE, wire.FUSE_LSEEK))


def _allowed(table: HotTable, offset: int, size: int, permission: int) -> bool:
    """Whether all chunks of a range within the volume have a permission, and one home for reading."""
    shift = table.shift
    first, last = offset >> shift, (offset + size - 1) >> shift
    if first == last:
        return table.flags[first] & permission != 0
    if permission == READ and first >> table.home_shift != last >> table.home_shift:
        return False
    if permission == WRITE:
        table.touched[first : last + 1] = b'\1' * (last + 1 - first)
    return all(flag & permission for flag in table.flags[first : last + 1])


Taken = Callable[[int, int, trio.Event], None]
"""Told that a lane is stuck on a volume's leg: (node, slot, event set when its call returns)."""


class Gateway:
    """The FUSE descriptor and all that serves it.  On trio's thread, but for what lanes call."""

    def __init__(
        self,
        fuse: int,
        handle: Callable[[Request], None],
        taken: Taken,
        on_unmount: Callable[[], None],
        *,
        poll_seconds: float = limits.LANE_POLL,
        stuck_seconds: float = limits.LANE_STUCK,
        cached: bool = False,
        system: System | None = None,
    ) -> None:
        self.fuse = fuse
        self.system = system or System()
        self.tables: dict[int, HotTable] = {}
        """Node number (inode) of each served image to its hot table."""
        self.tuning: dict[int, Callable[[memoryview], None]] = {}
        """Unique numbers of requests whose replies are changed in passing."""
        self.tune_init = functools.partial(
            wire.tune_init, max_background=limits.MAX_BACKGROUND, cached=cached
        )
        self.poll_seconds = poll_seconds
        self.fault: Callable[[int], None] | None = None
        """Test hook: called by the lane for each request for bytes."""
        self.superseded = 0
        self.initialised = trio.Event()
        """Set once the kernel has the reply to INIT: from then on it sends us requests."""
        self.init_unique: int | None = None
        self.handle = handle
        self._taken = taken
        self._on_unmount = on_unmount
        self._stuck_seconds = stuck_seconds
        self._token = trio.lowlevel.current_trio_token()
        self._returned: dict[int, trio.Event] = {}
        self._backlog: deque[bytes] = deque()
        self._buffers: list[bytearray] = []
        self._near, self.far = self.system.channel()
        self.lane = Lane(self)

    def start(self) -> None:
        """Begin to serve."""
        self.lane.start()
        self.system.start('relay', self._relay)

    def close(self) -> None:
        """Stop: the lane ends once it is idle, the relay at once; pyfuse3 sees the end of its requests.

        The descriptor stays open: a lane that hangs may still use its number.
        """
        last, self.lane = self.lane, Lane(self)
        self._near.shutdown(socket.SHUT_RDWR)
        last.join(1)

    # Called by lanes and the relay

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have trio call a function; nothing if trio has ended."""
        try:
            self._token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            pass

    def forward(self, message: memoryview) -> None:
        """Send a request to pyfuse3, or keep it until there is room."""
        self.flush_backlog()
        if self._backlog:
            self._backlog.append(bytes(message))
            return
        try:
            self._near.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._backlog.append(bytes(message))
        except OSError:
            pass  # pyfuse3 has ended: the unmount is under way

    def flush_backlog(self) -> None:
        """Send what waits for room.  Its length is bounded by the kernel's requests in flight."""
        while self._backlog:
            try:
                self._near.send(self._backlog[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._backlog.clear()
                return
            self._backlog.popleft()

    def fresh_buffer(self) -> bytearray:
        """Return a request buffer that nobody uses."""
        try:
            return self._buffers.pop()
        except IndexError:
            return bytearray(_BUFFER_SIZE)

    def give_back(self, request: Request) -> None:
        """Take back the buffer of a handed-over write; not one that a stuck lane may still be using."""
        whole = request.data.obj if isinstance(request.data, memoryview) else None
        if isinstance(whole, bytearray) and request.returned is None and len(self._buffers) < 16:
            self._buffers.append(whole)

    def reply(self, unique: int, error: int, body: bytes | bytearray | memoryview = b'') -> None:
        """Answer a request: a body, or an errno.  From any thread."""
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), -error, unique)
        try:
            self.system.writev(self.fuse, (header, body))
        except OSError as failure:
            if failure.errno not in _GONE:
                raise

    def _relay(self) -> None:
        """Copy pyfuse3's replies to the kernel."""
        buffer = memoryview(bytearray(2 << 20))
        while True:
            length = self._near.recv_into(buffer)
            if not length:
                return
            reply = buffer[:length]
            unique = wire.OUT_HEADER.unpack_from(reply)[2]
            tune = self.tuning.pop(unique, None)
            if tune and length >= 32:
                tune(reply)
            try:
                self.system.write(self.fuse, reply)
            except OSError as error:
                if error.errno not in _GONE:
                    log.error('reply to request %d refused: %s', unique, error)
            if unique == self.init_unique:
                self.tell(self.initialised.set)

    # On trio's thread

    def attach(self, node: int, table: HotTable) -> None:
        """Serve an image by its hot table."""

        async def settle() -> None:
            await self._settle(node)

        table.settle = settle
        self.tables[node] = table

    def detach(self, node: int) -> None:
        """No longer serve an image: its requests go to pyfuse3, which answers that it is gone."""
        self.tables.pop(node, None)

    async def _settle(self, node: int) -> None:
        """Return when the lane does nothing for a volume that it began before this call.

        A leg call of a superseded lane may still be under way; see `Request.stuck`.
        """
        lane = self.lane
        call = _current(lane)
        while call is not None and call[_NODE] == node and _current(lane) is call:
            await trio.sleep(0.0002)

    def unmounted(self) -> None:
        self._on_unmount()

    async def watch(self) -> None:
        """Replace lanes that are stuck, for ever."""
        seen, since = None, 0.0
        while True:
            await trio.sleep(self._stuck_seconds / 4)
            call = _current(self.lane)
            now = trio.current_time()
            if call is None or call is not seen:
                seen, since = call, now
            elif now - since >= self._stuck_seconds:
                self._supersede()

    def _supersede(self) -> None:
        """Take the request of a stuck lane and let a fresh lane go on."""
        try:
            call = self.lane.ticket.pop()
        except IndexError:
            return  # it came through just now
        self.superseded += 1
        request = as_request(call)
        slot, node = request.stuck, request.node
        returned = self._returned[request.unique] = request.returned = trio.Event()
        log.warning('the data lane was stuck on leg %s of node %d; a fresh one goes on', slot, node)
        if slot is not None:
            self._taken(node, slot, returned)
        self.lane = Lane(self)
        self.lane.start()
        self.handle(request)

    def lane_returned(self, call: Ticket) -> None:
        """The leg call of a superseded lane has come back."""
        self._returned.pop(call[_UNIQUE]).set()


def _current(lane: Lane) -> Ticket | None:
    """Return the request that a lane is at."""
    try:
        return lane.ticket[0]
    except IndexError:
        return None
