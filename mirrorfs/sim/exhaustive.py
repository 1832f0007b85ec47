"""The exhaustive mode: every short workload, crashed at every I/O, with every fate of a few volatile writes.

A workload is up to `LENGTH` of the operations in `ALPHABET`, over two chunks.  A prefix is a workload, too,
so of each only what its last operation and the clean stop after it do is cut.  Legs are alike until one is
named: the one that fails is always leg 0.  Moments and fates that leave the same disks, files and promises
are taken once.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from mirrorfs.sim.crash import ALL_SUBSETS, Frozen, every_fate
from mirrorfs.sim.explore import Explorer, Failed, after, begin, play, seed_of
from mirrorfs.sim.history import Run, Session
from mirrorfs.sim.resting import Operation
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import World

LENGTH = 3
CHUNKS = 2
CRASH: Operation = ('crash',)
ALPHABET: tuple[Operation, ...] = (
    ('write', 0, 1),
    ('write', 0, 17),  # over the one before, and into the second chunk
    ('flush',),
    ('fail', 0),
    ('add', 0),  # of the next disk that is not there yet: see `runs`
    ('readd', 'missing'),
    CRASH,
)
BETWEEN = ('kill', 'none', 'all', 'd0', 'd1')
"""Fates of a crash that is an operation: what comes after it starts from each."""
SAMPLES = 4
"""How many subsets are recovered beside the extremes, where there are too many for all of them."""
JUDGED_SUBSETS = 9
"""Of so many volatile writes at most all subsets are judged, if not recovered."""


def workloads(length: int = LENGTH) -> list[tuple[Operation, ...]]:
    """Return all workloads, the short ones first; one that ends with a crash is its prefix."""
    found = (w for n in range(1, length + 1) for w in itertools.product(ALPHABET, repeat=n))
    return [w for w in found if CRASH not in (w[0], w[-1]) and not _crashes_twice(w)]


def _crashes_twice(workload: tuple[Operation, ...]) -> bool:
    return any(one == other == CRASH for one, other in itertools.pairwise(workload))


def runs(workload: tuple[Operation, ...], legs: int = 2) -> Iterator[Run]:
    """Yield the runs of a workload: one for each way in which the crashes in it may end."""
    lives: list[list[Operation]] = [[]]
    disks = legs
    for operation in workload:
        if operation == CRASH:
            lives.append([])
            continue
        if operation[0] == 'add':
            operation, disks = ('add', disks), disks + 1
        lives[-1].append(operation)
    *crashed, last = lives
    for ends in itertools.product(BETWEEN, repeat=len(crashed)):
        before = [Session(tuple(life), end=end) for life, end in zip(crashed, ends, strict=True)]
        yield Run(0, (*before, Session(tuple(last))), CHUNKS, legs, pauses=(0,))


@dataclass
class Exhaustive(Explorer):
    """Checks every state that the last operation of a workload, and the stop after it, may leave."""

    judged: float = 0.0
    nested: float = 0.01
    twice: float = 0.01
    skipped: int = 0
    """Fates not even judged, since there were too many subsets."""
    seen: set[int] = field(default_factory=set)
    seen_media: set[int] = field(default_factory=set)

    def explore(self, run: Run) -> None:
        """Go through a run and check what each moment of its last operation may leave.  Raises Failed."""
        self.tally.runs += 1
        self._rng = random.Random('exhaustive')
        self._judged = self.seen_media
        *earlier, last = run.sessions
        done: tuple[Session, ...] = ()
        try:
            world = begin(run)
            for number, session in enumerate(earlier):
                play(world, session)
                world = after(world, session, seed_of(run, number + 1))
                done = (*done, session)
            world.freeze_at = partial(self._in_the_last, world, len(last.operations))
            play(world, last)
        except Violation as violation:
            raise Failed(violation, run) from violation
        self._count(world, last)
        for frozen in world.frozen:
            self._fates(run, done, last, frozen)

    @staticmethod
    def _in_the_last(world: World, operations: int, step: int) -> bool:
        return sum(world.tally.values()) >= operations

    def _fates(self, run: Run, done: tuple[Session, ...], last: Session, frozen: Frozen) -> None:
        fates = list(every_fate(frozen, self._rng, SAMPLES))
        count = len(frozen.pending) + bool(frozen.files.history)
        if ALL_SUBSETS < count <= JUDGED_SUBSETS:
            self._judge(run, done, last, frozen, [f'bits:{mask}' for mask in range(1 << count)])
        elif count > JUDGED_SUBSETS:
            self.skipped += (1 << count) + 1 - len(fates)
        for fate in fates:
            digest = frozen.digest(fate)
            if digest in self.seen:
                self.tally.merged += 1
                continue
            self.seen.add(digest)
            self._recover(run, (*done, replace(last, end=fate, crash_at=frozen.step)), frozen, 1)
