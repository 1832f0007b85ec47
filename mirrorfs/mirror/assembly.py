"""Which legs may start a volume: a pure decision from the pool's record and what the legs say.

The pool is a witness.  Superblocks are written before the pool's record, so at any crash the pool is never
ahead of every leg that counts: a leg whose events are below the pool's is stale or an old copy, and when no
leg at hand reaches the pool's events, only stale ones are left and the volume is refused.
"""

import errno
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mirrorfs.errors import Refused
from mirrorfs.mirror.membership import Kinship, can_catch_up, kinship, new_generation
from mirrorfs.model import LegState, Slot, VolumeRecord

_OVERWRITE = 'to overwrite it, remove it and add it with --force'


@dataclass(frozen=True, slots=True)
class Plan:
    """How a volume starts.

    `record`: the truth to start from.  `members`: slots whose legs are at hand and count (or go on being
    recovered).  `absent`: slots that still count but have no usable leg; they are recorded as MISSING
    before anything is written.  `returning`: stale legs at hand that may safely be re-added by themselves.
    `stale`: legs at hand that need an admin's word, with the reason.  `forced`: what the legs that are left
    out have of their own was given up.
    """

    record: VolumeRecord
    members: tuple[int, ...]
    absent: tuple[int, ...]
    returning: tuple[int, ...]
    stale: Mapping[int, str]
    forced: bool = False


def assemble(
    pool: VolumeRecord,
    legs: Mapping[int, VolumeRecord],
    now_us: int = 0,
    force: bool = False,
    new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
) -> Plan:
    """Decide.  `legs` maps slot numbers to what the leg with that slot's UUID says of the volume.

    Raises Refused(EIO) where only stale legs or legs that grew apart are at hand; the text names both sides
    and the way out.  `force` starts from the best leg there is, as a new generation.
    """
    for number, leg in sorted(legs.items()):
        conflict = kinship(leg.lineage, pool.lineage) is Kinship.CONFLICT
        if conflict and not force and not _is_given_up(pool.slots[number]):
            raise Refused(errno.EIO, _conflict(pool, number, leg))
    kin = {n: leg for n, leg in legs.items() if kinship(leg.lineage, pool.lineage) is not Kinship.CONFLICT}
    current = {
        number: leg
        for number, leg in kin.items()
        if leg.events >= pool.events and leg.slots[number].state is LegState.IN_SYNC
    }
    if current:
        truth = max(current.values(), key=lambda leg: (leg.events, leg.updated_us))
        current = {n: leg for n, leg in current.items() if truth.slots[n].state is LegState.IN_SYNC}
    if not current:
        if not force:
            raise Refused(errno.EIO, _stale(pool, legs))
        return _forced(pool, legs, now_us, new_uuid())
    truth = _with_pool_facts(truth, pool)
    for number in legs.keys() - kin.keys():
        truth = _given_up(truth, number)
    return _plan(truth, pool, legs)


def _plan(truth: VolumeRecord, pool: VolumeRecord, legs: Mapping[int, VolumeRecord]) -> Plan:
    members, absent, returning, stale = [], [], [], {}
    for number, slot in enumerate(truth.slots):
        leg = legs.get(number)
        if slot.state.is_member:
            if leg and _counts(leg, truth, pool):
                members.append(number)
            else:
                absent.append(number)
                if leg:
                    stale[number] = f'is an old copy (events {leg.events}, the volume has {truth.events})'
        elif slot.state.is_stale and leg:
            if kinship(leg.lineage, truth.lineage) is Kinship.CONFLICT:
                stale[number] = f'was changed apart ({_history(leg)}); {_OVERWRITE}'
            elif slot.state is LegState.MISSING and can_catch_up(truth, number, leg):
                returning.append(number)
            else:
                stale[number] = f'is {slot.state.word}; re-add it to bring it up to date'
    return Plan(truth, tuple(members), tuple(absent), tuple(returning), stale)


def _counts(leg: VolumeRecord, truth: VolumeRecord, pool: VolumeRecord) -> bool:
    return leg.events >= pool.events and kinship(leg.lineage, truth.lineage) is not Kinship.CONFLICT


def _forced(pool: VolumeRecord, legs: Mapping[int, VolumeRecord], now_us: int, generation: uuid.UUID) -> Plan:
    if not legs:
        raise Refused(errno.EIO, f'{pool.name}: no leg is at hand, so there is nothing to force')
    best = max(legs, key=lambda n: (legs[n].slots[n].state is LegState.IN_SYNC, legs[n].events, -n))
    record = _with_pool_facts(legs[best], pool)
    record = record.but(events=max(record.events, pool.events) + 1)
    record = new_generation(record, generation, now_us)
    for number, slot in enumerate(record.slots):
        if number == best:
            record = record.with_slot(number, slot.but(state=LegState.IN_SYNC, full=False, mark=0))
        elif slot.state is not LegState.VACANT:
            record = _given_up(record, number)
    stale = {number: _left_behind(record, leg) for number, leg in legs.items() if number != best}
    return Plan(record, (best,), (), (), stale, forced=True)


def _left_behind(record: VolumeRecord, leg: VolumeRecord) -> str:
    if kinship(leg.lineage, record.lineage) is Kinship.CONFLICT:
        return f'was left behind by --force, with {_history(leg)} of its own; {_OVERWRITE}'
    return 'was left behind by --force; re-add it to overwrite it'


def _given_up(record: VolumeRecord, number: int) -> VolumeRecord:
    """What a leg has of its own is given up: it takes no part until all of it is overwritten."""
    slot = record.slots[number]
    state = slot.state if slot.state is LegState.REMOVED else LegState.FAULTY
    return record.with_slot(number, slot.but(state=state, tracked_since=0, full=True, mark=0))


def _is_given_up(slot: Slot) -> bool:
    stays_away = slot.state in (LegState.FAULTY, LegState.REMOVED)
    return stays_away and slot.full and not slot.tracked_since


def _with_pool_facts(truth: VolumeRecord, pool: VolumeRecord) -> VolumeRecord:
    """Legs do not know paths, names after a rename, nor the image's mode and owner."""
    log_path = pool.log_path if truth.log_is_outside else ''
    slots = tuple(
        slot.but(path=old.path) if slot.leg == old.leg and slot.path != old.path else slot
        for slot, old in zip(truth.slots, pool.slots, strict=True)
    )
    return truth.but(
        slots=slots, name=pool.name, mode=pool.mode, uid=pool.uid, gid=pool.gid, log_path=log_path
    )


def _history(record: VolumeRecord) -> str:
    return f'generation {str(record.lineage[-1].uuid)[:8]}, events {record.events}'


def _stale(pool: VolumeRecord, legs: Mapping[int, VolumeRecord]) -> str:
    wanted = ', '.join(f'slot {n} ({pool.slots[n].path})' for n in pool.where(LegState.IN_SYNC))
    have = (f'slot {n} ({pool.slots[n].path}) has {_history(leg)}' for n, leg in sorted(legs.items()))
    found = '; '.join(have)
    return (
        f'{pool.name}: no up-to-date leg is at hand. The pool has {_history(pool)}, in sync on {wanted}; '
        f'found: {found or "no leg"}. Bring an up-to-date leg back, or mount with -o force={pool.name} to '
        'go on from what is here and lose what was written since'
    )


def _conflict(pool: VolumeRecord, number: int, leg: VolumeRecord) -> str:
    return (
        f'{pool.name}: slot {number} ({pool.slots[number].path}) was changed apart from this pool: it has '
        f'{_history(leg)}, the pool has {_history(pool)}. Take that leg away to go on with the others, or '
        f'mount with -o force={pool.name} to keep the newest leg and give up what the others have'
    )
