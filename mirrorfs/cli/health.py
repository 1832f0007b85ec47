"""The exit code of ``status --test``: that of ``mdadm --detail --test``.  Pure."""

from collections.abc import Iterable
from typing import Any

import click

from mirrorfs.cli.manner import Manner

WELL, DEGRADED, USELESS, UNKNOWN = 0, 1, 2, 4
TEST_CODES = (
    (WELL, 'all is well'),
    (DEGRADED, 'a leg is missing'),
    (USELESS, 'a volume is of no use any more'),
    (UNKNOWN, 'cannot tell'),
)


def code(volumes: Iterable[dict[str, Any]], *, mounted: bool) -> int:
    """Return the code for volumes, as in status.json: the worst one's.  At rest nobody knows of the legs."""
    if not mounted:
        return UNKNOWN
    return max((_one(volume) for volume in volumes), default=WELL)


def _one(volume: dict[str, Any]) -> int:
    if volume.get('refusal') or volume.get('broken'):
        return USELESS
    return DEGRADED if volume.get('degraded') else WELL


def _begin(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        context.find_root().ensure_object(Manner).failure = UNKNOWN
    return value


TEST = click.option('--test', is_flag=True, is_eager=True, callback=_begin, help='exit with the state of it')
