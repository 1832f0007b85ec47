"""How a leg joins a started volume: one that left is taken back, a new one gets all that was ever written.

What would refuse it is looked at before anything is written.
"""

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager

import trio

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Leg
from mirrorfs.leg.patience import deadline
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.formatting import format_leg, read_super
from mirrorfs.mirror.member import Member
from mirrorfs.mirror.membership import Kinship, kinship
from mirrorfs.model import VolumeRecord
from mirrorfs.volume.lifecycle import Started
from mirrorfs.volume.space import erased, make_room

Transition = Callable[[VolumeRecord], VolumeRecord]


class Joiner:
    """Lets legs join one started volume."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._volume = started.volume

    def is_member(self, leg: Leg) -> bool:
        return any(member.leg is leg for member in self._volume.members)

    def deadline(self, leg: Leg) -> AbstractContextManager[None]:
        """Bound what a leg that is to join may keep others waiting for.  Raises Refused(ETIMEDOUT)."""
        return deadline(leg, self._volume.keeper.leg_timeout)

    async def new(
        self,
        slot: int,
        leg: Leg,
        layout: wibm.Layout,
        transition: Transition,
        idle_page: bytes = bytes(limits.PAGE),
    ) -> None:
        """Let a leg join that holds nothing of ours; `idle_page` as for `format_leg`.

        Raises Refused, OSError.
        """
        with self.deadline(leg):
            zeroed = await erased(leg, layout.data_offset, self._volume.record.size)
        await self._volume.keeper.open_session()
        await self._join(slot, leg, layout, transition, zeroed, idle_page=idle_page)

    async def await_quarantine(self, slot: int) -> None:
        """A leg with a call in the kernel must not come back: the call may land on it at any time."""
        member = self._volume.keeper.quarantine.get(slot)
        if member:
            await self._volume.hot.settle()
            member.leg.close()
        with trio.move_on_after(limits.QUARANTINE_PATIENCE):
            while member and member.leg.calls:
                await trio.sleep(0.05)
        if member and member.leg.calls:
            message = f'{member.leg.path} still has {member.leg.calls} calls under way from before it failed'
            raise Refused(errno.EBUSY, message)

    async def own_slot(self, leg: Leg) -> int | None:
        """Return the stale slot that a leg's own superblock shows it to belong to, if any."""
        try:
            sup, _ = await read_super(leg)
        except BadMetadata:
            return None
        record = self._volume.record
        if sup.record.uuid != record.uuid:
            return None
        return next((n for n, s in enumerate(record.slots) if s.leg == sup.leg and s.state.is_stale), None)

    async def take_back(
        self, slot: int, leg: Leg, *, partial: bool = False, changed: bool = False
    ) -> None:
        """Let an opened leg rejoin as `slot`.  Raises Refused before anything is written.

        With `partial` only a leg whose absence was tracked: EAGAIN for one that needs everything.  `changed`:
        somebody may have written to the leg while it was away, so all of it is copied.
        """
        volume = self._volume
        sup, known = await self._check_kin(slot, leg)
        with self.deadline(leg):
            await known.load_log(sup.record)
        old_copy = self._is_old_copy(slot, known)

        def can_catch_up(record: VolumeRecord) -> bool:
            return not (old_copy or changed) and membership.can_catch_up(record, slot, sup.record)

        if partial and not can_catch_up(volume.record):
            raise Refused(errno.EAGAIN, f'{leg.path} needs a full recovery; re-add it')
        await volume.keeper.open_session()
        caught_up = can_catch_up(volume.record)
        await self._forget(slot, tracked=caught_up)
        record = volume.record
        base = sup.layout.data_offset
        end = sup.record.size if caught_up else 0
        """Up to here the leg is as the log says, or will be: beyond, it may hold anything."""
        with self.deadline(leg):
            zeroed = end == record.size or await make_room(leg, base + end, base + record.size)

        def rejoin(record: VolumeRecord) -> VolumeRecord:
            forgotten = not record.slots[slot].state.is_stale  # another leg took its place just now
            if forgotten or can_catch_up(record) != caught_up:
                raise Refused(errno.EAGAIN, f'{record.name} just changed; try again')
            return membership.rejoin(record, slot, leg.path, caught_up=caught_up)

        await self._join(slot, leg, sup.layout, rejoin, zeroed, known)

    async def _forget(self, slot: int, *, tracked: bool) -> None:
        """A leg is about to be written to: it is no point in time any more.

        And if all of it will be copied it must not look, after a crash, like one that lacks only a part.
        """
        keeper = self._volume.keeper
        before = keeper.record.slots[slot]
        after = before.but(stamp='', tracked_since=before.tracked_since if tracked else 0)
        if after != before:
            keeper.record = keeper.record.with_slot(slot, after)
            await keeper.commit()

    def _is_old_copy(self, slot: int, known: Member) -> bool:
        """Whether a leg is an older copy of the one that left.

        Chunks may have been written and become clean since it was made: their marks are on the leg that left,
        but where the log is outside the legs.
        """
        left = self._volume.keeper.quarantine.get(slot)
        if left is None:
            return False
        moved = self._volume.record.log_is_outside and left.leg.identity != known.leg.identity
        return moved or known.log_serial < left.log_serial

    async def _check_kin(self, slot: int, leg: Leg) -> tuple[wibm.LegSuper, Member]:
        """Return what a leg says of itself, and the leg as it knows its bad blocks.  Raises Refused."""
        record, path = self._volume.record, leg.path
        try:
            sup, copy = await read_super(leg)
            known = Member.from_super(leg, sup, copy)
            if sup.record.uuid == record.uuid:
                await known.load_bad(record.uuid)
        except BadMetadata as bad:
            raise Refused(errno.EINVAL, f'{path}: {bad}; use add to make it a new leg') from None
        theirs, place = sup.record, record.place(slot)
        if theirs.uuid != record.uuid:
            found = f'{path} belongs to volume {theirs.name} ({theirs.uuid})'
            raise Refused(errno.EINVAL, f'{found}, not to {record.name} ({record.uuid})')
        if sup.leg != record.slots[slot].leg:
            wanted = f'slot {place} of {record.name} is leg {record.slots[slot].leg}'
            raise Refused(errno.EINVAL, f'{path} is leg {sup.leg}, {wanted}')
        if kinship(theirs.lineage, record.lineage) not in (Kinship.SAME, Kinship.ANCESTOR):
            raise Refused(
                errno.EINVAL,
                f'{path} was changed apart: it has generation {theirs.lineage[-1].uuid} (events '
                f'{theirs.events}), {record.name} has {record.lineage[-1].uuid} (events {record.events}); '
                'to give up what it has, remove it and add it with --force',
            )
        if leg.size < sup.needed_size:
            # It may have been cut short and grown again by others: what it lost then nobody knows.
            found = f'{path} has {leg.size} bytes, it had {sup.needed_size} at least; give it back its size'
            raise Refused(errno.ENOSPC, f'{found}, or remove it and add it with --force')
        return sup, known

    async def _join(
        self,
        slot: int,
        leg: Leg,
        layout: wibm.Layout,
        transition: Transition,
        zeroed: bool,
        known: Member | None = None,
        idle_page: bytes = bytes(limits.PAGE),
    ) -> None:
        """Make a leg a member by a transition of the record, with no write in flight that it would miss.

        `known`: the leg as it was before, whose bad blocks stay bad.
        """
        volume, keeper = self._volume, self._volume.keeper
        async with volume.exclusive(0, len(volume.log) - 1):
            before = keeper.record
            joined = self._allowed(slot, transition, before)
            if not zeroed:
                volume.log.update_chunks(volume.log.where(UNWRITTEN), set_=UNZEROED)
            volume.log.update_chunks(volume.log.where(DIRTY, UNWRITTEN), set_=MODIFIED)
            identity = joined.slots[slot].leg
            serial = keeper.next_serial()
            with self.deadline(leg):
                member = await format_leg(
                    leg, identity, slot, layout, volume.log, joined, serial, known, idle_page
                )
            if keeper.record.events != before.events:  # a leg was expelled, or recovered, meanwhile
                raise Refused(errno.EAGAIN, f'{volume.name} just changed; try again')
            keeper.members[slot] = member
            keeper.record = transition(keeper.record)
            keeper.quarantine.pop(slot, None)
            volume.legs_changing()
            await keeper.commit()
        self._started.rebuilder.wake()

    def _allowed(self, slot: int, transition: Transition, record: VolumeRecord) -> VolumeRecord:
        """Return the record after a transition; EAGAIN where the slot is no longer there to be taken."""
        state = record.slots[slot].state
        if state.is_member or self._volume.broken:
            raise Refused(errno.EAGAIN, f'{record.name} just changed; try again')
        return transition(record)
