"""Random system calls on control files, names and images of a real mount: it stays alive, and what fails
changes nothing.

    python tests/mountfuzz.py [--count 20000] [--seed 0]

`tests/test_command_fuzz.py` runs some of it at every commit.  Run as root.
"""

import argparse
import errno
import fcntl
import mmap
import os
import random
import select
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commandfuzz import command
from mounts import KEEP_SIZE, MIB, PUNCH_HOLE, MountedPool, Volume, fallocate, wait_for

WINDOW = 25
"""Calls between two looks at the whole state."""
FLAGS = (
    *(os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_SYNC),
    *(os.O_NOFOLLOW, os.O_DIRECTORY, os.O_PATH, os.O_NONBLOCK, os.O_TMPFILE, os.O_NOATIME),
)
NAMES = (b'new', b'..', b'.', b'n' * 255, b'n' * 256, b'\xff\xfe', b'a\nb', b' ', b'.mirrorfs', b'disk@split')
NOT_SENT = (b'/etc/', b'blocked', b'wait', b'destroy')
"""Parts of commands that would hold up the fuzzer itself, or name what is the machine's."""
Call = Callable[[bytes, int], object]


class Unexpected(AssertionError):
    """What may never happen, with the calls before it."""


class MountFuzz:
    """Calls on one mounted pool with one volume."""

    def __init__(self, pool: MountedPool, volume: Volume, seed: int) -> None:
        self.tally: Counter[str] = Counter()
        self._pool, self._volume = pool, volume
        self._rng = random.Random(f'calls {seed}')
        self._recent: list[str] = []
        self._changed = False
        """Whether what was done is one of those that may change something, and did."""
        reads = 'read lseek stat statvfs listdir access readlink getxattr listxattr poll map'
        self._calls: list[Call] = [self._write, self._write, self._open, self._size]
        self._calls += [getattr(self, f'_{name}') for name in reads.split()]
        writes = (
            'chmod utime rename link symlink mknod mkdir unlink rmdir setxattr ioctl lock allocate fsync copy'
        )
        self._calls += [getattr(self, f'_{name}') for name in writes.split()]

    def run(self, count: int) -> None:
        """Make so many calls.  Raises Unexpected."""
        before = self._settled()
        for number in range(count):
            call = self._rng.choice(self._calls)
            path, self._changed = self._path(), False
            name = call.__name__.strip('_')  # type: ignore[attr-defined]
            self._recent = [*self._recent[-WINDOW:], f'{name} {path[-200:]!r}']
            try:
                call(path, self._rng.getrandbits(30))
                self.tally[f'{name} done'] += 1
            except (OSError, ValueError, OverflowError) as error:  # Python's own refusals are not the mount's
                self._changed = False
                self._check_alive(error)
                self.tally[f'{name} refused'] += 1
            if self._changed:
                before = self._settled()
            elif number % WINDOW == WINDOW - 1 or number == count - 1:
                self._compare(before, self._state())

    def _check_alive(self, error: Exception) -> None:
        code = getattr(error, 'errno', 0)
        if code in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
            raise Unexpected(f'{error}: {self._pool.log()[-2000:]}\n' + '\n'.join(self._recent))

    # What is there

    def _state(self) -> object:
        """Return all that a call could change, but for times and counts of I/O."""
        status: dict[str, Any] = self._pool.status()
        for volume in status['volumes']:
            for key in ('io', 'log', 'chunks', 'resynced_bytes', 'recovered_bytes', 'last_sync'):
                volume.pop(key, None)
            for leg in volume.get('legs', []):
                for key in ('occupied', 'free'):
                    leg.pop(key, None)
        modes = [(info.st_mode, info.st_uid, info.st_gid, info.st_size) for info in self._infos()]
        names = sorted(os.listdir(self._pool.mountpoint)), sorted(os.listdir(self._pool.legs))
        return status, modes, names, sorted(str(path) for path in self._pool.directory.rglob('*'))

    def _infos(self) -> list[os.stat_result]:
        control = self._pool.control
        return [path.stat() for path in (self._volume.image, control, control / 'create', *self._legs())]

    def _legs(self) -> list[Path]:
        return sorted(self._pool.legs.iterdir())

    def _settled(self) -> object:
        """Return the state once it is the same for two looks."""
        seen: list[object] = [self._state()]

        def is_same() -> bool:
            seen.append(self._state())
            time.sleep(0.002)
            return seen[-1] == seen[-2] and self._volume.read('sync_completed') == 'none\n'

        wait_for(is_same, 'nothing changes any more')
        return seen[-1]

    def _compare(self, before: object, after: object) -> None:
        if before != after:
            raise Unexpected(f'changed by a refused call:\n{before}\n{after}\n' + '\n'.join(self._recent))

    # Where

    def _path(self) -> bytes:
        control, volume = os.fsencode(self._pool.control), os.fsencode(self._volume.control)
        folders = [os.fsencode(self._pool.mountpoint), control, volume]
        folders += [volume + b'/bitmap', volume + b'/legs/0', volume + b'/legs', control + b'/volumes']
        kind = self._rng.random()
        if kind < 0.2:
            return os.fsencode(self._volume.image)
        if kind < 0.3:
            return self._rng.choice(folders) + b'/' + self._rng.choice(NAMES)
        folder = self._rng.choice(folders[1:])
        names = sorted(os.listdir(folder))
        return folder + b'/' + self._rng.choice(names) if names and kind < 0.95 else folder

    def _is_image(self, path: bytes) -> bool:
        return path == os.fsencode(self._volume.image)

    def _opened(self, path: bytes, flags: int) -> 'Opened':
        return Opened(path, flags)

    # Calls

    def _write(self, path: bytes, number: int) -> None:
        with self._opened(path, self._rng.choice((os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND))) as fd:
            if self._is_image(path):
                os.pwrite(fd, self._rng.randbytes(number % 5000), number % self._volume.size)
                self._changed = True
                return
            data = command(self._rng, os.path.basename(path).decode(errors='replace'))
            if any(part in data for part in NOT_SENT):
                return
            self._recent[-1] += f' {data[:200]!r}'
            os.pwrite(fd, data, self._rng.choice((0, 0, number, 1 << 40)))
            self._changed = True

    def _open(self, path: bytes, number: int) -> None:
        flags = 0
        for flag in self._rng.sample(FLAGS, number % 4):
            flags |= flag
        with self._opened(path, flags) as fd:
            os.fstat(fd)

    def _size(self, path: bytes, number: int) -> None:
        size = self._rng.choice((0, -1, 1, number, self._volume.size - 512, 1 << 50, (1 << 63) - 1))
        os.truncate(path, size)
        self._changed = self._is_image(path)

    def _read(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            os.pread(fd, number % (1 << 18), self._rng.choice((0, number, 1 << 62)))

    def _lseek(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            os.lseek(fd, number, self._rng.choice((os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE, 77)))

    def _stat(self, path: bytes, number: int) -> None:
        os.lstat(path)

    def _statvfs(self, path: bytes, number: int) -> None:
        os.statvfs(path)

    def _listdir(self, path: bytes, number: int) -> None:
        os.listdir(path)

    def _access(self, path: bytes, number: int) -> None:
        os.access(path, number % 8)

    def _readlink(self, path: bytes, number: int) -> None:
        os.readlink(path)

    def _getxattr(self, path: bytes, number: int) -> None:
        os.getxattr(
            path,
            self._rng.choice(('user.a', 'security.capability', 'system.posix_acl_access', 'fuse_stacktrace')),
        )

    def _listxattr(self, path: bytes, number: int) -> None:
        os.listxattr(path)

    def _setxattr(self, path: bytes, number: int) -> None:
        name = self._rng.choice(('user.a', 'trusted.b', 'fuse_stacktrace', 'user.' + 'n' * 250))
        if number % 2:
            os.removexattr(path, name)
        os.setxattr(path, name, bytes(number % 70000))

    def _poll(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            waiter = select.poll()
            waiter.register(fd, number % 64)
            waiter.poll(0)

    def _map(self, path: bytes, number: int) -> None:
        with self._opened(path, self._rng.choice((os.O_RDONLY, os.O_RDWR))) as fd:
            kind = self._rng.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE))
            access = self._rng.choice((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))
            mmap.mmap(fd, 1 + number % MIB, kind, access).close()

    def _chmod(self, path: bytes, number: int) -> None:
        self._rng.choice((lambda: os.chmod(path, number % 0o10000), lambda: os.chown(path, number % 3, -1)))()
        self._changed = self._is_image(path)

    def _utime(self, path: bytes, number: int) -> None:
        os.utime(path, ns=(number, -number if number % 7 == 0 else number << 30))

    def _rename(self, path: bytes, number: int) -> None:
        other = self._rng.choice((self._path(), os.fsencode(self._pool.base / 'away')))
        os.rename(path, other)

    def _link(self, path: bytes, number: int) -> None:
        os.link(path, self._path(), follow_symlinks=False)

    def _symlink(self, path: bytes, number: int) -> None:
        os.symlink(b'/etc/passwd', path)

    def _mknod(self, path: bytes, number: int) -> None:
        kinds = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
        os.mknod(path, self._rng.choice(kinds) | 0o600, os.makedev(1, 5))

    def _mkdir(self, path: bytes, number: int) -> None:
        os.mkdir(path)

    def _unlink(self, path: bytes, number: int) -> None:
        os.unlink(path)

    def _rmdir(self, path: bytes, number: int) -> None:
        os.rmdir(path)

    def _ioctl(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            asked = self._rng.choice((0x5401, 0x541B, 0x80081272, 0x40049409, 0xC0185879, number))
            fcntl.ioctl(fd, asked, bytearray(64))

    def _lock(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            fcntl.flock(fd, self._rng.choice((fcntl.LOCK_SH, fcntl.LOCK_EX)) | fcntl.LOCK_NB)

    def _allocate(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDWR) as fd:
            mode = self._rng.choice((KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, 0x08, 0x10, 0x20, 0x40))
            fallocate(fd, mode, number % self._volume.size, 1 + number % 70000)
            self._changed = True

    def _fsync(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            os.fsync(fd)

    def _copy(self, path: bytes, number: int) -> None:
        with self._opened(path, os.O_RDONLY) as source, self._opened(self._path(), os.O_WRONLY) as into:
            os.copy_file_range(source, into, number % 1000)
            self._changed = True


class Opened:
    """An open file, closed at the end; O_TMPFILE and O_CREAT with a mode."""

    def __init__(self, path: bytes, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def fuzz(count: int, seed: int, **env: str) -> Counter[str]:
    """Make `count` calls on a new pool, and end it in order.  Raises Unexpected, AssertionError."""
    with MountedPool(env=env) as pool:
        pool.start()
        volume = pool.volume('disk', 8 * MIB)
        one = MountFuzz(pool, volume, seed)
        one.run(count)
        alive = pool.status()['pid'] == pool.pid
        pool.stop()
        assert alive and 'CRITICAL' not in pool.log() and 'Traceback' not in pool.log(), pool.log()[-3000:]
    return one.tally


def main() -> None:
    parser = argparse.ArgumentParser(description='Try random system calls on a mount.')
    parser.add_argument('--count', type=int, default=20_000)
    parser.add_argument('--seed', type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    tally = fuzz(asked.count, asked.seed)
    print(f'{asked.count} calls in {time.monotonic() - began:.0f} s: {dict(sorted(tally.items()))}')


if __name__ == '__main__':
    main()
