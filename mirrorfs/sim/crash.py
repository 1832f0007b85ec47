"""Crashes: moments that were frozen, and the fates of what was not flushed by then.

A fate is a word, so that a case can be written down:

    ``kill``          the process dies, not the power: everything stays visible, still volatile
    ``none`` ``all``  the power goes; no volatile write survives, or every one does
    ``d0``, ``pool``  only those of this disk, or of the pool, survive
    ``tear:SEED``     each write is kept, dropped or torn at sectors, by chance
    ``bits:MASK``     the volatile writes whose bits are set survive, in order of disks and writes; the
                      pool's after them
    ``half:MASK:N``   the same, with only the first half of write N
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from mirrorfs import definitions
from mirrorfs.errors import BadMetadata
from mirrorfs.limits import SECTOR
from mirrorfs.mirror import sparelist
from mirrorfs.mirror.sparelist import SpareList
from mirrorfs.model import VolumeRecord
from mirrorfs.sim.crashleg import Chooser, CrashDisk, Medium, Pending, keep_all, keep_none, keep_some
from mirrorfs.sim.model import NEVER, Model
from mirrorfs.sim.poolfiles import SimFiles

if TYPE_CHECKING:
    from mirrorfs.sim.world import Image, World

ALL_SUBSETS = 4
"""So many volatile writes at most have all their subsets tried."""


DEFINITION = '/pool/volumes/v.json'
SPARES = '/pool/spares.json'


@dataclass(frozen=True, slots=True)
class Left:
    """What a crash leaves: the media of all disks, and the volume's definition; None if that is lost."""

    media: list[Medium]
    pool: VolumeRecord | None


@lru_cache(maxsize=256)
def decode_definition(text: bytes) -> VolumeRecord | None:
    """Return a volume's definition; None if it cannot be read."""
    try:
        return definitions.decode(text.decode())
    except (BadMetadata, UnicodeDecodeError):
        return None


@lru_cache(maxsize=256)
def decode_spares(text: bytes) -> SpareList | None:
    """Return the list of shared spares; None if it cannot be read."""
    try:
        return sparelist.decode(text.decode())
    except (BadMetadata, UnicodeDecodeError):
        return None


@dataclass
class Frozen:
    """A moment at which a world may crash, with all that outlives it."""

    step: int
    world: 'World'
    disks: dict[str, CrashDisk]
    files: SimFiles
    model: Model
    now_us: int
    chunks: int
    at_rest: bool
    """Whether all was stopped cleanly before."""
    rotted: set[int]
    settled: set[str]
    resolved: bool
    point: 'Image | None'
    given: set[str]
    marks: tuple[set[str], set[str], set[str], set[str]]
    _digests: dict[str, int] = field(default_factory=dict)
    _promises: dict[bool, list[frozenset[int]]] = field(default_factory=dict)

    @property
    def pending(self) -> list[tuple[str, Pending]]:
        """The volatile writes, with their disks, in the order that masks count."""
        return [(name, write) for name, disk in self.disks.items() for write in disk.pending]

    def restart(self, keep: str, away: Iterable[str] = (), seed: int | None = None) -> 'World':
        """Return the world after a crash; may be called more than once."""
        before = self.world
        after = type(before)(
            before.made_with,
            before.legs,
            before.seed + 1 if seed is None else seed,
            before.logged,
            sharing=before.sharing,
            lane=before.lane,
            pauses=before.pauses,
            used=before.used,
            mark_interval=before.mark_interval,
            outside=before.outside,
        )
        after.chunks = self.chunks
        after.files = self.files.copy()
        after.mount_files()
        if keep == 'kill':
            after.disks = {name: disk.copy() for name, disk in self.disks.items()}
        else:
            chooser, pool_kept, rng = self._choosers(keep)
            after.disks = {name: disk.cut(chooser[name]) for name, disk in self.disks.items()}
            after.files.cut(pool_kept, rng)
        after.now_us, after.away, after.uuid = self.now_us, set(away), before.uuid
        after.model = self.model.copy()
        after.tainted, after.foreign, after.apart, after.unreadable = (set(mark) for mark in self.marks)
        after.rotten, after.rotted = set(before.rotten), set(self.rotted)
        after.rotten, after.settled, after.resolved = set(before.rotten), set(self.settled), self.resolved
        after.saved, after.given = before.saved, set(self.given)
        after.acknowledged, after.written_apart = before.acknowledged, before.written_apart
        after.hosts_apart, after.other_model = before.hosts_apart, before.other_model
        after.remembered, after.at_rest = before.remembered, before.at_rest
        after.point = self.point
        after.remade = True
        # Where flushes failed on all legs that count, what was not flushed is as lost as by a power cut.
        current = [disk for name, disk in after.disks.items() if after.checkers.is_current(name)]
        power = keep != 'kill' or all(disk.lost for disk in current)
        after.model.crash(power=power, reads_stay=self.at_rest or not power)
        if before.saved_pool:  # the other host loses what is volatile on its disks, too
            files, model, acknowledged = before.saved_pool
            model = model.copy()
            model.crash(power=power, reads_stay=False)
            after.saved_pool = files, model, acknowledged
        for disk in after.disks.values():
            disk.lost = False
        return after

    def _choosers(self, keep: str) -> tuple[dict[str, Chooser], bool, random.Random | None]:
        word, *numbers = keep.split(':')
        if word == 'tear':
            rng = random.Random(keep)
            return dict.fromkeys(self.disks, keep_some(rng)), False, rng
        if word in ('bits', 'half'):
            mask, half = int(numbers[0]), int(numbers[1]) if word == 'half' else -1
            order = {id(write): number for number, (_, write) in enumerate(self.pending)}

            def choose(write: Pending) -> Sequence[tuple[int, int]]:
                number = order[id(write)]
                if number == half:
                    return [(0, len(write.data) // 2 // SECTOR * SECTOR)]
                return keep_all(write) if mask >> number & 1 else []

            return dict.fromkeys(self.disks, choose), bool(mask >> len(order) & 1), None
        kept = {name: keep_all if word in ('all', name) else keep_none for name in self.disks}
        return dict(kept), word in ('all', 'pool'), None

    def left(self, keep: str) -> Left:
        """Return what is on the media after a crash, which is all that a start can see."""
        if keep == 'kill':
            media, files = [disk.visible for disk in self.disks.values()], self.files.visible
        else:
            chooser, pool_kept, rng = self._choosers(keep)
            media = [disk.cut(chooser[name]).durable for name, disk in self.disks.items()]
            after = self.files.copy()
            after.cut(pool_kept, rng)
            files = after.visible
        definition = files.get(DEFINITION)
        return Left(media, decode_definition(definition.visible) if definition else None)

    def promise(self, *, power: bool) -> list[frozenset[int]]:
        """Return the tags that each block may hold after a crash."""
        if power not in self._promises:
            tags = self.model.possible if power else partial(self.model.visible, now=NEVER)
            self._promises[power] = [frozenset(tags(block)) for block in range(self.model.blocks)]
        return self._promises[power]

    def digest(self, keep: str) -> int:
        """Return a number that is equal for moments that leave equal disks, files and promises."""
        if keep not in self._digests:
            self._digests[keep] = self._digest(keep)
        return self._digests[keep]

    def _digest(self, keep: str) -> int:
        marks = tuple(frozenset(mark) for mark in self.marks)
        if keep == 'kill':
            disks = tuple(
                hash((name, disk.durable.digest(), disk.visible.digest(), len(disk.pending), disk.lost))
                for name, disk in self.disks.items()
            )
            return hash((disks, self.files.digest(), len(self.files.history), self.model.digest(), marks))
        chooser, pool_kept, rng = self._choosers(keep)
        files = self.files.copy()
        files.cut(pool_kept, rng)
        cut = tuple(disk.cut(chooser[name]).durable.digest() for name, disk in self.disks.items())
        return hash((cut, files.digest(), self.model.digest(), marks))


def every_fate(frozen: Frozen, rng: random.Random, samples: int) -> Iterator[str]:
    """Yield the fates to try: all subsets of a few volatile writes, else extremes and samples."""
    yield 'kill'
    pending = frozen.pending
    count = len(pending) + bool(frozen.files.history)
    if count <= ALL_SUBSETS:
        masks = list(range(1 << count))
    else:
        masks = sorted(
            {0, (1 << count) - 1, *_extremes(frozen), *(rng.getrandbits(count) for _ in range(samples))}
        )
    yield from (f'bits:{mask}' for mask in masks)
    for number, (_, write) in enumerate(pending[-ALL_SUBSETS:], max(0, len(pending) - ALL_SUBSETS)):
        if len(write.data) > SECTOR:
            yield f'half:{rng.choice(masks)}:{number}'


def _extremes(frozen: Frozen) -> Iterator[int]:
    """Yield masks: each disk alone, metadata alone, data alone, the newest alone, all but the newest."""
    pending = frozen.pending
    base = frozen.world.layout.data_offset
    for disk in frozen.disks:
        yield sum(1 << n for n, (name, _) in enumerate(pending) if name == disk)
    for data in (False, True):
        yield sum(1 << n for n, (_, write) in enumerate(pending) if (write.offset >= base) == data)
    newest = max(range(len(pending)), key=lambda n: pending[n][1].number)
    yield 1 << newest
    yield (1 << len(pending)) - 1 - (1 << newest)
