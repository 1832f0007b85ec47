"""What may be a leg: looked at through a descriptor that opens nothing, before anything is opened.

A leg is a regular file, named by itself and not by a symbolic link, or a block device, by any name: those in
/dev/disk/by-id are links, and better names than what they lead to.  What is looked at is what is opened: its
path may lead elsewhere by then, the descriptor does not.

Nothing may be a leg that lies, at whatever depth, on the mount that it would serve: it would wait for itself.
All functions here block; call them from a thread.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mirrorfs.errors import Refused

log = logging.getLogger(__name__)

IsOwn = Callable[[str], bool]
"""Whether a path leads into the mount that is served; asks nothing of that mount."""

_DEVICES = Path('/sys/dev/block')


def nowhere(path: str) -> bool:
    """Of who serves no mount."""
    return False


def refuse_own(path: str, is_own: IsOwn) -> None:
    """Raise Refused(EINVAL) for a path in our own mount: to look what is there could wait for ourselves."""
    if is_own(path):
        raise Refused(errno.EINVAL, f'{path} is in this very mount; what it serves cannot lie in it')


def look(path: str) -> int:
    """Return a descriptor (O_PATH) of the regular file or block device at a path.

    Raise Refused(EINVAL) for anything else, and OSError.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return _of_a_kind(fd, path)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return _follow(path)


def _of_a_kind(fd: int, path: str) -> int:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        what = f'{path} is a {_kind(mode)}'
        raise Refused(errno.EINVAL, f'{what}, neither a regular file nor a block device')
    return fd


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: 'directory', stat.S_IFIFO: 'FIFO', stat.S_IFSOCK: 'socket'}
    return kinds.get(stat.S_IFMT(mode), 'character device')


def _follow(path: str) -> int:
    """Return a descriptor of the block device that a symbolic link leads to."""
    target = os.path.realpath(path)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        found = f'{path} is a symbolic link to {target}, which is not there'
        raise Refused(errno.EINVAL, f'{found}; name the file itself') from None
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        found = f'{path} is a symbolic link to {target}'
        raise Refused(errno.EINVAL, f'{found}; name the file itself (links to block devices are followed)')
    log.info('%s is %s', path, target)
    return fd


def refuse_on_own(fd: int, path: str, is_own: IsOwn) -> None:
    """Raise Refused(EINVAL) for a file or device that lies on our own mount.

    Seen are loop devices, what is made of them (partitions, device-mapper), and filesystems on them that
    give their device's number; not those with numbers of their own (btrfs), nor ways by other machines.
    """
    info = os.fstat(fd)
    device = info.st_rdev if stat.S_ISBLK(info.st_mode) else info.st_dev
    for backing in backing_files(device, is_own):
        if is_own(backing):
            found = f'{path} lies on a loop device over {backing}, which is in this very mount'
            raise Refused(errno.EINVAL, f'{found}; it would wait for itself')


def backing_files(device: int, is_own: IsOwn) -> Iterator[str]:
    """Yield the files that a device lies on: those of the loop devices below it, at any depth.

    What lies below a file of our own is not looked for.
    """
    todo, seen = [f'{os.major(device)}:{os.minor(device)}'], set[str]()
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        folder = _DEVICES / number
        todo += below(folder)
        if file := _text(folder / 'loop/backing_file').removesuffix(' (deleted)'):
            yield file
            if not is_own(file):
                todo += _device_of(file)


def below(device: Path) -> list[str]:
    """Return the numbers (major:minor) of what a device in sysfs is made of: its whole disk, or its parts."""
    if (device / 'partition').exists():
        return [_text(device.resolve().parent / 'dev')]
    slaves = device / 'slaves'
    return [_text(slave / 'dev') for slave in slaves.iterdir()] if slaves.is_dir() else []


def _device_of(file: str) -> list[str]:
    try:
        device = os.stat(file).st_dev
    except OSError:
        return []
    return [f'{os.major(device)}:{os.minor(device)}']


def _text(file: Path) -> str:
    """Return what a file of sysfs says, or nothing."""
    try:
        return file.read_text().strip()
    except OSError:
        return ''


def loop_over(fd: int) -> str:
    """Return the loop device that has an opened regular file below it, if there is one."""
    path = os.readlink(f'/proc/self/fd/{fd}')
    for backing in Path('/sys/block').glob('loop*/loop/backing_file'):
        if _text(backing) == path:
            return f'/dev/{backing.parts[3]}'
    return ''
