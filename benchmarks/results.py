"""What came out of a comparison: rates and failures by job and taker."""

import statistics
from dataclasses import dataclass, field

from contenders import ORDER

ByTaker = dict[str, dict[str, list[float]]]


@dataclass
class Results:
    """The rates of all rounds, shares of the time that the disk was busy, why runs failed, who is absent.

    `jobs` are in the order in which they were first tried.
    """

    rates: ByTaker = field(default_factory=dict)
    busy: ByTaker = field(default_factory=dict)
    failed: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)

    def begin(self, job: str) -> None:
        if job not in self.jobs:
            self.jobs.append(job)

    def add(self, job: str, taker: str, rate: float, busy: float) -> None:
        self.rates.setdefault(job, {}).setdefault(taker, []).append(rate)
        self.busy.setdefault(job, {}).setdefault(taker, []).append(busy)

    def fail(self, job: str, taker: str, why: str) -> None:
        self.failed.setdefault(job, {}).setdefault(taker, []).append(why)

    def takers(self, job: str) -> list[str]:
        """All that finished a run of a job, always in the same order."""
        return sorted(self.rates.get(job, {}), key=ORDER.index)

    def median(self, job: str, taker: str) -> float | None:
        """Return the median rate; None where there is none."""
        rates = self.rates.get(job, {}).get(taker)
        return statistics.median(rates) if rates else None

    def busiest(self, job: str, taker: str) -> float:
        """Return the median share of the time that the disk was busy; 0 where that is unknown."""
        return statistics.median(self.busy.get(job, {}).get(taker) or [0.0])

    def ratio(self, job: str, ours: str, theirs: str, other: str = '') -> float | None:
        """Return a taker's median in times of another's, which may be that of another job."""
        above, below = self.median(job, ours), self.median(other or job, theirs)
        return above / below if above is not None and below else None

    def best(self, job: str, takers: tuple[str, ...]) -> str | None:
        """Return who of these has the highest median."""
        medians = {taker: self.median(job, taker) or 0.0 for taker in takers}
        winner = max(medians, key=lambda taker: medians[taker])
        return winner if medians[winner] else None
