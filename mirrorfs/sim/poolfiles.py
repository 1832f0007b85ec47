"""The files of a simulated pool: what is visible, and what a power cut may leave of it.

The model: bytes of a file are volatile until the file is synced, names (new, replaced, gone) until their
directory is.  A power cut decides for every file and every name by itself: each volatile write is kept,
dropped or torn at 512 bytes, and each name shows what it showed at some moment since the last sync.  A kill
of the process alone keeps all visible, still volatile.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from mirrorfs.limits import SECTOR

T = TypeVar('T')


@dataclass(eq=False, slots=True)
class Inode:
    """A file's bytes: those that a power cut leaves for sure, and those that are seen."""

    durable: bytes = b''
    visible: bytes = b''

    def torn(self, rng: random.Random | None, keep: bool) -> bytes:
        """Return what a power cut makes of the bytes; `rng` for anything between, `keep` for the extremes."""
        if self.durable == self.visible or rng is None:
            return self.visible if keep else self.durable
        fate = rng.randrange(3)
        if fate < 2:
            return self.visible if fate else self.durable
        return self.visible[: rng.randrange(len(self.visible) // SECTOR + 1) * SECTOR]


Arrive = Callable[[str, int], None]
"""Told of every operation before it takes effect: (kind, bytes).  May raise OSError."""


@dataclass(eq=False)
class SimFiles:
    """A directory tree by full path.  See `mirrorfs.files.Files`."""

    arrive: Arrive = lambda kind, length: None
    visible: dict[str, Inode] = field(default_factory=dict)
    durable: dict[str, Inode] = field(default_factory=dict)
    history: dict[str, list[Inode | None]] = field(default_factory=dict)
    """What each changed name showed, one after the other, since its directory was last synced."""
    pauses: Callable[[], int] = lambda: 0

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        for _ in range(1 + self.pauses()):
            await trio.lowlevel.checkpoint()
        result = function(*arguments)
        for _ in range(self.pauses()):
            await trio.lowlevel.checkpoint()
        return result

    def is_file(self, path: Path) -> bool:
        return str(path) in self.visible

    def mode(self, path: Path) -> int:
        return 0o600

    def read(self, path: Path) -> bytes:
        try:
            return self.visible[str(path)].visible
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, 'no such file', str(path)) from None

    def names(self, directory: Path) -> list[str]:
        start = f'{directory}/'
        return sorted(path[len(start) :] for path in self.visible if path.startswith(start))

    def create(self, path: Path) -> 'SimFile':
        self.arrive('create', 0)
        inode = self.visible.get(str(path))
        if inode is None:
            inode = Inode()
            self._show(str(path), inode)
        inode.visible = b''
        return SimFile(self, inode)

    def rename(self, old: Path, new: Path) -> None:
        self.arrive('rename', 0)
        self._show(str(new), self.visible[str(old)])
        self._show(str(old), None)

    def unlink(self, path: Path) -> None:
        self.arrive('unlink', 0)
        self._show(str(path), None)

    def sync_directory(self, path: Path) -> None:
        self.arrive('sync-directory', 0)
        for name in [name for name in self.history if str(Path(name).parent) == str(path)]:
            _put(self.durable, name, self.visible.get(name))
            del self.history[name]

    def _show(self, name: str, inode: Inode | None) -> None:
        self.history.setdefault(name, [self.durable.get(name)]).append(inode)
        _put(self.visible, name, inode)

    # After a crash

    def copy(self) -> 'SimFiles':
        """Return the files as they are, sharing nothing that can change."""
        everyone = [*self.visible.values(), *self.durable.values()]
        everyone += [inode for shown in self.history.values() for inode in shown if inode]
        twins = {id(inode): Inode(inode.durable, inode.visible) for inode in everyone}
        after = SimFiles()
        after.visible = {name: twins[id(inode)] for name, inode in self.visible.items()}
        after.durable = {name: twins[id(inode)] for name, inode in self.durable.items()}
        after.history = {
            name: [twins[id(inode)] if inode else None for inode in shown]
            for name, shown in self.history.items()
        }
        return after

    def cut(self, keep: bool, rng: random.Random | None = None) -> None:
        """The power goes: all that is volatile is kept, or dropped, or (with `rng`) decided by chance."""
        for name, shown in self.history.items():
            inode = rng.choice(shown) if rng else shown[-1] if keep else shown[0]
            _put(self.durable, name, inode)
        self.history.clear()
        after = {}
        for name, inode in self.durable.items():
            left = inode.torn(rng, keep)
            after[name] = Inode(left, left)
        self.durable, self.visible = after, dict(after)

    def digest(self, but: str = '/') -> int:
        """Return a number that is equal for equal files after a power cut, `but` those with that ending."""
        files = ((name, inode.durable) for name, inode in self.durable.items() if not name.endswith(but))
        return hash(frozenset(files))


@dataclass(eq=False, slots=True)
class SimFile:
    """A file that is being written.  See `mirrorfs.files.NewFile`."""

    files: SimFiles
    inode: Inode

    def __enter__(self) -> 'SimFile':
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.files.arrive('write', len(data))
        self.inode.visible += data

    def sync(self) -> None:
        self.files.arrive('sync', 0)
        self.inode.durable = self.inode.visible


def _put(names: dict[str, Inode], name: str, inode: Inode | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode
