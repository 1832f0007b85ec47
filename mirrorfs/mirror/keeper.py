"""The keeper makes what is wanted durable: log pages, bad-block lists, superblocks, the pool's record.

Everyone who needs something durable changes the state in memory and awaits `commit`.  One task stores in
rounds; a round serves all who came before it began (group commit).  Why the order:

* pages first: a superblock that says "leg 1 is stale" must find its MODIFIED flags already there;
* superblocks on every member before the pool: the pool is a witness that is never ahead of all legs, so a
  leg below the pool's events is stale (`mirrorfs.mirror.assembly`);
* a leg that fails during a round is expelled and the round begins again, before anyone is told that it is
  done: what an absent leg lacks is recorded before it is acknowledged (invariant 3).

Where the log is in a file outside the legs, a round stores all pages there first, then its header, so that
it is never behind a leg; legs are given only the pages whose map of never-written chunks changed.  While the
log moves, it is in both places.  A log outside that fails is given up, by the same round: superblocks say so
before any page, since what was not stored outside protects nothing.

The first thing that becomes durable in a session carries a new event count, the ACTIVE flag and the legs
that are absent; a session in which nothing is written changes nothing on the medium.
"""

import errno
import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio

from mirrorfs import limits
from mirrorfs.errors import LegError
from mirrorfs.histogram import Histogram
from mirrorfs.intent.log import Batch, IntentLog
from mirrorfs.intent.states import DIRTY, MODIFIED, UNWRITTEN
from mirrorfs.mirror import membership
from mirrorfs.mirror.fanout import Failures, fan_out, judge
from mirrorfs.mirror.logfile import LogFile
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState, VolumeRecord


class RecordStore(Protocol):
    """Where the pool keeps a volume's record."""

    async def save(self, record: VolumeRecord) -> None:
        """Make it durable, whole or not at all.  Raises OSError."""
        ...


class Observer(Protocol):
    """Told, synchronously, what the keeper decided by itself."""

    def legs_changing(self) -> None:
        """Members just changed: nothing may be written around the slow path until that is durable."""
        ...

    def leg_expelled(self, slot: int, path: str, reason: str, was: LegState) -> None: ...

    def leg_replaced(self, old: str, new: str) -> None: ...
    def log_lost(self, path: str, reason: str) -> None: ...


class _Round:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: OSError | None = None
        self.served = 0


class Keeper:
    """Owns a volume's record, members and log.  `run` must be running for `commit` to return.

    `record` is what the legs have and `pooled` what the pool has; the pool may be behind after a crash.
    `clock` returns microseconds since 1970; it and `new_uuid` are given so that a simulation decides them.
    """

    def __init__(
        self,
        record: VolumeRecord,
        members: Sequence[Member],
        absent: Sequence[int],
        log: IntentLog,
        pool: RecordStore,
        observer: Observer,
        *,
        pooled: VolumeRecord,
        serial: int,
        leg_timeout: float,
        outside: LogFile | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self.members = {member.slot: member for member in members}
        self.record = record
        self.absent = set(absent)
        self.quarantine: dict[int, Member] = {}
        """Who left since the start, and has not come back: what it was like when it did.  Calls on it may be
        under way; the observer closes it, when nobody writes to it around the slow path any more."""
        self.faulted: set[int] = set()
        """Legs that failed by themselves, not by the admin's word, since the start."""
        self.log = log
        self.outside = outside
        """The log's file; while the log moves there, also before the record names it."""
        self.log_trouble = ''
        """Why the last file was given up."""
        self.leg_timeout = leg_timeout
        self.clock = clock
        self.new_uuid = new_uuid
        self.session = False
        self._session_wanted = False
        self._pool = pool
        self._observer = observer
        self._serial = serial
        self._recorded = record
        self._pooled = _definition(pooled)
        self._next = _Round()
        self._wake = trio.Event()
        self.rounds = 0
        self.served = 0
        """Rounds stored, and commits they served."""
        self.round_seconds = Histogram()
        self.round_served = Histogram(1, 11)
        """How long rounds took that were stored, and how many commits each served."""

    @property
    def record(self) -> VolumeRecord:
        """What is wanted to be durable of the volume; see `commit`."""
        return self._record

    @record.setter
    def record(self, record: VolumeRecord) -> None:
        self._record = record
        for slot, member in self.members.items():
            member.failfast = record.slots[slot].failfast

    @property
    def counting(self) -> list[int]:
        """The members that are in sync, those included that may be behind for a moment."""
        return [slot for slot in self.members if self.record.slots[slot].state is LegState.IN_SYNC]

    @property
    def in_sync(self) -> list[int]:
        """The members that have all that was acknowledged: who may be read, and who must not all be lost."""
        slots = self.record.slots
        return [n for n in self.members if slots[n].state is LegState.IN_SYNC and not slots[n].behind]

    @property
    def homes(self) -> list[int]:
        """The legs that reads go to: those in sync, without the write-mostly ones if there are others."""
        in_sync = self.in_sync
        return [slot for slot in in_sync if not self.record.slots[slot].write_mostly] or in_sync

    def patience(self, member: Member, *, alone: bool) -> float:
        """Return how many seconds a leg has for a call; failfast counts only where others can take over."""
        if member.failfast and not alone:
            return min(self.leg_timeout, limits.FAILFAST_TIMEOUT)
        return self.leg_timeout

    @property
    def unrecorded(self) -> bool:
        """Whether membership has changed and that is not durable yet."""
        return self._recorded.events != self.record.events

    @property
    def marks(self) -> int:
        """The flags that a chunk must durably have before it is written."""
        if not self.record.logged:
            return 0
        return DIRTY | MODIFIED if membership.absentees_tracked(self.record) else DIRTY

    async def commit(self) -> None:
        """Return when all that is wanted now is durable on every member and in the pool.

        Raises OSError where no leg, or not the pool, could store it; it stays wanted.
        """
        current = self._next
        self.served += 1
        current.served += 1
        self._wake.set()
        await current.done.wait()
        if current.error:
            raise current.error

    async def settle(self) -> None:
        """Wait until every change of membership is durable; what invariant 3 asks before an answer."""
        while self.unrecorded:
            await self.commit()

    async def open_session(self) -> None:
        """Make durable that the volume is in use, before anything is written."""
        if not self.session:
            self._session_wanted = True
        if not self.session or self.unrecorded:
            await self.commit()

    def expel(self, failures: Mapping[int, OSError | str], state: LegState = LegState.FAULTY) -> None:
        """Drop members at once, in memory; `commit` makes it durable.  Slots that are not members: nothing.

        What the lost leg had not flushed counts as missing there: every dirty chunk becomes MODIFIED.
        """
        slots = [slot for slot in failures if slot in self.members]
        if not slots:
            return
        before = self.record
        self.record = membership.leave(self.record, slots, state, self.new_uuid(), self.clock())
        for slot in slots:
            member = self.members.pop(slot)
            self.quarantine[slot] = member
            if member.backlog:
                member.backlog.drop(LegError(errno.EIO, f'{member.leg.path} has left'))
            if isinstance(failures[slot], OSError):
                self.faulted.add(slot)
            else:
                self.faulted.discard(slot)
            was, why = before.slots[slot].state, _reason(failures[slot])
            self._observer.leg_expelled(slot, member.leg.path, why, was)
        self.mark_missed()
        self._observer.legs_changing()

    def split_off(self, slot: int) -> Member:
        """A leg that has all, flushed, leaves as a point in time; in memory, as `expel`.  Return it."""
        self.record = membership.split_off(self.record, slot, self.new_uuid(), self.clock())
        member = self.members.pop(slot)
        self._observer.legs_changing()
        return member

    def take_over(self, slot: int) -> None:
        """A replacement is ready: it counts, and the leg that it replaces leaves; in memory, as `expel`."""
        replaced = self.record.slots[slot].replaces
        self.record = membership.take_over(self.record, slot, self.new_uuid(), self.clock())
        if replaced in self.members:
            member = self.quarantine[replaced] = self.members.pop(replaced)
            self._observer.leg_replaced(member.leg.path, self.members[slot].leg.path)
            self.mark_missed()
        self._observer.legs_changing()

    def lose_log(self, file: LogFile, reason: str) -> None:
        """The file is given up, in memory, as by `expel`.  If it is the volume's log, there is none now."""
        if self.outside is file:
            self.outside, self.log_trouble = None, reason
        file.leg.close()
        if self.record.log_id == file.identity:
            self.record = membership.move_log(self.record, None)
            self.log.touch_all()  # legs have but the map
            self._observer.log_lost(file.leg.path, reason)
            self._observer.legs_changing()

    def mark_missed(self) -> None:
        """Flag every dirty chunk MODIFIED, since a leg left that may lack it."""
        self.log.update_chunks(self.log.where(DIRTY, UNWRITTEN), set_=MODIFIED)

    async def run(self) -> None:
        """Store rounds for ever.  Whatever ends it, nobody is left waiting."""
        current = self._next
        try:
            while True:
                await self._wake.wait()
                began = trio.current_time()
                self._wake = trio.Event()
                current, self._next = self._next, _Round()
                try:
                    await self._store()
                except OSError as error:
                    current.error = error
                if current.error is None:
                    self.round_seconds.add(trio.current_time() - began)
                    self.round_served.add(current.served)
                current.done.set()
        finally:
            for waiting in (current, self._next):
                if not waiting.done.is_set():
                    waiting.error = OSError(errno.EIO, f'{self.record.name} has stopped')
                    waiting.done.set()

    async def _store(self) -> None:
        while True:
            unlisted = any(member.bad is not member.bad_stored for member in self.members.values())
            if self._session_wanted or self.log.pending or unlisted or self.record is not self._recorded:
                self._begin_session()
            record, batch = self.record, self.log.begin()
            serial = 0 if record is self._recorded else self.next_serial()
            if not await self._store_outside(record, batch, serial):
                self.log.abandon(batch)
                continue
            members = list(self.members.values())
            failures = await self._store_on_legs(members, record, batch, serial)
            verdict = judge(members, self.in_sync, failures)
            if failures:
                self.log.abandon(batch)
            self.expel(verdict.expel)
            if verdict.error:
                raise verdict.error
            if failures:
                continue
            self.log.finish(batch)
            if _definition(record) != self._pooled:
                await self._pool.save(record)
                self._pooled = _definition(record)
            self._recorded = record
            self.rounds += 1
            return

    def _begin_session(self) -> None:
        """Make sure that what is about to be stored says: in use, by these legs and no others."""
        if self.session:
            return
        self.session = True
        self.record = self.record.but(active=True)
        if self.absent:
            gone = sorted(self.absent)
            self.absent.clear()
            # `leave` counts the event, and tracks the legs since the events that they last had.
            self.record = membership.leave(self.record, gone, LegState.MISSING, self.new_uuid(), self.clock())
            self.mark_missed()
        else:
            self.record = self.record.but(events=self.record.events + 1)
        self._observer.legs_changing()

    async def _store_outside(self, record: VolumeRecord, batch: Batch, serial: int) -> bool:
        """Store in the log's file, if there is one; return False where it was given up for that."""
        file = self.outside
        if file is None:
            return True
        try:
            with trio.fail_after(self.leg_timeout):
                await file.store(batch, record if serial else None, serial)
        except OSError as error:
            self.lose_log(file, _reason(error))
        except trio.TooSlowError:
            self.lose_log(file, f'did not answer within {self.leg_timeout:g} s')
        return self.outside is file

    async def _store_on_legs(
        self, members: list[Member], record: VolumeRecord, batch: Batch, serial: int
    ) -> Failures:
        if self._recorded.log_is_outside and not record.logged:
            # What they have been told so far is to look in a log that lacks the marks of these pages.
            failures = await self._store_supers(members, record, serial)
            failures = failures or await self._store_pages(members, batch)
            return failures or await self._store_lists(members, record)
        if record.log_is_outside and record.log_id == self._recorded.log_id:
            batch = batch.of_map()
        failures = await self._store_pages(members, batch)
        failures = failures or await self._store_lists(members, record)
        return failures or await self._store_supers(members, record, serial)

    async def _store_pages(self, members: list[Member], batch: Batch) -> Failures:
        if not batch.states:
            return {}
        return await fan_out(members, self.in_sync, lambda m: m.store_pages(batch), self.leg_timeout)

    async def _store_lists(self, members: list[Member], record: VolumeRecord) -> Failures:
        """Store the bad-block lists that have changed."""
        unlisted = [member for member in members if member.bad is not member.bad_stored]
        if not unlisted:
            return {}
        others = any(member.slot in self.in_sync for member in members if member not in unlisted)
        patient = None if others else self.in_sync
        return await fan_out(unlisted, patient, lambda m: m.store_bad(record.uuid), self.leg_timeout)

    async def _store_supers(self, members: list[Member], record: VolumeRecord, serial: int) -> Failures:
        if not serial:
            return {}
        stamped = record.but(updated_us=self.clock())
        storing = functools.partial(Member.store_super, record=stamped, serial=serial)
        return await fan_out(members, self.in_sync, storing, self.leg_timeout)

    def next_serial(self) -> int:
        """Return a superblock serial above all before it, for a leg that is being formatted."""
        self._serial += 1
        return self._serial


def _definition(record: VolumeRecord) -> VolumeRecord:
    """Return what of a record the pool must know at once; marks and the like can wait for the next event."""
    slots = tuple(slot.but(mark=0) if slot.mark else slot for slot in record.slots)
    return record.but(slots=slots, updated_us=0, active=False)


def _reason(failure: OSError | str) -> str:
    return failure if isinstance(failure, str) else failure.strerror or str(failure)
