"""The intent log in memory: what is wanted of every chunk's flags, and what of it is durable.

Nothing here does I/O.  The keeper (`mirrorfs.mirror.keeper`) takes a batch of changed pages with `begin`,
writes it to every member leg and to stable storage, and says `finish` or `abandon`.  All writers that
changed flags before a `begin` are served by that one batch: group commit.

Two arrays, because a flag that is only wanted protects nothing:

``states``   what the flags should be.
``durable``  what may be relied on.  From the moment a batch begins, a flag that the batch changes counts as
             *not* durable in the direction that protects: DIRTY, MODIFIED and NEEDS_RESYNC are durable only
             if set before and after, and "not UNWRITTEN" only if clear before and after.
"""

import uuid
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED, WORDS
from mirrorfs.metadata.wibm import PAGE_CHUNKS, States, encode_page, pages_for

_PROTECT_BY_BEING_SET = np.uint8(DIRTY | MODIFIED | NEEDS_RESYNC)
_PROTECT_BY_BEING_CLEAR = np.uint8(UNWRITTEN | UNZEROED)
MAP = UNWRITTEN | UNZEROED
"""The map of never-written chunks, which is kept on every leg wherever the log is."""
_COUNTED_AT_ONCE = 128
"""Pages: counting them takes 1.5 ms."""
_COLUMNS = {flag: column for column, flag in enumerate(WORDS)}


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages to be made durable together.  `states` maps a page number to its uint8 states.

    `mapped` are those in which the map of never-written chunks changed.
    """

    volume: uuid.UUID
    serial: int
    states: dict[int, States]
    mapped: frozenset[int] = frozenset()

    def encode(self, page: int, copy: int) -> bytes:
        return encode_page(self.volume, page, copy, self.serial, self.states[page])

    def of_map(self) -> 'Batch':
        """Return what legs must have of it that hold the map alone."""
        mapped = self.states.keys() & self.mapped
        return replace(self, states={page: self.states[page] & np.uint8(MAP) for page in mapped})


class IntentLog:
    """Flags of all chunks of one volume.  Owned by one thread; every method is synchronous.

    `states` and `durable`: uint8 [chunks].  `serial`: the volume-wide serial of the last batch.
    """

    def __init__(self, volume: uuid.UUID, states: States, serial: int) -> None:
        self.volume = volume
        self.states = states
        self.durable = states.copy()
        self.serial = serial
        self._pending = np.zeros(pages_for(len(states)), np.bool_)
        self._mapped = self._pending.copy()
        self._counts = np.zeros((len(self._pending), len(_COLUMNS)), np.int32)
        """How many chunks of each page have each flag ([pages, flags]); true but for `_uncounted` pages."""
        self._uncounted = np.ones(len(self._pending), np.bool_)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def pages(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> bool:
        """Whether some page differs from what the legs were last told."""
        return bool(self._pending.any())

    def update(self, first: int, last: int, set_: int = 0, clear: int = 0) -> bool:
        """Set and clear flags of the chunks first..last; return whether anything changed."""
        part = self.states[first : last + 1]
        new = (part | np.uint8(set_)) & np.uint8(ALL & ~clear)
        if np.array_equal(new, part):
            return False
        pages = slice(first // PAGE_CHUNKS, last // PAGE_CHUNKS + 1)
        self._pending[pages] = self._uncounted[pages] = True
        if ((new ^ part) & np.uint8(MAP)).any():
            self._mapped[pages] = True
        part[:] = new
        return True

    def update_chunks(self, chunks: npt.NDArray[np.intp], set_: int = 0, clear: int = 0) -> int:
        """Set and clear flags of the chunks whose numbers are given (intp [n]); return how many changed."""
        old = self.states[chunks]
        new = (old | np.uint8(set_)) & np.uint8(ALL & ~clear)
        changed = chunks[new != old]
        self.states[chunks] = new
        pages = changed // PAGE_CHUNKS
        self._pending[pages] = self._uncounted[pages] = True
        self._mapped[chunks[((new ^ old) & np.uint8(MAP)) != 0] // PAGE_CHUNKS] = True
        return len(changed)

    def where(self, set_: int, clear: int = 0) -> npt.NDArray[np.intp]:
        """Return the numbers (intp [n], ascending) of chunks with all of `set_` set and `clear` clear."""
        return np.flatnonzero((self.states & np.uint8(set_ | clear)) == np.uint8(set_))

    def count(self, flag: int) -> int:
        """Return how many chunks have a flag.  Only pages that changed since the last time are looked at."""
        while self.count_some():
            pass
        return int(self._counts[:, _COLUMNS[flag]].sum())

    def count_some(self) -> bool:
        """Count in some of the pages that changed; return whether there are more.

        Who must not hold the thread for long calls this before `count`, and gives way in between.
        """
        changed = np.flatnonzero(self._uncounted)
        for page in changed[:_COUNTED_AT_ONCE].tolist():
            states = self._page(page)
            self._counts[page] = [np.count_nonzero(states & np.uint8(flag)) for flag in _COLUMNS]
            self._uncounted[page] = False
        return len(changed) > _COUNTED_AT_ONCE

    def add(self, states: States) -> None:
        """Set flags (uint8 [chunks]) that are durable already, of chunks that nobody uses yet."""
        self.states |= states
        self.durable[:] = self.states
        self._uncounted[:] = True

    def is_durable(self, first: int, last: int, set_: int = 0, clear: int = 0) -> bool:
        """Whether all chunks first..last have these flags both wanted and durable."""
        both = np.uint8(set_ | clear)
        for array in (self.states, self.durable):
            if not np.all((array[first : last + 1] & both) == np.uint8(set_)):
                return False
        return True

    def touch_all(self) -> None:
        """Mark every page to be written, as for a log that legs do not have yet."""
        self.touch_pages(np.ones(self.pages, np.bool_))

    def touch_pages(self, pages: npt.NDArray[np.bool_]) -> None:
        """Mark pages (bool [pages]) to be written."""
        self._pending |= pages
        self._mapped |= pages

    def begin(self) -> Batch:
        """Take all pending pages.  Until `finish`, what they change protects in neither direction."""
        self.serial += 1
        pages = np.flatnonzero(self._pending).tolist()
        mapped = frozenset(np.flatnonzero(self._mapped).tolist())
        self._pending[:] = self._mapped[:] = False
        batch = Batch(self.volume, self.serial, {page: self._page(page).copy() for page in pages}, mapped)
        for page, wanted in batch.states.items():
            durable = self._page(page, self.durable)
            durable[:] = (durable & wanted & _PROTECT_BY_BEING_SET) | (
                (durable | wanted) & _PROTECT_BY_BEING_CLEAR
            )
        return batch

    def finish(self, batch: Batch) -> None:
        """The batch is durable on every member."""
        for page, stored in batch.states.items():
            self._page(page, self.durable)[: len(stored)] = stored  # the log may have grown meanwhile

    def abandon(self, batch: Batch) -> None:
        """The batch may be on some legs or on none: write its pages again with the next one."""
        self._pending[list(batch.states)] = True
        self._mapped[list(batch.mapped)] = True

    def whole(self) -> Batch:
        """Return a batch of all pages as they are wanted now, for a leg that is about to join."""
        self.serial += 1
        return Batch(self.volume, self.serial, {page: self._page(page).copy() for page in range(self.pages)})

    def grow(self, chunks: int, state: int) -> None:
        """Add chunks at the end, each with `state`."""
        more = np.full(chunks - len(self.states), state, np.uint8)
        self.states = np.concatenate((self.states, more))
        self.durable = np.concatenate((self.durable, more))
        fresh = np.ones(pages_for(chunks) - self.pages, np.bool_)
        self._pending = np.concatenate((self._pending, fresh))
        self._mapped = np.concatenate((self._mapped, fresh))
        self._uncounted = np.concatenate((self._uncounted, fresh))
        self._uncounted[-1 - len(fresh)] = True
        self._counts = np.concatenate((self._counts, np.zeros((len(fresh), len(_COLUMNS)), np.int32)))
        self._pending[-1 - len(fresh)] = self._mapped[-1 - len(fresh)] = True  # the last old page is longer

    def _page(self, page: int, array: States | None = None) -> States:
        base = self.states if array is None else array
        return base[page * PAGE_CHUNKS : (page + 1) * PAGE_CHUNKS]
