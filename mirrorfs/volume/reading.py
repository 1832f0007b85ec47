"""Reading, and mending what cannot be read.

A read that fails on one leg is answered from another.  Then, in the background, the chunk is held and the
range read from the medium block by block; what fails is taken from another leg, written back and read again
(`narrowing`).  A leg with more than `max_read_errors` an hour is failed.
"""

import errno
from typing import TYPE_CHECKING

import numpy as np
import trio

from mirrorfs import limits
from mirrorfs.errors import LegError, LegTimeout
from mirrorfs.intent.states import NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Buffer
from mirrorfs.mirror.badblocks import BLOCK, segments
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.copying import read_in_time
from mirrorfs.mirror.fanout import Failures, judge
from mirrorfs.mirror.member import Member
from mirrorfs.volume.narrowing import is_of_the_medium

if TYPE_CHECKING:
    from mirrorfs.volume.volume import Volume

Spot = tuple[int, int, int]
"""Where a read failed: slot, offset and length in bytes."""


class Reader:
    """Reads one volume.  `run` must be running for read errors to be mended."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume
        self._spots: dict[Spot, None] = {}
        self._wake = trio.Event()

    async def read(self, offset: int, length: int) -> Buffer:
        """Return the bytes there are in the range; fewer than `length` at the volume's end."""
        volume = self._volume
        length = min(length, volume.record.size - offset)
        if length <= 0:
            return b''
        first, last = volume.chunks_of(offset, length)
        while True:
            if self._needs_resync(first, last):
                async with volume.exclusive(first, last):
                    await volume.make_equal(first, last)
            async with volume.locks.hold(first, last, shared=True):
                if self._needs_resync(first, last):
                    continue
                volume.counters.reads += 1
                volume.counters.read_bytes += length
                return await self._read_pieces(offset, length)

    def _needs_resync(self, first: int, last: int) -> bool:
        return bool((self._volume.log.states[first : last + 1] & np.uint8(NEEDS_RESYNC)).any())

    async def _read_pieces(self, offset: int, length: int) -> Buffer:
        first, last = self._volume.chunks_of(offset, length)
        if first == last:
            return await self._read_chunk(first, offset, length)
        whole = bytearray()
        for chunk in range(first, last + 1):
            start, size = self._volume.bytes_of(chunk, chunk)
            low, high = max(offset, start), min(offset + length, start + size)
            whole += await self._read_chunk(chunk, low, high - low)
        return whole

    async def _read_chunk(self, chunk: int, offset: int, length: int) -> Buffer:
        """Read within one chunk: zeros if never written, else around what is bad on some leg."""
        if self._volume.log.states[chunk] & UNWRITTEN:
            return bytes(length)
        parts = segments(offset, length, (member.bad for member in self._volume.members))
        if len(parts) == 1:
            return await self._read_part(chunk, offset, length)
        whole = bytearray()
        for at, size in parts:
            whole += await self._read_part(chunk, at, size)
        return whole

    async def _read_part(self, chunk: int, offset: int, length: int) -> Buffer:
        """Read from the chunk's home leg, else from another, of those that have the range."""
        volume, keeper = self._volume, self._volume.keeper
        in_sync, homes = keeper.in_sync, keeper.homes
        home = (chunk >> volume.hot.home_shift) % len(homes)
        gone: Failures = {}
        error: OSError = LegError(errno.EIO, f'bytes {offset} to {offset + length} are bad on every leg')
        for slot in homes[home:] + homes[:home] + [slot for slot in in_sync if slot not in homes]:
            member = keeper.members.get(slot)
            if member is None or member.bad.touches(offset, length):
                continue
            try:
                patience = keeper.patience(member, alone=len(in_sync) == 1)
                data = await read_in_time(member, offset, length, patience)
            except OSError as failure:
                error = failure
                self.failed(member, offset, length, failure)
                if isinstance(failure, LegTimeout) or volume.record.slots[slot].failfast:
                    gone[slot] = failure
                continue
            if gone and slot in keeper.in_sync:
                keeper.expel(gone)
                await keeper.settle()
            return data
        raise error

    # Mending

    def failed(self, member: Member, offset: int, length: int, error: OSError) -> None:
        """A read has failed on a leg: count it, and have it mended if that may help."""
        member.read_errors += 1
        text = f'at byte {offset}: {error.strerror}'
        self._volume.emit('ReadError', self._volume.name, member.leg.path, text)
        if is_of_the_medium(error) and len(self._spots) < limits.MENDS_WAITING_MAX:
            self._spots[member.slot, offset, length] = None
            self._wake.set()

    async def run(self) -> None:
        """Mend for ever, one read error after another."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._spots:
                spot = next(iter(self._spots))
                try:
                    await self._mend(*spot)
                except OSError as error:
                    path = self._volume.record.slots[spot[0]].path
                    why = f'at byte {spot[1]}: not mended: {error.strerror or error}'
                    self._volume.emit('ReadError', self._volume.name, path, why)
                finally:
                    del self._spots[spot]

    async def _mend(self, slot: int, offset: int, length: int) -> None:
        """Mend what cannot be read in a range of a leg that is in sync, beside another.  Raises OSError."""
        volume, keeper = self._volume, self._volume.keeper
        first, last = volume.chunks_of(offset, length)
        async with volume.exclusive(first, last):
            member = keeper.members.get(slot)
            unwritten = volume.log.states[first : last + 1] & np.uint8(UNWRITTEN)
            others = [other for other in keeper.in_sync if other != slot]
            if member is None or not others or slot not in keeper.in_sync or unwritten.any():
                return
            await volume.prepare(first, last)  # what is mended is written: intent first
            if await self._given_up(member):
                return
            bad = await self._unreadable(member, offset, length)
            if bad and keeper.members.get(slot) is member and not await self._worn_out(member):
                await self._restore(member, bad)

    async def _given_up(self, member: Member) -> bool:
        """Expel a leg that is no longer what was opened: what is written to it would hide that."""
        keeper = self._volume.keeper
        needed = member.layout.data_offset + self._volume.record.size
        why = ''
        with trio.move_on_after(keeper.leg_timeout):
            why = await member.leg.departed(needed)
        if why:
            keeper.expel({member.slot: f'{member.leg.path} {why}'})
            await keeper.settle()
        return bool(why)

    async def _unreadable(self, member: Member, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the (offset, length) of blocks that the medium does not give and that are not listed."""
        size, bad = self._volume.record.size, []
        for at in range(offset // BLOCK * BLOCK, offset + length, BLOCK):
            step = min(BLOCK, size - at)
            if member.bad.touches(at, step):
                continue
            try:
                with trio.fail_after(self._volume.keeper.leg_timeout):
                    await member.read_medium(at, step)
            except trio.TooSlowError:
                raise LegTimeout(f'{member.leg.path} did not answer a read') from None
            except OSError as error:
                if not is_of_the_medium(error):
                    raise
                bad.append((at, step))
        return bad

    async def _worn_out(self, member: Member) -> bool:
        """Count one more error; expel a leg with too many, unless it has what no other has."""
        volume, keeper = self._volume, self._volume.keeper
        most = volume.record.max_read_errors
        member.recent = member.recent.another(trio.current_time())
        if not member.recent.too_many(most) or volume.narrower.needed(member.slot):
            return False
        keeper.expel({member.slot: f'more than {most} read errors an hour'})
        await keeper.settle()
        return True

    async def _restore(self, member: Member, bad: list[tuple[int, int]]) -> None:
        """Write blocks that cannot be read from another leg, and read them again."""
        volume, keeper = self._volume, self._volume.keeper
        for offset, length in bad:
            data = await self._from_another(member.slot, offset, length)
            failures = await volume.narrower.rewrite(member, Change(offset, length, data))
            volume.cache.changed(offset, length)
            keeper.expel(judge(volume.members, keeper.in_sync, failures).expel)
            await keeper.settle()
            if failures or keeper.members.get(member.slot) is not member:
                return
            if member.bad.touches(offset, length):
                continue
            member.corrected += 1
            volume.emit('ReadError', volume.name, member.leg.path, f'at byte {offset}: mended')

    async def _from_another(self, slot: int, offset: int, length: int) -> Buffer:
        """Return a block as another in-sync leg has it.  Raises OSError where none can be read."""
        keeper = self._volume.keeper
        error: OSError = LegError(errno.EIO, 'no other leg has it')
        for other in keeper.in_sync:
            member = keeper.members.get(other)
            if member is None or other == slot or member.bad.touches(offset, length):
                continue
            try:
                return await read_in_time(member, offset, length, keeper.leg_timeout)
            except OSError as failure:
                error = failure
        raise error
