"""What is wanted of the figures, and whether it was reached.

Peer is qemu's quorum over FUSE.  Targets are judged against its default (threads); beside that stands what
they come to against the better of its two ways of I/O, job by job, so that nobody is misled.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import jobs
import workloads
from contenders import EIGHT, NO_LOG, NOTHING, ONE, ONE_JOB, PEERS, RAW, TWO_RAW, US
from results import Results

DISK_IS_THE_LIMIT = 0.9
"""Share of the time that the disk is busy, above which it is the disk that is measured."""
CELL, MEAN = 1.0, 2.0
MORE = {'4k random read, depth 16': 2.5, '4k random write, depth 1': 1.3, '4k random write, depth 16': 1.3}
EXT4, EXT4_OF_RAW = 1.5, 0.6
EXT4_AT_LIMIT, EXT4_OF_RAW_AT_LIMIT = 1.0, 0.45
HOT, FIRST = 0.97, 0.85
SYNCED = 0.9
NOTHING_READ, NOTHING_WRITE = 0.6, 0.3


@dataclass(frozen=True)
class Verdict:
    """A target: what is wanted, what was found; and against the better peer, where there are two."""

    what: str
    wanted: float
    got: float | None
    better: float | None = None

    @property
    def word(self) -> str:
        return self._judge(self.got)

    @property
    def better_word(self) -> str:
        return self._judge(self.better)

    def _judge(self, got: float | None) -> str:
        return 'unknown' if got is None else 'met' if got >= self.wanted else 'MISSED'


def verdicts(results: Results) -> list[Verdict]:
    """Return all targets, in the order in which they are set."""
    return [*_fio(results), *_ext4(results), *_log(results), *_floors(results), *_eight(results)]


def _against_peers(results: Results, job: str, what: str, wanted: float) -> Verdict:
    best = results.best(job, PEERS)
    return Verdict(
        what, wanted, results.ratio(job, US, PEERS[0]), results.ratio(job, US, best) if best else None
    )


def _fio(results: Results) -> Iterator[Verdict]:
    cells = [cell.name for cell in (*workloads.CELLS, workloads.SYNCED)]
    every = [_against_peers(results, cell, cell, max(CELL, MORE.get(cell, 0.0))) for cell in cells]
    yield from every
    got, better = ([getattr(verdict, which) for verdict in every] for which in ('got', 'better'))
    yield Verdict('geometric mean of all these', MEAN, _mean(got), _mean(better))


def _mean(ratios: list[float | None]) -> float | None:
    """Return the geometric mean; None unless all are known."""
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(known) if known and len(known) == len(ratios) else None


def _ext4(results: Results) -> Iterator[Verdict]:
    for name in workloads.JOBS:
        job = f'ext4: {name}'
        busy = results.busiest(job, US)
        limit = busy > DISK_IS_THE_LIMIT
        note = f'(disk {busy:.0%} busy{", so less is wanted" if limit else ""})'
        yield _against_peers(results, job, f'{job} {note}', EXT4_AT_LIMIT if limit else EXT4)
        wanted = EXT4_OF_RAW_AT_LIMIT if limit else EXT4_OF_RAW
        yield Verdict(f'{job}, of raw file', wanted, results.ratio(job, US, RAW))


def _log(results: Results) -> Iterator[Verdict]:
    for cell in workloads.HOT:
        job = jobs.hot(cell)
        yield Verdict(f'log on against none: {cell.name}', HOT, results.ratio(job, US, NO_LOG))
    yield Verdict(f'log on against none: {jobs.FIRST}', FIRST, results.ratio(jobs.FIRST, US, NO_LOG))


def _floors(results: Results) -> Iterator[Verdict]:
    job = workloads.SYNCED.name
    yield Verdict(f'{job}, of two raw files at once', SYNCED, results.ratio(job, US, TWO_RAW))
    for cell in workloads.DEEP:
        wanted = NOTHING_WRITE if cell.writes else NOTHING_READ
        yield Verdict(f'{cell.name}, of an export in C that does nothing', wanted,
                      results.ratio(cell.name, US, NOTHING))  # fmt: skip


def _eight(results: Results) -> Iterator[Verdict]:
    for cell in workloads.DEEP:
        job = jobs.eight(cell)
        for one in (ONE, ONE_JOB):
            yield Verdict(f'{cell.name}: eight volumes, of {one}', 1.0, results.ratio(job, EIGHT, one))
