"""A volume's map as a picture of characters, for any size of terminal.  Pure."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirrorfs.cli.terminal import cut, printable
from mirrorfs.fs.cells import STATES, Counts, Table, from_json, merge, worst
from mirrorfs.units import format_size

WORDS = {
    'unwritten': 'never written',
    'clean': 'clean',
    'dirty': 'dirty',
    'modified': 'modified: some leg lacks it',
    'needs_resync': 'needs resync',
    'lacking': 'lacking on this leg',
    'bad_blocks': 'bad blocks on this leg',
    'mismatched': 'mismatched',
}
RGB = (
    (72, 76, 84),
    (46, 160, 67),
    (56, 132, 255),
    (235, 200, 50),
    (245, 140, 40),
    (190, 90, 210),
    (140, 60, 40),
    (230, 30, 40),
)
"""A colour for each of STATES."""
_ANSI = (90, 32, 34, 33, 93, 35, 31, 91)
_LETTERS = '.cdmrlbX'
_BLOCK = '█'
_INK, _RESET = '\x1b[{}m', '\x1b[0m'


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the map: the volume's, or a leg's.  `counts`: int64 [cells, STATES]."""

    label: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class Chart:
    """What is to be drawn.  `legs` are those on which not all is as for the volume; sizes in bytes."""

    name: str
    size: int
    chunk_size: int
    chunks_per_cell: int
    volume: Line
    legs: tuple[Line, ...]
    unlisted: int
    """Mismatches that are known by number only."""

    @property
    def chunks(self) -> int:
        return int(self.volume.counts.sum())


def read(said: Mapping[str, Any]) -> Chart:
    """Return the chart that a map.json's content gives.  Raises KeyError, ValueError for what is none."""
    legs = (
        Line(f'leg {leg["slot"]} {leg["state"]}', from_json(leg['counts']))
        for leg in said['legs']
        if leg['counts'] is not None
    )
    return Chart(
        said['volume'],
        said['size'],
        said['chunk_size'],
        said['chunks_per_cell'],
        Line(said['volume'], from_json(said['counts'])),
        tuple(legs),
        said['mismatches_not_listed'],
    )


def lines(chart: Chart, columns: int, height: int, colours: int) -> list[str]:
    """Return the picture: at most `height` lines of `columns` characters.

    `colours`: how many there are, 0 for letters instead.
    """
    legs = _leg_lines(chart, columns, colours)[: max(0, height - 1)]
    head = [_title(chart), '']
    legend = ['', *_legend(chart, columns, colours)]
    room = height - 1 - len(legs)
    head = head if len(head) <= room else []
    legend = legend if len(head) + len(legend) <= room else []
    grid, each = _grid(chart, columns, height - len(legs) - len(head) - len(legend), colours)
    if head:
        head[0] += f'; a character is {_amount(chart, each)}'
    return [cut(line, columns) for line in (*head, *grid, *legs, *legend)]


def _title(chart: Chart) -> str:
    more = f', {chart.unlisted} mismatches more' if chart.unlisted else ''
    chunks = f'{chart.chunks} chunks of {format_size(chart.chunk_size)}'
    return f'{printable(chart.name)}: {format_size(chart.size)}, {chunks}{more}'


def _amount(chart: Chart, cells: int) -> str:
    chunks = chart.chunks_per_cell * cells
    return f'{chunks} chunk{"s" if chunks > 1 else ""} ({format_size(chunks * chart.chunk_size)})'


def _grid(chart: Chart, columns: int, height: int, colours: int) -> tuple[list[str], int]:
    """Return the volume's cells in lines, each with where it begins; and how many cells a character is."""
    counts = chart.volume.counts
    label = max(len(format_size(place)) for place in (1023 << 40, chart.size)) + 2
    label = label if columns >= 2 * label else 0
    room = max(1, columns - label)
    each = -(-len(counts) // (room * max(1, height)))
    states = worst(merge(counts, each))
    drawn = []
    for first in range(0, len(states), room):
        place = format_size(first * each * chart.chunks_per_cell * chart.chunk_size)
        start = f'{place:>{label - 2}}  ' if label else ''
        drawn.append(f'{start}{ink(states[first : first + room], colours)}')
    return drawn, each


def _leg_lines(chart: Chart, columns: int, colours: int) -> list[str]:
    """Return a line of cells for each leg that has something of its own."""
    label = max((len(leg.label) for leg in chart.legs), default=0) + 2
    label = label if columns >= 2 * label else 0
    room = max(1, columns - label)
    drawn = [''] if chart.legs else []
    for leg in chart.legs:
        states = worst(merge(leg.counts, -(-len(leg.counts) // room)))
        start = f'{leg.label:<{label}}' if label else ''
        drawn.append(f'{start}{ink(states, colours)}')
    return drawn


def ink(states: Table, colours: int) -> str:
    """Return a character for each state, in its colour; runs of one colour change it once."""
    if not colours:
        return ''.join(_LETTERS[state] for state in states.tolist())
    pieces = [f'{_INK.format(_code(state, colours))}{_BLOCK * length}' for state, length in runs(states)]
    return f'{"".join(pieces)}{_RESET}'


def _code(state: int, colours: int) -> str:
    """Return what selects a state's colour on a terminal that has so many."""
    red, green, blue = RGB[state]
    if colours >= 1 << 24:
        return f'38;2;{red};{green};{blue}'
    if colours >= 256:
        sixths = [round(part * 5 / 255) for part in (red, green, blue)]
        return f'38;5;{16 + 36 * sixths[0] + 6 * sixths[1] + sixths[2]}'
    return str(_ANSI[state])


def runs(states: Table) -> Iterator[tuple[int, int]]:
    """Yield (state, how many) for each run of equal states."""
    edges = np.flatnonzero(np.diff(states)) + 1
    bounds = [0, *edges.tolist(), len(states)]
    return ((int(states[low]), high - low) for low, high in itertools.pairwise(bounds))


def shares(chart: Chart) -> list[tuple[int, int]]:
    """Return (state, chunks) for each state of the volume; with 0 for those that only a leg is in."""
    totals = chart.volume.counts.sum(axis=0).tolist()
    elsewhere = sum((leg.counts.sum(axis=0) for leg in chart.legs), start=np.zeros(len(STATES), np.int64))
    return [(state, count) for state, count in enumerate(totals) if count or elsewhere[state]]


def legend(chart: Chart) -> list[tuple[int, str]]:
    """Return (state, what it is and how much of the volume is in it) for all that is drawn."""
    texts = []
    for state, count in shares(chart):
        share = f' {percent(count, chart.chunks)}' if count else ''
        texts.append((state, f'{WORDS[STATES[state]]}{share}'))
    return texts


def percent(part: int, whole: int) -> str:
    """Return a share that is not rounded to nothing, nor to all."""
    share = part * 100 / whole
    if 0 < share < 0.1:
        return '<0.1%'
    return '>99.9%' if 99.9 < share < 100 else f'{share:.3g}%'


def _legend(chart: Chart, columns: int, colours: int) -> list[str]:
    """Return the legend in lines that are not too wide."""
    found, used = [''], 0
    for state, text in legend(chart):
        width = len(text) + 2
        if used and used + 2 + width > columns:
            found.append('')
            used = 0
        gap = '  ' if used else ''
        found[-1] += f'{gap}{ink(np.array([state], np.uint8), colours)} {text}'
        used += len(gap) + width
    return found


def texts(chart: Chart) -> Sequence[str]:
    """Return what a picture is of, and its legend, as lines without colours."""
    return [_title(chart), *(text for _, text in legend(chart))]
