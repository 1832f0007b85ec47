"""The kernel's page cache of images (mount option `cache=auto`), and how it is kept true.

Opens for reading alone go through it, those that may write past it.  So a page is never dirty, and never
filled by a write whose request is still under way: dropping such a page would let a reader put the old bytes
back for good.  All that changes bytes is followed by FUSE_NOTIFY_INVAL_INODE, with which the kernel drops
pages: after a write, before it is answered; after a repair, or where other legs are read now, soon.  (It
drops all by itself when it learns of another size.)  While pages may be there, all writes take the slow path,
since the lane tells nobody.

The kernel's call waits, where no signal reaches it, for reads of these pages that are under way: for answers
of ours.  A thread of the daemon in such a wait could not be killed, and the mount would hang with it; so a
process of its own makes the calls.  It has nothing open but the FUSE descriptor; when the daemon is gone
while a call waits, it aborts the connection, and all who wait get an error.
"""

import errno
import logging
import os
import signal
import socket
import threading
import time

import trio

from mirrorfs.fs import mounting, wire
from mirrorfs.volume.volume import Volume

log = logging.getLogger(__name__)
_NODE_BYTES = 8
_RETRY = 0.1
"""Seconds after which a call is made again for which the kernel had no memory, say."""


class ImageCache:
    """The pages of one image; see `mirrorfs.volume.cached.Cache`.

    One call is under way at a time.  What changes meanwhile waits as one range that has it all: to drop more
    than has changed costs but a read.
    """

    def __init__(self, node: int, volume: Volume, caches: 'PageCaches') -> None:
        self.node = node
        self.kept = False
        self._volume = volume
        self._caches = caches
        self._readers = self._opens = 0
        """Opens that go through the cache: those there are now, and all there ever were."""
        self._opening = trio.Lock()
        self._waiting: tuple[int, int] | None = None
        self._under_way: tuple[int, int] | None = None
        self._asked = self._taken = self._done = 0
        """How many changes there were, how many of them were passed on, and how many are dropped."""
        self._dropped = trio.Event()

    # Who uses it

    async def open(self) -> None:
        """Somebody is about to read through the cache: there are no old pages, and no new ones grow old."""
        self._readers += 1
        self._opens += 1
        async with self._opening:
            if not self.kept:
                self.kept = True
                self._volume.hot.withdraw_writes()
                await self._volume.hot.settle()
                # Private maps of what is open for writing have left pages that nobody dropped.
                self.changed(0, self._volume.record.size)
                await self.settled()

    def close(self) -> None:
        """A reader has gone.  The pages stay, for the next one, until somebody writes."""
        self._readers -= 1

    async def written(self, offset: int, length: int) -> None:
        """A write is done, and to be answered: nobody reads what was there before.

        Where nobody reads, all pages go, so that the lane may write again.
        """
        if not self.kept:
            return
        opens = self._opens
        if self._readers:
            self.changed(offset, length)
        else:
            self.changed(0, self._volume.record.size)
        await self.settled()
        if not self._readers and opens == self._opens:
            self.kept = False
            self._volume.gate.offer_all()

    # What is dropped

    def changed(self, offset: int, length: int) -> None:
        """Have a range dropped, soon."""
        if not self.kept:
            return
        start, end = offset, offset + length
        if self._waiting:
            start, end = min(start, self._waiting[0]), max(end, self._waiting[1])
        self._waiting = (start, end)
        self._asked += 1
        self._caches.wake(self)

    async def settled(self) -> None:
        """Return when all is dropped that had changed by now."""
        asked = self._asked
        while self._done < asked:
            await self._dropped.wait()

    def take(self) -> bytes:
        """Return what is to be told to the kernel next; empty if nothing is, or a call is under way."""
        if self._under_way or not self._waiting:
            return b''
        self._under_way, self._waiting = self._waiting, None
        self._taken = self._asked
        start, end = self._under_way
        return wire.INVAL_INODE_OUT.pack(self.node, start, end - start)

    def dropped(self) -> None:
        """The call has returned."""
        self._under_way, self._done = None, self._taken
        self._dropped.set()
        self._dropped = trio.Event()
        self._caches.wake(self)

    def end(self) -> None:
        """The image is gone; nobody is to wait any more."""
        self.kept = False
        self._done = self._asked
        self._dropped.set()

    def again(self) -> None:
        """Nobody knows whether the call under way was made."""
        if self._under_way:
            start, end = self._under_way
            self._under_way = None
            if self._waiting:
                start, end = min(start, self._waiting[0]), max(end, self._waiting[1])
            self._waiting = (start, end)
            self._caches.wake(self)


class PageCaches:
    """The page caches of all images of a mount.  On trio's thread; `run` must be running."""

    def __init__(self, fuse: int, mount: mounting.Mount) -> None:
        self._fuse = fuse
        self._mount = mount
        self._images: dict[int, ImageCache] = {}
        self._ready: dict[int, ImageCache] = {}
        self._wake = trio.Event()

    def attach(self, node: int, volume: Volume) -> None:
        """Have a volume tell us what changes of the image with that node number."""
        volume.cache = self._images[node] = ImageCache(node, volume, self)

    def of(self, node: int) -> ImageCache | None:
        """Return the cache of an image that is served."""
        return self._images.get(node)

    def forget(self, node: int) -> None:
        """The image is gone; its number is never used again."""
        if image := self._images.pop(node, None):
            image.end()

    def wake(self, image: ImageCache) -> None:
        """Something may have to be dropped."""
        self._ready[image.node] = image
        self._wake.set()

    async def run(self) -> None:
        """Have things dropped for ever, by a new helper where one has died."""
        while True:
            try:
                helper = Helper(self._fuse, self._mount)
            except OSError as error:
                log.error('no process to drop cached pages: %s', error.strerror)
                await trio.sleep(_RETRY)
                continue
            with helper.socket:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell, helper.socket)
                    await self._listen(helper.socket)
                    nursery.cancel_scope.cancel()
            log.error('the process that drops cached pages has died; another one goes on')
            await trio.to_thread.run_sync(os.waitpid, helper.pid, 0, abandon_on_cancel=True)
            for image in list(self._images.values()):
                image.again()

    async def _tell(self, helper: trio.socket.SocketType) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._ready:
                _, image = self._ready.popitem()
                if message := image.take():
                    try:
                        await helper.send(message)
                    except OSError:
                        return  # it has died, as `_listen` sees

    async def _listen(self, helper: trio.socket.SocketType) -> None:
        """Take note of calls that have returned, until the helper dies."""
        while True:
            try:
                node = await helper.recv(_NODE_BYTES)
            except ConnectionResetError:
                return
            if not node:
                return
            if image := self._images.get(int.from_bytes(node, 'little')):
                image.dropped()


class Helper:
    """The process that makes the calls; `socket` takes them, and says the nodes of those that are back."""

    def __init__(self, fuse: int, mount: mounting.Mount) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _help(fuse, theirs, mount)
            finally:
                os._exit(0)
        theirs.close()
        self.socket = trio.socket.from_stdlib_socket(ours)


def _help(fuse: int, daemon: socket.socket, mount: mounting.Mount) -> None:
    """Make calls until the daemon is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends when the daemon has
    signal.set_wakeup_fd(-1)
    os.chdir('/')
    _close_all_but(fuse, daemon.fileno())
    crew = _Crew(fuse, daemon)
    crew.gone.wait()
    if crew.busy:
        mounting.abort(mount)


class _Crew:
    """Threads that make calls until the daemon is gone; one of them always waits for the next message.

    There are never more than images, and one: an image has one call under way.
    """

    def __init__(self, fuse: int, daemon: socket.socket) -> None:
        self.gone = threading.Event()
        self.busy = 0
        self._idle = 0
        self._fuse = fuse
        self._daemon = daemon
        self._lock, self._listening = threading.Lock(), threading.Lock()
        self._add_one()

    def _add_one(self) -> None:
        self._idle += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while message := self._next():
            _drop(self._fuse, self._daemon, message)
            with self._lock:
                self.busy -= 1
                self._idle += 1
        self.gone.set()

    def _next(self) -> bytes:
        """Return the next message; when there is none any more, `busy` counts all who had one."""
        with self._listening:
            if message := _receive(self._daemon):
                with self._lock:
                    self.busy += 1
                    self._idle -= 1
                    if not self._idle:
                        self._add_one()
            return message


def _receive(daemon: socket.socket) -> bytes:
    """Return the next message; empty when the daemon is gone."""
    try:
        return daemon.recv(wire.INVAL_INODE_OUT.size)
    except ConnectionResetError:
        return b''


def _drop(fuse: int, daemon: socket.socket, message: bytes) -> None:
    """Make one call and say so."""
    header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(message), wire.NOTIFY_INVAL_INODE, 0)
    while True:
        try:
            os.writev(fuse, (header, message))
            break
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                break  # the kernel has nothing of this image
            time.sleep(_RETRY)
    try:
        daemon.send(message[:_NODE_BYTES])
    except OSError:
        pass  # it is gone, as `_help` sees


def _close_all_but(*kept: int) -> None:
    """Keep but some descriptors open, and have the standard ones lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf('SC_OPEN_MAX'))
