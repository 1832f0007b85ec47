"""The verbs that change a volume's legs: add, remove, fail, re-add.

A refused verb raises Refused and has changed nothing.  Verbs of one volume go one after another.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.formatting import format_leg, read_super
from mirrorfs.mirror.membership import Kinship, kinship
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume.creation import check_new_leg
from mirrorfs.volume.lifecycle import Started
from mirrorfs.volume.logplace import move_log
from mirrorfs.volume.volume import make_room


class Admin:
    """Changes the legs of one started volume."""

    def __init__(self, started: Started, opener: Opener) -> None:
        self._started = started
        self._volume = started.volume
        self._opener = opener
        self._turn = trio.Lock()

    def find(self, word: str) -> int:
        """Return the slot that a word names: its number, its leg's path or UUID (or the start of it).

        Raises Refused(ENOENT).
        """
        slots = self._volume.record.slots
        known = [n for n, slot in enumerate(slots) if slot.state is not LegState.VACANT]
        if word.isascii() and word.isdigit() and int(word) in known:
            return int(word)
        for number in known:
            if slots[number].path and os.path.abspath(word) == os.path.abspath(slots[number].path):
                return number
        alike = [n for n in known if len(word) >= 4 and str(slots[n].leg).startswith(word.lower())]
        if len(alike) == 1:
            return alike[0]
        have = ', '.join(f'{n} ({slots[n].path})' for n in known)
        raise Refused(errno.ENOENT, f'{self._volume.name} has no leg {word!r}; it has {have}')

    async def fail(self, word: str) -> None:
        """Expel a leg.  EBUSY for the last one in sync."""
        async with self._turn:
            slot = self.find(word)
            keeper = self._volume.keeper
            if slot not in keeper.members and slot not in keeper.absent:
                state = self._volume.record.slots[slot].state.word
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

    async def remove(self, word: str) -> None:
        """Take a stale leg out.  EBUSY while it is in use."""
        async with self._turn:
            slot = self.find(word)
            state = self._volume.record.slots[slot].state
            if not state.is_stale:
                message = f'leg {word} of {self._volume.name} is {state.word}; fail it before removing it'
                raise Refused(errno.EBUSY, message)
            keeper = self._volume.keeper
            await keeper.open_session()
            keeper.record = membership.remove(keeper.record, slot)
            await keeper.settle()
            self._volume.emit('Removed', self._volume.name, keeper.record.slots[slot].path)

    async def add(self, path: str, *, force: bool = False) -> None:
        """Add a leg: one that left is taken back, any other gets all that was ever written.

        EEXIST for a foreign signature without `force`, ENOSPC if too small, EBUSY if in use or full.
        """
        await self._in_turn(lambda: self._add(path, force))

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

    async def _add(self, path: str, force: bool) -> None:
        record = self._volume.record
        slot = membership.free_slot(record)
        members = sum(1 for _ in record.where(LegState.IN_SYNC, LegState.SPARE))
        if slot is None or members >= limits.LEGS_MAX:
            raise Refused(errno.EBUSY, f'{self._volume.name} has {members} legs; it can have no more')
        path = os.path.abspath(path)
        layout = wibm.new_layout(record.size, record.chunk_size)
        needed = layout.data_offset + record.size
        leg, created = await self._opener.open(path, create_size=needed)
        try:
            old = None if created or force else await self._own_slot(leg)
            if old is not None:
                await self._take_back(old, leg)
                return
            await check_new_leg(self._opener, leg, created, needed, force=force)
            identity = self._volume.keeper.new_uuid()
            with self._deadline(leg):
                zeroed = await leg.erase(layout.data_offset, record.size)
            await self._volume.keeper.open_session()
            await self._join(slot, leg, layout, lambda r: membership.join(r, slot, identity, path), zeroed)
        except BaseException:
            if not self._is_member(leg):
                leg.close()
                if created:
                    await self._opener.discard_new(leg)
            raise

    async def move_log(self, place: str, *, force: bool = False) -> None:
        """Have the intent log elsewhere; see `mirrorfs.volume.logplace`."""
        async with self._turn:
            await move_log(self._volume, self._opener, place, force=force)

    async def re_add(self, word: str) -> None:
        """Take back a leg that left, or all for `missing`; copies what changed meanwhile where known."""
        if word == 'missing':
            await self._re_add_missing()
            return
        await self._in_turn(lambda: self._re_add(word))

    async def _re_add(self, word: str) -> None:
        slot = self.find(word)
        if slot in self._volume.keeper.members:
            state = self._volume.record.slots[slot].state
            raise Refused(errno.EBUSY, f'leg {word} of {self._volume.name} is {state.word} already')
        await self._await_quarantine(slot)
        leg, _ = await self._opener.open(self._volume.record.slots[slot].path)
        try:
            await self._take_back(slot, leg)
        except BaseException:
            if not self._is_member(leg):
                leg.close()
            raise

    def _is_member(self, leg: Leg) -> bool:
        return any(member.leg is leg for member in self._volume.members)

    @contextmanager
    def _deadline(self, leg: Leg) -> Iterator[None]:
        """Bound what a leg that is to join may keep others waiting for.  Raises Refused(ETIMEDOUT)."""
        patience = self._volume.keeper.leg_timeout
        with trio.move_on_after(patience) as scope:
            yield
        if scope.cancelled_caught:
            raise Refused(errno.ETIMEDOUT, f'{leg.path} did not answer within {patience:g} s')

    async def _re_add_missing(self) -> None:
        record = self._volume.record
        absent = sorted(self._volume.keeper.absent)
        slots = [n for n, slot in enumerate(record.slots) if slot.state.is_stale or n in absent]
        refusals = []
        for slot in slots:
            try:
                await self.re_add(str(slot))
            except Refused as refusal:
                refusals.append(refusal)
        if len(refusals) == len(slots):
            raise refusals[0] if refusals else Refused(errno.ENOENT, f'no leg of {record.name} is missing')

    async def _await_quarantine(self, slot: int) -> None:
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

    async def _own_slot(self, leg: Leg) -> int | None:
        """Return the stale slot that a leg's own superblock shows it to belong to, if any."""
        try:
            sup, _ = await read_super(leg)
        except BadMetadata:
            return None
        record = self._volume.record
        if sup.record.uuid != record.uuid:
            return None
        return next((n for n, s in enumerate(record.slots) if s.leg == sup.leg and s.state.is_stale), None)

    async def _take_back(self, slot: int, leg: Leg) -> None:
        """Let an opened leg rejoin as `slot`.  Raises Refused before anything is written."""
        volume = self._volume
        sup = await self._check_kin(slot, leg)
        await volume.keeper.open_session()
        record = volume.record
        caught_up = membership.can_catch_up(record, slot, sup.record)
        base = sup.layout.data_offset
        known = sup.record.size if caught_up else 0
        """Up to here the leg is as the log says, or will be: beyond, it may hold anything."""
        with self._deadline(leg):
            zeroed = known == record.size or await make_room(leg, base + known, base + record.size)

        def rejoin(record: VolumeRecord) -> VolumeRecord:
            forgotten = not record.slots[slot].state.is_stale  # another leg took its place just now
            if forgotten or membership.can_catch_up(record, slot, sup.record) != caught_up:
                raise Refused(errno.EAGAIN, f'{record.name} just changed; try again')
            return membership.rejoin(record, slot, leg.path, caught_up=caught_up)

        await self._join(slot, leg, sup.layout, rejoin, zeroed)

    async def _check_kin(self, slot: int, leg: Leg) -> wibm.LegSuper:
        record, path = self._volume.record, leg.path
        try:
            sup, _ = await read_super(leg)
        except BadMetadata as bad:
            raise Refused(errno.EINVAL, f'{path}: {bad}; use add to make it a new leg') from None
        theirs = sup.record
        if theirs.uuid != record.uuid:
            found = f'{path} belongs to volume {theirs.name} ({theirs.uuid})'
            raise Refused(errno.EINVAL, f'{found}, not to {record.name} ({record.uuid})')
        if sup.leg != record.slots[slot].leg:
            message = f'{path} is leg {sup.leg}, slot {slot} of {record.name} is leg {record.slots[slot].leg}'
            raise Refused(errno.EINVAL, message)
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
        return sup

    async def _join(
        self,
        slot: int,
        leg: Leg,
        layout: wibm.Layout,
        transition: Callable[[VolumeRecord], VolumeRecord],
        zeroed: bool,
    ) -> None:
        """Make a leg a member by a transition of the record, with no write in flight that it would miss."""
        volume, keeper = self._volume, self._volume.keeper
        async with volume.exclusive(0, len(volume.log) - 1):
            before = keeper.record
            joined = self._allowed(slot, transition, before)
            if not zeroed:
                volume.log.update_chunks(volume.log.where(UNWRITTEN), set_=UNZEROED)
            volume.log.update_chunks(volume.log.where(DIRTY, UNWRITTEN), set_=MODIFIED)
            identity = joined.slots[slot].leg
            serial = keeper.next_serial()
            with self._deadline(leg):
                member = await format_leg(leg, identity, slot, layout, volume.log, joined, serial)
            if keeper.record.events != before.events:  # a leg was expelled, or recovered, meanwhile
                raise Refused(errno.EAGAIN, f'{volume.name} just changed; try again')
            keeper.record = transition(keeper.record)
            keeper.members[slot] = member
            keeper.quarantine.pop(slot, None)
            volume.legs_changing()
            await keeper.commit()
        self._started.rebuilder.wake()

    def _allowed(
        self, slot: int, transition: Callable[[VolumeRecord], VolumeRecord], record: VolumeRecord
    ) -> VolumeRecord:
        """Return the record after a transition; EAGAIN where the slot is no longer there to be taken."""
        state = record.slots[slot].state
        if state.is_member or self._volume.broken:
            raise Refused(errno.EAGAIN, f'{record.name} just changed; try again')
        return transition(record)
