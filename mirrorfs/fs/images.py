"""Images: which node is which volume, and requests for bytes that the lane handed over.

A request becomes a task; whatever happens in it, it is answered once.  `drained` is when none is left.
"""

import errno
import logging
import os

import trio

from mirrorfs.errors import Refused
from mirrorfs.fs import wire
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.lane import Request
from mirrorfs.fs.pagecache import PageCaches
from mirrorfs.leg.file import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from mirrorfs.pool import Entry

log = logging.getLogger(__name__)
_OPERATIONS = {
    wire.FUSE_READ: 'read',
    wire.FUSE_WRITE: 'write',
    wire.FUSE_FSYNC: 'flush',
    wire.FUSE_FALLOCATE: 'discard',
}


class Images:
    """Serves handed-over requests.  On trio's thread."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.gateway: Gateway
        self.caches: PageCaches | None = None
        """The kernel's pages of images, if it keeps any."""
        self.in_flight = 0
        self._nodes: dict[int, Entry] = {}
        self._numbers: dict[str, int] = {}

    def attach(self, entry: Entry, node: int) -> None:
        """Serve a started volume at a node number."""
        assert entry.started
        self._nodes[node] = entry
        self._numbers[entry.name] = node
        if self.caches:
            self.caches.attach(node, entry.started.volume)
        self.gateway.attach(node, entry.started.volume.hot)

    def detach(self, entry: Entry) -> None:
        """The volume stops: its requests are refused from now on."""
        node = self._numbers.get(entry.name)
        if node is not None and entry.started:
            hot = entry.started.volume.hot
            hot.withdraw(0, len(hot.flags) - 1)

    def forget(self, name: str) -> None:
        """The volume is gone for good."""
        node = self._numbers.pop(name, None)
        if node is not None:
            self._nodes.pop(node, None)
            self.gateway.detach(node)
            if self.caches:
                self.caches.forget(node)

    def handle(self, request: Request) -> None:
        """Begin to serve a request."""
        self.in_flight += 1
        self._nursery.start_soon(self._answer, request)

    def lane_stuck(self, node: int, slot: int, returned: trio.Event) -> None:
        """See `mirrorfs.fs.gateway.Taken`."""
        entry = self._nodes.get(node)
        if entry and entry.started:
            # Known before any other task runs, and before the fresh lane begins.
            self._nursery.start_soon(entry.started.volume.gate.lane_stuck(slot, returned))

    async def _answer(self, request: Request) -> None:
        error, body = errno.EIO, b''
        began = trio.current_time()
        try:
            body = await self._serve(request)
            error = 0
        except Refused as refusal:
            error = refusal.errno
        except OSError as failure:
            error = failure.errno or errno.EIO
        except Exception:
            log.critical('unexpected error in a request for bytes', exc_info=True)
        finally:
            self.in_flight -= 1
            if error:
                self._doubt(request)
            self._count(request, trio.current_time() - began, failed=error != 0)
            self.gateway.reply(request.unique, error, body)
            self.gateway.give_back(request)

    def _doubt(self, request: Request) -> None:
        """A request has failed: one that changes bytes may be done in part, which the kernel cannot know."""
        entry = self._nodes.get(request.node)
        if entry and entry.started and request.opcode in (wire.FUSE_WRITE, wire.FUSE_FALLOCATE):
            entry.started.volume.cache.changed(request.offset, request.size)

    def _count(self, request: Request, seconds: float, *, failed: bool) -> None:
        """Note how long a request took; background copying yields by what reads and writes take."""
        entry = self._nodes.get(request.node)
        operation = _OPERATIONS.get(request.opcode)
        if not operation or not entry or not entry.started:
            return
        counters = entry.started.volume.counters
        counters.seconds[operation].add(seconds)
        counters.errors[operation] += failed
        if operation in ('read', 'write'):
            counters.waited += seconds
            counters.waits += 1

    async def _serve(self, request: Request) -> bytes:
        """Return the body of the reply.  Raises Refused or OSError."""
        entry = self._nodes.get(request.node)
        if entry is None:
            raise Refused(errno.ENOENT, 'this volume is gone')
        volume = entry.require()[0].volume
        match request.opcode:
            case wire.FUSE_READ:
                return bytes(await volume.read(request.offset, request.size))
            case wire.FUSE_WRITE:
                durable = bool(request.flags & os.O_DSYNC)
                await volume.write(request.offset, request.data, durable=durable)
                if self.caches and (cache := self.caches.of(request.node)):
                    await cache.written(request.offset, request.size)
                return wire.WRITE_REPLY.pack(0, 0, 0, request.size, 0)[wire.OUT_HEADER.size :]
            case wire.FUSE_FSYNC:
                await volume.flush()
                return b''
            case wire.FUSE_FALLOCATE:
                await self._fallocate(entry, request)
                return b''
            case wire.FUSE_LSEEK:
                if request.flags not in (os.SEEK_DATA, os.SEEK_HOLE):
                    raise Refused(errno.EINVAL, f'whence {request.flags}')
                at = volume.seek(request.offset, data=request.flags == os.SEEK_DATA)
                return wire.LSEEK_OUT.pack(at)
        raise Refused(errno.ENOSYS, f'opcode {request.opcode}')

    async def _fallocate(self, entry: Entry, request: Request) -> None:
        volume = entry.require()[0].volume
        if not request.size:
            raise Refused(errno.EINVAL, 'an empty range')
        match request.flags:
            case mode if mode in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE):
                await volume.discard(request.offset, request.size)
            case mode if mode == ZERO_RANGE and request.offset + request.size <= volume.record.size:
                await volume.discard(request.offset, request.size)
            case mode if mode in (0, KEEP_SIZE):
                await volume.allocate(request.offset, request.size)
            case _:
                raise Refused(errno.EOPNOTSUPP, f'fallocate mode {request.flags:#x}')
