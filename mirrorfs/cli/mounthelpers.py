"""What mount(8) and umount(8) run for us: ``mount.mirrorfs SOURCE DIR [-sfnv] [-o WORDS] [-t TYPE]`` and
``umount.mirrorfs DIR [-flnrv] [-t TYPE]``.

As /sbin/mount.mirrorfs they serve ``mount -t mirrorfs``, as /sbin/mount.fuse.mirrorfs ``mount -t
fuse.mirrorfs``.  Where the second is not there, mount(8) has fuse3's helper run ``mirrorfs SOURCE DIR -o
WORDS``, which is us, too.  umount(8) looks for /sbin/umount.fuse.mirrorfs; without it, it calls umount(2)
itself, and nobody waits for the daemon to stop.  Exit codes are mount(8)'s: 0 done, 1 usage, 2 system error,
32 failed.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Container, Sequence

from mirrorfs.cli.mount import leave
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.fs import daemon, mounting
from mirrorfs.fs.options import OptionWords, parse_options


def is_meant(words: Sequence[str], verbs: Container[str]) -> bool:
    """Whether the command line is that of fuse3's helper: no verb, but ``SOURCE DIR -o WORDS``."""
    return len(words) == 4 and words[2] == '-o' and words[0][:1] != '-' and words[0] not in verbs


def mount(words: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='mount.mirrorfs', description='Mount a pool of mirrored volume images, for mount(8).'
    )
    parser.add_argument('source', help='the pool: a directory')
    parser.add_argument('target', help='the directory to mount on')
    parser.add_argument('-o', dest='options', action=OptionWords, default=[], help='mount options, or help')
    parser.add_argument(
        '-f', dest='fake', action='store_true', help='check options and pool, but do not mount'
    )
    parser.add_argument('-s', dest='sloppy', action='store_true', help='pass over unknown mount options')
    parser.add_argument('-v', dest='verbose', action='store_true', help='say what is done')
    parser.add_argument('-r', dest='options', action='append_const', const='ro', help='as -o ro')
    parser.add_argument('-w', dest='options', action='append_const', const='rw', help='as -o rw')
    parser.add_argument('-n', action='store_true', help='nothing: there is no mtab')
    parser.add_argument('-t', dest='type', help='nothing: there is one type')
    return _run(parser, words, _mount)


def _mount(asked: argparse.Namespace) -> int:
    try:
        options = parse_options(','.join(asked.options), sloppy=asked.sloppy)
    except Refused as refusal:
        print(f'mirrorfs: {refusal}', file=sys.stderr)
        return daemon.EXIT_USAGE
    pool = os.path.abspath(asked.source)
    if asked.fake:
        PoolDirectory(pool).require()
    elif code := daemon.run_in_background(pool, asked.target, options):
        return code
    if asked.verbose:
        print(f'mirrorfs: {pool} {"would be" if asked.fake else "is"} mounted on {asked.target}')
    return daemon.EXIT_OK


def umount(words: Sequence[str] | None = None) -> int:
    """Unmount as umount(8) asks, and wait for the daemon; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='umount.mirrorfs', description='Unmount a pool and wait for its daemon, for umount(8).'
    )
    parser.add_argument('target', help='where it is mounted')
    parser.add_argument('-f', dest='force', action='store_true', help='have all who wait for the mount fail')
    parser.add_argument('-l', dest='lazy', action='store_true', help='stop when the last file is closed')
    parser.add_argument('-v', dest='verbose', action='store_true', help='say what is done')
    parser.add_argument('-n', action='store_true', help='nothing: there is no mtab')
    parser.add_argument('-r', action='store_true', help='nothing: a mount is not made read-only')
    parser.add_argument('-t', dest='type', help='nothing: there is one type')
    return _run(parser, words, _umount)


def _umount(asked: argparse.Namespace) -> int:
    found = mounting.mounted_at(mounting.real_path(asked.target))
    if asked.force:
        mounting.abort(found)
    gone = asked.force or mounting.is_dead(found)  # then open files fail, and it need not be asked about them
    try:
        leave(found.pool, found.mountpoint, lazy=asked.lazy or gone)
    except Refused as refusal:
        if refusal.errno != errno.ETIMEDOUT:
            raise
        print(f'mirrorfs: unmounted, but {refusal}', file=sys.stderr)
    if asked.verbose:
        print(f'mirrorfs: {found.mountpoint} is unmounted')
    return daemon.EXIT_OK


def _run(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, run: Callable[[argparse.Namespace], int]
) -> int:
    """Run a helper; every refusal becomes one line and mount(8)'s exit code for a failure."""
    try:
        asked = parser.parse_args(words)
    except SystemExit as end:
        return daemon.EXIT_USAGE if end.code else daemon.EXIT_OK
    try:
        return run(asked)
    except Refused as refusal:
        print(f'mirrorfs: {refusal}', file=sys.stderr)
        return daemon.EXIT_MOUNT
    except OSError as error:
        print(f'mirrorfs: {error}', file=sys.stderr)
        return daemon.EXIT_SYSTEM
