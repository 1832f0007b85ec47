"""What a terminal can show: its size, its colours; and text that does it no harm."""

import os
import re
import shutil
from collections.abc import Mapping
from typing import TextIO

RED, GREEN, YELLOW = 31, 32, 33
"""ANSI colours, as a terminal's own palette has them."""

_COLOUR = re.compile('\x1b\\[[0-9;]*m')


def size() -> tuple[int, int]:
    """Return the columns and lines of the terminal; 80 and 24 where there is none."""
    columns, lines = shutil.get_terminal_size()
    return columns, lines


def is_live(stream: TextIO | None) -> bool:
    """Whether a line can be drawn again in its place."""
    return stream is not None and stream.isatty() and os.environ.get('TERM') != 'dumb'


def colours(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many colours may be used: 0, 16, 256 or 2**24.  None off a terminal, nor with NO_COLOR."""
    kind = environment.get('TERM', '')
    if stream is None or not stream.isatty() or environment.get('NO_COLOR') or kind in ('', 'dumb'):
        return 0
    if environment.get('COLORTERM') in ('truecolor', '24bit'):
        return 1 << 24
    return 256 if '256color' in kind else 16


def painted(text: str, colour: int) -> str:
    """Return a text in one of the 16 colours."""
    return f'\x1b[{colour}m{text}\x1b[0m'


def printable(text: str) -> str:
    """Return a text, of a path say, with all that is no character to print written as an escape."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def cut(text: str, columns: int) -> str:
    """Return the beginning of a text that so many columns have room for; colours take none."""
    kept, room = [], columns
    for piece in re.split(f'({_COLOUR.pattern})', text):
        if not _COLOUR.fullmatch(piece):
            piece, room = piece[:room], room - len(piece[:room])
        kept.append(piece)
    return ''.join(kept)
