"""Bugs planted in legs that are split off and merged, and the histories that show them."""

from plants import Plant
from plants_found import CLEAN, WRITTEN, B, Hunt, both, once, sequence, w

from mirrorfs.sim.history import Run, Session

LOOK, MERGE = ('look',), ('merge',)
SPLIT_OFF = ('split', 1)


def stopped(*sessions: Session, **options: object) -> Run:
    """Sessions one after the other, and a last one in which all is read and compared."""
    return Run(0, (*sessions, Session((('check', 'reads'),))), **options)  # type: ignore[arg-type]


SPLIT: list[Plant] = [
    Plant(
        name='merged_though_somebody_changed_it',
        target='mirrorfs.volume.splitting:Splitter.merge',
        old='changed = not slot_before.stamp or await self._stamp(leg) != slot_before.stamp',
        new='changed = False',
        checker='equal',
        also=('promise', 'log-covers', 'clearing-last', 'stable-reads', 'never-stale', 'whole-copy'),
        why='What somebody wrote to a leg that was split off is taken for what it held.',
    ),
    Plant(
        name='split_off_without_a_flush',
        target='mirrorfs.volume.splitting:Splitter.split',
        old='await volume.flush()',
        new='pass',
        checker='point-in-time',
        also=('clearing-last', 'log-covers'),
        why='A power cut takes from the leg that was split off what it had only in its cache.',
    ),
    Plant(
        name='split_off_under_a_write',
        target='mirrorfs.volume.splitting:Splitter.split',
        old='async with volume.exclusive(0, len(volume.log) - 1):',
        new='async with volume.exclusive(0, 0):',
        checker='point-in-time',
        also=('clearing-last', 'log-covers', 'equal', 'intent-first'),
        why='A write to another chunk reaches the leg when it is read as a point in time already.',
    ),
    Plant(
        name='image_of_what_was_never_written',
        target='mirrorfs.volume.splitting:SplitOff.read',
        old='np.flatnonzero(~self._unwritten[first : last + 1])',
        new='np.flatnonzero(~self._unwritten[first : last + 1] | True)',
        checker='point-in-time',
        also=('defect',),
        why='Who reads the image sees what a used device held before.',
    ),
    Plant(
        name='overwritten_before_that_is_recorded',
        target='mirrorfs.volume.joining:Joiner._forget',
        old='if after != before:',
        new='if False:',
        checker='log-covers',
        also=('equal', 'point-in-time', 'promise', 'window'),
        why='A crash while a leg is erased to be copied anew leaves one that looks as if it lacked a part.',
    ),
    Plant(
        name='lane_not_told_that_a_leg_was_split_off',
        target='mirrorfs.mirror.keeper:Keeper.split_off',
        old='self._observer.legs_changing()',
        new='pass',
        checker='point-in-time',
        also=('never-stale', 'promise', 'equal', 'clearing-last', 'log-covers', 'stable-reads'),
        why='The lane goes on to write to the leg that was split off, and to read it.',
    ),
]
SPLIT_FOUND: dict[str, Hunt] = {
    'merged_though_somebody_changed_it': sequence(
        stopped(
            Session((*CLEAN, ('copy', 1), w(0), ('sweep',), SPLIT_OFF)),
            Session((MERGE, ('quiet',)), (('old', 1),)),
        )
    ),
    'split_off_without_a_flush': sequence(
        stopped(Session((*WRITTEN, w(0), SPLIT_OFF), end='none'), Session((LOOK,)))
    ),
    'split_off_under_a_write': sequence(
        once(*WRITTEN, both(w(B), SPLIT_OFF), LOOK, ('quiet',), LOOK), schedules=16
    ),
    'image_of_what_was_never_written': sequence(stopped(Session((w(0), SPLIT_OFF)), used=True)),
    'overwritten_before_that_is_recorded': sequence(
        stopped(
            Session((*CLEAN, ('copy', 1), w(0), ('sweep',), SPLIT_OFF)),
            Session((MERGE, ('quiet',)), (('old', 1),)),
        ),
        cut=1.0,
    ),
    'lane_not_told_that_a_leg_was_split_off': sequence(
        once(
            *(*WRITTEN, w(0), w(B), SPLIT_OFF, w(0), w(B)),
            *(('burst', 0, 1, 5), ('burst', B, 1, 5), LOOK),
            lane=True,
        ),
        schedules=4,
    ),
}
