"""wait, and `--wait` of other verbs: until no resync, recovery or scrub is left to do, with its progress."""

import errno
import time
from typing import Any, Self

import click

from mirrorfs.cli.common import POOL, find
from mirrorfs.cli.manner import manner
from mirrorfs.cli.progress import Meter, share
from mirrorfs.cli.status import NAME
from mirrorfs.errors import Refused

WAIT = click.option(
    '--wait', is_flag=True, help='return when nothing is left to copy or compare, and show how far it is'
)
_LOOK_EVERY = 0.05


@click.command()
@POOL
@NAME
@click.option('--timeout', type=float, default=None, help='give up after so many seconds')
def wait(pool: str, name: str | None, timeout: float | None) -> None:
    """Wait until no resync, recovery or scrub is left to do; shows how far it is.

    The exit code is 0 if all went well, 1 if a leg is missing then, a pass ended before its end, or the time
    is up.

    \b
    mirrorfs wait /srv/pool                        for all volumes
    mirrorfs wait /srv/pool vm1 --timeout 3600
    """
    until_done(pool, name, timeout)


def until_done(pool: str, name: str | None, timeout: float | None = None) -> None:
    """Show how far all is that volumes have to do, until it is done.

    Raises Refused: ETIMEDOUT after `timeout` seconds, EIO where a volume is not as it was to be, ENOENT,
    ENOTCONN.
    """
    began = time.monotonic()
    with _Waiting() as waiting:
        # Found anew each time: a mount whose daemon dies is to be noticed.
        while busy := [volume for volume in _volumes(pool, name) if _is_busy(volume)]:
            waiting.show(busy)
            if timeout is not None and time.monotonic() - began > timeout:
                raise Refused(errno.ETIMEDOUT, f'not done after {timeout:g} s')
            time.sleep(_LOOK_EVERY)
        volumes = _volumes(pool, name)
        for volume in volumes:
            waiting.end(volume)
    manner().facts['last_sync'] = {volume['name']: volume.get('last_sync') for volume in volumes}
    for volume in volumes:
        if complaint := waiting.complaint(volume):
            raise Refused(errno.EIO, f'{volume["name"]} {complaint}; see mirrorfs status {pool}')


def _volumes(pool: str, name: str | None) -> list[dict[str, Any]]:
    mounted = find(pool).require_mounted()
    volumes: list[dict[str, Any]] = mounted.status()['volumes']
    return volumes if name is None else [mounted.volume(name)]


class _Waiting:
    """What `wait` shows, and what it has seen."""

    def __init__(self) -> None:
        self._meter: Meter | None = None
        self._shown: tuple[str, str, int | None] | None = None
        """The pass that the meter is for: volume, action, leg."""
        self._seen: set[str] = set()
        """Volumes that there was something to wait for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._meter:
            self._meter.leave()

    def show(self, busy: list[dict[str, Any]]) -> None:
        """Show how far the first of the busy volumes is that is at work."""
        self._seen.update(volume['name'] for volume in busy)
        volume = next((volume for volume in busy if volume.get('sync')), None)
        if volume is None:
            return
        sync = volume['sync']
        shown = (volume['name'], sync['action'], sync['slot'])
        if self._meter is None or self._shown != shown:
            if self._meter:
                self._meter.leave()
            self._meter, self._shown = _meter(volume['name'], sync), shown
        self._meter.update(sync['done_bytes'], sync['speed'])

    def end(self, volume: dict[str, Any]) -> None:
        """Say what was done, also where it was over before anybody could look."""
        sync = volume.get('last_sync')
        if not sync or share(sync) < 1:
            return
        if self._meter is None:
            _meter(volume['name'], sync).finish()
        elif self._shown and self._shown[:2] == (volume['name'], sync['action']):  # the leg may have moved up
            self._meter.finish()

    def complaint(self, volume: dict[str, Any]) -> str:
        """Return what is not as it was to be; empty if all is well."""
        if volume.get('broken'):
            return f'is broken: {volume["broken"]}'
        if volume.get('degraded'):
            return 'is still degraded'
        last = volume.get('last_sync')
        if volume['name'] in self._seen and last and share(last) < 1:
            return f'had its {last["action"]} end at {int(share(last) * 100)}%'
        return ''


def _meter(name: str, sync: dict[str, Any]) -> Meter:
    return Meter(f'{name}: {sync["action"]}', sync['total_bytes'])


def _is_busy(volume: dict[str, Any]) -> bool:
    if volume.get('sync_action') == 'frozen' or volume.get('broken'):
        return False
    spares = any(
        leg['state'] == 'spare' and leg['recovery_start'] is not None for leg in volume.get('legs', [])
    )
    if volume.get('sync_action') in ('check', 'repair'):
        return True
    return bool(volume.get('sync') or volume.get('chunks', {}).get('needs_resync') or spares)
