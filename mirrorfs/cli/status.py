"""list, status, wait, events: what is, and what happens."""

import errno
import json
import select
import sys
import time
from typing import Any, Self

import click

from mirrorfs.cli import glance, terminal
from mirrorfs.cli import watch as watching
from mirrorfs.cli.common import POOL, Mounted, Target, find
from mirrorfs.cli.progress import Meter
from mirrorfs.cli.resting import at_rest
from mirrorfs.cli.spare import lines as spare_lines
from mirrorfs.cli.spare import shared_spares
from mirrorfs.cli.watch import WATCH, WatchCommand
from mirrorfs.errors import BadMetadata, Refused

JSON = click.option('--json', 'as_json', is_flag=True, help='for programs')
NAME = click.argument('name', metavar='[NAME]', required=False)


def _volumes(target: Target, name: str | None) -> list[dict[str, Any]]:
    """Return the status of all volumes, or of the one named."""
    if target.mountpoint:
        volumes: list[dict[str, Any]] = Mounted(target.mountpoint).status()['volumes']
    else:
        records, damaged = target.directory.load()
        volumes = at_rest(records)
        volumes += [{'name': n, 'state': 'inactive', 'refusal': why} for n, why in damaged.items()]
    if name is None:
        return volumes
    wanted = [volume for volume in volumes if volume['name'] == name]
    if not wanted:
        raise Refused(errno.ENOENT, f'no volume {name!r} in {target.directory.path}')
    return wanted


@click.command('list')
@POOL
@JSON
def list_(pool: str, as_json: bool) -> None:
    """List the volumes of POOL, a line each."""
    volumes = _volumes(find(pool), None)
    if as_json:
        click.echo(json.dumps([volume['name'] for volume in volumes]))
    else:
        for volume in volumes:
            click.echo(volume['name'])


@click.command(cls=WatchCommand)
@POOL
@NAME
@JSON
@WATCH
def status(pool: str, name: str | None, as_json: bool, watch: float | None) -> None:
    """Show the volumes of POOL, or NAME alone, with their legs; and what to type where something is wrong.

    \b
    mirrorfs status /srv/pool                  all of it
    mirrorfs status /srv/pool vm1 --watch      one volume, again and again
    """
    if watch is not None and as_json:
        raise click.UsageError('--watch is for people; programs read .mirrorfs/status.json again')
    if watch is not None:
        watching.watch(lambda: _page(pool, name, as_json), watch)
        return
    for line in _page(pool, name, as_json):
        click.echo(line)


def _page(pool: str, name: str | None, as_json: bool) -> list[str]:
    """Return what is to be shown, as lines."""
    target = find(pool)
    volumes = _volumes(target, name)
    if as_json:
        return json.dumps(volumes, indent=1).split('\n')
    look = glance.Look(bool(terminal.colours(sys.stdout)), sys.stdout.isatty())
    directory = str(target.directory.path)
    mountpoint = str(target.mountpoint) if target.mountpoint else None
    lines = glance.pool_lines(directory, mountpoint, volumes, look)
    for volume in volumes:
        lines += ['', *glance.volume_lines(volume, directory, mountpoint, look)]
    return lines if name is not None else lines + _spare_lines(target)


def _spare_lines(target: Target) -> list[str]:
    try:
        spares = shared_spares(target)
    except BadMetadata as bad:
        return ['', f'shared spares: {bad}']
    return ['', 'shared spares:', *(f'  {line}' for line in spare_lines(spares))] if spares else []


def _share(sync: dict[str, Any]) -> float:
    """Return how much of a pass is done, 0 to 1."""
    return float(sync['done_bytes'] / sync['total_bytes']) if sync['total_bytes'] else 1.0


@click.command()
@POOL
@NAME
@click.option('--timeout', type=float, default=None, help='give up after so many seconds')
def wait(pool: str, name: str | None, timeout: float | None) -> None:
    """Wait until no resync, recovery or scrub is left to do; shows how far it is.

    The exit code is 0 if all went well, 1 if a leg is missing then, a pass ended before its end, or the time
    is up.
    """
    mounted = find(pool).require_mounted()
    began = time.monotonic()
    with _Waiting() as waiting:
        while busy := [volume for volume in _volumes(find(pool), name) if _is_busy(volume)]:
            waiting.show(busy)
            if timeout is not None and time.monotonic() - began > timeout:
                raise Refused(errno.ETIMEDOUT, f'not done after {timeout:g} s')
            time.sleep(0.05)
        volumes = [v for v in mounted.status()['volumes'] if name in (None, v['name'])]
        for volume in volumes:
            waiting.end(volume)
    for volume in volumes:
        if complaint := waiting.complaint(volume):
            raise Refused(errno.EIO, f'{volume["name"]} {complaint}; see mirrorfs status')


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
        if not sync or _share(sync) < 1:
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
        if volume['name'] in self._seen and last and _share(last) < 1:
            return f'had its {last["action"]} end at {int(_share(last) * 100)}%'
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


@click.command()
@POOL
@click.option('--follow', is_flag=True, help='go on as events happen')
def events(pool: str, follow: bool) -> None:
    """Show the events of a mounted POOL."""
    mounted = find(pool).require_mounted()
    with open(mounted.control / 'events', 'rb', buffering=0) as stream:
        poller = select.poll()
        poller.register(stream, select.POLLIN)
        while True:
            while text := stream.read(1 << 16):
                sys.stdout.write(text.decode())
            sys.stdout.flush()
            if not follow:
                return
            poller.poll()
