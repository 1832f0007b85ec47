"""What is below the data lane: system calls, clock and threads.  A simulation puts its own in their place."""

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from mirrorfs import limits


class Running(Protocol):
    """A thread that was started."""

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


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


class Queue(Protocol):
    """Hands things from one thread to another, in order."""

    def put(self, item: Any) -> None: ...

    def get(self) -> Any: ...


class System:
    """The real ones.  The calls are the os module's functions themselves: nothing is between."""

    def __init__(self) -> None:
        self.readv: Callable[[int, list[memoryview]], int] = os.readv
        self.write: Callable[[int, bytes | memoryview], int] = os.write
        self.writev: Callable[[int, tuple[bytes | bytearray | memoryview, ...]], int] = os.writev
        self.pwrite: Callable[[int, memoryview, int], int] = os.pwrite
        self.preadv: Callable[[int, tuple[memoryview, ...], int, int], int] = os.preadv
        self.clock: Callable[[], float] = time.perf_counter
        self.piece, self.wide, self.eager = limits.LANE_PIECE, limits.LANE_WIDE, limits.EAGER_BYTES

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

    def queue(self) -> Queue:
        return SimpleQueue()

    def start(self, name: str, run: Callable[[], None]) -> Running:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread
