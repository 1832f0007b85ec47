"""What callers were promised: for every block, which writes may still be seen.

Time is a counter of the model's own.  A write is superseded when another began after it was acknowledged
and is itself acknowledged (for reads while running) or covered by a returned flush (after a power cut).
Values are checked sector by sector, since a power cut tears writes at sectors.
"""

import functools
import struct
from dataclasses import dataclass

from mirrorfs.limits import SECTOR

BLOCK = 4096
_TAG = struct.Struct('<Q')
NEVER = 1 << 62


@dataclass(slots=True)
class Write:
    """One write of one tag to some blocks.  Tag 0 is zeros: the initial state, and discards."""

    tag: int
    blocks: range
    began: int
    acked: int = NEVER
    durable: bool = False
    doubtful: bool = False
    """Failed, or met a crash: may be seen or not, and supersedes nothing."""
    decay: bool = False
    """No write at all, but decay: as if under way until somebody says that it is mended."""


class Model:
    """The promise for one volume of `blocks` blocks of 4096 bytes."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        first = Write(0, range(blocks), 0, 0, True)
        self.writes: list[list[Write]] = [[first] for _ in range(blocks)]
        self._reads: list[tuple[int, int, list[int]] | None] = [None] * blocks
        """For each block when the last read of it began and ended, and what it saw."""
        self._now = 1
        self._tag = 0

    def copy(self) -> 'Model':
        """Return a model that forgets nothing and shares nothing."""
        other = Model(0)
        other.blocks, other._now, other._tag = self.blocks, self._now, self._tag
        everyone = {id(write): write for history in self.writes for write in history}
        twins = {
            key: Write(w.tag, w.blocks, w.began, w.acked, w.durable, w.doubtful, w.decay)
            for key, w in everyone.items()
        }
        other.writes = [[twins[id(write)] for write in history] for history in self.writes]
        other._reads = list(self._reads)
        return other

    def digest(self) -> int:
        """Return a number that is equal for equal promises."""
        return hash(
            tuple(
                frozenset((w.tag, w.durable, w.acked == NEVER, w.doubtful) for w in history)
                for history in self.writes
            )
        )

    def grow(self, blocks: int) -> None:
        """There may be more blocks from now on; they hold zeros."""
        now = self.tick()
        for block in range(self.blocks, blocks):
            self.writes.append([Write(0, range(block, block + 1), now, now, True)])
            self._reads.append(None)
        self.blocks = max(self.blocks, blocks)

    def tick(self) -> int:
        self._now += 1
        return self._now

    def begin(self, first: int, count: int, *, zeros: bool = False) -> Write:
        """A write begins; return it, with its tag."""
        self._tag += 1
        write = Write(0 if zeros else self._tag, range(first, first + count), self.tick())
        for block in write.blocks:
            self.writes[block].append(write)
        return write

    def data(self, write: Write) -> bytes:
        """Return the bytes of a write: its tag at the start of every sector."""
        return fill(write.tag) * len(write.blocks)

    def ack(self, write: Write) -> None:
        write.acked = self.tick()

    def fail(self, write: Write) -> None:
        """The write ended with an error: it may have happened or not."""
        write.acked, write.doubtful = self.tick(), True

    def synced(self, write: Write) -> None:
        """An acknowledged write is durable."""
        write.durable = True
        for block in write.blocks:
            self._prune(self.writes[block])

    def flushed(self, began: int) -> None:
        """A flush that began at `began` has returned: what was acknowledged before it is durable."""
        for history in self.writes:
            for write in history:
                write.durable |= write.acked < began and not write.doubtful
            self._prune(history)

    def _prune(self, history: list[Write]) -> None:
        floor = max((write.began for write in history if write.durable), default=0)
        history[:] = [write for write in history if write.acked >= floor or write.began >= floor]

    def crash(self, *, power: bool, reads_stay: bool) -> None:
        """What was under way may have happened, or not; with the power goes all that was not flushed.

        `reads_stay`: nothing that was read can have gone with it, so it must be seen again.
        """
        now = self.tick()
        for history in self.writes:
            for write in history:
                write.doubtful |= write.acked == NEVER or (power and not write.durable)
                write.acked = write.acked if write.decay else min(write.acked, now)
        if not reads_stay:
            self._reads = [None] * self.blocks
        self.tick()

    def read(self, block: int, began: int, seen: list[int], *, late: bool = False) -> list[int] | None:
        """A read that began at `began` has seen a block; return what it must have seen by an earlier read.

        None where a write was under way since that ended, or there was no such read.  `late`: who reads
        learns late what was seen, so it counts whether a write was under way since the earlier read began.
        """
        before, self._reads[block] = self._reads[block], (began, self.tick(), seen)
        if before is None or before[1] > began:
            return None
        since = before[0] if late else before[1]
        quiet = all(write.acked < since for write in self.writes[block])
        return before[2] if quiet else None

    def visible(self, block: int, now: int) -> set[int]:
        """Return the tags that a read which began at `now` may see."""
        history = self.writes[block]
        certain = (write.began for write in history if write.acked < now and not write.doubtful)
        floor = max(certain, default=0)
        return {write.tag for write in history if write.acked >= floor}

    def possible(self, block: int) -> set[int]:
        """Return the tags that a block may hold after a power cut."""
        return {write.tag for write in self.writes[block]}

    def rot(self, block: int, tag: int) -> None:
        """A block may be seen to hold a tag that nobody wrote, until `unrot`."""
        self.writes[block].append(Write(tag, range(block, block + 1), self.tick(), decay=True))

    def unrot(self, tag: int) -> None:
        """A tag may not be seen any more, in any block."""
        for block, history in enumerate(self.writes):
            if any(write.tag == tag for write in history):
                history[:] = [write for write in history if write.tag != tag]
                self._reads[block] = None

    def settle(self, block: int, tags: list[int]) -> None:
        """What a block was seen to hold has been flushed on all legs: nothing else may be seen again."""
        kept = [write for write in self.writes[block] if write.tag in tags]
        now = self.tick()
        self.writes[block] = [Write(write.tag, range(block, block + 1), now, now, True) for write in kept]

    def give_up(self, block: int, tags: list[int]) -> None:
        """Somebody decided that this is what the block holds, whatever was promised."""
        now = self.tick()
        self.writes[block] = [
            Write(tag, range(block, block + 1), now, now, True) for tag in sorted(set(tags))
        ]
        self._reads[block] = None


@functools.lru_cache(maxsize=4096)
def fill(tag: int) -> bytes:
    """Return one block's bytes for a tag."""
    if not tag:
        return bytes(BLOCK)
    return (_TAG.pack(tag) + b'\xa5' * (SECTOR - _TAG.size)) * (BLOCK // SECTOR)


def tags(data: bytes) -> list[int]:
    """Return the tags of a block's sectors; raises AssertionError for bytes that no write wrote."""
    tag = _TAG.unpack_from(data)[0]
    if data == fill(tag):
        return [tag] * (BLOCK // SECTOR)
    found = []
    for at in range(0, len(data), SECTOR):
        tag = _TAG.unpack_from(data, at)[0]
        assert data[at : at + SECTOR] == fill(tag)[:SECTOR], f'garbage in a sector, tag {tag}'
        found.append(tag)
    return found
