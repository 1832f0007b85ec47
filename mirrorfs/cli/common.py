"""What the verbs share: finding a pool and its mount, and talking to a mounted one by its control files."""

import errno
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.fs import mounting
from mirrorfs.units import parse_size
from mirrorfs.volume.logplace import INTERNAL, NONE

EXIT_REFUSED, EXIT_SYSTEM = 1, 2


class Size(click.ParamType):  # type: ignore[type-arg]
    """A size on the command line."""

    name = 'size'

    def convert(self, value: Any, param: Any, context: Any) -> int:
        try:
            return parse_size(str(value))
        except Refused as refusal:
            self.fail(str(refusal), param, context)


class Place(click.Path):
    """A path that is not looked at: what is there may hang."""

    def convert(self, value: Any, param: Any, context: Any) -> str:
        return os.fsdecode(value)


SIZE = Size()
POOL = click.argument('pool', metavar='POOL', type=Place())
VOLUME = click.argument('name', metavar='NAME')


@dataclass(frozen=True, slots=True)
class Target:
    """A pool, and where it is mounted if it is."""

    directory: PoolDirectory
    mountpoint: Path | None

    def require_mounted(self) -> 'Mounted':
        if self.mountpoint is None:
            path = self.directory.path
            raise Refused(errno.ENOTCONN, f'{path} is not mounted; mount it first: mirrorfs mount {path} DIR')
        return Mounted(self.mountpoint)


def find(pool: str) -> Target:
    """Find a pool by its directory or its mount point.  Raises Refused."""
    real = mounting.real_path(pool)
    for mount in mounting.mounts():
        if real in (mount.pool, mount.mountpoint):
            if mounting.is_dead(mount):
                return Target(PoolDirectory(mount.pool), None)
            return Target(PoolDirectory(mount.pool), Path(mount.mountpoint))
    return Target(PoolDirectory(real), None)


class Mounted:
    """A mounted pool, by its control files."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self.control = mountpoint / '.mirrorfs'

    def command(self, file: str, *words: str) -> None:
        """Write one command.  Raises Refused with the daemon's reason."""
        path = self.control / file
        try:
            fd = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            raise Refused(errno.ENOENT, f'no volume {Path(file).parts[1:2]} here') from None
        except PermissionError:
            message = 'only root and who mounted the pool may change it'
            raise Refused(errno.EACCES, message) from None
        with open(fd, 'wb', buffering=0) as into, open(self.control / 'events', 'rb', buffering=0) as events:
            events.read()
            try:
                into.write((shlex.join(words) + '\n').encode())
            except OSError as error:
                reason = _reason(events.read()) or error.strerror
                raise Refused(error.errno or errno.EIO, f'{reason}') from None

    def volume_command(self, name: str, file: str, *words: str) -> None:
        """Write one command of a volume.  Raises Refused."""
        self.volume(name)
        self.command(f'volumes/{name}/{file}', *words)

    def status(self) -> dict[str, Any]:
        """Return status.json."""
        status: dict[str, Any] = json.loads((self.control / 'status.json').read_text())
        return status

    def volume(self, name: str) -> dict[str, Any]:
        """Return a volume's part of status.json.  Raises Refused(ENOENT)."""
        volumes: list[dict[str, Any]] = self.status()['volumes']
        for volume in volumes:
            if volume['name'] == name:
                return volume
        known = ', '.join(volume['name'] for volume in volumes) or 'none'
        raise Refused(errno.ENOENT, f'no volume {name!r}; there are: {known}')


def log_place(word: str) -> str:
    """Return where a log is to be: ``internal``, ``none`` or an absolute path.  Raises Refused(EINVAL)."""
    if word in (INTERNAL, NONE):
        return word
    if '/' not in word:  # rather a slip than a file
        message = f'{word!r} is neither internal nor none nor a path; say ./{word} for a file'
        raise Refused(errno.EINVAL, message)
    return os.path.abspath(word)


def _reason(events: bytes) -> str:
    """Return what the daemon said of the last refusal among events."""
    for line in reversed(events.decode().splitlines()):
        words = line.split(' ', 3)
        if words[1] == 'Refused':
            said = words[3].encode().decode('unicode_escape')
            return said.partition(': ')[2] or said
    return ''


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until a condition holds.  Raises Refused(ETIMEDOUT)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Refused(errno.ETIMEDOUT, f'{what} after {seconds:g} s')
        time.sleep(0.02)
