"""A small world for a volume: crash disks, a pool, faults at chosen calls, checkers, and frozen moments.

`World.run` performs a history of operations on the real volume code.  At every leg call and pool write (a
*step*) the checkers look at what is durable, and the world may be frozen: `Frozen.restart` is the world
after a power cut, or after the process was killed, at that moment.  Checkers raise AssertionError.
"""

import errno
import functools
import random
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import trio

from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.formatting import read_super
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.sim.crashleg import Call, Chooser, CrashDisk, CrashLeg, keep_all, keep_none, keep_some
from mirrorfs.sim.model import BLOCK, Model, Write, tags
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.creation import Request, create
from mirrorfs.volume.lifecycle import Found, Settings, Started, start
from mirrorfs.volume.volume import Volume

CHUNK = 64 << 10
CHUNK_BLOCKS = CHUNK // BLOCK
TIMEOUT = 3.0
Operation = tuple[object, ...]


@dataclass
class World:
    """Two or more disks and a pool, with one volume of `chunks` chunks."""

    chunks: int = 3
    legs: int = 2
    seed: int = 0
    logged: bool = True
    faults: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """(disk, kind of call, nth such call) to errno; nth 0 for every call."""
    freeze_at: Callable[[int], bool] = lambda step: False
    """Which steps to keep in `frozen`."""
    disks: dict[str, CrashDisk] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    """Disks that are not there: not found at a start, not opened."""
    sharing: int | None = None
    """The filesystem that all disks are on, if they share one."""
    pool: VolumeRecord | None = None
    model: Model = field(init=False)
    steps: int = 0
    frozen: list['Frozen'] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    trace: list[Call] = field(default_factory=list)
    """Every step, in order."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.model = Model(self.chunks * CHUNK_BLOCKS)
        self.size = self.chunks * CHUNK
        self.layout = wibm.new_layout(self.size, CHUNK)
        self._log_offsets = [self.layout.page_offset(0, copy) for copy in (0, 1)]
        self.now_us = 1_000_000
        self._calls: dict[tuple[str, str], int] = {}
        self._saved: dict[str, CrashDisk] = {}
        self.started: Started | None = None
        self._looked_at: object = None
        self.hung: dict[str, trio.Event] = {}
        self.tainted: set[str] = set()
        """Disks whose content somebody replaced: what they say of themselves is not checked."""
        self.settings = Settings(TIMEOUT, self._clock, lambda: uuid.UUID(int=self.rng.getrandbits(128)))

    def _clock(self) -> int:
        self.now_us += 1
        return self.now_us

    # What the volume code sees

    async def save(self, record: VolumeRecord) -> None:
        """The pool's store: atomic, so a power cut leaves the old record or the new one."""
        await self.hook(Call('pool', 'save'))
        self.pool = record
        await self.hook(Call('pool', 'saved'))

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        await trio.lowlevel.checkpoint()
        name = path.rsplit('/', 1)[-1]
        created = name not in self.disks
        if name in self.away or (created and not create_size):
            raise Refused(errno.ENOENT, f'{path} is not there')
        if created:
            self.disks[name] = CrashDisk(name, create_size)
        return CrashLeg(self.disks[name], self.hook, sharing=self.sharing), created

    async def require_blank(self, leg: Leg) -> None:
        pass

    async def discard_new(self, leg: Leg) -> None:
        del self.disks[leg.path.rsplit('/', 1)[-1]]

    async def hook(self, call: Call) -> None:
        """Every leg call and pool write passes here: check, freeze, fail, pause."""
        self.check_step(call)
        self.steps += 1
        self.trace.append(call)
        if self.freeze_at(self.steps):
            self.frozen.append(self.freeze())
        for kind in (call.kind, 'any'):
            nth = self._calls[call.disk, kind] = self._calls.get((call.disk, kind), 0) + 1
            code = self.faults.get((call.disk, kind, nth)) or self.faults.get((call.disk, kind, 0))
            if code:
                raise OSError(code, f'planned fault on {call.disk}')
        while call.disk in self.hung:
            await self.hung[call.disk].wait()
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            await trio.lowlevel.checkpoint()

    def hang(self, disk: str) -> None:
        """From now on no call on a disk returns."""
        self.hung[disk] = trio.Event()

    def release(self, disk: str) -> None:
        """The disk answers again; calls that were abandoned meanwhile take effect now."""
        self.hung.pop(disk).set()
        self.disks[disk].release()

    def emit(self, word: str, volume: str, device: str = '', text: str = '') -> None:
        self.events.append(f'{word} {device} {text}'.strip())

    # Running

    async def make(self) -> None:
        """Create the volume, with everything durable."""
        request = Request('v', self.size, [f'/sim/d{n}' for n in range(self.legs)], CHUNK, self.logged)
        self.pool = await create(request, self, self.settings)
        for disk in self.disks.values():
            disk.flush(disk.writes)
        self.steps = 0
        self._calls.clear()
        self.trace.clear()
        self.frozen.clear()

    async def run(self, history: Sequence[Operation]) -> None:
        """Start the volume, perform the operations, stop it."""
        async with self.running():
            for operation in history:
                await self.do(operation)
            await self.stop()

    @asynccontextmanager
    async def running(self, *, force: bool = False) -> AsyncGenerator[Volume, None]:
        """The volume runs, and is left alone at the end as by a killed process, unless it was stopped."""
        async with trio.open_nursery() as nursery:
            yield await self.begin(nursery, force=force)
            nursery.cancel_scope.cancel()
        self.started = None

    async def begin(self, nursery: trio.Nursery, *, force: bool = False) -> Volume:
        """Assemble and start the volume from the disks at hand."""
        assert self.pool
        found = {}
        for name in sorted(self.disks.keys() - self.away):
            leg = CrashLeg(self.disks[name], self.hook, sharing=self.sharing)
            try:
                sup, copy = await read_super(leg)
            except BadMetadata:
                counts = {self.pool.slots[n].path for n in self.pool.where(LegState.IN_SYNC)}
                assert leg.path not in counts, f'{name} counts and has no whole superblock'
                continue
            except OSError as error:
                self.events.append(f'open {name}: {error}')
                continue
            slot = next((n for n, s in enumerate(self.pool.slots) if s.leg == sup.leg), None)
            if slot is not None:
                found[slot] = Found(leg, sup, copy)
        self.started = await start(self.pool, found, self, self.emit, self.settings, force=force)
        self.chunks = self.volume.record.chunks  # a growth may have been under way
        self._check_doubt()
        await nursery.start(self.started.run)
        self.admin = Admin(self.started, self)
        for slot in self.started.plan.returning:
            await self.admin.re_add(str(slot))
        return self.started.volume

    async def stop(self) -> None:
        """Stop the volume in order: all durable, the log clean but for what needs a resync."""
        assert self.started
        broken = bool(self.volume.broken)
        try:
            await self.started.stop()
        except OSError as error:
            self.events.append(f'stop: {error}')
            broken = True
        if self.volume.keeper.session and not broken:
            self._check_stopped()
        await self.started.close()

    @property
    def volume(self) -> Volume:
        assert self.started
        return self.started.volume

    # Operations of histories

    async def do(self, operation: Operation) -> None:
        """Perform one operation: its name, then its arguments."""
        name, *arguments = operation
        verb: Callable[..., Awaitable[None]] = getattr(self, f'do_{name}')
        await verb(*arguments)

    async def do_both(self, first: Operation, second: Operation) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.do, first)
            nursery.start_soon(self.do, second)

    async def do_write(self, block: int, count: int = 1) -> None:
        write = self.model.begin(block, count)
        try:
            await self.volume.write(block * BLOCK, self.model.data(write))
        except OSError as error:
            self.model.fail(write)
            self.events.append(f'write: {error}')
            return
        self.model.ack(write)
        self._check_everywhere(write)

    async def do_discard(self, block: int, count: int) -> None:
        write = self.model.begin(block, count, zeros=True)
        try:
            await self.volume.discard(block * BLOCK, count * BLOCK)
        except OSError as error:
            self.model.fail(write)
            self.events.append(f'discard: {error}')
            return
        self.model.ack(write)

    async def do_flush(self) -> None:
        began = self.model.tick()
        try:
            await self.volume.flush()
        except OSError as error:
            self.events.append(f'flush: {error}')
            return
        self.model.flushed(began)
        self._check_flushed()

    async def do_read(self, block: int, count: int = 1) -> None:
        now = self.model.tick()
        try:
            data = bytes(await self.volume.read(block * BLOCK, count * BLOCK))
        except OSError as error:
            self.events.append(f'read: {error}')
            return
        for at in range(count):
            may = self.model.visible(block + at, now)
            seen = tags(data[at * BLOCK : (at + 1) * BLOCK])
            assert set(seen) <= may, f'block {block + at} reads {seen}, may be {may}'

    async def do_fail(self, slot: int) -> None:
        await self._admin(self.admin.fail, slot)

    async def do_readd(self, slot: int | str) -> None:
        await self._admin(self.admin.re_add, slot)

    async def do_remove(self, slot: int) -> None:
        await self._admin(self.admin.remove, slot)

    async def do_add(self, number: int) -> None:
        await self._admin(functools.partial(self.admin.add), f'/sim/d{number}')

    async def _admin(self, verb: Callable[[str], Awaitable[None]], word: int | str) -> None:
        try:
            await verb(str(word))
        except (Refused, OSError) as refusal:
            self.events.append(f'refused: {refusal}')
        assert self.volume.keeper.in_sync, 'the last in-sync leg is gone'

    async def do_sweep(self) -> None:
        """Two sweeps: what was quiet before is cleared."""
        assert self.started
        for _ in range(2):
            try:
                await self.started.clearer.sweep()
            except OSError as error:
                self.events.append(f'sweep: {error}')

    async def do_quiet(self) -> None:
        """Wait until nothing is left to resync or recover, in bounded virtual time."""
        with trio.move_on_after(600):
            while self._busy():
                await trio.sleep(0.5)
            return
        raise AssertionError('resync or recovery does not end')

    async def do_grow(self, chunks: int) -> None:
        """Grow the volume; what is new reads as zeros."""
        self.model.grow(chunks * CHUNK_BLOCKS)
        try:
            await self.volume.grow(chunks * CHUNK)
        except (Refused, OSError) as refusal:
            self.events.append(f'refused: {refusal}')
        self.chunks = self.volume.record.chunks

    async def do_save(self, number: int) -> None:
        """Keep a copy of a disk's medium for `do_restore`."""
        self._saved[f'd{number}'] = self.disks[f'd{number}'].copy()

    async def do_restore(self, number: int) -> None:
        """Somebody puts the old copy of a disk back.  It must not be in use."""
        name = f'd{number}'
        self.disks[name] = self._saved[name].cut(keep_all)
        self.tainted.add(name)

    def _busy(self) -> bool:
        volume = self.volume
        spares = any(s in volume.keeper.members for s in volume.record.where(LegState.SPARE))
        doubtful = len(volume.keeper.in_sync) > 1 and volume.log.count(NEEDS_RESYNC) > 0
        return spares or doubtful

    # After a crash

    def freeze(self) -> 'Frozen':
        """Return this moment, as a crash would find it."""
        assert self.pool
        disks = {name: disk.copy() for name, disk in self.disks.items()}
        template = (self.chunks, self.legs, self.seed, self.logged)
        frozen = Frozen(self.steps, disks, self.pool, self.model.copy(), self.now_us, template)
        frozen.tainted = set(self.tainted)
        return frozen

    async def check_recovery(self) -> None:
        """After a start: every block is what was promised, reads agree, all legs at hand end equal."""
        first = await self._read_all()
        self._check_promise(first)
        await self.do_quiet()
        await self._check_same(first)
        self.check_equal()
        await self._welcome_back()
        await self._check_same(first)
        self.check_equal()
        await self.do_flush()
        for block, seen in enumerate(first):
            self.model.settle(block, seen)

    def _check_promise(self, seen: list[list[int]]) -> None:
        now = self.model.tick()
        for block, found in enumerate(seen):
            may = self.model.visible(block, now)
            assert set(found) <= may, f'block {block} holds {found}, may hold {may}'

    async def _check_same(self, first: list[list[int]]) -> None:
        again = await self._read_all()
        for block, (old, new) in enumerate(zip(first, again, strict=True)):
            assert old == new, f'block {block} read {old}, then {new} without a write between'

    async def _welcome_back(self) -> None:
        """Every leg that left and is at hand can be taken back and brought up to date."""
        record = self.volume.record
        for slot in [n for n, s in enumerate(record.slots) if s.state.is_stale]:
            name = record.slots[slot].path.rsplit('/', 1)[-1]
            if name in self.away or name not in self.disks:
                continue
            with trio.move_on_after(60):
                while (member := self.volume.keeper.quarantine.get(slot)) and member.leg.calls:
                    await trio.sleep(1)
            await self.admin.re_add(str(slot))
            await self.do_quiet()
            assert slot in self.volume.keeper.in_sync, f'slot {slot} did not come back: {self.events[-5:]}'

    async def _read_all(self) -> list[list[int]]:
        """Return the tags of every block, read chunk by chunk."""
        found: list[list[int]] = []
        for chunk in range(self.chunks):
            data = bytes(await self.volume.read(chunk * CHUNK, CHUNK))
            found.extend(tags(data[at : at + BLOCK]) for at in range(0, CHUNK, BLOCK))
        return found

    def data_reads(self, since: int = 0) -> int:
        """Return the bytes of data areas that were read from disks since a step."""
        base = self.layout.data_offset
        return sum(c.length for c in self.trace[since:] if c.kind == 'read' and c.offset >= base)

    # Checkers of what is on the disks

    def check_equal(self) -> None:
        """All in-sync legs hold the same in every chunk that was ever written."""
        disks = self._in_sync_disks()
        for chunk in self.volume.log.where(0, UNWRITTEN).tolist():
            for disk in disks[1:]:
                same = self._same(disk, disks[0], chunk, visible=True)
                assert same, f'{disk.name} and {disks[0].name}, both in sync, differ in chunk {chunk}'

    def check_step(self, call: Call) -> None:
        """What must hold at every step of a running volume."""
        if not self.started or not hasattr(self.volume, 'keeper'):
            return
        if call.kind == 'write':
            self._check_intent(call)
            self._check_copies(call)
        now = [(disk.changes, disk) for disk in self.disks.values()], self._in_sync_disks()
        if now != self._looked_at:
            self._looked_at = now
            self.check_clean()
            self._check_missed()

    def _check_intent(self, call: Call) -> None:
        """Invariant 1: marks are durable, on every leg that counts, before data."""
        disks = self._in_sync_disks()
        if call.offset < self.layout.data_offset or self.disks.get(call.disk) not in disks:
            return
        if call.offset - self.layout.data_offset >= self.volume.record.size:
            assert call.zeros, 'data beyond the end of the volume'
            return
        first = (call.offset - self.layout.data_offset) // CHUNK
        last = (call.offset - self.layout.data_offset + call.length - 1) // CHUNK
        for disk in disks:
            states = self.durable_states(disk)
            for chunk in range(first, last + 1):
                marked = states[chunk] & DIRTY if self.logged else self._active(disk)
                unwritten = states[chunk] & UNWRITTEN
                good = (marked and not unwritten) or (call.zeros and unwritten)
                assert good, f'data for chunk {chunk} before its mark on {disk.name}'

    def _active(self, disk: CrashDisk) -> bool:
        return _super(disk)[0].record.active

    def _check_copies(self, call: Call) -> None:
        """Invariant 12: the newest whole copy is never what a write goes over."""
        members = {m.leg.path.rsplit('/', 1)[-1] for m in self.volume.members}
        if call.offset >= self.layout.data_offset or call.disk not in members:
            return
        disk = self.disks[call.disk]
        if call.offset in disk.unconfirmed:
            return  # nobody relies on it: the write failed before, or this is its second step
        if call.offset in wibm.SUPER_OFFSETS:
            sups = [_decode_super(disk.durable.read(offset, wibm.PAGE)) for offset in wibm.SUPER_OFFSETS]
            copy = wibm.SUPER_OFFSETS.index(call.offset)
            mine, other = sups[copy], sups[1 - copy]
            spared = not mine or (other and other.serial >= mine.serial)
            assert spared, f'a write over the current superblock of {disk.name}'
        log = self.layout.log
        if log.offset <= call.offset < log.end:
            copy, at = divmod(call.offset - log.offset, log.length)
            assert not at, 'one log page is all that the simulation looks at'
            spared = self._log(disk).current[0] != copy
            spared = spared or self._log_serial(disk, 0) == self._log_serial(disk, 1)
            assert spared, f'a write over the current copy of a log page of {disk.name}'

    def check_clean(self) -> None:
        """Invariant 4: a durably clean chunk is flushed, and the same, on all legs that count."""
        disks = self._in_sync_disks()
        clean = np.zeros(self.chunks, np.bool_)
        for disk in disks:
            states = self.durable_states(disk)
            if self.logged or not self._active(disk):
                clean |= (states & np.uint8(DIRTY | UNWRITTEN | NEEDS_RESYNC)) == 0
        for chunk in np.flatnonzero(clean).tolist():
            self._check_settled(disks, chunk, 'is clean in a log')

    def _check_settled(self, disks: list[CrashDisk], chunk: int, why: str) -> None:
        start = self.layout.data_offset + chunk * CHUNK
        for disk in disks:
            volatile = any(w.offset < start + CHUNK and start < w.end for w in disk.pending)
            assert not volatile, f'chunk {chunk} {why}, but {disk.name} has not flushed it'
            same = self._same(disk, disks[0], chunk)
            assert same, f'chunk {chunk} {why}, but {disk.name} and {disks[0].name} differ'

    def _check_missed(self) -> None:
        """Invariant 4: what a leg that left, or is coming back, lacks is known durably to every survivor."""
        if not self.logged:
            return
        for disk in self._in_sync_disks():
            record = _super(disk)[0].record
            states = self.durable_states(disk)
            for number, slot in enumerate(record.slots):
                if slot.state is not LegState.SPARE and not slot.tracked_since:
                    continue
                other = self._disk_of(slot.leg)
                if other is None or other is disk:
                    continue
                theirs = _super(other)[0].record
                if slot.state.is_stale and not membership.can_catch_up(record, number, theirs):
                    continue
                needed = (states & np.uint8(DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN)) != 0
                if slot.full:
                    needed[slot.mark :] = True
                for chunk in np.flatnonzero(~needed).tolist():
                    self._check_settled([disk, other], chunk, f'counts as up to date on {other.name}')

    def _disk_of(self, leg: uuid.UUID) -> CrashDisk | None:
        """Return the disk that holds a leg, if it is at hand and nobody replaced it."""
        for name, disk in self.disks.items():
            if name not in self.away | self.tainted and _leg_of(disk) == leg:
                return disk
        return None

    def _check_everywhere(self, write: Write) -> None:
        """Invariants 2 and 3: a leg that lacks an acknowledged write is stale for the pool and survivors."""
        assert self.pool
        survivors = self._in_sync_disks()
        for name, disk in self.disks.items():
            slot = self._slot_of(disk)
            if slot is None or name in self.tainted:
                continue
            witnesses = [self.pool, *(_super(other)[0].record for other in survivors if other is not disk)]
            if all(record.slots[slot].state is not LegState.IN_SYNC for record in witnesses):
                continue
            for block in write.blocks:
                at = self.layout.data_offset + block * BLOCK
                seen = set(tags(disk.visible.read(at, BLOCK)))
                newer = {w.tag for w in self.model.writes[block] if w.acked >= write.began}
                assert seen <= newer, f'{name} counts but lacks block {block}: {seen}, not {newer}'

    def _check_flushed(self) -> None:
        """Invariant 10: what a returned flush covers is durable on every leg that counts."""
        for disk in self._in_sync_disks():
            for chunk in self.volume.log.where(0, UNWRITTEN).tolist():
                for block in range(chunk * CHUNK_BLOCKS, (chunk + 1) * CHUNK_BLOCKS):
                    held = set(tags(disk.durable.read(self.layout.data_offset + block * BLOCK, BLOCK)))
                    may = self.model.possible(block)
                    assert held <= may, f'{disk.name} flushed, but holds {held} in block {block}, not {may}'

    def _check_stopped(self) -> None:
        """After a clean stop nothing is volatile and every leg in sync says that the volume is at rest."""
        disks = self._in_sync_disks()
        for disk in disks:
            assert not disk.pending, f'{disk.name} was stopped with writes not flushed'
            assert not self._active(disk), f'{disk.name} was stopped and says active'
            states = self.durable_states(disk)
            dirty = (states & np.uint8(DIRTY | NEEDS_RESYNC)) == DIRTY
            assert not dirty.any(), f'{disk.name} was stopped with a dirty log'

    def _check_doubt(self) -> None:
        """Wherever two legs that count differ on the medium, the log says so when the volume starts."""
        disks = self._in_sync_disks()
        states = self.volume.log.states
        for chunk in range(self.chunks):
            if not all(self._same(disk, disks[0], chunk, visible=True) for disk in disks):
                said = states[chunk] & (NEEDS_RESYNC | UNWRITTEN)
                assert said, f'legs differ in chunk {chunk} and the log does not say so'

    def _same(self, one: CrashDisk, other: CrashDisk, chunk: int, *, visible: bool = False) -> bool:
        at = self.layout.data_offset + chunk * CHUNK
        if visible:
            return one.visible.same(other.visible, at, CHUNK)
        return one.durable.same(other.durable, at, CHUNK)

    def _in_sync_disks(self) -> list[CrashDisk]:
        keeper = self.volume.keeper
        return [self.disks[keeper.members[slot].leg.path.rsplit('/', 1)[-1]] for slot in keeper.in_sync]

    def durable_states(self, disk: CrashDisk) -> wibm.States:
        """Return the intent log on a disk's durable medium."""
        image = self._log(disk)
        assert not image.damaged, f'{disk.name} has no whole copy of a log page'
        return image.states

    def _log(self, disk: CrashDisk) -> wibm.LogImage:
        assert self.pool
        assert self.chunks <= wibm.PAGE_CHUNKS
        pages = [disk.durable.read(offset, wibm.PAGE) for offset in self._log_offsets]
        return _decode_log(self.pool.uuid, self.chunks, pages[0], pages[1])

    def _log_serial(self, disk: CrashDisk, copy: int) -> int:
        """Return the serial of one copy of the log, 0 if that copy is not whole."""
        assert self.pool
        page = disk.durable.read(self.layout.page_offset(0, copy), wibm.PAGE)
        pages = (page, b'') if copy == 0 else (b'', page)
        return int(_decode_log(self.pool.uuid, self.chunks, *pages).serials[0])

    def _slot_of(self, disk: CrashDisk) -> int | None:
        """Return the slot that a disk's superblock claims; None for a disk that is not of this volume."""
        leg = _leg_of(disk)
        assert self.pool
        return next((n for n, s in enumerate(self.pool.slots) if leg and s.leg == leg), None)


@dataclass
class Frozen:
    """A moment at which a world may crash, with all that outlives it."""

    step: int
    disks: dict[str, CrashDisk]
    pool: VolumeRecord
    model: Model
    now_us: int
    template: tuple[int, int, int, bool]
    tainted: set[str] = field(default_factory=set)

    def restart(self, keep: str, away: Iterable[str] = ()) -> World:
        """Return the world after a crash; it may be called more than once.

        `keep` says what becomes of unflushed writes: ``none``, ``all``, a disk's name (that one keeps all,
        the others none), ``tear:SEED`` (each write kept, dropped or torn at random), or ``kill`` (the
        process died, not the power: all stay visible, still volatile).
        """
        chunks, legs, seed, logged = self.template
        after = World(chunks, legs, seed + 1, logged)
        rng = random.Random(keep)

        def chooser(name: str) -> Chooser:
            if keep.startswith('tear:'):
                return keep_some(rng)
            return keep_all if keep in ('all', name) else keep_none

        for name, disk in self.disks.items():
            after.disks[name] = disk.copy() if keep == 'kill' else disk.cut(chooser(name))
        after.pool, after.now_us, after.away = self.pool, self.now_us, set(away)
        after.model = self.model.copy()
        after.model.crash(power=keep != 'kill')
        after.tainted = set(self.tainted)
        return after


def _super(disk: CrashDisk) -> tuple[wibm.LegSuper, int]:
    """Invariant 12: one superblock copy is always whole."""
    return _newest_super(*(disk.durable.read(offset, wibm.PAGE) for offset in wibm.SUPER_OFFSETS))


def _leg_of(disk: CrashDisk) -> uuid.UUID | None:
    sups = [_decode_super(disk.durable.read(offset, wibm.PAGE)) for offset in wibm.SUPER_OFFSETS]
    return next((sup.leg for sup in sups if sup), None)


@functools.lru_cache(maxsize=256)
def _decode_super(page: bytes) -> wibm.LegSuper | None:
    try:
        return wibm.decode_super(page)
    except BadMetadata:
        return None


# The same few pages are looked at again and again.
_newest_super = functools.lru_cache(maxsize=256)(wibm.newest_super)


@functools.lru_cache(maxsize=256)
def _decode_log(volume: uuid.UUID, chunks: int, first: bytes, second: bytes) -> wibm.LogImage:
    return wibm.decode_log(volume, chunks, lambda copy: second if copy else first)
