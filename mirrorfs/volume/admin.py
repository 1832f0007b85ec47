"""The verbs that change a volume's legs: add, remove, fail, re-add, replace, move, and the words on them.

A refused verb raises Refused and has changed nothing.  Verbs of one volume go one after another.
"""

import errno
import os
from collections.abc import Awaitable, Callable

import trio

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.leg.patience import open_in_time
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership, naming
from mirrorfs.mirror.badblocks import BLOCK
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.formatting import format_leg
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState, Slot, VolumeRecord
from mirrorfs.volume.claiming import SharedSpares, offered, take_shared
from mirrorfs.volume.creation import check_new_leg
from mirrorfs.volume.joining import Joiner
from mirrorfs.volume.lifecycle import Spare, Started
from mirrorfs.volume.logplace import move_log
from mirrorfs.volume.splitting import Splitter

FLAGS = ('write_mostly', 'failfast', 'want_replacement')
"""What an admin can say of a leg, durably."""


class Admin:
    """Changes the legs of one started volume.

    `standby` are its hot spares, open and locked; `shared` those that all volumes of the pool have together.
    """

    def __init__(self, started: Started, opener: Opener, shared: SharedSpares | None = None) -> None:
        self._started = started
        self._volume = started.volume
        self._opener = opener
        self._shared = shared
        self._joiner = Joiner(started)
        self._turn = trio.Lock()
        self.standby: dict[int, Spare] = dict(started.standby)
        self.splitter = Splitter(started.volume, opener, self._joiner, started.split_off)
        self.hurry = trio.Event()
        """Set when a spare is wanted at once, by the admin's word."""

    def close(self) -> None:
        """Let go of the hot spares, and of a leg that is split off."""
        self.splitter.close()
        for spare in self.standby.values():
            spare.leg.close()
        self.standby.clear()

    @property
    def _record(self) -> VolumeRecord:
        return self._volume.record

    def find(self, word: str) -> int:
        """Return the slot that a word names: its place, its leg's path or UUID (or the start of it).

        Raises Refused(ENOENT).
        """
        return naming.find_slot(self._volume.record, word)

    # Out

    async def fail(self, word: str) -> None:
        """Expel a leg, or give up a hot spare.  EBUSY for the last one in sync."""
        async with self._turn:
            slot = self.find(word)
            keeper = self._volume.keeper
            if slot in self.standby:
                await self._give_up_spare(slot, 'failed by the admin')
                return
            if slot not in keeper.members and slot not in keeper.absent:
                state = self._record.slots[slot].state.word
                raise Refused(errno.EBUSY, f'leg {word} of {self._volume.name} is {state} already')
            self._refuse_last(slot, word)
            await keeper.open_session()
            self._refuse_last(slot, word)  # another leg may have been expelled just now
            keeper.expel({slot: 'failed by the admin'})
            await keeper.settle()

    def _refuse_last(self, slot: int, word: str) -> None:
        if self._volume.keeper.in_sync == [slot]:
            message = f'leg {word} is the last in-sync leg of {self._volume.name}; add another first'
            raise Refused(errno.EBUSY, message)
        alone = self._volume.narrower.needed(slot)
        if alone:
            message = f'leg {word} of {self._volume.name} has {alone} blocks that are bad on all others'
            raise Refused(errno.EBUSY, f'{message}; add another first')

    async def list_bad(self, slot: int, sector: int, count: int) -> None:
        """Put a range of a leg on its bad-block list: sectors of its data, widened to blocks of 4096 bytes.

        Raises Refused: EINVAL for a range beyond the data, EBUSY where no other leg in sync has all of it or
        the leg is not in use, ENOSPC where the list is full.
        """
        async with self._turn:
            volume, size = self._volume, self._volume.record.size
            if sector < 0 or count <= 0 or (sector + count) * limits.SECTOR > size:
                most = size // limits.SECTOR
                raise Refused(errno.EINVAL, f'sectors {sector} + {count}: the volume has {most} of them')
            first = sector * limits.SECTOR // BLOCK
            end = -(-(sector + count) * limits.SECTOR // BLOCK)
            offset, length = first * BLOCK, min(end * BLOCK, size) - first * BLOCK
            self._refuse_to_list(slot, Change(offset, length))
            async with volume.exclusive(*volume.chunks_of(offset, length)):
                await volume.keeper.open_session()
                await volume.make_equal(*volume.chunks_of(offset, length))
                await self._list_bad(slot, offset, length)
                volume.cache.changed(offset, length)

    def _refuse_to_list(self, slot: int, held: Change) -> Member:
        """Return the leg that may lack a range from now on.  Raises Refused(EBUSY) where others need it."""
        volume = self._volume
        member = volume.keeper.members.get(slot)
        if member is None:
            raise Refused(errno.EBUSY, f'leg {self._record.place(slot)} of {volume.name} is not in use')
        if volume.narrower.unheld(held, without=slot):
            message = f'no other leg of {volume.name} in sync has all of that'
            raise Refused(errno.EBUSY, message)
        return member

    async def _list_bad(self, slot: int, offset: int, length: int) -> None:
        volume, keeper = self._volume, self._volume.keeper
        member = self._refuse_to_list(slot, Change(offset, length))  # legs may have left just now
        if await volume.narrower.give_up_blocks(member, offset, length):
            most = limits.BAD_BLOCKS_MAX
            raise Refused(errno.ENOSPC, f'the list of {member.leg.path} has its {most} entries already')
        await keeper.settle()

    async def set_corrected(self, slot: int, count: int) -> None:
        """Set the count of a leg's mended blocks.  Raises Refused(EBUSY) for one that is not in use."""
        member = self._volume.keeper.members.get(slot)
        if member is None:
            raise Refused(errno.EBUSY, f'leg {self._record.place(slot)} of {self._volume.name} is not in use')
        member.corrected = count

    async def remove(self, word: str) -> None:
        """Take out a stale leg or a hot spare; ``failed``: all those, ``detached``: all that are not there.

        EBUSY for a leg that is in use, ENOENT where there is none such.
        """
        async with self._turn:
            if word in ('failed', 'detached'):
                await self._remove_all(word)
                return
            slot = self.find(word)
            state = self._record.slots[slot].state
            if not state.is_stale and state is not LegState.STANDBY:
                message = f'leg {word} of {self._volume.name} is {state.word}; fail it before removing it'
                raise Refused(errno.EBUSY, message)
            self.splitter.let_go(slot)
            await self._remove([slot])

    async def _remove_all(self, word: str) -> None:
        slots = list(self._record.where(LegState.FAULTY))
        if word == 'detached':
            stale = self._record.where(LegState.FAULTY, LegState.MISSING)
            slots = [n for n in stale if await self._opener.probe(self._record.slots[n].path) is None]
        if not slots:
            raise Refused(errno.ENOENT, f'no leg of {self._volume.name} is {word}')
        await self._remove(slots)

    async def _remove(self, slots: list[int]) -> None:
        keeper = self._volume.keeper
        await keeper.open_session()
        for slot in slots:
            path = keeper.record.slots[slot].path
            keeper.record = membership.remove(keeper.record, slot)
            if spare := self.standby.pop(slot, None):
                spare.leg.close()
            self._volume.emit('Removed', self._volume.name, path)
        await keeper.settle()

    # In

    async def add(
        self,
        path: str,
        *,
        force: bool = False,
        spare: bool = False,
        write_mostly: bool = False,
        failfast: bool = False,
    ) -> None:
        """Add a leg: one that left is taken back, any other gets all that was ever written.

        As a `spare` it waits, empty, until it takes the place of a leg that is gone.  EEXIST for a foreign
        signature without `force`, ENOSPC if too small, EBUSY if in use or full.
        """
        flags = {'write_mostly': write_mostly, 'failfast': failfast}

        def fresh(slot: int, identity: Slot) -> Callable[[VolumeRecord], VolumeRecord]:
            if spare:
                return lambda r: membership.stand_by(r, slot, identity.leg, identity.path, **flags)
            return lambda r: membership.join(r, slot, identity.leg, identity.path, **flags)

        await self._in_turn(lambda: self._add(path, force, fresh, spare=spare))

    async def replace(self, word: str, path: str, *, force: bool = False) -> None:
        """Bring a new leg up to date and let it take the place of another, which serves until then.

        `path` may be that of a hot spare, or ``spare`` for any, or else a shared one.  EBUSY where a
        replacement is under way.
        """
        await self._in_turn(lambda: self._replace(word, path, force))

    async def _replace(self, word: str, path: str, force: bool) -> None:
        record = self._record
        old = self.find(word)
        state = record.slots[old].state
        if state in (LegState.SPARE, LegState.STANDBY, LegState.SPLIT):
            raise Refused(errno.EBUSY, f'leg {word} of {record.name} is {state.word}; that is not replaced')
        if any(s.state is LegState.SPARE and s.replaces == old for s in record.slots):
            raise Refused(errno.EBUSY, f'leg {word} of {record.name} is being replaced already')
        for slot in sorted(self.standby):
            if path in ('spare', record.slots[slot].path):
                await self.take_place(slot, replaces=old)
                return
        if path == 'spare':
            if await self._take_shared(old):
                return
            raise Refused(errno.ENOENT, f'{record.name} has no spare')

        def fresh(slot: int, identity: Slot) -> Callable[[VolumeRecord], VolumeRecord]:
            return lambda r: membership.join(r, slot, identity.leg, identity.path, replaces=old)

        await self._add(path, force, fresh, anew=True)

    async def _in_turn(self, join: Callable[[], Awaitable[None]]) -> None:
        """Let a leg join; anew where legs were expelled, or recovered, by themselves meanwhile."""
        async with self._turn:
            for others in reversed(range(limits.SLOTS)):
                try:
                    await join()
                    return
                except Refused as refusal:
                    if refusal.errno != errno.EAGAIN or not others:
                        raise

    async def _add(
        self,
        path: str,
        force: bool,
        fresh: Callable[[int, Slot], Callable[[VolumeRecord], VolumeRecord]],
        *,
        spare: bool = False,
        anew: bool = False,
    ) -> None:
        """Open a leg and let it join; `anew` even if it is one that left (md's add-spare never re-adds)."""
        record = self._record
        slot = membership.free_slot(record)
        members = sum(1 for _ in record.where(LegState.IN_SYNC, LegState.SPARE))
        if slot is None or (members >= limits.LEGS_MAX and not spare):
            raise Refused(errno.EBUSY, f'{self._volume.name} has {members} legs; it can have no more')
        path = os.path.abspath(path)
        layout = wibm.new_layout(record.size, record.chunk_size)
        needed = layout.data_offset + record.size
        leg, created = await self._open(path, needed)
        try:
            takes_back = not (created or force or spare or anew)
            old = await self._joiner.own_slot(leg) if takes_back else None
            if old is not None:
                await self._joiner.take_back(old, leg)
                return
            await check_new_leg(self._opener, leg, created, needed, force=force)
            transition = fresh(slot, Slot(leg=self._volume.keeper.new_uuid(), path=path))
            if spare:
                await self._stand_by(slot, leg, layout, transition)
            else:
                await self._joiner.new(slot, leg, layout, transition)
        except BaseException:
            if not self._in_use(leg):
                leg.close()
                if created:
                    await self._opener.discard_new(leg)
            raise

    async def _open(self, path: str, create_size: int = 0) -> tuple[Leg, bool]:
        """As `Opener.open`, in bounded time."""
        patience = self._volume.keeper.leg_timeout
        return await open_in_time(self._opener, path, patience, create_size=create_size)

    def _in_use(self, leg: Leg) -> bool:
        return self._joiner.is_member(leg) or any(spare.leg is leg for spare in self.standby.values())

    async def move_log(self, place: str, *, force: bool = False) -> None:
        """Have the intent log elsewhere; see `mirrorfs.volume.logplace`."""
        async with self._turn:
            await move_log(self._volume, self._opener, place, force=force)

    async def re_add(self, word: str) -> None:
        """Take back a leg that left, or all for `missing`; copies what changed meanwhile where known."""
        if word == 'missing':
            await self._re_add_missing()
            return
        await self._in_turn(lambda: self._re_add(self.find(word)))

    async def welcome_back(self, slot: int, *, partial: bool) -> None:
        """Take back a leg that is there again, if no other has taken its place; see `Joiner.take_back`."""
        async with self._turn:
            if slot in self._volume.keeper.absent:
                await self._volume.keeper.open_session()  # has its absence recorded
            if membership.shortage(self._record) > 0 and self._record.slots[slot].state is LegState.MISSING:
                await self._re_add(slot, partial=partial)

    async def _re_add(self, slot: int, *, partial: bool = False) -> None:
        name, place = self._volume.name, self._record.place(slot)
        state = self._record.slots[slot].state
        if slot in self._volume.keeper.members or slot in self.standby:
            raise Refused(errno.EBUSY, f'leg {place} of {name} is {state.word} already')
        if state is LegState.SPLIT:
            raise Refused(errno.EBUSY, f'leg {place} of {name} is split off; merge it')
        await self._joiner.await_quarantine(slot)
        leg, _ = await self._open(self._record.slots[slot].path)
        try:
            await self._joiner.take_back(slot, leg, partial=partial)
        except BaseException:
            if not self._joiner.is_member(leg):
                leg.close()
            raise

    async def _re_add_missing(self) -> None:
        record = self._record
        absent = sorted(self._volume.keeper.absent)
        away = (LegState.FAULTY, LegState.MISSING, LegState.REMOVED)
        slots = [n for n, slot in enumerate(record.slots) if slot.state in away or n in absent]
        refusals = []
        for slot in slots:
            try:
                await self._in_turn(lambda slot=slot: self._re_add(slot))  # type: ignore[misc]
            except Refused as refusal:
                refusals.append(refusal)
        if len(refusals) == len(slots):
            raise refusals[0] if refusals else Refused(errno.ENOENT, f'no leg of {record.name} is missing')

    # Points in time

    async def split(self, word: str) -> None:
        """Let a leg leave as a point in time; see `mirrorfs.volume.splitting`."""
        async with self._turn:
            await self.splitter.split(self.find(word))

    async def merge(self, word: str = '') -> None:
        """Take a leg back that was split off: the one there is, unless named."""

        async def merge() -> None:
            split = next(self._record.where(LegState.SPLIT), None)
            if not word and split is None:
                raise Refused(errno.ENOENT, f'no leg of {self._volume.name} is split off')
            await self.splitter.merge(self.find(word) if word or split is None else split)

        await self._in_turn(merge)

    # Hot spares

    async def _stand_by(
        self,
        slot: int,
        leg: Leg,
        layout: wibm.Layout,
        transition: Callable[[VolumeRecord], VolumeRecord],
    ) -> None:
        """Make a leg a hot spare: it bears our superblock, and gets nothing else until it is needed."""
        keeper = self._volume.keeper
        await keeper.open_session()
        record = transition(keeper.record)
        identity, serial = record.slots[slot].leg, keeper.next_serial()
        with self._joiner.deadline(leg):
            await format_leg(leg, identity, slot, layout, self._volume.log, record, serial)
        if keeper.record.slots[slot].state not in (LegState.VACANT, LegState.REMOVED):
            raise Refused(errno.EAGAIN, f'{self._volume.name} just changed; try again')
        keeper.record = transition(keeper.record)
        self.standby[slot] = Spare(leg, layout)
        await keeper.settle()
        self._volume.emit('SpareAdded', self._volume.name, leg.path)

    async def fill_gap(self, replaces: int = -1) -> bool:
        """Let a hot spare, or else a shared one, take the place of a leg that is gone or is to be replaced.

        Return whether one did.  Raises OSError.
        """
        async with self._turn:
            if replaces < 0 and self._volume.keeper.absent and self._has_spare:
                await self._volume.keeper.open_session()  # has their absence recorded
            for slot in sorted(self.standby):
                wanted = replaces >= 0 or membership.shortage(self._record) > 0
                if not wanted:
                    return False
                try:
                    await self.take_place(slot, replaces=replaces)
                    return True
                except Refused as refusal:
                    if refusal.errno == errno.EAGAIN:
                        return False
                    await self._give_up_spare(slot, str(refusal))
            return await self._fill_with_shared(replaces)

    @property
    def _has_spare(self) -> bool:
        return bool(self.standby) or (self._shared is not None and offered(self._record, self._shared))

    async def _fill_with_shared(self, replaces: int) -> bool:
        if replaces < 0 and membership.shortage(self._record) <= 0:
            return False
        try:
            return await self._take_shared(replaces)
        except Refused as refusal:
            if refusal.errno != errno.EAGAIN:
                raise
            return False

    async def _take_shared(self, replaces: int) -> bool:
        return self._shared is not None and await take_shared(
            self._volume, self._joiner, self._shared, replaces
        )

    async def take_place(self, slot: int, *, replaces: int = -1) -> None:
        """Begin to recover a hot spare.  Raises Refused; EAGAIN where the volume has just changed."""
        spare = self.standby[slot]
        record, needed = self._record, spare.layout.data_offset + self._record.size
        if spare.leg.size < needed or spare.layout.chunks_max < record.chunks:
            message = f'{spare.leg.path} has become too small: {needed} bytes are needed, with a log to match'
            raise Refused(errno.ENOSPC, message)

        def transition(record: VolumeRecord) -> VolumeRecord:
            return membership.take_place(record, slot, replaces)

        try:
            await self._joiner.new(slot, spare.leg, spare.layout, transition)
        except OSError as error:
            if not self._joiner.is_member(spare.leg):
                reason = f'{spare.leg.path}: {error.strerror or error}'
                raise Refused(error.errno or errno.EIO, reason) from None
            raise
        finally:
            if self._joiner.is_member(spare.leg):
                del self.standby[slot]

    async def _give_up_spare(self, slot: int, why: str) -> None:
        spare, keeper = self.standby.pop(slot), self._volume.keeper
        spare.leg.close()
        self._volume.emit('FailSpare', self._volume.name, spare.leg.path, why)
        await keeper.open_session()
        keeper.record = membership.give_up(keeper.record, slot)
        await keeper.settle()

    # Words on legs

    async def set_flag(self, slot: int, flag: str, value: bool) -> None:
        """Say of a leg that it is write-mostly, failfast, or wants a replacement; see `FLAGS`."""
        volume, keeper = self._volume, self._volume.keeper
        async with self._turn:
            if getattr(self._record.slots[slot], flag) == value:
                return
            await keeper.open_session()
            async with volume.exclusive(0, len(volume.log) - 1):
                if flag == 'write_mostly' and not value:
                    await self._catch_up([slot])
                changed = keeper.record.slots[slot].but(**{flag: value})
                keeper.record = keeper.record.but(events=keeper.record.events + 1).with_slot(slot, changed)
                volume.legs_changing()
                await keeper.settle()
        self.hurry.set()

    async def set_backlog(self, limit: int) -> None:
        """Let write-mostly legs be up to `limit` writes behind; 0 for none.  EINVAL without such a leg."""
        if not 0 <= limit <= limits.BACKLOG_MAX:
            raise Refused(errno.EINVAL, f'{limit} writes; a leg can be 0 to {limits.BACKLOG_MAX} behind')
        async with self._turn:
            volume, keeper = self._volume, self._volume.keeper
            if limit and not any(slot.write_mostly for slot in keeper.record.slots):
                raise Refused(errno.EINVAL, f'{volume.name} has no write-mostly leg that could be behind')
            await keeper.open_session()
            async with volume.exclusive(0, len(volume.log) - 1):
                await self._catch_up(list(keeper.members))
                keeper.record = keeper.record.but(backlog=limit, events=keeper.record.events + 1)
                volume.legs_changing()
                await keeper.settle()

    async def _catch_up(self, slots: list[int]) -> None:
        """Have these legs behind no more, durably; while all chunks are held."""
        keeper = self._volume.keeper
        await self._volume.catch_up(slots)
        for slot in slots:
            keeper.record = keeper.record.with_slot(slot, keeper.record.slots[slot].but(behind=False))

    async def block(self, slot: int) -> None:
        """Hold up all writes until `unblock`.  EBUSY for a leg that gets none."""
        if slot not in self._volume.keeper.members:
            raise Refused(errno.EBUSY, f'leg {self._record.place(slot)} of {self._volume.name} is not in use')
        await self._volume.block(slot)

    async def unblock(self, slot: int) -> None:
        self._volume.unblock(slot)
        await trio.lowlevel.checkpoint()

    async def set_raid_disks(self, count: int) -> None:
        """Change how many legs are wanted.  EINVAL for what cannot be, EBUSY below those that there are."""
        if not 1 <= count <= limits.LEGS_MAX:
            raise Refused(errno.EINVAL, f'{count} legs; a volume has 1 to {limits.LEGS_MAX}')
        async with self._turn:
            keeper = self._volume.keeper
            if keeper.record.has(LegState.SPLIT):
                raise Refused(errno.EBUSY, f'{self._volume.name} has a leg split off; merge it first')
            self._refuse_to_have(count)
            await keeper.open_session()
            self._refuse_to_have(count)  # a leg may have come back just now
            if count == keeper.record.raid_disks:
                return
            keeper.record = membership.resize(keeper.record, count)
            await keeper.settle()
            await self._volume.forget_modified()
        self.hurry.set()

    def _refuse_to_have(self, count: int) -> None:
        """Raise Refused(EBUSY) where so few legs are fewer than there are, or than writes need."""
        record = self._record
        there = record.raid_disks - membership.shortage(record)
        if count < there:
            message = f'{record.name} has {there} legs; fail and remove some before it has {count}'
            raise Refused(errno.EBUSY, message)
        if count < record.quorum:
            wanted = f'writes to {record.name} need {record.quorum} legs'
            raise Refused(errno.EBUSY, f'{wanted}; lower its quorum first')

    async def move(self, word: str, path: str) -> None:
        """A leg lies at another path, or shall: a file of the same filesystem is moved there.

        EEXIST for a path where something else is, EXDEV for one on another filesystem (use replace), EINVAL
        where a leg that is away is not what lies there.
        """
        path = os.path.abspath(path)
        await self._opener.admit(path)
        async with self._turn:
            slot = self.find(word)
            keeper = self._volume.keeper
            if self._record.slots[slot].state is LegState.SPLIT:
                raise Refused(errno.EBUSY, f'leg {word} of {self._volume.name} is split off; merge it first')
            leg = self.standby[slot].leg if slot in self.standby else None
            leg = keeper.members[slot].leg if slot in keeper.members else leg
            if leg is None:
                await self._check_moved(slot, path)
            old = await leg.move(path) if leg else ''
            await keeper.open_session()
            keeper.record = keeper.record.with_slot(slot, keeper.record.slots[slot].but(path=path))
            await keeper.commit()
            if leg:
                await leg.moved(old)
            self._volume.emit('LegMoved', self._volume.name, path)

    async def _check_moved(self, slot: int, path: str) -> None:
        leg, _ = await self._open(path)
        try:
            if await self._joiner.own_slot(leg) != slot:
                raise Refused(errno.EINVAL, f'{path} is not leg {self._record.place(slot)}')
        finally:
            leg.close()
