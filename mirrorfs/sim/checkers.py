"""The checkers: what must hold of the disks, the pool and the answers, at every step and after every crash.

Each is a second, simpler statement of an invariant, made from the durable media alone and from what callers
were promised (`mirrorfs.sim.model`); none asks the code under test what it believes, but for which legs it
counts at the moment.  `mirrorfs.sim.violation.CHECKERS` names them.
"""

import functools
import itertools
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mirrorfs.errors import BadMetadata
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED
from mirrorfs.metadata import badlist, logfile, wibm
from mirrorfs.metadata.spare import SpareMark, decode_mark
from mirrorfs.mirror import membership
from mirrorfs.mirror.membership import Kinship, kinship
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.sim.crashleg import Call, CrashDisk, Medium
from mirrorfs.sim.model import BLOCK, Write, tags
from mirrorfs.sim.violation import Violation

if TYPE_CHECKING:
    from mirrorfs.sim.world import Image, World

CHUNK = 64 << 10
CHUNK_BLOCKS = CHUNK // BLOCK


class Checkers:
    """The checkers of one world.  `made` counts how often each had something to look at."""

    late = False
    """Whether callers learn late what they have read."""

    def __init__(self, world: 'World') -> None:
        self._world = world
        self._looked_at: object = None
        self.made: Counter[str] = Counter()
        self.layout = world.layout
        self._log_pages = [self.layout.page_offset(0, copy) // wibm.PAGE for copy in (0, 1)]
        self.found_before = 0
        """How many units scrubs had found to differ before this run."""
        self._known: dict[str, tuple[CrashDisk, object, Said]] = {}

    # At every step of a running volume

    def step(self, call: Call) -> None:
        """Check what must hold before a call takes effect."""
        world = self._world
        if call.kind == 'write' and call.disk in world.foreign:
            raise Violation('strangers', f'a write to {call.disk}, which is not of this volume')
        if call.kind == 'write' and call.disk in world.settled:
            raise Violation('strangers', f'a write to {call.disk}, which grew apart and was given up')
        self._shared(call)
        if not world.started or not hasattr(world.volume, 'keeper'):
            return
        self._alarm()
        disks = self.in_sync()
        if call.kind == 'write':
            self._intent(call, disks)
            self._copies(call)
        elif call.kind == 'read' and call.offset >= self.layout.data_offset:
            self._current(call, disks)
        now = [(disk, disk.changes) for disk in world.disks.values()], disks
        if now != self._looked_at:
            self._looked_at = now
            self._clean(disks + self._behind())
            self._missed(disks)

    def _shared(self, call: Call) -> None:
        """A shared spare is not written to while it is durably listed as free, and no leg then."""
        free = {name for name, spare in self._world.shared.items() if spare.claim is None}
        if not free:
            return
        self.made['spares'] += 1
        if call.kind == 'write' and call.disk in free:
            raise Violation('spares', f'a write to {call.disk}, a shared spare that nobody has claimed')
        for slot in self._world.pool.slots:
            if slot.state is not LegState.REMOVED and slot.path.rsplit('/', 1)[-1] in free:
                raise Violation('spares', f'{slot.path} is a leg, and listed as a spare that nobody has')

    def missing(self, name: str, why: str) -> None:
        """A shared spare that is there, and nothing else, is found."""
        world = self._world
        excused = world.away | world.gone | world.foreign | world.tainted | world.unreadable
        if not world.troubled and name not in excused and name in world.given:
            raise Violation('spares', f'{name} is a shared spare, and is not found: {why}')

    def kept(self) -> None:
        """At a start: what was given to the pool as a spare is listed, or a leg."""
        world = self._world
        legs = {slot.path.rsplit('/', 1)[-1] for slot in world.pool_seen.slots}
        listed = {spare.path.rsplit('/', 1)[-1] for spare in world.running_pool.spares.spares}
        self.made['spares'] += len(world.given)
        if lost := world.given - legs - listed:
            raise Violation('spares', f'{", ".join(sorted(lost))}: given to the pool, and lost')

    def _alarm(self) -> None:
        """Scrubs give no false alarm, whatever goes on beside them."""
        assert self._world.started
        found = self._world.started.rebuilder.scrub.state
        self.made['scrub'] += bool(found.position)
        self.found_before = min(self.found_before, found.differing)
        lost = any(disk.lost for disk in self._world.disks.values())
        if found.action and found.differing > self.found_before and not lost and not self._world.rotted:
            raise Violation('scrub', f'a scrub says that legs differ: {[one.line for one in found.listed]}')

    def _current(self, call: Call, disks: list[CrashDisk]) -> None:
        """Invariant 7: data are read where they count."""
        self.made['never-stale'] += 1
        chunk = (call.offset - self.layout.data_offset) // CHUNK
        volume = self._world.volume
        if call.medium or call.disk == self._world.peeking:
            return  # to see what is there; what callers get, and what is copied, does not come from it
        page, end = call.offset // BLOCK, -(-(call.offset + call.length) // BLOCK)
        if not self.bad_pages(self._world.disks[call.disk].durable).isdisjoint(range(page, end)):
            raise Violation('never-stale', f'data are read from {call.disk} that are on its bad-block list')
        leaving = any(m.leg.path.endswith(f'/{call.disk}') for m in volume.keeper.quarantine.values())
        if leaving and volume.locks.is_exclusive(chunk):
            return  # a copy that began when it counted, of a chunk that nobody writes meanwhile
        behind = {m.leg.path.rsplit('/', 1)[-1] for m in volume.members if m.backlog and m.backlog.count}
        if call.disk not in behind:
            disks = disks + self._behind()  # it may be behind from now on, and is not yet
        if self._world.disks.get(call.disk) not in disks:
            raise Violation('never-stale', f'data are read from {call.disk}, which does not count')

    def _intent(self, call: Call, disks: list[CrashDisk]) -> None:
        """Invariant 1: marks are durable, on every leg that counts, before data."""
        world = self._world
        if call.offset < self.layout.data_offset or world.disks.get(call.disk) not in disks:
            return
        self.made['intent-first'] += 1
        if call.offset - self.layout.data_offset >= world.volume.record.size:
            if not call.zeros:
                raise Violation('intent-first', 'data beyond the end of the volume')
            return
        first = (call.offset - self.layout.data_offset) // CHUNK
        last = (call.offset - self.layout.data_offset + call.length - 1) // CHUNK
        for disk in disks:
            record, states = self._whole(disk).sup.record, self.durable_states(disk)
            for chunk in range(first, last + 1):
                marked = states[chunk] & DIRTY if record.logged else record.active
                unwritten = states[chunk] & UNWRITTEN
                if not ((marked and not unwritten) or (call.zeros and unwritten)):
                    raise Violation('intent-first', f'data for chunk {chunk} before its mark on {disk.name}')

    def _copies(self, call: Call) -> None:
        """Invariant 12: the newest whole copy is never what a write goes over."""
        members = {m.leg.path.rsplit('/', 1)[-1] for m in self._world.volume.members}
        if call.offset >= self.layout.data_offset or call.disk not in members:
            return
        disk = self._world.disks[call.disk]
        if call.offset in disk.unconfirmed:
            return  # nobody relies on it: the write failed before, or this is its second step
        self.made['whole-copy'] += 1
        if call.offset in wibm.SUPER_OFFSETS:
            sups = [decode_super(disk.durable.read(offset, wibm.PAGE)) for offset in wibm.SUPER_OFFSETS]
            copy = wibm.SUPER_OFFSETS.index(call.offset)
            mine, other = sups[copy], sups[1 - copy]
            if mine and not (other and other.serial >= mine.serial):
                raise Violation('whole-copy', f'a write over the current superblock of {disk.name}')
        log = self.layout.log
        if log.offset <= call.offset < log.end:
            copy, at = divmod(call.offset - log.offset, log.length)
            assert not at, 'one log page is all that the simulation looks at'
            spared = self._said(disk).log.current[0] != copy
            spared = spared or self._copy_serial(disk, 0) == self._copy_serial(disk, 1)
            if not spared:
                raise Violation('whole-copy', f'a write over the current copy of a log page of {disk.name}')

    def _clean(self, disks: list[CrashDisk]) -> None:
        """Invariant 4: a durably clean chunk is flushed, and the same, on all legs that count."""
        if not disks:
            raise Violation('last-copy', 'no leg is in sync any more')
        self.made['clearing-last'] += 1
        said = [self._whole(disk) for disk in disks]
        newest = max(one.log_serial for one in said)  # where a page rots, older marks stand beside newer ones
        current = [one for one in said if one.log_serial == newest]
        for chunk in clean_chunks(*current):
            self._settled(disks, chunk, 'clearing-last', 'is clean in a log')

    def _settled(self, disks: list[CrashDisk], chunk: int, checker: str, why: str) -> None:
        start = self.layout.data_offset + chunk * CHUNK
        for disk in disks:
            if any(w.offset < start + CHUNK and start < w.end for w in disk.pending):
                raise Violation(checker, f'chunk {chunk} {why}, but {disk.name} has not flushed it')
            if not self._same(disk, disks[0], chunk):
                text = f'chunk {chunk} {why}, but {disk.name} and {disks[0].name} differ'
                raise Violation(checker, text)

    def _missed(self, disks: list[CrashDisk]) -> None:
        """Invariants 4, 6: what a leg that left, or is coming back, lacks is known to every survivor."""
        for disk in disks:
            said = self._whole(disk)
            if not said.sup.record.logged:
                continue
            for number in said.followed:
                other = self.disk_of(said.sup.record.slots[number].leg)
                if other is None or other is disk:
                    continue
                if not said.catches_up(number, self._said(other)):
                    continue
                checker, chunks = said.up_to_date(number)
                self.made[checker] += 1
                for chunk in chunks:
                    self._settled([disk, other], chunk, checker, f'counts as up to date on {other.name}')

    # After an answer

    def everywhere(self, write: Write) -> None:
        """Invariants 2 and 3: a leg that lacks an acknowledged write is stale for the pool and survivors."""
        world = self._world
        survivors = self.in_sync()
        self.made['acknowledged-everywhere'] += 1
        for block in write.blocks:
            page = self.layout.data_offset // BLOCK + block
            if all(page in self.bad_pages(disk.durable) for disk in survivors):
                text = f'block {block} is acknowledged, and bad on every leg'
                raise Violation('acknowledged-everywhere', text)
        for name, disk in world.disks.items():
            slot = world.slot_of(disk)
            if slot is None or name in world.tainted:
                continue
            counts = disk in survivors
            witnesses = [world.pool, *(newest(other).record for other in survivors if other is not disk)]
            if not counts:
                self.made['expulsion-first'] += 1
                if all(not membership.has_all(record.but(active=True), slot) for record in witnesses):
                    continue
            for block in write.blocks:
                at = self.layout.data_offset + block * BLOCK
                if at // BLOCK in self.bad_pages(disk.durable):
                    continue
                if not write.tag and self.durable_states(disk)[block // CHUNK_BLOCKS] & UNWRITTEN:
                    continue  # zeros, whatever the medium holds
                seen = set(tags(disk.visible.read(at, BLOCK)))
                newer = {w.tag for w in world.model.writes[block] if w.acked >= write.began}
                if not seen <= newer:
                    checker = 'acknowledged-everywhere' if counts else 'expulsion-first'
                    text = f'{name} counts but lacks block {block}: {seen}, not {newer}'
                    raise Violation(checker, text)

    def quorum(self, write: Write, wanted: int) -> None:
        """An acknowledged write or discard is on `wanted` legs that count, and durably so."""
        world = self._world
        if wanted < 2:
            return
        self.made['quorum'] += 1
        if not self.late:
            counted = {
                'now': len(world.volume.keeper.in_sync),
                'for the pool': sum(1 for _ in world.pool.where(LegState.IN_SYNC)),
            }
            for where, count in counted.items():
                if count < wanted:
                    raise Violation('quorum', f'acknowledged with {count} legs in sync {where}, not {wanted}')
        elif write.tag:
            holders = sum(self._holds(disk, write) for disk in world.disks.values())
            if holders < wanted:
                raise Violation('quorum', f'acknowledged, and {holders} disks have it, not {wanted}')

    def _holds(self, disk: CrashDisk, write: Write) -> bool:
        """Whether a disk has a write, or newer ones."""
        for block in write.blocks:
            at = self.layout.data_offset + block * BLOCK
            newer = {w.tag for w in self._world.model.writes[block] if w.acked >= write.began}
            try:
                if not set(tags(disk.visible.read(at, BLOCK))) <= newer:
                    return False
            except AssertionError:  # garbage
                return False
        return True

    def flushed(self, blocks: range | None = None) -> None:
        """Invariant 10: what a returned flush, or write of `blocks`, covers is durable on all that count."""
        self.made['fsync-durable'] += 1
        chunks = self._world.volume.log.where(0, UNWRITTEN).tolist()
        written = (b for chunk in chunks for b in range(chunk * CHUNK_BLOCKS, (chunk + 1) * CHUNK_BLOCKS))
        covered = list(written) if blocks is None else blocks
        for disk in self.in_sync():
            bad, states = self.bad_pages(disk.durable), self.durable_states(disk)
            for block in covered:
                if self.layout.data_offset // BLOCK + block in bad:
                    continue
                if states[block // CHUNK_BLOCKS] & UNWRITTEN and 0 in self._world.model.possible(block):
                    continue  # zeros, whatever the medium holds
                held = set(tags(disk.durable.read(self.layout.data_offset + block * BLOCK, BLOCK)))
                may = self._world.model.possible(block)
                if not held <= may:
                    text = f'{disk.name} flushed, but holds {held} in block {block}, not {may}'
                    raise Violation('fsync-durable', text)

    def promised(self, block: int, began: int, seen: list[int]) -> None:
        """A read that began at `began` may have seen this; invariant 8: as the read before it did."""
        self.made['promise'] += 1
        may = self._world.model.visible(block, began)
        if not set(seen) <= may:
            raise Violation('promise', f'block {block} reads {seen}, may be {may}')
        before = self._world.model.read(block, began, seen, late=self.late)
        if before is not None:
            self.made['stable-reads'] += 1
            if before != seen:
                text = f'block {block} read {before}, then {seen} without a write between'
                raise Violation('stable-reads', text)

    # At rest, and at a start

    def equal(self) -> None:
        """All in-sync legs hold the same in every chunk that was ever written."""
        disks = self.in_sync()
        self.made['equal'] += 1
        for chunk in self._world.volume.log.where(0, UNWRITTEN).tolist():
            for disk in disks[1:]:
                if not self._same(disk, disks[0], chunk, visible=True):
                    text = f'{disk.name} and {disks[0].name}, both in sync, differ in chunk {chunk}'
                    raise Violation('equal', text)

    def stopped(self, disks: list[CrashDisk]) -> None:
        """After a clean stop nothing is volatile and every leg in sync says that the volume is at rest."""
        self.made['clean-stop'] += 1
        for disk in disks:
            if disk.pending:
                raise Violation('clean-stop', f'{disk.name} was stopped with writes not flushed')
            record, states = self._whole(disk).sup.record, self.durable_states(disk)
            doubtful = record.log_is_outside and (states & np.uint8(NEEDS_RESYNC)).any()
            if record.active and not doubtful:
                raise Violation('clean-stop', f'{disk.name} was stopped and says active')
            if ((states & np.uint8(DIRTY | NEEDS_RESYNC)) == DIRTY).any():
                raise Violation('clean-stop', f'{disk.name} was stopped with a dirty log')

    def doubt(self) -> None:
        """Wherever two legs that count differ on the medium, the log says so when the volume starts."""
        disks = self.in_sync()
        states = self._world.volume.log.states
        self.made['log-covers'] += 1
        for chunk in range(self._world.chunks):
            alike = all(self._same(disk, disks[0], chunk, visible=True) for disk in disks)
            if not alike and not states[chunk] & (NEEDS_RESYNC | UNWRITTEN):
                raise Violation('log-covers', f'legs differ in chunk {chunk} and the log does not say so')

    def split_off(self, began: int, image: 'Image') -> None:
        """A leg was split off, since `began` and with nothing else going on: it shows what was promised."""
        self.made['point-in-time'] += 1
        for block, seen in enumerate(image):
            if not set(seen) <= self._world.model.visible(block, began):
                raise Violation('point-in-time', f'block {block} of the leg split off holds {set(seen)}')

    def same_image(self, before: 'Image', after: 'Image') -> None:
        """The image of a leg that is split off does not change."""
        self.made['point-in-time'] += 1
        for block, (then, now) in enumerate(zip(before, after, strict=True)):
            if then != now:
                raise Violation('point-in-time', f'block {block} was {set(then)}, and is {set(now)} now')

    def log_lost(self, why: str) -> None:
        """A log outside the legs is given up only where something is wrong with it."""
        world = self._world
        self.made['log-kept'] += 1
        hurt = {name for name in world.away | world.gone | world.tainted if name not in self._legs_by_name()}
        if not (world.troubled or world.forced or hurt):
            raise Violation('log-kept', f'the log was given up without a reason: {why}')

    def _legs_by_name(self) -> set[str]:
        return {name for name, disk in self._world.disks.items() if leg_of(disk)}

    def refusal(self, why: str) -> None:
        """A volume is refused only where no current leg is at hand, or lineages conflict."""
        world = self._world
        self.made['operator'] += 1
        there = [
            disk
            for name, disk in world.disks.items()
            if world.slot_of(disk) is not None and name not in world.away | world.tainted | world.unreadable
        ]
        # After a kill the daemon sees what is still volatile, too.
        for durable, pool in ((True, world.pool), (False, world.pool_seen)):
            sups = [newest_on(disk.durable if durable else disk.visible) for disk in there]
            if apart(pool, [sup for sup in sups if sup]):
                return
        good = [name for name in sorted(world.disks.keys() - world.away) if self.is_current(name)]
        if good:
            raise Violation('operator', f'refused, though {", ".join(good)} is current: {why}')

    def is_current(self, name: str) -> bool:
        """Whether a disk at hand holds a leg that has all that was ever acknowledged."""
        world, disk = self._world, self._world.disks[name]
        slot, sup = world.slot_of(disk), best_super(disk)
        if slot is None or sup is None or name in world.tainted | world.unreadable:
            return False
        pool, record = world.pool, sup.record
        counted = pool.slots[slot].state is LegState.IN_SYNC and membership.has_all(record, slot)
        return counted and record.events >= pool.events

    def grew_apart(self, name: str) -> bool:
        """Whether a disk's leg has a history that is neither the volume's nor an older part of it."""
        sup = best_super(self._world.disks[name])
        mine = self._world.volume.record.lineage
        return sup is not None and kinship(sup.record.lineage, mine) in (Kinship.CONFLICT, Kinship.DESCENDANT)

    def admitted(self) -> None:
        """What was started from has all that was ever acknowledged, and no leg at hand grew apart."""
        world = self._world
        self.made['strangers'] += 1
        self.made['log-kept'] += world.volume.record.log_is_outside
        for name in world.volume_disks():
            if name in world.foreign | world.tainted | world.settled:
                raise Violation('strangers', f'{name} is not of this volume, or an old copy, and takes part')
        for name in world.apart - world.away:
            raise Violation('operator', f'started, though {name} was changed apart')

    # What is on the disks

    def in_sync(self) -> list[CrashDisk]:
        """Return the disks that the running volume counts."""
        keeper = self._world.volume.keeper
        disks = self._world.disks
        return [disks[keeper.members[slot].leg.path.rsplit('/', 1)[-1]] for slot in keeper.in_sync]

    def _behind(self) -> list[CrashDisk]:
        """Return the disks of legs that may be behind: what is clean they have, too."""
        keeper, disks = self._world.volume.keeper, self._world.disks
        slots = set(keeper.counting) - set(keeper.in_sync)
        return [disks[keeper.members[slot].leg.path.rsplit('/', 1)[-1]] for slot in sorted(slots)]

    def disk_of(self, leg: uuid.UUID) -> CrashDisk | None:
        """Return the disk that holds a leg, if it is at hand and nobody replaced it."""
        world = self._world
        for name, disk in world.disks.items():
            if name not in world.away | world.tainted | world.unreadable and leg_of(disk) == leg:
                return disk
        return None

    def durable_states(self, disk: CrashDisk) -> wibm.States:
        """Return the intent log on a disk's durable medium."""
        return self._whole(disk).log.states

    def _same(self, one: CrashDisk, other: CrashDisk, chunk: int, *, visible: bool = False) -> bool:
        at = self.layout.data_offset + chunk * CHUNK
        if one is other or chunk in self._world.rotted:
            return True
        bad = self.bad_pages(one.durable) | self.bad_pages(other.durable)
        first, second = (one.visible, other.visible) if visible else (one.durable, other.durable)
        if not bad:
            return first.same(second, at, CHUNK)
        pages = range(at // BLOCK, (at + CHUNK) // BLOCK)
        return all(page in bad or first.page(page) == second.page(page) for page in pages)

    def bad_pages(self, medium: Medium) -> frozenset[int]:
        """Return the pages of a medium that are on its bad-block list: they do not count there."""
        return bad_pages(self.layout, medium)

    def spoiled(self, chunk: int) -> bool:
        """Whether some disk ever had bad pages in a chunk: then it may be that nobody can be asked."""
        first = (self.layout.data_offset + chunk * CHUNK) // BLOCK
        pages = range(first, first + CHUNK_BLOCKS)
        return any(not disk.spoiled.isdisjoint(pages) for disk in self._world.disks.values())

    def log_serial(self, disk: CrashDisk) -> int:
        """Return the serial of the newest page of a disk's log, 0 where none is whole."""
        return self._said(disk).log_serial

    def _whole(self, disk: CrashDisk) -> 'Said':
        """Return what a disk durably says.  Invariant 12: one copy of every page is always whole."""
        said = self._said(disk)
        if said.damaged:
            raise Violation('whole-copy', f'{disk.name} has no whole {said.damaged}')
        return said

    def _said(self, disk: CrashDisk) -> 'Said':
        world, chunks = self._world, self._world.chunks
        # What somebody put an old copy in the place of will not be believed.
        media = [other.durable for name, other in world.disks.items() if name not in world.tainted]
        logs = [medium for medium in media if log_header(medium)]
        key = (disk.changes, chunks, *(log_pages(medium) for medium in logs))
        known = self._known.get(disk.name)
        if known and known[0] is disk and known[1] == key:
            return known[2]
        assert chunks <= wibm.PAGE_CHUNKS
        pages = [disk.durable.page(page) for page in (*SUPER_PAGES, *self._log_pages)]
        said = with_log_outside(read_metadata(world.uuid, chunks, *pages), *map(log_pages, logs))
        self._known[disk.name] = disk, key, said
        return said

    def _copy_serial(self, disk: CrashDisk, copy: int) -> int:
        """Return the serial of one copy of the log, 0 if that copy is not whole."""
        page = disk.durable.page(self._log_pages[copy])
        pages = (page, b'') if copy == 0 else (b'', page)
        return int(decode_log(self._world.uuid, self._world.chunks, *pages).serials[0])


def apart(pool: VolumeRecord, sups: Sequence[wibm.LegSuper]) -> bool:
    """Whether two of these, the pool or legs that call themselves in sync, have histories that conflict."""
    mine = [sup.record.lineage for sup in sups if sup.record.slots[sup.slot].state is LegState.IN_SYNC]
    pairs = itertools.combinations([pool.lineage, *mine], 2)
    return any(kinship(one, other) is Kinship.CONFLICT for one, other in pairs)


SUPER_PAGES = [offset // wibm.PAGE for offset in wibm.SUPER_OFFSETS]


@dataclass(eq=False, slots=True)
class Said:
    """What a disk durably says of itself and its volume.  The same few are looked at again and again."""

    sups: Sequence[wibm.LegSuper]
    """The whole superblocks, the newest last."""
    log: wibm.LogImage
    damaged: str = field(init=False)
    """What has no whole copy."""
    log_serial: int = field(init=False)
    followed: Sequence[int] = ()
    """Slots of legs that are away or coming back, and that are to be caught up from here."""
    _up_to_date: dict[int, tuple[str, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log_serial = int(self.log.serials[0])
        self.damaged = '' if self.sups else 'superblock'
        if self.log.damaged:
            self.damaged = 'copy of a log page'
        if self.sups:
            slots = enumerate(self.sup.record.slots)
            self.followed = [n for n, s in slots if s.state is LegState.SPARE or s.tracked_since]

    @property
    def sup(self) -> wibm.LegSuper:
        return self.sups[-1]

    def catches_up(self, number: int, theirs: 'Said') -> bool:
        """Whether the leg of a slot, which says `theirs`, is taking part, or may by copying only a part."""
        record = self.sup.record
        if not record.slots[number].state.is_stale:
            return True
        return membership.can_catch_up(record, number, theirs.sup.record)

    def up_to_date(self, number: int) -> tuple[str, list[int]]:
        """Return the checker of a slot that is followed, and the chunks that its leg must hold already."""
        if number not in self._up_to_date:
            slot = self.sup.record.slots[number]
            needed = (self.log.states & np.uint8(DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN)) != 0
            if slot.full:
                needed[slot.mark :] = True
            found = np.flatnonzero(~needed).tolist()
            self._up_to_date[number] = 'window' if slot.full else 'log-covers', found
        return self._up_to_date[number]


@functools.lru_cache(maxsize=1024)
def read_metadata(volume: uuid.UUID, chunks: int, *pages: bytes) -> Said:
    """Return what two superblocks and two copies of the log's only page say."""
    sups = [sup for sup in map(decode_super, pages[:2]) if sup]
    return Said(sorted(sups, key=lambda sup: sup.serial), decode_log(volume, chunks, *pages[2:]))


def mark_of(medium: Medium) -> SpareMark | None:
    """Return the mark of a shared spare on a medium, None where there is none."""
    try:
        return decode_mark(medium.page(0))
    except BadMetadata:
        return None


def log_header(medium: Medium) -> logfile.LogHeader | None:
    """Return the newest header on a medium that holds a log outside the legs, None where there is none."""
    return newest_header(medium.page(0), medium.page(1))


def log_pages(medium: Medium) -> tuple[bytes, ...]:
    """Return the two copies of such a log's header and of its only page."""
    return tuple(medium.page(page) for page in range(4))


@functools.lru_cache(maxsize=1024)
def newest_header(first: bytes, second: bytes) -> logfile.LogHeader | None:
    try:
        return logfile.newest_header(first, second)[0]
    except BadMetadata:
        return None


@functools.lru_cache(maxsize=1024)
def with_log_outside(said: Said, *logs: tuple[bytes, ...]) -> Said:
    """Return what a start would find with a disk that says this, where the log is in one of `logs`.

    Without its log, all that was written may be dirty, unless it was stopped; and nothing was tracked.
    """
    if not said.sups or not said.sup.record.log_is_outside:
        return said
    chunks, record = len(said.log.states), said.sup.record
    states = said.log.states & np.uint8(UNWRITTEN | UNZEROED)
    for pages in logs:
        header = newest_header(*pages[:2])
        if header and header.log == record.log_id and header.serial >= said.sup.serial:
            outside = decode_log(header.log, chunks, *pages[2:])
            states |= outside.states & np.uint8(DIRTY | MODIFIED | NEEDS_RESYNC)
            found = Said(said.sups, replace(said.log, states=states))
            found.damaged = 'copy of a log page outside' if outside.damaged else found.damaged
            return found
    if record.active:
        states[(states & UNWRITTEN) == 0] |= DIRTY | MODIFIED | NEEDS_RESYNC
    lost = replace(said.sup, record=membership.move_log(record, None))
    return Said([lost], replace(said.log, states=states))


@functools.lru_cache(maxsize=1024)
def clean_chunks(*said: Said) -> list[int]:
    """Return the chunks that are clean for some of the legs that say this."""
    clean = np.zeros(len(said[0].log.states), np.bool_)
    for one in said:
        if one.sup.record.logged or not one.sup.record.active:
            clean |= (one.log.states & np.uint8(DIRTY | UNWRITTEN | NEEDS_RESYNC)) == 0
    return np.flatnonzero(clean).tolist()


def bad_pages(layout: wibm.Layout, medium: Medium) -> frozenset[int]:
    """Return the pages of a medium that are on the newest bad-block list there."""
    offsets = [layout.bad_blocks_offset(copy) for copy in (0, 1)]
    pages = [medium.page(offset // wibm.PAGE) for offset in offsets if offset is not None]
    return _listed(layout.data_offset // wibm.PAGE, *pages)


def is_list(page: bytes) -> bool:
    """Whether a page is a whole bad-block list."""
    try:
        badlist.decode(*badlist.owner(page), page)
    except BadMetadata:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def _listed(base: int, *copies: bytes) -> frozenset[int]:
    newest_serial, listed = 0, frozenset[int]()
    for copy in copies:
        try:
            said = badlist.decode(*badlist.owner(copy), copy)
        except BadMetadata:
            continue
        if said.serial > newest_serial:
            pages = zip((said.sectors // 8).tolist(), (said.lengths // 8).tolist(), strict=True)
            newest_serial = said.serial
            listed = frozenset(base + at for first, count in pages for at in range(first, first + count))
    return listed


def newest(disk: CrashDisk) -> wibm.LegSuper:
    """Return the newest durable superblock of a disk.  Invariant 12: one copy is always whole."""
    sup = best_super(disk)
    if sup is None:
        raise Violation('whole-copy', f'{disk.name} has no whole superblock')
    return sup


def best_super(disk: CrashDisk) -> wibm.LegSuper | None:
    """Return the newest durable superblock of a disk, None where there is none."""
    return newest_on(disk.durable)


def newest_on(medium: Medium) -> wibm.LegSuper | None:
    """Return the newest superblock on a medium, None where there is none."""
    sups = [decode_super(medium.page(page)) for page in SUPER_PAGES]
    return max((sup for sup in sups if sup), key=lambda sup: sup.serial, default=None)


def leg_of(disk: CrashDisk) -> uuid.UUID | None:
    """Return the leg that a disk says it is."""
    for page in SUPER_PAGES:
        sup = decode_super(disk.durable.page(page))
        if sup:
            return sup.leg
    return None


# The same few pages are looked at again and again.
@functools.lru_cache(maxsize=1024)
def decode_super(page: bytes) -> wibm.LegSuper | None:
    try:
        return wibm.decode_super(page)
    except BadMetadata:
        return None


@functools.lru_cache(maxsize=1024)
def decode_log(volume: uuid.UUID, chunks: int, first: bytes, second: bytes) -> wibm.LogImage:
    return wibm.decode_log(volume, chunks, lambda copy: second if copy else first)
