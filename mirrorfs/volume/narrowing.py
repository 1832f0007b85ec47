"""Writes to legs, with what a few bad blocks mean for them.

A write that fails on a leg with an error of the medium is tried again block by block, past the cache, and
read again.  What fails then goes on the leg's bad-block list, durably, before the write is answered, and the
leg stays in service: such blocks do not count there.  Only a block that another in-sync leg has is listed;
one that none could take gives the caller the error, and the lists stay as they are.

Listed blocks are never written through the cache, whose flush would fail and with it the leg.  A write that
covers one wholly tries it past the cache; if it reads back, the block counts again.
"""

import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mirrorfs import limits
from mirrorfs.errors import LegError, LegTimeout
from mirrorfs.mirror.badblocks import BLOCK, BadBlocks, Mask, only_there, segments
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.fanout import Failures, fan_out
from mirrorfs.mirror.member import Member

if TYPE_CHECKING:
    from mirrorfs.volume.volume import Volume

_OF_THE_MEDIUM = frozenset((errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ))

Lacks = dict[int, Mask]
"""Which blocks of a change (bool [blocks]) the leg of a slot does not have after it."""


def is_of_the_medium(error: OSError) -> bool:
    """Whether an error may be that of some blocks, and not of the whole leg."""
    return error.errno in _OF_THE_MEDIUM and not isinstance(error, LegTimeout)


class Narrower:
    """Writes to a volume's legs and keeps their bad-block lists.  Chunks are held exclusively by callers."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume

    async def write(
        self, members: Sequence[Member], change: Change, in_sync: Sequence[int] | None
    ) -> Failures:
        """Write to all members at once; return those that lack it, beyond blocks that are listed now.

        `in_sync` as for `fan_out`.
        """
        lacks: Lacks = {}

        async def first(member: Member) -> None:
            if member.bad.touches(change.offset, change.length):
                lacks[member.slot] = await self._around(member, change)
            else:
                await change.on(member)

        timeout = self._volume.keeper.leg_timeout
        failures = await fan_out(members, in_sync, first, timeout)
        if failures:
            await self._narrow(members, change, failures, lacks, in_sync)
        if not lacks:
            return failures
        return await self._settle(change, failures, lacks)

    async def rewrite(self, member: Member, change: Change) -> Failures:
        """Write to one leg what others have, block by block, past the cache, and read it again."""
        lacks: Lacks = {}

        async def operate(member: Member) -> None:
            lacks[member.slot] = await self._block_by_block(member, change)

        failures = await fan_out([member], None, operate, self._volume.keeper.leg_timeout)
        return await self._settle(change, failures, lacks)

    async def _narrow(
        self,
        members: Sequence[Member],
        change: Change,
        failures: Failures,
        lacks: Lacks,
        in_sync: Sequence[int] | None,
    ) -> None:
        """Try again, block by block, on the legs that may be bad in some blocks only."""
        retried = [m for m in members if m.slot in failures and self._may_narrow(m, failures[m.slot], change)]
        if not retried:
            return
        done = in_sync is None or any(m.slot in in_sync and m.slot not in failures for m in members)

        async def again(member: Member) -> None:
            lacks[member.slot] = await self._block_by_block(member, change)

        timeout = self._volume.keeper.leg_timeout
        still = await fan_out(retried, None if done else in_sync, again, timeout)
        for member in retried:
            del failures[member.slot]
        failures.update(still)

    def _may_narrow(self, member: Member, error: OSError, change: Change) -> bool:
        keeper = self._volume.keeper
        return (
            is_of_the_medium(error)
            and member.slot in keeper.members
            and not keeper.record.slots[member.slot].failfast
            and change.blocks <= limits.NARROWED_BLOCKS_MAX
            and any(slot != member.slot for slot in keeper.in_sync)
        )

    async def _around(self, member: Member, change: Change) -> Mask:
        """Write as always beside the listed blocks; those that are covered wholly, past the cache."""
        lacking = member.bad.mask(change.first_block, change.blocks)
        for offset, length in segments(change.offset, change.length, [member.bad]):
            part = change.part(offset, length)
            if not member.bad.touches(offset, length):
                await part.on(member)
                continue
            first = part.first_block - change.first_block
            lacking[first : first + part.blocks] = await self._block_by_block(member, part, listed=True)
        return lacking

    async def _block_by_block(self, member: Member, change: Change, *, listed: bool = False) -> Mask:
        """Write past the cache; return which blocks (bool [blocks]) the leg does not have afterwards.

        Raises LegError where that are more than a leg may have at a time that is not bad altogether.
        """
        known = member.bad.mask(change.first_block, change.blocks)
        lacking, size = np.zeros(change.blocks, np.bool_), self._volume.record.size
        for number in range(change.blocks):
            part = change.block(number)
            whole = part.offset % BLOCK == 0 and (part.length == BLOCK or part.end == size)
            if known[number] and not whole:
                lacking[number] = True
                continue
            try:
                await self._remake(member, part, whole)
            except OSError as error:
                if not is_of_the_medium(error):
                    raise
                lacking[number] = True
                if not listed and np.count_nonzero(lacking & ~known) > limits.NARROWED_BAD_MAX:
                    raise
        return lacking

    async def _remake(self, member: Member, part: Change, whole: bool) -> None:
        """Write one block, and see that it is on the medium, as it may be already.  Raises OSError."""
        wanted = part.bytes()
        try:
            await member.write_medium(part.offset, wanted)
        except OSError as error:
            if not whole or not is_of_the_medium(error):
                raise
        if whole and bytes(await member.read_medium(part.offset, part.length)) != wanted:
            raise LegError(errno.EIO, f'{member.leg.path} reads something else than was written')

    async def _settle(self, change: Change, failures: Failures, lacks: Lacks) -> Failures:
        """Have durably listed what legs lack now; return the legs that are to be given up."""
        keeper = self._volume.keeper
        lists = {}
        for slot, lacking in lacks.items():
            member = keeper.members.get(slot)
            if member is None or slot in failures:
                continue
            lists[slot] = member.bad.replaced(change.first_block, lacking)
            if not lists[slot].fits:
                failures[slot] = LegError(errno.EIO, f'the bad-block list of {member.leg.path} is full')
        left = [slot for slot in keeper.in_sync if slot not in failures]
        if left and self._unheld(change, left, lists):  # with none left, those that failed decide
            error = LegError(errno.EIO, 'some blocks are bad on every leg')
            return {**dict.fromkeys(keeper.in_sync, error), **failures}
        changed = False
        for slot, bad in lists.items():
            if slot not in failures:
                changed |= self._relist(keeper.members[slot], bad)
        if changed:
            try:
                await keeper.commit()
            except OSError as error:
                return {**dict.fromkeys(keeper.in_sync, error), **failures}
        return failures

    def _unheld(self, change: Change, left: Sequence[int], lists: Mapping[int, BadBlocks]) -> bool:
        """Whether some block would be bad on every one of the in-sync legs that are left."""
        keeper = self._volume.keeper
        bad = [lists.get(slot, keeper.members[slot].bad) for slot in left]
        masks = [one.mask(change.first_block, change.blocks) for one in bad]
        return bool(np.logical_and.reduce(masks).any()) if masks else True

    def _relist(self, member: Member, bad: BadBlocks) -> bool:
        """Change a leg's list in memory; return whether it did change."""
        if bad == member.bad:
            return False
        added = len(bad) - len(member.bad)
        member.bad = bad
        what = 'listed' if added > 0 else 'count again'
        text = f'{abs(added)} blocks of {BLOCK} bytes {what}, {len(bad)} bad'
        self._volume.emit('BadBlocks', self._volume.name, member.leg.path, text)
        return True

    # What others ask

    def unheld(self, change: Change, *, without: int = -1) -> bool:
        """Whether some block of a range is bad on every in-sync leg, one of them left out."""
        left = [slot for slot in self._volume.keeper.in_sync if slot != without]
        if left and not all(self._volume.keeper.members[slot].bad for slot in left):
            return False
        return self._unheld(change, left, {})

    async def give_up_blocks(self, member: Member, offset: int, length: int) -> Failures:
        """List a range that cannot be had for a leg; return the leg if its list has no room for it."""
        change = Change(offset, length)
        bad = member.bad.plus(change.first_block, change.first_block + change.blocks)
        if not bad.fits:
            return {member.slot: LegError(errno.EIO, f'the bad-block list of {member.leg.path} is full')}
        if self._relist(member, bad):
            await self._volume.keeper.commit()
        return {}

    def needed(self, slot: int) -> int:
        """Return how many blocks only this in-sync leg has, while there are others."""
        keeper = self._volume.keeper
        others = [keeper.members[other].bad for other in keeper.in_sync if other != slot]
        if slot not in keeper.in_sync or not all(others) or not others:
            return 0
        return len(only_there(keeper.members[slot].bad, others))
