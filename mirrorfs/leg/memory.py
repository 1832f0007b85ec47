"""Memory at a page's start, as direct I/O wants it, that is used again and again."""

import mmap


class Buffers:
    """Hands out memory and takes it back: fresh memory costs more than what is done in it.  From any thread.

    Each piece has `size` bytes; up to `kept` that nobody uses are kept.  One that a call which was given up
    may still be using is not given back.
    """

    def __init__(self, size: int, kept: int) -> None:
        self._size = size
        self._kept = kept
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, self._size)

    def give_back(self, buffer: mmap.mmap) -> None:
        if len(self._free) < self._kept:
            self._free.append(buffer)

    def forget(self) -> None:
        """Give the memory back to the system."""
        self._free.clear()
