"""A small world for a volume: crash disks, the pool's files, faults at chosen calls, and a clock.

The real pool and volume code runs in it (`running`); `mirrorfs.sim.verbs` are the operations of histories.
At every leg call and pool file operation (a *step*) the checkers look at what is durable, and the world may
be frozen: `mirrorfs.sim.crash.Frozen.restart` is the world after a power cut, or after the process was
killed, at that moment.
"""

import errno
import random
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import trio

from mirrorfs import atrest
from mirrorfs import pool as pools
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.events import EventLog
from mirrorfs.leg.base import Buffer, Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror.rebuilding import Rebuilt
from mirrorfs.mirror.sparelist import ListedSpare
from mirrorfs.model import DetectZeroes, VolumeRecord
from mirrorfs.sim.checkers import CHUNK, CHUNK_BLOCKS, Checkers, best_super, leg_of, log_header, mark_of
from mirrorfs.sim.crash import DEFINITION, SPARES, Frozen, decode_definition, decode_spares
from mirrorfs.sim.crashleg import Call, CrashDisk, CrashLeg
from mirrorfs.sim.faults import Fault, Key, planned
from mirrorfs.sim.model import BLOCK, Model, fill
from mirrorfs.sim.poolfiles import Inode, SimFiles
from mirrorfs.sim.violation import Violation
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.creation import Request
from mirrorfs.volume.lifecycle import Settings, Started
from mirrorfs.volume.volume import Volume

TIMEOUT = 3.0
LOOK_INTERVAL = 2.0
PAUSES = (0, 0, 1, 3)
PATIENCE = 7200.0
"""Virtual seconds within which everything ends."""
ROT = 1 << 41
"""The tag of a block that has rotted."""
LOGS = (90, 91)
"""Numbers of the disks that logs outside the legs lie on."""
GARBAGE = 1 << 40
"""The tag of what used devices hold: nobody may ever see it."""
QUORUM_PATIENCE = 30.0
"""Virtual seconds that writes wait for legs before somebody lowers the quorum."""
_POOL = '/pool'
Image = list[list[int]]
"""The tags of every block's sectors."""


class Port(Protocol):
    """Where requests for bytes go in: the volume itself, or the data lane before it."""

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None: ...
    async def read(self, offset: int, length: int) -> Buffer: ...
    async def flush(self) -> None: ...
    async def discard(self, offset: int, length: int) -> None: ...


class SimEvents(EventLog):
    """Events go to the world's trace; one that tells of a defect ends the run."""

    def __init__(self, world: 'World') -> None:
        super().__init__()
        self._world = world

    def emit(self, word: str, volume: str = '', device: str = '', text: str = '') -> None:
        self._world.say(' '.join(part for part in (word, device, text) if part))
        if word == 'QuorumLost':
            self._world.below = True
        if word == 'SpareActive':  # whatever it held has been overwritten
            name = device.rsplit('/', 1)[-1]
            for marks in (
                self._world.tainted,
                self._world.foreign,
                self._world.apart,
                self._world.settled,
                self._world.unreadable,
            ):
                marks.discard(name)
        if word in ('MoveSpare', 'FailSpare'):
            self._world.given.discard(device.rsplit('/', 1)[-1])
        if word == 'SparesMissing' and not volume:
            self._world.checkers.missing(device.rsplit('/', 1)[-1], text)
        if text.startswith('unexpected error'):
            raise Violation('defect', text)
        if word == 'LogLost':
            self._world.checkers.log_lost(text)


@dataclass
class World:
    """Two or more disks and a pool, with one volume of `chunks` chunks."""

    chunks: int = 3
    legs: int = 2
    seed: int = 0
    logged: bool = True
    faults: Mapping[Key, int | Fault] = field(default_factory=dict)
    freeze_at: Callable[[int], bool] = lambda step: False
    """Which steps to keep in `frozen`."""
    sharing: int | None = None
    """The filesystem that all disks are on, if they share one."""
    lane: bool = False
    """Whether requests go through the data lane."""
    pauses: tuple[int, ...] = PAUSES
    """How many turns of the scheduler a call may take."""
    used: bool = False
    """Whether legs lie on devices full of something else, which cannot be erased quickly."""
    mark_interval: float = 0.0
    """Virtual seconds between two marks of a recovery; 0: one after each window."""
    outside: bool = False
    """Whether the volume is made with its log outside the legs, on the disk `LOGS[0]`."""
    zeroes: DetectZeroes = DetectZeroes.OFF
    """What becomes of writes of zeros."""

    def __post_init__(self) -> None:
        self.made_with = self.chunks
        self.plan = planned(self.faults)
        self.rng = random.Random(self.seed)
        self.model = Model(self.chunks * CHUNK_BLOCKS)
        self.layout = _layout(self.chunks)
        self.uuid = uuid.UUID(int=0)
        self.disks: dict[str, CrashDisk] = {}
        self.files = SimFiles()
        self.mount_files()
        self.away: set[str] = set()
        """Disks that are not there: not found at a start, not opened."""
        self.gone: set[str] = set()
        """Disks that fail every call."""
        self.tainted: set[str] = set()
        """Disks whose content somebody replaced by an older one: what they say is not checked."""
        self.foreign: set[str] = set()
        """Disks of another volume."""
        self.apart: set[str] = set()
        """Disks that were written without the others' knowledge: a split brain."""
        self.unreadable: set[str] = set()
        """Disks whose superblocks are gone."""
        self.rotted: set[int] = set()
        """Chunks in which a medium changed without a word."""
        self.rotten: set[str] = set()
        """Disks whose log has rotted: older marks may be all that is left there."""
        self.settled: set[str] = set()
        """Disks of the side that somebody gave up: not written to."""
        self.resolved = False
        """Whether that is durable: the choice is not asked for again."""
        self.point: Image | None = None
        """What the image of the leg that is split off was seen to be."""
        self.peeking = ''
        """The disk whose image is being read: of a leg that is split off."""
        self.beside = 0
        """How many operations have others beside them."""
        self.force = self.forced = False
        self.keep: int | None = None
        """The disk that the admin keeps where the next start finds a split brain."""
        self.rebuilt: Rebuilt | None = None
        """A definition made by force that is to be settled before the next start."""
        self.undecided = False
        """Whether promises are being given up; a crash would leave open which hold."""
        self.given: set[str] = set()
        """Disks that the pool has as shared spares, and that no volume has taken."""
        self.saved: dict[str, CrashDisk] = {}
        self.saved_pool: tuple[SimFiles, Model, int] | None = None
        self.acknowledged = self.written_apart = 0
        """Writes: since the pool in use is in use, and in the other host's meanwhile (see `verbs`)."""
        self.remembered: object = None
        self.at_rest = False
        """Whether the last run of the pool ended with a clean stop."""
        self.hosts_apart = False
        """Whether the other host has not been met again; a crash would leave open whose promises hold."""
        self.other_model: Model | None = None
        self.troubled = False
        """Whether anything was planned to go wrong since the start."""
        self.below = False
        """Whether the quorum was lost at any time since the start."""
        self.remade = False
        """Whether this is the world after a crash or a stop."""
        self.steps = 0
        self.frozen: list[Frozen] = []
        self.events: list[str] = []
        self.trace: list[Call | str] = []
        """Every step and everything said, in order."""
        self.tally: Counter[str] = Counter()
        """What was done, and what went wrong by plan."""
        self.now_us = 1_000_000
        self.hung: dict[str, trio.Event] = {}
        self.started: Started | None = None
        self.refused = ''
        self.checkers = Checkers(self)
        self._calls: dict[tuple[str, str], int] = {}
        self.settings = Settings(
            TIMEOUT,
            # With a lane time passes by its steps: timers would let it jump ahead of the lane.
            look_interval=0.0 if self.lane else LOOK_INTERVAL,
            clock=self._clock,
            new_uuid=lambda: uuid.UUID(int=self.rng.getrandbits(128)),
            paced=False,
        )

    def mount_files(self) -> None:
        self.files.arrive = self._file_step
        self.files.pauses = lambda: self.rng.choice(self.pauses)

    def _clock(self) -> int:
        self.now_us += 1
        return self.now_us

    def say(self, line: str) -> None:
        self.events.append(line)
        self.trace.append(line)

    # What the volume code sees

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        await trio.lowlevel.checkpoint()
        name = path.rsplit('/', 1)[-1]
        created = name not in self.disks
        if name in self.away | self.gone or (created and not create_size):
            raise Refused(errno.ENOENT, f'{path} is not there')
        if created:
            self.disks[name] = CrashDisk(name, create_size)
            if self.used:
                self.fill_with_garbage(self.disks[name], self.layout.data_offset)
                created = False
        disk = self.disks[name]
        if disk.holder:
            raise Refused(errno.EBUSY, f'{path} is in use')
        disk.holder = leg = CrashLeg(disk, self.hook, sharing=self.sharing)
        return leg, created

    async def admit(self, path: str) -> None:
        """Nothing is mounted."""

    async def probe(self, path: str) -> object:
        await trio.lowlevel.checkpoint()
        name = path.rsplit('/', 1)[-1]
        there = name in self.disks and name not in self.away | self.gone
        return self.disks[name].digest() if there else None

    @staticmethod
    def fill_with_garbage(disk: CrashDisk, start: int) -> None:
        """A disk holds something else from `start` on, and cannot forget it quickly."""
        disk.erasable = False
        for medium in (disk.durable, disk.visible):
            medium.write(start, fill(GARBAGE) * ((disk.size - start) // BLOCK))

    async def require_blank(self, leg: Leg) -> None:
        """Signatures are not simulated but those of others, and marks of spares."""
        name = leg.path.rsplit('/', 1)[-1]
        if name in self.foreign or mark_of(self.disks[name].visible):
            raise Refused(errno.EEXIST, f'{leg.path} has a signature')

    async def discard_new(self, leg: Leg) -> None:
        del self.disks[leg.path.rsplit('/', 1)[-1]]

    async def hook(self, call: Call) -> None:
        """Every leg call passes here: check, freeze, fail, pause."""
        fault = self.arrive(call)
        if fault and fault.what == 'slow':
            await trio.sleep(fault.seconds)
        elif fault and fault.what == 'hang' and call.disk not in self.hung:
            self.hang(call.disk, fault.seconds)
        while call.disk in self.hung:
            await self.hung[call.disk].wait()
        for _ in range(self.rng.choice(self.pauses)):
            await trio.lowlevel.checkpoint()

    def arrive(self, call: Call) -> Fault | None:
        """A call is about to take effect.  Raises OSError for a planned error; returns another fault."""
        self.checkers.step(call)
        self.steps += 1
        self.trace.append(call)
        if self.freeze_at(self.steps) and not (self.hosts_apart or self.undecided):
            self.frozen.append(self.freeze())
        if call.disk in self.gone:
            raise OSError(errno.ENODEV, f'{call.disk} is gone')
        return self._fault(call) if self.plan else None

    def _fault(self, call: Call) -> Fault | None:
        found: Fault | None = None
        for kind in (call.kind, 'any'):
            nth = self._calls[call.disk, kind] = self._calls.get((call.disk, kind), 0) + 1
            found = found or self.plan.get((call.disk, kind, nth)) or self.plan.get((call.disk, kind, 0))
        if found is None:
            return None
        self.tally[f'fault {found.what}'] += 1
        self.trace.append(f'fault: {found.what} on {call.disk}')
        if found.what == 'short' and call.kind == 'write' and call.length >= 1024:
            raise ShortWrite(call.length // 2 // 512 * 512)
        if found.what == 'gone':
            self.gone.add(call.disk)
        if found.what in ('error', 'short', 'gone'):
            raise OSError(found.code, f'planned fault on {call.disk}')
        return found

    def _file_step(self, kind: str, length: int) -> None:
        fault = self.arrive(Call('pool', kind, 0, length))
        if fault:  # a pool that hangs is outside what is promised
            raise OSError(fault.code, 'planned fault on the pool')

    def rot(self, disk: str, block: int) -> None:
        """A block changes on a medium without a word; what is cached of it stays as it was."""
        rotting, at = self.disks[disk], self.layout.data_offset + block * BLOCK
        rotting.changes += 1
        rotting.read_medium(at, BLOCK)  # nothing waits any more to be written there
        rotting.durable.write(at, fill(ROT))
        self.rotted.add(block // CHUNK_BLOCKS)
        self.model.rot(block, ROT)

    def mended(self) -> None:
        """What has rotted is as promised again."""
        self.rotted.clear()
        self.model.unrot(ROT)

    def hang(self, disk: str, seconds: float = 0.0) -> None:
        """From now on no call on a disk returns, until `release` or, unless 0, for so long."""
        self.hung[disk] = trio.Event()
        if seconds:
            self._nursery.start_soon(self._release_later, disk, seconds)
        self.troubled = True

    def release(self, disk: str) -> None:
        """The disk answers again; calls that were abandoned meanwhile take effect now."""
        if disk in self.hung:
            self.hung.pop(disk).set()
        if disk in self.disks:  # one that was made for an add that was refused is gone again
            self.disks[disk].release()

    async def _release_later(self, disk: str, seconds: float) -> None:
        await trio.sleep(seconds)
        if disk in self.hung:
            self.release(disk)

    # Running

    async def make(self) -> None:
        """Create the volume, with everything durable."""
        self.files.visible['/pool/mirrorfs.json'] = self.files.durable['/pool/mirrorfs.json'] = Inode()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            running = self._new_pool()
            await running.start(nursery)
            legs = [f'/sim/d{number}' for number in range(self.legs)]
            log = f'/sim/d{LOGS[0]}' if self.outside else ''
            request = Request(
                'v', self.chunks * CHUNK, legs, CHUNK, self.logged, log_path=log, detect_zeroes=self.zeroes
            )
            await running.create(request)
            await self.stop()
            nursery.cancel_scope.cancel()
        self.started = None
        for disk in self.disks.values():
            disk.flush(disk.writes)
        self.uuid = self.pool.uuid
        self.steps = 0
        self._calls.clear()
        self.trace.clear()
        self.frozen.clear()

    def _new_pool(self) -> pools.Pool:
        directory = PoolDirectory(_POOL, self.files)
        self.running_pool = pools.Pool(directory, self, SimEvents(self), self.settings)
        self.running_pool.on_start = self._on_start
        return self.running_pool

    def _on_start(self, entry: pools.Entry) -> None:
        """The volume has decided who its legs are, and has written nothing yet."""
        assert entry.started
        self.started = entry.started
        self.port: Port = self.volume
        self.uuid = self.volume.record.uuid
        self.chunks = self.volume.record.chunks  # a growth may have been under way
        self.checkers.found_before = self.started.rebuilder.scrub.state.differing
        if self.remade:
            self.checkers.doubt()

    @asynccontextmanager
    async def running(self, *, force: bool = False) -> AsyncGenerator[Volume, None]:
        """The volume runs, and is left alone at the end as by a killed process, unless it was stopped."""
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                yield await self.begin(nursery, force=force)
                nursery.cancel_scope.cancel()
        self.started = None
        if scope.cancelled_caught:
            raise Violation('bounded', f'not done after {PATIENCE:g} virtual seconds')

    async def begin(self, nursery: trio.Nursery, *, force: bool = False) -> Volume:
        """Start the pool, and with it the volume, from the disks at hand.  Raises Refused."""
        self._nursery = nursery
        self.at_rest = False
        self.troubled = bool(self.plan) or any(disk.spoiled for disk in self.disks.values())
        self.below = False
        self.forced = force
        before = self._writes()
        self._untaint()
        await self._settle()
        running = self._new_pool()
        await running.start(nursery, ['v'] if force else [])
        self.checkers.kept()
        await self._resolve()
        if 'v' not in running.entries:
            raise Violation('operator', 'the pool has lost the definition of the volume')
        entry = running.entries['v']
        if not entry.started or not entry.admin:
            self.started = None
            if not self.troubled:
                self.checkers.refusal(entry.refusal)
                if entry.split and self.resolved:
                    raise Violation('operator', f'refused again after a choice was made: {entry.refusal}')
                if before != self._writes():
                    raise Violation('strangers', 'a volume was refused, and its legs were written to')
            raise Refused(errno.EIO, entry.refusal)
        self.admin: Admin = entry.admin
        nursery.start_soon(self._lower_quorum, self.volume)
        if not force:
            self.checkers.admitted()
        if self.lane:
            await self.attach_lane(nursery)
        return entry.started.volume

    def _writes(self) -> dict[str, int]:
        """Return how often disks were written, but shared spares: claims that were cut short are undone."""
        shared = self.shared
        return {name: disk.writes for name, disk in self.disks.items() if name not in shared}

    async def _settle(self) -> None:
        """Start and stop the volume once, as `mirrorfs assemble --force` does."""
        if self.rebuilt is None:
            return
        directory = PoolDirectory(_POOL, self.files)
        forced = self.rebuilt.forced
        try:
            await atrest.settle(directory, self.rebuilt.record, self, self.settings, force=forced)
        except (Refused, OSError) as error:
            self.say(f'not settled: {error}')

    async def _lower_quorum(self, volume: Volume) -> None:
        """Somebody who sees that writes wait for legs for too long lowers the quorum."""
        while True:
            await trio.sleep(QUORUM_PATIENCE)
            try:
                if volume.quorum.waiting:
                    await volume.quorum.change(quorum=1)
            except OSError as error:
                self.say(f'quorum: {error}')

    async def _resolve(self) -> None:
        """Go on from the disk to be kept, where a split brain was found; what its host was promised holds."""
        keep, self.keep = self.keep, None
        if keep is None or 'v' not in self.running_pool.entries or not self.running_pool.entries['v'].split:
            return
        others = {name for name in self.disks if name != f'd{keep}'}
        self.settled, self.apart = others & (self.apart | {'d1'}), set()
        self.undecided = keep == 0  # the other host's promises
        try:
            await self.running_pool.resolve('v', f'/sim/d{keep}')
        except (Refused, OSError) as refusal:
            self.say(f'refused: {refusal}')
            if not self.troubled:
                raise Violation('operator', f'disk {keep} may not be kept: {refusal}') from refusal
            return
        if keep == 0 and self.other_model:
            self.model = self.other_model.copy()
        self.undecided, self.resolved = False, True

    def _untaint(self) -> None:
        """An old copy that was brought up to date is one no more."""
        for name in sorted(self.tainted & self.disks.keys()):
            header = log_header(self.disks[name].durable)
            if header and header.log != self.pool.log_id:
                self.tainted.discard(name)  # nothing names it any more
            sup = best_super(self.disks[name])
            if sup and sup.record.events >= self.pool.events:
                self.tainted.discard(name)

    async def attach_lane(self, nursery: trio.Nursery) -> None:
        """Put the data lane before the volume."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop the pool in order: all durable, the log clean but for what needs a resync."""
        assert self.started
        volume = self.volume
        broken, written = bool(volume.broken), volume.keeper.session
        clean = await self.running_pool.stop()
        self.at_rest = clean and not broken
        if clean and not broken:
            self.model.flushed(self.model.tick())
            if written:
                self.checkers.stopped(self.checkers.in_sync())
        if not clean and not self.troubled and not broken:
            raise Violation('clean-stop', f'could not be stopped cleanly: {self.events[-3:]}')

    @property
    def volume(self) -> Volume:
        assert self.started
        return self.started.volume

    @property
    def pool(self) -> VolumeRecord:
        """The durable record of the pool."""
        file = self.files.durable.get(DEFINITION)
        return self._record(file.durable if file else b'')

    @property
    def pool_seen(self) -> VolumeRecord:
        """The record of the pool as a daemon sees it."""
        file = self.files.visible.get(DEFINITION)
        return self._record(file.visible if file else b'')

    @property
    def shared(self) -> dict[str, ListedSpare]:
        """The shared spares that are durably listed, by the names of their disks."""
        file = self.files.durable.get(SPARES)
        listed = decode_spares(file.durable if file else b'')
        if listed is None:
            raise Violation('spares', 'the power may go now, and the list of shared spares is lost')
        return {spare.path.rsplit('/', 1)[-1]: spare for spare in listed.spares}

    @staticmethod
    def _record(text: bytes) -> VolumeRecord:
        record = decode_definition(text)
        if record is None:
            raise Violation('operator', 'the power may go now, and the pool will have lost the volume')
        return record

    def slot_of(self, disk: CrashDisk) -> int | None:
        """Return the slot that a disk's superblock claims; None for a disk that is not of this volume."""
        leg = leg_of(disk)
        return next((n for n, s in enumerate(self.pool.slots) if leg and s.leg == leg), None)

    def volume_disks(self) -> list[str]:
        """Return the names of the disks that take part in the running volume."""
        return [member.leg.path.rsplit('/', 1)[-1] for member in self.volume.members]

    def freeze(self) -> Frozen:
        """Return this moment, as a crash would find it."""
        return Frozen(
            step=self.steps,
            world=self,
            disks={name: disk.copy() for name, disk in self.disks.items()},
            files=self.files.copy(),
            model=self.model.copy(),
            now_us=self.now_us,
            chunks=self.chunks,
            at_rest=self.at_rest,
            rotted=set(self.rotted),
            settled=set(self.settled),
            resolved=self.resolved,
            point=self.point,
            given=set(self.given),
            marks=(set(self.tainted), set(self.foreign), set(self.apart), set(self.unreadable)),
        )


class ShortWrite(OSError):
    """Only the first `done` bytes were written."""

    def __init__(self, done: int) -> None:
        super().__init__(errno.EIO, 'a short write')
        self.done = done


@lru_cache
def _layout(chunks: int) -> wibm.Layout:
    return wibm.new_layout(chunks * CHUNK, CHUNK)


__all__ = ['CHUNK', 'CHUNK_BLOCKS', 'World']
