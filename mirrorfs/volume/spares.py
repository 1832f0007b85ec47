"""Spares take the place of legs that are gone, and of those that want to be replaced.

A volume's own hot spares come first, then those that it shares (`mirrorfs.volume.claiming`).  A gap is given
`spare_delay` to close by itself: a leg that comes back needs only what changed.  A leg whose place was taken
does not come back by itself (`Admin.welcome_back`).
"""

import trio

from mirrorfs.errors import Refused
from mirrorfs.mirror import membership
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.volume import Volume


def to_replace(record: VolumeRecord) -> int | None:
    """Return the slot of a leg that wants a replacement and is not being replaced yet."""
    under_way = {slot.replaces for slot in record.slots if slot.state is LegState.SPARE}
    wanted = (n for n in record.where(LegState.IN_SYNC) if record.slots[n].want_replacement)
    return next((n for n in wanted if n not in under_way), None)


class SpareWatch:
    """Looks after the spares of one volume."""

    def __init__(self, volume: Volume, admin: Admin, interval: float) -> None:
        self._volume = volume
        self._admin = admin
        self._interval = interval
        self._short_since: float | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            with trio.move_on_after(self._interval):
                await self._admin.hurry.wait()
            hurry, self._admin.hurry = self._admin.hurry.is_set(), trio.Event()
            try:
                await self.look(hurry=hurry)
            except (OSError, Refused) as error:
                self._volume.emit('Error', self._volume.name, '', f'a spare cannot take its place: {error}')

    async def look(self, *, hurry: bool = False) -> None:
        """Let spares take the places that they should by now.  Raises OSError, Refused."""
        record = self._volume.record
        if self._volume.broken:
            return
        if (wanting := to_replace(record)) is not None:
            await self._admin.fill_gap(replaces=wanting)
        if not self._is_short(record):
            self._short_since = None
            return
        now = trio.current_time()
        if self._short_since is None:
            self._short_since = now
        if hurry or now - self._short_since >= record.spare_delay_ms / 1000:
            while await self._admin.fill_gap():
                pass

    def _is_short(self, record: VolumeRecord) -> bool:
        return membership.shortage(record) > 0 or bool(self._volume.keeper.absent)
