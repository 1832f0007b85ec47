"""list, status, events: what is, and what happens."""

import json
import select
import sys
from typing import Any

import click

from mirrorfs.cli import complete, glance, health, terminal
from mirrorfs.cli import watch as watching
from mirrorfs.cli.common import POOL, Mounted, Target, find, no_volume
from mirrorfs.cli.manner import manner
from mirrorfs.cli.resting import at_rest
from mirrorfs.cli.spare import lines as spare_lines
from mirrorfs.cli.spare import shared_spares
from mirrorfs.cli.watch import WATCH, WatchCommand
from mirrorfs.errors import BadMetadata

JSON = click.option('--json', 'as_json', is_flag=True, help='for programs')
NAME = click.argument('name', metavar='[NAME]', required=False, shell_complete=complete.volumes)


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
        raise no_volume(name, (volume['name'] for volume in volumes), target.directory.path)
    return wanted


@click.command('list')
@POOL
@JSON
def list_(pool: str, as_json: bool) -> None:
    """List the volumes of POOL, a line each.

    \b
    mirrorfs list /srv/pool
    """
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
@health.TEST
def status(pool: str, name: str | None, as_json: bool, watch: float | None, test: bool) -> int:
    """Show the volumes of POOL, or NAME alone, with their legs; and what to type where something is wrong.

    With --test the exit code is that of mdadm --detail --test: 0 all is well, 1 a leg is missing, 2 a volume
    is of no use any more, 4 cannot tell (not mounted, say, or no such volume).

    \b
    mirrorfs status /srv/pool                  all of it
    mirrorfs status /srv/pool vm1 --watch      one volume, again and again
    mirrorfs status /srv/pool vm1 --json
    mirrorfs status /srv/pool --test --quiet || mail -s mirrorfs root
    """
    if watch is not None and as_json:
        raise click.UsageError('--watch is for people; programs read .mirrorfs/status.json again')
    if watch is not None:
        if test:
            raise click.UsageError('--test looks once, --watch again and again: one of them, please')
        watching.watch(lambda: _look(pool, name, as_json)[0], watch)
        return 0
    lines, code = _look(pool, name, as_json)
    if as_json or not (test and manner().quiet):
        for line in lines:
            click.echo(line)
    return code if test else health.WELL


def _look(pool: str, name: str | None, as_json: bool) -> tuple[list[str], int]:
    """Return what is to be shown, as lines, and the code for ``--test``."""
    target = find(pool)
    volumes = _volumes(target, name)
    code = health.code(volumes, mounted=bool(target.mountpoint))
    if as_json:
        return json.dumps(volumes, indent=1).split('\n'), code
    return _page(target, volumes, with_spares=name is None), code


def _page(target: Target, volumes: list[dict[str, Any]], *, with_spares: bool) -> list[str]:
    look = glance.Look(bool(terminal.colours(sys.stdout)), terminal.is_live(sys.stdout))
    directory = str(target.directory.path)
    mountpoint = str(target.mountpoint) if target.mountpoint else None
    lines = glance.pool_lines(directory, mountpoint, volumes, look)
    for volume in volumes:
        lines += ['', *glance.volume_lines(volume, directory, mountpoint, look)]
    return lines + _spare_lines(target) if with_spares else lines


def _spare_lines(target: Target) -> list[str]:
    try:
        spares = shared_spares(target)
    except BadMetadata as bad:
        return ['', f'shared spares: {bad}']
    return ['', 'shared spares:', *(f'  {line}' for line in spare_lines(spares))] if spares else []


@click.command()
@POOL
@click.option('--follow', is_flag=True, help='go on as events happen')
@JSON
def events(pool: str, follow: bool, as_json: bool) -> None:
    """Show the events of a mounted POOL; with --json an object a line.

    \b
    mirrorfs events /srv/pool
    mirrorfs events /srv/pool --follow | grep --line-buffered Fail
    """
    mounted = find(pool).require_mounted()
    with open(mounted.control / 'events', 'rb', buffering=0) as stream:
        poller = select.poll()
        poller.register(stream, select.POLLIN)
        begun = ''
        while True:
            while text := stream.read(1 << 16).decode():
                whole, newline, begun = f'{begun}{text}'.rpartition('\n')
                sys.stdout.write(_objects(whole) if as_json else f'{whole}{newline}')
            sys.stdout.flush()
            if not follow:
                return
            poller.poll()


def _objects(text: str) -> str:
    """Return lines of events as lines of JSON: time, event, volume (null where it is none's) and the rest."""
    objects = []
    for line in text.splitlines():
        time, event, volume, said = [*line.split(' ', 3), ''][:4]
        name = None if volume == '-' else volume
        objects.append(json.dumps({'time': time, 'event': event, 'volume': name, 'text': said}))
    return ''.join(f'{one}\n' for one in objects)
