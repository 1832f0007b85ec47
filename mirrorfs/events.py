"""Events: what happened, a line each, with md's names; kept for a while, and waking those who wait.

A line is ``TIME EVENT VOLUME [DEVICE] [TEXT]``; TIME is ISO 8601 in UTC.  Control characters in it are
escaped, so that one event is always one line.
"""

import datetime
import logging
from collections import Counter, deque
from collections.abc import Callable

from mirrorfs import limits

log = logging.getLogger(__name__)

_LEVELS = {
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
    'RebuildFinished': logging.WARNING,
    'FailSpare': logging.ERROR,
    'Warning': logging.WARNING,
}


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
        log.log(_LEVELS.get(word, logging.INFO), '%s', ' '.join(part for part in parts[1:] if part))
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
