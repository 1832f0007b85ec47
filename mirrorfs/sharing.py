"""Spares that the volumes of a pool share: listed durably, held open, claimed by one volume at a time.

What makes a file or device a spare is its mark (`mirrorfs.metadata.spare`) *and* the list in the pool:
another disk at the path is not touched, a mark without its line means nothing.  A spare bears no superblock;
what does is somebody's leg.  Nothing is written to what is durably listed as free: the mark is older than the
line.  The list is changed under one lock; a claim takes the spare away in memory, too, until it ends.  How it
goes: `mirrorfs.volume.claiming`; one that was cut short is settled at the next start.
"""

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

import trio

from mirrorfs import limits
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.leg.patience import deadline, open_in_time
from mirrorfs.metadata import spare as marks
from mirrorfs.metadata import wibm
from mirrorfs.mirror import sparelist
from mirrorfs.mirror.formatting import read_super
from mirrorfs.mirror.sparelist import Claim, Fate, ListedSpare, SpareList, fate
from mirrorfs.model import NO_UUID, LegState, VolumeRecord
from mirrorfs.volume.claiming import Claimed
from mirrorfs.volume.lifecycle import Settings
from mirrorfs.volume.volume import Emit

_PROBE_PATIENCE = 1.0
"""Seconds that a path has to answer; one that does not is looked at again next time."""
_NOTHING = bytes(limits.PAGE)
_LEAST = wibm.new_layout(limits.VOLUME_MIN, limits.CHUNK_MIN).data_offset + limits.VOLUME_MIN


@dataclass(eq=False, slots=True)
class SharedSpare:
    """A listed spare: held open in `leg`, or `why` it is not."""

    listed: ListedSpare
    leg: Leg | None = None
    why: str = 'is not there'
    taken: bool = False
    """Whether a volume is claiming it, or has it."""
    faulty: bool = False
    """Whether it was given up: not looked for again until the pool is mounted anew."""
    _seen: object = None
    """What was at its path when it was last looked for in vain (see `Opener.probe`)."""

    @property
    def size(self) -> int:
        return self.leg.size if self.leg else self.listed.size

    @property
    def path(self) -> str:
        return self.leg.path if self.leg else self.listed.path

    @property
    def state(self) -> str:
        """``spare``, ``claimed``, ``faulty`` or ``missing``."""
        if self.taken:
            return 'claimed'
        if self.faulty:
            return 'faulty'
        return 'spare' if self.leg else 'missing'


class SharedSpares:
    """The shared spares of one pool.  Owned by trio's thread; see `mirrorfs.volume.claiming.SharedSpares`.

    `records` gives the records of all volumes, for `add` to see what is a leg already.
    """

    def __init__(
        self,
        directory: PoolDirectory,
        opener: Opener,
        emit: Emit,
        settings: Settings,
        records: Callable[[], Iterable[VolumeRecord]],
    ) -> None:
        self.spares: list[SharedSpare] = []
        self._directory = directory
        self._opener = opener
        self._emit = emit
        self._settings = settings
        self._records = records
        self._list = SpareList()
        self._damaged = ''
        self._turn = trio.Lock()

    # Start and stop

    async def start(self, records: Iterable[VolumeRecord], *, all_known: bool) -> None:
        """Read the list, settle the claims that were cut short, and hold what is there.

        To be done before the volumes start.  `all_known`: whether all definitions could be read.
        """
        try:
            self._list = sparelist.decode(await self._directory.load_spares())
            if any(listed.claim for listed in self._list.spares):
                await self._directory.settle()
        except (BadMetadata, OSError) as error:
            self._damaged = str(error)
            self._emit('Critical', '', '', f'shared spares are not used: {error}')
            return
        known = list(records)
        async with self._turn, trio.open_nursery() as nursery:
            for listed in self._list.spares:
                spare, claim = SharedSpare(listed), listed.claim
                outcome = fate(claim, known, all_known=all_known) if claim else Fate.UNDONE
                if outcome is Fate.JOINED:
                    nursery.start_soon(self._let_go, spare)
                    continue
                self.spares.append(spare)
                if outcome is Fate.UNDONE:
                    nursery.start_soon(self._hold, spare)
                else:
                    spare.taken, spare.why = True, 'is claimed, and not all definitions can be read'
        await self._settle()
        for spare in self.spares:
            if spare.leg is None:
                self._emit('SparesMissing', '', spare.path, spare.why)

    async def _settle(self) -> None:
        """Record what became of claims that were cut short; where that fails the next change does."""
        before = self._list
        for spare in self.spares:
            spare.listed = spare.listed.claimed(None) if spare.leg else spare.listed
        self._list = SpareList(before.pool, tuple(spare.listed for spare in self.spares))
        try:
            if self._list != before:
                await self._save(self._list)
        except OSError as error:
            self._emit('Error', '', '', f'the list of shared spares cannot be renewed: {error}')

    async def _let_go(self, spare: SharedSpare) -> None:
        """A spare became a leg, before a crash: it has no mark any more."""
        try:
            await self._hold(spare, as_leg=True)
        finally:
            if spare.leg:
                spare.leg.close()

    def close(self) -> None:
        """Let go of all that no volume has."""
        for spare in self.spares:
            if spare.leg:
                spare.leg.close()
        self.spares.clear()

    # What an admin does

    async def add(self, path: str, *, size: int = 0, force: bool = False) -> None:
        """Give a file or device to the pool as a spare; with `size`, in bytes, a file that is to be made.

        Raises Refused: ENOENT, EEXIST for what is listed or not blank without `force`, EBUSY for a leg or a
        log, ENOSPC for one too small or one too many, EIO for a list that cannot be read; OSError.
        """
        path = os.path.abspath(path)
        async with self._turn:
            self._require_room(path)
            leg, created = await self._open(path, size)
            try:
                listed = await self._mark(leg, created, size, force)
                await self._list_new(listed, leg)
            except BaseException:
                leg.close()
                if created:
                    with trio.CancelScope(shield=True):
                        await self._opener.discard_new(leg)
                raise
            self.spares.append(SharedSpare(listed, leg))
        self._emit('SpareAdded', '', path)

    async def _list_new(self, listed: ListedSpare, leg: Leg) -> None:
        try:
            await self._save(self._list.put(listed))
        except OSError:
            await self._unmark(leg)
            raise

    def _require_room(self, path: str) -> None:
        self._require_list()
        if len(self.spares) >= limits.SHARED_SPARES_MAX:
            raise Refused(errno.ENOSPC, f'a pool has {limits.SHARED_SPARES_MAX} shared spares at most')
        if any(path in (spare.path, spare.listed.path) for spare in self.spares):
            raise Refused(errno.EEXIST, f'{path} is a shared spare already')
        for record in self._records():
            for number, slot in enumerate(record.slots):
                if slot.path == path:
                    _refuse_slot(record, number, path)
            if record.log_path == path:
                raise Refused(errno.EBUSY, f'{path} is the log of {record.name}')

    def _require_list(self) -> None:
        if self._damaged:
            path = self._directory.path
            raise Refused(errno.EIO, f'{self._damaged}; mend or remove spares.json in {path}, mount it anew')

    async def _mark(self, leg: Leg, created: bool, size: int, force: bool) -> ListedSpare:
        """Make what was opened a spare, durably; first look at all that would refuse it."""
        needed = max(_LEAST, size)
        if leg.size < needed:
            raise Refused(errno.ENOSPC, f'{leg.path} has {leg.size} bytes; {needed} are wanted')
        if not (created or force):
            await self._opener.require_blank(leg)
        if self._list.pool == NO_UUID:
            self._list = SpareList(self._settings.new_uuid())
        listed = ListedSpare(self._settings.new_uuid(), leg.path, leg.size)
        with self._deadline(leg):
            await self._refuse_leg(leg)
            await _wipe(leg)
            await leg.write(marks.OFFSET, self._mark_of(listed), durable=True)
        return listed

    async def _refuse_leg(self, leg: Leg) -> None:
        """Raise Refused(EBUSY) for a leg of one of our volumes, whatever its path was."""
        try:
            sup, _ = await read_super(leg)
        except BadMetadata:
            return
        for record in self._records():
            if (number := record.slot_of(sup.leg)) is not None:
                _refuse_slot(record, number, leg.path)

    async def remove(self, word: str) -> None:
        """Take a spare, named by its path or UUID, from the list; then it is nobody's.

        Raises Refused: ENOENT, EBUSY for one that a volume has claimed; OSError.
        """
        async with self._turn:
            self._require_list()
            found = [s for s in self.spares if word in (s.path, s.listed.path, str(s.listed.uuid))]
            if not found:
                raise Refused(errno.ENOENT, f'{word} is no shared spare')
            spare = found[0]
            if spare.taken:
                claim = spare.listed.claim
                raise Refused(errno.EBUSY, f'{word} is claimed by {claim.name if claim else "a volume"}')
            leg, path = spare.leg, spare.path
            await self._save(self._list.without(spare.listed.uuid))
            self.spares.remove(spare)
            if leg:
                await self._unmark(leg)
                leg.close()
        self._emit('Removed', '', path)

    # What volumes do

    def offers(self, needed: int) -> bool:
        """See `mirrorfs.volume.claiming.SharedSpares`."""
        return bool(self._fitting(needed))

    def _fitting(self, needed: int) -> list[SharedSpare]:
        """Return the spares at hand that are large enough, the smallest first."""
        free = [spare for spare in self.spares if spare.leg and not spare.taken and spare.size >= needed]
        return sorted(free, key=lambda spare: spare.size)

    async def claim(self, record: VolumeRecord, needed: int) -> Claimed | None:
        """See `mirrorfs.volume.claiming.SharedSpares`."""
        async with self._turn:
            await self._look_for_missing()
            for spare in self._fitting(needed):
                if leg := await self._still(spare, needed):
                    claim = Claim(record.uuid, record.name, self._settings.new_uuid())
                    await self._list_as(spare, claim)
                    spare.taken = True
                    return Claimed(spare.listed.uuid, leg, claim.leg, self._mark_of(spare.listed))
        return None

    async def joined(self, claimed: Claimed) -> None:
        """See `mirrorfs.volume.claiming.SharedSpares`."""
        async with self._turn:
            spare, claim = self._find(claimed), self._find(claimed).listed.claim
            spare.leg = None  # it is the volume's to close
            self._emit('MoveSpare', claim.name if claim else '', claimed.leg.path)
            await self._unmark(claimed.leg)
            await self._save(self._list.without(claimed.spare))
            self.spares.remove(spare)

    async def give_back(self, claimed: Claimed) -> None:
        """See `mirrorfs.volume.claiming.SharedSpares`."""
        spare = self._find(claimed)
        try:
            with self._deadline(claimed.leg):
                await _wipe(claimed.leg)
        except (Refused, OSError) as error:
            await self.give_up(claimed, str(error))
            return
        async with self._turn:
            spare.taken = False
            await self._list_as(spare, None)

    async def give_up(self, claimed: Claimed, why: str) -> None:
        """See `mirrorfs.volume.claiming.SharedSpares`."""
        async with self._turn:
            spare = self._find(claimed)
            claim = spare.listed.claim
            for leg in filter(None, (claimed.leg, spare.leg)):
                leg.close()
            spare.leg, spare.taken, spare.faulty, spare.why = None, False, True, why
            self._emit('FailSpare', claim.name if claim else '', spare.path, why)
            await self._list_as(spare, None)

    async def release(self, volume: UUID) -> None:
        """A volume is gone for good; what it was claiming is free again.  Raises OSError."""
        async with self._turn:
            for spare in self.spares:
                claim = spare.listed.claim
                if claim and claim.volume == volume:
                    if spare.leg:
                        spare.leg.close()
                    spare.leg, spare.taken = None, False
                    await self._hold(spare)
                    if spare.leg:
                        await self._list_as(spare, None)

    def _find(self, claimed: Claimed) -> SharedSpare:
        return next(spare for spare in self.spares if spare.listed.uuid == claimed.spare)

    # The list

    async def _list_as(self, spare: SharedSpare, claim: Claim | None) -> None:
        listed = spare.listed.claimed(claim)
        await self._save(self._list.put(listed))
        spare.listed = listed

    async def _save(self, changed: SpareList) -> None:
        """Make a list durable, or leave either; the next one replaces both.  Raises OSError."""
        await self._directory.save_spares(sparelist.encode(changed))
        self._list = changed

    # What is there

    async def _look_for_missing(self) -> None:
        """Hold spares that are there at last; whatever else is found at their paths is looked at once."""
        for spare in self.spares:
            if spare.leg or spare.taken or spare.faulty:
                continue
            found: object = None
            with trio.move_on_after(_PROBE_PATIENCE) as scope:
                found = await self._opener.probe(spare.listed.path)
            if not scope.cancelled_caught and found != spare._seen:
                spare._seen = found
                await self._hold(spare)

    async def _hold(self, spare: SharedSpare, *, as_leg: bool = False) -> None:
        """Open and hold what is at a spare's path, if it is the spare; else say why not.

        What a claim that was cut short has begun to write is wiped; or, `as_leg`, the mark is.
        """
        leg: Leg | None = None
        try:
            leg, _ = await self._open(spare.listed.path)
            with self._deadline(leg):
                await self._recognise(spare.listed, leg)
            if as_leg:
                await self._unmark(leg)
            elif spare.listed.claim:
                with self._deadline(leg):
                    await _wipe(leg)
            spare.leg, spare.why = leg, ''
        except (Refused, BadMetadata, OSError) as error:
            spare.why = str(error)
        finally:
            if leg and spare.leg is not leg:
                leg.close()

    async def _still(self, spare: SharedSpare, needed: int) -> Leg | None:
        """Return the leg of a spare that is still what was opened; else let go of it."""
        leg = spare.leg
        assert leg
        try:
            with self._deadline(leg):
                why = await leg.departed(needed)
                if not why:
                    await self._recognise(spare.listed, leg)
                    return leg
        except (Refused, BadMetadata, OSError) as error:
            why = str(error)
        leg.close()
        spare.leg, spare.why = None, why
        self._emit('SparesMissing', '', spare.path, why)
        return None

    async def _recognise(self, listed: ListedSpare, leg: Leg) -> None:
        """Raise BadMetadata unless a leg is a spare, and nothing else.  Raises OSError."""
        if leg.size < _LEAST:
            raise BadMetadata(f'it has {leg.size} bytes, it had {listed.size}')
        mark = marks.decode_mark(bytes(await leg.read(marks.OFFSET, limits.PAGE)))
        if mark.spare != listed.uuid:
            raise BadMetadata(f'it is spare {mark.spare} of pool {mark.pool}, not {listed.uuid}')
        try:
            sup, _ = await read_super(leg)
        except BadMetadata:
            return
        if listed.claim is None or sup.leg != listed.claim.leg:
            raise BadMetadata(f'it is leg {sup.leg} of volume {sup.record.name} ({sup.record.uuid})')

    def _mark_of(self, listed: ListedSpare) -> bytes:
        return marks.encode_mark(marks.SpareMark(self._list.pool, listed.uuid))

    async def _unmark(self, leg: Leg) -> None:
        """Take the mark away.  Where that fails it means nothing all the same: nothing lists it."""
        try:
            with self._deadline(leg):
                await leg.write(marks.OFFSET, _NOTHING, durable=True)
        except (Refused, OSError) as error:
            self._emit('Warning', '', leg.path, f'the mark of a spare was left on it: {error}')

    async def _open(self, path: str, create_size: int = 0) -> tuple[Leg, bool]:
        """As `Opener.open`, in bounded time."""
        return await open_in_time(self._opener, path, self._settings.leg_timeout, create_size=create_size)

    def _deadline(self, leg: Leg) -> AbstractContextManager[None]:
        return deadline(leg, self._settings.leg_timeout)


def _refuse_slot(record: VolumeRecord, number: int, path: str) -> None:
    """Raise Refused(EBUSY) for the leg of a slot, unless that was removed."""
    if record.slots[number].state is not LegState.REMOVED:
        what = f'leg {record.place(number)} of {record.name}'
        raise Refused(errno.EBUSY, f'{path} is {what}; remove that first')


async def _wipe(leg: Leg) -> None:
    """Make durable that there is no superblock.  Raises OSError."""
    for offset in wibm.SUPER_OFFSETS:
        await leg.write(offset, _NOTHING, durable=True)
