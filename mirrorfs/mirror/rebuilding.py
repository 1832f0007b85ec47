"""A volume's definition made from its legs, or brought up to date with where they are: a pure decision.

The pool is the witness of who counts (`mirrorfs.mirror.assembly`).  Where it is lost the legs are asked: the
newest that calls itself in sync is believed if every leg that it says is in sync, or being recovered, is at
hand and does not say otherwise; one that is not at hand may have gone on without it, and only an admin can
know that it has not.  Nobody's word that another was given up counts here: that other may say the same.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from mirrorfs.errors import Refused
from mirrorfs.mirror import splitbrain
from mirrorfs.model import LegState, Slot, VolumeRecord
from mirrorfs.units import format_time

REBUILT, MOVED, UNCHANGED = 'rebuilt', 'paths updated', 'unchanged'


@dataclass(frozen=True, slots=True)
class Claim:
    """A leg at hand: where it is, and what its superblock says."""

    path: str
    slot: int
    leg: UUID
    record: VolumeRecord

    @property
    def in_sync(self) -> bool:
        return self.record.slots[self.slot].state is LegState.IN_SYNC


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A definition to be saved.

    `legs`: the slots whose legs are at hand.  `strangers`: paths of legs that are none of the volume any
    more.  `given_up`: what is lost, for people; then the volume must be started once at once
    (`mirrorfs.atrest`), with force if `forced`, so that who was given up stays so.
    """

    record: VolumeRecord
    change: str
    legs: tuple[int, ...]
    strangers: tuple[str, ...]
    given_up: str = ''
    forced: bool = False


def rebuild(claims: Sequence[Claim], known: VolumeRecord | None = None, *, force: bool = False) -> Rebuilt:
    """Decide on the definition of one volume from its legs at hand, all of which bear its UUID.

    With a definition that is `known` only paths change.  Raises Refused: EEXIST for two copies of one leg;
    EIO where legs went on apart, or one that counts is not at hand, the latter unless `force`.
    """
    _refuse_copies(claims)
    if known:
        return _moved(known, claims)
    in_sync = [claim for claim in claims if claim.in_sync]
    if not in_sync:
        return _from_stale(claims, force=force)
    best = max(in_sync, key=lambda claim: (claim.record.events, claim.record.updated_us, -claim.slot))
    rebuilt = _at(best.record, claims, REBUILT)
    split = splitbrain.find(rebuilt.record, {c.slot: c.record for c in claims}, witness=False)
    if split:
        way_out = 'name only the legs of the side to keep, and --force if some of those are gone'
        raise Refused(errno.EIO, f'{best.record.name}: split brain: {"; ".join(split.lines())}: {way_out}')
    missing = _missing(best.record, claims)
    if not missing:
        return rebuilt
    lost = f'what was written since {format_time(best.record.updated_us)} (events {best.record.events})'
    if not force:
        raise Refused(
            errno.EIO,
            f'{best.record.name}: not at hand, and part of it by what slot {best.slot} ({best.path}) says: '
            f'{"; ".join(missing)}. It may have gone on alone. Name it, too; or with --force give up {lost}',
        )
    given_up = f'{"; ".join(missing)}: {lost} is lost if it is only there'
    return Rebuilt(rebuilt.record, REBUILT, rebuilt.legs, rebuilt.strangers, given_up)


def _refuse_copies(claims: Sequence[Claim]) -> None:
    seen: dict[UUID, str] = {}
    for claim in claims:
        if claim.leg in seen:
            found = f'{seen[claim.leg]} and {claim.path} are copies of one leg ({claim.leg})'
            raise Refused(errno.EEXIST, f'{claim.record.name}: {found}; name the one that is in use')
        seen[claim.leg] = claim.path


def _moved(known: VolumeRecord, claims: Sequence[Claim]) -> Rebuilt:
    record = _at(known, claims, MOVED)
    return record if record.record != known else Rebuilt(known, UNCHANGED, record.legs, record.strangers)


def _at(record: VolumeRecord, claims: Sequence[Claim], change: str) -> Rebuilt:
    """Return the record with the paths at which its legs were found."""
    paths = {record.slot_of(claim.leg): claim.path for claim in claims}
    strangers = tuple(claim.path for claim in claims if record.slot_of(claim.leg) is None)
    taken = {path for number, path in paths.items() if number is not None}

    def placed(number: int, slot: Slot) -> Slot:
        kept = '' if slot.path in taken else slot.path  # another leg lies there now
        return slot.but(path=paths.get(number, kept))

    slots = tuple(placed(number, slot) for number, slot in enumerate(record.slots))
    legs = tuple(sorted(number for number in paths if number is not None))
    return Rebuilt(record.but(slots=slots), change, legs, strangers)


def _missing(truth: VolumeRecord, claims: Sequence[Claim]) -> list[str]:
    """Return what is in the way of believing `truth`: who counts and does not say the same."""
    by_leg: Mapping[UUID, Claim] = {claim.leg: claim for claim in claims}
    missing = []
    for number in truth.where(LegState.IN_SYNC):
        claim = by_leg.get(truth.slots[number].leg)
        if claim is None:
            missing.append(f'slot {number} (leg {truth.slots[number].leg})')
        elif claim.record.events < truth.events or not claim.in_sync:
            missing.append(f'slot {number} as of events {truth.events} ({claim.path} is older)')
        else:
            newer = [c for c in claims if c.record.events > truth.events]
            doubts = [c.path for c in newer if _calls_stale(c.record, claim.leg)]
            missing += [f'a leg newer than slot {number}, which {path} calls stale' for path in doubts]
    # After a crash a leg may be the only one to know that its recovery has ended.
    for number in truth.where(LegState.SPARE):
        if truth.slots[number].leg not in by_leg:
            missing.append(f'slot {number} (leg {truth.slots[number].leg}), which was being recovered')
    return missing


def _calls_stale(record: VolumeRecord, leg: UUID) -> bool:
    slot = record.slot_of(leg)
    return slot is None or record.slots[slot].state is not LegState.IN_SYNC


def _from_stale(claims: Sequence[Claim], *, force: bool) -> Rebuilt:
    """No leg at hand calls itself in sync: only an admin can want one of them."""
    best = max(claims, key=lambda claim: (claim.record.events, claim.record.updated_us, -claim.slot))
    name, state = best.record.name, best.record.slots[best.slot].state.word
    found = f'no leg at hand is in sync; the newest is slot {best.slot} ({best.path}, {state})'
    if not force:
        way_out = 'bring one that is, or with --force go on from this one and lose what it lacks'
        raise Refused(errno.EIO, f'{name}: {found}; {way_out}')
    rebuilt = _at(best.record, claims, REBUILT)
    given_up = f'{found}: what it lacks is lost'
    return Rebuilt(rebuilt.record, REBUILT, rebuilt.legs, rebuilt.strangers, given_up, forced=True)
