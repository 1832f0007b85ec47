"""Shortening a failing run: the shortest history that still breaks the same promise is the one to read.

Greedy delta debugging over sessions, operations and faults; a candidate counts if it fails the same checker.
A candidate's crash may come at another step, so each is explored anew around the old one.
"""

from collections.abc import Iterator
from dataclasses import replace

from mirrorfs.sim.explore import Explorer, Failed, Watch, replay
from mirrorfs.sim.history import Run, Session

PAUSES_PLAIN = (0,)


def shrink(run: Run, checker: str, seconds: float = 30.0) -> Run:
    """Return a shorter run that fails the same checker, found within `seconds`; at worst the run itself."""
    watch = Watch()
    shorter = True
    while shorter and watch.seconds < seconds:
        shorter = False
        for candidate in _candidates(run):
            if watch.seconds > seconds:
                break
            found = _fails(candidate, checker)
            if found is not None and _weight(found) < _weight(run):
                run, shorter = found, True
                break
    return run


def _weight(run: Run) -> tuple[int, int, int, int]:
    operations = sum(_size(op) for s in run.sessions for op in (*s.operations, *s.before))
    faults = sum(len(s.faults) for s in run.sessions)
    plain = run.pauses != PAUSES_PLAIN
    return operations + 2 * len(run.sessions) + faults, run.legs + run.chunks, plain + run.lane, 0


def _size(operation: tuple[object, ...]) -> int:
    return 1 + sum(_size(part) for part in operation if isinstance(part, tuple))


def _fails(run: Run, checker: str) -> Run | None:
    """Return the run that shows a violation of this checker, if one does: the run itself or a cut of it."""
    try:
        replay(run)
    except Failed as failed:
        return run if failed.violation.checker == checker else None
    if not any(session.crash_at for session in run.sessions):
        return None
    try:
        Explorer(cut=0.5, fates=3, nested=0.0, twice=0.0, states_max=60).explore(_without_check(run))
    except Failed as failed:
        return failed.run if failed.violation.checker == checker else None
    return None


def _without_check(run: Run) -> Run:
    sessions = run.sessions
    if sessions and sessions[-1].operations and sessions[-1].operations[0][0] == 'check':
        sessions = sessions[:-1]
    return run.but(sessions=sessions)


def _candidates(run: Run) -> Iterator[Run]:
    """Yield simpler runs, the boldest cuts first."""
    sessions = run.sessions
    if any(word[0] == 'old-pool' for session in sessions for word in session.before):
        return  # what two hosts did makes sense as a whole only
    for number in range(len(sessions)):
        yield run.but(sessions=sessions[:number] + sessions[number + 1 :])
    for number, session in enumerate(sessions):
        for simpler in _simpler(session):
            yield run.but(sessions=(*sessions[:number], simpler, *sessions[number + 1 :]))
    if run.lane:
        yield run.but(lane=False)
    if run.pauses != PAUSES_PLAIN:
        yield run.but(pauses=PAUSES_PLAIN)
    if run.legs > 2:
        yield run.but(legs=run.legs - 1)
    if run.chunks > 2:
        yield run.but(chunks=run.chunks - 1)


def _simpler(session: Session) -> Iterator[Session]:
    for part in ('faults', 'before', 'operations'):
        items = getattr(session, part)
        if len(items) > 2:
            half = len(items) // 2
            yield replace(session, **{part: items[:half]})
            yield replace(session, **{part: items[half:]})
        for at in range(len(items)):
            yield replace(session, **{part: items[:at] + items[at + 1 :]})
    for at, operation in enumerate(session.operations):
        if operation[0] == 'both':
            for inner in operation[1:]:
                operations = (*session.operations[:at], inner, *session.operations[at + 1 :])
                yield replace(session, operations=operations)
