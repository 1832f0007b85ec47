"""set: what can be changed of a mounted volume by name."""

import errno

import click

from mirrorfs.cli import complete
from mirrorfs.cli.common import POOL, VOLUME, alike, find
from mirrorfs.errors import Refused

KEYS = {
    'sync_action': 'sync_action',
    'time_base': 'bitmap/time_base',
    'can_clear': 'bitmap/can_clear',
    'size': 'size',
    'raid_disks': 'raid_disks',
    'spare_delay': 'spare_delay',
    're_add_policy': 're_add_policy',
    'max_read_errors': 'max_read_errors',
    'sync_speed_min': 'sync_speed_min',
    'sync_speed_max': 'sync_speed_max',
    'sync_mode': 'sync_mode',
    'sync_min': 'sync_min',
    'sync_max': 'sync_max',
    'quorum': 'quorum',
    'quorum_policy': 'quorum_policy',
    'detect_zeroes': 'detect_zeroes',
}
"""Key to control file."""


@click.command('set')
@POOL
@VOLUME
@click.argument('key', metavar='KEY', shell_complete=complete.words(*KEYS))
@click.argument('value', metavar='VALUE')
def set_(pool: str, name: str, key: str, value: str) -> None:
    """Set KEY of a volume to VALUE.

    KEY is one of sync_action, sync_speed_min, sync_speed_max, sync_mode, sync_min, sync_max, time_base,
    can_clear, size, max_read_errors, quorum, quorum_policy, raid_disks (legs wanted), spare_delay (seconds
    until a spare takes the place of a leg that is gone), detect_zeroes (off, on or unmap: what becomes of
    writes of zeros) and re_add_policy (partial, full or none: what is done by itself when a leg that was
    away is there again).

    \b
    mirrorfs set /srv/pool vm1 sync_action frozen     hold resync and recovery; idle lets them go on
    mirrorfs set /srv/pool vm1 sync_speed_max 50000   recovery and scrubs: 50000 KiB/s at most
    mirrorfs set /srv/pool vm1 sync_mode fixed        they no longer rest while the image is in use
    mirrorfs set /srv/pool vm1 time_base 10           quiet seconds before a chunk is clean
    mirrorfs set /srv/pool vm1 quorum 2               writes need two legs in sync; 1 by default
    mirrorfs set /srv/pool vm1 quorum_policy wait     below it they wait; or error, readonly
    mirrorfs set /srv/pool vm1 detect_zeroes unmap    a write of zeros takes no space
    """
    if key not in KEYS:
        hint = alike(key, KEYS) or f'what can be: {", ".join(sorted(KEYS))}'
        raise Refused(errno.EINVAL, f'{key!r} cannot be set; {hint}')
    find(pool).require_mounted().volume_command(name, KEYS[key], value)
