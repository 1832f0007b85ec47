"""A volume's space: what is zeroed, discarded, reserved, looked for, grown.  Offsets and sizes in bytes."""

import errno
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs import limits
from mirrorfs.errors import LegTimeout, Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.fanout import fan_out, judge
from mirrorfs.mirror.logfile import LogFile
from mirrorfs.mirror.member import Member
from mirrorfs.mirror.pages import PageStore
from mirrorfs.model import DetectZeroes
from mirrorfs.volume.chunks import runs
from mirrorfs.volume.narrowing import is_of_the_medium

if TYPE_CHECKING:
    from mirrorfs.volume.volume import Volume


class Space:
    """The space of one volume."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume
        self._growing = trio.Lock()

    async def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros and give its space back."""
        volume = self._volume
        length = min(length, volume.record.size - offset)
        if length <= 0:
            return
        await self.zero(offset, length)
        await volume.quorum.assure()

    async def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        """Make a range of the volume read as zeros.

        Its space is given back, state first, then space; with `keep` legs have it still.  What was never
        written reads so already: nothing is done there.  The caller looks after the quorum.
        """
        volume = self._volume
        first, last = volume.chunks_of(offset, length)
        async with volume.writing(first, last):
            volume.refuse_if_broken()
            written = first + np.flatnonzero(~volume.log.states[first : last + 1] & UNWRITTEN)
            whole = written[:0] if keep else self._whole(written, offset, offset + length)
            for low, high in runs(np.setdiff1d(written, whole)):
                start, size = volume.bytes_of(low, high)
                start, end = max(offset, start), min(offset + length, start + size)
                await volume.prepare(low, high)
                await volume.write_members(low, high, Change(start, end - start, keep=keep))
            await self._forget(whole)
            if len(written) <= last - first:
                await volume.keeper.commit()  # a discard that failed may have left that in memory only

    def _whole(self, chunks: npt.NDArray[np.intp], start: int, end: int) -> npt.NDArray[np.intp]:
        """Return those of the chunks (intp [n]) that lie wholly in start..end."""
        volume = self._volume
        below = len(volume.log) if end == volume.record.size else end >> volume.shift
        return chunks[(chunks << volume.shift >= start) & (chunks < below)]

    async def detect_zeroes(self, choice: DetectZeroes) -> None:
        """Have writes of zeros treated so from now on, durably.  Raises OSError."""
        volume, keeper = self._volume, self._volume.keeper
        await keeper.open_session()
        keeper.record = keeper.record.but(detect_zeroes=choice)
        volume.legs_changing()  # the lane writes no more by the old rule once this has settled
        await volume.hot.settle()
        await keeper.commit()

    async def _forget(self, chunks: npt.NDArray[np.intp]) -> None:
        """Have whole chunks, held exclusively, durably UNWRITTEN; then punch them."""
        volume = self._volume
        if not len(chunks):
            return
        await volume.keeper.open_session()
        missed = MODIFIED if membership.absentees_tracked(volume.record) else 0
        volume.log.update_chunks(chunks, set_=UNWRITTEN | UNZEROED | missed)
        volume.holes.forget(int(chunks[0]), int(chunks[-1]))
        await volume.keeper.commit()
        for low, high in runs(chunks):
            await self._punch(low, high)
        # Only when the map is durable: a leg whose map lacks it would find the chunk clean in a log outside.
        volume.log.update_chunks(chunks, clear=DIRTY | NEEDS_RESYNC)
        await volume.keeper.settle()

    async def _punch(self, first: int, last: int) -> None:
        """Have legs give back the space of chunks whose state says that they may hold anything there."""
        volume = self._volume
        offset, length = volume.bytes_of(first, last)
        members, zeros = volume.members, True
        for at in range(offset, offset + length, limits.DISCARD_MAX):
            zeros &= await self._give_back(members, at, min(limits.DISCARD_MAX, offset + length - at))
        if zeros and volume.members == members:
            volume.holes.punched(first, last, members)

    async def _give_back(self, members: list[Member], offset: int, length: int) -> bool:
        """Have legs give back the space of a range; return whether it reads as zeros on all of them then."""
        volume = self._volume
        holes: list[bool] = []

        async def discard(member: Member) -> None:
            try:
                holes.append(await member.discard(offset, length))
            except OSError as error:
                if not is_of_the_medium(error):
                    raise

        failures = await fan_out(members, volume.keeper.in_sync, discard, volume.keeper.leg_timeout)
        # What could not be given back costs space, not data.
        volume.keeper.expel(judge(members, volume.keeper.in_sync, failures).expel)
        return holes.count(True) == len(members)

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space on all legs for a range; contents stay.  ENOSPC where one of them has none."""
        volume = self._volume
        if offset + length > volume.record.size:
            raise Refused(errno.ENOSPC, f'{volume.name} ends at byte {volume.record.size}')
        first, last = volume.chunks_of(offset, length)
        async with volume.locks.hold(first, last, shared=True):
            members = volume.members
            timeout = volume.keeper.leg_timeout
            failures = await fan_out(members, None, lambda m: m.allocate(offset, length), timeout)
            for failure in failures.values():
                raise failure

    def seek(self, offset: int, *, data: bool) -> int:
        """Return where the next data, or the next hole, begins at or after `offset`, by written chunks.

        Raises Refused(ENXIO) beyond the end, or where there is no more data.
        """
        volume = self._volume
        if not 0 <= offset < volume.record.size:
            raise Refused(errno.ENXIO, 'beyond the end')
        chunk = offset >> volume.shift
        found = np.flatnonzero(((volume.log.states[chunk:] & UNWRITTEN) == 0) == data)
        if not len(found):
            if data:
                raise Refused(errno.ENXIO, 'no more data')
            return volume.record.size
        return max(offset, (chunk + int(found[0])) << volume.shift)

    async def grow(self, size: int) -> None:
        """Make the volume larger while it is in use.  Raises Refused (EINVAL, ENOSPC), OSError."""
        async with self._growing:
            await self._grow(size)

    def _log_files(self) -> list[LogFile]:
        volume = self._volume
        return [volume.keeper.outside] if volume.keeper.outside else []

    async def _extend(self, member: Member, old: int, new: int) -> bool:
        """Give a member room for a larger volume; see `make_room`.  Raises LegTimeout."""
        volume = self._volume
        base = member.layout.data_offset
        with trio.move_on_after(volume.keeper.leg_timeout):
            return await make_room(member.leg, base + old, base + new)
        raise LegTimeout(f'{member.leg.path} did not grow within {volume.keeper.leg_timeout:g} s')

    async def _grow(self, size: int) -> None:
        volume = self._volume
        record = volume.record
        if size % limits.SECTOR:
            raise Refused(errno.EINVAL, f'{size} is not a multiple of {limits.SECTOR} bytes')
        if size < record.size:
            message = f'{volume.name} has {record.size} bytes; a volume cannot shrink'
            raise Refused(errno.EINVAL, message)
        chunks = -(-size // record.chunk_size)
        stores: list[PageStore] = [*volume.members, *self._log_files()]
        room = min(store.layout.chunks_max for store in stores)
        if chunks > room:
            most = room * record.chunk_size
            raise Refused(errno.EFBIG, f'the logs of {volume.name} have room for {most} bytes, not {size}')
        if size == record.size:
            return
        async with volume.exclusive(0, len(volume.log) - 1):
            await volume.keeper.open_session()
            members = volume.members
            zeroed = [await self._extend(member, record.size, size) for member in members]
            if record.size % record.chunk_size and membership.absentees_tracked(record):
                missed = np.array([len(volume.log) - 1], np.intp)
                volume.log.update_chunks(missed[(volume.log.states[missed] & UNWRITTEN) == 0], set_=MODIFIED)
            if record.size % record.chunk_size and not all(zeroed):
                # The rest of the last old chunk is new, too, but has no state of its own to say so.
                end = len(volume.log) << volume.shift
                await volume.write_members(
                    len(volume.log) - 1,
                    len(volume.log) - 1,
                    Change(record.size, min(end, size) - record.size),
                )
                await volume.flush()
            state = UNWRITTEN if all(zeroed) else UNWRITTEN | UNZEROED
            pages = wibm.pages_for(chunks)
            for store in (*members, *self._log_files()):
                store.make_room(pages)
            # Both tables together: who offers chunks meanwhile counts on them being of one length.
            if chunks > len(volume.log):  # else an attempt before this one failed to commit
                volume.hot.grow(size)
                volume.hot.size = record.size
                volume.log.grow(chunks, state)
            await volume.keeper.commit()  # pages first: a superblock with the new size must find them
            volume.keeper.record = volume.keeper.record.but(size=size, events=volume.keeper.record.events + 1)
            await volume.keeper.commit()
            volume.hot.size = size
        volume.gate.offer(0, chunks - 1)
        volume.emit('Grow', volume.name, '', f'{record.size} -> {size} bytes')


async def make_room(leg: Leg, start: int, end: int) -> bool:
    """Make a leg reach `end`; return whether the bytes from `start` on, new to it, surely read as zeros.

    The leg may have been longer before, with anything in that part.
    """
    return await leg.extend(end) and await erased(leg, start, end - start)


async def erased(leg: Leg, start: int, length: int) -> bool:
    """Forget a range; return whether it surely reads as zeros, which a few bad blocks may keep it from."""
    try:
        return await leg.erase(start, length)
    except OSError as error:
        if not is_of_the_medium(error):
            raise
        return False
