"""Judging a crash state without recovering it: what a start would decide, and whether the promises allow it.

All that decides at a start is pure: `assemble`, `doubt.merge`, `doubt.prepare`.  Here they are asked about
what a crash leaves on the media, with all legs at hand and with each alone, and the media are compared with
the answers.  That is far faster than a start: every fate of a moment can be judged, and some recovered.
"""

import functools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mirrorfs.errors import Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.assembly import Plan, assemble
from mirrorfs.model import LegState, Slot, VolumeRecord
from mirrorfs.sim.checkers import (
    CHUNK,
    CHUNK_BLOCKS,
    SUPER_PAGES,
    Said,
    apart,
    bad_pages,
    decode_log,
    log_header,
    log_pages,
    read_metadata,
)
from mirrorfs.sim.crash import Frozen, Left
from mirrorfs.sim.crashleg import Medium
from mirrorfs.sim.model import BLOCK, tags
from mirrorfs.sim.violation import Violation
from mirrorfs.volume import doubt

Promise = Sequence[frozenset[int]]
"""The tags that each block may hold."""
_GENERATION = uuid.UUID(int=1)


@dataclass(frozen=True, slots=True)
class _Leg:
    """A leg that a crash has left."""

    medium: Medium
    said: Said
    log_pages: tuple[int, int]

    @property
    def record(self) -> VolumeRecord:
        return self.said.sup.record

    def log(self, record: VolumeRecord) -> wibm.LogImage:
        pages = [self.medium.page(page) for page in (*SUPER_PAGES, *self.log_pages)]
        return read_metadata(record.uuid, record.chunks, *pages).log

    def chunk(self, chunk: int) -> list[bytes | None]:
        """Return the pages of a chunk's data, None for one that is on the bad-block list."""
        layout = self.said.sup.layout
        first, bad = layout.data_offset // BLOCK + chunk * CHUNK_BLOCKS, bad_pages(layout, self.medium)
        pages = range(first, first + CHUNK // BLOCK)
        return [None if page in bad else self.medium.page(page) for page in pages]


def judge(frozen: Frozen, fate: str) -> bool:
    """Judge what a crash leaves.  Return whether it could be: not where the disks changed otherwise.

    Raises Violation.
    """
    if any(frozen.marks) or frozen.rotted:
        return False
    if fate == 'kill' and any(disk.lost for disk in frozen.disks.values()):
        return False
    left = frozen.left(fate)
    if left.pool is None:
        raise Violation('operator', 'the pool has lost the definition of the volume')
    legs = _legs(left, frozen)
    promise = frozen.promise(power=fate != 'kill')
    logs = [medium for medium in left.media if log_header(medium)]
    in_sync = _start(left.pool, legs, logs, promise)
    if len(in_sync) > 1 and not frozen.world.rotten:
        for slot in in_sync:
            if _is_current(left.pool, slot, legs[slot].record):
                _start(left.pool, {slot: legs[slot]}, logs, promise)
    return True


def _legs(left: Left, frozen: Frozen) -> dict[int, _Leg]:
    """Return the legs of the volume, by slot."""
    assert left.pool
    slots = {slot.leg: number for number, slot in enumerate(left.pool.slots) if slot != Slot()}
    layout = frozen.world.layout
    log_pages = layout.page_offset(0, 0) // BLOCK, layout.page_offset(0, 1) // BLOCK
    legs = {}
    for medium in left.media:
        pages = [medium.page(page) for page in (*SUPER_PAGES, *log_pages)]
        said = read_metadata(left.pool.uuid, frozen.chunks, *pages)
        if said.sups and said.sup.leg in slots and said.sup.record.uuid == left.pool.uuid:
            legs[slots[said.sup.leg]] = _Leg(medium, said, log_pages)
    return legs


def _start(
    pool: VolumeRecord, legs: Mapping[int, _Leg], logs: Sequence[Medium], promise: Promise
) -> list[int]:
    """Judge a start with these legs; return the slots that it would read from."""
    try:
        plan = assemble(pool, {n: leg.record for n, leg in legs.items()}, 0, False, lambda: _GENERATION)
    except Refused as refusal:
        if not apart(pool, [leg.said.sup for leg in legs.values()]):  # nothing was taken away
            raise Violation('operator', f'would be refused: {refusal}') from None
        return []
    record = plan.record
    in_sync = [slot for slot in plan.members if record.slots[slot].state is LegState.IN_SYNC]
    states = _states(plan, legs, in_sync, logs)
    for chunk in range(record.chunks):
        may = promise[chunk * CHUNK_BLOCKS : (chunk + 1) * CHUNK_BLOCKS]
        _judge_chunk(chunk, int(states[chunk]), [legs[slot] for slot in in_sync], may)
    for slot, leg in legs.items():
        _judge_stale(record, slot, leg, legs[in_sync[0]], states)
    return in_sync


def _is_current(pool: VolumeRecord, slot: int, record: VolumeRecord) -> bool:
    """Whether a leg is in sync for the pool and by its own word, so that it may start alone."""
    both = pool.slots[slot].state is LegState.IN_SYNC and membership.has_all(record, slot)
    return both and record.events >= pool.events


def _states(
    plan: Plan, legs: Mapping[int, _Leg], in_sync: Sequence[int], logs: Sequence[Medium]
) -> wibm.States:
    """Return the log that a start would begin with."""
    images = {slot: legs[slot].log(plan.record) for slot in plan.members}
    if plan.record.log_is_outside:
        images = {slot: doubt.map_alone(image) for slot, image in images.items()}
    log, _ = doubt.merge(plan.record, {slot: images[slot] for slot in in_sync}, images)
    if plan.record.log_is_outside:
        sups = [legs[slot].said.sup for slot in in_sync]
        heard = max(sup.serial for sup in sups if sup.record.events == plan.record.events)
        doubt.add_outside(log, _log_outside(plan.record, heard, logs))
    active = any(legs[slot].record.active for slot in plan.members)
    tracked = any(membership.needs_tracking(legs[slot].record) for slot in plan.members)
    doubt.prepare(plan.record, log, several=len(in_sync) > 1, active=active, tracked=tracked)
    return log.states


def _log_outside(record: VolumeRecord, heard: int, logs: Sequence[Medium]) -> wibm.LogImage:
    """Return the log outside the legs: it is there, the pool knows it, and it is believed."""
    if not record.log_path:
        raise Violation('log-kept', 'the log would be lost: the pool does not know where it is')
    for medium in logs:
        header = log_header(medium)
        if header and not doubt.disbelief(header, record, heard):
            image = decode_log(header.log, record.chunks, *log_pages(medium)[2:])
            if not image.damaged:
                return image
    raise Violation('log-kept', 'the log would be lost: it is an old one, or damaged')


def _judge_chunk(chunk: int, state: int, legs: Sequence[_Leg], may: Promise) -> None:
    """What would be read of a chunk was promised, from whichever leg; the legs are equal, or in doubt."""
    if state & UNWRITTEN:
        for number, possible in enumerate(may):
            if 0 not in possible:
                block = chunk * CHUNK_BLOCKS + number
                raise Violation('promise', f'block {block} would read zeros, may be {set(possible)}')
        return
    first = legs[0].chunk(chunk)
    for leg in legs:
        pages = leg.chunk(chunk)
        if leg is not legs[0] and pages == first:
            continue
        for number, (page, possible) in enumerate(zip(pages, may, strict=True)):
            if page is None:
                continue
            held = _held(page)
            if not held <= possible:
                block = chunk * CHUNK_BLOCKS + number
                raise Violation('promise', f'block {block} would read {set(held)}, may be {set(possible)}')
        if not _alike(pages, first) and not state & NEEDS_RESYNC:
            raise Violation('log-covers', f'legs would differ in chunk {chunk}, and the log does not say so')


def _alike(one: Sequence[bytes | None], other: Sequence[bytes | None]) -> bool:
    """Whether pages are the same, but for those that do not count on one of two legs."""
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


@functools.lru_cache(maxsize=4096)
def _held(page: bytes) -> frozenset[int]:
    try:
        return frozenset(tags(page))
    except AssertionError as garbage:
        raise Violation('promise', str(garbage)) from None


def _judge_stale(record: VolumeRecord, slot: int, leg: _Leg, source: _Leg, states: wibm.States) -> None:
    """What a leg that is, or may be, caught up partially would not be given, it has."""
    own = record.slots[slot]
    if own.state is not LegState.SPARE and not (
        own.state.is_stale and membership.can_catch_up(record, slot, leg.record)
    ):
        return
    needed = (states & np.uint8(DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN)) != 0
    if own.full:
        needed[own.mark :] = True
    for chunk in np.flatnonzero(~needed).tolist():
        if not _alike(leg.chunk(chunk), source.chunk(chunk)):
            checker = 'window' if own.full else 'log-covers'
            raise Violation(checker, f'slot {slot} would lack chunk {chunk}, which the log does not name')
