"""The volumes of a pool that run: found, started, stopped, created and destroyed.

Their definitions on disk are in `mirrorfs.definitions`.
"""

import errno
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from mirrorfs import limits
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.events import EventLog
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.mirror.formatting import read_super
from mirrorfs.mirror.logfile import LogFile, find_log_file
from mirrorfs.mirror.splitbrain import SplitBrain
from mirrorfs.model import (
    LegState,
    ReturnPolicy,
    VolumeRecord,
)
from mirrorfs.sharing import SharedSpares
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.creation import Request, check_name, create
from mirrorfs.volume.lifecycle import Found, Settings, Started, start
from mirrorfs.volume.spares import SpareWatch
from mirrorfs.volume.splitting import SUFFIX, SplitOff
from mirrorfs.volume.watching import Watcher

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Entry:
    """A volume of the pool: started, or with the reason why it is not."""

    record_at_rest: VolumeRecord | None
    name: str
    started: Started | None = None
    admin: Admin | None = None
    refusal: str = ''
    split: SplitBrain | None = None
    """The histories to choose from, where that is why it did not start."""
    opened: int = 0
    """Open handles of the image."""
    _scope: trio.CancelScope | None = None
    _tending: trio.CancelScope | None = None
    _ended: trio.Event | None = None

    @property
    def record(self) -> VolumeRecord | None:
        return self.started.volume.record if self.started else self.record_at_rest

    @property
    def split_off(self) -> SplitOff | None:
        """The leg that is split off and served."""
        return self.admin.splitter.held if self.admin else None

    def require(self) -> tuple[Started, Admin]:
        """Return what commands work on; raises Refused(EIO) with the reason if it did not start."""
        if not self.started or not self.admin:
            raise Refused(errno.EIO, self.refusal or f'{self.name} is stopped')
        return self.started, self.admin


class Pool:
    """Runs the volumes of one pool directory.  Owned by trio's thread."""

    def __init__(
        self, directory: PoolDirectory, opener: Opener, events: EventLog, settings: Settings
    ) -> None:
        self.directory = directory
        self.events = events
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        self.on_start: Callable[[Entry], None] = lambda entry: None
        """Called before a volume's legs are published: the lane must serve its table by then."""
        self.on_stop: Callable[[Entry], None] = lambda entry: None
        self.on_destroy: Callable[[str], None] = lambda name: None
        """Called when a volume is gone for good."""
        self.spares = SharedSpares(directory, opener, events.emit, settings, self._records)
        self._opener = opener
        self._nursery: trio.Nursery | None = None
        self._turn = trio.Lock()
        self._stopping = False

    async def start(self, nursery: trio.Nursery, force: Sequence[str] = ()) -> None:
        """Start all volumes in `nursery`; those that cannot be started stay as refused entries."""
        self._nursery = nursery
        records, damaged = await self.directory.load_all()
        unknown = [name for name in force if name not in records]
        if unknown:
            raise Refused(errno.ENOENT, f'no volume {unknown[0]} in {self.directory.path}')
        await self.spares.start(records.values(), all_known=not damaged)
        for name, complaint in damaged.items():
            self.entries[name] = Entry(None, name, refusal=complaint)
            self.events.emit('Refused', name, '', complaint)
        async with trio.open_nursery() as starting:
            for name, record in records.items():
                self.entries[name] = entry = Entry(record, name)
                starting.start_soon(self._start, entry, name in force)

    async def stop(self) -> bool:
        """Stop all volumes cleanly; return False where one could not be."""
        self._stopping = True
        with trio.move_on_after(limits.STOP_PATIENCE):
            async with self._turn:
                pass  # a volume that was being made or destroyed is so now; who comes later is refused
        clean = True
        for entry in list(self.entries.values()):
            try:
                clean &= await self._stop(entry)
            except Exception:
                log.critical('%s could not be stopped', entry.name, exc_info=True)
                clean = False
        self.spares.close()
        return clean

    def _records(self) -> Iterator[VolumeRecord]:
        """Yield the records of all volumes, started or not."""
        return (entry.record for entry in self.entries.values() if entry.record)

    async def _start(self, entry: Entry, force: bool = False, keep: str = '') -> Refused | OSError | None:
        """Find the legs, decide, run.  What goes wrong becomes the entry's refusal, and is returned."""
        record = entry.record_at_rest
        assert record and self._nursery
        found: dict[int, Found] = {}
        outside: LogFile | str = ''
        try:
            record, found = await self.find_legs(record)
            outside = await self.find_log(record)
            entry.started = started = await start(
                record,
                found,
                self.directory,
                self.events.emit,
                self.settings,
                outside=outside,
                force=force,
                keep=keep,
            )
        except (Refused, OSError) as error:
            entry.split = error if isinstance(error, SplitBrain) else None
            opened = [leg.leg for leg in found.values()]
            if isinstance(outside, LogFile):
                opened.append(outside.leg)
            await self._refuse(entry, str(error), opened)
            return error
        if isinstance(outside, LogFile) and outside is not started.volume.keeper.outside:
            outside.leg.close()
        for slot, leg in found.items():
            if not started.keeps(slot):
                leg.leg.close()
        await started.rebuilder.scrub.load(self.directory)
        entry.admin = Admin(started, self._opener, self.spares)
        entry.refusal, entry.split = '', None
        self.on_start(entry)
        try:
            await self._nursery.start(self._run, entry)
        except (Refused, OSError) as error:
            await self._refuse(entry, str(error), [])
            return error
        await self._welcome_back(entry)
        self._nursery.start_soon(self._tend, entry)
        return None

    async def _tend(self, entry: Entry) -> None:
        """Look after a volume's legs while it runs; a defect in that costs no more than that."""
        assert entry.started and entry.admin
        volume, admin, interval = entry.started.volume, entry.admin, self.settings.look_interval
        if not interval:
            return
        entry._tending = trio.CancelScope()
        try:
            with entry._tending:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(Watcher(volume, admin, self._opener, interval).run)
                    nursery.start_soon(SpareWatch(volume, admin, interval).run)
        except Exception as error:
            log.critical('legs of %s are no longer watched', entry.name, exc_info=True)
            self.events.emit('Critical', entry.name, '', f'unexpected error: legs are not watched: {error!r}')

    async def _refuse(self, entry: Entry, why: str, legs: Sequence[Leg]) -> None:
        log.error('%s', why)
        entry.refusal = why
        if entry.started:
            entry.record_at_rest = entry.started.volume.record
            await entry.started.close()
            if entry.admin:
                entry.admin.close()
            entry.started = entry.admin = None
        for leg in legs:
            leg.close()
        self.events.emit('Refused', entry.name, '', why)

    async def _run(
        self, entry: Entry, task_status: 'trio.TaskStatus[None]' = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run one volume; a defect in it stops that volume and no other."""
        assert entry.started
        entry._scope, entry._ended = trio.CancelScope(), trio.Event()
        begun = False

        class Status:
            def started(self, value: None = None) -> None:
                nonlocal begun
                begun = True
                task_status.started()

        try:
            with entry._scope:
                await entry.started.run(Status())
        except Exception as error:
            if not begun:
                raise
            log.critical('volume %s stopped by an unexpected error', entry.name, exc_info=True)
            entry.started.volume.broken = f'unexpected error: {error!r}'
            entry.started.volume.hot.withdraw(0, len(entry.started.volume.log) - 1)
            entry.started.volume.quorum.look()
            self.events.emit('Critical', entry.name, '', f'unexpected error: {error!r}')
        finally:
            entry._ended.set()

    async def _welcome_back(self, entry: Entry) -> None:
        """Say what is wrong with the legs at hand; re-add those that were merely away."""
        assert entry.started and entry.admin
        plan, volume = entry.started.plan, entry.started.volume
        record = volume.record
        volume.warn_of_shared_filesystem()

        def emit(word: str, slot: int, text: str) -> None:
            self.events.emit(word, entry.name, record.slots[slot].path, f'slot {record.place(slot)} {text}')

        for slot, reason in plan.stale.items():
            emit('StaleLeg', slot, reason)
        for slot in volume.keeper.absent:
            emit('LegAbsent', slot, 'is not there')
        for slot in set(record.where(LegState.STANDBY)) - set(entry.started.standby):
            emit('SparesMissing', slot, 'is not there')
        if record.degraded or volume.keeper.absent:
            self.events.emit('DegradedArray', entry.name)
        for slot in plan.returning:
            if record.return_policy is ReturnPolicy.NONE:
                emit('StaleLeg', slot, 'is there again; re-add it')
                continue
            try:
                await entry.admin.welcome_back(slot, partial=True)
            except (Refused, OSError) as error:
                emit('StaleLeg', slot, str(error))

    async def find_log(self, record: VolumeRecord) -> LogFile | str:
        """Open the file outside the legs that has the log; return it, or why there is none."""
        return await find_log_file(self._opener, record, self.settings.leg_timeout)

    async def find_legs(self, record: VolumeRecord) -> tuple[VolumeRecord, dict[int, Found]]:
        """Open the legs that the record names; match them to slots by the UUID that each bears."""
        by_slot: dict[int, Found] = {}

        async def one(number: int, path: str) -> None:
            leg: Leg | None = None
            complaint = f'did not answer within {self.settings.leg_timeout:g} s'
            try:
                with trio.move_on_after(self.settings.leg_timeout):
                    leg, _ = await self._opener.open(path)
                    sup, copy = await read_super(leg)
                    owner = self._owner(record, sup.record, sup.leg)
                    if owner in by_slot:
                        raise BadMetadata(f'a second copy of the leg at {by_slot[owner].leg.path}')
                    if leg.size < sup.needed_size:
                        raise BadMetadata(f'it has {leg.size} bytes, it had {sup.needed_size} at least')
                    by_slot[owner] = Found(leg, sup, copy)
                    return
            except (Refused, BadMetadata, OSError) as error:
                complaint = str(error)
            if leg:
                leg.close()
            self.events.emit('LegAbsent', record.name, path, f'slot {record.place(number)}: {complaint}')

        async with trio.open_nursery() as nursery:
            for number, slot in enumerate(record.slots):
                if slot.state is not LegState.VACANT and slot.path:
                    nursery.start_soon(one, number, slot.path)
        for number, leg in by_slot.items():
            record = _moved(record, number, leg.leg.path)
        return record, by_slot

    @staticmethod
    def _owner(record: VolumeRecord, theirs: VolumeRecord, leg: uuid.UUID) -> int:
        if theirs.uuid != record.uuid:
            found = f'belongs to volume {theirs.name} ({theirs.uuid})'
            raise BadMetadata(f'{found}, not to {record.name} ({record.uuid})')
        for number, slot in enumerate(record.slots):
            if slot.leg == leg and slot.state is not LegState.VACANT:
                return number
        raise BadMetadata(f'leg {leg} is none of {record.name} any more')

    async def _stop(self, entry: Entry) -> bool:
        if entry.started is None or entry._scope is None or entry._ended is None:
            return True
        clean = True
        if entry._tending:
            entry._tending.cancel()
        try:
            with trio.fail_after(limits.STOP_PATIENCE + self.settings.leg_timeout):
                await entry.started.stop()
        except (OSError, Refused, trio.TooSlowError) as error:
            log.error('%s could not be stopped cleanly: %s', entry.name, error or 'took too long')
            clean = False
        self.on_stop(entry)
        entry._scope.cancel()
        await entry._ended.wait()
        entry.record_at_rest = entry.started.volume.record
        await entry.started.close()
        if entry.admin:
            entry.admin.close()
        entry.started = entry.admin = None
        return clean

    # Verbs

    def find(self, name: str) -> Entry:
        """Return the volume of that name.  Raises Refused(ENOENT)."""
        if name not in self.entries:
            raise Refused(errno.ENOENT, f'no volume {name[:80]!r} in {self.directory.path}')
        return self.entries[name]

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise Refused(errno.ESHUTDOWN, f'{self.directory.path} is being stopped')

    async def create(self, request: Request) -> None:
        """Make a volume and start it."""
        async with self._turn:
            self._refuse_if_stopping()
            check_name(request.name)
            if request.name.endswith(SUFFIX):
                raise Refused(errno.EINVAL, f'names that end in {SUFFIX} are those of legs split off')
            if request.name in self.entries:
                raise Refused(errno.EEXIST, f'there is a volume {request.name} already')
            if len(self.entries) >= limits.VOLUMES_MAX:
                raise Refused(errno.ENOSPC, f'a pool has {limits.VOLUMES_MAX} volumes at most')
            record = await create(request, self._opener, self.settings)
            await self.directory.save(record)
            self.entries[request.name] = entry = Entry(record, request.name)
            await self._start(entry)
            self.events.emit('NewArray', request.name)

    async def resolve(self, name: str, keep: str) -> None:
        """Start a split volume from the leg that `keep` names; what the other side has is given up.

        The legs of that other side are not written to.  Raises Refused, OSError; then all is as it was.
        """
        async with self._turn:
            self._refuse_if_stopping()
            entry = self.find(name)
            if entry.started or not entry.split:
                raise Refused(errno.EINVAL, f'{name} is not split: {entry.refusal or "it runs"}')
            before = entry.refusal, entry.split
            error = await self._start(entry, keep=keep)
            if error:
                entry.refusal, entry.split = before
                raise error
            self.events.emit('Resolved', name, '', f'goes on from leg {keep}')

    async def destroy(self, name: str) -> None:
        """Stop a volume and forget its definition.  Its legs keep their content and their metadata."""
        async with self._turn:
            self._refuse_if_stopping()
            entry = self.find(name)
            if entry.opened:
                raise Refused(errno.EBUSY, f'{name} is open in {entry.opened} places; close it first')
            if entry.admin:
                entry.admin.splitter.refuse_if_open(entry.split_off)
            await self._stop(entry)
            await self.directory.forget(name)
            del self.entries[name]
            if entry.record:
                await self.spares.release(entry.record.uuid)
            self.on_destroy(name)
            self.events.emit('DeviceDisappeared', name, '', 'destroyed')


def _moved(record: VolumeRecord, number: int, path: str) -> VolumeRecord:
    """Return the record with a slot's leg at another path; a slot that had that path gets the old one.

    Legs that changed places stay known by all their paths, also while some of them are away.
    """
    old = record.slots[number].path
    for other in record.where(*(state for state in LegState if state is not LegState.VACANT)):
        if other != number and record.slots[other].path == path:
            record = record.with_slot(other, record.slots[other].but(path=old))
    return record.with_slot(number, record.slots[number].but(path=path))
