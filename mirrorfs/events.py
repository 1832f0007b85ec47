"""Events: what happened, a line each, with md's names; kept for a while, and waking those who wait.

A line is ``TIME EVENT VOLUME [DEVICE] [TEXT]``; TIME is ISO 8601 in UTC.  Control characters in it are
escaped, so that one event is always one line.
"""

import datetime
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirrorfs import limits

log = logging.getLogger(__name__)

LEVELS = {
    'Critical': logging.CRITICAL,
    'LogLost': logging.CRITICAL,
    'Fail': logging.ERROR,
    'Refused': logging.ERROR,
    'Error': logging.ERROR,
    'WriteError': logging.ERROR,
    'DegradedArray': logging.WARNING,
    'LegAbsent': logging.WARNING,
    'QuorumLost': logging.ERROR,
    'SparesMissing': logging.WARNING,
    'StaleLeg': logging.WARNING,
    'ReadError': logging.WARNING,
    'BadBlocks': logging.WARNING,
    'RebuildFinished': logging.WARNING,
    'FailSpare': logging.ERROR,
    'Warning': logging.WARNING,
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as read back from its line."""

    time: str
    word: str
    volume: str = ''
    device: str = ''
    text: str = ''


def parse(line: bytes) -> Event:
    """Return what a line says, without its end.  Of a device with a blank in its path only what is before
    that is known as such; the rest is in the text.
    """
    time, word, volume, rest = (*line.decode('ascii').split(' ', 3), '', '')[:4]
    device = ''
    if rest.startswith('/') and word != 'Refused':  # which is about no device, and may quote a path
        device, _, rest = rest.partition(' ')
    return Event(time, word, '' if volume == '-' else volume, _unescaped(device), _unescaped(rest))


def _unescaped(text: str) -> str:
    return text.encode('ascii').decode('unicode_escape')


def unseen(before: Sequence[bytes], now: Sequence[bytes]) -> tuple[list[bytes], bool]:
    """Return the lines that came between two readings of all that is kept, and whether others were lost."""
    for dropped in range(len(before) + 1):
        known = len(before) - dropped
        if list(now[:known]) == list(before[dropped:]):
            return list(now[known:]), bool(before) and not known
    raise AssertionError('no lines at all always fit')


class EventLog:
    """The last EVENTS_KEPT lines, as a stream of bytes with absolute positions."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self.start = 0
        """Position of the oldest byte that is kept."""
        self.end = 0
        self.emitted: Counter[str] = Counter()
        """How many there have been, by name."""
        self.on_new: Callable[[], None] = lambda: None
        """Called after each new line."""

    def emit(self, word: str, volume: str = '', device: str = '', text: str = '') -> None:
        """Add a line and wake who waits."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
        parts = [now.replace('+00:00', 'Z'), word, volume or '-', device, text]
        line = ' '.join(part for part in parts if part).encode('unicode_escape', 'replace')
        log.log(LEVELS.get(word, logging.INFO), '%s', ' '.join(part for part in parts[1:] if part))
        self._lines.append(line + b'\n')
        self.emitted[word] += 1
        self.end += len(line) + 1
        while len(self._lines) > limits.EVENTS_KEPT:
            self.start += len(self._lines.popleft())
        self.on_new()

    def read(self, position: int, length: int) -> bytes:
        """Return up to `length` bytes from an absolute position on (from the oldest kept, if later)."""
        text = b''.join(self._lines)
        at = max(0, position - self.start)
        return text[at : at + length]
