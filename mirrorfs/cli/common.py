"""What the verbs share: finding a pool and its mount, and talking to a mounted one by its control files."""

import contextlib
import difflib
import errno
import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mirrorfs.cli import complete
from mirrorfs.cli.manner import explain, manner
from mirrorfs.cli.progress import Pulse
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.fs import mounting
from mirrorfs.mirror import naming
from mirrorfs.units import parse_size
from mirrorfs.volume.logplace import INTERNAL, NONE

EXIT_REFUSED, EXIT_SYSTEM, EXIT_INTERRUPTED = 1, 2, 130
EXIT_CODES = (
    (0, 'done'),
    (EXIT_REFUSED, 'refused or wrong usage: nothing was changed'),
    (EXIT_SYSTEM, 'system error'),
    (EXIT_INTERRUPTED, 'interrupted'),
)
"""What every verb ends with; `status --test` and `mount` have codes of their own on top."""


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
POOL = click.argument('pool', metavar='POOL', type=Place(), shell_complete=complete.pools)
VOLUME = click.argument('name', metavar='NAME', shell_complete=complete.volumes)


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

    def hold(self) -> None:
        """Hold a pool that is not mounted until the verb is done.  Raises Refused: EBUSY, EACCES."""
        self.directory.lock()
        click.get_current_context().call_on_close(self.directory.unlock)


def find(pool: str, *, new: bool = False) -> Target:
    """Find a pool by its directory or its mount point; `new`: there may be none yet.

    Raises Refused: ENOENT for what is no pool, and says which it may have been.
    """
    real = mounting.real_path(pool)
    known = mounting.mounts()
    for mount in known:
        if real in (mount.pool, mount.mountpoint):
            dead = mounting.is_dead(mount)
            target = Target(PoolDirectory(mount.pool), None if dead else Path(mount.mountpoint))
            break
    else:
        target = Target(PoolDirectory(real), None)  # not before: a mount that hangs is not to be looked at
        if not new:
            _require(target.directory, known)
    given = {'pool': str(target.directory.path), 'mountpoint': target.mountpoint and str(target.mountpoint)}
    manner().facts.update(given)
    return target


def _require(directory: PoolDirectory, mounts: Sequence[mounting.Mount]) -> None:
    """Raise Refused unless there is a pool; it names those that are called alike."""
    try:
        directory.require()
    except Refused as refusal:
        others = {mount.pool for mount in mounts} | {mount.mountpoint for mount in mounts}
        with contextlib.suppress(OSError):
            others |= {str(path.parent) for path in directory.path.parent.glob('*/mirrorfs.json')}
        meant = alike(str(directory.path), others)
        raise Refused(refusal.errno, f'{refusal}; {meant}' if meant else str(refusal)) from None


def alike(word: str, known: Iterable[str]) -> str:
    """Return the question whether one of the known words was meant; empty where none is like it."""
    meant = difflib.get_close_matches(word, list(known), n=3, cutoff=0.75)
    return f'did you mean {" or ".join(meant)}?' if meant else ''


def no_volume(name: str, known: Iterable[str], where: object) -> Refused:
    """Return the refusal of a name that no volume has."""
    names = sorted(known)
    hint = alike(name, names) or f'there are: {", ".join(names) or "none"}'
    return Refused(errno.ENOENT, f'no volume {name!r} in {where}; {hint}')


def confirm(question: str) -> None:
    """Ask whether to go on.  Raises Refused(ECANCELED) unless the answer is yes."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise Refused(errno.ECANCELED, 'not confirmed, so nothing was done; --yes does not ask')


class Mounted:
    """A mounted pool, by its control files."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self.control = mountpoint / '.mirrorfs'

    def command(self, file: str, *words: str) -> None:
        """Write one command.  Raises Refused with the daemon's reason."""
        path = self.control / file
        line = shlex.join(words)
        try:
            command = f'{line}\n'.encode()
        except UnicodeEncodeError:
            raise Refused(
                errno.EILSEQ, f'{line!a} is not UTF-8; a mounted pool takes no other names'
            ) from None
        try:
            fd = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            raise Refused(errno.ENOENT, f'{path} is not there') from None
        except PermissionError:
            message = 'only root and who mounted the pool may change it'
            raise Refused(errno.EACCES, message) from None
        explain(f"echo '{line}' > {path}")
        with open(fd, 'wb', buffering=0) as into, open(self.control / 'events', 'rb', buffering=0) as events:
            events.read()
            try:
                with Pulse(f'waiting for the daemon: {path.name}'):
                    into.write(command)
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
        raise no_volume(name, (volume['name'] for volume in volumes), self.mountpoint)

    def slot(self, name: str, word: str) -> str:
        """Return the number of the leg of a volume that a word names, as a word.

        Paths may be relative: they are those of this process.  Raises Refused: ENOENT, EINVAL where the start
        of a UUID is that of several.
        """
        volume = self.volume(name)
        legs = [naming.Names(leg['slot'], leg['path'], leg['uuid']) for leg in volume.get('legs', [])]
        number = naming.find({leg.place: leg for leg in legs}, word, name)
        manner().facts['slot'] = number
        return str(number)


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
    with Pulse(what):
        while not condition():
            if time.monotonic() > deadline:
                raise Refused(errno.ETIMEDOUT, f'{what} after {seconds:g} s')
            time.sleep(0.02)
