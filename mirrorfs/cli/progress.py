"""Progress of anything that takes over a second: a bar on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from typing import Self, TextIO

from mirrorfs.units import format_duration, format_size

_WIDTH = 20
_QUIET = 1.0
"""Seconds before anything is shown."""
_PLAIN_EVERY = 2.0


def pace(left: int, speed: float) -> str:
    """Return how fast it goes and how long `left` bytes take at `speed`, bytes a second; empty for none."""
    return f', {format_size(int(speed))}/s, {format_duration(left / speed)} left' if speed >= 1 else ''


def bar(share: float, width: int = _WIDTH) -> str:
    """Return md's bar for a share of 0 to 1."""
    filled = int(min(1.0, share) * width)
    return f'[{"=" * filled}>{"." * (width - filled)}]'


class Meter:
    """Shows how far something is.  `total` and positions in bytes."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def update(self, done: int, speed: float | None = None) -> None:
        """Say how far it is; `speed` in bytes a second, if better known than from what was done so far."""
        now = time.monotonic()
        if now - self._began < _QUIET or now - self._shown < (0.1 if self._live else _PLAIN_EVERY):
            return
        self._shown = now
        self._drawn = True
        line = self.line(min(done, self._total), done / (now - self._began) if speed is None else speed)
        self._stream.write(f'\r\x1b[K{line}' if self._live else f'{line}\n')
        self._stream.flush()

    def finish(self) -> None:
        """Say that it is done, however short it was."""
        line = self.line(self._total)
        self._stream.write(f'\r\x1b[K{line}\n' if self._live else f'{line}\n')
        self._stream.flush()
        self._drawn = False

    def leave(self) -> None:
        """It ended somewhere: what was said last stays."""
        if self._drawn and self._live:
            self._stream.write('\n')
            self._stream.flush()
        self._drawn = False

    def line(self, done: int, speed: float = 0.0) -> str:
        """Return the line for a position."""
        share = done / self._total if self._total else 1.0
        amount = f'{format_size(done)} of {format_size(self._total)}'
        figures = f'{int(share * 100)}% ({amount}{pace(self._total - done, speed)})'
        if not self._live:
            return f'{self._what} {figures}'
        columns = shutil.get_terminal_size().columns - 1
        room = columns - len(f'{self._what} [>] {figures}')
        drawn = f'{bar(share, min(_WIDTH, room))} ' if room >= _WIDTH // 4 else ''
        return f'{self._what} {drawn}{figures}'[:columns]  # one that wraps is not overwritten by the next
