"""mount and umount."""

import errno
import fcntl
import os

import click

from mirrorfs.cli.common import POOL, Place, find, wait_until
from mirrorfs.cli.manner import manner
from mirrorfs.errors import Refused
from mirrorfs.fs import daemon, mounting


@click.command()
@POOL
@click.argument('mountpoint', metavar='MOUNTPOINT', type=Place())
@click.option('-f', '--foreground', is_flag=True, help='stay in the foreground')
@click.option(
    '-o', 'options', multiple=True, help='mount options: allow_other, cache=auto, leg_timeout=SECONDS, …'
)
@click.option('--force', multiple=True, metavar='NAME', help='start NAME although its legs may be stale')
def mount(
    pool: str, mountpoint: str, foreground: bool, options: tuple[str, ...], force: tuple[str, ...]
) -> int:
    """Mount POOL on MOUNTPOINT; returns when the mount answers.

    The exit code is 32 where mounting failed, as with mount(8).

    \b
    mirrorfs mount /srv/pool /srv/images
    mirrorfs mount /srv/pool /srv/images -o allow_other,cache=auto
    mirrorfs mount /srv/pool /srv/images --force vm1
    """
    parsed = mounting.parse_options(','.join(options))
    parsed.force.extend(force)
    target = find(pool)
    manner().facts['mountpoint'] = os.path.abspath(mountpoint)
    run = daemon.run_in_foreground if foreground else daemon.run_in_background
    return run(str(target.directory.path), mountpoint, parsed)


@click.command()
@POOL
@click.option('-l', '--lazy', is_flag=True, help='detach now, stop when the last file is closed')
def umount(pool: str, lazy: bool) -> None:
    """Unmount POOL and wait until its daemon has stopped cleanly.

    \b
    mirrorfs umount /srv/pool
    """
    target = find(pool)
    if target.mountpoint is None:
        for known in mounting.mounts():
            if known.pool == str(target.directory.path):
                mounting.unmount(known.mountpoint, lazy=True)
                click.echo('its daemon had died; the next mount resyncs what was dirty', err=True)
                return
        raise Refused(errno.EINVAL, f'{target.directory.path} is not mounted')
    mounting.unmount(str(target.mountpoint), lazy=lazy)
    if not lazy:
        lock = target.directory.path / 'lock'
        wait_until(lambda: _is_free(str(lock)), 120, 'the daemon is still stopping')


def _is_free(path: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
