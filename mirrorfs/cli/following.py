"""Mounted pools that are followed: looked at again and again, for `monitor`.

Nothing of a mount is kept open between two looks, since that would keep it from being unmounted.  So each
look reads all events that the daemon keeps, and what came since the last one is told by comparing.
"""

import datetime
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mirrorfs.events import Event, parse, unseen
from mirrorfs.fs import mounting

T = TypeVar('T')
PATIENCE = 10.0
"""Seconds that a mount has to answer; one that does not is looked at again next time."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event of a volume, or of the pool where it names none."""

    pool: str
    event: Event

    @property
    def what(self) -> str:
        """``POOL/VOLUME``, or the pool."""
        return f'{self.pool}/{self.event.volume}' if self.event.volume else self.pool


@dataclass(frozen=True, slots=True)
class _Look:
    """What was there: `daemon` is another one after every mount."""

    daemon: object
    volumes: Sequence[str]
    lines: Sequence[bytes]


class Hangs(Exception):
    """A call has not returned in time."""


class _Caller:
    """Makes calls that may hang, in a thread that nobody waits for; not another one before it is back."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Return what it returns.  Raises what it raises, Hangs."""
        if self._thread and self._thread.is_alive():
            raise Hangs
        results: list[T] = []
        errors: list[OSError | ValueError] = []

        def run() -> None:
            try:
                results.append(function())
            except (OSError, ValueError) as error:
                errors.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self._thread.join(PATIENCE)
        if errors:
            raise errors[0]
        if not results:
            raise Hangs
        return results[0]


class Follower:
    """Follows one pool, through all its mounts.  `new`: it was mounted after following began."""

    def __init__(self, pool: str, *, new: bool) -> None:
        self.pool = pool
        self.volumes: Sequence[str] = ()
        self._new = new
        self._seen: _Look | None = None
        self._hangs = False
        self._caller = _Caller()

    def look(self, mount: mounting.Mount | None) -> list[Notice]:
        """Return what has happened since the last look; at the first one, what is wrong now."""
        if mount is None:
            return self._gone('is not mounted any more')
        control = Path(mount.mountpoint) / '.mirrorfs'
        try:
            seen = self._caller.call(lambda: _look(control))
            found = list(self._news(control, seen))
        except Hangs:
            told, self._hangs = self._hangs, True
            return [] if told else [self.notice('Critical', text=f'{mount.mountpoint} does not answer')]
        except (OSError, ValueError) as error:
            dead = isinstance(error, OSError) and error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            return self._gone('its daemon is gone' if dead else f'cannot be looked at: {error}')
        self._seen, self.volumes, self._new, self._hangs = seen, seen.volumes, True, False
        return found

    def _news(self, control: Path, seen: _Look) -> Iterator[Notice]:
        lines, lost = seen.lines, False
        if self._seen and self._seen.daemon == seen.daemon:
            lines, lost = unseen(self._seen.lines, seen.lines)
        elif self._new:
            yield from (self.notice('NewArray', volume) for volume in seen.volumes)
        else:
            yield from self.troubles(self._caller.call(lambda: _status(control)))
            return
        if lost:
            yield self.notice('Warning', text='so much happened between two looks that events were lost')
        yield from (Notice(self.pool, parse(line)) for line in lines)

    def _gone(self, why: str) -> list[Notice]:
        """All volumes have gone, if there were any."""
        gone, self._seen, self.volumes = self.volumes, None, ()
        return [self.notice('DeviceDisappeared', volume, text=why) for volume in gone]

    def troubles(self, status: dict[str, Any]) -> Iterator[Notice]:
        """Yield what is wrong by the word of status.json."""
        for volume in status['volumes']:
            name = volume['name']
            if volume.get('refusal'):
                yield self.notice('Refused', name, text=volume['refusal'])
            if volume.get('broken'):
                yield self.notice('Critical', name, text=volume['broken'])
            if volume.get('degraded'):
                text = f'{volume["degraded"]} of {volume["raid_disks"]} legs are missing'
                yield self.notice('DegradedArray', name, text=text)
            if volume.get('quorum_lost'):
                yield self.notice('QuorumLost', name, text=f'writes need {volume["quorum"]} legs in sync')
        for spare in status['spares']:
            if spare['state'] == 'missing':
                yield self.notice('SparesMissing', '', spare['path'], spare['why'])

    def notice(self, word: str, volume: str = '', device: str = '', text: str = '') -> Notice:
        """Return an event of now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
        return Notice(self.pool, Event(now.replace('+00:00', 'Z'), word, volume, device, text))


def _look(control: Path) -> _Look:
    daemon = os.stat(control / 'events').st_ctime_ns  # when it began
    lines = (control / 'events').read_bytes().splitlines()
    return _Look(daemon, sorted(os.listdir(control / 'volumes')), lines)


def _status(control: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((control / 'status.json').read_text())
    return status


class Following:
    """Follows pools: those that are named, by directory or mount point, or all that are mounted."""

    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self._wanted = {mounting.real_path(pool) for pool in wanted}
        self._followers: dict[str, Follower] = {}
        self._begun = False

    @property
    def followers(self) -> list[Follower]:
        return list(self._followers.values())

    def look(self) -> list[Notice]:
        """Look at each once, and return what has happened."""
        mounted = {
            m.pool: m for m in mounting.mounts() if not self._wanted or self._wanted & {m.pool, m.mountpoint}
        }
        for pool in mounted:
            if pool not in self._followers:
                self._followers[pool] = Follower(pool, new=self._begun)
        self._begun = True
        return [notice for f in self.followers for notice in f.look(mounted.get(f.pool))]
