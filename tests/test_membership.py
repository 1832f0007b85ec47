"""Who counts: every transition of a record, every way to assemble a volume, the judge; sizes as people write.

All of these are pure functions; the tests are tables where that says it best.
"""

import errno
import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import limits, units
from mirrorfs.errors import LegTimeout, Refused
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.mirror.assembly import assemble
from mirrorfs.mirror.fanout import judge
from mirrorfs.mirror.member import Member
from mirrorfs.mirror.membership import Kinship
from mirrorfs.model import Generation, LegState, Slot, VolumeRecord
from mirrorfs.sim.crashleg import CrashDisk, CrashLeg

IN_SYNC, SPARE, FAULTY = LegState.IN_SYNC, LegState.SPARE, LegState.FAULTY
MISSING, REMOVED, VACANT = LegState.MISSING, LegState.REMOVED, LegState.VACANT
STALE = (FAULTY, MISSING, REMOVED)


def leg_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=0x1000 + number)


def generation(number: int) -> Generation:
    return Generation(uuid.UUID(int=number), number * 10, number)


def record(*states: LegState, events: int = 10, steps: int = 1, **slot: object) -> VolumeRecord:
    """Return a record with legs in these states and a lineage of `steps` generations."""
    slots = [
        Slot() if state is VACANT else Slot(state, leg_id(n), path=f'/legs/{n}').but(**slot)
        for n, state in enumerate(states)
    ]
    slots += [Slot()] * (limits.SLOTS - len(slots))
    members = sum(state is not VACANT for state in states)
    lineage = tuple(generation(n) for n in range(1, steps + 1))
    return VolumeRecord(uuid.UUID(int=9), 'vol', 1 << 24, 1 << 20, members, tuple(slots), lineage, events)


NEXT = uuid.UUID(int=0xABC)


def leave(old: VolumeRecord, *slots: int, state: LegState = FAULTY) -> VolumeRecord:
    return membership.leave(old, slots, state, NEXT, 77)


def split(old: VolumeRecord, slot: int) -> VolumeRecord:
    return membership.split_off(old, slot, NEXT, 77)


# Kinship


@pytest.mark.parametrize(
    ('mine', 'other', 'kin'),
    [
        ((1,), (1,), Kinship.SAME),
        ((1, 2), (1, 2), Kinship.SAME),
        ((2,), (1, 2), Kinship.SAME),
        ((1,), (1, 2), Kinship.ANCESTOR),
        ((1, 2), (1,), Kinship.DESCENDANT),
        ((1, 2), (1, 3), Kinship.CONFLICT),
        ((4,), (5,), Kinship.CONFLICT),
    ],
)
def test_kinship(mine: tuple[int, ...], other: tuple[int, ...], kin: Kinship) -> None:
    found = membership.kinship([generation(n) for n in mine], [generation(n) for n in other])
    assert found is kin


def test_a_lineage_keeps_its_newest_generations_only() -> None:
    old = record(IN_SYNC)
    for n in range(100):
        old = membership.new_generation(old, uuid.UUID(int=1000 + n), n)
    assert len(old.lineage) == limits.GENERATIONS_MAX
    assert [step.uuid.int for step in old.lineage] == list(range(1060, 1100))


# Transitions


@pytest.mark.parametrize('state', STALE)
def test_an_in_sync_leg_that_leaves_is_tracked_since_the_events_before_and_begins_a_generation(
    state: LegState,
) -> None:
    new = leave(record(IN_SYNC, IN_SYNC), 1, state=state)
    assert new.slots[1].state is state
    assert new.slots[1].tracked_since == 10
    assert new.events == 11
    assert [step.uuid for step in new.lineage] == [generation(1).uuid, NEXT]
    assert new.lineage[-1] == Generation(NEXT, 77, 11)
    assert new.slots[0] == record(IN_SYNC).slots[0]


def test_a_spare_that_leaves_keeps_its_mark_and_begins_no_generation() -> None:
    new = leave(record(IN_SYNC, SPARE, mark=5, full=True), 1)
    assert new.slots[1] == Slot(FAULTY, leg_id(1), 10, 5, True, '/legs/1')
    assert new.events == 11
    assert len(new.lineage) == 1


def test_legs_that_leave_together_are_one_event() -> None:
    new = leave(record(IN_SYNC, IN_SYNC, SPARE), 1, 2)
    assert new.events == 11
    assert len(new.lineage) == 2
    assert [slot.state for slot in new.slots[:3]] == [IN_SYNC, FAULTY, FAULTY]


def test_without_a_log_an_absence_is_not_tracked() -> None:
    assert leave(record(IN_SYNC, IN_SYNC).but(logged=False), 1).slots[1].tracked_since == 0


@pytest.mark.parametrize('state', [FAULTY, MISSING, REMOVED, VACANT])
def test_only_members_can_leave(state: LegState) -> None:
    with pytest.raises(AssertionError):
        leave(record(IN_SYNC, state), 1)


@pytest.mark.parametrize('state', [IN_SYNC, SPARE])
def test_leaving_means_becoming_stale(state: LegState) -> None:
    with pytest.raises(AssertionError):
        leave(record(IN_SYNC, IN_SYNC), 1, state=state)


GONE = record(IN_SYNC, FAULTY, events=20, steps=3, tracked_since=10)


@pytest.mark.parametrize(
    ('why', 'truth', 'leg', 'answer'),
    [
        ('as it left', GONE, record(IN_SYNC, IN_SYNC, events=10, steps=2), True),
        ('it heard of a later event', GONE, record(IN_SYNC, IN_SYNC, events=15, steps=2), True),
        ('of our own generation', GONE, record(IN_SYNC, IN_SYNC, events=15, steps=3), True),
        ('older than the tracking', GONE, record(IN_SYNC, IN_SYNC, events=9, steps=2), False),
        (
            'not tracked',
            GONE.with_slot(1, GONE.slots[1].but(tracked_since=0)),
            record(IN_SYNC, IN_SYNC, steps=2),
            False,
        ),
        ('no log', GONE.but(logged=False), record(IN_SYNC, IN_SYNC, steps=2), False),
        ('went on alone', GONE, record(IN_SYNC, IN_SYNC, events=15, steps=4), False),
        ('grown apart', GONE, record(IN_SYNC, IN_SYNC, events=15).but(lineage=(generation(8),)), False),
        (
            'says itself that it lacks everything',
            GONE,
            record(IN_SYNC, SPARE, events=20, steps=3, full=True),
            False,
        ),
        (
            'half recovered, and we know',
            GONE.with_slot(1, GONE.slots[1].but(full=True, mark=5)),
            record(IN_SYNC, SPARE, events=20, steps=3, full=True, mark=5),
            True,
        ),
        (
            'says that it is less recovered than we know',
            GONE.with_slot(1, GONE.slots[1].but(full=True, mark=5)),
            record(IN_SYNC, SPARE, events=20, steps=3, full=True, mark=4),
            False,
        ),
    ],
)
def test_a_leg_can_catch_up_only_if_its_whole_absence_was_tracked(
    why: str, truth: VolumeRecord, leg: VolumeRecord, answer: bool
) -> None:
    assert membership.can_catch_up(truth, 1, leg) is answer, why


@pytest.mark.parametrize('state', STALE)
def test_a_leg_that_rejoins_is_a_spare_and_full_only_if_it_cannot_catch_up(state: LegState) -> None:
    old = record(IN_SYNC, state, tracked_since=4)
    caught = membership.rejoin(old, 1, '/new', caught_up=True)
    assert caught.slots[1] == Slot(SPARE, leg_id(1), 0, 0, False, '/new')
    assert caught.events == 11
    lost = membership.rejoin(old, 1, '/new', caught_up=False)
    assert lost.slots[1] == Slot(SPARE, leg_id(1), 0, 0, True, '/new')


def test_a_spare_that_comes_back_goes_on_from_its_mark_only_if_it_caught_up() -> None:
    old = record(IN_SYNC, FAULTY, tracked_since=4, mark=6, full=True)
    assert membership.rejoin(old, 1, 'p', caught_up=True).slots[1].mark == 6
    assert membership.rejoin(old, 1, 'p', caught_up=True).slots[1].full
    assert membership.rejoin(old, 1, 'p', caught_up=False).slots[1].mark == 0


def test_a_member_cannot_rejoin() -> None:
    with pytest.raises(AssertionError):
        membership.rejoin(record(IN_SYNC, IN_SYNC), 1, 'p', caught_up=True)


def test_a_new_leg_is_a_full_spare_and_raises_the_count_of_legs_only_beyond_it() -> None:
    beside = membership.join(record(IN_SYNC, IN_SYNC), 2, leg_id(2), '/legs/2')
    assert beside.slots[2] == Slot(SPARE, leg_id(2), full=True, path='/legs/2')
    assert (beside.raid_disks, beside.events) == (3, 11)
    assert beside.degraded == 1
    instead = membership.join(record(IN_SYNC, FAULTY), 2, leg_id(2), '/legs/2')
    assert instead.raid_disks == 2


def test_a_leg_that_is_complete_counts_and_legs_that_went_away_are_forgotten_at_full_strength() -> None:
    old = record(IN_SYNC, SPARE, REMOVED, MISSING, FAULTY, tracked_since=5).but(raid_disks=2)
    new = membership.complete(old, 1)
    assert new.slots[1] == Slot(IN_SYNC, leg_id(1), path='/legs/1')
    assert [slot.state for slot in new.slots[2:5]] == [VACANT, VACANT, FAULTY]
    assert new.slots[4].tracked_since == 0
    assert new.events == 11
    assert not membership.needs_tracking(new)


def test_while_the_first_slot_is_recovered_nobody_is_forgotten() -> None:
    new = membership.complete(record(SPARE, SPARE, IN_SYNC, REMOVED, tracked_since=5).but(raid_disks=2), 1)
    assert [new.slots[n].state for n in (0, 3)] == [SPARE, REMOVED]


@pytest.mark.parametrize('others', [(IN_SYNC, SPARE, SPARE, REMOVED), (IN_SYNC, SPARE, REMOVED, MISSING)])
def test_below_full_strength_nobody_is_forgotten(others: tuple[LegState, ...]) -> None:
    new = membership.complete(record(*others, tracked_since=5).but(raid_disks=3), 1)
    assert new.slots[1].state is IN_SYNC
    assert [slot.state for slot in new.slots[2:4]] == list(others[2:])
    assert new.slots[3].tracked_since == 5


@pytest.mark.parametrize('state', STALE)
def test_a_removed_leg_keeps_its_number_and_its_tracking(state: LegState) -> None:
    new = membership.remove(record(IN_SYNC, state, tracked_since=5), 1)
    assert new.slots[1] == Slot(REMOVED, leg_id(1), 5, path='/legs/1')
    assert new.events == 11


@pytest.mark.parametrize('state', [IN_SYNC, SPARE, VACANT])
def test_only_a_stale_leg_can_be_removed_and_only_a_spare_completed(state: LegState) -> None:
    with pytest.raises(AssertionError):
        membership.remove(record(IN_SYNC, state), 1)
    if state is not SPARE:
        with pytest.raises(AssertionError):
            membership.complete(record(IN_SYNC, state), 1)


def test_a_leg_split_off_is_tracked_and_no_spare_is_wanted_for_it() -> None:
    old = record(IN_SYNC, IN_SYNC, behind=True, stamp='x')
    after = split(old, 1)
    slot = after.slots[1]
    assert (slot.state, slot.tracked_since, slot.behind, slot.stamp) == (LegState.SPLIT, 10, False, '')
    assert (after.degraded, membership.shortage(after)) == (1, 0)
    assert after.lineage[-1].uuid == NEXT
    assert membership.needs_tracking(after) and membership.absentees_tracked(after)
    assert membership.can_catch_up(after, 1, old)


def test_a_leg_split_off_is_not_forgotten_at_full_strength() -> None:
    with_split = split(record(IN_SYNC, IN_SYNC, SPARE), 1).but(raid_disks=2)
    after = membership.complete(with_split, 2)
    assert not after.degraded
    assert after.slots[1] == with_split.slots[1]


def test_a_leg_that_is_merged_is_no_point_in_time_any_more() -> None:
    before = split(record(IN_SYNC, IN_SYNC), 1)
    before = before.with_slot(1, before.slots[1].but(stamp='x'))
    after = membership.rejoin(before, 1, '/legs/1', caught_up=True)
    assert (after.slots[1].state, after.slots[1].full, after.slots[1].stamp) == (SPARE, False, '')
    assert after.raid_disks == 2


def test_a_leg_split_off_that_is_removed_is_not_tracked_any_more() -> None:
    before = split(record(IN_SYNC, IN_SYNC), 1)
    after = membership.remove(before.with_slot(1, before.slots[1].but(stamp='x')), 1)
    assert (after.slots[1].state, after.slots[1].tracked_since, after.slots[1].stamp) == (REMOVED, 0, '')
    assert membership.shortage(after) == 1


def test_a_mark_moves_without_an_event() -> None:
    old = record(IN_SYNC, SPARE, full=True)
    assert membership.advance(old, 1, 12) == old.with_slot(1, old.slots[1].but(mark=12))


@pytest.mark.parametrize(
    ('states', 'slot'),
    [
        ((IN_SYNC, IN_SYNC), 2),
        ((IN_SYNC, VACANT, IN_SYNC), 1),
        ((IN_SYNC, REMOVED), 2),
        ((IN_SYNC, *[FAULTY] * 14, REMOVED), 15),
        ((IN_SYNC, *[FAULTY] * 15), None),
    ],
)
def test_a_new_leg_gets_the_lowest_vacant_number_else_a_removed_one(
    states: tuple[LegState, ...], slot: int | None
) -> None:
    assert membership.free_slot(record(*states)) == slot


@pytest.mark.parametrize(
    ('state', 'since', 'needs', 'absentees'),
    [
        (IN_SYNC, 0, False, False),
        (SPARE, 0, True, False),
        (FAULTY, 5, True, True),
        (MISSING, 5, True, True),
        (REMOVED, 5, True, True),
        (FAULTY, 0, False, False),
        (VACANT, 0, False, False),
    ],
)
def test_who_needs_to_know_what_was_modified(
    state: LegState, since: int, needs: bool, absentees: bool
) -> None:
    volume = record(IN_SYNC, state)
    volume = volume.with_slot(1, volume.slots[1].but(tracked_since=since))
    assert membership.needs_tracking(volume) is needs
    assert membership.absentees_tracked(volume) is absentees


# Assembly


def both(**changes: object) -> VolumeRecord:
    return record(IN_SYNC, IN_SYNC).but(**changes)


def test_all_legs_as_the_pool_knows_them_start_with_the_pools_paths_and_names() -> None:
    pool = both(name='renamed', mode=0o640, uid=5, gid=6)
    legs = {n: both(name='old').but(slots=tuple(s.but(path='') for s in both().slots)) for n in (0, 1)}
    plan = assemble(pool, legs)
    assert (plan.members, plan.absent, plan.returning, plan.stale) == ((0, 1), (), (), {})
    assert plan.record == pool


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_the_order_in_which_legs_are_found_does_not_matter(order: tuple[int, ...]) -> None:
    legs = {0: both(), 1: leave(both(), 0)}
    plan = assemble(both(), {n: legs[n] for n in order})
    assert plan.members == (1,)
    assert plan.stale == {0: 'is faulty; re-add it to bring it up to date'}
    assert plan.record.events == 11


def test_a_leg_that_is_not_there_is_absent_and_the_rest_starts() -> None:
    plan = assemble(both(), {1: both()})
    assert (plan.members, plan.absent) == ((1,), (0,))


def test_a_spare_goes_on_being_recovered() -> None:
    pool = record(IN_SYNC, SPARE, full=True)
    plan = assemble(pool, {0: pool, 1: pool})
    assert plan.members == (0, 1)


def test_a_spare_alone_cannot_start() -> None:
    pool = record(IN_SYNC, SPARE)
    with pytest.raises(Refused, match='no up-to-date leg'):
        assemble(pool, {1: pool})


def test_the_stale_leg_alone_is_refused_and_the_text_names_both_sides_and_the_way_out() -> None:
    pool = leave(both(), 1)
    with pytest.raises(Refused) as refusal:
        assemble(pool, {1: both()})
    assert refusal.value.errno == errno.EIO
    text = str(refusal.value)
    for part in (
        'vol',
        'events 11',
        'slot 0 (/legs/0)',
        'slot 1 (/legs/1)',
        'events 10',
        str(NEXT)[:8],
        str(generation(1).uuid)[:8],
        '-o force=vol',
    ):
        assert part in text, part


def test_no_leg_at_all_is_refused_also_by_force() -> None:
    with pytest.raises(Refused, match='found: no leg'):
        assemble(both(), {})
    with pytest.raises(Refused, match='nothing to force'):
        assemble(both(), {}, force=True)


def test_an_old_copy_of_a_leg_does_not_count() -> None:
    plan = assemble(both(), {0: both(), 1: both(events=8)})
    assert (plan.members, plan.absent) == ((0,), (1,))
    assert plan.stale[1] == 'is an old copy (events 8, the volume has 10)'


def test_a_missing_leg_whose_absence_was_tracked_returns_by_itself() -> None:
    gone = leave(both(), 1, state=MISSING)
    plan = assemble(gone, {0: gone, 1: both()})
    assert (plan.members, plan.returning, plan.stale) == ((0,), (1,), {})


@pytest.mark.parametrize(
    ('state', 'leg'),
    [(FAULTY, both()), (REMOVED, both()), (MISSING, both(events=9)), (MISSING, both(logged=False, events=3))],
)
def test_other_stale_legs_wait_for_the_admin(state: LegState, leg: VolumeRecord) -> None:
    gone = leave(both(), 1, state=state)
    plan = assemble(gone, {0: gone, 1: leg})
    assert plan.returning == ()
    assert plan.stale == {1: f'is {state.word}; re-add it to bring it up to date'}


def test_a_split_brain_is_refused_and_both_sides_are_named() -> None:
    ours = membership.leave(both(), [1], FAULTY, uuid.UUID(int=1 << 100), 5)
    theirs = membership.leave(both(), [0], FAULTY, uuid.UUID(int=2 << 100), 6)
    with pytest.raises(Refused) as refusal:
        assemble(ours, {0: ours, 1: theirs})
    text = str(refusal.value)
    for part in (
        'slot 1 (/legs/1)',
        'changed apart',
        str(uuid.UUID(int=1 << 100))[:8],
        str(uuid.UUID(int=2 << 100))[:8],
        'after generation 00000000 of 1970-01-01T00:00:00Z',
        'resolve POOL vol --keep LEG',
        'take the legs of the other side away',
    ):
        assert part in text, part
    assert refusal.value.errno == errno.EIO


def test_force_after_a_split_brain_keeps_the_newest_leg_and_leaves_the_rest_for_full_recovery() -> None:
    ours = membership.leave(both(), [1], FAULTY, uuid.UUID(int=1 << 100), 5)
    theirs = membership.leave(both(events=30), [0], FAULTY, uuid.UUID(int=2 << 100), 6)
    plan = assemble(ours, {0: ours, 1: theirs}, 99, force=True)
    # Slot 0 is of the pool's own lineage and current: that one is what the pool vouches for.
    assert plan.members == (0,)
    assert plan.record.slots[1].state is FAULTY
    assert 'remove it and add it with --force' in plan.stale[1]  # a re-add would be refused
    alone = assemble(ours, {1: theirs}, 99, force=True)
    assert alone.members == (1,)
    assert alone.record.events == 32
    assert alone.record.lineage[-2:] == (
        theirs.lineage[-1],
        Generation(alone.record.lineage[-1].uuid, 99, 32),
    )
    assert alone.record.slots[0] == Slot(FAULTY, leg_id(0), 0, 0, True, '/legs/0')
    assert alone.record.slots[1].state is IN_SYNC


def test_force_starts_the_stale_leg_as_a_new_generation_above_the_pools_events() -> None:
    pool = leave(both(), 1).but(events=50)
    plan = assemble(pool, {1: both()}, 99, force=True)
    assert (plan.members, plan.absent, plan.returning) == ((1,), (), ())
    assert plan.record.events == 51
    assert plan.record.slots[0].state is FAULTY
    assert plan.record.slots[0].full
    assert plan.record.slots[0].tracked_since == 0
    known = {step.uuid for step in pool.lineage + both().lineage}
    assert plan.record.lineage[-1].uuid not in known


def test_force_prefers_a_leg_that_says_in_sync_then_the_newest_then_the_lowest() -> None:
    pool = both(events=50)
    spare = record(IN_SYNC, SPARE, events=40)
    assert assemble(pool, {0: both(events=20), 1: spare}, force=True).members == (0,)
    assert assemble(pool, {0: both(events=20), 1: both(events=21)}, force=True).members == (1,)
    plan = assemble(pool, {0: both(events=20), 1: both(events=20)}, force=True)
    assert plan.members == (0,)
    assert 'left behind' in plan.stale[1]


def test_after_a_crash_between_superblocks_and_pool_the_superblocks_are_the_truth() -> None:
    """The survivor knows of an expulsion that the pool does not: the leg that left does not count."""
    after = leave(both(), 1)
    plan = assemble(both(), {0: after, 1: both()})
    assert plan.members == (0,)
    assert plan.stale == {1: 'is faulty; re-add it to bring it up to date'}
    assert plan.record.events == 11


def test_after_a_crash_between_superblocks_and_pool_the_leg_that_left_may_start_alone() -> None:
    """Nothing was acknowledged without it, since the pool comes before the answer; later both conflict."""
    after = leave(both(), 1)
    alone = assemble(both(), {1: both()})
    assert (alone.members, alone.absent) == ((1,), (0,))
    went_on = membership.leave(alone.record, [0], MISSING, uuid.UUID(int=5 << 64), 7)
    with pytest.raises(Refused, match=r'changed apart .*slot 0 .*slot 1 '):
        assemble(went_on, {0: after, 1: went_on})


def test_a_crash_within_the_superblock_round_leaves_the_newer_ones_the_truth_and_all_legs_members() -> None:
    began = both(events=11, active=True)
    plan = assemble(both(), {0: both(), 1: began})
    assert plan.members == (0, 1)
    assert plan.record.events == 11
    assert plan.record.active


def test_a_pool_ahead_of_every_leg_is_refused() -> None:
    with pytest.raises(Refused, match='no up-to-date leg'):
        assemble(both(events=11), {0: both(), 1: both()})


def test_legs_that_disagree_about_each_other_are_settled_by_the_newer_one() -> None:
    """Each says that the other left, in one lineage: that cannot be, but if it is, the newer one wins."""
    first = leave(both(), 1)
    second = both(events=12).but(lineage=first.lineage).with_slot(0, both().slots[0].but(state=FAULTY))
    plan = assemble(both(), {0: first, 1: second})
    assert plan.members == (1,)


# The judge


@dataclass
class Case:
    """Members 0, 1, … by state and filesystem; who failed and how; what is to be done."""

    why: str
    failed: dict[int, int]
    expel: set[int] = field(default_factory=set)
    error: int = 0
    in_sync: tuple[int, ...] = (0, 1)
    sharing: tuple[int | None, ...] = (None, None)
    flush: bool = False


NO_SPACE, IO, QUOTA = errno.ENOSPC, errno.EIO, errno.EDQUOT

CASES = [
    Case('all went well', {}),
    Case('one failed', {1: IO}, {1}),
    Case('the other failed', {0: IO}, {0}),
    Case('all failed', {0: IO, 1: NO_SPACE}, error=IO),
    Case('the only in-sync one failed, a spare did not', {0: IO}, error=IO, in_sync=(0,)),
    Case('the spare failed', {1: IO}, {1}, in_sync=(0,)),
    Case(
        'spare and in-sync failed: the error is that of the one that counts',
        {0: NO_SPACE, 1: IO},
        error=NO_SPACE,
        in_sync=(0,),
    ),
    Case('three, two failed', {0: IO, 1: IO}, {0, 1}, in_sync=(0, 1, 2), sharing=(None,) * 3),
    Case('three, all in-sync failed, a spare not', {0: IO, 1: IO}, error=IO, sharing=(None,) * 3),
    Case('full, of its own filesystem', {1: NO_SPACE}, {1}, sharing=(7, 8)),
    Case('full, of a shared filesystem', {1: NO_SPACE}, error=NO_SPACE, sharing=(7, 7)),
    Case('over quota on a shared filesystem', {1: QUOTA}, error=QUOTA, sharing=(7, 7)),
    Case('I/O error on a shared filesystem', {1: IO}, {1}, sharing=(7, 7)),
    Case('a full device', {1: NO_SPACE}, {1}),
    Case(
        'two share, the third has its own',
        {0: NO_SPACE},
        error=NO_SPACE,
        in_sync=(0, 1, 2),
        sharing=(7, 7, 8),
    ),
    Case(
        'both that share are full, the third is well',
        {0: NO_SPACE, 1: NO_SPACE},
        {0, 1},
        in_sync=(0, 1, 2),
        sharing=(7, 7, 8),
    ),
    Case('a failed flush has no excuse', {1: NO_SPACE}, {1}, sharing=(7, 7), flush=True),
    Case('all failed to flush', {0: NO_SPACE, 1: IO}, error=NO_SPACE, sharing=(7, 7), flush=True),
    Case('the one that succeeded was expelled meanwhile', {1: IO}, error=IO, in_sync=(1,)),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.why)
def test_the_judge(case: Case) -> None:
    layout = wibm.new_layout(1 << 20, 1 << 16)
    members = [
        Member(n, CrashLeg(CrashDisk(f'd{n}', 1 << 16), sharing=share), leg_id(n), layout, 1)
        for n, share in enumerate(case.sharing)
    ]
    failures = {slot: OSError(code, 'planned') for slot, code in case.failed.items()}
    verdict = judge(members, case.in_sync, failures, shared_full=not case.flush)
    assert set(verdict.expel) == case.expel
    assert (verdict.error.errno if verdict.error else 0) == case.error
    assert all(verdict.expel[slot] is failures[slot] for slot in verdict.expel)


def test_a_leg_that_is_late_is_judged_like_one_that_failed() -> None:
    layout = wibm.new_layout(1 << 20, 1 << 16)
    members = [Member(n, CrashLeg(CrashDisk(f'd{n}', 1 << 16)), leg_id(n), layout, 1) for n in (0, 1)]
    late = LegTimeout('d1 did not answer')
    assert judge(members, [0, 1], {1: late}).expel == {1: late}
    assert late.errno == errno.ETIMEDOUT


# Sizes


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('0', 0),
        ('4096', 4096),
        ('1B', 1),
        ('1k', 1024),
        ('512KiB', 512 << 10),
        ('64 K', 64 << 10),
        ('10G', 10 << 30),
        ('10GB', 10 << 30),
        ('1.5T', 3 << 39),
        ('0.5M', 1 << 19),
        ('2P', 2 << 50),
        (' 7m ', 7 << 20),
        ('9007199254740993', 9007199254740993),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    'text',
    [
        '',
        ' ',
        '-1',
        '+1',
        '1E',
        '1X',
        'G',
        '.5G',
        '1.',
        '1,5G',
        '0x10',
        '1e9',
        '1G1',
        '0.3',
        '1.0001K',
        '٣',
        '1' * 40,
        'nan',
        'inf',
        '1\0',
        '1 G B',
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        units.parse_size(text)
    assert refusal.value.errno == errno.EINVAL


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert units.parse_size(text) >= 0
    except Refused as refusal:
        assert refusal.errno == errno.EINVAL


@given(st.integers(0, 1 << 60))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert units.parse_size(str(size)) == size


@pytest.mark.parametrize(
    ('size', 'text'),
    [
        (0, '0 B'),
        (1023, '1023 B'),
        (1024, '1 KiB'),
        (1536, '1.5 KiB'),
        (10 << 30, '10 GiB'),
        (1 << 40, '1 TiB'),
        (3 << 49, '1.5 PiB'),
        (1 << 60, '1024 PiB'),
        (0.5, '0.5 B'),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert units.format_size(size) == text


@given(st.integers(1, 1023), st.sampled_from(range(6)))
def test_a_printed_size_is_read_back(count: int, power: int) -> None:
    size = count << (10 * power)
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0s'),
        (59.9, '59s'),
        (60, '1m00s'),
        (200, '3m20s'),
        (3599, '59m59s'),
        (3600, '1h00m'),
        (7500, '2h05m'),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text
