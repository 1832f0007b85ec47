"""READs of what is not in the page cache: a thread reads from the chunk's home leg and answers.

A READ here holds no ticket, so nobody who withdraws a permission waits for it.  Instead, when it has its
data, it looks whether anything was withdrawn since it began, or legs have changed; if so trio reads anew: a
leg that has left may by now hold what somebody else puts there.  If not, the data were right at that moment,
and may be answered.

A long stream of large reads, none of which is in the cache, goes past it (`mirrorfs.hot.Stream`): that is
faster, since a page is neither made nor copied, and leaves in the cache what is read more than once.
"""

import functools
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

from mirrorfs import limits
from mirrorfs.fs.beside import Beside, Open
from mirrorfs.hot import READ, HotTable
from mirrorfs.leg.base import LaneLeg
from mirrorfs.leg.memory import Buffers

if TYPE_CHECKING:
    from mirrorfs.fs.lane import Request
    from mirrorfs.fs.system import System

class _Facts:
    """What a READ relies on, and what it has read."""

    __slots__ = ('data', 'generation', 'homes', 'memory', 'table')

    def __init__(self, table: HotTable) -> None:
        self.generation = table.generation  # before all else: see `mirrorfs.hot`
        self.homes = table.homes
        self.table = table
        self.memory: mmap.mmap | None = None
        self.data = memoryview(b'')


class Fetching(Beside):
    """Threads that read legs.  `reply` answers a request."""

    name = 'fetch'
    patience = limits.FETCH_PATIENCE

    def __init__(
        self,
        system: 'System',
        reply: Callable[[int, int, memoryview], None],
        redo: Callable[['Request'], None],
    ) -> None:
        super().__init__(system, limits.FETCH_THREADS, redo)
        self._reply = reply
        self._buffers = Buffers(limits.REQUEST_MAX, limits.FETCH_THREADS)

    def begin(self, table: HotTable, request: 'Request') -> bool:
        """Begin a READ, on the lane's thread; return False where that is trio's."""
        facts = _Facts(table)
        offset, size = request.offset, request.size
        if not 0 < size <= min(table.size - offset, limits.REQUEST_MAX):
            return False
        if not facts.homes or not table.allows(offset, size, READ):
            return False
        _, base, _, _, leg = facts.homes[table.home_of(offset, len(facts.homes))]
        if leg.calls >= limits.LEG_CALLS:
            return False
        direct = size >= limits.STREAM_READ and table.stream.missed(offset, size)
        table.reads += 1
        table.read_bytes += size
        part = functools.partial(self._fetch, facts, leg, base + offset, size, direct=direct)
        self._begin(Open(request, 1, facts), [part])
        return True

    def _fetch(self, facts: _Facts, leg: LaneLeg, offset: int, size: int, *, direct: bool) -> None:
        facts.memory = memory = self._buffers.take()
        facts.data = memoryview(memory)[:size]
        leg.fetch(offset, facts.data, direct=direct)

    def _holds(self, opened: Open) -> bool:
        facts: _Facts = opened.facts
        return facts.table.homes is facts.homes and facts.table.generation == facts.generation

    def _finish(self, opened: Open) -> None:
        facts: _Facts = opened.facts
        self._reply(opened.request.unique, 0, facts.data)
        if facts.memory:
            self._buffers.give_back(facts.memory)
