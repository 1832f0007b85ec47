"""Legs that vanish under us, and legs that come back.

A leg whose file was removed, replaced, cut short or unplugged fails within seconds, though nothing may be
written meanwhile; the last one in sync stays, with a critical event.  A log outside the legs is given up
likewise, and followed where somebody has renamed it.  A leg that is away is looked for at its path, and taken
back if the volume's policy and its own superblock allow it; each time that something else is found there,
once.
"""

import trio

from mirrorfs.errors import Refused
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.mirror import membership
from mirrorfs.mirror.logfile import LogFile
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState, ReturnPolicy
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.volume import Volume

PATIENCE = 1.0
"""Seconds that a path has to answer; one that does not is looked at again next time."""


async def _departed(leg: Leg, needed: int) -> str:
    """As `Leg.departed`; one that does not answer in time has not."""
    why = ''
    with trio.move_on_after(PATIENCE):
        try:
            why = await leg.departed(needed)
        except OSError as error:
            why = f'does not say what it is: {error.strerror or error}'
    return why


class Watcher:
    """Watches the legs of one volume, and its log if that is outside them."""

    def __init__(self, volume: Volume, admin: Admin, opener: Opener, interval: float) -> None:
        self._volume = volume
        self._admin = admin
        self._opener = opener
        self._interval = interval
        self._complained: set[int] = set()
        self._tried: dict[int, object] = {}
        """What was at the path of a leg that is away when it was last looked at (see `Opener.probe`)."""

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            await trio.sleep(self._interval)
            try:
                await self.look()
            except OSError as error:
                self._volume.emit('Error', self._volume.name, '', f'watching legs: {error.strerror or error}')

    async def look(self) -> None:
        """Look at every leg once.  Raises OSError where what was found cannot be recorded."""
        if self._volume.broken:
            return
        for member in self._volume.members:
            await self._look_at(member)
        if self._volume.keeper.outside:
            await self._look_at_log(self._volume.keeper.outside)
        for slot in self._away():
            await self._look_for(slot)

    # Those that are here

    async def _look_at(self, member: Member) -> None:
        volume, keeper = self._volume, self._volume.keeper
        why = await _departed(member.leg, member.layout.data_offset + volume.record.size)
        if keeper.members.get(member.slot) is not member:
            return
        if not why:
            self._complained.discard(member.slot)
            await self._follow(member)
        elif keeper.in_sync == [member.slot]:
            if member.slot not in self._complained:
                self._complained.add(member.slot)
                volume.emit('Critical', volume.name, member.leg.path, f'the last leg in sync {why}')
        else:
            await keeper.open_session()
            if keeper.in_sync != [member.slot]:
                keeper.expel({member.slot: why}, LegState.MISSING)
                await keeper.settle()

    async def _follow(self, member: Member) -> None:
        """Record where a leg is that somebody has moved."""
        keeper = self._volume.keeper
        slot = keeper.record.slots[member.slot]
        if member.leg.path != slot.path:
            keeper.record = keeper.record.with_slot(member.slot, slot.but(path=member.leg.path))
            await keeper.commit()
            self._volume.emit('LegMoved', self._volume.name, member.leg.path, f'from {slot.path}')

    # The log outside them

    async def _look_at_log(self, file: LogFile) -> None:
        """Give up a log that is not there any more, before a start does not find it."""
        volume, keeper = self._volume, self._volume.keeper
        why = await _departed(file.leg, file.layout.size)
        if keeper.outside is not file or keeper.record.log_id != file.identity:  # it is being moved
            return
        if why:
            await keeper.open_session()
            if keeper.outside is file:
                keeper.lose_log(file, why)
                await keeper.settle()
        elif file.leg.path != keeper.record.log_path:
            old, path = keeper.record.log_path, file.leg.path
            keeper.record = keeper.record.but(log_path=path)
            await keeper.commit()
            volume.emit('LogMoved', volume.name, path, f'from {old}')

    # Those that are away

    def _away(self) -> list[int]:
        """Return the slots of legs that may come back by themselves.

        Not those that the admin failed or removed; one that failed by itself may, if it is not even there.
        """
        record, keeper = self._volume.record, self._volume.keeper
        gone = set(record.where(LegState.MISSING)) | keeper.absent
        return sorted(gone | {slot for slot in keeper.faulted if record.slots[slot].state is LegState.FAULTY})

    async def _look_for(self, slot: int) -> None:
        volume, keeper = self._volume, self._volume.keeper
        path, found = volume.record.slots[slot].path, None
        with trio.move_on_after(PATIENCE) as scope:
            found = await self._opener.probe(path)
        if scope.cancelled_caught:
            return
        if volume.record.slots[slot].state is LegState.FAULTY:
            if found is None:
                keeper.record = membership.depart(keeper.record, slot)
                await keeper.settle()
                self._tried[slot] = None
            return
        before = self._tried.get(slot, None)
        self._tried[slot] = found
        if found is None or found == before or volume.record.return_policy is ReturnPolicy.NONE:
            return
        left = keeper.quarantine.get(slot)
        if left and not left.leg.is_found(found):
            text = 'is not the leg that was there; re-add it if it is wanted'
            volume.emit('StaleLeg', volume.name, path, text)
            return
        try:
            await self._admin.welcome_back(
                slot, partial=volume.record.return_policy is ReturnPolicy.PARTIAL
            )
        except Refused as refusal:
            volume.emit('StaleLeg', volume.name, path, f'is there again and stays away: {refusal}')
