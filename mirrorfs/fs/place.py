"""Where in the tree a control file is opened, and what can be done there."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirrorfs.fs.gateway import Gateway
from mirrorfs.pool import Entry, Pool


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the tree a file is opened: the pool, a volume of it, a slot of that."""

    pool: Pool
    mountpoint: str
    entry: Entry | None = None
    slot: int = -1
    gateway: Gateway | None = None
    """What serves the mount."""

    @property
    def number(self) -> int:
        """The number that people know the slot by."""
        assert self.entry and self.entry.record
        return self.entry.record.place(self.slot)

    @property
    def volume(self) -> Entry:
        assert self.entry
        return self.entry


Reader = Callable[[Place], str]
Gatherer = Callable[[Place], Awaitable[bytes]]
Action = Callable[[Place, list[str]], Awaitable[None]]
