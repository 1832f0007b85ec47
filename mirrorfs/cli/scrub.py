"""check, repair: comparing the legs of a mounted volume on their media."""

import os

import click

from mirrorfs.cli.common import POOL, VOLUME, find


@click.command()
@POOL
@VOLUME
def check(pool: str, name: str) -> None:
    """Compare all legs on their media, in the background.  Nothing is changed.

    What differs is shown by .mirrorfs/volumes/NAME/mismatches and by status.
    """
    find(pool).require_mounted().volume_command(name, 'sync_action', 'check')


@click.command()
@POOL
@VOLUME
@click.option('--source', metavar='LEG', help='make the others equal to this leg: a slot, a path or a UUID')
@click.option('--force', is_flag=True, help='also where most of the others agree against it')
def repair(pool: str, name: str, source: str | None, force: bool) -> None:
    """Compare all legs, and make equal what differs, in the background.

    Without --source what most legs hold is right.  That takes three legs; where no majority is, nothing is
    changed.
    """
    words = [] if source is None else [os.path.abspath(source) if '/' in source else source]
    words += ['force'] if force and words else []
    find(pool).require_mounted().volume_command(name, 'sync_action', 'repair', *words)
