"""A small world for a volume: crash disks, a pool, a power switch, faults at chosen calls, and checkers.

`World.run` performs a history of operations on the real volume code until it ends or the power is cut at a
chosen step; `World.restart` is the world after the cut.  Checkers raise AssertionError.
"""

import errno
import functools
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from mirrorfs.errors import Refused
from mirrorfs.intent.states import DIRTY, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror.formatting import read_super
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.sim.crashleg import Call, CrashDisk, CrashLeg, Pending
from mirrorfs.sim.model import BLOCK, Model, Write, tags
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.creation import Request, create
from mirrorfs.volume.lifecycle import Found, Settings, Started, start
from mirrorfs.volume.volume import Volume

CHUNK = 64 << 10
CHUNK_BLOCKS = CHUNK // BLOCK
TIMEOUT = 3.0
Operation = tuple[str | int, ...]


@dataclass
class World:
    """Two or more disks and a pool, with one volume of `chunks` chunks."""

    chunks: int = 3
    legs: int = 2
    seed: int = 0
    logged: bool = True
    cut_at: int = 0
    """The step at which the power goes; 0 for never."""
    faults: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """(disk, kind of call, nth such call) to errno; nth 0 for every call."""
    disks: dict[str, CrashDisk] = field(default_factory=dict)
    pool: VolumeRecord | None = None
    model: Model = field(init=False)
    steps: int = 0
    events: list[str] = field(default_factory=list)
    copied: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.model = Model(self.chunks * CHUNK_BLOCKS)
        self.size = self.chunks * CHUNK
        self.layout = wibm.new_layout(self.size, CHUNK)
        self.cut = trio.Event()
        self.now_us = 1_000_000
        self._calls: dict[tuple[str, str], int] = {}
        self.started: Started | None = None
        self._uuids = self.rng.getrandbits
        self.settings = Settings(TIMEOUT, self._clock, lambda: uuid.UUID(int=self._uuids(128)))

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
        if created and not create_size:
            raise Refused(errno.ENOENT, f'{path} is not there')
        if created:
            self.disks[name] = CrashDisk(name, create_size)
        return CrashLeg(self.disks[name], self.hook), created

    async def require_blank(self, leg: Leg) -> None:
        pass

    async def discard_new(self, leg: Leg) -> None:
        del self.disks[leg.path.rsplit('/', 1)[-1]]

    async def hook(self, call: Call) -> None:
        """Every leg call and pool write passes here: check, cut the power, fail, pause."""
        self._check_intent(call)
        self.steps += 1
        if self.steps == self.cut_at:
            self.cut.set()
        if self.cut.is_set():
            await trio.sleep_forever()
        for kind in (call.kind, 'any'):
            nth = self._calls[call.disk, kind] = self._calls.get((call.disk, kind), 0) + 1
            code = self.faults.get((call.disk, kind, nth)) or self.faults.get((call.disk, kind, 0))
            if code:
                raise OSError(code, f'planned fault on {call.disk}')
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            await trio.lowlevel.checkpoint()

    def emit(self, word: str, volume: str, device: str = '', text: str = '') -> None:
        self.events.append(f'{word} {device} {text}'.strip())

    # Histories

    async def make(self) -> None:
        """Create the volume, with everything durable."""
        request = Request('v', self.size, [f'/sim/d{n}' for n in range(self.legs)], CHUNK, self.logged)
        self.pool = await create(request, self, self.settings)
        for disk in self.disks.values():
            disk.flush(list(disk.pending))

    async def run(self, history: Sequence[Operation]) -> bool:
        """Start the volume, perform the operations, stop it; return False if the power was cut."""
        ended = False

        async def perform() -> None:
            nonlocal ended
            async with trio.open_nursery() as nursery:
                await self.begin(nursery)
                for operation in history:
                    await self.do(operation)
                assert self.started
                await self.started.stop()
                self.started.close()
                nursery.cancel_scope.cancel()
            ended = True

        async with trio.open_nursery() as outer:

            async def watch() -> None:
                await self.cut.wait()
                outer.cancel_scope.cancel()

            outer.start_soon(watch)
            await perform()
            outer.cancel_scope.cancel()
        return ended

    async def begin(self, nursery: trio.Nursery) -> Volume:
        """Assemble and start the volume from the disks at hand."""
        assert self.pool
        found = {}
        for name in sorted(self.disks):
            leg = CrashLeg(self.disks[name], self.hook)
            sup, copy = await read_super(leg)
            slot = next((n for n, s in enumerate(self.pool.slots) if s.leg == sup.leg), None)
            if slot is not None:
                found[slot] = Found(leg, sup, copy)
        self.started = await start(self.pool, found, self, self.emit, self.settings)
        self._check_doubt()
        await nursery.start(self.started.run)
        self.admin = Admin(self.started, self)
        for slot in self.started.plan.returning:
            await self.admin.re_add(str(slot))
        return self.started.volume

    @property
    def volume(self) -> Volume:
        assert self.started
        return self.started.volume

    async def do(self, operation: Operation) -> None:
        """Perform one operation: its name, then its numbers."""
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
        except OSError:
            return
        self.model.ack(write)
        self._check_everywhere(write)

    async def do_discard(self, block: int, count: int) -> None:
        write = self.model.begin(block, count, zeros=True)
        await self.volume.discard(block * BLOCK, count * BLOCK)
        self.model.ack(write)

    async def do_flush(self) -> None:
        began = self.model.tick()
        try:
            await self.volume.flush()
        except OSError:
            return
        self.model.flushed(began)

    async def do_read(self, block: int, count: int = 1) -> None:
        now = self.model.tick()
        data = bytes(await self.volume.read(block * BLOCK, count * BLOCK))
        for at in range(count):
            may = self.model.visible(block + at, now)
            seen = tags(data[at * BLOCK : (at + 1) * BLOCK])
            assert set(seen) <= may, f'block {block + at} reads {seen}, may be {may}'

    async def do_fail(self, slot: int) -> None:
        await self._admin(self.admin.fail, slot)

    async def do_readd(self, slot: int) -> None:
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
        with trio.fail_after(600):
            while self._busy():
                await trio.sleep(0.5)

    def _busy(self) -> bool:
        volume = self.volume
        spares = any(s in volume.keeper.members for s in volume.record.where(LegState.SPARE))
        doubtful = len(volume.keeper.in_sync) > 1 and volume.log.count(NEEDS_RESYNC) > 0
        return spares or doubtful

    # After a power cut

    def restart(self, choose: Callable[[Pending], Sequence[tuple[int, int]]], cut_at: int = 0) -> 'World':
        """Return the world after a power cut; each unflushed write keeps the parts that `choose` gives."""
        self.model.power_cut()
        after = World(self.chunks, self.legs, self.seed + 1, self.logged, cut_at)
        after.disks = {name: disk.cut(choose) for name, disk in self.disks.items()}
        after.pool = self.pool
        after.model = self.model
        after.now_us = self.now_us
        for disk in after.disks.values():
            _check_super(disk)
        return after

    async def check_recovery(self) -> None:
        """After a start: every block is what was promised, reads agree, legs end equal."""
        first = await self._read_all()
        for block, seen in enumerate(first):
            may = self.model.possible(block)
            assert set(seen) <= may, f'block {block} holds {seen}, may hold {may}'
        await self.do_quiet()
        assert await self._read_all() == first, 'two reads disagree without a write between'
        self.check_equal()
        for block, seen in enumerate(first):
            self.model.settle(block, seen)

    async def _read_all(self) -> list[list[int]]:
        return [tags(bytes(await self.volume.read(b * BLOCK, BLOCK))) for b in range(self.model.blocks)]

    def check_equal(self) -> None:
        """All in-sync legs hold the same in every chunk that was ever written."""
        for chunk in self.volume.log.where(0, UNWRITTEN).tolist():
            copies = {bytes(self._chunk(disk.visible, chunk)) for disk in self._in_sync_disks()}
            assert len(copies) <= 1, f'in-sync legs differ in chunk {chunk}'

    # Checkers

    def _chunk(self, medium: bytearray, chunk: int) -> memoryview:
        at = self.layout.data_offset + chunk * CHUNK
        return memoryview(medium)[at : at + CHUNK]

    def _in_sync_disks(self) -> list[CrashDisk]:
        keeper = self.volume.keeper
        return [self.disks[keeper.members[slot].leg.path.rsplit('/', 1)[-1]] for slot in keeper.in_sync]

    def durable_states(self, disk: CrashDisk) -> wibm.States:
        """Return the intent log on a disk's durable medium."""
        length = wibm.pages_for(self.chunks) * wibm.PAGE
        copies = [disk.durable[self.layout.page_offset(0, c) :][:length] for c in (0, 1)]
        assert self.pool
        image = wibm.decode_log(self.pool.uuid, self.chunks, lambda copy: bytes(copies[copy]))
        assert not image.damaged, f'{disk.name} has no whole copy of a log page'
        return image.states

    def _check_intent(self, call: Call) -> None:
        """Invariants 1 and 4, at every call: marks are durable before data; what is clean is equal."""
        if call.kind != 'write' or not self.started or not hasattr(self.volume, 'keeper') or not self.logged:
            return
        disks = self._in_sync_disks()
        if call.offset < self.layout.data_offset or self.disks[call.disk] not in disks:
            return
        first = (call.offset - self.layout.data_offset) // CHUNK
        last = (call.offset - self.layout.data_offset + call.length - 1) // CHUNK
        for disk in disks:
            states = self.durable_states(disk)
            for chunk in range(first, last + 1):
                marked = states[chunk] & (DIRTY | UNWRITTEN)
                assert marked, f'data for chunk {chunk} before its mark on {disk.name}'
        self.check_clean_equal()

    def check_clean_equal(self) -> None:
        """Chunks that are clean in a durable log are equal on the durable media of all in-sync legs."""
        disks = self._in_sync_disks()
        for disk in disks:
            clean = (self.durable_states(disk) & (DIRTY | UNWRITTEN | NEEDS_RESYNC)) == 0
            for chunk in clean.nonzero()[0].tolist():
                copies = {bytes(self._chunk(other.durable, chunk)) for other in disks}
                assert len(copies) == 1, f'chunk {chunk} is clean on {disk.name} but legs differ'

    def _check_everywhere(self, write: Write) -> None:
        """Invariants 2 and 3: an acknowledged write is on every leg that is durably in sync."""
        assert self.pool
        for name, disk in self.disks.items():
            slot = self._slot_of(disk)
            if slot is None or self.pool.slots[slot].state is not LegState.IN_SYNC:
                continue
            if not all(self._says_in_sync(other, slot) for other in self._in_sync_disks()):
                continue
            for block in write.blocks:
                at = self.layout.data_offset + block * BLOCK
                seen = set(tags(bytes(disk.visible[at : at + BLOCK])))
                newer = {w.tag for w in self.model.writes[block] if w.acked >= write.began}
                assert seen <= newer, f'{name} counts but lacks block {block}: {seen}, not {newer}'

    def _slot_of(self, disk: CrashDisk) -> int | None:
        sup, _ = _check_super(disk)
        assert self.pool
        return next((n for n, s in enumerate(self.pool.slots) if s.leg == sup.leg), None)

    def _says_in_sync(self, disk: CrashDisk, slot: int) -> bool:
        return _check_super(disk)[0].record.slots[slot].state is LegState.IN_SYNC

    def _check_doubt(self) -> None:
        """Wherever two legs that count differ on the medium, the log says so when the volume starts."""
        disks = self._in_sync_disks()
        states = self.volume.log.states
        for chunk in range(self.chunks):
            if len({bytes(self._chunk(disk.visible, chunk)) for disk in disks}) > 1:
                said = states[chunk] & (NEEDS_RESYNC | UNWRITTEN)
                assert said, f'legs differ in chunk {chunk} and the log does not say so'


def _check_super(disk: CrashDisk) -> tuple[wibm.LegSuper, int]:
    """Invariant 12: one superblock copy is always whole."""
    pages = [bytes(disk.durable[offset : offset + wibm.PAGE]) for offset in wibm.SUPER_OFFSETS]
    return wibm.newest_super(pages[0], pages[1])
