"""The map: counts by cells, and how they are drawn."""

import itertools
import json
import os
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mounts import MIB, MountedPool, cli, cli_ok, examine, wait_for

from mirrorfs.cli import chart, picture
from mirrorfs.fs import cells
from mirrorfs.fs.cells import STATES
from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN

mount = pytest.mark.mount
STATE = {word: number for number, word in enumerate(STATES)}


# Counting

flags = st.lists(st.integers(0, ALL), min_size=1, max_size=300).map(lambda n: np.array(n, np.uint8))


@st.composite
def rows(draw: st.DrawFn, chunks: int) -> cells.Row:
    """A row of any kind: two tables, a mark, special chunks."""
    tables = st.sampled_from([cells._VOLUME, cells._CURRENT, cells._LATE, cells._EMPTY])
    special = sorted(draw(st.sets(st.integers(0, chunks - 1), max_size=20)))
    worse = draw(st.lists(st.integers(0, 7), min_size=len(special), max_size=len(special)))
    return cells.Row(
        0,
        draw(tables),
        draw(tables),
        draw(st.integers(0, chunks + 1)),
        np.array(special, np.intp),
        np.array(worse, np.uint8),
    )


def slowly(row: cells.Row, of: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    """Return the state of each chunk, one by one."""
    worse = dict(zip(row.special.tolist(), row.worse.tolist(), strict=True))
    below, above = row.below.tolist(), row.above.tolist()
    return [max((below if n < row.mark else above)[f], worse.get(n, 0)) for n, f in enumerate(of.tolist())]


@given(st.data(), flags, st.integers(1, 40), st.integers(1, 64))
def test_counts_of_cells_are_those_of_their_chunks_however_they_are_sliced(
    data: st.DataObject, of: Any, per_cell: int, at_once: int
) -> None:
    row = data.draw(rows(len(of)))
    step = at_once * per_cell
    parts = [cells.count([row], at, of[at : at + step], per_cell) for at in range(0, len(of), step)]
    counted = np.concatenate(parts, axis=1)[0]
    states = slowly(row, of)
    for cell, counts in enumerate(counted.tolist()):
        part = states[cell * per_cell : (cell + 1) * per_cell]
        assert counts == [part.count(state) for state in range(len(STATES))]


@given(flags, st.integers(1, 40), st.integers(1, 40))
def test_merged_cells_keep_every_chunk_and_the_worst_state_wins(
    of: Any, per_cell: int, together: int
) -> None:
    row = cells.Row(None, cells._VOLUME, cells._VOLUME)
    counts = cells.count([row], 0, of, per_cell)[0]
    merged = cells.merge(counts, together)
    assert merged.sum(axis=0).tolist() == counts.sum(axis=0).tolist() and merged.sum() == len(of)
    states, span = cells.worst(counts).tolist(), range(0, len(counts), together)
    assert cells.worst(merged).tolist() == [max(states[at : at + together]) for at in span]


@given(st.integers(1, 1 << 26))
def test_slices_are_whole_cells_small_enough_and_all_there_is(chunks: int) -> None:
    per_cell = cells.chunks_per_cell(chunks)
    assert -(-chunks // per_cell) <= cells.CELLS
    parts = list(cells.slices(chunks, per_cell))
    assert parts[0][0] == 0 and parts[-1][1] == chunks
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(parts))
    for first, end in parts:
        assert first % per_cell == 0
        assert end - first <= cells.SLICE and -(-(end - first) // per_cell) <= cells.SLICE_CELLS


@pytest.mark.parametrize(
    ('said', 'of_volume', 'of_late', 'of_empty'),
    [
        (0, 'clean', 'clean', 'lacking'),
        (DIRTY, 'dirty', 'dirty', 'lacking'),
        (DIRTY | MODIFIED, 'modified', 'lacking', 'lacking'),
        (NEEDS_RESYNC | MODIFIED, 'needs_resync', 'lacking', 'lacking'),
        (NEEDS_RESYNC, 'needs_resync', 'needs_resync', 'lacking'),
        (UNWRITTEN, 'unwritten', 'unwritten', 'unwritten'),
        (UNWRITTEN | DIRTY, 'dirty', 'dirty', 'dirty'),
    ],
)
def test_what_a_chunk_counts_as(said: int, of_volume: str, of_late: str, of_empty: str) -> None:
    tables = (cells._VOLUME, cells._LATE, cells._EMPTY)
    assert [STATES[table[said]] for table in tables] == [of_volume, of_late, of_empty]


# Drawing


def a_chart(counts: Any, legs: int = 0) -> chart.Chart:
    lines = tuple(chart.Line(f'leg {number} faulty', counts) for number in range(legs))
    return chart.Chart('vm1', 1 << 46, 64 * MIB, 256, chart.Line('vm1', counts), lines, 0)


@st.composite
def charts(draw: st.DrawFn) -> chart.Chart:
    states = draw(st.lists(st.integers(0, len(STATES) - 1), min_size=1, max_size=200))
    states *= draw(st.integers(1, 20))
    counts = np.zeros((len(states), len(STATES)), np.int64)
    counts[np.arange(len(states)), states] = draw(st.integers(1, 16384))
    return a_chart(counts, draw(st.integers(0, 8)))


@given(charts(), st.integers(1, 300), st.integers(1, 100), st.sampled_from([0, 16, 256, 1 << 24]))
def test_a_picture_fits_whatever_terminal_there_is(
    drawn: chart.Chart, columns: int, height: int, colours: int
) -> None:
    lines = chart.lines(drawn, columns, height, colours)
    plain = [chart.cut(line, 10**6) for line in lines]
    if colours:
        plain = [_without_colours(line) for line in lines]
    assert 1 <= len(lines) <= height
    assert all(len(line) <= columns for line in plain)
    worst = int(cells.worst(drawn.volume.counts).max())
    marks = chart._LETTERS[worst] if not colours else chart._INK.format(chart._code(worst, colours))
    assert any(marks in line for line in lines), 'the worst state is always to be seen'


def _without_colours(line: str) -> str:
    return re.sub('\x1b\\[[0-9;]*m', '', line)


@given(charts())
def test_the_whole_volume_is_drawn_once_in_svg_and_png(drawn: chart.Chart) -> None:
    root = ET.fromstring(picture.svg(drawn))
    name = '{http://www.w3.org/2000/svg}'
    assert root.tag == f'{name}svg' and len(root.findall(f'{name}rect')) > 1
    assert 'vm1: 64 TiB' in ''.join(text.text or '' for text in root.findall(f'{name}text'))
    width, height, pixels, palette = decode(picture.png(drawn))
    assert pixels.shape == (height, width) and len(palette) == len(STATES) + 1
    present = set(cells.worst(drawn.volume.counts).tolist())
    assert set(np.unique(pixels).tolist()) - {len(STATES)} == present
    boxes = picture.draw(drawn).boxes
    canvas = np.zeros((height, width), np.int64)
    for box in boxes:
        canvas[box.top : box.top + box.height, box.left : box.left + box.width] += 1
    assert canvas.max() == 1, 'no box lies over another'
    edges = np.diff(canvas, axis=1, prepend=0, append=0)
    assert (np.count_nonzero(edges, axis=1) <= 2).all(), 'nor is there room between them'


def decode(data: bytes) -> tuple[int, int, Any, bytes]:
    """Return width, height, pixels and palette of a PNG image; checks its checksums."""
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    pieces, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack_from('>I4s', data, at)
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from('>I', data, at + 8 + length)[0]
        pieces[kind] = body
        at += 12 + length
    assert list(pieces)[-1] == b'IEND'
    width, height, depth, colour = struct.unpack_from('>IIBB', pieces[b'IHDR'])
    assert (depth, colour) == (8, 3)
    raw = np.frombuffer(zlib.decompress(pieces[b'IDAT']), np.uint8).reshape(height, width + 1)
    assert not raw[:, 0].any()
    return width, height, raw[:, 1:], bytes(pieces[b'PLTE'][::3])


def test_shares_are_never_rounded_to_nothing_or_to_all() -> None:
    assert chart.percent(1, 1 << 26) == '<0.1%' and chart.percent((1 << 26) - 1, 1 << 26) == '>99.9%'
    assert chart.percent(1, 4) == '25%' and chart.percent(4, 4) == '100%'


# Real ones


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made


def said(pool: MountedPool) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(cli_ok('map', pool.directory, 'disk', '--json'))
    return told


def counts(row: dict[str, list[int]]) -> dict[str, int]:
    return {state: sum(numbers) for state, numbers in row.items()}


@mount
@pytest.mark.parametrize('place', ['internal', 'outside'])
def test_a_mount_shows_every_state_and_so_do_its_legs_once_it_is_gone(pool: MountedPool, place: str) -> None:
    options = ('--log', str(pool.base / 'log')) if place == 'outside' else ()
    volume = pool.volume_at_rest('disk', 64 * MIB, legs=3, options=options)
    pool.start()
    volume.write('bitmap/time_base', '0.05')
    for chunk in range(40):
        volume.put(chunk * MIB, b'x' * 4096)
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'all is clean')
    volume.write('bitmap/time_base', '3600')
    volume.write('legs/0/bad_blocks', '0 8')
    corrupt(volume.legs[1], 10 * MIB)
    volume.write('sync_action', 'check')
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'the check')
    volume.write('fail', '2')
    for chunk in (20, 21, 22):
        volume.put(chunk * MIB, b'y' * 4096)
    told = said(pool)
    assert told['chunks'] == 64 and sum(counts(told['counts']).values()) == 64
    assert told['counts']['modified'][20:23] == [1, 1, 1] and told['counts']['mismatched'][10] == 1
    legs = {leg['slot']: leg['counts'] for leg in told['legs']}
    assert legs[0]['bad_blocks'][0] == 1
    assert legs[1]['mismatched'][10] == 1 and 'mismatched' not in legs[0]
    assert legs[2]['lacking'][20:23] == [1, 1, 1] and counts(legs[2])['lacking'] == 3
    text = cli_ok('map', pool.directory, 'disk')
    assert 'leg 2 faulty' in text and '\x1b' not in text and 'X mismatched' in text
    pool.stop()
    assert counts(said(pool)['counts'])['modified'] == 3
    rest = {leg['slot']: leg['counts'] for leg in said(pool)['legs']}
    assert rest[0]['bad_blocks'][0] == 1 and counts(rest[2])['lacking'] == 3
    assert said(pool)['counts']['mismatched'][10] == 1
    if place == 'outside':
        (pool.base / 'log').unlink()
        done = cli('map', pool.directory, 'disk')
        assert done.returncode == 1 and 'its log in' in done.stderr


def corrupt(leg: Path, at: int) -> None:
    """Change a leg behind the daemon's back, where the log is and data begin as on every new leg."""
    with open(leg, 'r+b', buffering=0) as file:
        file.seek(examine(leg)[0]['data_offset'] + at)
        file.write(b'decayed')


@mount
def test_a_recovery_is_seen_to_move_on_also_where_another_leg_is_away(pool: MountedPool) -> None:
    volume = pool.volume_at_rest('disk', 64 * MIB, legs=3)
    pool.start()
    with volume.open() as fd:
        for chunk in range(64):
            os.pwrite(fd, b'z' * MIB, chunk * MIB)
    volume.write('fail', '2')
    volume.write('sync_speed_max', str(16 << 10))
    volume.write('add', str(pool.legs / 'new'))

    def half() -> bool:
        new = next(leg['counts'] for leg in said(pool)['legs'] if leg['slot'] == 3)
        lacking = new['lacking']
        return bool(lacking[-1] and not lacking[0] and lacking == sorted(lacking))

    wait_for(half, 'a part of the new leg')
    volume.write('sync_speed_max', 'system')
    volume.settled()
    pool.stop()


@mount
def test_images_are_written_whole_or_not_at_all(pool: MountedPool, tmp_path: Path) -> None:
    pool.volume_at_rest('disk', 4 * MIB)
    svg, png = tmp_path / 'map.svg', tmp_path / 'map.png'
    png.write_bytes(b'an older one')
    cli_ok('map', pool.directory, 'disk', '--svg', svg, '--png', png)
    ET.fromstring(svg.read_text())
    decode(png.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.png', 'map.svg']
    done = cli('map', pool.directory, 'disk', '--png', tmp_path / 'nowhere' / 'map.png')
    assert done.returncode == 1 and 'cannot be written: No such file' in done.stderr
    assert cli('map', pool.directory, 'none').returncode == 1
