"""list, status, wait, events: what is, and what happens."""

import errno
import json
import select
import sys
import time
from typing import Any

import click

from mirrorfs.cli.common import POOL, Mounted, Target, find
from mirrorfs.cli.progress import Meter
from mirrorfs.cli.spare import lines as spare_lines
from mirrorfs.cli.spare import shared_spares
from mirrorfs.definitions import status_of_records
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.units import format_duration, format_size

JSON = click.option('--json', 'as_json', is_flag=True, help='for programs')
NAME = click.argument('name', metavar='[NAME]', required=False)


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


@click.command()
@POOL
@NAME
@JSON
def status(pool: str, name: str | None, as_json: bool) -> None:
    """Show the volumes of POOL, or NAME alone, with their legs."""
    target = find(pool)
    volumes = _volumes(target, name)
    if as_json:
        click.echo(json.dumps(volumes, indent=1))
        return
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
        lines.append(f'  leg {leg["slot"]}: {words:<8} {leg["path"]}{trouble}')
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
    share = sync['done_bytes'] / max(1, sync['total_bytes'])
    eta = f', {format_duration(sync["eta_seconds"])} left' if sync['eta_seconds'] is not None else ''
    return f'{sync["action"]} {share:.0%} at {format_size(sync["speed"])}/s{eta}'


@click.command()
@POOL
@NAME
@click.option('--timeout', type=float, default=None, help='give up after so many seconds')
def wait(pool: str, name: str | None, timeout: float | None) -> None:
    """Wait until no resync, recovery or scrub is left to do; shows how far it is."""
    mounted = find(pool).require_mounted()
    began = time.monotonic()
    meter: Meter | None = None
    last = None
    while busy := [v for v in _volumes(find(pool), name) if _is_busy(v)]:
        sync = busy[0].get('sync')
        if sync:
            key = (busy[0]['name'], sync['action'], sync['slot'])
            if key != last:
                meter = Meter(f'{busy[0]["name"]}: {sync["action"]}', sync['total_bytes'])
                last = key
            assert meter
            meter.update(sync['done_bytes'], sync['eta_seconds'])
        if timeout is not None and time.monotonic() - began > timeout:
            raise Refused(errno.ETIMEDOUT, f'not done after {timeout:g} s')
        time.sleep(0.05)
    if meter is None:  # it was over before this could look: say what was done
        for volume in _volumes(find(pool), name):
            sync = volume.get('last_sync')
            if sync and sync['done_bytes'] >= sync['total_bytes']:
                Meter(f'{volume["name"]}: {sync["action"]}', sync['total_bytes']).finish()
    else:
        meter.finish()
    failed = [v for v in mounted.status()['volumes'] if name in (None, v['name']) and v.get('degraded')]
    if failed:
        raise Refused(errno.EIO, f'{failed[0]["name"]} is still degraded; see mirrorfs status')


def _is_busy(volume: dict[str, Any]) -> bool:
    if volume.get('sync_action') == 'frozen':
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
