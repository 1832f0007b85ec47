"""The ``mirrorfs`` command.  One module a group of verbs; shared things are in `common`."""

import sys

import click

import mirrorfs
from mirrorfs.cli import (
    assemble,
    create,
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
)
from mirrorfs.cli.common import EXIT_REFUSED, EXIT_SYSTEM
from mirrorfs.cli.map import map_
from mirrorfs.errors import BadMetadata, Refused


@click.group(
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100},
    epilog='Exit codes: 0 done, 1 refused or wrong usage, 2 system error. '
    'Sizes are bytes, or numbers with K, M, G, T (powers of 1024).',
)
@click.version_option(mirrorfs.__version__)
@click.option('--debug', is_flag=True, help='show tracebacks')
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Mirrored volume images in a pool.  POOL is the pool's directory, or where it is mounted."""
    context.obj = debug


for command in (
    create.create,
    create.destroy,
    mount.mount,
    mount.umount,
    status.list_,
    status.status,
    status.wait,
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
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; no traceback reaches a user without --debug."""
    if mounthelpers.is_meant(sys.argv[1:], cli.commands):
        sys.exit(mounthelpers.mount(sys.argv[1:]))
    try:
        code = cli.main(prog_name='mirrorfs', standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_REFUSED)
    except Refused as refusal:
        _fail(str(refusal), EXIT_REFUSED)
    except BadMetadata as bad:
        _fail(str(bad), EXIT_SYSTEM)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_SYSTEM)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if '--debug' in sys.argv:
            raise
        _fail(str(error), EXIT_SYSTEM)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    if '--debug' in sys.argv:
        raise
    print(f'mirrorfs: {message}', file=sys.stderr)
    sys.exit(code)
