"""check, repair: comparing the legs of a mounted volume on their media."""

import errno
import shlex

import click

from mirrorfs.cli import complete
from mirrorfs.cli.common import POOL, VOLUME, Mounted, find
from mirrorfs.cli.waiting import WAIT, until_done
from mirrorfs.errors import Refused

_MAJORITY = 3
"""Legs that it takes for most of them to be right."""


@click.command()
@POOL
@VOLUME
@WAIT
def check(pool: str, name: str, wait: bool) -> None:
    """Compare all legs on their media, in the background.  Nothing is changed.

    What differs is shown by .mirrorfs/volumes/NAME/mismatches and by status.

    \b
    mirrorfs check /srv/pool vm1 --wait
    """
    find(pool).require_mounted().volume_command(name, 'sync_action', 'check')
    if wait:
        until_done(pool, name)


@click.command()
@POOL
@VOLUME
@click.option(
    '--source', metavar='LEG', shell_complete=complete.legs,
    help='make the others equal to this leg: a slot, a path or a UUID',
)  # fmt: skip
@click.option('--force', is_flag=True, help='also where most of the others agree against it')
@WAIT
def repair(pool: str, name: str, source: str | None, force: bool, wait: bool) -> None:
    """Compare all legs, and make equal what differs, in the background.

    Without --source what most legs hold is right.  That takes three legs; where no majority is, nothing is
    changed.

    \b
    mirrorfs repair /srv/pool vm1
    mirrorfs repair /srv/pool vm1 --source 0
    mirrorfs repair /srv/pool vm1 --source 0 --force    although most of the others agree against it
    """
    mounted = find(pool).require_mounted()
    if source is None:
        _require_majority(mounted, pool, name)
    words = [] if source is None else [mounted.slot(name, source), *(['force'] if force else [])]
    mounted.volume_command(name, 'sync_action', 'repair', *words)
    if wait:
        until_done(pool, name)


def _require_majority(mounted: Mounted, pool: str, name: str) -> None:
    """Refuse two legs, as the daemon would, but say how to choose on the command line."""
    legs = [leg['slot'] for leg in mounted.volume(name).get('legs', []) if leg['state'] == 'in_sync']
    if len(legs) == _MAJORITY - 1:
        why = f'{name} has two legs in sync, and where they differ no majority tells which is right'
        ways = ' or '.join(f'mirrorfs repair {shlex.quote(pool)} {name} --source {slot}' for slot in legs)
        raise Refused(errno.EINVAL, f'{why}; choose: {ways}')
