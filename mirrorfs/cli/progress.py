"""Progress of anything that takes over a second: a line with an ETA on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self, TextIO

from mirrorfs.units import format_duration, format_size

_WIDTH = 20
_QUIET = 1.0
"""Seconds before anything is shown."""
_PLAIN_EVERY = 2.0


class Meter:
    """Shows how far something is.  `total` and positions in bytes."""

    def __init__(self, what: str, total: int, stream: TextIO = sys.stderr) -> None:
        self._what = what
        self._total = max(1, total)
        self._stream = stream
        self._live = stream.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._drawn and self._live:
            self._stream.write('\n')

    def update(self, done: int, eta: float | None = None) -> None:
        """Say how far it is; `eta` in seconds, if better known than from the speed so far."""
        now = time.monotonic()
        if now - self._began < _QUIET or now - self._shown < (0.1 if self._live else _PLAIN_EVERY):
            return
        self._shown = now
        self._drawn = True
        if eta is None and done:
            eta = (now - self._began) * (self._total - done) / done
        line = self.line(min(done, self._total), eta)
        self._stream.write(f'\r\x1b[K{line}' if self._live else f'{line}\n')
        self._stream.flush()

    def finish(self) -> None:
        """Say that it is done, however short it was."""
        line = self.line(self._total, None)
        self._stream.write(f'\r\x1b[K{line}\n' if self._live else f'{line}\n')
        self._stream.flush()

    def line(self, done: int, eta: float | None) -> str:
        """Return the line for a position."""
        share = done / self._total
        bar = '=' * int(share * _WIDTH) + '>' + '.' * (_WIDTH - int(share * _WIDTH))
        left = f', {format_duration(eta)} left' if eta is not None else ''
        amount = f'{format_size(done)} of {format_size(self._total)}'
        return f'{self._what} [{bar}] {share:.0%} ({amount}{left})'
