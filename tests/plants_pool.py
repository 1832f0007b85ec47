"""Planted bugs of quorum, split brain and definitions made from legs, and where each of them shows."""

from plants import Plant
from plants_found import CLEAN, SPREAD, WRITTEN, B, Hunt, both, fails, once, sequence, w

from mirrorfs.sim.history import Run, Session
from mirrorfs.sim.resting import Operation

TWO_OR_FAIL: Operation = ('quorum', 2, 'error')
TWO_OR_WAIT: Operation = ('quorum', 2, 'wait')


def apart(*more: Session, keep: int | None = None) -> Run:
    """Two hosts go on with one leg each, then meet; one leg is kept."""
    kept = () if keep is None else (('resolve', keep),)
    return Run(
        0,
        (
            Session((w(0), ('flush',)), (('save-pool',), ('away', 1))),
            Session((w(B), ('flush',)), (('old-pool',), ('away', 0))),
            Session((w(1), ('flush',)), (('meet', 0), *kept)),
            *more,
        ),
    )


def then_lost(before: tuple[Operation, ...], *rest: Operation) -> Run:
    """Something is done, and the pool is lost; then `rest` is done at rest."""
    return Run(0, (Session(before), Session((w(B),), rest)))


POOL: list[Plant] = [
    Plant(
        name='lane_writes_below_the_quorum',
        target='mirrorfs.volume.volume:Volume._takes_writes',
        old='self._blocked or self.quorum.lost or',
        new='self._blocked or',
        checker='quorum',
        why='A leg fails; chunks are offered to the lane again, which writes them to the legs that are left.',
    ),
    Plant(
        name='quorum_asked_for_only_before_a_write',
        target='mirrorfs.volume.volume:Volume.write',
        old='await self.quorum.assure()',
        new='pass',
        checker='quorum',
        why='A leg fails in the write itself: it is acknowledged with fewer legs than the quorum.',
    ),
    Plant(
        name='quorum_asked_for_only_after_a_discard',
        target='mirrorfs.volume.space:Space.discard',
        old='await volume.quorum.assure()',
        new='pass',
        checker='quorum',
        why='A leg fails while a discard is under way.',
    ),
    Plant(
        name='spares_count_for_the_quorum',
        target='mirrorfs.volume.quorum:Quorum._count',
        old='keeper.in_sync',
        new='keeper.members',
        checker='quorum',
        why='A leg that is being recovered takes every write, but cannot be read.',
    ),
    Plant(
        name='quorum_regained_before_it_is_durable',
        target='mirrorfs.volume.quorum:Quorum.assure',
        old='(keeper.record.quorum > 1 and keeper.unrecorded)',
        new='False',
        checker='quorum',
        why='A recovery ends, in memory: a write that waited is acknowledged, '
        'and a crash makes it one leg again.',
    ),
    Plant(
        name='split_brain_not_refused',
        target='mirrorfs.mirror.assembly:assemble',
        old='if split and not force:',
        new='if split and force:',
        rebind=('mirrorfs.volume.lifecycle:assemble',),
        checker='operator',
        also=('strangers', 'promise'),
        why='The pool of one host starts with its own leg, and what the other wrote is '
        'left aside in silence.',
    ),
    Plant(
        name='loser_of_a_split_brain_not_given_up',
        target='mirrorfs.mirror.assembly:_from',
        old='record = _given_up(record, number)',
        new='pass',
        checker='operator',
        also=('strangers', 'promise'),
        why='The choice is forgotten: the next start finds the same split brain.',
    ),
    Plant(
        name='absent_leg_not_missed_by_assemble',
        target='mirrorfs.mirror.rebuilding:_missing',
        old="missing.append(f'slot {number} (leg {truth.slots[number].leg})')\n",
        new='pass\n',
        checker='promise',
        also=('operator', 'defect'),
        why='The pool is lost and only the stale leg at hand: what was written without it is lost.',
    ),
    Plant(
        name='oldest_leg_believed_by_assemble',
        target='mirrorfs.mirror.rebuilding:rebuild',
        old='best = max(in_sync,',
        new='best = min(in_sync,',
        rebind=('mirrorfs.sim.resting:rebuild',),
        checker='operator',
        also=('promise',),
        why='A leg that failed says that both are in sync, and is asked instead of the survivor.',
    ),
]

FAIL_AND_RETURN = ('then', ('fail', 1), ('readd', 1))
BELOW = ('then', w(0), w(0), w(1), w(0, 2))
FOUND_POOL: dict[str, Hunt] = {
    'lane_writes_below_the_quorum': sequence(
        once(*WRITTEN, TWO_OR_FAIL, w(0), ('burst', 0, 1, 3), ('fail', 1), ('burst', 0, 1, 3), lane=True),
        schedules=5,
    ),
    'quorum_asked_for_only_before_a_write': sequence(
        *(
            Run(0, (Session((*WRITTEN, TWO_OR_FAIL, w(0), w(B)), faults=(fails('d1', 'write', nth),)),))
            for nth in range(1, 24)
        )
    ),
    'quorum_asked_for_only_after_a_discard': sequence(
        *(
            Run(
                0,
                (Session((*WRITTEN, TWO_OR_FAIL, ('discard', 0, B)), faults=(fails('d1', 'write', nth),)),),
            )
            for nth in range(1, 24)
        )
    ),
    'spares_count_for_the_quorum': sequence(
        *(
            once(*CLEAN, ('fail', 1), w(0), w(B), TWO_OR_WAIT, both(('readd', 1), BELOW), pauses=pauses)
            for pauses in SPREAD
        ),
        schedules=5,
    ),
    'quorum_regained_before_it_is_durable': sequence(
        *(
            once(
                *CLEAN,
                TWO_OR_WAIT,
                both(('burst', 0, 1, 6), ('then', ('fail', 1), ('readd', 1))),
                pauses=pauses,
            )
            for pauses in SPREAD
        ),
        schedules=8,
    ),
    'split_brain_not_refused': sequence(apart()),
    'loser_of_a_split_brain_not_given_up': sequence(
        *(apart(Session((w(0),)), Session((w(1),)), keep=keep) for keep in (0, 1))
    ),
    'absent_leg_not_missed_by_assemble': sequence(
        then_lost((*WRITTEN, ('fail', 1), w(0), ('flush',)), ('away', 0), ('assemble',))
    ),
    'oldest_leg_believed_by_assemble': sequence(
        then_lost((*WRITTEN, ('fail', 1), w(0), ('flush',)), ('assemble',))
    ),
}
"""Where each of `POOL` shows."""
