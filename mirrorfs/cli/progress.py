"""Progress of anything that takes over a second: a bar on a terminal, plain lines elsewhere."""

import shutil
import sys
import threading
import time
from typing import Any, Self, TextIO

from mirrorfs.cli.manner import manner
from mirrorfs.cli.terminal import is_live
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


def share(sync: dict[str, Any]) -> float:
    """Return how much of a pass, as status.json has it, is done: 0 to 1."""
    return float(sync['done_bytes'] / sync['total_bytes']) if sync['total_bytes'] else 1.0


def is_silent() -> bool:
    """Whether nobody wants to read of progress, or nobody can."""
    return manner().is_silent or sys.stderr is None


class Meter:
    """Shows how far something is.  `total` and positions in bytes."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._stream = stream or sys.stderr
        self._silent = stream is None and is_silent()
        self._live = not self._silent and is_live(self._stream)
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
        every = 0.1 if self._live else _PLAIN_EVERY
        if self._silent or now - self._began < _QUIET or now - self._shown < every:
            return
        self._shown = now
        self._drawn = True
        line = self.line(min(done, self._total), done / (now - self._began) if speed is None else speed)
        self._stream.write(f'\r\x1b[K{line}' if self._live else f'{line}\n')
        self._stream.flush()

    def finish(self) -> None:
        """Say that it is done, however short it was."""
        if self._silent:
            return
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


class Pulse:
    """Shows that something is still waited for whose end nobody can foretell: for how long by now.

    A thread does, since who waits is in a system call.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = stream or sys.stderr
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._silent = stream is None and is_silent()

    def __enter__(self) -> Self:
        if not self._silent:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if not self._silent:
            self._thread.join()

    def _show(self) -> None:
        live, began = is_live(self._stream), time.monotonic()
        if self._over.wait(_QUIET):
            return
        try:
            while True:
                line = f'{self._what}, for {format_duration(time.monotonic() - began)}'
                self._stream.write(f'\r\x1b[K{line}' if live else f'{line}\n')
                self._stream.flush()
                if self._over.wait(0.5 if live else _PLAIN_EVERY):
                    break
            if live:
                self._stream.write('\r\x1b[K')
                self._stream.flush()
        except OSError:
            pass  # nobody reads it
