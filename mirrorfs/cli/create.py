"""create and destroy: volumes come and go, in a mounted pool or in one at rest."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import click
import trio

from mirrorfs import limits
from mirrorfs.cli.common import POOL, SIZE, VOLUME, Mounted, confirm, find, log_place, no_volume
from mirrorfs.cli.manner import manner, say
from mirrorfs.cli.progress import Meter, Pulse
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.leg.opening import FileOpener
from mirrorfs.mirror.formatting import read_super
from mirrorfs.mirror.logfile import find_log_file
from mirrorfs.model import DetectZeroes, VolumeRecord
from mirrorfs.units import format_size
from mirrorfs.volume.creation import MISSING, Request
from mirrorfs.volume.creation import create as create_volume
from mirrorfs.volume.lifecycle import Found, Settings, Started, start
from mirrorfs.volume.logplace import INTERNAL, NONE

_STEP = 1 << 20


@click.command()
@POOL
@VOLUME
@click.option('--size', type=SIZE, help='size of the image (with --from: that of the image)')
@click.option(
    '--leg', 'legs', multiple=True, required=True, metavar='PATH',
    help='a file (made if it is not there) or block device; "missing" for one to come; repeat it',
)  # fmt: skip
@click.option('--chunk', type=SIZE, default=0, help='chunk size of the intent log; by default chosen by size')
@click.option(
    '--log', default=INTERNAL, show_default=True, metavar='internal|none|PATH',
    help='where the intent log is: on the legs, nowhere, or in a file on another device',
)  # fmt: skip
@click.option(
    '--detect-zeroes', type=click.Choice([choice.name.lower() for choice in DetectZeroes]), default='off',
    show_default=True, help='writes of zeros: written, zeroed on the legs in one call, or discarded',
)  # fmt: skip
@click.option('--from', 'image', type=click.Path(exists=True, dir_okay=False), help='copy this image in')
@click.option('--force', is_flag=True, help='overwrite legs that bear a signature of something else')
def create(
    pool: str, name: str, size: int | None, legs: tuple[str, ...], chunk: int, log: str, detect_zeroes: str,
    image: str | None, force: bool,
) -> None:  # fmt: skip
    """Make a volume NAME in POOL (a new directory becomes a pool).

    \b
    mirrorfs create /srv/pool vm1 --size 10G --leg /mnt/a/vm1.leg --leg /mnt/b/vm1.leg
    mirrorfs create /srv/pool vm2 --from vm2.img --leg /dev/sdx --leg missing
    """
    if size is None:
        if image is None:
            raise Refused(errno.EINVAL, 'say how large: --size 10G')
        size = -(-os.stat(image).st_size // limits.SECTOR) * limits.SECTOR
    elif image and os.stat(image).st_size > size:
        raise Refused(errno.EINVAL, f'{image} has {os.stat(image).st_size} bytes, more than --size')
    paths = [path if path == MISSING else os.path.abspath(path) for path in legs]
    place = log_place(log)
    outside = place if place.startswith('/') else ''
    zeroes = DetectZeroes[detect_zeroes.upper()]
    request = Request(name, size, paths, chunk, log != NONE, force, outside, zeroes)
    request.check()
    target = find(pool, new=True)
    if target.mountpoint:
        _create_mounted(Mounted(target.mountpoint), request, image)
    else:
        new = not target.directory.exists()
        there = target.directory.path.exists()
        target.directory.make()
        try:
            target.hold()
            _create_at_rest(target.directory, request, image)
        except BaseException:
            if new:
                target.directory.unmake(leave_folder=there)
            raise
    _warn_of_shared_disk(paths)
    manner().facts.update(size=size, legs=paths)
    say(f'{name}: {format_size(size)}, {len(paths)} legs')


def _warn_of_shared_disk(paths: list[str]) -> None:
    files = [os.stat(path) for path in paths if os.path.isfile(path)]
    if len({info.st_dev for info in files}) < len(files):
        click.echo('mirrorfs: warning: legs are on the same filesystem; one dead disk takes both', err=True)


def _create_mounted(mounted: Mounted, request: Request, image: str | None) -> None:
    options = [f'chunk={request.chunk_size}'] if request.chunk_size else []
    options += [] if request.logged else ['log=none']
    options += [f'log={request.log_path}'] if request.log_path else []
    options += [f'detect_zeroes={request.detect_zeroes.name.lower()}'] if request.detect_zeroes else []
    options += ['force'] if request.force else []
    mounted.command('create', request.name, str(request.size), *request.legs, *options)
    if image is None:
        return
    try:
        target = os.open(mounted.mountpoint / request.name, os.O_WRONLY)
        try:
            with Meter(f'copying {image}', os.stat(image).st_size) as meter:
                for offset, data in pieces(image):
                    os.pwrite(target, data, offset)
                    meter.update(offset + len(data))
            os.fsync(target)
        finally:
            os.close(target)
    except BaseException:
        mounted.command('destroy', request.name)
        raise


def _create_at_rest(directory: PoolDirectory, request: Request, image: str | None) -> None:
    records, damaged = directory.load()
    if request.name in records or request.name in damaged:
        raise Refused(errno.EEXIST, f'there is a volume {request.name} already')
    files = {*request.legs, request.log_path} - {MISSING, ''}
    there = {path for path in files if os.path.exists(path)}
    try:
        record = trio.run(_make, request, image)
        directory.save_now(record)
    except BaseException:
        if image:  # what failed after the legs were made leaves none of them behind
            for path in files - there:
                Path(path).unlink(missing_ok=True)
        raise


async def _make(request: Request, image: str | None) -> VolumeRecord:
    with Pulse('making the legs'):
        record = await create_volume(request, FileOpener(), Settings())
    return await _fill(record, image) if image else record


class _NotYet:
    """A record store for a volume that the pool does not know yet: nothing is saved until all is done."""

    async def save(self, record: VolumeRecord) -> None:
        await trio.lowlevel.checkpoint()


async def _fill(record: VolumeRecord, image: str) -> VolumeRecord:
    """Copy an image into a new volume; return the record to be saved."""
    opener = FileOpener()
    found = {}
    for slot in record.slots:
        if slot.path:
            leg, _ = await opener.open(slot.path)
            sup, copy = await read_super(leg)
            found[sup.slot] = Found(leg, sup, copy)
    failures: list[OSError] = []
    lost: list[str] = []

    def note(word: str, volume: str = '', device: str = '', text: str = '') -> None:
        if word == 'Fail':
            lost.append(f'{device} {text}')

    outside = await find_log_file(opener, record, limits.LEG_TIMEOUT)
    started = await start(record, found, _NotYet(), note, Settings(), outside=outside)

    async def copy_all(started: Started, nursery: trio.Nursery) -> None:
        with Meter(f'copying {image}', os.stat(image).st_size) as meter:
            for offset, data in pieces(image):
                await started.volume.write(offset, data)
                meter.update(offset + len(data))
        await started.stop()

    async with trio.open_nursery() as nursery:
        await nursery.start(started.run)
        try:
            await copy_all(started, nursery)
        except OSError as error:
            failures.append(error)
        nursery.cancel_scope.cancel()
    await started.close()
    if failures:
        raise failures[0]
    if started.volume.record.degraded > record.degraded:
        raise Refused(errno.EIO, f'a leg failed while the image was copied in: {"; ".join(lost)}')
    return started.volume.record


def pieces(image: str) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of all parts of a file that are not zeros; whole sectors, padded at the end."""
    with open(image, 'rb', buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        at = 0
        while at < size:
            try:
                data_at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole to the end
                    return
                raise
            end = os.lseek(source.fileno(), data_at, os.SEEK_HOLE)
            at = max(at, data_at - data_at % _STEP)
            while at < end:
                data = os.pread(source.fileno(), _STEP, at)
                if data.strip(b'\0'):
                    yield at, data + bytes(-len(data) % limits.SECTOR)
                at += _STEP


@click.command()
@POOL
@VOLUME
@click.option('--yes', is_flag=True, help='do not ask')
@click.option('--force', is_flag=True, help='also where more would be lost than legs can tell')
def destroy(pool: str, name: str, yes: bool, force: bool) -> None:
    """Forget the volume NAME.  Its legs keep their content.

    \b
    mirrorfs destroy /srv/pool vm1 --yes
    """
    target = find(pool)
    if not yes:
        confirm(f'Forget the volume {name} of {target.directory.path}?')
    if target.mountpoint:
        mounted = Mounted(target.mountpoint)
        mounted.volume(name)
        mounted.command('destroy', name, *(['force'] if force else []))
        return
    target.hold()
    records, damaged = target.directory.load()
    if name not in records and name not in damaged:
        raise no_volume(name, {*records, *damaged}, target.directory.path)
    target.directory.delete(name)
