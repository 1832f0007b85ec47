"""Prometheus' text format, version 0.0.4: families of samples, written as they come.

Written here and not by prometheus-client, which takes 8 us a sample where this takes less than one; a pool
has tens of thousands of samples, and trio's thread must not be held for long.  The tests read it with that.
"""

import functools
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

import trio

from mirrorfs.histogram import Histogram

_AT_ONCE = 4096
"""Lines of a piece: 1 ms."""


@dataclass(frozen=True, slots=True)
class Family:
    """What samples of one name mean.  `kind`: counter, gauge or histogram."""

    kind: str
    help: str


def labels(**pairs: str) -> str:
    """Return labels as they stand in a sample; what is not UTF-8 is shown by escapes."""
    return ','.join(f'{name}="{_escaped(value)}"' for name, value in pairs.items())


def _escaped(value: str) -> str:
    printable = value.encode(errors='backslashreplace').decode()
    return printable.replace('\\', r'\\').replace('\n', r'\n').replace('"', r'\"')


@functools.cache
def _bounds(first: float, buckets: int) -> list[str]:
    """Return the bounds of a histogram's buckets as they stand in samples."""
    return [*map(str, Histogram(first, buckets).bounds), '+Inf']


class Exposition:
    """Collects the samples of `families`, which maps names to what they are; others are a KeyError."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._lines: dict[str, list[str]] = {name: [] for name in families}

    def add(self, name: str, about: str, value: float) -> None:
        """Add a sample of a counter or gauge.  `about`: see `labels`."""
        self._lines[name].append(f'{name}{{{about}}} {value}')

    def add_set(self, name: str, about: str, label: str, words: Iterable[str], those: Iterable[str]) -> None:
        """Add a sample for each of the words that something can be: 1 for `those` that it is, else 0."""
        true = set(those)
        for word in words:
            self.add(name, f'{about},{label}="{word}"', int(word in true))

    def add_histogram(self, name: str, about: str, histogram: Histogram) -> None:
        """Add the samples of a histogram, taken in one moment."""
        counts, total = list(histogram.counts), 0
        lines = self._lines[name]
        for bound, count in zip(_bounds(histogram.first, len(counts) - 1), counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{about},le="{bound}"}} {total}')
        lines.append(f'{name}_sum{{{about}}} {histogram.sum}')
        lines.append(f'{name}_count{{{about}}} {total}')

    async def text(self) -> AsyncIterator[str]:
        """Yield the text in pieces, giving way after each; families without samples are left out."""
        for name, lines in self._lines.items():
            if lines:
                family = self._families[name]
                yield f'# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n'
            for at in range(0, len(lines), _AT_ONCE):
                yield '\n'.join(lines[at : at + _AT_ONCE]) + '\n'
                await trio.lowlevel.checkpoint()
