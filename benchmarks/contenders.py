"""Who takes part in the comparison: each gives an image file of the same size, on legs on the same disk.

A contender is a context manager that is given a folder of its own; what it started is stopped and detached at
its end, by pid and device.  All have two legs (the raw file one), filled with random bytes before anything is
measured.  Peers are set up as their manuals advise for images of virtual machines.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from host import MIB, Unavailable, run, stopper
from pools import Pool, fill

Contender = Callable[[Path, int], 'contextlib.AbstractContextManager[Path]']
RAW, US, NO_LOG = 'raw file', 'mirrorfs', 'mirrorfs, no log'
PEERS = ('quorum, threads', 'quorum, io_uring')
"""qemu's quorum by how it does I/O on files; the first is its default."""
GLUSTER, CACHED = 'GlusterFS replica 2', 'mirrorfs, cache=auto'
NOTHING, TWO_RAW, EIGHT = 'null-co', 'two raw files', 'eight volumes'
ONE, ONE_JOB = 'one volume, eight jobs', 'one volume, one job'
OPTIONS: dict[str, tuple[str, ...]] = {US: (), NO_LOG: ('--log', 'none')}
ON_LOOP = (RAW, US, *PEERS)
"""Those that get an ext4 on a loop over the image."""


@contextlib.contextmanager
def raw(folder: Path, size: int) -> Iterator[Path]:
    yield fill(folder / 'raw.img', size)


@contextlib.contextmanager
def two_raw(folder: Path, size: int) -> Iterator[Path]:
    """Two raw files, `0` and `1` in the folder that this gives."""
    for leg in (0, 1):
        fill(folder / str(leg), size)
    yield folder


def mirrorfs(*options: str, mount: str = '') -> Contender:
    """Two legs; `options` of create, `mount` options."""

    @contextlib.contextmanager
    def contender(folder: Path, size: int) -> Iterator[Path]:
        with Pool(folder, size, create=options, mount=mount) as pool:
            yield fill(pool.images[0], size)

    return contender


@contextlib.contextmanager
def eight_volumes(folder: Path, size: int) -> Iterator[Path]:
    """Eight volumes of one pool, together as large as one of the others; gives the folder they are in."""
    with Pool(folder, size // 8, volumes=8) as pool:
        for image in pool.images:
            fill(image, size // 8)
        yield pool.mountpoint


def quorum(aio: str) -> Contender:
    """qemu-storage-daemon: quorum of two raw files, reading from the first (fifo), exported by FUSE."""

    @contextlib.contextmanager
    def contender(folder: Path, size: int) -> Iterator[Path]:
        image, command = folder / 'export', []
        image.touch()
        for leg in (0, 1):
            path = fill(folder / f'{leg}.img', size)
            command += ['--blockdev', f'driver=file,node-name=f{leg},filename={path},aio={aio}']
        node = 'driver=quorum,node-name=q,children.0=f0,children.1=f1,vote-threshold=2,read-pattern=fifo'
        with storage_daemon(image, size, *command, '--blockdev', node):
            yield image

    return contender


@contextlib.contextmanager
def nothing(folder: Path, size: int) -> Iterator[Path]:
    """A FUSE export in C that does nothing: the floor of what goes through the kernel."""
    image = folder / 'export'
    image.touch()
    with storage_daemon(image, size, '--blockdev', f'driver=null-co,node-name=q,size={size}'):
        yield image


@contextlib.contextmanager
def storage_daemon(image: Path, size: int, *nodes: str) -> Iterator[None]:
    """Run qemu-storage-daemon with node `q` exported at `image`."""
    export = f'type=fuse,id=e,node-name=q,mountpoint={image},writable=on'
    with background('qemu-storage-daemon', *nodes, '--export', export) as daemon:
        wait_for(lambda: image.stat().st_size == size, daemon, 'qemu-storage-daemon')
        yield


@contextlib.contextmanager
def background(*command: str) -> Iterator['subprocess.Popen[str]']:
    """Have a program run beside; it is ended by SIGTERM, or killed where that does not help."""
    daemon = None
    try:
        with stopper.later():
            daemon = start(*command)
        yield daemon
    finally:
        if daemon:
            with stopper.later():
                end(daemon)


def start(*command: str) -> 'subprocess.Popen[str]':
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f'{command[0]} is not installed') from None


def end(daemon: 'subprocess.Popen[str]') -> None:
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
    try:
        daemon.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.communicate()


def wait_for(ready: Callable[[], bool], daemon: 'subprocess.Popen[str]', name: str) -> None:
    """Wait until a program that was just started is ready.  Raises Unavailable with what it said instead."""
    deadline = time.monotonic() + 30
    while not ready():
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            raise Unavailable(f'{name}: {daemon.communicate()[1].strip()[-500:]}')
        time.sleep(0.05)


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
        with stopper.later():
            unmount(where)


def unmount(where: Path) -> None:
    for _ in range(20):
        with contextlib.suppress(Unavailable):
            run('umount', where)
            return
        time.sleep(0.25)
    run('umount', where)


@contextlib.contextmanager
def btrfs(folder: Path, size: int) -> Iterator[Path]:
    """btrfs raid1 over two loop devices; the image has no copy-on-write, as is advised for such files."""
    with contextlib.ExitStack() as stack:
        devices = []
        for leg in (0, 1):
            backing = folder / f'{leg}.img'
            with open(backing, 'wb') as file:
                file.truncate(size + size // 4 + 512 * MIB)
            devices.append(stack.enter_context(loop(backing, '--direct-io=on')))
        run('mkfs.btrfs', '--quiet', '--force', '--metadata', 'raid1', '--data', 'raid1', *devices)
        where = stack.enter_context(mounted(devices[0], folder / 'mnt', '--options', 'noatime'))
        image = where / 'v'
        image.touch()
        run('chattr', '+C', image)
        yield fill(image, size)


@contextlib.contextmanager
def gluster(folder: Path, size: int) -> Iterator[Path]:
    """GlusterFS replica 2 on this host, with the settings of its group for virtual machines."""
    name = f'bench{os.getpid()}'
    host = run('hostname', '-I').split()[0]
    bricks = [f'{host}:{folder}/brick{leg}' for leg in (0, 1)]
    with glusterd():
        try:
            gluster_tool('create', name, 'replica', '2', *bricks, 'force')
            gluster_tool('set', name, 'group', 'virt')
            gluster_tool('start', name)
            with mounted(f'{host}:/{name}', folder / 'mnt', '-t', 'glusterfs') as where:
                yield fill(where / 'v', size)
        finally:
            for words in (('stop', name, 'force'), ('delete', name)):
                with contextlib.suppress(Unavailable):
                    gluster_tool(*words)


def gluster_tool(*words: str) -> str:
    return run('gluster', '--mode=script', 'volume', *words)


@contextlib.contextmanager
def glusterd() -> Iterator[None]:
    """Have the daemon of GlusterFS run: the host's, or one of our own."""

    def answers() -> bool:
        try:
            gluster_tool('list')
            return True
        except Unavailable:
            return False

    if answers():
        yield
        return
    with background('glusterd', '--no-daemon') as daemon:
        wait_for(answers, daemon, 'glusterd')
        yield


FIELD: dict[str, Contender] = {
    RAW: raw,
    US: mirrorfs(*OPTIONS[US]),
    NO_LOG: mirrorfs(*OPTIONS[NO_LOG]),
    PEERS[0]: quorum('threads'),
    PEERS[1]: quorum('io_uring'),
    'btrfs raid1': btrfs,
}
"""Those that run every fio job."""
ASIDE: dict[str, Contender] = {
    CACHED: mirrorfs(mount='cache=auto'),
    NOTHING: nothing,
    TWO_RAW: two_raw,
    EIGHT: eight_volumes,
}
"""Those that only a few jobs are for."""
ORDER = (*FIELD, GLUSTER, *ASIDE, ONE, ONE_JOB)
"""As all are listed wherever they are shown."""
