"""How many read errors a leg has had of late: md's rule, by which the count halves every hour.  Pure."""

from dataclasses import dataclass

HALF_LIFE = 3600.0


@dataclass(frozen=True, slots=True)
class ReadErrors:
    """A count that halves every hour, smoothly.  `at`: seconds of any clock, when it was `count`."""

    count: float = 0.0
    at: float = 0.0

    def now(self, clock: float) -> float:
        """Return what is left of the count."""
        return float(self.count * 0.5 ** (max(0.0, clock - self.at) / HALF_LIFE))

    def another(self, clock: float) -> 'ReadErrors':
        """Return the count with one more error."""
        return ReadErrors(self.now(clock) + 1.0, clock)

    def too_many(self, most: int) -> bool:
        """Whether the leg is to be failed that may have `most` an hour."""
        return self.count > most
