"""Bugs planted in replacing, write-behind and legs that come back, and the histories that show them."""

from plants import Plant
from plants_found import CLEAN, WRITTEN, B, Hunt, both, once, sequence, w

from mirrorfs.sim.history import Run, Session

BEHIND = (*WRITTEN, ('sweep',), ('backlog', 1, 100), ('sleep', 1.0))
"""Both chunks clean, and the second leg may be behind."""


def killed(*operations: object) -> Run:
    """One session that is killed after it; what was acknowledged is there."""
    return Run(0, (Session(operations, end='kill'), Session((('check', 'reads'),))))  # type: ignore[arg-type]


LEGS: list[Plant] = [
    Plant(
        name='behind_and_read',
        target='mirrorfs.volume.reading:Reader._read_part',
        old='in_sync, homes = keeper.in_sync, keeper.homes',
        new='in_sync, homes = keeper.counting, list(reversed(keeper.counting))',
        checker='never-stale',
        also=('promise', 'stable-reads'),
        why='A leg that may be behind is among those that reads go to.',
    ),
    Plant(
        name='behind_forgotten_at_the_start',
        target='mirrorfs.mirror.assembly:_without_laggards',
        old='if truth.active:',
        new='if not truth.active:',
        checker='promise',
        also=('log-covers', 'stable-reads', 'equal', 'fsync-durable'),
        why='After a kill a leg that lacks acknowledged writes counts, and others are made equal to it.',
    ),
    Plant(
        name='flush_leaves_it_behind',
        target='mirrorfs.mirror.member:Member.flush',
        old='await self.catch_up()',
        new='pass',
        checker='clearing-last',
        also=('log-covers', 'equal', 'clean-stop', 'promise'),
        why='A chunk becomes clean while a leg has still to get what was written there.',
    ),
    Plant(
        name='backlog_loses_its_order',
        target='mirrorfs.mirror.behind:Backlog._next',
        old='if shared or len(batch)',
        new='if len(batch)',
        checker='one-order',
        also=('equal', 'clearing-last'),
        why='Two writes to the same place go to the leg at once.',
    ),
    Plant(
        name='replaced_leg_still_counts',
        target='mirrorfs.mirror.membership:take_over',
        old='if record.slots[replaced].state.is_member:',
        new='if False:',
        checker='expulsion-first',
        also=('promise', 'log-covers', 'never-stale', 'operator', 'last-copy', 'equal', 'defect'),
        why='The leg that was replaced gets no more writes, and is in sync for the pool and the others.',
    ),
    Plant(
        name='older_copy_taken_for_the_leg',
        target='mirrorfs.volume.joining:Joiner._is_old_copy',
        old='return moved or known.log_serial < left.log_serial',
        new='return moved',
        checker='equal',
        also=('clearing-last', 'promise', 'log-covers', 'never-stale', 'stable-reads'),
        why='Somebody copied a leg; a chunk was written and became clean; the copy is put in its place.',
    ),
]
LEGS_FOUND: dict[str, Hunt] = {
    'behind_and_read': sequence(once(*BEHIND, both(w(0), ('read', 0, 1), w(B), ('read', B, 1))), schedules=8),
    'behind_forgotten_at_the_start': sequence(
        killed(*WRITTEN, ('backlog', 0, 100), ('sleep', 1.0), w(0), w(B), ('hang', 0, 20.0), w(0), w(B)),
        cut=1.0,
        schedules=2,
    ),
    'flush_leaves_it_behind': sequence(
        once(*BEHIND, w(0), ('hang', 1, 1.0), w(0), w(0), w(0), ('sweep',)), schedules=4
    ),
    'backlog_loses_its_order': sequence(once(*BEHIND, w(0), w(0), w(0, 2), w(1), ('flush',)), schedules=8),
    'replaced_leg_still_counts': sequence(
        once(*CLEAN, ('replace', 1, 2), ('quiet',), w(0), w(B), ('flush',)), cut=1.0
    ),
    'older_copy_taken_for_the_leg': sequence(
        once(*CLEAN, ('copy', 1), w(0), ('sweep',), ('fail', 1), ('exchange', 1), ('readd', 1), ('quiet',))
    ),
}
