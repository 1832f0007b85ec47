"""Where each bug of `plants_blind` shows: the shortest histories that were found for it.

`mirrorfs.sim` plays the histories; a `Hunt` says which, in how many schedules, and how densely they are cut
into crash states.  Those that the random search finds by itself have its seed instead.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirrorfs.sim.explore import Explorer
from mirrorfs.sim.faults import Fault
from mirrorfs.sim.history import STOP, Composer, Run, Session
from mirrorfs.sim.verbs import Operation

B = 16
"""Blocks of a chunk."""
WRITTEN: tuple[Operation, ...] = (('write', 0, B), ('write', B, B), ('flush',))
CLEAN: tuple[Operation, ...] = (*WRITTEN, ('sweep',))
EIO, ENOSPC = 5, 28


def w(block: int, count: int = 1) -> Operation:
    return ('write', block, count)


def both(*operations: Operation) -> Operation:
    return ('both', *operations)


def fails(disk: str, kind: str, nth: int, what: str = 'error', code: int = EIO, seconds: float = 0.0) -> tuple:  # type: ignore[type-arg]
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

    def explore(self) -> int:
        """Explore all; return how many states were looked at.  Raises Failed."""
        explorer = Explorer(cut=self.cut, fates=self.fates, nested=self.nested, twice=0.0)
        for schedule in range(self.schedules):
            for run in self.runs():
                explorer.explore(run.but(seed=schedule))
        return explorer.tally.states


def seed(number: int) -> Hunt:
    """The random run of a seed, as the search explores it."""
    return Hunt(lambda: iter([Composer(number).run()]))


def sequence(*runs: Run, schedules: int = 1, cut: float = 0.0, nested: float = 0.0) -> Hunt:
    return Hunt(lambda: iter(runs), schedules, cut, nested=nested)


def faulty(run: Run, disk: str, kind: str, numbers: range, *more: object, **fault: object) -> Callable[[], Iterator[Run]]:
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


FOUND: dict[str, Hunt] = {
    'only_the_durable_flags_asked': Hunt(
        paced(
            once(
                *WRITTEN,
                both(('sweep',), ('then', w(2 * B), w(3 * B), w(4 * B)), ('then', ('read', 0, 1), w(0), w(B)), w(1)),
                chunks=5,
            )
        ),
        schedules=60,
    ),
    'spare_forgotten_after_a_failed_write': Hunt(
        faulty(once(*WRITTEN, ('fail', 1), w(0), w(B), both(('readd', 1), w(0), w(1)), both(w(0), w(B)), ('quiet',), ('check',)), 'd0', 'write', range(8, 40))
    ),
    'reader_does_not_look_again': Hunt(
        faulty(once(*WRITTEN, both(w(0), ('read', 0, 1)), ('read', 0, 1), sharing=True), 'd1', 'write', range(6, 14), code=ENOSPC), schedules=20
    ),
    'fsync_answered_before_the_expulsion': Hunt(faulty(once(w(0), ('flush',)), 'd0', 'flush', range(1, 4)), cut=1.0),
    'punched_before_the_state_is_durable': sequence(once(*CLEAN, ('discard', 0, B)), cut=1.0),
    'discarded_taken_for_zeroed': sequence(
        sessions(Session((*WRITTEN, ('discard', 0, B)), end='none'), Session((('read', 0, B), w(1), ('read', 0, B))))
    ),
    'not_asked_again_after_the_flush': sequence(once(*WRITTEN, both(('sweep',), w(0), w(B))), schedules=150),
    'recorded_before_the_pool_has_it': Hunt(
        faulty(once(*WRITTEN, both(w(0), w(B), w(1), w(B + 1)), pauses=SPREAD[2]), 'd1', 'write', range(6, 14), what='gone'), schedules=30
    ),
    'error_of_the_pool_swallowed': Hunt(
        lambda: (
            run
            for nth in range(1, 12)
            for run in faulty(once(*WRITTEN, w(0), w(B)), 'd1', 'write', range(5, 12, 2), fails('pool', 'any', nth), what='gone')()
        )
    ),
    'late_comers_served_by_the_round_under_way': Hunt(
        paced(once(*CLEAN, both(('then', ('read', 0, 1), ('discard', 0, B)), ('then', w(2 * B), w(3 * B), w(4 * B))), chunks=5)), schedules=30
    ),
    'session_forgets_what_the_absent_leg_missed': sequence(
        sessions(Session((w(0, B), ('flush',), w(0, B)), end='d0'), Session((w(B), ('flush',), ('sweep',)), AWAY1), Session((('check',),)))
    ),
    'mark_kept_for_a_full_recovery': Hunt(
        faulty(
            once(*[w(n * B, B) for n in range(4)], ('fail', 1), *[w(n * B) for n in range(4)], ('readd', 1), ('quiet',), ('readd', 1), ('check',), logged=False, chunks=4),
            'd1', 'write', range(20, 50),
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
        sessions(Session((w(0), ('flush',), w(0)), end='d0'), Session((('read', 0, 1),), (('away', 0),)), Session((('check',),)))
    ),
    'stop_calls_doubtful_chunks_clean': sequence(
        sessions(Session([w(n * B) for n in range(4)], end='d0'), Session(), chunks=4), schedules=20
    ),
    'in_sync_before_the_last_flush': sequence(
        once(*WRITTEN, ('fail', 1), w(0, B), w(B, B), ('readd', 1), ('quiet',), mark_interval=5.0), cut=1.0
    ),
    'recovery_window_open_to_the_lane': Hunt(
        paced(once(*WRITTEN, ('fail', 1), w(0), both(('readd', 1), *[('burst', n, 1, 9) for n in range(4)]), ('quiet',), ('check',), lane=True)), schedules=40
    ),
}
