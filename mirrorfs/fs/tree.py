"""The tree of names in the mount, computed from the pool; nothing of it is stored.

::

    NAME                                   an image
    NAME@split                             the image of a leg that is split off
    .mirrorfs/{mdstat,status.json,…}       POOL_FILES
    .mirrorfs/volumes/NAME/…               VOLUME_FILES
    .mirrorfs/volumes/NAME/bitmap/…        BITMAP_FILES
    .mirrorfs/volumes/NAME/legs/SLOT/…     LEG_FILES
"""

import enum
from dataclasses import dataclass

from mirrorfs.fs.control import BITMAP_FILES, LEG_FILES, POOL_FILES, VOLUME_FILES, ControlFile
from mirrorfs.fs.gateway import Gateway
from mirrorfs.fs.place import Place
from mirrorfs.model import LegState
from mirrorfs.pool import Entry, Pool
from mirrorfs.volume.splitting import SUFFIX, SplitOff

CONTROL = '.mirrorfs'
ROOT = 1
Path = tuple[str, ...]


class Kind(enum.Enum):
    DIRECTORY = 'directory'
    IMAGE = 'image'
    CONTROL = 'control'
    EVENTS = 'events'


@dataclass(frozen=True, slots=True)
class Node:
    """What a path is.  `children` of a directory; `file` of a control file; `entry` of an image.

    `split_off`: it is the image of that leg.
    """

    kind: Kind
    children: tuple[str, ...] = ()
    file: ControlFile | None = None
    place: Place | None = None
    entry: Entry | None = None
    split_off: SplitOff | None = None


class Tree:
    """Finds nodes by path, and paths by inode number.  Numbers are kept while the mount lives."""

    def __init__(self, pool: Pool, mountpoint: str, gateway: Gateway | None = None) -> None:
        self._pool = pool
        self._mountpoint = mountpoint
        self._gateway = gateway
        self._paths: dict[int, Path] = {ROOT: ()}
        self._numbers: dict[Path, int] = {(): ROOT}
        self._next = ROOT + 1

    def number(self, path: Path) -> int:
        """Return the inode number of a path."""
        if path not in self._numbers:
            self._numbers[path] = self._next
            self._paths[self._next] = path
            self._next += 1
        return self._numbers[path]

    def path(self, number: int) -> Path | None:
        return self._paths.get(number)

    def forget(self, name: str) -> None:
        """A volume is gone: a later one of the same name gets new numbers."""
        images = (name,), (f'{name}{SUFFIX}',)
        for path in [path for path in self._numbers if path in images or path[2:3] == (name,)]:
            del self._paths[self._numbers.pop(path)]

    def node(self, path: Path) -> Node | None:
        """Return what is at a path now, or None."""
        match path:
            case ():
                return _directory((CONTROL, *self._pool.entries, *self._split_off()))
            case (name,) if name == CONTROL:
                return _directory((*POOL_FILES, 'volumes'))
            case (name,) if name in self._pool.entries:
                return Node(Kind.IMAGE, entry=self._pool.entries[name])
            case (name,) if name in (split_off := self._split_off()):
                entry = split_off[name]
                return Node(Kind.IMAGE, entry=entry, split_off=entry.split_off)
            case (top, 'volumes') if top == CONTROL:
                return _directory(tuple(self._pool.entries))
            case (top, 'events') if top == CONTROL:
                return Node(Kind.EVENTS, file=POOL_FILES['events'], place=self._place())
            case (top, name) if top == CONTROL and name in POOL_FILES:
                return Node(Kind.CONTROL, file=POOL_FILES[name], place=self._place())
            case (top, 'volumes', name, *rest) if top == CONTROL and name in self._pool.entries:
                return self._volume_node(self._pool.entries[name], rest)
        return None

    def _split_off(self) -> dict[str, Entry]:
        """Return the volumes with a leg that is split off, by the name of its image."""
        names = {f'{name}{SUFFIX}': entry for name, entry in self._pool.entries.items() if entry.split_off}
        return {name: entry for name, entry in names.items() if name not in self._pool.entries}

    def _place(self, entry: Entry | None = None, slot: int = -1) -> Place:
        return Place(self._pool, self._mountpoint, entry, slot, self._gateway)

    def _volume_node(self, entry: Entry, rest: list[str]) -> Node | None:
        match rest:
            case []:
                return _directory((*VOLUME_FILES, 'bitmap', 'legs'))
            case [name] if name in VOLUME_FILES:
                return Node(Kind.CONTROL, file=VOLUME_FILES[name], place=self._place(entry))
            case ['bitmap']:
                return _directory(tuple(BITMAP_FILES))
            case ['bitmap', name] if name in BITMAP_FILES:
                return Node(Kind.CONTROL, file=BITMAP_FILES[name], place=self._place(entry))
            case ['legs']:
                return _directory(tuple(_slots(entry)))
            case ['legs', slot] if slot in _slots(entry):
                return _directory(tuple(LEG_FILES))
            case ['legs', slot, name] if slot in _slots(entry) and name in LEG_FILES:
                at = self._place(entry, _number(entry, slot))
                return Node(Kind.CONTROL, file=LEG_FILES[name], place=at)
        return None


def _directory(children: tuple[str, ...]) -> Node:
    return Node(Kind.DIRECTORY, children=children)


def _number(entry: Entry, place: str) -> int:
    """Return the slot that people know by a place, which is there."""
    number = entry.record.at_place(int(place)) if entry.record else None
    assert number is not None
    return number


def _slots(entry: Entry) -> list[str]:
    """Return the places of all legs, as people know them."""
    if not entry.record:
        return []
    record = entry.record
    known = (n for n, slot in enumerate(record.slots) if slot.state is not LegState.VACANT)
    return [str(place) for place in sorted(record.place(n) for n in known)]
