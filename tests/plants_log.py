"""Bugs planted where the log is outside the legs, moves or is lost; and histories that show each."""

from plants import Plant
from plants_found import CLEAN, WRITTEN, B, Hunt, fails, once, sequence, sessions, w

from mirrorfs.sim.history import Session
from mirrorfs.sim.world import LOGS

LOG, OTHER = LOGS
DISK = f'd{LOG}'
OUTSIDE: dict[str, object] = {'outside': True, 'used': True, 'legs': 3}

LOG_PLANTS = (
    Plant(
        name='lost_log_recorded_after_its_pages',
        target='mirrorfs.mirror.keeper:Keeper._store_on_legs',
        old='self._recorded.log_is_outside and not record.logged',
        new='False',
        checker='log-covers',
        also=('equal', 'promise', 'stable-reads', 'never-stale', 'intent-first'),
        why='The log fails with the marks of a first write: legs are told that the chunk is written, then '
        'that the log is lost.  The power goes between: the log outside is believed, and lacks the marks.',
    ),
    Plant(
        name='failed_log_relied_on',
        target='mirrorfs.mirror.keeper:Keeper._store_outside',
        old='self.lose_log(file, _reason(error))',
        new='pass',
        checker='intent-first',
        also=('clearing-last', 'log-covers', 'log-kept', 'whole-copy'),
        why='A mark that could not be stored outside counts as durable.',
    ),
    Plant(
        name='log_given_up_though_it_is_there',
        target='mirrorfs.volume.watching:Watcher._look_at_log',
        old='if why:',
        new='if not why:',
        checker='log-kept',
        why='A look at the log takes it for one that was taken away.',
    ),
    Plant(
        name='log_that_was_taken_away_still_named',
        target='mirrorfs.mirror.keeper:Keeper.lose_log',
        old='self.record = membership.move_log(self.record, None)',
        new='pass',
        checker='intent-first',
        also=('clearing-last', 'log-covers', 'log-kept', 'whole-copy'),
        why='The log is seen to be gone before a write needs it: nothing is stored there now, yet it counts.',
    ),
    Plant(
        name='header_never_renewed',
        target='mirrorfs.mirror.logfile:LogFile.store_header',
        old='serial=serial',
        new='serial=self.header.serial',
        checker='log-kept',
        also=('intent-first', 'clearing-last'),
        why='Legs know more than their log: the next start takes it for an old copy, with nothing wrong.',
    ),
    Plant(
        name='pool_not_told_where_the_log_will_be',
        target='mirrorfs.volume.logplace:_fill',
        old='        keeper.record = keeper.record.but(log_path=path)\n',
        new='',
        checker='log-kept',
        why='The power goes when legs name the log and the pool does not yet: nobody knows where it is.',
    ),
    Plant(
        name='discarded_chunk_clean_before_all_know_of_it',
        target='mirrorfs.volume.space:Space._forget',
        old='set_=UNWRITTEN | UNZEROED | missed)',
        new='set_=UNWRITTEN | UNZEROED | missed, clear=DIRTY | NEEDS_RESYNC)',
        checker='clearing-last',
        also=('log-covers', 'equal', 'stable-reads'),
        why='A dirty chunk is discarded: clean in the log outside, while a leg does not know yet that it is '
        'never written, and others may hold something else.',
    ),
    Plant(
        name='untracked_taken_for_clean',
        target='mirrorfs.volume.logplace:_leave_file',
        old='        _mark_what_nobody_tracked(volume)\n',
        new='',
        checker='clearing-last',
        also=('log-covers', 'equal', 'intent-first'),
        why='A volume without a log gets one on its legs: what was written and not flushed is clean there.',
    ),
    Plant(
        name='moved_to_legs_without_its_pages',
        target='mirrorfs.volume.logplace:_leave_file',
        old='        volume.log.touch_all()  # legs may have but the map\n',
        new='',
        checker='clearing-last',
        also=('log-covers', 'equal', 'intent-first'),
        why='The log moves from a file to the legs, which have but the map: what is dirty is clean there.',
    ),
    Plant(
        name='moved_to_a_file_without_its_pages',
        target='mirrorfs.volume.logplace:_fill',
        old='    volume.log.touch_all()\n',
        new='',
        checker='clearing-last',
        also=('log-covers', 'log-kept', 'whole-copy', 'intent-first'),
        why='The log moves to a file that does not hold a single page of it.',
    ),
    Plant(
        name='old_log_believed',
        target='mirrorfs.volume.doubt:disbelief',
        old='header.events < record.events or header.serial < serial',
        new='False',
        checker='log-covers',
        also=('equal', 'stable-reads', 'promise'),
        why='Somebody puts an older copy of the log in its place, which lacks the marks of the last session.',
    ),
    Plant(
        name='absence_tracked_without_a_log',
        target='mirrorfs.mirror.membership:move_log',
        old='slot.but(tracked_since=0)',
        new='slot',
        checker='log-covers',
        also=('equal', 'never-stale', 'promise', 'stable-reads'),
        why='A leg is away while the log is taken away; a write; the log comes back, the leg comes back: '
        'what was written meanwhile is not known to be missing there.',
    ),
    Plant(
        name='doubt_left_in_the_log_at_a_clean_stop',
        target='mirrorfs.volume.lifecycle:Started.stop',
        old='active=doubtful',
        new='active=False',
        checker='log-covers',
        also=('equal', 'stable-reads', 'promise'),
        why='A clean stop before a resync came to its end, and then the log is lost: nobody knows where legs '
        'differ.',
    ),
)

LOG_FOUND: dict[str, Hunt] = {
    'lost_log_recorded_after_its_pages': Hunt(
        lambda: iter([sessions(Session((('fail', 1), w(B)), faults=(fails(DISK, 'write', 5),)), **OUTSIDE)]),
        cut=1.0,
    ),
    'failed_log_relied_on': Hunt(
        lambda: (
            sessions(Session((w(0), w(B)), faults=(fails(DISK, 'write', nth),)), outside=True)
            for nth in range(1, 6)
        ),
    ),
    'log_given_up_though_it_is_there': sequence(once(w(0), ('sleep', 6.0), w(B), outside=True)),
    'log_that_was_taken_away_still_named': sequence(
        once(w(0), ('vanish', LOG), ('sleep', 6.0), w(B), outside=True)
    ),
    'header_never_renewed': sequence(once(*WRITTEN, outside=True), cut=0.3),
    'pool_not_told_where_the_log_will_be': sequence(once(*WRITTEN, ('log', LOG)), cut=1.0),
    'discarded_chunk_clean_before_all_know_of_it': sequence(
        once(w(0, B), ('discard', 0, B), outside=True), schedules=4
    ),
    'untracked_taken_for_clean': sequence(once(w(0), ('log', 'internal'), logged=False)),
    'moved_to_legs_without_its_pages': sequence(once(w(0), ('log', 'internal'), outside=True)),
    'moved_to_a_file_without_its_pages': sequence(once(w(0), ('log', LOG))),
    'old_log_believed': sequence(
        sessions(
            Session(CLEAN),
            Session((w(0), w(1)), (('save', LOG),), end='d0'),
            Session((('check',),), (('old', LOG),)),
            outside=True,
        )
    ),
    'absence_tracked_without_a_log': sequence(
        once(
            *CLEAN,
            *(('fail', 1), ('log', 'none'), w(0), ('log', 'internal'), ('sweep',)),
            *(('readd', 1), ('quiet',), ('check',)),
        )
    ),
    'doubt_left_in_the_log_at_a_clean_stop': sequence(
        sessions(
            Session((w(0), w(B), ('flush',), w(0), w(B)), end='d0'),
            Session(),
            Session((('check',),), (('away', LOG),)),
            outside=True,
        ),
        schedules=3,
    ),
}
