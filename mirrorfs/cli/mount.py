"""mount and umount."""

import errno
import os

import click

from mirrorfs.cli.common import POOL, Place, find, wait_until
from mirrorfs.cli.manner import manner
from mirrorfs.cli.progress import Pulse
from mirrorfs.errors import Refused
from mirrorfs.fs import daemon, mounting
from mirrorfs.fs.options import describe, parse_options

STOP_SECONDS = 120
"""How long an unmount waits for the daemon; it goes on stopping after that."""


def _words(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Return the words of all -o; prints what there are if one is `help`."""
    words = [word for value in values for word in value.split(',')]
    if 'help' in words:
        click.echo(describe())
        context.exit()
    return words


@click.command()
@POOL
@click.argument('mountpoint', metavar='MOUNTPOINT', type=Place())
@click.option('-f', '--foreground', is_flag=True, help='stay in the foreground')
@click.option(
    '-o', 'options', multiple=True, metavar='WORD,…', callback=_words, is_eager=True,
    help='mount options; -o help lists them',
)  # fmt: skip
@click.option('--force', multiple=True, metavar='NAME', help='start NAME although its legs may be stale')
def mount(pool: str, mountpoint: str, foreground: bool, options: list[str], force: tuple[str, ...]) -> int:
    """Mount POOL on MOUNTPOINT; returns when the mount answers.

    The exit code is 32 where mounting failed, as with mount(8).

    \b
    mirrorfs mount /srv/pool /srv/images
    mirrorfs mount /srv/pool /srv/images -o allow_other,cache=auto
    mirrorfs mount /srv/pool /srv/images --force vm1
    """
    parsed = parse_options(','.join(options))
    parsed.force.extend(force)
    target = find(pool)
    manner().facts['mountpoint'] = os.path.abspath(mountpoint)
    path = str(target.directory.path)
    if foreground:
        return daemon.run_in_foreground(path, mountpoint, parsed)
    return daemon.run_in_background(path, mountpoint, parsed, lambda: Pulse(f'mounting {path}'))


@click.command()
@POOL
@click.option('-l', '--lazy', is_flag=True, help='detach now, stop when the last file is closed')
@click.option('--dead', is_flag=True, help='only if its daemon has died; else leave it alone')
def umount(pool: str, lazy: bool, dead: bool) -> None:
    """Unmount POOL and wait until its daemon has stopped cleanly.

    \b
    mirrorfs umount /srv/pool
    """
    target = find(pool)
    if target.mountpoint is not None:
        if not dead:
            leave(str(target.directory.path), str(target.mountpoint), lazy=lazy)
        return
    for known in mounting.mounts():
        if known.pool == str(target.directory.path):
            mounting.unmount(known.mountpoint, lazy=True)
            click.echo('its daemon had died; the next mount resyncs what was dirty', err=True)
            return
    if not dead:
        raise Refused(errno.EINVAL, f'{target.directory.path} is not mounted')


def leave(pool: str, mountpoint: str, *, lazy: bool) -> None:
    """Unmount and, unless lazily, wait until the daemon has stopped.  Raises Refused: EBUSY, ETIMEDOUT."""
    mounting.unmount(mountpoint, lazy=lazy)
    if not lazy and os.access(os.path.join(pool, 'lock'), os.W_OK):
        wait_until(lambda: mounting.is_unserved(pool), STOP_SECONDS, 'the daemon is still stopping')
