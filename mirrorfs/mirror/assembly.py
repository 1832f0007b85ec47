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
from mirrorfs.mirror import membership, splitbrain
from mirrorfs.mirror.membership import Kinship, can_catch_up, has_all, kinship, new_generation
from mirrorfs.model import LegState, VolumeRecord

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
    keep: int | None = None,
) -> Plan:
    """Decide.  `legs` maps slot numbers to what the leg with that slot's UUID says of the volume.

    Raises Refused(EIO) where only stale legs are at hand, SplitBrain where they grew apart; the text names
    both sides and the way out.  `force` starts from the best leg there is, as a new generation.  `keep`, a
    slot, settles a split brain: the volume goes on from that leg, and what the other side has is given up.
    """
    split = splitbrain.find(pool, legs)
    if keep is not None:
        return _kept(pool, legs, keep, split, now_us, new_uuid())
    if split and not force:
        raise split
    kin = {n: leg for n, leg in legs.items() if kinship(leg.lineage, pool.lineage) is not Kinship.CONFLICT}
    current = {
        number: leg
        for number, leg in kin.items()
        if leg.events >= pool.events and has_all(leg, number)
    }
    if current:
        truth = max(current.values(), key=lambda leg: (leg.events, leg.updated_us))
        current = {n: leg for n, leg in current.items() if has_all(truth, n)}
    if not current:
        if not force:
            raise Refused(errno.EIO, _stale(pool, legs))
        return _forced(pool, legs, now_us, new_uuid())
    truth = _with_pool_facts(_without_laggards(truth), pool)
    for number, leg in legs.items():
        slot, kind = truth.slots[number], kinship(leg.lineage, truth.lineage)
        if number not in kin or kind is Kinship.CONFLICT:
            truth = _given_up(truth, number)
        elif slot.state is LegState.SPARE and kind is Kinship.DESCENDANT:
            # It heard of a generation that the truth did not, in a round that a crash cut short or from legs
            # that are away: what it has since then nothing names, so all is copied.
            truth = truth.with_slot(number, slot.but(full=True, mark=0))
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
                if leg and leg.events < pool.events:
                    stale[number] = f'is an old copy (events {leg.events}, the volume has {truth.events})'
                elif leg:
                    stale[number] = f'has a history of its own ({_history(leg)}); {_OVERWRITE}'
        elif slot.state.is_stale and leg:
            if kinship(leg.lineage, truth.lineage) is Kinship.CONFLICT:
                stale[number] = f'was changed apart ({_history(leg)}); {_OVERWRITE}'
            elif slot.state is LegState.MISSING and can_catch_up(truth, number, leg):
                returning.append(number)
            elif slot.state is not LegState.SPLIT:
                stale[number] = f'is {slot.state.word}; re-add it to bring it up to date'
    return Plan(truth, tuple(members), tuple(absent), tuple(returning), stale)


def _without_laggards(truth: VolumeRecord) -> VolumeRecord:
    """Legs that may have been behind at an unclean stop are to be recovered: they lack DIRTY chunks."""
    if truth.active:
        for number in truth.where(LegState.IN_SYNC):
            if truth.slots[number].behind:
                truth = truth.with_slot(number, truth.slots[number].but(state=LegState.SPARE))
    return membership.caught_up(truth)


def _counts(leg: VolumeRecord, truth: VolumeRecord, pool: VolumeRecord) -> bool:
    return leg.events >= pool.events and kinship(leg.lineage, truth.lineage) is not Kinship.CONFLICT


def _kept(
    pool: VolumeRecord,
    legs: Mapping[int, VolumeRecord],
    keep: int,
    split: splitbrain.SplitBrain | None,
    now_us: int,
    generation: uuid.UUID,
) -> Plan:
    if split is None:
        hint = 'there is no split brain to resolve; fail, remove or re-add legs, or mount with -o force=NAME'
        raise Refused(errno.EINVAL, f'{pool.name}: {hint}')
    side = next((side for side in split.sides if keep in side.legs), None)
    if side is None:
        have = ', '.join(str(pool.place(n)) for side in split.sides for n in side.legs)
        why = 'is not at hand' if keep not in legs else 'has no history of its own'
        message = f'{pool.name}: slot {pool.place(keep)} {why}; what can be kept: slot {have}'
        raise Refused(errno.EINVAL, message)
    alike = [n for n in side.legs if legs[n].events == legs[keep].events]
    together = [n for n in alike if legs[keep].slots[n].state is LegState.IN_SYNC]
    return _from(pool, legs, keep, tuple(together), now_us, generation)


def _forced(pool: VolumeRecord, legs: Mapping[int, VolumeRecord], now_us: int, generation: uuid.UUID) -> Plan:
    if not legs:
        raise Refused(errno.EIO, f'{pool.name}: no leg is at hand, so there is nothing to force')
    best = max(legs, key=lambda n: (legs[n].slots[n].state is LegState.IN_SYNC, legs[n].events, -n))
    return _from(pool, legs, best, (best,), now_us, generation)


def _from(
    pool: VolumeRecord,
    legs: Mapping[int, VolumeRecord],
    best: int,
    members: tuple[int, ...],
    now_us: int,
    generation: uuid.UUID,
) -> Plan:
    """Start from what one leg says, with `members`, as a new generation above all that is known."""
    record = membership.caught_up(_with_pool_facts(legs[best], pool))
    record = record.but(events=max(pool.events, *(leg.events for leg in legs.values())) + 1)
    record = new_generation(record, generation, now_us)
    for number, slot in enumerate(record.slots):
        if number in members:
            record = record.with_slot(number, slot.but(state=LegState.IN_SYNC, full=False, mark=0))
        elif slot.state is not LegState.VACANT:
            record = _given_up(record, number)
    stale = {number: _left_behind(record, leg) for number, leg in legs.items() if number not in members}
    return Plan(record, members, (), (), stale, forced=True)


def _left_behind(record: VolumeRecord, leg: VolumeRecord) -> str:
    if kinship(leg.lineage, record.lineage) is Kinship.CONFLICT:
        return f'was left behind, with {_history(leg)} of its own; {_OVERWRITE}'
    return 'was left behind; re-add it to overwrite it'


def _given_up(record: VolumeRecord, number: int) -> VolumeRecord:
    """What a leg has of its own is given up: it takes no part until all of it is overwritten."""
    slot = record.slots[number]
    state = slot.state if slot.state is LegState.REMOVED else LegState.FAULTY
    return record.with_slot(number, slot.but(state=state, tracked_since=0, full=True, mark=0))


def _with_pool_facts(truth: VolumeRecord, pool: VolumeRecord) -> VolumeRecord:
    """Legs do not know paths, stamps, names after a rename, nor the image's mode and owner."""
    log_path = pool.log_path if truth.log_is_outside else ''
    slots = tuple(
        slot.but(path=old.path, stamp=old.stamp) if slot.leg == old.leg else slot
        for slot, old in zip(truth.slots, pool.slots, strict=True)
    )
    return truth.but(
        slots=slots, name=pool.name, mode=pool.mode, uid=pool.uid, gid=pool.gid, log_path=log_path
    )


def _name(record: VolumeRecord, number: int) -> str:
    return f'slot {record.place(number)} ({record.slots[number].path})'


def _history(record: VolumeRecord) -> str:
    return f'generation {str(record.lineage[-1].uuid)[:8]}, events {record.events}'


def _stale(pool: VolumeRecord, legs: Mapping[int, VolumeRecord]) -> str:
    wanted = ', '.join(_name(pool, n) for n in pool.where(LegState.IN_SYNC))
    have = (f'{_name(pool, n)} has {_history(leg)}' for n, leg in sorted(legs.items()))
    found = '; '.join(have)
    return (
        f'{pool.name}: no up-to-date leg is at hand. The pool has {_history(pool)}, in sync on {wanted}; '
        f'found: {found or "no leg"}. Bring an up-to-date leg back, or mount with -o force={pool.name} to '
        'go on from what is here and lose what was written since'
    )
