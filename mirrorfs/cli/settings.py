"""set: what can be changed of a mounted volume by name."""

import errno

import click

from mirrorfs.cli.common import POOL, VOLUME, find
from mirrorfs.errors import Refused

KEYS = {
    'sync_action': 'sync_action',
    'time_base': 'bitmap/time_base',
    'can_clear': 'bitmap/can_clear',
    'size': 'size',
    'quorum': 'quorum',
    'quorum_policy': 'quorum_policy',
}
"""Key to control file."""


@click.command('set')
@POOL
@VOLUME
@click.argument('key', metavar='KEY')
@click.argument('value', metavar='VALUE')
def set_(pool: str, name: str, key: str, value: str) -> None:
    """Set KEY of a volume: sync_action, time_base, can_clear, size, quorum or quorum_policy.

    \b
    mirrorfs set /srv/pool vm1 sync_action frozen     hold resync and recovery; idle lets them go on
    mirrorfs set /srv/pool vm1 time_base 10           quiet seconds before a chunk is clean
    mirrorfs set /srv/pool vm1 quorum 2               writes need two legs in sync; 1 by default
    mirrorfs set /srv/pool vm1 quorum_policy wait     below it they wait; or error, readonly
    """
    if key not in KEYS:
        raise Refused(errno.EINVAL, f'{key!r} cannot be set; what can be: {", ".join(sorted(KEYS))}')
    find(pool).require_mounted().volume_command(name, KEYS[key], value)
