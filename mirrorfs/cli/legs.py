"""The verbs for the legs of a mounted volume, and grow."""

import os
from typing import Any

import click

from mirrorfs.cli.common import POOL, SIZE, VOLUME, find
from mirrorfs.mirror.naming import Names
from mirrorfs.mirror.naming import find as find_leg

LEG = click.argument('leg', metavar='LEG')
_FORCE = click.option(
    '--force', is_flag=True, help='overwrite a leg that bears a signature of something else'
)
_LEG_HELP = 'LEG is a slot number, a path, or the start of a UUID.'


@click.command()
@POOL
@VOLUME
@click.argument('path', type=click.Path())
@_FORCE
@click.option('--spare', is_flag=True, help='as a hot spare, which waits for a leg to be gone')
@click.option('--write-mostly', is_flag=True, help='do not read it while there are others')
@click.option('--failfast', is_flag=True, help='give it up after a second, where others can take over')
def add(
    pool: str, name: str, path: str, force: bool, spare: bool, write_mostly: bool, failfast: bool
) -> None:
    """Add PATH as a leg; recovery copies what was ever written, in the background."""
    flags = {'force': force, 'spare': spare, 'write_mostly': write_mostly, 'failfast': failfast}
    words = [os.path.abspath(path), *(flag for flag, given in flags.items() if given)]
    find(pool).require_mounted().volume_command(name, 'add', *words)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def remove(pool: str, name: str, leg: str) -> None:
    """Take out a leg that failed, which may be re-added later, or a spare.

    LEG may be "failed", for all that did, or "detached", for all that are not even there.
    """
    find(pool).require_mounted().volume_command(name, 'remove', _word(leg))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def fail(pool: str, name: str, leg: str) -> None:
    """Fail a leg: it gets no more writes and is not read.  The last in-sync leg stays."""
    find(pool).require_mounted().volume_command(name, 'fail', _word(leg))


@click.command('re-add', epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def re_add(pool: str, name: str, leg: str) -> None:
    """Take a leg back ("missing": all that are); copies only what changed while it was away."""
    find(pool).require_mounted().volume_command(name, 're-add', _word(leg))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@click.argument('path', type=click.Path(), metavar='NEWPATH')
@_FORCE
def replace(pool: str, name: str, leg: str, path: str, force: bool) -> None:
    """Bring NEWPATH up to date and let it take LEG's place; LEG serves until then.

    NEWPATH may be "spare", for one of the volume's spares.
    """
    words = [_word(leg), path if path == 'spare' else os.path.abspath(path), *(['force'] if force else [])]
    find(pool).require_mounted().volume_command(name, 'replace', *words)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def split(pool: str, name: str, leg: str) -> None:
    """Split a leg off as a point in time, which NAME@split in the mount shows until it is merged.

    It has all that was written by now; nobody writes to it, and it stays locked.
    """
    find(pool).require_mounted().volume_command(name, 'split', _word(leg))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@click.argument('leg', metavar='[LEG]', required=False)
def merge(pool: str, name: str, leg: str | None) -> None:
    """Take back the leg that was split off; copies only what the volume was written since.

    If anybody has changed the leg meanwhile, all of it is copied.
    """
    find(pool).require_mounted().volume_command(name, 'merge', _word(leg) if leg else f'{name}@split')


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@click.argument('path', type=click.Path(), metavar='NEWPATH')
def move(pool: str, name: str, leg: str, path: str) -> None:
    """Rename LEG to NEWPATH, on the same filesystem; or say that it lies there now."""
    _leg_command(pool, name, leg, 'path', os.path.abspath(path))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@click.argument('words', nargs=-1, required=True, metavar='WORD…')
def mark(pool: str, name: str, leg: str, words: tuple[str, ...]) -> None:
    """Say of LEG that it is write_mostly, failfast, blocked, or wants a replacement; "no-" takes it back.

    \b
    mirrorfs mark /srv/pool vm1 1 write_mostly        do not read it while there are others
    mirrorfs mark /srv/pool vm1 1 want_replacement    a spare takes its place as soon as there is one
    mirrorfs mark /srv/pool vm1 1 no-write_mostly
    """
    for word in words:
        _leg_command(pool, name, leg, 'state', word.replace('no-', '-', 1) if word[:3] == 'no-' else word)


def _leg_command(pool: str, name: str, leg: str, file: str, word: str) -> None:
    """Write a word to one of a leg's control files."""
    mounted = find(pool).require_mounted()
    mounted.volume_command(name, f'legs/{_slot(mounted.volume(name), leg)}/{file}', word)


def _slot(volume: dict[str, Any], leg: str) -> int:
    """Return the number of the leg that a word names, as the daemon would.  Raises Refused(ENOENT)."""
    legs = {int(one['slot']): Names(one['slot'], one['path'], one['uuid']) for one in volume['legs']}
    return find_leg(legs, leg, volume['name'])


@click.command()
@POOL
@VOLUME
@click.argument('size', type=SIZE)
def grow(pool: str, name: str, size: int) -> None:
    """Make a volume larger while it is in use."""
    find(pool).require_mounted().volume_command(name, 'size', str(size))


def _word(leg: str) -> str:
    return os.path.abspath(leg) if '/' in leg else leg
