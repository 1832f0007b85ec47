"""What a volume counts beside what its data lane counts (`mirrorfs.hot.HotTable`)."""

from collections import Counter
from dataclasses import dataclass, field

from mirrorfs.histogram import Histogram

OPERATIONS = ('read', 'write', 'flush', 'discard')
"""Requests for bytes; the last includes allocating."""


@dataclass(slots=True)
class Counters:
    """Bytes and operations since the volume was started."""

    reads: int = 0
    writes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    zeroed_bytes: int = 0
    """Bytes written that were zeros, and found to be (`VolumeRecord.detect_zeroes`)."""
    flushes: int = 0
    resynced: int = 0
    """Bytes copied to make legs equal after an unclean stop or a failed write."""
    recovered: int = 0
    """Bytes copied to bring legs up to date."""
    waited: float = 0.0
    waits: int = 0
    """Seconds that requests of the slow path took, and how many there were."""
    seconds: dict[str, Histogram] = field(default_factory=lambda: {word: Histogram() for word in OPERATIONS})
    """How long requests of the slow path took, by operation, those that failed included."""
    errors: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OPERATIONS, 0)))
    """How many requests failed, by operation; all that fail do so on the slow path."""
