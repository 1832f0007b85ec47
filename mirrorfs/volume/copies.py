"""Copying a range from an in-sync leg to others, around what is bad on some of them."""

import errno
from typing import TYPE_CHECKING

import trio

from mirrorfs import limits
from mirrorfs.errors import LegError, LegTimeout
from mirrorfs.leg.memory import Buffers
from mirrorfs.mirror.badblocks import BLOCK, segments
from mirrorfs.mirror.copying import copy_range
from mirrorfs.mirror.fanout import judge
from mirrorfs.mirror.member import Member
from mirrorfs.volume.narrowing import is_of_the_medium

if TYPE_CHECKING:
    from mirrorfs.volume.volume import Volume


class Copier:
    """Copies within one volume.  Ranges, in bytes, are held exclusively by callers."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume
        self.buffers = Buffers(limits.COPY_MAX, limits.WINDOWS_IN_FLIGHT)

    async def copy(self, offset: int, length: int, preferred: int | None, target: int | None) -> int:
        """As `Volume.copy_to`.  What no in-sync leg has, or none can read, is listed on the target."""
        keeper = self._volume.keeper
        copied = 0
        for at, size in segments(offset, length, [keeper.members[slot].bad for slot in keeper.in_sync]):
            copied += await self._copy_part(at, size, preferred, target)
        return copied

    async def _copy_part(self, offset: int, length: int, preferred: int | None, target: int | None) -> int:
        """Copy a range that each leg has wholly or not at all."""
        sources = [slot for slot in self._sources(preferred) if self._has(slot, offset, length)]
        if not sources:
            await self._give_up(offset, length, target)
            return 0
        gone = target is not None and target not in self._volume.keeper.members
        try:
            return await self._copy_from(sources, offset, length, target)
        except OSError as error:
            if gone or not is_of_the_medium(error):
                raise
        if length > BLOCK:
            return await self._copy_what_can_be_read(offset, length, preferred, target)
        await self._give_up(offset, length, target, keep=sources[0])
        return 0

    def _sources(self, preferred: int | None) -> list[int]:
        return sorted(self._volume.keeper.in_sync, key=lambda slot: slot != preferred)

    def _has(self, slot: int, offset: int, length: int) -> bool:
        return not self._volume.keeper.members[slot].bad.touches(offset, length)

    async def _copy_from(self, sources: list[int], offset: int, length: int, target: int | None) -> int:
        volume, keeper, store = self._volume, self._volume.keeper, self._volume.narrower.write
        error: OSError = LegError(errno.EIO, 'no leg is in sync')
        for slot in sources:
            source = keeper.members.get(slot)
            targets = [m for m in volume.members if m.slot != slot and target in (None, m.slot)]
            if source is None:
                continue
            if not targets:
                return 0
            if target is None:
                # What its cache shows may never have reached its medium, if a flush failed just before a
                # crash: so the source is rewritten, too.
                targets.append(source)
            try:
                await self._catch_up(source)
                copied, failures = await copy_range(
                    source,
                    targets,
                    offset,
                    length,
                    keeper.leg_timeout,
                    store,
                    self.buffers,
                    volume.reader.failed,
                )
            except OSError as failure:
                error = failure
                continue
            for member in targets:
                member.write_errors += member.slot in failures
            volume.hot.unflushed_by_trio += copied
            # The source may have been expelled meanwhile: then a target may be the last leg in sync.  Where a
            # filesystem that legs share is full, what another leg holds may take less room.
            verdict = judge(volume.members, keeper.in_sync, failures, shared_full=target is None)
            keeper.expel(verdict.expel)
            await keeper.settle()
            if verdict.error:
                error = verdict.error
                continue
            return copied
        raise error

    async def _catch_up(self, source: Member) -> None:
        """Wait for what a source lacks that has begun to be behind since it was chosen.  Raises OSError."""
        with trio.move_on_after(self._volume.keeper.leg_timeout) as scope:
            await source.catch_up()
        if scope.cancelled_caught:
            raise LegTimeout(f'{source.leg.path} is behind')

    async def _copy_what_can_be_read(
        self, offset: int, length: int, preferred: int | None, target: int | None
    ) -> int:
        """Copy piece by piece, then block by block, what a larger read failed on."""
        step = limits.REQUEST_MAX if length > limits.REQUEST_MAX else BLOCK
        copied, before = 0, self._bad_blocks()
        for at in range(offset, offset + length, step):
            copied += await self._copy_part(at, min(step, offset + length - at), preferred, target)
            if self._bad_blocks() - before > limits.NARROWED_BAD_MAX:
                raise LegError(errno.EIO, 'no leg in sync can be read')
        return copied

    def _bad_blocks(self) -> int:
        return max(len(member.bad) for member in self._volume.members)

    async def _give_up(self, offset: int, length: int, target: int | None, keep: int = -1) -> None:
        """No in-sync leg has the range, or can be read: the target lacks it, too.

        Where legs were to be made equal, with no target, all lack it but the one that is to be kept: then
        whatever that may give one day is the same each time.
        """
        volume, keeper = self._volume, self._volume.keeper
        for member in volume.members:
            if member.slot == target or (target is None and member.slot != keep >= 0):
                full = await volume.narrower.give_up_blocks(member, offset, length)
                if full and target is None:  # all fail alike: that is no reason to expel any of them
                    raise full[member.slot]
                keeper.expel(full)
        await keeper.settle()
