"""What the data lane may have of one volume: the hot table's only writer (`mirrorfs.hot`).

The lane may write a chunk around the slow path when everything that a write needs is durable already: its
marks, and who the legs are; and when nobody holds the chunk and no leg has a lane's call pending.
"""

import functools
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs import hot
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.states import NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import LaneLeg
from mirrorfs.locks import ChunkLocks
from mirrorfs.mirror.keeper import Keeper
from mirrorfs.mirror.member import Member

_NO_CHUNKS: npt.NDArray[np.intp] = np.empty(0, np.intp)
RETRY = 1.0
"""Seconds between tries to record a change of legs."""


class LaneGate:
    """Offers chunks to the lane, and what it must know of the legs.  `healthy`: whether it may write."""

    keeper: Keeper

    def __init__(
        self, table: hot.HotTable, log: IntentLog, locks: ChunkLocks, healthy: Callable[[], bool]
    ) -> None:
        self._table = table
        self._log = log
        self._locks = locks
        self._healthy = healthy
        self._changed = trio.Event()
        self._closed = False
        self._homes: list[int] = []
        self._syncable: tuple[LaneLeg, ...] = ()

    def close(self) -> None:
        """Take everything back, for good."""
        self._closed = True
        self._table.targets = self._table.homes = ()
        self._withdraw_all()

    def _withdraw_all(self) -> None:
        self._table.syncable = ()
        self._table.withdraw(0, len(self._table.flags) - 1)

    def offer(self, first: int, last: int) -> None:
        """Give the lane what it may have of chunks first..last: nothing that someone holds exclusively."""
        if self._closed:
            return
        may_write = self._may_write()
        self._table.syncable = self._syncable if may_write else ()
        bad = self._bad_chunks(first, last)
        if first == last:
            if not self._locks.is_exclusive(first):
                if len(bad):
                    self._table.flags[first] = hot.ZEROS if self._log.states[first] & UNWRITTEN else 0
                    return
                wanted, durable = int(self._log.states[first]), int(self._log.durable[first])
                self._table.flags[first] = self._permission(wanted, durable, may_write)
            return
        wanted_all = self._log.states[first : last + 1]
        durable_all = self._log.durable[first : last + 1]
        flags = np.where(wanted_all & np.uint8(UNWRITTEN), np.uint8(hot.ZEROS), np.uint8(hot.READ))
        if may_write:
            marks = np.uint8(self.keeper.marks)
            marked = (wanted_all & durable_all & marks) == marks
            ready = marked & (((wanted_all | durable_all) & UNWRITTEN) == 0)
            flags[ready] |= np.uint8(self._write_permission)
        flags[(wanted_all & np.uint8(NEEDS_RESYNC)) != 0] = 0
        flags[bad - first] &= np.uint8(hot.ZEROS)
        for low, high in self._locks.exclusive_ranges():
            flags[max(0, low - first) : max(0, high + 1 - first)] = 0
        self._table.view()[first : last + 1] = flags

    def offer_all(self) -> None:
        self.offer(0, len(self._log) - 1)

    def _bad_chunks(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return those of the chunks (intp [n]) with blocks that are bad on some leg: not for the lane."""
        shift = self._table.shift
        lists = [member.bad for member in self.keeper.members.values() if member.bad]
        if not lists:
            return _NO_CHUNKS
        start, length = first << shift, (last + 1 - first) << shift
        touching = [bad.chunks(shift) for bad in lists if bad.touches(start, length)]
        found = np.unique(np.concatenate([_NO_CHUNKS, *touching]))
        return found[(found >= first) & (found <= last)]

    def _permission(self, wanted: int, durable: int, may_write: bool) -> int:
        """Return the flags for one chunk, as `offer` computes them for many."""
        if wanted & NEEDS_RESYNC:
            return 0
        if wanted & UNWRITTEN:
            return hot.ZEROS
        marks = self.keeper.marks
        ready = wanted & durable & marks == marks and not durable & UNWRITTEN
        return hot.READ | self._write_permission if ready and may_write else hot.READ

    @property
    def _write_permission(self) -> int:
        return hot.NONZERO if self.keeper.record.detect_zeroes else hot.WRITE

    def _may_write(self) -> bool:
        keeper = self.keeper
        stuck = any(member.stuck or member.backlog for member in keeper.members.values())
        closed = keeper.unrecorded or stuck or not self._healthy()
        return bool(keeper.session and self._table.targets and not closed)

    def publish(self) -> bool:
        """Tell the lane which legs there are: all members to write, those in sync to read.

        Return whether reads go to other legs than before.
        """
        if self._closed:
            return False
        members = self.keeper.members
        targets = {slot: _target(member) for slot, member in members.items()}
        usable = all(target is not None for target in targets.values())
        self._table.targets = tuple(targets.values()) if usable else ()
        self._syncable = tuple(member.lane for member in members.values() if member.lane) if usable else ()
        homes = (_home(members[slot]) for slot in self.keeper.homes)
        self._table.homes = tuple(home for home in homes if home) if usable else ()
        before, self._homes = self._homes, self.keeper.homes
        return before != self._homes

    def legs_changing(self) -> bool:
        """The members changed: no writes by the lane until that is durable (`keep_open` sees to it).

        Return whether reads go to other legs than before.
        """
        self._table.withdraw_writes()
        self._changed.set()
        return self.publish()

    async def keep_open(self, complain: Callable[[str], None], settled: Callable[[], None]) -> None:
        """After each change of members: let go of legs that left, then give chunks to the lane again.

        `settled` is called in between, when the change is durable.
        """
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            await self._table.settle()
            for member in self.keeper.quarantine.values():
                member.leg.close()
            try:
                await self.keeper.settle()
            except OSError as error:
                complain(f'cannot record a change of legs: {error}')
                await trio.sleep(RETRY)
                self._changed.set()
                continue
            settled()
            self.offer_all()

    def lane_stuck(self, slot: int, returned: trio.Event) -> Callable[[], Awaitable[None]]:
        """A lane is stuck in a call on a leg: until that returns, nothing goes around the slow path.

        Return what waits for that.  There can be several such lanes, one after another, on one leg.
        """
        self._withdraw_all()
        member = self.keeper.members.get(slot) or self.keeper.quarantine.get(slot)
        if member is None or member.lane is None:
            return returned.wait
        member.stuck.append(returned)
        member.lane.lane_stays()
        return functools.partial(self._lane_returns, member, member.lane, returned)

    async def _lane_returns(self, member: Member, leg: LaneLeg, returned: trio.Event) -> None:
        await returned.wait()
        member.stuck.remove(returned)
        leg.lane_returned()
        self.offer_all()


def _target(member: Member) -> tuple[int, int, int] | None:
    """Return a member as the lane writes it (descriptor, data offset, slot), or None if trio alone can."""
    return (member.lane.fd, member.layout.data_offset, member.slot) if member.lane else None


def _home(member: Member) -> tuple[int, int, int, int, LaneLeg] | None:
    """Return a member as the lane reads it: as it writes it, the flags of the call, and the leg."""
    target = _target(member)
    return (*target, member.lane.nowait(), member.lane) if target and member.lane else None
