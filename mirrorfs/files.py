"""The few file operations that durable definitions need, behind one interface: crashes can be simulated.

Implementations: `OsFiles` and `mirrorfs.sim.poolfiles.SimFiles`.
"""

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import trio

T = TypeVar('T')


class NewFile(Protocol):
    """A file that is being written.  Nothing of it is durable before `sync`; its name not before that of the
    directory."""

    def write(self, data: bytes) -> None: ...

    def sync(self) -> None: ...


class Files(Protocol):
    """Blocking file operations; `run` calls a function that makes them.  All errors are `OSError`."""

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a blocking function where it keeps nobody waiting."""
        ...

    def is_file(self, path: Path) -> bool: ...

    def mode(self, path: Path) -> int:
        """Return the permission bits of a file or directory; 0 where it is not there."""
        ...

    def read(self, path: Path) -> bytes: ...

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def create(self, path: Path) -> AbstractContextManager[NewFile]:
        """Make a file, or empty the one that is there, for us alone (mode 0600)."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Put `old` in the place of `new`, at once for whoever looks, durable after `sync_directory`."""
        ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None: ...


class OsFiles:
    """The files of this machine."""

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(function, *arguments)

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def mode(self, path: Path) -> int:
        try:
            return stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            return 0

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))

    def create(self, path: Path) -> '_OsFile':
        return _OsFile(path)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class _OsFile:
    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        os.fchmod(fd, 0o600)  # what a crash has left there may be another's
        self._file = os.fdopen(fd, 'wb')

    def __enter__(self) -> '_OsFile':
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
