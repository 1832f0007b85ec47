"""The data lane: the bytes of volumes, straight from the FUSE descriptor.

A lane is a thread that reads requests from our own FUSE descriptor.  What the hot table of a volume allows
(`mirrorfs.hot`) it does at once; an FSYNC, and a READ of what is not in the page cache, it gives to threads
beside it (`mirrorfs.fs.syncing`, `mirrorfs.fs.fetching`); other requests for bytes of a volume it hands to
trio with their data; all the rest (names, attributes, control files) it passes whole to pyfuse3.
`mirrorfs.fs.gateway` owns lanes and has the watchdog.

A lane has a *mate*, a second thread that does its large writes when more requests are waiting: then one
thread copies from the kernel while the other copies to the legs.  Only one of the two does a request at a
time, and in the order in which they were read: while the mate has some, the lane does no more than read.

The rules that make it safe, each relied on elsewhere:

* **A ticket for each request.**  The lane puts the request at the end of `tickets`; the first of them is the
  one that is being done, and it is taken out when it is done.  Who does it looks at a hot table only while it
  is the first.  So when trio has withdrawn a permission and then finds no ticket there, or another one first,
  nothing that relied on the permission is in flight: that is `settle`.  Appending to, removing from and
  popping from a list are atomic in CPython, and whoever takes a ticket out owns the request.
* **A leg call is published first.**  Before each leg call the leg's slot is written into the ticket, and then
  looked whether the lane is superseded.  So the watchdog, which takes over the requests of a lane that stays
  in one call, and says so before it looks at the ticket, knows the one leg that may still be written to.
* **Lanes are disposable.**  A superseded lane, and its mate, touch nothing but the leg call they are in; when
  that returns it is reported and they end.  A fresh lane goes on with the descriptor meanwhile.

Cost of a hot 4 KiB write: three system calls and one for each leg after the first (read request, pwrite
per leg, write reply), no copy in Python, no lock, no allocation but the ticket and the reply.
"""

import errno
import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from mirrorfs import limits
from mirrorfs.fs import wire
from mirrorfs.fs.wire import FUSE_READ, FUSE_WRITE, WRITE_DATA
from mirrorfs.hot import NONZERO, READ, WRITE, ZEROS, HotTable
from mirrorfs.zeroes import ZEROS as _ZEROS
from mirrorfs.zeroes import all_zero

if TYPE_CHECKING:
    from mirrorfs.fs.gateway import Gateway
    from mirrorfs.fs.system import Queue, Running

log = logging.getLogger(__name__)

Ticket = list[Any]
"""[slot in a call or None, opcode, unique, node, offset, size, flags, the buffer it is in]"""
SLOT, _OPCODE, UNIQUE, NODE, _OFFSET, _SIZE, _FLAGS, _BUFFER = range(8)
BUFFER_SIZE = limits.REQUEST_MAX + limits.PAGE
_SMALL = 64 << 10
"""The data of a write up to this size stay in the lane's own buffer; a larger one keeps the buffer."""
_SAMPLED = 0x7E
"""A request whose unique number, which is even, has none of these bits is timed: one of 64."""
_FINE = 255
"""How much of a chunk was written in pieces: all of it."""
_NOT_READY = 100
"""Milliseconds after which a waiting lane looks around, whatever happens."""
GONE = (errno.ENOENT, errno.ENODEV)
"""A reply meets this when its caller was killed, or the mount is gone."""
_HEADER = wire.OUT_HEADER.size
_written = wire.WRITE_REPLY.pack
_OURS = frozenset((FUSE_READ, FUSE_WRITE, wire.FUSE_FSYNC, wire.FUSE_FALLOCATE, wire.FUSE_LSEEK))


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


def as_request(call: Ticket) -> Request:
    """Return a ticket's request as trio wants it; data of a WRITE is a view of the lane's buffer."""
    slot, opcode, unique, node, offset, size, flags, buffer = call
    request = Request(opcode, unique, node, offset, size, flags, stuck=slot)
    if opcode == FUSE_WRITE:
        request.data = buffer[WRITE_DATA : WRITE_DATA + size]
    elif opcode == wire.FUSE_FALLOCATE:
        _, request.offset, request.size, request.flags, _ = wire.FALLOCATE_IN.unpack_from(buffer, wire.BODY)
    elif opcode == wire.FUSE_LSEEK:
        _, request.offset, request.flags, _ = wire.LSEEK_IN.unpack_from(buffer, wire.BODY)
    return request


class Superseded(Exception):
    """The watchdog has taken the tickets, that of `call` among them, which this thread was doing."""

    def __init__(self, call: Ticket | None = None) -> None:
        self.call = call


class Lane:
    """Serves the descriptor, until unmounted or superseded."""

    def __init__(self, gateway: 'Gateway') -> None:
        self.gateway = gateway
        self.tickets: list[Ticket] = []
        self.superseded = False
        """Set by the watchdog, once it has taken the first of the tickets and before it takes the others."""
        self.out = memoryview(bytearray(wire.OUT_HEADER.size + limits.REQUEST_MAX))
        self.unique = 0
        """The request that is being looked at, for an answer if that goes wrong."""
        system = gateway.system
        self._pwrite, self._preadv, self._reply = system.pwrite, system.preadv, system.write
        self._piece, self._wide, self._eager = system.piece, system.wide, system.eager
        self._small = min(_SMALL, system.wide - 1)
        self._clock = system.clock
        self._poller = system.poller(gateway.fuse)
        self._jobs, self._done = system.queue(), system.queue()
        self._mate: Running | None = None
        self._lent = 0
        """Requests that the mate has."""
        self._thread: Running | None = None

    def start(self) -> None:
        self._thread = self.gateway.system.start('lane', self._run)

    def is_alive(self) -> bool:
        """Whether its thread was started and has not ended, whatever it may hang in."""
        return self._thread is not None and self._thread.is_alive()

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
                except Superseded:
                    raise
                except Exception:
                    # Whatever this is, the mount lives and its callers learn of it.
                    log.critical('unexpected error in the data lane', exc_info=True)
                    self._give_up()
        except Superseded as end:
            self._report(end)
        finally:
            self._poller.close()
            self._leave_mate()

    def _report(self, end: Superseded) -> None:
        """Have trio know that the leg call which this thread may have been in has come back."""
        if end.call:
            self.gateway.tell(self.gateway.lane_returned, end.call)

    def _give_up(self) -> None:
        """Fail the requests under way."""
        failed = {self.unique}
        while self.tickets:
            failed.add(self.tickets.pop(0)[UNIQUE])
        for unique in failed:
            self.gateway.reply(unique, errno.EIO)
        self._leave_mate()

    def _serve(self) -> None:
        gateway, fuse, tables = self.gateway, self.gateway.fuse, self.gateway.tables
        readv, clock = gateway.system.readv, gateway.system.clock
        unpack, tickets = wire.REQUEST.unpack_from, self.tickets
        small, wide = self._small, self._wide
        until: float | None = None
        buffer = gateway.fresh_buffer()
        parts = [buffer]
        held: tuple[HotTable, Ticket] | None = None
        while True:
            try:
                length = readv(fuse, parts)
            except BlockingIOError:
                if held:
                    self._go_on(held)
                    held = None
                elif until is None:
                    until = clock() + gateway.poll_seconds
                elif clock() >= until and not self._wait():
                    return
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    if held:
                        self._go_on(held)
                    gateway.tell(gateway.unmounted)
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR):  # ENOENT: its caller was killed
                    raise
                continue
            until = None
            opcode, unique, node, offset, size, flags = unpack(buffer)
            self.unique = unique
            table = tables.get(node)
            if table is None or opcode not in _OURS:
                self._forward(opcode, unique, table, buffer[:length])
                continue
            call: Ticket = [None, opcode, unique, node, offset, size, flags, buffer]
            tickets.append(call)
            if self.superseded:
                self._too_late(call)
            if opcode == FUSE_WRITE and size > small:  # which keeps the buffer
                buffer = gateway.fresh_buffer()
                parts = [buffer]
            if held:
                self._lend(held)
                held = None
            if opcode == FUSE_WRITE and size >= wide:
                held = table, call
                continue
            while self._lent:
                self._await_mate()
            self._answer(table, call)

    def _too_late(self, call: Ticket) -> None:
        """This lane was superseded while it read a request: that is trio's."""
        try:
            self.tickets.remove(call)
        except ValueError:
            pass  # the watchdog has found it
        else:
            self._hand_over(call)
        raise Superseded(call)

    # The mate

    def _go_on(self, held: tuple[HotTable, Ticket]) -> None:
        """Do a large write, as there is nothing to be read: here, unless the mate has one before it."""
        if self.tickets[:1] == [held[1]]:
            self._answer(*held)
        else:
            self._lend(held)

    def _lend(self, held: tuple[HotTable, Ticket]) -> None:
        """Have the mate do a request, after the one that it may be doing."""
        if self._mate is None:
            self._mate = self.gateway.system.start(
                'mate', functools.partial(self._help, self._jobs, self._done)
            )
        while self._lent > 1:
            self._await_mate()
        self._lent += 1
        self._jobs.put(held)

    def _await_mate(self) -> None:
        """Wait until the mate has done one of its requests."""
        self._done.get()
        self._lent -= 1
        if self.superseded:
            raise Superseded

    def _leave_mate(self) -> None:
        """Let the mate end, when it comes back from what it is in."""
        if self._mate:
            self._jobs.put(None)
        self._mate, self._lent = None, 0
        self._jobs, self._done = self.gateway.system.queue(), self.gateway.system.queue()

    def _help(self, jobs: 'Queue', done: 'Queue') -> None:
        """Be the mate."""
        while (job := jobs.get()) is not None:
            table, call = job
            try:
                self._answer(table, call)
            except Superseded as end:
                self._report(end)
            except Exception:
                log.critical('unexpected error beside the data lane', exc_info=True)
                if call in self.tickets:
                    self.tickets.remove(call)
                    self.gateway.reply(call[UNIQUE], errno.EIO)
            done.put(None)

    # One request

    def _answer(self, table: HotTable, call: Ticket) -> None:
        """Do the first of the requests, or hand it over.  Raises Superseded."""
        gateway, opcode = self.gateway, call[_OPCODE]
        began = 0.0 if call[UNIQUE] & _SAMPLED else self._clock()
        if gateway.fault is not None:
            gateway.fault(opcode)
        reply: bytes | memoryview | None = None
        if opcode == FUSE_WRITE:
            reply = self._write(table, call)
        elif opcode == FUSE_READ:
            reply = self._read(table, call)
        try:
            self.tickets.remove(call)
        except ValueError:
            raise Superseded(call) from None
        if reply is None:
            if not self._begin_beside(table, call):
                self._hand_over(call)
            return
        try:
            self._reply(gateway.fuse, reply)
        except OSError as error:
            if error.errno not in GONE:
                raise
        if began:
            (table.lane_writes if opcode == FUSE_WRITE else table.lane_reads).add(self._clock() - began)
        if opcode == FUSE_WRITE and call[_SIZE] > self._small:
            gateway.recycle(call[_BUFFER])

    def _begin_beside(self, table: HotTable, call: Ticket) -> bool:
        """Have other threads do a request; False where that is not for them."""
        if call[_OPCODE] == wire.FUSE_FSYNC:
            return self.gateway.syncing.begin(table, as_request(call))
        if call[_OPCODE] == FUSE_READ:
            return self.gateway.fetching.begin(table, as_request(call))
        return False

    def _hand_over(self, call: Ticket) -> None:
        """Give a request to trio, with its data."""
        request = as_request(call)
        if isinstance(request.data, memoryview) and request.size <= self._small:
            request.data = bytes(request.data)
        self.gateway.hand_over(request)

    def _write(self, table: HotTable, call: Ticket) -> bytes | None:
        """Write to all legs and return the reply; None where trio has to do it, from the start."""
        _, _, unique, _, offset, size, flags, buffer = call
        if not 0 < size <= table.size - offset:
            return None
        # In this order: who withdraws a permission then changes the legs, or looks what was touched, must
        # not find the lane between the two.
        targets = table.targets
        table.touched[offset >> table.shift] = 1
        data = buffer[WRITE_DATA : WRITE_DATA + size]
        if flags & os.O_DSYNC or not (
            table.allows(offset, size, WRITE)
            or (table.allows(offset, size, NONZERO) and not all_zero(data))
        ):
            return None
        step = size if size <= self._piece else self._step(table, offset, size)
        if step == size:
            done = self._write_legs(targets, call, data, offset)
        else:
            done = all(
                self._write_legs(
                    targets, call, buffer[at : min(at + step, WRITE_DATA + size)], offset + at - WRITE_DATA
                )
                for at in range(WRITE_DATA, WRITE_DATA + size, step)
            )
        if not done:
            return None
        table.unflushed += size
        if size > self._small:
            table.unstarted += size
            if table.unstarted >= self._eager:
                table.unstarted = 0
                self.gateway.syncing.write_back(table)
        table.writes += 1
        table.written_bytes += size
        return _written(24, 0, unique, size, 0)

    def _write_legs(self, targets: tuple[Any, ...], call: Ticket, data: memoryview, offset: int) -> bool:
        """Write to all legs in order; False if one fails."""
        pwrite = self._pwrite
        for fd, base, slot in targets:
            call[SLOT] = slot
            if self.superseded:
                raise Superseded(call)
            try:
                if pwrite(fd, data, base + offset) != len(data):
                    return False
            except OSError:
                return False
        call[SLOT] = None
        return True

    def _step(self, table: HotTable, offset: int, size: int) -> int:
        """Return how many bytes of a large write go to a leg in one call: see `limits.LANE_PIECE`."""
        shift, end, fine = table.shift, offset + size, table.fine
        first, last = offset >> shift, (end - 1) >> shift
        if fine.count(_FINE, first, last + 1) > last - first:
            return size
        for chunk in range(first, last + 1):
            here = min(end, (chunk + 1) << shift) - max(offset, chunk << shift)
            fine[chunk] = min(_FINE, fine[chunk] - (-here * _FINE >> shift))
        return self._piece

    def _read(self, table: HotTable, call: Ticket) -> memoryview | None:
        """Return the reply for a read of what is never written or in the page cache; None for trio's."""
        _, _, unique, _, offset, size, _, _ = call
        if not 0 < size <= min(table.size - offset, limits.REQUEST_MAX):
            return None
        reply = self.out[: _HEADER + size]
        homes = table.homes
        if homes and table.allows(offset, size, READ):
            fd, base, slot, flags, _ = homes[((offset >> table.shift) >> table.home_shift) % len(homes)]
            if size >= limits.STREAM_READ and table.stream.past_cache(offset, size):
                return None
            call[SLOT] = slot
            if self.superseded:
                raise Superseded(call)
            try:
                if self._preadv(fd, (reply[_HEADER:],), base + offset, flags) != size:
                    return None
            except OSError:
                return None
            call[SLOT] = None
        elif table.allows(offset, size, ZEROS):
            reply[_HEADER:] = _ZEROS[:size]
        else:
            return None
        wire.OUT_HEADER.pack_into(reply, 0, _HEADER + size, 0, unique)
        table.reads += 1
        table.read_bytes += size
        return reply

    def _forward(self, opcode: int, unique: int, table: HotTable | None, message: memoryview) -> None:
        """Pass a request to pyfuse3.  INTERRUPT is dropped: nothing here can be interrupted."""
        if opcode == wire.FUSE_INTERRUPT:
            return
        if opcode == FUSE_WRITE and len(message) > WRITE_DATA + limits.CONTROL_WRITE_MAX:
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

