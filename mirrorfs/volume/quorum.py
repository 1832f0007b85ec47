"""Quorum: writes are taken only while enough legs are in sync.

Below it writes and discards fail or wait, as the volume's policy says; reads, flushes, resync and recovery go
on.  Whoever waits holds no chunk, so that nobody waits for it; all who wait are let go when there are enough
legs again, when the policy changes, and when the volume stops.
"""

import errno
from typing import TYPE_CHECKING

import trio

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.model import WriterPolicy

if TYPE_CHECKING:
    from mirrorfs.volume.volume import Volume


class Quorum:
    """Whether a volume takes writes.  `look` must be called whenever its legs or its settings changed."""

    def __init__(self, volume: 'Volume') -> None:
        self._volume = volume
        self._changed = trio.Event()
        self._told = False
        self.waiting = 0
        """Writes that wait."""

    @property
    def lost(self) -> bool:
        """Whether fewer legs are in sync than writes need."""
        return self._count() < self._volume.keeper.record.quorum

    def _count(self) -> int:
        """Return how many legs count; one that is being recovered cannot be read, so it does not."""
        return len(self._volume.keeper.in_sync)

    def look(self) -> None:
        """Say what changed, and let those who wait look again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if self.lost is not self._told:
            self._told = self.lost
            have = f'{self._count()} legs in sync, {self._volume.keeper.record.quorum} wanted for writes'
            self._volume.emit('QuorumLost' if self._told else 'QuorumRegained', self._volume.name, '', have)

    async def assure(self) -> None:
        """Return once enough legs are in sync, and durably so.

        Raises OSError: EIO or EROFS where the policy does not wait; EIO when the volume stops.
        """
        keeper = self._volume.keeper
        while self.lost or (keeper.record.quorum > 1 and keeper.unrecorded):
            if not self.lost:
                await keeper.settle()
                continue
            self._refuse()
            self.waiting += 1
            try:
                await self._changed.wait()
            finally:
                self.waiting -= 1

    async def change(self, **settings: int) -> None:
        """Set `quorum` or `quorum_policy`.  Raises Refused(EINVAL), OSError."""
        volume, keeper = self._volume, self._volume.keeper
        wanted, legs = settings.get('quorum', 1), keeper.record.raid_disks
        if not 1 <= wanted <= min(legs, limits.LEGS_MAX):
            raise Refused(errno.EINVAL, f'a quorum of {wanted}; {volume.name} has {legs} legs: 1 to {legs}')
        await keeper.open_session()
        keeper.record = keeper.record.but(**settings)
        volume.legs_changing()  # the lane writes no more by the old rule once this has settled
        await volume.hot.settle()
        await keeper.commit()

    def _refuse(self) -> None:
        volume, record = self._volume, self._volume.keeper.record
        have = f'{volume.name} has {self._count()} legs in sync, writes need {record.quorum}'
        if volume.broken:
            raise OSError(errno.EIO, volume.broken)
        if record.quorum_policy is WriterPolicy.ERROR:
            raise OSError(errno.EIO, have)
        if record.quorum_policy is WriterPolicy.READONLY:
            raise OSError(errno.EROFS, have)
