"""The FUSE descriptor and all that serves it: the lane (`mirrorfs.fs.lane`), the relay, the watchdog.

Requests that are not for bytes of a volume go to pyfuse3 over a socket pair, from which the relay, a thread,
copies the replies back.  All the rest here is on trio's thread, but for what lanes call.
"""

import functools
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from mirrorfs import limits
from mirrorfs.fs import wire
from mirrorfs.fs.fetching import Fetching
from mirrorfs.fs.lane import BUFFER_SIZE, GONE, NODE, UNIQUE, Lane, Request, Ticket, as_request
from mirrorfs.fs.syncing import Syncing
from mirrorfs.fs.system import System
from mirrorfs.hot import HotTable

log = logging.getLogger(__name__)

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
        """By unique number of a request that was taken over: set when the leg call for it has come back."""
        self._backlog: deque[bytes] = deque()
        self._buffers: list[memoryview] = []
        self._near, self.far = self.system.channel()
        self.syncing = Syncing(self.system, self.reply, self.hand_over)
        self.fetching = Fetching(self.system, self.reply, self.hand_over)
        self.lane = Lane(self)

    def start(self) -> None:
        """Begin to serve."""
        self.lane.start()
        self.system.start('relay', self._relay)

    def is_serving(self) -> bool:
        """Whether somebody takes requests; see `watch` for one that hangs."""
        return self.lane.is_alive()

    def close(self) -> None:
        """Stop: the lane ends once it is idle, the relay at once; pyfuse3 sees the end of its requests.

        The descriptor stays open: a lane that hangs may still use its number.
        """
        last, self.lane = self.lane, Lane(self)
        self._near.shutdown(socket.SHUT_RDWR)
        last.join(1)
        self.syncing.close()
        self.fetching.close()

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

    def hand_over(self, request: Request) -> None:
        """Give a request to trio."""
        self.tell(self.handle, request)

    def fresh_buffer(self) -> memoryview:
        """Return a request buffer that nobody uses."""
        try:
            return self._buffers.pop()
        except IndexError:
            return memoryview(bytearray(BUFFER_SIZE))

    def recycle(self, buffer: memoryview) -> None:
        """Take back a buffer that nobody uses any more."""
        if len(self._buffers) < limits.REQUEST_BUFFERS:
            self._buffers.append(buffer)

    def give_back(self, request: Request) -> None:
        """Take back the buffer of a handed-over write; not one that a stuck lane may still be using."""
        whole = request.data.obj if isinstance(request.data, memoryview) else None
        if isinstance(whole, bytearray) and request.returned is None:
            self.recycle(memoryview(whole))

    def reply(self, unique: int, error: int, body: bytes | bytearray | memoryview = b'') -> None:
        """Answer a request: a body, or an errno.  From any thread."""
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), -error, unique)
        try:
            self.system.writev(self.fuse, (header, body))
        except OSError as failure:
            if failure.errno not in GONE:
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
                if error.errno not in GONE:
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
        while call is not None and call[NODE] == node and _current(lane) is call:
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
                self._supersede(call)
            for beside in (self.syncing, self.fetching):
                for request in beside.late(now - self._stuck_seconds, now):
                    self.handle(request)

    def _supersede(self, stuck: Ticket) -> None:
        """Take the requests of a lane that is stuck in one of them, and let a fresh lane go on."""
        lane = self.lane
        try:
            lane.tickets.remove(stuck)
        except ValueError:
            return  # it came through just now
        lane.superseded = True  # before the slot is looked at, and the others are taken: see there
        self.superseded += 1
        requests = [self._take_over(stuck)]
        while lane.tickets:
            try:
                requests.append(self._take_over(lane.tickets.pop(0)))
            except IndexError:
                break
        log.warning('the data lane was stuck on leg %s of node %d', requests[0].stuck, requests[0].node)
        self.lane = Lane(self)
        self.lane.start()
        for request in requests:
            self.handle(request)

    def _take_over(self, call: Ticket) -> Request:
        request = as_request(call)
        request.returned = self._returned[request.unique] = trio.Event()
        if request.stuck is not None:
            self._taken(request.node, request.stuck, request.returned)
        return request

    def lane_returned(self, call: Ticket) -> None:
        """Whatever a superseded lane was in for a request has come back."""
        returned = self._returned.pop(call[UNIQUE], None)
        if returned is not None:
            returned.set()


def _current(lane: Lane) -> Ticket | None:
    """Return the request that a lane is at."""
    try:
        return lane.tickets[0]
    except IndexError:
        return None
