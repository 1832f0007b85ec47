"""Mounting and unmounting: a FUSE descriptor from mount(2) for root, from fusermount3 for other users.

Also what is known of mounts from /proc/self/mountinfo.  The option words are in `mirrorfs.fs.options`.
"""

import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.errors import Refused
from mirrorfs.fs.options import Options

FSTYPE = 'fuse.mirrorfs'
_libc = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2
_PATIENCE = 3.0
"""Seconds after which a mount that does not answer may be one that nobody serves."""
_LINKS_MAX = 40


@dataclass(frozen=True, slots=True)
class Mount:
    """One of our mounts, as the kernel lists it.  `device`: major:minor."""

    pool: str
    mountpoint: str
    device: str


def mounts() -> list[Mount]:
    """Return all mirrorfs mounts, dead ones too."""
    found = []
    for line in Path('/proc/self/mountinfo').read_text().splitlines():
        before, _, after = line.partition(' - ')
        kind, source, *_ = after.split()
        if kind == FSTYPE:
            _, _, device, _, mountpoint, *_ = before.split()
            found.append(Mount(_unescape(source), _unescape(mountpoint), device))
    return found


def mounted_at(mountpoint: str) -> Mount:
    """Return the mount of ours that was mounted last on a real path.  Raises Refused(ENOENT)."""
    for found in reversed(mounts()):
        if found.mountpoint == mountpoint:
            return found
    raise Refused(errno.ENOENT, f'nothing of ours is mounted on {mountpoint}')


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo."""
    return text.encode('latin-1', 'backslashreplace').decode('unicode_escape').encode('latin-1').decode()


def real_path(path: str) -> str:
    """As os.path.realpath, but asks none of our mounts anything: one that hangs would not answer."""
    within = tuple(f'{mount.mountpoint}/' for mount in mounts())
    rest = os.path.join(os.getcwd(), path).split('/')[::-1]
    real, links = '/', 0
    while rest:
        name = rest.pop()
        step = os.path.join(real, name)
        if name in ('', '.'):
            continue
        if name == '..':
            real = os.path.dirname(real)
        elif not f'{step}/'.startswith(within) and links < _LINKS_MAX and os.path.islink(step):
            links += 1
            target = os.readlink(step)
            rest += target.split('/')[::-1]
            if target.startswith('/'):
                real = '/'
        else:
            real = step
    return real


def leads_into(path: str, mountpoint: str) -> bool:
    """Whether a path leads into what is mounted on a real path, also by a bind mount of it.

    Asks none of our mounts anything.
    """
    there = mounts()
    devices = {mount.device for mount in there if mount.mountpoint == mountpoint}
    own = tuple(f'{mount.mountpoint}/' for mount in there if mount.device in devices)
    return f'{real_path(path)}/'.startswith(own)


def is_dead(mount: Mount) -> bool:
    """Whether a mount's daemon is gone.

    A mount that does not answer, and whose pool nobody holds, is aborted: then all who wait for it get an
    error.  It is dead, too.
    """
    code = ask(mount.mountpoint)
    if code == errno.ETIMEDOUT and is_unserved(mount.pool):
        _abort(mount.mountpoint)
        return True
    return code in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(mountpoint: str) -> int:
    """Stat a mount and return the errno: 0 if it answers, ETIMEDOUT if it does not within 3 s.

    A process of its own does it: one that hangs there may be impossible to kill, so nobody waits for it, and
    it keeps nothing open.
    """
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.closerange(0, os.sysconf('SC_OPEN_MAX'))
            os.stat(mountpoint)
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    ended = os.pidfd_open(pid)
    try:
        answered, _, _ = select.select([ended], [], [], _PATIENCE)
    finally:
        os.close(ended)
    if not answered:
        os.kill(pid, signal.SIGKILL)
        return errno.ETIMEDOUT
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def is_unserved(pool: str) -> bool:
    """Whether it is certain that no daemon holds a pool."""
    try:
        fd = os.open(os.path.join(pool, 'lock'), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def abort(mount: Mount) -> None:
    """Have every request to a mount fail from now on, if it is still there.

    Root may, and who mounted it where fusectl is mounted.
    """
    if mount not in mounts():
        return
    number = mount.device.partition(':')[2]
    try:
        Path(f'/sys/fs/fuse/connections/{number}/abort').write_text('1')
    except OSError:
        _abort(mount.mountpoint)


def _abort(mountpoint: str) -> None:
    """Have every request to a mount fail from now on.  Only root may; for others it stays as it is."""
    held = os.open(mountpoint, os.O_PATH | os.O_CLOEXEC)  # asks nothing; unmounting it is another matter
    _libc.umount2(os.fsencode(mountpoint), _MNT_FORCE)
    os.close(held)


def check_mountpoint(path: str) -> str:
    """Return the real path to mount on; cleans dead mounts of ours off it.

    Raises Refused: ENOENT, ENOTDIR, EBUSY where a mirrorfs is mounted and alive.
    """
    real = real_path(path)
    for found in reversed(mounts()):
        if found.mountpoint == real:
            if not is_dead(found):
                raise Refused(errno.EBUSY, f'{path} has a mirrorfs mounted already')
            unmount(real, lazy=True)
    try:
        info = os.stat(real)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f'mount point {path}: {error.strerror}') from None
    if not stat.S_ISDIR(info.st_mode):
        raise Refused(errno.ENOTDIR, f'mount point {path} is not a directory')
    return real


def mount(pool: str, mountpoint: str, options: Options) -> int:
    """Mount and return the non-blocking FUSE descriptor.  Raises Refused with the reason."""
    if os.geteuid() == 0:
        return _mount_directly(pool, mountpoint, options)
    return _mount_by_helper(pool, mountpoint, options)


def _mount_directly(pool: str, mountpoint: str, options: Options) -> int:
    try:
        fd = os.open('/dev/fuse', os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f'/dev/fuse: {error.strerror} (is FUSE there?)') from None
    words = f'fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions'
    if options.allow_other:
        words += ',allow_other'
    there, kind = os.fsencode(mountpoint), FSTYPE.encode()
    if _libc.mount(os.fsencode(pool), there, kind, options.flags, words.encode()):
        code = ctypes.get_errno()
        os.close(fd)
        raise Refused(code, f'cannot mount on {mountpoint}: {os.strerror(code)}')
    return fd


def _mount_by_helper(pool: str, mountpoint: str, options: Options) -> int:
    """Have fusermount3 mount and send us the descriptor, as libfuse does (lib/mount.c)."""
    escaped = pool.replace('\\', '\\\\').replace(',', '\\,')
    words = ','.join([f'fsname={escaped}', 'subtype=mirrorfs', 'default_permissions', *options.flag_words])
    if options.allow_other:
        words += ',allow_other'
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        try:
            helper = subprocess.run(
                ['fusermount3', '-o', words, '--', mountpoint],
                env={**os.environ, '_FUSE_COMMFD': str(far.fileno())},
                pass_fds=[far.fileno()],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except FileNotFoundError:
            raise Refused(errno.ENOENT, 'fusermount3 (package fuse3) is needed to mount as a user') from None
        if helper.returncode:
            raise Refused(errno.EPERM, f'fusermount3: {helper.stderr.strip()}')
        _, ancillary, _, _ = near.recvmsg(1, socket.CMSG_SPACE(4))
    received = array.array('i')
    received.frombytes(ancillary[0][2][: received.itemsize])
    fd = received[0]
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    return fd


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount.  Raises Refused: EBUSY where something is open there."""
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0):
            code = ctypes.get_errno()
            raise Refused(code, f'cannot unmount {mountpoint}: {os.strerror(code)}')
        return
    command = ['fusermount3', '-u', *(['-z'] if lazy else []), '--', mountpoint]
    helper = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if helper.returncode:
        raise Refused(errno.EBUSY, f'cannot unmount {mountpoint}: {helper.stderr.strip()}')
