"""Where each bug of `plants_blind` shows: the shortest histories that were found for it.

`mirrorfs.sim` plays the histories; a `Hunt` says which, in how many schedules, and how densely they are cut
into crash states.  They know no more of a bug than its history: what finds it are the checkers of every run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mirrorfs.sim.explore import Explorer
from mirrorfs.sim.faults import Fault
from mirrorfs.sim.history import Run, Session
from mirrorfs.sim.resting import Operation

B = 16
"""Blocks of a chunk."""
WRITTEN: tuple[Operation, ...] = (('write', 0, B), ('write', B, B), ('flush',))
CLEAN: tuple[Operation, ...] = (*WRITTEN, ('sweep',))
HOT: tuple[Operation, ...] = (*WRITTEN, ('write', 0, 1), ('write', B, 1))
"""Leaves both chunks to the lane."""
ENXIO, ENOSPC = 6, 28
"""The first is of a disk that is gone: of one that answers EIO, blocks are tried again."""


def w(block: int, count: int = 1) -> Operation:
    return ('write', block, count)


def both(*operations: Operation) -> Operation:
    return ('both', *operations)


def fails(
    disk: str, kind: str, nth: int, what: str = 'error', code: int = ENXIO, seconds: float = 0.0
) -> tuple:  # type: ignore[type-arg]
    return ((disk, kind, nth), Fault(what, code, seconds))


def once(*operations: Operation, **options: object) -> Run:
    """One session, to its clean stop."""
    return Run(0, (Session(operations),)).but(**options)


@dataclass(frozen=True)
class Hunt:
    """Runs to explore, in this order, each in `schedules` ways."""

    runs: Callable[[], Iterator[Run]]
    schedules: int = 1
    cut: float = 0.0
    fates: int = 9
    nested: float = 0.0
    first: int = 0
    """The first schedule: bugs that need one moment of many show in few of them."""

    def explore(self, schedules: int = 0) -> int:
        """Explore all; return how many states were looked at.  Raises Failed."""
        explorer = Explorer(0.0, self.cut, self.fates, self.nested, twice=0.0)
        for schedule in range(self.first, self.first + (schedules or self.schedules)):
            for run in self.runs():
                explorer.explore(run.but(seed=schedule))
        return explorer.tally.states


def sequence(*runs: Run, schedules: int = 1, cut: float = 0.0, nested: float = 0.0) -> Hunt:
    return Hunt(lambda: iter(runs), schedules, cut, nested=nested)


def faulty(
    run: Run, disk: str, kind: str, numbers: range, *more: object, **fault: object
) -> Callable[[], Iterator[Run]]:
    """The run with a fault in its last session at each of these calls."""

    def runs() -> Iterator[Run]:
        for nth in numbers:
            last = Session(run.sessions[-1].operations, faults=(fails(disk, kind, nth, **fault), *more))  # type: ignore
            yield run.but(sessions=(*run.sessions[:-1], last))

    return runs


AWAY1 = (('away', 1),)
SPREAD = ((0, 0, 1, 3), (1, 1, 2, 5), (0, 0, 0, 15))
"""Paces of leg calls."""


def paced(run: Run) -> Callable[[], Iterator[Run]]:
    return lambda: iter([run.but(pauses=pauses) for pauses in SPREAD])


def sessions(*some: Session, **options: object) -> Run:
    return Run(0, some).but(**options)


LAST_LEG_FAILS = Hunt(
    faulty(
        once(
            *WRITTEN,
            ('fail', 1),
            w(0),
            w(B),
            both(('readd', 1), w(0), w(1)),
            both(w(0), w(B)),
            ('quiet',),
            ('check',),
        ),
        'd0',
        'write',
        range(8, 40),
    )
)
"""Writes fail on the one leg in sync while another is being recovered."""
EXPELLED = Hunt(
    paced(
        once(
            *HOT,
            both(('then', ('read', 0, 1), ('fail', 1)), ('burst', 0, 1, 9), ('burst', B, 1, 9)),
            lane=True,
        )
    ),
    schedules=240,
)
"""A leg is failed while the lane writes."""
STUCK = Hunt(
    faulty(
        once(*HOT, both(('burst', 0, 1, 9), ('burst', 0, 2, 9)), lane=True),
        'd1',
        'write',
        range(10, 24),
        what='slow',
        seconds=1.0,
    ),
    schedules=5,
)
"""A call of the lane takes so long that the lane is replaced; writes go on to the same place."""

FOUND: dict[str, Hunt] = {
    'only_the_durable_flags_asked': Hunt(
        paced(
            once(
                *WRITTEN,
                both(
                    ('sweep',),
                    ('then', w(2 * B), w(3 * B), w(4 * B)),
                    ('then', ('read', 0, 1), w(0), w(B)),
                    w(1),
                ),
                chunks=5,
            )
        ),
        schedules=60,
    ),
    'spare_forgotten_after_a_failed_write': LAST_LEG_FAILS,
    'reader_does_not_look_again': Hunt(
        faulty(
            once(*WRITTEN, both(w(0), ('read', 0, 1)), ('read', 0, 1), sharing=True),
            'd1',
            'write',
            range(6, 14),
            code=ENOSPC,
        ),
        schedules=20,
    ),
    'fsync_answered_before_the_expulsion': Hunt(
        faulty(once(w(0), ('flush',)), 'd0', 'flush', range(1, 4)), cut=1.0
    ),
    'punched_before_the_state_is_durable': sequence(once(*CLEAN, ('discard', 0, B)), cut=1.0),
    'discarded_taken_for_zeroed': sequence(
        sessions(
            Session((*WRITTEN, ('discard', 0, B)), end='none'),
            Session((('read', 0, B), w(1), ('read', 0, B))),
        )
    ),
    'not_asked_again_after_the_flush': sequence(once(*WRITTEN, both(('sweep',), w(0), w(B))), schedules=150),
    'recorded_before_the_pool_has_it': Hunt(
        faulty(
            once(*WRITTEN, both(w(0), w(B), w(1), w(B + 1)), pauses=SPREAD[2]),
            'd1',
            'write',
            range(6, 14),
            what='gone',
        ),
        schedules=30,
    ),
    'error_of_the_pool_swallowed': Hunt(
        lambda: (
            run
            for nth in range(1, 12)
            for run in faulty(
                once(*WRITTEN, w(0), w(B)),
                'd1',
                'write',
                range(5, 12, 2),
                fails('pool', 'any', nth),
                what='gone',
            )()
        )
    ),
    'late_comers_served_by_the_round_under_way': Hunt(
        paced(
            once(
                *CLEAN,
                both(('then', ('read', 0, 1), ('discard', 0, B)), ('then', w(2 * B), w(3 * B), w(4 * B))),
                chunks=5,
            )
        ),
        schedules=30,
    ),
    'session_forgets_what_the_absent_leg_missed': sequence(
        sessions(
            Session((w(0, B), ('flush',), w(0, B)), end='d0'),
            Session((w(B), ('flush',), ('sweep',)), AWAY1),
            Session((('check',),)),
        )
    ),
    'mark_kept_for_a_full_recovery': Hunt(
        faulty(
            once(
                *[w(n * B, B) for n in range(4)],
                ('fail', 1),
                *[w(n * B) for n in range(4)],
                ('readd', 1),
                ('quiet',),
                ('readd', 1),
                ('check',),
                logged=False,
                chunks=4,
            ),
            'd1',
            'write',
            range(20, 50),
        )
    ),
    'common_past_taken_for_ancestry': sequence(
        sessions(
            Session((w(0),)),
            Session((w(0), ('flush',)), AWAY1),
            Session((w(B), ('flush',)), (('away', 0), ('force',))),
            Session((('check',),)),
        )
    ),
    'restart_forgets_what_a_spare_needs': sequence(
        once(*WRITTEN, ('fail', 1), w(0, B), w(B, B), ('readd', 1), ('quiet',)), cut=1.0
    ),
    'read_before_the_absence_is_recorded': sequence(
        sessions(
            Session((w(0), ('flush',), w(0)), end='d0'),
            Session((('read', 0, 1),), (('away', 0),)),
            Session((('check',),)),
        )
    ),
    'stop_calls_doubtful_chunks_clean': sequence(
        sessions(Session([w(n * B) for n in range(4)], end='d0'), Session(), chunks=4), schedules=20
    ),
    'in_sync_before_the_last_flush': sequence(
        once(
            *WRITTEN,
            ('fail', 1),
            w(0, B),
            w(B, B),
            ('flush',),
            ('sweep',),
            ('readd', 1),
            ('quiet',),
            mark_interval=5.0,
        ),
        cut=1.0,
    ),
    'modified_forgotten_in_the_round_that_completes': sequence(
        sessions(
            Session((w(0, B),)),
            Session((w(2 * B, B),), (('away', 0),)),
            Session((('fail', 0), ('add', 2), ('quiet',))),
            chunks=3,
        ),
        cut=1.0,
    ),
    'one_zombie_overlooked': Hunt(
        faulty(
            once(
                *WRITTEN,
                w(0),
                ('readd', 1),
                ('quiet',),
                w(0),
                ('release', 1),
                ('quiet',),
                ('read', 0, 1),
                ('check',),
            ),
            'd1',
            'write',
            range(5, 12),
            what='slow',
            seconds=60.0,
        )
    ),
    'garbage_of_a_joining_leg_not_noted': sequence(
        sessions(Session((w(0),)), Session((('add', 2), ('quiet',), w(B + 1), ('check',)), (('litter', 2),)))
    ),
    'spare_lets_the_last_leg_be_failed': sequence(
        once(
            *WRITTEN,
            ('fail', 1),
            w(0, B),
            w(B, B),
            both(('readd', 1), ('then', ('read', 0, B), ('read', 0, B), ('fail', 0))),
        ),
        schedules=20,
    ),
    'longer_leg_not_erased': sequence(
        sessions(
            Session((w(0),)),
            Session(
                (('grow', 3), w(2 * B + 1), ('read', 2 * B, B), ('check',)),
                (('lengthen', 0), ('lengthen', 1)),
            ),
        )
    ),
    'full_stored_only_with_a_mark': sequence(once(*CLEAN, ('add', 2), ('quiet',)), cut=1.0),
    'first_copy_of_a_page_not_summed': Hunt(
        lambda: (
            sessions(
                Session((*before, ('flush',), w(0)), end='d0'),
                Session((('check',),), (('corrupt', 1, page, 64, 1, 2),)),
            )
            for page in (2, 3)
            for before in ((w(0),), (w(0), w(B)), (w(B), w(0)), (w(0), ('sweep',)))
        )
    ),
    'waiting_holds_overtaken': Hunt(
        paced(once(*WRITTEN, both(w(0, 2), w(B - 1, 2), w(B), w(0), w(B - 2, 4)))), schedules=20
    ),
    'doubtful_chunks_offered': sequence(
        sessions(
            Session((*[w(n * B) for n in range(4)], ('flush',), *[w(n * B) for n in range(4)]), end='d0'),
            Session((('read', 3 * B, 1), ('fail', 0), ('read', 3 * B, 1))),
            chunks=4,
            lane=True,
        ),
        schedules=20,
    ),
    'dsync_write_served_by_the_lane': sequence(
        once(*WRITTEN, w(0), ('write-sync', 0, 1), lane=True), schedules=5
    ),
    'recovery_window_open_to_the_lane': Hunt(
        paced(
            once(
                *[w(n * B) for n in range(6)],
                ('fail', 1),
                *[w(n * B) for n in range(6)],
                ('readd', 1),
                both(*[('burst', n * B, 1, 9) for n in range(6)]),
                ('quiet',),
                ('check',),
                chunks=6,
                lane=True,
            )
        ),
        schedules=20,
    ),
    'unzeroed_kept_after_the_first_write': sequence(
        once(w(0), ('flush',), ('sweep',), w(1), ('read', 0, B), used=True)
    ),
    'zeros_not_flushed_before_they_count': sequence(once(w(1), used=True), cut=1.0),
    'look_ahead_forgets_never_written': sequence(
        once(w(0, B), w(B, B), ('read', 2 * B, B), used=True, chunks=4)
    ),
    'any_success_excuses_an_expulsion': LAST_LEG_FAILS,
    'spare_copied_from': sequence(
        once(*WRITTEN, ('fail', 0), w(0, B), w(B, B), ('readd', 0), ('quiet',)), cut=1.0
    ),
    'equal_taken_for_clean': sequence(
        sessions(
            Session((w(0), w(B), ('flush',), w(0), w(B)), end='d0'), Session((('quiet',), w(2 * B))), chunks=3
        )
    ),
    'present_record_taken_for_the_stored_one': Hunt(
        faulty(
            once(
                *WRITTEN,
                both(('then', w(2 * B), w(3 * B), w(4 * B)), ('then', w(0), w(1), w(B), w(2))),
                chunks=5,
            ),
            'd1',
            'write',
            range(5, 20),
        ),
        schedules=30,
    ),
    'pool_before_superblocks': sequence(once(('fail', 1), w(0)), cut=1.0),
    'wake_up_lost_during_a_round': sequence(once(*WRITTEN, both(('fail', 1), w(0), w(B)), w(1)), schedules=4),
    'faulty_legs_not_tracked': sequence(
        once(*CLEAN, ('fail', 1), w(0), ('flush',), ('sweep',), ('readd', 1), ('quiet',))
    ),
    'pages_that_disagree_left_so': sequence(once(*CLEAN, ('discard', 0, B)), cut=1.0),
    'stop_without_a_flush': sequence(once(w(0))),
    'mark_of_the_last_window_of_all': sequence(
        once(
            *[w(n * B) for n in range(4)],
            ('flush',),
            ('sweep',),
            ('fail', 1),
            *[w(n * B) for n in range(4)],
            ('flush',),
            ('sweep',),
            ('readd', 1),
            ('quiet',),
            chunks=4,
        )
    ),
    'modified_forgotten_though_another_leg_is_away': sequence(
        once(
            *CLEAN,
            ('fail', 1),
            ('fail', 2),
            w(0),
            ('flush',),
            ('sweep',),
            ('readd', 1),
            ('quiet',),
            ('readd', 2),
            ('quiet',),
            legs=3,
        )
    ),
    'hole_at_the_end_not_copied': sequence(
        once(*WRITTEN, ('fail', 1), ('discard', B // 2, B // 2), ('readd', 1), ('check',))
    ),
    'whole_secondary_page_wins': sequence(once(w(0), ('flush',), ('sweep',), w(0), w(B)), cut=0.5),
    'active_flag_not_stored': sequence(
        sessions(Session((w(0), ('flush',), w(0)), end='d0'), Session((('check',),)), logged=False)
    ),
    'start_forgets_which_superblock_is_newer': sequence(
        sessions(*[Session((w(n * B),), end='kill') for n in range(3)], chunks=3)
    ),
    'lane_reads_from_spares': sequence(
        once(*WRITTEN, ('fail', 0), w(0, B), w(B, B), ('readd', 0), ('quiet',), lane=True), cut=0.5
    ),
    'leg_that_fails_is_left_out_by_the_lane': Hunt(
        faulty(once(*WRITTEN, ('burst', 0, 1, 9), lane=True), 'd1', 'write', range(6, 16))
    ),
    'view_of_the_buffer_given_away': sequence(
        once(*HOT, both(w(0, 4), w(4, 4), w(8, 4)), ('read', 0, B), lane=True), schedules=10
    ),
    'last_chunk_of_a_hot_write_not_asked': sequence(
        once(w(0), ('burst', 0, 1, 3), w(B - 1, 2), lane=True), schedules=10
    ),
    'failed_sync_answered': Hunt(
        faulty(once(*WRITTEN, w(0), w(B), ('flush',), lane=True), 'd1', 'flush', range(1, 9)), schedules=5
    ),
    'sync_answered_by_the_first_leg': sequence(
        once(*HOT, ('flush',), w(0), ('flush',), w(B), ('flush',), lane=True), cut=1.0, schedules=10
    ),
    'definition_not_synced': sequence(once(('fail', 1), w(0)), cut=1.0),
    'rename_not_synced': sequence(once(('fail', 1), w(0)), cut=1.0),
    'leg_of_just_the_right_size_refused': sequence(once(w(0))),
    'last_chunk_not_withdrawn': Hunt(
        paced(
            once(
                *HOT,
                both(('then', *[('write-sync', B - 1, 2)] * 4), ('burst', B, 1, 9), ('burst', B - 1, 1, 9)),
                lane=True,
            )
        ),
        schedules=20,
    ),
    'no_grace_period_for_the_slow_path': Hunt(
        paced(
            once(
                *HOT,
                both(('then', *[('write-sync', 0, 2)] * 4), ('burst', 0, 1, 9), ('burst', 1, 1, 9)),
                lane=True,
            )
        ),
        schedules=20,
    ),
    'hot_writes_go_on_without_the_expelled_leg': EXPELLED,
    'stuck_leg_stays_hot': STUCK,
    'write_overtakes_a_stuck_call': STUCK,
    'targets_looked_up_after_the_permission': replace(EXPELLED, first=440),
    'superseded_lane_goes_on': Hunt(
        faulty(
            once(
                *HOT, both(('burst', 0, 1, 9), ('burst', 0, 2, 9)), ('sleep', 9.0), ('read', 0, 2), lane=True
            ),
            'd0',
            'write',
            range(10, 24),
            what='slow',
            seconds=6.0,
        ),
        schedules=5,
    ),
    'grace_period_ends_after_one_look': Hunt(
        faulty(
            once(*HOT, both(('then', *[('write-sync', 0, 2)] * 4), ('burst', 0, 1, 9)), lane=True),
            'd1',
            'write',
            range(10, 24),
            what='slow',
            seconds=0.1,
        ),
        schedules=5,
    ),
}
