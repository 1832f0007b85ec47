"""spare: the spares that all volumes of a pool share."""

import errno
import json
import os
from typing import Any

import click

from mirrorfs.cli.common import POOL, SIZE, Mounted, Target, find
from mirrorfs.errors import Refused
from mirrorfs.mirror import sparelist
from mirrorfs.units import format_size


@click.command()
@POOL
@click.argument('verb', metavar='[add|remove]', type=click.Choice(['add', 'remove']), required=False)
@click.argument('path', metavar='PATH', required=False)
@click.option('--size', type=SIZE, help='make a file of this size, where none is yet')
@click.option('--force', is_flag=True, help='overwrite what bears a signature of something else')
@click.option('--json', 'as_json', is_flag=True, help='for programs')
def spare(
    pool: str, verb: str | None, path: str | None, size: int | None, force: bool, as_json: bool
) -> None:
    """Show the spares that the volumes of POOL share; or add one, or remove one, by its path or UUID.

    Any volume that lacks a leg for its spare_delay takes one, if it has no spare of its own.

    \b
    mirrorfs spare /srv/pool                                      show them
    mirrorfs spare /srv/pool add /dev/sdx
    mirrorfs spare /srv/pool add /srv/disk3/spare.leg --size 10G
    mirrorfs spare /srv/pool remove /dev/sdx
    """
    target = find(pool)
    if verb is not None and path is not None:
        _change(target.require_mounted(), verb, path, size, force)
    elif verb is not None or size is not None or force:
        raise Refused(errno.EINVAL, 'say which: mirrorfs spare POOL add PATH')
    spares = shared_spares(target)
    if as_json:
        click.echo(json.dumps(spares, indent=1))
    elif verb is None:
        for line in lines(spares):
            click.echo(line)


def _change(mounted: Mounted, verb: str, path: str, size: int | None, force: bool) -> None:
    if verb == 'remove' and (size is not None or force):
        raise Refused(errno.EINVAL, 'only add takes --size and --force')
    word = path if verb == 'remove' and '/' not in path else os.path.abspath(path)
    options = [*([str(size)] if size is not None else []), *(['force'] if force else [])]
    mounted.command('spares', verb, word, *options)


def shared_spares(target: Target) -> list[dict[str, Any]]:
    """Return the facts of all shared spares, as in status.json; what the list alone says at rest."""
    if target.mountpoint:
        spares: list[dict[str, Any]] = Mounted(target.mountpoint).status()['spares']
        return spares
    listed = sparelist.decode(target.directory.load_spares_now()).spares
    return [
        {
            'path': spare.path,
            'uuid': str(spare.uuid),
            'size': spare.size,
            'state': 'claimed' if spare.claim else 'spare',
            'why': '',
            'volume': spare.claim.name if spare.claim else None,
        }
        for spare in listed
    ]


def lines(spares: list[dict[str, Any]]) -> list[str]:
    """Return shared spares for people, a line each."""
    rows = []
    for one in spares:
        state = f'{one["state"]} by {one["volume"]}' if one['volume'] else one['state']
        why = f' ({one["why"]})' if one['why'] else ''
        rows.append(f'{one["path"]}: {state}, {format_size(one["size"])}{why}')
    return rows
