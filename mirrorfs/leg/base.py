"""The Leg interface: one copy of a volume, as bytes at offsets.

Implementations: `mirrorfs.leg.file.FileLeg` (files and block devices), `mirrorfs.leg.direct.DirectLeg` (the
same, past the page cache) and `mirrorfs.sim.crashleg.CrashLeg`.
All of them pass tests/test_leg_conformance.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Room:
    """What a file takes of its filesystem, and what is left there for who asks.  Bytes."""

    occupied: int
    free: int


class Leg(Protocol):
    """Offsets and lengths in bytes from the leg's start.  All errors are `OSError`.

    Every call may be cancelled; the I/O may then still reach the medium later.  Such a call stays counted
    in `calls` until it has really ended, and a leg with calls under way must not be opened anew.
    """

    path: str
    sharing: int | None
    """Identifies the filesystem that holds the leg; None for a device.  Equal ones run full together."""
    identity: object
    """Tells this very file or device from a copy of it."""
    room: Room | None
    """As last looked at, when it was opened or by `departed`; None for a device, and where nobody says."""

    @property
    def calls(self) -> int:
        """I/O calls under way, abandoned ones included."""
        ...

    @property
    def size(self) -> int:
        """The leg's present size."""
        ...

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes.  EIO where the leg ends early."""
        ...

    async def read_into(self, offset: int, view: memoryview) -> None:
        """As `read`, into memory that is not to be used again if this is cancelled."""
        ...

    async def read_medium(self, offset: int, length: int) -> Buffer:
        """As `read`, but from the medium, past any cache; what is cached and dirty is written first."""
        ...

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """Write all of `data`.  With `durable`, these bytes (only) are on stable storage on return."""
        ...

    async def write_medium(self, offset: int, data: Buffer) -> None:
        """As a durable `write`, but past any cache where that can be.

        What cannot be written fails here and not, a second time, at the next flush.
        """
        ...

    async def flush(self) -> None:
        """Put everything written before this call on stable storage.

        Once a flush has failed, what it lost is lost: those under way and all later ones fail, too.
        """
        ...

    async def write_bulk(self, offset: int, data: Buffer) -> None:
        """As `write`, of much that nobody is about to read; from memory at a page's start, past any cache."""
        ...

    async def drop_cache(self) -> None:
        """Forget what is cached and clean, so that reads show the medium.  To be called after a flush.

        A flush that failed before, in a process that is gone, left pages that look clean and were never
        written; only who was told of that failure knew.
        """
        ...

    async def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        """Make the range read as zeros, giving its space back where the leg can; with `keep`, having it."""
        ...

    async def discard(self, offset: int, length: int) -> bool:
        """Give the range's space back where the leg can; return whether it now surely reads as zeros."""
        ...

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space for the range; its contents stay.  May do nothing."""
        ...

    async def extents(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """Return the (offset, length) parts of the range that may hold anything but zeros, ascending."""
        ...

    async def erase(self, offset: int, length: int) -> bool:
        """Forget the range quickly; return whether it now surely reads as zeros."""
        ...

    async def extend(self, size: int) -> bool:
        """Make the leg at least `size` bytes long; return whether what was added reads as zeros.

        ENOSPC where that cannot be.
        """
        ...

    async def departed(self, needed: int) -> str:
        """Return why the leg is no longer what was opened, or nothing if it still is.

        For example that it was removed, replaced by something else at its path, or cut below `needed` bytes.
        """
        ...

    async def stamp(self) -> str:
        """Return what is another text once anybody has changed the leg; empty where nothing would tell."""
        ...

    def is_found(self, found: object) -> bool:
        """Whether what `Opener.probe` has found is this very leg, and not a copy of it."""
        ...

    async def move(self, path: str) -> str:
        """Have the leg at another path, where it may lie already; return the path to be given up by `moved`.

        Until then it is at both.  Raises Refused: EEXIST where something else is there, EXDEV where it
        cannot be without copying, OSError.
        """
        ...

    async def moved(self, old: str) -> None:
        """Give up the path that `move` returned."""
        ...

    def close(self) -> None:
        """Let go of the leg.  Calls not yet begun fail with ECANCELED; those under way end by themselves."""
        ...


@runtime_checkable
class LaneLeg(Protocol):
    """What a Leg has besides, if the data lane may read and write it by itself (see `mirrorfs.fs.lane`).

    `calls` is as in `Leg`.  Looking whether a leg is one must not call the system.
    """

    fd: int
    """What the lane's calls go to; stays open while any of them is under way."""

    def sync(self) -> None:
        """As `Leg.flush`, in the thread that calls it, which may be any; among `calls` until it returns.

        What one of them was told is told to the other: once either has failed, both fail.
        """
        ...

    @property
    def calls(self) -> int: ...

    def fetch(self, offset: int, view: memoryview, *, direct: bool = False) -> None:
        """As `Leg.read_into`, in the thread that calls it, which may be any; among `calls` until it returns.

        Offset in bytes of the leg.  With `direct` past the cache, if the leg can.  Raises OSError.
        """
        ...

    def write_back(self) -> None:
        """Have what is cached begin to go to the medium; the same otherwise.  What fails `sync` says."""
        ...

    def nowait(self) -> int:
        """Return the flag for reads that are not to wait for a disk; 0 where there is none."""
        ...

    def lane_stays(self) -> None:
        """A lane was superseded while in a call on this leg: count it among `calls`."""
        ...

    def lane_returned(self) -> None:
        """Such a call has come back."""
        ...


class Opener(Protocol):
    """Where legs come from."""

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        """Open the leg for us alone; return it and whether it was created.

        With `create_size` (bytes) a path that is not there is made, sparse, and an empty file extended.
        Raises Refused: ENOENT, EBUSY with the holder's name, EINVAL for what cannot be a leg.
        """
        ...

    async def admit(self, path: str) -> None:
        """Raise Refused(EINVAL) for a path that no leg can ever have: in the very mount that it serves."""
        ...

    async def probe(self, path: str) -> object:
        """Return None where nothing is at a path, else something that changes when what is there does."""
        ...

    async def require_blank(self, leg: Leg) -> None:
        """Raise Refused(EEXIST) if the leg bears a signature, ours or anybody's."""
        ...

    async def discard_new(self, leg: Leg) -> None:
        """Remove a leg that `open` created and that is not wanted after all."""
        ...
