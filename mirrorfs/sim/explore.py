"""Playing runs, and cutting them into crash states; every state is recovered and checked."""

import operator
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.sim import determinism, resting, verbs
from mirrorfs.sim.crash import Frozen
from mirrorfs.sim.history import STOP, Run, Session
from mirrorfs.sim.judge import judge
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import CHUNK, World

FATES = ('none', 'all', 'd0', 'd1', 'pool', 'kill', 'tear:1', 'tear:2', 'tear:3')
"""Those that are recovered."""
JUDGED_FATES = (*FATES, 'd2', 'd3', 'd90', *(f'tear:{number}' for number in range(4, 8)))
"""Those that are judged."""

TWICE = (Session((), (('remember',),)), Session((), (('unchanged',),)), Session((), (('unchanged',),)))


class Failed(AssertionError):
    """A violation, with the run that shows it."""

    def __init__(self, violation: Violation, run: Run) -> None:
        super().__init__(str(violation))
        self.violation = violation
        self.run = run


@contextmanager
def small_windows(mark_interval: float) -> Iterator[None]:
    """Recovery goes chunk by chunk, so that crashes meet it half way."""
    before = limits.WINDOW, limits.WINDOWS_IN_FLIGHT, limits.STRIDE, limits.MARK_INTERVAL
    limits.WINDOW, limits.WINDOWS_IN_FLIGHT, limits.STRIDE, limits.MARK_INTERVAL = CHUNK, 1, 1, mark_interval
    try:
        yield
    finally:
        limits.WINDOW, limits.WINDOWS_IN_FLIGHT, limits.STRIDE, limits.MARK_INTERVAL = before


def the_cause(error: BaseException) -> BaseException:
    """Return the error that matters in a group of errors: a checker's, else one that nobody planned.

    What is only a defect comes last: others see the first complaint stop the volume under them.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    return min((the_cause(inner) for inner in error.exceptions), key=_rank)


def _rank(error: BaseException) -> int:
    if isinstance(error, Violation):
        return 2 if error.checker == 'defect' else 1
    kinds = KeyboardInterrupt, Violation, Violation, AssertionError, Exception
    return next((rank for rank, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))


def simulate(main: Callable[[], object], seed: int, mark_interval: float = 0.0) -> None:
    """Run an async function deterministically.  Raises Violation for whatever goes wrong in it."""
    try:
        with small_windows(mark_interval):
            determinism.run(main, seed)  # type: ignore[arg-type]
    except BaseException as error:
        cause = the_cause(error)
        if isinstance(cause, KeyboardInterrupt | Violation):
            raise cause from error
        raise Violation('defect', f'{type(cause).__name__}: {cause}') from cause


def begin(run: Run) -> World:
    """Return the world of a run, with its volume made."""
    world = run.world()
    simulate(world.make, run.seed)
    return world


def play(world: World, session: Session) -> None:
    """Go through one session, up to its clean stop, or to where it is left alone."""
    for operation in session.before:
        resting.prepare(world, operation)
    world.plan = dict(session.faults)
    simulate(partial(_play, world, session), world.seed, world.mark_interval)


async def _play(world: World, session: Session) -> None:
    force, world.force = world.force, False
    world.undecided = rebuilt = world.rebuilt is not None
    try:
        async with world.running(force=force):
            if rebuilt or (force and world.started and world.started.plan.forced):
                resting.given_up(world)
            world.rebuilt, world.undecided = None, False
            for operation in session.operations:
                await verbs.perform(world, operation)
            if session.end == STOP:
                await world.stop()
    except* Refused as refusals:
        world.refused = str(the_cause(refusals))


def end_of(world: World, session: Session) -> Frozen:
    """Return the moment at which a session ended."""
    if session.crash_at:
        return next((f for f in world.frozen if f.step == session.crash_at), None) or world.freeze()
    return world.freeze()


def after(world: World, session: Session, seed: int) -> World:
    """Return the world that the session leaves for the next one."""
    frozen = end_of(world, session)
    if session.end != STOP:
        return frozen.restart(session.end, seed=seed)
    return frozen.restart('kill' if world.refused else 'none', seed=seed)


def replay(run: Run, say: Callable[[World, Session], None] = lambda world, session: None) -> None:
    """Go through a run just as it says; judge what each of its crashes leaves.  Raises Failed."""
    try:
        world = begin(run)
        for number, session in enumerate(run.sessions):
            world.freeze_at = partial(operator.eq, session.crash_at)
            try:
                play(world, session)
            finally:
                say(world, session)
            if session.end != STOP:
                judge(end_of(world, session), session.end)
            world = after(world, session, seed_of(run, number + 1))
    except Violation as violation:
        raise Failed(violation, run) from violation


def seed_of(run: Run, number: int) -> int:
    """Return the seed of a run's session."""
    return run.seed * 64 + number


@dataclass
class Tally:
    """What was looked at, so that one can see that nothing was left out."""

    runs: int = 0
    judged: int = 0
    """Crash states whose media were judged."""
    states: int = 0
    """Crash states that were recovered and checked."""
    merged: int = 0
    """States that were the same as one already checked."""
    refused: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    def count(self, world: World) -> None:
        self.operations += world.tally
        self.checks += world.checkers.made

    def add(self, other: 'Tally') -> None:
        self.runs += other.runs
        self.judged += other.judged
        self.states += other.states
        self.merged += other.merged
        self.refused += other.refused
        self.operations += other.operations
        self.checks += other.checks
        self.ends += other.ends


@dataclass
class Explorer:
    """Cuts runs into crash states and checks each; everything follows from the seeds of the runs."""

    judged: float = 1.0
    """Share of the steps at which a crash is judged, with every fate."""
    cut: float = 0.08
    """Share of the steps at which some of the states after a crash are recovered, too."""
    fates: int = 2
    """How many fates of what is volatile, with different outcomes, are tried at each."""
    nested: float = 0.08
    """Share of the recoveries that are cut again."""
    depth: int = 3
    twice: float = 0.05
    """Share of the recovered states that are started again, twice, to see that nothing changes."""
    states_max: int = 1 << 60
    tally: Tally = field(default_factory=Tally)

    def explore(self, run: Run) -> None:
        """Go through a run, and check the states after crashes at some of its steps.  Raises Failed."""
        self.tally.runs += 1
        self._rng = random.Random(f'explore {run.seed}')
        self._seen: set[tuple[int, int]] = set()
        self._judged: set[int] = set()
        done: tuple[Session, ...] = ()
        try:
            world = begin(run)
            for number, session in enumerate(run.sessions):
                at = session.crash_at
                world.freeze_at = partial(self._cuts, at)
                play(world, session)
                self._count(world, session)
                for frozen in world.frozen:
                    self._judge(run, done, session, frozen, JUDGED_FATES)
                    if frozen.step == at or self._rng.random() < self.cut / max(self.cut, self.judged):
                        self._states(run, done, session, frozen)
                world = after(world, session, seed_of(run, number + 1))
                done = (*done, session)
            run = run.but(sessions=(*done, self._checking(run, done)))
            self._check(run, done, world, 1)
        except Violation as violation:
            raise Failed(violation, run) from violation

    def _cuts(self, at: int, step: int) -> bool:
        return step == at or self._rng.random() < max(self.cut, self.judged)

    def _count(self, world: World, session: Session) -> None:
        self.tally.count(world)
        self.tally.ends[session.end.partition(':')[0]] += 1
        self.tally.refused += bool(world.refused)

    def _judge(
        self, run: Run, done: tuple[Session, ...], session: Session, frozen: Frozen, fates: Sequence[str]
    ) -> None:
        """Judge what a crash at this moment may leave."""
        for fate in fates:
            state = frozen.digest(fate)
            if state in self._judged:
                continue
            self._judged.add(state)
            try:
                self.tally.judged += judge(frozen, fate)
            except Violation as violation:
                crashed = replace(session, end=fate, crash_at=frozen.step)
                failing = run.but(sessions=(*done, crashed, self._checking(run, (*done, crashed))))
                raise Failed(violation, failing) from violation

    def _states(self, run: Run, done: tuple[Session, ...], session: Session, frozen: Frozen) -> None:
        """Check some of the states that a crash at this moment may leave, each only once."""
        left = self.fates
        for fate in self._rng.sample(FATES, len(FATES)):
            state = len(done), frozen.digest(fate)
            if state in self._seen:
                self.tally.merged += 1
                continue
            self._seen.add(state)
            crashed = replace(session, end=fate, crash_at=frozen.step)
            self._recover(run, (*done, crashed), frozen, 1)
            left -= 1
            if not left:
                return

    def _recover(self, run: Run, done: tuple[Session, ...], frozen: Frozen, depth: int) -> None:
        if self.tally.states >= self.states_max:
            return
        world = frozen.restart(done[-1].end, seed=seed_of(run, len(done)))
        try:
            self._check(run, done, world, depth)
        except Violation as violation:
            raise Failed(violation, run.but(sessions=(*done, self._checking(run, done)))) from violation

    def _start_twice(self, run: Run, done: tuple[Session, ...], world: World) -> None:
        """Invariant 12: starting again, twice, without a write changes nothing."""
        for session in TWICE:
            done = (*done, session)
            world = after(world, done[-2], world.seed)
            try:
                play(world, session)
            except Violation as violation:
                raise Failed(violation, run.but(sessions=done)) from violation
            self.tally.count(world)

    def _checking(self, run: Run, done: Sequence[Session]) -> Session:
        """The session that checks a state: which one is decided by the run and how far it went."""
        how = 'resync' if (run.seed + len(done) + done[-1].crash_at) % 3 == 0 else 'reads'
        return Session((('check', how),))

    def _check(self, run: Run, done: tuple[Session, ...], world: World, depth: int) -> None:
        rng = self._rng
        again = depth < self.depth and rng.random() < self.nested
        world.freeze_at = (lambda step: rng.random() < 0.1) if again else (lambda step: False)
        checking = self._checking(run, done)
        play(world, checking)
        self.tally.states += 1
        self._count(world, checking)
        frozen_there = world.frozen
        if rng.random() < self.twice and not world.refused:
            self._start_twice(run, (*done, checking), world)
        if again:
            for frozen in frozen_there[:8]:
                crashed = replace(checking, end=rng.choice(FATES), crash_at=frozen.step)
                self._recover(run, (*done, crashed), frozen, depth + 1)


@dataclass
class Watch:
    """How long something has taken, in seconds of the real clock."""

    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began
