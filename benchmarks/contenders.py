"""Who takes part in the comparison: each gives an image file of the same size, on legs in the same folder.

A contender is a context manager; what it started is stopped and detached at its end, by pid and device.  All
have two legs (the raw file one) on one disk, filled with random bytes before anything is measured.  Peers are
set up as their manuals advise for images of virtual machines.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1 << 20
TOOL = (sys.executable, '-c', 'from mirrorfs.cli import main; main()')
Contender = Callable[[Path, int], 'contextlib.AbstractContextManager[Path]']


class Unavailable(Exception):
    """A contender cannot take part, and why."""


def run(*command: str | Path, **options: object) -> str:
    """Run a program to its end; return what it printed.  Raises Unavailable with what it complained of."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise Unavailable(f'{words[0]} is not installed') from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f'{words[0]}: {error.stderr.strip()[-500:]}') from None
    return str(done.stdout)


def fill(path: Path, size: int) -> Path:
    """Write `size` random bytes to a file or device, and sync it."""
    with open(path, 'r+b' if path.exists() else 'wb', buffering=0) as file:
        for at in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - at)))
        os.fsync(file.fileno())
    return path


@contextlib.contextmanager
def raw(folder: Path, size: int) -> Iterator[Path]:
    yield fill(folder / 'raw.img', size)


def mirrorfs(*options: str, mount: str = '') -> Contender:
    """Two legs; `options` of create, `mount` options."""

    @contextlib.contextmanager
    def contender(folder: Path, size: int) -> Iterator[Path]:
        name = f'mirrorfs{len(list(folder.iterdir()))}'
        pool, mountpoint = folder / f'{name}.pool', folder / name
        mountpoint.mkdir()
        legs = [f'--leg={folder / name}.{leg}.leg' for leg in (0, 1)]
        run(*TOOL, 'create', pool, 'v', f'--size={size}', *legs, *options)
        run(*TOOL, 'mount', pool, mountpoint, *(['-o', mount] if mount else []))
        try:
            yield fill(mountpoint / 'v', size)
        finally:
            run(*TOOL, 'umount', pool)

    return contender


def quorum(aio: str) -> Contender:
    """qemu-storage-daemon: quorum of two raw files, reading from the first (fifo), exported by FUSE."""

    @contextlib.contextmanager
    def contender(folder: Path, size: int) -> Iterator[Path]:
        image, command = folder / f'quorum-{aio}', []
        image.touch()
        for leg in (0, 1):
            path = fill(folder / f'quorum-{aio}.{leg}.img', size)
            command += ['--blockdev', f'driver=file,node-name=f{leg},filename={path},aio={aio}']
        node = 'driver=quorum,node-name=q,children.0=f0,children.1=f1,vote-threshold=2,read-pattern=fifo'
        with storage_daemon(image, size, *command, '--blockdev', node):
            yield image

    return contender


@contextlib.contextmanager
def nothing(folder: Path, size: int) -> Iterator[Path]:
    """A FUSE export in C that does nothing: the floor of what goes through the kernel."""
    image = folder / 'null-co'
    image.touch()
    with storage_daemon(image, size, '--blockdev', f'driver=null-co,node-name=q,size={size}'):
        yield image


@contextlib.contextmanager
def storage_daemon(image: Path, size: int, *nodes: str) -> Iterator[None]:
    """Run qemu-storage-daemon with node `q` exported at `image`."""
    export = f'type=fuse,id=e,node-name=q,mountpoint={image},writable=on'
    try:
        daemon = subprocess.Popen(
            ['qemu-storage-daemon', *nodes, '--export', export], stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise Unavailable('qemu-storage-daemon is not installed') from None
    try:
        deadline = time.monotonic() + 10
        while image.stat().st_size != size:
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.kill()
                raise Unavailable(f'qemu-storage-daemon: {daemon.communicate()[1].strip()}')
            time.sleep(0.05)
        yield
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


@contextlib.contextmanager
def loop(file: Path, *options: str) -> Iterator[Path]:
    """Attach a loop device to a file."""
    device = Path(run('losetup', '--find', '--show', *options, file).strip())
    try:
        yield device
    finally:
        run('losetup', '--detach', device)


@contextlib.contextmanager
def mounted(device: Path | str, where: Path, *options: str) -> Iterator[Path]:
    """Mount a filesystem; busy for a moment is not an error at its end."""
    where.mkdir(exist_ok=True)
    run('mount', *options, device, where)
    try:
        yield where
    finally:
        for attempt in range(20):
            try:
                run('umount', where)
                break
            except Unavailable:
                if attempt == 19:
                    raise
                time.sleep(0.25)


@contextlib.contextmanager
def btrfs(folder: Path, size: int) -> Iterator[Path]:
    """btrfs raid1 over two loop devices; the image has no copy-on-write, as is advised for such files."""
    with contextlib.ExitStack() as stack:
        devices = []
        for leg in (0, 1):
            backing = folder / f'btrfs.{leg}.img'
            with open(backing, 'wb') as file:
                file.truncate(size + size // 4 + 512 * MIB)
            devices.append(stack.enter_context(loop(backing, '--direct-io=on')))
        run('mkfs.btrfs', '--quiet', '--force', '--metadata', 'raid1', '--data', 'raid1', *devices)
        where = stack.enter_context(mounted(devices[0], folder / 'btrfs', '--options', 'noatime'))
        image = where / 'v'
        image.touch()
        run('chattr', '+C', image)
        yield fill(image, size)


@contextlib.contextmanager
def gluster(folder: Path, size: int) -> Iterator[Path]:
    """GlusterFS replica 2 on this host, with the settings of its group for virtual machines."""
    name = f'bench{os.getpid()}'
    host = run('hostname', '--ip-address').split()[0]
    bricks = [folder / f'brick{leg}' for leg in (0, 1)]
    run('systemctl', 'start', 'glusterd')
    places = [f'{host}:{brick}' for brick in bricks]
    run('gluster', '--mode=script', 'volume', 'create', name, 'replica', '2', *places, 'force')
    try:
        run('gluster', '--mode=script', 'volume', 'set', name, 'group', 'virt')
        run('gluster', '--mode=script', 'volume', 'start', name)
        with mounted(f'{host}:/{name}', folder / 'gluster', '-t', 'glusterfs') as where:
            yield fill(where / 'v', size)
    finally:
        for verb in ('stop', 'delete'):
            with contextlib.suppress(Unavailable):
                run('gluster', '--mode=script', 'volume', verb, name, *(['force'] if verb == 'stop' else []))
