"""The message layouts in mirrorfs.fs.wire, against what a real kernel sends and takes.

A bare FUSE server of one file, on a descriptor of its own, records every request; the test then makes
system calls and looks at what arrived.
"""

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.fs import mounting, wire
from mirrorfs.leg.file import KEEP_SIZE, PUNCH_HOLE, fallocate

LOOKUP, GETATTR, RELEASE, FLUSH, OPENDIR = 1, 3, 18, 25, 27
NODE, SIZE = 7, 1 << 20
ATTR = struct.Struct('<QQQQQQIIIIIIIIII')
"""fuse_attr: ino size blocks atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags"""


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o600
    size = 0 if node == 1 else SIZE
    return ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


class Server:
    """Answers just enough for one file; `seen` holds (opcode, node, whole message)."""

    def __init__(self, fuse: int) -> None:
        self.fuse = fuse
        self.seen: list[tuple[int, int, bytes]] = []
        self.max_background = 0

    def serve(self) -> None:
        os.set_blocking(self.fuse, True)
        while True:
            try:
                message = os.read(self.fuse, (1 << 20) + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            length, opcode, unique, node, *_ = wire.IN_HEADER.unpack_from(message)
            assert length == len(message)
            self.seen.append((opcode, node, message))
            error, body = self.answer(opcode, node, message)
            if body is not None:
                reply = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), -error, unique) + body
                os.write(self.fuse, reply)

    def answer(self, opcode: int, node: int, message: bytes) -> tuple[int, bytes | None]:
        if opcode == wire.FUSE_INIT:
            _, minor = struct.unpack_from('<II', message, wire.BODY)
            # fuse_init_out: version, readahead, flags (big writes), background, max_write, time_gran, pages
            flags = 1 << 5 | 1 << 22
            body = struct.pack('<IIIIHHIIHHI', 7, min(minor, 31), 0, flags, 0, 0, 1 << 20, 1, 256, 0, 0)
            reply = bytearray(wire.OUT_HEADER.pack(0, 0, 0) + body.ljust(64, b'\0'))
            wire.tune_init(reply, 200)
            return 0, bytes(reply[wire.OUT_HEADER.size :])
        if opcode == LOOKUP:
            return 0, struct.pack('<QQQQII', NODE, 0, 0, 0, 0, 0) + attributes(NODE)
        if opcode == GETATTR:
            return 0, struct.pack('<QII', 0, 0, 0) + attributes(node)
        if opcode == wire.FUSE_OPEN:
            reply = bytearray(wire.OUT_HEADER.pack(0, 0, 0) + wire.OPEN_OUT.pack(99, wire.FOPEN_DIRECT_IO, 0))
            wire.tune_open(reply)
            return 0, bytes(reply[wire.OUT_HEADER.size :])
        if opcode == wire.FUSE_READ:
            return 0, b'r' * wire.READ_IN.unpack_from(message, wire.BODY)[2]
        if opcode == wire.FUSE_WRITE:
            size = wire.WRITE_IN.unpack_from(message, wire.BODY)[2]
            return 0, wire.WRITE_REPLY.pack(0, 0, 0, size, 0)[wire.OUT_HEADER.size :]
        if opcode == wire.FUSE_LSEEK:
            return 0, wire.LSEEK_OUT.pack(4096)
        if opcode in (wire.FUSE_FSYNC, wire.FUSE_FALLOCATE, FLUSH, RELEASE):
            return 0, b''
        if opcode in (2, wire.FUSE_INTERRUPT, 42):  # FORGET, BATCH_FORGET: no reply
            return 0, None
        return errno.ENOSYS, b''


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        if os.environ.get('CI'):
            pytest.fail('/dev/fuse is needed in CI')
        pytest.skip('needs /dev/fuse')
    mountpoint = tmp_path / 'mnt'
    mountpoint.mkdir()
    fuse = mounting.mount('wire-test', str(mountpoint), mounting.Options())
    bare = Server(fuse)
    thread = threading.Thread(target=bare.serve, daemon=True)
    thread.start()
    try:
        yield bare, mountpoint
    finally:
        mounting.unmount(str(mountpoint), lazy=True)
        thread.join(10)
        os.close(fuse)


def last(server: Server, opcode: int) -> bytes:
    return [message for seen, node, message in server.seen if seen == opcode and node == NODE][-1]


def test_reads_and_writes_arrive_as_the_layouts_say(server: tuple[Server, Path]) -> None:
    bare, mountpoint = server
    fd = os.open(mountpoint / 'file', os.O_RDWR)
    try:
        assert os.pread(fd, 100, 7) == b'r' * 100
        fh, offset, size, _, _, flags, _ = wire.READ_IN.unpack_from(last(bare, wire.FUSE_READ), wire.BODY)
        assert (fh, offset, size) == (99, 7, 100)
        assert flags & os.O_ACCMODE == os.O_RDWR
        assert os.pwrite(fd, b'payload', 4103) == 7
        message = last(bare, wire.FUSE_WRITE)
        fh, offset, size, _, _, flags, _ = wire.WRITE_IN.unpack_from(message, wire.BODY)
        assert (fh, offset, size) == (99, 4103, 7)
        assert message[wire.WRITE_DATA :] == b'payload'
        assert not flags & os.O_DSYNC
    finally:
        os.close(fd)


def test_durable_writes_show_in_the_open_flags_of_the_request(server: tuple[Server, Path]) -> None:
    bare, mountpoint = server
    for extra in (os.O_DSYNC, os.O_SYNC):
        fd = os.open(mountpoint / 'file', os.O_WRONLY | extra)
        os.pwrite(fd, b'x', 0)
        os.close(fd)
        assert wire.WRITE_IN.unpack_from(last(bare, wire.FUSE_WRITE), wire.BODY)[5] & os.O_DSYNC
    fd = os.open(mountpoint / 'file', os.O_WRONLY)
    os.pwritev(fd, [b'x'], 0, os.RWF_DSYNC)
    os.close(fd)
    assert wire.WRITE_IN.unpack_from(last(bare, wire.FUSE_WRITE), wire.BODY)[5] & os.O_DSYNC


def test_fsync_fallocate_and_lseek_arrive_as_the_layouts_say(server: tuple[Server, Path]) -> None:
    bare, mountpoint = server
    fd = os.open(mountpoint / 'file', os.O_RDWR)
    try:
        os.fdatasync(fd)
        assert wire.FSYNC_IN.unpack_from(last(bare, wire.FUSE_FSYNC), wire.BODY)[:2] == (99, 1)
        os.fsync(fd)
        assert wire.FSYNC_IN.unpack_from(last(bare, wire.FUSE_FSYNC), wire.BODY)[:2] == (99, 0)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 8192, 12288)
        message = last(bare, wire.FUSE_FALLOCATE)
        assert wire.FALLOCATE_IN.unpack_from(message, wire.BODY)[:4] == (99, 8192, 12288, 3)
        assert os.lseek(fd, 512, os.SEEK_DATA) == 4096
        message = last(bare, wire.FUSE_LSEEK)
        assert wire.LSEEK_IN.unpack_from(message, wire.BODY)[:3] == (99, 512, os.SEEK_DATA)
    finally:
        os.close(fd)


def test_the_kernel_takes_the_tuned_init(server: tuple[Server, Path], tmp_path: Path) -> None:
    _, mountpoint = server
    if os.geteuid() != 0:
        pytest.skip('fusectl needs root')
    os.stat(mountpoint / 'file')
    control = tmp_path / 'fusectl'
    control.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b'none', os.fsencode(control), b'fusectl', 0, None):
        pytest.skip(f'fusectl cannot be mounted: {os.strerror(ctypes.get_errno())}')
    try:
        connection = control / str(os.minor(os.stat(mountpoint).st_dev))
        assert int((connection / 'max_background').read_text()) == 200
        assert int((connection / 'congestion_threshold').read_text()) == 150
    finally:
        libc.umount2(os.fsencode(control), 0)
