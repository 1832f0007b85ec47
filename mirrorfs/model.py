"""What is durably known of a volume: frozen records that every layer above speaks of.

A `VolumeRecord` is what a superblock on a leg says and what the pool's definition says; the transitions
between records are in `mirrorfs.mirror.membership`.
"""

import enum
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mirrorfs import limits


class LegState(enum.IntEnum):
    """State of a slot, as stored.  The words printed for it are md's (`word`)."""

    VACANT = 0
    """No leg has this number."""
    IN_SYNC = 1
    """Counts everywhere; may be read."""
    SPARE = 2
    """Under recovery: takes every write, counts below its mark, is not read."""
    FAULTY = 3
    """Failed by an error or by the admin; stale."""
    MISSING = 4
    """Was not there when something was written; stale, and welcome back."""
    REMOVED = 5
    """Taken out by the admin; stale, its number kept so that it can be re-added."""

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def is_member(self) -> bool:
        """Takes writes."""
        return self in (LegState.IN_SYNC, LegState.SPARE)

    @property
    def is_stale(self) -> bool:
        """A leg whose copy is out of date, but which may come back."""
        return self in (LegState.FAULTY, LegState.MISSING, LegState.REMOVED)


NO_UUID = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class Slot:
    """One leg's place in a volume.

    `mark` counts the chunks from the start that recovery has durably copied; it means something only while
    `full` is set (a full recovery, which copies every written chunk from there on).  Without `full` a
    stale or recovering leg needs just the chunks flagged MODIFIED.  `tracked_since` is the value of the
    volume's events since which every change that this absent leg lacks is flagged MODIFIED; 0 means that
    it was not tracked.  `path` is the pool's knowledge; superblocks do not hold it.
    """

    state: LegState = LegState.VACANT
    leg: uuid.UUID = NO_UUID
    tracked_since: int = 0
    mark: int = 0
    full: bool = False
    path: str = ''

    def but(self, **changes: Any) -> 'Slot':
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Generation:
    """One step of a volume's lineage: made when its legs may part ways.

    `time_us` is microseconds since 1970 UTC; `events` the volume's events when the generation began.
    """

    uuid: uuid.UUID
    time_us: int
    events: int


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume as its superblocks and its pool durably describe it.  Sizes are in bytes."""

    uuid: uuid.UUID
    name: str
    size: int
    chunk_size: int
    raid_disks: int
    slots: tuple[Slot, ...]
    lineage: tuple[Generation, ...]
    """Oldest first; the last one is the present generation."""
    events: int = 1
    logged: bool = True
    """Whether DIRTY is tracked chunk by chunk (the map of never-written chunks always is)."""
    active: bool = False
    """Set before the first write of a session, unset by a clean stop."""
    created_us: int = 0
    updated_us: int = 0
    time_base_ms: int = int(limits.TIME_BASE * 1000)
    mode: int = 0o600
    """Permission bits of the image in the mount; pool only, like `uid` and `gid`."""
    uid: int = field(default=-1)
    gid: int = field(default=-1)

    def __post_init__(self) -> None:
        assert len(self.slots) == limits.SLOTS and self.lineage

    @property
    def chunks(self) -> int:
        return -(-self.size // self.chunk_size)

    def but(self, **changes: Any) -> 'VolumeRecord':
        return replace(self, **changes)

    def with_slot(self, number: int, slot: Slot) -> 'VolumeRecord':
        return replace(self, slots=(*self.slots[:number], slot, *self.slots[number + 1 :]))

    def where(self, *states: LegState) -> Iterator[int]:
        """Yield the numbers of the slots in one of `states`, ascending."""
        return (number for number, slot in enumerate(self.slots) if slot.state in states)

    @property
    def degraded(self) -> int:
        """How many legs are missing or not yet in sync."""
        return max(0, self.raid_disks - sum(1 for _ in self.where(LegState.IN_SYNC)))


def default_chunk_size(size: int) -> int:
    """Return the chunk size, in bytes, for a volume of `size` bytes: 1 MiB up to 1 TiB, then growing."""
    chunk = limits.CHUNK_DEFAULT
    while chunk < limits.CHUNK_MAX and -(-size // chunk) > limits.CHUNKS_DEFAULT_MAX:
        chunk *= 2
    return chunk
