"""The verbs for the legs of a mounted volume, and grow."""

import os

import click

from mirrorfs.cli import complete
from mirrorfs.cli.common import POOL, SIZE, VOLUME, find
from mirrorfs.cli.manner import say
from mirrorfs.cli.waiting import WAIT, until_done
from mirrorfs.volume.splitting import SUFFIX

LEG = click.argument('leg', metavar='LEG', shell_complete=complete.legs)
_PATH = click.argument('path', metavar='PATH', type=click.Path())
_NEWPATH = click.argument('path', metavar='NEWPATH', type=click.Path())
_FORCE = click.option(
    '--force', is_flag=True, help='overwrite a leg that bears a signature of something else'
)
_LEG_HELP = 'LEG is a slot number, a path, or the start of a UUID.'


@click.command()
@POOL
@VOLUME
@_PATH
@_FORCE
@click.option('--spare', is_flag=True, help='as a hot spare, which waits for a leg to be gone')
@click.option('--write-mostly', is_flag=True, help='do not read it while there are others')
@click.option('--failfast', is_flag=True, help='give it up after a second, where others can take over')
@WAIT
def add(
    pool: str, name: str, path: str, force: bool, spare: bool, write_mostly: bool, failfast: bool, wait: bool
) -> None:
    """Add PATH as a leg; recovery copies what was ever written, in the background.

    \b
    mirrorfs add /srv/pool vm1 /mnt/c/vm1.leg
    mirrorfs add /srv/pool vm1 /dev/sdx --spare
    """
    flags = {'force': force, 'spare': spare, 'write_mostly': write_mostly, 'failfast': failfast}
    words = [os.path.abspath(path), *(flag for flag, given in flags.items() if given)]
    find(pool).require_mounted().volume_command(name, 'add', *words)
    _done(pool, name, wait)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def remove(pool: str, name: str, leg: str) -> None:
    """Take out a leg that failed, which may be re-added later, or a spare.

    LEG may be "failed", for all that did, or "detached", for all that are not even there.

    \b
    mirrorfs remove /srv/pool vm1 1
    mirrorfs remove /srv/pool vm1 failed
    """
    _leg_command(pool, name, 'remove', leg, also=('failed', 'detached'))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def fail(pool: str, name: str, leg: str) -> None:
    """Fail a leg: it gets no more writes and is not read.  The last in-sync leg stays.

    \b
    mirrorfs fail /srv/pool vm1 1
    mirrorfs fail /srv/pool vm1 /mnt/b/vm1.leg
    """
    _leg_command(pool, name, 'fail', leg)


@click.command('re-add', epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@WAIT
def re_add(pool: str, name: str, leg: str, wait: bool) -> None:
    """Take a leg back ("missing": all that are); copies only what changed while it was away.

    \b
    mirrorfs re-add /srv/pool vm1 1 --wait
    mirrorfs re-add /srv/pool vm1 missing
    """
    _leg_command(pool, name, 're-add', leg, also=('missing',))
    _done(pool, name, wait)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@_NEWPATH
@_FORCE
@WAIT
def replace(pool: str, name: str, leg: str, path: str, force: bool, wait: bool) -> None:
    """Bring NEWPATH up to date and let it take LEG's place; LEG serves until then.

    NEWPATH may be "spare", for one of the volume's spares.

    \b
    mirrorfs replace /srv/pool vm1 1 /mnt/c/vm1.leg --wait
    mirrorfs replace /srv/pool vm1 1 spare
    """
    words = [path if path == 'spare' else os.path.abspath(path), *(['force'] if force else [])]
    _leg_command(pool, name, 'replace', leg, *words)
    _done(pool, name, wait)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
def split(pool: str, name: str, leg: str) -> None:
    """Split a leg off as a point in time, which NAME@split in the mount shows until it is merged.

    It has all that was written by now; nobody writes to it, and it stays locked.

    \b
    mirrorfs split /srv/pool vm1 1
    """
    _leg_command(pool, name, 'split', leg)
    say(f'{name}{SUFFIX} shows it until: mirrorfs merge {pool} {name}')


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@click.argument('leg', metavar='[LEG]', required=False, shell_complete=complete.legs)
@WAIT
def merge(pool: str, name: str, leg: str | None, wait: bool) -> None:
    """Take back the leg that was split off; copies only what the volume was written since.

    If anybody has changed the leg meanwhile, all of it is copied.

    \b
    mirrorfs merge /srv/pool vm1
    """
    _leg_command(pool, name, 'merge', leg or f'{name}{SUFFIX}', also=(f'{name}{SUFFIX}',))
    _done(pool, name, wait)


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@_NEWPATH
def move(pool: str, name: str, leg: str, path: str) -> None:
    """Rename LEG to NEWPATH, on the same filesystem; or say that it lies there now.

    \b
    mirrorfs move /srv/pool vm1 1 /mnt/b/old/vm1.leg
    """
    _leg_file(pool, name, leg, 'path', os.path.abspath(path))


_WORDS = ('write_mostly', 'failfast', 'blocked', 'want_replacement')
_ALL_WORDS = (*_WORDS, *(f'no-{word}' for word in _WORDS))


@click.command(epilog=_LEG_HELP)
@POOL
@VOLUME
@LEG
@click.argument('words', nargs=-1, required=True, metavar='WORD…', shell_complete=complete.words(*_ALL_WORDS))
def mark(pool: str, name: str, leg: str, words: tuple[str, ...]) -> None:
    """Say of LEG that it is write_mostly, failfast, blocked, or wants a replacement; "no-" takes it back.

    \b
    mirrorfs mark /srv/pool vm1 1 write_mostly        do not read it while there are others
    mirrorfs mark /srv/pool vm1 1 want_replacement    a spare takes its place as soon as there is one
    mirrorfs mark /srv/pool vm1 1 no-write_mostly
    """
    for word in words:
        _leg_file(pool, name, leg, 'state', word.replace('no-', '-', 1) if word[:3] == 'no-' else word)


@click.command()
@POOL
@VOLUME
@click.argument('size', metavar='SIZE', type=SIZE)
def grow(pool: str, name: str, size: int) -> None:
    """Make a volume larger while it is in use.

    \b
    mirrorfs grow /srv/pool vm1 20G
    """
    find(pool).require_mounted().volume_command(name, 'size', str(size))


def _leg_command(pool: str, name: str, file: str, leg: str, *words: str, also: tuple[str, ...] = ()) -> None:
    """Write a command about a leg; `also`: words that mean something else than one leg."""
    mounted = find(pool).require_mounted()
    mounted.volume_command(name, file, leg if leg in also else mounted.slot(name, leg), *words)


def _leg_file(pool: str, name: str, leg: str, file: str, word: str) -> None:
    """Write a word to one of a leg's control files."""
    mounted = find(pool).require_mounted()
    mounted.volume_command(name, f'legs/{mounted.slot(name, leg)}/{file}', word)


def _done(pool: str, name: str, wait: bool) -> None:
    if wait:
        until_done(pool, name)
