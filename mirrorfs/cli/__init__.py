"""The ``mirrorfs`` command.  One module a group of verbs; shared things are in `common`."""

import sys
from collections.abc import Sequence

import click

import mirrorfs
from mirrorfs.cli import (
    assemble,
    complete,
    create,
    ending,
    examine,
    legs,
    log,
    monitor,
    mount,
    mounthelpers,
    scrub,
    settings,
    spare,
    status,
    waiting,
)
from mirrorfs.cli.common import EXIT_CODES
from mirrorfs.cli.manner import Manner, Verbs, shared_options
from mirrorfs.cli.map import map_

_CODES = ', '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES)


@click.group(
    cls=Verbs,
    params=shared_options(),
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100},
    epilog=f'Exit codes: {_CODES}.  Sizes are bytes, or with K, M, G, T, P (powers of 1024): 10G, 512KiB.',
)
@click.version_option(mirrorfs.__version__)
def cli() -> None:
    """Mirrored volume images in a pool.

    POOL is the pool's directory, or where it is mounted.  NAME is a volume.  LEG is a slot number, a path, or
    the start of a UUID.

    \b
    mirrorfs create /srv/pool vm1 --size 10G --leg /mnt/a/vm1.leg --leg /mnt/b/vm1.leg
    mirrorfs mount /srv/pool /srv/images
    mirrorfs status /srv/pool
    """


for command in (
    create.create,
    create.destroy,
    mount.mount,
    mount.umount,
    status.list_,
    status.status,
    waiting.wait,
    status.events,
    map_,
    monitor.monitor,
    legs.add,
    legs.remove,
    legs.fail,
    legs.re_add,
    legs.replace,
    legs.split,
    legs.merge,
    legs.move,
    legs.mark,
    legs.grow,
    scrub.check,
    scrub.repair,
    log.log,
    spare.spare,
    settings.set_,
    examine.examine,
    assemble.assemble,
    assemble.resolve,
    complete.completion,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line of this process, and end it."""
    ending.open_standard_streams()
    words = sys.argv[1:]
    sys.exit(mounthelpers.mount(words) if mounthelpers.is_meant(words, cli.commands) else run(words))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code.  Raises nothing, but with --debug."""
    manner = Manner()
    try:
        code = cli.main(list(arguments), prog_name='mirrorfs', standalone_mode=False, obj=manner)
        ending.flush()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        if manner.debug or '--debug' in arguments:
            raise
        manner.json = manner.json or '--json' in arguments  # it may stand behind what is wrong
        return ending.tell(error, manner)
    return code if isinstance(code, int) else 0
