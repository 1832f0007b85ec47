"""A volume's chunks as a fixed number of cells, each with how many of its chunks are in which state.  Pure.

A chunk is counted once, in the worst state that holds for it.  The first row is the volume's: what its
intent log and its scrubs say.  Each leg has a row of its own, of what is true on that leg: what an absent leg
has missed is *modified* for the volume and *lacking* there.

Counting goes by slices of whole cells, so that whoever counts a large volume can give way in between.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.mirror.badblocks import BadBlocks
from mirrorfs.mirror.comparing import Mismatch
from mirrorfs.model import LegState, Slot, VolumeRecord

CELLS = 4096
"""A volume has as many cells as chunks, and this many at most."""
SLICE, SLICE_CELLS = 1 << 16, 256
"""Chunks and cells that are counted in one go: about a millisecond, however many legs there are."""
STATES = ('unwritten', 'clean', 'dirty', 'modified', 'needs_resync', 'lacking', 'bad_blocks', 'mismatched')
"""From good to bad."""
_UNWRITTEN, _CLEAN, _DIRTY, _MODIFIED, _NEEDS_RESYNC, _LACKING, _BAD_BLOCKS, _MISMATCHED = range(len(STATES))
_FLAGS = ALL + 1

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.intp]
Table = npt.NDArray[np.uint8]


def _table(of: Callable[[int], int]) -> Table:
    """Return the state for each combination of flags (uint8 [_FLAGS])."""
    return np.array([of(flags) for flags in range(_FLAGS)], np.uint8)


def _of_volume(flags: int) -> int:
    if flags & NEEDS_RESYNC:
        return _NEEDS_RESYNC
    return _MODIFIED if flags & MODIFIED else _of_current_leg(flags)


def _of_current_leg(flags: int) -> int:
    """The state on a leg that has all that was written."""
    if flags & NEEDS_RESYNC:
        return _NEEDS_RESYNC
    if flags & DIRTY:
        return _DIRTY
    return _UNWRITTEN if flags & UNWRITTEN else _CLEAN


def _of_late_leg(flags: int) -> int:
    """The state on a leg that lacks what was modified."""
    lacks = flags & MODIFIED and not flags & UNWRITTEN
    return _LACKING if lacks else _of_current_leg(flags)


def _of_empty_leg(flags: int) -> int:
    """The state on a leg that lacks all that was ever written."""
    return _of_current_leg(flags) if flags & UNWRITTEN else _LACKING


_VOLUME, _CURRENT, _LATE, _EMPTY = (
    _table(of) for of in (_of_volume, _of_current_leg, _of_late_leg, _of_empty_leg)
)


@dataclass(frozen=True, slots=True)
class Row:
    """What there is to be known of the volume, or of one leg, to tell the state of each of its chunks.

    `below` and `above`: the state by flags (uint8 [_FLAGS]), for chunks below `mark` and for the others.
    `special`: chunks (intp [n], ascending) that are at least in the state that `worse` (uint8 [n]) names.
    `slot`: the number that people know the leg by; None for the volume.
    """

    slot: int | None
    below: Table
    above: Table
    mark: int = 0
    special: Numbers = field(default_factory=lambda: np.empty(0, np.intp))
    worse: Table = field(default_factory=lambda: np.empty(0, np.uint8))

    def counts(self, first: int, flags: Table, per_cell: int, by_flags: Counts) -> Counts:
        """Return how many chunks of each cell are in which state: int64 [cells, STATES].

        Of chunks from `first` on, where a cell begins: their flags (uint8 [n]), and how many chunks of each
        cell have which (int64 [cells, _FLAGS]).
        """
        cut = (self.mark - first) // per_cell
        """The cell that the mark lies in, or begins."""
        counted = np.empty((len(by_flags), len(STATES)), np.int64)
        counted[: max(0, cut)] = by_flags[: max(0, cut)] @ _one_hot(self.below)
        counted[max(0, cut) :] = by_flags[max(0, cut) :] @ _one_hot(self.above)
        if 0 <= cut < len(counted) and (self.mark - first) % per_cell:
            part = flags[cut * per_cell : self.mark - first]
            counted[cut] += np.bincount(self.below[part], minlength=len(STATES))
            counted[cut] -= np.bincount(self.above[part], minlength=len(STATES))
        low, high = np.searchsorted(self.special, (first, first + len(flags)))
        chunks = self.special[low:high] - first
        found = flags[chunks]
        states = np.where(chunks + first < self.mark, self.below[found], self.above[found])
        np.subtract.at(counted, (chunks // per_cell, states), 1)
        np.add.at(counted, (chunks // per_cell, np.maximum(states, self.worse[low:high])), 1)
        return counted


def _one_hot(table: Table) -> npt.NDArray[np.float64]:
    """Return the matrix that turns counts by flags into counts by state; of floats, which multiply fast."""
    return np.eye(len(STATES))[table]


def rows_of(
    record: VolumeRecord,
    listed: Sequence[Mismatch],
    bad: Mapping[int, BadBlocks],
    reached: Mapping[int, int] | None = None,
) -> list[Row]:
    """Return the volume's row, and then one for each leg in the order of their places.

    `listed`: where scrubs found legs to differ.  By slot: `bad`, the bad-block lists of legs at hand, and
    `reached`, the chunk up to which the recovery under way has come.
    """
    shift = record.chunk_size.bit_length() - 1
    differing = {mismatch.offset >> shift for mismatch in listed}
    rows = [Row(None, _VOLUME, _VOLUME, 0, *_special(_MISMATCHED, differing))]
    for number in sorted(range(len(record.slots)), key=record.place):
        slot = record.slots[number]
        if slot.state in (LegState.VACANT, LegState.STANDBY):
            continue
        below, above, mark = _tables(slot, (reached or {}).get(number, 0))
        wrong = {mismatch.offset >> shift for mismatch in listed if _is_wrong(mismatch, number)}
        blocks = bad[number].chunks(shift).tolist() if bad.get(number) else []
        special = _special(_MISMATCHED, wrong, _BAD_BLOCKS, blocks)
        rows.append(Row(record.place(number), below, above, mark, *special))
    return rows


def _tables(slot: Slot, reached: int) -> tuple[Table, Table, int]:
    """Return how a leg's chunks are told below and above a mark, and the mark."""
    if slot.state is LegState.IN_SYNC:
        return _CURRENT, _CURRENT, 0
    if reached > slot.mark:
        return _CURRENT, _EMPTY if slot.full else _LATE, reached
    if slot.full:
        return _LATE, _EMPTY, slot.mark
    if slot.state is LegState.SPARE or slot.tracked_since:
        return _LATE, _LATE, 0
    return _EMPTY, _EMPTY, 0


def _is_wrong(mismatch: Mismatch, number: int) -> bool:
    """Whether a leg is not among those that a majority shows to be right."""
    majority = mismatch.majority
    right = next((slots for slots, _ in mismatch.groups if majority in slots), ())
    return any(number in slots for slots, _ in mismatch.groups) and number not in right


def _special(
    worst: int, chunks: Iterable[int], second: int = 0, others: Iterable[int] = ()
) -> tuple[Numbers, Table]:
    """Return chunks in ascending order, each with the worse of the two states that it is in."""
    states = dict.fromkeys(others, second) | dict.fromkeys(chunks, worst)
    order = sorted(states)
    return np.array(order, np.intp), np.array([states[chunk] for chunk in order], np.uint8)


def chunks_per_cell(chunks: int, cells: int = CELLS) -> int:
    """Return how many chunks a cell has; the last one may have fewer."""
    return max(1, -(-chunks // cells))


def slices(chunks: int, per_cell: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of parts of a volume that are whole cells and small enough to count in one go."""
    step = max(1, min(SLICE // per_cell, SLICE_CELLS)) * per_cell
    return ((first, min(first + step, chunks)) for first in range(0, chunks, step))


def count(rows: Sequence[Row], first: int, flags: Table, per_cell: int) -> Counts:
    """Return how many chunks of each cell are in which state: int64 [rows, cells, STATES].

    `flags`: those of the chunks from `first` on, where a cell begins (uint8 [n]).
    """
    cells = -(-len(flags) // per_cell)
    places = np.arange(len(flags)) // per_cell * _FLAGS
    by_flags = np.bincount(places + flags, minlength=cells * _FLAGS).reshape(cells, _FLAGS)
    return np.stack([row.counts(first, flags, per_cell, by_flags) for row in rows])


def as_json(
    head: Mapping[str, object], legs: Sequence[Mapping[str, object]], counts: Counts
) -> Iterator[str]:
    """Yield the JSON text of a map in pieces, each the work of a few milliseconds at most.

    `counts`: int64 [1 + legs, cells, STATES].  States that nothing is in are left out, and so are the counts
    of a leg on which all is as for the volume (null).
    """
    chunks = int(counts[0].sum())
    whole = {**head, 'chunks': chunks, 'chunks_per_cell': chunks_per_cell(chunks), 'states': STATES}
    yield f'{json.dumps(whole)[:-1]}, "counts": {_row_as_json(counts[0])}, "legs": ['
    for number, leg in enumerate(legs, 1):
        row = 'null' if np.array_equal(counts[number], counts[0]) else _row_as_json(counts[number])
        comma = ', ' if number < len(legs) else ''
        yield f'{json.dumps(leg)[:-1]}, "counts": {row}}}{comma}'
    yield ']}\n'


def _row_as_json(counts: Counts) -> str:
    """Return the counts of one row (int64 [cells, STATES]) as an object: a list for each state there is."""
    there = np.flatnonzero(counts.any(axis=0)).tolist()
    return json.dumps({STATES[state]: counts[:, state].tolist() for state in there})


def from_json(row: Mapping[str, Sequence[int]]) -> Counts:
    """Return the counts (int64 [cells, STATES]) that a row of a map has.

    States of a later version, which are not known here, count as the worst one.  Raises ValueError.
    """
    counted = np.zeros((len(next(iter(row.values()))), len(STATES)), np.int64)
    for state, numbers in row.items():
        counted[:, STATES.index(state) if state in STATES else -1] += np.array(numbers, np.int64)
    return counted


def merge(counts: Counts, together: int) -> Counts:
    """Return counts (int64 [cells, STATES]) with so many neighbouring cells made one."""
    starts = np.arange(0, len(counts), together)
    merged: Counts = np.add.reduceat(counts, starts, axis=0)
    return merged


def worst(counts: Counts) -> Table:
    """Return the worst state that any chunk of a cell is in (uint8 [cells]).  No cell is empty."""
    found: Table = (len(STATES) - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)).astype(np.uint8)
    return found
