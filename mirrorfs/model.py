"""What is durably known of a volume: frozen records that every layer above speaks of.

A `VolumeRecord` is what a superblock on a leg says and what the pool's definition says; the transitions
between records are in `mirrorfs.mirror.membership`.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

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
    STANDBY = 6
    """A hot spare: formatted, idle and empty until it takes the place of a leg that is gone."""
    SPLIT = 7
    """Split off by the admin as a point in time; stale, and locked so that it stays as it is."""

    @property
    def word(self) -> str:
        """md's word, which is the same for spares that wait and spares that are being recovered."""
        return 'spare' if self is LegState.STANDBY else self.name.lower()

    @property
    def is_member(self) -> bool:
        """Takes writes."""
        return self in (LegState.IN_SYNC, LegState.SPARE)

    @property
    def is_stale(self) -> bool:
        """A leg whose copy is out of date, but which may come back."""
        return self in (LegState.FAULTY, LegState.MISSING, LegState.REMOVED, LegState.SPLIT)


class WriterPolicy(enum.IntEnum):
    """What happens to writes while fewer legs are in sync than `VolumeRecord.quorum`."""

    ERROR = 0
    """They fail with EIO."""
    READONLY = 1
    """They fail with EROFS."""
    WAIT = 2
    """They wait until there are enough legs again."""


class ReturnPolicy(enum.IntEnum):
    """What happens by itself when a leg that was missing is there again."""

    PARTIAL = 0
    """It is taken back if its whole absence was tracked: only what changed is copied."""
    FULL = 1
    """It is taken back, too, where all of it has to be copied."""
    NONE = 2
    """Nothing: the admin re-adds it."""


class DetectZeroes(enum.IntEnum):
    """What becomes of a write of nothing but zeros; the words are QEMU's."""

    OFF = 0
    """It is a write as any other."""
    ON = 1
    """Legs are told to zero the range, and keep its space where they can."""
    UNMAP = 2
    """It is a discard."""


NO_UUID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Slot:
    """One leg's place in a volume.

    `mark` counts the chunks from the start that recovery has durably copied; it means something only while
    `full` is set (a full recovery, which copies every written chunk from there on).  Without `full` a
    stale or recovering leg needs just the chunks flagged MODIFIED.  `tracked_since` is the value of the
    volume's events since which every change that this absent leg lacks is flagged MODIFIED; 0 means that
    it was not tracked.  `path` and `stamp` are the pool's knowledge; superblocks do not hold them.
    `stamp`, of a leg that is split off, tells whether anybody has changed it since (`Leg.stamp`); empty: it
    is no point in time.
    """

    state: LegState = LegState.VACANT
    leg: UUID = NO_UUID
    tracked_since: int = 0
    mark: int = 0
    full: bool = False
    path: str = ''
    write_mostly: bool = False
    failfast: bool = False
    want_replacement: bool = False
    behind: bool = False
    replaces: int = -1
    place: int = -1
    stamp: str = ''

    def but(self, **changes: Any) -> 'Slot':
        return replace(self, **changes)

    def vacated(self) -> 'Slot':
        """Return the slot without a leg; its place stays, since every slot has another one."""
        return Slot(place=self.place)


@dataclass(frozen=True, slots=True)
class Generation:
    """One step of a volume's lineage: made when its legs may part ways.

    `time_us` is microseconds since 1970 UTC; `events` the volume's events when the generation began.
    """

    uuid: UUID
    time_us: int
    events: int


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume as its superblocks and its pool durably describe it.  Sizes are in bytes."""

    uuid: UUID
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
    log_id: UUID = NO_UUID
    """Identifies the log in a file outside the legs; NO_UUID: the log is on the legs, or there is none."""
    log_path: str = ''
    """Where that file is; pool only."""
    backlog: int = 0
    """Writes that write-mostly legs may be behind; 0: none."""
    quorum: int = 1
    """Least number of legs in sync for which writes are accepted."""
    quorum_policy: WriterPolicy = WriterPolicy.ERROR
    return_policy: ReturnPolicy = ReturnPolicy.PARTIAL
    spare_delay_ms: int = int(limits.SPARE_DELAY * 1000)
    """How long a leg must be gone before a spare takes its place."""
    max_read_errors: int = limits.MAX_READ_ERRORS
    """Mended read errors an hour beyond which a leg is failed."""
    speed_min: int = 0
    """Floor of recovery and scrubs, in KiB/s; 0: `limits.SPEED_MIN`."""
    speed_max: int = 0
    """Their ceiling; 0: `limits.SPEED_MAX`."""
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    mode: int = 0o600
    """Permission bits of the image in the mount; pool only, like `uid` and `gid`."""
    uid: int = field(default=-1)
    gid: int = field(default=-1)

    def __post_init__(self) -> None:
        assert len(self.slots) == limits.SLOTS and self.lineage

    @property
    def log_is_outside(self) -> bool:
        """Whether the log is in a file outside the legs."""
        return self.log_id != NO_UUID

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

    def has(self, *states: LegState) -> bool:
        """Whether any slot is in one of `states`."""
        return any(slot.state in states for slot in self.slots)

    def slot_of(self, leg: UUID) -> int | None:
        """Return the number of the slot that a leg is in, if it is in any."""
        taken = (n for n, slot in enumerate(self.slots) if slot.leg == leg)
        return next((n for n in taken if self.slots[n].state is not LegState.VACANT), None)

    def place(self, number: int) -> int:
        """Return the number that people know the leg of a slot by."""
        place = self.slots[number].place
        return number if place < 0 else place

    def at_place(self, place: int) -> int | None:
        """Return the number of the slot that people know by `place`."""
        return next((n for n in range(len(self.slots)) if self.place(n) == place), None)

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
