"""map: a volume's chunks as a picture, in the terminal or in a file."""

import contextlib
import errno
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import click

from mirrorfs.cli import chart, picture, resting, terminal
from mirrorfs.cli.common import POOL, VOLUME, Mounted, Target, find
from mirrorfs.errors import Refused


@click.command('map')
@POOL
@VOLUME
@click.option('--svg', type=click.Path(dir_okay=False), metavar='FILE', help='write an SVG image instead')
@click.option('--png', type=click.Path(dir_okay=False), metavar='FILE', help='write a PNG image instead')
@click.option('--json', 'as_json', is_flag=True, help='for programs: the cells, with their counts')
def map_(pool: str, name: str, svg: str | None, png: str | None, as_json: bool) -> None:
    """Draw which chunks of NAME are in which state; for each leg, too, where that differs.

    A character, or a cell of an image, stands for as many chunks as it must, and shows the worst of them.

    \b
    mirrorfs map /srv/pool vm1
    mirrorfs map /srv/pool vm1 --svg vm1.svg --png vm1.png
    """
    said = _said(find(pool), name)
    drawn = chart.read(said)
    if svg:
        _write(svg, picture.svg(drawn).encode())
    if png:
        _write(png, picture.png(drawn))
    if as_json:
        click.echo(json.dumps(said))
    if as_json or svg or png:
        return
    columns, height = terminal.size()
    for line in chart.lines(drawn, columns, height - 1, terminal.colours(sys.stdout)):
        click.echo(line)


def _said(target: Target, name: str) -> dict[str, Any]:
    """Return the map of a volume as the control file has it.  Raises Refused, OSError."""
    if not target.mountpoint:
        return resting.chunk_map(target.directory, name)
    mounted = Mounted(target.mountpoint)
    volume = mounted.volume(name)
    if volume.get('refusal'):
        raise Refused(errno.EIO, f'{name} did not start, so there is no map: {volume["refusal"]}')
    said: dict[str, Any] = json.loads((mounted.control / 'volumes' / name / 'map.json').read_text())
    return said


def _write(path: str, data: bytes) -> None:
    """Put a file there, whole or not at all; what is no regular file is written to as it is."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            with open(target, 'wb') as special:
                special.write(data)
            return
    fresh = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        with open(fresh, 'xb') as file:
            file.write(data)
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise Refused(error.errno or errno.EIO, f'{path} cannot be written: {error.strerror}') from None
