"""Blocks that a leg lacks though it is in sync: sets of 4096-byte blocks as sorted arrays.  Pure.

A block on a leg's list does not count there: it is never read from that leg, and legs are not said to differ
by it.  Blocks are numbered from the start of the data.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mirrorfs import limits
from mirrorfs.metadata import badlist
from mirrorfs.metadata.badlist import BadList

BLOCK = limits.PAGE
_SECTORS = BLOCK // limits.SECTOR
_ENTRY_BLOCKS = badlist.LENGTH_MAX // _SECTORS

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NONE: Numbers = np.empty(0, np.int64)


class BadBlocks:
    """A set of blocks, never changed.  `starts`, `ends`: int64 [n], ascending, with gaps between ranges."""

    __slots__ = ('ends', 'starts')

    def __init__(self, starts: Numbers = _NONE, ends: Numbers = _NONE) -> None:
        self.starts, self.ends = _merged(starts, ends)

    @classmethod
    def of(cls, said: BadList) -> 'BadBlocks':
        """Return the set that a list on a leg names."""
        starts = said.sectors // _SECTORS
        return cls(starts, starts + said.lengths // _SECTORS)

    def entries(self, serial: int) -> BadList:
        """Return the list that names this set, long ranges cut to what one entry holds."""
        counts = -(-(self.ends - self.starts) // _ENTRY_BLOCKS)
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self.starts, counts) + nth * _ENTRY_BLOCKS
        ends = np.minimum(starts + _ENTRY_BLOCKS, np.repeat(self.ends, counts))
        return BadList(serial, starts * _SECTORS, (ends - starts) * _SECTORS)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BadBlocks):
            return NotImplemented
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.ends, other.ends)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return len(self.starts) > 0

    def __len__(self) -> int:
        """How many blocks there are in the set."""
        return int((self.ends - self.starts).sum())

    def __repr__(self) -> str:
        return f'<BadBlocks {self.lines().split(chr(10))[:-1]}>'

    @property
    def fits(self) -> bool:
        """Whether a leg's list has room for the set."""
        counts = -(-(self.ends - self.starts) // _ENTRY_BLOCKS)
        return int(counts.sum()) <= limits.BAD_BLOCKS_MAX

    def touches(self, offset: int, length: int) -> bool:
        """Whether some byte of a range is in one of the blocks."""
        if not len(self.starts):
            return False
        at = int(np.searchsorted(self.ends, offset // BLOCK, 'right'))
        return at < len(self.starts) and int(self.starts[at]) * BLOCK < offset + length

    def mask(self, first: int, count: int) -> Mask:
        """Return which of `count` blocks from `first` on are in the set (bool [count])."""
        return self.contain(np.arange(first, first + count))

    def contain(self, blocks: Numbers) -> Mask:
        """Return which of the blocks (int64 [n]) are in the set (bool [n])."""
        if not len(self.starts):
            return np.zeros(len(blocks), np.bool_)
        at = np.searchsorted(self.starts, blocks, 'right') - 1
        return (at >= 0) & (blocks < self.ends[at])

    def plus(self, first: int, end: int) -> 'BadBlocks':
        """Return the set with the blocks first to end, the latter not among them."""
        return BadBlocks(np.append(self.starts, first), np.append(self.ends, end))

    def minus(self, first: int, end: int) -> 'BadBlocks':
        """Return the set without the blocks first to end, the latter not among them."""
        starts = np.concatenate((self.starts, np.maximum(self.starts, end)))
        ends = np.concatenate((np.minimum(self.ends, first), self.ends))
        there = starts < ends
        return BadBlocks(starts[there], ends[there])

    def replaced(self, first: int, mask: Mask) -> 'BadBlocks':
        """Return the set that has, of the blocks from `first` on, just those of the mask (bool [n])."""
        rest = self.minus(first, first + len(mask))
        edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))) + first
        return BadBlocks(np.append(rest.starts, edges[0::2]), np.append(rest.ends, edges[1::2]))

    def chunks(self, shift: int) -> npt.NDArray[np.intp]:
        """Return the chunks of 2**shift bytes with any of the blocks (intp [n], ascending)."""
        down = shift - (BLOCK.bit_length() - 1)
        firsts, lasts = self.starts >> down, (self.ends - 1) >> down
        counts = lasts - firsts + 1
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.unique(np.repeat(firsts, counts) + nth).astype(np.intp)

    def lines(self, most: int = limits.PAGE) -> str:
        """Return md's sysfs form, a line ``sector length`` for each range, cut to `most` bytes at a line."""
        found, used = [], 0
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            line = f'{start * _SECTORS} {(end - start) * _SECTORS}\n'
            used += len(line)
            if used > most:
                break
            found.append(line)
        return ''.join(found)


def _merged(starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
    """Return ranges in order, with those that meet or touch made one."""
    if not len(starts):
        return _NONE, _NONE
    order = np.argsort(starts, kind='stable')
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins = np.concatenate(([True], starts[1:] > ends[:-1]))
    finishes = np.concatenate((begins[1:], [True]))
    return starts[begins], ends[finishes]


def segments(offset: int, length: int, lists: Iterable[BadBlocks]) -> list[tuple[int, int]]:
    """Cut a range of bytes into (offset, length) parts, each wholly in or wholly out of every set."""
    touching = [bad for bad in lists if bad.touches(offset, length)]
    if not touching:
        return [(offset, length)]
    edges = np.concatenate([np.concatenate((bad.starts, bad.ends)) for bad in touching]) * BLOCK
    inner = np.unique(edges[(edges > offset) & (edges < offset + length)])
    bounds = [offset, *inner.tolist(), offset + length]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def common(lists: Sequence[BadBlocks]) -> BadBlocks:
    """Return the blocks that are in all of some sets (at least one)."""
    edges = np.unique(np.concatenate([np.concatenate((bad.starts, bad.ends)) for bad in lists]))
    if not all(lists):
        return BadBlocks()
    inside = np.logical_and.reduce([bad.contain(edges[:-1]) for bad in lists])
    return BadBlocks(edges[:-1][inside], edges[1:][inside])


def only_there(own: BadBlocks, others: Sequence[BadBlocks]) -> BadBlocks:
    """Return the blocks that a leg has and all others (at least one) lack."""
    missing = common(others)
    for start, end in zip(own.starts.tolist(), own.ends.tolist(), strict=True):
        missing = missing.minus(start, end)
    return missing
