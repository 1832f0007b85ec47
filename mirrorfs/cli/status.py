"""list, status, events: what is, and what happens."""

import json
import select
import sys
from typing import Any

import click

from mirrorfs.cli import complete, health
from mirrorfs.cli.common import POOL, Mounted, Target, find, no_volume
from mirrorfs.cli.manner import manner
from mirrorfs.cli.progress import bar, pace, share
from mirrorfs.cli.spare import lines as spare_lines
from mirrorfs.cli.spare import shared_spares
from mirrorfs.definitions import status_of_records
from mirrorfs.errors import BadMetadata
from mirrorfs.units import format_size

JSON = click.option('--json', 'as_json', is_flag=True, help='for programs')
NAME = click.argument('name', metavar='[NAME]', required=False, shell_complete=complete.volumes)


def _volumes(target: Target, name: str | None) -> list[dict[str, Any]]:
    """Return the status of all volumes, or of the one named."""
    if target.mountpoint:
        volumes: list[dict[str, Any]] = Mounted(target.mountpoint).status()['volumes']
    else:
        records, damaged = target.directory.load()
        volumes = status_of_records(records)
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


@click.command()
@POOL
@NAME
@JSON
@health.TEST
def status(pool: str, name: str | None, as_json: bool, test: bool) -> int:
    """Show the volumes of POOL, or NAME alone, with their legs.

    With --test the exit code is that of mdadm --detail --test: 0 all is well, 1 a leg is missing, 2 a volume
    is of no use any more, 4 cannot tell (not mounted, say, or no such volume).

    \b
    mirrorfs status /srv/pool
    mirrorfs status /srv/pool vm1 --json
    mirrorfs status /srv/pool --test --quiet || mail -s mirrorfs root
    """
    target = find(pool)
    volumes = _volumes(target, name)
    code = health.code(volumes, mounted=bool(target.mountpoint)) if test else 0
    if as_json:
        click.echo(json.dumps(volumes, indent=1))
    elif not (test and manner().quiet):
        _show(target, volumes, name)
    return code


def _show(target: Target, volumes: list[dict[str, Any]], name: str | None) -> None:
    where = f'mounted on {target.mountpoint}' if target.mountpoint else 'not mounted'
    click.echo(f'pool {target.directory.path}, {where}')
    for volume in volumes:
        click.echo()
        for line in _lines(volume, str(target.directory.path)):
            click.echo(line)
    if name is None:
        for line in _spare_lines(target):
            click.echo(line)


def _spare_lines(target: Target) -> list[str]:
    try:
        spares = shared_spares(target)
    except BadMetadata as bad:
        return ['', f'shared spares: {bad}']
    return ['', 'shared spares:', *(f'  {line}' for line in spare_lines(spares))] if spares else []


def _lines(volume: dict[str, Any], pool: str) -> list[str]:
    lines = [f'volume: {volume["name"]}', f' state: {_state(volume)}']
    if volume.get('refusal') or volume.get('broken'):
        lines.append(f'   why: {volume.get("refusal") or volume["broken"]}')
    action = _action(volume, pool)
    if action:
        lines.append(f'action: {action}')
    if 'size' in volume:
        lines.append(f'  size: {format_size(volume["size"])}, chunks of {format_size(volume["chunk_size"])}')
    if volume.get('quorum', 1) > 1:
        lost = ', lost' if volume.get('quorum_lost') else ''
        lines.append(f'quorum: {volume["quorum"]} legs, else {volume["quorum_policy"]}{lost}')
    if 'chunks' in volume:
        lines.append(f'chunks: {_chunks(volume["chunks"])}')
    if volume.get('mismatches'):
        more = volume['mismatches_not_listed']
        places = f'{len(volume["mismatches"])}{f" and {more} more" if more else ""}'
        lines.append(f'differ: {places} places, see .mirrorfs/volumes/{volume["name"]}/mismatches')
    if volume.get('sync'):
        lines.append(f'  sync: {_sync(volume["sync"])}')
    for leg in volume.get('legs', []):
        errors = leg.get('read_errors', 0) + leg.get('write_errors', 0)
        trouble = f', {errors} errors' if errors else ''
        words = ' '.join([leg['state'], *leg.get('flags', [])])
        image = f', shown as {leg["image"]}' if leg.get('image') else ''
        lines.append(f'  leg {leg["slot"]}: {words:<8} {leg["path"]}{image}{trouble}')
    return lines


def _state(volume: dict[str, Any]) -> str:
    state = volume.get('state', 'not started')
    if volume.get('degraded'):
        state += f', degraded ({volume["degraded"]} of {volume["raid_disks"]} legs missing)'
    return str(state)


def _action(volume: dict[str, Any], pool: str) -> str:
    """Return what to do next, where something is wrong."""
    name = volume['name']
    if volume.get('refusal'):
        return ''
    for leg in volume.get('legs', []):
        if leg['state'] in ('faulty', 'missing', 'removed') and volume.get('degraded'):
            back = f'mirrorfs re-add {pool} {name} {leg["slot"]}'
            return f'{back}, or with a new leg: mirrorfs add {pool} {name} PATH'
    if any(leg['state'] == 'split' for leg in volume.get('legs', [])):
        return f'when it is no longer needed: mirrorfs merge {pool} {name}'
    if volume.get('degraded') and not volume.get('sync'):
        return f'add a leg: mirrorfs add {pool} {name} PATH'
    if volume.get('mismatches') and not volume.get('sync'):
        return f'legs differ: mirrorfs repair {pool} {name} --source LEG'
    return ''


def _chunks(chunks: dict[str, int]) -> str:
    written = chunks['total'] - chunks['unwritten']
    parts = [f'{chunks["total"]}', f'{written} written', f'{chunks["dirty"]} dirty']
    parts += [f'{chunks[key]} {key.replace("_", " ")}' for key in ('modified', 'needs_resync') if chunks[key]]
    return ', '.join(parts)


def _sync(sync: dict[str, Any]) -> str:
    done = share(sync)
    drawn = f'{bar(done)} ' if sys.stdout.isatty() else ''
    left = sync['total_bytes'] - sync['done_bytes']
    return f'{sync["action"]} {drawn}{int(done * 100)}%{pace(left, sync["speed"])}'


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
