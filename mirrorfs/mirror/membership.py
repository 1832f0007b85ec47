"""Which legs count, and how that changes: pure functions from record to record.

Every transition that changes who is a member bumps `events`.  One that may let legs part ways (an in-sync
leg leaves) begins a new generation of the lineage, so that a stale leg and a split brain can be told apart
however equal their counters look.

    state       event                     state
    ---------   -----------------------   ---------
    IN_SYNC     leave(FAULTY, MISSING)    FAULTY, MISSING     tracked_since = events before
    IN_SYNC     split_off                 SPLIT               tracked_since = events before
    SPARE       leave(FAULTY, MISSING)    FAULTY, MISSING     keeps mark and full
    stale       rejoin                    SPARE               full unless its absence was tracked
    VACANT      join                      SPARE               full
    SPARE       complete                  IN_SYNC
    SPARE       take_over                 IN_SYNC in the place of the leg that it replaces, which leaves
    stale       remove                    REMOVED             from SPLIT: tracked no more
    VACANT      stand_by                  STANDBY
    STANDBY     take_place                SPARE               full
    STANDBY     give_up                   FAULTY              full
    STANDBY     remove                    VACANT
    FAULTY      depart                    MISSING             its path is gone, too
"""

import enum
import uuid
from collections.abc import Iterable, Sequence

from mirrorfs import limits
from mirrorfs.model import NO_UUID, Generation, LegState, Slot, VolumeRecord


class Kinship(enum.Enum):
    """How one lineage relates to another."""

    SAME = 'same'
    ANCESTOR = 'ancestor'
    DESCENDANT = 'descendant'
    CONFLICT = 'conflict'


def kinship(mine: Sequence[Generation], other: Sequence[Generation]) -> Kinship:
    """Return what `mine` is to `other`: the same, an ancestor, a descendant, or grown apart."""
    if mine[-1].uuid == other[-1].uuid:
        return Kinship.SAME
    if mine[-1].uuid in {step.uuid for step in other}:
        return Kinship.ANCESTOR
    if other[-1].uuid in {step.uuid for step in mine}:
        return Kinship.DESCENDANT
    return Kinship.CONFLICT


def new_generation(record: VolumeRecord, generation: uuid.UUID, time_us: int) -> VolumeRecord:
    """Begin a new generation; the oldest is forgotten beyond GENERATIONS_MAX."""
    step = Generation(generation, time_us, record.events)
    return record.but(lineage=(*record.lineage, step)[-limits.GENERATIONS_MAX :])


def leave(
    record: VolumeRecord, slots: Iterable[int], state: LegState, generation: uuid.UUID, time_us: int
) -> VolumeRecord:
    """Expel the legs in `slots`, which become `state` (a stale one)."""
    assert state.is_stale
    before = record.events
    record = record.but(events=before + 1)
    parting = False
    for number in slots:
        slot = record.slots[number]
        assert slot.state.is_member
        parting |= slot.state is LegState.IN_SYNC
        since = before if record.logged else 0
        record = record.with_slot(number, slot.but(state=state, tracked_since=since))
    return new_generation(record, generation, time_us) if parting else record


def split_off(record: VolumeRecord, number: int, generation: uuid.UUID, time_us: int) -> VolumeRecord:
    """A leg that has all that was acknowledged leaves as a point in time."""
    record = leave(record, [number], LegState.SPLIT, generation, time_us)
    return record.with_slot(number, record.slots[number].but(behind=False, stamp=''))


def can_catch_up(record: VolumeRecord, number: int, leg: VolumeRecord) -> bool:
    """Whether a returning leg, whose own superblock says `leg`, needs only the MODIFIED chunks.

    Its whole absence must have been tracked: it left no earlier than tracking of its slot began, in a
    lineage that is ours or an ancestor of ours.  A crash while it was formatted for a full recovery leaves
    a leg that looks that new, but says itself that it lacks more than we know.
    """
    slot, own = record.slots[number], leg.slots[number]
    return (
        record.logged
        and slot.tracked_since > 0
        and leg.events >= slot.tracked_since
        and (not own.full or (slot.full and own.mark >= slot.mark))
        and kinship(leg.lineage, record.lineage) in (Kinship.SAME, Kinship.ANCESTOR)
    )


def rejoin(record: VolumeRecord, number: int, path: str, *, caught_up: bool) -> VolumeRecord:
    """Take back the stale leg of a slot as a SPARE; `caught_up` as from `can_catch_up`."""
    slot = record.slots[number]
    assert slot.state.is_stale
    slot = slot.but(state=LegState.SPARE, path=path, tracked_since=0, behind=False, stamp='')
    if not caught_up:
        slot = slot.but(full=True, mark=0)
    return _with_member(record, number, slot)


def join(
    record: VolumeRecord,
    number: int,
    leg: uuid.UUID,
    path: str,
    *,
    replaces: int = -1,
    write_mostly: bool = False,
    failfast: bool = False,
) -> VolumeRecord:
    """Give a new leg a free slot, as a SPARE that needs everything; to replace another's, if so told."""
    slot = Slot(
        LegState.SPARE,
        leg,
        full=True,
        path=path,
        write_mostly=write_mostly,
        failfast=failfast,
        replaces=replaces,
        place=record.slots[number].place,
    )
    return _with_member(record, number, slot)


def _with_member(record: VolumeRecord, number: int, slot: Slot) -> VolumeRecord:
    """Make a slot a member; a leg beyond those wanted is one more that is wanted."""
    record = record.but(events=record.events + 1).with_slot(number, slot)
    return record.but(raid_disks=max(record.raid_disks, record.raid_disks - shortage(record)))


def shortage(record: VolumeRecord) -> int:
    """Return how many legs are wanted beyond those in sync or on their way; negative: so many too many.

    A replacement is no leg more while the one that it replaces is in sync.  A leg that is split off is to
    come back, and no spare is to take its place.
    """
    there = sum(1 for _ in record.where(LegState.IN_SYNC, LegState.SPLIT))
    for number in record.where(LegState.SPARE):
        replaced = record.slots[number].replaces
        there += replaced < 0 or record.slots[replaced].state is not LegState.IN_SYNC
    return record.raid_disks - there


def stand_by(record: VolumeRecord, number: int, leg: uuid.UUID, path: str, **flags: bool) -> VolumeRecord:
    """Give a hot spare a free slot."""
    slot = Slot(LegState.STANDBY, leg, path=path, place=record.slots[number].place).but(**flags)
    return record.but(events=record.events + 1).with_slot(number, slot)


def take_place(record: VolumeRecord, number: int, replaces: int = -1) -> VolumeRecord:
    """A hot spare begins to be recovered, to replace another slot's leg or to fill a gap."""
    slot = record.slots[number]
    assert slot.state is LegState.STANDBY
    slot = slot.but(state=LegState.SPARE, full=True, mark=0, replaces=replaces)
    return _with_member(record, number, slot)


def fall_behind(record: VolumeRecord) -> VolumeRecord:
    """Say of write-mostly legs in sync that they may be behind, if that is wanted and others are not.

    An event of its own: that the others are in sync must be durable before, or a crash between the legs'
    superblocks leaves none that has everything by its own word.
    """
    before = record
    mostly = [n for n in record.where(LegState.IN_SYNC) if record.slots[n].write_mostly]
    prompt = [n for n in record.where(LegState.IN_SYNC) if n not in mostly]
    if record.backlog and prompt:
        for number in mostly:
            record = record.with_slot(number, record.slots[number].but(behind=True))
    return before if record == before else record.but(events=record.events + 1)


def caught_up(record: VolumeRecord) -> VolumeRecord:
    """No leg is behind."""
    for number, slot in enumerate(record.slots):
        if slot.behind:
            record = record.with_slot(number, slot.but(behind=False))
    return record


def has_all(record: VolumeRecord, number: int) -> bool:
    """Whether the leg of a slot has all that was acknowledged, as far as a superblock knows."""
    slot = record.slots[number]
    return slot.state is LegState.IN_SYNC and not (slot.behind and record.active)


def complete(record: VolumeRecord, number: int) -> VolumeRecord:
    """Recovery of a slot has ended: it counts.  At full strength, legs that went away are forgotten."""
    slot = record.slots[number]
    assert slot.state is LegState.SPARE
    record = record.but(events=record.events + 1)
    done = slot.but(state=LegState.IN_SYNC, mark=0, full=False, tracked_since=0, replaces=-1)
    record = record.with_slot(number, done)
    return forget_absent(record)


def forget_absent(record: VolumeRecord) -> VolumeRecord:
    """At full strength, legs that went away are forgotten; what failed stays, to be seen."""
    if record.degraded or record.has(LegState.SPARE):
        return record
    for other in record.where(LegState.REMOVED, LegState.MISSING):
        record = record.with_slot(other, record.slots[other].vacated())
    for other in record.where(LegState.FAULTY):
        record = record.with_slot(other, record.slots[other].but(tracked_since=0))
    return record


def take_over(record: VolumeRecord, number: int, generation: uuid.UUID, time_us: int) -> VolumeRecord:
    """A replacement is ready: the leg that it replaces leaves, if it is a member, and they change places."""
    replaced = record.slots[number].replaces
    places = record.place(number), record.place(replaced)
    if record.slots[replaced].state.is_member:
        record = leave(record, [replaced], LegState.FAULTY, generation, time_us)
    record = complete(record, number)
    for other, slot in enumerate(record.slots):
        if slot.replaces == replaced:
            record = record.with_slot(other, slot.but(replaces=-1))
    record = record.with_slot(number, record.slots[number].but(place=places[1]))
    return record.with_slot(replaced, record.slots[replaced].but(place=places[0], want_replacement=False))


def resize(record: VolumeRecord, raid_disks: int) -> VolumeRecord:
    """Change how many legs are wanted: not below those that there are."""
    return forget_absent(record.but(events=record.events + 1, raid_disks=raid_disks))


def give_up(record: VolumeRecord, number: int) -> VolumeRecord:
    """A hot spare has failed."""
    slot = record.slots[number]
    assert slot.state is LegState.STANDBY
    return record.but(events=record.events + 1).with_slot(number, slot.but(state=LegState.FAULTY, full=True))


def depart(record: VolumeRecord, number: int) -> VolumeRecord:
    """A leg that failed is not even there: it is missing, and may come back by itself."""
    slot = record.slots[number]
    assert slot.state is LegState.FAULTY
    return record.but(events=record.events + 1).with_slot(number, slot.but(state=LegState.MISSING))


def remove(record: VolumeRecord, number: int) -> VolumeRecord:
    """Take out a stale leg, whose slot stays remembered so that it may be re-added, or a hot spare."""
    slot = record.slots[number]
    if slot.state is LegState.STANDBY:
        return record.but(events=record.events + 1).with_slot(number, slot.vacated())
    assert slot.state.is_stale
    if slot.state is LegState.SPLIT:  # from now on anybody may write to it
        slot = slot.but(tracked_since=0, stamp='')
    return record.but(events=record.events + 1).with_slot(number, slot.but(state=LegState.REMOVED))


def advance(record: VolumeRecord, number: int, mark: int) -> VolumeRecord:
    """Move a spare's durable mark, in chunks.  No change of membership, so no event."""
    return record.with_slot(number, record.slots[number].but(mark=mark))


def free_slot(record: VolumeRecord) -> int | None:
    """Return the number for a new leg: the vacant one of the lowest place, else of one that was removed."""
    vacant = sorted(record.where(LegState.VACANT), key=record.place)
    replaced = {slot.replaces for slot in record.slots}
    removed = (n for n in record.where(LegState.REMOVED) if n not in replaced)
    return vacant[0] if vacant else next(removed, None)


def move_log(record: VolumeRecord, log: uuid.UUID | None, path: str = '') -> VolumeRecord:
    """Have the log on the legs (NO_UUID), in the file of that UUID, or nowhere (None).

    Without a log nothing is tracked: legs that are away need everything, and so do those coming back.
    """
    record = record.but(events=record.events + 1, log_id=log or NO_UUID, log_path=path)
    if log is not None:
        return record.but(logged=True)
    record = record.but(logged=False)
    for number, slot in enumerate(record.slots):
        if slot.state is LegState.SPARE:
            record = record.with_slot(number, slot.but(full=True, mark=0))
        elif slot.tracked_since:
            record = record.with_slot(number, slot.but(tracked_since=0))
    return record


def needs_tracking(record: VolumeRecord) -> bool:
    """Whether some leg that is away, or not yet caught up, will need to know what was modified."""
    return any(
        slot.state is LegState.SPARE or (slot.state.is_stale and slot.tracked_since) for slot in record.slots
    )


def absentees_tracked(record: VolumeRecord) -> bool:
    """Whether a write now must be flagged MODIFIED for a leg that does not get it."""
    return any(slot.state.is_stale and slot.tracked_since for slot in record.slots)
