"""Finding legs by what they say of themselves, at paths and in folders.  All functions here block."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.leg.admission import look
from mirrorfs.leg.opening import read_mark, read_super
from mirrorfs.metadata import wibm
from mirrorfs.metadata.spare import SpareMark


@dataclass(frozen=True, slots=True)
class Seen:
    """A leg, and where it was seen."""

    path: str
    sup: wibm.LegSuper


@dataclass(frozen=True, slots=True)
class Spotted:
    """A shared spare, which is no volume's leg, and where it was seen."""

    path: str
    mark: SpareMark


def scan(paths: Sequence[str], *, recursive: bool = False) -> tuple[list[Seen], list[Spotted]]:
    """Return the legs, and the shared spares, among files and block devices and those in folders; each once.

    Folders are searched one level deep, or with `recursive` SCAN_DEPTH levels; symbolic links in them are
    not followed.  Legs are opened to be read only.  Raises Refused: ENOENT, EINVAL for a path that was named
    and is no leg, E2BIG where there is too much to look at.
    """
    found: dict[tuple[int, int], Seen | Spotted] = {}
    for path in map(os.path.abspath, paths):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            candidates = _files(path, limits.SCAN_DEPTH if recursive else 1) if is_folder else [path]
            for number, candidate in enumerate(candidates):
                if number >= limits.SCAN_MAX:
                    raise Refused(
                        errno.E2BIG, f'{path} has more than {limits.SCAN_MAX} files; name a part of it'
                    )
                _look(candidate, found, named=not is_folder)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f'{path}: {error.strerror}') from None
    legs = [seen for seen in found.values() if isinstance(seen, Seen)]
    spares = [seen for seen in found.values() if isinstance(seen, Spotted)]
    return sorted(legs, key=lambda seen: (seen.sup.record.name, seen.sup.slot)), spares


def _files(folder: str, depth: int) -> Iterator[str]:
    """Yield what may be a leg in a folder, in order; what cannot be listed below it is passed over."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                    yield entry.path
                elif stat.S_ISDIR(mode) and depth > 1:
                    yield from _files(entry.path, depth - 1)
            except OSError:
                continue


def _look(path: str, found: dict[tuple[int, int], Seen | Spotted], *, named: bool) -> None:
    """Add the leg or spare at a path, if it is one.  Raises Refused(EINVAL), OSError for what was named."""
    try:
        seen = look(path)
        try:
            fd = os.open(f'/proc/self/fd/{seen}', os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(seen)
        try:
            info = os.fstat(fd)
            identity = (-1, info.st_rdev) if stat.S_ISBLK(info.st_mode) else (info.st_dev, info.st_ino)
            found.setdefault(identity, _read(path, fd))
        finally:
            os.close(fd)
    except BadMetadata as bad:
        if named:
            raise Refused(errno.EINVAL, f'{path} is no leg: {bad}') from None
    except (OSError, Refused):
        if named:
            raise


def _read(path: str, fd: int) -> Seen | Spotted:
    """Return what a file or device is.  Raises BadMetadata, OSError."""
    try:
        return Seen(path, read_super(fd)[0])
    except BadMetadata as no_leg:
        try:
            return Spotted(path, read_mark(fd))
        except BadMetadata:
            raise no_leg from None
