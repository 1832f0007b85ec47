"""Searching on all cores: the exhaustive mode, random runs by seed; counts of what was looked at."""

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from mirrorfs.sim.exhaustive import LENGTH, Exhaustive, runs, workloads
from mirrorfs.sim.explore import Explorer, Failed, Tally, Watch
from mirrorfs.sim.history import Composer, Run
from mirrorfs.sim.resting import RESTING, Operation
from mirrorfs.sim.simlane import LANE_COUNTS
from mirrorfs.sim.verbs import RUNNING
from mirrorfs.sim.violation import CHECKERS

SEEDS_AT_ONCE = 10
"""Seeds that a process explores before it reports."""
FAILURES_KEPT = 20


@dataclass
class Found:
    """What some runs led to: counts, and the failures as (what is wrong, the case, how to replay it)."""

    tally: Tally = field(default_factory=Tally)
    skipped: int = 0
    """Fates that the exhaustive mode left out, since there were too many."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, other: 'Found') -> None:
        self.tally.add(other.tally)
        self.skipped += other.skipped
        self.failures += other.failures[: FAILURES_KEPT - len(self.failures)]


Job = Callable[[], Found]
Say = Callable[[Found, float], None]


def seeds(first: int, count: int) -> Found:
    """Explore the random runs of `count` seeds."""
    explorer, found = Explorer(), Found()
    for seed in range(first, first + count):
        _try(explorer, Composer(seed).run(), f'--seed {seed}', found)
    found.tally = explorer.tally
    return found


def short_workloads(some: list[tuple[Operation, ...]], legs: int) -> Found:
    """Explore workloads in every way."""
    explorer, found = Exhaustive(), Found()
    for workload in some:
        for run in runs(workload, legs):
            _try(explorer, run, '--case CASE', found)
    found.tally, found.skipped = explorer.tally, explorer.skipped
    return found


def _try(explorer: Explorer, run: Run, how: str, found: Found) -> None:
    try:
        explorer.explore(run)
    except Failed as failed:
        found.failures.append((str(failed), failed.run.text, how))
    except Exception as error:  # of the simulation itself: the others' findings must not be lost with it
        found.failures.append((f'the simulation cannot go on: {error!r}', run.text, how))


def exhaustive_jobs(legs: int = 2, length: int = LENGTH) -> list[Job]:
    """Return the exhaustive mode as jobs.  Workloads that begin alike are together, to be merged."""
    alike: dict[object, list[tuple[Operation, ...]]] = {}
    for workload in workloads(length):
        alike.setdefault(workload[:2], []).append(workload)
    return [partial(short_workloads, some, legs) for some in alike.values()]


def random_jobs(first: int, count: int | None = None) -> Iterator[Job]:
    """Yield random runs as jobs: `count` seeds, or without end."""
    last = None if count is None else first + count
    while last is None or first < last:
        many = SEEDS_AT_ONCE if last is None else min(SEEDS_AT_ONCE, last - first)
        yield partial(seeds, first, many)
        first += many


def search(
    jobs: Iterable[Job],
    processes: int,
    seconds: float = float('inf'),
    say: Say = lambda found, seconds: None,
    say_every: float = 1.0,
) -> Found:
    """Do jobs in some processes until all are done, or for so long; `say` hears what there is so far."""
    watch, total, left = Watch(), Found(), iter(jobs)
    pending: set[Future[Found]] = set()
    said = 0.0
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(processes, context, initializer=_quieten) as executor:
        try:
            while True:
                while len(pending) < processes + 1 and watch.seconds < seconds:
                    job = next(left, None)
                    if job is None:
                        break
                    pending.add(executor.submit(job))
                if not pending:
                    return total
                done, pending = wait(pending, say_every, FIRST_COMPLETED)
                for future in done:
                    total.add(future.result())
                if watch.seconds - said >= say_every:
                    said = watch.seconds
                    say(total, said)
        finally:
            executor.shutdown(cancel_futures=True)


def _quieten() -> None:
    logging.disable(logging.CRITICAL)


def summary(found: Found, seconds: float, processes: int) -> str:
    """Return the counts by operation, fault, end and checker; zeros are shown: they were left out."""
    tally = found.tally
    rate = (tally.states + tally.judged + tally.merged) / max(seconds, 0.001)
    faults = Counter({k.removeprefix('fault '): n for k, n in tally.operations.items() if k[:6] == 'fault '})
    verbs = {name: tally.operations[name] for name in (*RUNNING, *RESTING)}
    checks = {name: tally.checks[name] for name in CHECKERS}
    lines = [
        f'{tally.runs:,} runs in {seconds:.0f} s on {processes} processes: {tally.states:,} crash states '
        f'recovered and checked, {tally.judged:,} judged by their media, {tally.merged:,} more were the '
        f'same as another, {rate:.0f} a second in all; {found.skipped:,} fates left out; '
        f'{tally.refused:,} starts refused; {len(found.failures)} violations',
        _counts('operations', verbs),
        _counts('faults', faults),
        _counts('lane', {name: tally.operations[name] for name in LANE_COUNTS}),
        _counts('ends', tally.ends),
        _counts('checkers', checks),
    ]
    lines += [f'VIOLATION {what}\n  {how}\n  {case}' for what, case, how in found.failures]
    return '\n'.join(lines)


def _counts(title: str, counts: dict[str, int]) -> str:
    return f'{title}: ' + ', '.join(f'{name} {count:,}' for name, count in counts.items())
