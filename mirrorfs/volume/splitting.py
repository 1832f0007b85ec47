"""A leg split off as a point in time: it leaves whole, is read as an image of its own, and is merged back.

While it is away the daemon holds it open and locked, and what the volume is written meanwhile is tracked as
for any leg that left.  Merging copies just that, unless the leg's `stamp` says that somebody has changed it:
then all of it is copied, as where nothing was tracked, or the leg lies on a device and the daemon was started
anew, for nobody knows what was done to it in between.

The pool records the stamp once the leg has left, and forgets it before anything is written to the leg again;
with a stamp the leg is a point in time, and served.
"""

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs import limits
from mirrorfs.errors import LegTimeout, Refused
from mirrorfs.intent.states import DIRTY, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.leg.patience import open_in_time
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.volume import Emit, Volume

if TYPE_CHECKING:
    from mirrorfs.volume.joining import Joiner
    from mirrorfs.volume.lifecycle import Found

SUFFIX = '@split'
"""What the image of such a leg has behind the volume's name."""


class SplitOff:
    """A leg that is split off, as an image that is only read.

    `size` and `chunk_size` in bytes, those of the volume when it left; `unwritten` (bool [chunks]): the
    chunks that were never written by then, which read as zeros whatever the leg holds there.
    """

    def __init__(
        self,
        member: Member,
        size: int,
        chunk_size: int,
        unwritten: npt.NDArray[np.bool_],
        patience: float,
    ) -> None:
        self.slot = member.slot
        self.leg = member.leg
        self.size = size
        self.opened = 0
        """Open handles of the image."""
        self._base = member.layout.data_offset
        self._chunk_size = chunk_size
        self._unwritten = unwritten
        self._patience = patience

    @property
    def written_bytes(self) -> int:
        """Bytes of the chunks that were ever written."""
        return min(int(np.count_nonzero(~self._unwritten)) * self._chunk_size, self.size)

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there are in the range; fewer than `length` at the end.  Raises OSError."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b''
        whole = bytearray(length)
        first, last = offset // self._chunk_size, (offset + length - 1) // self._chunk_size
        written = first + np.flatnonzero(~self._unwritten[first : last + 1])
        with trio.move_on_after(self._patience) as scope:
            for low, high in runs(written):
                start = max(offset, low * self._chunk_size)
                end = min(offset + length, (high + 1) * self._chunk_size)
                data = await self.leg.read(self._base + start, end - start)
                whole[start - offset : end - offset] = data
        if scope.cancelled_caught:
            raise LegTimeout(f'{self.leg.path} did not answer within {self._patience:g} s')
        return bytes(whole)


async def reopen(
    record: VolumeRecord, found: Mapping[int, 'Found'], emit: Emit, patience: float
) -> SplitOff | None:
    """Return the leg at hand that was split off before the volume started, if there is one."""
    for slot in record.where(LegState.SPLIT):
        if slot not in found or not record.slots[slot].stamp:
            continue
        leg = found[slot]
        theirs, member = leg.sup.record, Member.from_super(leg.leg, leg.sup, leg.copy)
        try:
            with trio.fail_after(patience):
                image = await member.load_log(theirs)
        except (OSError, trio.TooSlowError) as error:
            why = str(error) or 'it does not answer'
        else:
            if not image.damaged:
                unwritten = (image.states & np.uint8(UNWRITTEN)) != 0
                return SplitOff(member, theirs.size, theirs.chunk_size, unwritten, patience)
            why = f'{image.damaged} pages of its log are damaged'
        emit('Error', record.name, leg.leg.path, f'is split off, and cannot be served: {why}')
    return None


class Splitter:
    """Splits legs off one started volume, one at a time, and merges them back."""

    def __init__(self, volume: Volume, opener: Opener, joiner: 'Joiner', held: SplitOff | None) -> None:
        self._volume = volume
        self._opener = opener
        self._joiner = joiner
        self.held = held
        """The leg that is split off, open and locked, and served."""

    def close(self) -> None:
        """Let go of the leg that is split off."""
        if self.held:
            self.held.leg.close()
            self.held = None

    async def split(self, slot: int) -> None:
        """Let a leg leave, with all that was acknowledged by now.  Raises Refused, OSError."""
        volume, keeper = self._volume, self._volume.keeper
        self._refuse_to_split(slot)
        await keeper.open_session()
        async with volume.exclusive(0, len(volume.log) - 1):
            self._refuse_to_split(slot)
            await volume.catch_up([slot])
            await volume.flush()
            volume.log.update_chunks(volume.log.where(DIRTY), clear=DIRTY)
            await keeper.commit()
            self._refuse_to_split(slot)
            member = keeper.split_off(slot)
            unwritten = (volume.log.states & np.uint8(UNWRITTEN)) != 0
            record = volume.record
            held = SplitOff(member, record.size, record.chunk_size, unwritten, keeper.leg_timeout)
            self.held = held
            await keeper.settle()
        await self._record_stamp(held)
        volume.emit('LegSplit', volume.name, held.leg.path, f'is served as {volume.name}{SUFFIX}')

    def _refuse_to_split(self, slot: int) -> None:
        """Raise Refused(EBUSY) for a leg that cannot be split off now."""
        volume, keeper = self._volume, self._volume.keeper
        place = volume.record.place(slot)
        if volume.record.has(LegState.SPLIT):
            raise Refused(errno.EBUSY, f'{volume.name} has a leg split off already; merge it first')
        if slot not in keeper.counting:
            state = volume.record.slots[slot].state.word
            wanted = 'one in sync can be split off'
            raise Refused(errno.EBUSY, f'leg {place} of {volume.name} is {state}; {wanted}')
        left = [other for other in keeper.in_sync if other != slot]
        if not left:
            message = f'leg {place} is the last in-sync leg of {volume.name}; add another first'
            raise Refused(errno.EBUSY, message)
        if len(left) < volume.record.quorum:
            wanted = f'writes to {volume.name} need {volume.record.quorum} legs'
            raise Refused(errno.EBUSY, f'{wanted}; add another, or lower its quorum first')
        if keeper.members[slot].bad or volume.narrower.needed(slot):
            raise Refused(errno.EBUSY, f'leg {place} of {volume.name} has bad blocks, or the others have')
        if volume.log.count(NEEDS_RESYNC):
            raise Refused(errno.EBUSY, f'{volume.name} is still to be resynced; wait for that')

    async def _record_stamp(self, held: SplitOff) -> None:
        """Have it durable what the leg looks like now that it has left."""
        keeper = self._volume.keeper
        await trio.sleep(limits.CLOCK_TICK)
        stamp = await self._stamp(held.leg)
        slot = keeper.record.slots[held.slot]
        if self.held is held and slot.state is LegState.SPLIT:
            keeper.record = keeper.record.with_slot(held.slot, slot.but(stamp=stamp))
            await keeper.commit()

    async def _stamp(self, leg: Leg) -> str:
        """Return a leg's stamp; empty where it does not answer."""
        with trio.move_on_after(self._volume.keeper.leg_timeout):
            try:
                return await leg.stamp()
            except OSError:
                return ''
        return ''

    async def merge(self, slot: int) -> None:
        """Take a leg back that is split off.  EBUSY while its image is open.  Raises Refused, OSError."""
        volume = self._volume
        slot_before = volume.record.slots[slot]
        if slot_before.state is not LegState.SPLIT:
            found = f'leg {volume.record.place(slot)} of {volume.name} is {slot_before.state.word}'
            raise Refused(errno.EINVAL, f'{found}, and not split off')
        held = self.held if self.held and self.held.slot == slot else None
        self.refuse_if_open(held)
        if held:
            self.held = None  # nobody may open it from now on
            leg = held.leg
        else:
            leg, _ = await open_in_time(self._opener, slot_before.path, volume.keeper.leg_timeout)
        try:
            await self._refuse_if_departed(leg)
            changed = not slot_before.stamp or await self._stamp(leg) != slot_before.stamp
            await self._joiner.take_back(slot, leg, changed=changed)
        except BaseException:
            if not self._joiner.is_member(leg):
                if held and volume.record.slots[slot].stamp:
                    self.held = held
                else:
                    leg.close()
            raise
        how = 'all of it is copied' if volume.record.slots[slot].full else 'what changed is copied'
        volume.emit('LegMerged', volume.name, leg.path, how)

    def refuse_if_open(self, held: SplitOff | None) -> None:
        """Raise Refused(EBUSY) while somebody reads the image."""
        if held and held.opened:
            name = f'{self._volume.name}{SUFFIX}'
            raise Refused(errno.EBUSY, f'{name} is open in {held.opened} places; close it first')

    def let_go(self, slot: int) -> None:
        """The leg of a slot is removed for good.  EBUSY while its image is open."""
        if self.held and self.held.slot == slot:
            self.refuse_if_open(self.held)
            self.close()

    async def _refuse_if_departed(self, leg: Leg) -> None:
        with trio.move_on_after(self._volume.keeper.leg_timeout):
            if why := await leg.departed(0):
                raise Refused(errno.ENOENT, f'{leg.path} {why}; remove it, and add another leg')
