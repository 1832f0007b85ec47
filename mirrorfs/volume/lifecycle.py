"""How a volume starts from its legs, runs, and stops."""

import errno
import functools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import trio

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.states import DIRTY, NEEDS_RESYNC
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership, naming
from mirrorfs.mirror.assembly import Plan, assemble
from mirrorfs.mirror.keeper import Keeper, RecordStore
from mirrorfs.mirror.logfile import LogFile
from mirrorfs.mirror.member import Member
from mirrorfs.mirror.splitbrain import SplitBrain
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume import doubt
from mirrorfs.volume.clearing import Clearer
from mirrorfs.volume.rebuild import Rebuilder
from mirrorfs.volume.splitting import SplitOff, reopen
from mirrorfs.volume.volume import Emit, Volume


@dataclass(frozen=True, slots=True)
class Found:
    """A leg at hand: opened, with the newest superblock on it and which copy that is."""

    leg: Leg
    sup: wibm.LegSuper
    copy: int


@dataclass(frozen=True, slots=True)
class Spare:
    """A hot spare: opened, and where things will be on it."""

    leg: Leg
    layout: wibm.Layout


@dataclass(frozen=True, slots=True)
class Settings:
    """What a mount decides for all its volumes.  The two functions are replaced by simulations."""

    leg_timeout: float = limits.LEG_TIMEOUT
    look_interval: float = limits.LOOK_INTERVAL
    """Seconds between looks after legs (`watching`, `spares`); 0: nobody looks."""
    clock: Callable[[], int] = field(default=lambda: time.time_ns() // 1000)
    new_uuid: Callable[[], uuid.UUID] = uuid.uuid4
    paced: bool = True
    """Whether background copying makes way for the foreground."""


@dataclass(slots=True)
class Started:
    """A started volume with the tasks that keep it; `run` must run while it is used."""

    volume: Volume
    plan: Plan
    rebuilder: Rebuilder
    clearer: Clearer
    standby: Mapping[int, Spare]
    """The hot spares at hand, by slot."""
    split_off: SplitOff | None
    """The leg at hand that is split off."""
    _store_first: bool
    """Whether something must be durable before the volume may be used."""

    def keeps(self, slot: int) -> bool:
        """Whether the leg of a slot stays open."""
        held = self.split_off is not None and self.split_off.slot == slot
        return held or slot in self.volume.keeper.members or slot in self.standby

    async def run(self, task_status: 'trio.TaskStatus[None]' = trio.TASK_STATUS_IGNORED) -> None:
        """Run the volume until cancelled; started when it may be used.  Raises OSError, Refused then."""
        volume = self.volume
        failure: OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.keeper.run)
            try:
                await self._begin()
            except OSError as error:
                failure = error
                nursery.cancel_scope.cancel()
            else:
                nursery.start_soon(
                    volume.gate.keep_open,
                    lambda text: volume.emit('Error', volume.name, '', text),
                    functools.partial(volume.start_falling_behind, nursery),
                )
                nursery.start_soon(self.clearer.run)
                nursery.start_soon(self.clearer.bound_unflushed)
                nursery.start_soon(self.rebuilder.run)
                nursery.start_soon(volume.reader.run)
                task_status.started()
        if failure:
            raise failure

    async def _begin(self) -> None:
        volume = self.volume
        if self._store_first:
            await volume.keeper.open_session()
            await volume.keeper.settle()
        volume.gate.publish()
        volume.gate.offer_all()
        volume.quorum.look()

    async def stop(self) -> None:
        """Flush, clear the log and say so on the legs.  `run` must still be running; cancel it after.

        Raises OSError where that was not possible: the next start resyncs what is still dirty.
        """
        volume = self.volume
        await self.rebuilder.freeze()
        async with volume.exclusive(0, len(volume.log) - 1):
            if volume.keeper.session:  # what is broken refuses to be flushed
                await volume.flush()
                volume.log.update_chunks(volume.log.where(DIRTY, NEEDS_RESYNC), clear=DIRTY)
                # Should the log outside get lost, nobody knew what was still to be made equal.
                doubtful = volume.record.log_is_outside and volume.log.count(NEEDS_RESYNC) > 0
                volume.keeper.record = membership.caught_up(volume.record.but(active=doubtful))
                await volume.keeper.commit()
            volume.retire()

    async def close(self) -> None:
        """Let go of the legs, once the lane has."""
        self.volume.retire()
        await self.volume.hot.settle()
        for member in [*self.volume.members, *self.volume.keeper.quarantine.values()]:
            member.leg.close()
        if self.volume.keeper.outside:
            self.volume.keeper.outside.leg.close()


async def start(
    pool_record: VolumeRecord,
    found: Mapping[int, Found],
    store: RecordStore,
    emit: Emit,
    settings: Settings,
    *,
    outside: LogFile | str = '',
    force: bool = False,
    keep: str = '',
    record_at_once: bool = False,
) -> Started:
    """Decide from the pool's record and the legs at hand whether and how the volume starts.

    `keep` names the leg from which a split volume goes on.  `record_at_once`: what is decided is durable
    before the volume may be used, also where nothing is written.

    `outside` is the file with the log, or why there is none.  Raises Refused as `assemble` does, and where no
    in-sync leg's log can be read.  Nothing is written yet.
    """
    records = {slot: leg.sup.record for slot, leg in found.items()}
    kept = naming.find_slot(pool_record, keep) if keep else None
    try:
        plan = assemble(pool_record, records, settings.clock(), force, settings.new_uuid, kept)
    except SplitBrain as split:
        raise split.telling(await _written(found, settings.leg_timeout)) from None
    active = any(records[slot].active for slot in plan.members)
    legs = await _load(plan, found, emit, settings, active=active)
    in_sync, images = legs.in_sync, legs.images
    if plan.record.log_is_outside:
        images = {slot: doubt.map_alone(image) for slot, image in images.items()}
    log, doubtful = doubt.merge(plan.record, {slot: images[slot] for slot in in_sync}, images)
    serials = [found[slot].sup.serial for slot in legs.members]
    file: LogFile | None = None
    lost_log = ''
    if plan.record.log_is_outside:
        heard = (found[s].sup.serial for s in in_sync if records[s].events == plan.record.events)
        read = await _read_outside(plan.record, log, outside, max(heard, default=0), settings)
        if isinstance(read, LogFile):
            file = read
            serials.append(file.header.serial)
        else:
            lost_log = read
            emit('LogLost', pool_record.name, plan.record.log_path, read)
            plan = replace(plan, record=membership.move_log(plan.record, None))
            log.touch_all()  # legs have but the map

    tracked = any(membership.needs_tracking(records[slot]) for slot in legs.members)
    differ = doubt.prepare(plan.record, log, several=len(in_sync) > 1, active=active, tracked=tracked)
    volume = Volume(plan.record, log, emit)
    volume.lost_log = lost_log
    volume.keeper = volume.gate.keeper = Keeper(
        plan.record,
        [legs.members[slot] for slot in sorted(legs.members)],
        legs.absent,
        log,
        store,
        volume,
        pooled=pool_record,
        serial=max(serials),
        leg_timeout=settings.leg_timeout,
        outside=file,
        clock=settings.clock,
        new_uuid=settings.new_uuid,
    )
    # A leg that is away may hold a newer log, of a commit that a crash cut short: it must not come back as an
    # equal after what is here has been read.
    rebuilder = Rebuilder(volume)
    rebuilder.pacer.enabled = settings.paced
    decided = force or bool(keep) or record_at_once
    store_first = doubtful or differ or decided or (active and bool(legs.absent))
    idle = plan.record.where(LegState.STANDBY)
    standby = {n: Spare(found[n].leg, found[n].sup.layout) for n in idle if n in found}
    split_off = await reopen(plan.record, found, emit, settings.leg_timeout)
    return Started(volume, plan, rebuilder, Clearer(volume), standby, split_off, store_first)


@dataclass(slots=True)
class _Loaded:
    """The members that a volume starts with, what their logs say, and who counts and is not there."""

    members: dict[int, Member]
    images: dict[int, wibm.LogImage]
    absent: list[int]
    in_sync: list[int]


async def _load(
    plan: Plan, found: Mapping[int, Found], emit: Emit, settings: Settings, *, active: bool
) -> _Loaded:
    """Read the metadata of all legs that are to be members; those that cannot be read are absent.

    Raises Refused(EIO) where none of them is in sync.
    """
    loaded = _Loaded({}, {}, list(plan.absent), [])

    async def load(slot: int) -> None:
        member = Member.from_super(found[slot].leg, found[slot].sup, found[slot].copy)
        try:
            with trio.fail_after(settings.leg_timeout + limits.START_FLUSH_PATIENCE):
                # What a killed process left in the page cache is read as if durable: make it so.
                await member.leg.flush()
                image = await member.load_log(plan.record)
                await member.load_bad(plan.record.uuid)
        except (OSError, BadMetadata, trio.TooSlowError) as error:
            why = str(error) or 'it does not answer'
            emit('Fail', plan.record.name, member.leg.path, f'cannot read its metadata: {why}')
            loaded.absent.append(slot)
        else:
            loaded.members[slot], loaded.images[slot] = member, image

    async with trio.open_nursery() as nursery:
        for slot in plan.members:
            nursery.start_soon(load, slot)
    loaded.in_sync = sorted(set(loaded.members) & set(plan.record.where(LegState.IN_SYNC)))
    if not loaded.in_sync:
        raise Refused(errno.EIO, f'{plan.record.name}: no leg that is in sync can be read')
    if active and len(loaded.in_sync) == 1:
        # With others, making equal rewrites what may be dirty; alone, only the medium can be believed.
        with trio.move_on_after(settings.leg_timeout + limits.START_FLUSH_PATIENCE):
            await loaded.members[loaded.in_sync[0]].leg.drop_cache()
    return loaded


async def _written(found: Mapping[int, Found], patience: float) -> dict[int, int]:
    """Return how many chunks each leg's log says were written while others were away, by slot."""
    written: dict[int, int] = {}

    async def count(slot: int, leg: Found) -> None:
        member = Member.from_super(leg.leg, leg.sup, leg.copy)
        with trio.move_on_after(patience):
            try:
                written[slot] = doubt.written(await member.load_log(leg.sup.record))
            except OSError:
                return  # what it has cannot be told, then

    async with trio.open_nursery() as nursery:
        for slot, leg in found.items():
            nursery.start_soon(count, slot, leg)
    return written


async def _read_outside(
    record: VolumeRecord, log: IntentLog, outside: LogFile | str, heard: int, settings: Settings
) -> LogFile | str:
    """Take into `log` what the log outside says; return that file, or why it cannot be believed."""
    if isinstance(outside, str):
        return outside or 'it is not there'
    if complaint := doubt.disbelief(outside.header, record, heard):
        return complaint
    try:
        with trio.fail_after(settings.leg_timeout + limits.START_FLUSH_PATIENCE):
            image = await outside.load(record.chunks)
    except (OSError, trio.TooSlowError) as error:
        return str(error) or 'it does not answer'
    if image.damaged:
        return f'{image.damaged} of its pages are damaged'
    doubt.add_outside(log, image)
    return outside
