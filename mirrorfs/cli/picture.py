"""A volume's map as an image: SVG, and PNG without any text.  Pure."""

import struct
import zlib
from dataclasses import dataclass
from html import escape

import numpy as np

from mirrorfs.cli.chart import RGB, Chart, legend, runs, texts
from mirrorfs.fs.cells import Table, worst

WIDTH = 1024
"""Pixels, of all that is drawn."""
_MARGIN, _GAP, _TEXT = 12, 22, 13
_BAR = 16
"""Pixels that the bar of a leg is high."""
_COLUMNS_MIN, _COLUMNS_MAX = 16, 128
_PAPER = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the picture that is all in one state.  Pixels."""

    state: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, and where the labels of what they show go: (left, baseline, text).  Pixels."""

    boxes: tuple[Box, ...]
    labels: tuple[tuple[int, int, str], ...]
    height: int


def draw(chart: Chart) -> Drawing:
    """Lay a chart out: the volume's cells line by line, then a bar for each leg that has its own."""
    states = worst(chart.volume.counts)
    title, *_ = texts(chart)
    labels = [(_MARGIN, _MARGIN + _TEXT, title)]
    top = _MARGIN + _GAP
    boxes, top = _grid(states, top)
    for leg in chart.legs:
        labels.append((_MARGIN, top + _GAP - 5, leg.label))
        top += _GAP
        boxes += _bar(worst(leg.counts), top)
        top += _BAR
    return Drawing(tuple(boxes), tuple(labels), top + _MARGIN)


def _grid(states: Table, top: int) -> tuple[list[Box], int]:
    """Return the boxes of cells in lines, and where they end."""
    wanted = int(np.ceil(np.sqrt(4 * len(states))))
    columns = min(_COLUMNS_MAX, max(_COLUMNS_MIN, wanted))
    cell = WIDTH // columns
    boxes = []
    for first in range(0, len(states), columns):
        left = _MARGIN
        for state, length in runs(states[first : first + columns]):
            boxes.append(Box(state, left, top, length * cell, cell))
            left += length * cell
        top += cell
    return boxes, top


def _bar(states: Table, top: int) -> list[Box]:
    """Return the boxes of one leg; several cells share a pixel where they must, the worst of them is seen."""
    pixels = min(WIDTH, len(states))
    starts = np.arange(pixels) * len(states) // pixels
    seen = np.maximum.reduceat(states, starts)
    boxes, at = [], 0
    for state, length in runs(seen):
        left, right = (_MARGIN + place * WIDTH // pixels for place in (at, at + length))
        boxes.append(Box(state, left, top, right - left, _BAR))
        at += length
    return boxes


def svg(chart: Chart) -> str:
    """Return a chart as an SVG image with title and legend."""
    drawing = draw(chart)
    width, top = WIDTH + 2 * _MARGIN, drawing.height
    parts = [f'<rect width="100%" height="100%" fill="{_hex(_PAPER)}"/>']
    parts += [_rect(box) for box in drawing.boxes]
    parts += [_label(*label) for label in drawing.labels]
    for number, (state, text) in enumerate(legend(chart)):
        left, line = _MARGIN + number % 3 * (WIDTH // 3), top + number // 3 * _GAP
        parts += [_rect(Box(state, left, line, _TEXT, _TEXT)), _label(left + _GAP, line + _TEXT - 2, text)]
    height = top + -(-len(legend(chart)) // 3) * _GAP + _MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    style = f'font-family="sans-serif" font-size="{_TEXT}" shape-rendering="crispEdges"'
    return '\n'.join([f'{head} viewBox="0 0 {width} {height}" {style}>', *parts, '</svg>', ''])


def _rect(box: Box) -> str:
    place = f'x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}"'
    return f'<rect {place} fill="{_hex(RGB[box.state])}"/>'


def _label(left: int, baseline: int, text: str) -> str:
    return f'<text x="{left}" y="{baseline}">{escape(text)}</text>'


def _hex(colour: tuple[int, int, int]) -> str:
    return '#{:02x}{:02x}{:02x}'.format(*colour)


def png(chart: Chart) -> bytes:
    """Return a chart as a PNG image; what its colours mean is in its Description."""
    drawing = draw(chart)
    pixels = np.full((drawing.height, WIDTH + 2 * _MARGIN), len(RGB), np.uint8)
    for box in drawing.boxes:
        pixels[box.top : box.top + box.height, box.left : box.left + box.width] = box.state
    rows = np.zeros((len(pixels), 1 + pixels.shape[1]), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels
    height, width = pixels.shape
    described = b'Description\0' + '; '.join(texts(chart)).encode('latin-1', 'replace')
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        _piece(kind, data)
        for kind, data in (
            (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 3, 0, 0, 0)),
            (b'PLTE', bytes(part for colour in (*RGB, _PAPER) for part in colour)),
            (b'tEXt', described),
            (b'IDAT', zlib.compress(rows.tobytes(), 9)),
            (b'IEND', b''),
        )
    )


def _piece(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file: length, type, data, CRC of the latter two."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
