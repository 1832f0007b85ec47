"""What `status` shows of a pool: lines for people, from the facts of status.json.  Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirrorfs.cli import terminal
from mirrorfs.cli.advice import Advice, Facts, Level, advise, level
from mirrorfs.cli.progress import bar, pace, share
from mirrorfs.cli.terminal import printable
from mirrorfs.units import format_size

_COLOURS = {
    Level.FINE: terminal.GREEN,
    Level.BUSY: terminal.GREEN,
    Level.WARNING: terminal.YELLOW,
    Level.DEGRADED: terminal.YELLOW,
    Level.UNUSABLE: terminal.RED,
}
_NEED = 'need attention'
_SUMMARY = {
    Level.UNUSABLE: 'cannot be used',
    Level.DEGRADED: 'degraded',
    Level.WARNING: _NEED,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How lines are to look: `coloured`, and with bars, as on a terminal."""

    coloured: bool = False
    bars: bool = False

    def paint(self, text: str, how_bad: Level) -> str:
        return terminal.painted(text, _COLOURS[how_bad]) if self.coloured else text


def pool_lines(pool: str, mountpoint: str | None, volumes: Sequence[Facts], look: Look) -> list[str]:
    """Return where the pool is and how its volumes are, in a few lines."""
    where = f'mounted on {printable(mountpoint)}' if mountpoint else 'not mounted'
    lines = [f'pool {printable(pool)}, {where}']
    if not volumes:
        return [*lines, 'no volumes']
    levels = {volume['name']: level(volume) for volume in volumes}
    parts = []
    for how_bad, what in _SUMMARY.items():
        names = [name for name, found in levels.items() if found is how_bad]
        if names:
            parts.append(look.paint(f'{what}: {", ".join(names)}', how_bad))
    count = f'{len(volumes)} volume{"s" if len(volumes) > 1 else ""}'
    return [*lines, f'{count}; {"; ".join(parts) or look.paint("all is well", Level.FINE)}']


def volume_lines(volume: Facts, pool: str, mountpoint: str | None, look: Look) -> list[str]:
    """Return all there is to be said of one volume."""
    advice = advise(volume, pool, mountpoint)
    state = look.paint(_state(volume), level(volume))
    lines = [f'volume: {volume["name"]}', f' state: {state}']
    if why := volume.get('refusal') or volume.get('broken'):
        lines.append(f'   why: {printable(why)}')
    for one in advice:
        lines += _advice_lines(one, look)
    lines += _figures(volume)
    if volume.get('sync'):
        lines.append(f'  sync: {_sync(volume["sync"], look)}')
    lines += _leg_lines(volume, look)
    if 'chunks' in volume:
        lines.append(f'errors: {_errors(volume)}')
    return lines


def _advice_lines(advice: Advice, look: Look) -> list[str]:
    lines = [f'status: {look.paint(printable(advice.status), advice.level)}']
    for number, step in enumerate(advice.steps):
        head = '        ' if number else 'action: '
        lines.append(f'{head}{step.why}: {printable(step.command)}')
    return lines


def _state(volume: Facts) -> str:
    state = volume.get('state', 'not started')
    if volume.get('degraded'):
        state += f', degraded ({volume["degraded"]} of {volume["raid_disks"]} legs missing)'
    return str(state)


def _figures(volume: Facts) -> list[str]:
    lines = []
    if 'size' in volume:
        lines.append(f'  size: {format_size(volume["size"])}, chunks of {format_size(volume["chunk_size"])}')
    if volume.get('quorum', 1) > 1:
        lost = ', lost' if volume.get('quorum_lost') else ''
        lines.append(f'quorum: {volume["quorum"]} legs, else {volume["quorum_policy"]}{lost}')
    if volume.get('detect_zeroes', 'off') != 'off':
        lines.append(f'zeroes: {volume["detect_zeroes"]}')
    if 'chunks' in volume:
        lines.append(f'chunks: {_chunks(volume["chunks"])}')
    if 'bitmap' in volume:
        outside = volume['bitmap'] == 'external'
        lines.append(f'   log: {printable(volume["bitmap_location"]) if outside else volume["bitmap"]}')
    if volume.get('mismatches'):
        more = volume['mismatches_not_listed']
        places = f'{len(volume["mismatches"])}{f" and {more} more" if more else ""}'
        lines.append(f'differ: {places} places, see .mirrorfs/volumes/{volume["name"]}/mismatches')
    return lines


def _chunks(chunks: dict[str, int]) -> str:
    written = chunks['total'] - chunks['unwritten']
    parts = [f'{chunks["total"]}', f'{written} written', f'{chunks["dirty"]} dirty']
    parts += [f'{chunks[key]} {key.replace("_", " ")}' for key in ('modified', 'needs_resync') if chunks[key]]
    return ', '.join(parts)


def _sync(sync: dict[str, Any], look: Look) -> str:
    done = share(sync)
    drawn = f'{bar(done)} ' if look.bars else ''
    left = sync['total_bytes'] - sync['done_bytes']
    return f'{sync["action"]} {drawn}{int(done * 100)}%{pace(left, sync["speed"])}'


# Legs, as a table

_LEG_LEVELS = {
    'in_sync': Level.FINE,
    'spare': Level.BUSY,
    'split': Level.BUSY,
    'faulty': Level.UNUSABLE,
    'missing': Level.UNUSABLE,
    'removed': Level.WARNING,
}


def _leg_lines(volume: Facts, look: Look) -> list[str]:
    legs = volume.get('legs', [])
    if not legs:
        return []
    titles = ['leg', 'state', 'read', 'write', 'bad', 'occupied', 'path']
    rows = [_leg_cells(leg) for leg in legs]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [f'  {_row(titles, widths)}']
    for leg, cells in zip(legs, rows, strict=True):
        line, state = _row(cells, widths), cells[1]
        at = widths[0] + 2
        painted = look.paint(state, _LEG_LEVELS.get(leg['state'], Level.WARNING))
        lines.append(f'  {line[:at]}{painted}{line[at + len(state) :]}')
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one line of the table: words to the left, figures to the right."""
    left = (1, len(cells) - 1)
    placed = [
        cell.ljust(width) if number in left else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return '  '.join(placed).rstrip()


def _leg_cells(leg: Facts) -> list[str]:
    def figure(key: str) -> str:
        return str(leg[key]) if key in leg else '-'

    image = f', shown as {leg["image"]}' if leg.get('image') else ''
    return [
        str(leg['slot']),
        ' '.join([leg['state'], *leg.get('flags', [])]),
        figure('read_errors'),
        figure('write_errors'),
        figure('bad_blocks'),
        _occupied(leg),
        f'{printable(leg["path"] or "(its path is not known)")}{image}',
    ]


def _occupied(leg: Facts) -> str:
    """Return what a leg's file really takes; a device takes all it is."""
    if leg.get('occupied') is None:
        return '-'
    most = f' of {format_size(leg["occupied_max"])}' if leg.get('occupied_max') else ''
    return f'{format_size(leg["occupied"])}{most}'


def _errors(volume: Facts) -> str:
    words = {'read_errors': 'read', 'write_errors': 'write', 'bad_blocks': 'bad blocks'}
    found = []
    for leg in volume.get('legs', []):
        counts = [f'{leg[key]} {word}' for key, word in words.items() if leg.get(key)]
        if counts:
            found.append(f'leg {leg["slot"]}: {", ".join(counts)}')
    return '; '.join(found) or 'none known since the start'
