"""The verbs for the legs of a mounted volume, and grow."""

import os

import click

from mirrorfs.cli.common import POOL, SIZE, VOLUME, find

LEG = click.argument('leg', metavar='LEG')
_LEG_HELP = 'LEG is a slot number, a path, or the start of a UUID.'


@click.command()
@POOL
@VOLUME
@click.argument('path', type=click.Path())
@click.option('--force', is_flag=True, help='overwrite a leg that bears a signature of something else')
def add(pool: str, name: str, path: str, force: bool) -> None:
    """Add PATH as a leg; recovery copies what was ever written, in the background."""
    words = [os.path.abspath(path), *(['force'] if force else [])]
    find(pool).require_mounted().volume_command(name, 'add', *words)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def remove(pool: str, name: str, leg: str) -> None:
    """Take a failed leg out; it may be re-added later."""
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


@click.command()
@POOL
@VOLUME
@click.argument('size', type=SIZE)
def grow(pool: str, name: str, size: int) -> None:
    """Make a volume larger while it is in use."""
    find(pool).require_mounted().volume_command(name, 'size', str(size))


def _word(leg: str) -> str:
    return os.path.abspath(leg) if '/' in leg else leg
